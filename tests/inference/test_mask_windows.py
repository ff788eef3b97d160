"""Masks in windows: equal to the same work on whole images."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import ops, rle
from segjax.inference import mask_windows


def whole(window, size):
    out = np.zeros(size, bool)
    (y, x), inside = window
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out


@st.composite
def masks(draw):
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    density = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((rows, columns)) < density


@settings(deadline=None, max_examples=150)
@given(masks(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_encode_equals_that_of_the_whole_mask(inside, top, left, bottom, right):
    size = (top + inside.shape[0] + bottom, left + inside.shape[1] + right)
    window = ((top, left), inside)
    assert mask_windows.encode(window, size) == rle.encode(whole(window, size))


@settings(deadline=None, max_examples=150)
@given(masks())
def test_decode_gives_the_smallest_window(mask):
    window = mask_windows.decode(rle.encode(mask))
    assert np.array_equal(whole(window, mask.shape), mask)
    inside = window[1]
    if mask.any():
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    else:
        assert inside.size == 0


def test_decode_reads_uncompressed_runs_and_runs_of_no_length():
    mask = np.zeros((4, 5), bool)
    mask[1:, 2] = mask[:2, 3] = True
    plain = np.diff(np.r_[0, np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)), mask.size]).tolist()
    split = [plain[0], 1, 0, *[plain[1] - 1], *plain[2:]]
    for counts in (plain, split):
        window = mask_windows.decode({"size": [4, 5], "counts": counts})
        assert window[0] == (0, 2) and np.array_equal(whole(window, mask.shape), mask)


def boxes_of_all_kinds(rng, size):
    height, width = size
    corner = rng.uniform(-20, [width + 20, height + 20], (60, 2))
    random = np.concatenate([corner, corner + rng.exponential(25, (60, 2))], axis=1)
    special = [
        [0, 0, width, height], [-3.5, -2.25, width + 7, height + 1.5], [5, 6, 5.4, 6.3], [5.5, 6.5, 6.5, 7.5],
        [3, 4, 3, 9], [width, height, width + 4, height + 4], [-9, -9, -1, -1], [0.5, 0, 28.5, 28], [7, 7, 35, 35],
    ]  # fmt: skip
    return np.concatenate([random, special]).astype(np.float32)


@pytest.mark.parametrize("rule", mask_windows.PASTE_RULES)
@pytest.mark.parametrize("cells", [1, 5, 28])
def test_paste_equals_that_of_the_device(rule, cells):
    rng, size = np.random.default_rng(cells), (53, 71)
    boxes = boxes_of_all_kinds(rng, size)
    masks = rng.random((len(boxes), cells, cells), np.float32)
    masks[::3] = masks[::3] > 0.3
    values = np.asarray(ops.paste_masks(jnp.asarray(masks), jnp.asarray(boxes), size, rule=rule))
    found = np.stack([
        whole(mask_windows.paste(mask, box, size, rule=rule), size) for mask, box in zip(masks, boxes, strict=True)
    ])  # fmt: skip
    certain = np.abs(values - 0.5) > 1e-4
    assert np.array_equal(found[certain], (values >= 0.5)[certain]) and certain.mean() > 0.99 and found.sum() > 1000


def test_torchvisions_rule_by_hand():
    """A full 2x2 mask, [4, 8) x [2, 4), grows to 4x4 of zeros around it, by 2 about its centre: x 2..10, y 1..5."""
    (y, x), inside = mask_windows.paste(np.ones((2, 2), np.float32), np.float32([4, 2, 8, 4]), (20, 20))
    assert (y, x) == (1, 2) and inside.shape == (5, 9)
    down, across = ((np.arange(n) + 0.5) * 4 / n - 0.5 for n in (5, 9))
    inner = [np.interp(place, [0, 1, 2, 3], [0, 1, 1, 0]) for place in (down, across)]
    assert np.array_equal(inside, np.outer(*inner) >= 0.5)


def test_detectron2s_rule_by_hand():
    mask = np.array([[1, 0], [0.6, 1]], np.float32)
    window = mask_windows.paste(mask, np.float32([3, 5, 5, 7]), (20, 20), rule="detectron2")
    found = np.argwhere(whole(window, (20, 20)))
    assert found.tolist() == [[5, 3], [6, 3], [6, 4]]  # each cell is a pixel


@pytest.mark.parametrize("rule", mask_windows.PASTE_RULES)
def test_boxes_without_a_place(rule):
    mask = np.ones((28, 28), np.float32)
    for box in ([30, 30, 40, 40], [-9, -9, -5, -5], [np.nan, 0, 3, 3], [0, 0, np.inf, 5]):
        assert whole(mask_windows.paste(mask, np.float32(box), (20, 20), rule=rule), (20, 20)).sum() == 0
    with pytest.raises(ValueError, match="'nearest'"):
        mask_windows.paste(mask, np.zeros(4), (20, 20), rule="nearest")


def test_torchvisions_masks(golden_dir):
    info = json.loads((golden_dir / "dev/tv_maskrcnn_resnet50_fpn.json").read_text())
    stored, size = np.load(golden_dir / "dev/tv_maskrcnn_resnet50_fpn.npz"), tuple(info["image_size"])
    expected = np.unpackbits(stored["masks_binary"], axis=-1)[..., : size[1]].astype(bool)
    found = np.stack([
        whole(mask_windows.paste(mask, box, size), size)
        for mask, box in zip(stored["masks_28"], stored["boxes"][:20], strict=True)
    ])  # fmt: skip
    assert np.array_equal(found, expected.reshape(found.shape)) and expected.any()
