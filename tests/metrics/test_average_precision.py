"""COCO AP by a plain reading of its rules, by hand-made cases, and against stored results of pycocotools."""

import copy
import json
import pickle

import numpy as np
import pytest

from segjax import rle
from segjax.metrics import average_precision as ap
from segjax.types import InputError

SIZE = (60, 80)


def box_mask(box):
    x, y, w, h = box
    return rle.from_polygons([[x, y, x + w, y, x + w, y + h, x, y + h]], SIZE)


def drawn(seed, images=5, categories=3, objects=5, detections=9):
    """Integer boxes as boxes and masks; crowds, equal scores, a class and images without anything."""
    rng = np.random.default_rng(seed)

    def box():
        low = rng.integers(0, [70, 50])
        return [*low.tolist(), *np.minimum(rng.integers(2, 45, 2), [80, 60] - low).tolist()]

    truth = {
        "images": [{"id": int(i), "height": SIZE[0], "width": SIZE[1]} for i in rng.permutation(images) * 5],
        "categories": [{"id": 2 * k + 1, "name": f"c{k}"} for k in range(categories)][::-1],
        "annotations": [],
    }
    found = []
    for image in truth["images"]:
        for _ in range(rng.integers(0, objects + 1)):
            shape = box()
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image["id"], "bbox": shape,
                "category_id": int(2 * rng.integers(0, categories - 1) + 1), "iscrowd": int(rng.random() < 0.15),
                "area": float(rng.choice([0.8, 1]) * shape[2] * shape[3]), "segmentation": box_mask(shape),
            })  # fmt: skip
    for image in truth["images"]:
        near = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for _ in range(rng.integers(0, detections + 1)):
            shape, category = box(), int(2 * rng.integers(0, categories) + 1)
            if near and rng.random() < 0.7:
                chosen = near[rng.integers(len(near))]
                category = chosen["category_id"]
                shape = (np.array(chosen["bbox"]) + [*rng.integers(-1, 2, 2), 0, 0]).clip(0).tolist()
            found.append({"image_id": image["id"], "category_id": category, "score": float(rng.integers(0, 8)) / 8,
                          "bbox": shape, "segmentation": box_mask(shape)})  # fmt: skip
    return truth, found


def overlap(detection, truth, kind):
    """IoU of two boxes or masks, by pixels for masks; for crowds over the detection's area."""
    if kind == "segm":
        a, b = rle.decode(detection["segmentation"]), rle.decode(truth["segmentation"])
        shared, mine, theirs = (a & b).sum(), a.sum(), b.sum()
    else:
        (x, y, w, h), (u, v, p, q) = detection["bbox"], truth["bbox"]
        across, down = min(x + w, u + p) - max(x, u), min(y + h, v + q) - max(y, v)
        shared, mine, theirs = max(across, 0) * max(down, 0), w * h, p * q
    return shared / max(mine if truth["iscrowd"] else mine + theirs - shared, 1)


