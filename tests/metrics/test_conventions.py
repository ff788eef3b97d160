"""Each convention against its program's formula, written out on plain counts; classes absent and predicted only."""

import jax.numpy as jnp
import numpy as np
import pytest

from segjax.metrics import confusion, conventions

# Rows: labels; columns: predictions and, last, something outside [0, K).
FULL = [[50, 3, 7, 0], [2, 40, 0, 5], [1, 0, 9, 0]]
PREDICTED_ONLY = [[50, 3, 7, 2], [2, 40, 4, 0], [0, 0, 0, 0]]
NEITHER = [[50, 3, 0, 2], [2, 40, 0, 1], [0, 0, 0, 0]]
TABLES = {"full": FULL, "predicted only": PREDICTED_ONLY, "neither": NEITHER}


def counts(table):
    return confusion.Counts(jnp.asarray(table, jnp.uint32), jnp.zeros(np.shape(table), jnp.uint32))


def fcn(table):
    """score.py: hist with labels in its rows, np.nanmean."""
    hist = table[:, :3].astype(float)
    rows = table.sum(1)  # its own hist has no last column: a pixel given nothing is still a pixel of its class
    with np.errstate(invalid="ignore"):
        iu = np.diag(hist) / (rows + hist.sum(0) - np.diag(hist))
        acc = np.diag(hist) / rows
    freq = rows / rows.sum()
    return {"miou": np.nanmean(iu), "mean_accuracy": np.nanmean(acc), "fwiou": (freq[freq > 0] * iu[freq > 0]).sum(),
            "pixel_accuracy": np.diag(hist).sum() / rows.sum(), "iou": iu}  # fmt: skip


def torchvision(table):
    """references/segmentation/utils.py: plain means."""
    found = fcn(table)
    with np.errstate(invalid="ignore"):
        acc = np.diag(table) / table.sum(1)
    return {**found, "miou": found["iou"].mean(), "mean_accuracy": acc.mean()}


def mmsegmentation(table):
    """iou_metric.py: intersect / union, np.round(np.nanmean(value) * 100, 2)."""
    found = fcn(table)
    return {key: np.round(found[key] * 100, 2) / 100 for key in ("miou", "mean_accuracy", "pixel_accuracy", "iou")}


def detectron2(table):
    """sem_seg_evaluation.py: its matrix has predictions in its rows, the last row and column cut off."""
    conf = table[:, :3].T.astype(float)
    tp, pos_gt, pos_pred = conf.diagonal(), conf.sum(axis=0), conf.sum(axis=1)
    acc, iou = np.full(3, np.nan), np.full(3, np.nan)
    valid = pos_gt > 0
    acc[valid] = tp[valid] / pos_gt[valid]
    iou[valid] = tp[valid] / (pos_gt + pos_pred - tp)[valid]
    return {"miou": iou[valid].sum() / valid.sum(), "mean_accuracy": acc[valid].sum() / valid.sum(),
            "fwiou": (iou[valid] * (pos_gt / pos_gt.sum())[valid]).sum(), "pixel_accuracy": tp.sum() / pos_gt.sum(),
            "iou": iou}  # fmt: skip


def segnet(table):
    """compute_test_results.m: sums over classes divided by their number."""
    cf, points = table[:, :3].astype(float), table.sum()
    conf, iou = np.zeros(3), np.zeros(3)
    for i in range(3):
        if cf[i].sum() > 0:
            conf[i] = cf[i, i] / cf[i].sum()
            iou[i] = cf[i, i] / (cf[i].sum() + cf[:, i].sum() - cf[i, i])
    return {"miou": iou.sum() / 3, "mean_accuracy": conf.sum() / 3, "pixel_accuracy": np.diag(cf).sum() / points,
            "iou": iou}  # fmt: skip


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("formula", [fcn, torchvision, mmsegmentation, detectron2, segnet], ids=lambda f: f.__name__)
def test_scores_are_those_of_the_program(formula, table):
    found = conventions.compute(counts(table), convention=formula.__name__)
    for key, expected in formula(np.array(table)).items():
        np.testing.assert_allclose(found[key], expected, rtol=1e-12, err_msg=key)


def test_the_programs_disagree_where_classes_are_absent():
    """By hand, two classes of three: 4 / 6 and 2 / 4 where a third is predicted for 0, 0 pixels of it labelled."""
    table = [[4, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]]
    miou = {name: conventions.compute(counts(table), convention=name)["miou"] for name in conventions.CONVENTIONS}
    both = (4 / 6 + 2 / 4) / 2
    assert miou["fcn"] == miou["detectron2"] == miou["segjax"] == pytest.approx(both)
    assert np.isnan(miou["torchvision"]) and miou["mmsegmentation"] == 0.5833
    assert miou["segnet"] == pytest.approx(2 * both / 3)
    table[0][1], table[0][2] = 0, 1  # now one pixel of the first class is given the third
    miou = {name: conventions.compute(counts(table), convention=name)["miou"] for name in conventions.CONVENTIONS}
    assert miou["fcn"] == miou["torchvision"] == miou["segnet"] == pytest.approx((4 / 6 + 2 / 3) / 3)
    assert miou["detectron2"] == pytest.approx((4 / 6 + 2 / 3) / 2)


def test_segjax_is_confusion_compute():
    for absent in confusion.ABSENT:
        mine = conventions.compute(counts(NEITHER), absent=absent)
        np.testing.assert_equal(mine, confusion.compute(counts(NEITHER), absent=absent))


@pytest.mark.parametrize("name", conventions.CONVENTIONS)
def test_nothing_counted_is_nan(name):
    found = conventions.compute(confusion.empty(3), convention=name)
    assert all(np.isnan(found[key]) for key in ("miou", "mean_accuracy", "pixel_accuracy", "fwiou", "mean_dice"))
    assert set(found) == set(confusion.compute(confusion.empty(3)))


def test_an_unknown_convention_lists_the_known():
    with pytest.raises(ValueError, match="'voc'.*fcn, torchvision, mmsegmentation, detectron2, segnet"):
        conventions.compute(counts(FULL), convention="voc")
