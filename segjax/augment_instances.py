"""Augmentation of instances on the device: image, boxes and compact masks moved as one.

The affine map is that of ``augment``, of the part of the canvas that the image occupies (CONTENT_SIZE, at the top left)
in place of the whole canvas: output pixel centre (i + 0.5, j + 0.5) lies in the input at

    y = (i' + 0.5 + y0) / s          y0 = u_y max(s H - h, 0)          i' = h' - 1 - i where flipped vertically, else i
    x = (j' + 0.5 + x0) / s          x0 = u_x max(s W - w, 0)          j' = w' - 1 - j where flipped, else j

of an [H, W] image, an [h, w] output and h' = min(h, s H), w' = min(w, s W): a crop anywhere inside the zoomed image,
or, along an axis on which that is smaller, the whole of it, kept at the top left, so that CONTENT_SIZE stays true.
With s uniform in (0.1, 2) this is large-scale jitter. Reduced, an image is read with a wider kernel, as Pillow does it
(a tent 1 / s pixels to either side), so that nothing aliases; otherwise bilinearly.

A compact mask belongs to its mask box, which moves by the same map and is never clipped: a flip mirrors the mask, zoom
and crop leave it as it is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax import augment
from segjax.types import BOXES, BOXES_VALID, CONTENT_SIZE, IMAGE, MASK_BOXES, MASKS, Array, Batch


def make_instance_augment(
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.5,
    flip_vertical: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    min_size: float = 1.0,
    tight: bool = True,
) -> augment.Augment:
    """The augmentation of a training batch of instances: zoom, crop, flips, colour, normalisation, in this order.

    Args:
      size: (h, w) of the output, pixels; None: that of the input, whichever it is (batches of several canvases).
      mean, std, scale, flip, flip_vertical, brightness, contrast, saturation, hue: as of ``augment.make_augment``, with
        the same draws; large-scale jitter is scale=(0.1, 2).
      min_size: a box with a side below this, pixels, once it is clipped, is no longer valid.
      tight: the box of an object that the border of the output cuts is drawn around the part that shows, up to half a
        cell of its mask, and the object is dropped where nothing of it shows; False: the box is only clipped.
    Returns:
      augment(key, batch, index): batch with "image" u8[B, H, W, 3] -> f32[B, h, w, 3] normalised, 0 outside the image;
      "boxes" f32[B, N, 4], "mask_boxes" f32[B, N, 4], "masks" u8[B, N, S, S] and "content_size" i32[B, 2] moved;
      "boxes_valid" bool[B, N]; boxes of rows that are not valid are zeros; index i32[B], the examples' positions in the
      global batch. Example i draws from fold_in(key, index[i]) alone. Other keys pass ("classes" and "crowd" too: rows
      keep their places).
    Raises:
      ValueError: an option out of range.
    Source: Ghiasi et al. 2021, Simple Copy-Paste, section 3 (large-scale jitter), https://arxiv.org/abs/2012.07177;
    detectron2's recompute_boxes (tight).
    """
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    augment.check((1, 1) if size is None else size, scale, {"flip": flip, "flip_vertical": flip_vertical}, factors, hue)
    if not 0.0 <= min_size < float("inf"):
        raise ValueError(f"min_size is {min_size}, expected a number of pixels")

    def instance_augment(key: Array, batch: Batch, index: Array) -> Batch:
        """The batch moved, coloured and normalised."""
        keys, draws = augment.drawn(key, index)
        turns = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, augment.TURNS), (2,)))(keys)
        image, content = jnp.asarray(batch[IMAGE]), jnp.asarray(batch[CONTENT_SIZE])
        out = image.shape[1:3] if size is None else tuple(size)
        zoom = scale[0] + draws[:, augment.SCALE] * (scale[1] - scale[0])
        axes = (
            _axis(out[0], content[:, 0], zoom, draws[:, augment.Y], turns[:, 0] < flip_vertical),
            _axis(out[1], content[:, 1], zoom, draws[:, augment.X], draws[:, augment.FLIP] < flip),
        )
        image = (_copied if tuple(scale) == (1.0, 1.0) else _resampled)(image, content, zoom, axes)
        inside = axes[0]["inside"][:, :, None] & axes[1]["inside"][:, None, :]
        image = augment.coloured(image, draws, inside, factors, hue)
        image = jnp.where(inside[..., None], augment.normalised(image, mean, std), 0.0)
        return {**batch, **_objects(batch, zoom, axes, min_size, tight), IMAGE: image}

    return instance_augment


def _axis(out_size: int, length: Array, zoom: Array, draw: Array, flipped: Array) -> dict[str, Array]:
    """The map along one axis of each example.

    Args:
      out_size: h or w, pixels.
      length: i32[B], H or W.
      zoom, draw: f32[B].
      flipped: bool[B].
    Returns:
      "at" f32[B, out], where output pixel centres lie in the input; "inside" bool[B, out]; "content" i32[B], pixels of
      the output that the image occupies; "start", "extent" f32[B], x0 and w'; "flipped".
    """
    zoomed = zoom * length
    start = draw * jnp.maximum(zoomed - out_size, 0.0)
    # Without a zoom the crop starts on a whole pixel: it copies, it does not blur.
    start = jnp.where(zoom == 1.0, jnp.round(start), start)
    extent = jnp.minimum(zoomed, out_size)
    content = jnp.clip(jnp.round(zoomed).astype(jnp.int32), 1, out_size)
    centre = jnp.arange(out_size, dtype=jnp.float32)[None, :] + 0.5
    there = jnp.where(flipped[:, None], extent[:, None] - centre, centre)
    at = (there + start[:, None]) / zoom[:, None]
    inside = jnp.arange(out_size)[None, :] < content[:, None]
    return {"at": at, "inside": inside, "content": content, "start": start, "extent": extent, "flipped": flipped}


def _copied(image: Array, content: Array, zoom: Array, axes: Sequence[dict[str, Array]]) -> Array:
    """u8[B, H, W, C] at the pixels that the points lie in: f32[B, h, w, C]; exact where nothing is zoomed."""
    del zoom
    rows, columns = (
        jnp.clip(jnp.floor(axis["at"]).astype(jnp.int32), 0, content[:, n, None] - 1) for n, axis in enumerate(axes)
    )
    pick = lambda x, r, c: jnp.take(jnp.take(x, r, axis=0, mode="clip"), c, axis=1, mode="clip")
    return jax.vmap(pick)(image, rows, columns).astype(jnp.float32)


def _resampled(image: Array, content: Array, zoom: Array, axes: Sequence[dict[str, Array]]) -> Array:
    """u8[B, H, W, C] read at the points, from the pixels of the content alone: f32[B, h, w, C]."""
    rows, columns = (
        jax.vmap(lambda at, n, s, size=size: _tent(at, n, s, size))(axis["at"], content[:, n], zoom)
        for n, (axis, size) in enumerate(zip(axes, image.shape[1:3], strict=True))
    )
    # Full float32: a GPU's default precision for products would round pixel values to 10 bits.
    exact = jax.lax.Precision.HIGHEST
    tall = jnp.einsum("byh,bhwc->bywc", rows, image.astype(jnp.float32), precision=exact)
    return jnp.einsum("bxw,bywc->byxc", columns, tall, precision=exact)


def _tent(at: Array, length: Array, zoom: Array, size: int) -> Array:
    """Weights f32[out, size] of the first `length` pixels, of a tent max(1, 1 / zoom) wide to either side."""
    at = jnp.clip(at, 0.5, length - 0.5)
    pixel = jnp.arange(size, dtype=jnp.float32)
    reach = jnp.maximum(1.0, 1.0 / zoom)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(at[:, None] - pixel[None, :] - 0.5) / reach)
    weight = jnp.where(pixel[None, :] < length, weight, 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def _objects(
    batch: Batch, zoom: Array, axes: Sequence[dict[str, Array]], min_size: float, tight: bool
) -> dict[str, Array]:
    """Boxes, masks and content size of the output."""
    down, across = axes
    masks = jnp.asarray(batch[MASKS])
    masks = augment.pick_rows(across["flipped"], masks[..., ::-1], masks)
    masks = augment.pick_rows(down["flipped"], masks[..., ::-1, :], masks)
    content = jnp.stack([down["content"], across["content"]], axis=-1)
    mask_boxes = _moved(jnp.asarray(batch[MASK_BOXES]), zoom, axes)
    moved = _moved(jnp.asarray(batch[BOXES]), zoom, axes)
    limit = content[:, None, ::-1].astype(jnp.float32)
    boxes = jnp.clip(moved, 0.0, jnp.concatenate([limit, limit], axis=-1))
    valid = jnp.asarray(batch[BOXES_VALID])
    if tight:
        cut = _cut(mask_boxes, limit, zoom)
        shown = _shown(masks, mask_boxes, limit)
        shown = jnp.concatenate([jnp.maximum(boxes[..., :2], shown[..., :2]),
                                 jnp.minimum(boxes[..., 2:], shown[..., 2:])], axis=-1)  # fmt: skip
        boxes = jnp.where(cut[..., None], shown, boxes)
    sides = boxes[..., 2:] - boxes[..., :2]
    valid &= ((sides >= min_size) & (sides > 0.0)).all(axis=-1)
    boxes, mask_boxes = (jnp.where(valid[..., None], b, 0.0) for b in (boxes, mask_boxes))
    return {BOXES: boxes, MASK_BOXES: mask_boxes, MASKS: masks, BOXES_VALID: valid, CONTENT_SIZE: content}


def _moved(boxes: Array, zoom: Array, axes: Sequence[dict[str, Array]]) -> Array:
    """f32[B, N, 4] of the input in the output."""
    sides = []
    for axis, (low, high) in zip(reversed(axes), ((0, 2), (1, 3)), strict=True):
        start, extent, flipped = (axis[name][:, None] for name in ("start", "extent", "flipped"))
        a, b = (boxes[..., side] * zoom[:, None] - start for side in (low, high))
        sides.append((jnp.where(flipped, extent - b, a), jnp.where(flipped, extent - a, b)))
    return jnp.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], axis=-1)


def _cut(mask_boxes: Array, limit: Array, zoom: Array) -> Array:
    """Which objects, bool[B, N], have a part beyond the content, more of it than the margin around their masks."""
    slack = 1.5 * zoom[:, None, None] + 0.5
    beyond = (mask_boxes[..., :2] < -slack) | (mask_boxes[..., 2:] > limit + slack)
    return beyond.any(axis=-1) & (mask_boxes[..., 2:] > mask_boxes[..., :2]).all(axis=-1)


def _shown(masks: Array, mask_boxes: Array, limit: Array) -> Array:
    """The box around the cells from 1/2 that reach into the content, f32[B, N, 4]; inverted if there is none.

    Args:
      masks: u8[B, N, S, S].
      mask_boxes: f32[B, N, 4].
      limit: f32[B, 1, 2], (columns, rows) of the content.
    """
    cells = masks.shape[-1]
    low, cell = mask_boxes[..., :2, None], (mask_boxes[..., 2:, None] - mask_boxes[..., :2, None]) / max(cells, 1)
    number = jnp.arange(cells, dtype=jnp.float32)[None, None, None]
    begin, end = low + number * cell, low + (number + 1.0) * cell  # [B, N, 2, S]
    within = (end > 0.0) & (begin < limit[..., None])
    inside = (masks >= 128) & within[..., 1, :, None] & within[..., 0, None, :]
    used = jnp.stack([inside.any(axis=-2), inside.any(axis=-1)], axis=-2)
    first = jnp.where(used, begin, jnp.inf).min(axis=-1, initial=jnp.inf)
    last = jnp.where(used, end, -jnp.inf).max(axis=-1, initial=-jnp.inf)
    return jnp.concatenate([first, last], axis=-1)
