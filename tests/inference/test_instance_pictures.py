"""Pictures of objects: colours where they are promised, contours on the contours, labels that can be read."""

import json

import numpy as np
import pytest
from PIL import Image

from segjax import rle
from segjax.data.metadata import Classes
from segjax.inference import instance_pictures
from segjax.inference.instances import Detections

NAMES = ("cat", "a dog")


def objects_of(masks, size, classes=None, scores=None):
    count = len(masks)
    return Detections(
        size,
        np.zeros((count, 4), np.float32),
        np.linspace(0.9, 0.6, count).astype(np.float32) if scores is None else np.float32(scores),
        np.zeros(count, np.int32) if classes is None else np.int32(classes),
        [rle.encode(mask) for mask in masks],
    )


def disc(size, y, x, radius):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(rows - y, columns - x) <= radius


def differs(first, second):
    return (np.asarray(first) != np.asarray(second)).any(axis=-1)


def test_colours_are_fixed_and_far_apart():
    many = instance_pictures.colours(450)
    assert many.dtype == np.uint8 and np.array_equal(many[:7], instance_pictures.colours(7))
    assert np.array_equal(many[200:400], many[:200]) and instance_pictures.colours(0).shape == (0, 3)
    assert len(np.unique(many[:200], axis=0)) == 200
    first = many[:16].astype(int)
    distance = np.abs(first[:, None] - first[None]).sum(axis=-1)
    assert distance[~np.eye(16, dtype=bool)].min() > 60
    assert (first.max(axis=1) > 130).all() and (np.ptp(first, axis=1) > 40).all()  # neither dark nor grey


def test_masks_are_tinted_outlined_and_the_rest_is_half_grey():
    size = (60, 80)
    image = np.full((*size, 3), (200, 100, 0), np.uint8)
    masks = [disc(size, 30, 30, 20), disc(size, 30, 45, 8)]  # the small one last, on the large one
    picture = instance_pictures.draw(image, objects_of(masks, size), NAMES, alpha=0.4, labels=False)
    below = picture[0, 0].astype(int)
    assert np.abs(below - (np.array([200, 100, 0]) + round(0.299 * 200 + 0.587 * 100)) / 2).max() <= 1
    first, second = instance_pictures.colours(2).astype(float)
    assert np.array_equal(picture[30, 10], first) and np.array_equal(picture[30, 53], second)
    assert np.abs(picture[30, 20] - (0.6 * below + 0.4 * first)).max() <= 1
    assert not differs(picture, picture[0, 0])[~(masks[0] | masks[1])].any()
    swapped = instance_pictures.draw(image, objects_of(masks[::-1], size), NAMES, labels=False)
    assert np.array_equal(swapped[30, 53], first)  # small on large, whatever the order


def test_labels_are_whole_inside_and_apart():
    size = (300, 400)
    image = np.zeros((*size, 3), np.uint8)
    places = [(10, 10), (10, 390), (290, 10), (290, 390), (150, 200), (150, 230)]
    masks = [disc(size, y, x, 9) for y, x in places]
    with_text, without = (
        instance_pictures.draw(image, objects_of(masks, size), NAMES, labels=labels) for labels in (True, False)
    )
    changed = differs(with_text, without)
    for mask, colour in zip(masks, instance_pictures.colours(6), strict=True):
        label = changed & (with_text == colour).all(axis=-1)
        ys, xs = np.nonzero(label)
        box = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
        # A full rectangle of the colour and its text: nothing else is drawn over it.
        assert label[box].mean() > 0.6 and changed[box].all() and ys.size > 200
        others = np.any([m for m in masks if m is not mask], axis=0)
        assert not (others[box]).any()


def test_a_place_is_found_that_covers_nothing_or_none_is_taken():
    total = np.zeros((101, 101), np.int64)
    inside, outside = (10, 10, 40, 20), (80, 10, 110, 20)
    assert instance_pictures._best([outside, inside], total, []) == inside
    assert instance_pictures._best([inside], total, [(39, 19, 50, 50)]) is None
    assert instance_pictures._best([inside], total, [(40, 10, 50, 20)]) == inside  # they may touch
    occupied = np.zeros((100, 100), bool)
    occupied[10:20, 10:40] = True
    total = np.pad(occupied.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    assert instance_pictures._best([inside, (50, 10, 80, 20)], total, []) == (50, 10, 80, 20)


def test_many_objects_have_contours_and_a_count():
    size = (200, 300)
    masks = [disc(size, 15 + 20 * (i // 10), 15 + 28 * (i % 10), 6) for i in range(60)]
    found = objects_of(masks, size, classes=np.arange(60) % 2)
    image = np.zeros((*size, 3), np.uint8)
    picture = instance_pictures.draw(image, found, NAMES)
    without = instance_pictures.draw(image, found, NAMES, labels=False)
    ys, xs = np.nonzero(differs(picture, without))
    assert ys.size and (np.ptp(ys) < 40) and (np.ptp(xs) < 200)  # one label, in a corner
    assert min(ys.min(), 199 - ys.max()) == 0 and min(xs.min(), 299 - xs.max()) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 3), (40, 60)])
@pytest.mark.parametrize("width", [None, 1, 37, 500])
def test_any_size_at_any_width(size, width):
    image = np.full((*size, 3), 50, np.uint8)
    masks = [np.ones(size, bool), np.zeros(size, bool), disc(size, 0, 0, 0), disc(size, size[0] - 1, size[1] - 1, 1)]
    picture = instance_pictures.draw(image, objects_of(masks, size), NAMES, width=width)
    assert picture.shape[1] == (width or size[1]) and picture.dtype == np.uint8
    assert picture.shape[0] == max(1, round(size[0] * picture.shape[1] / size[1]))
    empty = instance_pictures.draw(image, objects_of([], size), NAMES, width=width)
    assert (empty == 50).all()


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_masks_keep_their_place_at_another_width(factor):
    size = (100, 140)
    mask = disc(size, 40, 90, 22)
    image = np.zeros((*size, 3), np.uint8)
    picture = instance_pictures.draw(image, objects_of([mask], size), NAMES, width=round(140 * factor), labels=False)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    distance = np.hypot((rows + 0.5) / factor - 40.5, (columns + 0.5) / factor - 90.5)
    tinted = picture.any(axis=-1)
    assert tinted[distance < 21].all() and not tinted[distance > 23].any()


def test_a_small_object_does_not_vanish():
    size = (400, 400)
    picture = instance_pictures.draw(
        np.zeros((*size, 3), np.uint8), objects_of([disc(size, 399, 399, 0)], size), NAMES, width=20, labels=False
    )
    assert picture[19, 19].any() and np.count_nonzero(picture.any(axis=-1)) == 1


def test_what_is_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="same size"):
        instance_pictures.draw(image, objects_of([], (5, 4)), NAMES)
    with pytest.raises(ValueError, match="alpha=2"):
        instance_pictures.draw(image, objects_of([], (4, 5)), NAMES, alpha=2)


