"""U-Net: legal sizes against a walk through the network, the paper's network in NumPy, smp's Unet by its outputs."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import backbones, models
from segjax.interop import torch
from segjax.models import unet
from segjax.types import InputError


def shapes(module, size=(1, 32, 32, 1)):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(size))


def parameters(module, size=(1, 32, 32, 1)):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, size)["params"]))


def image_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def walk(size, depth):
    """The logits' pixels of an image, by the network's steps one after the other; None where one cannot be taken."""
    for _ in range(depth):
        if size <= 4 or size % 2:
            return None
        size = (size - 4) // 2
    size -= 4
    for _ in range(depth):
        size = 2 * size - 4
    return size if size > 0 else None


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_legal_sizes_are_those_a_walk_finds(depth):
    sizes = unet.valid_sizes(depth)
    legal = {size: walk(size, depth) for size in range(1, 1200) if walk(size, depth)}
    assert list(legal) == list(range(sizes.least, 1200, sizes.step))
    for size, output in legal.items():
        assert sizes.output(size) == output == size - 2 * sizes.margin
    for output in range(1, 700):
        assert sizes.covering(output) == min(size for size, covered in legal.items() if covered >= output)


def test_the_paper_s_sizes():
    sizes = models.build("unet", num_classes=2).sizes
    assert sizes.output(572) == 388 and sizes.covering(388) == 572
    assert sizes == (188, 16, 92)
    assert models.build("unet", num_classes=2, variant="padded").sizes == (1, 1, 0)
    with pytest.raises(ValueError, match="571 pixels: the nearest sizes are 556 and 572"):
        sizes.output(571)
    with pytest.raises(ValueError, match="5 pixels: the nearest sizes are 188 and 204"):
        sizes.output(5)


def test_native_output():
    module = models.build("unet", num_classes=2, output="native")
    variables = shapes(module, (1, 188, 188, 1))
    apply = functools.partial(jax.eval_shape, module.apply, variables)
    assert apply(jnp.zeros((1, 572, 572, 1)))["logits"].shape == (1, 388, 388, 2)
    assert apply(jnp.zeros((2, 188, 300, 1)))["logits"].shape == (2, 4, 116, 2)
    with pytest.raises(ValueError, match="512 pixels: the nearest sizes are 508 and 524"):
        apply(jnp.zeros((1, 572, 512, 1)))


def test_parameter_counts():
    """Figure 1 in numbers, one grey channel and two classes; the padded network has the same."""
    count, channels = 0, 1
    for features in (64, 128, 256, 512, 1024):
        count += 9 * channels * features + features + 9 * features * features + features
        channels = features
    for features in (512, 256, 128, 64):
        count += 4 * 2 * features * features + features  # the up-convolution halves the channels
        count += 9 * 2 * features * features + features + 9 * features * features + features
    count += 64 * 2 + 2
    assert count == 31_030_658
    assert parameters(models.build("unet", num_classes=2)) == count
    assert parameters(models.build("unet", num_classes=2, variant="padded")) == count
    # segmentation_models_pytorch.Unet("resnet34"), one class
    assert parameters(models.build("unet", num_classes=1, variant="backbone"), (1, 32, 32, 3)) == 24_436_369


def conv(x, layer, padding):
    """A 3x3 convolution and ReLU of an image [H, W, C], as a sum over windows."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
    y = np.einsum("hwcuv,uvck->hwk", windows, layer["conv"]["kernel"]) + layer["conv"]["bias"]
    return np.maximum(y, 0)


def convs(x, layer, padding):
    return conv(conv(x, layer["conv1"], padding), layer["conv2"], padding)


