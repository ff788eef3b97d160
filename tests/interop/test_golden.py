"""Published models through ``interop.torch.load`` alone: their outputs against those PyTorch gave, and the way back."""

import golden
import jax
import numpy as np
import pytest

from segjax.interop import torch as interop

# case: (source, model, its options, {our output: the case's})
LOGITS = {"logits": "out"}
AUXILIARY = {"logits": "out", "aux_logits": "aux"}
CASES = {
    "tv_resnet18": ("torchvision", "resnet18", {}, {}),
    "tv_resnet50": ("torchvision", "resnet50", {"weights": None, "num_classes": 1000}, {}),
    "tv_mobilenet_v2": ("torchvision", "mobilenet_v2", {}, {}),
    "tv_vgg16": ("torchvision", "vgg16", {}, {}),
    "tv_alexnet": ("torchvision", "alexnet", {}, {}),
    "tv_fcn_resnet50": ("torchvision", "fcn_resnet50", {"aux_loss": True}, AUXILIARY),
    "tv_deeplabv3_resnet50": ("torchvision", "deeplabv3_resnet50", {}, AUXILIARY),
    "smp_unet_resnet34": ("smp", "Unet", {}, LOGITS),
    "smp_deeplabv3plus_mobilenet_v2": ("smp", "DeepLabV3Plus", {"encoder_name": "mobilenet_v2"}, LOGITS),
    "smp_deeplabv3plus_resnet50": (
        "smp",
        "DeepLabV3Plus",
        {"encoder_name": "resnet50", "encoder_weights": None, "encoder_output_stride": 16, "classes": 21},
        LOGITS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_the_way_back(golden_dir, name):
    case, (source, model, options, dense) = golden.Case(golden_dir, name), CASES[name]
    module, variables = interop.load(case.state_dict, source=source, model=model, **options)
    outputs = jax.jit(module.apply)(variables, case.image)
    for ours, theirs in dense.items():
        case.check(theirs, outputs[ours])
    if not dense:
        atol = case.info["outputs"]["logits"]["atol"]
        np.testing.assert_allclose(outputs["logits"], case.stored["logits"], rtol=case.info["rtol"], atol=atol)
    back = interop.to_torch(module, variables, source=source, model=model, **options)
    assert set(back) == set(case.state_dict)
    assert all(np.array_equal(back[key], value) for key, value in case.state_dict.items())