def test_texts():
    found = objects_of([], (4, 5))
    found = Detections((4, 5), found.boxes, np.float32([0.876, 1]), np.int32([1, 7]), ())
    assert instance_pictures._texts(found, 0, NAMES, True) == ("a dog 88%", "88%")
    assert instance_pictures._texts(found, 1, NAMES, False) == ("7",)


def test_true_objects_of_an_example_and_confident_ones():
    size = (6, 8)
    masks = [rle.encode(disc(size, y, y, 1)) for y in (1, 3, 4)]
    example = {
        "image": np.zeros((*size, 3), np.uint8), "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        "classes": np.int32([0, 1, 0]), "crowd": np.array([False, True, False]), "masks": masks,
    }  # fmt: skip
    truth = instance_pictures.ground_truth(example)
    assert truth.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]] and truth.image_size == size
    assert list(truth.masks) == [masks[0], masks[2]] and truth.scores.tolist() == [1, 1]
    arrays = instance_pictures.ground_truth({**example, "masks": [rle.decode(mask) for mask in masks]})
    assert arrays.masks == truth.masks
    found = objects_of([rle.decode(mask) for mask in masks], size, scores=[0.5, 0.4, 0.6])
    assert list(instance_pictures.confident(found, 0.5).masks) == [masks[0], masks[2]]


def test_comparison_gives_matches_the_colour_of_the_truth():
    size = (50, 70)
    truth = [disc(size, 15, 15, 10), disc(size, 15, 50, 10)]
    found = [disc(size, 35, 30, 9), disc(size, 15, 51, 10), disc(size, 15, 49, 10)]
    truth, found = objects_of(truth, size), objects_of(found, size, scores=[0.9, 0.8, 0.7])
    assert instance_pictures._matches(truth, found).tolist() == [-1, 1, -1]  # each true object once
    other = Detections(size, found.boxes, found.scores, np.ones(3, np.int32), found.masks)
    assert instance_pictures._matches(truth, other).tolist() == [-1, -1, -1]
    nothing = objects_of([], size)
    pictures = [
        {"image": np.zeros((*size, 3), np.uint8), "truth": truth, "prediction": prediction, "index": 3}
        for prediction in (found, nothing)
    ]
    page = instance_pictures.comparison(pictures, Classes(NAMES), title="title", threshold=0.75, cell_width=140)
    drawn = [int((page == colour).all(axis=-1).sum()) for colour in instance_pictures.colours(5)]
    assert drawn[0] > 0 and drawn[1] > 1.2 * drawn[0]  # the first twice, the second thrice: it is found once
    assert drawn[2] > 0 and drawn[3:] == [0, 0]  # one that no true object has; the third is not confident


def test_cell_is_of_its_width():
    size = (50, 100)
    cell = instance_pictures.cell(np.zeros((*size, 3), np.uint8), objects_of([], size), NAMES, "caption", 200)
    assert cell.picture.shape == (100, 200, 3) and cell.caption == "caption"


def test_real_nuclei(data_dir):
    with (data_dir / "nuclei/annotations/instances_val.json").open() as file:
        annotations = json.load(file)
    entry = annotations["images"][0]
    masks = [one["segmentation"] for one in annotations["annotations"] if one["image_id"] == entry["id"]]
    image = np.asarray(Image.open(data_dir / "nuclei/val" / entry["file_name"]).convert("RGB"))
    union = np.any([rle.decode(mask) for mask in masks], axis=0)
    found = objects_of([rle.decode(mask) for mask in masks], image.shape[:2])
    bare = instance_pictures.draw(image, objects_of([], image.shape[:2]), ("nucleus",))
    drawn = instance_pictures.draw(image, found, ("nucleus",), labels=False)
    assert np.array_equal(differs(drawn, bare), union)
