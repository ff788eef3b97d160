"""One table of models, and the properties each of them must have. A new model is one row."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import models

K = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """A small model, and the parameters its full-size form is known to have with 21 classes."""

    name: str
    options: tuple[tuple[str, Any], ...]  # small: the tests are about properties, not about size
    published: tuple[tuple[str, Any], ...] = ()
    parameters: int = 0
    dropout: bool = True
    bfloat16: float = 5e-2  # relative change of its logits; more with max-unpooling: rounding moves maxima

    def build(self, **more):
        return models.build(self.name, num_classes=K, **{**dict(self.options), **more})


SMALL = (("width", 0.25), ("aspp_channels", 16), ("decoder_channels", 16), ("low_level_channels", 8))
SMP = {"aspp_rates": (12, 24, 36), "aspp_out_conv": True, "decoder_convs": 1, "depthwise_norm": False}
ROWS = {
    "deeplab-mobilenet_v2": Row(
        "deeplab",
        (("backbone", "mobilenet_v2"), *SMALL),
        # smp.DeepLabV3Plus("mobilenet_v2", classes=21)
        tuple({"backbone": "mobilenet_v2", **SMP}.items()),
        4_383_653,
    ),
    "deeplab-resnet18-plain": Row(
        "deeplab",
        (("backbone", "resnet18"), ("separable", False), ("output_stride", 8), *SMALL),
        # smp.DeepLabV3Plus("resnet50", classes=21)
        tuple({"backbone": "resnet50", **SMP}.items()),
        26_682_725,
    ),
    "deeplab-v1-vgg11_bn": Row(
        "deeplab",
        (("variant", "v1"), ("backbone", "vgg11_bn"), ("width", 0.125), ("fc_channels", 16)),
        # 20.5 million in the paper's table 2
        (("variant", "v1"), ("backbone", "vgg16")),
        20_505_429,
    ),
    "deeplab-v3-resnet18": Row(
        "deeplab",
        (("variant", "v3"), ("backbone", "resnet18"), ("multi_grid", (1, 2)), ("auxiliary", True), *SMALL),
        # torchvision's deeplabv3_resnet50
        (("variant", "v3"), ("backbone", "resnet50"), ("aspp_out_conv", True), ("auxiliary", True)),
        42_004_074,
    ),
    "fcn-vgg11_bn": Row(
        "fcn",
        (("backbone", "vgg11_bn"), ("width", 0.125)),
        # the 134.5 million of FCN-8s with 21 classes, counted in tests/models/test_fcn.py
        (("variant", "authors"),),
        134_489_759,
    ),
    "fcn-resnet18-dilated": Row(
        "fcn",
        (("backbone", "resnet18"), ("variant", "dilated"), ("width", 0.25), ("dropout", 0.5)),
        # torchvision's fcn_resnet50
        (("backbone", "resnet50"), ("variant", "dilated"), ("auxiliary", True)),
        35_322_218,
    ),
    "patch": Row(
        "patch",
        (("channels", (6, 8)), ("kernels", (4, 3)), ("hidden", 16)),
        (("norm", False),),  # the paper's N4; one grey channel and two classes are 219,290
        224_645,
    ),
    "segnet": Row("segnet", (("width", 0.125),), (), 29_455_125, dropout=False, bfloat16=0.15),
    "deconvnet": Row(
        "segnet",
        (("variant", "deconvnet"), ("width", 0.125), ("bottleneck", 32)),
        (("variant", "deconvnet"),),
        251_805_653,
        dropout=False,
        bfloat16=0.15,
    ),
    "unet-paper": Row(
        "unet",
        (("depth", 2), ("base_width", 8), ("norm", "batch"), ("dropout", 0.1)),
        (),  # one grey channel and two classes are 31,030,658: tests/models/test_unet.py
        31_033_045,
    ),
    "unet-resnet18": Row(
        "unet",
        (("variant", "backbone"), ("backbone", "resnet18"), ("width", 0.25), ("decoder_channels", (32, 16, 16, 8, 8))),
        (("variant", "backbone"), ("backbone", "resnet34")),  # smp.Unet("resnet34", classes=21)
        24_439_269,
        dropout=False,
    ),
}


def compiled(function, **options):
    """``jax.jit`` at half the compile time; the tests that use it run a program once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def image_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def variables_of(row, channels=3):
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    return draw(jax.eval_shape(row.build().init, jax.random.key(0), image))


