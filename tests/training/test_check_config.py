"""A misspelt, superfluous or missing key of an experiment and a value out of range are told by name."""

import math

import pytest

from segjax import config as configs
from segjax.training import check_config, setup
from segjax.types import InputError

SECTIONS = ("data", "augment", "model", "loss", "optimizer", "train", "eval", "checkpoint", "log")


@pytest.fixture(scope="module", params=["camvid", "pets", "shapes"])
def experiment(request):
    return configs.load_experiment(f"experiments/deeplab.py:{request.param}")


@pytest.fixture
def config():
    """What an experiment file returns may be changed here."""
    return configs.load_experiment("experiments/deeplab.py:camvid").unlock()


def refused(config, message, devices=1, **options):
    with pytest.raises(InputError, match=message) as error:
        setup.check(config, devices, **options)
    assert "\n" not in str(error.value)


def test_every_key_that_is_read_may_be_there_and_none_else(experiment):
    setup.check(experiment, devices=1)
    for section in SECTIONS:
        copy = experiment.copy_and_resolve_references().unlock()
        copy[section].nobody_reads_this = 1
        refused(copy, rf"^{section}\.nobody_reads_this: .* has no such key")


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("train", "step", "steps"),
        ("eval", "evry_steps", "every_steps"),
        ("checkpoint", "keep", "keep_best|keep_last"),
        ("log", "tensorbord", "tensorboard"),
        ("data", "root_", "root"),
        ("data", "imags", "images"),
        ("data", "worker", "workers"),
        ("augment", "flp", "flip"),
        ("optimizer", "learning_rat", "learning_rate"),
        ("loss", "class_weight", "class_weights"),
        ("model", "output_strid", "output_stride"),
    ],
)
def test_a_misspelt_key_names_the_nearest(config, section, key, nearest):
    config[section][key] = 1
    refused(config, rf"^{section}\.{key}: .*did you mean ({nearest})\?")


def test_a_misspelt_section_or_plain_field_is_told(config):
    config.optimiser = {}
    refused(config, r"^optimiser: a config has no such key; did you mean optimizer\?")
    del config.optimiser
    with config.ignore_type():
        config.train = 3
    refused(config, "train=3: expected a section")


@pytest.mark.parametrize(
    "key",
    ["seed", "experiment", "loss", "train.steps", "train.dtype", "eval.pictures", "eval.ema", "checkpoint.keep_best"]
    + ["log.every_steps", "log.tensorboard", "data.cache", "data.size", "data.verify", "data.root", "augment.mean"]
    + ["augment.std", "optimizer.name", "optimizer.learning_rate", "loss.name", "model.name", "data.name"],
)
def test_a_missing_key_is_named(config, key):
    section, _, name = key.rpartition(".")
    del (config[section] if section else config)[name]
    refused(config, rf"^{key} is missing in the config")


@pytest.mark.parametrize(
    "key", ["augment.flip", "optimizer.power", "loss.label_smoothing", "model.width", "data.lists"]
)
def test_a_key_with_a_default_may_be_left_out(config, key):
    section, _, name = key.rpartition(".")
    if name in config[section]:
        del config[section][name]
    setup.check(config, devices=1)


