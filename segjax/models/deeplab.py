"""DeepLab v1, v2, v3 and v3+: a dilated backbone and, on its last map, convolutions that see far.

| variant | backbone | head |
|---|---|---|
| "v1" | VGG-16, stride 8 | DeepLab-LargeFOV: fc6 3x3 of rate 12, fc7, both of 1024 channels, scores |
| "v2" | VGG-16 or ResNet-101, stride 8 | four such branches, rates 6, 12, 18, 24, summed; on ResNet scores alone |
| "v3" | ResNet | pyramid: 1x1, 3x3 of three rates, the image's mean; or the last stage repeated (``cascade``) |
| "v3plus" | Xception, ResNet or MobileNetV2 | the pyramid, then a decoder with one skip at stride 4 |

The papers' dense CRF, and v2's training on three scales at once, are not part of the networks.

Sources: Chen et al. 2015 (v1), https://arxiv.org/abs/1412.7062; Chen et al. 2018 (v2, PAMI),
https://arxiv.org/abs/1606.00915; Chen et al. 2017 (v3), https://arxiv.org/abs/1706.05587; Chen et al. 2018 (v3+),
https://arxiv.org/abs/1802.02611.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.models._deeplab_heads import LargeFov, Pyramid, conv3x3
from segjax.models._fcn_head import FCNHead
from segjax.models._image_head import ImageHead
from segjax.types import Array, Outputs

STRIDES = {"v1": 8, "v2": 8, "v3": 16, "v3plus": 16}  # the papers' output strides
RATES = {"v1": (12,), "v2": (6, 12, 18, 24), "v3": (12, 24, 36), "v3plus": (12, 24, 36)}  # at stride 8; half at 16
LEGAL = {
    "variant": tuple(STRIDES),
    "output_stride": (16, 8),
    "image_pooling": ("avg", "max"),
    "dtype": ("float32", "bfloat16"),
}
LEAST = {
    "num_classes": 1,
    "aspp_channels": 1,
    "low_level_channels": 1,
    "decoder_channels": 1,
    "decoder_convs": 0,
    "fc_channels": 0,
    "cascade": 0,
    "image_classes": 0,
}
OF_V3 = ("v3", "v3plus")


class Model(layers.Network):
    """DeepLab.

    Attributes:
        num_classes: K.
        backbone: a name that ``backbones.build`` knows; a VGG gets DeepLab's 3x3 pools.
        variant: "v1", "v2", "v3" or "v3plus".
        output_stride: 16, or 8 (finer, about three times the work of the last stages); None: 8 in v1 and v2, else 16.
        width: a factor of the backbone's channel counts.
        dilate_first_block: see ``backbones.geometry``.
        multi_grid: factors of the dilations of a ResNet's last blocks; (1, 2, 4) with dilate_first_block in v3's best.
        cascade: v3 only: copies of a ResNet's last stage (the paper has 1 to 3) in place of the pyramid.
        aspp_rates: dilations of the head; None or () is the paper's: at stride 8 12 in v1, (6, 12, 18, 24) in v2,
            (12, 24, 36) in v3 and v3+, and half of that at 16.
        aspp_channels: of each branch of the pyramid and of its output.
        aspp_dropout: rate after the pyramid's last convolution; in v1 and v2 after fc6 and fc7.
        aspp_out_conv: one more 3x3 convolution after the pyramid.
        aspp_separable: as ``separable``, for the pyramid; None: as ``separable``.
        fc_channels: v1 and v2: of fc6 and fc7; 0: scores alone; None: 1024 on a VGG, 0 on others.
        low_level_channels: v3plus: that the stride-4 skip is reduced to.
        decoder_channels: v3plus: of the decoder's 3x3 convolutions.
        decoder_convs: v3plus: how many of them.
        separable: makes the 3x3 convolutions after the backbone depthwise separable; None: in v3plus.
        depthwise_norm: batch norm and ReLU between the two parts of a separable convolution.
        auxiliary: a second head, ``FCNHead``, on the last map before the last stage: outputs "aux_logits".
        image_classes: K', of another head on the last map, ``ImageHead``: outputs "image_logits"; 0: none.
        image_pooling, image_dropout: of that head.
        align_corners: rule of the bilinear enlargements, as in ``ops.resize``; True in the authors' Caffe and
            TensorFlow code, where sizes are 8 n + 1 or 16 n + 1.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.

    The same networks elsewhere:
        torchvision's deeplabv3_resnet50: variant="v3", output_stride=8, aspp_out_conv and auxiliary True.
        segmentation_models_pytorch's DeepLabV3: variant="v3", output_stride=8, aspp_rates=(12, 24, 36),
            aspp_out_conv, align_corners and dilate_first_block True (the last not on Xception).
        its DeepLabV3Plus: decoder_convs=1, aspp_rates=(12, 24, 36) at either stride, aspp_out_conv, align_corners and
            dilate_first_block True, depthwise_norm False.
    """

    num_classes: int
    backbone: str = "resnet50"
    variant: str = "v3plus"
    output_stride: int | None = None
    width: float = 1.0
    dilate_first_block: bool = False
    multi_grid: tuple[int, ...] = ()
    cascade: int = 0
    aspp_rates: tuple[int, ...] | None = None
    aspp_channels: int = 256
    aspp_dropout: float = 0.5
    aspp_out_conv: bool = False
    aspp_separable: bool | None = None
    fc_channels: int | None = None
    low_level_channels: int = 48
    decoder_channels: int = 256
    decoder_convs: int = 2
    separable: bool | None = None
    depthwise_norm: bool = True
    auxiliary: bool = False
    image_classes: int = 0
    image_pooling: str = "avg"
    image_dropout: float = 0.2
    align_corners: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options and puts the papers' values for None; InputError for a value that is not legal."""
        if self.output_stride is None:
            self.output_stride = STRIDES.get(self.variant, 16)
        self.check_options(one_of=LEGAL)
        self._complete()
        self.check_options(at_least=LEAST, factors=("width",), rates=("aspp_dropout", "image_dropout"))
        self.require("aspp_rates", min(self.aspp_rates) >= 1, "dilations of at least 1")
        self.require("cascade", not self.cascade or self.variant == "v3", f"0 with variant={self.variant!r}")
        for name, none in (("cascade", 0), ("multi_grid", ())):
            legal = name in self._of_backbone() or not getattr(self, name)
            self.require(name, legal, f"{none} with backbone={self.backbone!r}: only ResNets have it")
        backbones.build(self.backbone, **self._backbone_options())  # checks its own options
        super().__post_init__()

    @nn.nowrap
    def unread(self) -> tuple[str, ...]:
        """Returns the names of options that this network does not read: of other variants."""
        names = () if self.image_classes else ("image_pooling", "image_dropout")
        if self.variant != "v3plus":
            names += ("low_level_channels", "decoder_channels", "decoder_convs")
        if self.variant in ("v3", "v3plus"):
            return (*names, "fc_channels")
        return (*names, "aspp_channels", "aspp_out_conv", "aspp_separable", "separable", "depthwise_norm")

    @nn.nowrap
    def _complete(self) -> None:
        """Replaces every None by what the paper of the variant has."""
        if not self.aspp_rates:
            self.aspp_rates = tuple(rate * 8 // self.output_stride for rate in RATES[self.variant])
        if self.separable is None:
            self.separable = self.variant == "v3plus"
        if self.aspp_separable is None:
            self.aspp_separable = self.separable
        if self.fc_channels is None:
            self.fc_channels = 1024 if "pool" in self._of_backbone() else 0

    @nn.nowrap
    def _of_backbone(self) -> set[str]:
        """The options that the backbone has."""
        return {field.name for field in dataclasses.fields(backbones.find(self.backbone)[0])}

    @nn.nowrap
    def _backbone_options(self) -> dict[str, Any]:
        options = {"multi_grid": tuple(self.multi_grid), "cascade": self.cascade, "pool": "3x3"}
        return {
            "output_stride": self.output_stride,
            "width": self.width,
            "dilate_first_block": self.dilate_first_block,
            "axis_name": self.axis_name,
            **{name: value for name, value in options.items() if name in self._of_backbone()},
        }

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Computes the logits of every pixel, whatever the image's size.

        Args:
            image: f32[B, H, W, C], normalised.
            train: see ``layers.Network.apply``.
            targets: not used.
        Returns:
            {"logits": f32[B, H, W, K]}, with ``auxiliary`` also "aux_logits" of the same shape, with ``image_classes``
            also "image_logits": f32[B, K'].
        """
        del targets
        backbone = backbones.build(self.backbone, **self._backbone_options(), name="backbone")
        features = backbone(image.astype(self.dtype), train=train)
        if self.variant in OF_V3:
            x = features["out"] if self.cascade else self._pyramid(features["out"], train)
            x = self._decoder(x, features["stride_4"], train) if self.variant == "v3plus" else x
            x = layers.Conv(self.num_classes, bias=True, deviation=0.01, name="head")(x)
        else:
            head = (self.fc_channels, self.aspp_dropout, self.variant == "v1", self.axis_name)
            x = LargeFov(self.num_classes, self.aspp_rates, *head, name="head")(features["out"], train=train)
        maps = {"logits": x}
        if self.auxiliary:
            head = FCNHead(self.num_classes, axis_name=self.axis_name, name="aux_head")
            maps["aux_logits"] = head(features[f"stride_{self.output_stride}"], train=train)
        outputs = {key: self._enlarge(x.astype(jnp.float32), image.shape[1:3]) for key, x in maps.items()}
        if self.image_classes:
            head = ImageHead(self.image_classes, self.image_pooling, self.image_dropout, self.axis_name, name="image")
            outputs["image_logits"] = head(features["out"], train=train)
        return outputs

    @nn.nowrap
    def _pyramid(self, x: Array, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, aspp_channels]."""
        pyramid = Pyramid(
            self.aspp_channels,
            tuple(self.aspp_rates),
            self.aspp_separable,
            self.depthwise_norm,
            self.aspp_dropout,
            self.axis_name,
            name="aspp",
        )
        x = pyramid(x, train=train)
        return self._conv3x3(self.aspp_channels, "aspp_out")(x, train=train) if self.aspp_out_conv else x

    @nn.nowrap
    def _decoder(self, x: Array, low: Array, train: bool) -> Array:
        """[B, h, w, aspp_channels] and the skip [B, H/4, W/4, C] -> [B, H/4, W/4, decoder_channels]."""
        low = layers.ConvNorm(self.low_level_channels, axis_name=self.axis_name, name="low_level")(low, train=train)
        x = jnp.concatenate([self._enlarge(x, low.shape[1:3]), low], axis=-1)
        for number in range(1, self.decoder_convs + 1):
            x = self._conv3x3(self.decoder_channels, f"decoder{number}")(x, train=train)
        return x

    @nn.nowrap
    def _conv3x3(self, features: int, name: str) -> nn.Module:
        return conv3x3(self.separable, self.depthwise_norm, self.axis_name)(features, name=name)

    @nn.nowrap
    def _enlarge(self, x: Array, size: tuple[int, int]) -> Array:
        return ops.resize(x, size, method="bilinear", align_corners=self.align_corners)
