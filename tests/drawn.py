"""Draws variables for a model from their shapes, which is quicker than compiling the model's init."""

import jax
import numpy as np


def draw(shapes, seed: int = 0, gain: float = 0.7):
    """Returns NumPy variables: He kernels (fan-in) times a gain, scales and variances in 0.5-1.5, small others."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        name = path[-1].key
        if name == "kernel":
            value = gain * rng.normal(size=like.shape) * (2 / np.prod(like.shape[:-1])) ** 0.5
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, like.shape)
        else:
            value = 0.1 * rng.normal(size=like.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
