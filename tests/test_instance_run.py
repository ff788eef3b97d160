"""An instance model through the commands a user types: trained, continued, evaluated, asked for predictions."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segjax import evaluate, predict, rle, train
from segjax.inference import files

pytestmark = pytest.mark.slow

EXPERIMENT = """
from ml_collections import ConfigDict
import importlib.util

def get_config(root):
    spec = importlib.util.spec_from_file_location("mask_rcnn", "experiments/mask_rcnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("nuclei").unlock()
    config.data.update({"root": root, "folder": "", "size": (64, 64), "max_instances": 4, "mask_size": 28})
    config.model.update({"width": 0.125, "channels": 16, "box_channels": 16, "mask_channels": 16, "detections": 8})
    config.model.update({"anchor_sizes": (8, 16, 24, 32, 64), "rpn_pre_nms": (50, 50), "rpn_post_nms": (20, 20)})
    config.model.box_samples = 16
    config.train.update({"steps": 2, "batch_size": 2})
    config.eval.update({"every_steps": 2, "sizes": ((64, 96),), "batch_size": 2, "pictures": 1})
    config.checkpoint.every_steps = 1
    config.log.tensorboard = False
    return config.lock()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run of two steps, and the folder of its set: squares on noise, one image without any."""
    root = tmp_path_factory.mktemp("instances")
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in (("train", 4), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            size = (64, 64) if i else (48, 80)
            picture = generator.integers(0, 60, (*size, 3), np.uint8)
            images.append({"id": 10 + i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
            for k in range(i):
                mask = np.zeros(size, bool)
                mask[5 + 15 * k : 17 + 15 * k, 8 : 8 + 12 + 6 * k] = True
                picture[mask] = (220, 200, 40)
                x, y, w, h = rle.to_bbox([rle.encode(mask)])[0].tolist()
                annotations.append({"id": len(annotations) + 1, "image_id": 10 + i, "category_id": 7, "iscrowd": 0,
                                    "bbox": [x, y, w, h], "area": w * h, "segmentation": rle.encode(mask)})  # fmt: skip
            Image.fromarray(picture).save(root / split / f"{i}.png")
        content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "person"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (root / "experiment.py").write_text(EXPERIMENT)
    workdir = root / "run"
    command = [sys.executable, "-m", "segjax.train", f"--config={root / 'experiment.py'}:{root}"]
    done = subprocess.run([*command, f"--workdir={workdir}"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "validation mask AP" in done.stdout
    return root


def test_what_a_run_leaves(run):
    summary = json.loads((run / "run" / "summary.json").read_text())
    assert summary["step"] == 2 and set(summary["ap"]) == {"person"} and 0 <= summary["mask_ap"] <= 1
    assert summary["protocol"]["max_dets"] == [1, 100, 500]
    page = (run / "run" / "report.html").read_text()
    assert "Validation mask AP" in page and "mask AP of each class" in page
    assert (run / "run" / "pictures" / "val-000.png").is_file()
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/box_ap50" in row for row in rows)


def test_evaluation_and_its_files(run, tmp_path, capsys):
    output = tmp_path / "evaluation.json"
    assert evaluate.main([f"--workdir={run / 'run'}", f"--output={output}"]) == 0
    assert "AP  IoU 0.50:0.95" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["examples"] == 3 and report["max_dets"] == [1, 100, 500]
    assert set(report["mask"]) >= {"AP", "AP50", "AP75", "AP_small", "AR_1", "AR_100", "AR_500"}
    assert report["mask"]["per_class"]["person"]["AP"] == pytest.approx(report["mask_ap"])
    summary = json.loads((run / "run" / "summary.json").read_text())
    assert report["mask_ap"] == pytest.approx(summary["mask_ap"], abs=1e-6)  # the loop's evaluation is this one
    entries = json.loads((tmp_path / "evaluation_detections.json").read_text())
    assert {entry["image_id"] for entry in entries} <= {10, 11, 12} and all(e["category_id"] == 7 for e in entries)
    assert Image.open(tmp_path / "evaluation_curves.png").size[0] > 100


def test_predictions_as_coco_results_pictures_and_effect(run, tmp_path, capsys):
    annotations = run / "annotations" / "instances_val.json"
    arguments = [f"--workdir={run / 'run'}", f"--input={run / 'val'}", f"--output={tmp_path}", "--threshold=0"]
    assert predict.main([*arguments, "--effect=portrait", f"--annotations={annotations}"]) == 0
    entries = json.loads((tmp_path / files.DETECTIONS).read_text())
    for entry in entries:
        size = (48, 80) if entry["image_id"] == 10 else (64, 64)
        assert entry["category_id"] == 7 and rle.decode(entry["segmentation"]).shape == size
        assert entry["file_name"] == f"{entry['image_id'] - 10}.png" and 0 <= entry["score"] <= 1
    for folder in (files.OVERLAYS, files.EFFECTS):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["0.png", "1.png", "2.png"]
    assert "effects/0.png" in (tmp_path / files.INDEX).read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tile=64"], "is of semantic models"),
        (["--threshold=2"], "--threshold=2"),
        (["--effect=bokeh"], "expected portrait"),
        (["--effect_class=person"], "needs --effect=portrait"),
        (["--effect=portrait", "--effect_class=dog"], "dog"),
        (["--annotations=/nowhere.json"], "/nowhere.json"),
    ],
)
def test_mistakes_are_named(run, tmp_path, capsys, arguments, words):
    assert predict.main([f"--workdir={run / 'run'}", f"--input={run / 'val'}", f"--output={tmp_path}", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_more_objects_than_rows_are_refused(run, capsys):
    command = [f"--config={run / 'experiment.py'}:{run}", f"--workdir={run / 'other'}", "--config.data.max_instances=2"]
    command.append("--config.train.batch_size=8")  # of eight devices
    assert train.main(command) == 2
    assert "data.max_instances=2" in capsys.readouterr().err
