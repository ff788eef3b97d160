"""The worked examples of the textbooks: class IoUs of 1/3 and 3/4, and a map with 15 of 16 pixels right."""

import numpy as np

from segjax.metrics import confusion


def counted(prediction, label, num_classes):
    """The confusion matrix without the column of misses outside the classes, and the scores."""
    counts = confusion.update(confusion.empty(num_classes), np.array(prediction), np.array(label))
    return confusion.matrix(counts)[:, :num_classes], confusion.compute(counts)


def test_class_ious_of_one_third_and_three_quarters():
    """Class 0 has 2 pixels in each map, 1 in both: 1 / (2 + 2 - 1). Class 1 has 7 and 7, 6 in both: 6 / (7 + 7 - 6)."""
    label = [[0, 0, 1],
             [1, 1, 1],
             [1, 1, 1]]  # fmt: skip
    prediction = [[0, 1, 1],
                  [1, 1, 0],
                  [1, 1, 1]]  # fmt: skip
    table, scores = counted(prediction, label, 2)
    np.testing.assert_array_equal(table, [[1, 1], [1, 6]])
    assert scores["iou"].tolist() == [1 / 3, 3 / 4]
    assert scores["miou"] == (1 / 3 + 3 / 4) / 2
    np.testing.assert_allclose(scores["miou"], 13 / 24, rtol=1e-15)
    assert scores["pixel_accuracy"] == 7 / 9


def test_fifteen_of_sixteen_pixels():
    """One of the four pixels of class 1 is taken for class 2."""
    label = [[0, 0, 1, 1],
             [0, 0, 1, 1],
             [2, 2, 3, 3],
             [2, 2, 3, 3]]  # fmt: skip
    prediction = [[0, 0, 1, 1],
                  [0, 0, 2, 1],
                  [2, 2, 3, 3],
                  [2, 2, 3, 3]]  # fmt: skip
    table, scores = counted(prediction, label, 4)
    np.testing.assert_array_equal(table, [[4, 0, 0, 0], [0, 3, 1, 0], [0, 0, 4, 0], [0, 0, 0, 4]])
    assert scores["pixel_accuracy"] == 15 / 16
    assert scores["accuracy"].tolist() == [1, 3 / 4, 1, 1]
    assert scores["iou"].tolist() == [1, 3 / 4, 4 / 5, 1]
