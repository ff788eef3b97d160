"""Augmentation on the device: pure functions of (key, batch, global example index), the last step before the model.

An example's image and label are moved by one axis-aligned affine map (zoom, crop, flip). Output pixel centre
(i + 0.5, j + 0.5) of an [h, w] crop lies in the [H, W] input at

    y = (i + 0.5 + y0) / s          y0 = u_y (s H - h)
    x = (j' + 0.5 + x0) / s         x0 = u_x (s W - w)        j' = w - 1 - j where flipped, else j

with s uniform in ``scale`` and u uniform in [0, 1): a crop anywhere inside the zoomed input, or, along an axis on
which that is smaller than the crop, the whole input placed anywhere inside it. The image is read bilinearly, the
label (and the weight map) at the nearest pixel. What lies outside is the mean colour and the ignore label.

Such a map is separable. The image is moved by two small interpolation matrices (matrix products, no gather), the
label by one list of rows and one of columns; flips alone are a reversal; with nothing to do nothing is done.

A vertical flip and an exchange of rows and columns, where asked for, come after it; all three flips together reach the
eight positions of a square, for images that have no up and down.

An elastic deformation, where one is asked for, comes first: pixel p of the input becomes that at p + v(p), v smooth.
What lies outside is the input continued by reflection, of image, label and weight alike, so that they stay together.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from segjax.ops import interpolation
from segjax.types import IMAGE, LABEL, WEIGHT, Array, Batch

Augment = Callable[[Array, Batch, Array], Batch]

# Which of an example's uniform numbers is for what: switching one option on changes no other draw.
FLIP, SCALE, Y, X, BRIGHTNESS, CONTRAST, SATURATION, HUE, DRAWS = range(9)
ELASTIC, TURNS = DRAWS + 1, DRAWS + 2  # folded into the key of an example; DRAWS itself for sampled pixels
_GRID = 3  # control points of an elastic deformation along each axis
_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, to the digits torchvision uses


def make_augment(
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    ignore_label: int,
    scale: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.5,
    flip_vertical: float = 0.0,
    transpose: float = 0.0,
    elastic: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    sampled_pixels: int = 0,
) -> Augment:
    """The augmentation of a training batch: elastic, zoom, crop, flip, colour, normalisation, in this order.

    Colour changes have torchvision's definitions and ranges, in the fixed order brightness, contrast, saturation,
    hue (torchvision shuffles it); contrast's mean grey is that of the pixels inside the input.

    Args:
      size: (h, w) of the output, pixels; smaller than the input: a random crop.
      mean, std: per channel, of images in [0, 1].
      ignore_label: label of pixels outside the input.
      scale: (low, high) of the zoom s, 0 < low <= high; DeepLab's is (0.5, 2).
      flip: probability of a horizontal flip.
      flip_vertical: probability of a vertical flip.
      transpose: probability that rows and columns are exchanged; of a square output only.
      elastic: standard deviation of the displacements of ``displacements``, pixels of the input; 0: off, U-Net's: 10.
      brightness, contrast, saturation: b >= 0, factors uniform in [max(0, 1 - b), 1 + b].
      hue: h in [0, 0.5], shift uniform in [-h, h] of a full turn.
      sampled_pixels: keep the labels of that many pixels of each image, drawn uniformly among the labelled ones, and
        make all others -1, which no loss counts, as training on patches does (Long et al. 2015, section 3.4); 0: all.
    Returns:
      augment(key, batch, index): batch with "image" u8[B, H, W, 3] -> f32[B, h, w, 3] normalised, "label" and
      "weight" [B, H, W] -> [B, h, w]; index i32[B], the examples' positions in the global batch. Example i draws from
      fold_in(key, index[i]) alone. Other keys pass.
    Raises:
      ValueError: an option out of range.
    Source: Chen et al. 2018 (DeepLabV3+), section 4 (scale 0.5-2, flip, crop); torchvision.transforms.ColorJitter;
    Ronneberger et al. 2015 (U-Net), section 3.1 (elastic).
    """
    if not 0.0 <= elastic < float("inf"):
        raise ValueError(f"elastic is {elastic}, expected 0 (off) or a standard deviation in pixels")
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    check(size, scale, {"flip": flip, "flip_vertical": flip_vertical, "transpose": transpose}, factors, hue)
    if sampled_pixels < 0:
        raise ValueError(f"sampled_pixels is {sampled_pixels}, expected 0 (all) or more")

    def augment(key: Array, batch: Batch, index: Array) -> Batch:
        """The batch moved, coloured and normalised."""
        keys, draws = drawn(key, index)
        if elastic:
            # A key of its own: switching it on changes no other draw.
            batch = _deform(batch, jax.vmap(lambda k: jax.random.fold_in(k, ELASTIC))(keys), elastic)
        moved, inside = _move(batch, draws, size, scale, flip, ignore_label)
        if flip_vertical or transpose:
            moved, inside = _turn(moved, inside, keys, flip_vertical, transpose)
        image = coloured(moved[IMAGE], draws, inside, factors, hue)
        image = jnp.where(inside[..., None], normalised(image, mean, std), 0.0)
        if sampled_pixels:
            moved[LABEL] = _sampled(keys, moved[LABEL], sampled_pixels, ignore_label)
        return {**batch, **moved, IMAGE: image}

    return augment


def drawn(key: Array, index: Array) -> tuple[Array, Array]:
    """An example's own key and uniform numbers, the latter by FLIP, SCALE, ...

    Args:
      key: PRNG key of the step.
      index: i32[B], positions in the global batch.
    Returns:
      (keys [B], f32[B, DRAWS] in [0, 1)).
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    return keys, jax.vmap(lambda k: jax.random.uniform(k, (DRAWS,)))(keys)


