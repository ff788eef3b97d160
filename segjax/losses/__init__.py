"""Losses: one file each, found by name. A loss maps (outputs, batch) to {term: (sum, weight)}, never to a mean.

``losses/<name>.py`` holds ``loss(outputs, batch, *, num_classes, ignore_label, **options)`` and ``ADDITIVE``: whether
its sums over parts of a batch add up to those of the whole, which gradient accumulation needs.
"""

import functools
import importlib
import inspect
import pathlib
from collections.abc import Callable, Mapping

from segjax.types import Array, Batch, InputError, Outputs

Loss = Callable[[Outputs, Batch], Mapping[str, tuple[Array, Array]]]


def names() -> list[str]:
    """Names of the losses there are: the files of this folder."""
    return sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[a-z]*.py"))


def build(name: str, *, num_classes: int, ignore_label: int, **options: object) -> Loss:
    """The loss of the file ``losses/<name>.py`` with its options bound.

    Args:
      name: file name without ".py".
      num_classes: K.
      ignore_label: label that counts nowhere.
      **options: keyword options of that loss.
    Returns:
      loss(outputs, batch) -> {term: (sum, weight)}; its attribute ``additive`` says whether parts of a batch add up.
    Raises:
      InputError: unknown name or option; the message lists the known ones.
    """
    if name not in names():
        raise InputError(f"loss {name!r} is unknown; known: {', '.join(names())}")
    module = importlib.import_module(f"segjax.losses.{name}")
    parameters = inspect.signature(module.loss).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"num_classes", "ignore_label"}
    if unknown := sorted(set(options) - known):
        raise InputError(f"loss {name!r} has no option {unknown[0]!r}; known: {', '.join(sorted(known))}")
    bound = functools.partial(module.loss, num_classes=num_classes, ignore_label=ignore_label, **options)
    bound.additive = module.ADDITIVE
    return bound
