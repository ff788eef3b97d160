"""Pictures of precision-recall curves: the curves are where the numbers say."""

import numpy as np
import pytest

from segjax.inference import precision_recall
from segjax.metrics import average_precision
from segjax.types import InputError


def scores():
    """Class 1: all found; class 2: half, no false ones; class 3 without objects."""
    boxes = [[10 * i, 0, 8, 8] for i in range(4)]
    keys = [(1, 0), (1, 1), (2, 2), (2, 3)]
    truth = {
        "images": [{"id": 1}], "categories": [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)],
        "annotations": [{"id": i + 1, "image_id": 1, "category_id": k, "bbox": boxes[i], "area": 64} for k, i in keys],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": k, "bbox": boxes[i], "score": 0.5} for k, i in keys[:3]]
    return average_precision.evaluate(truth, found)


def test_curves_stand_where_the_numbers_say():
    picture = precision_recall.by_threshold(scores(), category_id=2, size=(480, 800))
    assert picture.shape == (480, 800, 3) and picture.dtype == np.uint8
    coloured = np.ptp(picture[:, :500].astype(int), axis=-1) > 60
    x0, x1, y0, y1 = 64, 500, 44, 428  # the axes
    assert coloured[y0 - 2 : y0 + 3, x0 + 5 : x0 + 200].any(axis=0).all()  # precision 1 up to recall 1/2
    assert not coloured[y0 - 2 : y1 - 3, x0 + 240 : x1].any()  # and 0 beyond
    assert coloured[y1 - 2 : y1 + 3, x0 + 240 : x1 - 2].any(axis=0).all()


def test_classes_and_their_means():
    some = scores()
    assert precision_recall.by_class(some).shape == (480, 800, 3)
    assert precision_recall.by_threshold(some, size=(300, 900)).shape == (300, 900, 3)
    # Classes without objects are in no mean: of one class the picture differs from that of all by title and curve.
    assert (precision_recall.by_threshold(some) != precision_recall.by_threshold(some, category_id=1)).any()


def test_bad_arguments():
    some = scores()
    with pytest.raises(InputError, match="category_id=9"):
        precision_recall.by_threshold(some, category_id=9)
    with pytest.raises(ValueError, match=r"iou=0\.52"):
        precision_recall.by_class(some, iou=0.52)
    with pytest.raises(ValueError, match="at least"):
        precision_recall.by_class(some, size=(100, 100))
