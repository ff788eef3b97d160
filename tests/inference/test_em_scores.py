"""The EM challenge's scores of a model: probabilities by hand, thresholds over all sections, means over sections."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax.inference import em_scores
from segjax.inference.views import Views
from segjax.metrics import em

PLAIN = {"ignore_label": 255, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def apply(variables, image, train=False):
    """The red channel is the cell's log odds, from -4 to 4."""
    odds = 8 * image[..., 0] - 4 + variables
    return {"logits": jnp.stack([-odds / 2, odds / 2], -1)}


def probability(image):
    return 1 / (1 + np.exp(4 - 8 * (image[..., 0] / 255.0)))


def batch(sections=3, rows=4, size=(24, 30), seed=0):
    """Sections of a few cells, noisy; the last row fills up the batch."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(rows, *size)), (0, 2, 2))
    label = (smooth > -0.1).astype(np.int32)
    image = rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8)
    noise = 0.5 * ndimage.gaussian_filter(rng.normal(size=smooth.shape), (0, 1, 1))
    image[..., 0] = np.clip(127 + 400 * (smooth + 0.1 + noise), 0, 255).astype(np.uint8)
    sizes = np.tile(np.int32(size), (rows, 1))
    valid = np.arange(rows) < sections
    return {"image": image, "label": label, "valid": valid, "content_size": sizes, "native_size": sizes,
            "index": np.arange(rows)}  # fmt: skip


def test_scores_are_means_over_sections_at_the_arg_max():
    data = batch()
    found = em_scores.evaluate(apply, jnp.float32(0), [data], **PLAIN)
    each = [em.scores(probability(data["image"][i]) > 0.5, data["label"][i]) for i in range(3)]
    assert found["sections"] == 3 and found["threshold"] == 0.5
    for name in each[0]:
        assert found["per_section"][name] == pytest.approx([scores[name] for scores in each]), name
        assert found[name] == pytest.approx(np.mean([scores[name] for scores in each])), name
    assert 0.3 < found["rand_score"] < 0.999 and found["pixel_error"] > 0.01


def test_best_is_one_threshold_for_all_sections():
    """The model is biased to membrane: the best threshold is not the arg-max."""
    data, levels = batch(), (0.1, 0.2, 0.4, 0.7)
    found = em_scores.evaluate(apply, jnp.float32(-1), [data], thresholds=levels, **PLAIN)
    cells = 1 / (1 + (1 / probability(data["image"]) - 1) * np.exp(1))
    for name, best in found["best"].items():
        at = {t: np.mean([em.scores(cells[i] > t, data["label"][i])[name] for i in range(3)]) for t in (*levels, 0.5)}
        most = min(at.values()) if name.endswith("error") else max(at.values())
        assert best["value"] == pytest.approx(most) and at[best["threshold"]] == pytest.approx(most), name
    assert set(found["best"]) == set(em_scores.BEST) and found["best"]["pixel_error"]["threshold"] < 0.5
    assert found["best"]["pixel_error"]["value"] < found["pixel_error"]


def test_batches_sizes_and_pixels_that_do_not_count():
    """Sections of two sizes in one batch; the ignore label is membrane in both maps."""
    data = batch(rows=3)
    data["native_size"] = np.int32([[24, 30], [24, 30], [17, 20]])
    data["content_size"] = data["native_size"]
    data["label"][2, 17:] = data["label"][2, :, 20:] = 255
    data["label"][0, 5:9] = 255
    found = em_scores.evaluate(apply, jnp.float32(0), [data], **PLAIN)
    split = [{name: value[i : i + 1] for name, value in data.items()} for i in range(3)]
    apart = em_scores.evaluate(apply, jnp.float32(0), split, **PLAIN)
    assert apart == found
    for i, (rows, columns) in enumerate(data["native_size"]):
        label = data["label"][i, :rows, :columns]
        cells = (probability(data["image"][i, :rows, :columns]) > 0.5) & (label != 255)
        assert found["per_section"]["rand_score"][i] == pytest.approx(em.rand_scores(cells, label == 1)["rand_score"])
        assert found["per_section"]["pixel_error"][i] == pytest.approx(np.mean(cells != (label == 1)))


def test_a_mirror_image_averages_probabilities():
    data = batch(sections=1, rows=1)

    def lopsided(variables, image, train=False):
        ramp = jnp.linspace(-2, 2, image.shape[2])[None, None]
        return {"logits": apply(variables, image)["logits"] + jnp.stack([0 * ramp, ramp], -1)}

    found = em_scores.evaluate(lopsided, jnp.float32(0), [data], views=Views(flip=True), **PLAIN)
    odds, ramp = 8 * (data["image"][0, ..., 0] / 255.0) - 4, np.linspace(-2, 2, 30)
    cells = (1 / (1 + np.exp(-odds - ramp)) + 1 / (1 + np.exp(-odds + ramp))) / 2 > 0.5
    assert found["pixel_error"] == pytest.approx(em.pixel_error(cells, data["label"][0]))


def test_on_the_canvas_the_label_is_fitted():
    data = batch()
    large = data | {"label": data["label"].repeat(2, 1).repeat(2, 2), "native_size": 2 * data["native_size"]}
    found = em_scores.evaluate(apply, jnp.float32(0), [large], resolution="input", **PLAIN)
    assert found == em_scores.evaluate(apply, jnp.float32(0), [data], **PLAIN)
    native = em_scores.evaluate(apply, jnp.float32(0), [large], **PLAIN)
    assert native["pixel_error"] != found["pixel_error"]


def test_a_section_without_cells_has_no_rand_score():
    data = batch()
    data["label"][1] = 0
    found = em_scores.evaluate(apply, jnp.float32(0), [data], **PLAIN)
    rand = found["per_section"]["rand_score"]
    assert np.isnan(rand[1]) and found["rand_score"] == pytest.approx((rand[0] + rand[2]) / 2)
    data["label"][:] = 0
    found = em_scores.evaluate(apply, jnp.float32(0), [data], **PLAIN)
    assert np.isnan(found["rand_score"]) and np.isfinite(found["pixel_error"])
