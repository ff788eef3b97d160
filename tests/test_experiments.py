"""Every shipped experiment loads, builds and traces one step; nothing in experiments/ can rot."""

import ast
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from trained_run import CLASSES, write_images

from segjax import config as configs
from segjax.data.metadata import Classes
from segjax.training import setup

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
    height, width = config.data.size
    batch = {
        "image": jax.ShapeDtypeStruct((8, height, width, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8, height, width), jnp.int32),
        "valid": jax.ShapeDtypeStruct((8,), jnp.bool_),
    }
    state, metrics = jax.eval_shape(step, job, batch)
    assert jax.tree.structure(state) == jax.tree.structure(job)
    assert metrics["loss"].shape == ()


# Modes that read files, made small.
ON_FILES = {
    "unet.py:isbi": {"model.depth": 2, "model.base_width": 4},
    # Scores are zero at first: at the authors' rate what lies below them moves by less than a float32 in two steps.
    "fcn.py:voc": {"model.width": 1 / 32, "data.size": (70, 60), "optimizer.learning_rate": 0.1},
    "fcn.py:voc_dilated": {
        "model.width": 1 / 16,
        "model.backbone": "resnet18",
        "train.dtype": "float32",
        "data.size": (70, 60),
    },
    "patch.py:camvid": {"model.channels": (4, 4), "model.kernels": (4, 3), "model.hidden": 8},
    "segnet.py:camvid_full": {"model.width": 0.0625, "loss.class_weights": (1.0, 0.5, 2.0), "train.dtype": "float32"},
}


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


# One of each layout of files; the others are slow.
LAYOUTS = ("segnet.py:camvid_full", "fcn.py:voc")


@pytest.mark.parametrize(
    "name", [name if name in LAYOUTS else pytest.param(name, marks=pytest.mark.slow) for name in ON_FILES]
)
def test_experiment_learns_from_files(name: str, tmp_path: pathlib.Path):
    """Two steps on a made folder in the set's layout: every file is read, and the parameters move."""
    config = configs.load_experiment(f"{FILES[0].parent}/{name}")
    for split in ("train", "val"):
        write_images(tmp_path / config.data.folder, split)
    if "JPEGImages" in config.data.images:
        arrange_as_voc(tmp_path / config.data.folder, config.data.train_split)
    small = {"data.root": str(tmp_path), "data.size": (33, 47), "data.workers": 0, "train.batch_size": 2}
    config = configs.override(config, small | {"train.steps": 2} | ON_FILES[name])
    setup.check(config, devices=1)
    train_set, eval_set = setup.open_sets(config)
    assert train_set.class_names == eval_set.class_names == CLASSES.names
    step = jax.jit(setup.make_step(config, train_set.classes), compiler_options={"xla_backend_optimization_level": 0})
    state = before = setup.first_state(config, len(CLASSES))
    with setup.train_batches(config, train_set, 0) as batches:
        for batch in batches:
            state, metrics = step(state, batch)
    assert int(state.step) == 2 and np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), before.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment_says_how_it_is_run(file: pathlib.Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for mode in _modes(file)[1:]:
        assert f"experiments/{file.name}:{mode}" in module.__doc__
    with pytest.raises(ValueError, match="has no mode 'x'"):
        module.get_config("x")
