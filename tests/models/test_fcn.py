"""FCN: sizes and crops of the authors' networks, the enlargement as matrices, classifiers made convolutional."""

import functools
import math

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import backbones, models, ops
from segjax.interop import torch as interop
from segjax.models import fcn
from segjax.types import InputError

build = functools.partial(models.build, "fcn")
SMALL = {"num_classes": 3, "backbone": "vgg11", "width": 1 / 32}


def compiled(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def shapes(module, size=(32, 32)):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def count(**options):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(build(**options))["params"]))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def apply_and_keep(module, variables, image):
    """Logits, and what each part of the model returned, by name."""
    capture = {"mutable": ["intermediates"], "capture_intermediates": True}
    outputs, inner = module.apply(variables, image, **capture)
    return outputs, {k: v["__call__"][0] for k, v in inner["intermediates"].items() if "__call__" in v}


def test_torchvision(golden_dir):
    case = golden.Case(golden_dir, "tv_fcn_resnet50")
    module, variables = interop.load(case.state_dict, source="torchvision", model="fcn_resnet50")
    assert module == build(num_classes=21, backbone="resnet50", variant="dilated", auxiliary=True)
    outputs, inner = jax.jit(functools.partial(apply_and_keep, module))(variables, case.image)
    case.check("lowres_out", inner["head"])
    case.check("lowres_aux", inner["aux_head"])
    case.check("out", outputs["logits"])
    case.check("aux", outputs["aux_logits"])


def test_published_parameter_counts():
    dilated = functools.partial(count, num_classes=21, variant="dilated")
    assert dilated(backbone="resnet50", auxiliary=True) == 35_322_218
    assert dilated(backbone="resnet101", auxiliary=True) == 54_314_346
    assert dilated(backbone="resnet50") == 35_322_218 - (9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21)


