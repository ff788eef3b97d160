"""The forms of dense convolutions on a CPU: each where it is chosen, equal to XLA's with first and second gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops
from segjax.ops import blocked, clipped_taps, cpu_forms, tap_products, window_columns, winograd
from segjax.ops.conv_geometry import conv_geometry

# [B, H, W, Cin], kernel [kh, kw, Cin, Cout], stride, padding, dilation
CASES = {
    "few inputs": ((2, 9, 8, 3), (3, 3, 3, 4), 1, 1, 1),
    "few inputs, strided": ((2, 17, 15, 3), (7, 7, 3, 4), 2, 3, 1),
    "by taps": ((1, 7, 6, 16), (3, 3, 16, 32), 1, 1, 1),
    "by taps, even window": ((1, 7, 6, 16), (2, 4, 16, 5), 1, ((1, 0), (2, 1)), 1),
    "by taps, dilated": ((1, 19, 18, 16), (3, 3, 16, 4), 1, 2, 2),
    "by taps, strided": ((2, 8, 9, 16), (3, 3, 16, 4), 2, 1, 1),
    "fully connected": ((1, 7, 7, 17), (7, 7, 17, 6), 1, 0, 1),
    "nearly fully connected": ((1, 6, 5, 16), (4, 4, 16, 40), 1, 0, 1),
    "wide dilation": ((2, 7, 6, 16), (3, 3, 16, 5), 1, 4, 4),
    "only the middle tap": ((1, 5, 6, 16), (3, 3, 16, 3), 1, 9, 9),
    "dilated on one axis": ((1, 5, 8, 16), (3, 2, 16, 3), 1, ((3, 5), (0, 1)), (4, 1)),
    "no tap inside some windows": ((1, 3, 3, 16), (2, 2, 16, 3), 1, 8, 5),
    "many taps": ((1, 11, 10, 16), (9, 9, 16, 3), 1, 4, 1),
    "Winograd": ((2, 8, 10, 64), (3, 3, 64, 72), 1, 1, 1),
    "Winograd, odd sizes": ((1, 7, 9, 72), (3, 3, 72, 64), 1, 0, 1),
    "Winograd, uneven padding": ((1, 6, 7, 64), (3, 3, 64, 64), 1, ((0, 3), (2, 1)), 1),
    "Winograd, one row": ((1, 1, 20, 64), (3, 3, 64, 64), 1, 1, 1),
    "blocks": ((1, 8, 8, 4), (4, 4, 4, 3), 2, 1, 1),
    "an empty batch": ((0, 8, 8, 16), (3, 3, 16, 3), 1, 1, 1),
}


def draw(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def plain(x, kernel, stride, padding, dilation):
    geometry = conv_geometry(x.shape[1:3], kernel.shape, stride, padding, dilation, 1)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equal_xla_with_first_and_second_gradients(case):
    shape, window, stride, padding, dilation = case
    x, kernel = draw(shape, 0), draw(window, 1)

    def results(conv):
        gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), (0, 1))
        second = jax.grad(lambda x, k: sum(jnp.sum(g**2) for g in gradients(x, k)), (0, 1))
        return jax.jit(lambda x, k: (conv(x, k), gradients(x, k), second(x, k)))(x, kernel)

    ours = results(lambda x, k: ops.conv(x, k, stride=stride, padding=padding, dilation=dilation))
    theirs = results(lambda x, k: plain(x, k, stride, padding, dilation))
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4 * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("case", ["wide dilation", "fully connected", "by taps", "Winograd"])
def test_bfloat16_is_rounded_once(case):
    shape, window, stride, padding, dilation = CASES[case]
    x, kernel = (jnp.asarray(draw(s, i), jnp.bfloat16) for i, s in enumerate((shape, window)))
    exact = plain(x.astype(jnp.float32), kernel.astype(jnp.float32), stride, padding, dilation)
    got = ops.conv(x, kernel, stride=stride, padding=padding, dilation=dilation)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=2**-8 * np.abs(exact).max())


def forms(name, batch=1):
    (_, height, width, _), kernel, *options = CASES[name]
    geometry = conv_geometry((height, width), kernel, *options, 1)
    outputs = batch * geometry.output[0] * geometry.output[1]
    return [choose(outputs, kernel, geometry) for choose in (cpu_forms.convolve, cpu_forms.transpose,
                                                             cpu_forms.kernel_gradient)]  # fmt: skip


def test_the_cases_have_the_forms_they_are_named_after():
    assert forms("few inputs")[2] is window_columns.kernel_gradient
    assert forms("by taps") == [None, tap_products.transpose, tap_products.kernel_gradient]
    assert forms("by taps, strided")[1:] == [tap_products.transpose, tap_products.kernel_gradient]
    assert forms("nearly fully connected")[0] is window_columns.convolve
    for name in ("wide dilation", "only the middle tap", "no tap inside some windows"):
        assert forms(name) == [clipped_taps.convolve, clipped_taps.transpose, clipped_taps.kernel_gradient]
    for name in ("Winograd", "Winograd, odd sizes", "Winograd, uneven padding", "Winograd, one row"):
        assert forms(name) == [winograd.convolve, winograd.transpose, winograd.kernel_gradient]
    assert forms("blocks")[2] is blocked.kernel_gradient
    assert forms("many taps", batch=100)[2] is None
    assert forms("by taps", batch=10**5)[1] is None  # not in memory
    assert forms("Winograd", batch=10**5) == [None, None, tap_products.kernel_gradient]
