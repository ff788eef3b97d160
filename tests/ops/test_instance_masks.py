"""Targets and pasted masks by their definitions, the compact form against whole masks, PyTorch's stored results."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

RNG = np.random.default_rng(0)


def discs(n, size):
    """bool[n, H, W], and their tight boxes f32[n, 4]."""
    y, x = np.mgrid[: size[0], : size[1]]
    masks = [((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1 for cx, cy, a, b in RNG.uniform(8, 24, (n, 4))]
    boxes = [[m.any(0).argmax(), m.any(1).argmax(), 0, 0] for m in masks]
    for box, m in zip(boxes, masks, strict=True):
        box[2:] = size[1] - m.any(0)[::-1].argmax(), size[0] - m.any(1)[::-1].argmax()
    return np.stack(masks), np.array(boxes, np.float32)


def boxes_near(truth, spread=3.0):
    return (truth + RNG.uniform(-spread, spread, truth.shape)).astype(np.float32)


@pytest.mark.parametrize("size", [5, 28])
@pytest.mark.parametrize("binary", [False, True])
def test_targets_are_roi_align_of_the_masks(size, binary):
    masks, truth = discs(4, (40, 50))
    index = np.array([0, 3, 1, 2, 3, 0, 1, 2, 2, 1, 0])
    boxes = boxes_near(truth[index], 6)
    boxes[-1], boxes[-2] = [0, 0, 50, 40], [7, 8, 7.5, 8.2]
    options = {"spatial_scale": 1.0, "sampling_ratio": 0, "aligned": binary}
    expected = ops.roi_align(masks[..., None].astype(np.float32), boxes, index, output_size=size, **options)[..., 0]
    got = jax.jit(functools.partial(ops.mask_targets, size=size, binary=binary))(masks, boxes, index)
    assert got.shape == (11, size, size) and got.dtype == jnp.float32
    if binary:
        sure = np.abs(expected - 0.5) > 1e-5
        assert set(np.unique(got)) == {0, 1}
        np.testing.assert_array_equal(np.asarray(got)[sure], np.asarray(expected >= 0.5)[sure])
    else:
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("binary", [False, True])
def test_crops_of_whole_pixels_give_the_same_targets(binary):
    """A crop whose cells are the image's pixels loses nothing: the targets are those of the whole masks."""
    masks = np.zeros((3, 40, 50), bool)
    masks[:, 5:37, 9:41] = RNG.random((3, 32, 32)) < 0.5
    crops = 255 * masks[:, 5:37, 9:41].astype(np.uint8)
    crop_boxes = np.tile(np.array([[9, 5, 41, 37]], np.float32), (3, 1))
    index = np.array([2, 0, 1, 1, 0])
    boxes = boxes_near(crop_boxes[index], 5)
    whole = ops.mask_targets(masks, boxes, index, size=14, binary=binary)
    compact = ops.crop_mask_targets(crops, crop_boxes, boxes, index, size=14, binary=binary)
    np.testing.assert_allclose(compact, whole, atol=2e-5)


@pytest.mark.parametrize("binary", [False, True])
def test_crops_at_the_border_stop_at_the_last_pixel(binary):
    masks = np.zeros((1, 30, 30), bool)
    masks[:, 10:, 14:] = RNG.random((1, 20, 16)) < 0.6
    crops = 255 * np.pad(masks, ((0, 0), (0, 2), (0, 2)))[:, 0:32, 0:32].astype(np.uint8)
    box, index = np.array([[12, 8, 30, 30], [20, 20, 30, 30]], np.float32), np.zeros(2, int)
    crop_box = np.array([[0, 0, 32, 32]], np.float32)
    whole = ops.mask_targets(masks, box, index, size=7, binary=binary)
    compact = functools.partial(ops.crop_mask_targets, crops, crop_box, box, index, size=7, binary=binary)
    np.testing.assert_allclose(compact(image_size=(30, 30)), whole, atol=2e-5)
    np.testing.assert_allclose(compact(image_size=jnp.array([30, 30])), whole, atol=2e-5)


