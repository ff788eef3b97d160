"""Pixel-wise cross entropy as a sum and its weight, by torch's conventions for class weights and label smoothing.

With p_i the weight of pixel i (0 where it is ignored), y its label, w_c the weight of class c, e the smoothing and
log q the log-softmax of the logits:

    sum    = sum_i p_i [ (1 - e) w_y (-log q_y) + (e / K) sum_c w_c (-log q_c) ]
    weight = sum_i p_i w_y

Ignored pixels are selected away, never multiplied by 0: what stands under them, NaN included, changes no bit.
"""

import functools

import jax
import jax.numpy as jnp

from segjax.types import LABEL, LOGITS, VALID, WEIGHT, Array, Batch, Outputs

ADDITIVE = True
_UNROLLED = 32  # classes up to which a CPU reduces them one by one; more would only lengthen the compilation


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, tuple[Array, Array]]:
    """Cross entropy over the pixels that count, as (sum, weight).

    A pixel counts where 0 <= label < K, label != ignore_label, its example is valid and its weight is positive.

    Args:
      outputs: "logits" f32[B, H, W, K].
      batch: "label" integers [B, H, W]; optional "valid" bool[B] and "weight" f32[B, H, W].
      num_classes: K.
      ignore_label: label that counts nowhere.
      class_weights: one factor per class, or None (or none at all) for ones.
      label_smoothing: e, in [0, 1].
    Returns:
      {"cross_entropy": (sum, weight)}, f32 scalars; both 0 where no pixel counts.
    Raises:
      ValueError: shapes or options that do not fit.
    Source: torch.nn.CrossEntropyLoss; the per-pixel weight is that of Ronneberger et al. 2015, equation 1.
    """
    logits, label = outputs[LOGITS].astype(jnp.float32), jnp.asarray(batch[LABEL]).astype(jnp.int32)
    _check(logits, label, num_classes, class_weights, label_smoothing)
    counted = (label >= 0) & (label < num_classes) & (label != ignore_label)
    if VALID in batch:
        counted &= jnp.asarray(batch[VALID])[:, None, None]
    pixel = None
    if WEIGHT in batch:
        pixel = jax.lax.stop_gradient(jnp.asarray(batch[WEIGHT]).astype(jnp.float32))
        counted &= pixel > 0
    label = jnp.where(counted, label, -1)
    per_class = jnp.asarray(class_weights, jnp.float32) if class_weights is not None and len(class_weights) else None
    total = _sum(logits, label, pixel, per_class, float(label_smoothing))
    if pixel is None and per_class is None:
        return {"cross_entropy": (total, counted.sum(dtype=jnp.int32).astype(jnp.float32))}  # exact past 2^24 pixels
    weight = jnp.where(counted, _label_weight(label, pixel, per_class), 0.0)
    return {"cross_entropy": (total, weight.sum(axis=(1, 2)).sum())}


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sum(logits: Array, label: Array, pixel: Array | None, per_class: Array | None, smoothing: float) -> Array:
    """Weighted sum over pixels with label >= 0; its gradient is p_i (a_i softmax - target), in one pass."""
    return _sum_forward(logits, label, pixel, per_class, smoothing)[0]


def _sum_forward(
    logits: Array, label: Array, pixel: Array | None, per_class: Array | None, smoothing: float
) -> tuple[Array, tuple]:
    log_partition, picked = _reduce_classes(logits, label)
    value = (1.0 - smoothing) * (log_partition - picked)
    if per_class is not None:
        value = value * _class_weight(label, per_class)
    if smoothing:
        weights = jnp.ones(logits.shape[-1:]) if per_class is None else per_class
        value = value + smoothing / logits.shape[-1] * (
            log_partition * weights.sum() - (logits * jnp.broadcast_to(weights, logits.shape)).sum(axis=-1)
        )
    if pixel is not None:
        value = value * pixel
    value = jnp.where(label >= 0, value, 0.0)
    # In two stages, so that a long sum in float32 does not swallow its small terms.
    return value.sum(axis=(1, 2)).sum(), (logits, label, pixel, per_class, log_partition)


def _sum_backward(smoothing: float, residuals: tuple, cotangent: Array) -> tuple:
    logits, label, pixel, per_class, log_partition = residuals
    classes = logits.shape[-1]

    def wide(x: Array) -> Array:  # [B, H, W] -> [B, H, W, K] inside the fusion, which XLA then vectorises over W K
        return jnp.broadcast_to(x[..., None], logits.shape)

    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == wide(label)
    own = 1.0 - smoothing if per_class is None else (1.0 - smoothing) * _class_weight(label, per_class)
    target = jnp.where(hit, wide(jnp.broadcast_to(own, label.shape)), 0.0)
    mass = own
    if smoothing:
        spread = smoothing / classes * (jnp.ones((classes,)) if per_class is None else per_class)
        target, mass = target + jnp.broadcast_to(spread, logits.shape), own + spread.sum()
    scale = cotangent if pixel is None else cotangent * pixel
    mass, scale = (jnp.broadcast_to(x, label.shape) for x in (mass, scale))
    gradient = wide(scale) * (wide(mass) * jnp.exp(logits - wide(log_partition)) - target)
    return jnp.where(wide(label) >= 0, gradient, 0.0), None, None, None


_sum.defvjp(_sum_forward, _sum_backward)


def _reduce_classes(logits: Array, label: Array) -> tuple[Array, Array]:
    """(log sum_c exp z_c, z_y), both f32[B, H, W]; 0 for z_y where label is -1."""

    def plain(logits: Array, label: Array) -> tuple[Array, Array]:
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == label[..., None]
        return jax.nn.logsumexp(logits, axis=-1), jnp.where(hit, logits, 0.0).sum(axis=-1)

    def unrolled(logits: Array, label: Array) -> tuple[Array, Array]:
        """XLA's CPU reduction over a short last axis is not vectorised; K elementwise passes fused into one are."""
        planes = [logits[..., c] for c in range(logits.shape[-1])]
        top = functools.reduce(jnp.maximum, planes)
        log_partition = jnp.log(sum(jnp.exp(plane - top) for plane in planes)) + top
        return log_partition, sum(jnp.where(label == c, plane, 0.0) for c, plane in enumerate(planes))

    cpu = unrolled if logits.shape[-1] <= _UNROLLED else plain
    return jax.lax.platform_dependent(logits, label, cpu=cpu, default=plain)


def _class_weight(label: Array, per_class: Array) -> Array:
    return jnp.take(per_class, jnp.maximum(label, 0), mode="clip")


def _label_weight(label: Array, pixel: Array | None, per_class: Array | None) -> Array:
    factors = [] if pixel is None else [pixel]
    factors += [] if per_class is None else [_class_weight(label, per_class)]
    return functools.reduce(jnp.multiply, factors)


def _check(logits: Array, label: Array, num_classes: int, class_weights: object, smoothing: float) -> None:
    if logits.shape != (*label.shape, num_classes):
        raise ValueError(f"logits have shape {logits.shape}, expected {(*label.shape, num_classes)}: label's, then K")
    if class_weights is not None and len(class_weights) and len(class_weights) != num_classes:
        raise ValueError(f"class_weights has {len(class_weights)} values, expected one per class: {num_classes}")
    if class_weights is not None and not all(0.0 <= weight < float("inf") for weight in class_weights):
        raise ValueError(f"class_weights is {class_weights}, expected numbers of at least 0")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {smoothing}, expected a number in [0, 1]")
