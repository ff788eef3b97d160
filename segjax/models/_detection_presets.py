"""Mask R-CNN's options, and the rules in which the published ones differ, in one table: ``Model(preset=...)``.

| rule | "segjax" | "torchvision" | "torchvision_v2" | "detectron2" |
|---|---|---|---|---|
| column of the background | last | first | first | last |
| corners of anchors | as they come | rounded | rounded | as they come |
| strides of anchors | 4 to 64 | padded size // map's | padded size // map's | 4 to 64 |
| RoIAlign | aligned, 2 x 2 samples | not aligned, 2 x 2 | not aligned, 2 x 2 | aligned, adaptive |
| box loss | L1 | smooth L1, beta 1/9 | smooth L1, beta 1/9 | L1 |
| RPN losses over | the sampled anchors | the sampled anchors | the sampled anchors | 256 x images |
| mask targets | binary | soft | soft | binary |
| proposals kept in training | 1000 | 2000 | 2000 | 1000 |
| crowds | neither | not there | not there | not there |
| batch norm of the backbone | live | frozen | live | frozen |
| further norm | none | none | pyramid, box, mask head | none |
| convolutions of RPN, box head | 1, 0 | 1, 0 | 2, 4 | 1, 0 |

"segjax" is the geometry of detectron2, which is unbiased: sample points lie at the centres they stand for, and no
corner is rounded. Its samples are 2 x 2 per bin for every box, since adaptive ones need arrays of the largest number
that may occur. Batch norm is live and no stage frozen, as from random weights; on pretrained ones set
``backbone_norm="frozen"``, ``frozen_stages=2``.

"detectron2" takes as many samples per bin as its pixels, ceil(side / bins), up to ``max_sampling`` = 48: enough for
every box of an image of 1333 pixels, which is at most 334 pixels of its map wide or high. Only the samples that the
batch's boxes need are computed; the bound costs memory for their places alone.

Sources: torchvision/models/detection (0.29), detectron2/config/defaults.py and configs/Base-RCNN-FPN.yaml,
Base-RCNN-C4.yaml; Wu et al. 2019, https://github.com/facebookresearch/detectron2.
"""

from typing import Any

from segjax import backbones, layers
from segjax.backbones.fpn import LEVELS

SEGJAX: dict[str, Any] = {
    "backbone": "resnet50",
    "backbone_norm": "batch",
    "frozen_stages": 0,
    "head_norm": False,
    "rpn_convs": 1,
    "box_convs": 0,
    "background": "last",
    "anchors_rounded": False,
    "anchor_strides": "fixed",
    "rpn_pre_nms": (2000, 1000),
    "rpn_post_nms": (1000, 1000),
    "rpn_min_side": 1e-3,
    "rank_by": "logit",
    "level_epsilon": "inside",
    "pool_scales": "fixed",
    "aligned": True,
    "sampling_ratio": 2,
    "smooth_l1_beta": 0.0,
    "rpn_normalizer": "sampled",
    "binary_masks": True,
    "crowd_threshold": 0.7,
    "box_min_side": 1e-2,
    "paste": "detectron2",
}
TORCHVISION = SEGJAX | {
    "backbone_norm": "frozen",
    "frozen_stages": 2,
    "background": "first",
    "anchors_rounded": True,
    "anchor_strides": "inferred",
    "rpn_post_nms": (2000, 1000),
    "rank_by": "score",
    "level_epsilon": "outside",
    "pool_scales": "inferred",
    "aligned": False,
    "smooth_l1_beta": 1 / 9,
    "binary_masks": False,
    "crowd_threshold": 0.0,
    "paste": "torchvision",
}
TORCHVISION_V2 = TORCHVISION | {
    "backbone_norm": "batch",
    "frozen_stages": 0,
    "head_norm": True,
    "rpn_convs": 2,
    "box_convs": 4,
}
DETECTRON2 = SEGJAX | {
    "backbone": "resnet50_v1",
    "backbone_norm": "frozen",
    "frozen_stages": 2,
    "rpn_min_side": 0.0,
    "sampling_ratio": 0,
    "rpn_normalizer": "fixed",
    "crowd_threshold": 0.0,
    "box_min_side": 0.0,
}
PRESETS = {
    "segjax": SEGJAX,
    "torchvision": TORCHVISION,
    "torchvision_v2": TORCHVISION_V2,
    "detectron2": DETECTRON2,
}
# One map of stride 16 has all the anchors: more of them before suppression, and as many after.
OF_C4 = {"rpn_pre_nms": (12000, 6000), "rpn_post_nms": (2000, 1000)}


