"""ops.resize against the written formulas in NumPy float64, PyTorch's stored results, and its own traced form."""

import functools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from segjax import ops
from segjax.ops.separable import apply_matrices

settings = hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
RESOLUTION = {"float64": 2e-15, "float32": 4e-7, "bfloat16": 2**-8, "float16": 2**-11}


def keys(d, a):
    """Keys' cubic kernel at distance d."""
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def written_matrix(m, n, method, align_corners=False, antialias=False, scale=None, a=None):
    """The formulas of `interpolation_matrix`'s docstring, entry by entry."""
    ratio = 1 / scale if scale else n / m
    if align_corners:
        ratio = (n - 1) / (m - 1) if m > 1 else 0.0
    if method == "bilinear":
        weight = lambda d: np.maximum(1 - d, 0)
    else:
        weight = lambda d: keys(d, (-0.5 if antialias else -0.75) if a is None else a)
    matrix = np.zeros((m, n))
    for i in range(m):
        if antialias:
            row = weight(np.abs(np.arange(n) + 0.5 - (i + 0.5) * ratio) / max(ratio, 1))
            matrix[i] = row / row.sum()
        else:
            s = i * ratio if align_corners else (i + 0.5) * ratio - 0.5
            for j in range(int(np.floor(s)) - 2, int(np.floor(s)) + 4):
                matrix[i, np.clip(j, 0, n - 1)] += weight(np.abs(s - j))
    return matrix


@st.composite
def axes(draw, largest=40):
    """(m, n, options) of one axis and a method with weights."""
    m, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    options = {
        "method": draw(st.sampled_from(["bilinear", "bicubic"])),
        "align_corners": draw(st.booleans()),
        "antialias": draw(st.booleans()),
    }
    if options["method"] == "bicubic":
        options["a"] = draw(st.sampled_from([None, -0.5, -0.75]))
    if not options["align_corners"] and not options["antialias"]:
        options["scale"] = draw(st.sampled_from([None, m / n * 1.01, (m + 0.5) / n]))
    return m, n, options


def images(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@settings
@hypothesis.given(axes())
def test_matrix_is_the_written_one(case):
    m, n, options = case
    expected = written_matrix(m, n, **options)
    for dtype, atol in ((np.float64, 1e-12), (np.float32, 2e-5)):  # float32 coordinates: 40 pixels to 4e-6
        matrix = ops.interpolation_matrix(m, n, dtype=dtype, **options)
        assert matrix.dtype == dtype
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=atol)
        np.testing.assert_allclose(matrix, expected, atol=atol)


@settings
@hypothesis.given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["nearest", "nearest-exact"]))
def test_nearest_copies_the_pixel_below_the_place(m, n, method):
    twice = 2 * np.arange(m) + (method == "nearest-exact")  # the place is twice n / 2 m
    for dtype in (np.float32, np.float64):
        matrix = ops.interpolation_matrix(m, n, method=method, dtype=dtype)
        assert np.all(matrix.sum(axis=1) == 1) and np.all(matrix.max(axis=1) == 1)
        on_edge = (twice * n) % (2 * m) == 0  # where float32, torch's choice, may fall short of an integer
        short = twice * n // (2 * m) - matrix.argmax(axis=1)
        assert np.all((short == 0) | (on_edge & (short == 1)))


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
    np.testing.assert_array_equal(ops.interpolation_matrix(2, 5, method="nearest-exact").argmax(axis=1), [1, 3])
    np.testing.assert_array_equal(ops.interpolation_matrix(2, 5, method="nearest").argmax(axis=1), [0, 2])
    np.testing.assert_allclose(
        ops.interpolation_matrix(2, 4, method="bicubic"), np.array([[16, 19, -3, 0], [0, -3, 19, 16]]) / 32, atol=1e-7
    )


@pytest.mark.parametrize(("a", "exact"), [(-0.5, True), (-0.75, False)])
def test_bicubic_reproduces_parabolas_with_half(a, exact):
    """With a = -1/2 Keys' kernel is exact for quadratics (his section III), away from the edges; no other a is."""
    place = np.arange(64) / 4 - 3 / 8
    matrix = ops.interpolation_matrix(64, 16, method="bicubic", a=a, dtype=np.float64)
    error = np.abs(matrix @ np.arange(16.0) ** 2 - place**2)[8:-8]
    assert error.max() < 1e-12 if exact else error.min() > 0.01


def test_bicubic_takes_torchs_parameter():
    """torch.nn.functional.interpolate of 1..8 to 3 pixels, without and with antialias; an explicit `a` is kept."""
    x = np.arange(1.0, 9.0)
    row = lambda **options: ops.interpolation_matrix(3, 8, method="bicubic", dtype=np.float64, **options) @ x
    np.testing.assert_allclose(row(antialias=True), [1.8964650199674602, 4.5, 7.10353498003254], rtol=1e-12)
    np.testing.assert_allclose(row(antialias=True, a=-0.5), row(antialias=True), rtol=0)
    np.testing.assert_array_equal(row(), row(a=-0.75))
    assert np.abs(row(antialias=True, a=-0.75) - row(antialias=True)).max() > 0.01


