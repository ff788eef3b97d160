"""Batch norm by the statistics of a whole set of images, in place of the running averages of the training."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import augment, layers, models
from segjax.types import DATA_AXIS, IMAGE, VALID, Array, Batch, HostArray, PyTree, Variables


def reestimate(
    module: layers.Network,
    variables: Variables,
    batches: Iterable[Batch],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The variables with the mean and variance of every batch norm's input over all images.

    Each batch is normalised by its own statistics, as in training, but without dropout. With n_b the images of batch b
    and m_b, v_b its mean and biased variance: mean = sum n_b m_b / N, var = sum n_b (v_b + m_b^2) / N - mean^2, summed
    in float64: the moments of all values together, not an average of variances.

    Args:
        module: the model; its batch statistics must not need an axis_name.
        variables: {"params", "batch_stats"}.
        batches: "image" u8[B, H, W, 3] of one canvas, "valid" bool[B]; rows that are not valid are left out.
        mean: of each channel, subtracted from the image in [0, 1].
        std: of each channel, which divides it then.
        mesh: devices to split the batches over that they divide; the result does not depend on it.

    Returns:
        {"params", "batch_stats"}, batch_stats on the host.

    Raises:
        ValueError: no image.

    Source: Ioffe & Szegedy 2015, algorithm 2; Wu & Johnson 2021, section 3.2, https://arxiv.org/abs/2105.07576.
    """

    @jax.jit
    def moments_of(variables: Variables, image: Array) -> PyTree:
        normalised = augment.normalise({IMAGE: image}, mean, std)[IMAGE]
        return models.apply_batch_norm(module, variables, normalised)[1]

    images, sums = 0, None
    for batch in batches:
        image = np.asarray(batch[IMAGE])[np.asarray(batch[VALID])]
        if not len(image):
            continue
        moments = jax.device_get(moments_of(variables, _placed(image, mesh)))
        new = jax.tree.map(functools.partial(_sums, images=len(image)), moments, is_leaf=_is_norm)
        sums = new if sums is None else jax.tree.map(np.add, sums, new)
        images += len(image)
    if not images:
        raise ValueError("no image to estimate the statistics of batch norm from")
    statistics = jax.tree.map(lambda norm: _statistics(norm, images), sums, is_leaf=_is_norm)
    return {**variables, "batch_stats": statistics}


def _is_norm(node: PyTree) -> bool:
    return isinstance(node, Mapping) and set(node) == {"mean", "var"}


def _sums(norm: Mapping[str, HostArray], images: int) -> dict[str, HostArray]:
    """n m and n (v + m^2), f64[C]."""
    mean, var = (np.asarray(norm[key], np.float64) for key in ("mean", "var"))
    return {"mean": images * mean, "var": images * (var + mean**2)}


def _statistics(sums: Mapping[str, HostArray], images: int) -> dict[str, HostArray]:
    mean = sums["mean"] / images
    var = np.maximum(sums["var"] / images - mean**2, 0.0)
    return {"mean": mean.astype(np.float32), "var": var.astype(np.float32)}


def _placed(image: HostArray, mesh: Mesh | None) -> Array | HostArray:
    if mesh is None or len(image) % mesh.size:
        return image
    return jax.device_put(image, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))
