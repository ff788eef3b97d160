"""Float arithmetic as it is written, where a last bit decides: XLA contracts a b + c and divides by reciprocals."""

import jax.numpy as jnp

from segjax.types import Array


def rounded(x: Array) -> Array:
    """Rounds a product before anything is added to it: no fused multiply-add.

    Args:
        x: floating, any shape.

    Returns:
        x.
    """
    return jnp.where(x == x, x, -x)  # with a constant for NaN, LLVM would move the sum into both branches


def quotient(x: Array, divisor: float | Array) -> Array:
    """Divides by a number; XLA would multiply by its rounded reciprocal, and ceil(x / 7) be wrong for 35.

    Args:
        x: floating, any shape.
        divisor: above 0; a number, or an array that broadcasts to x's shape.

    Returns:
        x / divisor, rounded once.
    """
    return x / jnp.where(x == x, jnp.asarray(divisor, x.dtype), 1)