def _sampled(keys: Array, label: Array, count: int, ignore_label: int) -> Array:
    """The labels [B, h, w] of ``count`` labelled pixels of each example (of all, where there are fewer), else -1."""

    def one(key: Array, plane: Array) -> Array:
        draw = jax.random.uniform(jax.random.fold_in(key, DRAWS), (plane.size,))
        draw = jnp.where(plane.ravel() == ignore_label, -1.0, draw)
        chosen = jnp.zeros(plane.size, bool).at[jax.lax.top_k(draw, min(count, plane.size))[1]].set(True)
        # Not ignore_label, which may be the id of a class: a model that samples must see what was drawn.
        return jnp.where((chosen & (draw >= 0)).reshape(plane.shape), plane, jnp.asarray(-1, plane.dtype))

    return jax.vmap(one)(keys, label)


def displacements(key: Array, size: tuple[int, int], std: float) -> Array:
    """A smooth random vector for every pixel.

    Vectors are drawn at 3x3 control points, on the corners, the middles of the edges and the centre, each coordinate
    normal with the deviation given, and interpolated in between by Keys' cubic kernel (a = -1/2).

    Args:
      key: PRNG key.
      size: (H, W), pixels.
      std: of each coordinate of a control point, pixels; 10 in the paper.
    Returns:
      f32[H, W, 2], (rows, columns).
    Source: Ronneberger, Fischer & Brox 2015, section 3.1, https://arxiv.org/abs/1505.04597.
    """
    control = std * jax.random.normal(key, (_GRID, _GRID, 2))
    rows, columns = (
        interpolation.interpolation_matrix(n, _GRID, method="bicubic", align_corners=True, a=-0.5) for n in size
    )
    return jnp.einsum("ya,xb,abv->yxv", rows, columns, control, precision=jax.lax.Precision.HIGHEST)