@functools.cache
def forward(row, dtype="float32"):
    return compiled(row.build(dtype=dtype).apply)


def loss_and_gradients(module, variables, image):
    """Returns (loss, outputs, new statistics) and the gradients of a loss that no symmetry makes zero."""
    weights = image_of(*image.shape[:3], K, seed=1)

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, stats = module.apply(variables, image, train=True, key=jax.random.key(5))
        total = sum(jnp.sum(weights * value) for key, value in outputs.items() if key.endswith("logits"))
        return total, (outputs, stats)

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (outputs, stats)), gradients = gradient(variables["params"], variables["batch_stats"])
    return value, outputs, stats, gradients


def zero_or_not_finite(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, leaf in leaves if not (np.all(np.isfinite(leaf)) and np.any(leaf))]


@pytest.fixture(params=ROWS)
def row(request):
    return ROWS[request.param]


# One row of each family for the properties that take a program or three of their own; the others are slow.
QUICK = ("deeplab-mobilenet_v2", "fcn-resnet18-dilated", "patch", "segnet", "unet-resnet18")


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ROWS])
def one_of_a_family(request):
    return ROWS[request.param]


def test_every_model_has_a_row():
    others = {"classifier", "mask_rcnn"}  # no class for each pixel
    assert {row.name for row in ROWS.values()} == set(models.known()) - others


@pytest.mark.parametrize("size", [(1, 1), (15, 17), (64, 64), (97, 130)])
def test_logits_at_the_size_of_the_input(row, size):
    image = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    outputs = jax.eval_shape(row.build().apply, variables_of(row), image)
    assert outputs["logits"].shape == (2, *size, K) and outputs["logits"].dtype == jnp.float32


@pytest.mark.parametrize("channels", [1, 4])
def test_number_of_input_channels(row, channels):
    outputs = jax.eval_shape(row.build().apply, variables_of(row, channels), jnp.zeros((1, 32, 32, channels)))
    assert outputs["logits"].shape == (1, 32, 32, K)


