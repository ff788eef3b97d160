"""Feature extractors, one family a file: each file's ``VARIANTS`` names what it can build.

A backbone is a linen module, ``module(image, train=train) -> {"stride_2", "stride_4", ..., "out"}``: ``stride_s`` is
the last map [B, ceil(H / s), ceil(W / s), C] of stride s before the last stage, and ``out`` is the last stage's map,
at ``output_stride``. VGG and AlexNet, as published, round sizes down; their files say what they offer besides.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from segjax import layers
from segjax.types import InputError


def known() -> dict[str, tuple[type[nn.Module], Mapping[str, Any]]]:
    """Returns {name: (class, its fixed options)} of every backbone: the ``VARIANTS`` of the files in this folder."""
    files = sorted(file.name for file in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{file}") for file in files]
    return {name: variant for module in modules for name, variant in module.VARIANTS.items()}


def find(name: str) -> tuple[type[nn.Module], Mapping[str, Any]]:
    """Returns the class and the fixed options of one backbone.

    Raises:
        InputError: no such backbone; the message lists the known ones.
    """
    names = known()
    if name not in names:
        raise InputError(f"no backbone {name!r}{layers.nearest(name, list(names))}; known are {', '.join(names)}")
    return names[name]


def build(name: str, /, **options: Any) -> nn.Module:
    """Builds a backbone by its name.

    Args:
        name: "resnet18", "mobilenet_v2", ...
        **options: ``output_stride`` (8, 16 or 32), ``width`` (a factor of every channel count), ``dilate_first_block``,
            ``axis_name`` (of pmap, for batch norm), ``name`` (linen's, where the module is part of another), and the
            family's own: ``pool`` of a VGG, ``multi_grid`` and ``cascade`` of a ResNet.
    Returns:
        a linen module.
    Raises:
        InputError: unknown backbone or option, or an illegal output stride.
    """
    module, fixed = find(name)
    if options.get("output_stride", 32) not in (8, 16, 32):
        raise InputError(f"output_stride {options['output_stride']!r} of a backbone: expected 8, 16 or 32")
    return layers.from_options(module, f"backbone {name!r}", {**fixed, **options})


def geometry(strides: tuple[int, ...], output_stride: int, dilate_first_block: bool) -> list[tuple[int, int, int]]:
    """Returns each stage's (stride, dilation of its first block, dilation of its other blocks).

    Once the product of strides has reached ``output_stride``, a stage strides no more and its convolutions are spread
    by the factor it no longer strides ("à trous"). The first block of such a stage reads the map the stage before
    left, whose samples lie at the earlier dilation. With that dilation (``dilate_first_block=False``, torchvision)
    the network at stride 8, taken at every second pixel, *is* the one at stride 16; the new one throughout
    (``True``) is what segmentation_models_pytorch does.

    Args:
        strides: of the stages, from the first one that may be dilated.
        output_stride: the product at which striding ends.
        dilate_first_block: see above.
    Returns:
        one triple per stage.
    Source: Chen et al. 2017 (DeepLabv3), section 3.1, https://arxiv.org/abs/1706.05587.
    """
    stages, reached, dilation = [], 1, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            dilation, stride = dilation * stride, 1
        reached *= stride
        stages.append((stride, dilation if dilate_first_block else before, dilation))
    return stages
