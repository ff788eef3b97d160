"""ops.avg_pool against windows written out and PyTorch's divisors; ops.adaptive_avg_pool against PyTorch's results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from segjax import ops


def axis_windows(n, k, s, p, ceil_mode):
    """(pixels inside, pixels and zeros of the padding) per window of one axis, as torch's loops count them."""
    count = -(-(n + 2 * p - k) // s) + 1 if ceil_mode else (n + 2 * p - k) // s + 1
    if ceil_mode and (count - 1) * s >= n + p:
        count -= 1
    starts = [i * s - p for i in range(count)]
    return [([t for t in range(a, a + k) if 0 <= t < n], min(a + k, n + p) - a) for a in starts]


def formula(x, window, stride, padding, ceil_mode, count_include_pad):
    rows, columns = (
        axis_windows(n, k, s, p, ceil_mode) for n, k, s, p in zip(x.shape[1:3], window, stride, padding, strict=True)
    )
    y = np.zeros((x.shape[0], len(rows), len(columns), x.shape[3]))
    for i, (down, tall) in enumerate(rows):
        for j, (across, wide) in enumerate(columns):
            area = tall * wide if count_include_pad else len(down) * len(across)
            y[:, i, j] = x[:, down][:, :, across].sum((1, 2)) / area
    return y


@settings(max_examples=25, derandomize=True, deadline=None)
@given(data=st.data())
def test_drawn_geometries(data):
    pair = lambda low, high: data.draw(st.tuples(*[st.integers(low, high)] * 2))
    size, window, stride = pair(1, 9), pair(1, 4), pair(1, 4)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in window)
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, window, strict=True)))
    flags = {"ceil_mode": data.draw(st.booleans()), "count_include_pad": data.draw(st.booleans())}
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    expected = formula(x, window, stride, padding, **flags)
    pooled = jax.jit(lambda x: ops.avg_pool(x, window, stride=stride, padding=padding, **flags))
    np.testing.assert_allclose(pooled(x), expected, atol=1e-6)
    g = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    transposed = jax.jit(lambda g: jax.vjp(pooled, x)[1](g)[0])(g)
    np.testing.assert_allclose(np.vdot(transposed, x), np.vdot(g, expected), atol=1e-4)  # linear: the gradient is it


def test_a_window_that_sticks_out_counts_the_padded_image_alone():
    """Five ones, windows of 3 at stride 2 and one zero on both sides: pixels -1..1, 1..3, 3..5.

    Six ones at stride 3: `ceil_mode` adds the window 5..7 to -1..1 and 2..4; of it pixel 5 and the zero at 6 count.
    """
    x = np.ones((1, 5, 1, 1), np.float32)
    average = lambda **options: ops.avg_pool(x, (3, 1), padding=(1, 0), **options).ravel()
    np.testing.assert_allclose(average(stride=(2, 1)), [2 / 3, 1, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(average(stride=(2, 1), count_include_pad=False), [1, 1, 1], rtol=1e-6)
    x = np.ones((1, 6, 1, 1), np.float32)
    np.testing.assert_allclose(average(stride=(3, 1), ceil_mode=True), [2 / 3, 1, 1 / 2], rtol=1e-6)


def test_second_gradients_and_bfloat16():
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 2)).astype(np.float32)
    check_grads(lambda x: jnp.sin(ops.avg_pool(x, 3, stride=2, padding=1)), (x,), 2, ["rev"], 1e-2, 1e-2)
    assert ops.avg_pool(jnp.asarray(x, jnp.bfloat16), 2).dtype == jnp.bfloat16
    assert ops.avg_pool(np.zeros((0, 4, 4, 1), np.float32), 2).shape == (0, 2, 2, 1)


@pytest.mark.parametrize(
    ("x", "window", "options", "message"),
    [
        (np.ones((1, 4, 4, 1), np.float32), 2, {"padding": 2}, "at most half"),
        (np.ones((1, 4, 4, 1), np.float32), 5, {}, "spans 5 pixels"),
        (np.ones((1, 4, 4, 1), np.int32), 2, {}, "floating"),
        (np.ones((1, 0, 4, 1), np.float32), 2, {"padding": 1}, "with pixels"),
    ],
)
def test_wrong_arguments(x, window, options, message):
    with pytest.raises(ValueError, match=message):
        ops.avg_pool(x, window, **options)


@pytest.mark.parametrize("size", [1, 2])
def test_adaptive_averages_of_integers_are_refused(size):
    with pytest.raises(ValueError, match="adaptive_avg_pool of dtype int32: expected a floating dtype$"):
        ops.adaptive_avg_pool(np.ones((1, 4, 4, 1), np.int32), size)


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
