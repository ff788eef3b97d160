"""Checkpoints of a made state, for the tests that read, count or damage them."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from segjax.training.checkpoint import Checkpoints


@struct.dataclass
class State:
    """As the training state: a tree of dicts, tuples, odd dtypes and empty places."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: Any


def make_state(seed: int = 0, classes: int = 5, ema: bool = False) -> State:
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 3, 4, classes)).astype(np.float32)
    params = {
        "head": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(classes)},
        "scale": jnp.asarray(1.5, jnp.bfloat16),
    }
    batch_stats = {"norm": {"mean": jnp.asarray([np.nan, -0.0, np.inf, 1e-42], jnp.float32)}}
    return State(
        step=jnp.asarray(seed, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=(jax.tree.map(jnp.zeros_like, params), (), (jnp.asarray(7, jnp.int32), jnp.zeros((0, 3)))),
        ema=jax.tree.map(lambda leaf: leaf + 1, {"params": params, "batch_stats": batch_stats}) if ema else {},
        key=jax.random.PRNGKey(seed),
    )


def abstract(state: State) -> State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == np.asarray(b).tobytes()


def data_files(step_folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in sorted((step_folder / "state").rglob("*")) if path.is_file() and path.parent.name == "d"]


def fill(directory: pathlib.Path, scores: dict[int, float | None], **options: Any) -> None:
    with Checkpoints(directory, **options) as checkpoints:
        for step, miou in scores.items():
            checkpoints.save(step, make_state(step), metrics=None if miou is None else {"miou": miou})


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(bytes(content))


def largest_data_file(folder: pathlib.Path) -> pathlib.Path:
    return max(data_files(folder), key=lambda path: path.stat().st_size)
