"""Pixel-wise cross entropy as a sum and its weight, by torch's conventions for class weights and label smoothing.

With p_i the weight of pixel i (0 where it is ignored), y its label, w_c the weight of class c, e the smoothing and
log q the log-softmax of the logits:

    sum    = sum_i p_i [ (1 - e) w_y (-log q_y) + (e / K) sum_c w_c (-log q_c) ]
    weight = sum_i p_i w_y

Ignored pixels are selected away, never multiplied by 0: what stands under them, NaN included, changes no bit.

With ``top_k`` only the hardest pixels of the whole batch enter both sums, which is no sum over parts of a batch.
"""

import functools

import jax
import jax.numpy as jnp

from segjax.losses import _pixels
from segjax.types import Array, Batch, Outputs

_UNROLLED = 32  # classes up to which a CPU reduces them one by one; more would only lengthen the compilation


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    top_k: float | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Cross entropy over the pixels that count, as (sum, weight).

    A pixel counts where 0 <= label < K, label != ignore_label, its example is valid and its weight is positive.

    Args:
      outputs: "logits" f32[B, H, W, K].
      batch: "label" integers [B, H, W]; optional "valid" bool[B] and "weight" f32[B, H, W].
      num_classes: K.
      ignore_label: label that counts nowhere.
      axis_name: of the devices that hold parts of the batch; read by ``top_k`` alone.
      class_weights: one factor per class, or None (or none at all) for ones.
      label_smoothing: e, in [0, 1].
      top_k: the fraction in (0, 1] of the counted pixels that is kept, those of the largest terms of the
        sum over the whole batch: floor(top_k n) of n, at least 1; ties share the last places. None: all pixels.
    Returns:
      {"cross_entropy": (sum, weight)}, f32 scalars; both 0 where no pixel counts. With ``top_k`` the loss of the whole
      batch with weight 1 / devices.
    Raises:
      ValueError: shapes or options that do not fit.
    Source: torch.nn.CrossEntropyLoss; the per-pixel weight is that of Ronneberger et al. 2015, equation 1; top_k: Wu,
    Shen & van den Hengel 2016, https://arxiv.org/abs/1605.06885, which keeps a number of pixels.
    """
    pixels = _pixels.read(outputs, batch, num_classes, ignore_label)
    per_class = _pixels.chosen(class_weights, num_classes, "class_weights")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a number in [0, 1]")
    if top_k is not None:
        return {"cross_entropy": _hardest(pixels, per_class, float(label_smoothing), top_k, axis_name)}
    return {"cross_entropy": _sum_and_weight(*pixels, per_class, float(label_smoothing))}


def additive(*, top_k: float | None = None, **_: object) -> bool:
    """Whether the sums of parts of a batch add up to those of the whole: unless ``top_k`` ranks the pixels."""
    return top_k is None


def _sum_and_weight(
    logits: Array, label: Array, pixel: Array | None, per_class: Array | None, smoothing: float
) -> tuple[Array, Array]:
    total = _sum(logits, label, pixel, per_class, smoothing)
    if pixel is None and per_class is None:
        return total, (label >= 0).sum(dtype=jnp.int32).astype(jnp.float32)  # exact past 2^24 pixels
    weight = jnp.where(label >= 0, _label_weight(label, pixel, per_class), 0.0)
    return total, weight.sum(axis=(1, 2)).sum()


def _hardest(
    pixels: _pixels.Pixels, per_class: Array | None, smoothing: float, top_k: float, axis_name: str | None
) -> tuple[Array, Array]:
    if not 0.0 < top_k <= 1.0:
        raise ValueError(f"top_k is {top_k}, expected a fraction above 0 and up to 1, or None for all pixels")
    logits, label, pixel = pixels
    terms, _ = _terms(jax.lax.stop_gradient(logits), label, pixel, per_class, smoothing)
    counted = label >= 0
    number = _pixels.total(counted.sum(dtype=jnp.int32), axis_name)
    # The small addend: 0.3 of 10 pixels is 3, though 0.3 * 10 is below it in float32.
    wanted = jnp.maximum(jnp.floor(top_k * number.astype(jnp.float32) * (1 + 1e-6)).astype(jnp.int32), 1)
    kept = _largest(terms, counted, wanted, axis_name)
    total, weight = _sum_and_weight(logits, label, kept if pixel is None else kept * pixel, per_class, smoothing)
    total, weight = _pixels.total((total, weight), axis_name)
    return _pixels.share(total / jnp.where(weight > 0, weight, 1.0), weight > 0, axis_name)


def _largest(values: Array, counted: Array, wanted: Array, axis_name: str | None) -> Array:
    """f32 of the values' shape: 1 for the ``wanted`` largest counted values of all devices, a part of 1 for ties.

    The bits of floats from 0 on are ordered as integers: the last value that is kept is found bit by bit, each by one
    count, which is all that devices exchange; sorting would gather every pixel.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(values > 0, values, 0.0), jnp.int32)
    bits = jnp.where(counted, bits, -1)

    def number(chosen: Array) -> Array:
        return _pixels.total(chosen.sum(dtype=jnp.int32), axis_name)

    def next_bit(i: Array, limit: Array) -> Array:
        larger = limit | (jnp.int32(1) << (30 - i))
        return jnp.where(number(bits >= larger) >= wanted, larger, limit)

    limit = jax.lax.fori_loop(0, 31, next_bit, jnp.int32(0))
    above, ties = number(bits > limit), number(bits == limit)
    part = (wanted - above).astype(jnp.float32) / jnp.maximum(ties, 1).astype(jnp.float32)
    return jnp.where(bits > limit, 1.0, jnp.where(bits == limit, part, 0.0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sum(logits: Array, label: Array, pixel: Array | None, per_class: Array | None, smoothing: float) -> Array:
    """Weighted sum over pixels with label >= 0; its gradient is p_i (a_i softmax - target), in one pass."""
    return _sum_forward(logits, label, pixel, per_class, smoothing)[0]


def _sum_forward(
    logits: Array, label: Array, pixel: Array | None, per_class: Array | None, smoothing: float
) -> tuple[Array, tuple]:
    value, log_partition = _terms(logits, label, pixel, per_class, smoothing)
    # In two stages, so that a long sum in float32 does not swallow its small terms.
    return value.sum(axis=(1, 2)).sum(), (logits, label, pixel, per_class, log_partition)


def _terms(
    logits: Array, label: Array, pixel: Array | None, per_class: Array | None, smoothing: float
) -> tuple[Array, Array]:
    """(the terms of the sum, 0 where label is -1; log sum_c exp z_c), both f32[B, H, W]."""
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
    return jnp.where(label >= 0, value, 0.0), log_partition


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
