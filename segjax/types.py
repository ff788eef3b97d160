"""Words every part of segjax shares: array aliases, axis letters, the keys of a batch, the error a user can mend.

Axis letters, used in every shape of every docstring:

    B  examples of a batch        K  classes
    H, W  rows, columns (pixels)  N  boxes of an image
    C  channels                   P  proposals

Images are [B, H, W, C] and kernels [kh, kw, Cin, Cout]. A type is written before its shape: ``f32[B, H, W, K]``.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array
HostArray = np.ndarray
PyTree = Any
Variables = Mapping[str, PyTree]  # {"params": ..., "batch_stats": ...}
Batch = Mapping[str, Any]  # the keys below, arrays with a leading axis B
Outputs = Mapping[str, Array]  # {"logits": f32[B, H, W, K], ...}

# Keys of a batch.
IMAGE = "image"  # u8[B, H, W, 3], or f32 once normalised
LABEL = "label"  # i32[B, H, W]
VALID = "valid"  # bool[B]: False for rows that only fill up the batch
WEIGHT = "weight"  # f32[B, H, W], optional: a factor of each pixel's loss
CONTENT_SIZE = "content_size"  # i32[B, 2]: rows and columns of the canvas, from the top left, that the image occupies

# Further keys of a batch of an instance set. Boxes are (x0, y0, x1, y1), pixels, corners at pixel edges.
BOXES = "boxes"  # f32[B, N, 4], clipped to the canvas
CLASSES = "classes"  # i32[B, N]: ids of object classes, no background among them
MASKS = "masks"  # u8[B, N, S, S], 0 to 255: each object's mask, cut out by its mask box and resampled to S x S
MASK_BOXES = "mask_boxes"  # f32[B, N, 4]: the boxes the masks were cut out by; never clipped
BOXES_VALID = "boxes_valid"  # bool[B, N]: False for rows that only fill up
CROWD = "crowd"  # bool[B, N]: a region of many objects, neither object nor background

# Keys of a model's outputs.
LOGITS = "logits"  # f32[B, H, W, K] at the resolution of the input
AUX_LOGITS = "aux_logits"  # f32[B, H, W, K], of models with an auxiliary head
SCORES = "scores"  # f32[B, N], best first; beside BOXES, CLASSES, MASKS and VALID of an instance model

DATA_AXIS = "data"  # the mesh (or pmap) axis a batch is split over
DEFAULT_IGNORE_LABEL = 255  # for sets that declare none


class InputError(ValueError):
    """Something the user gave is wrong, and the user can mend it.

    The message names the file or the key, the value found and what to do. Entry points print it without a
    traceback and exit with status 2.
    """
