"""Names and options of torchvision's Mask R-CNN: both versions, older files, what is read off the tensors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.interop import torch as interop
from segjax.types import InputError

pytestmark = pytest.mark.slow

V1 = {"source": "torchvision", "model": "maskrcnn_resnet50_fpn"}
V2 = {"source": "torchvision", "model": "maskrcnn_resnet50_fpn_v2"}
PRESETS = {"maskrcnn_resnet50_fpn": "torchvision", "maskrcnn_resnet50_fpn_v2": "torchvision_v2"}
SIZES = {"min_size": 800, "max_size": 1333}  # torchvision's defaults
# Some of the tensors that torchvision 0.29 makes with num_classes=3.
SHAPES = {
    "maskrcnn_resnet50_fpn": {
        "backbone.body.layer4.2.bn3.running_var": (2048,),
        "backbone.fpn.inner_blocks.3.0.weight": (256, 2048, 1, 1),
        "backbone.fpn.layer_blocks.0.0.bias": (256,),
        "rpn.head.conv.0.0.weight": (256, 256, 3, 3),
        "rpn.head.bbox_pred.bias": (12,),
        "roi_heads.box_head.fc6.weight": (1024, 12544),
        "roi_heads.box_predictor.bbox_pred.weight": (12, 1024),
        "roi_heads.mask_head.3.0.weight": (256, 256, 3, 3),
        "roi_heads.mask_predictor.conv5_mask.weight": (256, 256, 2, 2),
        "roi_heads.mask_predictor.mask_fcn_logits.weight": (3, 256, 1, 1),
    },
    "maskrcnn_resnet50_fpn_v2": {
        "backbone.fpn.inner_blocks.0.0.weight": (256, 256, 1, 1),
        "backbone.fpn.layer_blocks.3.1.running_mean": (256,),
        "rpn.head.conv.1.0.bias": (256,),
        "roi_heads.box_head.3.0.weight": (256, 256, 3, 3),
        "roi_heads.box_head.0.1.num_batches_tracked": (),
        "roi_heads.box_head.5.weight": (1024, 12544),
        "roi_heads.mask_head.0.1.bias": (256,),
    },
}


@functools.cache
def made(model):
    """(module, variables, state dict) of drawn numbers."""
    module = models.build("mask_rcnn", num_classes=2, preset=PRESETS[model], **SIZES)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    return module, variables, interop.to_torch(module, variables, source="torchvision", model=model)


@pytest.mark.parametrize("model", PRESETS)
def test_names_and_the_way_back(model):
    module, variables, state_dict = made(model)
    for name, shape in SHAPES[model].items():
        assert state_dict[name].shape == shape, name
    biased = [name for name in state_dict if name.startswith("backbone.fpn") and name.endswith(".0.bias")]
    assert len(biased) == (8 if model == "maskrcnn_resnet50_fpn" else 0)
    again, found = interop.load(state_dict, source="torchvision", model=model)
    assert again.num_classes == 2 and again.preset == module.preset
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True))
    assert "each used once" in interop.report(state_dict, source="torchvision", model=model)


def test_names_of_older_files():
    _, variables, state_dict = made("maskrcnn_resnet50_fpn")
    older = {}
    for name, value in state_dict.items():
        for part in ("inner_blocks", "layer_blocks"):
            for i in range(4):
                name = name.replace(f"fpn.{part}.{i}.0.", f"fpn.{part}.{i}.")
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        if not name.endswith("num_batches_tracked"):  # nor have they counters: frozen norms
            older[name] = value
    assert "roi_heads.mask_head.mask_fcn4.weight" in older and "rpn.head.conv.bias" in older
    module, found = interop.load(older, **V1)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True))
    assert module.backbone_norm == "frozen" and module.frozen_stages == 2
    both = {**older, "rpn.head.conv.0.0.bias": older["rpn.head.conv.bias"]}
    with pytest.raises(InputError, match="twice"):
        interop.load(both, **V1)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"backbone_norm": "batch", "frozen_stages": 0, "norm_epsilon": 1e-5, **SIZES}),
        ({"weights": "COCO_V1"}, {"norm_epsilon": 0.0, "frozen_stages": 2}),
        ({"weights": "COCO_V1", "norm_epsilon": 1e-5}, {"norm_epsilon": 1e-5}),
        ({"weights": "COCO_V1", "trainable_backbone_layers": 5}, {"frozen_stages": 0}),
        ({"min_size": (640, 672), "max_size": 900}, {"min_size": 672, "max_size": 900}),
        ({"box_detections_per_img": 500, "box_score_thresh": 0.3}, {"detections": 500, "score_threshold": 0.3}),
        ({"rpn_post_nms_top_n_test": 300, "rpn_nms_thresh": 0.6}, {"rpn_post_nms": (2000, 300), "rpn_nms": 0.6}),
        ({"bbox_reg_weights": (1.0, 1.0, 1.0, 1.0)}, {"box_weights": (1.0, 1.0, 1.0, 1.0)}),
        ({"num_classes": 3}, {"num_classes": 2}),
    ],
)
def test_options_of_the_constructor(options, fields):
    module, _ = interop.match(made("maskrcnn_resnet50_fpn")[2], **V1, **options)
    assert {name: getattr(module, name) for name in fields} == fields


def test_second_version_keeps_its_epsilon():
    module, _ = interop.match(made("maskrcnn_resnet50_fpn_v2")[2], **V2, weights="COCO_V1")
    assert module.norm_epsilon == 1e-5 and module.backbone_norm == "batch" and module.frozen_stages == 2


def test_what_is_another_model_is_refused():
    module, variables, state_dict = made("maskrcnn_resnet50_fpn")
    with pytest.raises(InputError, match="num_classes=4"):
        interop.load(state_dict, **V1, num_classes=4)
    with pytest.raises(InputError, match="no option 'min_sizes'"):
        interop.load(state_dict, **V1, min_sizes=3)
    with pytest.raises(InputError):
        interop.load(state_dict, **V2)
    with pytest.raises(InputError, match="detections"):
        interop.to_torch(module.clone(detections=500), variables, **V1)
