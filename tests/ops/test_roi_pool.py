"""RoIPool by the loop that defines it, its gradient, and PyTorch's stored results."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

RNG = np.random.default_rng(0)


def pooled_loop(features, boxes, batch_index, output_size, spatial_scale):
    """Value and winning pixel (-1, -1 for none) of every bin and channel."""
    height, width, channels = features.shape[1:]
    out = np.zeros((len(boxes), *output_size, channels), np.float32)
    place = np.full((*out.shape, 2), -1)
    away = lambda v: int(math.copysign(math.floor(abs(v) + 0.5), v))
    for r, (box, b) in enumerate(zip(boxes.astype(np.float32), batch_index, strict=True)):
        x0, y0, x1, y1 = (away(float(v * np.float32(spatial_scale))) for v in box)
        sides = [
            np.float32(max(s, 1)) / np.float32(n) for s, n in zip((y1 - y0 + 1, x1 - x0 + 1), output_size, strict=True)
        ]
        for i, j in np.ndindex(*output_size):
            (top, bottom), (left, right) = (
                [min(max(int(f(np.float32(k + e) * side)) + start, 0), n) for f, e in ((math.floor, 0), (math.ceil, 1))]
                for k, side, start, n in zip((i, j), sides, (y0, x0), (height, width), strict=True)
            )
            if bottom > top and right > left:
                values = features[b, top:bottom, left:right].reshape(-1, channels)
                out[r, i, j], at = values.max(0), values.argmax(0)
                place[r, i, j] = np.stack([top + at // (right - left), left + at % (right - left)], axis=-1)
    return out, place


def odd_boxes(n):
    corners = RNG.uniform(-10, 50, (n, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    special = [
        [-3, 5, 7, 9],
        [2.5, 3.5, 4.5, 6.5],
        [30, 28, 10, 5],
        [5, 6, 5, 6],
        [300, 300, 310, 320],
        [-9, -9, 99, 99],
    ]
    return np.concatenate([boxes, special, np.round(2 * boxes) / 2]).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25, 0.3])
@pytest.mark.parametrize("out", [(1, 1), (3, 2), (7, 5)])
def test_is_the_loop_over_bins_and_its_gradient_goes_to_the_winners(scale, out):
    features = RNG.integers(-4, 4, (2, 9, 11, 3)).astype(np.float32)  # with ties
    boxes = odd_boxes(6)
    index = RNG.integers(0, 2, len(boxes))
    got, pull = jax.vjp(
        lambda x: ops.roi_pool(x, boxes, index, output_size=out, spatial_scale=scale), jnp.asarray(features)
    )
    expected, place = pooled_loop(features, boxes, index, out, scale)
    np.testing.assert_array_equal(got, expected)
    g = RNG.integers(-9, 9, got.shape).astype(np.float32)
    gradient = np.zeros_like(features)
    for r, i, j, c in np.ndindex(*got.shape):
        y, x = place[r, i, j, c]
        if y >= 0:
            gradient[index[r], y, x, c] += g[r, i, j, c]
    np.testing.assert_array_equal(pull(g)[0], gradient)


def test_roi_pool_equals_pytorch(golden_dir):
    cases = json.loads((golden_dir / "dev/ops_roi_pool.json").read_text())["cases"]
    arrays = np.load(golden_dir / "dev/ops_roi_pool.npz")
    assert len(cases) == 3
    for case in cases:
        x, rois, out = (arrays[f"{case['name']}/{key}"] for key in ("x", "boxes", "out"))
        got = ops.roi_pool(np.moveaxis(x, 1, -1), rois[:, 1:], rois[:, 0].astype(int), **case["args"])
        np.testing.assert_array_equal(np.moveaxis(got, -1, 1), out, err_msg=case["name"])


def test_corners_round_half_away_from_zero():
    features = jnp.arange(8.0).reshape(1, 1, 8, 1)
    box = jnp.array([[1.5, 0, 2.5, 0], [0.5, 0, 0.5, 0], [-0.5, 0, 0.49999997, 0], [-0.5, 0, -0.5, 0]])
    got = ops.roi_pool(features, box, jnp.zeros(4, int), output_size=1, spatial_scale=1.0)
    np.testing.assert_array_equal(got.ravel(), [3, 1, 0, 0])  # pixels 2 and 3; 1; -1 and 0; -1, which is outside


def test_values_that_are_all_infinite_or_none():
    features = jnp.full((1, 4, 4, 1), -jnp.inf)
    pool = functools.partial(ops.roi_pool, output_size=2, spatial_scale=1.0)
    inside, outside = jnp.array([[0.0, 0, 3, 3]]), jnp.array([[9.0, 9, 12, 12]])
    np.testing.assert_array_equal(pool(features, inside, jnp.zeros(1, int)), jnp.finfo(jnp.float32).min)
    np.testing.assert_array_equal(pool(features, outside, jnp.zeros(1, int)), 0)


def test_no_boxes_jit_vmap_and_types():
    pool = functools.partial(ops.roi_pool, output_size=(2, 3), spatial_scale=0.5)
    none = lambda x: pool(x, jnp.zeros((0, 4)), jnp.zeros(0, int))
    assert none(jnp.ones((1, 5, 5, 2))).shape == (0, 2, 3, 2)
    assert not jax.grad(lambda x: jnp.sum(none(x)))(jnp.ones((1, 5, 5, 2))).any()
    x, boxes = RNG.standard_normal((3, 1, 6, 7, 2)).astype(np.float32), np.stack([odd_boxes(2)] * 3)
    index = np.zeros(boxes.shape[:2], int)
    got = jax.jit(jax.vmap(pool))(x, boxes, index)
    for i in range(3):
        np.testing.assert_array_equal(got[i], pool(x[i], boxes[i], index[i]))
    half, pull = jax.vjp(lambda x: pool(x, boxes[0], index[0]), jnp.asarray(x[0], jnp.bfloat16))
    assert half.dtype == pull(half)[0].dtype == jnp.bfloat16


def test_wrong_arguments():
    x, boxes, index = jnp.ones((1, 4, 4, 1)), jnp.ones((2, 4)), jnp.zeros(2, int)
    with pytest.raises(ValueError, match=r"roi_pool of features \(4, 4, 1\)"):
        ops.roi_pool(x[0], boxes, index, output_size=2, spatial_scale=1.0)
    with pytest.raises(ValueError, match="output_size=0"):
        ops.roi_pool(x, boxes, index, output_size=0, spatial_scale=1.0)
