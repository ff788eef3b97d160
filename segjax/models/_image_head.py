"""What segmentation_models_pytorch puts beside a decoder: classes of the whole image."""

import flax.linen as nn
import jax.numpy as jnp

from segjax import layers, ops
from segjax.types import Array


class ImageHead(nn.Module):
    """The backbone's last map as one vector, dropout, and the scores of classes of the whole image.

    Attributes:
        num_classes: K'.
        pooling: "avg", the mean over all pixels, or "max".
        dropout: rate before the scores.
        axis_name: pmap's axis.

    Source: segmentation_models_pytorch, base/heads.py (``aux_params``).
    """

    num_classes: int
    pooling: str = "avg"
    dropout: float = 0.2
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, C] to f32[B, K']."""
        x = ops.adaptive_avg_pool(x, 1) if self.pooling == "avg" else jnp.max(x, axis=(1, 2), keepdims=True)
        x = layers.Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        x = layers.Conv(self.num_classes, bias=True, deviation=0.01, name="score")(x)
        return x[:, 0, 0].astype(jnp.float32)
