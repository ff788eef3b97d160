"""Unpooling: what is written where, each statement about an exact adjoint, and PyTorch's stored results."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from segjax import ops
from segjax.ops import unpool

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def written(y, indices, size):
    """x[b, index, c] = y, value by value; indices outside the image are dropped."""
    x = np.zeros((y.shape[0], size[0] * size[1], y.shape[3]), y.dtype)
    for b, i, j, c in np.ndindex(*y.shape):
        if 0 <= indices[b, i, j, c] < x.shape[1]:
            x[b, indices[b, i, j, c], c] = y[b, i, j, c]
    return x.reshape(y.shape[0], *size, y.shape[3])


def assert_adjoint(forward, backward, x, y):
    """<A x, y> = <x, B y> for these, and B is A transposed by jax, as are their matrices."""
    np.testing.assert_allclose(np.vdot(forward(x), y), np.vdot(x, backward(y)), rtol=1e-4)
    np.testing.assert_allclose(backward(y), jax.vjp(forward, x)[1](y)[0], atol=1e-5)
    a = jax.jit(jax.jacrev(forward))(x).reshape(y.size, x.size)
    b = jax.jit(jax.jacrev(backward))(y).reshape(x.size, y.size)
    np.testing.assert_allclose(b, a.T, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 3, (2, 3)])
def test_bed_of_nails_is_the_adjoint_of_subsampling(factor):
    f, g = (factor, factor) if isinstance(factor, int) else factor
    y = normal(2, 3, 2, 2)
    nails = functools.partial(ops.bed_of_nails, factor=factor)
    assert_adjoint(lambda x: x[:, ::f, ::g], nails, normal(2, 3 * f, 2 * g, 2), y)
    assert np.count_nonzero(nails(y)) == y.size


@pytest.mark.parametrize("factor", [1, 2, 3, (2, 3)])
def test_nearest_unpool_is_the_adjoint_of_summing_cells(factor):
    f, g = (factor, factor) if isinstance(factor, int) else factor
    x, y = normal(2, 3 * f, 2 * g, 2), normal(2, 3, 2, 2)
    repeat = functools.partial(ops.nearest_unpool, factor=factor)
    sums = lambda x: x.reshape(2, 3, f, 2, g, 2).sum((2, 4))
    assert_adjoint(sums, repeat, x, y)
    np.testing.assert_allclose(f * g * ops.avg_pool(x, (f, g)), sums(x), atol=1e-5)
    np.testing.assert_allclose(jax.vjp(lambda x: f * g * ops.avg_pool(x, (f, g)), x)[1](y)[0], repeat(y), atol=1e-5)
    np.testing.assert_array_equal(repeat(y), y.repeat(f, 1).repeat(g, 2))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((6, 8), {"window": 2}),
        ((7, 9), {"window": 2}),
        ((7, 9), {"window": 2, "ceil_mode": True}),
        ((7, 8), {"window": 3}),
        ((9, 11), {"window": 2, "stride": 3, "padding": 1}),
    ],
)
def test_max_unpool_is_the_adjoint_where_no_windows_overlap(size, options):
    """With its indices held, max-pooling is x read at the indices; its derivative at the image they came from too."""
    image = normal(2, *size, 3)
    value, index = ops.max_pool(image, return_indices=True, **options)
    read = lambda x: jnp.take_along_axis(x.reshape(2, -1, 3), index.reshape(2, -1, 3), axis=1).reshape(index.shape)
    up = jax.jit(lambda y: ops.max_unpool(y, index, size))
    y = normal(*value.shape)
    assert_adjoint(read, up, normal(*image.shape), y)
    np.testing.assert_allclose(jax.vjp(lambda x: ops.max_pool(x, **options), image)[1](y)[0], up(y), atol=1e-6)
    np.testing.assert_array_equal(read(up(y)), y)


def test_max_unpool_is_no_adjoint_where_windows_overlap():
    """[0, 3, 0] pooled by 2 at stride 1: both windows read the 3. The adjoint of that sends back a + b, here one is."""
    x = jnp.array([0.0, 3.0, 0.0]).reshape(1, 1, 3, 1)
    pool = functools.partial(ops.max_pool, window=(1, 2), stride=1)
    value, index = pool(x, return_indices=True)
    np.testing.assert_array_equal(index.ravel(), [1, 1])
    y = jnp.array([10.0, 1.0]).reshape(value.shape)
    unpooled = ops.max_unpool(y, index, (1, 3)).ravel()
    assert unpooled.tolist() in ([0, 10, 0], [0, 1, 0])
    np.testing.assert_array_equal(jax.vjp(pool, x)[1](y)[0].ravel(), [0, 11, 0])
    assert np.vdot(value, y) == 33 != np.vdot(x, unpooled)
    gradient = jax.grad(lambda y: jnp.sum(jnp.array([5.0, 7.0, 9.0]) * ops.max_unpool(y, index, (1, 3)).ravel()))(y)
    np.testing.assert_array_equal(gradient.ravel(), [7, 7])  # each is read at its index, the one written over too


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    pooled=st.tuples(*[st.integers(1, 4)] * 2),
    more=st.tuples(*[st.integers(0, 9)] * 2),
    shift=st.integers(-3, 3),
    seed=st.integers(0, 99),
)
def test_any_indices_and_sizes(pooled, more, shift, seed):
    """Indices in equal cells, or shifted out of them, or out of the image: the CPU's two forms and the gradient."""
    rng = np.random.default_rng(seed)
    size = tuple(m + e for m, e in zip(pooled, more, strict=True))
    shape = (2, *pooled, 3)
    rows, columns = (
        np.minimum(np.arange(m) * (n // m) + rng.integers(0, max(n // m, 1)), n - 1)
        for m, n in zip(pooled, size, strict=True)
    )
    indices = np.broadcast_to((rows[:, None] * size[1] + columns[None, :] + shift)[None, :, :, None], shape)
    y = rng.standard_normal(shape).astype(np.float32)
    g = rng.standard_normal((2, *size, 3)).astype(np.float32)

    @jax.jit
    def forms_and_gradient(y, indices, g):
        up, pull = jax.vjp(lambda y: ops.max_unpool(y, indices, size), y)
        return up, unpool._scatter(y, indices, size), pull(g)[0]

    *forms, gradient = forms_and_gradient(y, indices, g)
    for x in forms:
        np.testing.assert_array_equal(x, written(y, indices, size))
    inside = (indices >= 0) & (indices < size[0] * size[1])
    taken = np.take_along_axis(g.reshape(2, -1, 3), np.where(inside, indices, 0).reshape(2, -1, 3), axis=1)
    np.testing.assert_array_equal(gradient, np.where(inside, taken.reshape(shape), 0))


@pytest.mark.parametrize("size", [(45, 60), (44, 59), (46, 61)])
def test_cells_are_found_for_odd_sizes(size):
    """SegNet's fourth pool of 360 x 480: 45 x 60 to 23 x 30 in ceil mode. No index leaves its cell: no scatter."""
    image = normal(1, *size, 1)
    value, index = ops.max_pool(image, 2, ceil_mode=True, return_indices=True)
    cell = tuple(unpool._cell(n, m) for n, m in zip(size, value.shape[1:3], strict=True))
    assert cell == (2, 2)
    assert unpool._all_in_cells(index, size, cell)
    assert not unpool._all_in_cells(index.at[0, 3, 4, 0].add(2), size, cell)
    expected = written(np.asarray(value), np.asarray(index), size)
    np.testing.assert_array_equal(unpool._compare(value, index, size, cell), expected)


def test_vmap_types_and_no_images():
    image = normal(3, 1, 5, 6, 2)
    value, index = jax.vmap(lambda x: ops.max_pool(x, 2, return_indices=True))(image)
    up = lambda y, i: ops.max_unpool(y, i, (5, 6))
    got = jax.jit(jax.vmap(up))(value, index)
    np.testing.assert_array_equal(got[:, 0], up(value[:, 0], index[:, 0]))
    dy = jax.vmap(jax.grad(lambda y, i: jnp.sum(jnp.sin(up(y, i)))))(value, index)
    np.testing.assert_allclose(dy, jnp.cos(value), atol=1e-6)
    for dtype in (jnp.bfloat16, jnp.int8, bool, jnp.float16):
        y = jnp.ones((1, 2, 3, 2), dtype)
        for x in (up(y, index[0].astype(jnp.uint8)), ops.bed_of_nails(y, 2), ops.nearest_unpool(y, 2)):
            assert x.dtype == dtype
    for none in (jnp.zeros((0, 2, 3, 2)), jnp.zeros((1, 2, 3, 0))):
        assert up(none, none.astype(int)).shape == (none.shape[0], 5, 6, none.shape[3])
        assert jax.grad(lambda y: jnp.sum(up(y, y.astype(int))))(none).shape == none.shape
        assert ops.bed_of_nails(none, 2).shape == ops.nearest_unpool(none, 2).shape


def test_max_unpool_gathers_no_batch_from_other_devices():
    """Each device writes and reads its own examples; indices outside their cells take the scatter at run time."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    by_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    value, index = jax.device_put(ops.max_pool(normal(4, 8, 8, 2), 2, return_indices=True), by_batch)
    scatter = lambda y, index: unpool._scatter(y, index, (8, 8))
    up = lambda y, index: ops.max_unpool(y, index, (8, 8))
    gradient = jax.grad(lambda y, index: jnp.sum(up(y, index) ** 2))
    for function in (scatter, up, gradient):
        text = jax.jit(function).lower(value, index).compile().as_text()
        assert "num_partitions=4" in text
        assert not re.search("all-gather|all-to-all|collective-permute", text)


def test_nearest_unpool_sums_bfloat16_gradients_in_float32():
    """The sum of 256 positive values, rounded once."""
    g = jnp.asarray(np.abs(normal(1, 32, 32, 2)), jnp.bfloat16)
    y = jnp.zeros((1, 2, 2, 2), jnp.bfloat16)
    sums = np.asarray(g, np.float64).reshape(1, 2, 16, 2, 16, 2).sum((2, 4))
    got = jax.vjp(lambda y: ops.nearest_unpool(y, 16), y)[1](g)[0]
    np.testing.assert_allclose(np.asarray(got, np.float64), sums, rtol=2**-8)


def test_gradients_of_both_orders():
    image = normal(1, 5, 6, 2)
    value, index = ops.max_pool(image, 2, ceil_mode=True, return_indices=True)
    for function in (
        lambda y: jnp.sin(ops.max_unpool(y, index, (5, 6))),
        lambda y: jnp.sin(ops.bed_of_nails(y, 2)),
        lambda y: jnp.sin(ops.nearest_unpool(y, 2)),
    ):
        check_grads(jax.jit(function), (value,), 2, ["rev"], 1e-2, 1e-2)


def test_max_unpool_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_max_pool.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_max_pool.npz")
    cases = [case for case in about["cases"] if "unpooled" in case["outputs"]]
    assert len(cases) == 5
    for case in cases:
        out, indices, unpooled = (
            np.moveaxis(arrays[f"{case['name']}/{key}"], 1, -1) for key in ("out", "indices", "unpooled")
        )
        got = ops.max_unpool(jnp.asarray(out), jnp.asarray(indices), unpooled.shape[1:3])
        np.testing.assert_array_equal(got, unpooled, err_msg=case["name"])


def test_wrong_arguments():
    y, indices = jnp.ones((1, 4, 6, 2)), jnp.zeros((1, 4, 6, 2), int)
    for arguments, message in (
        ((y, indices[:, :3], (8, 12)), r"\(1, 4, 6, 2\) and indices \(1, 3, 6, 2\)"),
        ((y, y, (8, 12)), "indices of float32"),
        ((y, indices, (8, 4)), r"size=\(8, 4\).*at least \(3, 5\); the nearest is \(8, 5\)"),
        ((y, indices, (8, 0)), "size="),
        ((y[0], indices[0], (8, 12)), "of one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.max_unpool(*arguments)
    for function in (ops.bed_of_nails, ops.nearest_unpool):
        with pytest.raises(ValueError, match="factor=0"):
            function(y, 0)
        with pytest.raises(ValueError, match=r"expected \[B, H, W, C\]"):
            function(y[0], 2)
