"""ops.adaptive_max_pool and ops.spatial_pyramid_pool against bins taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import ops


def bins(n, m):
    """The definition, in exact arithmetic: pixels t with t + 1 > i n / m and t < (i + 1) n / m."""
    return [[t for t in range(n) if (t + 1) * m > i * n and t * m < (i + 1) * n] for i in range(m)]


def pooled(x, m, function):
    rows, columns = bins(x.shape[1], m), bins(x.shape[2], m)
    return np.stack(
        [np.stack([function(x[:, r][:, :, c], axis=(1, 2)) for c in columns], axis=1) for r in rows], axis=1
    )


@settings(max_examples=10, derandomize=True, deadline=None)
@given(size=st.tuples(*[st.integers(1, 9)] * 2), levels=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_levels_in_order_each_in_c_order(size, levels):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    for reduce, function in (("max", np.max), ("avg", np.mean)):
        y = jax.jit(lambda x, reduce=reduce: ops.spatial_pyramid_pool(x, levels, reduce=reduce))(x)
        expected = np.concatenate([pooled(x, m, function).reshape(2, -1) for m in levels], axis=1)
        assert y.shape == (2, 3 * sum(m * m for m in levels))
        np.testing.assert_allclose(y, expected, atol=1e-6)


def test_one_length_for_images_of_any_size():
    """Levels 1, 2, 4 of 256 channels: 21 bins, as in He et al.'s figure 3."""
    for batch, *size in ((1, 13, 13), (2, 10, 15), (1, 3, 2), (0, 4, 4)):
        image = jax.ShapeDtypeStruct((batch, *size, 256), np.float32)
        pool = lambda x: ops.spatial_pyramid_pool(x, (1, 2, 4))
        assert jax.eval_shape(pool, image).shape == (batch, 21 * 256)


def test_paper_windows_where_the_level_divides_the_size():
    """12 pixels in 4 bins: windows of ceil(12 / 4) at stride floor(12 / 4) are a max-pool."""
    x = np.random.default_rng(0).standard_normal((1, 12, 12, 2)).astype(np.float32)
    np.testing.assert_array_equal(ops.spatial_pyramid_pool(x, (4,)), ops.max_pool(x, 3, stride=3).reshape(1, -1))


def test_gradient_goes_to_the_first_maximum():
    """Two bins share the middle one of three pixels, which is their maximum; the third ties with it in vain."""
    x = jnp.array([1.0, 5.0, 5.0]).reshape(1, 3, 1, 1)
    weights = jnp.array([10.0, 1.0]).reshape(1, 2, 1, 1)
    gradient = jax.grad(lambda x: jnp.sum(weights * ops.adaptive_max_pool(x, (2, 1))))(x)
    np.testing.assert_array_equal(gradient.ravel(), [0, 11, 0])


@settings(max_examples=25, derandomize=True, deadline=None)
@given(size=st.tuples(*[st.integers(1, 9)] * 2), bins_of=st.tuples(*[st.integers(1, 11)] * 2))
def test_drawn_bins_with_ties(size, bins_of):
    """Values and the first pixel in row order that holds each maximum, one bin at a time."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *size, 2)).astype(np.float32)
    g = rng.integers(1, 9, (2, *bins_of, 2)).astype(np.float32)
    y, dx = np.zeros_like(g), np.zeros_like(x)
    for b, i, j, c in np.ndindex(*g.shape):
        rows, columns = bins(size[0], bins_of[0])[i], bins(size[1], bins_of[1])[j]
        row, column = max(((r, s) for r in rows for s in columns), key=lambda p: x[b, p[0], p[1], c])
        y[b, i, j, c] = x[b, row, column, c]
        dx[b, row, column, c] += g[b, i, j, c]
    got, pull = jax.vjp(lambda x: ops.adaptive_max_pool(x, bins_of), x)
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(pull(g)[0], dx)


def test_the_program_does_not_grow_with_the_bins():
    x = jax.ShapeDtypeStruct((1, 64, 64, 2), np.float32)
    length = lambda m: len(jax.jit(lambda x: ops.adaptive_max_pool(x, m)).lower(x).as_text().split("\n"))
    assert length(32) == length(2)


def test_a_nan_is_the_maximum_of_its_bins():
    x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    x[0, 0, 1] = np.nan
    np.testing.assert_array_equal(ops.adaptive_max_pool(x, 2).ravel(), [np.nan, np.nan, 7, 8])


def test_wrong_arguments():
    x = np.ones((1, 4, 4, 1), np.float32)
    for arguments, options, message in (
        ((x, ()), {}, "at least one number"),
        ((x, 3), {}, "levels=3: expected at least one number"),
        ((x > 0, (1,)), {}, "dtype bool: expected an integer or floating dtype"),
        ((x.astype(np.int32), (1,)), {"reduce": "avg"}, "dtype int32: expected a floating dtype"),
        ((x, (1, 0)), {}, "levels="),
        ((x, (1, 2)), {"reduce": "sum"}, "expected one of max, avg"),
        ((x[:, :0], (1,)), {}, "with pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.spatial_pyramid_pool(*arguments, **options)
