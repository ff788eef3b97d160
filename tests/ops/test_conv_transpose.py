"""The transposed convolution by five methods: the transpose of the written matrix, in values and derivatives."""

import functools
import itertools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax import ops
from segjax.ops.conv_transpose import METHODS


def written_matrix(kernel, size, stride, pads, dilation, groups):
    """M in float64, one output, one tap and one channel at a time: the definition."""
    window, inputs, features = kernel.shape[:-2], kernel.shape[-2], kernel.shape[-1]
    out = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, window, stride, pads, dilation, strict=True)
    ]
    m = np.zeros((*out, features, *size, inputs * groups))
    for place, tap in itertools.product(itertools.product(*map(range, out)), itertools.product(*map(range, window))):
        pixel = tuple(i * s + t * d - p[0] for i, s, t, d, p in zip(place, stride, tap, dilation, pads, strict=True))
        if all(0 <= r < n for r, n in zip(pixel, size, strict=True)):
            for o, c in itertools.product(range(features), range(inputs)):
                group = o // (features // groups)
                m[(*place, o, *pixel, group * inputs + c)] = kernel[(*tap, c, o)]
    return m.reshape(int(np.prod(out)) * features, -1), tuple(out)


@st.composite
def geometries(draw, largest=7):
    """(input size, kernel shape, options of conv) of one or two axes, every one with at least one output."""
    rank = draw(st.integers(1, 2))
    axes = []
    for _ in range(rank):
        k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        pads = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        least = max(d * (k - 1) + 1 - sum(pads), 1)
        axes.append((draw(st.integers(least, max(least, largest))), k, s, pads, d))
    size, window, stride, pads, dilation = zip(*axes, strict=True)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
    return size, (*window, inputs, outputs * groups), options


GEOMETRIES = [
    ((4, 4), (3, 3, 1, 1), {}),
    ((6, 8), (2, 2, 3, 4), {"stride": 2}),
    ((7, 9), (4, 4, 2, 3), {"stride": 2, "padding": 1}),
    ((8, 8), (3, 3, 2, 2), {"stride": 2, "padding": 1}),
    ((9, 8), (3, 3, 1, 4), {"stride": 2, "padding": 1, "groups": 4}),
    ((12, 16), (8, 8, 1, 3), {"stride": 4, "padding": 2, "groups": 3}),
    ((9, 7), (3, 2, 2, 6), {"stride": (3, 1), "padding": ((2, 0), (0, 1)), "dilation": (1, 2), "groups": 2}),
    ((9, 9), (2, 3, 2, 2), {"stride": 3, "dilation": (2, 3)}),
    ((7, 7), (1, 1, 2, 3), {"stride": 3}),
    ((5, 6), (2, 2, 1, 1), {"stride": (3, 4), "padding": ((0, 3), (3, 0))}),
    ((11,), (3, 2, 4), {"stride": 2, "padding": 1}),
    ((11,), (4, 1, 2), {"stride": 3, "padding": ((2, 1),), "dilation": 2, "groups": 2}),
]


def drawn(geometry, seed=0):
    """Kernel and cotangent of the convolution, the keywords of its transpose, and M with the size of its output."""
    size, shape, options = geometry
    rank = len(size)
    full = lambda name: tuple(np.broadcast_to(options.get(name, 1), rank).tolist())
    pads = options.get("padding", 0)
    pads = ((pads, pads),) * rank if isinstance(pads, int) else tuple(pads)
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape, np.float32)
    m, out = written_matrix(kernel, size, full("stride"), pads, full("dilation"), options.get("groups", 1))
    y = rng.standard_normal((2, *out, shape[-1]), np.float32)
    return kernel, y, {**options, "output_size": size}, m


def close(actual, y, m):
    """Within 1e-5 of y M, relative to what |M| and |y| could add up to."""
    rows = np.float64(y).reshape(len(y), -1)
    expected, scale = rows @ m, np.abs(rows) @ np.abs(m)
    actual = np.asarray(actual).reshape(len(y), -1)
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= 1e-5 * scale + 1e-30)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_is_the_transposed_written_matrix(geometry, method):
    kernel, y, options, m = drawn(geometry)
    close(jax.jit(functools.partial(ops.conv_transpose, method=method, **options))(y, kernel), y, m)


