"""Streaming confusion matrix: exact integer counts on the device, and the scores read off them.

Row i, column j of the matrix counts the pixels of true class i that were given class j; one more column, K, counts
those given something outside [0, K): a miss. Each count is kept in two uint32 limbs, value = low + 2^16 high, so
that counts stay exact up to 2^48 without 64-bit mode, and so that limbs may be added by ``jax.lax.psum`` over up to
2^15 devices without overflow. Integer addition is associative: any order, batch size or number of devices gives the
same counts.

    counts = empty(num_classes)
    counts = update(counts, prediction, label, ignore_label=255)        # jit, lax.scan carry
    counts = merge(counts, jax.lax.psum(counts_of_this_device, "data"))
    scores = compute(counts)
"""

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.types import Array, HostArray

ABSENT = ("skip", "zero", "ground_truth_only")
_LIMB_BITS = 16
_TABLES = 8  # of the CPU's histogram
_MAX_PIXELS = 2**31  # of one update: counted in int32 before they are split into limbs


class Counts(NamedTuple):
    """Confusion counts, value = low + 2^16 high; rows are true classes, the last column is "outside [0, K)"."""

    low: Array  # u32[K, K + 1], below 2^16 except after a psum
    high: Array  # u32[K, K + 1]


def empty(num_classes: int) -> Counts:
    """Counts of nothing.

    Args:
      num_classes: K, at least 1.
    Returns:
      Counts of zeros, u32[K, K + 1] each.
    Raises:
      ValueError: num_classes < 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    # Two arrays, not one twice: a donated carry may not hold the same buffer in two places.
    return Counts(*(jnp.zeros((num_classes, num_classes + 1), jnp.uint32) for _ in range(2)))


def update(
    counts: Counts, prediction: Array, label: Array, *, ignore_label: int | None = None, valid: Array | None = None
) -> Counts:
    """Counts with one batch of pixels added.

    A pixel counts where 0 <= label < K, label != ignore_label and valid; its prediction may be any integer, one
    outside [0, K) is a miss.

    Args:
      counts: what was counted before.
      prediction: integer array of any shape, often i32[B, H, W]: class of each pixel.
      label: integer array (u8, i32 ...) of the same shape.
      ignore_label: label that counts nowhere; None: only labels outside [0, K).
      valid: bool array whose shape is a prefix of the label's, often bool[B] or bool[B, H, W]; False counts nowhere.
    Returns:
      Counts, limbs normalised (low < 2^16).
    Raises:
      ValueError: shapes differ, an array is not of integers (valid: of bools), or 2^31 pixels or more at once.
    """
    _check(prediction, label, valid)
    num_classes = counts.low.shape[0]
    label, prediction = jnp.asarray(label).astype(jnp.int32), jnp.asarray(prediction).astype(jnp.int32)
    counted = (label >= 0) & (label < num_classes)
    if ignore_label is not None:
        counted &= label != ignore_label
    if valid is not None:
        valid = jnp.asarray(valid)
        counted &= valid.reshape(valid.shape + (1,) * (label.ndim - valid.ndim))
    row = jnp.where(counted, label, num_classes)
    column = jnp.where((prediction >= 0) & (prediction < num_classes), prediction, num_classes)
    new = _histogram(row.ravel(), column.ravel(), num_classes).astype(jnp.uint32)
    mask = jnp.uint32(2**_LIMB_BITS - 1)
    return merge(counts, Counts(new & mask, new >> _LIMB_BITS))


def merge(a: Counts, b: Counts) -> Counts:
    """Sum of two counts, limbs normalised: also the way to normalise a ``psum``, merge(empty(K), summed).

    Args:
      a, b: counts of the same number of classes.
    Returns:
      Counts with low < 2^16.
    Raises:
      ValueError: the numbers of classes differ.
    """
    if a.low.shape != b.low.shape:
        raise ValueError(f"counts of {a.low.shape[0]} and of {b.low.shape[0]} classes cannot be merged")
    low = a.low + b.low
    return Counts(low & jnp.uint32(2**_LIMB_BITS - 1), a.high + b.high + (low >> _LIMB_BITS))


def matrix(counts: Counts) -> HostArray:
    """The exact counts as one host array: i64[K, K + 1], the last column for predictions outside [0, K)."""
    low, high = (np.asarray(limb).astype(np.int64) for limb in counts)
    return low + (high << _LIMB_BITS)


def compute(counts: Counts, *, absent: str = "skip") -> dict[str, Any]:
    """Scores of a confusion matrix; float64 for concrete counts, float32 where they are traced.

    With t = true positives, s = pixels of the class in the labels (support), p = in the predictions:
    iou = t / (s + p - t), accuracy = t / s, dice = 2 t / (s + p); pixel_accuracy = sum t / sum s;
    fwiou = sum (s / sum s) iou; miou, mean_accuracy and mean_dice are means over the classes that take part:

        absent               in neither        only predicted    in the labels
        "skip"               left out, NaN     0                 counts          (as torchmetrics' macro averages)
        "zero"               0                 0                 counts
        "ground_truth_only"  left out, NaN     left out, NaN     counts

    Where nothing was counted every mean, pixel_accuracy and fwiou are NaN, whatever the policy.

    Args:
      counts: of ``update`` or ``merge``, or their psum.
      absent: the policy for classes without pixels in the labels.
    Returns:
      {"miou", "iou"[K], "pixel_accuracy", "mean_accuracy", "accuracy"[K], "fwiou", "mean_dice", "dice"[K],
      "support"[K], "predicted"[K], "pixels"}; NumPy values if concrete (support, predicted, pixels: exact int64).
    Raises:
      ValueError: unknown policy.
    Source: Long, Shelhamer & Darrell 2015, section 5 (pixel and mean accuracy, mean and frequency-weighted IU).
    """
    if absent not in ABSENT:
        raise ValueError(f"absent is {absent!r}, expected one of {', '.join(ABSENT)}")
    if any(isinstance(limb, jax.core.Tracer) for limb in counts):
        high = counts.high.astype(jnp.float32) * 2.0**_LIMB_BITS
        return _scores(jnp, counts.low.astype(jnp.float32) + high, absent)
    return _scores(np, matrix(counts), absent)


def _scores(xp: types.ModuleType, table: Array | HostArray, absent: str) -> dict[str, Any]:
    num_classes = table.shape[0]
    hits = xp.diagonal(table)
    support = table.sum(axis=1)
    predicted = table[:, :num_classes].sum(axis=0)
    pixels = support.sum()
    takes_part = {"skip": support + predicted > 0, "zero": support >= 0, "ground_truth_only": support > 0}[absent]

    def per_class(numerator: Array, denominator: Array) -> Array:
        ratio = numerator / xp.where(denominator > 0, denominator, 1)
        return xp.where(takes_part, ratio, xp.nan)

    def mean(values: Array) -> Array:
        total = xp.where(takes_part, values, 0).sum() / xp.where(takes_part.any(), takes_part.sum(), 1)
        return xp.where(pixels > 0, total, xp.nan)[()]

    iou = per_class(hits, support + predicted - hits)
    accuracy = per_class(hits, support)
    dice = per_class(2 * hits, support + predicted)
    some = xp.where(pixels > 0, pixels, 1)
    weighted = (support * xp.where(support > 0, iou, 0)).sum() / some
    return {
        "miou": mean(iou), "iou": iou,
        "pixel_accuracy": xp.where(pixels > 0, hits.sum() / some, xp.nan)[()],
        "mean_accuracy": mean(accuracy), "accuracy": accuracy,
        "fwiou": xp.where(pixels > 0, weighted, xp.nan)[()],
        "mean_dice": mean(dice), "dice": dice,
        "support": support, "predicted": predicted, "pixels": pixels,
    }  # fmt: skip


@functools.partial(jax.jit, static_argnums=2)
def _histogram(row: Array, column: Array, num_classes: int) -> Array:
    """i32[K, K + 1] of pairs of i32[n], both in [0, K]; row K is dropped."""
    forms = {"cpu": _scatter, "default": _one_hot}
    forms = {name: functools.partial(form, num_classes=num_classes) for name, form in forms.items()}
    return jax.lax.platform_dependent(row, column, **forms)


def _scatter(row: Array, column: Array, num_classes: int) -> Array:
    """One pass of increments: on a CPU about fifty times faster than a one-hot product.

    Neighbouring pixels, often alike, go to different tables: an increment need not wait for the one before it.
    """
    table = jnp.zeros((num_classes + 1) * (num_classes + 1) * _TABLES, jnp.int32)
    turn = jnp.arange(row.size, dtype=jnp.int32) % _TABLES
    table = table.at[(row * (num_classes + 1) + column) * _TABLES + turn].add(1, mode="promise_in_bounds")
    return table.reshape(num_classes + 1, num_classes + 1, _TABLES)[:num_classes].sum(axis=-1)


def _one_hot(row: Array, column: Array, num_classes: int) -> Array:
    """A product of one-hot int8 matrices, summed in int32: no atomics on a few hot addresses.

    The form for GPU and TPU; chosen by reasoning, not yet measured there.
    """
    classes = jnp.arange(num_classes + 1, dtype=jnp.int32)
    rows = (row[:, None] == classes[None, :num_classes]).astype(jnp.int8)
    columns = (column[:, None] == classes[None, :]).astype(jnp.int8)
    contract = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(rows, columns, contract, preferred_element_type=jnp.int32)


def _check(prediction: Array, label: Array, valid: Array | None) -> None:
    if prediction.shape != label.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, label {label.shape}: expected the same")
    for name, array in (("prediction", prediction), ("label", label)):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} is {array.dtype}, expected integers (class ids; arg-max the logits first)")
    if label.size >= _MAX_PIXELS:
        raise ValueError(f"{label.size} pixels in one update, expected fewer than 2^31: split the batch")
    if valid is not None and (valid.dtype != bool or valid.shape != label.shape[: valid.ndim]):
        raise ValueError(
            f"valid is {valid.dtype}{list(valid.shape)}, expected bool with a prefix of the label's shape {label.shape}"
        )
