"""The rows of ops.py: every operation at its shapes, and how each side computes it."""

import argparse
import dataclasses
import math
from collections.abc import Callable

import numpy as np

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one shape; `out` is channels, factor is the resize's."""

    kind: str
    x: tuple[int, int, int, int]
    out: int = 0
    window: int = 1
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    factor: int = 1

    @property
    def name(self) -> str:
        """The operation's name and its shape."""
        geometry = f"x{self.factor}" if self.factor > 1 else f"k{self.window} s{self.stride} p{self.padding}"
        geometry += f"+{self.output_padding}" * (self.output_padding > 0)
        return f"{self.kind} {geometry} {'x'.join(map(str, self.x))}" + (f"->{self.out}" if self.out else "")

    @property
    def parts(self) -> tuple[str, ...]:
        """Its rows."""
        return ("forward", "input gradient", "kernel gradient")[: 3 if self.has_kernel else 2]

    @property
    def has_kernel(self) -> bool:
        """Whether it has a kernel to differentiate."""
        return self.kind in ("transposed", "depthwise")

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of input, kernel (() without one) and output."""
        batch, *size, channels = self.x
        k, s, p = self.window, self.stride, self.padding
        if self.kind == "transposed":
            out = [(n - 1) * s - 2 * p + k + self.output_padding for n in size]
            return self.x, (k, k, self.out, channels), (batch, *out, self.out)
        if self.kind in ("bilinear", "bicubic"):
            return self.x, (), (batch, *(n * self.factor for n in size), channels)
        out = [(n + 2 * p - k) // s + 1 for n in size]
        return self.x, (k, k, 1, channels) if self.has_kernel else (), (batch, *out, channels)

    def arrays(self, seed: int) -> list[np.ndarray]:
        """Input, kernel and cotangent, f32, the same in every process."""
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(shape, np.float32) for shape in self.shapes()]

    def moved(self, part: str, itemsize: int) -> int:
        """Bytes that must move: the arrays that the row reads and the one it writes."""
        x, kernel, y = map(math.prod, self.shapes())
        nonlinear = 2 * x + y  # a max-pool's gradient looks at its input too
        gradient = nonlinear if self.kind == "max-pool" else x + y + kernel * self.has_kernel
        return itemsize * (gradient if part == "input gradient" else x + y + kernel * self.has_kernel)


def transposed(x, out, window, stride, padding, output_padding=0) -> Case:
    """A transposed convolution of x."""
    return Case("transposed", x, out, window, stride, padding, output_padding)


CASES = (
    transposed((4, 30, 30, 128), 128, 2, 2, 0),
    transposed((1, 28, 28, 1024), 512, 2, 2, 0),  # U-Net
    transposed((4, 30, 30, 128), 128, 4, 2, 1),
    transposed((2, 64, 64, 64), 64, 4, 2, 1),
    transposed((4, 30, 30, 128), 128, 3, 2, 1, 1),
    transposed((2, 60, 80, 128), 64, 3, 2, 1, 1),
    transposed((8, 32, 32, 21), 21, 16, 8, 4),  # FCN-8s
    transposed((1, 60, 80, 21), 21, 16, 8, 4),
    transposed((1, 8, 8, 21), 21, 64, 32, 16),  # FCN-32s
    transposed((1, 16, 16, 21), 21, 64, 32, 16),
    Case("depthwise", (4, 60, 60, 128), window=3, padding=1),
    Case("depthwise", (8, 48, 64, 144), window=3, padding=1),  # MobileNetV2
    Case("depthwise", (4, 60, 60, 128), window=5, padding=2),
    Case("depthwise", (4, 30, 40, 240), window=5, padding=2),
    Case("max-pool", (4, 120, 160, 64), window=2, stride=2),
    Case("max-pool", (2, 240, 320, 64), window=2, stride=2),  # U-Net, VGG
    Case("max-pool", (4, 120, 160, 64), window=3, stride=2, padding=1),
    Case("max-pool", (8, 96, 128, 64), window=3, stride=2, padding=1),  # ResNet's stem
    Case("bilinear", (4, 60, 80, 256), factor=2),
    Case("bilinear", (2, 120, 160, 64), factor=2),
    Case("bilinear", (4, 30, 40, 256), factor=4),
    Case("bilinear", (4, 48, 64, 11), factor=4),  # DeepLabv3+'s logits
    Case("bilinear", (2, 32, 32, 21), factor=8),
    Case("bilinear", (4, 24, 32, 256), factor=8),
    Case("bilinear", (4, 16, 16, 21), factor=16),
    Case("bilinear", (1, 32, 32, 21), factor=16),  # DeepLabv3's logits
    Case("bicubic", (2, 60, 80, 128), factor=2),
    Case("bicubic", (1, 120, 160, 64), factor=2),
)


def segjax_op(case: Case) -> Callable:
    """The operation as a function of (x, kernel)."""
    from segjax import ops

    stride, padding = case.stride, case.padding
    if case.kind == "transposed":
        return lambda x, k: ops.conv_transpose(x, k, stride=stride, padding=padding, output_padding=case.output_padding)
    if case.kind == "depthwise":
        return lambda x, k: ops.conv(x, k, stride=stride, padding=padding, groups=x.shape[-1])
    if case.kind == "max-pool":
        return lambda x, _: ops.max_pool(x, case.window, stride=stride, padding=padding)
    return lambda x, _: ops.resize(x, [n * case.factor for n in x.shape[1:3]], method=case.kind)


def segjax_call(case: Case, part: str, dtype: str, arguments: argparse.Namespace) -> tuple[Call, Call]:
    """The call to time, and one that fetches its (first) result as NumPy, NHWC or HWIO."""
    import jax
    import jax.numpy as jnp

    op = segjax_op(case)
    at = {"input gradient": 0, "kernel gradient": 1}.get(part)
    row = (lambda x, k, g: op(x, k)) if at is None else (lambda x, k, g: jax.vjp(op, x, k)[1](g)[at])
    copies = [[jnp.asarray(a, dtype) for a in case.arrays(seed)] for seed in range(arguments.copies)]
    run = jax.jit(row) if len(copies) == 1 else jax.jit(lambda *copies: [row(*copy) for copy in copies])
    inputs = copies[0] if len(copies) == 1 else copies
    call = lambda: jax.block_until_ready(run(*inputs))
    return call, lambda: np.asarray(jax.tree.leaves(call())[0], np.float32)


def torch_op(case: Case) -> Callable:
    """The operation as a function of (x, weight)."""
    from torch.nn import functional

    options = {"stride": case.stride, "padding": case.padding}
    if case.kind == "transposed":
        return lambda x, w: functional.conv_transpose2d(x, w, output_padding=case.output_padding, **options)
    if case.kind == "depthwise":
        return lambda x, w: functional.conv2d(x, w, groups=x.shape[1], **options)
    if case.kind == "max-pool":
        return lambda x, _: functional.max_pool2d(x, case.window, **options)
    return lambda x, _: functional.interpolate(x, scale_factor=case.factor, mode=case.kind, align_corners=False)


def torch_call(case: Case, part: str, dtype: str, arguments: argparse.Namespace) -> tuple[Call, Call]:
    """The same for PyTorch."""
    import torch

    cuda = arguments.device == "cuda"

    def tensor(array: np.ndarray, axes: tuple[int, ...]) -> torch.Tensor:
        value = torch.from_numpy(array).to(arguments.device, getattr(torch, dtype))
        return value.permute(axes).contiguous(memory_format=torch.channels_last).requires_grad_(part != "forward")

    def prepared(seed: int) -> Call:
        x, kernel, g = case.arrays(seed)
        x, g = tensor(x, (0, 3, 1, 2)), tensor(g, (0, 3, 1, 2)).detach()
        w = tensor(kernel, (3, 2, 0, 1)) if case.has_kernel else None
        if part == "forward":
            return lambda: op(x, w)
        y, wanted = op(x, w), x if part == "input gradient" else w
        return lambda: torch.autograd.grad(y, wanted, g, retain_graph=True)[0]

    op = torch_op(case)
    stream = torch.cuda.Stream() if cuda else None
    with torch.cuda.stream(stream):  # nothing without one
        calls = [prepared(seed) for seed in range(arguments.copies)]

    def run() -> list:
        with torch.inference_mode(part == "forward"):
            return [call() for call in calls]

    call = run
    if cuda:
        with torch.cuda.stream(stream):
            run(), run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = run()

        def call() -> list:
            graph.replay()
            torch.cuda.synchronize()
            return outputs

    axes = (2, 3, 1, 0) if part == "kernel gradient" else (0, 2, 3, 1)
    return call, lambda: call()[0].permute(axes).float().cpu().numpy()
