"""The config: types, nearest keys, files, differences."""

import json

import pytest
from ml_collections import ConfigDict, config_dict

from segjax import config as configs
from segjax.types import InputError


def example() -> ConfigDict:
    return ConfigDict(
        {
            "data": {"name": "folder", "root": "", "size": (192, 256), "cache": False, "sizes": ((1, 2), (3, 4))},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100},
            "model": {"rates": None, "width": config_dict.placeholder(float)},
        }
    ).lock()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.root", "/images", "/images"),
        ("data.root", "3", "3"),
        ("data.size", "(96,128)", (96, 128)),
        ("data.size", "[96, 128]", (96, 128)),
        ("data.size", "96,128", (96, 128)),
        ("data.size", "(96,)", (96,)),
        ("data.size", "()", ()),
        ("data.cache", "true", True),
        ("data.cache", "0", False),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.warmup_steps", "1e4", 10_000),
        ("optimizer.warmup_steps", "10_000", 10_000),
        ("model.rates", "(1, 2)", (1, 2)),
        ("model.rates", "None", None),
        ("model.rates", "word", "word"),
        ("model.width", "2", 2.0),
        ("model.width", "none", None),
        ("data.size", (8, 9), (8, 9)),
        ("data.size", "(96)", (96,)),
        ("data.sizes", "((8,9),(10,11))", ((8, 9), (10, 11))),
        ("data.sizes", "((8, 9),)", ((8, 9),)),
        ("data.sizes", "[[8, 9]]", ((8, 9),)),
        ("data.sizes", "()", ()),
    ],
)
def test_override_takes_the_type_that_is_there(key, text, value):
    before = example()
    after = configs.override(before, {key: text})
    found = configs.flatten(after)[key]
    assert found == value and type(found) is type(value)
    assert configs.differences(before, example()) == []  # the argument is not changed
    assert after.is_locked


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("data.rot", "x", ["--config.data.rot", "did you mean data.root?"]),
        ("optimiser.learning_rate", "1", ["did you mean optimizer.learning_rate?"]),
        ("learning_rate", "1", ["did you mean optimizer.learning_rate?"]),
        ("data.root.x", "1", ["no such key"]),
        ("data", "x", ["section", "data.root", "data.size"]),
        ("data.cache", "perhaps", ["expected a bool", "'perhaps'"]),
        ("optimizer.warmup_steps", "1.5", ["expected an int", "now 100"]),
        ("optimizer.warmup_steps", "many", ["expected an int", "'many'"]),
        ("optimizer.learning_rate", "fast", ["expected a float", "0.001"]),
        ("data.size", "(96.5,128)", ["expected a tuple of int", "(192, 256)"]),
        ("data.size", "big", ["expected a tuple of int"]),
        ("model.width", "wide", ["expected a float"]),
        ("data.root", 3, ["expected text"]),
        ("data.cache", None, ["expected a bool"]),
    ],
)
def test_a_wrong_override_names_key_value_and_cure(key, text, words):
    with pytest.raises(InputError) as caught:
        configs.override(example(), {key: text})
    assert all(word in str(caught.value) for word in words), caught.value


def test_json_round_trip(tmp_path):
    path = tmp_path / "config.json"
    configs.save_json(path, example())
    again = configs.load_json(path)
    assert configs.differences(example(), again) == []
    assert again.data.size == (192, 256) and again.is_locked
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_json_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        configs.load_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"data": ')
    with pytest.raises(InputError, match="not a readable JSON"):
        configs.load_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="expected a JSON object"):
        configs.load_json(tmp_path / "config.json")


def test_describe_lists_every_field_as_a_flag_that_reads_back():
    config = configs.override(example(), {"data.root": "/my images"})
    text = configs.describe(config)
    import shlex

    flags = [shlex.split(line)[0] for line in text.splitlines() if line]
    rest, overrides = configs.split_arguments(flags)
    assert rest == [] and list(overrides) == list(configs.flatten(config))
    assert configs.differences(configs.override(config, overrides), config) == []


def test_differences_name_both_values_and_absent_keys():
    other = configs.override(example(), {"data.size": "96,128"}).copy_and_resolve_references()
    with other.unlocked():
        other.data.fit = "pad"
    assert configs.differences(example(), other) == [
        "data.size: (192, 256) -> (96, 128)",
        "data.fit: (absent) -> 'pad'",
    ]


def test_split_arguments():
    rest, overrides = configs.split_arguments(
        ["--workdir=W", "--config.data.root=D=1", "--config.data.size", "(1,2)", "--config.data.cache", "--ema"]
    )
    assert rest == ["--workdir=W", "--ema"]
    assert overrides == {"data.root": "D=1", "data.size": "(1,2)", "data.cache": "true"}


def test_load_experiment(tmp_path):
    (tmp_path / "good.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(variant='default'):\n"
        "    if variant not in ('default', 'small'):\n"
        "        raise ValueError(f'no variant {variant}; known: default, small')\n"
        "    return ConfigDict({'data': {'name': variant}})\n"
    )
    (tmp_path / "empty.py").write_text("")
    assert configs.load_experiment(str(tmp_path / "good.py")).data.name == "default"
    assert configs.load_experiment(f"{tmp_path / 'good.py'}:small").data.name == "small"
    for name, words in [("god.py", "good.py"), ("good.py:big", "known: default, small"), ("empty.py", "no function")]:
        with pytest.raises(InputError, match=words):
            configs.load_experiment(str(tmp_path / name))


def test_initials_name_the_key_they_stand_for():
    config = ConfigDict({"optimizer": {"learning_rate": 0.1, "b2": 0.9}}).lock()
    with pytest.raises(InputError, match="did you mean optimizer.learning_rate"):
        configs.override(config, {"optimizer.lr": "1"})
