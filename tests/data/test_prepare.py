"""Preparing sets: the drawn one, a builder of one's own, and every reason why a public one cannot be prepared here."""

import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax import data
from segjax.data import prepare, shapes
from segjax.types import InputError


def _png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


class OwnSet(tfds.core.GeneratorBasedBuilder):
    """A registered builder that needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        mask = f.LabeledImage(labels=["out", "in"], shape=(4, 6, 1))
        features = f.FeaturesDict({"image": f.Image(shape=(4, 6, 3)), "segmentation_mask": mask})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            image, label = np.full((4, 6, 3), i, np.uint8), np.full((4, 6), i % 2, np.uint8)
            yield i, {"image": _png(image), "segmentation_mask": _png(label)}


def test_own_builder_is_prepared_and_then_read(tmp_path):
    with pytest.raises(InputError, match=f"prepare own_set --root={tmp_path}"):
        data.build("tfds", split="train", name="own_set", root=str(tmp_path))
    folder = prepare.prepare("own_set", str(tmp_path))
    assert folder == tmp_path / "own_set" / "1.0.0"
    dataset = data.build("tfds", split="train", name="own_set", root=str(tmp_path))
    assert sorted(int(dataset[i]["image"][0, 0, 0]) for i in range(3)) == [0, 1, 2]
    assert dataset.class_names == ("out", "in")
    assert prepare.prepare("own_set", str(tmp_path)) == folder  # a second time: nothing to do


def test_shapes_need_no_tensorflow(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "SCENES", {"train": 2, "val": 1, "test": 1})
    monkeypatch.setenv("SEGJAX_CACHE", str(tmp_path))
    assert prepare.main(["shapes"]) == 0
    assert len(data.build("shapes", split="train")) == 2


def test_a_set_of_the_catalogue_without_tensorflow_says_the_pip_line(tmp_path, monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else real(name))
    assert prepare.main(["oxford_iiit_pet", f"--root={tmp_path}"]) == 2
    assert "TensorFlow, once" in caplog.text and "pip install -e '.[prepare]'" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_and_failing_downloads_are_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no set 'oxford_iiit_pets'.*oxford_iiit_pet"):
        prepare.prepare("oxford_iiit_pets", str(tmp_path))
    with pytest.raises(InputError, match="own_set:7.0.0: could not be prepared"):
        prepare.prepare("own_set:7.0.0", str(tmp_path))
    for raised, message in (
        (tfds.download.DownloadError("HTTP 503"), "download failed .*503.*run this again"),
        (ModuleNotFoundError("no cv2", name="cv2"), "pip install cv2"),
        (OSError(28, "No space left on device"), "could not be prepared in .*No space left"),
    ):

        def fail(self, raised=raised, **options):
            raise raised

        monkeypatch.setattr(OwnSet, "download_and_prepare", fail)
        with pytest.raises(InputError, match=message):
            prepare.prepare("own_set", str(tmp_path / "other"))


def test_help_and_a_wrong_name_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "segjax.data.prepare"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--root" in shown.stdout and "oxford_iiit_pet" in shown.stdout
    wrong = subprocess.run([*command, "shape", f"--root={tmp_path}"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "shapes" in wrong.stderr and "Traceback" not in wrong.stderr
