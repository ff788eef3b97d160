"""Image classifiers: a backbone, its pooling, and its fully connected layers; one class per image.

They are what published backbone weights were trained as, and what FCN makes convolutional. Fully connected layers are
convolutions over the whole pooled map: the same numbers, and ``fcn.convolutionize`` has nothing left to do but move.

Sources: Krizhevsky et al. 2012, section 3.5, https://papers.nips.cc/paper/4824; Simonyan & Zisserman 2014, table 1,
https://arxiv.org/abs/1409.1556; He et al. 2016, table 1, https://arxiv.org/abs/1512.03385; Sandler et al. 2018, table
2, https://arxiv.org/abs/1801.04381. Places of dropout as in torchvision.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.types import Array, Outputs

LEGAL = {"dtype": ("float32", "bfloat16")}


@dataclasses.dataclass(frozen=True)
class Head:
    """What a family of networks puts on its last map.

    Attributes:
        pooled: rows and columns the map is averaged to.
        hidden: channels of the fully connected layers fc6, fc7, each followed by ReLU.
        dropped: the layers whose input has dropout.
        dropout: its rate.
    """

    pooled: int = 1
    hidden: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ("head",)
    dropout: float = 0.0


HEADS = {
    "alexnet": Head(6, (4096, 4096), ("fc6", "fc7"), 0.5),
    "vgg": Head(7, (4096, 4096), ("fc7", "head"), 0.5),
    "mobilenet": Head(dropout=0.2),
    "xception": Head(dropout=0.5),
}


class Model(layers.Network):
    """A classifier of whole images.

    Attributes:
        num_classes: K.
        backbone: a name that ``backbones.build`` knows.
        width: a factor of the backbone's channel counts and of the hidden layers'.
        dropout: rate where the family has dropout; None is the family's own.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.
    """

    num_classes: int
    backbone: str = "resnet50"
    width: float = 1.0
    dropout: float | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        backbones.find(self.backbone)
        self.check_options(one_of=LEGAL, at_least={"num_classes": 1}, factors=("width",), rates=("dropout",))
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Computes the logits of each image, whatever its size.

        Args:
            image: f32[B, H, W, C], normalised.
            train: see ``layers.Network.apply``.
            targets: not used.
        Returns:
            {"logits": f32[B, K]}.
        """
        del targets
        features = backbones.build(self.backbone, width=self.width, axis_name=self.axis_name, name="backbone")
        family = next((head for name, head in HEADS.items() if self.backbone.startswith(name)), Head())
        x = ops.adaptive_avg_pool(features(image.astype(self.dtype), train=train)["out"], family.pooled)
        for name, channels in zip(("fc6", "fc7"), family.hidden, strict=False):
            channels = max(1, round(channels * self.width))
            x = jax.nn.relu(self._connect(x, channels, name, family, train))
        x = self._connect(x, self.num_classes, "head", family, train)
        return {"logits": x[:, 0, 0].astype(jnp.float32)}

    def _connect(self, x: Array, channels: int, name: str, family: Head, train: bool) -> Array:
        """A fully connected layer: [B, h, w, Cin] to [B, 1, 1, channels], a convolution with one place."""
        if name in family.dropped:
            rate = family.dropout if self.dropout is None else self.dropout
            x = layers.Dropout(rate, self.axis_name, name=f"{name}_dropout")(x, train=train)
        return layers.Conv(channels, x.shape[1], padding=0, bias=True, deviation=0.01, name=name)(x)
