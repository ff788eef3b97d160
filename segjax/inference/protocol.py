"""What a score depends on besides the weights and the data, written beside every number."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

SEGJAX_PROTOCOL = 1  # raised when the evaluation itself changes


def protocol(config: ConfigDict, *, ema: bool) -> dict[str, Any]:
    """The rules a config is evaluated by.

    Args:
        config: of a run, with the sections data, augment, train and eval.
        ema: whether the moving average of the parameters is evaluated.

    Returns:
        JSON-ready values; "id" is the same for two evaluations whose scores may be compared. Weights may differ in
        ema, so it is stated and does not enter the id.
    """
    native = config.eval.resolution == "native"
    stretched = config.data.fit != "crop"
    rules = {
        "version": SEGJAX_PROTOCOL,
        "inference": "whole image",
        "canvas": list(config.data.size),
        "fit": config.data.fit,
        "image_resize": "bilinear with antialias (Pillow)" if stretched else "none",
        "logits_resize": "bilinear, half-pixel centres, to the label's size" if native else "none",
        "label_resize": "none" if native else "nearest, to the canvas",
        "resolution": config.eval.resolution,
        "scales": [1.0],
        "flip": False,
        "absent": config.eval.absent,
        "batch_norm": "running statistics",
        "precision": config.train.dtype,
        "mean": list(config.augment.mean),
        "std": list(config.augment.std),
    }
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]
    return {**rules, "ema": ema, "id": digest}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """One line for each rule in which two protocols differ: ``resolution: native -> input``."""
    keys = [key for key in {**a, **b} if key != "id"]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)]
