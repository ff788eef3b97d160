"""Every shipped experiment loads, builds and traces one step; nothing in experiments/ can rot."""

import ast
import importlib.util
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from trained_run import CLASSES, write_images

from segjax import config as configs
from segjax import models
from segjax.data.metadata import Classes
from segjax.training import setup

FAMILIES = ("deeplab", "fcn", "patch", "segnet", "unet")  # of semantic segmentation
FILES = sorted((pathlib.Path(__file__).resolve().parents[1] / "experiments").glob("*.py"))


def _modes(file: pathlib.Path) -> list[str]:
    """The keys of the dict ``modes`` in get_config."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "modes":
            return [key.value for key in node.value.keys]
    raise AssertionError(f"{file} declares no modes")


CASES = [f"{file}:{mode}" for file in FILES for mode in _modes(file)]


@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.rsplit("/", 1)[-1])
def test_experiment_traces_one_step(spec: str):
    config = configs.override(configs.load_experiment(spec), {"train.batch_size": 8})
    setup.check(config, devices=8)
    weighted = len(configs.flatten(config).get("loss.class_weights", ()))
    classes = Classes(names=tuple("abcdefghijklmnopqrstuvwxyz"[: weighted or 3]))
    job = jax.eval_shape(lambda: setup.first_state(config, len(classes)))
    assert {leaf.dtype for leaf in jax.tree.leaves(job.params)} == {jnp.dtype("float32")}
    step = setup.make_step(config, classes)
    batch = (_objects if models.finds_instances(config.model.name) else _labels)(config.data)
    state, metrics = jax.eval_shape(step, job, batch)
    assert jax.tree.structure(state) == jax.tree.structure(job)
    assert metrics["loss"].shape == ()


def _labels(data) -> dict:
    """A batch of 8 of a semantic set, as shapes and dtypes."""
    array = jax.ShapeDtypeStruct
    height, width = data.size
    return {
        "image": array((8, height, width, 3), jnp.uint8),
        "label": array((8, height, width), jnp.int32),
        "valid": array((8,), jnp.bool_),
    }


def _objects(data) -> dict:
    """A batch of 8 of a set of objects, as shapes and dtypes."""
    array = jax.ShapeDtypeStruct
    height, width = (data.get("sizes") or (data.size,))[0]
    rows = (8, data.max_instances)
    return {
        "image": array((8, height, width, 3), jnp.uint8),
        "content_size": array((8, 2), jnp.int32),
        "boxes": array((*rows, 4), jnp.float32),
        "classes": array(rows, jnp.int32),
        "crowd": array(rows, jnp.bool_),
        "boxes_valid": array(rows, jnp.bool_),
        "masks": array((*rows, data.mask_size, data.mask_size), jnp.uint8),
        "mask_boxes": array((*rows, 4), jnp.float32),
        "valid": array((8,), jnp.bool_),
    }


# Modes that read files, and what makes each of them small. Scores are zero at first in an FCN: at the authors' rates
# what lies below them moves by less than a float32 in two steps.
FAST = {"optimizer.learning_rate": 0.1, "optimizer.warmup_steps": 0}
QUARTER = {"model.width": 0.0625}
PYRAMID = {**QUARTER, "model.aspp_channels": 8, "model.low_level_channels": 4, "model.decoder_channels": 8, **FAST}
PATCH = {"model.channels": (4, 4), "model.kernels": (4, 3), "model.hidden": 8}
SEGNET = {**QUARTER, "loss.class_weights": (1.0, 0.5, 2.0)}
VOC = {"model.width": 1 / 32, "data.size": (70, 60), **FAST}
ON_BACKBONE = {**QUARTER, "model.backbone": "resnet18", "model.decoder_channels": (8, 8, 8, 8, 8)}
ON_FILES = {
    "deeplab.py:camvid": PYRAMID,
    "deeplab.py:camvid_small": PYRAMID,
    "deeplab.py:camvid_full": PYRAMID,
    "deeplab.py:pets": PYRAMID,
    "deeplab.py:folder": PYRAMID,
    "deeplab.py:cityscapes": {**PYRAMID, "model.backbone": "xception41"},
    "deeplab.py:voc_v1": {**QUARTER, "model.fc_channels": 8, **FAST},
    "deeplab.py:voc_v2": {**QUARTER, "model.backbone": "resnet50_v1", **FAST},
    "deeplab.py:voc_v3": {**PYRAMID, "model.backbone": "resnet50"},
    "deeplab.py:voc_v3plus": {**PYRAMID, "model.backbone": "xception41"},
    "fcn.py:camvid": {"model.width": 1 / 32, **FAST},
    "fcn.py:camvid_full": {"model.width": 1 / 32, **FAST},
    "fcn.py:voc": VOC,
    "fcn.py:voc_32s": VOC,
    "fcn.py:voc_16s": VOC,
    "fcn.py:voc_8s": VOC,
    "fcn.py:voc_alexnet": VOC,
    "fcn.py:voc_dilated": {**VOC, "model.width": 1 / 16, "model.backbone": "resnet18"},
    "patch.py:camvid": PATCH,
    "patch.py:isbi": {**PATCH, "loss.class_weights": (1.0, 0.5, 2.0), **FAST},
    "segnet.py:camvid": QUARTER,
    "segnet.py:camvid_full": SEGNET,
    "segnet.py:basic": SEGNET,
    "segnet.py:deconvnet": {**SEGNET, "model.bottleneck": 8},
    "unet.py:camvid": {"model.base_width": 4},
    "unet.py:camvid_full": {"model.base_width": 4},
    "unet.py:isbi": {"model.depth": 2, "model.base_width": 4},
    "unet.py:isbi_held_out": {"model.depth": 2, "model.base_width": 4},
    "unet.py:isbi_small": {"model.depth": 2, "model.base_width": 4},
    "unet.py:pets": ON_BACKBONE,
}


def test_every_mode_that_reads_files_is_run_on_some():
    read = [f"{pathlib.Path(spec).name}" for spec in CASES if configs.load_experiment(spec).data.name != "shapes"]
    assert sorted(ON_FILES) == sorted(name for name in read if name.partition(".")[0] in FAMILIES)


def arrange_as_voc(place: pathlib.Path, train_split: str) -> None:
    """The made folder in PASCAL VOC's layout: one folder of images, one of labels, a list of names for each split."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/SegmentationAug"):
        (place / folder).mkdir(parents=True)
    for split, name in (("train", train_split), ("val", "val")):
        names = sorted(file.stem for file in (place / split).glob("*.png"))
        for stem in names:
            Image.open(place / split / f"{stem}.png").save(place / f"JPEGImages/{split}_{stem}.jpg")
            (place / f"{split}annot/{stem}.png").rename(place / f"SegmentationClassAug/{split}_{stem}.png")
        lines = "".join(f"{split}_{stem}\n" for stem in names)
        (place / f"ImageSets/SegmentationAug/{name}.txt").write_text(lines)