def check_methods(geometry):
    """M, the Jacobian of conv, and the five methods, in one compilation."""
    kernel, y, options, m = drawn(geometry)
    size, _, forward = geometry
    x = jnp.zeros((1, *size, kernel.shape[-2] * options["groups"]))

    @jax.jit
    def compute(y, kernel):
        jacobian = jax.jacobian(lambda x: ops.conv(x, kernel, **forward))(x).reshape(m.shape)
        dense = ops.conv_matrix(kernel, size, **forward)
        sparse = ops.conv_matrix(kernel, size, sparse=True, **forward).todense()
        methods = [ops.conv_transpose(y, kernel, method=method, **options) for method in METHODS]
        return (jacobian, dense, sparse), methods

    matrices, methods = compute(y, kernel)
    for matrix in matrices:
        np.testing.assert_array_equal(matrix, np.float32(m))
    for x in methods:
        close(x, y, m)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(geometries())
def test_five_methods_equal_the_jacobian_transposed(geometry):
    check_methods(geometry)


@pytest.mark.slow
@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(geometries(largest=11))
def test_five_methods_equal_the_jacobian_transposed_at_length(geometry):
    check_methods(geometry)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(geometries())
def test_adjoint_identity(geometry):
    kernel, y, options, m = drawn(geometry)
    size, _, forward = geometry
    x = np.random.default_rng(1).standard_normal((2, *size, kernel.shape[-2] * options["groups"]), np.float32)
    both = jax.jit(lambda x, y: (ops.conv(x, kernel, **forward), ops.conv_transpose(y, kernel, **options)))
    through, back = both(x, y)
    scale = np.sum(np.abs(y.reshape(2, -1)) @ np.abs(m) * np.abs(x.reshape(2, -1)))
    assert abs(np.vdot(np.float64(through), np.float64(y)) - np.vdot(np.float64(x), np.float64(back))) <= 1e-5 * scale


def check_derivatives(function, *arrays):
    """First and second derivatives in reverse mode, against differences in float64."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in arrays]
        check_grads(jax.jit(function), arrays, order=2, modes=("rev",), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("geometry", [GEOMETRIES[n] for n in (2, 4, 6, 11)], ids=str)
def test_first_and_second_derivatives(geometry, method):
    kernel, y, options, _ = drawn(geometry)
    check_derivatives(functools.partial(ops.conv_transpose, method=method, **options), y, kernel)


@hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
@hypothesis.given(geometries(largest=5))
def test_derivatives_of_random_geometries(geometry):
    kernel, y, options, _ = drawn(geometry)
    size, shape, forward = geometry
    x = np.random.default_rng(2).standard_normal((2, *size, shape[-2] * options["groups"]))
    check_derivatives(functools.partial(ops.conv_transpose, **options), y, kernel)
    check_derivatives(functools.partial(ops.conv_kernel_gradient, window=shape[:-2], **forward), x, y)
    check_derivatives(functools.partial(ops.conv, **forward), x, kernel)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_derivatives_are_the_convolution_and_its_kernel_gradient(geometry):
    kernel, y, options, m = drawn(geometry)
    size, shape, forward = geometry
    g = np.random.default_rng(2).standard_normal((2, *size, shape[-2] * options.get("groups", 1)), np.float32)
    _, pullback = jax.vjp(lambda y, k: ops.conv_transpose(y, k, **options), y, kernel)
    dy, dk = pullback(g)
    np.testing.assert_allclose(dy, ops.conv(g, kernel, **forward), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dk, ops.conv_kernel_gradient(g, y, shape[:-2], **forward), rtol=1e-5, atol=1e-5)
    # <conv(g, step), y> = <dk, step>, the definition of the kernel's gradient
    step = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    through = np.vdot(np.float64(ops.conv(g, step, **forward)), np.float64(y))
    np.testing.assert_allclose(np.vdot(np.float64(dk), np.float64(step)), through, rtol=1e-4, atol=1e-4)


def test_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_conv_transpose.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_conv_transpose.npz")
    for case in about["cases"]:
        args, name = dict(case["args"]), case["name"]
        args.pop("op")
        y, kernel = np.moveaxis(arrays[f"{name}/x"], 1, -1), np.moveaxis(arrays[f"{name}/weight"], (0, 1), (-1, -2))
        every = jax.jit(lambda y, k, args=args: [ops.conv_transpose(y, k, method=m, **args) for m in METHODS])
        for method, x in zip(METHODS, every(y, kernel), strict=True):
            x = np.moveaxis(x, -1, 1)
            if f"{name}/bias" in arrays:
                x = x + arrays[f"{name}/bias"].reshape(1, -1, *(1,) * (x.ndim - 2))
            atol = case["outputs"]["out"]["atol"]
            np.testing.assert_allclose(x, arrays[f"{name}/out"], rtol=1e-5, atol=atol, err_msg=f"{name} {method}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shape, groups, stride", [((33, 4, 8), 1, 1), ((33, 1, 4), 4, 1), ((33, 1, 4), 4, 2), ((9, 2, 8), 1, 2)]
)
def test_bfloat16_is_rounded_once(shape, groups, stride, method):
    """Positive numbers: a sum kept in bfloat16 falls behind by more than half a unit in its last place, 2^-9."""
    rng = np.random.default_rng(0)
    pad, size = shape[0] // 2, 40
    kernel = jnp.asarray(np.abs(rng.standard_normal(shape)), jnp.bfloat16)
    m, out = written_matrix(np.float64(kernel), (size,), (stride,), ((pad, pad),), (1,), groups)
    y = jnp.asarray(np.abs(rng.standard_normal((2, *out, shape[-1]))), jnp.bfloat16)
    options = {"stride": stride, "padding": pad, "groups": groups, "output_size": size, "method": method}
    x = ops.conv_transpose(y, kernel, **options)
    assert x.dtype == jnp.bfloat16
    expected = (np.float64(y).reshape(2, -1) @ m).reshape(x.shape)
    assert np.all(np.abs(np.float64(x) - expected) <= 1.01 * 2**-8 * expected)


def test_kernel_gradients_by_groups():
    """Groups of several channels, and several outputs of a single channel, without XLA's k x k x Cin x Cout array."""
    rng = np.random.default_rng(0)
    for groups, inputs, outputs in ((4, 2, 3), (6, 1, 2), (3, 2, 1)):
        x = rng.standard_normal((2, 9, 8, groups * inputs), np.float32)
        options = {"stride": (2, 1), "padding": 1, "groups": groups}
        kernel = rng.standard_normal((3, 3, inputs, groups * outputs), np.float32)
        y = rng.standard_normal(ops.conv(x, kernel, **options).shape, np.float32)
        gradient = jax.jit(functools.partial(ops.conv_kernel_gradient, window=3, **options))
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
        lax = functools.partial(
            jax.lax.conv_general_dilated, x, window_strides=(2, 1), padding=((1, 1), (1, 1)), **numbers
        )
        np.testing.assert_allclose(gradient(x, y), jax.vjp(lax, kernel)[1](y)[0], atol=2e-4)
        assert "batch_group_count" not in gradient.lower(x, y).compile().as_text()


