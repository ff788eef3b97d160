"""Batches of instances: boxes and masks stay on their objects whatever the canvas; one order whatever reads it."""

import itertools
import logging
import pickle

import numpy as np
import pytest

from segjax import rle
from segjax.data import canvas, fitted_instances, instances
from segjax.types import InputError

SIZES = [(16, 24), (30, 20), (16, 24), (40, 48), (9, 50), (24, 16), (12, 12)]
COUNTS = [3, 0, 5, 9, 2, 1, 4]
OPTIONS = {"size": (16, 24), "batch_size": 4, "seed": 5, "max_instances": 12, "mask_size": 28}
KEYS = {
    "image": ((4, 16, 24, 3), "uint8"),
    "boxes": ((4, 12, 4), "float32"),
    "classes": ((4, 12), "int32"),
    "crowd": ((4, 12), "bool"),
    "boxes_valid": ((4, 12), "bool"),
    "masks": ((4, 12, 28, 28), "uint8"),
    "mask_boxes": ((4, 12, 4), "float32"),
    "content_size": ((4, 2), "int32"),
    "valid": ((4,), "bool"),
}


class Set:
    """Images whose pixels hold the number of the image; objects are ellipses, drawn over in places."""

    num_classes, class_names, ignore_label, name, split, instances = 3, ("a", "b", "c"), 255, "set", "train", True

    def __init__(self, sizes=SIZES, counts=COUNTS, bad=None, arrays=False):
        self.sizes, self.counts, self.bad, self.arrays = sizes, counts, bad, arrays
        self.reads = 0

    def __len__(self):
        return len(self.sizes)

    def describe(self, i):
        return f"picture {i}"

    def image_size(self, i):
        return self.sizes[i]

    def masks(self, i):
        rng, (height, width) = np.random.default_rng(i), self.sizes[i]
        y, x = np.mgrid[:height, :width] + 0.5
        out = []
        for _ in range(self.counts[i]):
            cy, cx, ry, rx = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, 6), rng.uniform(2, 6)
            out.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
        return out

    def __getitem__(self, i):
        self.reads += 1
        masks = self.masks(i)
        encoded = masks if self.arrays else [rle.encode(mask) for mask in masks]
        if i == self.bad:
            encoded[0] = {"size": [3, 3], "counts": [0, 9]}
        return {
            "image": np.full((*self.sizes[i], 3), i + 1, np.uint8),
            "boxes": np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4),
            "classes": np.arange(len(masks), dtype=np.int32) % 3,
            "crowd": np.arange(len(masks)) % 4 == 3,
            "masks": encoded,
            "area": np.array([mask.sum() for mask in masks], np.float32),
            "image_id": i,
        }


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def paint(square, box, size):
    """A compact mask on a canvas, read bilinearly at the centres of pixels: f64[H, W]."""
    cells = len(square)
    weights = []
    for low, high, n in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        at = (np.arange(n) + 0.5 - low) / (high - low) * cells - 0.5
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))))
    return weights[0] @ (square / 255.0) @ weights[1].T


def take(count, dataset=None, **options):
    with instances.train_batches(dataset or Set(), **{**OPTIONS, **options}) as batches:
        return list(itertools.islice(batches, count))


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def order(batches):
    return np.concatenate([batch["image"][:, 0, 0, 0].astype(int) - 1 for batch in batches])


