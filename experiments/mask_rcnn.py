"""Mask R-CNN (He et al. 2017, https://arxiv.org/abs/1703.06870): every object with its box, its class and its mask.

    python -m segjax.train --config=experiments/mask_rcnn.py               shapes, drawn on the spot: minutes on a CPU
    python -m segjax.train --config=experiments/mask_rcnn.py:nuclei        nuclei, ResNet-18: half an hour on a CPU
    python -m segjax.train --config=experiments/mask_rcnn.py:nuclei_full   the same with ResNet-50: for a GPU
    python -m segjax.train --config=experiments/mask_rcnn.py:coco          COCO 2017, the 1x schedule: for eight GPUs

nuclei is the stage-1 training set of the 2018 Data Science Bowl (BBBC038), in COCO's format. coco starts from ImageNet
weights of a ResNet-50: give --config.model.pretrained=torchvision:resnet50:FILE; the others start from random ones.
nuclei reached mask AP 0.578, AP50 0.863 on its 66 validation images, on one CPU core in 46 minutes; shapes 0.524 in
about 10; nuclei_full and coco: not yet run.
"""

import os

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(mode: str = "shapes") -> ConfigDict:
    """The whole experiment; ``mode`` is what follows the colon of ``--config=FILE:MODE``."""
    modes = {"shapes": _shapes, "nuclei": _nuclei, "nuclei_full": _nuclei_full, "coco": _coco}
    if mode not in modes:
        raise ValueError(f"experiments/mask_rcnn.py has no mode {mode!r}; it has {', '.join(modes)}")
    config = ConfigDict({"experiment": f"mask_rcnn_{mode}", "seed": 0})
    modes[mode](config)
    return config.lock()


def _common(config: ConfigDict) -> None:
    """Every value a run depends on, in the order of the pipeline; the modes below change what differs."""
    config.data = {
        "name": "coco",  # segjax/data/<name>.py
        "train_split": "train",
        "split": "val",  # the split that is evaluated
        "size": (256, 256),  # (height, width) of the canvas that is trained on
        "sizes": (),  # several canvases instead, one compilation each
        "fit": "crop",  # how an image comes onto it: stretch, pad (keep the aspect) or crop (keep the scale)
        "max_instances": 100,  # rows for the objects of an image
        "mask_size": 56,  # rows and columns of the compact mask of an object
        "cache": True,  # keep decoded images and compact masks in memory
        "workers": 2,
        "worker_mode": "threads",
        "verify": True,  # read every file once before the training starts
    }
    config.augment = {
        "scale": (1.0, 1.0),  # random zoom, then a random crop
        "flip": 0.5,
        "flip_vertical": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    config.model = {
        "name": "mask_rcnn",  # segjax/models/_detection_presets.py says what each option is
        "pretrained": "",  # weights to start from: a file of segjax.convert, or SOURCE:MODEL:FILE
        "preset": "segjax",
        "backbone": "resnet18",
        "channels": 128,
        "box_channels": 256,
        "mask_channels": 128,
        "anchor_sizes": (8, 16, 32, 64, 128),
        "rpn_pre_nms": (500, 500),
        "rpn_post_nms": (300, 300),
        "box_samples": 128,
        "detections": 100,
    }
    config.loss = {"name": "mask_rcnn"}
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 5e-4,
        "schedule": "poly",  # poly, cosine, constant or steps
        "power": 0.9,
        "warmup_steps": 100,
        "momentum": 0.9,  # sgd
        "nesterov": False,  # sgd
        "b1": 0.9,  # adamw
        "b2": 0.999,  # adamw
        "eps": 1e-8,  # adamw
        "weight_decay": 1e-4,
        "decay_norm_and_bias": False,
        "clip_norm": 10.0,  # 0: off
    }
    config.train = {
        "steps": 600,
        "batch_size": 4,  # of all devices together
        "accumulate": 1,  # micro-batches of a step
        "ema_decay": 0.0,  # 0: off
        "parallel": "jit",  # or pmap
        "dtype": "float32",  # of the activations; parameters stay float32
    }
    config.eval = {
        "every_steps": 300,
        "batch_size": 4,
        "sizes": (),  # canvases of the evaluation, one compilation each; (): those of data
        "max_dets": (1, 10, 100),  # COCO's: the last one is the limit of AP
        "ema": False,
        "pictures": 8,
    }
    config.checkpoint = {"every_steps": 300, "keep_last": 2, "keep_best": 1}
    config.log = {"every_steps": 20, "tensorboard": True}