@settings
@hypothesis.given(
    axes(24), axes(24), st.sampled_from(["float64", "float32", "bfloat16", "float16"]), st.integers(0, 99)
)
def test_resize_and_gradient_are_the_two_matrices(rows, columns, dtype, seed):
    """y = A_h x A_w' and dx = A_h' g A_w, within the dtype's resolution of the sums of absolute values."""
    options = {k: v for k, v in rows[2].items() if k != "scale"}
    matrices = [written_matrix(m, n, **options) for m, n, _ in (rows, columns)]
    host = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = images((2, rows[1], columns[1], 3), host, seed)
    g = images((2, rows[0], columns[0], 3), host, seed + 100)
    with jax.enable_x64(True):
        y, vjp = jax.vjp(lambda x: ops.resize(x, g.shape[1:3], **options), jnp.asarray(x))
        dx = vjp(jnp.asarray(g))[0]
    assert y.dtype == dx.dtype == host
    for out, image, (a, b) in ((y, x, matrices), (dx, g, [matrix.T for matrix in matrices])):
        expected, size = (
            np.einsum("oh,bhwc,pw->bopc", f(a), f(np.float64(image)), f(b)) for f in (lambda v: v, np.abs)
        )
        # Coordinates round to the sizes' resolution, which moves weights by up to that: 64 ulps of 24 pixels.
        coordinate = 64 * (2e-15 if dtype == "float64" else 2e-7)
        bound = (RESOLUTION[dtype] * np.abs(expected) if dtype in ("bfloat16", "float16") else 0) + coordinate * (
            1 + size
        )
        assert np.all(np.abs(np.float64(out) - expected) <= bound)


SHAPES = [  # (input, output), by entries per row of the matrices and their transposes
    ((6, 5), (12, 10)),  # 2, 4: one loop
    ((6, 7), (24, 28)),  # 2, 8: the second axis in parts
    ((3, 5), (33, 55)),  # 2, 22: two loops
    ((3, 2), (120, 80)),  # 2, 80: dense products
    ((40, 6), (10, 24)),  # one axis shrinks
    ((6, 24), (24, 10)),
    ((5, 7), (5, 11)),  # one axis stays
    ((1, 4), (7, 1)),
    ((9, 1), (1, 5)),
]


@pytest.mark.parametrize(("size", "out"), SHAPES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
def test_sums_of_gathers_equal_the_dense_products(size, out, method):
    """The CPU's form against the plain one, with first and second derivatives."""
    x, g = images((2, *size, 3)), images((2, *out, 3), seed=1)
    matrices = [jnp.asarray(ops.interpolation_matrix(m, n, method=method)) for m, n in zip(out, size, strict=True)]
    forms = (lambda x: ops.resize(x, out, method=method)), (lambda x: apply_matrices(x, *matrices))

    def derivatives(form, x):
        loss = lambda x: jnp.sum(g * form(x) ** 2)
        return form(x), jax.grad(loss)(x), jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(x)

    results = (jax.jit(functools.partial(derivatives, form))(x) for form in forms)
    for fast, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=2e-6 * np.abs(plain).max())


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_second_gradient(method):
    with jax.enable_x64(True):
        x = jnp.asarray(images((1, 4, 5, 2), np.float64))
        check_grads(lambda x: jnp.sin(ops.resize(x, (9, 20), method=method)), (x,), 2, modes=["rev"])


def test_batches_map_and_shard():
    x = images((8, 5, 6, 3))
    form = jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(ops.resize(x, (20, 24), method="bilinear")))))
    value, gradient = form(x)
    values, gradients = jax.vmap(form)(x[:, None])
    np.testing.assert_allclose(np.sum(values), value, rtol=1e-5)
    np.testing.assert_allclose(gradients[:, 0], gradient, atol=1e-5)
    shards = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    value_of_shards, gradient_of_shards = form(jax.device_put(x, shards))
    np.testing.assert_allclose(value_of_shards, value, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_shards, gradient, atol=1e-5)
    assert gradient_of_shards.sharding.is_equivalent_to(shards, 4)


def test_cpu_gradient_scatters_nothing_and_keeps_memory():
    """Autodiff's way through a gather is a scatter, 10 to 50 times slower than the transposed sum of gathers."""
    x, g = images((2, 16, 16, 32)), images((2, 64, 64, 32))
    for method in ("nearest", "bilinear"):
        gradient = jax.jit(lambda x, g, m=method: jax.vjp(lambda x: ops.resize(x, (64, 64), method=m), x)[1](g))
        compiled = gradient.lower(x, g).compile()
        assert " scatter(" not in compiled.as_text()
        assert compiled.memory_analysis().temp_size_in_bytes <= g.nbytes / 4 + 4096  # the image enlarged on one axis


