"""Pictures hold what they say: every tap's colour, stamps that add up to the transpose, pages that find their files."""

import re

import numpy as np
import pytest
from PIL import Image

from segjax.derivation import colours, draw, layout, matrix, page, pictures, reference, stamping, text
from segjax.derivation.cases import GRID, case

TEXTBOOK = case((4, 4), 3)


def count(picture: Image.Image, colour) -> int:
    return int((np.asarray(picture) == np.uint8(colour)).all(-1).sum())


@pytest.mark.parametrize("window", [(3,), (8,), (3, 3), (4, 2), (8, 8), (1, 1)])
def test_every_tap_has_a_colour_of_its_own(window):
    found = colours.tap_colours(window)
    assert found.shape == (*window, 3) and found.dtype == np.uint8
    assert len({tuple(c) for c in found.reshape(-1, 3).tolist()}) == np.prod(window)


def test_ramps_run_from_end_to_end():
    assert colours.ramp(np.array([0.0, 5.0]), 0, 5).tolist() == [[255, 255, 255], [8, 48, 107]]
    assert colours.ramp(np.zeros(1), 0, 0).tolist() == [[255, 255, 255]]
    assert colours.grey(np.array([0, 50, 100]), 0, 100)[:, 0].tolist() == [0, 128, 255]


def test_cells_are_painted_where_they_belong():
    painted = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [200, 210, 220]]], np.uint8)
    plain = np.asarray(draw.cells([["", ""]] * 2, painted, 40))
    np.testing.assert_array_equal(plain[[20, 20, 60, 60], [20, 60, 20, 60]], painted.reshape(-1, 3))
    marked = draw.cells([["", ""]] * 2, painted, 40, marked=np.array([[True, True], [False, False]]))
    frame = (np.asarray(marked) == np.uint8((214, 39, 40))).all(-1)
    assert frame[20, 2] and frame[1, 40] and frame[40, 40]  # around both cells
    assert not frame[20, 40] and not frame[60].any()  # not between them


def test_words_that_do_not_fit_are_left_out():
    white = np.full((1, 1, 3), 255, np.uint8)
    assert np.asarray(draw.cells([["123456789"]], white, 24)).min() >= min(layout.RULE)
    assert np.asarray(draw.cells([["1"]], white, 24)).min() < 100


def test_text_is_wrapped_to_its_width():
    words = "a kernel stamps the plane " * 10
    set_ = layout.paragraph(words, 300)
    assert set_.width <= 302 and set_.height > 4 * layout.TEXT


def test_the_matrix_and_its_transpose_hold_each_tap_as_often():
    picture = matrix.matrices(TEXTBOOK)
    for colour in colours.tap_colours((3, 3)).reshape(-1, 3):
        # 4 outputs x 2 matrices and once in the kernel; less the outlines and the number.
        assert 9 * 43**2 < count(picture, colour) < 9 * 56**2


@pytest.mark.parametrize("geometry", [GRID[7], GRID[14], case((24, 24), 5)], ids=lambda geometry: geometry.label)
def test_matrices_of_other_geometries_are_drawn(geometry):
    picture = matrix.matrices(geometry)
    assert 400 < picture.width < 2700 and 200 < picture.height < 2700
    assert count(picture, colours.tap_colours(geometry.window).reshape(-1, 3)[-1]) > 10


@pytest.mark.parametrize("geometry", GRID, ids=lambda geometry: geometry.label)
def test_stamps_add_up_to_the_transpose(geometry):
    small = stamping.fewer_stamps(geometry)
    assert small.window == geometry.window and small.stride == geometry.stride and small.pads == geometry.pads
    most = 6 if geometry.rank == 1 else 3
    for m, n, s in zip(small.output, small.size, small.stride, strict=True):
        assert m <= most or n <= s  # an input that cannot be a stride smaller
    values = np.random.default_rng(0).normal(size=small.output)
    kernel = text.tap_numbers(small)[..., 0, 0].astype(float)
    total = np.sum(stamping.stamps(small, values, kernel), axis=0)
    inside = total[tuple(slice(low, low + n) for (low, _), n in zip(small.pads, small.size, strict=True))]
    wanted = reference.transpose(small, values[None, ..., None], kernel[..., None, None])
    np.testing.assert_allclose(inside, wanted[0, ..., 0], atol=1e-10)


@pytest.mark.parametrize("geometry", [TEXTBOOK, GRID[5], GRID[24], GRID[26]], ids=lambda geometry: geometry.label)
def test_stamping_is_drawn(geometry):
    picture = stamping.stamping(geometry)
    assert picture.width < 2400 and count(picture, (214, 39, 40)) > 1000


def test_the_checkerboard_is_drawn():
    picture = pictures.checkerboard(case((9,), 3, stride=2))
    dark = colours.ramp(np.array([4.0]), 0, 1.35 * 4)[0]
    # Four taps reach 16 pixels of the 3x3 kernel's plane and 64 of the 4x4 kernel's.
    assert 80 * 43**2 < count(picture, dark) < 82 * 60**2


def test_the_upsamplings_are_drawn():
    picture = pictures.upsamplings()
    assert 1400 < picture.width < 2300 and count(picture, (0, 0, 0)) > (48 + 48) * 46**2  # what two unpoolings leave


LINES = ["segjax.verify", "\n== The geometry ==\n\nM <is>", "\n== Errors ==\n\nrow", "\n== Result ==\n\nPASS"]


def test_the_page_holds_its_text_and_finds_its_pictures(tmp_path):
    path = page.write(tmp_path, TEXTBOOK, LINES, True)
    written = path.read_text()
    files = re.findall(r'src="([^"]+)"', written)
    assert sorted(files) == ["checkerboard.png", "matrix.png", "stamping.png", "upsampling.png"]
    for file in files:
        width, height = Image.open(tmp_path / file).size
        assert f'src="{file}" width="{width // 2}" height="{height // 2}"' in written
    assert "M &lt;is&gt;" in written and ">PASS." in written and "http" not in written
    order = [written.index(word) for word in ("The geometry", "matrix.png", "checkerboard.png", "Errors", "Result")]
    assert order == sorted(order)


def test_the_page_says_what_is_too_large_to_draw(tmp_path):
    written = page.write(tmp_path, case((1, 1), 3, padding=30), LINES, False).read_text()
    assert "3,481 x 1: too large to draw" in written and "3,481 stamps: too many to draw" in written
    assert ">FAIL." in written and not (tmp_path / "matrix.png").exists()
