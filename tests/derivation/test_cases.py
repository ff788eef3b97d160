"""Geometries: sizes, messages with the nearest legal value, and what the grid covers."""

import pytest

from segjax.derivation.cases import GRID, case


@pytest.mark.parametrize(
    ("arguments", "options", "output", "output_padding"),
    [
        (((4, 4), 3), {}, (2, 2), (0, 0)),
        (((6, 7), 3), {"stride": 2, "padding": 1}, (3, 4), (1, 0)),
        (((9,), 2), {"stride": 3}, (3,), (1,)),
        (((10,), 3), {"stride": 2, "padding": ((2, 1),), "dilation": 2}, (5,), (0,)),
        (((4, 4), 3), {"padding": 2}, (6, 6), (0, 0)),
        (((7, 5), (3, 2)), {"padding": "same"}, (7, 5), (0, 0)),
    ],
)
def test_sizes(arguments, options, output, output_padding):
    made = case(*arguments, **options)
    assert made.output == output and made.output_padding == output_padding
    for n, m, k, s, d, pads, extra in zip(
        made.size, output, made.window, made.stride, made.dilation, made.pads, output_padding, strict=True
    ):
        assert n == (m - 1) * s - sum(pads) + d * (k - 1) + 1 + extra


def test_channels_are_one_per_group_by_default():
    assert case((4,), 1, groups=3).kernel_shape == (1, 1, 3)
    assert case((4,), 1, channels=2, features=5).kernel_shape == (1, 2, 5)
    assert case((4, 5), 2, groups=2, channels=4, features=6).kernel_shape == (2, 2, 2, 6)


@pytest.mark.parametrize(
    ("size", "window", "options", "words"),
    [
        ((4, 4), 5, {}, ["kernel 5", "input 4", "at most 4", "at least 5"]),
        ((4,), 3, {"dilation": 3}, ["spans 7", "at most 2", "at least 7"]),
        ((4,), 3, {"groups": 2, "channels": 5}, ["channels=5", "groups=2", "4 or 6"]),
        ((4,), 3, {"groups": 4, "channels": 4, "features": 2}, ["features=2", "groups=4", "nearest: 4"]),
        ((4,), 3, {"groups": 0}, ["groups=0", "1 or more"]),
        ((4,), 3, {"stride": 0}, ["stride", "0", ">= 1"]),
        ((4,), 3, {"padding": -1}, ["padding", "-1", ">= 0"]),
    ],
)
def test_errors_hold_the_numbers_and_the_nearest_choice(size, window, options, words):
    with pytest.raises(ValueError) as raised:
        case(size, window, **options)
    for word in words:
        assert word in str(raised.value)


def test_the_grid_covers_what_it_should():
    assert 30 <= len(GRID) <= 40 and len(set(GRID)) == len(GRID)
    for rank in (1, 2):
        some = [geometry for geometry in GRID if geometry.rank == rank]
        assert any(max(geometry.stride) > 1 for geometry in some)
        assert any(low != high for geometry in some for low, high in geometry.pads)
        assert any(max(geometry.dilation) > 1 and max(geometry.stride) > 1 for geometry in some)
        assert any(1 < geometry.groups < geometry.channels for geometry in some)
        assert any(1 < geometry.groups == geometry.channels for geometry in some)
        assert any(geometry.window[0] % 2 == 0 for geometry in some)
        assert any(max(geometry.output_padding) > 0 for geometry in some)
        assert any(k < s for geometry in some for k, s in zip(geometry.window, geometry.stride, strict=True))
    assert case((4, 4), 3) in GRID


def test_labels_tell_geometries_apart():
    assert len({geometry.label for geometry in GRID}) == len(GRID)
    assert case((6, 8), 3, stride=2, padding=1, channels=2, features=3).label == "6x8 k3 s2 p1 2>3"
    assert max(len(geometry.label) for geometry in GRID) < 34
