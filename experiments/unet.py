"""U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597), the paper's and its descendants.

    python -m segjax.train --config=experiments/unet.py                shapes, drawn on the spot: minutes on a CPU
    python -m segjax.train --config=experiments/unet.py:isbi           the paper's: ISBI 2012 EM, valid convolutions
    python -m segjax.train --config=experiments/unet.py:isbi_small     the same with a quarter of the channels: a CPU
    python -m segjax.train --config=experiments/unet.py:isbi_held_out  isbi_small without the sections from 20 on
    python -m segjax.train --config=experiments/unet.py:camvid         CamVid at 256x192, a quarter of the channels
    python -m segjax.train --config=experiments/unet.py:camvid_full    CamVid at 480x360, padded, batch norm: for a GPU
    python -m segjax.train --config=experiments/unet.py:pets           Oxford-IIIT Pet, the decoder on a ResNet-34

All start from random weights. ISBI's labels are public for its 30 training sections only. isbi and isbi_small train on
all sections of isbi_em/train and isbi_em/trainannot, so that the scores in their logs are of the training sections;
isbi_held_out is scored on sections it does not see. Others, with the challenge's scores:

    python -m segjax.evaluate --workdir=DIR --config.data.split=test      isbi_em/test and isbi_em/testannot

shapes: validation mIoU 0.69 after 200 of its 400 steps; camvid: 0.372; isbi_held_out, half its
steps: IoU of cells 0.869, Rand score 0.51; isbi, camvid_full and pets: not yet run.
"""

import os

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(mode: str = "shapes") -> ConfigDict:
    """The whole experiment; ``mode`` is what follows the colon of ``--config=FILE:MODE``."""
    modes = {
        "shapes": _shapes,
        "isbi": _isbi,
        "isbi_small": _isbi_small,
        "isbi_held_out": _isbi_held_out,
        "camvid": _camvid,
        "camvid_full": _camvid_full,
        "pets": _pets,
    }
    if mode not in modes:
        raise ValueError(f"experiments/unet.py has no mode {mode!r}; it has {', '.join(modes)}")
    config = ConfigDict({"experiment": f"unet_{mode}", "seed": 0})
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
        "flip_vertical": 0.0,
        "transpose": 0.0,  # rows and columns exchanged; of a square data.size
        "elastic": 0.0,  # standard deviation of the displacements on a coarse grid, pixels
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    config.model = {
        "name": "unet",  # segjax/models/<name>.py says what each option is
        "pretrained": "",  # weights to start from: a file of segjax.convert, or SOURCE:MODEL:FILE
        "variant": "padded",  # paper (valid convolutions), padded, or backbone
        "output": "mirror",  # paper: the image continued by reflection, logits of its size
        "depth": 4,  # paper and padded
        "base_width": 64,
        "norm": "batch",
        "dropout": 0.5,
        "backbone": "resnet34",  # backbone
        "width": 1.0,
        "decoder_channels": (256, 128, 64, 32, 16),
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
    config.model.update({"base_width": 16, "dropout": 0.1})
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 400
    config.eval.every_steps = config.checkpoint.every_steps = 200


def _isbi(config: ConfigDict) -> None:
    """Section 3: SGD with momentum 0.99, one large image a step, drawn by the fan-in; a whole section of 512x512.

    Elastic deformations of 10 pixels on a 3x3 grid, and the weight map of equation 2. The paper names neither learning
    rate nor number of steps (ten hours on a Titan of 6 GB): these are ours.
    """
    _common(config)
    config.data.update(_files("isbi_em"))
    config.data.update({"split": "train", "size": (512, 512), "border_weight": True})
    config.augment.update({"flip_vertical": 0.5, "transpose": 0.5, "elastic": 10.0, "brightness": 0.1, "contrast": 0.1})
    config.augment.update({"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)})
    config.model.update({"variant": "paper", "norm": "none"})
    config.optimizer.update({
        "name": "sgd",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup_steps": 500,
        "momentum": 0.99,
        "weight_decay": 0.0,
        "clip_norm": 5.0,
    })  # fmt: skip
    config.train.update({"steps": 20_000, "batch_size": 1})
    config.eval.update({"every_steps": 1000, "batch_size": 1, "scores": "em"})
    config.checkpoint.every_steps = 1000


def _isbi_small(config: ConfigDict) -> None:
    """The paper's network with 16 to 256 channels and batch norm, AdamW: 20 epochs of 24 sections."""
    _isbi(config)
    config.model.update({"base_width": 16, "norm": "batch"})
    config.optimizer.update({"name": "adamw", "learning_rate": 2e-3, "schedule": "poly", "warmup_steps": 20})
    config.train.steps = 480
    config.eval.update({"every_steps": 480, "flip": True})
    config.checkpoint.every_steps = 120


def _isbi_held_out(config: ConfigDict) -> None:
    """Sections 00 to 19 are trained on, 20 and later evaluated: neighbours are alike, so a block is kept aside."""
    _isbi_small(config)
    config.data.images = "train=train/[01]*;val=train/[!01]*"
    config.data.labels = "train=trainannot/[01]*;val=trainannot/[!01]*"
    config.data.split = "val"


def _camvid(config: ConfigDict) -> None:
    """The budget at which models are compared on a CPU: 5 epochs of 367 images, 46 steps each."""
    _common(config)
    config.data.update(_files("camvid"))
    config.model.base_width = 16


def _camvid_full(config: ConfigDict) -> None:
    """480x360 in bfloat16, random scale and crop, 400 epochs."""
    _common(config)
    config.data.update(_files("camvid"))
    config.data.size = (360, 480)
    config.augment.update({"scale": (0.5, 2.0), "brightness": 0.3, "contrast": 0.3, "saturation": 0.3})
    config.optimizer.warmup_steps = 500
    config.train.update({"steps": 18_000, "dtype": "bfloat16", "ema_decay": 0.999})
    config.eval.update({"every_steps": 900, "ema": True})
    config.checkpoint.every_steps = 900


def _pets(config: ConfigDict) -> None:
    """Trimaps (pet, background, border) of Oxford-IIIT Pet: python -m segjax.data.prepare oxford_iiit_pet, once."""
    _common(config)
    config.data.update({
        "name": "tfds",
        "root": "",
        "tfds_name": "oxford_iiit_pet",
        "num_classes": 3,
        "image_key": "image",
        "label_key": "segmentation_mask",
        "id_key": "",  # the feature that names an example in messages, such as "file_name"
        "label_offset": -1,
        "ignore_label": 255,  # as stored, before label_offset
        "class_names": ("pet", "background", "border"),
        "train_split": "train",
        "split": "test",
        "size": (256, 256),
        "fit": "pad",
    })  # fmt: skip
    config.augment.update({"scale": (0.5, 2.0), "brightness": 0.2, "contrast": 0.2, "saturation": 0.2})
    config.model.variant = "backbone"
    config.train.update({"steps": 9200, "batch_size": 16})
    config.eval.update({"every_steps": 1150, "batch_size": 16})
    config.checkpoint.every_steps = 1150


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
        "border_weight": False,  # pixels between touching cells (class 0 is the background) weigh more
    }
