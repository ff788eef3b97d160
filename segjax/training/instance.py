"""A run of an instance model, where it differs from one of a semantic model: data, augmentation, score.

``tasks.of`` picks one of the two files; both have these functions.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segjax import augment, augment_instances
from segjax.data import INSTANCE_KEYS, fitted, pipeline
from segjax.data import instances as batching
from segjax.data.fitted_instances import nearest_canvas
from segjax.inference import instance_evaluation, instance_pictures, instances
from segjax.types import (
    BOXES,
    BOXES_VALID,
    CLASSES,
    CONTENT_SIZE,
    CROWD,
    IMAGE,
    MASK_BOXES,
    MASKS,
    VALID,
    HostArray,
    InputError,
    Variables,
)

EVAL_KEYS = ("max_dets",)  # of the section eval, beside those of every run; more may be there:
EVAL_DEFAULTS = {"sizes": ()}
DATA_KEYS = INSTANCE_KEYS  # of the section data, beside those of every run
SUMMARY = ("mask_ap", "mask_ap50", "box_ap", "box_ap50")  # what summary.json says of the last evaluation
PER_CLASS, EACH = "ap", "mask AP"  # the score of each class: its key in a result, its name

make_augment = augment_instances.make_instance_augment
AUGMENT_BOUND = ("size",)  # its arguments that do not stand in the section augment
INSTANCE_PROTOCOL = 1  # raised when the evaluation itself changes


def check(config: ConfigDict) -> None:
    """Refuses values of the sections data and eval that cannot be.

    Raises:
        InputError: the key, its value and what to write instead.
    """
    for section, key in (("data", "sizes"), ("eval", "sizes")):
        for size in config[section].get(key, ()):
            if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(_whole(n) and n >= 1 for n in size)):
                raise InputError(f"{section}.{key}={config[section][key]}: expected (height, width) of each canvas")
    for key, least in (("max_instances", 1), ("mask_size", 1)):
        if key in config.data and not (_whole(config.data[key]) and config.data[key] >= least):
            raise InputError(f"data.{key}={config.data[key]!r}: expected at least {least}, a whole number")
    limits = config.eval.max_dets
    if not limits or not all(_whole(n) and n >= 1 for n in limits) or list(limits) != sorted(set(limits)):
        raise InputError(f"eval.max_dets={limits}: expected ascending numbers from 1, such as (1, 10, 100)")


def check_running(config: ConfigDict) -> None:
    """Nothing of an instance model's protocol is refused while training."""


def rules(config: ConfigDict, *, ema: bool) -> dict[str, Any]:
    """The rules a config is evaluated by, JSON-ready; "id" is the same for two evaluations that may be compared."""
    options = {key: config.model[key] for key in ("detections", "score_threshold") if key in config.model}
    found = {
        "version": INSTANCE_PROTOCOL,
        "inference": "whole image",
        "canvases": [list(size) for size in _eval_sizes(config)],
        "fit": config.data.fit,
        "max_dets": list(config.eval.max_dets),
        **options,
        "precision": config.train.dtype,
        "mean": list(config.augment.mean),
        "std": list(config.augment.std),
    }
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]
    return {**found, "ema": ema, "id": digest}


def augmentation(config: ConfigDict, ignore_label: int) -> augment.Augment:
    """The augmentation of a config; it keeps the canvas, whichever of several a batch is on."""
    del ignore_label  # there are no pixels to ignore
    return make_augment(**config.augment)


def read_all(
    config: ConfigDict, dataset: Any, progress: Callable[[int, int], None] | None, *, evaluated: bool, cache: bool
) -> None:
    """Reads every file of a set and decodes every mask.

    Raises:
        InputError: the first bad file; more objects on a training image than data.max_instances; or an image of the
            evaluation that under data.fit=crop no canvas holds.
    """
    if evaluated and config.data.fit == "crop":
        for i in range(len(dataset)):
            image, sizes = tuple(dataset.image_size(i)), _eval_sizes(config)
            fitted.refuse_a_part(dataset, i, image, sizes[nearest_canvas(image, sizes, "crop")], "eval.sizes")
    options = {"fit": config.data.fit, "mask_size": config.data.mask_size}
    most = batching.verify(dataset, progress, sizes=_sizes(config), cache=cache and not evaluated, **options)
    if not evaluated and most > config.data.max_instances:
        raise InputError(
            f"data.max_instances={config.data.max_instances}: {dataset.name}, split {dataset.split!r}, has an image of "
            f"{most} objects; set it to {most}, or data.verify=False to train on the largest alone"
        )


