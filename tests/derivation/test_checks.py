"""The proof finds no error where there is none, and every kind of error where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops
from segjax.derivation import checks
from segjax.derivation.cases import GRID, case

STRIDED = case((6, 8), 3, stride=2, padding=((1, 0), (0, 1)), groups=2, channels=4, features=2)
SIGNAL = case((7,), 3, stride=2, channels=2, features=3)


def bad(errors, dtype="float32"):
    return {name for name, error in errors.items() if not error.value <= checks.BOUNDS[dtype]}


@pytest.mark.parametrize("dtype", checks.BOUNDS)
@pytest.mark.parametrize("geometry", [STRIDED, SIGNAL], ids=lambda geometry: geometry.label)
def test_errors_are_within_the_bounds(geometry, dtype):
    with jax.enable_x64(dtype == "float64"):
        errors = checks.measure(geometry, dtype, seed=3)
    assert list(errors) == list(checks.CHECKS)
    assert bad(errors, dtype) == set()
    assert errors["stamp"].value > 0  # of rounding: a comparison with itself would give none


@pytest.mark.parametrize("geometry", GRID[1::3], ids=lambda geometry: geometry.label)
def test_a_third_of_the_grid_in_float64(geometry):
    with jax.enable_x64(True):
        assert bad(checks.measure(geometry, "float64", seed=1), "float64") == set()


@pytest.mark.parametrize("geometry", [STRIDED, SIGNAL], ids=lambda geometry: geometry.label)
def test_an_unflipped_kernel_is_found(geometry):
    errors = checks.measure(geometry, "float32", transpose=checks.unflipped)
    assert bad(errors) == {"fractional"}
    worst = errors["fractional"]
    assert abs(worst.got - worst.wanted) > 0.01 and len(worst.place) == geometry.rank + 2


def test_a_kernel_of_one_tap_has_nothing_to_flip():
    assert bad(checks.measure(case((5,), 1, stride=2), "float32", transpose=checks.unflipped)) == set()


@pytest.mark.parametrize("method", checks.METHODS)
def test_an_error_in_any_method_is_found(method):
    def wrong(y, kernel, **options):
        right = ops.conv_transpose(y, kernel, **options)
        return right.at[0, 1].add(1e-3) if options["method"] == method else right

    found = bad(checks.measure(SIGNAL, "float32", transpose=wrong))
    assert method in found and found <= {method, "adjoint"}


def test_a_wrong_derivative_is_found():
    @jax.custom_vjp
    def twice(y):
        return y

    twice.defvjp(lambda y: (y, None), lambda _, g: (2 * g,))

    def wrong(y, kernel, **options):
        return ops.conv_transpose(twice(y), kernel, **options)

    assert bad(checks.measure(SIGNAL, "float32", transpose=wrong)) == {"transpose_vjp"}


def test_single_precision_does_not_pass_for_double():
    def narrow(y, kernel, **options):
        return ops.conv_transpose(y.astype(jnp.float32), kernel.astype(jnp.float32), **options).astype(y.dtype)

    with jax.enable_x64(True):
        assert bad(checks.measure(SIGNAL, "float64", transpose=narrow), "float64") >= set(checks.METHODS)


def test_what_is_not_finite_is_an_error():
    def broken(y, kernel, **options):
        right = ops.conv_transpose(y, kernel, **options)
        return right * jnp.nan if options["method"] == "stamp" else right

    errors = checks.measure(SIGNAL, "float32", transpose=broken)
    assert bad(errors) == {"stamp"} and errors["stamp"].value == np.inf


@pytest.mark.parametrize("wrong", ["shifted", "value"])
def test_an_error_in_the_sparse_matrix_is_found(monkeypatch, wrong):
    right = ops.conv_matrix

    def conv_matrix(kernel, size, **options):
        matrix = right(kernel, size, **options)
        if options.get("sparse"):
            if wrong == "shifted":
                matrix.indices = matrix.indices.at[0, 1].add(1)
            else:
                matrix.data = matrix.data.at[0].add(0.01)
        return matrix

    monkeypatch.setattr(ops, "conv_matrix", conv_matrix)
    assert bad(checks.measure(SIGNAL, "float32")) == {"sparse"}


def test_pixels_that_no_tap_reaches_must_be_zero():
    geometry = case((9,), 2, stride=3)

    def leaking(y, kernel, **options):
        right = ops.conv_transpose(y, kernel, **options)
        return right.at[:, 2].add(1e-20) if options["method"] == "subpixel" else right

    assert bad(checks.measure(geometry, "float32", transpose=leaking)) == {"subpixel"}


def test_a_matrix_that_is_too_large_is_not_built(monkeypatch):
    monkeypatch.setattr(checks, "MOST_DENSE", 10)
    assert set(checks.CHECKS) - set(checks.measure(SIGNAL, "float32")) == {"dense", "matrix"}


def test_windows_that_read_padding_alone():
    errors = checks.measure(case((1, 1), 1, stride=5, padding=2), "float32")
    assert bad(errors) == set() and errors["sparse"].place == ()