def test_a_coarse_crop_is_nearly_the_whole_mask():
    masks, truth = discs(6, (40, 50))
    index = np.arange(6)
    sample = ops.roi_align(
        masks[..., None].astype(np.float32),
        truth,
        index,
        output_size=64,
        spatial_scale=1.0,
        sampling_ratio=0,
        aligned=True,
    )
    crops = np.round(255 * np.asarray(sample[..., 0])).astype(np.uint8)
    boxes = boxes_near(truth)
    whole, compact = ops.mask_targets(masks, boxes, index), ops.crop_mask_targets(crops, truth, boxes, index)
    assert np.mean(np.abs(whole - compact)) < 0.03
    assert np.mean((whole >= 0.5) != (compact >= 0.5)) < 0.02


def test_targets_of_nothing():
    for n, r in ((0, 0), (0, 3), (2, 0)):
        boxes, index = jnp.ones((r, 4)), jnp.zeros(r, int)
        assert ops.mask_targets(jnp.ones((n, 8, 9)), boxes, index, size=4).shape == (r, 4, 4)
        got = ops.crop_mask_targets(jnp.ones((n, 8, 8), jnp.uint8), jnp.ones((n, 4)), boxes, index, size=4)
        assert got.shape == (r, 4, 4) and not got.any()
        assert ops.paste_masks(jnp.ones((n, 4, 4)), jnp.ones((n, 4)), (5, 6)).shape == (n, 5, 6)
    empty = ops.crop_mask_targets(
        jnp.full((1, 8, 8), 255, jnp.uint8), jnp.zeros((1, 4)), jnp.array([[0.0, 0, 9, 9]]), jnp.zeros(1, int)
    )
    assert np.isfinite(empty).all() and not empty.any()


def test_boxes_gone_astray_end():
    boxes = jnp.array([[jnp.nan] * 4, [-1e30, -1e30, 1e30, 1e30], [-jnp.inf, 0, jnp.inf, 5], [2, 2, 8, 8]])
    crops, index = jnp.full((1, 8, 8), 255, jnp.uint8), jnp.zeros(4, int)
    for binary in (False, True):
        whole = ops.mask_targets(jnp.ones((1, 9, 9)), boxes, index, binary=binary)
        compact = ops.crop_mask_targets(crops, jnp.array([[0.0, 0, 9, 9]]), boxes, index, binary=binary)
        np.testing.assert_allclose(whole[3], 1, atol=1e-5)
        np.testing.assert_allclose(compact[3], 1, atol=1e-5)


def test_targets_under_vmap_and_without_gradient():
    masks, truth = discs(4, (40, 50))
    masks, truth = masks.reshape(2, 2, 40, 50), truth.reshape(2, 2, 4)
    index = np.array([[0, 1, 1], [1, 0, 0]])
    boxes = np.stack([boxes_near(t[i]) for t, i in zip(truth, index, strict=True)])
    crops = RNG.integers(0, 256, (2, 2, 16, 16)).astype(np.uint8)
    whole = jax.jit(jax.vmap(ops.mask_targets))(masks, boxes, index)
    compact = jax.jit(jax.vmap(ops.crop_mask_targets))(crops, truth, boxes, index)
    for i in range(2):
        np.testing.assert_allclose(whole[i], ops.mask_targets(masks[i], boxes[i], index[i]), atol=1e-6)
        np.testing.assert_allclose(compact[i], ops.crop_mask_targets(crops[i], truth[i], boxes[i], index[i]), atol=1e-6)
    gradient = jax.grad(lambda b: jnp.sum(b) + jnp.sum(ops.crop_mask_targets(crops[0], truth[0], b, index[0])))(
        boxes[0]
    )
    np.testing.assert_array_equal(gradient, 1)


def pasted_torchvision(mask, box, size):
    """One mask, pixel by pixel: padded, its box grown and cut to whole numbers, resized to the pixels it covers."""
    m = len(mask)
    padded, factor = np.pad(mask, 1), np.float32((m + 2) / m)
    x0, y0, x1, y1 = box.astype(np.float32)
    half, centre = (
        np.array([x1 - x0, y1 - y0]) * np.float32(0.5) * factor,
        np.array([x1 + x0, y1 + y0]) * np.float32(0.5),
    )
    (x0, y0), (x1, y1) = (centre - half).astype(int), (centre + half).astype(int)
    out = np.zeros(size, np.float32)
    for y in range(max(y0, 0), min(y1 + 1, size[0])):
        for x in range(max(x0, 0), min(x1 + 1, size[1])):
            places = [
                max((i + 0.5) * (m + 2) / max(n, 1) - 0.5, 0) for i, n in ((y - y0, y1 - y0 + 1), (x - x0, x1 - x0 + 1))
            ]
            out[y, x] = interpolated(padded, *places)
    return out


