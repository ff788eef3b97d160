"""COCO AP: segjax against pycocotools, the same numbers first, then the time of both on the same CPU.

    python benchmarks/average_precision.py --peer-python=PYTHON_WITH_PYCOCOTOOLS       (or SEGJAX_PEER_PYTHON)
    python benchmarks/average_precision.py --check=200 --rounds=0 --peer-python=...     equality alone, 200 drawn cases

Equality: drawn sets of few images, seeds 0, 1, ...: polygons, run lengths in both forms, crowds, equal scores, results
without boxes or without masks, classes and images without objects or detections, up to 400 objects in an image, any
max_dets; every precision, recall and score of pycocotools' arrays, and polygons, areas, boxes, overlaps and unions of
the masks themselves. Time: sets of 1,000 images drawn alike for both, from lists of dicts to the 12 numbers:

    coco     80 classes, 640x480, 7 objects and 30 detections an image, a fifth of the masks polygons
    cells    1 class, 256x256, 40 objects and 60 detections an image, run lengths

Every measurement is a process of its own, the two in turn; medians of --rounds.
"""

import argparse
import copy
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
KEYS = ("precision", "recall", "scores")
SETS = {
    "coco": {"images": 1000, "size": (480, 640), "categories": 80, "objects": 7, "detections": 30, "polygons": 0.2},
    "cells": {"images": 1000, "size": (256, 256), "categories": 1, "objects": 40, "detections": 60, "polygons": 0.0},
}


def drawn(seed: int, *, images: int, size: tuple[int, int], categories: int, objects: int, detections: int,
          polygons: float, odd: bool = False) -> dict[str, Any]:  # fmt: skip
    """Ground truth and detections; `odd`: ties, crowds, classes without objects, images without anything."""
    from segjax import rle

    rng = np.random.default_rng(seed)
    height, width = size
    scale = min(size) / (4 if objects < 30 else 20)
    truth: dict[str, Any] = {
        "images": [{"id": 7 * i + 3, "height": height, "width": width} for i in rng.permutation(images).tolist()],
        "categories": [{"id": 3 * k + 1, "name": f"class {k}"} for k in range(categories)],
        "annotations": [],
    }
    results = []

    def shape(centre: np.ndarray, radius: np.ndarray) -> tuple[Any, list[float]]:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        wave = 1 + 0.15 * rng.normal() * np.sin(3 * angle + rng.uniform(0, 6))
        corners = centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius * wave[:, None]
        corners = np.clip(corners, 0, [width, height]).round(2)
        mask: Any = [corners.ravel().tolist()]
        low, high = corners.min(axis=0), corners.max(axis=0)
        box = [*low.tolist(), *(high - low).tolist()]
        return (mask if rng.random() < polygons else rle.from_polygons(mask, size)), box

    for image in truth["images"]:
        count = int(rng.integers(0, 2 * objects + 1))
        kept = []
        for _ in range(count):
            category = int(rng.integers(0, max(categories - (categories > 2), 1)))
            centre, radius = rng.uniform(0, [width, height]), rng.uniform(0.2, 1, 2) * scale
            mask, box = shape(centre, radius)
            crowd = int(odd and rng.random() < 0.1)
            if crowd and isinstance(mask, dict):
                mask = {"size": [height, width], "counts": rle.string_to_counts(mask["counts"]).tolist()}
            area = float(rng.uniform(0.5, 1) * box[2] * box[3])
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": 3 * category + 1,
                "iscrowd": crowd, "bbox": box, "area": area, "segmentation": mask,
            })  # fmt: skip
            kept.append((category, centre, radius))
        for _ in range(int(rng.integers(0, 2 * detections + 1))):
            if kept and rng.random() < 0.7:
                category, centre, radius = kept[int(rng.integers(len(kept)))]
                centre, radius = centre + rng.normal(0, 0.12, 2) * radius, radius * rng.uniform(0.85, 1.15, 2)
            else:
                category, centre = int(rng.integers(0, categories)), rng.uniform(0, [width, height])
                radius = rng.uniform(0.2, 1, 2) * scale
            mask, box = shape(centre, radius)
            if isinstance(mask, list):
                mask = rle.from_polygons(mask, size)
            score = round(float(rng.random()), 1 if odd else 6)
            results.append({"image_id": image["id"], "category_id": 3 * category + 1, "score": score, "bbox": box,
                            "segmentation": mask})  # fmt: skip
    return {"truth": truth, "results": results}