def test_batches_have_the_stated_shapes_and_types():
    batch = take(1)[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == KEYS
    assert batch["valid"].all()
    for row, i in enumerate(order([batch])):
        n = COUNTS[i]
        np.testing.assert_array_equal(batch["boxes_valid"][row], np.arange(12) < n)
        np.testing.assert_array_equal(batch["classes"][row, :n], np.arange(n) % 3)
        np.testing.assert_array_equal(batch["crowd"][row, :n], np.arange(n) % 4 == 3)
        for key in ("boxes", "classes", "crowd", "masks", "mask_boxes"):
            assert not batch[key][row, n:].any()


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("arrays", [False, True])
def test_boxes_and_masks_come_onto_the_canvas_with_the_image(fit, arrays):
    dataset, size = Set(arrays=arrays), (32, 40)
    batch = take(7, dataset, size=size, fit=fit, batch_size=1, mask_size=56)
    for one in batch:
        i = int(one["image"][0, 0, 0, 0]) - 1
        content = canvas.content_size(SIZES[i], size, fit)
        assert tuple(one["content_size"][0]) == content
        assert (one["image"][0, : content[0], : content[1]] == i + 1).all()
        scale = np.array(content) / SIZES[i]
        for k, mask in enumerate(dataset.masks(i)):
            np.testing.assert_allclose(one["boxes"][0, k], np.array(box_of(mask)) * np.tile(scale[::-1], 2), rtol=1e-6)
            assert np.abs(one["mask_boxes"][0, k] - one["boxes"][0, k]).max() <= 1 + 1e-4
            painted = paint(one["masks"][0, k], one["mask_boxes"][0, k], size)[: content[0], : content[1]] >= 0.5
            rows, columns = (canvas.nearest(*n) for n in zip(content, SIZES[i], strict=True))
            expected = mask[rows[:, None], columns[None]]
            assert (painted != expected).sum() <= 0.12 * expected.sum() + 3
    assert sorted(order(batch)) == list(range(7))


def test_without_a_change_of_scale_a_painted_mask_is_the_mask():
    dataset = Set(sizes=[(40, 48)], counts=[9])
    one = take(1, dataset, size=(40, 48), batch_size=1, mask_size=56)[0]
    for k, mask in enumerate(dataset.masks(0)):
        painted = paint(one["masks"][0, k], one["mask_boxes"][0, k], (40, 48))
        inner = np.s_[1:-1, 1:-1]  # on the border the square goes on beyond the image
        np.testing.assert_array_equal((painted >= 0.5)[inner], mask[inner])


def test_a_window_drops_clips_and_keeps_mask_boxes():
    """Windows of one large image: what is left are the objects that show, in the places they have in the window."""
    dataset = Set(sizes=[(60, 70)], counts=[30])
    masks = dataset.masks(0)
    ramp = np.arange(60 * 70).reshape(60, 70)
    image = np.stack([ramp % 256, ramp // 256, 0 * ramp], -1).astype(np.uint8)
    dataset.__class__ = type("Ramp", (Set,), {"__getitem__": lambda s, i: {**Set.__getitem__(s, i), "image": image}})
    places, dropped = set(), 0
    for batch in take(12, dataset, size=(20, 30), fit="crop", batch_size=2, max_instances=30):
        for row in range(2):
            first = batch["image"][row, 0, 0].astype(int)
            y, x = divmod(int(first[0] + 256 * first[1]), 70)
            np.testing.assert_array_equal(batch["image"][row], image[y : y + 20, x : x + 30])
            assert tuple(batch["content_size"][row]) == (20, 30)
            places.add((y, x))
            k = 0
            for n, mask in enumerate(masks):
                box = np.array(box_of(mask)) - [x, y, x, y]
                clipped = np.clip(box, 0, [30, 20, 30, 20])
                if (clipped[2:] <= clipped[:2]).any():
                    dropped += 1
                    continue
                np.testing.assert_array_equal(batch["boxes"][row, k], clipped)
                np.testing.assert_array_equal(batch["mask_boxes"][row, k], box + [-1, -1, 1, 1])
                assert batch["classes"][row, k] == n % 3 and batch["crowd"][row, k] == (n % 4 == 3)
                k += 1
            assert batch["boxes_valid"][row].sum() == k
    assert len(places) > 15 and dropped > 50


def test_crop_puts_small_images_into_the_corner():
    batch = take(2, size=(64, 64), fit="crop")
    for one in batch:
        for row, i in enumerate(order([one])):
            assert tuple(one["content_size"][row]) == SIZES[i]
            np.testing.assert_array_equal(one["boxes"][row, : COUNTS[i]], Set()[i]["boxes"])


def test_boxes_beyond_the_image_are_clipped_and_those_without_area_left_out():
    dataset = Set(sizes=[(16, 24)], counts=[3])
    boxes = np.array([[-3, -2, 5, 99], [4, 5, 4, 9], [30, 3, 40, 9]], np.float32)
    dataset.__class__ = type("Odd", (Set,), {"__getitem__": lambda s, i: {**Set.__getitem__(s, i), "boxes": boxes}})
    batch = take(1, dataset, batch_size=1)[0]
    assert batch["boxes_valid"][0].sum() == 1
    np.testing.assert_array_equal(batch["boxes"][0, 0], [0, 0, 5, 16])


def test_of_too_many_objects_the_largest_stay_and_it_is_said_once(caplog):
    dataset = Set(sizes=[(40, 48)] * 3, counts=[9] * 3)
    with caplog.at_level(logging.WARNING):
        batches = take(6, dataset, size=(40, 48), max_instances=4, batch_size=1)
    assert len(caplog.records) == 1
    assert "has 9 objects" in caplog.text and "data.max_instances=4" in caplog.text and "picture" in caplog.text
    for batch in batches:
        boxes = dataset[int(batch["image"][0, 0, 0, 0]) - 1]["boxes"]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        largest = np.sort(np.argsort(-areas, kind="stable")[:4])
        np.testing.assert_array_equal(batch["boxes"][0], boxes[largest])
        assert batch["boxes_valid"].all()


def test_the_order_is_the_pipelines():
    """Every epoch a permutation, batches straddle epochs, a seed decides."""
    epochs = order(take(14)).reshape(8, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len({tuple(e) for e in epochs}) > 4
    assert (order(take(14, seed=6)) != epochs.ravel()).any()


@pytest.mark.parametrize("options", [{"fit": "crop", "size": (10, 10)}, {"size": None, "sizes": ((16, 24), (24, 16))}])
def test_restarts_threads_and_processes_change_nothing(options):
    whole = take(10, **options)
    same(take(7, start_step=3, workers=0, **options), whole[3:])
    same(take(10, workers=3, num_steps=10, **options), whole)
    assert take(3, num_steps=2, start_step=2, **options) == []
    for count in (2, 4):
        parts = [take(10, process_index=p, process_count=count, **options) for p in range(count)]
        same([{k: np.concatenate([part[s][k] for part in parts]) for k in whole[s]} for s in range(10)], whole)


def test_buckets_share_out_the_images_by_aspect():
    """Lying images on one canvas, upright ones on the other, each once an epoch up to a batch."""
    dataset = Set(sizes=[(20, 30)] * 14 + [(30, 20)] * 7, counts=[1] * 21)
    sizes, epochs = ((16, 24), (24, 16)), 9
    batches = take(7 * epochs, dataset, size=None, sizes=sizes, batch_size=3)
    seen, shapes = np.zeros(21, int), []
    for s, batch in enumerate(batches):
        shapes.append(batch["image"].shape[1:3])
        indices = order([batch])
        assert {dataset.sizes[i] for i in indices} == {(20, 30) if shapes[-1] == (16, 24) else (30, 20)}
        np.add.at(seen, indices, 1)
        expected = 3 * (s + 1) / 21
        assert np.abs(seen - expected).max() < 1 + 3 * 3 / 7  # an epoch of the smaller canvas is 7 images
    assert set(shapes) == set(sizes) and shapes.count((16, 24)) == 2 * shapes.count((24, 16))
    assert (np.abs(seen - epochs) <= 1).all()


def test_a_canvas_without_images_is_left_out():
    batches = take(3, Set(sizes=[(20, 30)] * 4, counts=[1] * 4), size=None, sizes=((24, 16), (16, 24)))
    assert {batch["image"].shape[1:3] for batch in batches} == {(16, 24)}
    sizes = ((8, 8), (8, 16), (16, 16))
    assert [fitted_instances.nearest_canvas(image, sizes, "pad") for image in ((9, 9), (9, 20), (3, 1))] == [0, 1, 0]
    assert fitted_instances.nearest_canvas((9, 9), sizes, "crop") == 2  # the smallest that holds it


def test_worker_processes_give_the_same_bits():
    options = {"size": None, "sizes": ((16, 24), (24, 16)), "batch_size": 2, "cache": True, "fit": "crop"}
    same(take(4, **options, worker_mode="processes", workers=2), take(4, **options))
    pickle.dumps(Set())


def test_the_cache_is_compact_and_read_once():
    dataset = Set()
    plain = take(8, fit="pad")
    same(take(8, dataset, fit="pad", cache=True, workers=0), plain)
    assert dataset.reads == 7
    same(take(8, dataset, fit="pad", cache=True), plain)
    list(instances.eval_batches(dataset, size=(16, 24), fit="pad", max_instances=3, mask_size=28, batch_size=2,
                                cache=True))  # fmt: skip
    assert dataset.reads == 7


def test_verify_tells_the_largest_number_fills_the_cache_and_names_a_bad_mask():
    dataset, seen = Set(), []
    options = {"size": (16, 24), "mask_size": 28, "cache": True}
    assert instances.verify(dataset, lambda done, of: seen.append((done, of)), **options) == 9
    assert seen == [(i + 1, 7) for i in range(7)]
    take(5, dataset, cache=True)
    assert dataset.reads == 7
    assert instances.verify(Set()) == 9
    with pytest.raises(InputError, match="picture 3: mask 0"):
        instances.verify(Set(bad=3))
    with pytest.raises(InputError, match="picture 3: mask 0"):
        take(4, Set(bad=3))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("sizes", [((16, 24),), ((16, 24), (24, 16))])
def test_evaluation_sees_every_example_once(count, sizes):
    options = {"sizes": sizes, "batch_size": 4, "fit": "pad", "max_instances": 12, "mask_size": 28}
    parts = [list(instances.eval_batches(Set(), **options, process_index=p, process_count=count)) for p in range(count)]
    assert len({len(part) for part in parts}) == 1
    index = np.concatenate([batch["index"] for part in parts for batch in part])
    assert sorted(index[index >= 0]) == list(range(7))
    for step in zip(*parts, strict=True):
        assert len({batch["image"].shape for batch in step}) == 1
        for batch in step:
            np.testing.assert_array_equal(batch["valid"], batch["index"] >= 0)
            for row, i in enumerate(batch["index"]):
                if i < 0:
                    assert not batch["boxes_valid"][row].any() and not batch["image"][row].any()
                    continue
                size = batch["image"].shape[1:3]
                assert tuple(batch["native_size"][row]) == SIZES[i]
                assert tuple(batch["content_size"][row]) == canvas.content_size(SIZES[i], size, "pad")
                assert batch["image"][row, 0, 0, 0] == i + 1 and batch["boxes_valid"][row].sum() == COUNTS[i]


def test_evaluation_without_truth_decodes_no_mask():
    batches = list(instances.eval_batches(Set(bad=3), size=(16, 24), batch_size=3))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), [0, 1, 2, 3, 4, 5, 6, -1, -1])
    assert batches[0]["boxes"].shape == (3, 0, 4) and batches[0]["masks"].shape[:2] == (3, 0)
    with pytest.raises(InputError, match="picture 1 is 20x30, larger than the canvas 24x16"):
        list(instances.eval_batches(Set(), size=(16, 24), fit="crop", batch_size=1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"fit": "squash"}, ValueError, "squash.*stretch, pad, crop"),
        ({"worker_mode": "fibres"}, ValueError, "fibres"),
        ({"size": (0, 4)}, ValueError, "size="),
        ({"size": None}, ValueError, "size=None, sizes="),
        ({"sizes": ((4, 4),)}, ValueError, "sizes="),
        ({"max_instances": 0}, ValueError, "max_instances=0: expected 1 or more"),
        ({"mask_size": 0}, ValueError, "mask_size=0"),
        ({"start_step": -1}, ValueError, "start_step=-1"),
        ({"process_count": 3}, InputError, "batch of 4.*3 processes"),
    ],
)
def test_impossible_options_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        instances.train_batches(Set(), **{**OPTIONS, **change})


def test_an_empty_set_is_refused():
    with pytest.raises(InputError, match="empty"):
        instances.train_batches(Set(sizes=[], counts=[]), **OPTIONS)
