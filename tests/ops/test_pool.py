"""ops.max_pool against windows taken one by one, XLA's own forms and PyTorch's stored results."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from segjax import ops
from segjax.ops import pool
from segjax.ops.geometry import image_geometry

# size, window, stride, padding, dilation, ceil_mode
GEOMETRIES = [
    ((8, 10), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((9, 11), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((9, 11), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((12, 10), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((9, 11), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((9, 8), (3, 2), (1, 3), (1, 0), (1, 1), True),
    ((9, 8), (3, 3), (1, 1), (1, 1), (2, 1), False),
    ((11, 13), (3, 2), (2, 2), (1, 1), (2, 3), True),
    ((7, 7), (2, 2), (3, 3), (1, 1), (1, 1), True),
    ((12, 11), (9, 9), (2, 1), (4, 3), (1, 1), False),
    ((17, 9), (17, 15), (4, 5), (8, 7), (1, 1), False),
]


def windows(size, geometry):
    """Each output pixel's list of flat indices of the unpadded plane, in row order."""
    window, stride, padding, dilation, ceil_mode = geometry
    axes = []
    for n, k, s, p, d in zip(size, window, stride, padding, dilation, strict=True):
        exact = (n + 2 * p - d * (k - 1) - 1) / s
        count = int(np.ceil(exact) if ceil_mode else np.floor(exact)) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        taps = [[i * s + t * d - p for t in range(k)] for i in range(count)]
        axes.append([[t for t in window if 0 <= t < n] for window in taps])
    return [[[y * size[1] + x for y in rows for x in columns] for columns in axes[1]] for rows in axes[0]]


def reference(x, geometry):
    """Each window's maximum and the flat index of the first pixel, in row order, that has it."""
    places = windows(x.shape[1:3], geometry)
    flat = x.reshape(x.shape[0], -1, x.shape[3])
    index = np.array([[np.array(place)[flat[:, place].argmax(axis=1)] for place in row] for row in places])
    index = index.transpose(2, 0, 1, 3)
    value = np.take_along_axis(flat, index.reshape(x.shape[0], -1, x.shape[3]), axis=1).reshape(index.shape)
    return value, index


def scatter(index, g, shape):
    dx = np.zeros((shape[0], shape[1] * shape[2], shape[3]))
    b, c = np.arange(shape[0])[:, None, None, None], np.arange(shape[3])
    np.add.at(dx, (b, index, c), g)
    return dx.reshape(shape)


def assert_equals_definition(x, geometry):
    """Value, index and gradient of one geometry."""
    value, index = reference(x, geometry)
    options = dict(zip(("window", "stride", "padding", "dilation", "ceil_mode"), geometry, strict=True))
    g = np.random.default_rng(1).standard_normal(value.shape).astype(np.float32)

    @jax.jit
    def everything(x, g):
        y, pull = jax.vjp(lambda x: ops.max_pool(x, **options), x)
        (same, place), pull_both = jax.vjp(lambda x: ops.max_pool(x, return_indices=True, **options), x)
        no_tangent = np.zeros(place.shape, jax.dtypes.float0)
        return (y, same), place, (pull(g)[0], pull_both((g, no_tangent))[0])

    values, place, gradients = everything(x, g)
    for got in values:
        np.testing.assert_array_equal(got, value)
    np.testing.assert_array_equal(place, index)
    for dx in gradients:
        np.testing.assert_allclose(dx, scatter(index, g, x.shape), atol=2e-5)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_maximum_index_and_gradient(geometry, ties):
    x = np.random.default_rng(0).standard_normal((2, *geometry[0], 3), np.float32)
    if ties:
        x = np.round(x)  # a handful of values: most windows hold their maximum more than once
    assert_equals_definition(x, geometry[1:])


@settings(max_examples=25, derandomize=True, deadline=None)
@given(data=st.data())
def test_drawn_geometries(data):
    pair = lambda low, high: data.draw(st.tuples(*[st.integers(low, high)] * 2))
    size, window, stride, dilation = pair(1, 9), pair(1, 4), pair(1, 3), pair(1, 2)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in window)
    spans = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    assume(all(n + 2 * p >= span for n, p, span in zip(size, padding, spans, strict=True)))
    geometry = (window, stride, padding, dilation, data.draw(st.booleans()))
    assume(all(place for row in windows(size, geometry) for place in row))
    assert_equals_definition(np.random.default_rng(2).integers(-2, 3, (2, *size, 2)).astype(np.float32), geometry)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_passes_over_taps_equal_reduce_window(geometry):
    """The CPU's form and that of other platforms, for every number of taps, whichever the public function takes."""
    size, window, stride, padding, dilation, ceil_mode = geometry
    pads = pool.pool_pads(size, window, stride, padding, dilation, ceil_mode)
    shape = image_geometry(size, window, stride, pads, dilation, groups=1)
    x = np.round(np.random.default_rng(0).standard_normal((2, *size, 3), np.float32))
    plain = functools.partial(pool._reduce_window, geometry=shape)
    y = jax.jit(plain)(x)
    np.testing.assert_array_equal(jax.jit(functools.partial(pool._tap_maximum, geometry=shape))(x), y)
    if max(dilation) == 1:
        g = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
        send = jax.jit(lambda x, g: pool._send(pool._winner(x, shape), g, shape))
        np.testing.assert_allclose(send(x, g), jax.jit(lambda x, g: jax.vjp(plain, x)[1](g)[0])(x, g), atol=2e-5)


