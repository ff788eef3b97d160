"""Batch normalisation against its formula, finite differences, and PyTorch's stored results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3, 5, 6), np.float32) * 2 + 3
SCALE, BIAS = RNG.uniform(0.5, 1.5, 6).astype(np.float32), RNG.standard_normal(6, np.float32)


def formula(x, scale, bias, eps, xp=np):
    mean = xp.mean(x, axis=(0, 1, 2), keepdims=True)
    var = xp.mean((x - mean) ** 2, axis=(0, 1, 2), keepdims=True)
    expand = lambda v: v.reshape(1, 1, 1, -1)
    return (x - mean) / xp.sqrt(var + eps) * expand(scale) + expand(bias), mean.ravel(), var.ravel()


def test_is_the_formula():
    for got, expected in zip(
        ops.batch_norm_train(X, SCALE, BIAS, eps=1e-3), formula(np.float64(X), SCALE, BIAS, 1e-3), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradients_are_those_of_the_formula():
    weight = RNG.standard_normal(X.shape, np.float32)
    ours = lambda x, s, b: jnp.sum(weight * jnp.sin(ops.batch_norm_train(x, s, b, eps=1e-3)[0]))
    plain = lambda x, s, b: jnp.sum(weight * jnp.sin(formula(x, s, b, 1e-3, jnp)[0]))
    for got, expected in zip(
        jax.grad(ours, (0, 1, 2))(X, SCALE, BIAS), jax.grad(plain, (0, 1, 2))(X, SCALE, BIAS), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=5e-5)


def test_second_gradient_is_that_of_the_formula():
    def curvature(normalise):
        first = jax.grad(lambda x: jnp.sum(jnp.sin(normalise(x))))
        return jax.grad(lambda x: jnp.sum(first(x) ** 2))(X)

    ours = curvature(lambda x: ops.batch_norm_train(x, SCALE, BIAS, eps=1e-3)[0])
    np.testing.assert_allclose(ours, curvature(lambda x: formula(x, SCALE, BIAS, 1e-3, jnp)[0]), atol=5e-4)


def test_large_mean_keeps_its_variance():
    x = X + 1000
    np.testing.assert_allclose(
        ops.batch_norm_train(x, SCALE, BIAS, eps=0.0)[2], np.float64(x).var(axis=(0, 1, 2)), rtol=1e-4
    )


def test_statistics_and_gradients_are_global_under_an_axis():
    halves = X.reshape(2, 2, *X.shape[1:])

    def local(x, scale):
        y, mean, var = ops.batch_norm_train(x, scale, BIAS, eps=1e-3, axis_name="data")
        return jnp.sum(jnp.sin(y)), (y, mean, var)

    def whole(x, scale):
        y, mean, var = ops.batch_norm_train(x, scale, BIAS, eps=1e-3)
        return jnp.sum(jnp.sin(y)), (y, mean, var)

    mapped = jax.pmap(
        jax.grad(local, (0, 1), has_aux=True), axis_name="data", in_axes=(0, None), devices=jax.devices()[:2]
    )
    (dx, d_scale), (y, mean, var) = mapped(halves, SCALE)
    (dx_whole, d_scale_whole), (y_whole, mean_whole, var_whole) = jax.grad(whole, (0, 1), has_aux=True)(X, SCALE)
    np.testing.assert_allclose(y.reshape(X.shape), y_whole, atol=1e-5)
    np.testing.assert_allclose(dx.reshape(X.shape), dx_whole, atol=1e-5)
    np.testing.assert_allclose(d_scale.sum(axis=0), d_scale_whole, atol=1e-4)
    np.testing.assert_allclose(mean[1], mean_whole, atol=1e-5)
    np.testing.assert_allclose(var[0], var_whole, atol=1e-5)


def test_bfloat16_has_float32_statistics():
    y, mean, var = ops.batch_norm_train(jnp.asarray(X, jnp.bfloat16), SCALE, BIAS, eps=1e-3)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(mean, X.mean(axis=(0, 1, 2)), atol=0.01)


def test_equals_pytorch(golden_dir):
    about = json.loads((golden_dir / "dev/ops_batch_norm.json").read_text())
    arrays = np.load(golden_dir / "dev/ops_batch_norm.npz")
    for case in about["cases"]:
        x, scale, bias, mean, var, out = (
            arrays[f"{case['name']}/{key}"] for key in ("x", "weight", "bias", "running_mean", "running_var", "out")
        )
        y = ops.batch_norm_apply(np.moveaxis(x, 1, -1), scale, bias, mean, var, eps=case["args"]["eps"])
        np.testing.assert_allclose(np.moveaxis(y, -1, 1), out, rtol=1e-5, atol=case["outputs"]["out"]["atol"])


def test_static_options_are_checked():
    with pytest.raises(ValueError, match="eps=-1"):
        ops.batch_norm_train(X, SCALE, BIAS, eps=-1)
    with pytest.raises(ValueError, match="empty"):
        ops.batch_norm_train(X[:0], SCALE, BIAS, eps=1e-3)