def interpolated(mask, y, x):
    i, j = int(y), int(x)
    k, m = min(i + 1, len(mask) - 1), min(j + 1, mask.shape[1] - 1)
    fy, fx = y - i, x - j
    return (1 - fy) * ((1 - fx) * mask[i, j] + fx * mask[i, m]) + fy * ((1 - fx) * mask[k, j] + fx * mask[k, m])


def pasted_detectron2(mask, box, size):
    """One mask, read at each pixel's centre, 0 outside."""
    m = len(mask)
    padded = np.pad(mask, 1)
    out = np.zeros(size, np.float32)
    for y, x in np.ndindex(*size):
        place = ((y + 0.5 - box[1]) / (box[3] - box[1]) * m + 0.5, (x + 0.5 - box[0]) / (box[2] - box[0]) * m + 0.5)
        if all(0 <= p <= m + 1 for p in place):
            out[y, x] = interpolated(padded, *place)
    return out


@pytest.mark.parametrize(("rule", "pasted"), [("torchvision", pasted_torchvision), ("detectron2", pasted_detectron2)])
@pytest.mark.parametrize("m", [2, 28])
def test_pasting_is_its_definition(rule, pasted, m):
    boxes = [
        [3.2, 4.7, 20.1, 17.9],
        [-6, -5, 12.3, 9],
        [5, 6, 5.4, 6.3],
        [-20, -30, 60, 70],
        [18, 11, 45, 40],
        [9, 2, 12, 25],
    ]
    boxes = np.array(boxes, np.float32)
    masks = RNG.random((len(boxes), m, m)).astype(np.float32)
    got = jax.jit(functools.partial(ops.paste_masks, size=(23, 29), rule=rule))(masks, boxes)
    expected = [pasted(mask, box, (23, 29)) for mask, box in zip(masks, boxes, strict=True)]
    np.testing.assert_allclose(got, expected, atol=2e-4 if m == 28 else 2e-5)


def test_pasting_boxes_without_area_or_outside():
    boxes = jnp.array([[5.0, 5, 5, 5], [-90, -90, -70, -60], [50, 50, 60, 60], [9, 9, 2, 2]])
    for rule in ("torchvision", "detectron2"):
        got = np.asarray(ops.paste_masks(jnp.ones((4, 6, 6)), boxes, (20, 20), rule=rule))
        assert np.isfinite(got).all() and not got[1:3].any() and got.min() >= 0 and got.max() <= 1
    with pytest.raises(ValueError, match="rule='d2'"):
        ops.paste_masks(jnp.ones((1, 6, 6)), boxes[:1], 20, rule="d2")
    with pytest.raises(ValueError, match=r"boxes \(4, 4\)"):
        ops.paste_masks(jnp.ones((1, 6, 6)), boxes, 20)


def test_pasting_equals_pytorch(golden_dir):
    stored = np.load(golden_dir / "dev/tv_maskrcnn_resnet50_fpn.npz")
    masks, boxes = stored["masks_28"], stored["boxes"][: len(stored["masks_28"])]
    got = np.asarray(ops.paste_masks(masks, boxes, (192, 256)))
    np.testing.assert_allclose(got[:, ::4, ::4], stored["masks"], rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(got[:2], stored["masks_first"], rtol=1e-5, atol=1e-5)


def test_target_sizes_follow_the_box():
    """ceil(56.5 / 28) = 3 samples; a box of half the bins takes one."""
    assert math.ceil(56.5 / 28) == 3
    mask = RNG.random((1, 70, 70)).astype(np.float32)
    for side in (20.0, 56.0, 56.5):
        box = np.array([[4, 4, 4 + side, 4 + side]], np.float32)
        n = math.ceil(side / 28)
        options = {"output_size": 28, "spatial_scale": 1.0, "sampling_ratio": n, "aligned": False}
        expected = ops.roi_align(mask[..., None], box, np.zeros(1, int), **options)[..., 0]
        np.testing.assert_allclose(ops.mask_targets(mask, box, np.zeros(1, int)), expected, atol=1e-5)
