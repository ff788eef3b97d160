"""Every way to compute a convolution's transpose and gradients, against the definition in float64."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import ops
from segjax.derivation import reference
from segjax.derivation.cases import Case
from segjax.ops.conv_transpose import METHODS
from segjax.types import Array, HostArray

BOUNDS = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 2e-2}  # of the error relative to |M| |x| per element
MOST_DENSE = 1 << 24  # elements of M, the zeros too, up to which it is built
_BATCH = 2

# Each check: the heading of its column, and what it compares.
CHECKS = {
    "conv": ("conv", "ops.conv(x) and M x"),
    "dense": ("dense", "ops.conv_matrix and M, entry by entry"),
    "sparse": ("bcoo", "ops.conv_matrix(sparse=True) and M, entry by entry"),
    "matrix": ("matrx", 'ops.conv_transpose(y, method="matrix") and M.T y'),
    "stamp": ("stamp", 'ops.conv_transpose(y, method="stamp") and M.T y'),
    "fractional": ("fract", 'ops.conv_transpose(y, method="fractional") and M.T y'),
    "subpixel": ("subpx", 'ops.conv_transpose(y, method="subpixel") and M.T y'),
    "auto": ("auto", 'ops.conv_transpose(y, output_size=..., method="auto") and M.T y'),
    "linear_transpose": ("lin.T", "jax.linear_transpose of jax.lax.conv_general_dilated and M.T y"),
    "vjp": ("vjp x", "jax.vjp of ops.conv in x and M.T y"),
    "vjp_kernel": ("vjp k", "jax.vjp of ops.conv in the kernel and the gradient of <M x, y>"),
    "kernel_gradient": ("grad", "ops.conv_kernel_gradient(x, y) and the gradient of <M x, y>"),
    "transpose_vjp": ("vjpT", "jax.vjp of ops.conv_transpose in y and M x"),
    "transpose_vjp_kernel": ("vjpTk", "jax.vjp of ops.conv_transpose in the kernel and the gradient of <M x, y>"),
    "adjoint": ("<,>", "<ops.conv(x), y> and <x, ops.conv_transpose(y)>, relative to <|M| |x|, |y|>"),
}


@dataclasses.dataclass(frozen=True)
class Error:
    """The largest error of one check, and the element that has it."""

    value: float  # relative; inf where a result is not finite
    place: tuple[int, ...]
    got: float
    wanted: float


def unflipped(y: Array, kernel: Array, *, method: str, **options: Any) -> Array:
    """Does what is often taken for a transposed convolution: method "fractional" without the kernel's flip.

    Args:
        y: as in `ops.conv_transpose`.
        kernel: as in `ops.conv_transpose`.
        method: as in `ops.conv_transpose`; all but "fractional" are right.
        **options: as in `ops.conv_transpose`.

    Returns:
        as `ops.conv_transpose`; wrong for "fractional" unless the kernel is symmetric.
    """
    if method == "fractional":
        kernel = jnp.flip(kernel, range(kernel.ndim - 2))
    return ops.conv_transpose(y, kernel, method=method, **options)


def measure(
    case: Case, dtype: str, *, seed: int = 0, transpose: Callable[..., Array] = ops.conv_transpose
) -> dict[str, Error]:
    """Measures the largest error of every check for one geometry, on random x, y and kernel of one dtype.

    The error of an element is |got - wanted| / (|M| |x|), with absolute values of every entry: rounding of a sum is
    bounded relative to that, and not to the sum, which may cancel. An element that no tap reaches must be zero.

    Args:
        case: the geometry; at most `reference.MOST_ENTRIES` entries.
        dtype: a key of `BOUNDS`; "float64" needs `jax.enable_x64`.
        seed: of the values.
        transpose: what is checked for a transposed convolution.

    Returns:
        {check: its error}, in the order of `CHECKS`; without "dense" and "matrix" where M has more than
        `MOST_DENSE` elements.
    """
    x, y, kernel = _draw(case, dtype, seed)
    dense = math.prod(case.matrix_shape) <= MOST_DENSE
    with jax.default_matmul_precision("highest"):
        computed = jax.jit(functools.partial(_compute, case, transpose, dense))(x, y, kernel)
    got = {name: _host(value) for name, value in computed.items()}
    got["sparse"] = _stored(case, got["sparse"], np.asarray(computed["indices"]))
    x, y, kernel = map(_host, (x, y, kernel))
    wanted = _expect(case, x, y, kernel, dense)
    got["adjoint"] = _inner(got["conv"], y)
    wanted["adjoint"] = _inner(x, got["auto"]), _inner(wanted["conv"][1], abs(y))
    tiny = float(jnp.finfo(dtype).tiny)
    return {name: _largest(got[name], *wanted[name], tiny) for name in CHECKS if name in got}


def _draw(case: Case, dtype: str, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    shapes = (_BATCH, *case.size, case.channels), (_BATCH, *case.output, case.features), case.kernel_shape
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def _compute(
    case: Case, transpose: Callable[..., Array], dense: bool, x: Array, y: Array, kernel: Array
) -> dict[str, Array]:
    conv = functools.partial(ops.conv, **case.options)
    back = functools.partial(transpose, **case.options, output_size=case.size, method="auto")
    forward, conv_vjp = jax.vjp(conv, x, kernel)
    auto, back_vjp = jax.vjp(back, y, kernel)
    methods = [method for method in METHODS if method != "auto" and (dense or method != "matrix")]
    results = {
        method: transpose(y, kernel, **case.options, output_padding=case.output_padding, method=method)
        for method in methods
    }
    if dense:
        results["dense"] = ops.conv_matrix(kernel, case.size, **case.options)
    stored = ops.conv_matrix(kernel, case.size, **case.options, sparse=True)
    results |= {"conv": forward, "auto": auto, "sparse": stored.data, "indices": stored.indices}
    # Of the lax operation, for ops.conv has derivatives of its own on a CPU, through which JAX does not transpose.
    results["linear_transpose"] = jax.linear_transpose(lambda x: _lax_conv(case, x, kernel), x)(y)[0]
    results["vjp"], results["vjp_kernel"] = conv_vjp(y)
    results["transpose_vjp"], results["transpose_vjp_kernel"] = back_vjp(x)
    results["kernel_gradient"] = ops.conv_kernel_gradient(x, y, case.window, **case.options)
    return results


def _lax_conv(case: Case, x: Array, kernel: Array) -> Array:
    letters = ("NWC", "WIO", "NWC") if case.rank == 1 else ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        case.stride,
        case.pads,
        rhs_dilation=case.dilation,
        dimension_numbers=letters,
        feature_group_count=case.groups,
    )


def _expect(
    case: Case, x: HostArray, y: HostArray, kernel: HostArray, dense: bool
) -> dict[str, tuple[HostArray, HostArray]]:
    """(result, sum of the absolute values of its terms) of each check."""
    ax, ay, ak = abs(x), abs(y), abs(kernel)
    forward = reference.convolve(case, x, kernel), reference.convolve(case, ax, ak)
    back = reference.transpose(case, y, kernel), reference.transpose(case, ay, ak)
    gradient = reference.kernel_gradient(case, x, y), reference.kernel_gradient(case, ax, ay)
    wanted = dict.fromkeys(("conv", "transpose_vjp"), forward)
    wanted |= dict.fromkeys((*METHODS, "linear_transpose", "vjp"), back)
    wanted |= dict.fromkeys(("vjp_kernel", "kernel_gradient", "transpose_vjp_kernel"), gradient)
    if dense:
        wanted["dense"] = reference.matrix(case, kernel), reference.matrix(case, ak)
    rows, columns, taps = reference.entries(case)
    values = kernel.ravel()[taps[_order(rows, columns)]]
    wanted["sparse"] = values, abs(values)
    return wanted


def _stored(case: Case, data: HostArray, indices: HostArray) -> HostArray:
    """The stored elements of a sparse M in C order; NaN unless they are where the definition has them."""
    places = reference.entries(case)[:2]
    found = tuple(indices.T)
    order = _order(*found)
    same = [np.array_equal(a[order], b[_order(*places)]) for a, b in zip(found, places, strict=True)]
    return data[order] if all(same) else np.full(len(places[0]), np.nan)


def _order(rows: HostArray, columns: HostArray) -> HostArray:
    return np.lexsort((columns, rows))


def _inner(a: HostArray, b: HostArray) -> HostArray:
    """The inner product of each example of the batch."""
    return (a * b).reshape(len(a), -1).sum(1)


def _largest(got: HostArray, wanted: HostArray, magnitude: HostArray, tiny: float) -> Error:
    with np.errstate(over="ignore"):
        errors = abs(got - wanted) / np.maximum(magnitude, tiny)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    if not errors.size:  # a sparse M without entries: every window reads padding alone
        return Error(0.0, (), 0.0, 0.0)
    place = np.unravel_index(int(errors.argmax()), errors.shape)
    return Error(float(errors[place]), tuple(map(int, place)), float(got[place]), float(wanted[place]))


def _host(value: Array) -> HostArray:
    return np.asarray(value).astype(np.float64)
