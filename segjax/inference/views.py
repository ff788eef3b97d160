"""Logits of an image from several looks at it: sliding windows, scales, its mirror image."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from segjax import ops
from segjax.types import LOGITS, Array, Variables

Logits = Callable[[Variables, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Views:
    """Which looks at an image its logits are put together from; by default one, at the whole of it.

    Attributes:
        window: (rows, columns) of a sliding window; None: the whole image at once.
        stride: (rows, columns) from one window to the next; up to the window's.
        scales: of the image, each looked at by itself.
        flip: every scale mirrored, too.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def looks(self) -> tuple[tuple[float, bool], ...]:
        """(scale, mirrored) of each look."""
        return tuple((scale, way) for scale in self.scales for way in ((False, True) if self.flip else (False,)))


WHOLE = Views()


def make_logits(apply: Callable[..., Mapping[str, Array]], views: Views) -> Logits:
    """Makes the function from normalised images on a canvas to logits there.

    Windows: the first begins at the top left, each next one a stride further, the last ends with the content, which may
    make its step shorter; logits of a pixel in several windows are averaged. Scales: the canvas is resized bilinearly,
    its logits back. Mirror images: of the content alone. One look gives its logits; of several the softmax is averaged.

    Args:
        apply: apply(variables, image f32[B, H, W, C], train=False) -> {"logits": f32[B, H, W, K]}.
        views: the looks.

    Returns:
        logits(variables, image f32[B, H, W, C], content_size i32[B, 2]) -> f32[B, H, W, K]; what lies outside the
        content (from the top left) is unspecified.

    Source: windows: mmsegmentation's slide_inference; mean of softmax: Chen et al. 2017, section 4.1,
    https://arxiv.org/abs/1706.05587, as deeplab's predict_labels_multi_scale.
    """

    def look(variables: Variables, image: Array, content: Array) -> Array:
        def run(part: Array) -> Array:
            return apply(variables, part, train=False)[LOGITS].astype(jnp.float32)

        return run(image) if views.window is None else _slide(run, image, content, views.window, views.stride)

    def logits(variables: Variables, image: Array, content: Array) -> Array:
        """The mean over the looks, or the logits of the only one."""
        total = 0.0
        for scale, mirrored in views.looks:
            seen = _mirror(image, content) if mirrored else image
            found = _at_scale(look, variables, seen, content, scale)
            found = _mirror(found, content) if mirrored else found
            if len(views.looks) == 1:
                return found
            total = total + jax.nn.softmax(found)
        return total / len(views.looks)

    return logits


def _at_scale(look: Logits, variables: Variables, image: Array, content: Array, scale: float) -> Array:
    if scale == 1:
        return look(variables, image, content)
    size = image.shape[1:3]
    scaled = tuple(max(1, round(n * scale)) for n in size)
    inside = -(-content * jnp.array([scaled]) // jnp.array([size]))  # up, so that the content is covered
    found = look(variables, ops.resize(image, scaled, method="bilinear"), inside)
    return ops.resize(found, size, method="bilinear")


def _mirror(x: Array, content: Array) -> Array:
    """Mirrors the columns of the content of each row of [B, H, W, C]; the others stay."""
    columns, width = jnp.arange(x.shape[2])[None], content[:, 1:]
    source = jnp.where(columns < width, width - 1 - columns, columns)
    return jnp.take_along_axis(x, source[:, None, :, None], axis=2)


def _slide(
    run: Callable[[Array], Array], image: Array, content: Array, window: tuple[int, int], stride: tuple[int, int]
) -> Array:
    """Mean of the logits of all windows; one window of every image at a time, through one compiled network."""
    size = image.shape[1:3]
    window = tuple(min(n, limit) for n, limit in zip(window, size, strict=True))
    steps = [-(-(n - w) // s) + 1 for n, w, s in zip(size, window, stride, strict=True)]
    grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, steps), indexing="ij"), axis=-1).reshape(-1, 2)
    stride, extent = jnp.array(stride), jnp.array(window)

    def cut(x: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(x, (*start, 0), (*window, x.shape[-1]))

    def add(total: Array, found: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice(total, cut(total, start) + found, (*start, 0))

    def one(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        """Adds window ``index`` (row, column of the grid) of every image."""
        total, times = carry
        last = jnp.maximum(content - extent[None], 0)
        start = jnp.minimum((index * stride)[None], last)
        # An image smaller than the canvas has fewer windows: the others would only repeat its last ones.
        used = ((index == 0)[None] | (((index - 1) * stride)[None] < last)).all(axis=-1)
        found = run(jax.vmap(cut)(image, start))
        found = jnp.where(used[:, None, None, None], found, 0.0)
        ones = jnp.broadcast_to(used[:, None, None, None], (*found.shape[:-1], 1)).astype(jnp.float32)
        return (jax.vmap(add)(total, found, start), jax.vmap(add)(times, ones, start)), None

    classes = jax.eval_shape(run, jax.ShapeDtypeStruct((image.shape[0], *window, image.shape[-1]), image.dtype))
    zero = (content[:, :1] * 0).astype(jnp.float32)[
        :, None, None
    ]  # under shard_map different on each device, as sums are
    empty = [zero + jnp.zeros((*image.shape[:-1], channels)) for channels in (classes.shape[-1], 1)]
    (total, times), _ = jax.lax.scan(one, tuple(empty), grid)
    return total / jnp.maximum(times, 1.0)
