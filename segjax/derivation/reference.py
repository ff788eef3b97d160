"""Convolution from its definition, in NumPy float64 loops: the witness that shares no code with `segjax.ops`."""

import functools
import itertools

import numpy as np

from segjax.derivation.cases import Case
from segjax.types import HostArray

MOST_ENTRIES = 1_000_000  # of M that are not zero: each costs a turn of a Python loop


def count_entries(case: Case) -> int:
    """Counts the (output, tap, channel) triples that read a pixel of the input, which are the entries of M.

    Args:
        case: the geometry.

    Returns:
        how many entries of M hold a kernel tap.
    """
    reads = 1
    for n, k, s, (low, _), d, m in zip(
        case.size, case.window, case.stride, case.pads, case.dilation, case.output, strict=True
    ):
        places = s * np.arange(m)[:, None] + d * np.arange(k) - low
        reads *= int(((places >= 0) & (places < n)).sum())
    return reads * case.features * (case.channels // case.groups)


@functools.lru_cache(maxsize=64)
def entries(case: Case) -> tuple[HostArray, HostArray, HostArray]:
    """Lists the entries of M: y[s-th row] takes kernel[t, c, o] times x at pixel s i + d t - low, channel c.

    Rows and columns count (space, channel) in C order; output channel o of group g reads the input channels of group g.

    Args:
        case: the geometry.

    Returns:
        (rows, columns, taps), int64[entries] each; a tap counts the elements of the kernel in C order.
    """
    found = []
    inner, outer = case.channels // case.groups, case.features // case.groups
    for i, t in itertools.product(np.ndindex(case.output), np.ndindex(case.window)):
        pixel = tuple(
            s * a + d * b - low
            for s, a, d, b, (low, _) in zip(case.stride, i, case.dilation, t, case.pads, strict=True)
        )
        if not all(0 <= p < n for p, n in zip(pixel, case.size, strict=True)):
            continue
        for o, c in itertools.product(range(case.features), range(inner)):
            row = np.ravel_multi_index((*i, o), (*case.output, case.features))
            column = np.ravel_multi_index((*pixel, o // outer * inner + c), (*case.size, case.channels))
            found.append((row, column, np.ravel_multi_index((*t, c, o), case.kernel_shape)))
    rows, columns, taps = np.array(found, np.int64).reshape(-1, 3).T
    return rows, columns, taps


def matrix(case: Case, kernel: HostArray) -> HostArray:
    """Writes M.

    Args:
        case: the geometry.
        kernel: float64, of the case's kernel shape.

    Returns:
        float64[rows, columns].
    """
    rows, columns, taps = entries(case)
    dense = np.zeros(case.matrix_shape)
    dense[rows, columns] = kernel.ravel()[taps]
    return dense


def convolve(case: Case, x: HostArray, kernel: HostArray) -> HostArray:
    """Sums M x.

    Args:
        case: the geometry.
        x: float64[B, *size, channels].
        kernel: float64, of the case's kernel shape.

    Returns:
        float64[B, *output, features].
    """
    rows, columns, taps = entries(case)
    flat = np.zeros((len(x), case.matrix_shape[0]))
    np.add.at(flat, (slice(None), rows), kernel.ravel()[taps] * x.reshape(len(x), -1)[:, columns])
    return flat.reshape(len(x), *case.output, case.features)


def transpose(case: Case, y: HostArray, kernel: HostArray) -> HostArray:
    """Sums M.T y.

    Args:
        case: the geometry.
        y: float64[B, *output, features].
        kernel: float64, of the case's kernel shape.

    Returns:
        float64[B, *size, channels].
    """
    rows, columns, taps = entries(case)
    flat = np.zeros((len(y), case.matrix_shape[1]))
    np.add.at(flat, (slice(None), columns), kernel.ravel()[taps] * y.reshape(len(y), -1)[:, rows])
    return flat.reshape(len(y), *case.size, case.channels)


def kernel_gradient(case: Case, x: HostArray, y: HostArray) -> HostArray:
    """Sums the gradient of <M x, y> in the kernel: for each tap x times y wherever M holds it.

    Args:
        case: the geometry.
        x: float64[B, *size, channels].
        y: float64[B, *output, features].

    Returns:
        float64 of the kernel's shape.
    """
    rows, columns, taps = entries(case)
    flat = np.zeros(int(np.prod(case.kernel_shape)))
    np.add.at(flat, taps, (x.reshape(len(x), -1)[:, columns] * y.reshape(len(y), -1)[:, rows]).sum(0))
    return flat.reshape(case.kernel_shape)
