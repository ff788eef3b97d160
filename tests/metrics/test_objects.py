"""Scores of objects: counted by hand, by every matching of small tables, in any order of images."""

import itertools

import numpy as np
import pytest

from segjax import rle
from segjax.metrics import objects
from segjax.types import InputError


def squares(*places, size=(20, 30)):
    """A label map: object n fills rows and columns place[0] .. place[1], place[2] .. place[3]."""
    out = np.zeros(size, np.int32)
    for number, (top, bottom, left, right) in enumerate(places, start=1):
        out[top:bottom, left:right] = number
    return out


def test_a_case_counted_by_hand():
    truth = squares((0, 10, 0, 10), (0, 10, 15, 25), (12, 16, 0, 4))
    prediction = squares((0, 10, 0, 10), (0, 10, 15, 22), (17, 20, 20, 25))  # IoU 1, 0.7, and one too many
    scores = objects.compute(objects.update(objects.empty(), truth, prediction))
    np.testing.assert_array_equal(scores["tp"], [2, 2, 1, 1, 1])  # 0.7 is not above 0.7
    np.testing.assert_array_equal(scores["fp"], [1, 1, 2, 2, 2])
    np.testing.assert_array_equal(scores["fn"], [1, 1, 2, 2, 2])
    np.testing.assert_allclose(scores["score_at"], [2 / 4, 2 / 4, 1 / 5, 1 / 5, 1 / 5])
    assert scores["score"] == pytest.approx((0.5 + 0.5 + 0.2 * 3) / 5)
    np.testing.assert_allclose(scores["f1"], [2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert scores["images"] == 1


def test_images_without_objects():
    none, some = squares(), squares((0, 5, 0, 5))
    scores = [objects.compute(objects.update(objects.empty(), *pair))["score"] for pair in
              ((none, none), (none, some), (some, none), (some, some))]  # fmt: skip
    assert scores == [1, 0, 0, 1]
    empty = objects.compute(objects.empty())
    assert np.isnan(empty["score"]) and np.isnan(empty["f1"]).all()


@pytest.mark.parametrize("seed", range(30))
def test_matching_by_all_matchings(seed):
    """Most pairs first, the greatest sum of IoU then."""
    rng = np.random.default_rng(seed)
    iou = rng.random(rng.integers(1, 5, 2)).round(1)
    best = (0, 0.0)
    rows, columns = iou.shape
    for order in itertools.permutations(range(columns), min(rows, columns)):
        for some in itertools.combinations(range(rows), len(order)):
            values = [iou[g, p] for g, p in zip(some, order, strict=True) if iou[g, p] > 0.5]
            best = max(best, (len(values), round(sum(values), 9)))
    g, p = objects.matches(iou, 0.5)
    assert len(set(g)) == len(set(p)) == len(g) and (iou[g, p] > 0.5).all()
    assert (len(g), round(float(iou[g, p].sum()), 9)) == best


@pytest.mark.parametrize("seed", range(4))
def test_label_maps_and_run_lengths_agree(seed):
    rng = np.random.default_rng(seed)
    maps = [np.kron(rng.integers(0, 4, (5, 6)), np.ones((3, 4), int)) for _ in range(2)]
    maps[1] = np.where(rng.random(maps[1].shape) < 0.9, maps[0], maps[1])
    lists = [[rle.encode(x == n) for n in np.unique(x) if n] for x in maps]
    table = objects.overlaps(*maps)
    for pair in (lists, [maps[0], lists[1]], [lists[0], maps[1]]):
        np.testing.assert_array_equal(objects.overlaps(*pair), table)
    for g, true in enumerate(n for n in np.unique(maps[0]) if n):
        for p, found in enumerate(n for n in np.unique(maps[1]) if n):
            a, b = maps[0] == true, maps[1] == found
            assert table[g, p] == (a & b).sum() / (a | b).sum()


def test_a_stream_in_any_order_gives_the_same():
    rng = np.random.default_rng(0)
    images = [[np.kron(rng.integers(0, 9, (4, 4)), np.ones((2, 2), int)) for _ in range(2)] for _ in range(6)]
    for truth, prediction in images:
        prediction[:4] = truth[:4]
    empty = objects.empty(thresholds=objects.DSB_THRESHOLDS)
    parts = [objects.update(empty, *image) for image in images]
    ways = []
    for order in (range(6), [5, 2, 0, 1, 4, 3]):
        state = empty
        for i in order:
            state = objects.merge(state, parts[i])
        ways.append(objects.compute(state))
    assert ways[0]["score"] == ways[1]["score"] and 0 < ways[0]["score"] < 1
    np.testing.assert_array_equal(ways[0]["f1"], ways[1]["f1"])
    with pytest.raises(ValueError, match="thresholds"):
        objects.merge(empty, objects.empty())


def test_coco_results():
    labels = squares((0, 10, 0, 10), (0, 10, 15, 25))
    masks = [rle.encode(labels == n) for n in (1, 2)]
    truth = {
        "images": [{"id": "a", "height": 20, "width": 30}, {"id": "b", "height": 20, "width": 30}],
        "annotations": [{"image_id": "a", "segmentation": masks[0]},
                        {"image_id": "a", "segmentation": [[15, 0, 25, 0, 25, 10, 15, 10]]},
                        {"image_id": "b", "segmentation": masks[0], "iscrowd": 1}],
    }  # fmt: skip
    found = [{"image_id": "a", "segmentation": masks[0], "score": 0.9},
             {"image_id": "a", "segmentation": masks[1], "score": 0.3}]  # fmt: skip
    assert objects.evaluate(truth, found)["score"] == 0.75
    assert objects.evaluate(truth, found, min_score=0.2)["score"] == 1
    with pytest.raises(InputError, match="number 0 has the image_id 'c'"):
        objects.evaluate(truth, [{**found[0], "image_id": "c"}])
    with pytest.raises(InputError, match="number 0"):
        objects.evaluate(truth, [{"image_id": "a", "score": 1}])


def test_bad_input():
    with pytest.raises(ValueError, match=r"\[0.5, 1\)"):
        objects.empty(thresholds=[0.4])
    with pytest.raises(ValueError, match="same"):
        objects.update(objects.empty(), squares(), squares(size=(3, 3)))
