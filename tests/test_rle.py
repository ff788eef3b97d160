"""Run lengths by definition (pixels counted one by one), and against stored results of pycocotools."""

import json

import numpy as np
import pytest

from segjax import rle
from segjax.types import InputError


def drawn(seed, count=6):
    """Masks of one size: empty, full, sparse, dense."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 30, 2)
    return [rng.random(size) < p for p in (0, 1, 0.03, 0.5, 0.9, 0.97)[:count]]


def slow_counts(mask):
    """Lengths of runs, pixel by pixel down the columns."""
    counts, value = [0], False
    for pixel in np.asarray(mask).ravel(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


@pytest.mark.parametrize("seed", range(8))
def test_encoding_and_back(seed):
    for mask in drawn(seed):
        encoded = rle.encode(mask)
        assert encoded["size"] == list(mask.shape) and json.dumps(encoded)
        counts = rle.string_to_counts(encoded["counts"])
        assert counts.tolist() == slow_counts(mask)
        assert rle.counts_to_string(counts) == encoded["counts"]
        for form in (
            encoded,
            {**encoded, "counts": encoded["counts"].encode()},
            {**encoded, "counts": counts.tolist()},
        ):
            np.testing.assert_array_equal(rle.decode(form), mask)
            assert rle.decode(form).dtype == bool
    masks = drawn(seed)
    assert rle.unpack(rle.pack([rle.encode(m) for m in masks])) == [rle.encode(m) for m in masks]


def test_large_counts_take_several_characters():
    counts = [0, 1, 31, 32, 5, 10**6, 2, 2**31, 0, 1]
    assert rle.string_to_counts(rle.counts_to_string(counts)).tolist() == counts
    assert rle.counts_to_string([5]) == "5" and rle.counts_to_string([]) == ""


@pytest.mark.parametrize("seed", range(8))
def test_arithmetic_by_counting_pixels(seed):
    masks = drawn(seed)
    encoded = [rle.encode(mask) for mask in masks]
    crowd = np.random.default_rng(seed).random(len(masks)) < 0.5
    assert rle.area(encoded).tolist() == [mask.sum() for mask in masks]
    for mask, box in zip(masks, rle.to_bbox(encoded), strict=True):
        y, x = np.nonzero(mask)
        expected = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] if len(x) else [0] * 4
        np.testing.assert_array_equal(box, expected)
    for flags in (None, crowd):
        found = rle.iou(encoded, encoded[::-1], flags)
        for i, a in enumerate(masks):
            for j, b in enumerate(masks[::-1]):
                union = a.sum() if flags is not None and flags[j] else (a | b).sum()
                assert found[i, j] == ((a & b).sum() / union if (a & b).any() else 0)
    np.testing.assert_array_equal(rle.decode(rle.merge(encoded[2:])), np.any(masks[2:], axis=0))
    np.testing.assert_array_equal(rle.decode(rle.merge(encoded[3:], intersect=True)), np.all(masks[3:], axis=0))
    assert rle.merge(encoded)["counts"] == rle.encode(np.any(masks, axis=0))["counts"]


def test_runs_of_length_zero_are_allowed():
    """As other writers leave them: a mask's IoU with itself is 1 all the same."""
    mask = {"size": [4, 5], "counts": [3, 0, 2, 4, 0, 1, 9, 0, 1]}
    assert rle.area([mask])[0] == 5 and rle.to_bbox([mask]).tolist() == [[1, 0, 2, 4]]
    assert rle.iou([mask], [mask]).tolist() == [[1]]
    empty = {"size": [4, 5], "counts": [20, 0]}
    assert rle.to_bbox([empty]).tolist() == [[0] * 4] and rle.iou([empty], [mask]).tolist() == [[0]]


def test_nothing_at_all():
    assert rle.area([]).shape == (0,) and rle.to_bbox([]).shape == (0, 4)
    mask = rle.encode(np.eye(3))
    assert rle.iou([], [mask]).shape == (0, 1) and rle.iou([mask], []).shape == (1, 0)
    assert rle.decode(rle.encode(np.zeros((0, 5)))).shape == (0, 5)
    assert not rle.decode(rle.from_polygons([], (4, 6))).any()
    with pytest.raises(ValueError, match="one or more"):
        rle.merge([])


