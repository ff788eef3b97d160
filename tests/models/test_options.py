"""What every model says of an option that is not legal: its name, its value, the model, what is."""

import re

import pytest

from segjax import models
from segjax.types import InputError

FAMILIES = ("classifier", "deeplab", "fcn", "patch", "segnet", "unet")


def refused(model, message, **options):
    with pytest.raises(InputError, match=re.escape(message)):
        models.build(model, **{"num_classes": 2, **options})


@pytest.mark.parametrize("model", FAMILIES)
def test_options_that_every_model_has(model):
    least = 0 if model == "classifier" else 1
    refused(model, f"num_classes={least - 1} of model {model!r}: expected at least {least}", num_classes=least - 1)
    refused(model, f"dtype='half' of model {model!r}: expected one of ('float32', 'bfloat16')", dtype="half")


@pytest.mark.parametrize("model", [family for family in FAMILIES if family != "patch"])
@pytest.mark.parametrize("width", [0, -1.0, float("inf"), float("nan")])
def test_a_width_is_finite_and_above_0(model, width):
    refused(model, f"width={width!r} of model {model!r}: expected a factor above 0", width=width)


@pytest.mark.parametrize(
    "model, option",
    [("classifier", "dropout"), ("fcn", "dropout"), ("patch", "dropout"), ("unet", "dropout")]
    + [("deeplab", "aspp_dropout")],
)
def test_a_rate_is_from_0_to_below_1(model, option):
    for rate in (-0.1, 1, float("nan")):
        refused(model, f"{option}={rate!r} of model {model!r}: expected 0 <= rate < 1", **{option: rate})
    assert getattr(models.build(model, num_classes=2, **{option: 0}), option) == 0


@pytest.mark.parametrize("model", ["classifier", "fcn"])
def test_no_rate_is_the_family_s_own(model):
    assert models.build(model, num_classes=2, dropout=None).dropout is None


@pytest.mark.parametrize(
    "model, option, value, expected",
    [
        ("classifier", "maps", True, "False with num_classes=2"),
        ("classifier", "sliding", True, "False on resnet50"),
        ("deeplab", "output_stride", 32, "one of (16, 8)"),
        ("deeplab", "cascade", 1, "0 with variant='v3plus'"),
        ("deeplab", "decoder_convs", -1, "at least 0"),
        ("fcn", "stride", 4, "one of (32, 16, 8)"),
        ("fcn", "upsampling", "none", "one of ('learned', 'fixed')"),
        ("patch", "form", "sparse", "one of ('dense', 'patches', 'full_resolution')"),
        ("patch", "samples", -1, "at least 0"),
        ("segnet", "variant", "tiny", "one of ('segnet', 'basic', 'deconvnet')"),
        ("segnet", "bottleneck", 0, "at least 1"),
        ("unet", "norm", "group", "one of ('none', 'batch')"),
        ("unet", "depth", 0, "at least 1"),
    ],
)
def test_options_of_one_model(model, option, value, expected):
    refused(model, f"{option}={value!r} of model {model!r}: expected {expected}", **{option: value})
