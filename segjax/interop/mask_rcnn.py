"""torchvision's Mask R-CNN on ResNet-50-FPN, its first version and "v2", with the constructor's options.

Names that torchvision gave its tensors before version 2 of these modules are read too: published files have them.

Source: torchvision/models/detection/mask_rcnn.py, faster_rcnn.py, rpn.py and ops/feature_pyramid_network.py.
"""

import functools
import re
from typing import Any

from segjax import layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Options, Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under

SCORES = "roi_heads.box_predictor.cls_score"
PRESETS = {"maskrcnn_resnet50_fpn": "torchvision", "maskrcnn_resnet50_fpn_v2": "torchvision_v2"}
# torch's name of an option: ours
NAMES = {
    "rpn_nms_thresh": "rpn_nms",
    "rpn_fg_iou_thresh": "rpn_foreground",
    "rpn_bg_iou_thresh": "rpn_background",
    "rpn_batch_size_per_image": "rpn_samples",
    "rpn_positive_fraction": "rpn_positive",
    "box_score_thresh": "score_threshold",
    "box_nms_thresh": "box_nms",
    "box_detections_per_img": "detections",
    "box_fg_iou_thresh": "box_foreground",
    "box_bg_iou_thresh": "box_background",
    "box_batch_size_per_image": "box_samples",
    "box_positive_fraction": "box_positive",
    "bbox_reg_weights": "box_weights",
}
_LEVELS = range(2, 6)
_CONVS = range(1, 5)
SHARED = (
    *((rf"rpn/conv{n}", f"rpn.head.conv.{n - 1}.0") for n in (1, 2)),
    (r"rpn/objectness", "rpn.head.cls_logits"),
    (r"rpn/deltas", "rpn.head.bbox_pred"),
    (r"box_predictor/classes", SCORES, "linear"),
    (r"box_predictor/boxes", "roi_heads.box_predictor.bbox_pred", "linear"),
    (r"mask_head/enlarge", "roi_heads.mask_predictor.conv5_mask"),
    (r"mask_head/masks", "roi_heads.mask_predictor.mask_fcn_logits"),
)
V1 = (
    *((f"fpn/lateral{level}", f"backbone.fpn.inner_blocks.{level - 2}.0") for level in _LEVELS),
    *((f"fpn/out{level}", f"backbone.fpn.layer_blocks.{level - 2}.0") for level in _LEVELS),
    (r"box_head/fc(\d)", r"roi_heads.box_head.fc\1", "linear"),
    *((f"mask_head/conv{n}", f"roi_heads.mask_head.{n - 1}.0") for n in _CONVS),
)
V2 = tuple(
    rule
    for part, kind in enumerate(("conv", "norm"))
    for rule in (
        *((f"fpn/lateral{level}/{kind}", f"backbone.fpn.inner_blocks.{level - 2}.{part}") for level in _LEVELS),
        *((f"fpn/out{level}/{kind}", f"backbone.fpn.layer_blocks.{level - 2}.{part}") for level in _LEVELS),
        *((f"box_head/conv{n}/{kind}", f"roi_heads.box_head.{n - 1}.{part}") for n in _CONVS),
        *((f"mask_head/conv{n}/{kind}", f"roi_heads.mask_head.{n - 1}.{part}") for n in _CONVS),
    )
) + ((r"box_head/fc6", "roi_heads.box_head.5", "linear"),)
RULES = {"maskrcnn_resnet50_fpn": (*SHARED, *V1), "maskrcnn_resnet50_fpn_v2": (*SHARED, *V2)}
OLDER = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
    *((rf"(roi_heads\.mask_head)\.mask_fcn{n}\.(weight|bias)", rf"\1.{n - 1}.0.\2") for n in _CONVS),
)


def _build(
    model: str,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    min_size: int | tuple[int, ...] = 800,
    max_size: int = 1333,
    trainable_backbone_layers: int | None = None,
    weights: Any = None,
    weights_backbone: Any = None,
    progress: bool = True,
    norm_epsilon: float | None = None,  # ours; torchvision overwrites it where ``weights`` are COCO_V1
    rpn_pre_nms_top_n_train: int = 2000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 2000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_nms_thresh: float = 0.7,
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    rpn_batch_size_per_image: int = 256,
    rpn_positive_fraction: float = 0.5,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    box_batch_size_per_image: int = 512,
    box_positive_fraction: float = 0.25,
    bbox_reg_weights: tuple[float, float, float, float] | None = None,
) -> layers.Network:
    del progress
    given = locals()
    options = {ours: given[name] for name, ours in NAMES.items() if given[name] is not None}
    live = model.endswith("_v2") or any(name.startswith("backbone.body.bn1.num_batches") for name in shapes)
    trained = weights is not None or weights_backbone is not None or not live
    trained_layers = (3 if trainable_backbone_layers is None else trainable_backbone_layers) if trained else 5
    if norm_epsilon is None:
        norm_epsilon = 0.0 if weights is not None and not model.endswith("_v2") else 1e-5
    return models.build(
        "mask_rcnn",
        num_classes=agreed("num_classes", num_classes, axis_length(shapes, f"{SCORES}.weight")) - 1,
        preset=PRESETS[model],
        backbone_norm="batch" if live else "frozen",
        norm_epsilon=norm_epsilon,
        frozen_stages=5 - trained_layers,
        min_size=min_size if isinstance(min_size, int) else min_size[-1],
        max_size=max_size,
        rpn_pre_nms=(rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
        rpn_post_nms=(rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
        **options,
    )


def _rules(model: str, module: layers.Network, options: Options) -> Rules:
    del options
    body = under(bodies.PREFIX, "backbone.body.", bodies.find(module.backbone, "torchvision").rules)
    return (*body, *RULES[model])


def _first(module: layers.Network, options: Options) -> str:
    del options
    return f"backbone.body.{bodies.find(module.backbone, 'torchvision').first}.weight"


def _todays(name: str) -> str:
    """The name that torchvision's modules have now for a tensor of an older file."""
    for pattern, new in OLDER:
        if match := re.fullmatch(pattern, name):
            return match.expand(new)
    return name


SOURCES = {
    "torchvision": {
        model: Source(
            functools.partial(_build, model), functools.partial(_rules, model), _first, preprocessing.DETECTION, _todays
        )
        for model in PRESETS
    }
}
