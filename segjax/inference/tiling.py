"""The overlap-tile strategy: an image of any size through a network that sees one tile at a time.

A network with valid convolutions lacks logits for a margin of its input. Tiles that overlap by the margins, and begin
whole steps of its poolings apart, have the logits of the whole image; beyond the image's ends it is continued by
reflection. The logits of a padded network know of a tile's edges: neighbours overlap, and are blended by windows that
fall off towards the edges.

Only tiles and, of padded networks, one row of tiles' sums are in memory beside the image and the result, either of
which may be a memory map. All tiles have one shape: the network is compiled once.

Source: Ronneberger, Fischer & Brox 2015, section 2 and figure 2, https://arxiv.org/abs/1505.04597.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.inference import evaluation, tile_plan
from segjax.models import unet
from segjax.models.unet import Sizes
from segjax.types import LOGITS, Array, HostArray

RESULTS = ("logits", "classes")


class _Plan(NamedTuple):
    """Tiles in rows and columns: their pixels, the corners of their outputs, the sizes of the network per axis."""

    tile: tuple[int, int]
    corners: tuple[HostArray, HostArray]
    sizes: tuple[Sizes, Sizes]


def predict(
    apply: Callable[[Array], Any],
    image: HostArray,
    *,
    tile: int | tuple[int, int],
    sizes: Sizes | None = None,
    overlap: int | None = None,
    window: str = "cosine",
    batch_size: int = 1,
    result: str = "logits",
    out: HostArray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HostArray:
    """Runs a network over an image tile by tile.

    Of a network whose logits lack a margin ("native" output) the result is that of the whole image, continued by
    reflection: by the margin at the low ends, at the high ends as far as the network needs. Of one whose logits are as
    large as its input, it is the weighted mean of overlapping tiles.

    Args:
        apply: x[b, h, w, C], of the image's dtype -> f32[b, h', w', K], or {"logits": ...}. Bind a model's variables by
            ``functools.partial(module.apply, variables)``: they are arguments of the compiled program, which later
            calls use again, and a U-Net of the paper is run as ``native`` says. In a closure they become constants.
        image: [H, W, C], or [B, H, W, C] (one after another), H, W >= 1; anything that NumPy's slices read.
        tile: pixels of the network's input, rows and columns alike or (rows, columns).
        sizes: the sizes the network takes along an axis (``module.sizes`` of U-Net); None: found by asking ``apply``
            for the shapes of a few, unless they are known (``native``).
        overlap: pixels that neighbouring tiles of a padded network share at least; None: a quarter of the tile.
        window: "cosine" or "triangle": the weights of a padded network's tiles (``tile_plan.blending``).
        batch_size: tiles of one call of the network.
        result: "logits", or "classes": the arg-max, the first of equals, K where a logit is NaN.
        out: where the result goes; None: a new array.
        progress: called with (tiles done, tiles of the image) after each batch.
    Returns:
        logits f32[H, W, K], or classes u8[H, W] (i32 for K >= 256); with the image's B in front, if it has one.
    Raises:
        ValueError: a tile that is not legal (the message names the nearest legal ones), or another option.
    """
    _check(image, batch_size, result)
    (apply, known), channels = _arguments(apply), image.shape[-1]
    sizes = known if sizes is None else sizes
    tile = (tile, tile) if isinstance(tile, (int, np.integer)) else tuple(tile)
    both = tuple(_find(apply, tile, axis, channels, image.dtype) if sizes is None else sizes for axis in (0, 1))
    for pixels, of_axis in zip(tile, both, strict=True):
        tile_plan.check_tile(pixels, of_axis)
    shape = jax.eval_shape(_logits, apply, jax.ShapeDtypeStruct((1, *tile, channels), image.dtype)).shape
    expected, num_classes = tuple(of.output(n) for of, n in zip(both, tile, strict=True)), shape[-1]
    if shape[1:3] != expected:
        raise ValueError(f"a tile of {tile} pixels has logits of {shape[1:3]}: by sizes={sizes} expected {expected}")
    shape, dtype = image.shape[:-1], np.dtype(np.uint8 if num_classes < 256 else np.int32)
    if result == "logits":
        shape, dtype = (*shape, num_classes), np.dtype(np.float32)
    out = np.empty(shape, dtype) if out is None else out
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.dtype}{list(out.shape)}: expected {dtype}{list(shape)}")
    exact = any(of_axis.margin for of_axis in both)
    if exact and overlap is not None:
        raise ValueError(f"overlap={overlap}: the tiles of a network with margins overlap by these; expected None")
    for one, where in zip(image, out, strict=True) if image.ndim == 4 else [(image, out)]:
        options = {"batch_size": batch_size, "out": where, "progress": progress}
        if exact:
            _exact(apply, one, tile, both, classes=result == "classes", **options)
        else:
            _blended(apply, one, tile, both, overlap, window, num_classes, **options)
    return out


def _exact(
    apply: Callable,
    image: HostArray,
    tile: tuple[int, int],
    sizes: tuple[Sizes, Sizes],
    *,
    classes: bool,
    **options: Any,
) -> None:
    """Writes each tile's pixels to their place; where two tiles have the same pixel they have the same logits."""
    out = options["out"]
    layout = zip(image.shape, tile, sizes, strict=False)
    plan = _Plan(tile, tuple(tile_plan.exact_corners(*axis) for axis in layout), sizes)
    run = _classes if classes else _logits
    for (row, column), part in _tiles(run, apply, image, plan, options["batch_size"], options["progress"]):
        y, x = plan.corners[0][row], plan.corners[1][column]
        place = out[y : y + part.shape[0], x : x + part.shape[1]]
        place[...] = part[: place.shape[0], : place.shape[1]]


