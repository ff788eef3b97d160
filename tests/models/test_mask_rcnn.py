"""Mask R-CNN: sizes, what training samples, that nothing but the images matters, options, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import layers, losses, models, ops
from segjax.models import _detection_presets, _region_norm, _roi_heads, _rpn, _samples
from segjax.types import InputError

K = 3
SMALL = {
    "backbone": "resnet18",
    "width": 0.125,
    "channels": 8,
    "box_channels": 16,
    "mask_channels": 8,
    "mask_convs": 1,
    "anchor_sizes": (8, 16, 32, 48, 64),
    "rpn_pre_nms": (40, 30),
    "rpn_post_nms": (40, 30),
    "rpn_samples": 16,
    "box_samples": 16,
    "detections": 7,
    "score_threshold": 0.0,
}


def build(**options):
    return models.build("mask_rcnn", num_classes=K, **{**SMALL, **options})


def compiled(function, **options):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


@functools.cache
def variables_of(**options):
    return draw(jax.eval_shape(build(**options).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def images(rows, size=(48, 70), seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *size, 3)).astype(np.float32)


def batch_of(rows, objects=3, seed=1):
    """Targets whose first example has no object and whose second is covered by one."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (rows, objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 18, corner.shape)], axis=-1).astype(np.float32)
    batch = {
        "boxes": boxes,
        "mask_boxes": boxes,
        "classes": rng.integers(0, K, (rows, objects)).astype(np.int32),
        "masks": (255 * (rng.random((rows, objects, 14, 14)) < 0.7)).astype(np.uint8),
        "boxes_valid": np.ones((rows, objects), bool),
        "crowd": np.zeros((rows, objects), bool),
        "valid": np.ones(rows, bool),
        "content_size": np.full((rows, 2), (48, 70), np.int32),
    }
    if objects:
        batch["boxes_valid"][0] = False
        if rows > 1:
            batch["boxes"][1, 0] = batch["mask_boxes"][1, 0] = (0, 0, 70, 48)
    return batch


def objective(module, variables, image, batch, key):
    """Returns ((value, (terms, outputs, statistics)), gradients)."""
    loss = losses.build("mask_rcnn", num_classes=K, ignore_label=255)

    def total(params):
        call = {"train": True, "targets": batch, "key": key}
        outputs, stats = module.apply({**variables, "params": params}, image, **call)
        terms = loss(outputs, batch)
        parts = (value / jnp.where(weight > 0, weight, 1.0) for value, weight in terms.values())
        return sum(parts), (terms, outputs, stats)

    return jax.value_and_grad(total, has_aux=True)(variables["params"])


@functools.cache
def step(**options):
    return compiled(functools.partial(objective, build(**options)))


@functools.cache
def forward(**options):
    return compiled(build(**options).apply)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (33, 97)),
        pytest.param({}, (1, 1), marks=pytest.mark.slow),
        pytest.param({"preset": "torchvision"}, (1, 1), marks=pytest.mark.slow),
        pytest.param({"preset": "torchvision"}, (33, 97), marks=pytest.mark.slow),
        pytest.param({"architecture": "c4", "background": "first"}, (1, 1), marks=pytest.mark.slow),
        pytest.param({"architecture": "c4", "background": "first"}, (33, 97), marks=pytest.mark.slow),
    ],
)
def test_sizes_of_the_detections(options, size):
    module, columns = build(**options), K + 1
    outputs = jax.eval_shape(module.apply, variables_of(**options), jnp.zeros((2, *size, 3)))
    proposals, side = outputs["proposals"].shape[1], 14 if options.get("architecture") == "c4" else 28
    shapes = {
        "boxes": (2, 7, 4),
        "scores": (2, 7),
        "classes": (2, 7),
        "masks": (2, 7, side, side),
        "valid": (2, 7),
        "proposals": (2, proposals, 4),
        "proposal_scores": (2, proposals),
        "proposals_valid": (2, proposals),
        "class_logits": (2, proposals, columns),
        "box_regression": (2, proposals, 4 * (K + module.first_class)),
    }
    assert {name: value.shape for name, value in outputs.items()} == shapes and proposals <= 30
    assert outputs["boxes"].dtype == jnp.float32 and outputs["classes"].dtype == jnp.int32


