"""Augmentation against a definition that visits one output pixel at a time; image and label move as one."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import augment

IGNORE = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"mean": MEAN, "std": STD, "ignore_label": IGNORE}


def batch(rows=3, height=9, width=12, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, height, width, 3), dtype=np.uint8),
        "label": rng.integers(0, 6, (rows, height, width)).astype(np.int32),
        "weight": (1 + rng.random((rows, height, width))).astype(np.float32),
        "valid": np.ones(rows, bool),
    }


def draws(key, index):
    return np.stack([jax.random.uniform(jax.random.fold_in(key, i), (augment.DRAWS,)) for i in index]).astype(
        np.float64
    )


def denormalised(image):
    return (np.asarray(image, np.float64) * STD + MEAN) * 255


def by_pixel(image, label, weight, u, size, scale, flip):
    """The module's definition for one example, a loop over output pixels, float64; also bool "inside"."""
    (height, width), (h, w) = label.shape, size
    s = scale[0] + u[augment.SCALE] * (scale[1] - scale[0])
    y0, x0 = u[augment.Y] * (s * height - h), u[augment.X] * (s * width - w)
    if s == 1:
        y0, x0 = np.round(y0), np.round(x0)
    out = np.zeros((h, w, 3)), np.full(size, IGNORE), np.zeros(size), np.zeros(size, bool)
    for i, j in np.ndindex(size):
        y = (i + 0.5 + y0) / s
        x = ((w - 1 - j if u[augment.FLIP] < flip else j) + 0.5 + x0) / s
        if 0 <= y < height and 0 <= x < width:
            top, left = np.clip(y - 0.5, 0, height - 1), np.clip(x - 0.5, 0, width - 1)
            r, c = min(int(top), height - 2), min(int(left), width - 2)
            fy, fx = top - r, left - c
            four = image[r : r + 2, c : c + 2].astype(np.float64)
            out[0][i, j] = (1 - fy) * ((1 - fx) * four[0, 0] + fx * four[0, 1]) + fy * (
                (1 - fx) * four[1, 0] + fx * four[1, 1]
            )
            out[1][i, j], out[2][i, j], out[3][i, j] = label[int(y), int(x)], weight[int(y), int(x)], True
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((9, 12), (1, 1)),
        ((6, 7), (1, 1)),
        ((12, 10), (1, 1)),
        ((9, 12), (0.5, 2.0)),
        ((5, 17), (0.6, 0.9)),
        ((9, 12), (2, 2)),
    ],
)
def test_geometry_is_the_definition(size, scale, seed):
    data, key, index = batch(seed=seed), jax.random.key(seed), np.array([0, 5, 1])
    out = jax.jit(augment.make_augment(size=size, scale=scale, flip=0.5, **PLAIN))(key, data, index)
    for row, u in enumerate(draws(key, index)):
        image, label, weight, inside = by_pixel(
            data["image"][row], data["label"][row], data["weight"][row], u, size, scale, 0.5
        )
        np.testing.assert_allclose(denormalised(out["image"][row])[inside], image[inside], atol=2e-2)
        assert not np.asarray(out["image"][row])[~inside].any()  # the mean colour
        np.testing.assert_array_equal(out["label"][row], label)
        np.testing.assert_allclose(out["weight"][row], weight, rtol=1e-6)
    assert out["image"].dtype == jnp.float32 and out["label"].dtype == jnp.int32 and out["image"].shape[1:3] == size


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_image_and_label_move_together(seed):
    """The image carries its own coordinates: what colour says and what the label says are one place."""
    height, width = 10, 13
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([20 * rows, 19 * columns, 0 * rows], axis=-1).astype(np.uint8)[None]
    data = {"image": image, "label": (rows * width + columns).astype(np.int32)[None]}
    out = TOGETHER(jax.random.key(seed), data, np.array([seed]))
    inside = np.asarray(out["label"][0]) != -1
    colour = denormalised(out["image"][0])[inside]
    place = np.asarray(out["label"][0])[inside]
    assert inside.sum() > 20
    assert np.abs(colour[:, 0] / 20 - place // width).max() <= 0.51  # the nearest pixel is at most half a pixel off
    assert np.abs(colour[:, 1] / 19 - place % width).max() <= 0.51


TOGETHER = jax.jit(augment.make_augment(size=(10, 13), scale=(0.5, 2.0), mean=MEAN, std=STD, ignore_label=-1))


def test_nothing_to_do_is_normalisation_to_the_bit():
    data = batch()
    out = augment.make_augment(size=(9, 12), flip=0.0, **PLAIN)(jax.random.key(0), data, np.arange(3))
    expected = augment.normalise(data, MEAN, STD)
    np.testing.assert_array_equal(out["image"], expected["image"])
    np.testing.assert_allclose(expected["image"], (data["image"] / 255.0 - MEAN) / STD, atol=1e-5)
    for name in ("label", "weight", "valid"):
        np.testing.assert_array_equal(out[name], data[name])


def test_flips_need_no_gather_and_come_at_their_rate():
    data, key = batch(rows=400, height=2, width=3), jax.random.key(1)
    run = jax.jit(augment.make_augment(size=(2, 3), flip=0.3, **PLAIN))
    assert "gather" not in run.lower(key, data, np.arange(400)).as_text()
    out = run(key, data, np.arange(400))
    flipped = draws(key, range(400))[:, augment.FLIP] < 0.3
    assert 0.22 < flipped.mean() < 0.38
    for name in ("label", "weight"):
        np.testing.assert_array_equal(out[name], np.where(flipped[:, None, None], data[name][:, :, ::-1], data[name]))
    expected = np.where(flipped[:, None, None, None], data["image"][:, :, ::-1], data["image"])
    np.testing.assert_allclose(denormalised(out["image"]), expected, atol=1e-2)


def test_an_example_draws_from_its_own_number_alone():
    options = {"scale": (0.5, 2.0), "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.2}
    run = jax.jit(augment.make_augment(size=(8, 8), **options, **PLAIN))
    data, key = batch(rows=4), jax.random.key(2)
    whole = run(key, data, np.arange(4))
    for rows in (np.array([2, 3, 0, 1]), np.array([1, 1, 1, 1])):
        part = run(key, {name: value[rows] for name, value in data.items()}, rows)
        np.testing.assert_allclose(part["image"], whole["image"][rows], atol=1e-5)
        np.testing.assert_array_equal(part["label"], whole["label"][rows])


def jitter_by_pixel(image, u, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
    """torchvision's definitions (functional.adjust_*) on one image in [0, 1], float64."""

    def factor(strength, which):
        return max(0, 1 - strength) + u[which] * (1 + strength - max(0, 1 - strength))

    def grey(x):
        return x @ [0.2989, 0.587, 0.114]

    image = np.clip(image * factor(brightness, augment.BRIGHTNESS), 0, 1) if brightness else image
    f = factor(contrast, augment.CONTRAST)
    image = np.clip(f * image + (1 - f) * grey(image).mean(), 0, 1) if contrast else image
    f = factor(saturation, augment.SATURATION)
    image = np.clip(f * image + (1 - f) * grey(image)[..., None], 0, 1) if saturation else image
    if hue:
        shift = (2 * u[augment.HUE] - 1) * hue
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
        image = np.array([colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in hsv]).reshape(image.shape)
    return image


@pytest.mark.parametrize(
    "options",
    [
        {"brightness": 0.4}, {"brightness": 1.5}, {"contrast": 0.5}, {"saturation": 0.7}, {"hue": 0.5},
        {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    ],
)  # fmt: skip
def test_colours_are_torchvisions(options):
    data, key = batch(), jax.random.key(4)
    data["image"][0, :2] = [[[0, 0, 0]], [[90, 90, 90]]]  # greys have no hue
    out = jax.jit(augment.make_augment(size=(9, 12), flip=0.0, **options, **PLAIN))(key, data, np.arange(3))
    for row, u in enumerate(draws(key, range(3))):
        expected = jitter_by_pixel(data["image"][row] / 255.0, u, **options)
        np.testing.assert_allclose(denormalised(out["image"][row]) / 255, expected, atol=2e-5)


def test_contrast_knows_nothing_of_what_lies_outside():
    """A grey image placed in a larger canvas: its mean is its own grey, contrast leaves it as it is."""
    data = {"image": np.full((1, 4, 4, 3), 100, np.uint8), "label": np.zeros((1, 4, 4), np.int32)}
    out = augment.make_augment(size=(9, 9), flip=0.0, contrast=0.9, **PLAIN)(jax.random.key(0), data, np.arange(1))
    inside = np.asarray(out["label"][0]) == 0
    assert inside.sum() == 16
    np.testing.assert_allclose(denormalised(out["image"][0])[inside], 100, atol=1e-2)
    assert not np.asarray(out["image"][0])[~inside].any()


def test_sampled_pixels():
    """So many labelled pixels keep their label, each as likely as another; an example's draw is its own."""
    data, index = batch(rows=4), np.arange(4)
    data["label"][:, :3] = IGNORE
    data["label"][3] = IGNORE
    data["label"][3, 8, 8] = 2
    run = {n: jax.jit(augment.make_augment(size=(9, 12), flip=0.5, sampled_pixels=n, **PLAIN)) for n in (0, 7, 1000)}
    kept = np.zeros((4, 9, 12))
    for seed in range(200):
        full, few = (np.asarray(run[n](jax.random.key(seed), data, index)["label"]) for n in (0, 7))
        assert ((few == full) | (few == -1)).all()
        np.testing.assert_array_equal((few != -1).sum(axis=(1, 2)), [7, 7, 7, 1])
        kept += few != -1
    assert kept[:3, :3].sum() == 0 and kept[:3, 3:].min() > 0
    assert abs(kept[:3, 3:].std() - (200 * (p := 7 / 72) * (1 - p)) ** 0.5) < 1  # binomial: 4.2
    assert not np.array_equal(kept[0], kept[1])
    alone = run[7](jax.random.key(199), {name: value[1:2] for name, value in data.items()}, index[1:2])
    np.testing.assert_array_equal(alone["label"][0], few[1])
    np.testing.assert_array_equal(
        run[1000](jax.random.key(199), data, index)["label"], np.where(full == IGNORE, -1, full)
    )


def displaced_by_pixel(data, row, key, std):
    """Image, label and weight of one example by the definition, a loop over pixels and control points."""
    image, label, weight = (np.asarray(data[name][row], np.float64) for name in ("image", "label", "weight"))
    height, width = label.shape
    control = std * np.asarray(jax.random.normal(key, (3, 3, 2)), np.float64)

    def smooth(at, size):
        """Weights of the three control points, those beyond repeating the outermost."""
        place, out = at * 2 / (size - 1), np.zeros(3)
        for k in range(-2, 6):
            d = abs(place - k)
            near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            out[np.clip(k, 0, 2)] += near if d <= 1 else far if d < 2 else 0
        return out

    def mirror(at, size):
        while not 0 <= at <= size - 1:
            at = -at if at < 0 else 2 * (size - 1) - at
        return at

    out = np.zeros_like(image), np.zeros_like(label), np.zeros_like(weight), np.zeros_like(label)
    for i, j in np.ndindex(height, width):
        v = np.einsum("a,b,abv->v", smooth(i, height), smooth(j, width), control)
        y, x = mirror(i + v[0], height), mirror(j + v[1], width)
        top, left = min(int(y), height - 2), min(int(x), width - 2)
        fy, fx = y - top, x - left
        four = image[top : top + 2, left : left + 2]
        out[0][i, j] = (1 - fy) * ((1 - fx) * four[0, 0] + fx * four[0, 1]) + fy * (
            (1 - fx) * four[1, 0] + fx * four[1, 1]
        )
        near = int(y + 0.5), int(x + 0.5)
        out[1][i, j], out[2][i, j] = label[near], weight[near]
        out[3][i, j] = min(abs(y + 0.5 - round(y + 0.5)), abs(x + 0.5 - round(x + 0.5)))  # from a pixel's edge
    return out


@pytest.mark.parametrize("std", [1.0, 10.0])
def test_elastic_deformation_is_the_definition(std):
    """At 10 pixels most of a small image is reflected, some of it more than once."""
    data, key, index = batch(height=17, width=22), jax.random.key(3), np.array([4, 0, 9])
    out = jax.jit(augment.make_augment(size=(17, 22), flip=0.0, elastic=std, **PLAIN))(key, data, index)
    for row, i in enumerate(index):
        own = jax.random.fold_in(jax.random.fold_in(key, i), augment.ELASTIC)
        image, label, weight, from_edge = displaced_by_pixel(data, row, own, std)
        np.testing.assert_allclose(denormalised(out["image"][row]), image, atol=5e-2)
        clear = from_edge > 1e-4
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(np.asarray(out["label"][row])[clear], label[clear])
        np.testing.assert_allclose(np.asarray(out["weight"][row])[clear], weight[clear], rtol=1e-6)


def test_elastic_control_points_have_the_deviation_asked_for():
    """Corners, middles of edges and the centre are control points; in between the vectors change smoothly."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(400))
    vectors = np.asarray(jax.vmap(lambda k: augment.displacements(k, (41, 61), 10.0))(keys))
    points = vectors[:, ::20, ::30]
    assert points.shape == (400, 3, 3, 2)
    assert abs(points.std() - 10) < 0.3 and abs(points.mean()) < 0.3
    correlation = np.corrcoef(points.reshape(400, 18).T) - np.eye(18)
    assert np.abs(correlation).max() < 0.25
    np.testing.assert_allclose(points[0, ..., 0], 10 * jax.random.normal(keys[0], (3, 3, 2))[..., 0], rtol=1e-4)
    assert np.abs(np.diff(vectors, axis=1)).max() < 6 and np.abs(np.diff(vectors, n=2, axis=2)).max() < 1


def test_elastic_leaves_the_other_draws_alone():
    """The colours of a constant image; an example draws from its own number; half an image stays a half."""
    data, key = batch(rows=4, height=12, width=12), jax.random.key(2)
    data["image"][:] = 90
    options = {"size": (12, 12), "brightness": 0.5, **PLAIN}
    plain, elastic = (jax.jit(augment.make_augment(elastic=std, **options)) for std in (0.0, 3.0))
    whole = elastic(key, data, np.arange(4))
    np.testing.assert_allclose(plain(key, data, np.arange(4))["image"], whole["image"], atol=1e-5)
    part = elastic(key, {name: value[2:] for name, value in data.items()}, np.arange(2, 4))
    np.testing.assert_array_equal(part["label"], whole["label"][2:])
    assert (np.asarray(whole["label"]) != np.asarray(plain(key, data, np.arange(4))["label"])).any()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.5)])
def test_vertical_flip_and_transposition_turn_all_parts_alike(scale):
    """Certain ones are the reversal and the exchange; by chance each example gets its own, and the rest stays."""
    data, key, index = batch(rows=16, height=9, width=9), jax.random.key(5), np.arange(16)
    make = lambda **more: jax.jit(augment.make_augment(size=(9, 9), scale=scale, brightness=0.4, **PLAIN, **more))
    names = ("image", "label", "weight")
    plain = {name: np.asarray(make()(key, data, index)[name]) for name in names}
    turned = {
        (0, 0): plain,
        (1, 0): {name: x[:, ::-1] for name, x in plain.items()},
        (0, 1): {name: x.swapaxes(1, 2) for name, x in plain.items()},
        (1, 1): {name: x[:, ::-1].swapaxes(1, 2) for name, x in plain.items()},
    }
    for (down, across), wanted in turned.items():
        out = make(flip_vertical=float(down), transpose=float(across))(key, data, index)
        for name in names:
            np.testing.assert_array_equal(out[name], wanted[name])
    out = make(flip_vertical=0.5, transpose=0.5)(key, data, index)
    seen = set()
    for i in index:
        found = [way for way, x in turned.items() if all(np.array_equal(out[name][i], x[name][i]) for name in names)]
        assert found, f"example {i} is none of the four"
        seen.update(found)
    assert len(seen) == 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_elastic_deformation_of_tiny_images(size):
    data = batch(height=size[0], width=size[1])
    out = augment.make_augment(size=size, elastic=10.0, **PLAIN)(jax.random.key(0), data, np.arange(3))
    assert np.isfinite(out["image"]).all() and set(np.unique(out["label"])) <= set(np.unique(data["label"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"elastic": -1.0}, "elastic is -1.0"),
     ({"size": (0, 4)}, r"\(0, 4\)"), ({"scale": (2.0, 0.5)}, r"\(2.0, 0.5\)"), ({"scale": (0.0, 1.0)}, "0 < low"),
     ({"flip": 1.5}, "1.5"), ({"contrast": -0.1}, "contrast is -0.1"), ({"hue": 0.6}, "0.6"),
     ({"flip_vertical": -0.1}, "flip_vertical is -0.1"), ({"transpose": 1.1}, "transpose is 1.1"),
     ({"size": (4, 5), "transpose": 0.5}, r"transpose is 0.5 with size \(4, 5\)"),
     ({"sampled_pixels": -1}, "sampled_pixels is -1")],
)  # fmt: skip
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        augment.make_augment(**{"size": (8, 8), **PLAIN, **options})
