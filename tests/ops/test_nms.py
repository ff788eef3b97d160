"""Suppression by the loop that defines it, ties and equal overlaps, and PyTorch's stored results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

RNG = np.random.default_rng(0)
NMS, BATCHED = (jax.jit(f, static_argnames=("iou_threshold", "max_outputs")) for f in (ops.nms, ops.batched_nms))


def greedy(boxes, scores, threshold, classes=None, valid=None):
    """Kept indices, box by box from the best score down."""
    classes = np.zeros(len(boxes), int) if classes is None else classes
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if valid is not None and not valid[i]:
            continue
        others = [k for k in kept if classes[k] == classes[i]]
        if not others or not (np.asarray(iou(boxes[others], boxes[i])) > np.float64(threshold)).any():
            kept.append(int(i))
    return kept


def iou(a, b):
    sides = np.maximum(np.minimum(a[:, 2:], b[2:]) - np.maximum(a[:, :2], b[:2]), np.float32(0))
    both = sides[:, 0] * sides[:, 1]
    area = lambda z: (z[..., 2] - z[..., 0]) * (z[..., 3] - z[..., 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / (area(a) + area(b) - both)


def crowded(n, rng, spread=40.0):
    centre, side = rng.uniform(0, spread, (n, 2)), rng.uniform(2, 20, (n, 2))
    return np.concatenate([centre - side / 2, centre + side / 2], axis=1).astype(np.float32)


def check(boxes, scores, threshold, most, classes=None, valid=None):
    options = {"iou_threshold": threshold, "max_outputs": most, "valid": valid}
    indices, found = NMS(boxes, scores, **options) if classes is None else BATCHED(boxes, scores, classes, **options)
    expected = greedy(boxes, scores, threshold, classes, valid)[:most]
    assert indices.shape == found.shape == (most,) and indices.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.arange(most) < len(expected))
    np.testing.assert_array_equal(indices, expected + [0] * (most - len(expected)))


@pytest.mark.parametrize("n", [1, 2, 31, 257, 700])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_is_the_loop_over_the_boxes(n, threshold):
    boxes = crowded(n, RNG)
    scores = RNG.permutation(n).astype(np.float32)
    check(boxes, scores, threshold, n)
    check(boxes, scores, threshold, max(n // 7, 1))
    check(boxes, scores, threshold, n + 5, classes=RNG.integers(-2, 3, n), valid=RNG.random(n) < 0.7)


def test_ties_go_to_the_lower_index():
    for trial in range(10):
        boxes = np.sort(RNG.integers(0, 6, (60, 2, 2)), axis=1).reshape(60, 4).astype(np.float32)
        scores = RNG.integers(0, 4, 60).astype(np.float32) - 2
        check(boxes, scores, (0.5, 0.25)[trial % 2], 60)


def test_a_long_chain():
    """Each box overlaps its two neighbours alone: every other one stays, and the rounds go from end to end."""
    x = np.arange(600, dtype=np.float32)
    boxes = np.stack([x, 0 * x, x + 1.9, 0 * x + 1], axis=1)
    indices, found = ops.nms(boxes, -x, iou_threshold=0.3, max_outputs=600)
    np.testing.assert_array_equal(indices[:300], np.arange(0, 600, 2))
    assert found.sum() == 300


def test_an_equal_overlap_stays():
    boxes = jnp.array([[0, 0, 4, 1], [0, 0, 2, 1], [0, 0, 3, 1]], jnp.float32)
    for threshold, kept in ((0.5, [0, 1]), (0.49, [0]), (0.75, [0, 1, 2])):
        indices, found = ops.nms(boxes, jnp.array([3.0, 2, 1]), iou_threshold=threshold, max_outputs=3)
        np.testing.assert_array_equal(indices[found], kept)


def test_classes_do_not_meet_whatever_the_coordinates():
    box = np.array([-7e4, -3, -7e4 + 10, 9], np.float32)
    boxes, classes = np.stack([box] * 6), np.array([5, 5, -1, 2**30, 2**30 + 1, -1])
    check(boxes, np.arange(6, dtype=np.float32), 0.5, 6, classes=classes)


def test_scores_that_are_not_finite():
    boxes = np.array([[i, 0, i + 0.5, 1] for i in range(6)], np.float32)
    scores = np.array([0, np.nan, np.inf, -np.inf, 1, np.nan], np.float32)
    indices, found = ops.nms(boxes, scores, iou_threshold=0.5, max_outputs=6)
    assert found.all()
    np.testing.assert_array_equal(indices, [1, 5, 2, 4, 0, 3])


def test_no_boxes_no_outputs_and_none_valid():
    for n, most in ((0, 0), (0, 3), (4, 0)):
        indices, found = ops.nms(jnp.zeros((n, 4)), jnp.zeros(n), iou_threshold=0.5, max_outputs=most)
        assert indices.shape == found.shape == (most,) and not found.any()
    boxes = crowded(9, RNG)
    indices, found = ops.nms(boxes, np.ones(9), iou_threshold=0.5, max_outputs=4, valid=np.zeros(9, bool))
    assert not found.any() and not indices.any()


def test_under_vmap():
    boxes = np.stack([crowded(90, RNG) for _ in range(4)])
    scores, classes = RNG.random((4, 90)).astype(np.float32), RNG.integers(0, 3, (4, 90))
    valid = RNG.random((4, 90)) < 0.8
    run = lambda b, s, c, v: ops.batched_nms(b, s, c, iou_threshold=0.4, max_outputs=50, valid=v)
    indices, found = jax.jit(jax.vmap(run))(boxes, scores, classes, valid)
    for i in range(4):
        expected = greedy(boxes[i], scores[i], 0.4, classes[i], valid[i])[:50]
        np.testing.assert_array_equal(indices[i][found[i]], expected)


def test_nms_equals_pytorch(golden_dir):
    cases = json.loads((golden_dir / "dev/ops_nms.json").read_text())["cases"]
    arrays = np.load(golden_dir / "dev/ops_nms.npz")
    assert len(cases) == 6
    for case in cases:
        boxes, scores, keep = (arrays[f"{case['name']}/{key}"] for key in ("boxes", "scores", "keep"))
        indices, found = ops.nms(boxes, scores, max_outputs=len(boxes), **case["args"])
        np.testing.assert_array_equal(indices[found], keep, err_msg=case["name"])


def test_batched_nms_equals_pytorch_per_class(golden_dir):
    cases = json.loads((golden_dir / "dev/ops_batched_nms.json").read_text())["cases"]
    arrays = np.load(golden_dir / "dev/ops_batched_nms.npz")
    assert len(cases) == 3
    for case in cases:
        keys = ("boxes", "scores", "idxs", "keep_per_class")
        boxes, scores, classes, keep = (arrays[f"{case['name']}/{key}"] for key in keys)
        indices, found = ops.batched_nms(boxes, scores, classes, max_outputs=len(boxes), **case["args"])
        np.testing.assert_array_equal(indices[found], keep, err_msg=case["name"])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="max_outputs=-1"):
        ops.nms(jnp.zeros((3, 4)), jnp.zeros(3), iou_threshold=0.5, max_outputs=-1)
    with pytest.raises(ValueError, match=r"boxes \(3, 4\)"):
        ops.batched_nms(jnp.zeros((3, 4)), jnp.zeros(3), jnp.zeros(2, int), iou_threshold=0.5, max_outputs=1)


def test_a_threshold_is_the_number_given_not_its_float32():
    """0.3 is below the float32 next to it, which is this overlap: torchvision compares as float64 on a CPU."""
    boxes = np.array([[0, 0, 10, 1], [0, 0, 3, 1]], np.float32)
    for threshold, kept in ((0.3, 1), (float(np.float32(0.3)), 2), (0.30001, 2), (0.5, 2)):
        _, valid = ops.nms(boxes, np.array([0.9, 0.8]), iou_threshold=threshold, max_outputs=2)
        assert np.sum(valid) == kept


def test_boxes_of_half_precision_do_not_overflow():
    boxes = np.array([[0, 0, 200, 250], [0, 0, 196, 250], [0, 0, 100, 250]])
    for dtype in (np.float16, np.uint8, np.int32):
        np.testing.assert_allclose(ops.box_iou(boxes.astype(dtype), boxes[2:].astype(dtype)).ravel(), [0.5, 25 / 49, 1])
        _, valid = ops.nms(boxes.astype(dtype), np.array([3.0, 2, 1]), iou_threshold=0.6, max_outputs=3)
        assert np.sum(valid) == 2
