"""Two matrices applied to images, one per axis: y = R x C', with a form of its own for sparse matrices on CPUs."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from segjax.types import Array, HostArray

MAX_TAPS = 32  # entries per row up to which a sum of gathers beats a product with the dense matrix
FUSED_TAPS = 6  # columns per row up to which one loop over both axes beats two loops
XLA_READS = 15  # places from which XLA's CPU back end reads a producer without computing it anew at each


def apply_matrices(x: Array, rows: Array | HostArray, columns: Array | HostArray) -> Array:
    """Multiplies the height axis of images by one matrix and the width axis by another.

    y[b, p, q, c] = sum over i, j of rows[p, i] columns[q, j] x[b, i, j, c], in float32 (float64 for float64 images)
    and rounded once. The gradient is the same with both matrices transposed. Matrices of the host are taken to be
    sparse: then reverse mode, twice too, is differentiation's way (`jax.grad`, `jax.vjp`, `jax.jacrev`; not `jax.jvp`).

    Args:
        x: [B, H, W, C], floating.
        rows: [H', H], floating.
        columns: [W', W], floating.

    Returns:
        [B, H', W', C] of x's dtype.

    Raises:
        ValueError: x is not floating.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"dtype {x.dtype}: expected a floating dtype")
    if isinstance(rows, HostArray) and isinstance(columns, HostArray):
        return _sparse(rows, columns, dense_elsewhere=True)(x)
    return _dense(x, rows, columns)


def select_pixels(x: Array, rows: HostArray, columns: HostArray) -> Array:
    """Copies pixels (rows[p], columns[q]) to (p, q); the gradient adds each pixel's copies up.

    Args:
        x: [B, H, W, C], any real dtype.
        rows: i32[H'] in [0, H).
        columns: i32[W'] in [0, W).

    Returns:
        [B, H', W', C] of x's dtype.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.take(jnp.take(x, columns, axis=2), rows, axis=1)
    matrices = (np.eye(n, dtype=np.float32)[index] for n, index in zip(x.shape[1:3], (rows, columns), strict=True))
    return _sparse(*matrices, dense_elsewhere=False)(x)


def _sparse(rows: HostArray, columns: HostArray, *, dense_elsewhere: bool) -> Callable[[Array], Array]:
    """The linear map of images whose transpose is `_sparse` of the transposed matrices."""

    @jax.custom_vjp
    def apply(x: Array) -> Array:
        taps, dense = (functools.partial(form, rows=rows, columns=columns) for form in (_gathered, _dense))
        return jax.lax.platform_dependent(x, cpu=taps, default=dense) if dense_elsewhere else taps(x)

    def backward(_: None, g: Array) -> tuple[Array]:
        return (_sparse(rows.T, columns.T, dense_elsewhere=dense_elsewhere)(g),)

    apply.defvjp(lambda x: (apply(x), None), backward)
    return apply


def _dense(x: Array, rows: Array | HostArray, columns: Array | HostArray) -> Array:
    """Two matrix products."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns, y = jnp.asarray(rows, dtype), jnp.asarray(columns, dtype), x.astype(dtype)
    # In float32 on accelerators too: weights rounded to bfloat16 or TF32 would move the image by a part of a pixel.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    tall_first = rows.shape[0] * columns.shape[1] <= columns.shape[0] * rows.shape[1]  # the smaller image in between
    if tall_first:
        y = product("pw,bowc->bopc", columns, product("oh,bhwc->bowc", rows, y))
    else:
        y = product("oh,bhpc->bopc", rows, product("pw,bhwc->bhpc", columns, y))
    return y.astype(x.dtype)


def _gathered(x: Array, rows: HostArray, columns: HostArray) -> Array:
    """Each axis as a weighted sum of gathers, one per entry of the matrix's longest row.

    Rows of the image are the larger loop, so they come where the image is large: first if they become fewer. There the
    columns and channels of a row are one contiguous axis, which vectorises for few channels too.

    On two cores, float32: 4x30x40x256 enlarged 4 times takes 20 ms (mostly the first touch of 79 MB of output), its
    gradient 4; as two dense products 84 and 65.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if rows.shape[0] < rows.shape[1]:
        y = _by_columns(_by_rows(y, rows), columns)
    else:
        y = _by_rows(_by_columns(y, columns), rows)
    return y.astype(x.dtype)


def _by_rows(x: Array, matrix: HostArray) -> Array:
    y = _one_axis(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]), matrix, axis=1)
    return y.reshape(x.shape[0], len(matrix), *x.shape[2:])


def _by_columns(x: Array, matrix: HostArray) -> Array:
    return _one_axis(x, matrix, axis=2)


def _one_axis(x: Array, matrix: HostArray, axis: int) -> Array:
    """`matrix` times one axis.

    XLA fuses the pass over the other axis into this one, where each of this one's taps computes it anew. That costs
    little for few taps and saves an image in between; for more, the result in parts makes XLA_READS places that read
    the other pass, and XLA computes it once.
    """
    if np.array_equal(matrix, np.eye(len(matrix))):
        return x
    taps = int((matrix != 0).sum(axis=1).max())
    if taps > MAX_TAPS:  # one product per image: XLA's CPU back end would transpose before or after a single one
        batch = jnp.broadcast_to(jnp.asarray(matrix, x.dtype), (len(x), *matrix.shape))
        return jnp.einsum("boi,b...ic->b...oc", batch, x, precision=jax.lax.Precision.HIGHEST)
    parts = -(-XLA_READS // taps) if FUSED_TAPS < taps < XLA_READS else 1
    return jnp.concatenate([_taps(x, part, axis) for part in np.array_split(matrix, parts) if len(part)], axis)


def _taps(x: Array, matrix: HostArray, axis: int) -> Array:
    """y[o] = sum over k of weight[k, o] x[index[k, o]], entry k of each row of the matrix."""
    taps = max(int((matrix != 0).sum(axis=1).max()), 1)
    index = np.argsort(matrix == 0, axis=1, kind="stable")[:, :taps].astype(np.int32)
    weight = np.take_along_axis(matrix, index, axis=1)
    index = np.where(weight != 0, index, index[:, :1])  # shorter rows read a pixel of theirs again, times zero
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    terms = (jnp.take(x, i, axis=axis, mode="clip") for i in index.T)
    if taps == 1 and np.all(weight == 1):
        return next(terms)
    return functools.reduce(
        operator.add, (t * jnp.asarray(w.reshape(shape), x.dtype) for t, w in zip(terms, weight.T, strict=True))
    )