def case(seed: int) -> dict[str, Any]:
    """A drawn case of the equality check: few images, odd things, one of the four kinds of results."""
    rng = np.random.default_rng(1000 + seed)
    many = seed % 10 == 9
    out = drawn(
        seed, images=2 if many else int(rng.integers(1, 7)), size=(97, 120) if seed % 2 else (300, 200),
        categories=1 if many else int(rng.integers(1, 6)), objects=200 if many else int(rng.integers(0, 8)),
        detections=200 if many else int(rng.integers(1, 20)), polygons=0.5, odd=True,
    )  # fmt: skip
    drop = (None, "bbox", "segmentation", None)[seed % 4]
    out["results"] = [{key: value for key, value in d.items() if key != drop} for d in out["results"]]
    if seed % 5 == 0 and out["truth"]["annotations"]:
        out["truth"]["annotations"][0]["id"] = 0
    limits = ([1, 10, 100], [1, 10, 500], [2, 3, 5], [1, 20, 400])[int(rng.integers(4))]
    return {**out, "kind": ("segm", "bbox")[seed // 4 % 2], "max_dets": limits}


def peer(truth: dict, results: list, kind: str, max_dets: list) -> tuple[dict[str, np.ndarray], float]:
    """pycocotools' arrays, and the seconds it takes from dicts to numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        known = COCO()
        known.dataset = truth
        known.createIndex()
        run = COCOeval(known, known.loadRes(results), kind)
        run.params.maxDets = max_dets
        run.evaluate()
        run.accumulate()
        run.summarize()
        seconds = time.perf_counter() - start
    return {key: run.eval[key] for key in KEYS} | {"stats": run.stats}, seconds


def ours(truth: dict, results: list, kind: str, max_dets: list) -> tuple[dict[str, np.ndarray], float]:
    """The same of segjax."""
    from segjax.metrics import average_precision

    start = time.perf_counter()
    scores = average_precision.evaluate(truth, results, iou_type=kind, max_dets=max_dets)
    seconds = time.perf_counter() - start
    names = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", *(f"AR_{m}" for m in max_dets)]
    stats = np.array([scores[name] for name in [*names, "AR_small", "AR_medium", "AR_large"]])
    return {key: scores[key] for key in KEYS} | {"stats": stats}, seconds


def mask_numbers(masks: list, polygons: list, size: tuple[int, int], way: str) -> dict[str, Any]:
    """Areas, boxes, overlaps, unions and drawn polygons."""
    crowd = [i % 2 for i in range(len(masks))]
    if way == "segjax":
        from segjax import rle

        return {"area": rle.area(masks).tolist(), "box": rle.to_bbox(masks).tolist(),
                "iou": rle.iou(masks, masks, crowd).tolist(), "union": rle.merge(masks)["counts"],
                "both": rle.merge(masks[:2], intersect=True)["counts"],
                "drawn": [rle.from_polygons([p], size)["counts"] for p in polygons],
                "coded": [rle.encode(rle.decode(mask))["counts"] for mask in masks]}  # fmt: skip
    from pycocotools import mask as tools

    return {"area": tools.area(masks).tolist(), "box": tools.toBbox(masks).tolist(),
            "iou": tools.iou(masks, masks, crowd).tolist(), "union": tools.merge(masks)["counts"].decode(),
            "both": tools.merge(masks[:2], intersect=True)["counts"].decode(),
            "drawn": [rle["counts"].decode() for rle in tools.frPyObjects(polygons, *size)],
            "coded": [tools.encode(tools.decode(mask))["counts"].decode() for mask in masks]}  # fmt: skip


def mask_case(seed: int) -> tuple[list, list, tuple[int, int]]:
    """Noise, empty and full masks; polygons across the border, with corners that coincide."""
    from segjax import rle

    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(1, 50, 2))
    masks = [rle.encode(rng.random(size) < p) for p in (0, 0.03, 0.5, 0.97, 1, 0.2)]
    polygons = []
    for digits in (0, 1, 2, 9):
        corners = rng.uniform(-9, max(size) + 9, (int(rng.integers(3, 12)), 2)).round(digits)
        corners[1] = corners[0] if digits == 1 else corners[1]
        polygons.append(corners.ravel().tolist())
    return masks, polygons, size


def write_peer(folder: pathlib.Path, count: int) -> None:
    """In the peer's process: its arrays of all cases in the folder."""
    for seed in range(count):
        given = json.loads((folder / f"{seed}.json").read_text())
        arrays, _ = peer(given["truth"], given["results"], given["kind"], given["max_dets"])
        np.savez(folder / f"{seed}.npz", **arrays)
        numbers = mask_numbers(*given["masks"], "pycocotools")
        (folder / f"{seed}.masks.json").write_text(json.dumps(numbers))


def check(count: int, peer_python: str) -> None:
    """Raises AssertionError at the first case in which the two differ by more than 1e-9 (masks: at all)."""
    with tempfile.TemporaryDirectory() as name:
        folder, cases, worst = pathlib.Path(name), [], 0.0
        for seed in range(count):
            given = case(seed)
            if not given["results"]:  # pycocotools reads no empty list
                image, category = given["truth"]["images"][0]["id"], given["truth"]["categories"][0]["id"]
                result = {"image_id": image, "category_id": category, "score": 0.5, "bbox": [1.0, 2.0, 30.0, 20.0]}
                given["results"] = [result]
            cases.append({**given, "masks": mask_case(seed)})
            (folder / f"{seed}.json").write_text(json.dumps(cases[-1]))
        command = [peer_python, __file__, "--write-peer", name, "--check", str(count)]
        subprocess.run(command, check=True)
        for seed, given in enumerate(cases):
            mine, _ = ours(given["truth"], given["results"], given["kind"], given["max_dets"])
            theirs = dict(np.load(folder / f"{seed}.npz"))
            if given["max_dets"][-1] != 100:  # its first number is -1 then
                mine["stats"], theirs["stats"] = mine["stats"][1:], theirs["stats"][1:]
            for key, value in theirs.items():
                np.testing.assert_allclose(mine[key], value, rtol=0, atol=1e-9, err_msg=f"case {seed}, {key}")
                worst = max(worst, float(np.abs(mine[key] - value).max(initial=0)))
            assert mask_numbers(*given["masks"], "segjax") == json.loads((folder / f"{seed}.masks.json").read_text())
    print(f"{count} drawn cases: greatest difference {worst:.1e}, masks equal to the bit", flush=True)


def measure(way: str, path: str, kind: str) -> None:
    """In a process of its own: prints seconds and the numbers."""
    given = json.loads(pathlib.Path(path).read_text())
    arrays, seconds = {"segjax": ours, "pycocotools": peer}[way](
        copy.deepcopy(given["truth"]), given["results"], kind, [1, 10, 100]
    )
    print(json.dumps({"seconds": seconds, "stats": arrays["stats"].tolist()}))


def compare(rounds: int, peer_python: str, names: list[str]) -> None:
    """Times both on the sets of 1,000 images, in turn."""
    for name in names:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(drawn(0, **SETS[name]), file)
            file.flush()
            for kind in ("bbox", "segm"):
                rows: dict[str, list[dict]] = {"segjax": [], "pycocotools": []}
                for _ in range(rounds):
                    for way, python in (("segjax", sys.executable), ("pycocotools", peer_python)):
                        command = [python, __file__, "--measure", way, file.name, kind]
                        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                        rows[way].append(json.loads(done.stdout.splitlines()[-1]))
                mine, theirs = (statistics.median(row["seconds"] for row in rows[way]) for way in rows)
                apart = np.abs(np.subtract(rows["segjax"][0]["stats"], rows["pycocotools"][0]["stats"])).max()
                print(
                    f"{name:6} {kind}  segjax {mine:7.2f} s  pycocotools {theirs:7.2f} s  ratio {theirs / mine:5.1f}  "
                    f"AP {rows['segjax'][0]['stats'][0]:.4f} (difference at most {apart:.0e})", flush=True,
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("SEGJAX_PEER_PYTHON", sys.executable))
    parser.add_argument("--check", type=int, default=40, help="drawn cases of the equality check")
    parser.add_argument("--rounds", type=int, default=3, help="processes per way, set and kind")
    parser.add_argument("--sets", default=",".join(SETS), help="which sets to time")
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "FILE", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--write-peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
    elif args.write_peer:
        write_peer(pathlib.Path(args.write_peer), args.check)
    else:
        check(args.check, args.peer_python)
        compare(args.rounds, args.peer_python, args.sets.split(",") if args.rounds else [])


if __name__ == "__main__":
    main()