def slow_polygon(xy, height, width):
    """maskApi's rleFrPoly, step by step: the outline on a grid five times finer, its crossings of columns."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in xy]
    points = []
    for (xs, ys), (xe, ye) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, ys, xe, ye = xe, ye, xs, ys
        steps = max(dx, dy)
        slope = ((ye - ys) / dx if dx >= dy else (xe - xs) / dy) if steps else 0.0
        for d in range(steps + 1):
            t = steps - d if flip else d
            points.append((t + xs, int(ys + slope * t + 0.5)) if dx >= dy else (int(xs + slope * t + 0.5), t + ys))
    edges = []
    for (u0, v0), (u1, v1) in zip(points, points[1:], strict=False):
        column = (min(u0, u1) + 0.5) / 5 - 0.5
        if u0 != u1 and column == int(column) and 0 <= column <= width - 1:
            row = int(np.ceil(np.clip((min(v0, v1) + 0.5) / 5 - 0.5, 0, height)))
            edges.append(int(column) * height + row)
    flat = np.zeros(height * width + 1, int)
    np.add.at(flat, edges, 1)
    return (np.cumsum(flat)[:-1] % 2 == 1).reshape(width, height).T


@pytest.mark.parametrize("seed", range(60))
def test_polygons_by_every_point_of_the_outline(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2).tolist()
    corners = rng.uniform(-8, 48, (int(rng.integers(3, 12)), 2)).round(int(seed % 3))
    if seed % 5 == 0:
        corners[1] = corners[0]
    found = rle.decode(rle.from_polygons([corners.ravel().tolist()], (height, width)))
    np.testing.assert_array_equal(found, slow_polygon(corners.tolist(), height, width))


def test_polygons_of_one_mask_are_united_and_lines_are_nothing():
    first, second = [1, 1, 7, 1, 7, 6, 1, 6], [4, 3, 9, 3, 9, 9, 4, 9]
    masks = [rle.decode(rle.from_polygons([polygon], (10, 12))) for polygon in (first, second)]
    both = rle.from_polygons([first, second, [0, 0, 9, 9]], (10, 12))
    np.testing.assert_array_equal(rle.decode(both), masks[0] | masks[1])
    assert masks[0].sum() == 30  # 6 x 5 pixels


def test_mixed_forms_keep_their_order():
    mask = np.random.default_rng(0).random((9, 7)) < 0.4
    encoded = rle.encode(mask)
    forms = [[[0, 0, 5, 0, 5, 5, 0, 5]], encoded, {"size": [9, 7], "counts": slow_counts(mask)}, [], encoded]
    packed = rle.pack(forms, sizes=np.tile([9, 7], (5, 1)))
    assert rle.area(packed).tolist() == [25, mask.sum(), mask.sum(), 0, mask.sum()]


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ({"size": [4, 5], "counts": [3, 4]}, "m 1 has counts of the sum 7: expected 4 x 5 = 20"),
        ({"size": [4, 5], "counts": [30, -10]}, "m 1 has the count -10"),
        ({"size": [4, 5], "counts": [1.5, 18.5]}, "m 1 has the counts"),
        ({"size": [4], "counts": [20]}, "m 1 has the size"),
        ({"size": [4, 5], "counts": "P"}, "m 1 has damaged compressed counts"),
        ({"size": [4, 5], "counts": "\n"}, "m 1 has damaged compressed counts"),
        ({"size": [4, 5], "counts": "é"}, "m 1 has damaged compressed counts"),
        ({"size": [4, 5], "counts": "oooooooo0"}, "m 1 has damaged compressed counts"),
        ({"size": [4, 5], "counts": ""}, "m 1 has counts of the sum 0"),
        ({"size": [4, 5]}, "m 1 is"),
        ([[1, 2, 3]], "m 1 has the polygon"),
        ([[1, 2, 3, float("nan"), 5, 6]], "m 1 has the polygon"),
        ([3, 4], "m 1 has the polygon"),
        ({"size": [5, 5], "counts": [25]}, r"m 1 has the size \[5, 5\], its image \[4, 5\]"),
    ],
)
def test_damaged_masks_are_named(mask, match):
    with pytest.raises(InputError, match=match):
        rle.pack([rle.encode(np.ones((4, 5))), mask], sizes=np.array([[4, 5], [4, 5]]), name="m {}".format)


def test_golden_numbers(golden_dir):
    info = json.loads((golden_dir / "dev" / "coco_rle.json").read_text())
    stored = np.load(golden_dir / "dev" / "coco_rle.npz")
    for form in ("compressed", "uncompressed"):
        masks = info[form]
        for mask, expected in zip(masks, stored["masks"], strict=True):
            np.testing.assert_array_equal(rle.decode(mask), expected)
        np.testing.assert_array_equal(rle.area(masks), stored["area"])
        np.testing.assert_array_equal(rle.to_bbox(masks), stored["box"])
        np.testing.assert_array_equal(rle.iou(masks, masks).astype(np.float32), stored["iou"])
        crowd = rle.iou(masks, masks, info["iscrowd"]).astype(np.float32)
        np.testing.assert_array_equal(crowd, stored["iou_crowd"])
        np.testing.assert_array_equal(rle.decode(rle.merge(masks[:3])), stored["union"])
        np.testing.assert_array_equal(rle.decode(rle.merge(masks[:2], intersect=True)), stored["intersection"])
    assert [rle.encode(mask)["counts"] for mask in stored["masks"]] == [mask["counts"] for mask in info["compressed"]]
    for polygons, expected in zip(info["polygons"], stored["polygon_masks"], strict=True):
        np.testing.assert_array_equal(rle.decode(rle.from_polygons(polygons, expected.shape)), expected)
