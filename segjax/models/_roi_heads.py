"""What Mask R-CNN does with a region: pooling from the level of its size, the box head, the mask head.

Source: He et al. 2017 (Mask R-CNN), section 3 and figure 4, https://arxiv.org/abs/1703.06870; levels: Lin et al. 2017
(FPN), equation 1, https://arxiv.org/abs/1612.03144.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.backbones.fpn import LEVELS, STRIDES
from segjax.backbones.resnet import Block
from segjax.models._detection_presets import Options
from segjax.models._region_norm import RegionConv, convolutions
from segjax.models._rpn import long_enough
from segjax.types import Array

BOX_SIZE, MASK_SIZE = 7, 14  # bins of the pooled regions
POOLED = LEVELS[:4]  # levels that regions are cut from
C4_STRIDE = 16
Boxes = Callable[[Array], tuple[Array, Array, Array | None]]
Masks = Callable[..., Array]
_PARTS = 8  # that regions with masks are split into, of which those without any cost nothing


class Pooling(NamedTuple):
    """How regions are cut out of the levels; see the model's options of the same names."""

    scales: tuple[float, ...]  # pixels of each level per pixel of the image
    aligned: bool
    sampling_ratio: int
    max_sampling: int
    level_epsilon: str

    def __call__(self, features: Sequence[Array], boxes: Array, size: int) -> Array:
        """Pools boxes f32[B, R, 4] of the image's pixels from levels [B, h, w, C] to [B, R, size, size, C]."""
        return ops.roi_align_levels(
            features,
            boxes,
            levels_of(boxes, self.scales, self.level_epsilon),
            output_size=size,
            spatial_scales=self.scales,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            max_sampling=None if self.sampling_ratio else self.max_sampling,
        )


def levels_of(boxes: Array, scales: Sequence[float], epsilon: str) -> Array:
    """Which of the levels each box is cut from: floor(4 + log2(sqrt(area) / 224)), level l having the scale 2^-l.

    Args:
        boxes: f32[..., 4].
        scales: of the levels there are.
        epsilon: what is added against rounding: "outside" 1e-6 to the logarithm (torchvision), "inside" 1e-8 to its
            argument (detectron2).
    Returns:
        i32[...], index into ``scales``.
    """
    first, last = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    ratio = jnp.sqrt(jnp.maximum(ops.box_area(boxes), 0.0)) / 224
    level = 4 + jnp.log2(ratio) + 1e-6 if epsilon == "outside" else 4 + jnp.log2(ratio + 1e-8)
    return (jnp.clip(jnp.floor(level), first, last) - first).astype(jnp.int32)


class BoxHead(nn.Module):
    """From pooled regions to one vector each: 3x3 convolutions, then fully connected layers, all with ReLU.

    Attributes:
        convs: how many convolutions, of as many channels as come in; with any, one fully connected layer, else two.
        features: of the fully connected layers.
        norm: batch norm in the convolutions, which then have no bias.
        axis_name: pmap's axis.
    """

    convs: int
    features: int
    norm: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool, wanted: Array | None = None) -> Array:
        """Maps [B, R, h, w, C] to [B, R, features]; statistics are of those ``wanted``, bool[B, R]."""
        leading = x.shape[:2]
        x = x.reshape(-1, *x.shape[2:])
        norm = functools.partial(RegionConv, x.shape[-1], self.axis_name) if self.norm else None
        x = convolutions(x, self.convs, x.shape[-1], norm, train, wanted)
        for number in range(6, 7 if self.convs else 8):
            deviation = (1 / x[0].size) ** 0.5
            fc = layers.Conv(self.features, x.shape[1], padding=0, bias=True, deviation=deviation, name=f"fc{number}")
            x = jax.nn.relu(fc(x))
        return x.reshape(*leading, -1)