def test_float64_coordinates_and_float16_sums():
    """Far from the origin float32 coordinates are off by 1e-5 pixels; half floats are rounded once."""
    x = np.arange(3000.0)[None, None, :, None]
    with jax.enable_x64(True):
        y = ops.resize(jnp.asarray(x), (1, 7001), method="bilinear", align_corners=True)
    np.testing.assert_allclose(y[0, 0, :, 0], np.arange(7001) * (2999 / 7000), rtol=1e-14)
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(images((1, 6, 7, 2)), dtype)
        y = ops.resize(x, (11, 9), method="bicubic")
        np.testing.assert_array_equal(y, ops.resize(x.astype(jnp.float32), (11, 9), method="bicubic").astype(dtype))


def test_nearest_keeps_values():
    label = np.random.default_rng(0).integers(0, 2**24 + 3, (1, 5, 7, 1), np.int32)
    out = ops.resize(label, (10, 14), method="nearest")
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out, label.repeat(2, axis=1).repeat(2, axis=2))
    x = images((1, 4, 4, 1))
    x[0, 1, 2], x[0, 3, 0] = np.inf, np.nan
    out = ops.resize(x, (2, 8), method="nearest-exact")
    np.testing.assert_array_equal(out, x[:, 1::2].repeat(2, axis=2))
    dx = jax.grad(lambda x: jnp.sum(ops.resize(x, (8, 12), method="nearest")))(x)
    np.testing.assert_array_equal(dx, np.full_like(x, 6))


def test_an_infinite_pixel_touches_only_its_neighbours():
    x = np.ones((1, 8, 8, 1), np.float32)
    x[0, 0, 4] = np.inf
    for method, reach in (("bilinear", 1), ("bicubic", 2)):
        spoilt = ~np.isfinite(ops.resize(x, (16, 16), method=method))[0, :, :, 0]
        assert spoilt.any()
        for axis, pixel in ((1, 0), (0, 4)):
            places = np.flatnonzero(spoilt.any(axis)) / 2 - 0.25
            assert np.all(np.abs(places - pixel) < reach + 0.5)


def test_no_images():
    assert ops.resize(np.ones((0, 4, 5, 3), np.float32), (8, 9), method="bilinear").shape == (0, 8, 9, 3)


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_padded_form_agrees_and_compiles_once(method, align_corners):
    if align_corners and method.startswith("nearest"):
        align_corners = False
    x = images((2, 6, 8, 3))
    options = {"method": method, "align_corners": align_corners}
    padded = jax.jit(lambda x, size: ops.resize_padded(x, size, (20, 24), **options))
    for size in [(20, 24), (11, 5), (1, 1), (6, 8), (3, 23)]:
        out = padded(x, jnp.array(size, jnp.int32))
        assert out.shape == (2, 20, 24, 3)
        assert np.all(np.isfinite(out))
        np.testing.assert_allclose(out[:, : size[0], : size[1]], ops.resize(x, size, **options), atol=2e-5)
    assert padded._cache_size() == 1


def test_padded_form_in_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(images((1, 6, 8, 3), np.float64))
        out = ops.resize_padded(x, jnp.array([11, 5]), (16, 16))
        np.testing.assert_allclose(out[:, :11, :5], ops.resize(x, (11, 5), method="bilinear"), atol=1e-14)


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
        ({"method": "bilinear", "size": (4.5, 4)}, r"size=\(4.5, 4\)"),
        ({"method": "bilinear", "scale": -2.0}, "scale=-2.0"),
        ({"method": "bilinear", "scale": (1.0, 1.0, 1.0)}, "scale=.*or 2 of them"),
        ({"method": "nearest", "scale": 0}, "scale=0: expected a finite factor > 0"),
        ({"method": "nearest", "scale": (1.0, -1.0)}, r"scale=\(1.0, -1.0\): expected"),
        ({"method": "bilinear", "scale": "ab"}, "scale='ab': expected"),
        ({"method": "bicubic", "a": float("nan")}, "a=nan"),
        ({"method": "bilinear", "a": -0.5}, "a=-0.5 with method='bilinear': expected None"),
        ({"method": "nearest", "a": -0.5}, "a=-0.5 with method='nearest': expected None"),
    ],
)
def test_static_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ops.resize(np.ones((1, 5, 6, 2), np.float32), **{"size": (4, 4)} | options)


def test_scales_of_numpy():
    x = images((1, 5, 6, 2))
    expected = ops.resize(x, (9, 17), method="bilinear", scale=(2.0, 3.0))
    np.testing.assert_array_equal(ops.resize(x, (9, 17), method="bilinear", scale=np.array([2, 3])), expected)


def test_arrays_are_checked():
    with pytest.raises(ValueError, match="dtype int32"):
        ops.resize(np.ones((1, 5, 6, 2), np.int32), (3, 3), method="bilinear")
    for shape in [(5, 6, 2), (1, 0, 6, 2)]:
        for call in (ops.resize, lambda x, size, method: ops.resize_padded(x, np.array(size), size, method=method)):
            with pytest.raises(ValueError, match=r"shape \("):
                call(np.ones(shape, np.float32), (3, 3), method="bilinear")