def enlarged(x, layer):
    """The up-convolution: each pixel stamps its 2x2 kernel, of [2, 2, features, Cin]."""
    y = np.zeros((2 * x.shape[0], 2 * x.shape[1], layer["bias"].size))
    for i, j in np.ndindex(x.shape[:2]):
        y[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = np.einsum("uvfc,c->uvf", layer["kernel"], x[i, j])
    return y + layer["bias"]


def pooled(x):
    """The maxima of 2x2 cells; the last cells of an odd size are narrower."""
    rows = [[x[i : i + 2, j : j + 2].max(axis=(0, 1)) for j in range(0, x.shape[1], 2)] for i in range(0, len(x), 2)]
    return np.array(rows)


@pytest.mark.parametrize("variant, size, output", [("paper", (44, 52), (4, 12)), ("padded", (7, 10), (7, 10))])
def test_the_network_in_numpy(variant, size, output):
    """Two poolings and three channels, written out."""
    module = models.build("unet", num_classes=2, variant=variant, output="native", depth=2, base_width=3, dropout=0.0)
    variables = draw(shapes(module, (1, 44, 44, 2)))
    image = image_of(1, *size, 2)
    p, padding = jax.tree.map(np.float64, variables["params"]), int(variant == "padded")
    levels = [convs(image[0], p["down0"], padding)]
    for level in (1, 2):
        levels.append(convs(pooled(levels[-1]), p[f"down{level}"], padding))
    x = levels.pop()
    for level in (1, 0):
        skip, x = levels.pop(), enlarged(x, p[f"up{level}"])
        cut = (np.array(skip.shape[:2]) - x.shape[:2]) // 2
        if variant == "paper":
            skip = skip[cut[0] : cut[0] + x.shape[0], cut[1] : cut[1] + x.shape[1]]
        x = np.concatenate([x[: skip.shape[0], : skip.shape[1]], skip], axis=-1)
        x = convs(x, p[f"merge{level}"], padding)
    expected = x @ p["head"]["kernel"][0, 0] + p["head"]["bias"]
    assert expected.shape == (*output, 2)
    logits = jax.jit(module.apply)(variables, image)["logits"]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


SMALL = {"num_classes": 2, "depth": 2, "base_width": 4}


@pytest.mark.parametrize("size", [(3, 1), (20, 33), (40, 24)])
def test_mirror_is_native_on_the_image_reflected(size):
    """Low ends by the margin; high ends so far that the logits cover the image, which they are then cropped to."""
    native, mirror = (models.build("unet", output=output, **SMALL) for output in ("native", "mirror"))
    variables, image = draw(shapes(mirror)), image_of(2, *size, 1)
    ends = [(20, native.sizes.covering(n) - n - 20) for n in size]
    reflected = np.pad(image, ((0, 0), *ends, (0, 0)), mode="reflect")
    logits = jax.jit(mirror.apply)(variables, image)["logits"]
    expected = jax.jit(native.apply)(variables, reflected)["logits"][:, : size[0], : size[1]]
    assert logits.shape == (2, *size, 2)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


def test_logits_do_not_depend_on_the_tile():
    """Tiles whose corners lie a multiple of 2^depth apart agree where both have logits."""
    module = models.build("unet", output="native", **SMALL)
    variables, image = draw(shapes(module, (1, 44, 44, 1))), image_of(1, 80, 72, 1)
    apply = jax.jit(module.apply)
    whole = apply(variables, image)["logits"]
    tile = apply(variables, image[:, 8:60, 16:64])["logits"]
    assert tile.shape == (1, 12, 8, 2)
    np.testing.assert_allclose(tile, whole[:, 8:20, 16:24], rtol=1e-5, atol=1e-6)


def test_without_norm_there_are_no_statistics_and_dropout_is_below():
    """Dropout lies on the last two levels: the first level's maps are the same whatever is drawn."""
    module = models.build("unet", variant="padded", dropout=0.5, **SMALL)
    variables, image = draw(shapes(module)), image_of(2, 16, 16, 1)
    assert set(variables) == {"params"}
    assert set(variables["params"]["down0"]["conv1"]["conv"]) == {"kernel", "bias"}
    assert jax.eval_shape(functools.partial(module.apply, train=True), variables, image, key=jax.random.key(1))[1] == {}

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def levels(key):
        keep = {"mutable": ["intermediates"], "capture_intermediates": True, "train": True}
        return module.apply(variables, image, rngs={"dropout": key}, **keep)[1]["intermediates"]

    one, other = (levels(jax.random.key(seed)) for seed in (1, 2))
    same = {
        name: np.array_equal(one[name]["__call__"][0], other[name]["__call__"][0])
        for name in ("down0", "down1", "dropout1", "down2", "dropout2", "head")
    }
    expected = {"down0": True, "down1": True, "dropout1": False, "down2": False, "dropout2": False, "head": False}
    assert same == expected
    with pytest.raises(ValueError, match="dropout at rate 0.5"):
        module.apply(variables, image, train=True)


def test_segmentation_models_pytorch(golden_dir):
    case = golden.Case(golden_dir, "smp_unet_resnet34")
    module, variables = torch.load(case.state_dict, source="smp", model="Unet", encoder_name="resnet34")

    @jax.jit
    def forward(variables, image):
        keep = lambda inner, _: inner.name == "backbone" or (inner.name or "").startswith("decoder")
        return module.apply(variables, image, capture_intermediates=keep, mutable=["intermediates"])

    outputs, inner = forward(variables, case.image)
    inner = {name: value["__call__"][0] for name, value in inner["intermediates"].items()}
    case.check_inner("encoder.layer4", inner["backbone"]["out"])
    for number in range(5):
        case.check_inner(f"decoder.blocks.{number}", inner[f"decoder{number + 1}"])
    case.check("out", outputs["logits"])


def test_blocks_enlarge_to_the_skip():
    """Odd sizes: each decoder block's map has the size of the backbone's, which is not twice the one below."""
    module = models.build("unet", num_classes=2, variant="backbone", backbone="resnet18", width=0.125)
    image = jnp.zeros((1, 75, 49, 3))
    keep = {"mutable": ["intermediates"], "capture_intermediates": True}
    inner = jax.eval_shape(functools.partial(module.apply, **keep), shapes(module, image.shape), image)[1]
    inner = inner["intermediates"]
    assert [inner[f"decoder{number}"]["__call__"][0].shape[1:] for number in range(1, 6)] == [
        (5, 4, 256), (10, 7, 128), (19, 13, 64), (38, 25, 32), (75, 49, 16)
    ]  # fmt: skip


def one_of_each_family():
    """The first name of each class of backbone."""
    return {module: name for name, (module, _) in reversed(backbones.known().items())}.values()


@pytest.mark.parametrize("backbone", one_of_each_family())
def test_on_every_family_of_backbones(backbone):
    """Logits of the image's size; only VGG's has two more convolutions at the bottom."""
    module = models.build("unet", num_classes=2, variant="backbone", backbone=backbone, width=0.125)
    image = jnp.zeros((1, 75, 97, 3))
    variables = shapes(module, image.shape)
    assert jax.eval_shape(module.apply, variables, image)["logits"].shape == (1, 75, 97, 2)
    assert ("center" in variables["params"]) == backbone.startswith("vgg")


def test_parameter_counts_of_segmentation_models_pytorch():
    """smp.Unet(encoder, classes=21); that of resnet34 is in the table of models."""
    for backbone, count in {"mobilenet_v2": 6_631_845, "vgg16": 23_751_141, "vgg16_bn": 23_759_589}.items():
        module = models.build("unet", num_classes=21, variant="backbone", backbone=backbone)
        assert parameters(module, (1, 64, 64, 3)) == count


def test_illegal_options():
    build = functools.partial(models.build, "unet", num_classes=2)
    for options, message in (
        ({"variant": "valid"}, r"variant='valid'.*'paper'"),
        ({"output": "resize"}, r"output='resize'.*'mirror'"),
        ({"norm": "group"}, r"norm='group'.*'batch'"),
        ({"depth": 0}, "depth=0.*at least 1"),
        ({"base_width": 0}, "base_width=0.*at least 1"),
        ({"dropout": 1.0}, "dropout=1.0.*rate < 1"),
        ({"width": 0.0}, "width=0.0.*above 0"),
        ({"decoder_channels": (8, 8)}, r"decoder_channels=\(8, 8\).*five"),
        ({"backbone": "resnet55"}, "resnet55.*known are"),
        ({"basewidth": 8}, "'base_width'"),
    ):
        with pytest.raises(InputError, match=message):
            build(**options)
