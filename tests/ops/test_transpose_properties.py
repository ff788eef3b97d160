"""General statements of segjax/ops/README.md about the transposed convolution, checked over ranges of geometries."""

import functools
import itertools
import math

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops
from segjax.ops.geometry import output_size


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def outputs(n, k, s, pads, d):
    return output_size((n,), (k,), (s,), (pads,), (d,))[0]


AXES = list(itertools.product((1, 2, 3, 4), (1, 2, 3), ((0, 0), (1, 1), (2, 0)), (1, 2)))  # k, s, pads, d


@pytest.mark.parametrize(("k", "s", "pads", "d"), AXES)
def test_s_sizes_share_one_output(k, s, pads, d):
    span = d * (k - 1) + 1
    smallest = max(span - sum(pads), 1)
    for m in range(2, 6):
        sharing = [n for n in range(smallest, 40) if outputs(n, k, s, pads, d) == m]
        least = s * (m - 1) + span - sum(pads)
        assert sharing == [n for n in range(least, least + s) if n >= smallest]
        assert outputs(least + s, k, s, pads, d) == m + 1  # what output_padding = s would ask for


@pytest.mark.parametrize(("k", "s", "pads"), [(3, 2, (1, 1)), (2, 3, (0, 1))])
def test_output_padding_chooses_among_the_sizes(k, s, pads):
    y, kernel = draw((2, 4, 3)), draw((k, 2, 3), 1)
    for extra in range(s):
        x = ops.conv_transpose(y, kernel, stride=s, padding=(pads,), output_padding=extra)
        assert x.shape[1] == s * 3 + k - sum(pads) + extra
        m = ops.conv_matrix(kernel, x.shape[1], stride=s, padding=(pads,))
        np.testing.assert_allclose(x.reshape(2, -1), y.reshape(2, -1) @ m, atol=1e-5)
    with pytest.raises(ValueError, match="output_padding"):
        ops.conv_transpose(y, kernel, stride=s, padding=(pads,), output_padding=s)


