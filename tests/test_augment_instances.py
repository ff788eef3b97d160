"""Instances moved on the device: masks painted from their boxes against whole masks moved pixel by pixel."""

import functools

import jax
import numpy as np
import pytest

from segjax import augment
from segjax.augment_instances import make_instance_augment
from segjax.data import mask_crops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"mean": MEAN, "std": STD}
CELLS = 56
MOVES = [
    {"size": (40, 48)},
    {"size": (40, 48), "flip_vertical": 0.5},
    {"size": (24, 30), "flip_vertical": 0.5},
    {"size": (60, 70), "flip_vertical": 0.5},
    {"size": (40, 48), "scale": (0.3, 2.0), "flip_vertical": 0.5},
    {"size": (30, 52), "scale": (0.5, 0.9), "flip_vertical": 1.0},
    {"size": (40, 48), "scale": (1.5, 2.0), "flip": 1.0},
]


def batch(rows=4, height=40, width=48, count=6, seed=0, whole=False):
    """Ellipses on images that fill a part of the canvas; "full" are the whole masks."""
    rng = np.random.default_rng(seed)
    content = np.stack([rng.integers(height // 2, height + 1, rows), rng.integers(width // 2, width + 1, rows)], 1)
    content[0] = height, width
    content = np.full_like(content, (height, width)) if whole else content
    y, x = np.mgrid[:height, :width] + 0.5
    out = {
        "image": rng.integers(0, 256, (rows, height, width, 3), dtype=np.uint8),
        "content_size": content.astype(np.int32),
        "boxes": np.zeros((rows, count, 4), np.float32),
        "mask_boxes": np.zeros((rows, count, 4), np.float32),
        "masks": np.zeros((rows, count, CELLS, CELLS), np.uint8),
        "classes": rng.integers(0, 3, (rows, count)).astype(np.int32),
        "crowd": rng.random((rows, count)) < 0.3,
        "boxes_valid": np.zeros((rows, count), bool),
        "valid": np.ones(rows, bool),
    }
    full = np.zeros((rows, count, height, width), bool)
    for row in range(rows):
        h, w = content[row]
        for k in range(count - 1):  # the last row of each stays empty
            cy, cx, ry, rx = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(4, 9), rng.uniform(4, 9)
            full[row, k, :h, :w] = (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)[:h, :w]
            mask = full[row, k, :h, :w]
            squares, boxes = mask_crops.cut([mask], (h, w), (1.0, 1.0), CELLS)
            out["masks"][row, k], out["mask_boxes"][row, k] = squares[0], boxes[0]
            out["boxes"][row, k] = box_of(mask)
            out["boxes_valid"][row, k] = True
    return out, full


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def paint(square, box, size):
    """A compact mask on a canvas, read bilinearly at the centres of pixels: f64[h, w]."""
    weights = []
    for low, high, n in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        at = (np.arange(n) + 0.5 - low) / (high - low) * CELLS - 0.5
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(CELLS))))
    return weights[0] @ (square / 255.0) @ weights[1].T


def places(key, index, content, size, scale=(1.0, 1.0), flip=0.5, flip_vertical=0.0):
    """The map by its definition, in float64: for each example the input's (y, x) of output pixels, their number, s."""
    keys = [jax.random.fold_in(key, i) for i in index]
    out = []
    for k, lengths in zip(keys, content, strict=True):
        u = np.asarray(jax.random.uniform(k, (augment.DRAWS,)), np.float64)
        v = np.asarray(jax.random.uniform(jax.random.fold_in(k, augment.TURNS), (2,)))
        s = scale[0] + u[augment.SCALE] * (scale[1] - scale[0])
        flips = v[0] < flip_vertical, u[augment.FLIP] < flip
        one = []
        for n, length, turned, draw in zip(size, lengths, flips, (u[augment.Y], u[augment.X]), strict=True):
            start, extent = draw * max(s * length - n, 0), min(n, s * length)
            start = np.round(start) if s == 1 else start
            there = np.arange(n) + 0.5
            one.append((((extent - there) if turned else there) + start) / s)
        out.append((*one, [min(max(round(s * a), 1), n) for a, n in zip(lengths, size, strict=True)], s))
    return out


def denormalised(image):
    return (np.asarray(image, np.float64) * STD + MEAN) * 255


@functools.cache
def moving(n):
    """The compiled augmentation of MOVES[n]."""
    return jax.jit(make_instance_augment(**MOVES[n], **PLAIN))