def normalise(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> dict[str, Array]:
    """The batch with its image as (image / 255 - mean) / std, float32: all that evaluation does to an image.

    Args:
      batch: "image" u8[B, H, W, 3].
      mean, std: per channel, of images in [0, 1].
    Returns:
      The batch with "image" f32[B, H, W, 3].
    """
    return {**batch, IMAGE: normalised(jnp.asarray(batch[IMAGE]).astype(jnp.float32), mean, std)}


def normalised(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """f32[..., C] in [0, 255] as (image / 255 - mean) / std."""
    # One multiply and one add per value: image a + b.
    std = jnp.asarray(std, jnp.float32)
    factor, offset = 1.0 / (255.0 * std), -jnp.asarray(mean, jnp.float32) / std
    shape = (1,) * (image.ndim - 1) + (-1,)
    return image * factor.reshape(shape) + offset.reshape(shape)


def _deform(batch: Batch, keys: Array, std: float) -> dict[str, Array]:
    """Image (f32, bilinear), label and weight (nearest pixel) displaced; reflected about the outermost pixels."""
    height, width = batch[IMAGE].shape[1:3]
    moved = {name: jnp.asarray(batch[name]) for name in (IMAGE, LABEL, WEIGHT) if name in batch}

    def one(example: dict[str, Array], key: Array) -> dict[str, Array]:
        vectors = displacements(key, (height, width), std)
        y = _reflected(jnp.arange(height, dtype=jnp.float32)[:, None] + vectors[..., 0], height)
        x = _reflected(jnp.arange(width, dtype=jnp.float32)[None, :] + vectors[..., 1], width)
        return {name: (_sample if name == IMAGE else _pick)(value, y, x) for name, value in example.items()}

    return {**batch, **jax.vmap(one)(moved, keys)}


def _reflected(at: Array, size: int) -> Array:
    """Coordinates, of pixel centres at 0 .. size - 1, of the points that those beyond the ends mirror."""
    period = max(2 * (size - 1), 1)
    at = jnp.mod(at, period)
    return jnp.clip(jnp.minimum(at, period - at), 0, size - 1)


def _sample(image: Array, y: Array, x: Array) -> Array:
    """image [H, W, C] at points [h, w] inside it, bilinearly: f32[h, w, C]."""
    image, top, left = image.astype(jnp.float32), jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    above, below = (
        _pick(image, row, left) * (1 - right) + _pick(image, row, left + 1) * right for row in (top, top + 1)
    )
    return above * (1 - down) + below * down


def _pick(plane: Array, y: Array, x: Array) -> Array:
    """plane [H, W, ...] at the pixels whose centres are nearest to points [h, w]."""
    row, column = (jnp.floor(at + 0.5).astype(jnp.int32) for at in (y, x))
    height, width = plane.shape[:2]
    index = jnp.minimum(row, height - 1) * width + jnp.minimum(column, width - 1)
    return jnp.take(plane.reshape(height * width, *plane.shape[2:]), index, axis=0, mode="clip")


def _move(
    batch: Batch, draws: Array, size: tuple[int, int], scale: tuple[float, float], flip: float, ignore_label: int
) -> tuple[dict[str, Array], Array]:
    """Image f32 in [0, 255], label and weight moved; and bool[B, h, w], where the output lies inside the input."""
    outside = {IMAGE: 0, LABEL: ignore_label, WEIGHT: 0}
    moved = {name: jnp.asarray(batch[name]) for name in outside if name in batch}
    height, width = moved[IMAGE].shape[1:3]
    flipped = draws[:, FLIP] < flip
    if tuple(scale) == (1.0, 1.0) and (height, width) == tuple(size):
        if flip:
            moved = {name: pick_rows(flipped, x[:, :, ::-1], x) for name, x in moved.items()}
        inside = jnp.ones((draws.shape[0], *size), bool)
        return {**moved, IMAGE: moved[IMAGE].astype(jnp.float32)}, inside
    zoom = scale[0] + draws[:, SCALE] * (scale[1] - scale[0])
    y, in_y = jax.vmap(lambda s, u: _centres(size[0], height, s, u))(zoom, draws[:, Y])
    x, in_x = jax.vmap(lambda s, u: _centres(size[1], width, s, u))(zoom, draws[:, X])
    x, in_x = (pick_rows(flipped, a[:, ::-1], a) for a in (x, in_x))
    inside = in_y[:, :, None] & in_x[:, None, :]
    for name in moved:
        if name == IMAGE:
            moved[name] = jax.vmap(_bilinear)(moved[name].astype(jnp.float32), y, x)
        else:
            near = jax.vmap(_nearest)(moved[name], y, x)
            moved[name] = jnp.where(inside, near, jnp.asarray(outside[name], near.dtype))
    return moved, inside


def _turn(
    moved: dict[str, Array], inside: Array, keys: Array, flip_vertical: float, transpose: float
) -> tuple[dict[str, Array], Array]:
    """What ``_move`` returns, its rows reversed and then exchanged with its columns, each with its probability."""
    draws = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, TURNS), (2,)))(keys)
    reversed_, exchanged = draws[:, 0] < flip_vertical, draws[:, 1] < transpose

    def turn(x: Array) -> Array:
        x = pick_rows(reversed_, x[:, ::-1], x) if flip_vertical else x
        return pick_rows(exchanged, jnp.swapaxes(x, 1, 2), x) if transpose else x

    return jax.tree.map(turn, (moved, inside))


def _centres(out_size: int, in_size: int, scale: Array, draw: Array) -> tuple[Array, Array]:
    """Where output pixel centres lie in the input along one axis, f32[out] from its edge; which are inside."""
    start = draw * (scale * in_size - out_size)
    # Without a zoom the crop starts on a whole pixel: it copies, it does not blur.
    start = jnp.where(scale == 1.0, jnp.round(start), start)
    at = (jnp.arange(out_size, dtype=jnp.float32) + 0.5 + start) / scale
    return at, (at >= 0.0) & (at < in_size)


def _bilinear(image: Array, y: Array, x: Array) -> Array:
    """image [H, W, C] at the points (y_i, x_j), edge pixels continued: [h, w, C]."""
    rows, columns = _tent(y, image.shape[0]), _tent(x, image.shape[1])
    # Full float32: a GPU's default precision for products would round pixel values to 10 bits.
    exact = jax.lax.Precision.HIGHEST
    tall = jnp.einsum("yh,hwc->ywc", rows, image, precision=exact)
    return jnp.einsum("xw,ywc->yxc", columns, tall, precision=exact)


