"""CamVid's yardstick: smp's DeepLabV3+ in PyTorch, by the recipe of experiments/deeplab.py:camvid.

    python benchmarks/camvid_torch.py --root=CAMVID --seed=0 --output=seed0.json

Needs torch, segmentation_models_pytorch and Pillow, in an environment of their own; segjax is not imported. MobileNetV2
from random weights, 256x192, batch 8, 20 epochs of 45 steps, AdamW 1e-3, weight decay 1e-4, 100 warm-up steps, then
(1 - t/T)^0.9, horizontal flips only, cross entropy without label 11. Prints the validation mIoU of the last epoch at
256x192 and at the labels' own resolution, and the images trained per second.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image

SIZE, CLASSES, IGNORE = (256, 192), 11, 11  # (width, height)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def read(root: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images u8[N, 192, 256, 3], labels at that size and labels as stored."""
    images, labels, native = [], [], []
    for file in sorted((root / split).iterdir()):
        label = Image.open(root / f"{split}annot" / f"{file.stem}.png")
        images.append(np.asarray(Image.open(file).convert("RGB").resize(SIZE, Image.BILINEAR)))
        labels.append(np.asarray(label.resize(SIZE, Image.NEAREST)))
        native.append(np.asarray(label))
    return np.stack(images), np.stack(labels), np.stack(native)


def to_input(images: np.ndarray) -> torch.Tensor:
    """Normalised NCHW in the channels_last layout."""
    x = torch.from_numpy(((images / 255.0 - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def miou(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[float, list[float]]:
    """Mean IoU over the classes that occur, logits resized to the size of the labels."""
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    model.eval()
    with torch.no_grad():
        for i in range(0, len(images), 8):
            logits = model(to_input(images[i : i + 8]))
            logits = torch.nn.functional.interpolate(logits, size=labels.shape[1:], mode="bilinear")
            prediction, truth = logits.argmax(1).numpy(), labels[i : i + 8].astype(np.int64)
            kept = truth < CLASSES
            counts += np.bincount(truth[kept] * CLASSES + prediction[kept], minlength=CLASSES**2).reshape(CLASSES, -1)
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    return float(np.nanmean(iou)), iou.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train, val = read(args.root, "train"), read(args.root, "val")
    model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=CLASSES)
    model = model.to(memory_format=torch.channels_last)
    total = args.epochs * (len(train[0]) // 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, (t + 1) / 100) * (1 - t / total) ** 0.9)
    history, spent = [], 0.0
    for epoch in range(args.epochs):
        model.train()
        order, start = rng.permutation(len(train[0])), time.perf_counter()
        for i in range(len(order) // 8):
            rows = order[8 * i : 8 * i + 8]
            images, labels = train[0][rows].copy(), train[1][rows].astype(np.int64)
            for j in np.flatnonzero(rng.random(8) < 0.5):
                images[j], labels[j] = images[j, :, ::-1], labels[j, :, ::-1]
            loss = torch.nn.functional.cross_entropy(
                model(to_input(images)), torch.from_numpy(labels), ignore_index=IGNORE
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        spent += time.perf_counter() - start
        if (epoch + 1) % 5 == 0 or epoch + 1 == args.epochs:
            row = {"epoch": epoch + 1, "miou_256x192": miou(model, val[0], val[1])[0]}
            row["miou_native"], row["iou_native"] = miou(model, val[0], val[2])
            row["images_per_second"] = (epoch + 1) * 8 * (len(order) // 8) / spent
            history.append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "iou_native"}), flush=True)
    args.output.write_text(json.dumps({"seed": args.seed, "torch": torch.__version__, "history": history}, indent=1))


if __name__ == "__main__":
    main()