def test_parameter_count_of_the_authors():
    """VGG-16's classifier without its last layer, 21 scores of 4096, 512 and 256 channels, kernels of 21 x 21."""
    vgg = 138_357_544 - (4096 * 1000 + 1000)
    scores = [21 * (channels + 1) for channels in (4096, 512, 256)]
    kernels = {32: 64**2, 16: 4**2 + 32**2, 8: 4**2 + 4**2 + 16**2}
    for stride, taps in kernels.items():
        total = vgg + sum(scores[: int(math.log2(64 // stride))])
        options = {"num_classes": 21, "variant": "authors", "stride": stride}
        assert count(**options) == total + taps * 21**2
        assert count(**options, upsampling="fixed") == total
    alexnet = 61_100_840 - (4096 * 1000 + 1000) + scores[0] + 63**2 * 21**2
    assert count(num_classes=21, variant="authors", stride=32, backbone="alexnet") == alexnet


def caffe_sizes(n):
    """Sizes of the authors' VGG-16 network layer by layer, by Caffe's formulas: pixels of one axis."""
    pooled = [n + 2 * 100 - 3 + 1]
    for _ in range(5):
        pooled.append(math.ceil((pooled[-1] - 2) / 2) + 1)
    found = {f"pool{k}": size for k, size in enumerate(pooled)} | {"fc6": pooled[5] - 7 + 1}
    enlarged = lambda size, kernel, stride: stride * (size - 1) + kernel
    found["upscore"] = enlarged(found["fc6"], 64, 32)
    found["upscore2"] = enlarged(found["fc6"], 4, 2)
    found["upscore16"] = enlarged(found["upscore2"], 32, 16)
    found["upscore_pool4"] = enlarged(found["upscore2"], 4, 2)
    found["upscore8"] = enlarged(found["upscore_pool4"], 16, 8)
    return found


def test_every_crop_of_the_authors_lies_inside():
    for n in range(1, 1200):
        size = caffe_sizes(n)
        assert 5 + size["upscore2"] <= size["pool4"] and 9 + size["upscore_pool4"] <= size["pool3"], n
        for name, crop in (("upscore", 19), ("upscore16", 27), ("upscore8", 31)):
            assert crop + n <= size[name], n
        m = size["pool5"]  # as the module's docstring has it
        assert m == -(-(n + 198) // 32) and size["fc6"] == m - 6
        assert [size[k] for k in ("upscore", "upscore16", "upscore8")] == [32 * (m - 5), 32 * m - 144, 32 * m - 136]


def test_224_pixels():
    size = caffe_sizes(224)
    assert [size[k] for k in ("pool5", "fc6", "upscore", "upscore16", "upscore8")] == [14, 8, 288, 304, 312]


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_224_pixels_padded_by_100_give_256_cropped_to_224(stride):
    """fc6's 8x8 scores, enlarged by transposed convolutions that restore the size."""
    module = build(**SMALL, variant="authors_padded", stride=stride)
    sizes = []

    def watch(call, args, kwargs, context):
        x = call(*args, **kwargs)
        if context.module.name in ("score_fr", fcn.LAST[stride]):
            sizes.append(x.shape[1:3])
        return x

    with nn.intercept_methods(watch):
        outputs = jax.eval_shape(module.apply, shapes(module), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    assert sizes[-2:] == [(8, 8), (256, 256)] and outputs["logits"].shape[1:3] == (224, 224)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_authors_padded_is_the_authors_network_inside_the_border(stride):
    """The same weights: transposed convolutions that restore the size cut margins off, and the crops make up for it."""
    image = noise(1, 250, 230, 3)
    variants = [build(**SMALL, variant=name, stride=stride) for name in ("authors", "authors_padded")]
    variables = draw(shapes(variants[0]))
    logits = [np.asarray(compiled(module.apply)(variables, image)["logits"]) for module in variants]
    assert np.abs(logits[0]).max() > 1e-3
    inside = np.s_[:, 48:-48, 48:-48]
    np.testing.assert_allclose(logits[0][inside], logits[1][inside], rtol=1e-4, atol=1e-5)


def test_every_crop_of_authors_padded_lies_inside():
    for n in range(1, 1200):
        size, scores = caffe_sizes(n), caffe_sizes(n)["fc6"]
        assert 6 + 2 * scores <= size["pool4"] and 12 + 4 * scores <= size["pool3"] and 3 + n <= 32 * scores, n


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("height, width", [(97, 98), (224, 255), (256, 257), (601, 500)])
def test_sizes_are_those_of_the_authors(stride, height, width):
    """The network's own sizes, each part's; and the crops: what is left of coordinates sent through ``_crop``."""
    module = build(**SMALL, variant="authors", stride=stride)
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    outputs, inner = jax.eval_shape(functools.partial(apply_and_keep, module), shapes(module), image)
    sizes = caffe_sizes(height), caffe_sizes(width)
    found = {name: value.shape[1:3] for name, value in inner.items() if hasattr(value, "shape")}
    found |= {name: value.shape[1:3] for name, value in inner["backbone"].items()}
    names = {"fc6": "fc6", "pool5": "pool5", "score_fr": "fc6"}
    names |= {"score_pool4": "pool4"} if stride < 32 else {}
    names |= {"score_pool3": "pool3"} if stride < 16 else {}
    for ours, theirs in names.items():
        assert found[ours] == tuple(size[theirs] for size in sizes), ours
    assert outputs["logits"].shape == (1, height, width, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_size_of_the_authors(stride):
    """All sizes from 97 to 601 through the network itself, heights up and widths down."""
    module = build(**SMALL, variant="authors", stride=stride)
    variables = shapes(module)
    for n in range(97, 602):
        image = jax.ShapeDtypeStruct((1, n, 698 - n, 3), np.float32)
        assert jax.eval_shape(module.apply, variables, image)["logits"].shape == (1, n, 698 - n, 3)


def test_crops_are_those_of_the_authors():
    """With kernels that copy each value to the first pixel of its stamp, logits tell the place they were cut at."""
    sizes = {8: (13, 25), 16: (13,), 32: ()}
    for stride, crop in ((32, 19), (16, 27), (8, 31)):
        assert fcn.CROPS["authors"] == ((5, 9), fcn.CROPS["authors"][1]) and fcn.CROPS["authors"][1][stride] == crop
        decoder = fcn.Decoder(padded=False, learned=True, window=2 * stride, crop=crop, offsets=(5, 9))
        scores = [jnp.zeros((1, 3, 3, 1))]
        scores += [noise(1, 5 + n, 5 + n, 1, seed=n) for n in sizes[stride]]
        variables = jax.eval_shape(lambda d=decoder, s=scores: d.init(jax.random.key(0), s, (40, 40)))
        one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape).at[0, 0].set(1), variables)
        logits = decoder.apply(one, scores, (40, 40))
        expected = np.zeros((400, 400), np.float32)
        if stride == 16:
            expected[: 8 * 16 : 16, : 8 * 16 : 16] = scores[1][0, 5:13, 5:13, 0]
        if stride == 8:
            fused = np.array(scores[2][0, 9 : 9 + 18, 9 : 9 + 18, 0])
            fused[:16:2, :16:2] += scores[1][0, 5:13, 5:13, 0]
            expected[: 18 * 8 : 8, : 18 * 8 : 8] = fused
        np.testing.assert_array_equal(logits[0, ..., 0], expected[crop : crop + 40, crop : crop + 40])


@pytest.mark.parametrize("variant", ["authors", "padded"])
def test_8s_with_zero_skips_is_a_product_of_matrices(variant):
    """Logits = crop(M3' M2' M1' scores) with M the matrices of the three convolutions; K = 2, any kernels."""
    module = build(**{**SMALL, "num_classes": 2}, variant=variant)
    image = noise(1, 40, 57, 3)
    variables = draw(shapes(module))
    for name in ("score_pool4", "score_pool3"):
        variables["params"][name] = jax.tree.map(np.zeros_like, variables["params"][name])
    outputs, inner = compiled(functools.partial(apply_and_keep, module))(variables, image)
    x = np.asarray(inner["score_fr"])
    assert x.shape == {"authors": (1, 2, 2, 2), "padded": (1, 2, 2, 2)}[variant]
    size = x.shape[1:3]
    for name, window, stride in (("upscore2", 4, 2), ("upscore_pool4", 4, 2), ("upscore8", 16, 8)):
        padding = (window - stride) // 2 if variant == "padded" else 0
        size = tuple(stride * (n - 1) + window - 2 * padding for n in size)
        kernel = variables["params"]["decoder"][name]["kernel"]
        matrix = ops.conv_matrix(kernel, size, stride=stride, padding=padding, sparse=True)
        x = np.asarray(matrix.T @ x.ravel())
        if variant == "padded" and name != "upscore8":  # cut to the finer map: 40 and 57 pixels at stride 16, then 8
            finer = {"upscore2": (3, 4), "upscore_pool4": (5, 8)}[name]
            x = x.reshape(*size, 2)[: finer[0], : finer[1]]
            size = finer
    crop = 31 if variant == "authors" else 0
    expected = x.reshape(*size, 2)[crop : crop + 40, crop : crop + 57]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(outputs["logits"][0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["authors", "authors_padded", "padded"])
@pytest.mark.parametrize("upsampling", ["learned", "fixed"])
def test_constant_maps_stay_constant_inside_the_border(variant, upsampling):
    """32s of a map of a, 16s of a and b, 8s of a, b and c: a, a + b, a + b + c in every pixel 48 or more inside."""
    n, constants = 224, np.array([[1.5, -2.0], [0.25, 3.0], [-1.0, 0.5]], np.float32)
    size = caffe_sizes(n) if variant.startswith("authors") else {"fc6": 7, "pool4": 14, "pool3": 28}
    maps = [
        np.broadcast_to(c, (1, size[k], size[k], 2)) for k, c in zip(("fc6", "pool4", "pool3"), constants, strict=True)
    ]
    for stride, used in ((32, 1), (16, 2), (8, 3)):
        offsets, crops = fcn.CROPS[variant]
        decoder = fcn.Decoder(variant != "authors", upsampling == "learned", 2 * stride, crops[stride], offsets)
        scores = [jnp.asarray(x) for x in maps[:used]]
        variables = compiled(lambda s, d=decoder: d.init(jax.random.key(0), s, (n, n)))(scores)
        logits = compiled(lambda v, s, d=decoder: d.apply(v, s, (n, n)))(variables, scores)
        inside = np.asarray(logits)[0, 48:-48, 48:-48]
        np.testing.assert_allclose(inside, np.broadcast_to(constants[:used].sum(0), inside.shape), rtol=1e-6)
        assert bool(jax.tree.leaves(variables)) == (upsampling == "learned")
        nothing_added = [scores[0], *(jnp.zeros_like(x) for x in scores[1:])]
        alone = np.asarray(decoder.apply(variables, nothing_added, (n, n)))[0, 48:-48, 48:-48]
        np.testing.assert_allclose(alone, np.broadcast_to(constants[0], alone.shape), rtol=1e-6)


def test_fixed_is_learned_before_the_first_step():
    image = noise(1, 33, 47, 3)
    learned, fixed = (build(**SMALL, upsampling=upsampling) for upsampling in ("learned", "fixed"))
    variables = draw(shapes(fixed))
    first = compiled(learned.init)(jax.random.key(0), image)
    both = {"params": {**variables["params"], "decoder": first["params"]["decoder"]}}
    logits = compiled(learned.apply)(both, image)["logits"]
    np.testing.assert_allclose(logits, compiled(fixed.apply)(variables, image)["logits"], rtol=1e-5, atol=1e-6)


def test_scores_are_zero_at_first():
    """Section 4.3 of the paper: zero-initialised scores, bilinear enlargement."""
    variables = compiled(build(**SMALL).init)(jax.random.key(0), noise(1, 32, 32, 3))["params"]
    for name in ("score_fr", "score_pool4", "score_pool3"):
        assert not np.any(variables[name]["kernel"]) and not np.any(variables[name]["bias"])
    np.testing.assert_array_equal(variables["decoder"]["upscore8"]["kernel"], ops.bilinear_kernel(16, 3))
    assert np.std(variables["fc6"]["kernel"]) > 0


def test_at_once_scales_the_skips():
    image, plain, at_once = noise(1, 40, 40, 3), build(**SMALL), build(**SMALL, at_once=True)
    variables = draw(shapes(plain))
    scaled = jax.tree.map(np.array, variables)
    scaled["params"]["score_pool4"]["kernel"] *= 100
    scaled["params"]["score_pool3"]["kernel"] *= 10_000
    logits = [np.asarray(compiled(m.apply)(v, image)["logits"]) for m, v in ((plain, variables), (at_once, scaled))]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    assert np.abs(logits[0] - compiled(at_once.apply)(variables, image)["logits"]).max() > 1e-2


def test_convolutionize():
    """A layer on a flattened [C, h, w] map is a convolution with one window; on a larger map, the layer everywhere."""
    weight, bias, x = noise(5, 3 * 4 * 2), noise(5, seed=1), noise(1, 6, 5, 3, seed=2)
    kernel = fcn.convolutionize(weight, (4, 2))
    assert kernel.shape == (4, 2, 3, 5)
    y = np.asarray(ops.conv(x, kernel)) + bias
    assert y.shape == (1, 3, 4, 5)
    for row in range(3):
        for column in range(4):
            flat = x[0, row : row + 4, column : column + 2].transpose(2, 0, 1).ravel()
            np.testing.assert_allclose(y[0, row, column], weight @ flat + bias, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(5, 24\) on 7 x 7.*C \* 49"):
        fcn.convolutionize(weight, (7, 7))


def test_fcn_is_the_classifier():
    """FCN-32s of the authors on 26 pixels is the classifier on 26 + 2 * 99 = 224.

    The classifier flattens pool5 and multiplies by fully connected layers, as PyTorch's VGG does.
    """
    module = build(**SMALL, variant="authors", stride=32)
    backbone = backbones.build("vgg11", width=1 / 32)
    variables = draw(shapes(module))
    fc6, fc7, head = noise(128, 16 * 49) / 8, noise(128, 128, seed=1) / 8, noise(3, 128, seed=2)
    params = variables["params"]
    for name, weight, size in (("fc6", fc6, 7), ("fc7", fc7, 1), ("score_fr", head, 1)):
        params[name] = {**params[name], "kernel": fcn.convolutionize(weight, (size, size))}

    def classify(image):
        """f32[224, 224, 3] to scores f32[3]."""
        features = compiled(functools.partial(backbone.apply, train=False))({"params": params["backbone"]}, image[None])
        x = np.asarray(features["out"])[0].transpose(2, 0, 1).ravel()
        for name, weight in (("fc6", fc6), ("fc7", fc7)):
            x = np.maximum(weight @ x + params[name]["bias"], 0)
        return head @ x + params["score_fr"]["bias"]

    image = noise(1, 26, 26, 3)
    _, inner = compiled(functools.partial(apply_and_keep, module))(variables, image)
    assert inner["score_fr"].shape == (1, 1, 1, 3)
    expected = classify(np.pad(image[0], ((99, 99), (99, 99), (0, 0))))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(inner["score_fr"][0, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_from_classifier():
    """Started from ``models.classifier``: its logits on the image with 99 rows and columns of zeros around are ours."""
    module = build(**SMALL, variant="authors", stride=16)
    theirs = models.build("classifier", num_classes=3, backbone="vgg11", width=1 / 32)
    ours, classifier = draw(shapes(module)), draw(shapes(theirs, (224, 224)), seed=1, gain=1.3)
    started = fcn.from_classifier(ours, classifier)
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, ours)
    for name, tree in started["params"].items():
        source = classifier if name in ("backbone", "fc6", "fc7") else ours
        jax.tree.map(np.testing.assert_array_equal, tree, source["params"][name])
    started["params"]["score_fr"] = classifier["params"]["head"]
    image = noise(1, 26, 26, 3)
    _, inner = compiled(functools.partial(apply_and_keep, module))(started, image)
    padded = np.pad(image, ((0, 0), (99, 99), (99, 99), (0, 0)))
    logits = compiled(theirs.apply)(classifier, padded)["logits"]
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(inner["score_fr"][0, 0, 0], logits[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="params/fc6: the classifier's shapes"):
        fcn.from_classifier(draw(shapes(build(**SMALL))), classifier)


def test_padding_that_restores_the_size_and_the_one_that_does_not():
    """Kernel 2 s, padding s / 2 give s m pixels of m; kernel 16, stride 16, padding 8 give 16 (m - 1)."""
    y = np.zeros((1, 5, 5, 1), np.float32)
    for window, stride, padding, size in ((64, 32, 16, 160), (32, 16, 8, 80), (16, 8, 4, 40), (4, 2, 1, 10),
                                          (16, 16, 8, 64)):  # fmt: skip
        kernel = np.zeros((window, window, 1, 1), np.float32)
        assert ops.conv_transpose(y, kernel, stride=stride, padding=padding).shape[1:3] == (size, size)


@pytest.mark.parametrize(
    "options",
    [{"backbone": "vgg11_bn", "stride": 16}, {"backbone": "resnet18"}, {"backbone": "resnet18", "variant": "dilated"},
     {"backbone": "mobilenet_v2", "stride": 32}, {"backbone": "alexnet", "variant": "authors", "stride": 32},
     {"backbone": "vgg13_bn", "variant": "authors"}, {"backbone": "vgg11", "variant": "authors_padded"}],
)  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (31, 65), (97, 130)])
def test_any_size_on_every_backbone(options, size):
    module = build(**{**SMALL, **options})
    outputs = jax.eval_shape(module.apply, shapes(module), jax.ShapeDtypeStruct((2, *size, 3), np.float32))
    assert outputs["logits"].shape == (2, *size, 3)


@pytest.mark.parametrize(
    "options, message",
    [({"stride": 4}, r"stride=4.*\(32, 16, 8\)"), ({"variant": "caffe"}, "variant='caffe'.*'padded'"),
     ({"upsampling": "bilinear"}, "upsampling='bilinear'.*'fixed'"), ({"backbone": "vgg18"}, "'vgg1[0-9].*known are"),
     ({"backbone": "resnet50", "variant": "authors"}, "on resnet50: expected one of .*'dilated'"),
     ({"backbone": "alexnet"}, "on alexnet: expected one of .'authors'"),
     ({"backbone": "alexnet", "variant": "authors"}, "stride=8 .* expected 32"), ({"auxiliary": True}, "'dilated'"),
     ({"at_once": True, "stride": 16}, "stride=8.*got 16"), ({"dropout": 1.0}, "dropout=1.0"),
     ({"num_classes": 0}, "num_classes=0"), ({"width": 0.0}, "width=0.0"), ({"dtype": "f"}, "dtype='f'")],
)  # fmt: skip
def test_illegal_options(options, message):
    with pytest.raises(InputError, match=message):
        build(**{**SMALL, **options})
