"""Every shipped experiment loads, builds and traces one step; nothing in experiments/ can rot."""

import ast
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from segjax import config as configs
from segjax.data.metadata import Classes
from segjax.training import setup

FILES = sorted((pathlib.Path(__file__).resolve().parents[1] / "experiments").glob("*.py"))


def _modes(file: pathlib.Path) -> list[str]:
    """The keys of the dict ``modes`` in get_config."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "modes":
            return [key.value for key in node.value.keys]
    raise AssertionError(f"{file} declares no modes")


CASES = [f"{file}:{mode}" for file in FILES for mode in _modes(file)]


@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.rsplit("/", 1)[-1])
def test_experiment_traces_one_step(spec: str):
    config = configs.override(configs.load_experiment(spec), {"train.batch_size": 8})
    setup.check(config, devices=8)
    classes = Classes(names=("a", "b", "c"))
    job = jax.eval_shape(lambda: setup.first_state(config, len(classes)))
    assert {leaf.dtype for leaf in jax.tree.leaves(job.params)} == {jnp.dtype("float32")}
    step = setup.make_step(config, classes)
    height, width = config.data.size
    batch = {
        "image": jax.ShapeDtypeStruct((8, height, width, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8, height, width), jnp.int32),
        "valid": jax.ShapeDtypeStruct((8,), jnp.bool_),
    }
    state, metrics = jax.eval_shape(step, job, batch)
    assert jax.tree.structure(state) == jax.tree.structure(job)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment_says_how_it_is_run(file: pathlib.Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for mode in _modes(file)[1:]:
        assert f"experiments/{file.name}:{mode}" in module.__doc__
    with pytest.raises(ValueError, match="has no mode 'x'"):
        module.get_config("x")