def plain(truth, found, kind, limits):
    """The rules one after the other, for one class, range and threshold at a time: precision, recall."""
    keys = sorted(c["id"] for c in truth["categories"])
    shape = (10, 101, len(keys), 4, len(limits))
    precision, recall = -np.ones(shape), -np.ones((shape[0], *shape[2:]))
    ious = {}
    for k, a, m, t in np.ndindex(len(keys), 4, len(limits), 10):
        low, high = ap.AREAS[a]
        rows, positives = [], 0
        for image in sorted(i["id"] for i in truth["images"]):
            mine = [d for d in found if d["image_id"] == image and d["category_id"] == keys[k]]
            mine = sorted(mine, key=lambda d: -d["score"])[: limits[m]]
            objects = [g for g in truth["annotations"] if g["image_id"] == image and g["category_id"] == keys[k]]
            ignored = [g["iscrowd"] or not low <= g["area"] <= high for g in objects]
            positives += sum(not x for x in ignored)
            used = set()
            for d in mine:
                best = None
                for wanted in (False, True):
                    for n, g in enumerate(objects):
                        key = (id(d), g["id"])
                        if key not in ious:
                            ious[key] = overlap(d, g, kind)
                        free = n not in used or g["iscrowd"]
                        fits = bool(ignored[n]) == wanted and free and ious[key] >= ap.THRESHOLDS[t]
                        if fits and (best is None or ious[key] >= best[0]):
                            best = (ious[key], n)
                    if best:
                        break
                if best:
                    used.add(best[1])
                area = rle.area([d["segmentation"]])[0] if "bbox" not in d else d["bbox"][2] * d["bbox"][3]
                skip = ignored[best[1]] if best else not low <= area <= high
                rows.append((d["score"], bool(best), bool(skip)))
        if not positives:
            continue
        rows = sorted((r for r in rows), key=lambda r: -r[0])
        right, wrong, points = 0, 0, []
        for _, hit, skip in rows:
            right, wrong = right + (hit and not skip), wrong + (not hit and not skip)
            points.append((right / positives, right / (right + wrong + np.spacing(1))))
        recall[t, k, a, m] = points[-1][0] if points else 0
        for r, level in enumerate(ap.RECALLS):
            precision[t, r, k, a, m] = max((p for x, p in points if x >= level), default=0)
    return precision, recall


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_the_rules_read_plainly(seed, kind):
    truth, found = drawn(seed)
    limits = [(1, 2, 4), (1, 10, 100), (3,), (2, 500)][seed]
    if kind == "segm" and seed % 2:
        found = [{key: value for key, value in d.items() if key != "bbox"} for d in found]
    scores = ap.evaluate(truth, found, iou_type=kind, max_dets=limits)
    precision, recall = plain(truth, found, kind, limits)
    np.testing.assert_allclose(scores["precision"], precision, atol=1e-12)
    np.testing.assert_allclose(scores["recall"], recall, atol=1e-12)
    assert scores["AP"] == pytest.approx(precision[..., 0, -1][precision[..., 0, -1] > -1].mean())
    assert scores[f"AR_{limits[0]}"] == pytest.approx(recall[:, :, 0, 0][recall[:, :, 0, 0] > -1].mean())
    assert scores["max_dets"] == limits and scores["per_class"][5]["AP"] == -1


@pytest.mark.parametrize(
    ("name", "drop", "kind"),
    [("bbox", "segmentation", "bbox"), ("segm", "bbox", "segm"), ("segm_with_bbox_field", None, "segm")],
)
def test_golden_numbers(golden_dir, name, drop, kind):
    truth, found, expected = (
        json.loads((golden_dir / "dev" / f"{file}.json").read_text())
        for file in ("coco_ground_truth", "coco_detections", "metrics_coco")
    )
    found = [{key: value for key, value in d.items() if key != drop} for d in found]
    scores, expected = ap.evaluate(truth, found, iou_type=kind), expected["results"][name]
    for key, value in expected["summary"].items():
        assert scores[key] == pytest.approx(value, abs=1e-9), key
    for key, value in expected["AP_per_category"].items():
        assert scores["per_class"][int(key)]["AP"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_stream_in_any_batches_gives_the_same(kind):
    truth, found = drawn(7, images=9)
    before = copy.deepcopy((truth, found))
    whole = ap.evaluate(truth, found, iou_type=kind)
    assert (truth, found) == before  # what is given is left as it is
    empty = ap.empty(truth["categories"], iou_type=kind)
    parts = []
    for images in (truth["images"][:2], truth["images"][2:3], truth["images"][3:]):
        keys = {image["id"] for image in images}
        some = [d for d in found if d["image_id"] in keys]
        parts.append(ap.update(empty, {**truth, "images": images}, some))
    other = pickle.loads(pickle.dumps(parts[2]))
    for order in ([other, parts[0], parts[1]], [parts[1], other, parts[0], empty]):
        state = order[0]
        for part in order[1:]:
            state = ap.merge(state, part)
        scores = ap.compute(state)
        for key in ("precision", "recall", "scores"):
            np.testing.assert_array_equal(scores[key], whole[key])
    with pytest.raises(InputError, match="seen twice"):
        ap.merge(parts[0], parts[0])
    with pytest.raises(ValueError, match="max_dets"):
        ap.merge(parts[0], ap.empty(truth["categories"], iou_type=kind, max_dets=(5,)))


def test_more_than_100_detections_count_where_max_dets_says_so():
    boxes = [[8 * i, 8 * j, 6, 6] for i in range(20) for j in range(20)]
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}], "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": i + 1, "image_id": 1, "category_id": 1, "bbox": b, "area": 36, "iscrowd": 0}
                        for i, b in enumerate(boxes)],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": 1, "bbox": b, "score": 1 - i / 1000} for i, b in enumerate(boxes)]
    scores = ap.evaluate(truth, found, max_dets=(1, 10, 500))
    assert scores["AP"] == pytest.approx(1) and scores["AR_500"] == 1 and scores["AR_10"] == 10 / 400
    limited = ap.evaluate(truth, found)
    assert limited["AR_100"] == 0.25 and limited["AP"] == pytest.approx(26 / 101)


