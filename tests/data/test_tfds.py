"""Prepared TFDS sets: what is decoded against what was written, without TensorFlow, and every bad record named."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax import data
from segjax.types import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 9, 14, 3)).astype(np.uint8)
LABELS = RNG.integers(1, 4, (12, 9, 14)).astype(np.uint8)  # 1 .. 3, as oxford_iiit_pet stores them
LABELS[:, 0, 0] = 255


def png(picture: Image.Image | np.ndarray) -> bytes:
    """The PNG file of a picture."""
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, "PNG")
    return file.getvalue()


def palette_png(label: np.ndarray) -> bytes:
    """A PNG of palette mode whose colours are nothing like its indices."""
    picture = Image.fromarray(label).convert("P")
    picture.putdata(label.ravel().tolist())
    picture.putpalette([255 - i // 3 for i in range(768)])
    return png(picture)


class Made(tfds.core.GeneratorBasedBuilder):
    """A set with good and bad records, as the sets on the net have them."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "named")]

    def _info(self):
        f = tfds.features
        names = ["pet", "ground", "border"]
        shape = (None, None, 1)
        mask = (
            f.LabeledImage(labels=names, shape=shape) if self.builder_config.name == "named" else f.Image(shape=shape)
        )
        content = {
            "file": f.Text(),
            "image": f.Image(shape=(None, None, 3)),
            "segmentation_mask": mask,
            "ids": f.Tensor(shape=(9, 14, 1), dtype=np.int32),
            "depth": f.Tensor(shape=(9, 14), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(content))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("good"), "odd": self._generate_examples("odd")} | {
            bad: self._generate_examples(bad) for bad in ("rgb_mask", "size", "float", "truncated", "id")
        }

    def _generate_examples(self, kind):
        for i in range(12 if kind == "good" else 1):
            image, label = Image.fromarray(IMAGES[i]), palette_png(LABELS[i]) if i % 2 else png(LABELS[i])
            if kind == "odd":
                image = image.convert("RGBA")
            if kind == "rgb_mask":
                label = png(IMAGES[i])
            if kind == "size":
                label = png(LABELS[i][:, :13])
            if kind == "float":
                label = png(Image.fromarray(LABELS[i]).convert("LA"))
            if kind == "truncated":
                label = label[:-60]
            if kind == "id":
                label = LABELS[i].copy()
                label[4, 7] = 17
                label = png(label)
            ids = LABELS[i][..., None].astype(np.int32)
            depth = np.zeros((9, 14), np.float32)
            yield i, {"file": f"f{i}", "image": png(image), "segmentation_mask": label, "ids": ids, "depth": depth}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("sets"))
    for config in ("plain", "named"):
        Made(data_dir=folder, config=config, file_format="array_record").download_and_prepare()
    return folder


def _make(root, split="train", **options):
    return data.build("tfds", split=split, name="made/plain", root=root, **{**PLAIN, **options})


PLAIN = {"id_key": "file", "label_offset": -1, "num_classes": 3}


def test_images_and_labels_are_those_that_were_written(root):
    dataset = _make(root)
    assert len(dataset) == 12 and dataset.class_names == ("class 0", "class 1", "class 2")
    seen = set()
    for i in range(12):
        example = dataset[i]
        number = int(dataset.describe(i).split("(f")[1][:-1])
        seen.add(number)
        np.testing.assert_array_equal(example["image"], IMAGES[number])
        expected = np.where(LABELS[number] == 255, 255, LABELS[number] - 1)
        np.testing.assert_array_equal(example["label"], expected)  # half of them are palette files
        assert example["label"].dtype == np.uint8
    assert seen == set(range(12))


def test_opencv_would_not_change_a_palette_label(root, monkeypatch):
    """TFDS decodes with OpenCV where it is installed, and a palette label to colours; here nothing asks TFDS."""
    image = tfds.features.Image

    def decode(self, value):
        raise AssertionError("a picture went through TFDS's decoder")

    monkeypatch.setattr(image, "decode_example_np", decode)
    assert _make(root)[0]["label"].shape == (9, 14)


def test_slices_pickles_and_threads_read_the_same(root):
    whole = _make(root)
    half = _make(root, split="train[:50%]")
    assert len(half) == 6 and len(_make(root, split="train[2:4]+odd")) == 3
    again = pickle.loads(pickle.dumps(whole))
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda i: again[i % 12]["image"], range(96)))
    for i, image in enumerate(threaded):
        np.testing.assert_array_equal(image, whole[i % 12]["image"])
    for i in range(6):
        np.testing.assert_array_equal(half[i]["label"], whole[i]["label"])


