"""224 -> 7 -> 224: five max-poolings that keep their indices, and five max-unpoolings that use them.

Each pooling keeps one pixel of four, so that 49 of the 50 176 pixels of a channel reach the middle, and each knows its
place in the plane it came from. The five unpoolings write each value back where it was: those 49 pixels come back
exactly, the other 50 127 are zero. It is one pixel in each cell of 32 x 32, the largest of it.
"""

import jax
import numpy as np
import pytest

from segjax import ops


def down_and_up(x):
    """The image at 7 x 7, the way up again, and the sizes on the way."""
    sizes, indices = [], []
    for _ in range(5):
        sizes.append(x.shape[1:3])
        x, index = ops.max_pool(x, 2, ceil_mode=True, return_indices=True)
        indices.append(index)
    small = x
    for size, index in zip(reversed(sizes), reversed(indices), strict=True):
        x = ops.max_unpool(x, index, size)
    return small, x, sizes


@pytest.fixture(scope="module")
def image():
    """Positive, so that a zero is where nothing was written; no two pixels alike."""
    return 1 + np.random.default_rng(0).permutation(224 * 224 * 2).reshape(1, 224, 224, 2).astype(np.float32)


def test_from_224_to_7_to_224(image):
    sizes = []

    @jax.jit
    def there_and_back(x):
        small, back, on_the_way = down_and_up(x)
        sizes.extend(on_the_way)
        return small, back

    small, back = map(np.asarray, there_and_back(image))
    assert sizes == [(224, 224), (112, 112), (56, 56), (28, 28), (14, 14)]
    assert small.shape == (1, 7, 7, 2) and back.shape == image.shape
    cells = lambda x: x.reshape(7, 32, 7, 32, 2)
    largest = cells(image).max((1, 3))
    np.testing.assert_array_equal(small[0], largest)
    kept = back != 0
    np.testing.assert_array_equal(cells(kept).sum((1, 3)), 1)  # one of each cell's 1024 pixels
    np.testing.assert_array_equal(back[kept], image[kept])  # where it was, as it was
    np.testing.assert_array_equal(cells(back).max((1, 3)), largest)
    assert np.count_nonzero(back) == 2 * 49 and np.sum(~kept) == 2 * 50127


def test_pooling_what_came_back_gives_the_small_image_again(image):
    small, back = jax.jit(lambda x: down_and_up(x)[:2])(image)
    np.testing.assert_array_equal(jax.jit(lambda x: down_and_up(x)[0])(back), small)


def test_gradient_reaches_the_kept_pixels_alone(image):
    back, pull = jax.vjp(jax.jit(lambda x: down_and_up(x)[1]), image)
    gradient = pull(np.ones_like(image))[0]
    np.testing.assert_array_equal(gradient, np.where(back != 0, 1, 0))


def test_sizes_that_do_not_divide_need_the_explicit_size():
    """SegNet's 360 x 480: the fourth pool makes 23 x 30 of 45 x 60, and 2 x 23 would be 46."""
    x = 1 + np.random.default_rng(0).permutation(360 * 480).reshape(1, 360, 480, 1).astype(np.float32)
    small, back, sizes = down_and_up(x)
    assert sizes == [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30)]
    assert small.shape[1:3] == (12, 15) and back.shape == x.shape
    assert np.count_nonzero(back) == 12 * 15
    np.testing.assert_array_equal(back[back != 0], x[back != 0])
