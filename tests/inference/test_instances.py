"""From images to detections: boxes and masks in native pixels, whatever the canvas, the company and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from segjax import rle
from segjax.data import canvas
from segjax.inference import evaluation, instances, mask_windows, whole_image
from segjax.inference.instances import choose_canvas, detections_of, make_predict_instances

OPTIONS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
ROWS, CELLS = 5, 4
SIZES = [(1, 1), (20, 70), (100, 30), (16, 24), (65, 129), (20, 70)]


def apply(variables, image, *, train, content_size):
    """Five boxes at fixed shares of the content; their scores depend on the image, two rows are not valid."""
    assert not train
    rows, columns = content_size[:, 0].astype(jnp.float32), content_size[:, 1].astype(jnp.float32)
    shares = jnp.array([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.9, 1.2], [0, 0, 1, 1], [0.3, 0.3, 0.3, 0.9]])
    boxes = shares[None] * jnp.stack([columns, rows, columns, rows], axis=-1)[:, None]
    inside = jnp.arange(image.shape[1])[None, :, None] < content_size[:, :1, None]
    inside &= jnp.arange(image.shape[2])[None, None, :] < content_size[:, 1:, None]
    mean = (image[..., 0] * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))

    # A loop whose carry begins as a constant, as that of an NMS does.
    def body(i, total):
        return total + mean * variables["params"]["factor"] / 3

    mean = jax.lax.fori_loop(0, 3, body, jnp.zeros(()) * jnp.ones(len(image)))
    scores = mean[:, None] * jnp.array([[1.0, 0.9, 0.5, 0.4, 0.3]])
    masks = jnp.broadcast_to(jnp.array([1.0, 0.8, 0.3, 0.9]), (len(image), ROWS, CELLS, CELLS))
    valid = jnp.broadcast_to(jnp.array([True, True, True, False, True]), (len(image), ROWS))
    classes = jnp.broadcast_to(jnp.arange(1, ROWS + 1), (len(image), ROWS))
    extra = {"proposals": jnp.zeros((len(image), 7, 4))}
    return {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks, "valid": valid, **extra}


VARIABLES = {"params": {"factor": jnp.float32(1.0)}}


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(90, 256, (*size, 3), np.uint8) for size in SIZES]


def predictor(**changes):
    options = {"sizes": [(16, 24), (32, 16)], "fit": "pad", "batch_size": 4, "first_class": 1, **OPTIONS, **changes}
    return make_predict_instances(apply, VARIABLES, **options)


def assert_same(first, second):
    assert first.image_size == second.image_size and list(first.masks) == list(second.masks)
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5)


@pytest.mark.parametrize("fit", canvas.FITS)
def test_boxes_are_those_shares_of_every_image(fit):
    found = predictor(fit=fit)(pictures())
    assert [detections.image_size for detections in found] == SIZES
    for detections, (rows, columns) in zip(found, SIZES, strict=True):
        shares = np.float32([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.9, 1.0]])  # clipped; no row 3, no row 4
        expected = shares * np.float32([columns, rows, columns, rows])
        np.testing.assert_allclose(detections.boxes, expected, rtol=1e-5, atol=1e-5)
        assert detections.classes.tolist() == [0, 1, 2] and detections.classes.dtype == np.int32
        assert detections.boxes.dtype == detections.scores.dtype == np.float32 and len(detections) == 3
        assert (detections.boxes <= [columns, rows, columns, rows]).all()
        assert [mask["size"] for mask in detections.masks] == [[rows, columns]] * 3


def test_masks_are_pasted_into_the_native_boxes():
    detections = predictor(paste_rule="detectron2")(pictures()[4:5])[0]
    mask = np.tile(np.float32([1, 0.8, 0.3, 0.9]), (CELLS, 1))
    for box, found in zip(detections.boxes, detections.masks, strict=True):
        (y, x), inside = mask_windows.paste(mask, box, (65, 129), rule="detectron2")
        whole = np.zeros((65, 129), bool)
        whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        assert np.array_equal(rle.decode(found), whole) and whole.any()
    torchvision = predictor()(pictures()[4:5])[0]
    assert rle.area(torchvision.masks)[1] != rle.area(detections.masks)[1]


@pytest.mark.parametrize("fit", canvas.FITS)
def test_detections_depend_neither_on_the_company_nor_on_the_devices(fit):
    images = pictures()
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    together = predictor(fit=fit)(images)
    spread = predictor(fit=fit, mesh=mesh)(images)  # 4 rows on 3 devices
    alone = predictor(fit=fit, batch_size=1)
    for image, first, second in zip(images, together, spread, strict=True):
        assert_same(first, second)
        assert_same(first, alone([image])[0])


def test_a_canvas_is_compiled_for_once():
    traces = []

    def counted(variables, image, **options):
        traces.append(image.shape)
        return apply(variables, image, **options)

    options = {"sizes": [(16, 24), (32, 16)], "fit": "pad", "batch_size": 2, **OPTIONS}
    predict = make_predict_instances(counted, VARIABLES, **options)
    for images in (pictures(), pictures()[:1], pictures()[2:5]):
        predict(images)
    assert sorted(traces) == [(2, 16, 24, 3), (2, 32, 16, 3)]
    assert predict([]) == []


def test_threshold_and_invalid_options():
    images = [np.full((16, 24, 3), 255, np.uint8)]
    assert len(predictor(threshold=0.6)(images)[0]) == 2
    assert len(predictor(threshold=2.0)(images)[0]) == 0
    for wrong in ({"fit": "tile"}, {"paste_rule": "soft"}, {"sizes": []}):
        with pytest.raises(ValueError, match="expected one of stretch, pad, crop"):
            predictor(**wrong)


def test_an_image_without_detections():
    outputs = {
        "boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "classes": np.zeros(0, np.int32),
        "masks": np.zeros((0, 28, 28), np.float32), "valid": np.zeros(0, bool),
    }  # fmt: skip
    found = detections_of(outputs, content_size=(8, 8), native_size=(5, 6))
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.masks == () and found.image_size == (5, 6)


def test_rows_that_are_not_finite_are_left_out():
    nan = np.float32("nan")
    outputs = {
        "boxes": np.float32([[0, 0, 4, 4], [0, 0, nan, 4], [0, 0, 4, 4]]), "scores": np.float32([0.5, 0.9, nan]),
        "classes": np.arange(3), "masks": np.ones((3, 28, 28), np.float32), "valid": np.ones(3, bool),
    }  # fmt: skip
    assert detections_of(outputs, content_size=(8, 8), native_size=(8, 8)).classes.tolist() == [0]


def test_what_the_evaluation_shares():
    """Its batches, through the same two functions, give what predict gives."""
    images = pictures()[:3]
    batch = whole_image.fitted_batch(images, (16, 24), "pad", 4)
    forward = instances.make_forward(apply, **OPTIONS)
    found = instances.batch_detections(forward(VARIABLES, evaluation.place_batch(batch, None)), batch, first_class=1)
    assert len(found) == 3
    for first, second in zip(found, predictor(sizes=[(16, 24)])(images), strict=True):
        assert_same(first, second)


@pytest.mark.parametrize(
    ("image_size", "fit", "sizes", "expected"),
    [
        ((10, 14), "crop", [(64, 64), (16, 24), (32, 16)], (16, 24)),  # the nearest of those that hold it
        ((30, 22), "crop", [(64, 64), (16, 24), (32, 16)], (64, 64)),
        ((40, 10), "crop", [(16, 24), (32, 16)], (64, 16)),  # its own, in the axis that does not fit the nearest
        ((200, 100), "pad", [(16, 24), (32, 16)], (32, 16)),
        ((100, 200), "pad", [(16, 24), (32, 16)], (16, 24)),
        ((60, 90), "stretch", [(64, 64), (16, 24), (32, 16)], (16, 24)),
        ((10, 10), "stretch", [(16, 24), (32, 32), (64, 64)], (32, 32)),  # of equals the first
    ],
)
def test_choice_of_the_canvas(image_size, fit, sizes, expected):
    assert choose_canvas(image_size, sizes, fit) == expected
