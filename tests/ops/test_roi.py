"""RoIAlign by the loop that defines it, its gradient, its bounds, and PyTorch's stored results."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from segjax import ops

RNG = np.random.default_rng(0)


def bilinear(image, y, x):
    """One sample of [H, W, C]: 0 more than a pixel outside, else at the nearest place inside."""
    height, width = image.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = int(y), int(x)
    k, m = min(i + 1, height - 1), min(j + 1, width - 1)
    fy, fx = y - i, x - j
    top, bottom = ((1 - fx) * image[row, j] + fx * image[row, m] for row in (i, k))
    return (1 - fy) * top + fy * bottom


def aligned_loop(features, boxes, batch_index, output_size, spatial_scale, sampling_ratio, aligned):
    out = np.zeros((len(boxes), *output_size, features.shape[3]))
    for r, (box, b) in enumerate(zip(np.asarray(boxes, np.float64), batch_index, strict=True)):
        x0, y0, x1, y1 = box * spatial_scale - (0.5 if aligned else 0)
        height, width = (y1 - y0, x1 - x0) if aligned else (max(y1 - y0, 1), max(x1 - x0, 1))
        sides = height / output_size[0], width / output_size[1]
        n, m = (sampling_ratio if sampling_ratio > 0 else math.ceil(side) for side in sides)
        for i, j in np.ndindex(*output_size):
            for s, t in np.ndindex(max(n, 0), max(m, 0)):
                y, x = y0 + (i + (s + 0.5) / n) * sides[0], x0 + (j + (t + 0.5) / m) * sides[1]
                out[r, i, j] += bilinear(features[b], y, x) / (n * m)
    return out


def odd_boxes(n, rng, size=40.0):
    """Random boxes, some across the border, and then: inverted, empty, tiny, far outside, larger than the image."""
    corners = rng.uniform(-0.2 * size, 1.2 * size, (n, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    boxes[0] = [30.2, 28.1, 10.3, 5.7]
    special = [[5.3, 6.1, 5.3, 20.2], [7.1, 7.2, 7.3, 7.4], [300, 300, 320, 330], [-14, -11, 48, 45]]
    return np.concatenate([boxes, special]).astype(np.float32)


@settings(max_examples=10, derandomize=True, deadline=None)
@given(
    out=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    sampling=st.sampled_from([-1, 0, 1, 2, 3]),
    aligned=st.booleans(),
    scale=st.sampled_from([0.25, 0.5, 0.3]),
    seed=st.integers(0, 99),
)
def test_is_the_loop_over_samples(out, size, sampling, aligned, scale, seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, *size, 3)).astype(np.float32)
    boxes, index = odd_boxes(5, rng), rng.integers(0, 2, 9)
    options = {"output_size": out, "spatial_scale": scale, "sampling_ratio": sampling, "aligned": aligned}
    got = ops.roi_align(features, boxes, index, **options)
    assert got.shape == (9, *out, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, aligned_loop(features, boxes, index, **options), atol=2e-5)
    pull = jax.vjp(lambda x: ops.roi_align(x, boxes, index, **options), features)[1]
    g = rng.standard_normal(got.shape).astype(np.float32)
    np.testing.assert_allclose(np.vdot(pull(g)[0], features), np.vdot(got, g), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_is_the_transposed_map(sampling_ratio, aligned):
    features = RNG.standard_normal((2, 7, 6, 2)).astype(np.float32)
    boxes, index = odd_boxes(3, RNG, 20.0), jnp.array([0, 1, 1, 0, 1, 0, 1])
    align = functools.partial(
        ops.roi_align, boxes=boxes, batch_index=index, output_size=(2, 3), spatial_scale=0.4,
        sampling_ratio=sampling_ratio, aligned=aligned,
    )  # fmt: skip
    columns = [align(e).ravel() for e in np.eye(features.size, dtype=np.float32).reshape(-1, *features.shape)]
    g = RNG.standard_normal((7, 2, 3, 2)).astype(np.float32)
    pulled = jax.jit(lambda x, g: jax.vjp(align, x)[1](g)[0])(features, g) if sampling_ratio else None
    pulled = jax.vjp(align, features)[1](g)[0] if pulled is None else pulled
    np.testing.assert_allclose(pulled.ravel(), np.stack(columns) @ g.ravel(), atol=1e-5)
    check_grads(lambda x: jnp.sin(align(x)), (features,), 2, ["rev"], 1e-2, 1e-2)


def test_a_box_of_whole_bins_is_a_mean_and_a_shift():
    """Aligned, one sample per pixel: each bin of 2 x 3 pixels is their mean. Not aligned, all is half a pixel off."""
    features = RNG.standard_normal((1, 8, 12, 2)).astype(np.float32)
    boxes, index = np.array([[0, 0, 12, 8]], np.float32), np.array([0])
    options = {"output_size": 4, "spatial_scale": 1.0, "sampling_ratio": 0}
    got = ops.roi_align(features, boxes, index, aligned=True, **options)
    np.testing.assert_allclose(got[0], features.reshape(4, 2, 4, 3, 2).mean((1, 3)), atol=1e-6)
    slope = np.broadcast_to(np.arange(12, dtype=np.float32)[None, None, :, None], (1, 8, 12, 1))
    inner = np.array([[2, 2, 10, 6]], np.float32)
    one, other = (ops.roi_align(slope, inner, index, aligned=aligned, **options) for aligned in (True, False))
    np.testing.assert_allclose(one[0, 0, :, 0], [2.5, 4.5, 6.5, 8.5], rtol=1e-6)
    np.testing.assert_allclose(other - one, 0.5, rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 7])
def test_a_sample_exactly_on_the_last_pixel_s_far_edge_counts(sampling_ratio):
    """Sample 6.5 of 7 lies at 6.0 of a map of 6 rows: divided by a rounded reciprocal it would lie beyond."""
    align = functools.partial(
        ops.roi_align, np.ones((1, 6, 8, 1), np.float32), batch_index=np.array([0]), output_size=1, spatial_scale=0.5,
        sampling_ratio=sampling_ratio, aligned=True, max_sampling=None if sampling_ratio else 7,
    )  # fmt: skip
    for run in (align, jax.jit(lambda boxes: align(boxes))):
        np.testing.assert_allclose(run(np.array([[0, 0, 12, 14]], np.float32)), 1.0, rtol=1e-6)


def test_roi_align_equals_pytorch(golden_dir):
    cases = json.loads((golden_dir / "dev/ops_roi_align.json").read_text())["cases"]
    arrays = np.load(golden_dir / "dev/ops_roi_align.npz")
    assert len(cases) == 8
    for case in cases:
        x, rois, out = (arrays[f"{case['name']}/{key}"] for key in ("x", "boxes", "out"))
        image, boxes, index = np.moveaxis(x, 1, -1), rois[:, 1:], rois[:, 0].astype(int)
        atol = case["outputs"]["out"]["atol"]
        for run in (ops.roi_align, jax.jit(ops.roi_align, static_argnames=("max_sampling", *case["args"]))):
            options = case["args"] | {"output_size": tuple(case["args"]["output_size"])}
            got = run(image, boxes, index, **options, max_sampling=None if run is ops.roi_align else 13)
            np.testing.assert_allclose(np.moveaxis(got, -1, 1), out, rtol=1e-5, atol=atol, err_msg=case["name"])


def test_adaptive_under_jit_needs_a_bound():
    features, boxes, index = jnp.ones((1, 9, 9, 1)), jnp.array([[0.0, 0, 8, 8]]), jnp.array([0])
    options = {"output_size": 2, "spatial_scale": 1.0, "sampling_ratio": 0, "aligned": True}
    align = functools.partial(ops.roi_align, **options)
    with pytest.raises(ValueError, match="max_sampling"):
        jax.jit(align)(features, boxes, index)
    x = RNG.standard_normal((1, 9, 9, 1)).astype(np.float32)
    free = align(x, boxes, index)
    for bound in (4, 9):
        bounded = jax.jit(functools.partial(align, max_sampling=bound))(x, boxes, index)
        np.testing.assert_allclose(bounded, free, atol=1e-6)
    few = align(x, boxes, index, max_sampling=2)
    np.testing.assert_allclose(few, align(x, boxes, index, sampling_ratio=2), atol=1e-6)


def test_numbers_of_samples_are_exact():
    """35 pixels in 7 bins are 5 samples each, not 6: a product with the rounded 1 / 7 would be above 5."""
    x = RNG.standard_normal((1, 5, 160, 1)).astype(np.float32)
    sides = np.arange(7, 148, 7)
    boxes = np.stack([0 * sides, 0 * sides, sides, 0 * sides + 4], axis=1).astype(np.float32)
    options = {"output_size": (1, 7), "spatial_scale": 1.0, "aligned": True}
    align = jax.jit(functools.partial(ops.roi_align, max_sampling=22, sampling_ratio=0, **options))
    got = align(x, boxes, np.zeros(len(sides), int))
    expected = aligned_loop(x, boxes, np.zeros(len(sides), int), sampling_ratio=0, **options)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_sample_on_the_border_counts_as_in_the_source():
    """A row of samples at 7.5 + 10.5 / 3, rounded step by step, is just above 11 rows: it is outside and reads 0."""
    x = np.ones((1, 11, 17, 1), np.float32)
    box = np.array([[15, 24, 32, 52]], np.float32)
    options = {"output_size": 28, "spatial_scale": 1 / 3, "sampling_ratio": 0, "aligned": True}
    f = np.float32
    start, end = box[0, 1::2] * f(1 / 3) - f(0.5)
    bins = (end - start) / f(28)
    place = (start + np.arange(28, dtype=np.float32) * bins) + f(0.5) * bins / np.ceil(bins)
    got = np.asarray(ops.roi_align(x, box, np.zeros(1, int), **options))[0, :, 0, 0]
    assert place[10] > 11 > 10.9999 and place[10] < 11.00001
    np.testing.assert_array_equal(got == 0, place > 11)


def test_a_box_that_is_nan_leaves_the_others_alone():
    x = RNG.standard_normal((1, 9, 9, 1)).astype(np.float32)
    boxes, index = np.array([[1, 1, 8, 8], [np.nan] * 4], np.float32), np.zeros(2, int)
    for sampling_ratio in (0, 2):
        options = {"output_size": 2, "spatial_scale": 1.0, "sampling_ratio": sampling_ratio, "aligned": True}
        align = jax.jit(functools.partial(ops.roi_align, max_sampling=4, **options))
        np.testing.assert_allclose(align(x, boxes, index)[:1], align(x, boxes[:1], index[:1]), atol=1e-6)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_no_boxes(sampling_ratio):
    options = {"output_size": (3, 2), "spatial_scale": 0.5, "sampling_ratio": sampling_ratio, "aligned": False}
    align = lambda x: ops.roi_align(x, jnp.zeros((0, 4)), jnp.zeros(0, int), **options)
    features = jnp.ones((2, 5, 4, 3))
    assert align(features).shape == (0, 3, 2, 3)
    assert not jax.grad(lambda x: jnp.sum(align(x)))(features).any()


def test_bfloat16_and_float64():
    x = RNG.standard_normal((1, 9, 8, 2))
    boxes, index = odd_boxes(3, RNG), np.zeros(7, int)
    options = {"output_size": 3, "spatial_scale": 0.25, "sampling_ratio": 2, "aligned": True}
    expected = aligned_loop(x, boxes, index, **(options | {"output_size": (3, 3)}))
    half = jnp.asarray(x, jnp.bfloat16)
    got, pull = jax.vjp(lambda x: ops.roi_align(x, boxes, index, **options), half)
    assert got.dtype == pull(got)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.05)
    with jax.enable_x64(True):
        assert ops.roi_align(x, boxes, index, **options).dtype == jnp.float64


def test_under_vmap():
    x = RNG.standard_normal((3, 1, 9, 8, 2)).astype(np.float32)
    boxes = np.stack([odd_boxes(3, RNG) for _ in range(3)])
    index = np.zeros((3, 7), int)
    align = functools.partial(ops.roi_align, output_size=2, spatial_scale=0.25, sampling_ratio=2, aligned=False)
    got = jax.jit(jax.vmap(align))(x, boxes, index)
    pulled = jax.vmap(jax.grad(lambda *a: jnp.sum(jnp.sin(align(*a)))))(x, boxes, index)
    for i in range(3):
        np.testing.assert_allclose(got[i], align(x[i], boxes[i], index[i]), atol=1e-6)
        one = jax.grad(lambda *a: jnp.sum(jnp.sin(align(*a))))(x[i], boxes[i], index[i])
        np.testing.assert_allclose(pulled[i], one, atol=1e-5)


def test_wrong_arguments():
    x, boxes, index = jnp.ones((1, 4, 4, 1)), jnp.ones((2, 4)), jnp.zeros(2, int)
    options = {"output_size": 2, "spatial_scale": 1.0, "sampling_ratio": 0, "aligned": True}
    for arguments, wrong, message in (
        ((x[0], boxes, index), {}, r"features \(4, 4, 1\)"),
        ((x, boxes[:, :3], index), {}, r"boxes \(2, 3\)"),
        ((x, boxes, index[:1]), {}, r"batch_index \(1,\)"),
        ((x, boxes, index * 1.0), {}, "batch_index of float32"),
        ((x, boxes, index), {"output_size": 0}, "output_size=0"),
        ((x, boxes, index), {"max_sampling": 0}, "max_sampling=0"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.roi_align(*arguments, **(options | wrong))
