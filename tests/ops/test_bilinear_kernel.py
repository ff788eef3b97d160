"""ops.bilinear_kernel: FCN's written filter, and its transposed convolution against ops.resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

_conv_transpose = jax.jit(ops.conv_transpose, static_argnames=("stride", "padding", "groups"))
FACTORS = [2, 3, 4, 8, 16, 32]


def enlarge(x, factor, groups=1):
    kernel = ops.bilinear_kernel(2 * factor - factor % 2, x.shape[-1], groups=groups)
    return np.asarray(_conv_transpose(x, kernel, stride=factor, padding=factor // 2, groups=groups))


def resized(x, factor):
    size = (x.shape[1] * factor, x.shape[2] * factor)
    return np.asarray(ops.resize(x, size, method="bilinear", align_corners=False))


@pytest.mark.parametrize(
    ("size", "tent"),
    [(1, [1]), (2, [0.5, 0.5]), (3, [0.5, 1, 0.5]), (4, [0.25, 0.75, 0.75, 0.25]), (5, np.array([1, 2, 3, 2, 1]) / 3)],
)
def test_written_filters(size, tent):
    kernel = ops.bilinear_kernel(size, 1)
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel[:, :, 0, 0], np.outer(tent, tent), rtol=1e-6)


def test_upsample_filt():
    """The authors' function, line by line."""
    for size in range(1, 70):
        factor = (size + 1) // 2
        center = factor - 1 if size % 2 == 1 else factor - 0.5
        og = np.ogrid[:size, :size]
        expected = (1 - abs(og[0] - center) / factor) * (1 - abs(og[1] - center) / factor)
        np.testing.assert_allclose(ops.bilinear_kernel(size, 1)[:, :, 0, 0], expected, rtol=1e-6)


def test_channels_do_not_mix():
    tent = ops.bilinear_kernel(4, 1)[:, :, 0, 0]
    for groups, shape in ((1, (4, 4, 6, 6)), (2, (4, 4, 3, 6)), (6, (4, 4, 1, 6))):
        kernel = ops.bilinear_kernel(4, 6, groups=groups)
        assert kernel.shape == shape
        for i in range(shape[2]):
            for o in range(6):
                np.testing.assert_array_equal(kernel[:, :, i, o], tent * (i == o % shape[2]))


@pytest.mark.parametrize("factor", FACTORS)
def test_transposed_convolution_is_the_resize_inside_a_border_of_half_a_pixel(factor):
    """Equal but in the outer factor // 2 output pixels, and different in all of those, for positive images."""
    x = np.random.default_rng(factor).uniform(1, 2, (1, 4, 5, 2)).astype(np.float32)
    y, expected, border = enlarge(x, factor), resized(x, factor), factor // 2
    assert y.shape == expected.shape
    inside = (slice(None), slice(border, -border), slice(border, -border))
    np.testing.assert_allclose(y[inside], expected[inside], rtol=1e-5)
    differs = np.abs(y - expected) > 1e-3
    differs[inside] = True
    assert np.all(differs)


@pytest.mark.parametrize("factor", FACTORS)
def test_zeros_outside_fade_the_border(factor):
    """Everywhere the convolution is the resize times 1 - d per axis, d input pixels outside the outer centres."""
    x = np.random.default_rng(factor).standard_normal((1, 4, 5, 2)).astype(np.float32)
    fades = []
    for n in x.shape[1:3]:
        s = (np.arange(factor * n) + 0.5) / factor - 0.5
        fades.append(1 - np.maximum(np.maximum(-s, s - (n - 1)), 0))
    np.testing.assert_allclose(
        enlarge(x, factor), resized(x, factor) * np.multiply.outer(*fades)[None, :, :, None], atol=1e-5
    )


def test_edge_repeated_by_hand_removes_the_border():
    """One more pixel of the edge on each side, and the convolution is the resize everywhere."""
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 2)).astype(np.float32)
    for factor in (2, 3, 8):
        wide = enlarge(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"), factor)
        np.testing.assert_allclose(wide[:, factor:-factor, factor:-factor], resized(x, factor), atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
def test_groups_give_the_same_images(factor):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    dense = enlarge(x, factor)
    for groups in (2, 6):
        np.testing.assert_allclose(enlarge(x, factor, groups), dense, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "size=0 with channels=3"),
        ((4, 0), {}, "size=4 with channels=0"),
        ((4.5, 3), {}, "size=4.5 with channels=3: expected two ints"),
        ((4, 6), {"groups": 4}, "groups=4 with 6 .*the nearest is"),
        ((4, 6), {"groups": 0}, "groups=0"),
    ],
)
def test_numbers_are_checked(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ops.bilinear_kernel(*arguments, **options)
