"""What a score depends on besides the weights and the data: chosen by config, written beside every number.

| key of eval | values | |
|---|---|---|
| protocol | whole, crop, slide | the image at once; a central window, which alone is scored; the mean of windows |
| window, stride | (rows, columns) | of crop and slide; the stride is two thirds of the window by default |
| scales, flip | (1.0,), False | softmax averaged over scales of the image, and over their mirror images |
| batch_norm | running, reestimated, batch | statistics of the training, of the training set, of each batch of images |
| convention | segjax, fcn, torchvision, mmsegmentation, detectron2, segnet | the mean IoU, ``metrics.conventions`` |
| scores | none, em | of ``segjax.evaluate``, besides the IoU: those of ``inference.em_scores``; not among the rules |
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segjax import config as configs
from segjax.inference.crop import crop_batches
from segjax.inference.views import Views
from segjax.metrics import conventions
from segjax.types import VALID, Batch, InputError

SEGJAX_PROTOCOL = 1  # raised when the evaluation itself changes
DEFAULTS = {
    "protocol": "whole",
    "window": (),
    "stride": (),
    "scales": (1.0,),
    "flip": False,
    "batch_norm": "running",
    "convention": "segjax",
    "scores": "none",
}  # of the section eval; a config without them means these
_CHOICES = {
    "protocol": ("whole", "crop", "slide"),
    "batch_norm": ("running", "reestimated", "batch"),
    "convention": conventions.CONVENTIONS,
    "scores": ("none", "em"),
}
_INFERENCE = {"whole": "whole image", "crop": "central crop", "slide": "sliding window, mean of logits"}


def check(config: ConfigDict) -> None:
    """Refuses a protocol that is not known or cannot be.

    Raises:
        InputError: the key, its value, and the known ones or what to write instead.
    """
    chosen = _chosen(config)
    for key, known in _CHOICES.items():
        if chosen[key] not in known:
            hint = configs.nearest(str(chosen[key]), known)
            raise InputError(f"eval.{key}={chosen[key]!r}: expected one of {', '.join(known)}{hint}")
    if not isinstance(chosen["flip"], bool):
        raise InputError(f"eval.flip={chosen['flip']!r}: expected True or False")
    scales = chosen["scales"]
    if not isinstance(scales, Sequence) or not scales or not all(_number(scale) and scale > 0 for scale in scales):
        raise InputError(f"eval.scales={scales!r}: expected factors of the image's size, such as (0.75,1.0,1.25)")
    windowed, sliding = chosen["protocol"] != "whole", chosen["protocol"] == "slide"
    for key, used, whose in (("window", windowed, "crop and slide"), ("stride", sliding, "slide")):
        size = chosen[key]
        if size and not (len(size) == 2 and all(isinstance(n, int) and n >= 1 for n in size)):
            raise InputError(f"eval.{key}={size!r}: expected (rows, columns) in pixels")
        if size and not used:
            raise InputError(f"eval.{key}={size!r} is of eval.protocol={whose}, which is {chosen['protocol']!r}")
    if windowed and not chosen["window"]:
        raise InputError(f"eval.protocol={chosen['protocol']!r} needs a window, such as eval.window=512,512")
    size = config.data.size
    if sliding and all(w >= n for w, n in zip(chosen["window"], size, strict=True)):
        raise InputError(
            f"eval.window={chosen['window']}: nothing slides, it covers the canvas of data.size={tuple(size)} that "
            "images are fitted to; give a smaller window, or a larger --config.data.size"
        )
    if sliding and any(s > w for s, w in zip(_stride(chosen), chosen["window"], strict=True)):
        raise InputError(f"eval.stride={chosen['stride']!r}: expected at most eval.window={chosen['window']}: no gaps")
    if chosen["protocol"] == "crop" and config.data.fit != "crop" and config.eval.resolution == "native":
        raise InputError(
            "eval.protocol='crop' scores a window of the canvas: with data.fit="
            f"{config.data.fit!r} the labels must be brought there: eval.resolution=input"
        )


def check_running(config: ConfigDict) -> None:
    """Refuses what only ``segjax.evaluate`` does, for training and prediction.

    Raises:
        InputError: batch statistics other than the running ones.
    """
    if (mode := _chosen(config)["batch_norm"]) != "running":
        raise InputError(
            f"eval.batch_norm={mode!r} is of segjax.evaluate alone: elsewhere batch norm runs by the training's"
        )


def batch_norm(config: ConfigDict) -> str:
    """Whose statistics batch norm uses: "running", "reestimated" or "batch"."""
    return _chosen(config)["batch_norm"]


def scores(config: ConfigDict) -> str:
    """What is scored besides the classes' IoU: "none" or "em"."""
    return _chosen(config)["scores"]


