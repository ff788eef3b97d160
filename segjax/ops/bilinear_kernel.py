"""The kernel with which a transposed convolution enlarges bilinearly."""

import jax.numpy as jnp
import numpy as np

from segjax.ops.conv_geometry import check_groups
from segjax.types import Array


def bilinear_kernel(size: int, channels: int, *, groups: int = 1) -> Array:
    """Makes the kernel that enlarges each channel bilinearly by f = (size + 1) // 2, FCN's first up-sampling weights.

    kernel[u, v, i, o] = (1 - |u - c| / f) (1 - |v - c| / f) if i is channel o of its group, else 0, with c =
    (size - 1) / 2.

    With size = 2 f - f % 2, stride f and padding f // 2, `conv_transpose` makes the image f times as large, and tap u
    of input pixel i falls on output pixel p = f i + u - f // 2. There u - c = f (s - i), s = (p + 1/2) / f - 1/2 being
    the place where `resize(method="bilinear")` reads for p, and 1 - |s - i| is its weight of pixel i. So the two agree
    but in the outer f // 2 pixels, where s lies outside the image by d <= 1/2 pixel: resizing repeats the edge there,
    convolution goes on with zeros and so fades to 1 - d of the edge (in corners to the product of two such factors).

    Args:
        size: taps per axis; 2 f - f % 2 belongs to the factor f.
        channels: of the input and of the output.
        groups: of the convolution; `channels` makes it depthwise.

    Returns:
        f32[size, size, channels / groups, channels].

    Raises:
        ValueError: a size or a number of channels that is no int or below 1, or groups that do not divide the channels.

    Source:
        Long, Shelhamer & Darrell 2015, "Fully convolutional networks for semantic segmentation", section 3.3;
        `upsample_filt` in the authors' surgery.py.
    """
    if not all(hasattr(n, "__index__") and np.ndim(n) == 0 and n >= 1 for n in (size, channels)):
        raise ValueError(f"bilinear_kernel of size={size!r} with channels={channels!r}: expected two ints >= 1")
    check_groups(groups, channels)
    factor = (size + 1) // 2
    tent = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    inputs, outputs = np.arange(channels // groups), np.arange(channels)
    own = inputs[:, None] == outputs[None] % (channels // groups)
    return jnp.asarray(np.multiply.outer(np.outer(tent, tent), own), jnp.float32)
