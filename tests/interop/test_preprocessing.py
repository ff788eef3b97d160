"""What travels with weights: the numbers of each source, timm's config.json, differences from a config."""

import dataclasses

import numpy as np
import pytest

from segjax.interop import preprocessing, smp
from segjax.types import InputError


def test_it_survives_as_text():
    for value in (preprocessing.CLASSIFICATION, preprocessing.XCEPTION, preprocessing.SMP):
        assert preprocessing.from_json(value.json(), "x") == value
    for text in ("{", "[]", '{"mean": [0.5]}'):
        with pytest.raises(InputError, match="^FILE: unreadable preprocessing"):
            preprocessing.from_json(text, "FILE")


def test_timm_s_config_comes_first():
    found = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "input_size": [3, 288, 288],
    }
    expected = dataclasses.replace(
        preprocessing.TIMM,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        resize="shorter side to 303, bicubic with antialias, centre 288x288",
    )
    for beside in (found, {"pretrained_cfg": found, "architecture": "resnet50"}):
        assert preprocessing.of_timm(beside, preprocessing.TIMM, "x") == expected
    assert preprocessing.of_timm({}, preprocessing.XCEPTION, "x") == preprocessing.XCEPTION
    with pytest.raises(InputError, match="beside FILE: unreadable pretrained_cfg"):
        preprocessing.of_timm({**found, "crop_pct": "all"}, preprocessing.TIMM, "FILE")


def test_differences_are_told_beyond_rounding():
    own = preprocessing.CLASSIFICATION
    assert own.differences(tuple(np.float32(own.mean)), own.std) == []
    lines = own.differences((0.5, 0.5, 0.5), (0.229, 0.224))
    assert [line.split()[0] for line in lines] == ["mean", "std"] and "(0.485, 0.456, 0.406)" in lines[0]


def test_an_encoder_of_timm_expects_what_it_does_there():
    assert smp.prepared({}) == smp.prepared({"encoder_name": "tu-resnet18"}) == preprocessing.SMP
    found = smp.prepared({"encoder_name": "tu-xception41"})
    assert (found.mean, found.std, found.epsilon) == ((0.5,) * 3, (0.5,) * 3, 1e-3)
