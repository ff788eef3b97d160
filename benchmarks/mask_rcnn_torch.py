"""torchvision's side of mask_rcnn.py, which starts it: the network, its training step and its inference."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision import ops
from torchvision.models import detection
from torchvision.models.detection import backbone_utils, faster_rcnn, mask_rcnn
from train_step import keep_freed_memory

Call = Callable[[], object]


def torch_model(case: Any, weights: str) -> Any:
    """torchvision's network of the same options and weights."""
    o, frozen = case.options, case.options["preset"] == "torchvision"
    norm = {"norm_layer": ops.FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d}
    body = backbone_utils.resnet_fpn_backbone(
        backbone_name=case.backbone, weights=None, trainable_layers=3 if frozen else 5, **norm
    )
    stages = [block[0].in_channels for block in body.fpn.inner_blocks]
    body.fpn = ops.FeaturePyramidNetwork(stages, o["channels"], ops.feature_pyramid_network.LastLevelMaxPool())
    body.out_channels = o["channels"]
    classes, sizes = o["num_classes"] + 1, tuple((size,) for size in o["anchor_sizes"])
    model = detection.MaskRCNN(
        body, min_size=case.side, max_size=case.side, image_mean=(0.0,) * 3, image_std=(1.0,) * 3,
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=faster_rcnn.TwoMLPHead(o["channels"] * 49, o["box_channels"]),
        box_predictor=faster_rcnn.FastRCNNPredictor(o["box_channels"], classes),
        mask_head=mask_rcnn.MaskRCNNHeads(o["channels"], (o["mask_channels"],) * 4, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(o["mask_channels"], o["mask_channels"], classes),
        rpn_pre_nms_top_n_train=o["rpn_pre_nms"][0], rpn_pre_nms_top_n_test=o["rpn_pre_nms"][1],
        rpn_post_nms_top_n_train=o["rpn_post_nms"][0], rpn_post_nms_top_n_test=o["rpn_post_nms"][1],
        box_batch_size_per_image=o["box_samples"], box_detections_per_img=o["detections"],
    )  # fmt: skip
    values = {name: torch.from_numpy(value) for name, value in np.load(weights).items()}
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    return model


def peer_side(case: Any, arguments: argparse.Namespace) -> tuple[dict, dict[str, Call]]:
    """The same of torchvision."""
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    formats = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    built = {name: peer_calls(case, arguments, layout) for name, layout in formats.items()}
    told, calls = {}, {}
    for part in arguments.parts:
        cpu = {}
        for name, (_, of_layout) in built.items():
            of_layout[part]()
            begin = time.process_time()
            of_layout[part](), of_layout[part]()
            cpu[name] = (time.process_time() - begin) / 2
        best = min(cpu, key=cpu.get)
        calls[part] = built[best][1][part]
        told |= built[best][0] | {f"{part}, cpu seconds by layout": {name: round(s, 2) for name, s in cpu.items()}}
    return told, calls


def peer_calls(case: Any, arguments: argparse.Namespace, layout: Any) -> tuple[dict, dict[str, Call]]:
    """Of one memory layout."""
    device, cuda = arguments.device, arguments.device == "cuda"
    model = torch_model(case, arguments.weights).to(device, memory_format=layout)
    frozen = sum(b.numel() for name, b in model.named_buffers() if name.endswith((".weight", ".bias")))
    told = {"parameters": sum(p.numel() for p in model.parameters()) + frozen}
    images = torch.from_numpy(case.images()).permute(0, 3, 1, 2).contiguous().to(device)
    targets = [
        {"boxes": torch.from_numpy(boxes).to(device), "labels": torch.from_numpy(classes + 1).to(device),
         "masks": torch.from_numpy(masks).to(device)}
        for boxes, classes, masks in zip(case.boxes(), case.classes(), case.whole_masks(), strict=True)
    ]  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = case.optimizer == "adamw"
    options = {"fused": True} if cuda else {}
    optimizer = (
        torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, **options)
        if adam
        else torch.optim.SGD(trained, lr=1e-4, momentum=0.9, **options)
    )
    precision = lambda: torch.autocast("cuda", torch.bfloat16, enabled=cuda)

    def count(module: torch.nn.Module, x: tuple, y: torch.Tensor) -> None:
        told.setdefault(f"{('inference', 'training step')[model.training]}: masks made", len(x[0]))

    model.roi_heads.mask_head.register_forward_hook(count)

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), precision():
            found = model(list(images))
        told.setdefault("detections", sum(len(one["scores"]) for one in found))
        if cuda:
            torch.cuda.synchronize()

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = sum(model(list(images), targets).values())
        loss.backward()
        if adam:
            torch.nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        told.setdefault("loss", loss.item())
        if cuda:
            torch.cuda.synchronize()

    return told, {"inference": infer, "training step": train}
