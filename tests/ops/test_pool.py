"""ops.max_pool and ops.adaptive_avg_pool against windows taken one by one, and PyTorch's stored results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

# size, window, stride, padding, dilation, ceil_mode
GEOMETRIES = [
    ((8, 10), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((9, 11), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((9, 11), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((12, 10), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((9, 11), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((9, 8), (3, 2), (1, 3), (1, 0), (1, 1), True),
    ((9, 8), (3, 3), (1, 1), (1, 1), (2, 1), False),
    ((7, 7), (2, 2), (3, 3), (1, 1), (1, 1), True),
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
    """Maximum, its flat index (first among ties) and the gradient of a weighted sum of the maxima."""
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


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_maximum_index_and_gradient(geometry, ties):
    size, rest = geometry[0], geometry[1:]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3), np.float32)
    if ties:
        x = np.round(x)  # a handful of values: most windows hold their maximum more than once
    options = dict(zip(("stride", "padding", "dilation", "ceil_mode"), rest[1:], strict=True))
    value, index = reference(x, rest)
    got_value, got_index = ops.max_pool(x, rest[0], return_indices=True, **options)
    np.testing.assert_array_equal(got_value, value)
    np.testing.assert_array_equal(got_index, index)
    np.testing.assert_array_equal(ops.max_pool(x, rest[0], **options), value)
    g = rng.standard_normal(value.shape).astype(np.float32)
    for first in (
        lambda x: ops.max_pool(x, rest[0], **options),
        lambda x: ops.max_pool(x, rest[0], return_indices=True, **options)[0],
    ):
        dx = jax.jit(jax.grad(lambda x, f=first: jnp.sum(g * f(x))))(x)
        np.testing.assert_allclose(dx, scatter(index, g, x.shape), atol=1e-5)


def test_padding_never_wins():
    x = np.full((1, 4, 4, 1), -np.inf, np.float32)
    value, index = ops.max_pool(x, 3, stride=2, padding=1, return_indices=True)
    assert np.all(value == -np.inf)
    np.testing.assert_array_equal(index[0, :, :, 0], [[0, 1], [4, 5]])
    assert np.max(ops.max_pool(np.full((1, 4, 4, 1), -7, np.int32), 3, stride=2, padding=1)) == -7


def test_max_pool_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_max_pool.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_max_pool.npz")
    for case in about["cases"]:
        args, name = dict(case["args"]), case["name"]
        x = np.moveaxis(arrays[f"{name}/x"], 1, -1)
        value, index = ops.max_pool(x, args.pop("kernel_size"), return_indices=True, **args)
        np.testing.assert_array_equal(np.moveaxis(value, -1, 1), arrays[f"{name}/out"], err_msg=name)
        np.testing.assert_array_equal(np.moveaxis(index, -1, 1), arrays[f"{name}/indices"], err_msg=name)


def test_adaptive_average_windows():
    """Three pixels into two: windows [0, 2) and [1, 3); into four: [0, 1), [0, 2), [1, 3), [2, 3)."""
    x = np.array([3.0, 5.0, 10.0], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(ops.adaptive_avg_pool(x, (2, 1)).ravel(), [4, 7.5])
    np.testing.assert_allclose(ops.adaptive_avg_pool(x, (4, 1)).ravel(), [3, 4, 7.5, 10])
    np.testing.assert_allclose(ops.adaptive_avg_pool(x, 1).ravel(), [6])


def test_adaptive_average_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_adaptive_avg_pool.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_adaptive_avg_pool.npz")
    for case in about["cases"]:
        name = case["name"]
        y = ops.adaptive_avg_pool(np.moveaxis(arrays[f"{name}/x"], 1, -1), case["args"]["output_size"])
        np.testing.assert_allclose(
            np.moveaxis(y, -1, 1), arrays[f"{name}/out"], rtol=1e-5, atol=case["outputs"]["out"]["atol"], err_msg=name
        )


@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (0, {}, "window=0"),
        (2, {"padding": 2}, "at most half"),
        (2, {"stride": 0}, "stride=0"),
        (2, {"dilation": (1, 0)}, r"dilation=\(1, 0\)"),
        (9, {}, "spans 9 pixels"),
    ],
)
def test_static_options_are_checked(window, options, message):
    with pytest.raises(ValueError, match=message):
        ops.max_pool(np.ones((1, 5, 6, 2), np.float32), window, **options)
