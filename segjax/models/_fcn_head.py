"""The fully convolutional head of torchvision's FCN, and of the auxiliary output of its FCN and DeepLabv3."""

import flax.linen as nn

from segjax import layers
from segjax.types import Array


class FCNHead(nn.Module):
    """A 3x3 convolution to a quarter of the channels with batch norm and ReLU, dropout, and the classes' scores.

    As an auxiliary output it reads the map before the backbone's last stage, so that a loss on it (weight 0.5 in
    torchvision, 0.4 in PSPNet) reaches the middle of the network without the way through its end.

    Attributes:
        num_classes: K.
        dropout: rate before the scores.
        axis_name: pmap's axis.

    Source: torchvision.models.segmentation.fcn.FCNHead; auxiliary: Zhao et al. 2017, section 3.3,
    https://arxiv.org/abs/1612.01105.
    """

    num_classes: int
    dropout: float = 0.1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, H, W, K]."""
        hidden = max(1, x.shape[-1] // 4)
        x = layers.ConvNorm(hidden, 3, axis_name=self.axis_name, name="hidden")(x, train=train)
        x = layers.Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return layers.Conv(self.num_classes, bias=True, deviation=0.01, name="score")(x)