@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(st.integers(2, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(1, 2))
def test_padding_deletes_columns_of_the_matrix_of_the_larger_input(k, s, low, high, d):
    n = d * (k - 1) + 3
    kernel = draw((k, 1, 1))
    whole = np.asarray(ops.conv_matrix(kernel, n + low + high, stride=s, dilation=d))
    m = ops.conv_matrix(kernel, n, stride=s, dilation=d, padding=((low, high),))
    np.testing.assert_array_equal(m, whole[:, low : low + n])


@pytest.mark.parametrize(("s", "p", "d"), [(1, 0, 1), (2, 1, 1), (2, 0, 2)])
def test_separable_kernel_is_a_kronecker_product(s, p, d):
    options = {"stride": s, "padding": p, "dilation": d}
    u, v = draw((3, 1, 1)), draw((2, 1, 1), 1)
    m = ops.conv_matrix(u[:, None] * v[None], (5, 6), **options)
    rows, columns = ops.conv_matrix(u, 5, **options), ops.conv_matrix(v, 6, **options)
    np.testing.assert_allclose(m, np.kron(rows, columns), rtol=1e-6)


@pytest.mark.parametrize(("s", "p", "d", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (3, 1, 2, 1)])
def test_is_the_gradient_and_the_linear_transpose_of_conv(s, p, d, groups):
    options = {"stride": s, "padding": p, "dilation": d, "groups": groups}
    x, kernel = draw((2, 9, 8, 2)), draw((3, 2, 2 // groups, 4), 1)
    conv = lambda x: ops.conv(x, kernel, **options)
    y = draw(conv(x).shape, 2)
    back = ops.conv_transpose(y, kernel, output_size=(9, 8), **options)
    np.testing.assert_allclose(jax.vjp(conv, x)[1](y)[0], back, atol=1e-5)
    lax = functools.partial(
        jax.lax.conv_general_dilated,
        rhs=kernel,
        window_strides=(s, s),
        padding=((p, p), (p, p)),
        rhs_dilation=(d, d),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    np.testing.assert_allclose(jax.linear_transpose(lax, x)(y)[0], back, atol=1e-5)
    loss = lambda x, kernel: jnp.vdot(ops.conv(x, kernel, **options), y)
    dx, dk = jax.grad(loss, argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(dx, back, atol=1e-5)
    np.testing.assert_allclose(dk, ops.conv_kernel_gradient(x, y, (3, 2), **options), atol=2e-5)


@pytest.mark.parametrize(("s", "p"), [(1, 0), (2, 1)])
def test_derivatives_of_each_map_are_the_other_two(s, p):
    options = {"stride": s, "padding": p}
    x, kernel = draw((2, 8, 2)), draw((4, 2, 3), 1)
    conv = lambda x, k: ops.conv(x, k, **options)
    up = lambda y, k: ops.conv_transpose(y, k, output_size=8, **options)
    taps = lambda x, y: ops.conv_kernel_gradient(x, y, 4, **options)
    y = draw(conv(x, kernel).shape, 2)
    expected = {
        conv: ((x, kernel), y, (up(y, kernel), taps(x, y))),
        up: ((y, kernel), x, (conv(x, kernel), taps(x, y))),
        taps: ((x, y), kernel, (up(y, kernel), conv(x, kernel))),
    }
    for function, (arguments, cotangent, derivatives) in expected.items():
        for actual, derivative in zip(jax.vjp(function, *arguments)[1](cotangent), derivatives, strict=True):
            np.testing.assert_allclose(actual, derivative, atol=1e-5)


def test_forward_mode_is_refused():
    y, kernel = draw((1, 4, 2)), draw((3, 1, 2), 1)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda y: ops.conv_transpose(y, kernel), (y,), (y,))


def counts(k, s, d):
    """Taps per phase: how many t give d t = p (mod s)."""
    return [sum(d * t % s == p for t in range(k)) for p in range(s)]


@pytest.mark.parametrize(("s", "d"), list(itertools.product((1, 2, 3, 4), (1, 2, 3, 4))))
def test_coverage_is_even_where_the_stride_divides_the_kernel(s, d):
    for k in range(1, 10):
        stamps = 3 + 4 * d * k // s
        places = (s * np.arange(stamps)[:, None] + d * np.arange(k)).ravel()
        inside = np.bincount(places)[d * (k - 1) : s * stamps]  # the pixels that all their taps' stamps reach
        assert set(inside.tolist()) == set(counts(k, s, d))
        assert (len(set(inside.tolist())) == 1) == (k % s == 0 and math.gcd(d, s) == 1)


@pytest.mark.parametrize(("k", "s", "d"), [(3, 2, 1), (4, 2, 2), (4, 3, 2)])
def test_coverage_is_the_transpose_of_ones(k, s, d):
    x = ops.conv_transpose(np.ones((1, 9, 1), np.float32), np.ones((k, 1, 1), np.float32), stride=s, dilation=d)
    places = (s * np.arange(9)[:, None] + d * np.arange(k)).ravel()
    np.testing.assert_array_equal(x[0, :, 0], np.bincount(places, minlength=x.shape[1]))


@pytest.mark.parametrize(
    ("kernel", "values"),
    [((1, 5, 4, 0), (10, 10)), ((1, 2, 1), (4, 4)), ((1, 2, 3, 4), (8, 12)), ((1, 1, 1), (4, 2))],
)
def test_a_constant_stays_constant_where_every_phase_sums_alike(kernel, values):
    x = ops.conv_transpose(np.full((1, 6, 1), 2, np.float32), np.float32(kernel)[:, None, None], stride=2)
    np.testing.assert_array_equal(x[0, 2:-2, 0], np.resize(values, x.shape[1] - 4))
    assert values == tuple(2 * sum(kernel[phase::2]) for phase in (0, 1))


def test_random_taps_have_a_variance_by_coverage():
    kernels = draw((3, 1, 4000))  # from one channel to 4000 that stand for as many draws
    x = ops.conv_transpose(np.ones((1, 5, 1), np.float32), kernels.transpose(0, 2, 1), stride=2)
    np.testing.assert_allclose(np.var(x[0, 2:-2], axis=1), np.resize([2, 1], x.shape[1] - 4), rtol=0.1)


@pytest.mark.parametrize("factor", [(2, 2), (3, 2)])
def test_poolings_and_unpoolings_that_are_convolutions(factor):
    f, g = factor
    x, y = draw((2, 3 * f, 4 * g, 3)), draw((2, 3, 4, 3), 1)
    options = {"stride": factor, "groups": 3}
    ones, nail = np.ones((f, g, 1, 3), np.float32), np.ones((1, 1, 1, 3), np.float32)
    np.testing.assert_allclose(ops.avg_pool(x, factor), ops.conv(x, ones / (f * g), **options), atol=1e-5)
    np.testing.assert_array_equal(ops.nearest_unpool(y, factor), ops.conv_transpose(y, ones, **options))
    np.testing.assert_array_equal(x[:, ::f, ::g], ops.conv(x, nail, **options))
    up = ops.conv_transpose(y, nail, output_padding=(f - 1, g - 1), **options)
    np.testing.assert_array_equal(ops.bed_of_nails(y, factor), up)
    np.testing.assert_allclose(ops.avg_pool(ops.nearest_unpool(y, factor), factor), y, atol=1e-5)


PADDINGS = [((0, 0), (0, 0)), ((1, 0), (2, 1))]


@pytest.mark.parametrize(("k", "s", "d"), [(3, 1, 2), (4, 2, 1), (5, 3, 1)])
def test_lax_conv_transpose_in_these_terms(k, s, d):
    y, kernel = draw((2, 4, 5, 3)), draw((k, k, 2, 3), 1)
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    lax = functools.partial(jax.lax.conv_transpose, y, strides=(s, s), rhs_dilation=(d, d))
    ours = functools.partial(ops.conv_transpose, y, kernel, stride=s, dilation=d)
    for pads in PADDINGS:
        theirs = [(d * (k - 1) - low, d * (k - 1) - high) for low, high in pads]
        for there in (
            lax(flipped, padding=theirs),
            lax(kernel, padding=theirs, transpose_kernel=True),
            lax(kernel, padding=pads, transpose_kernel=True, use_consistent_padding=True),
        ):
            np.testing.assert_allclose(ours(padding=pads), there, atol=1e-5)
    same = lax(kernel, padding="SAME", transpose_kernel=True)
    np.testing.assert_allclose(ours(padding="same"), same, atol=1e-5)


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_flax_conv_transpose_in_these_terms(transpose_kernel):
    y = draw((2, 4, 5, 3))
    layer = nn.ConvTranspose(2, (3, 4), strides=(2, 2), transpose_kernel=transpose_kernel, use_bias=False)
    variables = layer.init(jax.random.key(0), y)
    kernel = variables["params"]["kernel"]
    if transpose_kernel:
        assert kernel.shape == (3, 4, 2, 3)
    else:
        assert kernel.shape == (3, 4, 3, 2)
        kernel = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    mine = ops.conv_transpose(y, kernel, stride=2, padding="same")
    np.testing.assert_allclose(mine, layer.apply(variables, y), atol=1e-5)


def test_pytorch_weight_is_the_kernel_of_the_convolution():
    """A ConvTranspose2d weight [I, O / g, h, w] is stored as the Conv2d weight of the convolution it transposes."""
    weight = draw((4, 1, 3, 2))  # from 4 channels to 2 in 2 groups
    kernel = weight.transpose(2, 3, 1, 0)
    y = draw((1, 3, 3, 4), 1)
    written = np.zeros((1, 2, 2 * 2 + 3, 2 * 2 + 2))
    for i, j, c in itertools.product(range(3), range(3), range(4)):
        written[0, c // 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2] += y[0, i, j, c] * weight[c, 0]
    x = ops.conv_transpose(y, kernel, stride=2, groups=2)
    np.testing.assert_allclose(np.moveaxis(x, -1, 1), written, atol=1e-5)
