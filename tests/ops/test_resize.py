"""ops.resize against written rows, PyTorch's stored results, and its own traced form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops


def test_written_rows():
    """Doubling two pixels: outputs sit at -1/4, 1/4, 3/4, 5/4 pixels, or at thirds with the corners aligned."""
    np.testing.assert_allclose(
        ops.interpolation_matrix(4, 2, method="bilinear"), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )
    np.testing.assert_allclose(
        ops.interpolation_matrix(4, 2, method="bilinear", align_corners=True),
        [[1, 0], [2 / 3, 1 / 3], [1 / 3, 2 / 3], [0, 1]],
        atol=1e-7,
    )
    np.testing.assert_allclose(
        ops.interpolation_matrix(2, 4, method="bilinear", antialias=True),
        np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7,
        atol=1e-7,
    )
    np.testing.assert_array_equal(ops.interpolation_matrix(3, 2, method="nearest"), [[1, 0], [1, 0], [0, 1]])


def test_bicubic_reproduces_parabolas_with_half():
    """With a = -1/2 Keys' kernel is exact for quadratics (his equation 12), away from the edges."""
    x = np.arange(16.0)
    matrix = ops.interpolation_matrix(31, 16, method="bicubic", align_corners=True, a=-0.5)
    np.testing.assert_allclose((matrix @ (x * x))[4:-4], ((np.arange(31) / 2) ** 2)[4:-4], rtol=1e-5)


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(5, 9), (9, 5), (7, 7), (1, 4), (4, 1)])
def test_resize_is_the_two_matrices(method, sizes):
    x = np.random.default_rng(0).standard_normal((2, sizes[0], 6, 3), np.float32)
    rows = ops.interpolation_matrix(sizes[1], sizes[0], method=method)
    columns = ops.interpolation_matrix(10, 6, method=method)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    expected = np.einsum("oh,bhwc,pw->bopc", np.float64(rows), x, columns)
    np.testing.assert_allclose(ops.resize(x, (sizes[1], 10), method=method), expected, atol=1e-5)


def test_gradient_is_the_transpose():
    x, g = np.random.default_rng(0).standard_normal((2, 1, 12, 12, 3), np.float32)
    g = g[:, :7, :9]
    dx = jax.grad(lambda x: jnp.sum(g * ops.resize(x, (7, 9), method="bilinear")))(x)
    rows, columns = (ops.interpolation_matrix(m, 12, method="bilinear") for m in (7, 9))
    np.testing.assert_allclose(dx, np.einsum("oh,bopc,pw->bhwc", rows, g, columns), atol=1e-5)


def test_nearest_keeps_integers():
    label = np.random.default_rng(0).integers(0, 2**24 + 3, (1, 5, 7, 1), np.int32)
    out = ops.resize(label, (10, 14), method="nearest")
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out, label.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_padded_form_agrees_and_compiles_once(method, align_corners):
    if align_corners and method.startswith("nearest"):
        align_corners = False
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3), np.float32)
    options = {"method": method, "align_corners": align_corners}
    padded = jax.jit(lambda x, size: ops.resize_padded(x, size, (20, 24), **options))
    for size in [(20, 24), (11, 5), (1, 1), (6, 8), (3, 23)]:
        out = padded(x, jnp.array(size, jnp.int32))
        assert out.shape == (2, 20, 24, 3)
        assert np.all(np.isfinite(out))
        np.testing.assert_allclose(out[:, : size[0], : size[1]], ops.resize(x, size, **options), atol=2e-5)
    assert padded._cache_size() == 1


def test_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_interpolate.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_interpolate.npz")
    for case in about["cases"]:
        args, name = dict(case["args"]), case["name"]
        x, expected = arrays[f"{name}/x"], arrays[f"{name}/out"]
        factor = args.pop("scale_factor", None)
        scale = None if args.pop("recompute_scale_factor", False) else factor
        size = args.pop("size", expected.shape[2:])
        y = ops.resize(np.moveaxis(x, 1, -1), size, method=args.pop("mode"), scale=scale, **args)
        np.testing.assert_allclose(
            np.moveaxis(y, -1, 1), expected, rtol=1e-5, atol=case["outputs"]["out"]["atol"], err_msg=name
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "linear"}, "method='linear'"),
        ({"method": "nearest", "align_corners": True}, "align_corners"),
        ({"method": "nearest", "antialias": True}, "antialias"),
        ({"method": "bilinear", "size": (0, 4)}, r"size=\(0, 4\)"),
        ({"method": "bilinear", "size": (4, 4, 4)}, r"size=\(4, 4, 4\)"),
    ],
)
def test_static_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ops.resize(np.ones((1, 5, 6, 2), np.float32), **{"size": (4, 4)} | options)


def test_integers_cannot_be_blended():
    with pytest.raises(ValueError, match="dtype int32"):
        ops.resize(np.ones((1, 5, 6, 2), np.int32), (3, 3), method="bilinear")