def _tent(at: Array, size: int) -> Array:
    """Bilinear weights f32[len(at), size] of pixels with centres k + 0.5, points clamped to the outermost centres."""
    at = jnp.clip(at, 0.5, size - 0.5)
    centres = jnp.arange(size, dtype=jnp.float32) + 0.5
    return jnp.maximum(0.0, 1.0 - jnp.abs(at[:, None] - centres[None, :]))


def _nearest(plane: Array, y: Array, x: Array) -> Array:
    """plane [H, W] at the pixels the points (y_i, x_j) lie in: [h, w]."""
    rows, columns = (jnp.clip(at.astype(jnp.int32), 0, n - 1) for at, n in zip((y, x), plane.shape, strict=True))
    return jnp.take(jnp.take(plane, rows, axis=0, mode="clip"), columns, axis=1, mode="clip")


def coloured(image: Array, draws: Array, inside: Array, factors: dict[str, float], hue: float) -> Array:
    """Images with their colours changed, as ``make_augment`` states it.

    Args:
      image: f32[B, H, W, 3] in [0, 255].
      draws: f32[B, DRAWS], see ``drawn``.
      inside: bool[B, H, W], the pixels whose mean grey is contrast's.
      factors: b of "brightness", "contrast" and "saturation".
      hue: h.
    Returns:
      f32[B, H, W, 3] in [0, 255]; the images as they are where all strengths are 0.
    """
    if not (any(factors.values()) or hue):
        return image
    return jax.vmap(lambda x, u, m: _jitter(x / 255.0, u, m, factors, hue))(image, draws, inside) * 255.0


def _jitter(image: Array, draw: Array, inside: Array, factors: dict[str, float], hue: float) -> Array:
    """Colours of one image f32[h, w, 3] in [0, 1] changed by torchvision's rules; inside bool[h, w]."""

    def factor(name: str, which: int) -> Array:
        low, high = max(0.0, 1.0 - factors[name]), 1.0 + factors[name]
        return low + draw[which] * (high - low)

    if factors["brightness"]:
        image = jnp.clip(image * factor("brightness", BRIGHTNESS), 0.0, 1.0)
    if factors["contrast"]:
        mean = jnp.where(inside, _grey(image), 0.0).sum() / jnp.maximum(inside.sum(), 1)
        image = _blend(image, mean, factor("contrast", CONTRAST))
    if factors["saturation"]:
        image = _blend(image, _grey(image)[..., None], factor("saturation", SATURATION))
    return _shift_hue(image, (2.0 * draw[HUE] - 1.0) * hue) if hue else image


def _grey(image: Array) -> Array:
    return sum(weight * image[..., c] for c, weight in enumerate(_GREY))


def _blend(image: Array, other: Array, factor: Array) -> Array:
    return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def _shift_hue(image: Array, shift: Array) -> Array:
    """image f32[..., 3] in [0, 1] with its HSV hue moved by ``shift`` turns.

    Without going through H: a channel of hue h, value v and chroma c is v - c clip(min(k, 4 - k), 0, 1) with
    k = (n + 6 h) mod 6, n = 5, 3, 1 for red, green, blue.
    Source: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative.
    """
    red, green, blue = (image[..., c] for c in range(3))
    value, low = image.max(axis=-1), image.min(axis=-1)
    chroma = value - low
    safe = jnp.where(chroma > 0.0, chroma, 1.0)
    sixth = jnp.where(value == red, (green - blue) / safe, jnp.where(value == green, (blue - red) / safe + 2.0,
                                                                     (red - green) / safe + 4.0))  # fmt: skip
    k = [jnp.mod(n + sixth + 6.0 * shift, 6.0) for n in (5.0, 3.0, 1.0)]
    return jnp.stack([value - chroma * jnp.clip(jnp.minimum(part, 4.0 - part), 0.0, 1.0) for part in k], axis=-1)


def pick_rows(condition: Array, a: Array, b: Array) -> Array:
    """Example i of a [B, ...] where condition[i], else that of b."""
    return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def check(
    size: tuple[int, int],
    scale: tuple[float, float],
    chances: dict[str, float],
    factors: dict[str, float],
    hue: float,
) -> None:
    """Raises ValueError for an option of ``make_augment`` out of range; chances are probabilities by name."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size}, expected (height, width) in pixels")
    if len(scale) != 2 or not 0.0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is {scale}, expected (low, high) with 0 < low <= high")
    for name, value in chances.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}, expected a probability")
    if chances.get("transpose") and size[0] != size[1]:
        raise ValueError(f"transpose is {chances['transpose']} with size {size}, expected 0 or a square size")
    for name, value in factors.items():
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}, expected 0 (off) or more")
    if not 0.0 <= hue <= 0.5:
        raise ValueError(f"hue is {hue}, expected a number in [0, 0.5]")
