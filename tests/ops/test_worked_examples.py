"""The worked examples of the textbooks and of segjax/ops/README.md, with the numbers written out."""

import jax
import numpy as np
import pytest

from segjax import ops
from segjax.ops.conv_transpose import METHODS

each_method = pytest.mark.parametrize("method", METHODS)


def signal(*values):
    """One example of one channel, [1, W, 1]."""
    return np.array(values, np.float32)[None, :, None]


def taps(*values):
    """A kernel of one channel to one, [kw, 1, 1]."""
    return np.array(values, np.float32)[:, None, None]


def assert_same(actual, written):
    """Every number as written: small integers are exact in float32."""
    np.testing.assert_array_equal(np.asarray(actual).reshape(np.shape(written)), written)


# fmt: off
M_STRIDE_ONE = [
    [1, 2, 3, 0, 0],
    [0, 1, 2, 3, 0],
    [0, 0, 1, 2, 3],
]
M_STRIDE_TWO = [
    [1, 2, 3, 0, 0, 0, 0],
    [0, 0, 1, 2, 3, 0, 0],
    [0, 0, 0, 0, 1, 2, 3],
]
M_TWO_DIMENSIONS = [
    [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0],
    [0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0],
    [0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0],
    [0, 0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9],
]
# fmt: on
NINE = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1)


def test_one_dimension_stride_one():
    k = taps(1, 2, 3)
    assert_same(ops.conv_matrix(k, 5), M_STRIDE_ONE)
    assert_same(ops.conv_matrix(k, 5).T, [[1, 0, 0], [2, 1, 0], [3, 2, 1], [0, 3, 2], [0, 0, 3]])
    assert_same(ops.conv(signal(1, 2, 3, 4, 5), k), [14, 20, 26])
    assert_same(np.correlate([1, 2, 3, 4, 5], [1, 2, 3], "valid"), [14, 20, 26])


def test_one_dimension_stride_two():
    k = taps(1, 2, 3)
    assert_same(ops.conv_matrix(k, 7, stride=2), M_STRIDE_TWO)
    assert_same(
        ops.conv_matrix(k, 7, stride=2).T,
        [[1, 0, 0], [2, 0, 0], [3, 1, 0], [0, 2, 0], [0, 3, 1], [0, 0, 2], [0, 0, 3]],
    )
    assert_same(ops.conv(signal(1, 2, 3, 4, 5, 6, 7), k, stride=2), [14, 26, 38])


@each_method
def test_one_dimension_transposed(method):
    y, k = signal(1, 10, 100), taps(1, 2, 3)
    assert_same(ops.conv_transpose(y, k, method=method), [1, 12, 123, 230, 300])
    assert_same(np.convolve([1, 10, 100], [1, 2, 3]), [1, 12, 123, 230, 300])
    assert_same(ops.conv_transpose(y, k, stride=2, method=method), [1, 2, 13, 20, 130, 200, 300])
    assert_same(ops.conv_transpose(y, k, stride=3, method=method), [1, 2, 3, 10, 20, 30, 100, 200, 300])


@each_method
def test_kernel_shorter_than_the_stride_leaves_zeros(method):
    y, k = signal(1, 10, 100), taps(1, 2)
    assert_same(ops.conv_transpose(y, k, stride=3, method=method), [1, 2, 0, 10, 20, 0, 100, 200])


def test_three_by_three_over_four_by_four():
    assert_same(ops.conv_matrix(NINE, (4, 4)), M_TWO_DIMENSIONS)
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    assert_same(ops.conv(x, NINE), [[348, 393], [528, 573]])
    assert_same(np.array(M_TWO_DIMENSIONS) @ np.arange(1, 17), [348, 393, 528, 573])


@each_method
def test_two_by_two_back_to_four_by_four(method):
    y = np.array([[1, 10], [100, 1000]], np.float32).reshape(1, 2, 2, 1)
    written = [[1, 12, 23, 30], [104, 1245, 2356, 3060], [407, 4578, 5689, 6090], [700, 7800, 8900, 9000]]
    assert_same(ops.conv_transpose(y, NINE, method=method), written)
    assert_same(np.array(M_TWO_DIMENSIONS).T @ [1, 10, 100, 1000], np.ravel(written))


