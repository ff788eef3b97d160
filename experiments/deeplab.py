"""DeepLabV3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611) on six sets of images; v1 to v3+ on PASCAL VOC.

    python -m segjax.train --config=experiments/deeplab.py               shapes, drawn on the spot: minutes on a CPU
    python -m segjax.train --config=experiments/deeplab.py:camvid        CamVid at 256x192, MobileNetV2
    python -m segjax.train --config=experiments/deeplab.py:camvid_small  CamVid at 256x192, a quarter of ResNet-50
    python -m segjax.train --config=experiments/deeplab.py:camvid_full   CamVid at 480x360, ResNet-50: for a GPU
    python -m segjax.train --config=experiments/deeplab.py:pets          Oxford-IIIT Pet, read through TFDS
    python -m segjax.train --config=experiments/deeplab.py:folder --config.data.root=MY    your own images
    python -m segjax.train --config=experiments/deeplab.py:cityscapes    Cityscapes at 1024x512, Xception-65: for GPUs

    python -m segjax.train --config=experiments/deeplab.py:voc_v1        LargeFOV on VGG-16: for GPUs, as the next three
    python -m segjax.train --config=experiments/deeplab.py:voc_v2        atrous spatial pyramid pooling on ResNet-101
    python -m segjax.train --config=experiments/deeplab.py:voc_v3        multi-grid, pyramid with image pooling
    python -m segjax.train --config=experiments/deeplab.py:voc_v3plus    decoder, aligned Xception-65

All start from random weights. What each reached is in benchmarks/RESULTS.md; camvid_full, pets, cityscapes and voc_*:
not yet run.

The cityscapes mode reads the set's own folders below data.root, in cityscapes/ or there itself, with the 19 classes of
its train ids (csCreateTrainIdLabelImgs of cityscapesscripts draws them; names and colours go into a classes.json):

    leftImg8bit/{train,val}/CITY/*_leftImg8bit.png   gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png

The voc_ modes read PASCAL VOC 2012 with SBD's annotations (10,582 training images, 1,449 of validation) below
data.root (default: the environment variable SEGJAX_DATA), in VOC2012/ or there itself:

    JPEGImages/*.jpg   SegmentationClassAug/*.png (ids 0-20, 255)   ImageSets/SegmentationAug/trainaug.txt, val.txt

Crops are 513 pixels, the papers' from v3 on (v1 and v2: 321), so that every image of VOC is evaluated whole. The papers
start from ImageNet's weights (--config.model.pretrained=torchvision:vgg16:FILE; v2's ResNet-101 is of another kind than
torchvision's: --config.model.backbone=resnet101 with it).
Published on VOC's validation set, without CRF: v1 62.3 mIoU, v2 76.4 (with MS-COCO and three scales), v3 77.2, v3+ 78.9
(on ResNet-101).
"""

import os

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAST_LAYER = (("head/score_*", 10.0),)  # of v1 and v2: ten times the rate


def get_config(mode: str = "shapes") -> ConfigDict:
    """The whole experiment; ``mode`` is what follows the colon of ``--config=FILE:MODE``."""
    modes = {
        "shapes": _shapes,
        "camvid": _camvid,
        "camvid_small": _camvid_small,
        "camvid_full": _camvid_full,
        "pets": _pets,
        "folder": _folder,
        "cityscapes": _cityscapes,
        "voc_v1": _voc_v1,
        "voc_v2": _voc_v2,
        "voc_v3": _voc_v3,
        "voc_v3plus": _voc_v3plus,
    }
    if mode not in modes:
        raise ValueError(f"experiments/deeplab.py has no mode {mode!r}; it has {', '.join(modes)}")
    config = ConfigDict({"experiment": f"deeplab_{mode}", "seed": 0})
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
        "name": "deeplab",  # segjax/models/<name>.py says what each option is
        "pretrained": "",  # weights to start from: a file of segjax.convert, or SOURCE:MODEL:FILE
        "variant": "v3plus",  # or v1, v2, v3
        "backbone": "mobilenet_v2",  # segjax/backbones: resnet18 .. resnet152, vgg16, xception41, 65 and 71, ...
        "output_stride": 16,  # or 8
        "width": 1.0,
        "dilate_first_block": False,
        "multi_grid": (),  # a ResNet's, such as (1, 2, 4)
        "cascade": 0,  # v3
        "aspp_rates": (),  # (6, 12, 18) at output stride 16, (12, 24, 36) at 8
        "aspp_channels": 256,
        "aspp_dropout": 0.5,
        "aspp_out_conv": False,
        "aspp_separable": None,  # None: as separable
        "fc_channels": None,  # v1, v2; None: 1024 on a VGG, 0 (no hidden layers) on others
        "low_level_channels": 48,  # v3plus, as the next two
        "decoder_channels": 256,
        "decoder_convs": 2,
        "separable": True,
        "depthwise_norm": True,
        "auxiliary": False,
        "align_corners": False,
    }
    config.loss = {"name": "cross_entropy", "class_weights": (), "label_smoothing": 0.0}
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-3,
        "schedule": "poly",
        "power": 0.9,
        "warmup_steps": 100,
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
        "steps": 900,
        "batch_size": 8,  # of all devices together
        "accumulate": 1,  # micro-batches of a step
        "ema_decay": 0.0,  # 0: off
        "parallel": "jit",  # or pmap
        "dtype": "float32",  # of the activations; parameters stay float32
    }
    config.eval = {
        "every_steps": 225,
        "batch_size": 8,
        "resolution": "native",  # of the label that is scored: native, or input (fitted to data.size)
        "absent": "skip",  # classes that do not occur: skip, zero or ground_truth_only
        "ema": False,
        "pictures": 8,
    }
    config.checkpoint = {"every_steps": 225, "keep_last": 2, "keep_best": 1}
    config.log = {"every_steps": 25, "tensorboard": True}


