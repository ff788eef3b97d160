"""Refuses a config that cannot run: keys that nothing reads, keys that are missing, values out of range."""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segjax import config as configs
from segjax import data, losses, models
from segjax.training import optimizer, tasks
from segjax.types import InputError

DTYPES, PARALLEL = ("float32", "bfloat16"), ("jit", "pmap")
OPTION_ERRORS = (ValueError, TypeError, ZeroDivisionError, OverflowError)  # what parts raise of an impossible option

# Sections whose keys the loop reads itself; those of the others are the parameters of what they configure.
_OWN = {
    "train": ("steps", "batch_size", "accumulate", "ema_decay", "parallel", "dtype"),
    "eval": ("every_steps", "batch_size", "ema", "pictures"),
    "checkpoint": ("every_steps", "keep_last", "keep_best"),
    "log": ("every_steps", "tensorboard"),
}
_TOP = ("experiment", "seed")
_SECTIONS = ("data", "augment", "model", "loss", "optimizer", *_OWN)
# All that evaluation and prediction read of a run's config, which an earlier version may have written.
_EVALUATED = {
    "data": ("name", "split", "size", "fit", "workers", "worker_mode"),
    "augment": ("mean", "std"),
    "model": ("name",),
    "train": ("dtype",),
    "eval": ("batch_size", "ema"),
}
_CHOICES = {
    "train.dtype": DTYPES,
    "train.parallel": PARALLEL,
    "data.fit": ("stretch", "pad", "crop"),
    "data.worker_mode": ("threads", "processes"),
    "eval.resolution": ("native", "input"),
    "eval.absent": ("skip", "zero", "ground_truth_only"),
}
_LEAST = {
    "seed": 0,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "eval.every_steps": 1,
    "eval.batch_size": 1,
    "eval.pictures": 0,
    "checkpoint.every_steps": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
    "log.every_steps": 1,
    "data.workers": 0,
}
_SEEDS = 2**32  # what the order of the examples is drawn from has 32 bits


def keys(config: ConfigDict) -> None:
    """Refuses a section or key that nothing reads, and one that is missing.

    Args:
        config: of an experiment.

    Raises:
        InputError: the key and the nearest known one.
    """
    _compare("", config, required=(*_TOP, *_SECTIONS), optional=())
    for name in _SECTIONS:
        if not isinstance(config[name], ConfigDict):
            raise InputError(f"{name}={config[name]!r}: expected a section with keys of its own")
    parameters, task = _parameters(config), tasks.of(config)
    for name, own in _OWN.items():
        more = (task.EVAL_KEYS, task.EVAL_DEFAULTS) if name == "eval" else ((), ())
        _compare(name, config[name], required=[*own, *more[0]], optional=list(more[1]))
    for name, keys_of in parameters.items():
        required = [key for key, needed in keys_of.items() if needed]
        _compare(name, config[name], required=required, optional=list(keys_of))


def evaluation_keys(config: ConfigDict) -> None:
    """Refuses the config of a run that lacks what evaluation reads; other keys may be there or not.

    Raises:
        InputError: the key that is missing.
    """
    for name, required in _EVALUATED.items():
        if name not in config or not isinstance(config[name], ConfigDict):
            raise InputError(f"the section {name} is missing in the config of this run")
        more = tasks.of(config).EVAL_KEYS if name == "eval" else ()
        _compare(name, config[name], required=[*required, *more], optional=None)


