"""The one evaluation of instance models: COCO's average precision, of the training loop and of ``segjax.evaluate``.

An image is fitted to its canvas, the model runs there, boxes and masks come back to the image's own pixels
(``instances``), and they are compared with the annotations as they are in the set, crowds included. Every image counts
once, whatever the batch size and the number of devices or processes.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from segjax import rle
from segjax.data.fitted_instances import INDEX
from segjax.inference import coco_results, evaluation, instance_pictures, instances
from segjax.metrics import average_precision, objects
from segjax.types import BOXES, CLASSES, CONTENT_SIZE, CROWD, IMAGE, MASKS, VALID, Batch, Variables

KINDS = {"bbox": "box", "segm": "mask"}  # COCO's name of what is compared: ours


def evaluate(
    forward: Callable[[Variables, Batch], Mapping[str, Any]],
    variables: Variables,
    batches: Iterable[Batch],
    dataset: Any,
    *,
    first_class: int = 0,
    paste_rule: str = "torchvision",
    max_dets: Sequence[int] = (1, 10, 100),
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
    collect: int = 0,
) -> dict[str, Any]:
    """Scores a model on batches of ``data.instances.eval_batches``.

    The processes of a group read different batches; what they find is put together at the end.

    Args:
        forward: of ``instances.make_forward``, made for this mesh.
        variables: {"params", "batch_stats"}.
        batches: image u8[B, H, W, 3], valid bool[B], native_size, content_size i32[B, 2], index i32[B].
        dataset: a set of instances, see ``data.instances``.
        first_class: the number by which the model calls class 0.
        paste_rule: see ``instances.detections_of``.
        max_dets: detections of an image and class that count, best first; COCO's are (1, 10, 100), AP is of the last.
        mesh: the devices; a batch is filled up with rows that are not valid to a multiple of their number.
        progress: called with the number of images done, after each batch.
        collect: how many of the first images to return as pictures.

    Returns:
        "mask_ap", "mask_ap50", "mask_ap75" and the same of "box"; "mask_ar", "box_ar", the recall with the most
        detections; "mask" and "box", all that ``average_precision.evaluate`` gives; "objects", the scores of
        ``metrics.objects``; "ap", the mask AP of each class, NaN where it has no objects; "results", COCO's entries of
        every detection; "examples"; "max_dets"; and "pictures" (of this process): {"image", "truth", "prediction",
        "index"}.
    """
    mesh = None if mesh is None else mesh.local_mesh
    variables = evaluation.place_variables(variables, mesh)
    truth = ground_truth(dataset)
    ids = [image["id"] for image in truth["images"]]
    options = {"first_class": first_class, "paste_rule": paste_rule}
    entries, done, pictures = [], [], []
    for batch in batches:
        arrays = {key: batch[key] for key in (IMAGE, VALID, CONTENT_SIZE)}
        found = instances.batch_detections(forward(variables, evaluation.place_batch(arrays, mesh)), batch, **options)
        indices = batch[INDEX][batch[VALID]].tolist()
        for index, detections in zip(indices, found, strict=True):
            entries += coco_results.results(detections, image_id=ids[index], category_ids=dataset.category_ids)
            if len(pictures) < collect:
                pictures.append(_picture(dataset, index, detections))
        done += indices
        if progress is not None:
            progress(len(done))
    entries, done = _of_all_processes(entries), _of_all_processes(done)
    scores = {
        name: average_precision.evaluate(truth, _compared(entries, kind), iou_type=kind, max_dets=tuple(max_dets))
        for kind, name in KINDS.items()
    }
    each = np.array([scores["mask"]["per_class"][int(number)]["AP"] for number in dataset.category_ids])
    result = {f"{name}_{key.lower()}": of[key] for name, of in scores.items() for key in ("AP", "AP50", "AP75")}
    result |= {f"{name}_ar": of[f"AR_{max(max_dets)}"] for name, of in scores.items()}
    return result | scores | {
        "ap": np.where(each < 0, np.nan, each),
        "objects": objects.evaluate(truth, entries),
        "results": entries,
        "examples": len(done),
        "max_dets": tuple(max_dets),
        "pictures": pictures,
    }  # fmt: skip


def ground_truth(dataset: Any) -> dict[str, Any]:
    """A set's annotations as COCO's JSON: its own where it has them, else made of its examples, each read once."""
    if hasattr(dataset, "ground_truth"):
        return dataset.ground_truth()
    images, annotations = [], []
    for i in range(len(dataset)):
        example = dataset[i]
        height, width = example[IMAGE].shape[:2]
        images.append({"id": i, "height": int(height), "width": int(width)})
        for row, mask in enumerate(example[MASKS]):
            x0, y0, x1, y1 = map(float, example[BOXES][row])
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": int(dataset.category_ids[example[CLASSES][row]]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(rle.area([mask])[0]),
                "iscrowd": int(example[CROWD][row]),
                "segmentation": mask,
            })  # fmt: skip
    categories = [
        {"id": int(number), "name": name}
        for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _compared(entries: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Entries with what is compared alone: with both, COCO's tools size masks by their boxes."""
    other = "segmentation" if kind == "bbox" else "bbox"
    return [{key: value for key, value in entry.items() if key != other} for entry in entries]