class Predictor(nn.Module):
    """Class scores, and a box coding for each class.

    Attributes:
        columns: of the scores, background among them.
        coded: classes that have a box coding.
    """

    columns: int
    coded: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Maps [B, R, F] to (logits f32[B, R, columns], deltas f32[B, R, 4 coded])."""
        leading = x.shape[:2]
        x = x.reshape(-1, 1, 1, x.shape[-1])
        logits = layers.Conv(self.columns, bias=True, deviation=0.01, name="classes")(x)
        deltas = layers.Conv(4 * self.coded, bias=True, deviation=0.001, name="boxes")(x)
        return tuple(y.astype(jnp.float32).reshape(*leading, -1) for y in (logits, deltas))


class MaskHead(nn.Module):
    """From pooled regions to a mask of every class: 3x3 convolutions, one 2x2 enlargement by two, 1x1 scores.

    Attributes:
        convs, channels: of the 3x3 convolutions; the enlargement has as many channels.
        classes: masks of each region.
        norm: batch norm in the convolutions, which then have no bias.
        axis_name: pmap's axis.
    """

    convs: int
    channels: int
    classes: int
    norm: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool, wanted: Array | None = None) -> Array:
        """Maps [B, R, h, w, C] to logits [B, R, 2 h, 2 w, classes]; statistics are of those ``wanted``, bool[B, R]."""
        leading = x.shape[:2]
        x = x.reshape(-1, *x.shape[2:])
        norm = functools.partial(RegionConv, self.channels, self.axis_name) if self.norm else None
        x = convolutions(x, self.convs, self.channels, norm, train, wanted)
        x = jax.nn.relu(layers.ConvTranspose(self.channels, bias=True, name="enlarge")(x))
        x = layers.Conv(self.classes, bias=True, deviation=0.001, name="masks")(x)
        return x.reshape(*leading, *x.shape[1:])


class Stage5(nn.Module):
    """The fourth stage of a ResNet as the head of every region ("res5" of the C4 network).

    Attributes:
        blocks, bottleneck, channels, stride_place, norm_epsilon: as in ``backbones.resnet``.
        axis_name: pmap's axis.
    """

    blocks: int
    bottleneck: bool
    channels: int
    stride_place: str
    norm_epsilon: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, R, h, w, C] to [B, R, h / 2, w / 2, C'], sides rounded up."""
        leading = x.shape[:2]
        x = x.reshape(-1, *x.shape[2:])
        for number in range(self.blocks):
            block = Block(
                self.channels,
                self.bottleneck,
                2 if number == 0 else 1,
                axis_name=self.axis_name,
                stride_place=self.stride_place,
                norm_epsilon=self.norm_epsilon,
                name=f"layer4_{number}",
            )
            x = block(x, train=train)
        return x.reshape(*leading, *x.shape[1:])


def detect(
    logits: Array,
    deltas: Array,
    proposals: Array,
    valid: Array,
    size: Array,
    *,
    first_class: int,
    weights: tuple[float, float, float, float],
    score_threshold: float,
    iou_threshold: float,
    min_side: float,
    count: int,
) -> dict[str, Array]:
    """The detections of one image: every class of every proposal is a candidate; suppression within each class.

    Args:
        logits: f32[P, columns].
        deltas: f32[P, 4 n]: of the classes, or of all columns where the background has the first.
        proposals, valid: f32[P, 4], bool[P].
        size: f32[2], rows and columns of the image.
        first_class, weights: as in ``sample_regions``.
        score_threshold, iou_threshold, min_side: candidates have a higher score, sides of at least that.
        count: D, the most detections.
    Returns:
        "boxes" f32[D, 4], "scores" f32[D], "classes" i32[D] (columns), "valid" bool[D], best first; of equal scores
        the earlier proposal, then the lower class. Rows that only fill up are zeros.
    """
    boxes = ops.decode_boxes(deltas.reshape(len(deltas), -1, 4), proposals[:, None], weights=weights)
    boxes = ops.clip_boxes(boxes[:, first_class:], size)
    number = boxes.shape[1]
    scores = jax.nn.softmax(logits, axis=-1)[:, first_class : first_class + number]
    valid = valid[:, None] & (scores > score_threshold) & long_enough(boxes, min_side)
    # Candidates in the order of proposals, then classes, which is that of equal scores.
    boxes, scores, classes = boxes.reshape(-1, 4), scores.ravel(), jnp.tile(jnp.arange(number), len(deltas))
    kept, found = ops.batched_nms(
        boxes, scores, classes, iou_threshold=iou_threshold, max_outputs=count, valid=valid.ravel()
    )
    return {
        "boxes": jnp.where(found[:, None], boxes[kept], 0.0),
        "scores": jnp.where(found, scores[kept], 0.0),
        "classes": jnp.where(found, classes[kept] + first_class, 0),
        "valid": found,
    }


def of_class(logits: Array, columns: Array) -> Array:
    """f32[B, R, m, m] of the logits [B, R, m, m, n] of all classes: each region's own."""
    place = jnp.minimum(columns, logits.shape[-1] - 1)[..., None, None, None]
    return jnp.take_along_axis(logits, place, axis=-1)[..., 0].astype(jnp.float32)


