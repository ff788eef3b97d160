"""The patch classifier: a pixel's class from the window around it; and the steps from there to dense prediction.

One set of weights, three ways to apply it (``form``):

- "patches": the window of every pixel is cut out and classified. The definition. Windows of neighbours overlap in all
  but one column, and what they share is computed again for each.
- "dense": each layer once, on the whole image. Pools do not stride, and what follows a pool reads every second pixel of
  it, after two every fourth ("à trous"): the logits of "patches", no number computed twice.
- "full_resolution": each layer once, zero-padded to the image's size, no pools: another network, whose view nothing
  widens.

"dense" still has every channel of every layer at every pixel: 4, 16, 64 ... times the work of a layer behind 1, 2, 3
... strided pools. That is why FCN (``fcn.py``) classifies at stride 32 and enlarges, and why SegNet and U-Net come back
up in steps. ``benchmarks/patch.py`` measures all of them.

Sources: Ciresan et al. 2012, Deep neural networks segment neuronal membranes in electron microscopy images, NIPS 25
(the window classifier and its training on sampled pixels); Giusti et al. 2013, Fast image scanning with deep
max-pooling convolutional neural networks, https://arxiv.org/abs/1302.1700, and Long et al. 2015, sections 3.2 and 3.4,
https://arxiv.org/abs/1411.4038 (the dense form; training on patches as sampling of the loss).
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax import layers, ops
from segjax.types import LABEL, Array, InputError, Outputs

LEGAL = {"form": ("dense", "patches", "full_resolution"), "dtype": ("float32", "bfloat16")}
LEAST = {"num_classes": 1, "last": 1, "hidden": 1, "samples": 0}


def window(kernels: Sequence[int], last: int) -> int:
    """Returns the pixels of a window's side: each stage is a convolution without padding and a pool by 2.

    Args:
        kernels: taps of each stage's convolution.
        last: pixels that the last pool leaves.
    Returns:
        w with ((w - k1 + 1) / 2 - k2 + 1) / 2 ... = last: 95 for the paper's (4, 5, 4, 4) and 3.
    """
    size = last
    for taps in reversed(kernels):
        size = 2 * size + taps - 1
    return size


class Stage(nn.Module):
    """Convolution, batch norm (or a bias), ReLU."""

    features: int
    size: int
    dilation: int
    padding: str
    normalised: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, H', W', features]."""
        conv = layers.Conv(
            self.features,
            self.size,
            dilation=self.dilation,
            bias=not self.normalised,
            padding=self.padding,
            name="conv",
        )
        x = conv(x)
        if self.normalised:
            x = layers.BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train)
        return jax.nn.relu(x)