def values(config: ConfigDict, devices: int) -> None:
    """Refuses values out of range, of the keys that are there.

    Args:
        config: with the keys checked.
        devices: that a batch is divided among.

    Raises:
        InputError: the key, its value and what to write instead.
    """
    flat = configs.flatten(config)
    for key, known in _CHOICES.items():
        if key in flat and flat[key] not in known:
            raise InputError(f"{key}={flat[key]!r}: expected one of {', '.join(known)}")
    for key, least in _LEAST.items():
        if key in flat and not (_whole(flat[key]) and flat[key] >= least):
            raise InputError(f"{key}={flat[key]!r}: expected at least {least}, a whole number")
    if "seed" in flat and flat["seed"] >= _SEEDS:
        raise InputError(f"seed={flat['seed']}: expected a whole number below 2**32")
    size = flat["data.size"]
    if not _sequence(size) or len(size) != 2 or not all(_whole(n) and n >= 1 for n in size):
        raise InputError(f"data.size={size}: expected (height, width) in pixels")
    _check_colours(flat)
    _check_average(flat)
    tasks.of(config).check(config)
    if all(key in flat for key in ("train.batch_size", "train.accumulate")):
        _check_batch(config, devices)


def options(config: ConfigDict) -> None:
    """Refuses what augmentation, optimizer or model would refuse, before any data is read.

    Raises:
        InputError: the section, and what its part says of the value.
    """
    tasks.of(config).check_running(config)
    warmup = config.optimizer.warmup_steps if "warmup_steps" in config.optimizer else 0
    if not (_whole(warmup) and warmup >= 0):  # longer than the run is legal: runs are shortened to try them
        raise InputError(f"optimizer.warmup_steps={warmup!r}: expected a whole number from 0")
    explained(("augment",), lambda: tasks.of(config).augmentation(config, ignore_label=255))
    explained(("optimizer",), lambda: optimizer.make_optimizer(total_steps=config.train.steps, **config.optimizer))
    losses.build(config.loss.name, num_classes=2, ignore_label=255, **loss_options(config.loss))
    model = model_options(config.model)
    explained(("model",), lambda: models.build(config.model.name, num_classes=2, dtype=config.train.dtype, **model))


def explained(sections: Sequence[str], call: Callable[[], Any]) -> Any:
    """The result of ``call``; what it says of an impossible option becomes an InputError.

    Args:
        sections: of the config that the options stand in.
        call: builds a part of the run.

    Raises:
        InputError: the sections and the message of the part.
    """
    try:
        return call()
    except OPTION_ERRORS as error:
        where = f"section{'s' * (len(sections) > 1)} {', '.join(sections)} of the config"
        raise InputError(f"{where}: {error or type(error).__name__}") from error


def _compare(section: str, found: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] | None) -> None:
    """InputError for a key beyond required and optional (None: any may be there), then for one that is missing."""
    known = list(dict.fromkeys([*required, *(optional or ())]))
    prefix = f"{section}." if section else ""
    for key in found if optional is not None else ():
        if key not in known:
            owner = f"{section} {found['name']!r}" if "name" in found and "name" in known else section or "a config"
            hint = configs.nearest(key, known)
            raise InputError(f"{prefix}{key}: {owner} has no such key{hint}; it has {', '.join(known)}")
    for key in required:
        if key not in found:
            raise InputError(f"{prefix}{key} is missing in the config; {section or 'it'} needs {', '.join(required)}")


def _parameters(config: ConfigDict) -> dict[str, dict[str, bool]]:
    """{section: {key: whether it must be there}} of the sections that are the parameters of something."""
    for section in ("data", "model", "loss"):
        if "name" not in config[section]:
            raise InputError(f"{section}.name is missing in the config")
    parts = [("loss", part, losses.names()) for part in losses.summands(config.loss.name)]
    for section, name, known in (
        ("data", config.data.name, data.names()),
        ("model", config.model.name, models.known()),
        *parts,
    ):
        if name not in known:
            hint = configs.nearest(str(name), known)
            raise InputError(f"{section}.name={name!r} is unknown{hint}; the known ones are {', '.join(known)}")
    model = importlib.import_module(f"segjax.models.{config.model.name}").Model
    fields = {field.name: _required(field) for field in dataclasses.fields(model) if field.name not in _NOT_OF_MODEL}
    return {
        "data": _of_data(config.data, tasks.of(config).DATA_KEYS),
        "augment": _keywords(tasks.of(config).make_augment, tasks.of(config).AUGMENT_BOUND),
        "optimizer": _keywords(optimizer.make_optimizer, ("total_steps",)),
        "loss": {"name": True, "aux_weight": False} | _of_losses(config.loss.name),
        "model": {"name": True, "pretrained": False, **fields},
    }


