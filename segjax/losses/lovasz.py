"""Lovasz-softmax: the piecewise linear extension of the Jaccard loss, which ranks the errors of all pixels.

With q_ic the softmax, e_ic = |t_ic - q_ic| the errors of class c in falling order, m_i the weight of a pixel (0 where
it is ignored) and J(i) the Jaccard loss if the first i pixels were wrong:

    loss_c = sum_i e_ic (J(i) - J(i - 1)),   J(i) = 1 - I / U,
    I = P - sum over the first i of m t,   U = P + sum over the first i of m (1 - t),   P = sum over all of m t

    loss = mean of loss_c over the classes that counted pixels have

The difference is taken in closed form, m / U for a pixel of the class and m I / (U U') for another one, U' the union
before it: subtracting two numbers near 1 would leave nothing of it in float32 once there are millions of pixels.
"""

import jax
import jax.numpy as jnp

from segjax.losses import _pixels
from segjax.types import Array, Batch, Outputs


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    per_image: bool = False,
) -> dict[str, tuple[Array, Array]]:
    """Lovasz-softmax loss of the whole batch, or the mean of its images'.

    Args:
      outputs: "logits" f32[B, H, W, K].
      batch: "label" integers [B, H, W]; optional "valid" bool[B] and "weight" f32[B, H, W].
      num_classes: K.
      ignore_label: label that counts nowhere.
      axis_name: of the devices that hold parts of the batch, or None; ``per_image`` needs none.
      per_image: one loss for each image in which a pixel counts, and their mean.
    Returns:
      {"lovasz": (sum, weight)}: the weights of all devices add up to 1, under ``per_image`` to the number of images;
      both 0 where no pixel counts.
    Raises:
      ValueError: shapes that do not fit.
    Source: Berman et al. 2018, https://arxiv.org/abs/1705.08790, algorithm 1 and equation 9;
    segmentation_models_pytorch's LovaszLoss("multiclass").
    """
    pixels = _pixels.read(outputs, batch, num_classes, ignore_label)
    is_label, mass = pixels.is_label(), pixels.mass()
    softmax = jax.nn.softmax(pixels.safe_logits())
    error = jnp.where(is_label, 1.0 - softmax, softmax)
    # [K, B or 1, pixels]: a class at a time, so that one class' ranking is in memory at once.
    rows = mass.shape[0] if per_image else 1
    error, is_label = (jnp.moveaxis(x, -1, 0).reshape(num_classes, rows, -1) for x in (error, is_label))
    mass = mass.reshape(rows, -1)
    over = None if per_image else axis_name

    def one_class(of_class: tuple[Array, Array]) -> tuple[Array, Array]:
        error, is_label = of_class
        slope = jax.vmap(lambda e, t, m: _slope(e, t, m, over))(jax.lax.stop_gradient(error), is_label, mass)
        return (error * slope).sum(axis=-1), jnp.where(is_label, mass, 0.0).sum(axis=-1)

    value, present = jax.lax.map(one_class, (error, is_label))
    value, present = _pixels.total((value, present), over)  # f32[K, rows]
    number = (present > 0).sum(axis=0).astype(jnp.float32)
    mean = jnp.where(present > 0, value, 0.0).sum(axis=0) / jnp.maximum(number, 1.0)
    if per_image:
        return {"lovasz": (mean.sum(), (number > 0).sum().astype(jnp.float32))}
    return {"lovasz": _pixels.share(mean[0], number[0] > 0, axis_name)}


def additive(*, per_image: bool = False, **_: object) -> bool:
    """Whether the sums of parts of a batch add up to those of the whole: only those of single images do."""
    return per_image


def _slope(error: Array, is_label: Array, mass: Array, axis_name: str | None) -> Array:
    """f32[n]: J(i) - J(i - 1) of each of this device's n pixels, in their own order, ranked among those of all."""
    here = error.shape[0]
    if axis_name is not None:
        error, is_label, mass = (
            jax.lax.all_gather(x, axis_name, tiled=True) for x in (error, is_label, mass)
        )  # in the order of the devices
    key = jnp.where(mass > 0, -error, jnp.inf)  # what is ignored stands last, whatever its error
    _, place = jax.lax.sort((key, jnp.arange(key.shape[0])), num_keys=1, is_stable=True)
    ranked, own = mass[place], jnp.where(is_label, mass, 0.0)[place]
    positives, other = own.sum(), ranked - own
    intersection = jnp.maximum(positives - jnp.cumsum(own), 0.0)
    union = positives + jnp.cumsum(other)
    before = union - other
    union, before = (jnp.where(x > 0, x, 1.0) for x in (union, before))
    slope = jnp.where(own > 0, own / union, intersection * other / (union * before))
    slope = jnp.zeros_like(slope).at[place].set(slope, unique_indices=True)
    if axis_name is not None:
        slope = jax.lax.dynamic_slice_in_dim(slope, jax.lax.axis_index(axis_name) * here, here)
    return slope
