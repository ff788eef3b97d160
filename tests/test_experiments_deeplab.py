"""experiments/deeplab.py: a run of one step on a made folder in the layout of PASCAL VOC with SBD's annotations."""

import json

import numpy as np
from PIL import Image

from segjax import train


def write_voc(root):
    """Five images, three of them in trainaug and one in val; a class of VOC and void pixels in every label."""
    voc = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/SegmentationAug"):
        (voc / folder).mkdir(parents=True)
    names = [f"2007_{number:06d}" for number in range(5)]
    for number, name in enumerate(names):
        size = (24 + number, 33 - 2 * number)
        image = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        label = np.zeros(size, np.uint8)
        label[5:15, 5:15], label[4, 4:16] = 20 - number, 255
        Image.fromarray(image).save(voc / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(label).save(voc / "SegmentationClassAug" / f"{name}.png")
    (voc / "ImageSets/SegmentationAug/trainaug.txt").write_text("\n".join(names[:3]) + "\n")
    (voc / "ImageSets/SegmentationAug/val.txt").write_text(names[4] + "\n")
    (voc / "classes.json").write_text(json.dumps({"classes": [f"class {number}" for number in range(21)]}))


def test_a_step_on_voc(tmp_path, monkeypatch):
    monkeypatch.setattr("segjax.training.devices.keep_compiled_programs", lambda folder: None)
    write_voc(tmp_path)
    small = {
        "data.root": tmp_path,
        "data.size": "33,33",
        "data.workers": 0,
        "model.width": 0.0625,
        "model.fc_channels": 8,
        "train.steps": 1,
        "train.batch_size": 8,
        "train.dtype": "float32",
        "eval.batch_size": 8,
        "eval.every_steps": 1,
        "eval.pictures": 0,
        "log.tensorboard": False,
        "checkpoint.every_steps": 1,
    }
    workdir = tmp_path / "run"
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    assert train.main(["--config=experiments/deeplab.py:voc_v1", f"--workdir={workdir}", *flags]) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any(np.isfinite(line.get("train/loss", np.nan)) for line in lines), lines
    pixels = [line["val/pixels"] for line in lines if "val/pixels" in line]
    assert pixels == [28 * 25 - 12], "the one image of val, but for its void pixels"
