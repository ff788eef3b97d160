"""Central windows: what the model sees and what is scored are the same pixels."""

import numpy as np
import pytest

from segjax.inference.crop import crop_batch, crop_batches

SIZES = [(20, 30), (12, 7), (5, 26)]


def batch():
    """Three pictures on a canvas of 20x30 as they are, whose labels say where each pixel stands; one row is filler."""
    label = np.full((4, 64, 64), 255, np.int32)
    image = np.full((4, 20, 30, 3), 9, np.uint8)
    for row, (rows, columns) in enumerate(SIZES):
        label[row, :rows, :columns] = 100 * np.arange(rows)[:, None] + np.arange(columns)
        image[row, :rows, :columns, 0] = np.arange(rows)[:, None]
        image[row, :rows, :columns, 1] = np.arange(columns)
    sizes = np.array([*SIZES, (64, 64)], np.int32)
    content = np.minimum(sizes, (20, 30)).astype(np.int32)
    valid = np.array([True, True, True, False])
    return {"image": image, "label": label, "valid": valid, "native_size": sizes, "content_size": content}


def test_the_window_is_central_and_smaller_pictures_are_whole():
    found = crop_batch(batch(), (10, 8), 255)
    assert found["image"].shape == (4, 10, 8, 3) and found["label"].shape == (4, 10, 8)
    for row, ((rows, columns), (y, x)) in enumerate(zip(SIZES, [(5, 11), (1, 0), (0, 9)], strict=True)):
        inside = (min(rows, 10), min(columns, 8))
        assert found["native_size"][row].tolist() == found["content_size"][row].tolist() == list(inside)
        part = np.s_[row, : inside[0], : inside[1]]
        assert np.array_equal(
            found["label"][part], 100 * (y + np.arange(inside[0]))[:, None] + x + np.arange(inside[1])
        )
        seen = found["image"][part].astype(int)
        assert np.array_equal(100 * seen[..., 0] + seen[..., 1], found["label"][part])
        rest = np.ones((10, 8), bool)
        rest[: inside[0], : inside[1]] = False
        assert (found["label"][row][rest] == 255).all()


def test_a_window_larger_than_the_canvas_is_the_canvas():
    found = crop_batch(batch(), (100, 8), 255)
    assert found["image"].shape == (4, 20, 8, 3) and found["content_size"][0].tolist() == [20, 8]


def test_labels_of_another_grid_are_refused_or_brought_to_the_canvas():
    stretched = {**batch(), "content_size": np.full((4, 2), (20, 30), np.int32)}
    with pytest.raises(ValueError, match="another grid"):
        next(crop_batches([stretched], (10, 8), ignore_label=255, resolution="native"))
    found = next(crop_batches([stretched], (10, 8), ignore_label=255, resolution="input"))
    assert found["native_size"][:3].tolist() == [[10, 8]] * 3
    assert found["label"][1, 0, 0] == 100 * 3 + 2  # row 5 of 20 shows row 3 of 12, column 11 of 30 column 2 of 7
