"""A run of a semantic model, where it differs from one of an instance model: data, augmentation, score.

``tasks.of`` picks one of the two files; both have these functions.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segjax import augment
from segjax.data import pipeline
from segjax.inference import evaluation, protocol, visualize
from segjax.types import IMAGE, LABEL, VALID, WEIGHT, HostArray, Variables

EVAL_KEYS = ("resolution", "absent")  # of the section eval, beside those of every run; more may be there:
EVAL_DEFAULTS = protocol.DEFAULTS
DATA_KEYS = ()  # of the section data, beside those of every run
SUMMARY = ("miou", "pixel_accuracy")  # what summary.json says of the last evaluation
PER_CLASS, EACH = "iou", "IoU"  # the score of each class: its key in a result, its name

make_augment = augment.make_augment
AUGMENT_BOUND = ("size", "ignore_label")  # its arguments that do not stand in the section augment
check, check_running = protocol.check, protocol.check_running
rules = protocol.protocol


def augmentation(config: ConfigDict, ignore_label: int) -> augment.Augment:
    """The augmentation of a config."""
    return augment.make_augment(size=tuple(config.data.size), ignore_label=ignore_label, **config.augment)


def read_all(
    config: ConfigDict, dataset: Any, progress: Callable[[int, int], None] | None, *, evaluated: bool, cache: bool
) -> None:
    """Reads every file of a set, for training or as it is evaluated; InputError at the first bad one."""
    size, fit = tuple(config.data.size), config.data.fit
    pipeline.verify(dataset, progress, size=size, fit=fit, native_label=evaluated, cache=cache)


def train_batches(config: ConfigDict, dataset: Any, **reading: Any) -> pipeline.Batches:
    """``pipeline.train_batches`` of a config."""
    return pipeline.train_batches(dataset, size=tuple(config.data.size), **reading)


def eval_batches(config: ConfigDict, dataset: Any, **reading: Any) -> pipeline.Batches:
    """``pipeline.eval_batches`` of a config."""
    return pipeline.eval_batches(dataset, size=tuple(config.data.size), **reading)


def batch_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{key: (shape, dtype)} of a training batch."""
    pixels = (config.train.batch_size, *config.data.size)
    shapes = {IMAGE: ((*pixels, 3), jnp.uint8), LABEL: (pixels, jnp.int32), VALID: (pixels[:1], jnp.bool_)}
    weighted = config.data.get("border_weight", False)  # an option of some sets only
    return shapes | ({WEIGHT: (pixels, jnp.float32)} if weighted else {})


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
    """``evaluation.evaluate`` by the protocol of a config."""
    return evaluation.evaluate(
        module.apply,
        variables,
        protocol.batches(config, batches, dataset.ignore_label),
        num_classes=dataset.num_classes,
        ignore_label=dataset.ignore_label,
        mesh=mesh,
        **protocol.options(config),
        progress=progress,
        collect=collect,
    )


def pictures(result: dict[str, Any], dataset: Any) -> tuple[HostArray, list[HostArray]]:
    """(one page of all for TensorBoard, a picture each) of the images that an evaluation collected."""
    found, classes = result["pictures"], dataset.classes
    return visualize.comparison(found, classes), visualize.prediction_pictures(found, classes)
