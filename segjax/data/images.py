"""Image and label files as arrays: every picture becomes u8[H, W, 3], every label file its pixel values.

Pictures: grey, palette, RGBA (alpha is dropped: the colours count as stored), CMYK and YCbCr become RGB; 16-bit grey is
taken to span 0 .. 65535. The EXIF orientation is applied, as every viewer does: a label drawn on the picture as seen
then fits. Label files give what is stored: palette files indices, grey files (1, 8, 16 or 32 bit) values, RGB files
colours.
"""

import pathlib
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

from segjax.types import HostArray, InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")

_ORIENTATION = 0x0112  # the EXIF tag
_STACKS = ("TIFF", "GIF", "WEBP", "PNG")  # formats whose further frames are further pictures (not so the MPO of phones)
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
# What Pillow's decoders raise for damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, MemoryError)


def read_image(path: str | pathlib.Path) -> HostArray:
    """Reads any picture as u8[H, W, 3] RGB, turned by its EXIF orientation.

    Raises:
      InputError: missing, truncated, not a picture, too large, several frames, or floating point; names the file.
    """
    image = _load(path)
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode in _GREY16:
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        kind = {"I": "32-bit integer", "F": "floating-point"}[image.mode]
        raise InputError(f"{path}: a {kind} picture has no fixed range: convert it to 8 or 16 bits per channel")
    try:
        with warnings.catch_warnings():  # Pillow advises RGBA for palettes with transparency; alpha is dropped anyway
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise InputError(f"{path}: a picture of mode {image.mode} cannot be converted to RGB: {error}") from error


def read_label(path: str | pathlib.Path) -> HostArray:
    """Reads the pixel values of a label file.

    Returns:
      u8[H, W] or i32[H, W] values (palette files: indices), or u8[H, W, 3] colours of a file that is not grey.

    Raises:
      InputError: as `read_image`, and for floating-point files.
    """
    image = _load(path)
    if image.mode in ("L", "P"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in (*_GREY16, "I"):
        return np.asarray(image).astype(np.int32)
    if image.mode == "LA":
        return np.asarray(image)[..., 0]
    if image.mode == "PA":
        return np.asarray(image)[..., 0]
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[..., :3]
    raise InputError(f"{path}: a label file of mode {image.mode}: expected palette, grey (1, 8, 16, 32 bit) or RGB")


def read_size(path: str | pathlib.Path) -> tuple[int, int]:
    """Reads (height, width) from the header alone, EXIF orientation applied.

    Raises:
      InputError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)
    except (*_DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(path, error) from error


def _load(path: str | pathlib.Path) -> Image.Image:
    """Returns the decoded picture, turned upright."""
    try:
        with Image.open(path) as image:
            if image.format in _STACKS and getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path}: holds {image.n_frames} frames: write one file per picture")
            image.load()
            return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
    except InputError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(path, error) from error


def _orientation(image: Image.Image) -> int:
    if "exif" in image.info or image.format == "TIFF":
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _unreadable(path: str | pathlib.Path, error: Exception) -> InputError:
    path = pathlib.Path(path)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return InputError(f"{path}: too large to be decoded safely ({error}): cut it into tiles")
    if isinstance(error, MemoryError):
        return InputError(f"{path}: does not fit into memory: cut it into tiles")
    if not path.is_file():
        return InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if isinstance(error, PermissionError):
        return InputError(f"{path}: no permission to read it")
    size = path.stat().st_size
    if isinstance(error, Image.UnidentifiedImageError):
        return InputError(f"{path}: not an image this can read ({size} bytes): replace or remove it")
    return InputError(f"{path}: truncated or damaged image ({size} bytes; {error}): replace or remove it")
