"""A net of conv, batch norm, dropout and conv, written out in jax.numpy: what the step's tests train.

Nothing of segjax is in it, so that the tests of the step judge the step alone.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

CLASSES = 4
WIDTH = 6


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _batch_mean(x, axis_name):
    mean = x.mean(axis=(0, 1, 2))
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _wide(x):
    return x[None, None, None, :]


def _dropout(x, key, rate, axis_name):
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * x.shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(x.shape[0]))
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0.0)


def make(*, axis_name=None, dropout=0.0, norm=True):
    """A net with ``init(seed)`` and ``apply`` of the shape that segjax models have."""

    def apply(variables, image, *, train=False, targets=None, key=None):
        params, stats = variables["params"], variables["batch_stats"]
        x = _conv(image, params["conv"]["kernel"])
        if norm:
            mean = _batch_mean(x, axis_name)
            var = _batch_mean(jnp.square(x - _wide(mean)), axis_name)
            if train:
                stats = {"norm": {"mean": 0.9 * stats["norm"]["mean"] + 0.1 * mean,
                                  "var": 0.9 * stats["norm"]["var"] + 0.1 * var}}  # fmt: skip
            else:
                mean, var = stats["norm"]["mean"], stats["norm"]["var"]
            x = (x - _wide(mean)) * _wide(params["norm"]["scale"] / jnp.sqrt(var + 1e-5))
        x = jax.nn.relu(x + _wide(params["norm"]["bias"]))
        if train and dropout:
            x = _dropout(x, key, dropout, axis_name)
        outputs = {"logits": _conv(x, params["head"]["kernel"]) + _wide(params["head"]["bias"])}
        return (outputs, stats) if train else outputs

    def init(seed=0):
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)

        params = {
            "conv": {"kernel": normal(3, 3, 3, WIDTH)},
            "norm": {"scale": jnp.ones(WIDTH), "bias": normal(WIDTH)},
            "head": {"kernel": normal(3, 3, WIDTH, CLASSES), "bias": normal(CLASSES)},
        }
        stats = {"norm": {"mean": jnp.zeros(WIDTH), "var": jnp.ones(WIDTH)}} if norm else {}
        return {"params": params, "batch_stats": stats}

    return SimpleNamespace(init=init, apply=apply)


def batch(seed=0, *, rows=16, size=(10, 12), ignored=True):
    """A batch whose ignored pixels crowd in the first rows, so that devices hold very different weights."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8)
    label = (image[..., 0] // (256 // CLASSES)).astype(np.int32)  # something to learn
    if ignored:
        share = np.linspace(0.95, 0.0, rows)[:, None, None]
        label = np.where(rng.random(label.shape) < share, 255, label).astype(np.int32)
    valid = np.ones(rows, bool)
    valid[1] = not ignored
    return {"image": image, "label": label, "valid": valid}


def as_float(data):
    """The batch with its image centred in float32, for steps without augmentation."""
    return {**data, "image": (data["image"].astype(np.float32) - 128.0) / 64.0}


def distance(a, b):
    """Norm of the difference over norm, whole tree."""
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64))
             for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]  # fmt: skip
    return np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs))