def test_parameter_count(row):
    module = models.build(row.name, num_classes=21, **dict(row.published))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == row.parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_init_is_deterministic_and_of_float32(row):
    """The shapes and dtypes do not depend on the compute dtype, nor the structure on the mode it was made in."""
    shapes = jax.eval_shape(row.build().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    of_bfloat16 = jax.eval_shape(row.build(dtype="bfloat16").init, jax.random.key(0), jnp.zeros((2, 48, 16, 3)))
    assert shapes == of_bfloat16
    assert set(shapes) == {"params", "batch_stats"}


def test_gradients_and_statistics(row):
    """Every parameter has a finite gradient that is not zero, and every statistic moves: an odd size, two images."""
    variables = variables_of(row)
    run = compiled(functools.partial(loss_and_gradients, row.build()))
    value, outputs, stats, gradients = run(variables, image_of(2, 33, 47, 3))
    assert np.isfinite(value) and outputs["logits"].shape == (2, 33, 47, K)
    assert not zero_or_not_finite(gradients)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    assert not zero_or_not_finite(jax.tree.map(np.subtract, stats, variables["batch_stats"]))
    assert all(np.all(leaf >= 0) for path, leaf in jax.tree_util.tree_leaves_with_path(stats) if path[-1].key == "var")


def test_one_small_image(one_of_a_family):
    """A batch of one, smaller than the stride: the norm after image pooling sees one value per channel."""
    row = one_of_a_family
    run = compiled(functools.partial(loss_and_gradients, row.build()))
    _, outputs, stats, gradients = run(variables_of(row), image_of(1, 7, 5, 3))
    assert outputs["logits"].shape == (1, 7, 5, K)
    for tree in (outputs, stats, gradients):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def test_bfloat16(one_of_a_family):
    """Computes in bfloat16, with float32 parameters, statistics, gradients and logits, near the float32 result."""
    row = one_of_a_family
    image, variables = image_of(4, 17, 21, 3), variables_of(row)
    results = jax.eval_shape(functools.partial(loss_and_gradients, row.build(dtype="bfloat16")), variables, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(row.build(dtype="bfloat16").apply)(variables, image))
    assert not [line for line in program.splitlines() if "conv_general" in line and "f32" in line.partition("=")[0]]
    fine, coarse = (forward(row, dtype)(variables, image)["logits"] for dtype in ("float32", "bfloat16"))
    assert 1e-5 < np.linalg.norm(fine - coarse) / np.linalg.norm(fine) < row.bfloat16


def test_evaluation_treats_each_example_alone(row):
    variables, image = variables_of(row), image_of(4, 17, 21, 3)
    together = forward(row)(variables, image)["logits"]
    alone = forward(row)(variables, np.concatenate([image[:1], 0 * image[1:]]))["logits"]
    np.testing.assert_array_equal(together[0], alone[0])
    assert not np.array_equal(together[1], alone[1])


def test_training_does_not_depend_on_the_number_of_devices(one_of_a_family):
    """On 1 device, on 4 under jit and on 4 under pmap: the statistics of the global batch, and the same dropout."""
    row = one_of_a_family
    variables, image, key = variables_of(row), image_of(4, 17, 21, 3), jax.random.key(2)
    devices = jax.devices()[:4]

    def apply(module, variables, image, key):
        return module.apply(variables, image, train=True, key=key)

    single = compiled(functools.partial(apply, row.build()))
    logits, stats = single(variables, image, key)
    mesh = Mesh(np.array(devices), ("data",))
    copied, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    sharded = compiled(functools.partial(apply, row.build()), in_shardings=(copied, split, copied))
    sharded = sharded(variables, image, key)
    mapped = functools.partial(apply, row.build(axis_name="data"))
    mapped = jax.pmap(mapped, "data", in_axes=(None, 0, None), out_axes=(0, None), devices=devices)
    outputs, mapped_stats = mapped(variables, image.reshape(4, 1, *image.shape[1:]), key)

    def distance(outputs, found):
        ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (outputs, found))
        return np.linalg.norm(ours - theirs) / np.linalg.norm(ours)

    # Small maps of few examples: norms divide rounding errors by small deviations.
    for found, found_stats in (sharded, (outputs, mapped_stats)):
        assert distance(logits, found) < 2e-3 and distance(stats, found_stats) < 1e-4
    other, _ = single(variables, image, jax.random.key(3))
    assert (distance(logits, other) > 1e-2) == row.dropout
    assert distance(logits, forward(row)(variables, image)) > 1e-2


# Another legal value of each option that some variant leaves unread.
OTHER = {
    "output": "native", "depth": 2, "base_width": 12, "norm": "batch", "dropout": 0.25, "backbone": "resnet50",
    "width": 0.3, "decoder_channels": 24, "pruned": True, "decoder_norm": "none", "interpolation": "bilinear",
    "attention": "scse", "center": True, "image_classes": 3, "image_pooling": "max", "image_dropout": 0.4,
    "low_level_channels": 9, "decoder_convs": 1, "fc_channels": 7, "aspp_channels": 9, "aspp_out_conv": True,
    "aspp_separable": True, "separable": True, "depthwise_norm": False, "stride": 32, "upsampling": "fixed",
}  # fmt: skip


def test_options_that_are_not_read_change_no_program(row):
    module, image = row.build(), jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    program = lambda m: str(jax.make_jaxpr(lambda v, x: m.apply(v, x))(variables, image))
    values = OTHER | ({"decoder_channels": (32, 32, 16)} if row.name == "unet" else {})
    others = {name: values[name] for name in module.unread()}
    assert program(module.clone(**others)) == program(module)
    assert all(getattr(module, name) != value for name, value in others.items())
