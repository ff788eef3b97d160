"""The portrait effect: what a mask selects stays sharp, the rest goes out of focus as behind a lens.

Of an image I (in linear light), a disc D and the mask's background weight b, the background is

    (D * (b I)) / (D * b)          * convolution

a normalised convolution (Knutsson and Westin 1993): nothing under the mask is smeared into its surroundings, and the
borders of the image are no edge either. The convolutions are exact, by FFT: their cost does not grow with the disc, and
the rim of a highlight stays the sharp one that a lens gives and Gaussians or smaller copies of the image lose.
"""

import functools
from collections.abc import Callable, Collection, Sequence

import numpy as np
from scipy import fft, ndimage

from segjax.inference import mask_windows
from segjax.inference.instances import Detections
from segjax.types import HostArray, InputError

PEOPLE = ("person", "people", "pedestrian", "human")  # the classes kept sharp unless others are named
_THREADS = 4
_NOTHING = 1e-3  # of the disc: below this share of background under it, there is none to speak of


def portrait(image: HostArray, mask: HostArray, *, blur: float = 0.02, feather: float = 0.0015) -> HostArray:
    """Keeps what the mask selects and blurs the rest by a disc.

    A picture of 4000x3000 takes about 4 s on two cores, whatever the disc.

    Args:
        image: u8[H, W, 3], sRGB.
        mask: bool[H, W], or f32[H, W] in [0, 1]: what stays sharp. Nothing selected: all of the image is blurred.
        blur: radius of the disc as a share of the shorter side; 0 returns the image.
        feather: standard deviation of the Gaussian that softens the edge, as a share of the shorter side.

    Returns:
        u8[H, W, 3]. Pixels that the mask selects (above 1/2) have no influence on those it does not reach.

    Raises:
        ValueError: sizes differ, or blur or feather is negative.
    """
    if image.shape[:2] != mask.shape or image.dtype != np.uint8:
        raise ValueError(f"mask {mask.shape} on an image {image.dtype}{image.shape}: expected u8 of the same size")
    if not (blur >= 0 and feather >= 0):
        raise ValueError(f"blur={blur}, feather={feather}: expected at least 0")
    radius, sigma = (share * min(mask.shape) for share in (blur, feather))
    if radius == 0 or mask.size == 0:
        return image.copy()
    soft = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest")
    # Outside the mask alone, rising from its edge: a mask is seldom exact, and its rim must not colour the background.
    background = np.where(mask > 0.5, np.float32(0), np.clip(1 - 2 * soft, 0, 1))
    convolve = _convolution(disc(radius), mask.shape)
    reached = convolve(background)
    share = np.where(reached > _NOTHING, 1 - soft, 0)  # of the blurred image: none where there is no background near
    reached = np.maximum(reached, _NOTHING)
    out = np.empty_like(image)
    for channel in range(image.shape[2]):
        blurred = convolve(background * _TO_LINEAR[image[..., channel]]) / reached
        mixed = image[..., channel] + share * (_from_linear(blurred) - image[..., channel])
        out[..., channel] = np.clip(np.rint(mixed), 0, 255)
    return out


def disc(radius: float) -> HostArray:
    """f32[2n + 1, 2n + 1] with sum 1: a disc whose rim pixels have their share of it; radius in pixels."""
    n = int(np.ceil(radius))
    distance = np.hypot(*np.mgrid[-n : n + 1, -n : n + 1])
    kernel = np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def class_ids(names: Sequence[str], wanted: Sequence[str] = ()) -> tuple[int, ...]:
    """The ids of the classes to keep sharp.

    Args:
        names: of class 0, 1, ...
        wanted: names, upper and lower case alike; none: those of people.

    Returns:
        ids, in the order of `names`.

    Raises:
        InputError: a name that is not among them, or none wanted and none of them people.
    """
    known = [name.casefold() for name in names]
    if unknown := [name for name in wanted if name.casefold() not in known]:
        raise InputError(f"--effect_class={unknown[0]}: expected one of {', '.join(names)}")
    chosen = {name.casefold() for name in wanted or PEOPLE}
    if ids := tuple(i for i, name in enumerate(known) if name in chosen):
        return ids
    raise InputError(f"no class of people: name the class to keep sharp by --effect_class=, one of {', '.join(names)}")


def semantic_mask(label: HostArray, classes: Collection[int]) -> HostArray:
    """bool[H, W]: the pixels of these classes of a label map, integers [H, W]."""
    return np.isin(label, list(classes))


def instance_mask(detections: Detections, classes: Collection[int], *, threshold: float = 0.5) -> HostArray:
    """bool[H, W]: the union of the objects of these classes whose score is at least the threshold."""
    union = np.zeros(detections.image_size, bool)
    chosen = np.isin(detections.classes, list(classes)) & (detections.scores >= threshold)
    for i in np.flatnonzero(chosen):
        (y, x), window = mask_windows.decode(detections.masks[i])
        union[y : y + window.shape[0], x : x + window.shape[1]] |= window
    return union


def _convolution(kernel: HostArray, shape: tuple[int, int]) -> Callable[[HostArray], HostArray]:
    """The function that convolves f32[H, W] >= 0 of this shape with an odd kernel, zeros around."""
    size = tuple(fft.next_fast_len(n + k - 1, real=True) for n, k in zip(shape, kernel.shape, strict=True))
    transform = fft.rfft2(kernel, size, workers=_THREADS)
    y, x = (k // 2 for k in kernel.shape)

    def convolve(values: HostArray) -> HostArray:
        product = fft.rfft2(values, size, workers=_THREADS)
        product *= transform
        out = fft.irfft2(product, size, workers=_THREADS, overwrite_x=True)
        return np.maximum(out[y : y + shape[0], x : x + shape[1]], 0)  # the rounding of the transforms goes below

    return convolve


def _linear(x: HostArray) -> HostArray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


# sRGB (IEC 61966-2-1) to linear light and back; the way back by a table over the square root, fine enough for 8 bits.
_TO_LINEAR = _linear(np.arange(256) / 255).astype(np.float32)
_ROOTS = 8192


@functools.cache
def _root_table() -> HostArray:
    linear = (np.arange(_ROOTS + 1) / _ROOTS) ** 2
    low = 12.92 * linear
    return (255 * np.where(linear <= 0.0031308, low, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(np.float32)


def _from_linear(linear: HostArray) -> HostArray:
    """f32[H, W] of 0 to 255."""
    index = np.sqrt(np.minimum(linear, 1))
    index *= _ROOTS
    return _root_table()[np.rint(index, out=index).astype(np.int32)]
