"""How images were prepared for published weights: part of the weights, since others give other numbers.

Sources: the ``transforms`` of torchvision's weights, ``timm.data``, and smp's ``get_preprocessing_params``.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from segjax.types import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its input, and the constant of its norms.

    Attributes:
        mean, std: of each channel (RGB), of values in [0, 1]: the input is (value - mean) / std.
        resize: rule in words, before normalising; "" where the source states none.
        epsilon: of every batch norm of the backbone, which our backbones have built in.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: str = ""
    epsilon: float = 1e-5

    def json(self) -> str:
        """As text for a file's header."""
        return json.dumps(dataclasses.asdict(self))

    def differences(self, mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
        """Returns a line for each of mean and std that is not the one of these weights."""
        pairs = {"mean": (self.mean, mean), "std": (self.std, std)}
        return [
            f"{name} is {tuple(found)}, the weights were trained with {tuple(own)}"
            for name, (own, found) in pairs.items()
            if len(own) != len(found) or any(abs(a - b) > 1e-3 for a, b in zip(own, found, strict=True))
        ]


CLASSIFICATION = Preprocessing(resize="shorter side to 256, bilinear with antialias, centre 224x224 (V2 weights: 232)")
SEGMENTATION = Preprocessing(resize="shorter side to 520, bilinear with antialias")
DETECTION = Preprocessing(resize="shorter side to 800, longer one to at most 1333, bilinear, by the model itself")
TIMM = Preprocessing(resize="shorter side to 256, bicubic with antialias, centre 224x224 (config.json of the weights)")
XCEPTION = Preprocessing((0.5,) * 3, (0.5,) * 3, "shorter side to 331, bicubic with antialias, centre 299x299", 1e-3)
SMP = Preprocessing()


def from_json(text: str, where: str) -> Preprocessing:
    """Reads what ``Preprocessing.json`` wrote.

    Raises:
        InputError: other content; ``where`` is named.
    """
    try:
        values: Mapping[str, Any] = json.loads(text)
        lists = {name: tuple(float(x) for x in values[name]) for name in ("mean", "std")}
        return Preprocessing(**lists, resize=str(values["resize"]), epsilon=float(values["epsilon"]))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: unreadable preprocessing {text!r}: {error}") from error


def of_timm(beside: Mapping[str, Any], default: Preprocessing, where: str) -> Preprocessing:
    """What the config.json beside timm's weights says, where there is one.

    Args:
        beside: its content, {} if there is none; ``pretrained_cfg`` has mean, std, crop_pct, interpolation, input_size.
        default: what is not said.
        where: the file, for the message.
    Raises:
        InputError: values of another kind.
    """
    found = beside.get("pretrained_cfg", beside)
    if not isinstance(found, Mapping) or "mean" not in found:
        return default
    try:
        size, share = int(found["input_size"][-1]), float(found["crop_pct"])
        mean, std = (tuple(float(x) for x in found[name]) for name in ("mean", "std"))
        side, kind = int(size / share), str(found["interpolation"])
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"config.json beside {where}: unreadable pretrained_cfg: {error!r}") from error
    rule = f"shorter side to {side}, {kind} with antialias, centre {size}x{size}"
    return dataclasses.replace(default, mean=mean, std=std, resize=rule)
