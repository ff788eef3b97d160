"""The state of a training run: arrays only, so that it can be saved, sharded and donated as it is."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from segjax.types import Array, PyTree, Variables


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes; functions (apply, optimizer) stay outside."""

    step: Array  # i32[]: updates done
    params: PyTree  # f32 leaves
    batch_stats: PyTree  # f32 leaves, {} for a model without batch norm
    opt_state: PyTree
    ema: PyTree  # moving averages {"params", "batch_stats"}, {} when off
    key: Array  # u32[2]: raw threefry key, constant; draws fold the step and the example into it


def create(variables: Variables, tx: optax.GradientTransformation, *, key: Array, ema: bool = False) -> TrainState:
    """The state before the first step.

    Args:
      variables: {"params": ..., "batch_stats": ...} as a model's init returns them; "batch_stats" may lack.
      tx: optimizer.
      key: typed key or raw u32[2].
      ema: whether to keep a moving average of parameters and batch statistics, which begins at their initial values.
    Returns:
      TrainState that shares no buffer between its leaves, so that it may be donated; ``variables`` stay usable.
    Raises:
      ValueError: the key is not one threefry key.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if key.shape != (2,) or key.dtype != jnp.uint32:
        raise ValueError(f"key is {key.dtype}{list(key.shape)}, expected one threefry key, u32[2]")
    params, batch_stats = _copy(variables["params"]), _copy(variables.get("batch_stats", {}))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        ema=_copy({"params": params, "batch_stats": batch_stats}) if ema else {},
        key=jnp.array(key, copy=True),
    )


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