@each_method
def test_four_by_four_to_six_by_six_by_stamping(method):
    y = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    written = [
        [1, 4, 10, 16, 17, 12],
        [9, 29, 62, 83, 75, 48],
        [36, 99, 192, 237, 198, 120],
        [84, 207, 372, 417, 330, 192],
        [115, 263, 446, 485, 365, 204],
        [91, 202, 334, 358, 263, 144],
    ]
    assert_same(ops.conv_transpose(y, NINE, method=method), written)
    assert np.sum(written) == 136 * 45  # all of y times all of the kernel


def test_padding_deletes_columns():
    written = [[2, 3, 0, 0, 0], [1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    assert_same(ops.conv_matrix(taps(1, 2, 3), 5, padding=1), written)
    assert_same(ops.conv_matrix(taps(1, 2, 3), 7)[:, 1:-1], written)
    assert_same(ops.conv_matrix(taps(1, 2, 3), 5, padding=((2, 0),)), ops.conv_matrix(taps(1, 2, 3), 7)[:, 2:])


@each_method
def test_padding_cuts_off_the_result(method):
    y, k = signal(1, 10, 100), taps(1, 2, 3)
    assert_same(ops.conv_transpose(y, k, stride=2, padding=1, method=method), [2, 13, 20, 130, 200])
    assert_same(ops.conv_transpose(y, k, stride=2, padding=((2, 0),), method=method), [13, 20, 130, 200, 300])


@each_method
def test_output_padding_uncovers_rows(method):
    y, k = signal(1, 10, 100), taps(1, 2, 3)
    options = {"stride": 2, "method": method}
    assert_same(ops.conv_transpose(y, k, padding=1, output_padding=1, **options), [2, 13, 20, 130, 200, 300])
    assert_same(ops.conv_transpose(y, k, padding=1, output_size=6, **options), [2, 13, 20, 130, 200, 300])
    assert_same(ops.conv_transpose(y, k, output_padding=1, **options), [1, 2, 13, 20, 130, 200, 300, 0])


def test_seven_and_eight_pixels_share_three_outputs():
    k = taps(1, 2, 3)
    assert_same(ops.conv_matrix(k, 8, stride=2), np.pad(M_STRIDE_TWO, ((0, 0), (0, 1))))
    assert [ops.conv_matrix(k, n, stride=2).shape[0] for n in (6, 7, 8, 9)] == [2, 3, 3, 4]
    with pytest.raises(ValueError, match="transpose of none"):
        ops.conv_transpose(signal(1, 10, 100), k, stride=2, output_padding=2)


def test_dilation_spreads_the_kernel():
    written = [[1, 0, 2, 0, 3, 0], [0, 1, 0, 2, 0, 3]]
    assert_same(ops.conv_matrix(taps(1, 2, 3), 6, dilation=2), written)
    assert_same(ops.conv_matrix(taps(1, 0, 2, 0, 3), 6), written)
    assert_same(ops.conv_transpose(signal(1, 10), taps(1, 2, 3), dilation=2), [1, 10, 2, 20, 3, 30])


def test_channels_make_every_entry_a_block():
    k = np.arange(1, 13, dtype=np.float32).reshape(2, 2, 3)  # 2 taps, from 2 channels to 3
    written = [
        [1, 4, 7, 10, 0, 0],
        [2, 5, 8, 11, 0, 0],
        [3, 6, 9, 12, 0, 0],
        [0, 0, 1, 4, 7, 10],
        [0, 0, 2, 5, 8, 11],
        [0, 0, 3, 6, 9, 12],
    ]
    assert_same(ops.conv_matrix(k, 3), written)
    y = np.array([[[1, 10, 100], [0, 0, 0]]], np.float32)
    assert_same(ops.conv_transpose(y, k), [[[321, 654], [987, 1320], [0, 0]]])


def test_groups_are_blocks_on_the_diagonal():
    k = np.arange(1, 5, dtype=np.float32).reshape(2, 1, 2)  # depthwise: channel 0 has taps 1, 3, channel 1 taps 2, 4
    written = [[1, 0, 3, 0, 0, 0], [0, 2, 0, 4, 0, 0], [0, 0, 1, 0, 3, 0], [0, 0, 0, 2, 0, 4]]
    assert_same(ops.conv_matrix(k, 3, groups=2), written)
    y = np.array([[[1, 1], [10, 10]]], np.float32)
    assert_same(ops.conv_transpose(y, k, groups=2), [[[1, 2], [13, 24], [30, 40]]])


def test_zeros_inserted_and_the_kernel_flipped():
    spread = [0, 0, 1, 0, 10, 0, 100, 0, 0]  # 1, 10, 100 with s - 1 = 1 zero between and k - 1 = 2 around
    assert_same(np.correlate(spread, [3, 2, 1], "valid"), [1, 2, 13, 20, 130, 200, 300])
    assert_same(ops.conv(signal(*spread), taps(3, 2, 1)), [1, 2, 13, 20, 130, 200, 300])


def test_phases_of_four_and_of_three_taps_at_stride_two():
    y = signal(1, 10, 100)
    x = ops.conv_transpose(y, taps(1, 2, 3, 4), stride=2, method="subpixel")
    assert_same(x, [1, 2, 13, 24, 130, 240, 300, 400])
    assert_same(x[:, 0::2], np.convolve([1, 10, 100], [1, 3]))  # [1, 13, 130, 300]: taps 0 and 2
    assert_same(x[:, 1::2], np.convolve([1, 10, 100], [2, 4]))  # [2, 24, 240, 400]: taps 1 and 3
    x = ops.conv_transpose(y, taps(1, 2, 3), stride=2, method="subpixel")
    assert_same(x[:, 0::2], np.convolve([1, 10, 100], [1, 3]))
    assert_same(x[:, 1::2], [2, 20, 200])  # tap 1 alone
    x = ops.conv_transpose(y, taps(1, 2, 3), stride=2, dilation=2, method="subpixel")
    assert_same(x, [1, 0, 12, 0, 123, 0, 230, 0, 300])  # all taps in phase 0


def test_one_number_by_three_maps():
    x, k, y = signal(1, 2, 3, 4, 5), taps(1, 2, 3), signal(1, 10, 100)
    assert_same(ops.conv(x, k), [14, 20, 26])
    assert_same(ops.conv_transpose(y, k), [1, 12, 123, 230, 300])
    assert_same(ops.conv_kernel_gradient(x, y, 3), [321, 432, 543])
    assert 14 * 1 + 20 * 10 + 26 * 100 == 2814
    assert 1 * 1 + 2 * 12 + 3 * 123 + 4 * 230 + 5 * 300 == 2814
    assert 1 * 321 + 2 * 432 + 3 * 543 == 2814


def test_the_transpose_is_no_inverse():
    k = taps(1, 2)
    m = np.array([[1, 2, 0], [0, 1, 2]])
    assert_same(ops.conv_matrix(k, 3), m)
    assert_same(m.T @ m, [[1, 2, 0], [2, 5, 2], [0, 2, 4]])
    assert_same(ops.conv(signal(1, 1, 1), k), [3, 3])
    assert_same(ops.conv_transpose(signal(3, 3), k), [3, 9, 6])
    assert_same(ops.conv(signal(4, -2, 1), k), [0, 0])  # what M takes to zero no map brings back


def test_where_windows_do_not_overlap_it_inverts_from_one_side():
    k, y = taps(1, 2), signal(5, 6, 7)
    m = ops.conv_matrix(k, 6, stride=2)
    assert_same(m @ m.T, 5 * np.eye(3))  # 1 * 1 + 2 * 2
    assert_same(ops.conv(ops.conv_transpose(y, k, stride=2), k, stride=2), [25, 30, 35])
    assert_same(m.T @ m, np.kron(np.eye(3), [[1, 2], [2, 4]]))


@each_method
def test_coverage(method):
    up = lambda k, s: ops.conv_transpose(signal(1, 1, 1, 1), taps(*[1] * k), stride=s, method=method)
    assert_same(up(3, 2), [1, 1, 2, 1, 2, 1, 2, 1, 1])
    assert_same(up(4, 2), [1, 1, 2, 2, 2, 2, 2, 2, 1, 1])
    assert_same(up(2, 2), [1, 1, 1, 1, 1, 1, 1, 1])
    two = ops.conv_transpose(np.ones((1, 2, 2, 1), np.float32), np.ones((3, 3, 1, 1), np.float32), stride=2)
    assert_same(two, [[1, 1, 2, 1, 1], [1, 1, 2, 1, 1], [2, 2, 4, 2, 2], [1, 1, 2, 1, 1], [1, 1, 2, 1, 1]])


def test_bilinear_by_two_in_one_dimension():
    k = taps(0.25, 0.75, 0.75, 0.25)
    assert_same(ops.conv_transpose(signal(4, 8, 12), k, stride=2, padding=1), [3, 5, 7, 9, 11, 9])
    x = ops.resize(np.float32([4, 8, 12]).reshape(1, 1, 3, 1), (1, 6), method="bilinear")
    assert_same(x, [4, 5, 7, 9, 11, 12])


def test_three_unpoolings():
    x = np.float32([[1, 3, 2, 0], [4, 2, 1, 1], [0, 1, 5, 6], [2, 1, 8, 7]]).reshape(1, 4, 4, 1)
    y, places = ops.max_pool(x, 2, return_indices=True)
    assert_same(y, [[4, 2], [2, 8]])
    assert_same(places, [[4, 2], [12, 14]])
    assert_same(ops.max_unpool(y, places, (4, 4)), [[0, 0, 2, 0], [4, 0, 0, 0], [0, 0, 0, 0], [2, 0, 8, 0]])
    assert_same(ops.bed_of_nails(y, 2), [[4, 0, 2, 0], [0, 0, 0, 0], [2, 0, 8, 0], [0, 0, 0, 0]])
    assert_same(ops.nearest_unpool(y, 2), [[4, 4, 2, 2], [4, 4, 2, 2], [2, 2, 8, 8], [2, 2, 8, 8]])


def test_max_unpooling_writes_where_the_adjoint_adds():
    x = np.float32([1, 2, 9, 4, 5]).reshape(1, 1, 5, 1)
    pool = lambda x: ops.max_pool(x, (1, 3), stride=2, return_indices=True)
    y, places = pool(x)
    assert_same(y, [9, 9])
    assert_same(places, [2, 2])  # both windows have their maximum at pixel 2
    assert_same(ops.max_unpool(y, places, (1, 5)), [0, 0, 9, 0, 0])
    adjoint = jax.vjp(lambda x: ops.max_pool(x, (1, 3), stride=2), x)[1](y)[0]
    assert_same(adjoint, [0, 0, 18, 0, 0])


def test_lax_conv_transpose_does_not_flip_by_default():
    y, k = signal(1, 10, 100), taps(1, 2, 3)
    assert_same(jax.lax.conv_transpose(y, k, (1,), "VALID"), [3, 32, 321, 210, 100])
    assert_same(jax.lax.conv_transpose(y, k, (1,), "VALID", transpose_kernel=True), [1, 12, 123, 230, 300])
    up = lambda padding: jax.lax.conv_transpose(y, k, (2,), padding, transpose_kernel=True)
    assert_same(up("VALID"), [1, 2, 13, 20, 130, 200, 300])
    assert_same(up([(0, 0)]), [13, 20, 130])
    assert_same(up([(2, 2)]), [1, 2, 13, 20, 130, 200, 300])
    short = jax.lax.conv_transpose(y, taps(1, 2), (3,), "VALID", transpose_kernel=True)
    assert_same(short, [1, 2, 0, 10, 20, 0, 100, 200, 0])
