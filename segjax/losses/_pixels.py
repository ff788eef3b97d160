"""What the losses share: which pixels count and with what weight, and a loss of the whole batch told by each device."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segjax.types import LABEL, LOGITS, VALID, WEIGHT, Array, Batch, Outputs, PyTree


class Pixels(NamedTuple):
    """The pixels of a batch. One that does not count has label -1 and mass 0."""

    logits: Array  # f32[B, H, W, K], as they are
    label: Array  # i32[B, H, W]
    weight: Array | None  # f32[B, H, W] of the batch, None where it has none

    def mass(self) -> Array:
        """f32[B, H, W]: the weight of each pixel, 1 without a weight map."""
        counted = self.label >= 0
        return counted.astype(jnp.float32) if self.weight is None else jnp.where(counted, self.weight, 0.0)

    def safe_logits(self) -> Array:
        """The logits, 0 where a pixel does not count: selected, so that a NaN there reaches no value or gradient."""
        return jnp.where((self.label >= 0)[..., None], self.logits, 0.0)

    def is_label(self) -> Array:
        """bool[B, H, W, K]: whether class k is the pixel's label."""
        classes = jax.lax.broadcasted_iota(jnp.int32, self.logits.shape, self.logits.ndim - 1)
        return classes == self.label[..., None]


def read(outputs: Outputs, batch: Batch, num_classes: int, ignore_label: int) -> Pixels:
    """The pixels of a batch: those count where 0 <= label < K, label != ignore_label, valid, and the weight positive.

    Raises:
      ValueError: logits that do not fit the label or the number of classes.
    """
    logits, label = outputs[LOGITS].astype(jnp.float32), jnp.asarray(batch[LABEL]).astype(jnp.int32)
    if logits.shape != (*label.shape, num_classes):
        raise ValueError(f"logits have shape {logits.shape}, expected {(*label.shape, num_classes)}: label's, then K")
    counted = (label >= 0) & (label < num_classes) & (label != ignore_label)
    if VALID in batch:
        counted &= jnp.asarray(batch[VALID])[:, None, None]
    weight = None
    if WEIGHT in batch:
        weight = jax.lax.stop_gradient(jnp.asarray(batch[WEIGHT]).astype(jnp.float32))
        counted &= weight > 0
    return Pixels(logits, jnp.where(counted, label, -1), weight)


def total(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sums over the devices of the axis; None: the sums as they are."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def share(value: Array, some: Array, axis_name: str | None) -> tuple[Array, Array]:
    """(sum, weight) of a loss of the whole batch: the weights of all devices add up to 1, the sums to the value.

    Args:
      value: the loss, the same on every device; finite where nothing counts.
      some: bool, whether any pixel of the whole batch counts; if not, weight and sum are 0.
      axis_name: of the devices, or None.
    """
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    weight = some.astype(jnp.float32) / devices
    return value * weight, weight


def chosen(values: Sequence[float] | None, num_classes: int, name: str) -> Array | None:
    """f32[K] of an option with one number per class; None for None and for none at all.

    Raises:
      ValueError: another number of values, or one below 0 or not finite.
    """
    if values is None or not len(values):
        return None
    if len(values) != num_classes:
        raise ValueError(f"{name} has {len(values)} values, expected one per class: {num_classes}")
    if not all(0.0 <= value < float("inf") for value in values):
        raise ValueError(f"{name} is {values}, expected numbers of at least 0")
    return jnp.asarray(values, jnp.float32)
