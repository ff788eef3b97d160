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