def test_depthwise_kernels_of_many_taps():
    """FCN's 32x32 taps, channel by channel and as a dense kernel with zeros, gradients too."""
    y = np.random.default_rng(0).standard_normal((1, 5, 4, 3), np.float32)
    kernels = [ops.bilinear_kernel(32, 3, groups=groups) for groups in (3, 1)]

    def compute(y, kernel, groups):
        up = lambda y, kernel: ops.conv_transpose(y, kernel, stride=16, padding=8, groups=groups)
        loss = lambda y, kernel: jnp.sum(up(y, kernel) ** 2)
        return up(y, kernel), *jax.grad(loss, argnums=(0, 1))(y, kernel)

    x, dy, dk = jax.jit(compute, static_argnums=2)(y, kernels[0], 3)
    dense_x, dense_dy, dense_dk = jax.jit(compute, static_argnums=2)(y, kernels[1], 1)
    np.testing.assert_allclose(x, dense_x, atol=1e-5)
    np.testing.assert_allclose(dy, dense_dy, rtol=1e-4, atol=1e-3)
    own = jnp.diagonal(dense_dk, axis1=2, axis2=3)[:, :, None]
    np.testing.assert_allclose(dk, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["stamp", "subpixel"])
@pytest.mark.parametrize(
    "size, channels, features, window, stride, padding",
    [((30, 30), 128, 128, 4, 2, 1), ((30, 30), 128, 128, 3, 2, 1), ((8, 8), 21, 21, 64, 32, 16)],
)
def test_temporary_memory_is_bounded(size, channels, features, window, stride, padding, method):
    """At most twice the output, plus input and kernel."""
    transpose = functools.partial(ops.conv_transpose, stride=stride, padding=padding, method=method)
    y = jax.ShapeDtypeStruct((4, *size, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((window, window, features, channels), jnp.float32)
    x = jax.eval_shape(transpose, y, kernel)
    temporary = jax.jit(transpose).lower(y, kernel).compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 4 * (2 * x.size + y.size + kernel.size)


def test_sparse_matrix_of_a_large_image_is_small():
    """3x3 taps over 512x512 pixels: nine numbers a row, 28 MB where the dense matrix would take 275 GB."""
    kernel = jax.ShapeDtypeStruct((3, 3, 1, 1), jnp.float32)
    make = jax.jit(functools.partial(ops.conv_matrix, input_size=512, padding=1, sparse=True))
    memory = make.lower(kernel).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 100e6


def test_same_padding_and_output_sizes():
    y, kernel = np.ones((1, 4, 5, 3), np.float32), np.ones((3, 4, 2, 3), np.float32)
    assert ops.conv_transpose(y, kernel, padding="same", stride=(2, 3)).shape == (1, 8, 15, 2)
    for size in ((7, 13), (8, 15)):
        x = ops.conv_transpose(y, kernel, padding="same", stride=(2, 3), output_size=size)
        assert x.shape == (1, *size, 2)
        assert ops.conv(x, kernel, padding="same", stride=(2, 3)).shape == y.shape
    assert ops.conv_transpose(y, kernel, padding="valid").shape == (1, 6, 8, 2)
    a = ops.conv_transpose(y, kernel, stride=2, padding=1, output_padding=(1, 0))
    np.testing.assert_array_equal(a, ops.conv_transpose(y, kernel, stride=2, padding=1, output_size=(8, 10)))


def test_empty_batch_and_vmap():
    y, kernel = np.ones((0, 4, 5, 3), np.float32), np.ones((2, 2, 4, 3), np.float32)
    for method in METHODS:
        assert ops.conv_transpose(y, kernel, stride=2, method=method).shape == (0, 8, 10, 4)
    kernels = np.random.default_rng(0).standard_normal((3, 2, 2, 4, 3), np.float32)
    y = np.random.default_rng(1).standard_normal((2, 4, 5, 3), np.float32)
    each = jax.vmap(lambda k: ops.conv_transpose(y, k, stride=2))(kernels)
    np.testing.assert_allclose(each[1], ops.conv_transpose(y, kernels[1], stride=2), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 2, "output_padding": 2}, r"output_padding=\(2, 2\) with stride=\(2, 2\).*such as \(1, 1\)"),
        ({"dilation": 2, "output_padding": 1}, r"such as \(0, 0\)"),
        ({"stride": 2, "output_size": (13, 9)}, "from 10 to 11 pixels on axis 0; the nearest valid is 11"),
        ({"stride": 2, "output_size": (11, 7)}, "from 10 to 11 pixels on axis 1; the nearest valid is 10"),
        ({"stride": 2, "output_size": 10, "output_padding": 1}, "one of the two"),
        ({"padding": 4}, "give -2 pixels on axis 0.*as 3 less padding can give"),
        ({"padding": 3, "stride": 2, "output_size": 1}, "output_size=.*nearest valid is 4"),
        ({"padding": 9, "stride": 2, "output_size": 1}, "give -7 pixels on axis 0.*as 8 less padding"),
        ({"padding": 5, "stride": 2}, "give 0 pixels on axis 0.*as output_padding=1 gives"),
        ({"groups": 4}, "groups=4 with 6 .*nearest is 3"),
        ({"groups": 2.0}, "groups=2.0: expected an int"),
        ({"stride": np.array([2, 0])}, r"stride=array\(\[2, 0\]\)"),
        ({"method": "stamps"}, "expected one of auto, matrix, stamp"),
        ({"padding": "same", "output_padding": 1}, "output_size"),
        ({"stride": 0}, "stride=0"),
        ({"padding": -1}, "padding=-1"),
    ],
)
def test_wrong_arguments_are_told_with_the_nearest_valid_choice(options, message):
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose(np.ones((1, 5, 5, 6), np.float32), np.ones((2, 2, 2, 6), np.float32), **options)