@pytest.mark.parametrize("preset", _detection_presets.PRESETS)
def test_number_of_parameters(preset):
    """torchvision's of both versions (its documentation), their background's box code and mask included."""
    module = models.build("mask_rcnn", num_classes=90, preset=preset)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    v1 = 44_401_393
    coded = 4 * 1025 + 257  # of a class
    # Frozen norms are no parameters in torchvision: 53 norms of 26,560 channels in all, two numbers each.
    norms = 2 * 26_560
    expected = {"torchvision": v1 + norms, "torchvision_v2": 46_359_409}.get(preset, v1 + norms - coded)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_a_row_of_the_batch_is_detected_alone_and_padding_does_not_matter():
    """Other images, and what lies outside an image's part of the canvas, change nothing; boxes stay inside it."""
    image, variables = images(2), variables_of()
    size = np.array([[48, 70], [29, 41]], np.int32)
    outputs = forward()(variables, image, content_size=size)
    other = image.copy()
    other[0] = 5.0
    other[1, 29:] = np.nan
    other[1, :, 41:] = 9.0
    changed = forward()(variables, other, content_size=size)
    assert not np.array_equal(outputs["scores"][0], changed["scores"][0])
    for name in outputs:
        np.testing.assert_array_equal(outputs[name][1], changed[name][1], err_msg=name)
    assert np.all(np.asarray(outputs["boxes"][1])[:, 2:] <= (41, 29)) and np.all(outputs["boxes"] >= 0)
    scores = np.where(outputs["valid"], outputs["scores"], -1)
    assert np.all(np.diff(scores, axis=1) <= 0) and np.all(outputs["classes"] < K)


@pytest.mark.slow
def test_resized_within_and_boxes_in_the_given_pixels():
    """Twice the size by ``min_size`` is twice the size beforehand, with boxes divided by two."""
    image, variables = images(1, (32, 64)), variables_of()
    within = forward(min_size=64)(variables, image)
    before = forward()(variables, ops.resize(image, (64, 128), method="bilinear"))
    np.testing.assert_allclose(2 * within["boxes"], before["boxes"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(within["scores"], before["scores"], rtol=1e-5, atol=1e-6)
    assert build(min_size=64, max_size=100)._size((32, 64)) == (50, 100)  # the longer side binds
    assert build(min_size=800, max_size=1333)._size((427, 640)) == (800, 1199)  # torchvision's, rounded down


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"architecture": "c4"}, marks=pytest.mark.slow),
        pytest.param({"preset": "torchvision_v2"}, marks=pytest.mark.slow),
        pytest.param({"preset": "detectron2"}, marks=pytest.mark.slow),
    ],
)
def test_training(options):
    """Finite losses and gradients, an empty image and one object covering everything among them; norms move."""
    options = {**options, "backbone": "resnet18"} if options else options
    variables = variables_of(**options)
    run = step(**options)
    (value, (terms, outputs, stats)), gradients = run(variables, images(2), batch_of(2), jax.random.key(0))
    assert set(terms) == {"rpn_objectness", "rpn_box", "classification", "box", "mask"}
    assert np.isfinite(value) and all(weight > 0 for _, weight in terms.values())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((outputs, gradients, stats)))
    assert not np.any(outputs["box_positive"][0]) and np.any(outputs["box_positive"][1])
    module = build(**options)
    for fixed, leaf in zip(jax.tree.leaves(module.frozen(gradients)), jax.tree.leaves(gradients), strict=True):
        assert not (fixed and np.any(leaf))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients["mask_head"]))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), stats, variables["batch_stats"])
    assert any(jax.tree.leaves(moved)) == (module.backbone_norm == "batch")


