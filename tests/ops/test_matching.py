"""Matching by torchvision's steps one after another, and what a balanced sample holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

RNG = np.random.default_rng(0)


def matched(iou, valid, foreground, background, low_quality):
    """torchvision's Matcher, written out: -1 below, -2 between, else the truth."""
    truths = np.flatnonzero(valid)
    if not len(truths):
        return np.zeros(len(iou), int), np.zeros(len(iou), int)
    quality = iou[:, truths].T
    index = quality.argmax(0)
    label = np.where(quality.max(0) >= foreground, 1, np.where(quality.max(0) < background, 0, -1))
    if low_quality:
        for truth in quality:
            label[truth == truth.max()] = 1
    return truths[index], label


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5)])
def test_match_is_torchvisions(low_quality, thresholds):
    run = jax.jit(ops.match, static_argnames=("foreground", "background", "low_quality"))
    for trial in range(30):
        iou = RNG.integers(0, 11, (17, 6)).astype(np.float32) / 10  # with ties, among them the thresholds
        valid = RNG.random(6) < (trial % 4) / 3
        options = dict(zip(("foreground", "background"), thresholds, strict=True))
        got = run(iou, truth_valid=valid, low_quality=low_quality, **options)
        expected = matched(iou, valid, *map(np.float32, thresholds), low_quality)
        np.testing.assert_array_equal(got, expected, err_msg=f"{trial}")
        assert got[0].dtype == got[1].dtype == jnp.int32


def test_low_quality_anchors_keep_their_own_truth():
    """Anchor 1 is truth 1's best, at 0.2, and overlaps truth 0 by 0.4: it becomes foreground of truth 0."""
    iou = jnp.array([[0.9, 0.0], [0.4, 0.2], [0.1, 0.1]])
    both = jnp.ones(2, bool)
    index, label = ops.match(iou, truth_valid=both, foreground=0.7, background=0.3, low_quality=True)
    np.testing.assert_array_equal(label, [1, 1, 0])
    np.testing.assert_array_equal(index[:2], [0, 0])
    first = jnp.array([True, False])
    _, label = ops.match(iou, truth_valid=first, foreground=0.7, background=0.3, low_quality=True)
    np.testing.assert_array_equal(label, [1, -1, 0])


def test_no_truths_no_anchors_and_nan():
    options = {"foreground": 0.7, "background": 0.3, "low_quality": True}
    for truths in (0, 3):
        index, label = ops.match(jnp.ones((5, truths)), truth_valid=jnp.zeros(truths, bool), **options)
        assert not index.any() and not label.any() and index.shape == label.shape == (5,)
    index, label = ops.match(jnp.zeros((0, 3)), truth_valid=jnp.ones(3, bool), **options)
    assert index.shape == label.shape == (0,)
    iou = jnp.array([[jnp.nan, 0.8], [0.9, jnp.nan]])
    index, label = ops.match(iou, truth_valid=jnp.ones(2, bool), **options)
    np.testing.assert_array_equal(index, [1, 0])
    np.testing.assert_array_equal(label, [1, 1])


def test_match_wrong_arguments():
    with pytest.raises(ValueError, match=r"background=0.8"):
        ops.match(jnp.ones((2, 2)), truth_valid=jnp.ones(2, bool), foreground=0.7, background=0.8)
    with pytest.raises(ValueError, match=r"truth_valid \(3,\)"):
        ops.match(jnp.ones((2, 2)), truth_valid=jnp.ones(3, bool), foreground=0.7, background=0.3)


@pytest.mark.parametrize("positives", [0, 3, 4, 50])
@pytest.mark.parametrize("negatives", [0, 5, 12, 90])
def test_a_sample_has_torchvisions_counts(positives, negatives):
    label = np.array([1] * positives + [0] * negatives + [-1] * 7)
    label = RNG.permutation(label)
    sample = jax.jit(ops.sample_balanced, static_argnames=("count", "positive_fraction"))
    index, valid = sample(jax.random.key(positives), label, count=16, positive_fraction=0.26)
    drawn = np.asarray(index)[np.asarray(valid)]
    wanted = min(positives, 4)
    assert len(index) == 16 and len(drawn) == wanted + min(negatives, 16 - wanted)
    assert len(set(drawn.tolist())) == len(drawn)
    np.testing.assert_array_equal(label[drawn], [1] * wanted + [0] * (len(drawn) - wanted))
    assert np.all(np.sort(valid)[::-1] == valid) and not np.asarray(index)[~np.asarray(valid)].any()


