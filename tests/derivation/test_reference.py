"""The witness of the proof, against matrices written by hand and NumPy's own correlation."""

import numpy as np
import pytest

from segjax.derivation import reference
from segjax.derivation.cases import GRID, case


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_matrix_of_the_textbooks():
    kernel = np.arange(1.0, 10).reshape(3, 3, 1, 1)
    assert reference.matrix(case((4, 4), 3), kernel).astype(int).tolist() == [
        [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0],
        [0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0],
        [0, 0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9],
    ]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]),
        ({"stride": 2}, [[1, 2, 3, 0, 0], [0, 0, 1, 2, 3]]),
        ({"dilation": 2}, [[1, 0, 2, 0, 3]]),
        ({"padding": ((1, 0),)}, [[2, 3, 0, 0, 0], [1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]),
        ({"padding": ((0, 2),), "stride": 3}, [[1, 2, 3, 0, 0], [0, 0, 0, 1, 2]]),
    ],
)
def test_one_dimension_written_out(options, rows):
    kernel = np.array([1.0, 2, 3]).reshape(3, 1, 1)
    assert reference.matrix(case((5,), 3, **options), kernel).astype(int).tolist() == rows


def test_groups_read_their_own_channels():
    kernel = np.array([1.0, 2, 3, 4]).reshape(1, 1, 4)
    matrix = reference.matrix(case((1,), 1, groups=2, channels=2, features=4), kernel)
    assert matrix.astype(int).tolist() == [[1, 0], [2, 0], [0, 3], [0, 4]]


def test_channels_run_fastest():
    kernel = np.arange(1.0, 13).reshape(2, 2, 3)  # [tap, input channel, output channel]
    matrix = reference.matrix(case((2,), 2, channels=2, features=3), kernel)
    assert matrix.astype(int).tolist() == [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9, 12]]


def test_one_channel_is_numpys_correlation():
    x, kernel = random((9,)), random((4,), 1)
    y = reference.convolve(case((9,), 4), x[None, :, None], kernel[:, None, None])
    np.testing.assert_allclose(y[0, :, 0], np.correlate(x, kernel, "valid"), rtol=1e-12)


@pytest.mark.parametrize("geometry", GRID, ids=lambda geometry: geometry.label)
def test_products_are_those_of_the_matrix(geometry):
    x, y = random((2, *geometry.size, geometry.channels)), random((2, *geometry.output, geometry.features), 1)
    kernel = random(geometry.kernel_shape, 2)
    matrix = reference.matrix(geometry, kernel)
    assert matrix.shape == geometry.matrix_shape
    assert reference.count_entries(geometry) == np.count_nonzero(matrix)
    forward, back = reference.convolve(geometry, x, kernel), reference.transpose(geometry, y, kernel)
    np.testing.assert_allclose(forward.reshape(2, -1), x.reshape(2, -1) @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(back.reshape(2, -1), y.reshape(2, -1) @ matrix, atol=1e-12)
    # <M x, y> is linear in the kernel, so it is the kernel's inner product with its gradient.
    gradient = reference.kernel_gradient(geometry, x, y)
    assert gradient.shape == geometry.kernel_shape
    assert np.sum(gradient * kernel) == pytest.approx(np.sum(forward * y))