@pytest.mark.parametrize("objects", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_batch_without_objects_trains(objects):
    batch = batch_of(2, objects)
    batch["boxes_valid"][:] = False
    (value, (terms, _, _)), gradients = step()(variables_of(), images(2), batch, jax.random.key(0))
    assert np.isfinite(value) and terms["mask"][1] == 0 and terms["box"][0] == 0 and terms["rpn_box"][0] == 0
    assert terms["rpn_objectness"][1] == 32 and terms["classification"][1] == 32
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["mask_head"]))


@pytest.mark.slow
def test_what_stands_in_rows_that_only_fill_up_changes_nothing():
    """Objects that are not valid, and images that are not."""
    image, batch = images(3), batch_of(3)
    batch["boxes_valid"][2, 1:] = False
    batch["valid"][0] = False
    other, other_image = {name: value.copy() for name, value in batch.items()}, image.copy()
    other["boxes"][2, 1:] = other["mask_boxes"][2, 1:] = np.nan
    other["classes"][2, 1:], other["masks"][2, 1:] = 77, 9
    options = {"backbone_norm": "frozen"}  # so that images do not see each other
    other_image[0] = 3.0
    found = step(**options)(variables_of(), image, batch, jax.random.key(0))
    changed = step(**options)(variables_of(), other_image, other, jax.random.key(0))
    for mine, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(changed[1]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert found[0][0] == pytest.approx(changed[0][0], rel=1e-6)


def test_one_compilation_serves_varied_batches_and_the_key_decides():
    run, variables = step(), variables_of()
    before = run._cache_size()
    values = [run(variables, images(2, seed=n), batch_of(2, seed=n), jax.random.key(n))[0][0] for n in range(3)]
    assert run._cache_size() - before <= 1 and len(set(map(float, values))) == 3
    args = variables, images(2), batch_of(2)
    first, again, other = (run(*args, jax.random.key(n))[0][0] for n in (0, 0, 1))
    assert first == again != other


@pytest.mark.slow
def test_training_does_not_depend_on_the_number_of_devices():
    """Samples follow an image's place in the global batch."""
    variables, key, image, batch = variables_of(), jax.random.key(4), images(2), batch_of(2)
    (_, (_, expected, _)), _ = step()(variables, image, batch, key)
    module = build(axis_name="data")

    def apply(variables, image, batch, key):
        return module.apply(variables, image, train=True, targets=batch, key=key)[0]

    split = jax.tree.map(lambda x: x.reshape(2, 1, *x.shape[1:]), (image, batch))
    mapped = jax.pmap(apply, "data", in_axes=(None, 0, 0, None), devices=jax.devices()[:2])(variables, *split, key)
    for name, value in expected.items():
        found = np.asarray(mapped[name]).reshape(value.shape)
        np.testing.assert_allclose(found, value, rtol=2e-3, atol=2e-3, err_msg=name)


def truth_of(boxes, crowd=None, valid=None):
    boxes = np.asarray(boxes, np.float32)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd)
    valid = ~crowd if valid is None else np.asarray(valid)
    return _samples.Truth(boxes, np.zeros(len(boxes), np.int32), valid, crowd, np.float32(1))


def test_boxes_inside_a_crowd_are_neither():
    """Unless they are objects themselves; with 0 the crowd is not there."""
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [25, 0, 45, 10], [60, 0, 70, 10], [22, 2, 26, 8]], np.float32)
    truth = truth_of([[20, 0, 30, 10], [15, 0, 40, 10]], crowd=[False, True])
    options = {"foreground": 0.5, "background": 0.5, "low_quality": False}
    # Shares within the crowd: 0, 1, 0.75, 0, 1.
    for threshold, expected in ((0.7, [0, 1, -1, 0, -1]), (0.8, [0, 1, 0, 0, -1]), (0.0, [0, 1, 0, 0, 0])):
        _, label = _samples.assign(boxes, truth, crowd_threshold=threshold, **options)
        np.testing.assert_array_equal(label, expected)