@pytest.mark.parametrize(
    ("y", "kernel", "message"),
    [
        ((1, 5, 5, 4), (2, 2, 2, 6), "expected 6 channels in y"),
        ((1, 5, 6), (2, 2, 2, 6), r"expected \[B, W, C\]"),
        ((1, 0, 5, 6), (2, 2, 2, 6), "at least one per axis"),
    ],
)
def test_wrong_shapes_are_told(y, kernel, message):
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose(np.ones(y, np.float32), np.ones(kernel, np.float32))
    with pytest.raises(ValueError, match="one floating dtype"):
        ops.conv_transpose(jnp.ones((1, 5, 5, 6), jnp.int32), jnp.ones((2, 2, 2, 6), jnp.int32))
    with pytest.raises(ValueError, match="at least one tap"):
        ops.conv_transpose(jnp.ones((1, 5, 5, 6)), jnp.ones((0, 2, 2, 6)))
    with pytest.raises(ValueError, match="3 input and 6 output channels: expected a divisor; the nearest is 1"):
        ops.conv_kernel_gradient(jnp.ones((1, 5, 5, 3)), jnp.ones((1, 5, 5, 6)), 1, groups=2)
    with pytest.raises(ValueError, match="bfloat16"):
        ops.conv_transpose(jnp.ones((1, 5, 5, 6), jnp.bfloat16), np.ones((2, 2, 2, 6), np.float32))