def _blended(
    apply: Callable,
    image: HostArray,
    tile: tuple[int, int],
    sizes: tuple[Sizes, Sizes],
    overlap: int | None,
    window: str,
    num_classes: int,
    **options: Any,
) -> None:
    """Sums weighted tiles in a strip as high as a tile; rows that no later tile reaches are written and leave it."""
    out, (height, width) = options["out"], image.shape[:2]
    shared = [n // 4 if overlap is None else overlap for n in tile]
    plan = _Plan(tile, tuple(map(tile_plan.blended_corners, (height, width), tile, shared)), sizes)
    down, across = (tile_plan.blending(corners, n, window) for corners, n in zip(plan.corners, tile, strict=True))
    ends = [*plan.corners[0][1:], height]  # of the rows that are finished with each row of tiles
    strip = np.zeros((tile[0], plan.corners[1][-1] + tile[1], num_classes), np.float32)
    for (row, column), part in _tiles(_logits, apply, image, plan, options["batch_size"], options["progress"]):
        x = plan.corners[1][column]
        strip[:, x : x + tile[1]] += part * (down[row][:, None] * across[column][None])[:, :, None]
        if column == len(across) - 1:
            first, done = plan.corners[0][row], ends[row] - plan.corners[0][row]
            finished = strip[:done, :width]
            out[first : first + done] = finished if out.ndim == 3 else np.asarray(_arg_max(finished))
            strip = np.concatenate([strip[done:], np.zeros_like(strip[:done])])


def _tiles(
    run: Callable, apply: Callable, image: HostArray, plan: _Plan, batch_size: int, progress: Callable | None
) -> Iterator[tuple[tuple[int, int], HostArray]]:
    """((row, column), output) of each tile, row by row; one batch computes while the one before is being used."""
    places = [(i, j) for i in range(len(plan.corners[0])) for j in range(len(plan.corners[1]))]
    waiting: list[tuple[list[tuple[int, int]], Array]] = []
    for start in range(0, len(places) + batch_size, batch_size):
        if chunk := places[start : start + batch_size]:
            filled = chunk + chunk[-1:] * (batch_size - len(chunk))
            waiting.append((chunk, run(apply, np.stack([_cut(image, plan, place) for place in filled]))))
        if len(waiting) == 2 or not chunk:
            ready, outputs = waiting.pop(0)
            yield from zip(ready, np.asarray(outputs), strict=False)
            if progress is not None:
                progress(min(start, len(places)), len(places))


def _cut(image: HostArray, plan: _Plan, place: tuple[int, int]) -> HostArray:
    """One tile of the image with its margins, continued by reflection."""
    picked = []
    for n, pixels, corners, sizes, at in zip(image.shape, plan.tile, plan.corners, plan.sizes, place, strict=False):
        start = int(corners[at]) - sizes.margin
        picked.append(tile_plan.mirrored(start, start + pixels, n))
    (top, left), (bottom, right) = ([int(f(axis)) for axis in picked] for f in (np.min, np.max))
    block = np.asarray(image[top : bottom + 1, left : right + 1])
    return block[(picked[0] - top)[:, None], (picked[1] - left)[None, :]]


def native(apply: Callable) -> tuple[Callable, Sizes | None]:
    """A module's own ``apply`` as tiles need it.

    Args:
        apply: a bound method of a module, or another function.
    Returns:
        (apply, the sizes it takes): of the paper's U-Net those of its native output, whichever its own is, for what it
        would mirror are the tile's edges; (apply, None) of anything else.
    """
    module = getattr(apply, "__self__", None)
    return (module.clone(output="native").apply, module.sizes) if isinstance(module, unet.Model) else (apply, None)


def _arguments(apply: Callable) -> tuple[jax.tree_util.Partial, Sizes | None]:
    """The function as a pytree, in which what is bound is an argument of the compiled program; its sizes, if known."""
    if not isinstance(apply, functools.partial) or (apply.keywords and not isinstance(apply, jax.tree_util.Partial)):
        return jax.tree_util.Partial(apply), None
    function, sizes = native(apply.func)
    return jax.tree_util.Partial(function, *apply.args, **apply.keywords), sizes


def _find(apply: Callable, tile: tuple[int, int], axis: int, channels: int, dtype: Any) -> Sizes:
    """The sizes of one axis, from the shapes of outputs."""

    def output_size(n: int) -> int:
        shape = (1, *tile[:axis], n, *tile[axis + 1 :], channels)
        return jax.eval_shape(_logits, apply, jax.ShapeDtypeStruct(shape, dtype)).shape[1 + axis]

    return tile_plan.find_sizes(output_size, tile[axis])


def _check(image: HostArray, batch_size: int, result: str) -> None:
    if image.ndim not in (3, 4) or min(image.shape) < 1:
        raise ValueError(f"an image of shape {image.shape}: expected [H, W, C] or [B, H, W, C], none of them 0")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if result not in RESULTS:
        raise ValueError(f"result={result!r}: expected one of {', '.join(RESULTS)}")


_arg_max = jax.jit(evaluation.arg_max)


@jax.jit
def _logits(apply: Callable, tiles: Array) -> Array:
    outputs = apply(tiles)
    return (outputs[LOGITS] if isinstance(outputs, Mapping) else outputs).astype(jnp.float32)


@jax.jit
def _classes(apply: Callable, tiles: Array) -> Array:
    return evaluation.arg_max(_logits(apply, tiles))
