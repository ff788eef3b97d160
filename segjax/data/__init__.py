"""Datasets by file name: ``segjax/data/<name>.py`` with a function ``make(*, split, **options)`` is the set `name`.

A dataset has ``num_classes, class_names, palette u8[K, 3], ignore_label, classes, name, split, __len__, describe(i)``
and ``__getitem__(i) -> {"image": u8[H, W, 3], "label": u8|i32[H, W]}``; it can be pickled and read from many threads.
A bad record raises ``InputError`` naming the file. ``label_size(i) -> (H, W)`` without decoding is optional, as is
``border_weight``: where it is true, training batches carry the weight map of ``border_weight.weight_map``.
"""

import difflib
import importlib
import inspect
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from segjax.data.metadata import Classes
from segjax.types import InputError

# Keys of config.data that say how batches are made or which split is read: no set's own options.
PIPELINE_KEYS = ("name", "split", "train_split", "size", "fit", "cache", "workers", "worker_mode", "verify")
INSTANCE_KEYS = ("sizes", "max_instances", "mask_size")  # the pipeline's, of sets of instances


def names() -> list[str]:
    """Returns the sets `build` knows: the files of this folder that define ``make``."""
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if "\ndef make(" in file.read_text(encoding="utf-8")]


def build(name: str, /, *, split: str, **options: Any) -> Any:
    """Builds the set of ``segjax/data/<name>.py``.

    Args:
      name: a file name of this folder, without ``.py``.
      split: which part of the set.
      **options: what that file's ``make`` takes.

    Returns:
      A dataset (see the module).

    Raises:
      InputError: unknown name (lists the known), unknown option (suggests the nearest), or what ``make`` raises.
    """
    module = _module(name)
    accepted = _options(module)
    for key in options:
        if accepted is not None and key not in accepted:
            near = difflib.get_close_matches(key, accepted, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"data set {name!r} has no option {key!r}: {hint}It takes {', '.join(accepted)}")
    return module.make(split=split, **options)


def from_config(config: Mapping[str, Any], split: str, classes: Classes | None = None) -> Any:
    """Builds the set of a config's `data` section.

    The keys that ``make`` of ``data.<name>`` accepts are handed on; the pipeline's own keys and those of other sets
    are left out. ``make``'s own `name` (a set of a collection) is the key ``<data.name>_name``, ``tfds_name`` for TFDS.

    Args:
      config: the section: name, the set's own options, and the pipeline's keys.
      split: which part of the set.
      classes: the classes of the training run, for a folder that has no ``classes.json``.

    Returns:
      A dataset.

    Raises:
      InputError: unknown ``data.name``, or what the set's ``make`` raises.
    """
    module = _module(config["name"])
    accepted = _options(module)
    own = [key for key in config if key not in (*PIPELINE_KEYS, *INSTANCE_KEYS)]
    options = {key: config[key] for key in own if accepted is None or key in accepted}
    own_name = f"{config['name']}_name"
    if accepted is not None and "name" in accepted and own_name in config:
        options["name"] = config[own_name]
    if accepted is not None and "train_split" in accepted and "train_split" in config:
        options["train_split"] = config["train_split"]
    if classes is not None and (accepted is None or "fallback" in accepted):
        options["fallback"] = classes
    return module.make(split=split, **options)


def _module(name: str) -> types.ModuleType:
    known = names()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown data set {name!r} (data.name): {hint}The known ones are {', '.join(known)}")
    return importlib.import_module(f"segjax.data.{name}")


def _options(module: types.ModuleType) -> list[str] | None:
    """Returns the keyword options of the module's ``make``; None where it takes any."""
    parameters = inspect.signature(module.make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.name != "split"]
