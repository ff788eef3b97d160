"""Products and quotients are rounded as NumPy rounds them, whatever a compiler makes of what follows."""

import jax
import numpy as np
import pytest

from segjax.ops.rounding import quotient, rounded

RNG = np.random.default_rng(0)
A, B, C = RNG.uniform(0, 9, (3, 4096)).astype(np.float32)


@pytest.mark.parametrize("c", [np.float32(0.5), C])
def test_no_fused_multiply_add(c):
    third = np.float32(1 / 3)
    got = jax.jit(lambda a, b: (rounded(a * b) - c, c + rounded(a * third)))(A, B)
    np.testing.assert_array_equal(got[0], A * B - c)
    np.testing.assert_array_equal(got[1], c + A * third)
    assert np.isnan(rounded(np.array([np.nan, 1], np.float32))).tolist() == [True, False]


@pytest.mark.parametrize("divisor", [3, 7, 14, 28])
def test_no_reciprocal(divisor):
    sides = np.arange(1, 4000, dtype=np.float32)
    got = jax.jit(lambda s, a: (quotient(s, divisor), quotient(a, divisor)))(sides, A)
    np.testing.assert_array_equal(got[0], sides / np.float32(divisor))
    np.testing.assert_array_equal(got[1], A / np.float32(divisor))