class Classifier(nn.Module):
    """The network of a window, in one of the ways that its weights can be applied; see ``Model`` for the attributes."""

    num_classes: int
    form: str
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    last: int
    hidden: int
    norm: bool
    dropout: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Scores f32[B, H', W', K]: of each window of w x w pixels at once, [B, 1, 1, K] ("patches"); of every window
        of a larger image, H' = H - w + 1 ("dense"); of every pixel, H' = H ("full_resolution").
        """
        padding = "same" if self.form == "full_resolution" else "valid"
        dilation = 1
        for number, (channels, size) in enumerate(zip(self.channels, self.kernels, strict=True), start=1):
            stage = Stage(channels, size, dilation, padding, self.norm, self.axis_name, name=f"stage{number}")
            x = stage(x, train=train)
            if self.form == "patches":
                x = ops.max_pool(x, 2)
            elif self.form == "dense":
                x = ops.max_pool(x, 2, stride=1, dilation=dilation)
                dilation *= 2
        stage = Stage(self.hidden, self.last, dilation, padding, self.norm, self.axis_name, name="hidden")
        x = layers.Dropout(self.dropout, self.axis_name, name="dropout")(stage(x, train=train), train=train)
        x = layers.Conv(self.num_classes, bias=True, deviation=0.01, name="score")(x)
        return x.astype(jnp.float32)


class Model(layers.Network):
    """A window classifier applied at every pixel; the image goes on mirrored beyond its border.

    Training on sampled pixels: with ``samples=n`` and a batch in which at most n pixels of an image have a label
    (``augment.sampled_pixels``), a training step cuts out and classifies the n windows around them, and no more.

    Attributes:
        num_classes: K.
        form: "dense", "patches" or "full_resolution"; see the module.
        channels: of each stage's convolution, after which a pool halves the map; the default is the paper's N4.
        kernels: taps of each of them.
        last: rows and columns that the last pool leaves of a window: the taps of the fully connected layer.
        hidden: its channels.
        samples: windows per image in training, those of labelled pixels; 0: all pixels, by ``form``.
        norm: batch norm after the convolutions; the paper has none.
        dropout: rate before the scores; the paper has none.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.
    """

    num_classes: int
    form: str = "dense"
    channels: tuple[int, ...] = (48, 48, 48, 48)
    kernels: tuple[int, ...] = (4, 5, 4, 4)
    last: int = 3
    hidden: int = 200
    samples: int = 0
    norm: bool = True
    dropout: float = 0.5
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        self.check_options(one_of=LEGAL, at_least=LEAST, rates=("dropout",))
        if len(self.channels) != len(self.kernels) or min(*self.channels, *self.kernels, 1) < 1:
            raise InputError(
                f"channels={self.channels} and kernels={self.kernels} of model 'patch': expected as many of one as of "
                "the other, all at least 1"
            )
        if self.samples and self.form == "full_resolution":
            raise InputError(
                f"samples={self.samples} of model 'patch' in full resolution: expected 'dense' or 'patches'"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Computes the logits of every pixel, or, training with ``samples``, of labelled ones.

        Args:
            image: f32[B, H, W, C], normalised.
            train: see ``layers.Network.apply``.
            targets: the batch; its "label" tells which windows ``samples`` takes.
        Returns:
            {"logits": f32[B, H, W, K]}; where a window was left out, NaN, which a loss may not count: more labelled
            pixels than ``samples`` do not go unnoticed.
        """
        sampling = train and targets is not None and self.samples > 0
        classifier = Classifier(
            self.num_classes,
            "patches" if sampling else self.form,
            tuple(self.channels),
            tuple(self.kernels),
            self.last,
            self.hidden,
            self.norm,
            self.dropout,
            self.axis_name,
            name="classifier",
        )
        side = window(self.kernels, self.last)
        if self.form == "full_resolution":
            return {"logits": classifier(image.astype(self.dtype), train=train)}
        x = _mirrored(image.astype(self.dtype), side)
        if sampling:
            return {"logits": self._sampled(classifier, x, side, jnp.asarray(targets[LABEL]))}
        if self.form == "dense":
            return {"logits": classifier(x, train=train)}
        if train or self.is_mutable_collection("params"):  # or init
            rows = [_windows(x, side, row) for row in range(image.shape[1])]
            scores = classifier(jnp.concatenate(rows, axis=1).reshape(-1, side, side, x.shape[-1]), train=train)
            return {"logits": scores.reshape(*image.shape[:3], self.num_classes)}
        # One row of pixels at a time in memory: the windows are w^2 times the image.
        free, variables = classifier.unbind()

        def row_of(row: Array) -> Array:
            windows = _windows(x, side, row).reshape(-1, side, side, x.shape[-1])
            return free.apply(variables, windows, train=False).reshape(image.shape[0], image.shape[2], self.num_classes)

        return {"logits": jnp.swapaxes(jax.lax.map(row_of, jnp.arange(image.shape[1])), 0, 1)}

    @nn.nowrap
    def _sampled(self, classifier: Classifier, x: Array, side: int, label: Array) -> Array:
        """Logits of ``samples`` labelled pixels of each image at their places, NaN elsewhere."""
        batch, height, width = label.shape
        labelled = ((label >= 0) & (label < self.num_classes)).reshape(batch, -1)
        count = min(self.samples, height * width)
        _, pixels = jax.lax.top_k(labelled.astype(jnp.int32), count)  # the labelled first, in row order

        def cut(image: Array, pixel: Array) -> Array:
            start = (pixel // width, pixel % width, 0)
            return jax.lax.dynamic_slice(image, start, (side, side, image.shape[-1]))

        windows = jax.vmap(jax.vmap(cut, in_axes=(None, 0)))(x, pixels)
        scores = classifier(windows.reshape(-1, side, side, x.shape[-1]), train=True)
        logits = jnp.full((batch, height * width, self.num_classes), jnp.nan, jnp.float32)
        logits = logits.at[jnp.arange(batch)[:, None], pixels].set(scores.reshape(batch, count, -1))
        return logits.reshape(batch, height, width, self.num_classes)


def _mirrored(x: Array, side: int) -> Array:
    """[B, H, W, C] continued by side - 1 rows and columns, mirrored at the outermost pixels."""
    for axis in (1, 2):
        size = x.shape[axis]
        place = np.arange(-(side // 2), size + (side - 1) // 2) % max(1, 2 * size - 2)
        x = jnp.take(x, np.minimum(place, max(0, 2 * size - 2) - place) % size, axis=axis, mode="clip")
    return x


def _windows(x: Array, side: int, row: int | Array) -> Array:
    """The windows of one row of pixels, [B, W, side, side, C], of a mirrored image."""
    rows = jax.lax.dynamic_slice_in_dim(x, row, side, axis=1)
    columns = np.arange(x.shape[2] - side + 1)[:, None] + np.arange(side)
    return jnp.moveaxis(jnp.take(rows, columns, axis=2, mode="clip"), 2, 1)