def complete(preset: str, architecture: str) -> dict[str, Any]:
    """Returns {option: value} of a preset, those of the C4 network in place where it is one."""
    return PRESETS[preset] | (OF_C4 if architecture == "c4" else {})


LEGAL = {
    "preset": tuple(PRESETS),
    "architecture": ("fpn", "c4"),
    "backbone_norm": ("batch", "frozen"),
    "background": ("first", "last"),
    "anchor_strides": ("fixed", "inferred"),
    "proposals_per": ("image", "batch"),
    "rank_by": ("score", "logit"),
    "level_epsilon": ("inside", "outside"),
    "pool_scales": ("fixed", "inferred"),
    "rpn_normalizer": ("sampled", "fixed"),
    "paste": ("torchvision", "detectron2"),
    "dtype": ("float32", "bfloat16"),
}
LEAST = {
    "num_classes": 1,
    "channels": 1,
    "box_channels": 1,
    "mask_channels": 1,
    "frozen_stages": 0,
    "rpn_convs": 0,
    "box_convs": 0,
    "mask_convs": 0,
    "rpn_samples": 1,
    "box_samples": 1,
    "sampling_ratio": 0,
    "max_sampling": 1,
    "detections": 1,
    "norm_epsilon": 0,
    "smooth_l1_beta": 0,
    "rpn_min_side": 0,
    "box_min_side": 0,
}
SHARES = (
    "rpn_foreground",
    "rpn_background",
    "rpn_nms",
    "rpn_positive",
    "box_foreground",
    "box_background",
    "box_nms",
    "box_positive",
    "score_threshold",
    "crowd_threshold",
)


