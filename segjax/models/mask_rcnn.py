"""Mask R-CNN: a backbone, proposals, and for each of them a class, a box and, for its class, a mask.

Everything has a fixed size, validity beside it, and lies within the one compiled step: ``apply`` serves training, where
it returns what ``losses.mask_rcnn`` compares, and inference, where it returns detections.

| architecture | features | heads |
|---|---|---|
| "fpn" | a pyramid, strides 4 to 64 | 7x7 regions through two layers of 1024; 14x14 ones to 28x28 masks |
| "c4" | the third stage of a ResNet, stride 16 | 14x14 regions through the fourth stage, for both; 14x14 masks |

What torchvision and detectron2 do differently is one option each; ``_detection_presets`` has the table of them.

Sources: He et al. 2017, https://arxiv.org/abs/1703.06870; Ren et al. 2016 (Faster R-CNN),
https://arxiv.org/abs/1506.01497; Lin et al. 2017 (FPN), https://arxiv.org/abs/1612.03144.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.backbones.fpn import FPN, LEVELS, STRIDES
from segjax.models import _detection_presets, _roi_heads, _rpn, _samples
from segjax.models._roi_heads import C4_STRIDE, POOLED
from segjax.types import BOXES, CLASSES, CONTENT_SIZE, MASKS, VALID, Array, Batch, Outputs, PyTree, Variables

DIVISOR = 32  # images are padded to a multiple of it, right and below


class Model(_detection_presets.Options):
    """Mask R-CNN; its options are those of ``_detection_presets.Options``."""

    instances = True  # outputs are objects, not a class for each pixel

    @nn.nowrap
    def frozen(self, params: PyTree) -> PyTree:
        """Returns {path: bool} like params: True for what is not trained (stages, and norms, of the backbone)."""

        def fixed(path: tuple, leaf: Any) -> bool:
            part, name, *rest = (key.key for key in path)
            if part not in ("backbone", "res5"):
                return False
            stage = 1 if name == "stem" else 1 + int(name.removeprefix("layer").partition("_")[0])
            return stage <= self.frozen_stages or (self.backbone_norm == "frozen" and "norm" in rest)

        return jax.tree_util.tree_map_with_path(fixed, params)

    @nn.nowrap
    def apply(
        self,
        variables: Variables,
        image: Array,
        *,
        train: bool = False,
        targets: Batch | None = None,
        key: Array | None = None,
        proposals: Array | None = None,
        content_size: Array | None = None,
        **linen: Any,
    ) -> Outputs | tuple[Outputs, Variables]:
        """Applies the model to images.

        Args:
            variables: {"params", "batch_stats"}.
            image: f32[B, H, W, C], normalised, of any size.
            train: for the losses, with the batch's statistics (unless frozen) and sampled anchors and regions.
            targets: in training the batch: "boxes" f32[B, N, 4], "classes" i32[B, N], "masks" u8[B, N, S, S],
                "mask_boxes" f32[B, N, 4], "boxes_valid" and optionally "crowd" bool[B, N], "valid" bool[B] and
                "content_size" i32[B, 2]. N may be 0; an object without extent counts as none.
            key: in training the PRNG key of the samples, the same on every device.
            proposals: f32[B, P, 4] in place of those that the model finds, in pixels of the resized image; rows
                without extent only fill up.
            content_size: i32[B, 2], rows and columns of ``image`` that are image, from the top left; the rest is
                taken for zeros, and no box reaches there. None: ``targets``' or all.
            **linen: as in ``layers.Network.apply``. ``mutable=["intermediates"]`` returns what lies between as well:
                "transformed", "anchors", "objectness", "deltas", the levels, "box_pooled", "roi_boxes",
                "mask_pooled" and "mask_logits" (of all classes).
        Returns:
            train=False: {"boxes" f32[B, D, 4] in pixels of ``image``, "scores" f32[B, D], "classes" i32[B, D],
            columns of "class_logits", "masks" f32[B, D, m, m], probabilities of the detected class in its box, "valid"
            bool[B, D], and of the proposals, in pixels of the resized image, "proposals" f32[B, P, 4],
            "proposal_scores" f32[B, P], "proposals_valid" bool[B, P], "class_logits" f32[B, P, K + 1],
            "box_regression" f32[B, P, 4 K], or 4 (K + 1) where the background is first}, best first, zeros where not
            valid. train=True: (what ``losses.mask_rcnn`` takes, new batch_stats).
        Raises:
            ValueError: training without targets, one of their keys, or a key.
        """
        call = {"train": train, "targets": targets, "proposals": proposals, "content_size": content_size}
        if train:
            hold = lambda fixed, leaf: jax.lax.stop_gradient(leaf) if fixed else leaf
            params = variables["params"]
            variables = {**variables, "params": jax.tree.map(hold, self.frozen(params), params)}
        plain_apply = super(layers.Network, self).apply
        if linen or not train:
            return plain_apply(variables, image, **call, **linen)
        rngs = {} if key is None else {"dropout": key}
        outputs, updates = plain_apply(variables, image, **call, rngs=rngs, mutable=["batch_stats"])
        return outputs, updates.get("batch_stats", {})

    @nn.compact
    def __call__(
        self,
        image: Array,
        *,
        train: bool = False,
        targets: Batch | None = None,
        proposals: Array | None = None,
        content_size: Array | None = None,
    ) -> Outputs:
        """See ``apply``."""
        if train and targets is None:
            raise ValueError(
                "Mask R-CNN samples what it trains on by the objects: apply(..., train=True, targets=BATCH)"
            )
        if content_size is None and targets is not None:
            content_size = targets.get(CONTENT_SIZE)
        given = image.shape[1:3]
        image, resized, content = self._fit(image, content_size)
        to_resized, to_given = _samples.factors(given, resized), _samples.factors(resized, given)
        levels = self._features(image, train)
        logits, deltas, anchors = self._scored_anchors(levels, image.shape[1:3])
        heads = _roi_heads.build(self, levels[: len(POOLED)], resized, train)
        if self.is_initializing():
            return self._initialized(heads, len(image))
        found = self._proposals(logits, deltas, anchors, content, train)
        if proposals is not None:
            valid = _rpn.long_enough(proposals, _rpn.TINY)
            found = (proposals.astype(jnp.float32), valid.astype(jnp.float32), valid)
        if not train:
            return self._detect(heads, found, content, to_given)
        truth, masks = _samples.read(targets, to_resized)
        rpn_key, box_key = self._keys(len(image))
        sampled = self._sampled_anchors(rpn_key, logits, deltas, anchors, truth)
        return {**sampled, **self._sampled_regions(box_key, heads, found, truth, masks, content)}

    @nn.nowrap
    def _initialized(self, heads: tuple[Callable, Callable], rows: int) -> Outputs:
        """Gives the heads their parameters by one region; proposals and detections, long to trace, have none."""
        box, mask = heads
        boxes = jnp.zeros((rows, 1, 4))
        _, _, shared = box(boxes)
        mask(boxes, jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows, 1), bool), shared)
        return {}

    @nn.nowrap
    def _fit(self, image: Array, content_size: Array | None) -> tuple[Array, tuple[int, int], Array]:
        """The image resized and padded, its size before padding, and the part that is image, f32[B, 2]."""
        given = image.shape[1:3]
        if content_size is None:
            content_size = jnp.broadcast_to(jnp.asarray(given, jnp.int32), (len(image), 2))
        else:
            rows, columns = (jnp.arange(n)[None] < content_size[:, i, None] for i, n in enumerate(given))
            image = jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], image, 0.0)
        resized = self._size(given)
        if resized != given:
            image = ops.resize(image, resized, method="bilinear")
        content = content_size.astype(jnp.float32) * _samples.factors(given, resized)[0, :, 1::-1]
        below, right = (-n % DIVISOR for n in resized)
        image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
        self.sow("intermediates", "transformed", image)
        return image.astype(self.dtype), resized, content

    @nn.nowrap
    def _size(self, given: tuple[int, int]) -> tuple[int, int]:
        """The size that an image is resized to, by the rule of torchvision's GeneralizedRCNNTransform."""
        factors = [self.min_size / min(given)] if self.min_size else []
        factors += [self.max_size / max(given)] if self.max_size else []
        return tuple(max(1, math.floor(n * min(factors))) for n in given) if factors else given

    @nn.nowrap
    def _features(self, image: Array, train: bool) -> list[Array]:
        """The maps that anchors stand on: of a pyramid five, else one."""
        options = {"width": self.width, "norm_epsilon": self.norm_epsilon, "axis_name": self.axis_name}
        if self.architecture == "c4":
            options["blocks"] = self._stages()[:3]
        backbone = backbones.build(self.backbone, **options, name="backbone")
        features = backbone(image, train=train and self.backbone_norm == "batch")
        if self.architecture == "c4":
            return [features["out"]]
        levels = FPN(self.channels, self.head_norm, self.axis_name, name="fpn")(features, train=train)
        for name, level in levels.items():
            self.sow("intermediates", name, level)
        return list(levels.values())

    @nn.nowrap
    def _stages(self) -> tuple[int, ...]:
        return backbones.find(self.backbone)[1]["blocks"]

    @nn.nowrap
    def _scored_anchors(
        self, levels: list[Array], padded: tuple[int, int]
    ) -> tuple[list[Array], list[Array], list[Array]]:
        """Logits, deltas and anchors of every level."""
        pyramid = self.architecture == "fpn"
        sizes = [(size,) for size in self.anchor_sizes] if pyramid else [self.anchor_sizes]
        anchors = _rpn.anchors_of(
            [level.shape[1:3] for level in levels],
            padded,
            [STRIDES[name] for name in LEVELS] if pyramid else [C4_STRIDE],
            inferred=self.anchor_strides == "inferred",
            sizes=sizes,
            aspect_ratios=self.aspect_ratios,
            rounded=self.anchors_rounded,
        )
        head = _rpn.Head(len(sizes[0]) * len(self.aspect_ratios), self.rpn_convs, name="rpn")
        logits, deltas = head(levels)
        for name, value in (("objectness", logits), ("deltas", deltas), ("anchors", anchors)):
            self.sow("intermediates", name, value)
        return logits, deltas, anchors

    @nn.nowrap
    def _proposals(
        self, logits: list[Array], deltas: list[Array], anchors: list[Array], content: Array, train: bool
    ) -> tuple[Array, Array, Array]:
        """Boxes f32[B, P, 4], scores f32[B, P] and which rows are proposals, bool[B, P]."""
        propose = functools.partial(
            _rpn.propose,
            before=self.rpn_pre_nms[0 if train else 1],
            after=self.rpn_post_nms[0 if train else 1],
            iou_threshold=self.rpn_nms,
            min_side=self.rpn_min_side,
            rank_by=self.rank_by,
        )
        boxes, scores, valid = jax.vmap(propose, in_axes=(0, 0, None, 0))(logits, deltas, anchors, content)
        if train and self.proposals_per == "batch":
            valid = _rpn.best_of_batch(scores, valid, self.rpn_post_nms[0], self.axis_name)
        return boxes, scores, valid

    @nn.nowrap
    def _detect(
        self, heads: tuple[Callable, Callable], found: tuple[Array, ...], content: Array, factors: tuple[Array, ...]
    ) -> Outputs:
        """Detections by the proposals."""
        box, mask = heads
        proposals, scores, valid = found
        logits, deltas, _ = box(proposals)
        detect = functools.partial(
            _roi_heads.detect,
            first_class=self.first_class,
            weights=self.box_weights,
            score_threshold=self.score_threshold,
            iou_threshold=self.box_nms,
            min_side=self.box_min_side,
            count=self.detections,
        )
        detected = jax.vmap(detect)(logits, deltas, proposals, valid, content)
        self.sow("intermediates", "roi_boxes", detected[BOXES])
        masks = mask(detected[BOXES], detected[CLASSES], detected[VALID])
        masks = jnp.where(detected[VALID][..., None, None], jax.nn.sigmoid(masks), 0.0)
        return {
            **detected,
            BOXES: detected[BOXES] * factors,
            MASKS: masks,
            "proposals": proposals,
            "proposal_scores": scores,
            "proposals_valid": valid,
            "class_logits": logits,
            "box_regression": deltas,
        }

    @nn.nowrap
    def _keys(self, rows: int) -> tuple[Array, Array]:
        """Keys of each image's anchors and regions: of its place in the global batch alone."""
        if not self.has_rng("dropout"):
            raise ValueError("Mask R-CNN draws samples while training: apply(..., train=True, key=KEY)")
        return _samples.keys_of(self.make_rng("dropout"), rows, self.axis_name)

    @nn.nowrap
    def _sampled_anchors(
        self, keys: Array, logits: list[Array], deltas: list[Array], anchors: list[Array], truth: _samples.Truth
    ) -> Outputs:
        """What the RPN's losses take."""
        logits, deltas, anchors = (jnp.concatenate(x, axis) for x, axis in ((logits, 1), (deltas, 1), (anchors, 0)))
        sample = functools.partial(
            _samples.sample_anchors,
            count=self.rpn_samples,
            positive_fraction=self.rpn_positive,
            foreground=self.rpn_foreground,
            background=self.rpn_background,
            crowd_threshold=self.crowd_threshold,
        )
        drawn = jax.vmap(sample, in_axes=(0, None, 0))(keys, anchors, truth)
        at = lambda values, index: jax.vmap(lambda v, i: v[i])(values, index)
        counted = truth.real[:, None]
        weight = drawn["weight"] * counted
        fixed = self.rpn_samples * truth.real
        return {
            "rpn_logits": at(logits, drawn["index"]),
            "rpn_labels": drawn["label"],
            "rpn_weight": weight,
            "rpn_normalizer": fixed if self.rpn_normalizer == "fixed" else weight.sum(axis=1),
            "rpn_deltas": at(deltas, drawn["index"][:, : drawn["positive"].shape[1]]),
            "rpn_targets": drawn["target"],
            "rpn_positive": drawn["positive"] * counted,
            "box_beta": jnp.full(len(logits), self.smooth_l1_beta, jnp.float32),
        }

    @nn.nowrap
    def _sampled_regions(
        self,
        keys: Array,
        heads: tuple[Callable, Callable],
        found: tuple[Array, ...],
        truth: _samples.Truth,
        masks: tuple[Array, Array],
        content: Array,
    ) -> Outputs:
        """What the losses of the box head and the mask head take."""
        box, mask = heads
        proposals, _, valid = found
        sample = functools.partial(
            _samples.sample_regions,
            count=self.box_samples,
            positive_fraction=self.box_positive,
            foreground=self.box_foreground,
            background=self.box_background,
            crowd_threshold=self.crowd_threshold,
            weights=self.box_weights,
            background_column=0 if self.first_class else self.num_classes,
            first_class=self.first_class,
        )
        drawn = jax.vmap(sample)(keys, jax.lax.stop_gradient(proposals), valid, truth)
        count = drawn["positive"].shape[1]
        counted = truth.real[:, None]
        logits, deltas, shared = box(drawn["boxes"], drawn["weight"] * counted > 0)
        boxes, columns = drawn["boxes"][:, :count], drawn["column"][:, :count]
        own = mask(boxes, columns, drawn["positive"] * counted > 0, None if shared is None else shared[:, :count])
        target = functools.partial(ops.crop_mask_targets, size=own.shape[-1], binary=self.binary_masks)
        target = jax.vmap(lambda m, b, r, i, size: target(m, b, r, i, image_size=(size[0], size[1])))(
            *masks, boxes, drawn["object"], content
        )
        deltas = deltas[:, :count].reshape(*boxes.shape[:2], -1, 4)
        place = jnp.minimum(columns, deltas.shape[2] - 1)[..., None, None]
        return {
            "class_logits": logits,
            "class_columns": drawn["column"],
            "class_weight": drawn["weight"] * counted,
            "box_deltas": jnp.take_along_axis(deltas, place, axis=2)[:, :, 0],
            "box_targets": drawn["target"],
            "box_positive": drawn["positive"] * counted,
            "mask_logits": own,
            "mask_targets": target,
        }
