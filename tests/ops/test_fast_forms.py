"""The fast forms of a CPU under jax's transformations: second gradients, vmap, shards of a batch, pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import ops

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 7, 6, 4), np.float32)
DEPTHWISE = RNG.standard_normal((3, 3, 1, 4), np.float32)
LARGE_DEPTHWISE = RNG.standard_normal((5, 5, 1, 4), np.float32)
POINTWISE = RNG.standard_normal((1, 1, 4, 5), np.float32)


def plain_conv(x, kernel, stride, padding, groups):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=layout, feature_group_count=groups
    )


def plain_pool(x, _):
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


FORMS = {
    "depthwise": (lambda x, k: ops.conv(x, k, padding=1, groups=4), lambda x, k: plain_conv(x, k, 1, 1, 4), DEPTHWISE),
    "depthwise, stride 2": (lambda x, k: ops.conv(x, k, stride=2, padding=1, groups=4),
                            lambda x, k: plain_conv(x, k, 2, 1, 4), DEPTHWISE),
    "depthwise, one loop": (lambda x, k: ops.conv(x, k, groups=4), lambda x, k: plain_conv(x, k, 1, 0, 4), DEPTHWISE),
    "depthwise, 25 taps": (lambda x, k: ops.conv(x, k, padding=1, groups=4),
                           lambda x, k: plain_conv(x, k, 1, 1, 4), LARGE_DEPTHWISE),
    "pointwise": (lambda x, k: ops.conv(x, k), lambda x, k: plain_conv(x, k, 1, 0, 1), POINTWISE),
    "max pool": (lambda x, k: ops.max_pool(x, 3, stride=2, padding=1), plain_pool, np.zeros(1, np.float32)),
}  # fmt: skip


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def form(request):
    return request.param


def objective(function):
    return lambda x, k: jnp.sum(jnp.sin(function(x, k)))


def assert_close(got, expected, tolerance=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), got, expected)


def test_gradients_equal_those_of_the_plain_form(form):
    fast, plain, kernel = form
    assert_close(
        jax.jit(jax.grad(objective(fast), (0, 1)))(X, kernel), jax.jit(jax.grad(objective(plain), (0, 1)))(X, kernel)
    )


def test_second_gradients(form):
    fast, plain, kernel = form

    def curvature(function):
        first = jax.grad(objective(function), (0, 1))
        return jax.jit(jax.grad(lambda x, k: sum(jnp.sum(g**2) for g in first(x, k)), (0, 1)))(X, kernel)

    assert_close(curvature(fast), curvature(plain), 1e-2)


def test_vmap(form):
    fast, plain, kernel = form
    gradient = jax.grad(objective(fast), (0, 1))
    dx, dk = jax.jit(jax.vmap(gradient, in_axes=(0, None)))(X[:, None], kernel)
    dx_whole, dk_whole = jax.grad(objective(plain), (0, 1))(X, kernel)
    assert_close((dx[:, 0], dk.sum(0)), (dx_whole, dk_whole))


def test_sharded_batch_and_pmap(form):
    fast, plain, kernel = form
    expected = jax.grad(objective(plain), (0, 1))(X, kernel)
    devices = jax.devices()[:4]
    mesh = Mesh(np.array(devices), ("data",))
    sharded = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    assert_close(jax.jit(jax.grad(objective(fast), (0, 1)))(sharded, whole), expected)
    mapped = jax.pmap(jax.grad(objective(fast), (0, 1)), in_axes=(0, None), devices=devices)
    dx, dk = mapped(X.reshape(4, 2, *X.shape[1:]), kernel)
    assert_close((dx.reshape(X.shape), dk.sum(0)), expected)


def test_bfloat16_stays_bfloat16(form):
    fast, _, kernel = form
    x, kernel = jnp.asarray(X, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    y, pull = jax.vjp(fast, x, kernel)
    assert {value.dtype for value in (y, *pull(y))} == {jnp.dtype(jnp.bfloat16)}
