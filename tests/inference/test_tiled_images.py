"""Images in tiles: a U-Net's ids are those of the whole image, other models' nearly."""

import jax
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.inference import tiled_images
from segjax.models import unet

OPTIONS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "batch_size": 2}


@pytest.mark.parametrize(
    ("options", "tile", "same"),
    [
        ({"output": "mirror"}, 68, 0.999),  # but for ties within rounding
        ({"output": "native"}, 60, 0.999),
        ({"variant": "padded"}, 64, 0.9),
    ],
)
def test_ids_of_unet(options, tile, same):
    module = models.build("unet", num_classes=3, depth=2, base_width=2, **options)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 108, 108, 3), np.float32)))
    predict = tiled_images.make_predict_images(module.apply, variables, tile=tile, **OPTIONS)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((60, 90), (31, 97))]
    whole = jax.jit(module.clone(output="mirror").apply)
    for image, ids in zip(images, predict(images), strict=True):
        normalised = ((image / 255 - OPTIONS["mean"]) / OPTIONS["std"]).astype(np.float32)
        logits = whole(variables, normalised[None])["logits"][0]
        assert ids.dtype == np.uint8 and np.mean(ids == np.argmax(logits, axis=-1)) > same


def test_an_illegal_tile_is_refused():
    module = models.build("unet", num_classes=3, depth=2)
    assert module.sizes == unet.Sizes(44, 4, 20)
    with pytest.raises(ValueError, match="46 pixels.*44 and 48"):
        tiled_images.make_predict_images(module.apply, {}, tile=46, **OPTIONS)