def _shapes(config: ConfigDict) -> None:
    """900 training and 120 validation scenes of 128x128, a small ResNet-18: minutes on 2 CPU cores."""
    _common(config)
    config.data.update({"name": "shapes", "root": "", "size": (128, 128)})
    config.model.update({
        "backbone": "resnet18",
        "width": 0.5,
        "aspp_rates": (2, 4, 6),  # 8x8 cells at stride 16: wider rates would fall outside
        "aspp_channels": 64,
        "aspp_dropout": 0.1,
        "low_level_channels": 32,
        "decoder_channels": 64,
        "separable": False,
    })  # fmt: skip
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 50})
    config.train.steps = 800
    config.eval.every_steps = config.checkpoint.every_steps = 200


def _camvid(config: ConfigDict) -> None:
    """20 epochs of the 367 training images (45 steps each), flips only: the recipe of benchmarks/camvid_torch.py."""
    _common(config)
    config.data.update(_files("camvid"))


def _camvid_small(config: ConfigDict) -> None:
    """The budget at which models are compared on a CPU: 5 epochs of 367 images, 46 steps each; a quarter of ResNet-50.

    Every width is a quarter of the paper's: 64 channels in pyramid and decoder, 12 of the finer map.
    """
    _common(config)
    config.data.update(_files("camvid"))
    config.model.update({"backbone": "resnet50", "width": 0.25, "aspp_channels": 64, "aspp_dropout": 0.1})
    config.model.update({"low_level_channels": 12, "decoder_channels": 64})
    config.optimizer.warmup_steps = 50
    config.train.steps = config.eval.every_steps = config.checkpoint.every_steps = 230


def _camvid_full(config: ConfigDict) -> None:
    """480x360 with ResNet-50 in bfloat16, random scale and crop, 200 epochs."""
    _common(config)
    config.data.update(_files("camvid"))
    config.data.size = (360, 480)
    config.model.backbone = "resnet50"
    config.augment.update({"scale": (0.5, 2.0), "brightness": 0.3, "contrast": 0.3, "saturation": 0.3})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.05, "warmup_steps": 500, "clip_norm": 5.0})
    config.train.update({"steps": 9000, "dtype": "bfloat16", "ema_decay": 0.999})
    config.eval.update({"every_steps": 450, "ema": True})
    config.checkpoint.every_steps = 450


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
    config.train.update({"steps": 9200, "batch_size": 16})
    config.eval.update({"every_steps": 1150, "batch_size": 16})
    config.checkpoint.every_steps = 1150


def _folder(config: ConfigDict) -> None:
    """MY/train/*, MY/trainannot/*, MY/val/*, MY/valannot/* and, if there is one, MY/classes.json."""
    _common(config)
    config.data.update(_files(""))
    config.data.update({"size": (256, 256), "fit": "pad"})
    config.augment.update({"scale": (0.5, 2.0), "brightness": 0.2, "contrast": 0.2, "saturation": 0.2})
    config.train.steps = 2000
    config.eval.every_steps = config.checkpoint.every_steps = 250


