"""Fully convolutional networks: FCN-32s, 16s, 8s and 8s-at-once, and torchvision's FCN on a dilated network.

An image classifier whose fully connected layers are read as convolutions scores every 32nd pixel (FCN-32s). The scores
are enlarged by a transposed convolution; FCN-16s and 8s enlarge by 2 first and add the scores of finer, shallower maps.

| variant | image | pools | fc6 | transposed convolutions: kernel / stride / padding |
|---|---|---|---|---|
| "authors" | padded by 100 | ceil | 7x7, no padding | 64/32/0, 32/16/0, 16/8/0, 4/2/0; then crops, see below |
| "authors_padded" | padded by 100 | ceil | 7x7, no padding | 64/32/16, 32/16/8, 16/8/4, 4/2/1; then crops of 3 |
| "padded" | as it is | ceil | 1x1 | 64/32/16, 32/16/8, 16/8/4, 4/2/1: exactly 32, 16, 8 and 2 times the size |
| "dilated" | as it is | | | none: stride 8 by dilation, a 3x3 head, bilinear resizing (torchvision) |

Crops of the authors' variant: pool4's scores start at 5, pool3's at 9, the logits at 19 (32s), 27 (16s) or 31 (8s);
crop, then sum. An image of n pixels has m = ceil((n + 198) / 32) pixels after pool5, m - 6 after fc6, and 32 (m - 5),
32 m - 144 or 32 m - 136 logits before the last crop. 224 pixels: 14, 8, and 288, 304 or 312. With transposed
convolutions that restore the size ("authors_padded") it is 32 (m - 6) in all three, 224 pixels give 8 x 32 = 256; each
transposed convolution has lost a margin, so that pool4's scores start at 6, pool3's at 12, the logits at 3.

Lecture notes that circulate give kernel 16, stride 16, padding 8 for the enlargement by 16. That makes 16 (m - 1)
pixels of m: it does not restore the size. 32/16/8 does.

Sources: Long et al. 2015, https://arxiv.org/abs/1411.4038; Shelhamer et al. 2017, https://arxiv.org/abs/1605.06211;
the authors' networks, https://github.com/shelhamer/fcn.berkeleyvision.org; torchvision's ``fcn_resnet50``.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax import backbones, layers, ops
from segjax.models._fcn_head import FCNHead
from segjax.ops.separable import apply_matrices
from segjax.types import Array, HostArray, InputError, Outputs, Variables

LEGAL = {
    "stride": (32, 16, 8),
    "variant": ("padded", "authors", "authors_padded", "dilated"),
    "upsampling": ("learned", "fixed"),
    "dtype": ("float32", "bfloat16"),
}
PADDING = 100  # of the first convolution, in the authors' variant
SKIPS = (("pool4", 16, "upscore2", 1e-2), ("pool3", 8, "upscore_pool4", 1e-4))  # and at-once's scale
LAST = {32: "upscore", 16: "upscore16", 8: "upscore8"}
CROPS = {  # where pool4's scores, pool3's and, of each stride, the logits begin
    "authors": ((5, 9), {32: 19, 16: 27, 8: 31}),
    "authors_padded": ((6, 12), {32: 3, 16: 3, 8: 3}),
    "padded": ((), {32: 0, 16: 0, 8: 0}),
}
ALEXNET = (63, 18)  # kernel of its transposed convolution, and crop
FC_WINDOW = {"vgg": 7, "alexnet": 6}  # of fc6: the map that the classifier flattens
FC_CHANNELS = 4096


class Decoder(nn.Module):
    """Scores at strides 32, 16, 8, as many as there are, to logits of every pixel.

    Attributes:
        padded: each transposed convolution restores the size; else it has no padding.
        learned: the enlarging kernels are parameters, bilinear at first; else they stay bilinear.
        window, crop: of the last transposed convolution.
        offsets: where each skip begins, as far as the map it is added to reaches; (): at 0, the map is cut to the skip.

    Source: Long et al. 2015, section 4.2 and figure 3; the authors' net.py.
    """

    padded: bool
    learned: bool
    window: int
    crop: int
    offsets: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, scores: Sequence[Array], size: tuple[int, int]) -> Array:
        """Returns [B, *size, K] of scores [B, H_s, W_s, K], coarsest first."""
        x, *skips = scores
        for number, (skip, (_, _, name, _)) in enumerate(zip(skips, SKIPS, strict=False)):
            x = self._enlarge(x, 4, 2, name)
            if self.offsets:
                skip = _crop(skip, self.offsets[number], x.shape[1:3])
            else:
                x = _crop(x, 0, skip.shape[1:3])  # twice ceil(n / 32) may be one more than ceil(n / 16)
            x = x + skip
        stride = 32 >> len(skips)
        x = self._enlarge(x, self.window, stride, LAST[stride])
        return _crop(x, self.crop, size)

    @nn.nowrap
    def _enlarge(self, x: Array, window: int, stride: int, name: str) -> Array:
        padding = (window - stride) // 2 if self.padded else 0
        channels = x.shape[-1]
        if self.learned:
            return layers.ConvTranspose(channels, window, stride, padding, bilinear=True, name=name)(x)
        return apply_matrices(x, *(_tents(n, window, stride, padding) for n in x.shape[1:3]))


class Model(layers.Network):
    """A fully convolutional network.

    Attributes:
        num_classes: K.
        backbone: a name that ``backbones.build`` knows. VGG has fc6 and fc7, in all but "dilated"; so has AlexNet, in
            "authors" at stride 32. Others score their last map directly, in "padded" and "dilated".
        variant: "padded", "authors", "authors_padded" or "dilated"; see the module.
        stride: 32, 16 or 8, of the finest scores: FCN-32s, 16s, 8s ("dilated" is always at 8).
        at_once: trained in one go rather than from 32s by way of 16s: pool4 is scaled by 0.01 and pool3 by 0.0001
            before they are scored.
        upsampling: "learned": bilinear at first; "fixed": bilinear for good, as the authors trained all of theirs.
        auxiliary: "dilated" only: a second head on the map before the last stage, outputs "aux_logits".
        width: a factor of the backbone's channel counts and of fc6's and fc7's.
        dropout: rate after fc6 and fc7, or in a head; None is 0.5, and 0.1 in "dilated".
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.

    torchvision's fcn_resnet50: variant="dilated", backbone="resnet50", auxiliary=True.
    """

    num_classes: int
    backbone: str = "vgg16"
    variant: str = "padded"
    stride: int = 8
    at_once: bool = False
    upsampling: str = "learned"
    auxiliary: bool = False
    width: float = 1.0
    dropout: float | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        backbones.find(self.backbone)
        self.check_options(one_of=LEGAL, at_least={"num_classes": 1}, factors=("width",), rates=("dropout",))
        legal = {"vgg": tuple(CROPS), "alexnet": ("authors",), "": ("padded", "dilated")}[self._family()]
        if self.variant not in legal:
            raise InputError(f"variant={self.variant!r} of model 'fcn' on {self.backbone}: expected one of {legal}")
        if self._family() == "alexnet" and self.stride != 32:
            raise InputError(f"stride={self.stride} of model 'fcn' on alexnet: expected 32")
        if self.auxiliary and self.variant != "dilated":
            raise InputError(f"auxiliary=True of model 'fcn' with variant={self.variant!r}: expected 'dilated'")
        if self.at_once and (self.variant == "dilated" or self.stride != 8):
            raise InputError(f"at_once=True of model 'fcn': expected stride=8 and no dilation, got {self.stride}")
        super().__post_init__()

    @nn.nowrap
    def unread(self) -> tuple[str, ...]:
        """Returns the names of options that this network does not read: of other variants."""
        return ("stride", "upsampling") if self.variant == "dilated" else ()

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Computes the logits of every pixel, whatever the image's size.

        Args:
            image: f32[B, H, W, C], normalised.
            train: see ``layers.Network.apply``.
            targets: not used.
        Returns:
            {"logits": f32[B, H, W, K]}, with ``auxiliary`` also "aux_logits", of the same shape.
        """
        del targets
        size, x = image.shape[1:3], image.astype(self.dtype)
        if self.variant == "dilated":
            return self._dilated(x, size, train)
        if self.variant.startswith("authors"):
            inner = {"vgg": 1, "alexnet": 2}[self._family()]  # the padding that the first convolution has already
            x = jnp.pad(x, ((0, 0), *(2 * ((PADDING - inner, PADDING - inner),)), (0, 0)))
        features = self._backbone(x, train)
        score = functools.partial(layers.Conv, self.num_classes, bias=True, deviation=0.0)  # section 4.3: zero at first
        scores = [score(name="score_fr")(self._fully_connected(features["out"], train))]
        for name, stride, _, scale in SKIPS:
            if stride >= self.stride:
                skip = features[name if self._family() else f"stride_{stride}"]
                scores.append(score(name=f"score_{name}")(skip * jnp.asarray(scale, x.dtype) if self.at_once else skip))
        offsets, crops = CROPS[self.variant]
        window, crop = ALEXNET if self._family() == "alexnet" else (2 * self.stride, crops[self.stride])
        restoring, learned = self.variant != "authors", self.upsampling == "learned"
        decoder = Decoder(restoring, learned, window, crop, offsets, name="decoder")
        return {"logits": decoder(scores, size).astype(jnp.float32)}

    @nn.nowrap
    def _family(self) -> str:
        """Which of the families with fully connected layers the backbone is of; "" for none."""
        return next((family for family in FC_WINDOW if self.backbone.startswith(family)), "")

    @nn.nowrap
    def _backbone(self, x: Array, train: bool) -> dict[str, Array]:
        options: dict[str, Any] = {"vgg": {"pool": "ceil"}, "alexnet": {"ceil_mode": True}, "": {}}[self._family()]
        options["output_stride"] = 8 if self.variant == "dilated" else 32
        build = functools.partial(backbones.build, self.backbone, width=self.width, axis_name=self.axis_name)
        return build(name="backbone", **options)(x, train=train)

    @nn.nowrap
    def _fully_connected(self, x: Array, train: bool) -> Array:
        """fc6 and fc7 of the classifier as convolutions; dropout alone where the classifier has none."""
        rate = 0.5 if self.dropout is None else self.dropout
        if not self._family():
            return layers.Dropout(rate, self.axis_name, name="dropout")(x, train=train)
        channels = max(1, round(FC_CHANNELS * self.width))
        window = FC_WINDOW[self._family()] if self.variant.startswith("authors") else 1
        for number, size in ((6, window), (7, 1)):
            x = jax.nn.relu(layers.Conv(channels, size, padding=0, bias=True, name=f"fc{number}")(x))
            x = layers.Dropout(rate, self.axis_name, name=f"dropout{number}")(x, train=train)
        return x

    @nn.nowrap
    def _dilated(self, x: Array, size: tuple[int, int], train: bool) -> Outputs:
        features = self._backbone(x, train)
        rate = 0.1 if self.dropout is None else self.dropout
        maps = {"logits": ("head", "out"), **({"aux_logits": ("aux_head", "stride_8")} if self.auxiliary else {})}
        outputs = {}
        for key, (name, source) in maps.items():
            scores = FCNHead(self.num_classes, rate, self.axis_name, name=name)(features[source], train=train)
            outputs[key] = ops.resize(scores.astype(jnp.float32), size, method="bilinear")
        return outputs


