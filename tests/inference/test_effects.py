"""The portrait effect: its definition, pixel by pixel, and that nothing sharp bleeds into what is blurred."""

import numpy as np
import pytest
from scipy import signal

from segjax import rle
from segjax.inference import effects
from segjax.inference.instances import Detections
from segjax.types import InputError


def scene(rows=60, columns=80):
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    mask = np.zeros((rows, columns), bool)
    mask[20:50, 30:55] = True
    return image, mask


def test_without_a_mask_it_is_a_disc_blur_in_linear_light():
    image, _ = scene()
    found = effects.portrait(image, np.zeros(image.shape[:2], bool), blur=0.06)
    x = image / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    n = 4  # the radius is 0.06 * 60 = 3.6
    y, x = np.mgrid[-n : n + 1, -n : n + 1]
    kernel = np.clip(3.6 + 0.5 - np.sqrt(y**2 + x**2), 0, 1)
    reached = signal.convolve2d(np.ones(image.shape[:2]), kernel, mode="same")
    blurred = np.stack([signal.convolve2d(linear[..., c], kernel, mode="same") / reached for c in range(3)], axis=-1)
    expected = 255 * np.where(blurred <= 0.0031308, 12.92 * blurred, 1.055 * blurred ** (1 / 2.4) - 0.055)
    assert np.abs(found - expected).max() < 0.6
    assert found.dtype == np.uint8


def test_what_is_sharp_has_no_influence_on_the_rest():
    image, mask = scene()
    other = image.copy()
    other[mask] = 255 - other[mask]
    first, second = (effects.portrait(picture, mask, blur=0.08, feather=0.01) for picture in (image, other))
    changed = (first != second).any(axis=-1)
    assert not changed[~mask].any() and changed[mask].mean() > 0.9


def test_the_inside_stays_and_a_flat_background_stays_flat():
    image, mask = scene()
    image[~mask] = (30, 60, 90)
    found = effects.portrait(image, mask, blur=0.1, feather=0.005)
    assert np.array_equal(found[25:45, 35:50], image[25:45, 35:50])
    outside = np.ones_like(mask)
    outside[15:55, 25:60] = False
    assert np.abs(found[outside].astype(int) - (30, 60, 90)).max() <= 1  # borders of the image are no edge


def test_the_edge_is_soft_and_a_soft_mask_will_do():
    image = np.zeros((80, 80, 3), np.uint8)
    mask = np.zeros((80, 80), np.float32)
    image[:, 40:], mask[:, 40:] = 255, 1
    found = effects.portrait(image, mask, blur=0.1, feather=0.03)[40, :, 0].astype(int)
    assert found[:30].max() == 0 and found[50:].min() == 255
    assert (np.diff(found) >= 0).all() and ((found > 20) & (found < 235)).sum() >= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (37, 53)])
def test_any_size_and_masks_of_everything(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    assert np.array_equal(effects.portrait(image, np.ones(size, bool), blur=0.1), image)
    assert effects.portrait(image, np.zeros(size, bool), blur=0.5).shape == image.shape
    copy = effects.portrait(image, np.zeros(size, bool), blur=0)
    assert np.array_equal(copy, image) and copy is not image


def test_what_is_refused():
    image, mask = scene()
    for wrong in ({"mask": mask[1:]}, {"image": image / 255}, {"blur": -1}, {"feather": float("nan")}):
        with pytest.raises(ValueError, match="expected"):
            effects.portrait(**{"image": image, "mask": mask, **wrong})


@pytest.mark.parametrize("radius", [0.4, 1.0, 5.3])
def test_disc(radius):
    kernel = effects.disc(radius)
    n = len(kernel) // 2
    assert kernel.shape == (2 * n + 1,) * 2 and n >= radius and abs(kernel.sum() - 1) < 1e-6
    assert np.array_equal(kernel, kernel.T) and np.array_equal(kernel, kernel[::-1])
    assert abs(1 / kernel[n, n] / (np.pi * radius**2) - 1) < 0.1 or radius < 1  # its area


def test_names_of_classes():
    names = ("sky", "Pedestrian", "car", "person")
    assert effects.class_ids(names) == (1, 3)
    assert effects.class_ids(names, ["CAR", "sky"]) == (0, 2)
    with pytest.raises(InputError, match="--effect_class=cat: expected one of sky, Pedestrian, car, person"):
        effects.class_ids(names, ["car", "cat"])
    with pytest.raises(InputError, match="no class of people"):
        effects.class_ids(("nucleus",))


def test_masks_of_both_kinds_of_model():
    label = np.array([[0, 1, 255], [2, 1, 0]], np.uint8)
    assert effects.semantic_mask(label, (1, 2)).tolist() == [[False, True, False], [True, True, False]]
    masks = np.zeros((4, 5, 6), bool)
    masks[0, 1:3, 1:3] = masks[1, 4, 5] = masks[2, 0, 0] = True  # the last one is empty
    found = Detections(
        (5, 6),
        np.zeros((4, 4), np.float32),
        np.float32([0.9, 0.5, 0.4, 0.8]),
        np.int32([0, 1, 0, 1]),
        [rle.encode(mask) for mask in masks],
    )
    assert np.array_equal(effects.instance_mask(found, (0, 1)), masks[0] | masks[1])
    assert np.array_equal(effects.instance_mask(found, (0,), threshold=0.1), masks[0] | masks[2])
    assert not effects.instance_mask(found, ()).any()
