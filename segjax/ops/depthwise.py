"""Depthwise cross-correlation as shifted multiply-adds, for CPUs; elsewhere XLA's own.

XLA's CPU back end treats a depthwise convolution as a dense one with a mostly zero kernel: 3x3 taps over
8x48x64x144 take 96 ms forward on two cores; the gradient of the kernel goes through a [C, 3, 3, C] array, 7 s for 2048
channels. The sums here take 1.2 ms forward and 2.3 ms for the kernel's gradient.

<conv(x, k), g> is linear in each of x, k and g, so each of its three gradients is a map of the other two, and the
gradients of these maps are the same three again: `depthwise`, `_input_gradient` and `_kernel_gradient`.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from segjax.ops.geometry import Pair, interleave, phases
from segjax.types import Array

Pads = tuple[Pair, Pair]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(x: Array, kernel: Array, stride: Pair, pads: Pads, dilation: Pair) -> Array:
    """Cross-correlates each channel with its own kernel.

    y[b, i, j, c] = sum over u, v of x[b, s i + d u - low, s j + d v - left, c] kernel[u, v, 0, c].

    Args:
        x: [B, H, W, C], floating.
        kernel: [kh, kw, 1, C].
        stride: pixels between outputs.
        pads: (low, high) zeros per axis.
        dilation: pixels between taps.

    Returns:
        [B, H', W', C].
    """
    forward = _in_float32(_multiply_add, stride=stride, pads=pads, dilation=dilation)
    plain = functools.partial(_plain, stride=stride, pads=pads, dilation=dilation)
    return jax.lax.platform_dependent(x, kernel, cpu=forward, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _input_gradient(kernel, g, shape, stride, pads, dilation):
    """The cotangent of x, of the given shape."""

    def plain(kernel: Array, g: Array) -> Array:
        forward = functools.partial(_plain, kernel=kernel, stride=stride, pads=pads, dilation=dilation)
        return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]

    sums = _in_float32(_sums_of_phases, shape=shape, stride=stride, pads=pads, dilation=dilation)
    return jax.lax.platform_dependent(kernel, g, cpu=sums, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _kernel_gradient(x, g, window, stride, pads, dilation):
    """The cotangent of the kernel, [*window, 1, C]."""

    def plain(x: Array, g: Array) -> Array:
        forward = lambda kernel: _plain(x, kernel, stride, pads, dilation)
        return jax.linear_transpose(forward, jax.ShapeDtypeStruct((*window, 1, x.shape[3]), x.dtype))(g)[0]

    sums = functools.partial(_sums_of_products, window=window, stride=stride, pads=pads, dilation=dilation)
    return jax.lax.platform_dependent(x, g, cpu=sums, default=plain)


def _depthwise_backward(stride, pads, dilation, saved, g):
    x, kernel = saved
    geometry = stride, pads, dilation
    return _input_gradient(kernel, g, x.shape, *geometry), _kernel_gradient(x, g, kernel.shape[:2], *geometry)


def _input_gradient_backward(shape, stride, pads, dilation, saved, x):
    kernel, g = saved
    return _kernel_gradient(x, g, kernel.shape[:2], stride, pads, dilation), depthwise(
        x, kernel, stride, pads, dilation
    )


def _kernel_gradient_backward(window, stride, pads, dilation, saved, kernel):
    x, g = saved
    return _input_gradient(kernel, g, x.shape, stride, pads, dilation), depthwise(x, kernel, stride, pads, dilation)


depthwise.defvjp(lambda x, k, *geometry: (depthwise(x, k, *geometry), (x, k)), _depthwise_backward)
_input_gradient.defvjp(lambda k, g, *rest: (_input_gradient(k, g, *rest), (k, g)), _input_gradient_backward)
_kernel_gradient.defvjp(lambda x, g, *rest: (_kernel_gradient(x, g, *rest), (x, g)), _kernel_gradient_backward)


def _in_float32(sums: Callable, **geometry: object) -> Callable:
    """The sums of bfloat16 terms in float32, rounded once."""

    def rounded(a: Array, b: Array) -> Array:
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return sums(a.astype(wide), b.astype(wide), **geometry).astype(a.dtype)

    return rounded


def _plain(x, kernel, stride, pads, dilation):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def _offsets(window, pads, dilation) -> list[Pair]:
    """Where each tap, in row order, reads for the first output."""
    taps = itertools.product(*map(range, window))
    return [tuple(d * t - p[0] for d, t, p in zip(dilation, tap, pads, strict=True)) for tap in taps]


def _out(size: int, taps: int, stride: int, pads: Pair, dilation: int) -> int:
    return (size + sum(pads) - dilation * (taps - 1) - 1) // stride + 1


def _multiply_add(x, kernel, stride, pads, dilation):
    out = tuple(map(_out, x.shape[1:3], kernel.shape[:2], stride, pads, dilation))
    weights = [kernel[(*tap, 0)] for tap in itertools.product(*map(range, kernel.shape[:2]))]
    return _sum_of_taps(x, list(zip(_offsets(kernel.shape[:2], pads, dilation), weights, strict=True)), out, stride)


def _sums_of_phases(kernel, g, shape, stride, pads, dilation):
    """For pixels of each phase (r mod stride) a sum of shifts of g; then the phases interleaved.

    XLA puts the phases, their edges and the interleaving into one loop. With 25 taps in four phases that is no longer a
    vector loop (2.9 ms instead of 0.9 for 4x60x80x144), so these take simpler sums.
    """
    quotient = tuple(-(-n // s) for n, s in zip(shape[1:3], stride, strict=True))
    one_loop = stride == (1, 1) or math.prod(kernel.shape[:2]) <= 9
    parts = [
        _sum_of_taps(g, [(offset, kernel[(*tap, 0)]) for tap, offset in pairs], quotient, (1, 1), one_loop)
        for pairs in phases(kernel.shape[:2], stride, pads, dilation)
    ]
    return interleave(parts, stride, shape)


def _sum_of_taps(x, taps, out, stride, one_loop=True):
    """Sum of weight times x shifted by offset, over ((row, column) offset, weight [C]) taps."""
    offsets = [offset for offset, _ in taps]
    if taps and one_loop:
        (top, bottom), (left, right) = _inside(x.shape[1:3], offsets, out, stride)
        if 2 * (bottom - top) * (right - left) > math.prod(out):  # it is otherwise in atrous pyramids
            return (_edges_apart if len(taps) <= 9 else _rows_together)(x, taps, out, stride)
    shifted = _shifted(x, offsets, out, stride)
    terms = [
        value * weight[None, None, None] for value, (_, weight) in zip(shifted, taps, strict=True) if value is not None
    ]
    return sum(terms) if terms else jnp.zeros((x.shape[0], *out, x.shape[3]), x.dtype)


def _inside(size, offsets, out, stride):
    """Per axis the outputs (first, after the last) whose taps all read inside x."""
    for o, n, m, s in zip(zip(*offsets, strict=True), size, out, stride, strict=True):
        first = min(max(0, -(min(o) // s)), m)
        yield first, max(first, min(m, (n - 1 - max(o)) // s + 1))


def _edges_apart(x, taps, out, stride):
    """The outputs whose taps all read inside x from x itself, the edges from padded strips.

    XLA makes one loop of it. A padded copy of x takes as long as the sums: 2.1 ms instead of 1.3 for 8x48x64x144.
    """
    offsets = [offset for offset, _ in taps]
    (top, bottom), (left, right) = _inside(x.shape[1:3], offsets, out, stride)

    def part(*box: Pair) -> list[Array]:
        """The box of outputs, if there are any."""
        size = [last - first for first, last in box]
        if not all(size):
            return []
        views = _views(_window(x, offsets, box, stride), offsets, size, stride)
        return [functools.reduce(jnp.add, _sums_of_rows(views, taps))]

    before, after = part((top, bottom), (0, left)), part((top, bottom), (right, out[1]))
    above, below = part((0, top), (0, out[1])), part((bottom, out[0]), (0, out[1]))
    middle = jnp.concatenate([*before, *part((top, bottom), (left, right)), *after], 2)
    return jnp.concatenate([*above, middle, *below], 1)


def _rows_together(x, taps, out, stride):
    """Two or three rows of outputs in one loop, so that a weight is read once for them; then the rows interleaved.

    That XLA computes several outputs in one loop takes a reduction with several operands, here over the rows of taps.
    """
    offsets = [offset for offset, _ in taps]
    together = max(1, min(3, 75 // len(taps)))
    height, width = -(-out[0] // together), out[1]
    window = _window(x, offsets, ((0, height * together), (0, width)), stride)
    if math.prod(window.shape[2:]) * x.dtype.itemsize % 4096 == 0:  # rows would evict each other from the cache
        window = jax.lax.pad(window, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0)))
    sums = []
    for row in range(together):
        views = _views(window, offsets, (height, width), (stride[0] * together, stride[1]), row * stride[0])
        sums.append(jnp.stack(_sums_of_rows(views, taps)))
    rows = jax.lax.reduce(tuple(sums), (jnp.zeros((), x.dtype),) * together, _add, (0,))
    return jnp.stack(rows, 2).reshape(len(x), height * together, width, x.shape[3])[:, : out[0]]


def _sums_of_rows(views, taps):
    """Per row of taps the sum of weight times view; apart, since each addition waits for the one before."""
    rows = {}
    for view, ((row, _), weight) in zip(views, taps, strict=True):
        rows.setdefault(row, []).append(view * weight[None, None, None])
    return [functools.reduce(jnp.add, terms) for terms in rows.values()]


def _add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(jnp.add, a, b))


def _window(x, offsets, box, stride):
    """All that the taps read for the box of outputs, (first, after the last) per axis; zero outside x."""
    pads, cuts = [(0, 0, 0)], [slice(None)]
    for o, n, (first, last), s in zip(zip(*offsets, strict=True), x.shape[1:3], box, stride, strict=True):
        low, high = s * first + min(o), s * (last - 1) + max(o) + 1
        cuts.append(slice(max(0, low), max(0, min(n, high))))
        pads.append((max(0, -low), max(0, high - n), 0))
    return jax.lax.pad(x[tuple(cuts)], jnp.zeros((), x.dtype), (*pads, (0, 0, 0)))


def _views(window, offsets, out, stride, first_row=0):
    """What each tap reads of the window, whose pixel (first_row, 0) is the least offset's."""
    corner = [min(o) for o in zip(*offsets, strict=True)]
    for offset in offsets:
        low = first_row + offset[0] - corner[0], offset[1] - corner[1]
        rows, columns = (slice(a, a + (m - 1) * s + 1, s) for a, m, s in zip(low, out, stride, strict=True))
        yield window[:, rows, columns]


