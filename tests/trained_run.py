"""A workdir as training leaves it, of a model that names a pixel by its brightest channel; and images to go with it."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from PIL import Image

from segjax import config as configs
from segjax import layers
from segjax.data.metadata import Classes
from segjax.training import state
from segjax.training.checkpoint import Checkpoints

CLASSES = Classes(("red thing", "green thing", "blue thing"), np.array([[200, 0, 0], [0, 150, 0], [0, 0, 250]]))
SIZES = [(40, 60), (33, 47), (64, 48), (50, 50), (70, 31)]  # of the images, rows and columns


class Brightest(layers.Network):
    """Logits by one 1x1 convolution of the image."""

    num_classes: int

    @nn.compact
    def __call__(self, image, *, train=False, targets=None):
        """Returns {"logits": f32[B, H, W, K]}."""
        del train, targets
        return {"logits": nn.Conv(self.num_classes, (1, 1), name="classify")(image)}


def build_model(config, num_classes, axis_name=None):
    """Stands in for ``setup.build_model``."""
    del config, axis_name
    return Brightest(num_classes)


def write_images(root: pathlib.Path, split: str = "val", classes: Classes | None = CLASSES) -> None:
    """Writes images whose pixels show their class, and their labels: a frame of ignored pixels, three stripes."""
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(parents=True)
    for number, (rows, columns) in enumerate(SIZES):
        label = np.repeat((3 * np.arange(columns) // columns)[None], rows, axis=0).astype(np.uint8)
        label = np.roll(label, 5 * number, axis=1)
        image = 40 + 180 * np.eye(3, dtype=np.uint8)[label]
        label[:2] = CLASSES.ignore_label
        Image.fromarray(image).save(root / split / f"{number}.png")
        Image.fromarray(label).save(root / f"{split}annot" / f"{number}.png")
    if classes is not None:
        classes.write(root / "classes.json")


def write_run(workdir: pathlib.Path, root: pathlib.Path, *, ema: bool = True) -> ConfigDict:
    """Writes config.json, classes.json and the checkpoints 10, 20 (the best, and right), 30 (its average is right)."""
    path = pathlib.Path(__file__).parents[1] / "experiments/deeplab.py"
    config = configs.override(
        configs.load_experiment(f"{path}:folder"),
        {"data.root": str(root), "data.size": (32, 48), "data.fit": "stretch", "data.workers": 0, "data.cache": False}
        | {"eval.batch_size": 2, "train.ema_decay": 0.9},
    )
    workdir.mkdir(parents=True)
    configs.save_json(workdir / "config.json", config)
    CLASSES.write(workdir / "classes.json")
    right, wrong = (jnp.roll(jnp.eye(3), shift, axis=1).reshape(1, 1, 3, 3) for shift in (0, 1))
    with Checkpoints(workdir / "checkpoints", keep_last=3) as checkpoints:
        for step, kernel, average, miou in ((10, wrong, wrong, 0.1), (20, right, right, 0.9), (30, wrong, right, 0.2)):
            now = state.create(_variables(kernel), optax.sgd(0.1), key=jax.random.PRNGKey(0), ema=ema)
            if ema:
                now = now.replace(ema=_variables(average))
            checkpoints.save(step, now.replace(step=jnp.int32(step)), metrics={"miou": miou}, wait=True)
    return config


def _variables(kernel):
    return {"params": {"classify": {"kernel": kernel, "bias": jnp.zeros(3)}}, "batch_stats": {}}


def read_json(path: pathlib.Path):
    """The content of a JSON file."""
    return json.loads(path.read_text())
