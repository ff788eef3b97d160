"""Several looks at an image, each against a loop in NumPy over single images without a canvas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from segjax import ops
from segjax.inference.views import Views, make_logits

CANVAS, K = (13, 18), 3
CONTENTS = [(13, 18), (9, 12), (7, 18), (4, 5)]
KERNEL = np.random.default_rng(0).standard_normal((3, 3, 2, K)).astype(np.float32)


def apply(variables, image, *, train):
    """A convolution, and a ramp that tells where in its input a pixel stands: windows show, and so do mirror images."""
    assert not train
    rows, columns = image.shape[1:3]
    ramp = (jnp.arange(rows)[:, None] + 2 * jnp.arange(columns)[None]) / 10
    return {
        "logits": ops.conv(image, variables["kernel"], padding=1)
        + ramp[None, :, :, None] * jnp.arange(3.0).reshape(1, 1, 1, 3)
    }


VARIABLES = {"kernel": KERNEL}


def images():
    image = np.random.default_rng(1).standard_normal((len(CONTENTS), *CANVAS, 2)).astype(np.float32)
    for row, (rows, columns) in zip(image, CONTENTS, strict=True):
        row[rows:] = row[:, columns:] = 9.0
    return image


def run(views):
    return np.asarray(jax.jit(make_logits(apply, views))(VARIABLES, images(), jnp.array(CONTENTS)))


def plain(image):
    return np.asarray(apply(VARIABLES, jnp.asarray(image)[None], train=False)["logits"][0])


def mmsegmentation_slide(image, content, window, stride):
    """The loop of slide_inference over one image of the content's size."""
    (rows, columns), (h, w), (sh, sw) = content, window, stride
    total, times = np.zeros((*image.shape[:2], K)), np.zeros((*image.shape[:2], 1))
    for i in range(max(rows - h + sh - 1, 0) // sh + 1):
        for j in range(max(columns - w + sw - 1, 0) // sw + 1):
            y2, x2 = min(i * sh + h, rows), min(j * sw + w, columns)
            y1, x1 = max(y2 - h, 0), max(x2 - w, 0)
            part = np.s_[y1 : y1 + h, x1 : x1 + w]  # beyond a smaller image: the canvas' fill
            total[part] += plain(image[part])
            times[part] += 1
    return (total / np.maximum(times, 1))[:rows, :columns]


def softmax(x):
    return np.asarray(jax.nn.softmax(x))


@pytest.mark.parametrize("window, stride", [((6, 8), (4, 5)), ((6, 8), (6, 8)), ((5, 5), (1, 3)), ((20, 8), (7, 8))])
def test_windows_are_those_of_mmsegmentation(window, stride):
    found = run(Views(window=window, stride=stride))
    clipped = tuple(min(n, limit) for n, limit in zip(window, CANVAS, strict=True))
    for image, content, mine in zip(images(), CONTENTS, found, strict=True):
        expected = mmsegmentation_slide(image, content, clipped, stride)
        np.testing.assert_allclose(mine[: content[0], : content[1]], expected, atol=1e-5)


def test_one_look_is_the_model_itself():
    np.testing.assert_array_equal(
        run(Views()), jax.jit(apply, static_argnames="train")(VARIABLES, images(), train=False)["logits"]
    )


def test_the_mirror_image_is_that_of_the_content():
    found = run(Views(flip=True))
    for image, (rows, columns), mine in zip(images(), CONTENTS, found, strict=True):
        mirrored = image.copy()
        mirrored[:, :columns] = image[:, columns - 1 :: -1] if columns else image
        back = plain(mirrored)[:rows, :columns][:, ::-1]
        expected = (softmax(plain(image)[:rows, :columns]) + softmax(back)) / 2
        np.testing.assert_allclose(mine[:rows, :columns], expected, atol=1e-5)


def test_scales_are_averaged_as_softmax_at_the_canvas_size():
    found = run(Views(scales=(0.5, 1.0, 1.5)))
    total = softmax(np.stack([plain(image) for image in images()]))
    for size in ((6, 9), (20, 27)):  # round(6.5) is 6
        scaled = ops.resize(jnp.asarray(images()), size, method="bilinear")
        total = total + softmax(ops.resize(apply(VARIABLES, scaled, train=False)["logits"], CANVAS, method="bilinear"))
    np.testing.assert_allclose(found, total / 3, atol=1e-5)


def test_one_scale_alone_keeps_its_logits():
    found = run(Views(scales=(2.0,)))
    scaled = ops.resize(jnp.asarray(images()), (26, 36), method="bilinear")
    expected = ops.resize(apply(VARIABLES, scaled, train=False)["logits"], CANVAS, method="bilinear")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_windows_of_a_larger_scale_cover_the_scaled_content():
    found = run(Views(window=(6, 8), stride=(4, 4), scales=(2.0,)))[1]
    scaled = np.asarray(ops.resize(jnp.asarray(images()[1:2]), (26, 36), method="bilinear"))[0]
    logits = np.zeros((26, 36, K))
    logits[:18, :24] = mmsegmentation_slide(scaled, (18, 24), (6, 8), (4, 4))
    expected = np.asarray(ops.resize(jnp.asarray(logits[None], jnp.float32), CANVAS, method="bilinear"))[0]
    np.testing.assert_allclose(found[:8, :11], expected[:8, :11], atol=1e-4)  # the last rows also read beyond it


def test_the_network_is_compiled_once_for_all_windows():
    traces = []

    def counted(variables, image, *, train):
        traces.append(image.shape)
        return apply(variables, image, train=train)

    views = Views(window=(4, 4), stride=(2, 2))
    jax.jit(make_logits(counted, views)).lower(VARIABLES, images(), jnp.array(CONTENTS))
    assert len(traces) <= 2 and set(traces) == {(4, 4, 4, 2)}  # once for its shape, once in the loop


def test_devices_change_nothing():
    views = Views(window=(6, 8), stride=(4, 5), scales=(0.75, 1.0), flip=True)
    rows = PartitionSpec("data")
    split = jax.shard_map(
        make_logits(apply, views),
        mesh=Mesh(np.array(jax.devices()[:4]), ("data",)),
        in_specs=(PartitionSpec(), rows, rows),
        out_specs=rows,
    )
    found = jax.jit(split)(VARIABLES, images(), jnp.array(CONTENTS))
    for mine, one, (rows, columns) in zip(found, run(views), CONTENTS, strict=True):
        np.testing.assert_allclose(mine[:rows, :columns], one[:rows, :columns], atol=1e-6)