def model_options(section: ConfigDict) -> dict[str, Any]:
    """What ``models.build`` takes of the section model."""
    return {key: value for key, value in section.items() if key not in ("name", "pretrained")}


def loss_options(section: ConfigDict) -> dict[str, Any]:
    """What ``losses.build`` takes of the section loss: without the options of other losses, which say nothing.

    Raises:
        InputError: an option that only other losses have, with another value than its default.
    """
    parts = losses.summands(section.name)
    own = {"aux_weight", *parts, *(option for part in parts for option in losses.options_of(part))}
    defaults = [(option, value) for name in losses.names() for option, value in losses.options_of(name).items()]
    kept = {}
    for key, value in section.items():
        if key in own:
            kept[key] = value.to_dict() if isinstance(value, ConfigDict) else value
        elif key != "name" and not any(key == option and value in (default, ()) for option, default in defaults):
            raise InputError(f"loss.{key}={value}: loss {section.name!r} has no such option; leave it out")
    return kept


def _of_losses(name: str) -> dict[str, bool]:
    """The options of every loss, and a section for each of this sum: the name may be changed and the rest stay."""
    options = {option: False for known in losses.names() for option in losses.options_of(known)}
    return options | dict.fromkeys(losses.summands(name), False)


_NOT_OF_MODEL = ("num_classes", "axis_name", "dtype", "parent", "name")


def _of_data(section: ConfigDict, more: Sequence[str]) -> dict[str, bool]:
    """The keys of the pipeline and of the set (True: required), and those of other sets, which are left unused."""
    others = {key: False for name in data.names() for key in _of_set(name, section)}
    return others | _of_set(section.name, section) | dict.fromkeys((*data.PIPELINE_KEYS, *more), True)


def _of_set(name: str, section: ConfigDict) -> dict[str, bool]:
    made = importlib.import_module(f"segjax.data.{name}").make
    parameters = _keywords(made, ("split", "train_split", "fallback"))
    if "name" in parameters:  # of one set of a collection
        parameters[f"{name}_name"] = parameters.pop("name")
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(made).parameters.values()):
        parameters |= {key: False for key in section}
    return parameters


def _keywords(function: Callable[..., Any], without: Sequence[str]) -> dict[str, bool]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in without}


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _check_colours(flat: Mapping[str, Any]) -> None:
    for key in ("augment.mean", "augment.std"):
        value = flat[key]
        numbers = _sequence(value) and len(value) == 3 and all(_number(x) for x in value)
        if not numbers or (key == "augment.std" and min(value) <= 0):
            more = " above 0" if key == "augment.std" else ""
            raise InputError(f"{key}={value}: expected three numbers{more}, for red, green and blue in [0, 1]")


def _check_average(flat: Mapping[str, Any]) -> None:
    if "train.ema_decay" not in flat:
        return
    decay = flat["train.ema_decay"]
    if not _number(decay) or not 0 <= decay < 1:
        raise InputError(f"train.ema_decay={decay}: expected 0 (off) to below 1, such as 0.999")
    if flat["eval.ema"] and not decay:
        raise InputError("eval.ema=True needs a moving average: set train.ema_decay, such as 0.999")


def _check_batch(config: ConfigDict, devices: int) -> None:
    parts, batch = devices * config.train.accumulate, config.train.batch_size
    if batch % parts:
        near = sorted({max(parts, batch // parts * parts), (batch // parts + 1) * parts})
        raise InputError(
            f"train.batch_size={batch} does not divide into {devices} device(s) x train.accumulate="
            f"{config.train.accumulate}; try {' or '.join(map(str, near))}"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list))
