"""Segmentation models, one family a file: ``models.build("deeplab", num_classes=K)`` finds ``deeplab.Model``.

A file whose name starts with an underscore holds parts of models, and is no model.
"""

import importlib
import pkgutil
from typing import Any

from segjax import layers
from segjax.models._batch_norm import apply_batch_norm as apply_batch_norm
from segjax.types import InputError


def known() -> list[str]:
    """Returns the names of the models: the files of this folder, but for those that start with an underscore."""
    return sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_"))


def build(name: str, *, num_classes: int, axis_name: str | None = None, **options: Any) -> layers.Network:
    """Builds a model by the name of its file.

    Args:
        name: "deeplab", ...
        num_classes: K >= 1, channels of the logits.
        axis_name: the axis of ``pmap`` that batch norm and dropout look along; None under ``jit``.
        **options: the fields of the file's ``Model``.
    Returns:
        a linen module: ``module.init(key, image)``, ``module.apply(variables, image)["logits"]``.
    Raises:
        InputError: no such model, no such option (the message lists the known ones and the nearest name), or an
            option's value that is not legal.
    """
    model = _model(name)
    options = {"num_classes": num_classes, "axis_name": axis_name, **options}
    return layers.from_options(model, f"model {name!r}", options)


def finds_instances(name: str) -> bool:
    """Whether a model's outputs are objects (boxes, classes, masks) rather than a class for each pixel.

    Raises:
        InputError: no such model.
    """
    return getattr(_model(name), "instances", False)


def _model(name: str) -> type[layers.Network]:
    if name not in known():
        raise InputError(f"no model {name!r}{layers.nearest(name, known())}; known are {', '.join(known())}")
    return importlib.import_module(f"{__name__}.{name}").Model
