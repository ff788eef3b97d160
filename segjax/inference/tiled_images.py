"""Images of any size at their own resolution, tile by tile: what ``segjax.predict --tile`` does."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from segjax import augment
from segjax.inference import evaluation, tile_plan, tiling
from segjax.models import unet
from segjax.types import IMAGE, LOGITS, Array, HostArray, Variables


def make_predict_images(
    apply: evaluation.Apply,
    variables: Variables,
    *,
    tile: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[Sequence[HostArray]], list[HostArray]]:
    """Makes the function from images to class ids; no image is resized.

    Tiles of the paper's U-Net are exact, whichever its ``output``; those of other models are blended (``tiling``).

    Args:
        apply: as ``evaluation.make_predict``; a module's own, for its sizes to be known.
        variables: {"params", "batch_stats"}.
        tile: rows and columns of the network's input.
        mean: as ``evaluation.make_predict``.
        std: as ``evaluation.make_predict``.
        batch_size: tiles of one call of the network.
        progress: called with (tiles done, tiles of the image) after each.

    Returns:
        predict(images u8[h, w, 3] of any sizes) -> [h, w] class ids of each.

    Raises:
        ValueError: a tile that is not legal; the message names the nearest legal ones.
    """
    apply, sizes = tiling.native(apply)
    sizes = sizes or unet.Sizes(least=1, step=1, margin=0)  # all others take any size
    tile_plan.check_tile(tile, sizes)

    def forward(variables: Variables, image: Array) -> Array:
        return apply(variables, augment.normalise({IMAGE: image}, mean, std)[IMAGE], train=False)[LOGITS]

    bound = jax.tree_util.Partial(forward, jax.device_put(variables))

    def predict_images(images: Sequence[HostArray]) -> list[HostArray]:
        """Class ids of each image at its own size."""
        options = {"tile": tile, "sizes": sizes, "batch_size": batch_size, "result": "classes", "progress": progress}
        return [tiling.predict(bound, np.asarray(image), **options) for image in images]

    return predict_images