def _shapes(config: ConfigDict) -> None:
    """900 training and 120 validation scenes of 128x128: minutes on 2 CPU cores."""
    _common(config)
    config.data.update({"name": "shapes", "root": "", "instances": True, "size": (128, 128), "max_instances": 20})
    config.model.update({"width": 0.5, "channels": 64, "mask_channels": 64, "anchor_sizes": (8, 16, 32, 48, 72)})
    config.model.update({"box_samples": 64, "rpn_post_nms": (100, 100), "detections": 20})
    config.optimizer.learning_rate = 1e-3
    config.train.update({"steps": 800, "batch_size": 8})
    config.eval.update({"every_steps": 400, "batch_size": 8})
    config.checkpoint.every_steps = 400


def _nuclei(config: ConfigDict) -> None:
    """Windows of 256x256 of 598 images, at their own scale; whole images are evaluated, up to 500 objects on each."""
    _common(config)
    config.data.update(_files("nuclei"))
    config.data.max_instances = 400
    config.augment.update({"flip_vertical": 0.5, "scale": (0.7, 1.4), "brightness": 0.2, "contrast": 0.2})
    config.model.update({"box_samples": 128, "mask_channels": 64, "detections": 500})
    config.model.update({"rpn_pre_nms": (1000, 1000), "rpn_post_nms": (500, 1000)})
    config.optimizer.learning_rate = 1e-3
    config.train.steps = 1200
    config.eval.update({"every_steps": 600, "max_dets": (1, 100, 500), "batch_size": 1})
    config.eval.sizes = ((256, 256), (256, 320), (384, 384), (544, 704), (1056, 1408))
    config.checkpoint.every_steps = 200


def _nuclei_full(config: ConfigDict) -> None:
    """The paper's channels on a ResNet-50, bfloat16, 80 epochs."""
    _nuclei(config)
    config.model.update({"backbone": "resnet50", "channels": 256, "box_channels": 1024, "mask_channels": 256})
    config.model.box_samples = 512
    config.optimizer.update({"schedule": "cosine", "warmup_steps": 500})
    config.train.update({"steps": 6000, "batch_size": 8, "dtype": "bfloat16", "ema_decay": 0.999})
    config.eval.update({"every_steps": 1000, "ema": True})
    config.checkpoint.every_steps = 1000


def _coco(config: ConfigDict) -> None:
    """detectron2's mask_rcnn_R_50_FPN_1x on COCO 2017: 90,000 steps of 16 images, shorter sides of 640 to 800 pixels.

    Theirs draws one of six sizes, this any in between.
    """
    _common(config)
    config.data.update(_files("coco"))
    config.data.update({
        "train_split": "train2017",
        "split": "val2017",
        "sizes": ((800, 1344), (1344, 800)),
        "fit": "pad",
        "cache": False,
        "workers": 8,
    })  # fmt: skip
    config.augment.scale = (0.8, 1.0)
    config.model.update({
        "preset": "detectron2",
        "backbone": "resnet50",
        "channels": 256,
        "box_channels": 1024,
        "mask_channels": 256,
        "anchor_sizes": (32, 64, 128, 256, 512),
        "rpn_pre_nms": (2000, 1000),
        "rpn_post_nms": (1000, 1000),
        "box_samples": 512,
    })  # fmt: skip
    config.optimizer.update({
        "name": "sgd",
        "learning_rate": 0.02,
        "schedule": "steps",
        "warmup_steps": 1000,
        "weight_decay": 1e-4,
        "clip_norm": 0.0,
    })  # fmt: skip
    config.train.update({"steps": 90_000, "batch_size": 16})
    config.eval.update({"every_steps": 10_000, "batch_size": 16})
    config.checkpoint.every_steps = 5000
    config.log.every_steps = 100


def _files(folder: str) -> dict:
    """Images and COCO's JSON; {split} stands for the split's name."""
    return {
        "root": os.environ.get("SEGJAX_DATA", ""),
        "folder": folder,  # below root, where it exists
        "images": "{split}",
        "annotations": "annotations/instances_{split}.json",
    }
