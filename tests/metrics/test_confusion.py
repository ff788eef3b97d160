"""Confusion counts against a loop over pixels, then torchmetrics; exactness, order, devices, policies."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.metrics import confusion

IGNORE = 255


def by_pixel(prediction, label, num_classes, ignore_label=None, valid=None):
    """The definition: one pixel at a time."""
    table = np.zeros((num_classes, num_classes + 1), np.int64)
    valid = np.ones(label.shape, bool) if valid is None else np.broadcast_to(
        valid.reshape(valid.shape + (1,) * (label.ndim - valid.ndim)), label.shape)  # fmt: skip
    for p, t, v in zip(prediction.ravel().tolist(), label.ravel().tolist(), valid.ravel(), strict=True):
        if v and 0 <= t < num_classes and t != ignore_label:
            table[t, p if 0 <= p < num_classes else num_classes] += 1
    return table


def pixels(seed, num_classes=5, shape=(4, 7, 9), label_type=np.int32):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes + 1, shape)
    label = np.where(label == num_classes, IGNORE, label).astype(label_type)
    return rng.integers(-1, num_classes + 2, shape).astype(np.int32), label


def test_counts_are_those_of_a_loop_over_pixels():
    for label_type, ignore_label in ((np.uint8, IGNORE), (np.int32, IGNORE), (np.int32, None), (np.int32, 2)):
        prediction, label = pixels(0, label_type=label_type)
        counts = confusion.update(confusion.empty(5), prediction, label, ignore_label=ignore_label)
        np.testing.assert_array_equal(confusion.matrix(counts), by_pixel(prediction, label, 5, ignore_label))


def test_labels_outside_the_range_count_nowhere_and_such_predictions_are_misses():
    label = np.array([-1, -7, 3, 255, 2**31 - 1, 0, 0, 1], np.int32)
    prediction = np.array([0, 0, 0, 0, 0, -5, 3, 2**31 - 1], np.int32)
    table = confusion.matrix(confusion.update(confusion.empty(3), prediction, label))
    np.testing.assert_array_equal(table, [[0, 0, 0, 2], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert confusion.compute(confusion.update(confusion.empty(3), prediction, label))["pixel_accuracy"] == 0.0


@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 7, 9)])
def test_valid_is_a_prefix_of_the_labels_shape(shape):
    prediction, label = pixels(1)
    valid = np.random.default_rng(2).random(shape) < 0.5
    counts = confusion.update(confusion.empty(5), prediction, label, valid=valid)
    np.testing.assert_array_equal(confusion.matrix(counts), by_pixel(prediction, label, 5, valid=valid))


def test_both_forms_of_the_histogram_are_one():
    rng = np.random.default_rng(3)
    row, column = (jnp.asarray(rng.integers(0, 8, 1000), jnp.int32) for _ in range(2))
    np.testing.assert_array_equal(confusion._scatter(row, column, 7), confusion._one_hot(row, column, 7))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(8)), cuts=st.lists(st.integers(1, 7), max_size=4))
def test_any_order_and_any_batch_size_give_the_same_bits(order, cuts):
    prediction, label = pixels(4, shape=(8, 5))
    expected = confusion.update(confusion.empty(5), prediction, label)
    counts = confusion.empty(5)
    for rows in np.split(np.array(order), sorted(set(cuts))):
        part = confusion.update(confusion.empty(5), prediction[rows], label[rows])
        counts = confusion.merge(part, counts)
    for mine, theirs in zip(counts, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_as_a_scan_carry():
    prediction, label = pixels(5, shape=(6, 3, 4))
    update = functools.partial(confusion.update, ignore_label=IGNORE)
    counts, _ = jax.jit(
        lambda p, t: jax.lax.scan(lambda c, x: (update(c, *x), None), confusion.empty(5), (p, t))
    )(prediction, label)  # fmt: skip
    np.testing.assert_array_equal(confusion.matrix(counts), by_pixel(prediction, label, 5, IGNORE))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bits_do_not_depend_on_the_number_of_devices(devices):
    prediction, label = pixels(6, shape=(8, 6, 7))
    expected = confusion.update(confusion.empty(5), prediction, label, ignore_label=IGNORE)
    chosen = jax.devices()[:devices]

    def on_device(p, t):
        mine = confusion.update(confusion.empty(5), p, t, ignore_label=IGNORE)
        return confusion.merge(confusion.empty(5), jax.lax.psum(mine, "data"))

    split = [x.reshape(devices, 8 // devices, *x.shape[1:]) for x in (prediction, label)]
    mapped = jax.pmap(on_device, "data", out_axes=None, devices=chosen)(*split)
    rows = NamedSharding(Mesh(np.array(chosen), ("data",)), PartitionSpec("data"))
    sharded = jax.jit(functools.partial(confusion.update, ignore_label=IGNORE))(
        confusion.empty(5), jax.device_put(prediction, rows), jax.device_put(label, rows)
    )
    for counts in (mapped, sharded):
        for mine, theirs in zip(counts, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_exact_beyond_2_to_the_33():
    """Doubling by merge 20 times and adding odd counts on the way, against Python integers."""
    counts, table = confusion.empty(3), np.zeros((3, 4), object)
    merge = jax.jit(confusion.merge)
    for turn in range(20):
        prediction, label = pixels(turn, num_classes=3, shape=(100_003,))
        new = confusion.update(confusion.empty(3), prediction, label)
        counts = merge(merge(counts, counts), new)
        table = 2 * table + confusion.matrix(new)
    assert table.sum() > 2**35 and table.min() > 2**31
    np.testing.assert_array_equal(confusion.matrix(counts), table)
    assert counts.low.dtype == jnp.uint32 and int(counts.low.max()) < 2**16
    iou = [int(table[k, k]) / int(table[k].sum() + table[:, k].sum() - table[k, k]) for k in range(3)]
    np.testing.assert_allclose(confusion.compute(counts)["iou"], iou, rtol=1e-15)


def test_a_psum_of_full_limbs_keeps_every_pixel():
    full = confusion.Counts(*(jnp.full((2, 3), value, jnp.uint32) for value in (2**16 - 1, 5)))
    summed = jax.pmap(lambda _, c: jax.lax.psum(c, "i"), "i", in_axes=(0, None), out_axes=None)(np.arange(8), full)
    expected = np.full((2, 3), 8 * (2**16 - 1 + 5 * 2**16))
    np.testing.assert_array_equal(confusion.matrix(summed), expected)
    np.testing.assert_array_equal(confusion.matrix(confusion.merge(confusion.empty(2), summed)), expected)


# class 0: 3 hits, 1 taken for 2; class 1: absent; class 2: only predicted; class 3: one miss outside [0, K).
POLICY_LABEL, POLICY_PREDICTION = np.array([0, 0, 0, 0, 3]), np.array([0, 0, 0, 2, 9])
NAN = np.nan


@pytest.mark.parametrize(
    ("absent", "iou", "dice"),
    [
        ("skip", [0.75, NAN, 0, 0], [6 / 7, NAN, 0, 0]),
        ("zero", [0.75, 0, 0, 0], [6 / 7, 0, 0, 0]),
        ("ground_truth_only", [0.75, NAN, NAN, 0], [6 / 7, NAN, NAN, 0]),
    ],
)
def test_policies_for_absent_classes(absent, iou, dice):
    counts = confusion.update(confusion.empty(4), POLICY_PREDICTION, POLICY_LABEL)
    traced = jax.jit(functools.partial(confusion.compute, absent=absent))(counts)
    for scores, rtol in ((confusion.compute(counts, absent=absent), 1e-15), (traced, 1e-6)):
        np.testing.assert_allclose(scores["iou"], iou, rtol=rtol)
        np.testing.assert_allclose(scores["dice"], dice, rtol=rtol)
        np.testing.assert_allclose(scores["accuracy"], iou, rtol=rtol)  # 3 of 4, and 0 where any pixel is
        for mean, values in (("miou", iou), ("mean_dice", dice), ("mean_accuracy", iou)):
            np.testing.assert_allclose(scores[mean], np.nanmean(values), rtol=rtol)
        np.testing.assert_allclose(scores["pixel_accuracy"], 0.6, rtol=rtol)
        np.testing.assert_allclose(scores["fwiou"], 0.75 * 4 / 5, rtol=rtol)
        np.testing.assert_array_equal(scores["support"], [4, 0, 0, 1])
        np.testing.assert_array_equal(scores["predicted"], [3, 0, 1, 0])


@pytest.mark.parametrize("absent", confusion.ABSENT)
def test_nothing_counted_scores_nan(absent):
    counts = confusion.update(confusion.empty(3), np.zeros(4, np.int32), np.full(4, IGNORE))
    for scores in (confusion.compute(counts, absent=absent), jax.jit(confusion.compute)(counts)):
        for name in ("miou", "pixel_accuracy", "mean_accuracy", "fwiou", "mean_dice"):
            assert np.isnan(scores[name]), name


def test_against_torchmetrics(golden_dir):
    cases = json.loads((golden_dir / "dev/metrics_segmentation.json").read_text())["cases"]
    stored = np.load(golden_dir / "dev/metrics_segmentation.npz")
    for case in cases:
        get = {key.split("/")[1]: stored[key] for key in stored.files if key.startswith(case["name"] + "/")}
        counts = confusion.empty(case["num_classes"])
        for prediction, target in zip(get["prediction"], get["target"], strict=True):
            counts = confusion.update(counts, prediction, target, ignore_label=case["ignore_index"])
        np.testing.assert_array_equal(confusion.matrix(counts)[:, :-1], get["confusion"], err_msg=case["name"])
        scores = confusion.compute(counts)
        nothing = scores["pixels"] == 0  # torchmetrics: accuracies 0 there, ours NaN
        for mine, theirs in {
            "iou": "iou_none", "miou": "iou_macro", "fwiou": "iou_weighted", "accuracy": "accuracy_none",
            "mean_accuracy": "accuracy_macro", "pixel_accuracy": "accuracy_micro",
        }.items():  # fmt: skip
            value, expected = scores[mine], get[theirs]
            value = np.nan_to_num(value) if value.ndim or (nothing and "accuracy" in mine) else value
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6, err_msg=f"{case['name']} {mine}")


def test_wrong_input_is_refused_with_the_value():
    counts, zeros = confusion.empty(2), np.zeros((2, 3), np.int32)
    for arguments, words in (
        ((zeros, zeros[:1]), r"\(2, 3\).*\(1, 3\)"),
        ((zeros.astype(np.float32), zeros), "float32.*integers"),
        ((zeros, zeros.astype(np.float32)), "float32.*integers"),
    ):
        with pytest.raises(ValueError, match=words):
            confusion.update(counts, *arguments)
    with pytest.raises(ValueError, match="expected bool"):
        confusion.update(counts, zeros, zeros, valid=np.ones(3, bool))
    with pytest.raises(ValueError, match="skip, zero, ground_truth_only"):
        confusion.compute(counts, absent="ignore")
    with pytest.raises(ValueError, match="2 and of 3"):
        confusion.merge(counts, confusion.empty(3))
    with pytest.raises(ValueError, match="at least 1"):
        confusion.empty(0)
