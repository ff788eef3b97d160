"""Image classifiers: a backbone, its pooling, and its fully connected layers; one class per image, or its features.

They are what published backbone weights were trained as, and what FCN makes convolutional. Fully connected layers are
convolutions over the whole pooled map: the same numbers, and ``fcn.convolutionize`` has nothing left to do but move.

Sources: Krizhevsky et al. 2012, section 3.5, https://papers.nips.cc/paper/4824; Simonyan & Zisserman 2014, table 1,
https://arxiv.org/abs/1409.1556; He et al. 2016, table 1, https://arxiv.org/abs/1512.03385; Sandler et al. 2018, table
2, https://arxiv.org/abs/1801.04381. Places of dropout as in torchvision.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.types import Array, Outputs

LEGAL = {"dtype": ("float32", "bfloat16")}
LEAST = {"num_classes": 0}


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
        num_classes: K; 0 leaves the last layer out.
        backbone: a name that ``backbones.build`` knows.
        width: a factor of the backbone's channel counts and of the hidden layers'.
        output_stride: of the backbone's last map; 16 or 8 by dilation.
        sliding: fc6 of a VGG or an AlexNet slides over a map larger than its window, and what fc7 makes of every place
            is averaged, as in timm; else the map is first averaged to the window, as in torchvision.
        maps: without classes only: the backbone's maps in place of the averaged last one.
        dropout: rate where the family has dropout; None is the family's own.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.
    """

    num_classes: int
    backbone: str = "resnet50"
    width: float = 1.0
    output_stride: int = 32
    sliding: bool = False
    maps: bool = False
    dropout: float | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        backbones.find(self.backbone)
        self.check_options(one_of=LEGAL, at_least=LEAST, factors=("width",), rates=("dropout",))
        self.require("sliding", not self.sliding or bool(self._family().hidden), f"False on {self.backbone}")
        self.require("maps", not self.maps or not self.num_classes, f"False with num_classes={self.num_classes}")
        backbones.build(self.backbone, **self._backbone_options())  # checks its own options
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Computes the logits, or the features, of each image, whatever its size.

        Args:
            image: f32[B, H, W, C], normalised.
            train: see ``layers.Network.apply``.
            targets: not used.
        Returns:
            {"logits": f32[B, K]}; without classes {"features": f32[B, C]}, the averaged last map or what fc7 makes of
            it; with ``maps`` {"stride_2": f32[B, ceil(H / 2), ceil(W / 2), C], ..., "out"}, those of the backbone.
        """
        del targets
        backbone = backbones.build(self.backbone, **self._backbone_options(), name="backbone")
        found = backbone(image.astype(self.dtype), train=train)
        if self.maps:
            return {name: x.astype(jnp.float32) for name, x in found.items() if not name.startswith("pool")}
        family, x = self._family(), found["out"]
        size = family.pooled
        x = ops.adaptive_avg_pool(x, tuple(max(n, size) for n in x.shape[1:3]) if self.sliding else size)
        for name, channels, window in zip(("fc6", "fc7"), family.hidden, (size, 1), strict=False):
            channels = max(1, round(channels * self.width))
            x = jax.nn.relu(self._connect(x, channels, window, name, train))
        x = ops.adaptive_avg_pool(x, 1) if self.sliding else x
        x = self._connect(x, self.num_classes, 1, "head", train) if self.num_classes else x
        return {"logits" if self.num_classes else "features": x[:, 0, 0].astype(jnp.float32)}

    @nn.nowrap
    def _family(self) -> Head:
        return next((head for name, head in HEADS.items() if self.backbone.startswith(name)), Head())

    @nn.nowrap
    def _backbone_options(self) -> dict[str, Any]:
        options = {"width": self.width, "output_stride": self.output_stride, "axis_name": self.axis_name}
        return options | ({"head": False} if self.maps and self.backbone.startswith("mobilenet") else {})

    @nn.nowrap
    def _connect(self, x: Array, channels: int, window: int, name: str, train: bool) -> Array:
        """A fully connected layer as a convolution: over a map of its window [B, w, w, Cin] to [B, 1, 1, channels]."""
        family = self._family()
        if name in family.dropped:
            rate = family.dropout if self.dropout is None else self.dropout
            x = layers.Dropout(rate, self.axis_name, name=f"{name}_dropout")(x, train=train)
        return layers.Conv(channels, window, padding=0, bias=True, deviation=0.01, name=name)(x)