def _cityscapes(config: ConfigDict) -> None:
    """The protocol of v3's paper for it (appendix B): 90,000 steps of 16, rate 0.007; in bfloat16.

    The paper cuts 769x769 pixels out of the 2048x1024; here a step sees images halved, zoomed by 0.5 to 2. The labels
    that are scored keep their size.
    """
    _common(config)
    config.data.update(_files("cityscapes"))
    config.data.update({
        "images": "leftImg8bit/{split}/*/*_leftImg8bit.png",
        "labels": "gtFine/{split}/*/*_gtFine_labelTrainIds.png",
        "size": (512, 1024),
        "cache": False,
        "workers": 8,
    })  # fmt: skip
    config.model.update({"backbone": "xception65", "align_corners": True})
    config.augment.scale = (0.5, 2.0)
    config.optimizer.update({"name": "sgd", "learning_rate": 7e-3, "warmup_steps": 0, "weight_decay": 4e-5})
    config.train.update({"steps": 90_000, "batch_size": 16, "dtype": "bfloat16"})
    config.eval.update({"every_steps": 5000, "batch_size": 8})
    config.checkpoint.every_steps = 5000


def _voc_v1(config: ConfigDict) -> None:
    """DeepLab-LargeFOV by the schedule that v2's paper found better for it (table 1): poly, 20,000 steps of 10.

    The paper of v1 divides the rate by 10 every 2000 of 6000 steps, of 20 images each.
    """
    _voc(config)
    config.model.update({"variant": "v1", "backbone": "vgg16", "output_stride": 8, "separable": False})
    config.model.align_corners = True
    config.optimizer.update({"learning_rate": 1e-3, "weight_decay": 5e-4, "rate_factors": LAST_LAYER})
    config.train.update({"steps": 20_000, "batch_size": 10})


def _voc_v2(config: ConfigDict) -> None:
    """ASPP-L on the ResNet-101 of He et al. (section 4.1.2); on VGG-16: --config.model.backbone=vgg16, rate 1e-3.

    The paper's network sees three scales at once and takes their maximum, and leaves its batch norms as they are.
    """
    _voc(config)
    config.model.update({"variant": "v2", "backbone": "resnet101_v1", "output_stride": 8, "separable": False})
    config.model.update({"dilate_first_block": True, "align_corners": True})
    config.augment.scale = (0.5, 1.5)
    config.optimizer.update({"learning_rate": 2.5e-4, "weight_decay": 5e-4, "rate_factors": LAST_LAYER})
    config.train.update({"steps": 20_000, "batch_size": 10})


def _voc_v3(config: ConfigDict) -> None:
    """The first of the paper's two rounds (section 4): output stride 16, 30,000 steps of 16 crops.

    The second, 30,000 steps at stride 8 from 0.001, goes on from the folder of the first, without the paper's frozen
    norms: --config.model.output_stride=8 --config.optimizer.learning_rate=1e-3 --config.model.pretrained=FOLDER.
    """
    _voc(config)
    config.model.update({"variant": "v3", "backbone": "resnet101", "separable": False})
    config.model.update({"multi_grid": (1, 2, 4), "dilate_first_block": True, "align_corners": True})
    config.augment.scale = (0.5, 2.0)
    config.optimizer.update({"learning_rate": 7e-3, "weight_decay": 1e-4})
    config.train.update({"steps": 30_000, "batch_size": 16})


def _voc_v3plus(config: ConfigDict) -> None:
    """Section 4: v3's protocol; the decoder of two 3x3 convolutions, separable everywhere, at output stride 16."""
    _voc(config)
    config.model.update({"backbone": "xception65", "align_corners": True})
    config.augment.scale = (0.5, 2.0)
    config.optimizer.update({"learning_rate": 7e-3, "weight_decay": 4e-5})
    config.train.update({"steps": 30_000, "batch_size": 16})


def _voc(config: ConfigDict) -> None:
    """What the four have in common: the data, flips, momentum 0.9 and poly with power 0.9; bfloat16 is ours."""
    _common(config)
    config.data.update(_files("VOC2012"))
    config.data.update({
        "images": "JPEGImages/*",
        "labels": "SegmentationClassAug/*",
        "lists": "ImageSets/SegmentationAug/{split}.txt",
        "train_split": "trainaug",
        "size": (513, 513),
        "fit": "crop",  # no image of VOC is larger than 500 pixels
        "cache": False,
        "workers": 8,
    })  # fmt: skip
    config.optimizer.update({"name": "sgd", "warmup_steps": 0})
    config.train.dtype = "bfloat16"
    config.eval.update({"every_steps": 2000, "batch_size": 16})
    config.checkpoint.every_steps = 2000


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