def _picture(dataset: Any, index: int, detections: instances.Detections) -> dict[str, Any]:
    example = dataset[index]
    truth = instance_pictures.ground_truth(example)
    return {"image": example[IMAGE], "truth": truth, "prediction": detections, "index": index}


def _of_all_processes(found: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other, through JSON."""
    if jax.process_count() == 1:
        return found
    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [entry for row, n in zip(texts, lengths, strict=True) for entry in json.loads(row[:n].tobytes())]


def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation, for evaluation.json.

    Args:
        result: of ``evaluate``.
    Returns:
        JSON's types but for NaN and arrays of numbers; of "mask" and "box" COCO's numbers, of each class too, and
        "at_max_dets": AP, AP50 and AP75 at every limit of detections.
    """
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    out = {key: value for key, value in result.items() if isinstance(value, float)}
    for kind in KINDS.values():
        of = result[kind]
        keys = [*names, *(f"AR_{m}" for m in of["max_dets"]), "AR_small", "AR_medium", "AR_large"]
        each = {one["name"]: {key: one[key] for key in keys} for one in of["per_class"].values()}
        limits = {str(m): numbers for m, numbers in at_limits(of).items()}
        out[kind] = {key: of[key] for key in keys} | {"at_max_dets": limits, "per_class": each}
    of = result["objects"]
    out["objects"] = {key: of[key] for key in ("score", "score_at", "f1", "mean_f1", "thresholds", "min_score")}
    return out | {"max_dets": list(result["max_dets"]), "examples": result["examples"]}


def at_limits(scores: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """AP of objects of all sizes at every limit of detections, not at the largest alone.

    Args:
        scores: of ``average_precision.compute``.
    Returns:
        {max_dets: {"AP", "AP50", "AP75"}}; -1 where there is nothing to find.
    """
    rows = {"AP": slice(None)} | {f"AP{t}": int(np.argmin(abs(scores["iou_thresholds"] - t / 100))) for t in (50, 75)}
    out: dict[int, dict[str, float]] = {}
    for m, limit in enumerate(scores["max_dets"]):
        found = {name: scores["precision"][row][..., 0, m] for name, row in rows.items()}
        out[limit] = {name: float(x[x > -1].mean()) if (x > -1).any() else -1.0 for name, x in found.items()}
    return out


def table(result: Mapping[str, Any]) -> str:
    """The scores of an evaluation, for a person: COCO's twelve numbers, AP at each limit from 100, AP of each class.

    Args:
        result: of ``evaluate``.
    Returns:
        lines of text; what has nothing to find shows a dash.
    """
    most = result["max_dets"][-1]
    rows = [("AP", "AP  IoU 0.50:0.95"), ("AP50", "AP  IoU 0.50"), ("AP75", "AP  IoU 0.75")]
    rows += [(f"AP_{size}", f"AP  {size} objects") for size in ("small", "medium", "large")]
    rows += [(f"AR_{m}", f"AR  {m} detections") for m in result["max_dets"]]
    rows += [(f"AR_{size}", f"AR  {size} objects") for size in ("small", "medium", "large")]
    lines = [f"{f'at most {most} detections an image':<34}    mask     box"]
    for key, name in rows:
        lines.append(f"{name:<34}  {_number(result['mask'][key]):>6}  {_number(result['box'][key]):>6}")
    mask, box = (at_limits(result[kind]) for kind in ("mask", "box"))
    for m in result["max_dets"][:-1]:
        for key, name in rows[:2] if m >= 100 else ():
            lines.append(f"{f'{name}, {m} detections':<34}  {_number(mask[m][key]):>6}  {_number(box[m][key]):>6}")
    lines.append("-" * len(lines[0]))
    for number, one in result["mask"]["per_class"].items():
        box = result["box"]["per_class"][number]["AP"]
        lines.append(f"{'AP  ' + one['name']:<34}  {_number(one['AP']):>6}  {_number(box):>6}")
    of = result["objects"]
    lines.append("-" * len(lines[0]))
    lines.append(f"objects of score {of['min_score']} and more, mean of TP / (TP + FP + FN) over images and IoU "
                 f"{of['thresholds'][0]:.1f}:{of['thresholds'][-1]:.1f}: {_number(of['score'])}; F1 at IoU "
                 f"{of['thresholds'][0]:.1f}: {_number(float(of['f1'][0]))}")  # fmt: skip
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if value >= 0 else "-"