@pytest.mark.parametrize(
    "key, value", [("data.name", "foldr"), ("model.name", "deeplap"), ("loss.name", "cross_entrop")]
)
def test_an_unknown_part_names_the_nearest(config, key, value):
    refused(configs.override(config, {key: value}), rf"^{key}='{value}' is unknown; did you mean")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("augment.flip", 1.5, "augment.*flip is 1.5, expected a probability"),
        ("augment.scale", (2.0, 1.0), "augment.*scale is"),
        ("augment.scale", (0.0, 1.0), "augment.*scale is"),
        ("augment.hue", 0.6, r"augment.*hue is 0.6, expected a number in \[0, 0.5\]"),
        ("augment.brightness", math.nan, "augment.*brightness is nan"),
        ("augment.mean", (0.5,), r"augment.mean=\(0.5,\): expected three numbers"),
        ("augment.std", (0.2, 0.2, 0.0), "augment.std=.*above 0"),
        ("checkpoint.keep_best", -1, "checkpoint.keep_best=-1: expected at least 0"),
        ("data.workers", -1, "data.workers=-1: expected at least 0"),
        ("data.worker_mode", "thread", "data.worker_mode='thread': expected one of threads, processes"),
        ("eval.pictures", -1, "eval.pictures=-1"),
        ("seed", -1, "seed=-1: expected at least 0"),
        ("seed", 2**32, "seed=4294967296: expected a whole number below"),
        ("optimizer.b1", 1.0, r"optimizer.*b1 is 1.0, expected .* \[0, 1\)"),
        ("optimizer.b2", -0.1, "optimizer.*b2 is -0.1"),
        ("optimizer.eps", 0.0, "optimizer.*eps is 0.0"),
        ("optimizer.weight_decay", math.inf, "optimizer.*weight_decay is inf"),
        ("optimizer.weight_decay", math.nan, "optimizer.*weight_decay is nan"),
        ("optimizer.learning_rate", math.inf, "optimizer.*learning_rate is inf"),
        ("optimizer.power", math.nan, "optimizer.*power is nan"),
        ("optimizer.warmup_steps", -1, "warmup_steps=-1: expected a whole number from 0"),
        ("optimizer.name", "adam", "optimizer 'adam' is unknown"),
        ("model.aspp_channels", 0, "model.*aspp_channels=0 .*at least 1"),
        ("model.decoder_channels", -4, "model.*decoder_channels=-4"),
        ("model.low_level_channels", 0, "model.*low_level_channels=0"),
        ("model.decoder_convs", -1, "model.*decoder_convs=-1"),
        ("model.width", 0.0, "model.*width=0.0"),
        ("model.aspp_rates", (0, 6), r"model.*aspp_rates=\(0, 6\)"),
        ("model.backbone", "resnet5", "model.*no backbone 'resnet5'"),
        ("model.output_stride", 12, "model.*output_stride=12"),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_data_is_read(config, key, value, message):
    refused(configs.override(config, {key: value}), message)


@pytest.mark.parametrize("key, value", [("train.steps", "many"), ("train.steps", 1.5), ("optimizer.b1", "x")])
def test_a_value_of_another_type_is_refused(config, key, value):
    section, name = key.split(".")
    with config.ignore_type():
        config[section][name] = value
    refused(config, section)


def test_what_evaluation_does_not_read_may_be_of_another_version(config):
    config.train.of_yesterday = 1
    del config.log, config.optimizer, config.eval["pictures"], config.train["accumulate"]
    setup.check(config, devices=1, evaluation=True)
    refused(configs.override(config, {"eval.batch_size": 0}), "eval.batch_size=0", evaluation=True)
    del config.eval["resolution"]
    refused(config, "^eval.resolution is missing", evaluation=True)
    del config.augment
    refused(config, "section augment is missing", evaluation=True)


def test_an_impossible_option_is_told_with_its_sections():
    with pytest.raises(InputError, match="^sections model, loss of the config: integer division"):
        check_config.explained(("model", "loss"), lambda: 1 // 0)
    assert check_config.explained(("model",), lambda: 3) == 3


def test_a_loss_may_be_replaced_by_others_and_their_sums(config):
    for name in ("dice", "cross_entropy+dice", "focal+0.5*lovasz"):
        setup.check(configs.override(config, {"loss.name": name}), devices=1)
    refused(configs.override(config, {"loss.name": "cross_entropy+dise"}), "^loss.name='dise' is unknown; did you mean")
    refused(configs.override(config, {"loss.name": "cross_entropy,dice"}), "expected different losses joined by")
    unused = configs.override(config, {"loss.name": "dice", "loss.label_smoothing": 0.1})
    refused(unused, "^loss.label_smoothing=0.1: loss 'dice' has no such option")
    config.loss = {"name": "focal+tversky", "gamma": 3.0, "aux_weight": 0.4, "tversky": {"gamma": 0.75}}
    setup.check(configs.override(config, {"loss.tversky.gamma": 1.0}), devices=1)
    refused(configs.override(config, {"loss.aux_weight": -1.0}), "aux_weight is -1.0")
    config.loss.tversky.gama = 1.0
    refused(config, "loss 'tversky' has no option 'gama'")


def test_a_run_may_be_shortened_and_its_set_replaced():
    camvid = configs.load_experiment("experiments/deeplab.py:camvid")
    setup.check(configs.override(camvid, {"train.steps": 5}), devices=1)
    setup.check(configs.override(camvid, {"data.name": "shapes"}), devices=1)
