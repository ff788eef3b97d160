"""ops.conv against its written sum, against PyTorch's stored results, and its errors."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops


def written_sum(x, kernel, stride, pads, dilation, groups):
    """The sum of the docstring, one output pixel and one tap at a time, in float64."""
    spatial, window = x.shape[1:-1], kernel.shape[:-2]
    padded = np.pad(np.float64(x), ((0, 0), *pads, (0, 0)))
    out = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(spatial, window, stride, pads, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], *out, kernel.shape[-1]))
    inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    for place in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, window)):
            at = tuple(i * s + k * d for i, s, k, d in zip(place, stride, tap, dilation, strict=True))
            pixel = padded[(slice(None), *at)]
            for g in range(groups):
                read, write = slice(g * inputs, (g + 1) * inputs), slice(g * outputs, (g + 1) * outputs)
                y[(slice(None), *place, write)] += pixel[:, read] @ np.float64(kernel)[(*tap, slice(None), write)]
    return y


# size, window, Cin, Cout, stride, pads, dilation, groups
GEOMETRIES = [
    ((7, 9), (3, 3), 4, 5, (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((8, 7), (3, 2), 4, 6, (2, 3), ((0, 2), (1, 0)), (1, 2), 2),
    ((9, 8), (3, 3), 6, 6, (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    ((9, 8), (3, 3), 6, 6, (2, 2), ((1, 1), (1, 1)), (1, 1), 6),
    ((8, 11), (3, 3), 5, 5, (1, 1), ((4, 4), (4, 4)), (4, 4), 5),
    ((5, 6), (3, 5), 4, 4, (2, 1), ((3, 0), (0, 4)), (1, 1), 4),
    ((7, 6), (3, 3), 3, 6, (1, 1), ((1, 1), (1, 1)), (2, 1), 3),
    ((5, 6), (1, 1), 4, 7, (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((5, 6), (1, 1), 4, 7, (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    ((7, 6), (1, 1), 4, 3, (2, 3), ((1, 0), (0, 2)), (1, 1), 1),
    ((12, 13), (7, 7), 3, 4, (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((3, 4), (3, 4), 5, 6, (2, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((11,), (4,), 6, 4, (3,), ((2, 1),), (2,), 2),
    ((11,), (3,), 5, 5, (2,), ((1, 1),), (1,), 5),
    ((6,), (1,), 3, 4, (1,), ((0, 0),), (1,), 1),
]


def draw(geometry, seed=0):
    size, window, cin, cout, stride, pads, dilation, groups = geometry
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *size, cin), np.float32)
    kernel = rng.standard_normal((*window, cin // groups, cout), np.float32)
    return x, kernel, {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_is_the_written_sum(geometry):
    x, kernel, options = draw(geometry)
    expected = written_sum(x, kernel, options["stride"], options["padding"], options["dilation"], options["groups"])
    np.testing.assert_allclose(ops.conv(x, kernel, **options), expected, atol=2e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients_are_those_of_the_written_sum(geometry):
    """The sum is linear in x and in the kernel, so <g, conv(x, k)> gives each gradient entry exactly."""
    x, kernel, options = draw(geometry)
    arguments = (options["stride"], options["padding"], options["dilation"], options["groups"])
    g = np.random.default_rng(1).standard_normal(written_sum(x, kernel, *arguments).shape)
    dx, dk = jax.jit(jax.grad(lambda x, k: jnp.sum(ops.conv(x, k, **options) * g), argnums=(0, 1)))(x, kernel)
    rng = np.random.default_rng(2)
    for _ in range(4):
        x_step, k_step = rng.standard_normal(x.shape), rng.standard_normal(kernel.shape)
        np.testing.assert_allclose(np.sum(dx * x_step), np.sum(g * written_sum(x_step, kernel, *arguments)), atol=2e-3)
        np.testing.assert_allclose(np.sum(dk * k_step), np.sum(g * written_sum(x, k_step, *arguments)), atol=2e-3)


def test_same_and_valid_padding():
    x, kernel = np.ones((1, 7, 8, 2), np.float32), np.ones((4, 3, 2, 3), np.float32)
    assert ops.conv(x, kernel, padding="same").shape == (1, 7, 8, 3)
    assert ops.conv(x, kernel, padding="same", stride=(3, 2)).shape == (1, 3, 4, 3)
    np.testing.assert_array_equal(ops.conv(x, kernel, padding="same"), ops.conv(x, kernel, padding=((1, 2), (1, 1))))
    np.testing.assert_array_equal(ops.conv(x, kernel, padding="valid"), ops.conv(x, kernel, padding=0))


def test_empty_batch():
    assert ops.conv(np.ones((0, 7, 8, 2), np.float32), np.ones((3, 3, 2, 4), np.float32), padding=1).shape == (
        0,
        7,
        8,
        4,
    )


def test_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_conv.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_conv.npz")
    for case in about["cases"]:
        read = lambda key, name=case["name"]: arrays[f"{name}/{key}"]
        options = {k: v for k, v in case["args"].items() if k != "op"}
        y = ops.conv(np.moveaxis(read("x"), 1, -1), np.moveaxis(read("weight"), (0, 1), (-1, -2)), **options)
        if "bias" in case["inputs"]:
            y = y + read("bias").reshape((1,) * (y.ndim - 1) + (-1,))
        np.testing.assert_allclose(
            np.moveaxis(y, -1, 1), read("out"), rtol=1e-5, atol=case["outputs"]["out"]["atol"], err_msg=case["name"]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0"),
        ({"stride": (1, 2, 3)}, r"stride=\(1, 2, 3\)"),
        ({"dilation": -1}, "dilation=-1"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": "full"}, "padding='full'"),
        ({"padding": ((1, 1),)}, "padding="),
        ({"groups": 2}, "groups=2"),
        ({"groups": 0}, "groups=0"),
        ({"dilation": 9}, "spans 19 pixels"),
    ],
)
def test_static_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ops.conv(np.ones((1, 7, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32), **options)


def test_ranks_are_checked():
    with pytest.raises(ValueError, match=r"\(1, 7, 8, 3\) with kernel \(3, 3, 4\)"):
        ops.conv(np.ones((1, 7, 8, 3), np.float32), np.ones((3, 3, 4), np.float32))