def arrange_as_cityscapes(place: pathlib.Path) -> None:
    """The made folder in Cityscapes' layout: images and labels below a folder of each split and city."""
    for split in ("train", "val"):
        for number, file in enumerate(sorted((place / split).glob("*.png"))):
            name = f"{split}/city{number % 2}/city{number % 2}_{number:06d}_000019"
            for kind, source in (("leftImg8bit", file), ("gtFine", place / f"{split}annot/{file.name}")):
                suffix = "gtFine_labelTrainIds" if kind == "gtFine" else kind
                target = place / kind / f"{name}_{suffix}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)


def png(array: np.ndarray) -> bytes:
    """A PNG file: TFDS takes it as it is, where it would need TensorFlow for an array."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


class MadePets(tfds.core.GeneratorBasedBuilder):
    """Oxford-IIIT Pet as TFDS prepares it: masks of 1 pet, 2 background, 3 border; splits train and test."""

    VERSION = tfds.core.Version("4.0.0")

    def _info(self):
        content = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=37),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(content))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

    def _generate_examples(self, seed):
        rng = np.random.default_rng(seed)
        for i in range(5):
            size = 20 + 7 * i, 50 - 3 * i
            mask = np.repeat(1 + 3 * np.arange(size[1]) // size[1], size[0]).reshape(size[::-1]).T
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            files = {"image": png(image), "segmentation_mask": png(mask.astype(np.uint8))}
            yield i, {**files, "label": i, "file_name": f"{i}.jpg"}


def write_set(root: pathlib.Path, config) -> dict:
    """Writes a small set in the layout that the config names; returns what the config must be told of it."""
    if config.data.name == "tfds":
        MadePets(data_dir=str(root), file_format="array_record").download_and_prepare()
        return {"data.tfds_name": "made_pets"}
    for split in ("train", "val"):
        write_images(root / config.data.folder, split)
    if "JPEGImages" in config.data.images:
        arrange_as_voc(root / config.data.folder, config.data.train_split)
    if "leftImg8bit" in config.data.images:
        arrange_as_cityscapes(root / config.data.folder)
    return {}


# One of each layout of files; the others are slow.
LAYOUTS = ("segnet.py:camvid_full", "fcn.py:voc", "unet.py:pets")


@pytest.mark.parametrize(
    "name", [name if name in LAYOUTS else pytest.param(name, marks=pytest.mark.slow) for name in ON_FILES]
)
def test_experiment_learns_from_files(name: str, tmp_path: pathlib.Path):
    """Two steps on a made folder in the set's layout: every file is read, and the parameters move."""
    config = configs.load_experiment(f"{FILES[0].parent}/{name}")
    small = {"data.root": str(tmp_path), "data.size": (33, 47), "data.workers": 0, "train.batch_size": 2}
    small |= {"train.steps": 2, "train.dtype": "float32"} | write_set(tmp_path, config)
    config = configs.override(config, small | ON_FILES[name])
    setup.check(config, devices=1)
    train_set, eval_set = setup.open_sets(config)
    names = config.data.get("class_names", CLASSES.names)
    assert train_set.class_names == eval_set.class_names == names
    step = jax.jit(setup.make_step(config, train_set.classes), compiler_options={"xla_backend_optimization_level": 0})
    state = before = setup.first_state(config, len(CLASSES))
    weighted = config.data.get("border_weight", False)
    with setup.train_batches(config, train_set, 0) as batches:
        for batch in batches:
            assert ("weight" in batch) == weighted
            state, metrics = step(state, batch)
    assert int(state.step) == 2 and np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), before.params, state.params)
    # A layer of a few channels may be dead from the start.
    assert np.mean(jax.tree.leaves(moved)) > 0.9


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment_says_how_it_is_run(file: pathlib.Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for mode in _modes(file)[1:]:
        assert f"experiments/{file.name}:{mode}" in module.__doc__
    with pytest.raises(ValueError, match="has no mode 'x'"):
        module.get_config("x")
