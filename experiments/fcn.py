"""FCN (Long et al. 2015, https://arxiv.org/abs/1411.4038; Shelhamer et al. 2017, https://arxiv.org/abs/1605.06211).

    python -m segjax.train --config=experiments/fcn.py                shapes, drawn on the spot: minutes on a CPU
    python -m segjax.train --config=experiments/fcn.py:camvid         CamVid at 256x192, a quarter of the channels
    python -m segjax.train --config=experiments/fcn.py:camvid_full    CamVid at 480x360, VGG-16 with batch norm: a GPU
    python -m segjax.train --config=experiments/fcn.py:voc            FCN-8s at-once on PASCAL VOC, the authors' solver
    python -m segjax.train --config=experiments/fcn.py:voc_32s        FCN-32s, the authors' solver; from its folder
    python -m segjax.train --config=experiments/fcn.py:voc_16s --config.model.pretrained=FOLDER  and from that
    python -m segjax.train --config=experiments/fcn.py:voc_8s --config.model.pretrained=FOLDER
    python -m segjax.train --config=experiments/fcn.py:voc_alexnet    FCN-AlexNet, the authors' solver
    python -m segjax.train --config=experiments/fcn.py:voc_dilated    torchvision's FCN on ResNet-50

Published: on VOC 2011's seg11valid, trained on SBD from an ImageNet classifier, 65.4 mIoU (at-once), 63.6 (32s), 48.0
(AlexNet); on CamVid's test split, 367 images, FCN-8 57.0. Here all start from random weights unless a classifier is
given, as by --config.model.pretrained=torchvision:vgg16:FILE.

The VOC modes read PASCAL VOC 2012 with SBD's annotations below data.root, in VOC2012/ or there itself:

    JPEGImages/*.jpg   SegmentationClassAug/*.png (ids 0-20, 255)   ImageSets/SegmentationAug/trainaug.txt, val.txt

shapes reached 0.812 validation mIoU on 2 CPU cores in under 3 minutes, camvid 0.386. camvid_full and voc*: not yet run.
"""

import os

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOC_PIXELS = 180_000  # labelled, in an image of VOC; Caffe's loss is their sum, ours their mean


def get_config(mode: str = "shapes") -> ConfigDict:
    """The whole experiment; ``mode`` is what follows the colon of ``--config=FILE:MODE``."""
    modes = {
        "shapes": _shapes,
        "camvid": _camvid,
        "camvid_full": _camvid_full,
        "voc": _voc,
        "voc_32s": _voc_32s,
        "voc_16s": _voc_16s,
        "voc_8s": _voc_8s,
        "voc_alexnet": _voc_alexnet,
        "voc_dilated": _voc_dilated,
    }
    if mode not in modes:
        raise ValueError(f"experiments/fcn.py has no mode {mode!r}; it has {', '.join(modes)}")
    config = ConfigDict({"experiment": f"fcn_{mode}", "seed": 0})
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
        "name": "fcn",  # segjax/models/<name>.py says what each option is
        "pretrained": "",  # weights to start from: a file of segjax.convert, or SOURCE:MODEL:FILE
        "backbone": "vgg16_bn",
        "variant": "padded",  # or authors, authors_padded, dilated
        "stride": 8,  # FCN-8s; or 16, 32
        "at_once": False,
        "upsampling": "learned",  # or fixed
        "auxiliary": False,
        "width": 1.0,
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
    """900 training and 120 validation scenes of 128x128, a quarter of VGG-11: minutes on 2 CPU cores."""
    _common(config)
    config.data.update({"name": "shapes", "root": "", "size": (128, 128)})
    config.model.update({"backbone": "vgg11_bn", "width": 0.25})
    config.train.steps = 400
    config.eval.every_steps = config.checkpoint.every_steps = 200


def _camvid(config: ConfigDict) -> None:
    """The budget at which models are compared on a CPU: 5 epochs of 367 images, 46 steps each."""
    _common(config)
    config.data.update(_files("camvid"))
    config.model.width = 0.25