@pytest.mark.parametrize("n", range(len(MOVES)))
@pytest.mark.parametrize("seed", [1])
def test_image_and_content_move_by_the_definition(n, seed):
    (data, _), options = batch(seed=seed), MOVES[n]
    key, index = jax.random.key(seed), np.array([7, 0, 3, 12])
    out = moving(n)(key, data, index)
    assert out["image"].shape == (4, *options["size"], 3)
    for row, (ys, xs, shown, s) in enumerate(places(key, index, data["content_size"], **options)):
        assert list(out["content_size"][row]) == shown
        h, w = data["content_size"][row]
        image, weights = data["image"][row, :h, :w].astype(np.float64), []
        for at, m in ((ys, h), (xs, w)):
            weight = np.maximum(0, 1 - np.abs(np.clip(at, 0.5, m - 0.5)[:, None] - np.arange(m) - 0.5) * min(1, s))
            weights.append(weight / weight.sum(1, keepdims=True))
        expected = np.einsum("yh,hwc,xw->yxc", weights[0], image, weights[1])[: shown[0], : shown[1]]
        mine = denormalised(out["image"][row])[: shown[0], : shown[1]]
        np.testing.assert_allclose(mine, expected, atol=0.3 if s != 1 else 0.02)
        rest = np.asarray(out["image"][row]).copy()
        rest[: shown[0], : shown[1]] = 0
        assert not rest.any()


@pytest.mark.parametrize("n", range(len(MOVES)))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_painted_mask_is_the_whole_mask_moved(n, seed):
    (data, full), options = batch(seed=seed), MOVES[n]
    key, index = jax.random.key(seed), np.arange(4)
    out = jax.device_get(moving(n)(key, data, index))
    compared = 0
    for row, (ys, xs, shown, s) in enumerate(places(key, index, data["content_size"], **options)):
        h, w = data["content_size"][row]
        for k in range(6):
            reach = max(1 / s, 1)  # of the input, to an output pixel
            soft = np.zeros(options["size"])
            if full[row, k].any():
                columns = np.maximum(0, reach - np.abs(np.clip(ys, 0.5, h - 0.5)[:, None] - np.arange(40) - 0.5))
                across = np.maximum(0, reach - np.abs(np.clip(xs, 0.5, w - 0.5)[:, None] - np.arange(48) - 0.5))
                soft = columns @ full[row, k] @ across.T / (columns.sum(1)[:, None] * across.sum(1)[None, :])
            moved = np.zeros(options["size"], bool)
            moved[: shown[0], : shown[1]] = soft[: shown[0], : shown[1]] >= 0.5
            if not out["boxes_valid"][row, k]:
                assert moved.sum() <= 8 or min(np.ptp(np.nonzero(moved), axis=1)) <= 1
                assert not out["boxes"][row, k].any() and not out["mask_boxes"][row, k].any()
                continue
            painted = paint(out["masks"][row, k], out["mask_boxes"][row, k], options["size"]) >= 0.5
            painted[shown[0] :], painted[:, shown[1] :] = False, False
            rim = np.sqrt(moved.sum())
            assert (painted != moved).sum() <= (0 if s == 1 else 2 + 0.7 * rim)
            compared += 1
            if moved.any() and min(np.ptp(np.nonzero(moved), axis=1)) >= 5:  # the ends of a sliver are ill-defined
                box = np.array(box_of(moved))
                touches = (box[:2] == 0).any() or (box[2:] == shown[::-1]).any()
                assert np.abs(out["boxes"][row, k] - box).max() <= (2.0 if touches else 1.01), (
                    out["boxes"][row, k],
                    box,
                )
            assert (out["boxes"][row, k] >= 0).all()
            assert (out["boxes"][row, k][2:] <= shown[::-1]).all()
    assert compared >= 6


def test_nothing_to_do_is_normalisation():
    data, _ = batch(whole=True)
    out = jax.jit(make_instance_augment(size=(40, 48), flip=0.0, **PLAIN))(jax.random.key(0), data, np.arange(4))
    np.testing.assert_allclose(out["image"], augment.normalise(data, MEAN, STD)["image"], atol=1e-6)
    for name in data.keys() - {"image"}:
        np.testing.assert_array_equal(out[name], data[name], err_msg=name)
        assert np.asarray(out[name]).dtype == data[name].dtype


def test_rows_keep_their_classes_and_crowd_flags():
    data, _ = batch()
    run = jax.jit(make_instance_augment(size=(20, 20), scale=(0.5, 2.0), flip_vertical=0.5, **PLAIN))
    out = run(jax.random.key(1), data, np.arange(4))
    for name in ("classes", "crowd", "valid"):
        np.testing.assert_array_equal(out[name], data[name])
    assert not (np.asarray(out["boxes_valid"]) & ~data["boxes_valid"]).any()
    assert np.asarray(out["boxes_valid"]).sum() < data["boxes_valid"].sum()


def test_objects_that_become_too_small_are_no_longer_valid():
    data, _ = batch(rows=2, count=3, whole=True)
    data["boxes"][:, 0] = data["mask_boxes"][:, 0] = [10, 10, 13, 20]
    for min_size, kept in ((1.0, True), (2.0, False), (0.0, True)):
        run = jax.jit(make_instance_augment(size=(40, 48), scale=(0.5, 0.5), min_size=min_size, **PLAIN))
        out = run(jax.random.key(0), data, np.arange(2))
        assert (np.asarray(out["boxes_valid"])[:, 0] == kept).all()
    with pytest.raises(ValueError, match="min_size is -1"):
        make_instance_augment(size=(40, 48), min_size=-1, **PLAIN)


