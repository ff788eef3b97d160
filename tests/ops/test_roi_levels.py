"""RoIAlign of a pyramid is ``roi_align`` of each box on its own level, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import ops

SCALES = (1 / 4, 1 / 8, 1 / 16)


def levels(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, size, size + 3, 5)).astype(np.float32) for size in (16, 8, 4)]


def boxes(count, seed=1):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-8, 56, (2, count, 2))
    found = np.concatenate([corner, corner + rng.uniform(0, 50, (2, count, 2))], axis=2).astype(np.float32)
    return found, rng.integers(0, 3, (2, count)).astype(np.int32)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [{"sampling_ratio": 2}, {"sampling_ratio": 0, "max_sampling": 5}])
@pytest.mark.parametrize("count", [0, 9])
def test_each_box_on_its_level(aligned, sampling, count):
    features, (box, level) = levels(), boxes(count)
    options = {"output_size": (3, 4), "aligned": aligned, **sampling}
    weight = np.random.default_rng(2).normal(size=(2, count, 3, 4, 5)).astype(np.float32)

    def together(features):
        return ops.roi_align_levels(features, box, level, spatial_scales=SCALES, **options)

    def one_by_one(features):
        flat, image = box.reshape(-1, 4), np.repeat(np.arange(2), count)
        each = [
            ops.roi_align(x, flat, image, spatial_scale=s, **options) for x, s in zip(features, SCALES, strict=True)
        ]
        return jnp.stack(each)[level.reshape(-1), jnp.arange(2 * count)].reshape(2, count, 3, 4, 5)

    np.testing.assert_allclose(together(features), one_by_one(features), rtol=1e-6, atol=1e-6)
    found, expected = (jax.grad(lambda x, f=f: jnp.sum(weight * f(x)))(features) for f in (together, one_by_one))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampling", [{"sampling_ratio": 2}, {"sampling_ratio": 0, "max_sampling": 5}])
def test_images_stay_on_their_devices(sampling):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    of_batch = NamedSharding(mesh, PartitionSpec("data"))
    features, (box, level) = jax.device_put((levels(), boxes(4)), of_batch)
    options = {"spatial_scales": SCALES, "output_size": 3, "aligned": True, **sampling}
    loss = lambda x, box, level: jnp.sum(ops.roi_align_levels(x, box, level, **options) ** 2)
    program = jax.jit(jax.grad(loss), out_shardings=of_batch).lower(features, box, level).compile().as_text()
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in program


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spatial_scales": (1.0,)}, "1 scales"),
        ({"level": np.zeros((2, 2), np.int32)}, r"level \(2, 2\)"),
        ({"boxes": np.zeros((3, 3, 4), np.float32), "level": np.zeros((3, 3), np.int32)}, r"\[2, 2, 2\] images"),
        ({"sampling_ratio": 0}, "max_sampling"),
    ],
)
def test_what_does_not_fit_is_refused(change, named):
    box, level = boxes(3)
    options = {"boxes": box, "level": level, "output_size": 2, "spatial_scales": SCALES, "sampling_ratio": 2}
    with pytest.raises(ValueError, match=named):
        ops.roi_align_levels(levels(), **{**options, "aligned": True, **change})
