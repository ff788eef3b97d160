"""Compact masks against RoIAlign of the whole mask, written out as a loop over cells and samples."""

import numpy as np
import pytest

from segjax import rle
from segjax.data import mask_crops
from segjax.types import InputError


def blob(rng, height, width, y0, x0, y1, x1):
    """A mask whose smallest box is the one given."""
    mask = np.zeros((height, width), bool)
    part = rng.random((y1 - y0, x1 - x0)) < 0.7
    part[0, -1] = part[-1, 0] = part[0, 0] = part[-1, -1] = True
    mask[y0:y1, x0:x1] = part
    return mask


def bilinear(mask, y, x):
    """The mask at a point (pixels, centres at + 1/2), its outermost pixels continued."""
    height, width = mask.shape
    y, x = np.clip(y - 0.5, 0, height - 1), np.clip(x - 0.5, 0, width - 1)
    r, c = min(int(y), height - 2), min(int(x), width - 2)
    fy, fx = y - r, x - c
    four = mask[r : r + 2, c : c + 2]
    return (1 - fy) * ((1 - fx) * four[0, 0] + fx * four[0, 1]) + fy * ((1 - fx) * four[1, 0] + fx * four[1, 1])


def roi_align(mask, box, cells, samples):
    x0, y0, x1, y1 = box
    out, mask = np.zeros((cells, cells)), mask.astype(np.float64)
    at = (np.arange(samples) + 0.5) / samples
    for i, j in np.ndindex(cells, cells):
        ys, xs = y0 + (i + at) * (y1 - y0) / cells, x0 + (j + at) * (x1 - x0) / cells
        out[i, j] = np.mean([bilinear(mask, y, x) for y in ys for x in xs])
    return out


@pytest.mark.parametrize("place", [(3, 4, 11, 17), (0, 0, 9, 5), (6, 12, 20, 25), (0, 0, 20, 25), (7, 9, 8, 10)])
@pytest.mark.parametrize("cells", [28, 7])
def test_a_square_is_roi_align_of_the_mask(place, cells):
    mask = blob(np.random.default_rng(cells), 20, 25, *place)
    squares, boxes = mask_crops.cut([rle.encode(mask)], mask.shape, (1.0, 1.0), cells)
    y0, x0, y1, x1 = place
    np.testing.assert_array_equal(boxes[0], [x0 - 1, y0 - 1, x1 + 1, y1 + 1])
    tall, wide = (y1 - y0 + 2) / cells > 1, (x1 - x0 + 2) / cells > 1
    if tall == wide:  # one sample where cells are smaller than pixels, the mean where they are larger
        expected = roi_align(mask, boxes[0], cells, 12 if tall else 1)
        np.testing.assert_allclose(squares[0] / 255, expected, atol=0.51 / 255 + (1e-2 if tall else 0))
    if 0 not in place and y1 < 20 and x1 < 25 and not (tall or wide):
        assert not squares[0][[0, -1]].any() and not squares[0][:, [0, -1]].any()  # 0 within the margin


@pytest.mark.parametrize("scale", [2, 3])
def test_an_enlarged_canvas_is_the_enlarged_mask(scale):
    mask = blob(np.random.default_rng(0), 12, 14, 2, 3, 9, 14)
    large = np.kron(mask, np.ones((scale, scale))).astype(bool)
    ours, box = mask_crops.cut([mask], mask.shape, (scale, scale), 28)
    expected, large_box = mask_crops.cut([large], large.shape, (1.0, 1.0), 28)
    np.testing.assert_array_equal(box, large_box)
    np.testing.assert_allclose(ours.astype(int), expected, atol=1)


def test_a_reduced_canvas_holds_the_share_of_a_canvas_pixel():
    mask = blob(np.random.default_rng(0), 24, 24, 4, 2, 16, 20)
    squares, boxes = mask_crops.cut([mask], mask.shape, (0.5, 0.25), 12)
    np.testing.assert_array_equal(boxes[0], [-0.5, 1, 6, 9])
    fine = np.pad(np.kron(mask, np.ones((30, 30))), 240)  # 60 rows, 120 columns to a canvas pixel
    for i, j in np.ndindex(12, 12):
        top, left = 240 + 60 * (1 + 8 * (i + 0.5) / 12) - 30, 240 + 120 * (-0.5 + 6.5 * (j + 0.5) / 12) - 60
        share = fine[round(top) : round(top) + 60, round(left) : round(left) + 120].mean()
        assert squares[0, i, j] / 255 == pytest.approx(share, abs=0.51 / 255 + 0.01)


def test_scales_differ_per_axis():
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:7] = True
    squares, boxes = mask_crops.cut([mask], mask.shape, (4.0, 2.0), 28)
    np.testing.assert_array_equal(boxes[0], [5, 7, 15, 21])
    # Half of the first row and column of pixels beyond the edge is below, half above 1/2: the area is that of the mask.
    area = squares[0].mean() / 255 * 10 * 14
    assert area == pytest.approx(12 * 8, rel=0.01)


def test_windows_are_the_masks_without_the_empty_rest():
    rng = np.random.default_rng(1)
    places = [(0, 0, 13, 9), (2, 3, 3, 4), (5, 0, 6, 9), (0, 4, 13, 5), (4, 2, 12, 8)]
    masks = [blob(rng, 13, 9, *place) for place in places]
    for given in (masks, np.array(masks), [rle.encode(mask) for mask in masks]):
        for (inside, (x0, y0, x1, y1)), mask, place in zip(
            mask_crops.windows(given, (13, 9)), masks, places, strict=True
        ):
            assert (y0, x0, y1, x1) == place
            np.testing.assert_array_equal(inside, mask[y0:y1, x0:x1])
            assert mask.sum() == inside.sum()


def test_runs_of_no_length_are_nothing():
    mask = {"size": [4, 3], "counts": [0, 0, 5, 2, 0, 1, 3, 0, 1]}
    inside, box = mask_crops.windows([mask], (4, 3))[0]
    whole = np.repeat([False, True] * 4 + [False], mask["counts"]).reshape(3, 4).T
    x0, y0, x1, y1 = box
    np.testing.assert_array_equal(inside, whole[y0:y1, x0:x1])
    assert inside.sum() == whole.sum() == 3


def test_empty_masks_are_zeros():
    for masks in ([rle.encode(np.zeros((5, 6), bool))], np.zeros((1, 5, 6)), [{"size": [5, 6], "counts": [30]}]):
        squares, boxes = mask_crops.cut(masks, (5, 6), (1.0, 1.0), 8)
        assert squares.shape == (1, 8, 8) and not squares.any() and not boxes.any()
    squares, boxes = mask_crops.cut([], (5, 6), (1.0, 1.0), 8)
    assert squares.shape == (0, 8, 8) and boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "mask", [np.ones((6, 5)), {"size": [6, 5], "counts": [0, 30]}, {"size": [5, 6], "counts": "X"}]
)
def test_a_wrong_mask_is_named(mask):
    with pytest.raises(InputError, match="mask 0"):
        mask_crops.cut([mask], (5, 6), (1.0, 1.0), 8)