def _camvid_full(config: ConfigDict) -> None:
    """480x360 in bfloat16, random scale and crop, 200 epochs."""
    _common(config)
    config.data.update(_files("camvid"))
    config.data.size = (360, 480)
    config.augment.update({"scale": (0.5, 2.0), "brightness": 0.3, "contrast": 0.3, "saturation": 0.3})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.02, "warmup_steps": 500, "clip_norm": 5.0})
    config.train.update({"steps": 9000, "dtype": "bfloat16"})
    config.eval.every_steps = config.checkpoint.every_steps = 450


def _voc(config: ConfigDict) -> None:
    """FCN-8s at-once: one whole image a step, 300,000 steps, high momentum, fixed up-sampling, no augmentation.

    The authors' rate is 1e-10 for the loss summed over pixels; their weight decay of 5e-4 adds to that sum. Theirs also
    sees BGR in 0-255.
    """
    _common(config)
    config.data.update(_files("VOC2012"))
    config.data.update({
        "images": "JPEGImages/*.jpg",
        "labels": "SegmentationClassAug/*.png",
        "lists": "ImageSets/SegmentationAug/{split}.txt",
        "train_split": "trainaug",
        "split": "val",  # the authors': seg11valid, VOC 2011's validation images that SBD does not train on
        "size": (500, 500),
        "fit": "crop",  # at its own scale: no image of VOC is larger
        "cache": False,
    })  # fmt: skip
    config.augment.flip = 0.0
    config.model.update({
        "backbone": "vgg16",
        "variant": "authors",
        "at_once": True,
        "upsampling": "fixed",
    })  # fmt: skip
    config.optimizer.update({
        "name": "sgd",
        "learning_rate": 1e-10 * VOC_PIXELS,
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": 0.99,
        "weight_decay": 5e-4 / VOC_PIXELS,
        "rate_factors": (("*/bias", 2.0),),
    })  # fmt: skip
    config.train.update({"steps": 300_000, "batch_size": 1})
    config.eval.update({"every_steps": 20_000, "batch_size": 1})
    config.checkpoint.every_steps = 4000


def _voc_32s(config: ConfigDict) -> None:
    """FCN-32s, the first of the authors' three stages."""
    _voc(config)
    config.model.update({"stride": 32, "at_once": False})
    config.train.steps = 100_000


def _voc_16s(config: ConfigDict) -> None:
    """The second stage, from the first at a hundredth of its rate."""
    _voc_32s(config)
    config.model.stride = 16
    config.optimizer.learning_rate *= 1e-2


def _voc_8s(config: ConfigDict) -> None:
    """The third, from the second at a hundredth of its rate."""
    _voc_16s(config)
    config.model.stride = 8
    config.optimizer.learning_rate *= 1e-2


def _voc_alexnet(config: ConfigDict) -> None:
    """FCN-32s on AlexNet: the loss averaged over pixels, 20 images a step, ordinary momentum."""
    _voc_32s(config)
    config.model.backbone = "alexnet"
    config.optimizer.update({"learning_rate": 1e-4, "momentum": 0.9, "weight_decay": 5e-4})
    config.train.batch_size = 20  # the authors accumulate 20 gradients of one image


def _voc_dilated(config: ConfigDict) -> None:
    """torchvision's reference script on VOC: 30 epochs, batch 32, poly, zooms of 0.5 to 2.

    Theirs cuts 480 pixels.
    """
    _voc(config)
    config.augment.update({"scale": (0.5, 2.0), "flip": 0.5})
    config.model.update({
        "backbone": "resnet50",
        "variant": "dilated",
        "stride": 8,
        "at_once": False,
        "upsampling": "learned",
        "auxiliary": True,
        "dropout": 0.1,
    })  # fmt: skip
    config.optimizer.update({"learning_rate": 0.02, "schedule": "poly", "momentum": 0.9, "weight_decay": 1e-4})
    config.optimizer.update({"decay_norm_and_bias": True, "rate_factors": (("aux_head/*", 10.0),)})
    config.train.update({"steps": 10_000, "batch_size": 32, "dtype": "bfloat16"})
    config.eval.update({"every_steps": 1000, "batch_size": 8})
    config.checkpoint.every_steps = 1000


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
