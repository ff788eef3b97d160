"""Tiled against whole: equal for valid convolutions, without seams for padded ones, compiled once, little memory."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.inference import tile_plan, tiling
from segjax.models.unet import Sizes, valid_sizes

K = 2


@pytest.fixture(scope="module")
def unet():
    """The paper's network of three poolings and 2 channels; (its native form, its mirroring form)."""
    options = {"num_classes": K, "depth": 3, "base_width": 2}
    native, mirror = (models.build("unet", output=output, **options) for output in ("native", "mirror"))
    variables = draw(jax.eval_shape(mirror.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))
    return tuple(jax.tree_util.Partial(module.apply, variables) for module in (native, mirror))


def image_of(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)


def local(x):
    """Another kind of network: each pixel for itself."""
    return jnp.stack([x[..., 0], x[..., 1] * 2], axis=-1)


def blurred(x, valid=False):
    """The mean of 5x5 pixels, zeros outside or logits for the inside only; the class scores of which are two sums."""
    padding = "VALID" if valid else "SAME"
    mean = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 5, 5, 1), (1, 1, 1, 1), padding) / 25
    return {"logits": jnp.stack([mean[..., 0], mean[..., 1]], axis=-1)}


def whole_of(mirror, image):
    return np.asarray(jax.jit(lambda x: mirror(x)["logits"])(image[None])[0])


@pytest.fixture(scope="module")
def scene(unet):
    """A quarter of 1024 x 1280 pixels along each axis, and its logits."""
    image = image_of(256, 320)
    return image, whole_of(unet[1], image)


@pytest.mark.parametrize(
    ("tile", "batch_size"), [(108, 3), (124, 1), (156, 4), (188, 2), ((148, 220), 1), (316, 1), (508, 1)]
)
def test_tiled_equals_whole(unet, scene, tile, batch_size):
    image, whole = scene
    found = tiling.predict(unet[0], image, tile=tile, sizes=valid_sizes(3), batch_size=batch_size)
    assert found.dtype == np.float32 and np.ptp(whole) > 1
    np.testing.assert_allclose(found, whole, atol=1e-6 * np.abs(whole).max(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [204, 268, 396, 572, (300, 1100)])
def test_tiled_equals_whole_at_full_size(tile):
    """The paper's depth, 1024 x 1280 pixels."""
    options = {"num_classes": K, "base_width": 4}
    native, mirror = (models.build("unet", output=output, **options) for output in ("native", "mirror"))
    variables = draw(jax.eval_shape(mirror.init, jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32)))
    image = image_of(1024, 1280, channels=1)
    whole = whole_of(jax.tree_util.Partial(mirror.apply, variables), image)
    found = tiling.predict(jax.tree_util.Partial(native.apply, variables), image, tile=tile, sizes=native.sizes)
    np.testing.assert_allclose(found, whole, atol=1e-6 * np.abs(whole).max(), rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (41, 8)])
def test_images_smaller_than_a_tile(unet, size):
    """Reflected more than once; the sizes are found from shapes."""
    image = image_of(*size)
    found = tiling.predict(lambda x: unet[0](x), image, tile=(108, 124))
    np.testing.assert_allclose(found, whole_of(unet[1], image), atol=1e-5)


def test_the_mirroring_form_is_run_as_the_native_one(unet, scene):
    image, whole = scene
    for bound in (unet[1], functools.partial(unet[1].func, *unet[1].args)):
        found = tiling.predict(bound, image, tile=188, batch_size=2)
        np.testing.assert_allclose(found, whole, atol=1e-6 * np.abs(whole).max(), rtol=0)


def test_a_network_that_says_nothing_of_its_sizes():
    """5x5 mean, 2x2 maximum, 3x3 mean, doubled: even sizes, 8 pixels lost; of odd ones the pool drops a pixel."""

    def apply(x):
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 5, 5, 1), (1, 1, 1, 1), "VALID") / 25
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID") / 9
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

    image = image_of(37, 52)
    whole = apply(np.pad(image, ((4, 5), (4, 4), (0, 0)), mode="reflect")[None])[0, :37, :52]
    for tile in (10, 16, (20, 38)):
        np.testing.assert_allclose(tiling.predict(apply, image, tile=tile), whole, atol=1e-6)


