"""SegNet, SegNet-Basic and DeconvNet: decoders that put each value back where the encoder's max-pool found it.

Pooling keeps, next to the maxima, where they lay. The decoder's unpooling writes its values at those places into a map
of the size the pool had read, zeros elsewhere; convolutions then make it dense.

Source: Badrinarayanan, Kendall & Cipolla 2017, SegNet, https://arxiv.org/abs/1511.00561, and the authors' models
(SegNet-Tutorial, segnet_train.prototxt and segnet_basic_train.prototxt); Noh, Hong & Han 2015, Learning Deconvolution
Network for Semantic Segmentation, https://arxiv.org/abs/1505.04366.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import layers, ops
from segjax.types import Array, Outputs

LEGAL = {"variant": ("segnet", "basic", "deconvnet"), "dtype": ("float32", "bfloat16")}
LEAST = {"num_classes": 1, "bottleneck": 1}

# Channels of each convolution, by stage from the image down: VGG-16's, and the decoders that mirror it. SegNet's last
# convolution, of stage 1, is its classifier.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
ENCODERS = {"segnet": VGG16, "basic": ((64,),) * 4, "deconvnet": VGG16}
DECODERS = {
    "segnet": ((64,), (128, 64), (256, 256, 128), (512, 512, 256), (512, 512, 512)),
    "basic": ((64,),) * 4,
    "deconvnet": ((64, 64), (128, 64), (256, 256, 128), (512, 512, 256), (512, 512, 512)),
}
WINDOW = 7  # of DeconvNet's fc6: the last map of a 224x224 image


class DeconvNorm(nn.Module):
    """A transposed convolution 3x3 of stride 1, which keeps the size, batch norm and ReLU."""

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, H, W, features]."""
        x = layers.ConvTranspose(self.features, 3, stride=1, padding=1, bias=True, name="conv")(x)
        return jax.nn.relu(layers.BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train))


class Bottleneck(nn.Module):
    """DeconvNet's middle: fc6 as a 7x7 convolution without padding, fc7 as 1x1, and a transposed 7x7 back.

    A map below 7x7 (an image below 193 pixels) is continued by zeros, and the result cropped.

    Source: Noh et al. 2015, table 2 of the supplement (fc6, fc7, deconv-fc6).
    """

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, C] to [B, H, W, C]."""
        norm = lambda name: layers.BatchNorm(axis_name=self.axis_name, name=name)
        (height, width), channels = x.shape[1:3], x.shape[-1]
        x = jnp.pad(x, ((0, 0), *((0, max(WINDOW - n, 0)) for n in (height, width)), (0, 0)))
        size = x.shape[1:3]
        x = layers.Conv(self.features, WINDOW, padding=0, bias=True, name="fc6")(x)
        x = jax.nn.relu(norm("fc6_norm")(x, train=train))
        x = layers.Conv(self.features, bias=True, name="fc7")(x)
        x = jax.nn.relu(norm("fc7_norm")(x, train=train))
        x = layers.ConvTranspose(channels, WINDOW, stride=1, bias=True, name="deconv")(x, output_size=size)
        return jax.nn.relu(norm("deconv_norm")(x, train=train))[:, :height, :width]


class Model(layers.Network):
    """SegNet and its kin.

    Attributes:
        num_classes: K.
        variant: "segnet": VGG-16's 13 convolutions and their mirror, batch norm after all but the classifier, a bias
            in each (29.5 million parameters). "basic": four stages of one 7x7 convolution to 64 channels each, a
            decoder without ReLU, local response normalisation of the image. "deconvnet": VGG-16 with its fully
            connected layers as a bottleneck, a decoder of transposed convolutions (252 million).
        width: a factor of every channel count but the bottleneck's.
        bottleneck: channels of DeconvNet's fc6 and fc7.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis, for batch norm.

    Any image size: pools round up, as Caffe's, and each unpooling restores the size its pool had read (360x480 pixels
    become 180x240, 90x120, 45x60, 23x30, 12x15, and back).
    """

    num_classes: int
    variant: str = "segnet"
    width: float = 1.0
    bottleneck: int = 4096
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        self.check_options(one_of=LEGAL, at_least=LEAST, factors=("width",))
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Maps an image of any size to class scores at its size.

        Args:
            image: f32[B, H, W, C], normalised; H, W >= 1.
            train: batch norm uses the batch's statistics.
            targets: unused.
        Returns:
            {"logits": f32[B, H, W, K]}.
        """
        del targets
        x = image.astype(self.dtype)
        if self.variant == "basic":
            x = local_response_norm(x)
        x, switches = _encode(self, x, train)
        if self.variant == "deconvnet":
            x = Bottleneck(self.bottleneck, self.axis_name, name="bottleneck")(x, train=train)
        x = _decode(self, x, switches, train)
        window = 3 if self.variant == "segnet" else 1
        x = layers.Conv(self.num_classes, window, bias=True, deviation=0.01, name="head")(x)
        return {"logits": x.astype(jnp.float32)}


def _encode(model: Model, x: Array, train: bool) -> tuple[Array, list[tuple[Array, tuple[int, int]]]]:
    """Returns the last map, and of each stage where its maxima lay in a map of which size."""
    switches = []
    for stage, counts in enumerate(ENCODERS[model.variant], start=1):
        for number, count in enumerate(counts, start=1):
            x = _conv(model, count, f"encoder{stage}_{number}")(x, train=train)
        size = x.shape[1:3]
        # An axis of one pixel stays as it is.
        x, indices = ops.max_pool(x, tuple(min(2, n) for n in size), stride=2, ceil_mode=True, return_indices=True)
        switches.append((indices, size))
    return x, switches


def _decode(model: Model, x: Array, switches: list[tuple[Array, tuple[int, int]]], train: bool) -> Array:
    """Unpools and convolves, from the last stage to the first; the convolutions of a stage are numbered as applied."""
    for stage, counts in reversed(list(enumerate(DECODERS[model.variant], start=1))):
        x = ops.max_unpool(x, *switches[stage - 1])
        for number, count in enumerate(counts, start=1):
            x = _conv(model, count, f"decoder{stage}_{number}")(x, train=train)
    return x


def _conv(model: Model, count: int, name: str) -> nn.Module:
    """One convolution of a variant's encoder or decoder, with its batch norm and activation."""
    features, decoder = max(1, round(count * model.width)), name.startswith("decoder")
    if model.variant == "deconvnet" and decoder:
        return DeconvNorm(features, model.axis_name, name=name)
    window = 7 if model.variant == "basic" else 3
    activation = None if model.variant == "basic" and decoder else jax.nn.relu
    return layers.ConvNorm(features, window, activation=activation, axis_name=model.axis_name, bias=True, name=name)


def local_response_norm(x: Array, *, window: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    """Divides by (1 + alpha / window * sum of squares over neighbouring channels) ** beta.

    Args:
        x: [B, H, W, C].
        window: odd number of channels, the value's own in the middle; those beyond the first and last count as 0.
        alpha, beta: see above; the values are SegNet-Basic's.
    Returns:
        [B, H, W, C] of x's dtype.
    Source: Krizhevsky et al. 2012, section 3.3, with Caffe's alpha / window and k = 1.
    """
    channels, side = x.shape[-1], window // 2
    squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), (side, side)))
    total = sum(squares[..., offset : offset + channels] for offset in range(window))
    return (x / (1 + alpha / window * total) ** beta).astype(x.dtype)
