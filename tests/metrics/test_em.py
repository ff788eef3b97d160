"""Scores of membrane maps by definition: pairs of pixels, and every map that a small label can be warped into."""

import functools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segjax.metrics import em

ROWS, COLUMNS = 3, 4


def drawn(seed, size=(9, 11)):
    """Two unlike maps of a few cells."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, *size)), (0, 1, 1))
    return smooth[0] > -0.15, smooth[0] + 0.5 * smooth[1] > -0.15


def topology(cells):
    """Components of cells by edges, of membrane and all beyond the map by edges and corners."""
    membrane = ~np.pad(cells, 1)
    return ndimage.label(cells)[1], ndimage.label(membrane, np.ones((3, 3)))[1]


@pytest.mark.parametrize("seed", range(5))
def test_rand_scores_by_pairs_of_pixels(seed):
    """Two cell pixels of the label, drawn with replacement: are they together in the other map?"""
    prediction, label = drawn(seed)
    found, true = (ndimage.label(cells)[0] for cells in (prediction, label))
    places = np.argwhere(label)
    both = together_found = together_true = 0
    for a in map(tuple, places):
        for b in map(tuple, places):
            same_found = a == b or (found[a] == found[b] and found[a] > 0)
            same_true = true[a] == true[b]
            together_found, together_true, both = (
                together_found + same_found, together_true + same_true, both + (same_found and same_true)
            )  # fmt: skip
    scores = em.rand_scores(prediction, label)
    assert scores["rand_merge"] == pytest.approx(both / together_found)
    assert scores["rand_split"] == pytest.approx(both / together_true)
    assert scores["rand_score"] == pytest.approx(2 * both / (together_found + together_true))
    assert scores["rand_error"] == pytest.approx(1 - scores["rand_score"])
    assert em.pixel_error(prediction, label) == pytest.approx(sum((prediction != label).ravel().tolist()) / label.size)


def test_rand_tells_splits_from_mergers():
    label = np.ones((8, 9), int)
    label[:, 4] = 0
    merged, split = np.ones_like(label), label.copy()
    split[4] = 0
    assert em.rand_scores(merged, label) == pytest.approx(
        {"rand_score": 2 / 3, "rand_error": 1 / 3, "rand_merge": 0.5, "rand_split": 1}
    )
    of_split = em.rand_scores(split, label)
    assert of_split["rand_merge"] == 1 and of_split["rand_split"] < 0.5
    assert em.rand_scores(255 * label, label)["rand_score"] == 1  # any number but 0 is cell
    assert np.isnan(em.rand_scores(label, 0 * label)["rand_score"])


@pytest.mark.parametrize("seed", range(3))
def test_information_scores_by_counting(seed):
    prediction, label = drawn(seed)
    found, true = (ndimage.label(cells)[0] for cells in (prediction, label))
    pairs = [(int(found[a]) or a, int(true[a])) for a in map(tuple, np.argwhere(label))]
    n = len(pairs)

    def share(x, of):
        return sum(y == x for y in of) / n

    firsts, seconds = ([pair[k] for pair in pairs] for k in (0, 1))
    mutual = sum(
        share(pair, pairs) * np.log(share(pair, pairs) / share(pair[0], firsts) / share(pair[1], seconds))
        for pair in set(pairs)
    )
    of_found, of_true = (-sum(share(x, of) * np.log(share(x, of)) for x in set(of)) for of in (firsts, seconds))
    scores = em.information_scores(prediction, label)
    assert scores["information_merge"] == pytest.approx(mutual / of_true)
    assert scores["information_split"] == pytest.approx(mutual / of_found)
    assert scores["information_score"] == pytest.approx(2 * mutual / (of_found + of_true))


def test_information_tells_splits_from_mergers():
    label = np.ones((8, 9), int)
    label[:, 4] = 0
    split = label.copy()
    split[4] = 0
    merged = em.information_scores(np.ones_like(label), label)
    assert merged == pytest.approx({"information_score": 0, "information_merge": 0, "information_split": 1})
    assert em.information_scores(split, label)["information_merge"] == pytest.approx(1)
    assert 0 < em.information_scores(split, label)["information_split"] < 1
    assert set(em.information_scores(np.ones((3, 3)), np.ones((3, 3))).values()) == {1.0}
    assert np.isnan(list(em.information_scores(label, 0 * label).values())).all()


def test_all_scores_of_a_section():
    prediction, label = drawn(2, (24, 30))
    found = em.scores(prediction, label)
    assert found.items() >= em.rand_scores(prediction, label).items()
    assert found.items() >= em.information_scores(prediction, label).items()
    thin = em.thinned(prediction)
    assert found["rand_score_thin"] == em.rand_scores(thin, label)["rand_score"] != found["rand_score"]
    assert found["information_score_thin"] == em.information_scores(thin, label)["information_score"]
    assert found["pixel_error"] == em.pixel_error(prediction, label)
    assert found["warping_error"] == em.warping_error(prediction, label)


@functools.cache
def small_maps():
    """All maps of 3x4 pixels by number, and their topologies."""
    cells = [np.array([n >> k & 1 for k in range(ROWS * COLUMNS)], bool).reshape(ROWS, COLUMNS) for n in range(4096)]
    return cells, [topology(x) for x in cells]


def least_warping_error(label, prediction):
    """The pixels that differ at least, over every order of turning pixels of the label that keeps its topology."""
    _, kind = small_maps()
    reached, waiting = {label}, [label]
    while waiting:
        now = waiting.pop()
        for k in range(ROWS * COLUMNS):
            other = now ^ 1 << k
            if (now ^ prediction) >> k & 1 and kind[other] == kind[now] and other not in reached:
                reached.add(other)
                waiting.append(other)
    return min((other ^ prediction).bit_count() for other in reached)


def test_warping_error_by_all_warpings():
    """Of noise: never below the least of all warpings, and seldom above it."""
    cells, _ = small_maps()
    pairs = np.random.default_rng(0).integers(0, 4096, (400, 2)).tolist()
    least = np.array([least_warping_error(label, prediction) for label, prediction in pairs])
    found = np.array([em.warping_error(cells[prediction], cells[label]) for label, prediction in pairs])
    found = np.round(found * ROWS * COLUMNS)
    assert (found >= least).all() and np.mean(found == least) > 0.8 and np.ptp(least) > 4


@pytest.mark.parametrize("seed", range(4))
def test_warping_keeps_the_topology_and_ends_where_no_pixel_may_turn(seed):
    prediction, label = drawn(seed, (24, 30))
    found = em.warped(label, prediction)
    assert topology(found) == topology(label) and (found != label).any()
    for place in np.argwhere(found != prediction):
        turned = found.copy()
        turned[tuple(place)] ^= True
        assert topology(turned) != topology(label)


def test_warping_forgives_place_and_counts_topology():
    label = np.ones((12, 15), bool)
    label[:, 7] = False
    moved = np.ones_like(label)
    moved[:6, 6], moved[5:, 8] = False, False
    moved[5, 7] = moved[7, 9] = moved[8, 9:] = False
    moved[8, 12:] = True
    assert em.pixel_error(moved, label) > 0.1 and em.warping_error(moved, label) == 0
    gap = label.copy()
    gap[6, 7] = True
    assert em.warping_error(gap, label) == pytest.approx(1 / label.size)  # two cells are one
    hole = label.copy()
    hole[3, 3] = False
    assert em.warping_error(hole, label) == pytest.approx(1 / label.size)


@pytest.mark.parametrize("seed", range(3))
def test_thinned_membranes(seed):
    prediction, _ = drawn(seed, (24, 30))
    thin = em.thinned(prediction)
    assert topology(thin) == topology(prediction) and (thin >= prediction).all()
    assert ndimage.label(~thin, np.ones((3, 3)))[1] > 0 and not ndimage.binary_erosion(~thin, np.ones((2, 2))).any()


def test_thinning_keeps_the_middle():
    label = np.ones((11, 21), bool)
    label[:, 8:13] = False
    thin = em.thinned(label)
    assert (~thin).sum(axis=1).tolist() == [1] * 11 and not thin[1:-1, 10].any()
    assert em.rand_scores(thin, np.insert(np.ones((11, 20)), 10, 0, axis=1))["rand_score"] > 0.99
    assert em.thinned(np.zeros((4, 5))).sum() >= 0


def test_best_scores_are_of_the_best_thresholds():
    rng = np.random.default_rng(0)
    _, label = drawn(1, (30, 32))
    probability = np.clip(ndimage.gaussian_filter(label.astype(float), 0.7) + 0.1 * rng.normal(size=label.shape), 0, 1)
    found = em.best_scores(probability, label)
    maps = [probability > n / 10 for n in range(1, 10)]
    assert found["pixel_error"] == min(em.pixel_error(cells, label) for cells in maps)
    assert found["rand_score"] == max(em.rand_scores(cells, label)["rand_score"] for cells in maps)
    assert found["warping_error"] == min(em.warping_error(cells, label) for cells in maps)
    assert found["rand_score_thin"] == max(em.rand_scores(em.thinned(c), label)["rand_score"] for c in maps)
    assert found["rand_error"] == 1 - found["rand_score"] and len(found) == 5
    perfect = em.best_scores(label.astype(float), label)
    assert perfect["pixel_error"] == perfect["rand_error"] == perfect["warping_error"] == 0


def test_published_sections_score_perfectly_against_themselves(data_dir):
    file = sorted((data_dir / "isbi_em" / "trainannot").glob("*.png"))[0]
    label = np.asarray(Image.open(file))
    assert (
        em.warping_error(label, label)
        == em.pixel_error(label, label)
        == em.rand_scores(label, label)["rand_error"]
        == 0
    )
    wide = ndimage.binary_erosion(label, iterations=1)
    assert em.pixel_error(wide, label) > 0.05 > 1e-3 > em.warping_error(wide, label)


@pytest.mark.parametrize("score", [em.pixel_error, em.rand_scores, em.warping_error, em.warped])
def test_maps_of_unlike_shapes_are_refused(score):
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 4\)"):
        score(np.ones((3, 4)), np.ones((4, 4)))
    with pytest.raises(ValueError, match="one section"):
        score(np.ones((2, 3, 4)), np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="thresholds"):
        em.best_scores(np.ones((3, 4)), np.ones((3, 4)), thresholds=())