def convolutionize(weight: Array, size: tuple[int, int]) -> Array:
    """Reads a fully connected layer on a flattened [C, h, w] map as a convolution with a window of h x w.

    kernel[u, v, c, f] = weight[f, (c h + u) w + v]. Over a map of exactly h x w pixels the convolution (no padding) is
    the layer; over a larger one it is the layer at every place, all that overlaps computed once. A layer on a vector
    is h = w = 1.

    Args:
        weight: [F, C h w], as PyTorch and Caffe keep it.
        size: (h, w).
    Returns:
        [h, w, C, F], a kernel of ``ops.conv``.
    Raises:
        ValueError: h w does not divide the weight's columns.
    Source: Long et al. 2015, section 3.1 and figure 2.
    """
    height, width = size
    if weight.ndim != 2 or weight.shape[1] % (height * width):
        raise ValueError(f"weight {weight.shape} on {height} x {width} pixels: expected [F, C * {height * width}]")
    return jnp.asarray(weight).reshape(weight.shape[0], -1, height, width).transpose(2, 3, 1, 0)


def from_classifier(variables: Variables, classifier: Variables) -> dict[str, Any]:
    """Starts an FCN from an image classifier of the same backbone: all but its last layer.

    Args:
        variables: of ``Model``; scores and up-sampling keep these values.
        classifier: of ``models.classifier``: "backbone" and, where the family has them, "fc6" and "fc7".
    Returns:
        variables of the FCN.
    Raises:
        ValueError: a part of the classifier that the FCN lacks or has in another shape, such as the 7x7 fc6 of a
            classifier in the padded variant, whose fc6 is 1x1.
    Source: Long et al. 2015, section 4.1.
    """
    merged = {collection: dict(tree) for collection, tree in variables.items()}
    for collection, tree in classifier.items():
        for part, values in tree.items():
            if part not in ("backbone", "fc6", "fc7"):
                continue
            ours = merged.get(collection, {}).get(part)
            shapes = [jax.tree.map(jnp.shape, leaves) for leaves in (values, ours)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{collection}/{part}: the classifier's shapes {shapes[0]} are not the FCN's {shapes[1]}"
                )
            merged[collection][part] = values
    return merged


def _tents(size: int, window: int, stride: int, padding: int) -> HostArray:
    """``ops.bilinear_kernel`` is a product of two tents: its transposed convolution as a matrix for one axis."""
    tent = 1 - np.abs(np.arange(window) - (window - 1) / 2) / ((window + 1) // 2)
    matrix = np.zeros((stride * (size - 1) + window, size))
    for i, column in enumerate(matrix.T):
        column[i * stride : i * stride + window] = tent
    return matrix[padding : len(matrix) - padding]


def _crop(x: Array, offset: int, size: tuple[int, int]) -> Array:
    for axis, length in enumerate(size, start=1):
        x = jax.lax.slice_in_dim(x, offset, offset + length, axis=axis)
    return x
