"""A geometry as text: the kernel, M, the arithmetic of sizes, and how many taps reach a pixel."""

from collections.abc import Sequence

import numpy as np

from segjax import ops
from segjax.derivation import reference
from segjax.derivation.cases import Case
from segjax.types import HostArray

_WIDTH = 124  # characters of a row of M
_MOST_ROWS = 64


def tap_numbers(case: Case) -> HostArray:
    """Numbers the elements of the kernel from 1, in C order: the values that pictures and printed matrices show.

    Args:
        case: the geometry.

    Returns:
        float32 of the kernel's shape.
    """
    return np.arange(1, 1 + np.prod(case.kernel_shape), dtype=np.float32).reshape(case.kernel_shape)


def kernel_and_matrix(case: Case) -> str:
    """Prints the kernel with its elements numbered and M = `ops.conv_matrix` of it, or says how large M is.

    Args:
        case: the geometry.

    Returns:
        lines of text.
    """
    (rows, columns), entries = case.matrix_shape, reference.count_entries(case)
    kernel, size = tap_numbers(case), f"M is {rows:,} x {columns:,}, {entries:,} entries are kernel taps"
    cell = len(str(kernel.size)) + 1
    lines = [
        f"{_sizes(case.window)}{'' if case.rank == 2 else '-tap'} kernel, {_channels(case)}, its elements numbered:"
    ]
    if case.kernel_shape[-2:] == (1, 1) and cell * case.window[-1] <= _WIDTH:
        lines += _rows(kernel.reshape(-1, case.window[-1]), cell)
    else:
        lines.append(f"  1 to {kernel.size:,} in the order {_order(case)}")
    if rows <= _MOST_ROWS and columns * cell <= _WIDTH:
        matrix = np.asarray(ops.conv_matrix(kernel, case.size, **case.options))
        return "\n".join([*lines, "", f"{size}, the others zero:", *_rows(matrix, cell)])
    memory = f"{_bytes(4 * rows * columns)} dense in float32, {_bytes(12 * entries)} sparse"
    return "\n".join([*lines, "", f"{size}; too large to print ({memory})"])


def arithmetic(case: Case) -> str:
    """Puts the numbers into the size of the output, the way back, and the inputs that give the same output.

    Args:
        case: the geometry.

    Returns:
        lines of text, three per axis.
    """
    lines = [
        "output size    n' = floor((n + low + high - d (k - 1) - 1) / s) + 1",
        "the way back   n  = (n' - 1) s - low - high + d (k - 1) + 1 + output_padding",
    ]
    for axis, name in enumerate(("rows", "columns") if case.rank == 2 else ("",)):
        n, k, s, d = (values[axis] for values in (case.size, case.window, case.stride, case.dilation))
        (low, high), m = case.pads[axis], case.output[axis]
        slack, extra = case.slack[axis], case.output_padding[axis]
        least = n - extra
        same = [size for size in range(least, least + s) if size > 0]
        span = f"{same[0]}" if len(same) == 1 else f"{same[0]} to {same[-1]}"
        chosen = f"; output_padding 0 to {s - 1} or output_size chooses" if s > 1 else ", no other: the stride is 1"
        lines += [
            *([f"{name}:"] if name else []),
            f"  n' = floor(({n} + {low} + {high} - {d} ({k} - 1) - 1) / {s}) + 1 = floor({slack} / {s}) + 1 = {m}",
            f"  n  = ({m} - 1) {s} - {low} - {high} + {d} ({k} - 1) + 1 + {extra} = {n}",
            f"  inputs with {m} output{'s' * (m > 1)}: {span}{chosen}",
        ]
    return "\n".join(lines)


def coverage(case: Case) -> HostArray:
    """Counts the taps that reach each pixel on the way up: M.T 1 for a kernel of ones.

    The count is a product of one count per axis: of the pairs (i, t) with s i + d t - low = the pixel.

    Args:
        case: the geometry.

    Returns:
        int64[*size].
    """
    counts = np.ones((), np.int64)
    for n, k, s, (low, _), d, m in zip(
        case.size, case.window, case.stride, case.pads, case.dilation, case.output, strict=True
    ):
        places = (s * np.arange(m)[:, None] + d * np.arange(k) - low).ravel()
        counts = np.multiply.outer(counts, np.bincount(places[(places >= 0) & (places < n)], minlength=n))
    return counts


def _rows(matrix: HostArray, cell: int) -> list[str]:
    return ["  " + "".join(f"{int(value) if value else '.':>{cell}}" for value in line) for line in matrix]


def _sizes(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


def _channels(case: Case) -> str:
    grouped = f" in {case.groups} groups" if case.groups > 1 else ""
    return f"{case.channels} channel{'s' * (case.channels > 1)} to {case.features}{grouped}"


def _order(case: Case) -> str:
    return "(tap, input channel, output channel)" if case.rank == 1 else "(row, column, input channel, output channel)"


def _bytes(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.0f} TiB"
