"""U-Net: a contracting path, and an expanding one that joins each level's maps to the enlarged ones from below.

Three variants: the paper's valid convolutions, whose logits lack a margin of the image; the same with padding, logits
as large as the image; and a decoder like it on any backbone, as segmentation_models_pytorch's Unet.

Source: Ronneberger, Fischer & Brox 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation,
https://arxiv.org/abs/1505.04597.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.models._image_head import ImageHead
from segjax.types import Array, Outputs

LEGAL = {
    "variant": ("paper", "padded", "backbone"),
    "output": ("mirror", "native"),
    "norm": ("none", "batch"),
    "decoder_norm": ("batch", "none"),
    "interpolation": ("nearest", "nearest-exact", "bilinear", "bicubic"),
    "attention": ("none", "scse"),
    "image_pooling": ("avg", "max"),
    "dtype": ("float32", "bfloat16"),
}
LEAST = {"num_classes": 1, "depth": 1, "base_width": 1, "image_classes": 0}


class Sizes(NamedTuple):
    """The image sizes of one axis that a network takes: least, least + step, least + 2 step, ...

    Attributes:
        least: the smallest, pixels.
        step: pixels from one to the next.
        margin: pixels at either end of the image that have no logits: pixel i of the logits is pixel i + margin.
    """

    least: int
    step: int
    margin: int

    def output(self, size: int) -> int:
        """Returns the logits' pixels of an image of ``size`` pixels.

        Raises:
            ValueError: the network does not take such an image; the message names the two nearest sizes it takes.
        """
        below = max(size - self.least, 0) // self.step * self.step + self.least
        if size != below:
            raise ValueError(f"an image of {size} pixels: the nearest sizes are {below} and {below + self.step}")
        return size - 2 * self.margin

    def covering(self, output: int) -> int:
        """Returns the smallest image size whose logits have at least ``output`` pixels."""
        return self.least + max(-(-(output + 2 * self.margin - self.least) // self.step), 0) * self.step


def valid_sizes(depth: int) -> Sizes:
    """Solves the legal sizes of the paper's network, on which every 2x2 pool sees an even number of pixels.

    With n_i pixels entering level i of the contracting path and o_i leaving it on the expanding one, two 3x3
    convolutions take 4 pixels each time: n_i = 2 n_{i+1} + 4, o_i = 2 o_{i+1} - 4, and o_d = n_d - 4 at the bottom.
    Hence n_0 = 2^d n_d + 4 (2^d - 1) and o_0 = n_0 - 2 (6 * 2^d - 4), with the least n_d for which o_0 > 0.

    Args:
        depth: d, the number of poolings; 4 in the paper: 572 pixels give 388.
    Returns:
        the sizes; at depth 4 least 188, step 16, margin 92.
    Source: figure 1, and section 2: "it is important to select the input tile size such that all 2x2 max-pooling
    operations are applied to a layer with an even x- and y-size".
    """
    step, margin = 2**depth, 6 * 2**depth - 4
    bottom = -(-(4 * (step - 1) + 1) // step) + 4
    return Sizes(step * bottom + 4 * (step - 1), step, margin)


class Convs(nn.Module):
    """Two 3x3 convolutions, each followed by a ReLU, with batch norm before it if asked for."""

    features: int
    valid: bool = False
    norm: str = "batch"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, C] to [B, H, W, features], valid: [B, H - 4, W - 4, features]."""
        for name in ("conv1", "conv2"):
            x = ConvRelu(self.features, self.valid, self.norm, self.axis_name, name=name)(x, train=train)
        return x


