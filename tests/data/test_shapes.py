"""The drawn scenes: outlines against areas by formula, no class told by colour, preparing and reading."""

import os
import pathlib
import pickle
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax import data, rle
from segjax.data import instances, scene, shapes
from segjax.types import InputError

K = len(scene.CLASS_NAMES)


@pytest.fixture(scope="module")
def drawn():
    """200 training and 60 validation scenes, with the seeds of the set."""
    return [scene.draw((1, 0, 0, 0, i)) for i in range(200)], [scene.draw((1, 0, 0, 1, i)) for i in range(60)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The whole set, prepared."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.prepare(str(folder))
    return str(folder)


def _areas(radius: float) -> dict[str, float]:
    """Areas by formula for slim=0, from the corners where there are corners (shoelace)."""

    def polygon(points: int, outer: float, inner: float) -> float:
        angles = np.arange(2 * points) * np.pi / points
        radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
        x, y = radii * np.cos(angles), radii * np.sin(angles)
        return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2

    bar = 0.36
    unit = {
        "disc": np.pi,
        "ring": np.pi * (1.0 - 0.6**2),
        "box": 4.0,
        "triangle": polygon(3, 1.3, 0.65),
        "star": polygon(5, 1.15, 0.575),
        "cross": 2 * (2.0 * 2 * bar) - (2 * bar) ** 2,
    }
    return {name: area * radius**2 for name, area in unit.items()}


@pytest.mark.parametrize("outline", scene.OUTLINES, ids=scene.CLASS_NAMES[1:])
def test_outline_has_the_area_of_the_formula_and_slope_one(outline):
    radius = 100.0
    y, x = (np.mgrid[-150:151, -150:151] + 0.3) / radius  # no edge runs through the centres of pixels
    distance = outline(x, y, 0.0) * radius
    assert (distance < 0).sum() == pytest.approx(_areas(radius)[outline.__name__[1:]], rel=0.01)
    rows, columns = np.gradient(distance)
    edge = np.abs(distance) < 2.0
    assert np.median(np.hypot(rows, columns)[edge]) == pytest.approx(1.0, abs=0.02)  # pixels, not some other unit


def test_scenes_are_what_the_issue_asks_for(drawn):
    train, val = drawn
    assert K >= 6 and scene.CLASS_NAMES[0] == "background"
    assert shapes.SCENES["train"] >= 400 and shapes.SCENES["val"] >= 100
    share = np.zeros(K)
    extents, crowded = [], 0
    for one in train + val:
        assert one.image.shape == (128, 128, 3) and one.image.dtype == np.uint8
        assert one.label.shape == (128, 128) and one.label.max() < K
        again = np.zeros_like(one.label)
        boxes = np.zeros((128, 128), int)
        for mask, kind in zip(one.masks, one.classes, strict=True):
            assert mask.any() and not again[mask].any()  # visible, and no pixel owned twice
            again[mask] = kind
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += 1
            extents.append(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)
        np.testing.assert_array_equal(again, one.label)
        crowded += boxes.max() > 1
        share += np.bincount(one.label.ravel(), minlength=K)
    share /= share.sum()
    assert share[1:].min() > 0.03 and share[0] < 0.75, share
    assert min(extents) <= 12 and max(extents) >= 64 and np.median(extents) > 20
    assert crowded > 0.8 * len(train + val)


def test_no_object_is_placed_over_most_of_an_earlier_one():
    y, x = np.mgrid[:128, :128]
    owner = (np.hypot(x - 64, y - 64) < 20).astype(np.int16)
    area = int(owner.sum())
    rng = np.random.default_rng(0)
    hidden = []
    for _ in range(200):
        placed = scene._place(rng, scene.OUTLINES[2], 70.0, owner, [area])
        if placed is not None:
            rows, columns, distance = placed
            hidden.append(int(owner[rows, columns][distance < 0].sum()))
    assert len(hidden) > 50 and max(hidden) > 0.3 * area  # they do overlap
    assert max(hidden) <= (1 - scene.MIN_VISIBLE) * area


def test_splits_share_no_scene_and_seeds_alone_decide(drawn):
    train, val = drawn
    images = {one.image.tobytes() for one in train + val}
    assert len(images) == len(train) + len(val)
    code = (
        "import zlib; from segjax.data import scene; s = scene.draw((1, 0, 0, 1, 7));"
        "print(zlib.crc32(s.image.tobytes()), zlib.crc32(s.label.tobytes()))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [int(number) for number in seen] == [zlib.crc32(val[7].image.tobytes()), zlib.crc32(val[7].label.tobytes())]


def _miou(prediction: np.ndarray, label: np.ndarray) -> float:
    counts = np.bincount(label.ravel().astype(int) * K + prediction.ravel(), minlength=K * K).reshape(K, K)
    hit = np.diag(counts)
    return float(np.mean(hit / np.maximum(counts.sum(0) + counts.sum(1) - hit, 1)))


def _best_bayes_miou(features: list[np.ndarray], bins: int, labels: list[np.ndarray]) -> float:
    """The classifier of one quantised feature per pixel, fitted on the first part, with the best of several priors."""
    table = np.bincount(features[0].ravel() * K + labels[0].ravel(), minlength=bins * K).reshape(bins, K) + 1e-3
    prior = table.sum(axis=0) / table.sum()
    scores = []
    for power in (0.0, 0.5, 0.75, 0.9, 1.0):  # 0: the counts as they are; 1: every class as frequent
        choice = (table / prior**power).argmax(axis=1)
        scores.append(_miou(choice[features[1]], labels[1]))
    return max(scores)


def _colour_bins(images: np.ndarray) -> np.ndarray:
    fine = images.astype(np.int64) >> 3
    return (fine[..., 0] * 32 + fine[..., 1]) * 32 + fine[..., 2]


def test_no_class_is_told_by_colour(drawn):
    images = [np.stack([one.image for one in part]) for part in drawn]
    labels = [np.stack([one.label for one in part]).astype(np.int64) for part in drawn]
    colour = _best_bayes_miou([_colour_bins(part) for part in images], 32**3, labels)
    assert colour < 0.2, colour
    painted = [np.array([[40 * k, 255 - 30 * k, 9 * k] for k in range(K)], np.uint8)[label] for label in labels]
    assert _best_bayes_miou([_colour_bins(part) for part in painted], 32**3, labels) > 0.99  # it would find one


def test_the_set_reads_as_any_dataset_does(root):
    val = data.build("shapes", split="val", root=root)
    assert (val.num_classes, val.class_names, val.ignore_label) == (K, scene.CLASS_NAMES, 255)
    assert val.palette.shape == (K, 3) and len(val) == shapes.SCENES["val"]
    assert len(data.build("shapes", split="train", root=root)) == shapes.SCENES["train"]
    assert len(data.build("shapes", split="train[:25%]", root=root)) == shapes.SCENES["train"] // 4
    example = pickle.loads(pickle.dumps(val))[5]
    ident = val.describe(5).split("val_")[1][:5]
    expected = scene.draw((*map(int, shapes.VERSION.split(".")), 1, int(ident)))
    np.testing.assert_array_equal(example["image"], expected.image)
    np.testing.assert_array_equal(example["label"], expected.label)
    with pytest.raises(InputError, match="no split 'validation'.*train.*val"):
        data.build("shapes", split="validation", root=root)


def test_instances_are_stored_beside_the_label(root):
    source = tfds.builder_from_directory(f"{root}/shapes/{shapes.VERSION}").as_data_source("test")
    for i in range(5):
        example = source[i]
        label, instances = example["segmentation_mask"][..., 0], example["instances"]
        again = np.zeros_like(label)
        for mask, kind, box in zip(instances["mask"], instances["class"], instances["bbox"], strict=True):
            again[mask[..., 0] == 1] = kind
            rows, columns = np.flatnonzero(mask.any((1, 2))), np.flatnonzero(mask.any((0, 2)))
            edges = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(np.asarray(box) * 128, edges, atol=1e-4)
        np.testing.assert_array_equal(again, label)


def test_the_set_of_instances_is_the_scenes(root):
    """Masks, boxes and classes of the drawings; painted in order they are the semantic label."""
    val = pickle.loads(pickle.dumps(data.build("shapes", split="val[:20%]", root=root, instances=True)))
    semantic = data.build("shapes", split="val[:20%]", root=root)
    assert val.instances and (val.num_classes, val.class_names) == (K - 1, scene.CLASS_NAMES[1:])
    assert val.category_ids.tolist() == list(range(1, K)) and len(val) == len(semantic)
    np.testing.assert_array_equal(val.palette, semantic.palette[1:])
    for i in (0, 7, len(val) - 1):
        read, ident = val[i], val.describe(i).split("val_")[1][:5]
        drawn = scene.draw((*map(int, shapes.VERSION.split(".")), 1, int(ident)))
        np.testing.assert_array_equal(read["image"], drawn.image)
        np.testing.assert_array_equal(val.read_image(i), drawn.image)
        np.testing.assert_array_equal(read["classes"], drawn.classes - 1)
        np.testing.assert_array_equal([rle.decode(mask) for mask in read["masks"]], drawn.masks)
        np.testing.assert_array_equal(read["area"], drawn.masks.sum((1, 2)))
        boxes = rle.to_bbox(read["masks"])
        np.testing.assert_array_equal(read["boxes"], np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        assert not read["crowd"].any() and read["image_id"] == i and val.image_size(i) == read["image"].shape[:2]
        types = {key: read[key].dtype.name for key in ("boxes", "classes", "crowd", "area")}
        assert types == {"boxes": "float32", "classes": "int32", "crowd": "bool", "area": "float32"}
    truth = val.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(range(len(val)))
    for i in (0, 7):
        mine, read = [a for a in truth["annotations"] if a["image_id"] == i], val[i]
        np.testing.assert_array_equal([a["category_id"] for a in mine], read["classes"] + 1)
        np.testing.assert_array_equal([a["bbox"][2] for a in mine], read["boxes"][:, 2] - read["boxes"][:, 0])
    assert len({a["id"] for a in truth["annotations"]}) == len(truth["annotations"])
    batches = instances.train_batches(val, size=(128, 128), max_instances=6, batch_size=4, seed=0)
    with batches:
        batch = next(batches)
    assert batch["masks"].shape == (4, 6, 56, 56) and batch["boxes_valid"].any(1).all()


_SMALL = """
import sys
from segjax.data import shapes
shapes.SCENES = {"train": 40, "val": 4, "test": 4}
print(len(shapes.make(split="train", root=sys.argv[1])), "tensorflow" in sys.modules)
"""


def _start(root: pathlib.Path, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _SMALL, str(root)], stdout=subprocess.PIPE, text=True, env={**os.environ, **kwargs}
    )


def test_two_processes_at_once_share_one_result_and_leave_nothing_else(tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    running = [_start(tmp_path / "cache", TMPDIR=str(temporary)) for _ in range(2)]
    for process in running:
        assert process.communicate(timeout=300)[0].split() == ["40", "False"]
        assert process.returncode == 0
    assert [entry.name for entry in (tmp_path / "cache" / "shapes").iterdir()] == [shapes.VERSION]
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_no_set_and_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SCENES", {"train": 3, "val": 2, "test": 1})
    left = tmp_path / "shapes" / ".drawing-abc" / "shapes" / shapes.VERSION
    left.mkdir(parents=True)
    fresh = tmp_path / "shapes" / ".drawing-now"
    fresh.mkdir()
    os.utime(tmp_path / "shapes" / ".drawing-abc", (time.time() - 7200,) * 2)
    assert len(shapes.make(split="train", root=str(tmp_path))) == 3
    assert sorted(entry.name for entry in (tmp_path / "shapes").iterdir()) == [".drawing-now", shapes.VERSION]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file.*cannot be written.*SEGJAX_CACHE"):
        shapes.make(split="train", root=str(tmp_path / "file"))
