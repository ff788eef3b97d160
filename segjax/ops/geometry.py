"""Geometry of windowed operations: arguments per axis, padding pairs, output sizes, and which window reads a pixel."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from segjax.types import Array

Padding = int | str | Sequence[int | tuple[int, int]]
Pair = tuple[int, int]


class Geometry(NamedTuple):
    """A convolution's shape in two dimensions; one of one dimension is an image of one row.

    Output i reads through tap t the input at stride i + dilation t - low; `output` is floor((input + low + high -
    dilation (window - 1) - 1) / stride) + 1.
    """

    input: Pair
    window: Pair
    stride: Pair
    pads: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    output: Pair


def image_geometry(
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[Pair],
    dilation: Sequence[int],
    groups: int,
) -> Geometry:
    """Completes arguments of one or two axes to a two-dimensional geometry with its output size.

    Args:
        size: input pixels per axis.
        window: kernel taps per axis.
        stride: pixels per axis between windows.
        pads: (low, high) padding per axis.
        dilation: pixels per axis between taps.
        groups: of the channels.

    Returns:
        the geometry; a single axis becomes the second of an image of one row.

    Raises:
        ValueError: a dilated window is larger than the padded input.
    """
    output = output_size(size, window, stride, pads, dilation)
    if len(size) == 2:
        return Geometry(tuple(size), tuple(window), tuple(stride), tuple(pads), tuple(dilation), groups, output)
    return Geometry((1, *size), (1, *window), (1, *stride), ((0, 0), *pads), (1, *dilation), groups, (1, *output))


def per_axis(name: str, value: int | Sequence[int], rank: int, *, minimum: int = 1) -> tuple[int, ...]:
    """Gives one int per spatial axis from an int or a sequence of them.

    Args:
        name: the argument's name, for messages.
        value: an int, or `rank` ints.
        rank: number of spatial axes.
        minimum: the least legal value.

    Returns:
        `rank` ints.

    Raises:
        ValueError: wrong number of values, or one below `minimum`.
    """
    values = tuple(value) if isinstance(value, Sequence | np.ndarray) and np.ndim(value) == 1 else (value,) * rank
    legal = all(hasattr(v, "__index__") and np.ndim(v) == 0 and v >= minimum for v in values)
    if len(values) != rank or not legal:
        raise ValueError(f"{name}={value!r}: expected an int >= {minimum}, or {rank} of them")
    return tuple(int(v) for v in values)


def pad_pairs(
    padding: Padding, size: Sequence[int], window: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Gives one (low, high) padding pair per spatial axis.

    "valid" pads nothing. "same" makes ceil(size / stride) outputs; an odd total puts the larger half at the high end.

    Args:
        padding: an int, one int per axis, one (low, high) pair per axis, "same" or "valid".
        size: input pixels per axis.
        window: kernel taps per axis.
        stride: pixels per axis between windows.
        dilation: pixels per axis between taps.

    Returns:
        (low, high) pixels per axis.

    Raises:
        ValueError: another string, a negative number or a wrong count.
    """
    rank = len(size)
    if padding == "valid":
        return ((0, 0),) * rank
    if padding == "same":
        spans = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
        totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, stride, spans, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: expected 'same', 'valid', an int, or one int or (low, high) per axis")
    padding = padding.tolist() if isinstance(padding, np.ndarray) else padding
    if isinstance(padding, Sequence) and len(padding) == rank and all(isinstance(p, Sequence) for p in padding):
        return tuple(per_axis("padding", pair, 2, minimum=0) for pair in padding)
    return tuple((p, p) for p in per_axis("padding", padding, rank, minimum=0))


def output_size(
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Counts the windows that fit: floor((n + low + high - d (k - 1) - 1) / s) + 1 per axis.

    Args:
        size: input pixels per axis.
        window: kernel taps per axis.
        stride: pixels per axis between windows.
        pads: (low, high) padding per axis.
        dilation: pixels per axis between taps.

    Returns:
        Output pixels per axis.

    Raises:
        ValueError: a dilated window is larger than the padded input.

    Source:
        Dumoulin & Visin 2016, relationship 15, https://arxiv.org/abs/1603.07285.
    """
    sizes = []
    for n, k, s, (low, high), d in zip(size, window, stride, pads, dilation, strict=True):
        span = d * (k - 1) + 1
        if n + low + high < span:
            raise ValueError(
                f"window {tuple(window)} with dilation {tuple(dilation)} spans {span} pixels, more than the "
                f"{n + low + high} of input size {tuple(size)} padded by {tuple(pads)}: expected an input of at least "
                f"{max(span - low - high, 1)} there, or {span - n - low - high} more pixels of padding"
            )
        sizes.append((n + low + high - span) // s + 1)
    return tuple(sizes)


def phases(
    window: Sequence[int], stride: Sequence[int], pads: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> Iterator[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Turns round which window reads which pixel, as gradients of windowed operations need it.

    Tap t of window i reads pixel s i + d t - low. So pixel s q + p is read by tap t of window q + o, where
    s o = p + low - d t; taps for which that has no solution never read pixels of phase p.

    Args:
        window: taps per axis.
        stride: pixels per axis between windows.
        pads: (low, high) padding per axis.
        dilation: pixels per axis between taps.

    Yields:
        for each phase p in row order: its (tap t, offset o) pairs, taps in row order.
    """
    for phase in itertools.product(*map(range, stride)):
        pairs = []
        for tap in itertools.product(*map(range, window)):
            places = [p + low - d * t for p, (low, _), d, t in zip(phase, pads, dilation, tap, strict=True)]
            if all(place % s == 0 for place, s in zip(places, stride, strict=True)):
                pairs.append((tap, tuple(place // s for place, s in zip(places, stride, strict=True))))
        yield pairs


def interleave(parts: list[Array], stride: tuple[int, int], shape: tuple[int, ...]) -> Array:
    """Puts part (p, q) of s_h x s_w parts, [B, ceil(H / s_h), ceil(W / s_w), C], at pixels (s_h i + p, s_w j + q).

    Args:
        parts: in row order.
        stride: (s_h, s_w).
        shape: (B, H, W, C) of the whole.

    Returns:
        [B, H, W, C].
    """
    if len(parts) == 1:
        return parts[0]
    batch, height, width, channels = parts[0].shape
    y = jnp.stack(parts).reshape(*stride, batch, height, width, channels).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(batch, height * stride[0], width * stride[1], channels)[:, : shape[1], : shape[2]]
