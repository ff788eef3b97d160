"""The CPU's depthwise convolution: equal to XLA's own with its gradients, at every form of sum; and in vector loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segjax.ops.depthwise import depthwise

# size of x, kernel, stride, pads, dilation
GEOMETRIES = {
    "edges apart": ((2, 9, 8, 3), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "no edges": ((1, 6, 7, 2), (3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "phases": ((2, 9, 12, 3), (3, 3), (2, 3), ((1, 0), (1, 2)), (1, 1)),
    "three rows together": ((2, 11, 9, 3), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    "one row at a time": ((1, 20, 19, 2), (9, 9), (1, 1), ((4, 4), (4, 4)), (1, 1)),
    "25 taps in phases": ((2, 13, 12, 3), (5, 5), (2, 2), ((2, 2), (2, 1)), (1, 1)),
    "blocks of ten rows and three more": ((2, 23, 6, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "rows of 4096 bytes": ((1, 12, 12, 64), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    "dilated": ((1, 12, 16, 3), (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)),
    "atrous": ((1, 12, 16, 3), (3, 3), (1, 1), ((6, 6), (6, 6)), (6, 6)),
    "taps outside": ((1, 5, 6, 3), (3, 3), (1, 1), ((12, 12), (12, 12)), (12, 12)),
    "pixels that no tap reads": ((1, 9, 9, 2), (2, 2), (3, 4), ((0, 0), (0, 0)), (1, 1)),
    "tall padding": ((1, 4, 9, 2), (3, 3), (1, 1), ((5, 0), (0, 4)), (1, 1)),
    "empty": ((0, 7, 7, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
}


def xla(x, kernel, stride, pads, dilation):
    return jax.lax.conv_general_dilated(
        x, kernel, stride, pads, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )  # fmt: skip


def output_and_gradients(function, x, kernel, *geometry):
    y, pull = jax.vjp(lambda x, kernel: function(x, kernel, *geometry), x, kernel)
    g = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), y.dtype)
    return y, *pull(g)


def assert_equal(shape, window, stride, pads, dilation, dtype=np.float32, tolerance=5e-5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    kernel = rng.standard_normal((*window, 1, shape[3])).astype(dtype)
    got = jax.jit(output_and_gradients, static_argnums=(0, 3, 4, 5))(depthwise, x, kernel, stride, pads, dilation)
    expected = output_and_gradients(xla, x, kernel, stride, pads, dilation)
    for name, a, b in zip(("output", "gradient of x", "gradient of the kernel"), got, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_equals_xla(geometry):
    assert_equal(*geometry)


def test_float64_is_summed_in_float64():
    with jax.enable_x64(True):
        assert_equal(*GEOMETRIES["edges apart"], np.float64, 1e-13)
        assert_equal(*GEOMETRIES["three rows together"], np.float64, 1e-13)
        assert_equal(*GEOMETRIES["atrous"], np.float64, 1e-13)


@given(st.data())
@settings(max_examples=25, derandomize=True, deadline=None)
def test_equals_xla_at_drawn_geometries(data):
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))
    size, window, stride, dilation = (data.draw(pair(*bounds)) for bounds in ((1, 24), (1, 6), (1, 3), (1, 3)))
    pads = tuple(data.draw(pair(0, 4)) for _ in range(2))
    assume(all(n + sum(p) > d * (k - 1) for n, p, d, k in zip(size, pads, dilation, window, strict=True)))
    assert_equal((2, *size, 3), window, stride, pads, dilation)


@pytest.mark.parametrize("name", ["edges apart", "phases", "three rows together", "atrous"])
def test_second_gradients_are_convolutions_again(name):
    """The gradients' own gradients, in each direction, equal XLA's."""
    shape, window, *geometry = GEOMETRIES[name]
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(shape, np.float32), rng.standard_normal((*window, 1, shape[3]), np.float32)

    def second(function):
        def loss(x, kernel):
            return jnp.sum(function(x, kernel, *geometry) ** 2)

        def norm(x, kernel):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, (0, 1))(x, kernel))

        return jax.jit(jax.grad(norm, (0, 1)))(x, kernel)

    for got, expected in zip(second(depthwise), second(xla), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(GEOMETRIES.keys() - {"empty"}))
def test_no_convolution_is_left_on_a_cpu(name):
    shape, window, *geometry = GEOMETRIES[name]
    x, kernel = np.ones(shape, np.float32), np.ones((*window, 1, shape[3]), np.float32)
    lowered = jax.jit(output_and_gradients, static_argnums=(0, 3, 4, 5)).lower(depthwise, x, kernel, *geometry)
    assert " convolution(" not in lowered.compile().as_text()
