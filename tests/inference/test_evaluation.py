"""The evaluation against its definition: every pixel of every example once, whatever the batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from segjax import ops
from segjax.data import canvas, pipeline
from segjax.data.metadata import Classes
from segjax.inference import evaluation
from segjax.inference.evaluation import evaluate, fit_labels, resize_and_classify
from segjax.metrics import confusion

K, IGNORE = 5, 255
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
OPTIONS = {"num_classes": K, "ignore_label": IGNORE, "mean": MEAN, "std": STD}
SIZE = (16, 24)


def apply(variables, image, *, train):
    """Logits that differ from pixel to pixel, exact in float32 on any device: small whole numbers."""
    assert not train
    red = jnp.round(image[..., :1] * 255)
    return {"logits": jnp.mod(red * variables["params"]["factor"] + 3 * jnp.arange(K).reshape(1, 1, 1, K), 7.0)}


VARIABLES = {"params": {"factor": np.float32(2)}, "batch_stats": {}}


class Scenes:
    """Noise pictures of several sizes; labels include ids that count nowhere."""

    num_classes, ignore_label, name, split = K, IGNORE, "noise", "val"
    classes = Classes(tuple("abcde"))

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def describe(self, i):
        return f"noise {i}"

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        size = (20 + 7 * (i % 4), 70 - 9 * (i % 3))
        label = rng.integers(0, K + 1, size)
        return {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": np.where(label == K, IGNORE, label).astype(np.uint8),
        }


def batches(count, batch_size, fit="stretch", **options):
    return pipeline.eval_batches(Scenes(count), size=SIZE, fit=fit, batch_size=batch_size, workers=0, **options)


def reference(count, fit, resolution="native"):
    """Counts by NumPy, example by example: no batches, no padding, no traced sizes."""
    table = np.zeros((K, K + 1), np.int64)
    for i in range(count):
        example = Scenes(count)[i]
        image, label = canvas.fit_image(example["image"], SIZE, fit), example["label"].astype(int)
        rows, columns = canvas.content_size(label.shape, SIZE, fit)
        logits = np.asarray(apply(VARIABLES, jnp.asarray(image[None] / np.float32(255)), train=False)["logits"])
        logits = logits[:, :rows, :columns]
        if resolution == "native":
            logits = np.asarray(ops.resize(jnp.asarray(logits), label.shape, method="bilinear"))
        else:
            label = canvas.fit_label(label, SIZE, fit, IGNORE)[:rows, :columns]
        prediction = logits[0].argmax(-1)
        np.add.at(table, (label[label < K], prediction[label < K]), 1)
    return table


def assert_nearly(found, expected):
    """Equal but for a few ties that bilinear weights of another rounding decide otherwise."""
    assert found.sum() == expected.sum()
    assert np.array_equal(found.sum(axis=1), expected.sum(axis=1))
    assert np.abs(found - expected).sum() <= 0.004 * expected.sum()


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("resolution", ["native", "input"])
def test_counts_are_those_of_the_definition(fit, resolution):
    expected = reference(7, fit, resolution)
    result = evaluate(apply, VARIABLES, batches(7, 3, fit), resolution=resolution, **OPTIONS)
    found = confusion.matrix(result["counts"])
    if resolution == "input":
        assert np.array_equal(found, expected)
    else:
        assert_nearly(found, expected)
    assert result["examples"] == 7 and result["pixels"] == expected.sum()
    hits = expected.diagonal()
    union = expected.sum(1) + expected[:, :K].sum(0) - hits
    np.testing.assert_allclose(result["miou"], np.mean(hits / union), atol=0.01)


def test_crop_scores_the_picture_on_its_own_grid():
    """No resizing either way: the counts are exact."""
    result = evaluate(
        apply,
        VARIABLES,
        pipeline.eval_batches(Scenes(5), size=(64, 96), fit="crop", batch_size=2, workers=0),
        **OPTIONS,
    )
    expected = np.zeros((K, K + 1), np.int64)
    for i in range(5):
        example = Scenes(5)[i]
        image = jnp.asarray(example["image"][None] / np.float32(255))
        prediction = np.asarray(apply(VARIABLES, image, train=False)["logits"])[0].argmax(-1)
        kept = example["label"] < K
        np.add.at(expected, (example["label"][kept], prediction[kept]), 1)
    assert np.array_equal(confusion.matrix(result["counts"]), expected)


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(1, None), (4, None), (8, None), (3, 1), (3, 2), (7, 4), (3, 8), (8, 8)]
)
def test_counts_do_not_depend_on_batch_size_or_devices(batch_size, devices):
    mesh = None if devices is None else Mesh(np.array(jax.devices()[:devices]), ("data",))
    one = evaluate(apply, VARIABLES, batches(7, 2), **OPTIONS)
    other = evaluate(apply, VARIABLES, batches(7, batch_size), mesh=mesh, **OPTIONS)
    assert np.array_equal(confusion.matrix(one["counts"]), confusion.matrix(other["counts"]))
    assert one["examples"] == other["examples"] == 7


def test_logits_are_resized_as_ops_resize_does():
    logits = jax.random.normal(jax.random.PRNGKey(0), (1, 13, 17, K))
    for content, native in [((13, 17), (13, 17)), ((13, 17), (29, 40)), ((13, 17), (6, 9)), ((9, 12), (31, 20))]:
        resized = ops.resize(logits[:, : content[0], : content[1]], native, method="bilinear")
        expected = np.asarray(resized[0])
        outside = jnp.full_like(logits[0], jnp.nan).at[: content[0], : content[1]].set(0)
        ids = resize_and_classify(logits[0] + outside, jnp.array(content), jnp.array(native), (64, 64))
        found = np.asarray(ids)[: native[0], : native[1]]
        assert ids.shape == (64, 64) and ids.dtype == np.uint8
        top = np.sort(expected, axis=-1)
        clear = top[..., -1] - top[..., -2] > 1e-5
        assert clear.mean() > 0.99
        assert np.array_equal(found[clear], expected.argmax(-1)[clear])


def test_first_of_equal_logits_and_nan():
    logits = jnp.zeros((2, 3, K)).at[0, 0, 3].set(jnp.nan).at[1, 1, 4].set(1).at[1, 2, 2].set(-1)
    size = jnp.array([2, 3])
    assert np.asarray(resize_and_classify(logits, size, size, (2, 3))).tolist() == [[K, 0, 0], [0, 4, 0]]
    many = resize_and_classify(jnp.zeros((1, 1, 300)), jnp.array([1, 1]), jnp.array([1, 1]), (1, 1))
    assert many.dtype == np.int32


def test_one_image_of_logits_in_memory_at_a_time():
    """The second stage's temporary memory does not grow with the batch, nor to the size of native logits."""
    rows, columns, k, native = 24, 32, 19, (512, 512)

    def temporary(batch_size):
        def one(row):
            return resize_and_classify(*row, native)

        sizes = jnp.full((batch_size, 2), 500)
        stage = jax.jit(lambda logits: jax.lax.map(one, (logits, jnp.full((batch_size, 2), 24), sizes)))
        compiled = stage.lower(jnp.zeros((batch_size, rows, columns, k))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    native_logits = native[0] * native[1] * k * 4
    assert temporary(8) < temporary(1) + 8 * native[0] * native[1] + 2**20  # the predictions themselves are u8
    assert temporary(8) < 8 * native_logits / 4


def test_fitted_labels_are_the_pipelines():
    for fit in ("stretch", "pad"):
        for batch in batches(5, 3, fit):
            fitted = fit_labels(batch, IGNORE)["label"]
            for row in np.flatnonzero(batch["valid"]):
                label = Scenes(5)[int(batch["index"][row])]["label"].astype(np.int32)
                assert np.array_equal(fitted[row], canvas.fit_label(label, SIZE, fit, IGNORE))


def test_pictures_progress_and_no_second_compilation():
    traces = []

    def counted(variables, image, *, train):
        traces.append(image.shape)
        return apply(variables, image, train=train)

    done = []
    for _ in range(2):
        result = evaluate(counted, VARIABLES, batches(7, 3), progress=done.append, collect=4, **OPTIONS)
    assert traces == [(3, *SIZE, 3)]
    assert done == [3, 6, 7] * 2
    assert [picture["index"] for picture in result["pictures"]] == [0, 1, 2, 3]
    for picture in result["pictures"]:
        example = Scenes(7)[picture["index"]]
        assert np.array_equal(picture["label"], example["label"])
        assert np.array_equal(picture["image"], canvas.fit_image(example["image"], SIZE, "stretch"))
        assert picture["prediction"].shape == example["label"].shape


def test_variables_on_many_devices_and_an_empty_set():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    placed = evaluation.place_variables(VARIABLES, mesh)
    one = evaluate(apply, placed, batches(3, 2), mesh=mesh, **OPTIONS)
    two = evaluate(apply, VARIABLES, batches(3, 2), **OPTIONS)
    assert np.array_equal(confusion.matrix(one["counts"]), confusion.matrix(two["counts"]))
    nothing = evaluate(apply, VARIABLES, [], **OPTIONS)
    assert np.isnan(nothing["miou"]) and nothing["examples"] == 0


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="resolution is 'half'"):
        evaluate(apply, VARIABLES, [], resolution="half", **OPTIONS)
    with pytest.raises(ValueError, match="absent"):
        evaluate(apply, VARIABLES, [], absent="maybe", **OPTIONS)
