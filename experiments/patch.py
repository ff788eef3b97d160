"""The patch classifier (Ciresan et al. 2012) and the steps from it to dense prediction, segjax/models/patch.py.

    python -m segjax.train --config=experiments/patch.py                    shapes, 16 windows an image: a CPU's minutes
    python -m segjax.train --config=experiments/patch.py:shapes_dense       every window of every image, in one pass
    python -m segjax.train --config=experiments/patch.py:full_resolution    convolutions alone, at the image's size
    python -m segjax.train --config=experiments/patch.py:isbi               the paper's network on ISBI 2012 EM sections
    python -m segjax.train --config=experiments/patch.py:camvid             the same on CamVid at 256x192

All start from random weights. What a pixel costs in each of them: benchmarks/patch.py. ISBI's labels are public for its
30 training sections only; here all but those numbered 20 and more train, and these are scored. The paper's 0.9 % of
wrong pixels and its Rand and warping errors are of the challenge's own 30.

shapes reached 0.845 validation mIoU on 2 CPU cores in about 3 minutes. The other modes: not yet run.
"""

import os

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(mode: str = "shapes") -> ConfigDict:
    """The whole experiment; ``mode`` is what follows the colon of ``--config=FILE:MODE``."""
    modes = {
        "shapes": _shapes,
        "shapes_dense": _shapes_dense,
        "full_resolution": _full_resolution,
        "isbi": _isbi,
        "camvid": _camvid,
    }
    if mode not in modes:
        raise ValueError(f"experiments/patch.py has no mode {mode!r}; it has {', '.join(modes)}")
    config = ConfigDict({"experiment": f"patch_{mode}", "seed": 0})
    modes[mode](config)
    return config.lock()


def _common(config: ConfigDict) -> None:
    """Every value a run depends on, in the order of the pipeline; the modes below change what differs."""
    config.data = {
        "name": "folder",  # segjax/data/<name>.py
        "train_split": "train",
        "split": "val",  # the split that is evaluated
        "size": (192, 256),  # (height, width) of the canvas the model sees
        "fit": "stretch",  # how an image comes onto it: stretch, pad (keep the aspect) or crop (keep the scale)
        "cache": True,  # keep decoded images in memory
        "workers": 2,
        "worker_mode": "threads",
        "verify": True,  # read every file once before the training starts
    }
    config.augment = {
        "scale": (1.0, 1.0),  # random zoom, then a random crop of data.size
        "flip": 0.5,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "sampled_pixels": 32,  # labels that are kept of each image; 0: all
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    config.model = {
        "name": "patch",  # segjax/models/<name>.py says what each option is
        "pretrained": "",  # weights to start from: a file of segjax.convert, or SOURCE:MODEL:FILE
        "form": "dense",  # or patches, full_resolution
        "channels": (48, 48, 48, 48),
        "kernels": (4, 5, 4, 4),  # windows of 95 pixels
        "last": 3,
        "hidden": 200,
        "samples": 32,  # windows of each image in training, as many as augment.sampled_pixels; 0: all
        "norm": True,
        "dropout": 0.5,
    }
    config.loss = {"name": "cross_entropy", "class_weights": (), "label_smoothing": 0.0}
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-3,
        "schedule": "poly",
        "power": 0.9,
        "warmup_steps": 50,
        "momentum": 0.9,  # sgd
        "nesterov": False,  # sgd
        "b1": 0.9,  # adamw
        "b2": 0.999,  # adamw
        "eps": 1e-8,  # adamw
        "weight_decay": 1e-4,
        "decay_norm_and_bias": False,
        "clip_norm": 0.0,  # 0: off
    }
    config.train = {
        "steps": 230,
        "batch_size": 8,  # of all devices together
        "accumulate": 1,  # micro-batches of a step
        "ema_decay": 0.0,  # 0: off
        "parallel": "jit",  # or pmap
        "dtype": "float32",  # of the activations; parameters stay float32
    }
    config.eval = {
        "every_steps": 230,
        "batch_size": 8,
        "resolution": "native",  # of the label that is scored: native, or input (fitted to data.size)
        "absent": "skip",  # classes that do not occur: skip, zero or ground_truth_only
        "ema": False,
        "pictures": 8,
    }
    config.checkpoint = {"every_steps": 230, "keep_last": 2, "keep_best": 1}
    config.log = {"every_steps": 25, "tensorboard": True}


def _shapes(config: ConfigDict) -> None:
    """900 training and 120 validation scenes of 128x128; windows of 47 pixels, of which a step sees 8 x 16."""
    _common(config)
    config.data.update({"name": "shapes", "root": "", "size": (128, 128)})
    config.augment.sampled_pixels = 16
    config.model.update({"channels": (16, 24, 32), "kernels": (4, 5, 4), "hidden": 100, "samples": 16})
    config.train.steps = 800
    config.eval.every_steps = config.checkpoint.every_steps = 400


def _shapes_dense(config: ConfigDict) -> None:
    """The same network trained on every pixel: 1024 times the labels a step, which resemble each other."""
    _shapes(config)
    config.augment.sampled_pixels = 0
    config.model.samples = 0
    config.train.steps = 200
    config.eval.every_steps = config.checkpoint.every_steps = 100


def _full_resolution(config: ConfigDict) -> None:
    """No pools, so that a pixel sees 13 around it rather than 47, at about the same cost as the dense form."""
    _shapes_dense(config)
    config.model.form = "full_resolution"


def _isbi(config: ConfigDict) -> None:
    """The paper's N4 without batch norm or dropout: windows of 95 pixels, of each class as much weight.

    The paper draws as many windows of each class, turns and mirrors them, and trains by plain gradient descent; AdamW,
    class weights and the number of steps are ours.
    """
    _common(config)
    config.data.update(_files("isbi_em"))
    config.data.update({
        "images": "train=train/[01]*.png;val=train/2*.png",
        "labels": "train=trainannot/[01]*.png;val=trainannot/2*.png",
        "size": (512, 512),
    })  # fmt: skip
    config.augment.update({"sampled_pixels": 64})
    config.model.update({"samples": 64, "norm": False, "dropout": 0.0})
    config.loss.class_weights = (2.0, 0.65)  # membrane, cell: about their inverse frequencies
    config.train.update({"steps": 20_000, "batch_size": 4})
    config.eval.update({"every_steps": 2000, "batch_size": 1})
    config.checkpoint.every_steps = 2000


def _camvid(config: ConfigDict) -> None:
    """The budget at which models are compared on a CPU: 5 epochs of 367 images, 46 steps each."""
    _common(config)
    config.data.update(_files("camvid"))


def _files(folder: str) -> dict:
    """A folder of image and label files matched by stem; {split} stands for the split's name."""
    return {
        "name": "folder",
        "root": os.environ.get("SEGJAX_DATA", ""),
        "folder": folder,  # below root, where it exists
        "images": "{split}/*",
        "labels": "{split}annot/*",
        "classes": "classes.json",
        "lists": "",  # text files of names, one a line, such as "{split}.txt"; "": all files
    }