def test_classes_come_from_the_set_or_the_options(root):
    named = {"name": "made/named", "root": root, "split": "train", "label_offset": 0}
    dataset = data.build("tfds", **named)
    assert dataset.class_names == ("pet", "ground", "border")
    with pytest.raises(InputError, match=r"label id 3 at \(row \d+, column \d+\).*outside 0 .. 2"):
        [dataset[i] for i in range(12)]
    assert data.build("tfds", **named, class_names=("a", "b")).num_classes == 2
    with pytest.raises(InputError, match="num_classes is 4 but there are 3"):
        data.build("tfds", **named, num_classes=4)
    with pytest.raises(InputError, match="data.num_classes or data.class_names"):
        _make(root, num_classes=0)


def test_a_label_may_be_a_tensor_and_the_alpha_of_an_image_is_dropped(root):
    dataset = _make(root, label_key="ids", split="odd")
    np.testing.assert_array_equal(dataset[0]["image"], IMAGES[0])
    np.testing.assert_array_equal(dataset[0]["label"], np.where(LABELS[0] == 255, 255, LABELS[0] - 1))
    with pytest.raises(InputError, match="'depth': expected integers"):
        _make(root, label_key="depth")[0]


def test_another_stored_id_can_be_the_ignored_one(root):
    dataset = _make(root, ignore_label=2, num_classes=255, label_offset=-1)
    label = dataset[0]["label"]
    number = int(dataset.describe(0).split("(f")[1][:-1])
    np.testing.assert_array_equal(label == 255, LABELS[number] == 2)
    assert dataset.ignore_label == 255


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("rgb_mask", "mask of mode RGB: expected one number per pixel"),
        ("float", "mask of mode LA"),
        ("size", "'image' is 9x14 .* 'segmentation_mask' is 9x13"),
        ("truncated", "'segmentation_mask': truncated or damaged picture"),
        ("id", r"label id 17 at \(row 4, column 7\) of 'segmentation_mask' is outside 1 .. 3"),
    ],
)
def test_a_bad_record_is_named(root, split, message):
    with pytest.raises(InputError, match=rf"made/plain, split '{split}', example 0 \(f0\).*{message}"):
        _make(root, split=split)[0]


def test_a_flipped_byte_in_a_file_is_named(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    (file,) = (tmp_path / "copy" / "made" / "plain" / "1.2.0").glob("*train*record*")
    content = bytearray(file.read_bytes())
    written = np.flatnonzero(np.frombuffer(content, np.uint8))  # the rest is padding between blocks
    content[written[len(written) // 2]] ^= 0xFF
    file.write_bytes(content)
    dataset = _make(str(tmp_path / "copy"))
    with pytest.raises(InputError, match="made/plain, split 'train', example .*cannot be read.*prepare"):
        [dataset[i] for i in range(12)]


def test_what_is_asked_for_wrongly_is_answered_with_what_there_is(root, tmp_path):
    with pytest.raises(InputError, match=r"python -m segjax.data.prepare oxford_iiit_pet --root="):
        data.build("tfds", split="train", name="oxford_iiit_pet", root=str(tmp_path))
    with pytest.raises(InputError, match="no split 'valid'.*train"):
        _make(root, split="valid")
    with pytest.raises(InputError, match="no feature 'mask'.*data.label_key.*segmentation_mask"):
        _make(root, label_key="mask")
    with pytest.raises(InputError, match="name one of made/named, made/plain"):
        data.build("tfds", split="train", name="made", root=root)
    with pytest.raises(InputError, match="prepare made/plain:9.9.9"):
        data.build("tfds", split="train", name="made/plain:9.9.9", root=root)
    with pytest.raises(IndexError):
        _make(root)[12]


def test_files_of_another_format_are_refused_with_the_command(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    file = tmp_path / "copy" / "made" / "plain" / "1.2.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    info["fileFormat"] = "tfrecord"
    file.write_text(json.dumps(info))
    with pytest.raises(InputError, match="no array_record files.*segjax.data.prepare made/plain"):
        _make(str(tmp_path / "copy"))


def test_no_tensorflow_is_imported(root):
    code = (
        "import sys; from segjax import data\n"
        f"d = data.build('tfds', split='train', name='made/plain', root={root!r}, num_classes=3, label_offset=-1)\n"
        "d[0]; assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules; print('read')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "read", run.stderr
