"""The border's weight against the formula, one pixel at a time; and its way from the folder into the batch."""

import numpy as np
import pytest
from PIL import Image

from segjax.data import border_weight, canvas, folder, pipeline
from segjax.data.border_weight import instances, weight_map


def by_pixel(label, cells, w0, sigma, ignore=255):
    """Equation 2 by a loop over pixels and cells."""
    counted = label != ignore
    counts = {c: np.sum(label == c) for c in np.unique(label[counted])}
    out = np.zeros(label.shape)
    for y, x in np.argwhere(counted):
        distances = sorted(
            np.sqrt(((np.argwhere(cells == cell) - (y, x)) ** 2).sum(axis=1)).min()
            for cell in np.unique(cells[cells > 0])
        )
        border = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2)) if len(distances) > 1 else 0
        out[y, x] = counted.sum() / (len(counts) * counts[label[y, x]]) + border
    return out


def squares(rng, size=(40, 50), count=6):
    """Numbered squares, some of them touching."""
    cells = np.zeros(size, np.int32)
    for cell in range(1, count + 1):
        y, x = rng.integers(0, np.array(size) - 8)
        cells[y : y + 8, x : x + 8] = 7 * cell  # numbers need not follow one another
    return cells


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("w0", "sigma"), [(10, 5), (10, 1), (3, 20), (0, 5)])
def test_weights_are_the_equation(seed, w0, sigma):
    rng = np.random.default_rng(seed)
    cells = squares(rng)
    label = (cells > 0).astype(np.uint8)
    label[:3, rng.integers(50) :] = 255
    found = weight_map(label, cells, w0=w0, sigma=sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_pixel(label, cells, w0, sigma), atol=1e-6, rtol=1e-6)


def test_the_gap_between_two_cells_weighs_most():
    label = np.ones((20, 41), np.uint8)
    label[:, 20] = label[:2] = label[-2:] = 0
    weight = weight_map(label)
    assert weight[10, 20] == pytest.approx(10 * np.exp(-4 / 50) + label.size / (2 * np.sum(label == 0)), rel=1e-6)
    assert weight[10, 20] == weight.max() > weight[0, 5]
    assert border_weight.W0 == 10 and border_weight.SIGMA == 5


def test_classes_are_balanced():
    """Without a border every class has the same sum, and the mean is 1."""
    label = np.random.default_rng(0).choice(4, p=[0.7, 0.2, 0.09, 0.01], size=(60, 60))
    label[:, :4] = 255
    weight = weight_map(label, np.zeros_like(label))
    assert weight[label != 255].mean() == pytest.approx(1, rel=1e-5) and not weight[label == 255].any()
    sums = [weight[label == c].sum() for c in range(4)]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


def test_instances_are_components_of_one_class():
    label = np.array([[1, 1, 0, 2], [0, 0, 1, 2], [255, 1, 1, 1], [2, 2, 0, 0]])
    found = instances(label)
    assert found.max() == 4 and ((found > 0) == np.isin(label, (1, 2))).all()
    assert len({found[0, 0], found[2, 1], found[0, 3], found[3, 0]}) == 4 and found[1, 2] == found[2, 3]  # by edges
    assert instances(label, background=2).max() == 5  # three of class 0, and two of class 1


def test_labels_without_two_cells():
    for label in (np.zeros((5, 6), int), np.ones((5, 6), int)):
        np.testing.assert_array_equal(weight_map(label), 1)
    np.testing.assert_array_equal(weight_map(np.full((5, 6), 255)), 0)


@pytest.mark.parametrize("options", [{"w0": -1}, {"sigma": 0}, {"cells": np.zeros((3, 3), int)}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match="expected"):
        weight_map(np.zeros((4, 4), int), **options)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train", "trainannot"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"train/{i}.png")
        Image.fromarray((squares(rng) > 0).astype(np.uint8)).save(tmp_path / f"trainannot/{i}.png")
    (tmp_path / "classes.json").write_text('{"classes": ["border", "cell"], "ignore_label": 255}')
    return tmp_path


@pytest.mark.parametrize(("fit", "size"), [("stretch", (40, 50)), ("stretch", (32, 36)), ("pad", (64, 64))])
def test_training_batches_carry_the_weight(root, fit, size):
    dataset = folder.make(split="train", root=str(root), border_weight=True)
    with pipeline.train_batches(dataset, size=size, fit=fit, batch_size=3, seed=0, workers=0, cache=True) as batches:
        batch, other = next(batches), next(batches)
    assert batch["weight"].shape == batch["label"].shape and batch["weight"].dtype == np.float32
    for label, weight in zip(batch["label"], batch["weight"], strict=True):
        assert not weight[label == 255].any() and weight[label != 255].min() > 0.1 and weight.max() > 3
    native = {int(weight_map(dataset[i]["label"]).sum()) for i in range(3)}
    if size == (40, 50):
        assert {int(weight.sum()) for weight in other["weight"]} == native
    with pipeline.eval_batches(dataset, size=size, fit=fit, batch_size=3, workers=0) as batches:
        assert "weight" not in next(batches)
    plain = folder.make(split="train", root=str(root))
    with pipeline.train_batches(plain, size=size, fit=fit, batch_size=3, seed=0, workers=0) as batches:
        assert "weight" not in next(batches)


def test_a_window_of_the_weight_is_that_of_the_label(root):
    """The whole picture's distances: a cell beyond the window counts."""
    dataset = folder.make(split="train", root=str(root), border_weight=True)
    with pipeline.train_batches(dataset, size=(16, 20), fit="crop", batch_size=3, seed=0, workers=0) as batches:
        batch = next(batches)
    whole = {i: (dataset[i]["image"], weight_map(dataset[i]["label"])) for i in range(3)}
    for image, weight in zip(batch["image"], batch["weight"], strict=True):
        views = {i: np.lib.stride_tricks.sliding_window_view(w, (16, 20)) for i, (_, w) in whole.items()}
        at = [(i, *place) for i, view in views.items() for place in np.argwhere((view == weight).all(axis=(2, 3)))]
        assert any((whole[i][0][y : y + 16, x : x + 20] == image).all() for i, y, x in at)


def test_cells_are_told_apart_before_the_label_shrinks(root, tmp_path):
    """A gap of one pixel that no pixel of the canvas shows still parts two cells."""
    label = np.ones((40, 50), np.uint8)
    label[:, 26] = 0
    assert not (canvas.fit_label(label, (20, 25), "stretch", 255) == 0).any()
    for i in range(3):
        Image.fromarray(label).save(root / f"trainannot/{i}.png")
    dataset = folder.make(split="train", root=str(root), border_weight=True)
    with pipeline.train_batches(dataset, size=(20, 25), batch_size=1, seed=0, workers=0) as batches:
        weight = next(batches)["weight"][0]
    assert weight[0, 12] > 9 and weight[0, 12] > weight[0, 0]