def test_nothing_found_and_nothing_to_find():
    truth, found = drawn(1)
    nothing = ap.evaluate(truth, [])
    assert nothing["AP"] == nothing["AR_100"] == 0 and nothing["per_class"][5]["AP"] == -1
    for part in ({**truth, "annotations": []}, {**truth, "images": [], "annotations": []}):
        some = found if part["images"] else []
        scores = ap.evaluate(part, some, iou_type="segm")
        assert scores["AP"] == scores["AR_1"] == scores["AP_small"] == -1


def test_boxes_serve_as_masks_and_masks_as_boxes():
    truth, found = drawn(2)
    boxes = [{key: value for key, value in d.items() if key != "segmentation"} for d in found]
    masks = [{key: value for key, value in d.items() if key != "bbox"} for d in found]
    assert ap.evaluate(truth, boxes, iou_type="segm")["AP"] == ap.evaluate(truth, found, iou_type="segm")["AP"]
    around = [{**d, "bbox": rle.to_bbox([d["segmentation"]])[0].tolist()} for d in found]  # ends at the image
    assert ap.evaluate(truth, masks)["AP"] == ap.evaluate(truth, around)["AP"]


def test_an_id_of_zero_is_found_by_nobody(caplog):
    truth, _ = drawn(3)
    truth["annotations"] = [{**truth["annotations"][0], "iscrowd": 0, "id": 0}]
    keys = ("image_id", "category_id", "bbox")
    found = [{**{key: truth["annotations"][0][key] for key in keys}, "score": 1.0}]
    assert ap.evaluate(truth, found)["AP"] == 0 and "id 0" in caplog.text
    truth["annotations"][0]["id"] = 4
    assert ap.evaluate(truth, found)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_id": 99}, "number 1 has the image_id 99"),
        ({"score": float("nan")}, "number 1 has 'score' nan"),
        ({"score": None}, "number 1 has 'score' None"),
        ({"bbox": [1, 2, 3]}, "number 1 has 'bbox'"),
        ({"segmentation": {"size": [60, 80], "counts": "1"}}, "number 1 has counts of the sum 1"),
        ({"segmentation": {"size": [1, 1], "counts": [1]}}, "number 1 has the size"),
    ],
)
def test_bad_detections_are_named(change, match):
    truth, found = drawn(0)
    found = [found[0], {**found[1], "category_id": truth["annotations"][0]["category_id"], **change}]
    with pytest.raises(InputError, match=match):
        ap.evaluate(truth, found, iou_type="segm" if "segmentation" in change else "bbox")


def test_other_bad_input():
    truth, found = drawn(0)
    with pytest.raises(InputError, match="category_id"):
        ap.evaluate(truth, [{key: v for key, v in found[0].items() if key != "category_id"}])
    with pytest.raises(InputError, match="none of the categories"):
        ap.evaluate(truth, [{**found[0], "category_id": 77}])
    with pytest.raises(InputError, match="images"):
        ap.evaluate({**truth, "images": None}, found)
    with pytest.raises(InputError, match="the id 1"):
        ap.evaluate({**truth, "annotations": [truth["annotations"][0]] * 2}, found)
    first = {key: value for key, value in truth["annotations"][0].items() if key != "segmentation"}
    with pytest.raises(InputError, match='annotation 1 has no "segmentation"'):
        ap.evaluate({**truth, "annotations": [first]}, [], iou_type="segm")
    with pytest.raises(ValueError, match="iou_type"):
        ap.evaluate(truth, found, iou_type="keypoints")
    with pytest.raises(ValueError, match="max_dets"):
        ap.evaluate(truth, found, max_dets=())
