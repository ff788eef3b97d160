"""The nuclei's yardstick: torchvision's Mask R-CNN, by the recipe of experiments/mask_rcnn.py:nuclei, in a given time.

    python benchmarks/nuclei_torch.py --root=NUCLEI --minutes=50 --output=nuclei_torch.json

Needs torch, torchvision, pycocotools and Pillow, in an environment of their own; segjax is not imported. ResNet-18-FPN
from random weights with live batch norm, 128 channels, heads of 256 and 64, windows of 256x256 zoomed by 0.7 to 1.4,
flips, brightness and contrast, batch 4, AdamW 1e-3, weight decay 1e-4, gradients clipped to norm 10, 100 warm-up
steps, then (1 - t/T)^0.9 with t the CPU time spent, which what else runs on the machine leaves alone. Prints COCO's box
and mask AP of the validation images, whole, with at most 100 and 500 detections of an image.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision import ops
from torchvision.models import detection
from torchvision.models.detection import backbone_utils, faster_rcnn, mask_rcnn
from train_step import keep_freed_memory

SIDE, BATCH, WARMUP = 256, 4, 100
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def build() -> torch.nn.Module:
    """The network of the experiment."""
    body = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
    )
    body.fpn = ops.FeaturePyramidNetwork([64, 128, 256, 512], 128, ops.feature_pyramid_network.LastLevelMaxPool())
    body.out_channels = 128
    sizes = ((8,), (16,), (32,), (64,), (128,))
    return detection.MaskRCNN(
        body, min_size=SIDE, max_size=SIDE, image_mean=MEAN, image_std=STD,
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=faster_rcnn.TwoMLPHead(128 * 49, 256),
        box_predictor=faster_rcnn.FastRCNNPredictor(256, 2),
        mask_head=mask_rcnn.MaskRCNNHeads(128, (64,) * 4, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(64, 64, 2),
        rpn_pre_nms_top_n_train=1000, rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=500, rpn_post_nms_top_n_test=1000,
        box_batch_size_per_image=128, box_detections_per_img=500,
    )  # fmt: skip


def cropped(mask: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where the box of a mask u8[H, W] lies, and what is in it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return place, mask[place].copy()


class Windows:
    """Training examples: a window of an image and of its objects, both zoomed, flipped and the image coloured."""

    def __init__(self, root: pathlib.Path) -> None:
        truth = COCO(root / "annotations" / "instances_train.json")
        files = {i: root / "train" / info["file_name"] for i, info in sorted(truth.imgs.items())}
        self.images = [np.asarray(Image.open(file).convert("RGB")) for file in files.values()]
        self.masks = [[cropped(coco_mask.decode(truth.annToRLE(a))) for a in truth.imgToAnns[i]] for i in files]

    def draw(self, i: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, masks = self.images[i], self.masks[i]
        zoom = rng.uniform(0.7, 1.4)
        taken = [min(n, round(SIDE / zoom)) for n in image.shape[:2]]
        shown = [min(SIDE, round(n * zoom)) for n in taken]
        y, x = (int(rng.integers(n - m + 1)) for n, m in zip(image.shape[:2], taken, strict=True))
        window = np.s_[y : y + taken[0], x : x + taken[1]]
        turned = np.s_[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        resized = lambda array, how: np.asarray(Image.fromarray(array[window]).resize(shown[::-1], how))[turned]
        pixels = np.zeros((SIDE, SIDE, 3), np.float32)
        pixels[: shown[0], : shown[1]] = resized(image, Image.BILINEAR)
        brightness, contrast = rng.uniform(0.8, 1.2, 2)
        inside = pixels[: shown[0], : shown[1]]
        inside[:] = np.clip(inside * brightness, 0, 255)
        inside[:] = np.clip((inside - inside.mean()) * contrast + inside.mean(), 0, 255)
        kept = np.zeros((len(masks), SIDE, SIDE), np.uint8)
        for k, (place, mask) in enumerate(masks):
            whole = np.zeros(image.shape[:2], np.uint8)
            whole[place] = mask
            if whole[window].any():
                kept[k, : shown[0], : shown[1]] = resized(whole, Image.NEAREST)
        kept = kept[kept.any((1, 2))]
        boxes = ops.masks_to_boxes(torch.from_numpy(kept)) if len(kept) else torch.zeros(0, 4)
        boxes = boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
        target = {"boxes": boxes, "labels": torch.ones(len(kept), dtype=torch.int64), "masks": torch.from_numpy(kept)}
        return torch.from_numpy(pixels / 255).permute(2, 0, 1), target


@torch.inference_mode()
def detect(model: torch.nn.Module, root: pathlib.Path) -> tuple[COCO, list[dict[str, Any]], list[dict[str, Any]]]:
    """The truth of the validation images, and their detections: those of the boxes, those of the masks."""
    truth, boxes, masks = COCO(root / "annotations" / "instances_val.json"), [], []
    model.eval()
    for i, info in sorted(truth.imgs.items()):
        image = np.asarray(Image.open(root / "val" / info["file_name"]).convert("RGB"))
        model.transform.min_size, model.transform.max_size = (min(image.shape[:2]),), max(image.shape[:2])
        found = model([torch.from_numpy(image.copy()).permute(2, 0, 1) / 255])[0]
        for box, score, mask in zip(found["boxes"].tolist(), found["scores"].tolist(), found["masks"], strict=True):
            code = coco_mask.encode(np.asfortranarray((mask[0] >= 0.5).numpy().astype(np.uint8)))
            named = {"image_id": i, "category_id": 1, "score": score}
            boxes.append({**named, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
            masks.append({**named, "segmentation": code})
    return truth, boxes, masks


def score(truth: COCO, detections: list[dict[str, Any]], kind: str, limit: int) -> dict[str, float]:
    """AP and AP50 of one kind, "bbox" or "segm"."""
    evaluation = COCOeval(truth, truth.loadRes([dict(one) for one in detections]), kind)
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # every area, the largest number of detections
    mean = lambda p: float(p[p > -1].mean())
    return {"ap": mean(precision), "ap50": mean(precision[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=50, help="of CPU time, of all threads together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    data, model = Windows(args.root), build()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    order, step, losses = [], 0, []
    start, limit = time.process_time(), 60 * args.minutes
    model.train()
    while (spent := time.process_time() - start) < limit:
        if len(order) < BATCH:
            order = rng.permutation(len(data.images)).tolist()
        images, targets = zip(*(data.draw(order.pop(), rng) for _ in range(BATCH)), strict=True)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / WARMUP) * (1 - spent / limit) ** 0.9
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        step += 1
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step}  {spent / 60:.1f} of {args.minutes} min  loss {np.mean(losses[-20:]):.4f}", flush=True)
    row = {"torch": torch.__version__, "torchvision": torchvision.__version__, "seed": args.seed, "steps": step,
           "minutes": args.minutes, "threads": args.threads}  # fmt: skip
    truth, boxes, masks = detect(model, args.root)
    for kind, found in (("bbox", boxes), ("segm", masks)):
        for most in (100, 500):
            row[f"{kind}, {most} detections"] = score(truth, found, kind, most)
    print(json.dumps(row, indent=1))
    args.output.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