def in_parts(function: Callable[..., Array], wanted: Array, *arrays: Array) -> Array:
    """Applies a function of regions to those that are wanted, which stand first: an eighth of the rows at a time.

    Args:
        function: of arrays [B, r, ...], the regions independent of each other, to [B, r, ...].
        wanted: bool[B, R].
        arrays: [B, R, ...].
    Returns:
        [B, R, ...]; zeros in the parts without any region that is wanted.
    """
    rows, count = wanted.shape
    size = max(1, -(-count // _PARTS))
    number = -(-count // size)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, number * size - count), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, number, size, *x.shape[2:]), 1, 0)

    def part(some: Array, *parts: Array) -> Array:
        like = jax.eval_shape(function, *parts)
        return jax.lax.cond(some, function, lambda *_: jnp.zeros(like.shape, like.dtype), *parts)

    step = lambda carry, parts: (carry, part(*parts))
    parts = jax.lax.scan(step, None, (split(wanted).any(axis=(1, 2)), *map(split, arrays)))[1]
    return jnp.moveaxis(parts, 0, 1).reshape(rows, number * size, *parts.shape[3:])[:, :count]


def build(model: Options, levels: Sequence[Array], resized: tuple[int, int], train: bool) -> tuple[Boxes, Masks]:
    """The heads of a model, as functions of regions; called within its compact method.

    Args:
        model: its options; what lies between is sown there.
        levels: that regions are cut from, [B, h, w, C].
        resized: rows and columns of the image before padding.
        train: norms use the batch's statistics.
    Returns:
        box: (f32[B, R, 4], which are wanted bool[B, R] or None) -> (logits f32[B, R, K + 1], deltas f32[B, R, 4 n],
        what ``mask`` may use in place of the same boxes, or None);
        mask: (f32[B, R, 4], columns i32[B, R], which are wanted bool[B, R], that or None) -> logits f32[B, R, m, m] of
        each region's own class, what they may be where not wanted.
    """
    pyramid = model.architecture == "fpn"
    coded = model.num_classes + model.first_class
    pool = functools.partial(_pooling(model, levels, resized), levels)
    predict = Predictor(model.num_classes + 1, coded, name="box_predictor")
    norm = (model.head_norm, model.axis_name)
    convs = model.mask_convs if pyramid else 0
    make_mask_head = functools.partial(MaskHead, convs, model.mask_channels, coded, *norm)
    mask_head = functools.partial(make_mask_head(name="mask_head"), train=train)
    if pyramid:
        vector = functools.partial(BoxHead(model.box_convs, model.box_channels, *norm, name="box_head"), train=train)
    else:
        stage = functools.partial(_stage5(model), train=train and model.backbone_norm == "batch")

    def box(boxes: Array, wanted: Array | None = None) -> tuple[Array, Array, Array | None]:
        pooled = pool(boxes, BOX_SIZE if pyramid else MASK_SIZE)
        model.sow("intermediates", "box_pooled", pooled)
        shared = None if pyramid else stage(pooled)
        return *predict(vector(pooled, wanted=wanted) if pyramid else shared.mean(axis=(2, 3))), shared

    def whole(boxes: Array, columns: Array, wanted: Array, shared: Array | None) -> Array:
        if shared is None:
            pooled = pool(boxes, MASK_SIZE)
            model.sow("intermediates", "mask_pooled", pooled)
            shared = pooled if pyramid else stage(pooled)
        logits = mask_head(shared, wanted=wanted)
        model.sow("intermediates", "mask_logits", logits)
        return of_class(logits, columns)

    def mask(boxes: Array, columns: Array, wanted: Array, shared: Array | None = None) -> Array:
        own = model.variables.get("params", {}).get("mask_head")
        # Batch norm looks at all regions; linen's modules, and what is sown, may not stand within a loop.
        if own is None or not pyramid or model.head_norm or model.is_mutable_collection("intermediates"):
            return whole(boxes, columns, wanted, shared)
        head = functools.partial(make_mask_head(parent=None).apply, {"params": own}, train=train)
        if train:  # pooled at once: its gradient adds to whole levels
            return in_parts(lambda x, c: of_class(head(x), c), wanted, pool(boxes, MASK_SIZE), columns)
        return in_parts(lambda x, c: of_class(head(pool(x, MASK_SIZE)), c), wanted, boxes, columns)

    return box, mask


def _pooling(model: Options, levels: Sequence[Array], resized: tuple[int, int]) -> Pooling:
    scales = [1 / STRIDES[name] for name in POOLED] if model.architecture == "fpn" else [1 / C4_STRIDE]
    if model.pool_scales == "inferred":
        # torchvision's: the power of two nearest to (rows of the level) / (rows of the image before padding).
        scales = [2.0 ** round(math.log2(level.shape[1] / resized[0])) for level in levels]
    return Pooling(tuple(scales), model.aligned, model.sampling_ratio, model.max_sampling, model.level_epsilon)


def _stage5(model: Options) -> Stage5:
    fixed = backbones.find(model.backbone)[1]
    return Stage5(
        fixed["blocks"][3],
        fixed["bottleneck"],
        8 * max(1, round(64 * model.width)),
        fixed.get("stride_place", "3x3"),
        model.norm_epsilon,
        model.axis_name,
        name="res5",
    )