def test_a_sample_is_uniform():
    label = jnp.array([1] * 6 + [0] * 10 + [-1] * 2)
    keys = jax.random.split(jax.random.key(0), 6000)
    index, valid = jax.vmap(lambda key: ops.sample_balanced(key, label, count=8, positive_fraction=0.5))(keys)
    assert valid.all()
    share = np.bincount(np.asarray(index).ravel(), minlength=18) / 6000
    np.testing.assert_allclose(share, [4 / 6] * 6 + [4 / 10] * 10 + [0] * 2, atol=0.04)
    pairs = np.zeros((18, 18))
    for row in np.asarray(index):
        pairs[np.ix_(row, row)] += 1 / 6000
    np.testing.assert_allclose(pairs[:6, :6][~np.eye(6, dtype=bool)], 4 / 6 * 3 / 5, atol=0.04)
    np.testing.assert_allclose(pairs[6:16, 6:16][~np.eye(10, dtype=bool)], 4 / 10 * 3 / 9, atol=0.04)


def test_samples_of_few_or_none():
    key = jax.random.key(1)
    for n, count in ((0, 4), (3, 0), (0, 0), (2, 9)):
        index, valid = ops.sample_balanced(key, jnp.zeros(n, int), count=count, positive_fraction=0.5)
        assert index.shape == valid.shape == (count,) and valid.sum() == min(n, count)
    for options in ({"count": -1, "positive_fraction": 0.5}, {"count": 4, "positive_fraction": 1.5}):
        with pytest.raises(ValueError, match="count="):
            ops.sample_balanced(key, jnp.zeros(3, int), **options)


def boxes_of(number):
    """Boxes of small whole corners, so that many overlaps are equal; the first has no area."""
    corner = RNG.integers(0, 6, (number, 2))
    boxes = np.concatenate([corner, corner + RNG.integers(1, 5, (number, 2))], axis=1).astype(np.float32)
    boxes[:1, 2:] = boxes[:1, :2]
    return boxes


@pytest.mark.parametrize("truths", [0, 1, 8, 21])
@pytest.mark.parametrize("low_quality", [False, True])
def test_match_boxes_is_match_of_their_overlaps(truths, low_quality):
    options = {"foreground": 0.5, "background": 0.3, "low_quality": low_quality}
    boxes, others = boxes_of(37), np.stack([boxes_of(truths) for _ in range(3)])
    valid = RNG.random((3, truths)) < np.array([[0.0], [0.5], [1.0]])

    def plain(others, valid):
        return ops.match(ops.box_iou(jnp.asarray(boxes), others), truth_valid=valid, **options)

    def blocks(others, valid):
        return ops.match_boxes(jnp.asarray(boxes), others, truth_valid=valid, **options)

    for mine, expected in zip(jax.vmap(blocks)(others, valid), jax.vmap(plain)(others, valid), strict=True):
        np.testing.assert_array_equal(mine, expected)
        assert mine.dtype == jnp.int32


def test_match_boxes_wrong_arguments():
    with pytest.raises(ValueError, match=r"background=0.8"):
        ops.match_boxes(jnp.ones((2, 4)), jnp.ones((2, 4)), truth_valid=jnp.ones(2), foreground=0.7, background=0.8)
    with pytest.raises(ValueError, match=r"truth_valid \(3,\)"):
        ops.match_boxes(jnp.ones((2, 4)), jnp.ones((2, 4)), truth_valid=jnp.ones(3), foreground=0.7, background=0.3)


@pytest.mark.parametrize("regions", [0, 1, 11])
def test_covered_by_its_definition(regions):
    boxes, others, valid = boxes_of(30), boxes_of(regions), RNG.random(regions) < 0.5
    expected = np.zeros(30, bool)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for u0, v0, u1, v1 in others[valid]:
            inside = max(min(x1, u1) - max(x0, u0), 0) * max(min(y1, v1) - max(y0, v0), 0)
            expected[i] |= x1 > x0 and inside > 0.55 * (x1 - x0) * (y1 - y0)
    np.testing.assert_array_equal(ops.covered(boxes, others, valid=valid, share=0.55), expected)
