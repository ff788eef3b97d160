"""SegNet (Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561), SegNet-Basic and DeconvNet on CamVid.

    python -m segjax.train --config=experiments/segnet.py                shapes, drawn on the spot: minutes on a CPU
    python -m segjax.train --config=experiments/segnet.py:camvid         CamVid at 256x192, a quarter of the channels
    python -m segjax.train --config=experiments/segnet.py:camvid_full    the authors' schedule at 480x360: for a GPU
    python -m segjax.train --config=experiments/segnet.py:basic          SegNet-Basic by the authors' schedule
    python -m segjax.train --config=experiments/segnet.py:deconvnet      DeconvNet (Noh et al. 2015), SegNet's schedule

The authors test with the statistics of the training set, and their mean divides by all 11 classes:

    python -m segjax.evaluate --workdir=DIR --config.eval.batch_norm=reestimated --config.eval.convention=segnet

All start from random weights; the authors' SegNet starts from VGG-16's. Published, from the 367 training images alone:
SegNet 46.4 mIoU, DeconvNet 48.9 on the 233 test images. None of these has been run to its end yet.
"""

import os

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Median frequency over frequency of sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, cyclist.
CAMVID_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)


def get_config(mode: str = "shapes") -> ConfigDict:
    """The whole experiment; ``mode`` is what follows the colon of ``--config=FILE:MODE``."""
    modes = {
        "shapes": _shapes,
        "camvid": _camvid,
        "camvid_full": _camvid_full,
        "basic": _basic,
        "deconvnet": _deconvnet,
    }
    if mode not in modes:
        raise ValueError(f"experiments/segnet.py has no mode {mode!r}; it has {', '.join(modes)}")
    config = ConfigDict({"experiment": f"segnet_{mode}", "seed": 0})
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
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    config.model = {
        "name": "segnet",  # segjax/models/<name>.py says what each option is
        "pretrained": "",  # weights to start from: a file of segjax.convert, or SOURCE:MODEL:FILE
        "variant": "segnet",  # or basic, deconvnet
        "width": 1.0,
        "bottleneck": 4096,  # deconvnet
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
    """900 training and 120 validation scenes of 128x128, a quarter of the channels: minutes on 2 CPU cores."""
    _common(config)
    config.data.update({"name": "shapes", "root": "", "size": (128, 128)})
    config.model.width = 0.25
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 400
    config.eval.every_steps = config.checkpoint.every_steps = 200


def _camvid(config: ConfigDict) -> None:
    """The budget at which models are compared on a CPU: 5 epochs of 367 images, 46 steps each."""
    _common(config)
    config.data.update(_files("camvid"))
    config.model.width = 0.25


def _camvid_full(config: ConfigDict) -> None:
    """The authors' solver: 40,000 steps of 4 whole frames, no augmentation; here in bfloat16.

    The rate is the paper's (section 4), fixed, for random weights; the solver's, 1e-3, goes on from VGG-16's. Theirs
    sees BGR in 0-255, gives biases twice the rate, and divides the weighted loss by the number of pixels, where this
    one divides by the sum of their weights.
    """
    _common(config)
    config.data.update(_files("camvid"))
    config.data.size = (360, 480)
    config.augment.flip = 0.0
    config.loss.class_weights = CAMVID_WEIGHTS
    config.optimizer.update({
        "name": "sgd",
        "learning_rate": 0.1,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 5e-4,
    })  # fmt: skip
    config.train.update({"steps": 40_000, "batch_size": 4, "dtype": "bfloat16"})
    config.eval.update({"every_steps": 2000, "batch_size": 4})
    config.checkpoint.every_steps = 2000


def _basic(config: ConfigDict) -> None:
    """SegNet-Basic's solver: 10,000 steps."""
    _camvid_full(config)
    config.model.variant = "basic"
    config.train.steps = 10_000
    config.eval.every_steps = config.checkpoint.every_steps = 1000


def _deconvnet(config: ConfigDict) -> None:
    """252 million parameters by SegNet's schedule, as SegNet's paper compares them; rate 0.01 is DeconvNet's own."""
    _camvid_full(config)
    config.model.variant = "deconvnet"
    config.optimizer.learning_rate = 0.01


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
