"""Regions: what each rule reads, counted pixel by pixel; the exact mean against fine sampling; both operations."""

import numpy as np
import pytest

from segjax.derivation import region_pictures, regions


@pytest.mark.parametrize("rule", [regions.truncated, regions.pooled, regions.aligned])
@pytest.mark.parametrize("bins", regions.BINS)
def test_lost_and_leaked_pixels_are_counted(rule, bins):
    cover = rule(bins)
    size = regions.STRIDE * regions.MAP_SIZE
    inside, read = np.zeros((size, size), bool), np.zeros((size, size), bool)
    x0, y0, x1, y1 = regions.BOX
    inside[y0:y1, x0:x1] = True
    centres = (np.arange(size) + 0.5) / regions.STRIDE
    of = lambda edges: np.any([(a <= centres) & (centres < b) for a, b in edges], axis=0)
    read[np.ix_(of(cover.rows), of(cover.columns))] = True
    assert regions.lost_and_leaked(cover) == ((inside & ~read).sum(), (read & ~inside).sum())


def test_the_numbers_of_the_example():
    assert regions.region() == (9.25, 6, 15.5, 10.53125)
    lecture = regions.truncated(3)
    assert lecture.columns == [(9, 11), (11, 13), (13, 15)] and lecture.rows == [(6, 7), (7, 8), (8, 9)]
    pool = regions.pooled(3)
    assert pool.columns == [(9, 12), (11, 15), (14, 16)] and pool.rows == [(6, 8), (8, 10), (10, 12)]
    assert regions.lost_and_leaked(regions.aligned(7)) == (0, 0)


@pytest.mark.parametrize("edges", [[(0.0, 16.0)], [(9.25, 11.3), (11.3, 15.5)], [(0.0, 0.2), (0.3, 0.9), (15.6, 16.0)]])
def test_the_closed_form_is_the_limit_of_sampling(edges):
    exact = regions.exact_matrix(edges, 16)
    np.testing.assert_allclose(exact.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(regions.sampled_matrix(edges, 16, 4000, 0.5), exact, atol=1e-6)


def test_maps_have_unit_deviation():
    for kind in ("smooth", "noise"):
        image = regions.feature_map(kind, 3)
        np.testing.assert_allclose(image.mean((0, 1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(image.std((0, 1, 2)), 1, rtol=1e-5)
    assert not np.array_equal(regions.feature_map("noise", 0), regions.feature_map("noise", 1))


def test_more_samples_come_nearer_and_the_operations_are_their_definitions():
    rows, worst = regions.measure("smooth", 7, seed=0)
    assert worst <= regions.BOUND
    mean = {row.name: row.mean for row in rows}
    one, two, four, eight = (mean[f"RoIAlign, {n} x {n} samples"] for n in (1, 2, 4, 8))
    assert one > 2 * two > 4 * four > 8 * eight > 0
    assert mean["RoIPool: the maximum of rounded bins"] > 10 * two
    assert mean["the mean of RoIPool's rounded bins"] > 10 * two
    assert mean["RoIAlign, 2 x 2 samples, not aligned"] > 10 * two
    assert all(row.largest >= row.mean for row in rows)


def test_pictures_hold_lost_and_leaked_areas():
    picture = np.asarray(region_pictures.quantisation(3)).reshape(-1, 3)
    count = lambda colour: int((picture == np.uint8(region_pictures._mixed(colour))).all(-1).sum())
    assert count(region_pictures._LOST) > 10_000 and count(region_pictures._LEAKED) > 20_000
    row = regions.Row("RoIAlign", 0.2, 0.1)
    assert region_pictures.errors({("smooth", 3): [row], ("noise", 3): [row]}).width > 1000
