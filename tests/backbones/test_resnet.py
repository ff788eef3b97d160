"""ResNet: where a bottleneck strides, and the dilations of multi-grid and of the cascade."""

import jax
import numpy as np
import pytest
from drawn import draw

from segjax import backbones, layers
from segjax.backbones import resnet
from segjax.types import InputError


def dilations_of(monkeypatch, name, **options):
    """The dilation and stride of every 3x3 convolution, in the order of the network."""
    calls, conv = [], layers.ops.conv

    def record(x, kernel, *, stride, dilation, **more):
        if kernel.shape[0] == 3:
            calls.append((stride, dilation))
        return conv(x, kernel, stride=stride, dilation=dilation, **more)

    monkeypatch.setattr(layers.ops, "conv", record)
    module = backbones.build(name, width=0.125, **options)
    image = np.zeros((1, 64, 64, 3), np.float32)
    maps = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image, train=False)[0])
    return calls, maps


def test_a_block_that_strides_in_its_first_convolution_reads_every_second_pixel():
    """Both of its 1x1 convolutions drop three pixels in four; striding in the 3x3 one reads them all."""
    x = np.random.default_rng(0).normal(size=(2, 9, 12, 8)).astype(np.float32)
    first = resnet.Block(channels=4, bottleneck=True, stride=2, stride_place="1x1")
    variables = draw(jax.eval_shape(lambda: first.init(jax.random.key(0), x, train=False)))
    strided = first.apply(variables, x, train=False)
    plain = resnet.Block(channels=4, bottleneck=True).apply(variables, x[:, ::2, ::2], train=False)
    np.testing.assert_allclose(strided, plain, rtol=1e-5, atol=1e-6)
    second = resnet.Block(channels=4, bottleneck=True, stride=2).apply(variables, x, train=False)
    assert second.shape == strided.shape and float(np.abs(second - strided).max()) > 1e-2


def test_variants_of_the_paper_stride_in_the_first_convolution(monkeypatch):
    calls, maps = dilations_of(monkeypatch, "resnet50_v1")
    assert {stride for stride, _ in calls} == {1} and maps["out"].shape[1] == 2
    calls, maps = dilations_of(monkeypatch, "resnet50")
    assert sum(stride == 2 for stride, _ in calls) == 3 and maps["out"].shape[1] == 2


@pytest.mark.parametrize(
    "options, last",
    [
        # "the three convolutions will have rates = 2 (1, 2, 4) = (2, 4, 8) in block4" (section 3.2.1)
        ({"output_stride": 16, "dilate_first_block": True}, (2, 4, 8)),
        ({"output_stride": 8, "dilate_first_block": True}, (4, 8, 16)),
        ({"output_stride": 16}, (1, 4, 8)),
        # Figure 3 (b): rates 2, 4, 8 and 16 in block4 to block7, times the grid
        ({"output_stride": 16, "dilate_first_block": True, "cascade": 3}, (2, 4, 8, 4, 8, 16, 8, 16, 32, 16, 32, 64)),
    ],
)
def test_multi_grid_and_cascade(monkeypatch, options, last):
    calls, maps = dilations_of(monkeypatch, "resnet50", multi_grid=(1, 2, 4), **options)
    assert [dilation for _, dilation in calls[-len(last) :]] == list(last)
    assert maps["out"].shape[1:3] == (64 // options["output_stride"],) * 2


def test_the_cascade_repeats_the_last_stage():
    """Figure 3: "we duplicate several copies of the last ResNet block", whose first block needs no shortcut."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    module = backbones.build("resnet50", output_stride=16, width=0.125, cascade=2)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))["params"]
    count = {stage: sum(name.startswith(f"layer{stage}_") for name in params) for stage in (3, 4, 5, 6, 7)}
    assert count == {3: 6, 4: 3, 5: 3, 6: 3, 7: 0}
    assert jax.tree.map(np.shape, params["layer4_1"]) == jax.tree.map(np.shape, params["layer6_0"])


def test_illegal_options():
    with pytest.raises(InputError, match=r"stride_place='5x5'.*'3x3', '1x1'"):
        backbones.build("resnet50", stride_place="5x5")
    with pytest.raises(InputError, match=r"multi_grid=\(1, 2\).*3 factors"):
        backbones.build("resnet50", multi_grid=(1, 2))
    with pytest.raises(InputError, match=r"multi_grid=\(0, 2\).*2 factors"):
        backbones.build("resnet18", multi_grid=[0, 2])
    with pytest.raises(InputError, match="cascade=-1"):
        backbones.build("resnet50", cascade=-1)