def test_gradients_of_both_orders():
    """Without ties within the step of the finite differences."""
    x = np.random.default_rng(0).permutation(2 * 7 * 6 * 2).reshape(2, 7, 6, 2).astype(np.float32) / 10
    for options in ({"window": 2, "ceil_mode": True}, {"window": 3, "stride": 2, "padding": 1}):
        pooled = jax.jit(lambda x, options=options: jnp.sin(ops.max_pool(x, **options)))
        check_grads(pooled, (x,), 2, ["rev"], 1e-2, 1e-2)


def test_padding_never_wins():
    x = np.full((1, 4, 4, 1), -np.inf, np.float32)
    value, index = ops.max_pool(x, 3, stride=2, padding=1, return_indices=True)
    assert np.all(value == -np.inf)
    np.testing.assert_array_equal(index[0, :, :, 0], [[0, 1], [4, 5]])
    assert np.max(ops.max_pool(np.full((1, 4, 4, 1), -7, np.int32), 3, stride=2, padding=1)) == -7


def test_windows_without_a_pixel_are_minus_infinity():
    """A dilation of 2 steps over the only pixel, from -1 to 1."""
    x = np.ones((1, 1, 3, 1), np.float32)
    pooled = lambda x: ops.max_pool(x, 2, stride=1, padding=1, dilation=(2, 1))
    np.testing.assert_array_equal(pooled(x), np.full((1, 1, 4, 1), -np.inf))
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(pooled(x)))(x), np.zeros_like(x))


def test_a_nan_makes_its_windows_nan():
    x = np.arange(36, dtype=np.float32).reshape(1, 6, 6, 1)
    x[0, 3, 3] = np.nan
    y = ops.max_pool(x, 3, stride=2, padding=1)[0, :, :, 0]
    np.testing.assert_array_equal(np.isnan(y), [[0, 0, 0], [0, 1, 1], [0, 1, 1]])


def test_no_images_and_narrow_types():
    y, index = ops.max_pool(np.zeros((0, 5, 6, 2), np.float32), 2, return_indices=True)
    assert y.shape == index.shape == (0, 2, 3, 2)
    assert jax.grad(lambda x: jnp.sum(ops.max_pool(x, 2)))(jnp.zeros((0, 5, 6, 2))).shape == (0, 5, 6, 2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 6, 2)), jnp.bfloat16)
    y, pull = jax.vjp(lambda x: ops.max_pool(x, 3, stride=2, padding=1), x)
    assert y.dtype == pull(y)[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, ops.max_pool(x.astype(jnp.float32), 3, stride=2, padding=1).astype(jnp.bfloat16))


def test_max_pool_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_max_pool.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_max_pool.npz")
    for case in about["cases"]:
        args, name = dict(case["args"]), case["name"]
        x = np.moveaxis(arrays[f"{name}/x"], 1, -1)
        value, index = ops.max_pool(x, args.pop("kernel_size"), return_indices=True, **args)
        np.testing.assert_array_equal(np.moveaxis(value, -1, 1), arrays[f"{name}/out"], err_msg=name)
        np.testing.assert_array_equal(np.moveaxis(index, -1, 1), arrays[f"{name}/indices"], err_msg=name)


@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (0, {}, "window=0"),
        (2, {"padding": 2}, r"at most half of window=\(2, 2\), such as \(1, 1\)"),
        (2, {"stride": 0}, "stride=0"),
        (2, {"dilation": (1, 0)}, r"dilation=\(1, 0\)"),
        (9, {}, "spans 9 pixels"),
        (8, {"ceil_mode": True, "stride": 3}, "spans 8 pixels, more than the 5"),
    ],
)
def test_static_options_are_checked(window, options, message):
    with pytest.raises(ValueError, match=message):
        ops.max_pool(np.ones((1, 5, 6, 2), np.float32), window, **options)


@pytest.mark.parametrize("dtype", [bool, np.complex64])
@pytest.mark.parametrize("window", [2, 9])
def test_maxima_of_ordered_numbers_alone(dtype, window):
    pooled = lambda x: ops.max_pool(x, window)
    for call in (pooled, jax.jit(pooled)):
        with pytest.raises(ValueError, match="expected an integer or floating dtype"):
            call(np.ones((1, 9, 9, 1), dtype))


def test_an_image_needs_pixels():
    with pytest.raises(ValueError, match="with pixels"):
        ops.max_pool(np.ones((1, 0, 6, 2), np.float32), 2, padding=1)