class ConvRelu(nn.Module):
    """A 3x3 convolution, drawn by the fan-in (section 3 of the paper); batch norm replaces its bias."""

    features: int
    valid: bool
    norm: str
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, C] to [B, H, W, features], valid: [B, H - 2, W - 2, features]."""
        deviation, padding = (2 / (9 * x.shape[-1])) ** 0.5, 0 if self.valid else 1
        bias = self.norm == "none"
        x = layers.Conv(self.features, 3, bias=bias, deviation=deviation, padding=padding, name="conv")(x)
        if self.norm == "batch":
            x = layers.BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train)
        return jax.nn.relu(x)


_OF_BACKBONE = (
    "backbone", "width", "decoder_channels", "pruned", "decoder_norm", "interpolation", "attention", "center",
    "image_classes", "image_pooling", "image_dropout",
)  # fmt: skip


class Model(layers.Network):
    """U-Net.

    Attributes:
        num_classes: K.
        variant: "paper" (valid convolutions), "padded" (its 3x3 convolutions padded by 1; any image size: pools round
            up and up-convolutions are cropped to the skip), or "backbone" (segmentation_models_pytorch's Unet).
        output: of "paper". "mirror" continues the image by reflection, so that the logits have its size, whatever it
            is: low ends by the margin, high ends up to the next legal size. "native" takes legal sizes only, and gives
            logits without the margins (``sizes``).
        depth: poolings of "paper" and "padded".
        base_width: channels of their first level; each level below has twice as many (1024 at the paper's bottom).
        norm: "none" or "batch", before each of their ReLUs.
        dropout: rate at the end of their contracting path, on the maps of its last two levels.
        backbone: a name that ``backbones.build`` knows, for "backbone".
        width: a factor of its channel counts.
        decoder_channels: of the decoder blocks on it, to stride 1: five from stride 32, or four or three that begin at
            stride 16 or 8, above the stages that are then not looked at.
        pruned: build none of these stages (of a ResNet), as on the encoders that smp takes from timm.
        decoder_norm: "batch" or "none", in the decoder on it.
        interpolation: of that decoder's enlargements: "nearest", "nearest-exact", "bilinear" or "bicubic".
        attention: "none", or "scse": ``Attention`` in each of its blocks.
        center: two more convolutions on the map it begins with; None: on a VGG.
        image_classes: K', of a second head on the backbone, ``ImageHead``: outputs "image_logits"; 0: none.
        image_pooling, image_dropout: of that head.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.
    """

    num_classes: int
    variant: str = "paper"
    output: str = "mirror"
    depth: int = 4
    base_width: int = 64
    norm: str = "none"
    dropout: float = 0.5
    backbone: str = "resnet34"
    width: float = 1.0
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    pruned: bool = False
    decoder_norm: str = "batch"
    interpolation: str = "nearest"
    attention: str = "none"
    center: bool | None = None
    image_classes: int = 0
    image_pooling: str = "avg"
    image_dropout: float = 0.2
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        backbones.find(self.backbone)
        self.check_options(one_of=LEGAL, at_least=LEAST, factors=("width",), rates=("dropout", "image_dropout"))
        least = 16 if self.attention == "scse" else 1
        legal = 3 <= len(self.decoder_channels) <= 5 and min(self.decoder_channels) >= least
        self.require("decoder_channels", legal, f"five (or four, or three), at least {least}")
        depths = backbones.find(self.backbone)[1].get("blocks", ())
        self.require("pruned", not self.pruned or len(depths) == 4, "False, but for a ResNet")
        if self.center is None:
            self.center = self.backbone.startswith("vgg")
        super().__post_init__()

    @nn.nowrap
    def unread(self) -> tuple[str, ...]:
        """Returns the names of options that this network does not read: of other variants."""
        if self.variant == "backbone":
            return ("output", "depth", "base_width", "norm", "dropout")
        return ("output",) * (self.variant == "padded") + _OF_BACKBONE

    @property
    def sizes(self) -> Sizes:
        """The image sizes this network takes as they are, without mirroring, and the margin its logits lack.

        A backbone may have a least size of its own (VGG 32, AlexNet 63).
        """
        return valid_sizes(self.depth) if self.variant == "paper" else Sizes(least=1, step=1, margin=0)

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Maps an image to class scores.

        Args:
            image: f32[B, H, W, C], normalised; H, W >= 1, or legal sizes with the paper's native output.
            train: batch norm uses the batch's statistics, and dropout is on.
            targets: unused.
        Returns:
            {"logits": f32[B, H, W, K]}; native: [B, H - 2 margin, W - 2 margin, K]. With ``image_classes``, on a
            backbone, also "image_logits": f32[B, K'].
        Raises:
            ValueError: an illegal size with native output; the message names the two nearest legal ones. An image too
                small for the backbone.
        """
        del targets
        x, (height, width) = image.astype(self.dtype), image.shape[1:3]
        if self.variant == "backbone":
            return _on_backbone(self, x, train)
        if self.variant == "paper" and self.output == "mirror":
            x = _mirrored(x, self.sizes)
        elif self.variant == "paper":
            height, width = (self.sizes.output(size) for size in (height, width))
        x = _contract_and_expand(self, x, train)
        return {"logits": x[:, :height, :width].astype(jnp.float32)}


def _mirrored(x: Array, sizes: Sizes) -> Array:
    """Continues an image by reflection about its outermost pixels to a legal size whose logits cover it."""
    ends = ((sizes.margin, sizes.covering(size) - size - sizes.margin) for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), *ends, (0, 0)), mode="reflect")


