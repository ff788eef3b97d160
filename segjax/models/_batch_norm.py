"""A model under the statistics of the batch at hand, and what its batch norms are given there."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from segjax import layers
from segjax.types import Array, Outputs, PyTree, Variables

_MOMENTS = "moments"  # the collection in which they are reported


def apply_batch_norm(module: layers.Network, variables: Variables, image: Array) -> tuple[Outputs, PyTree]:
    """Applies a model with every batch norm by the statistics of this batch and dropout off; nothing is kept.

    Args:
        module: the model.
        variables: {"params", "batch_stats"}.
        image: f32[B, H, W, C], normalised.

    Returns:
        (outputs, moments): moments is like batch_stats and holds "mean" and biased "var", f32[C], of what each batch
        norm was given.
    """

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        """Passes dropout by, and notes the input of batch norms."""
        module = context.module
        if context.method_name == "__call__" and isinstance(module, layers.Dropout):
            return args[0]
        if context.method_name == "__call__" and isinstance(module, layers.BatchNorm):
            axes = tuple(range(args[0].ndim - 1))
            mean, var = (f(args[0].astype(jnp.float32), axis=axes) for f in (jnp.mean, jnp.var))
            for name, value in (("mean", mean), ("var", var)):
                module.sow(_MOMENTS, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        outputs, updates = module.apply(variables, image, train=True, mutable=["batch_stats", _MOMENTS])
    return outputs, updates.get(_MOMENTS, {})
