"""Images of any size: the ids of the evaluation, whatever they are batched with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from segjax.data import canvas
from segjax.inference import evaluation
from segjax.inference.whole_image import bucket, make_predict_images

K = 5
OPTIONS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def apply(variables, image, *, train):
    del variables, train
    red = jnp.round(image[..., :1] * 255)
    return {"logits": jnp.mod(2 * red + 3 * jnp.arange(K).reshape(1, 1, 1, K), 7.0)}


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(1, 1), (20, 70), (100, 30), (16, 24), (65, 129)]]


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_ids_do_not_depend_on_the_company(fit):
    images, size = pictures(), (16, 24)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    together = make_predict_images(apply, {}, size=size, fit=fit, batch_size=8, mesh=mesh, **OPTIONS)(images)
    alone = make_predict_images(apply, {}, size=size, fit=fit, batch_size=1, **OPTIONS)
    for image, ids in zip(images, together, strict=True):
        assert ids.shape == image.shape[:2]
        assert np.array_equal(ids, alone([image])[0])


def test_ids_are_those_the_evaluation_counts():
    images, size = pictures(), (16, 24)
    ids = make_predict_images(apply, {}, size=size, fit="pad", batch_size=5, **OPTIONS)(images)
    native = np.array([image.shape[:2] for image in images], np.int32)
    labels = np.full((5, 128, 192), 255, np.int32)
    for row, found in enumerate(ids):
        labels[row, : found.shape[0], : found.shape[1]] = found
    batch = {
        "image": np.stack([canvas.fit_image(image, size, "pad") for image in images]),
        "label": labels,
        "valid": np.ones(5, bool),
        "native_size": native,
        "content_size": np.array([canvas.content_size(tuple(n), size, "pad") for n in native.tolist()], np.int32),
        "index": np.arange(5),
    }
    result = evaluation.evaluate(apply, {}, [batch], num_classes=K, ignore_label=255, **OPTIONS)
    assert result["pixel_accuracy"] == 1.0 and result["pixels"] == native.prod(axis=1).sum()


def test_crop_predicts_on_the_pictures_own_grid():
    image = pictures()[4]
    ids = make_predict_images(apply, {}, size=(16, 24), fit="crop", batch_size=1, **OPTIONS)([image])[0]
    logits = apply({}, jnp.asarray(image[None] / np.float32(255)), train=False)["logits"]
    assert np.array_equal(ids, np.asarray(logits)[0].argmax(-1))


def test_buckets_are_few_and_not_much_larger():
    lengths = np.arange(1, 5000)
    padded = np.array([bucket(int(n)) for n in lengths])
    assert (padded >= lengths).all() and (padded % 64 == 0).all()
    assert (padded[255:] <= 1.25 * lengths[255:]).all()
    assert len(set(padded.tolist())) < 24
