"""Boxes: overlaps by counting pixels, the box code and its inverse, anchors written out, PyTorch's stored results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax import ops

RNG = np.random.default_rng(0)


def random_boxes(n, size=50.0, least=0.5, rng=RNG):
    corner, side = rng.uniform(0, size, (n, 2)), rng.uniform(least, size, (n, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def test_iou_counts_pixels():
    boxes = np.sort(RNG.integers(0, 9, (12, 2, 2)), axis=1).reshape(12, 4).astype(np.float32)
    boxes = boxes[ops.box_area(boxes) > 0]
    covered = np.zeros((len(boxes), 9, 9), bool)
    for mask, (x0, y0, x1, y1) in zip(covered, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(ops.box_area(boxes), covered.sum((1, 2)))
    both = (covered[:, None] & covered[None]).sum((2, 3))
    either = (covered[:, None] | covered[None]).sum((2, 3))
    np.testing.assert_allclose(ops.box_iou(boxes, boxes), both / either, rtol=1e-6)


def test_iou_of_many_images_and_of_none():
    a, b = random_boxes(6).reshape(2, 3, 4), random_boxes(10).reshape(2, 5, 4)
    got = jax.jit(ops.box_iou)(a, b)
    for i in range(2):
        np.testing.assert_array_equal(got[i], ops.box_iou(a[i], b[i]))
    assert ops.box_iou(jnp.zeros((0, 4)), b[0]).shape == (0, 5)
    assert ops.box_iou(a, jnp.zeros((2, 0, 4))).shape == (2, 3, 0)
    assert np.isnan(ops.box_iou(jnp.zeros((1, 4)), jnp.zeros((1, 4)))).all()


def test_iou_equals_pytorch(golden_dir):
    cases = json.loads((golden_dir / "dev/ops_box_iou.json").read_text())["cases"]
    arrays = np.load(golden_dir / "dev/ops_box_iou.npz")
    for case in cases:
        a, b, out = (arrays[f"{case['name']}/{key}"] for key in ("boxes1", "boxes2", "out"))
        np.testing.assert_allclose(ops.box_iou(a, b), out, rtol=1e-5, atol=case["outputs"]["out"]["atol"])


def test_clip():
    boxes = np.array([[-3, -4, 5, 6], [8, 7, 30, 20], [1, 2, 3, 4], [40, 40, 50, 50]], np.float32)
    expected = [[0, 0, 5, 6], [8, 7, 12, 9], [1, 2, 3, 4], [12, 9, 12, 9]]
    np.testing.assert_array_equal(ops.clip_boxes(boxes, (9, 12)), expected)
    np.testing.assert_array_equal(jax.jit(ops.clip_boxes)(boxes, jnp.array([9, 12])), expected)
    many = np.stack([boxes, boxes])
    got = jax.vmap(ops.clip_boxes)(many, jnp.array([[9, 12], [5, 2]]))
    np.testing.assert_array_equal(got[0], expected)
    assert got[1].max() <= 5 and got[1][:, ::2].max() <= 2


def test_code_by_its_formula_and_its_inverse():
    boxes, anchors, weights = random_boxes(40), random_boxes(40), (10.0, 10.0, 5.0, 5.0)
    w, h, wa, ha = (b[:, i + 2] - b[:, i] for b in (boxes, anchors) for i in range(2))
    x, y, xa, ya = ((b[:, i + 2] + b[:, i]) / 2 for b in (boxes, anchors) for i in range(2))
    expected = np.stack([10 * (x - xa) / wa, 10 * (y - ya) / ha, 5 * np.log(w / wa), 5 * np.log(h / ha)], axis=1)
    code = ops.encode_boxes(boxes, anchors, weights=weights)
    np.testing.assert_allclose(code, expected, rtol=1e-4, atol=1e-4)
    fits = np.maximum(w / wa, h / ha) < 1000 / 16
    np.testing.assert_allclose(
        ops.decode_boxes(code, anchors, weights=weights)[fits], boxes[fits], rtol=1e-4, atol=1e-3
    )


def test_decoding_clamps_the_scale_and_broadcasts_over_classes():
    anchors = random_boxes(3)
    deltas = jnp.zeros((3, 2, 4)).at[:, 1, 2].set(100.0)
    got = ops.decode_boxes(deltas, anchors[:, None])
    np.testing.assert_allclose(got[:, 0], anchors, rtol=1e-5)
    sides = anchors[:, 2] - anchors[:, 0]
    np.testing.assert_allclose(got[:, 1, 2] - got[:, 1, 0], sides * 1000 / 16, rtol=1e-5)
    half = ops.decode_boxes(deltas[:, 1], anchors, clamp=float(np.log(0.5)))
    np.testing.assert_allclose(half[:, 2] - half[:, 0], sides / 2, rtol=1e-5)


def test_gradients_of_the_code():
    boxes, anchors = random_boxes(4, least=5), random_boxes(4, least=5)
    check_grads(lambda b: ops.encode_boxes(b, anchors), (boxes,), 1, ["rev"], 1e-2, 1e-2)
    deltas = RNG.normal(0, 0.3, (4, 4)).astype(np.float32)
    check_grads(lambda d: ops.decode_boxes(d, anchors) / 50, (deltas,), 1, ["rev"], 1e-2, 1e-2)


def test_rounded_anchors_are_torchvisions():
    """The written values for size 32: +-23, +-11 and so on; half goes to even."""
    got = ops.anchors((2, 3), (16, 8), size=32, aspect_ratios=(0.5, 1, 2), rounded=True)
    cell = np.array([[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    expected = [cell + [8 * j, 16 * i, 8 * j, 16 * i] for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(got, np.concatenate(expected))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(ops.anchors(1, 1, size=5, aspect_ratios=[1], rounded=True), [[-2, -2, 2, 2]])
    assert ops.anchors((0, 3), 4, size=8, aspect_ratios=[1], rounded=True).shape == (0, 4)


def test_anchors_that_are_not_rounded_have_their_area_and_ratio():
    got = np.asarray(ops.anchors(1, 4, size=(8, 32), aspect_ratios=(0.5, 2), rounded=False))
    w, h = got[:, 2] - got[:, 0], got[:, 3] - got[:, 1]
    np.testing.assert_allclose(w * h, [64, 64, 1024, 1024], rtol=1e-6)
    np.testing.assert_allclose(h / w, [0.5, 2, 0.5, 2], rtol=1e-6)
    np.testing.assert_allclose(got[:, :2], -got[:, 2:])
    rounded = np.asarray(ops.anchors(1, 4, size=(8, 32), aspect_ratios=(0.5, 2), rounded=True))
    np.testing.assert_array_equal(rounded[:, 2], np.round([w[0] / 2, w[2] / 2, w[1] / 2, w[3] / 2]))


def test_anchors_of_a_whole_model_equal_pytorch(golden_dir):
    stored = np.load(golden_dir / "dev/tv_maskrcnn_resnet50_fpn.npz")["anchors"]
    levels = zip(
        ((48, 64), (24, 32), (12, 16), (6, 8), (3, 4)), (4, 8, 16, 32, 64), (32, 64, 128, 256, 512), strict=True
    )
    got = [ops.anchors(n, s, size=side, aspect_ratios=(0.5, 1, 2), rounded=True) for n, s, side in levels]
    np.testing.assert_array_equal(jnp.concatenate(got), stored)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"aspect_ratios": ()}, {"size": (8, -1)}])
def test_wrong_anchors(wrong):
    with pytest.raises(ValueError, match="> 0"):
        ops.anchors(2, 4, **({"size": 8, "aspect_ratios": (1,), "rounded": True} | wrong))
