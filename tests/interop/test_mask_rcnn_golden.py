"""torchvision's Mask R-CNN through ``interop.torch.load``: every stage against what PyTorch gave, and the way back."""

import functools

import golden
import jax
import numpy as np
import pytest

from segjax import ops
from segjax.interop import torch as interop

NAME = "tv_maskrcnn_resnet50_fpn"
SOURCE = {"source": "torchvision", "model": "maskrcnn_resnet50_fpn", "min_size": 192, "max_size": 256}
MEAN, STD = (np.array(x, np.float32) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
HEAD = "box_head"


@functools.cache
def run(folder):
    """(case, module, variables, outputs by the model's own proposals, by the stored ones, what lies between each)."""
    case = golden.Case(folder, NAME)
    module, variables = interop.load(case.state_dict, **SOURCE)
    image = (case.image - MEAN[None, None, None]) / STD[None, None, None]
    apply = jax.jit(functools.partial(module.apply, capture_intermediates=lambda part, _: part.name == HEAD))
    own, first = apply(variables, image)
    stored, second = apply(variables, image, proposals=case.stored["proposals"][None])
    return case, module, variables, own, stored, first["intermediates"], second["intermediates"]


@pytest.fixture(scope="module")
def found(golden_dir):
    return run(golden_dir)


def check(case, name, mine):
    atol, rtol = case.info["outputs"][name]["atol"], case.info["rtol"]
    np.testing.assert_allclose(mine, case.stored[name], rtol=rtol, atol=atol, err_msg=name)


def test_image_and_pyramid(found):
    case, *_, between, _ = found
    check(case, "transformed", np.asarray(between["transformed"][0]).transpose(0, 3, 1, 2)[..., ::2, ::2])
    for name, level in zip(("0", "1", "2", "3", "pool"), ("p2", "p3", "p4", "p5", "p6"), strict=True):
        x = np.asarray(between[level][0]).transpose(0, 3, 1, 2)
        edge = min(6, x.shape[2]), min(6, x.shape[3])
        check(case, f"feature_{name}/head", x[0, :4, : edge[0], : edge[1]])
        check(case, f"feature_{name}/tail", x[0, -4:, -edge[0] :, -edge[1] :])
        check(case, f"feature_{name}/channel_mean", x.mean(axis=(0, 2, 3), dtype=np.float64))
        check(case, f"feature_{name}/channel_std", x.std(axis=(0, 2, 3), dtype=np.float64))
        if f"feature_{name}" in case.stored:
            check(case, f"feature_{name}", x)


def test_region_proposal_network(found):
    case, _, _, own, _, between, _ = found
    np.testing.assert_array_equal(np.concatenate(between["anchors"][0]), case.stored["anchors"])
    for level, (logits, deltas) in enumerate(zip(between["objectness"][0], between["deltas"][0], strict=True)):
        _, anchors, height, width = case.info["outputs"][f"objectness_{level}"]["shape"]
        check(case, f"objectness_{level}", np.asarray(logits).reshape(1, height, width, anchors).transpose(0, 3, 1, 2))
        stored = case.stored[f"deltas_{level}"]
        step = height // stored.shape[2]
        deltas = np.asarray(deltas).reshape(1, height, width, anchors * 4).transpose(0, 3, 1, 2)
        check(case, f"deltas_{level}", deltas[..., ::step, ::step])
    for name in ("proposals", "proposal_scores"):
        atol = case.info["outputs"][name]["atol"]
        np.testing.assert_allclose(own[name][0, :50], case.stored[name][:50], rtol=case.info["rtol"], atol=atol)
    # Later ones may change places: as many, and each has a counterpart.
    assert own["proposals_valid"].sum() == len(case.stored["proposals"])
    distance = np.abs(np.asarray(own["proposals"][0])[:, None] - case.stored["proposals"][None]).max(axis=-1)
    assert distance.min(axis=1).max() < 0.01 and distance.min(axis=0).max() < 0.01


def test_box_head_on_the_stored_proposals(found):
    case, *_, stored, _, between = found
    check(case, "box_pooled", np.asarray(between["box_pooled"][0])[0, :4].transpose(0, 3, 1, 2)[:, ::4])
    check(case, "box_head", np.asarray(between[HEAD]["__call__"][0])[0, :50, ::8])
    for name in ("class_logits", "box_regression"):
        check(case, name, stored[name][0])


@pytest.mark.parametrize("own_proposals", [False, True])
def test_detections_and_masks(found, own_proposals):
    case, _, _, own, stored, first, second = found
    outputs, between = (own, first) if own_proposals else (stored, second)
    number = case.info["detections"]
    np.testing.assert_array_equal(outputs["valid"][0], np.arange(100) < number)
    np.testing.assert_array_equal(outputs["classes"][0, :number], case.stored["labels"])
    if own_proposals:  # the tolerances are those on the stored ones
        np.testing.assert_allclose(outputs["boxes"][0, :number], case.stored["boxes"], atol=2e-3)
        np.testing.assert_allclose(outputs["scores"][0, :number], case.stored["scores"], atol=1e-4)
        return
    check(case, "boxes", outputs["boxes"][0, :number])
    check(case, "roi_boxes", between["roi_boxes"][0][0, :number])
    check(case, "scores", outputs["scores"][0, :number])
    check(case, "masks_28", outputs["masks"][0, :20])
    check(case, "mask_pooled", np.asarray(between["mask_pooled"][0])[0, :2].transpose(0, 3, 1, 2)[:, ::4])
    logits = np.asarray(between["mask_logits"][0])[0, :4].transpose(0, 3, 1, 2)
    check(case, "mask_logits", logits[..., ::2, ::2])
    assert not np.any(outputs["masks"][0, number:]) and not np.any(outputs["boxes"][0, number:])


def test_pasted_masks(found):
    case, module, _, _, stored, _, _ = found
    pasted = np.asarray(
        ops.paste_masks(stored["masks"][0, :20], stored["boxes"][0, :20], (192, 256), rule=module.paste)
    )
    check(case, "masks", pasted[:, ::4, ::4])
    check(case, "masks_first", pasted[:2])
    binary = np.unpackbits(case.stored["masks_binary"], axis=-1)[..., :256]
    assert np.mean((pasted > 0.5) != binary) < 1e-5


def test_the_way_back(found):
    case, module, variables, *_ = found
    back = interop.to_torch(module, variables, **SOURCE)
    assert set(back) == set(case.state_dict)
    assert all(np.array_equal(back[key], value) for key, value in case.state_dict.items())