def _contract_and_expand(model: Model, x: Array, train: bool) -> Array:
    """The paper's network, valid or padded."""
    valid, skips = model.variant == "paper", []
    for level in range(model.depth + 1):
        if level:
            # An axis of one pixel stays as it is.
            x = ops.max_pool(x, tuple(min(2, n) for n in x.shape[1:3]), stride=2, ceil_mode=not valid)
        features = model.base_width * 2**level
        x = Convs(features, valid, model.norm, model.axis_name, name=f"down{level}")(x, train=train)
        if level >= model.depth - 1:
            x = layers.Dropout(model.dropout, model.axis_name, name=f"dropout{level}")(x, train=train)
        skips.append(x)
    x = skips.pop()
    for level in reversed(range(model.depth)):
        features, skip = model.base_width * 2**level, skips.pop()
        x = layers.ConvTranspose(features, bias=True, name=f"up{level}")(x)
        if valid:
            skip = _centre(skip, x.shape[1:3])
        x = jnp.concatenate([x[:, : skip.shape[1], : skip.shape[2]], skip], axis=-1)
        x = Convs(features, valid, model.norm, model.axis_name, name=f"merge{level}")(x, train=train)
    return layers.Conv(model.num_classes, bias=True, deviation=(2 / x.shape[-1]) ** 0.5, name="head")(x)


def _centre(x: Array, size: tuple[int, int]) -> Array:
    """Crops the middle of an image; what is cut off is even."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


class Attention(nn.Module):
    """x * channels + x * pixels: what channel matters, told by the image's mean, and what pixel, told by its channels.

    Source: Roy et al. 2018, Concurrent spatial and channel squeeze & excitation, https://arxiv.org/abs/1803.02579,
    with the sum and the reduction by 16 of segmentation_models_pytorch.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to the same shape."""
        channels = layers.Conv(x.shape[-1] // 16, bias=True, name="reduce")(ops.adaptive_avg_pool(x, 1))
        channels = layers.Conv(x.shape[-1], bias=True, name="expand")(jax.nn.relu(channels))
        pixels = layers.Conv(1, bias=True, name="pixel")(x)
        return x * jax.nn.sigmoid(channels) + x * jax.nn.sigmoid(pixels)


class Block(nn.Module):
    """Two convolutions of a decoder on a backbone, attention before and after them if asked for."""

    features: int
    norm: str
    attention: str
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, skip: Array | None, *, train: bool) -> Array:
        """Maps [B, H, W, C] and the skip [B, H, W, C'], or None, to [B, H, W, features]."""
        attend = self.attention == "scse"
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        if attend:
            attended = Attention(name="attention1")(x)
            x = x if skip is None else attended  # as in smp, where a block without a skip has the weights all the same
        for name in ("conv1", "conv2"):
            x = ConvRelu(self.features, False, self.norm, self.axis_name, name=name)(x, train=train)
        return Attention(name="attention2")(x) if attend else x


def _on_backbone(model: Model, image: Array, train: bool) -> Outputs:
    """The decoder of segmentation_models_pytorch's Unet: each block enlarges to the next finer map and joins it."""
    depth, options = len(model.decoder_channels), {"width": model.width, "axis_name": model.axis_name}
    if model.pruned:  # the stem is stride 2, the stages are 4, 8, 16 and 32
        options["blocks"] = backbones.find(model.backbone)[1]["blocks"][: depth - 1]
    maps = backbones.build(model.backbone, **options, name="backbone")(image, train=train)
    first = x = maps["out"] if depth == 5 or model.pruned else maps[f"stride_{2**depth}"]
    if model.center:
        x = Convs(x.shape[-1], norm=model.decoder_norm, axis_name=model.axis_name, name="center")(x, train=train)
    for number, features in enumerate(model.decoder_channels, start=1):
        stride = 2 ** (depth - number)
        skip = maps.get(f"stride_{stride}") if stride > 1 else None  # no skip at the image's own resolution
        size = tuple(-(-n // stride) for n in image.shape[1:3]) if skip is None else skip.shape[1:3]
        x = ops.resize(x, size, method=model.interpolation)
        block = Block(features, model.decoder_norm, model.attention, model.axis_name, name=f"decoder{number}")
        x = block(x, skip, train=train)
    deviation = (2 / (9 * x.shape[-1])) ** 0.5
    logits = layers.Conv(model.num_classes, 3, bias=True, deviation=deviation, name="head")(x)
    outputs = {"logits": logits.astype(jnp.float32)}
    if model.image_classes:
        head = ImageHead(model.image_classes, model.image_pooling, model.image_dropout, model.axis_name, name="image")
        outputs["image_logits"] = head(first, train=train)
    return outputs