class Options(layers.Network):
    """The options of Mask R-CNN, checked and completed by the preset.

    Options that are None take the value of the preset.

    Attributes:
        num_classes: K, classes of objects; the background is not counted.
        preset: "segjax", "torchvision", "torchvision_v2" or "detectron2"; see the table.
        architecture: "fpn" or "c4".
        backbone: a ResNet that ``backbones.build`` knows.
        width: a factor of the backbone's channel counts.
        channels: of the pyramid's levels, the paper's 256.
        box_channels: of the box head's fully connected layers, the paper's 1024.
        mask_channels: of the mask head, the paper's 256.
        backbone_norm: "batch", or "frozen": batch norm by its running statistics, its scale and bias not trained.
        norm_epsilon: of the backbone's batch norm; 0 in torchvision's maskrcnn_resnet50_fpn with COCO_V1 weights.
        frozen_stages: parts of the backbone that are not trained: 1 the first convolution, 2 the first stage too, ...
        head_norm: batch norm in the pyramid and in the convolutions of box and mask head.
        rpn_convs, box_convs, mask_convs: 3x3 convolutions of each; the box head has one fully connected layer after
            any, else two.
        background: "first" or "last", its column of the class scores.
        anchor_sizes: square roots of anchors' areas in pixels: of each level one, on "c4" all of them at each place.
        aspect_ratios: of anchors, height over width.
        anchors_rounded: their corners rounded to whole pixels.
        anchor_strides: "fixed", the levels' strides, or "inferred", padded size // size of the level.
        rpn_pre_nms, rpn_post_nms: proposals of a level before suppression, of all levels after it; (training,
            inference).
        proposals_per: "image", or "batch": in training as many as of one image are chosen from all of the batch (a
            larger batch wants a larger number).
        rank_by: see ``_rpn.propose``.
        rpn_min_side, box_min_side: pixels; shorter proposals and detections are dropped.
        rpn_foreground, rpn_background, rpn_nms: IoU of anchors with objects from which they count as such, below which
            as background; IoU above which proposals suppress each other.
        rpn_samples, rpn_positive: anchors of an image that the losses look at; the share of them that may be objects.
        box_foreground, box_background, box_nms, box_samples, box_positive: the same of proposals, and of detections.
        box_weights: of the coding of boxes by proposals; that of proposals by anchors has ones.
        crowd_threshold: share of its area in a crowd from which a box that is no object is no background either; 0:
            crowds are passed over.
        level_epsilon: see ``_roi_heads.levels_of``.
        pool_scales: "fixed", or "inferred" as in torchvision, from the image before padding: the same, but for images
            lower than 76 pixels.
        aligned, sampling_ratio, max_sampling: see ``ops.roi_align``.
        score_threshold: detections have a higher one.
        detections: D, the most per image.
        smooth_l1_beta: of the box losses; 0 is L1.
        rpn_normalizer: what the RPN's losses are divided by: the anchors "sampled", or "fixed": rpn_samples times
            images.
        binary_masks: mask targets are 0 or 1; else what part of its pixel the object covers.
        paste: "torchvision" or "detectron2", the rule of ``ops.paste_masks`` that these masks are made for.
        min_size, max_size: images are resized within ``apply`` so that the shorter side is min_size, or the longer one
            max_size if that makes them smaller; None: as they are.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics, scores and boxes are float32.
        axis_name: pmap's axis.
    """

    num_classes: int
    preset: str = "segjax"
    architecture: str = "fpn"
    backbone: str | None = None
    width: float = 1.0
    channels: int = 256
    box_channels: int = 1024
    mask_channels: int = 256
    backbone_norm: str | None = None
    norm_epsilon: float = 1e-5
    frozen_stages: int | None = None
    head_norm: bool | None = None
    rpn_convs: int | None = None
    box_convs: int | None = None
    mask_convs: int = 4
    background: str | None = None
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors_rounded: bool | None = None
    anchor_strides: str | None = None
    rpn_pre_nms: tuple[int, int] | None = None
    rpn_post_nms: tuple[int, int] | None = None
    proposals_per: str = "image"
    rank_by: str | None = None
    rpn_min_side: float | None = None
    rpn_foreground: float = 0.7
    rpn_background: float = 0.3
    rpn_nms: float = 0.7
    rpn_samples: int = 256
    rpn_positive: float = 0.5
    box_foreground: float = 0.5
    box_background: float = 0.5
    box_nms: float = 0.5
    box_samples: int = 512
    box_positive: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_min_side: float | None = None
    crowd_threshold: float | None = None
    level_epsilon: str | None = None
    pool_scales: str | None = None
    aligned: bool | None = None
    sampling_ratio: int | None = None
    max_sampling: int = 48
    score_threshold: float = 0.05
    detections: int = 100
    smooth_l1_beta: float | None = None
    rpn_normalizer: str | None = None
    binary_masks: bool | None = None
    paste: str | None = None
    min_size: int | None = None
    max_size: int | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options and puts the preset's values for None; InputError for a value that is not legal."""
        self.check_options(one_of={name: LEGAL[name] for name in ("preset", "architecture")})
        for name, value in complete(self.preset, self.architecture).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.check_options(one_of=LEGAL, at_least=LEAST, factors=("width",))
        for name in SHARES:
            self.require(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        for part in ("rpn", "box"):
            above = getattr(self, f"{part}_foreground")
            self.require(f"{part}_background", getattr(self, f"{part}_background") <= above, f"at most {above}")
        for name in ("rpn_pre_nms", "rpn_post_nms"):
            value = getattr(self, name)
            self.require(name, len(value) == 2 and min(value) >= 1, "two numbers from 1: of training, of inference")
        levels = len(LEVELS) if self.architecture == "fpn" else len(self.anchor_sizes)
        for name, count in (("anchor_sizes", levels), ("aspect_ratios", None), ("box_weights", 4)):
            value = getattr(self, name)
            legal = len(value) > 0 and min(value) > 0 and count in (None, len(value))
            self.require(name, legal, f"{'some' if count is None else count} numbers above 0")
        for name in ("min_size", "max_size"):
            value = getattr(self, name)
            self.require(name, value is None or value >= 1, "None or pixels from 1")
        self.require("backbone", self.backbone.startswith("resnet"), "a ResNet")
        backbones.build(self.backbone)  # checks its own options
        super().__post_init__()

    @property
    def first_class(self) -> int:
        """The column of class 0: "classes" of the detections are columns."""
        return 1 if self.background == "first" else 0