def test_classes_into_an_array_of_the_caller(unet, scene, tmp_path):
    image, whole = scene
    np.save(tmp_path / "image.npy", image)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, image.shape[:2])
    calls = []
    found = tiling.predict(
        unet[0], np.load(tmp_path / "image.npy", mmap_mode="r"), tile=188, result="classes", out=out, batch_size=4,
        progress=lambda *counts: calls.append(counts),
    )  # fmt: skip
    assert found is out and calls == [(4, 12), (8, 12), (12, 12)]
    clear = np.abs(whole[..., 0] - whole[..., 1]) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(out[clear], whole.argmax(axis=-1)[clear])


def test_one_compilation_for_all_tiles_and_calls():
    traced = []

    def apply(weight, x):
        traced.append(x.shape)
        return blurred(x * weight, valid=True)

    for weight in (1.0, 2.0):
        bound = functools.partial(apply, np.float32(weight))
        for size in ((50, 33), (20, 71)):
            image = image_of(*size)
            found = tiling.predict(bound, image, tile=20, sizes=Sizes(5, 1, 2), batch_size=3)
            padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
            np.testing.assert_allclose(found, weight * blurred(padded[None], valid=True)["logits"][0], atol=1e-6)
    assert traced.count((3, 20, 20, 3)) == 1  # and (1, 20, 20, 3), of which only the shape is asked


@pytest.mark.parametrize("window", tile_plan.WINDOWS)
@pytest.mark.parametrize(("tile", "overlap"), [(32, None), ((24, 40), 7), (20, 16), (64, 0)])
def test_blending_changes_nothing_that_tiles_agree_on(window, tile, overlap):
    image = image_of(53, 97)
    found = tiling.predict(local, image, tile=tile, overlap=overlap, window=window, batch_size=2)
    np.testing.assert_allclose(found, local(image), atol=1e-5)
    classes = tiling.predict(local, image, tile=tile, overlap=overlap, window=window, result="classes")
    assert classes.dtype == np.uint8
    apart = np.abs(found[..., 0] - found[..., 1]) > 1e-5
    np.testing.assert_array_equal(classes[apart], np.argmax(found, axis=-1)[apart])


def test_blending_hides_the_edges_of_tiles():
    """A constant image through a padded blur: every tile is too dark at its edges, the image only at its own."""
    image = np.ones((128, 128, 3), np.float32)
    whole = np.asarray(blurred(image[None])["logits"][0])
    hard, soft = (tiling.predict(blurred, image, tile=64, overlap=n)[2:-2, 2:-2] for n in (0, 32))
    assert np.abs(hard - 1).max() > 0.5 > 0.05 > np.abs(soft - 1).max()
    soft = tiling.predict(blurred, image, tile=64, overlap=32)
    np.testing.assert_allclose(soft[:2, 30:34], whole[:2, 30:34], atol=0.05)  # zeros at the image's own edge


def test_blended_is_the_weighted_mean_by_definition():
    image, rng = image_of(45, 70), np.random.default_rng(1)
    gain = rng.normal(size=(32, 32, 1)).astype(np.float32)
    found = tiling.predict(
        lambda x: x * gain[None], image, tile=32, sizes=Sizes(1, 1, 0), overlap=16, window="triangle"
    )
    one = np.minimum(np.arange(32) + 0.5, 31.5 - np.arange(32))
    total, weights = np.zeros((200, 200, 3)), np.zeros((200, 200, 1))
    extended = np.pad(image, ((0, 32), (0, 32), (0, 0)), mode="reflect")
    for y in (0, 16):
        for x in (0, 16, 32, 48):
            window = (one[:, None] * one[None])[:, :, None]
            total[y : y + 32, x : x + 32] += window * gain * extended[y : y + 32, x : x + 32]
            weights[y : y + 32, x : x + 32] += window
    np.testing.assert_allclose(found, (total[:45, :70] / weights[:45, :70]), atol=1e-5)