def test_a_cut_object_has_a_box_around_what_shows():
    """A diagonal bar, of which a window shows the upper left end: the clipped box is much larger than that."""
    data, _ = batch(rows=1, count=2, whole=True)
    y, x = np.mgrid[:40, :48]
    bar = (np.abs(y - x) < 3) & (y < 38)
    squares, boxes = mask_crops.cut([bar], (40, 48), (1.0, 1.0), CELLS)
    data["masks"][0, 0], data["mask_boxes"][0, 0], data["boxes"][0, 0] = squares[0], boxes[0], box_of(bar)
    seen = {}
    runs = {tight: jax.jit(make_instance_augment(size=(40, 12), flip=0.0, tight=tight, **PLAIN)) for tight in (0, 1)}
    for seed in range(30):
        for tight, run in runs.items():
            out = jax.device_get(run(jax.random.key(seed), data, np.arange(1)))
            seen[tight] = out["boxes"][0, 0], out["boxes_valid"][0, 0]
        column = int(places(jax.random.key(seed), [0], [(40, 48)], (40, 12), flip=0.0)[0][1][0])
        part = bar[:, column : column + 12]
        clipped = np.clip(np.array(box_of(bar)) - [column, 0, column, 0], 0, [12, 40, 12, 40])
        np.testing.assert_array_equal(seen[False][0], clipped)
        if part.any():
            assert seen[True][1] and np.abs(seen[True][0] - box_of(part)).max() <= 1.75  # a pixel and a cell
        elif column > 42:
            assert not seen[True][1]


def test_any_number_of_devices_draws_the_same():
    data, _ = batch(rows=8)
    options = {"scale": (0.3, 2.0), "flip_vertical": 0.5, "brightness": 0.3, "contrast": 0.2, "hue": 0.1}
    run, key = jax.jit(make_instance_augment(size=(32, 32), **options, **PLAIN)), jax.random.key(5)
    whole = run(key, data, np.arange(8))
    for rows in (np.array([2, 3, 0, 1, 6, 5, 4, 7]), np.array([1] * 8)):
        part = run(key, {name: value[rows] for name, value in data.items()}, rows)
        for name in whole:
            np.testing.assert_allclose(part[name], np.asarray(whole[name])[rows], atol=1e-4, err_msg=name)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put((data, np.arange(8)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    for name, value in run(key, *spread).items():
        np.testing.assert_allclose(value, whole[name], atol=1e-4, err_msg=name)


def test_the_draws_are_those_of_the_semantic_augmentation():
    """An image that fills its canvas and is not made smaller is moved by the same map, and coloured alike."""
    data, _ = batch(whole=True)
    options = {"size": (30, 36), "scale": (1.2, 2.0), "brightness": 0.3, "saturation": 0.2, "flip_vertical": 0.5}
    mine = jax.jit(make_instance_augment(**options, **PLAIN))(jax.random.key(3), data, np.arange(4))["image"]
    label = {"label": np.zeros((4, 40, 48), np.int32)}
    theirs = jax.jit(augment.make_augment(ignore_label=255, **options, **PLAIN))
    theirs = theirs(jax.random.key(3), {"image": data["image"], **label}, np.arange(4))["image"]
    same = np.abs(np.asarray(mine) - np.asarray(theirs)).max(axis=(1, 2, 3)) < 1e-3
    assert same[~vertical(jax.random.key(3), 4)].all() and not vertical(jax.random.key(3), 4).all()


def vertical(key, rows):
    draw = [
        jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, i), augment.TURNS), (2,)) for i in range(rows)
    ]
    return np.array(draw)[:, 0] < 0.5


@pytest.mark.parametrize("count", [0, 1])
def test_no_objects_and_the_size_of_the_input(count):
    data, _ = batch(count=2)
    data = {k: v[:, :count] if k not in ("image", "content_size", "valid") else v for k, v in data.items()}
    out = jax.jit(make_instance_augment(scale=(0.1, 2.0), **PLAIN))(jax.random.key(0), data, np.arange(4))
    assert out["image"].shape == (4, 40, 48, 3) and out["masks"].shape == (4, count, CELLS, CELLS)
    assert np.isfinite(out["image"]).all() and np.isfinite(out["boxes"]).all()
    assert (np.asarray(out["content_size"]) >= 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": (0, 4)}, r"\(0, 4\)"), ({"scale": (2.0, 0.5)}, r"\(2.0, 0.5\)"), ({"flip": 1.5}, "flip is 1.5"),
     ({"flip_vertical": -0.5}, "flip_vertical is -0.5"), ({"contrast": -0.1}, "contrast"), ({"hue": 0.6}, "0.6")],
)  # fmt: skip
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        make_instance_augment(**{"size": (8, 8), **PLAIN, **options})
