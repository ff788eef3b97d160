"""Pictures: exact colours where colours are promised, sizes that fit, text that is there."""

import numpy as np
import pytest
from PIL import Image

from segjax.data.metadata import Classes
from segjax.inference import visualize

CLASSES = Classes(("sky", "road", "a rather long class name"), np.array([[70, 130, 180], [128, 64, 128], [0, 200, 0]]))


def scene(rows=60, columns=80):
    label = np.zeros((rows, columns), np.uint8)
    label[rows // 2 :] = 1
    label[:5, :5] = 255
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    return image, label


def test_colourize_shows_each_class_in_its_colour_and_the_rest_hatched():
    _, label = scene()
    colours = visualize.colourize(label, CLASSES.palette)
    known = label < 3
    assert np.array_equal(colours[known], CLASSES.palette[label[known]])
    assert colours[~known].max() < 100 and len(np.unique(colours[~known], axis=0)) == 2
    assert np.array_equal(visualize.colourize(np.full((4, 4), -1), CLASSES.palette)[:4, :4].shape, (4, 4, 3))


def test_overlay_mixes_and_marks_borders():
    image, label = scene()
    grey = np.full_like(image, 100)
    mixed = visualize.overlay(grey, label, CLASSES.palette, alpha=0.5)
    assert np.abs(mixed[10, 40].astype(int) - (100 + CLASSES.palette[0].astype(int)) // 2).max() <= 1
    assert mixed[29, 40].min() > 170  # the last row of the sky: a bright line
    assert np.array_equal(visualize.overlay(grey, np.ones_like(label), CLASSES.palette, alpha=0), grey)
    with pytest.raises(ValueError, match="same height and width"):
        visualize.overlay(image, label[1:], CLASSES.palette)
    with pytest.raises(ValueError, match="alpha=2"):
        visualize.overlay(image, label, CLASSES.palette, alpha=2)


def test_error_map():
    label = np.array([[0, 1, 255, 2]])
    found = visualize.error_map(np.array([[0, 2, 2, 2]]), label, 3)[0]
    assert tuple(found[0]) == tuple(found[3]) == visualize.RIGHT and tuple(found[1]) == visualize.WRONG
    assert found[2].max() < 100


@pytest.mark.parametrize("width", [60, 240, 480, 3000])
def test_legend_holds_every_colour_at_any_width(width):
    picture = visualize.legend(CLASSES, width=width)
    assert picture.shape[1] == width
    for colour in CLASSES.palette:
        assert (picture == colour).all(axis=-1).sum() > 50
    assert (picture.max(axis=-1) < 90).sum() > 50  # the text


def test_legend_of_a_label_lists_its_classes_alone():
    _, label = scene()
    picture = visualize.legend(CLASSES, width=400, label=label)
    present = [(picture == colour).all(axis=-1).any() for colour in CLASSES.palette]
    assert present == [True, True, False]


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (500, 7), (60, 80)])
def test_with_legend_keeps_the_picture_in_whole_pixels(size):
    image, label = scene(*size)
    page = visualize.with_legend(image, label, CLASSES)
    factor = page.shape[1] // size[1]
    assert page.shape[1] == factor * size[1] >= 320
    assert np.array_equal(page[: factor * size[0] : factor, ::factor], image)
    assert page.shape[0] > factor * size[0]


def test_sheet_places_every_cell():
    shapes = [(30, 40), (80, 20), (200, 300), (5, 5), (64, 64)]
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    cells = [
        visualize.Cell(np.full((*shape, 3), colour, np.uint8), "x" * 100)
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    page = visualize.sheet(cells, columns=2, classes=CLASSES, title="title", headers=("a", "b"), cell_width=200)
    assert page.shape[1] == 2 * 200 + 10 + 40
    for (rows, columns), colour in zip(shapes, colours, strict=True):
        ys, xs = np.nonzero((page == colour).all(axis=-1))
        assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)  # a full rectangle: nothing is drawn over it
        assert abs((np.ptp(ys) + 1) / (np.ptp(xs) + 1) - rows / columns) < 0.1 * max(1, rows / columns)
    with pytest.raises(ValueError, match="0 cells"):
        visualize.sheet([], columns=2)
    with pytest.raises(ValueError, match="headers"):
        visualize.sheet(cells, columns=2, headers=("a",))


def test_pictures_of_an_evaluation(tmp_path):
    image, label = scene()
    pictures = [
        {"image": image[::2, ::2], "label": label.astype(np.int32), "prediction": np.ones_like(label), "index": i}
        for i in range(2)
    ]
    pages = visualize.prediction_pictures(pictures, CLASSES)
    assert len(pages) == 2 and all((page == visualize.WRONG).all(axis=-1).any() for page in pages)
    page = pages[0]
    both = visualize.comparison(pictures, CLASSES, title="two")
    assert both.shape[0] > pages[0].shape[0]
    visualize.save(tmp_path / "page.png", page)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "page.png")), page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]


def test_comparison_of_a_label_without_a_counted_pixel():
    image, label = scene()
    picture = {"image": image, "label": np.full_like(label, 255), "prediction": label, "index": 0}
    assert visualize.comparison([picture], CLASSES).shape[2] == 3
