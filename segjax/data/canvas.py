"""One size for every picture: how an image and its label come onto the canvas that a batch needs.

| fit | image | label | canvas beyond the picture |
|---|---|---|---|
| stretch | resized to the canvas, bilinear with antialiasing | the nearest pixel | none |
| pad | resized to fit inside, its aspect kept | the nearest pixel | right and bottom |
| crop | as it is | as it is | right and bottom where it is smaller; a window where it is larger |

The image beyond the picture is `FILL`, the label there is the ignore label.
"""

import numpy as np
from PIL import Image

from segjax.types import HostArray

FITS = ("stretch", "pad", "crop")
FILL = (124, 116, 104)  # R, G, B: the mean of ImageNet, close to 0 once normalised


def content_size(image_size: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[int, int]:
    """Returns (rows, columns) that a picture of `image_size` occupies on a canvas of `size` (crop: may exceed it).

    Raises:
      ValueError: unknown `fit`.
    """
    if fit == "stretch":
        return size
    if fit == "crop":
        return image_size
    if fit == "pad":
        scale = min(size[0] / image_size[0], size[1] / image_size[1])
        return tuple(min(max(round(n * scale), 1), limit) for n, limit in zip(image_size, size, strict=True))
    raise ValueError(f"fit={fit!r}: expected one of {', '.join(FITS)}")


def fit_image(image: HostArray, size: tuple[int, int], fit: str) -> HostArray:
    """Brings u8[h, w, 3] onto the canvas.

    Args:
      image: u8[h, w, 3].
      size: (H, W) of the canvas.
      fit: "stretch", "pad" or "crop"; see the module.

    Returns:
      u8[H, W, 3]; under "crop" u8[max(h, H), max(w, W), 3].
    """
    rows, columns = content_size(image.shape[:2], size, fit)
    if image.shape[:2] != (rows, columns):
        image = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    return _pad(image, size, FILL)


def fit_label(label: HostArray, size: tuple[int, int], fit: str, ignore_label: int) -> HostArray:
    """Brings integers [h, w] onto the canvas, as `fit_image` its image: row y shows source row floor((y + 1/2) h / H).

    Returns:
      The same dtype (i32 where `ignore_label` needs it) [H, W]; under "crop" [max(h, H), max(w, W)].
    """
    rows, columns = content_size(label.shape[:2], size, fit)
    if label.shape[:2] != (rows, columns):
        y, x = nearest(rows, label.shape[0]), nearest(columns, label.shape[1])
        label = label[y[:, None], x[None, :]]
    if (rows < size[0] or columns < size[1]) and not np.can_cast(np.min_scalar_type(ignore_label), label.dtype):
        label = label.astype(np.int32)
    return _pad(label, size, ignore_label)


def nearest(out_size: int, in_size: int) -> HostArray:
    """Returns i64[out_size]: the source of each target index, by pixel centres (PIL's NEAREST)."""
    return ((2 * np.arange(out_size) + 1) * in_size) // (2 * out_size)


def _pad(array: HostArray, size: tuple[int, int], fill: int | tuple[int, int, int]) -> HostArray:
    rows, columns = array.shape[:2]
    if rows >= size[0] and columns >= size[1]:
        return array
    out = np.empty((max(rows, size[0]), max(columns, size[1]), *array.shape[2:]), array.dtype)
    out[...] = fill
    out[:rows, :columns] = array
    return out