def views(config: ConfigDict) -> Views:
    """The looks at an image that a config asks for."""
    chosen = _chosen(config)
    sliding = chosen["protocol"] == "slide"
    return Views(
        window=tuple(chosen["window"]) if sliding else None,
        stride=_stride(chosen) if sliding else None,
        scales=tuple(chosen["scales"]),
        flip=chosen["flip"],
    )


def options(config: ConfigDict) -> dict[str, Any]:
    """The keyword arguments of ``evaluation.evaluate`` that a config decides."""
    chosen = _chosen(config)
    return {
        "mean": tuple(config.augment.mean),
        "std": tuple(config.augment.std),
        "resolution": "native" if chosen["protocol"] == "crop" else config.eval.resolution,
        "absent": config.eval.absent,
        "convention": chosen["convention"],
        "views": views(config),
    }


def batches(config: ConfigDict, of_set: Iterable[Batch], ignore_label: int) -> Iterable[Batch]:
    """The batches of ``data.pipeline.eval_batches`` as a config wants them evaluated by ``options``.

    Under "crop" their central windows; with statistics of the batch no rows that only fill it up.
    """
    chosen = _chosen(config)
    if chosen["batch_norm"] == "batch":
        of_set = _only_valid(of_set)
    if chosen["protocol"] == "crop":
        window, resolution = tuple(chosen["window"]), config.eval.resolution
        return crop_batches(of_set, window, ignore_label=ignore_label, resolution=resolution)
    return of_set


def protocol(config: ConfigDict, *, ema: bool) -> dict[str, Any]:
    """The rules a config is evaluated by.

    Args:
        config: of a run, with the sections data, augment, train and eval.
        ema: whether the moving average of the parameters is evaluated.

    Returns:
        JSON-ready values; "id" is the same for two evaluations whose scores may be compared. Weights may differ in
        ema, so it is stated and does not enter the id.
    """
    chosen = _chosen(config)
    native = config.eval.resolution == "native"
    stretched = config.data.fit != "crop"
    rules = {
        "version": SEGJAX_PROTOCOL,
        "inference": _INFERENCE[chosen["protocol"]],
        "canvas": list(config.data.size),
        "fit": config.data.fit,
        "image_resize": "bilinear with antialias (Pillow)" if stretched else "none",
        "logits_resize": "bilinear, half-pixel centres, to the label's size" if native else "none",
        "label_resize": "none" if native else "nearest, to the canvas",
        "resolution": config.eval.resolution,
        "scales": list(chosen["scales"]),
        "flip": chosen["flip"],
        "absent": config.eval.absent if chosen["convention"] == "segjax" else f"as {chosen['convention']}",
        "batch_norm": _batch_norm_rule(config),
        "precision": config.train.dtype,
        "mean": list(config.augment.mean),
        "std": list(config.augment.std),
    }
    # What the default protocol does not have is not among its rules, so that its id stays what it was.
    if chosen["protocol"] != "whole":
        rules["window"] = list(chosen["window"])
    if chosen["protocol"] == "slide":
        rules["stride"] = list(_stride(chosen))
    if len(chosen["scales"]) > 1 or chosen["flip"]:
        rules["combined"] = "mean of softmax"
    if chosen["convention"] != "segjax":
        rules["convention"] = chosen["convention"]
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]
    return {**rules, "ema": ema, "id": digest}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """One line for each rule in which two protocols differ: ``resolution: native -> input``."""
    keys = [key for key in {**a, **b} if key != "id"]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)]


def _chosen(config: ConfigDict) -> dict[str, Any]:
    return {**DEFAULTS, **{key: value for key, value in config.eval.items() if key in DEFAULTS}}


def _only_valid(of_set: Iterable[Batch]) -> Iterator[Batch]:
    for batch in of_set:
        valid = batch[VALID]
        if valid.any():
            yield {key: value[valid] for key, value in batch.items()}


def _stride(chosen: Mapping[str, Any]) -> tuple[int, int]:
    """Two thirds of the window unless given: 341 of 512, 513 of 769, as mmsegmentation's configs."""
    return tuple(chosen["stride"]) or tuple(max(1, round(2 * n / 3)) for n in chosen["window"])


def _batch_norm_rule(config: ConfigDict) -> str:
    rows = config.eval.batch_size
    return {
        "running": "running statistics",
        "reestimated": f"statistics of the training set, batches of {rows}",
        "batch": f"statistics of each batch of {rows}",
    }[batch_norm(config)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