def test_sampled_regions():
    """Objects first, at most their share; the objects' own boxes are among the candidates; coded against them."""
    truth = truth_of([[0, 0, 20, 20], [30, 30, 60, 50]])
    proposals = np.array([[1, 1, 20, 20], [40, 0, 60, 20], [0, 0, 0, 0]], np.float32)
    options = {
        "count": 8, "positive_fraction": 0.5, "foreground": 0.5, "background": 0.5, "crowd_threshold": 0.0,
        "weights": (10.0, 10.0, 5.0, 5.0), "background_column": 0, "first_class": 1,
    }  # fmt: skip
    found = _samples.sample_regions(jax.random.key(0), proposals, np.array([True, True, False]), truth, **options)
    np.testing.assert_array_equal(found["column"], [1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found["weight"], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found["positive"], [1, 1, 1, 0])
    decoded = ops.decode_boxes(found["target"], found["boxes"][:4], weights=options["weights"])
    np.testing.assert_allclose(decoded[:3], truth.boxes[np.asarray(found["object"][:3])], atol=1e-4)
    assert not np.any(found["target"][3])


@pytest.mark.parametrize("first", [0, 1])
def test_detections_by_their_definition(first):
    """A loop over classes and proposals; scores tie in places."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (20, 2))
    proposals = np.concatenate([corner, corner + rng.uniform(4, 25, (20, 2))], axis=1).astype(np.float32)
    logits = rng.integers(-2, 3, (20, K + 1)).astype(np.float32)
    deltas = rng.normal(size=(20, 4 * (K + first))).astype(np.float32)
    valid = rng.random(20) < 0.9
    options = {"weights": (10.0, 10.0, 5.0, 5.0), "score_threshold": 0.2, "iou_threshold": 0.3, "min_side": 3.0}
    size = np.array([50, 60], np.float32)
    found = _roi_heads.detect(logits, deltas, proposals, valid, size, first_class=first, count=12, **options)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    coded = ops.decode_boxes(deltas.reshape(20, -1, 4), proposals[:, None], weights=options["weights"])
    coded = np.clip(coded, 0, [60, 50, 60, 50])
    kept = []
    for column in range(first, K + first):
        rows = [i for i in range(20) if valid[i] and scores[i, column] > 0.2]
        rows = [i for i in rows if (coded[i, column, 2:] - coded[i, column, :2]).min() >= 3]
        alive = []
        for i in sorted(rows, key=lambda i: (-scores[i, column], i)):
            iou = [float(ops.box_iou(coded[None, i, column], coded[None, j, column])[0, 0]) for j in alive]
            alive += [i] if max(iou, default=0) <= 0.3 else []
        kept += [(-scores[i, column], i, column) for i in alive]
    kept = sorted(kept, key=lambda x: (round(x[0], 5), *x[1:]))[:12]
    number = len(kept)
    assert number == 12 or not found["valid"][number:].any()
    np.testing.assert_array_equal(found["classes"][:number], [column for _, _, column in kept])
    np.testing.assert_allclose(found["boxes"][:number], [coded[i, c] for _, i, c in kept], rtol=1e-6)
    np.testing.assert_allclose(found["scores"][:number], [-s for s, _, _ in kept], rtol=1e-5)


def test_proposals_are_the_best_of_each_level():
    """Two levels of a line of boxes that do not touch: no suppression, so the best by score; small ones left out."""
    anchors = [np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(n)], np.float32) for n in (5, 3)]
    logits = [np.array([1, 5, 3, 2, 4], np.float32), np.array([9, 0, 8], np.float32)]
    deltas = [np.zeros((5, 4), np.float32), np.zeros((3, 4), np.float32)]
    deltas[0][1, 2] = -9  # the best of its level is too narrow
    options = {"before": 4, "after": 6, "iou_threshold": 0.7, "min_side": 1.0, "rank_by": "logit"}
    boxes, scores, valid = _rpn.propose(logits, deltas, anchors, np.array([50.0, 75.0]), **options)
    np.testing.assert_array_equal(valid, [True] * 5 + [False])
    np.testing.assert_allclose(scores[:5], jax.nn.sigmoid(np.array([9.0, 8.0, 3.0, 2.0, 0.0])), rtol=1e-6)
    np.testing.assert_array_equal(boxes[:, 0], [0, 40, 40, 60, 20, 0])
    assert boxes[3, 2] == 70 and not boxes[5].any()


def test_norm_of_regions_counts_those_wanted():
    """As ``BatchNorm`` of the wanted rows alone, with its gradient; without any, by the running statistics."""
    rng = np.random.default_rng(0)
    x, wanted = rng.normal(1, 2, (6, 3, 3, 4)).astype(np.float32), np.array([1, 0, 1, 1, 0, 0], bool)
    weight = rng.normal(size=x.shape).astype(np.float32)
    norm, plain = _region_norm.RegionNorm(), layers.BatchNorm()
    variables = draw(jax.eval_shape(lambda: plain.init(jax.random.key(0), x, train=False)))

    def run(module, x, weight, **call):
        def value(x):
            y, stats = module.apply(variables, x, train=True, mutable=["batch_stats"], **call)
            return jnp.sum(weight * y), (y, stats["batch_stats"])

        (_, rest), gradient = jax.value_and_grad(value, has_aux=True)(x)
        return *rest, gradient

    counted = wanted[:, None, None, None]
    y, stats, gradient = run(norm, x, weight * counted, wanted=wanted)
    expected, expected_stats, expected_gradient = run(plain, x[wanted], weight[wanted])
    np.testing.assert_allclose(y[wanted], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[wanted], expected_gradient, rtol=1e-4, atol=1e-5)
    assert not np.any(gradient[~wanted])
    for name in ("mean", "var"):
        np.testing.assert_allclose(stats[name], expected_stats[name], rtol=1e-5)
    y, stats, gradient = run(norm, x, weight, wanted=np.zeros(6, bool))
    np.testing.assert_allclose(y, plain.apply(variables, x, train=False), rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(stats[name], variables["batch_stats"][name], rtol=1e-6)


def test_levels_by_size():
    sides = np.array([1, 111, 113, 223, 224, 447, 449, 2000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    for epsilon in ("inside", "outside"):
        np.testing.assert_array_equal(_roi_heads.levels_of(boxes, scales, epsilon), [0, 0, 1, 1, 2, 2, 3, 3])


def test_best_of_the_batch():
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.3, 0.2]], np.float32)
    valid = np.array([[True, True, True], [True, False, True]])
    np.testing.assert_array_equal(
        _rpn.best_of_batch(scores, valid, 4, None), [[True, True, False], [True, False, True]]
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "mmdet"}, "preset"),
        ({"architecture": "dc5"}, "architecture"),
        ({"backbone": "vgg16"}, "backbone"),
        ({"anchor_sizes": (8, 16)}, "anchor_sizes"),
        ({"rpn_background": 0.9}, "rpn_background"),
        ({"rpn_pre_nms": (0, 10)}, "rpn_pre_nms"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"min_size": 0}, "min_size"),
        ({"detections": 0}, "detections"),
    ],
)
def test_options_that_are_not_legal(options, named):
    with pytest.raises(InputError, match=named):
        build(**options)


def test_training_needs_targets_and_a_key():
    module, variables = build(), variables_of()
    key, batch = jax.random.key(0), batch_of(1)
    del batch["masks"]
    for given, named in (
        ({"key": key}, "targets=BATCH"),
        ({"targets": batch_of(1)}, "key=KEY"),
        ({"key": key, "targets": batch}, "'masks'"),
    ):
        with pytest.raises(ValueError, match=named):
            jax.eval_shape(lambda v, x, given=given: module.apply(v, x, train=True, **given), variables, images(1))