def test_a_batch_of_images():
    images = np.stack([image_of(30, 40, seed=s) for s in range(2)])
    found = tiling.predict(local, images, tile=16)
    np.testing.assert_allclose(found, local(images), atol=1e-6)


def test_nan_is_no_class():
    image = image_of(40, 40)
    image[20, 20] = np.nan
    assert tiling.predict(local, image, tile=16, result="classes")[20, 20] == 2


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_sizes_are_found_from_shapes(depth):
    solved = valid_sizes(depth)
    legal = solved.covering(200)
    found = tile_plan.find_sizes(solved.output, legal)
    assert (found.step, found.margin) == (solved.step, solved.margin)
    assert found.covering(found.step) == solved.covering(solved.step)


@pytest.mark.parametrize(("size", "tile"), [(1, 124), (36, 124), (37, 124), (300, 108), (257, 188)])
def test_corners_of_exact_tiles(size, tile):
    """Whole steps apart, each pixel covered, no tile too many."""
    sizes = valid_sizes(3)
    corners, output = tile_plan.exact_corners(size, tile, sizes), sizes.output(tile)
    assert corners[0] == 0 and not (corners % sizes.step).any() and set(np.diff(corners)) <= {output - 4}
    assert corners[-1] + output >= size and (len(corners) == 1 or corners[-2] + output < size)


@pytest.mark.parametrize(("start", "stop", "size"), [(-7, 9, 4), (-3, 12, 1), (-1, 4, 2), (5, 30, 9)])
def test_reflection_is_numpys(start, stop, size):
    padded = np.pad(np.arange(size), (max(-start, 0), max(stop - size, 0)), mode="reflect")
    expected = padded[max(start, 0) :] if start > 0 else padded
    np.testing.assert_array_equal(tile_plan.mirrored(start, stop, size), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 108, "sizes": valid_sizes(3)}, r"logits of \(108, 108\).*expected \(20, 20\)"),
        ({"tile": 101, "sizes": valid_sizes(3)}, "tile of 101 pixels is not legal: the nearest legal are 100 and 108"),
        ({"tile": 100, "sizes": valid_sizes(4)}, "tile of 100.*nearest legal are 204, the smallest"),
        ({"tile": 16, "overlap": 16}, "overlap=16: expected 0 to 15"),
        ({"tile": 16, "window": "box"}, "window='box'.*cosine"),
        ({"tile": 16, "batch_size": 0}, "batch_size=0"),
        ({"tile": 16, "result": "ids"}, "result='ids'.*classes"),
        ({"tile": 16, "out": np.zeros((8, 8))}, r"out is float64\[8, 8\]: expected float32\[40, 40, 2\]"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        tiling.predict(local, image_of(40, 40), **options)


def test_margins_leave_no_choice_of_overlap(unet):
    with pytest.raises(ValueError, match="overlap=4.*expected None"):
        tiling.predict(unet[0], image_of(40, 40), tile=108, overlap=4)


def test_the_model_names_its_sizes(unet):
    with pytest.raises(ValueError, match="nearest sizes are 100 and 108"):
        tiling.predict(lambda x: unet[0](x), image_of(40, 40), tile=105)


_LARGE = """
import resource, sys, jax, numpy as np
from segjax import models
from segjax.inference import tiling
side, width, variant = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
module = models.build("unet", num_classes=2, base_width=width, variant=variant, output="native")
variables = module.init(jax.random.key(0), np.zeros((1, 572, 572, 1), np.float32))
image = np.lib.format.open_memmap(sys.argv[4], "w+", np.uint8, (side, side, 1))
apply = jax.tree_util.Partial(lambda v, x: module.apply(v, x.astype(np.float32)), variables)
ids = tiling.predict(apply, image, tile=572, sizes=module.sizes, result="classes")
assert ids.shape == (side, side) and ids.dtype == np.uint8
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "base_width"), [("paper", 16), ("padded", 4)])
def test_memory_is_bounded(tmp_path, variant, base_width):
    """8192 x 8192 pixels by the paper's tiles, under 4 GB."""
    run = subprocess.run(
        [sys.executable, "-c", _LARGE, "8192", str(base_width), variant, str(tmp_path / "image.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(run.stdout) < 4