def train_batches(config: ConfigDict, dataset: Any, **reading: Any) -> pipeline.Batches:
    """``data.instances.train_batches`` of a config."""
    options = {"max_instances": config.data.max_instances, "mask_size": config.data.mask_size}
    return batching.train_batches(dataset, sizes=_sizes(config), **options, **reading)


def eval_batches(config: ConfigDict, dataset: Any, **reading: Any) -> pipeline.Batches:
    """``data.instances.eval_batches`` of a config: images alone, the truth is the set's."""
    return batching.eval_batches(dataset, sizes=_eval_sizes(config), **reading)


def batch_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{key: (shape, dtype)} of a training batch."""
    rows, count, cells = config.train.batch_size, config.data.max_instances, config.data.mask_size
    return {
        IMAGE: ((rows, *_sizes(config)[0], 3), jnp.uint8),
        CONTENT_SIZE: ((rows, 2), jnp.int32),
        VALID: ((rows,), jnp.bool_),
        BOXES: ((rows, count, 4), jnp.float32),
        CLASSES: ((rows, count), jnp.int32),
        CROWD: ((rows, count), jnp.bool_),
        BOXES_VALID: ((rows, count), jnp.bool_),
        MASKS: ((rows, count, cells, cells), jnp.uint8),
        MASK_BOXES: ((rows, count, 4), jnp.float32),
    }


def evaluate(
    config: ConfigDict,
    module: Any,
    variables: Variables,
    dataset: Any,
    batches: pipeline.Batches,
    *,
    mesh: Mesh | None,
    progress: Callable[[int], None],
    collect: int = 0,
) -> dict[str, Any]:
    """``instance_evaluation.evaluate`` by the protocol of a config."""
    mesh = None if mesh is None else mesh.local_mesh
    forward = _forward(module, tuple(config.augment.mean), tuple(config.augment.std), mesh)
    return instance_evaluation.evaluate(
        forward,
        variables,
        batches,
        dataset,
        first_class=module.first_class,
        paste_rule=module.paste,
        max_dets=tuple(config.eval.max_dets),
        mesh=mesh,
        progress=progress,
        collect=collect,
    )


def pictures(result: Mapping[str, Any], dataset: Any) -> tuple[HostArray, list[HostArray]]:
    """(one page of all for TensorBoard, a picture each) of the images that an evaluation collected."""
    found, classes = result["pictures"], dataset.classes
    each = [instance_pictures.comparison([picture], classes) for picture in found]
    return instance_pictures.comparison(found, classes), each


# A module is equal to another of the same options: the loop passes the same each time, and nothing is compiled anew.
@functools.lru_cache(maxsize=8)
def _forward(module: Any, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh | None) -> Callable:
    return instances.make_forward(module.apply, mean=mean, std=std, mesh=mesh)


def make_predict(
    config: ConfigDict, module: Any, variables: Variables, batch_size: int, mesh: Mesh | None
) -> Callable[[Sequence[HostArray]], list[instances.Detections]]:
    """The function from images to objects, on the canvases of the evaluation."""
    return instances.make_predict_instances(
        module.apply,
        variables,
        sizes=_eval_sizes(config),
        fit=config.data.fit,
        mean=tuple(config.augment.mean),
        std=tuple(config.augment.std),
        batch_size=batch_size,
        first_class=module.first_class,
        paste_rule=module.paste,
        mesh=mesh,
    )


def _sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    return tuple(tuple(size) for size in config.data.sizes) or (tuple(config.data.size),)


def _eval_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    return tuple(tuple(size) for size in config.eval.sizes) or _sizes(config)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