def _sums_of_products(x, g, window, stride, pads, dilation):
    """dk[u, v, c] = sum over b, i, j of g[b, i, j, c] times x as tap (u, v) saw it."""
    offsets = _offsets(window, pads, dilation)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    reach = [m + max(o) - min(o) for o, m in zip(zip(*offsets, strict=True), g.shape[1:3], strict=True)]
    if math.prod(reach) <= 2 * math.prod(g.shape[1:3]):  # what a padded copy of g takes; atrous pyramids need more
        sums = _sums_over_blocks(*_pairs(x, g, window, stride, pads, dilation), dtype)
    else:
        zero = jnp.zeros(x.shape[3], dtype)
        views = _shifted(x, offsets, g.shape[1:3], stride)
        sums = [zero if view is None else jnp.sum(view * g, (0, 1, 2), dtype=dtype) for view in views]
    return jnp.stack(sums).reshape(*window, 1, -1).astype(x.dtype)


def _pairs(x, g, window, stride, pads, dilation):
    """Per tap, in row order: the phase of x that it reads, and g as these pixels meet it; all of one size."""
    size = [-(-n // s) for n, s in zip(x.shape[1:3], stride, strict=True)]
    rest = [(0, m * s - n, 0) for n, m, s in zip(x.shape[1:3], size, stride, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *rest, (0, 0, 0)))
    starts = itertools.product(*map(range, stride))
    reads = {
        tap: (start, offset)
        for start, pairs in zip(starts, phases(window, stride, pads, dilation), strict=True)
        for tap, offset in pairs
    }
    starts, offsets = zip(*(reads[tap] for tap in itertools.product(*map(range, window))), strict=True)
    # Without the barrier XLA copies each view by itself.
    g = jax.lax.optimization_barrier(_window(g, offsets, [(0, m) for m in size], (1, 1)))
    return [x[:, i :: stride[0], j :: stride[1]] for i, j in starts], list(_views(g, offsets, size, (1, 1)))


def _sums_over_blocks(a, b, dtype):
    """Sums of a[i] times b[i] over all but the channels: first over blocks of rows, then over these.

    One loop computes the products of up to ten taps, so that pixels are read once for all of them (each tap's own
    reduction took 9 times as long). XLA makes it a vector loop over the channels only where the sum over a block is
    unrolled: ten rows of ten taps are, and 15 rows of 9 take five times as long.
    """
    height = a[0].shape[1]
    block = min(range(10, 5, -1), key=lambda rows: height % rows)
    whole = height - height % block

    def sums(taps: slice, rows: slice, block: int) -> list[Array]:
        """One loop over these rows for these taps."""

        def cut(view: Array) -> Array:
            view = view[:, rows].astype(dtype)
            return view.reshape(len(view), view.shape[1] // block, block, *view.shape[2:])

        products = tuple(cut(x) * cut(y) for x, y in zip(a[taps], b[taps], strict=True))
        parts = jax.lax.reduce(products, (jnp.zeros((), dtype),) * len(products), _add, (2,))
        return [part.sum((0, 1, 2)) for part in parts]

    total = []
    for first in range(0, len(a), 10):
        taps = slice(first, first + 10)
        parts = [sums(taps, slice(0, whole), block)] if whole else []
        parts += [sums(taps, slice(whole, height), height - whole)] if whole < height else []
        total += functools.reduce(_add, parts)
    return total


def _shifted(x, offsets, out, stride):
    """Yields, per pair of offsets, x[:, s i + offset] for i < out, zero outside x; None where all of it is outside.

    Small shifts at stride 1 are slices of one padded copy; strides and shifts by a good part of the image (atrous
    pyramids) pad and cut each one by itself, which measured 3 to 20 times faster there than a copy that large.
    """
    if not offsets:
        return
    spans = [
        (min(o), max(o) + (m - 1) * s + 1) for o, m, s in zip(zip(*offsets, strict=True), out, stride, strict=True)
    ]
    zero = jnp.zeros((), x.dtype)
    pads = [(max(0, -first), max(0, last - n)) for (first, last), n in zip(spans, x.shape[1:3], strict=True)]
    shared = stride == (1, 1) and all(sum(p) <= n // 2 for p, n in zip(pads, x.shape[1:3], strict=True))
    if shared:
        x_padded = jax.lax.pad(x, zero, ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    for offset in offsets:
        ends = [o + (m - 1) * s + 1 for o, m, s in zip(offset, out, stride, strict=True)]
        if any(o >= n or end <= 0 for o, end, n in zip(offset, ends, x.shape[1:3], strict=True)):
            yield None
        elif shared:
            corner = [o + p[0] for o, p in zip(offset, pads, strict=True)]
            yield x_padded[:, corner[0] : corner[0] + out[0], corner[1] : corner[1] + out[1]]
        else:
            edges = ((-o, end - n, 0) for o, end, n in zip(offset, ends, x.shape[1:3], strict=True))
            yield jax.lax.pad(x, zero, ((0, 0, 0), *edges, (0, 0, 0)))[:, :: stride[0], :: stride[1]]
