"""Geometries of a convolution: one that a user asks for, and the grid that every proof covers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from segjax.ops.geometry import Padding, pad_pairs, per_axis


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution with everything but the values: sizes per axis (one or two axes), channels, groups.

    Output i reads through tap t the pixel stride i + dilation t - low.
    """

    size: tuple[int, ...]  # pixels of the input
    window: tuple[int, ...]  # taps of the kernel
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]  # (low, high)
    dilation: tuple[int, ...]
    groups: int
    channels: int  # of the input
    features: int  # channels of the output

    @property
    def rank(self) -> int:
        """Spatial axes, 1 or 2."""
        return len(self.size)

    @property
    def spans(self) -> tuple[int, ...]:
        """Pixels from the first tap to the last, per axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.window, self.dilation, strict=True))

    @property
    def slack(self) -> tuple[int, ...]:
        """Pixels of the padded input beyond one window, per axis: the numerator of the output size."""
        return tuple(n + sum(p) - e for n, p, e in zip(self.size, self.pads, self.spans, strict=True))

    @property
    def output(self) -> tuple[int, ...]:
        """Pixels of the output: floor((n + low + high - d (k - 1) - 1) / s) + 1 per axis."""
        return tuple(r // s + 1 for r, s in zip(self.slack, self.stride, strict=True))

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Pixels at the far end that no window reaches, per axis: what the way back must be told."""
        return tuple(r % s for r, s in zip(self.slack, self.stride, strict=True))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(*window, channels / groups, features)."""
        return (*self.window, self.channels // self.groups, self.features)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of M."""
        return math.prod(self.output) * self.features, math.prod(self.size) * self.channels

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `ops.conv` and its relatives."""
        return {"stride": self.stride, "padding": self.pads, "dilation": self.dilation, "groups": self.groups}

    @property
    def label(self) -> str:
        """A short name: 6x8 k3 s2 p1 2>3 is a 3x3 kernel at stride 2, padding 1, from 2 to 3 channels."""
        parts = [_joined(self.size, "x", always=True), f"k{_joined(self.window)}", f"s{_joined(self.stride)}"]
        parts += [f"p{_pads(self.pads)}"] * (self.pads != ((0, 0),) * self.rank)
        parts += [f"d{_joined(self.dilation)}"] * (set(self.dilation) != {1})
        parts += [f"g{self.groups}"] * (self.groups > 1)
        return " ".join([*parts, f"{self.channels}>{self.features}"])

    @property
    def flags(self) -> str:
        """The options of `python -m segjax.verify` that ask for this case."""
        return (
            f"--dims={self.rank} --input={_joined(self.size)} --kernel={_joined(self.window)} "
            f"--stride={_joined(self.stride)} --padding={_pads(self.pads)} --dilation={_joined(self.dilation)} "
            f"--groups={self.groups} --channels={self.channels} --features={self.features}"
        )


def case(
    size: Sequence[int],
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    channels: int | None = None,
    features: int | None = None,
) -> Case:
    """Completes and checks the arguments of a convolution.

    Args:
        size: pixels of the input, one number per axis.
        window: taps of the kernel, an int or one per axis.
        stride: pixels between outputs, an int or one per axis.
        padding: as in `ops.conv`.
        dilation: pixels between taps, an int or one per axis.
        groups: runs of channels; as many as channels is depthwise.
        channels: of the input; None: one per group.
        features: channels of the output; None: one per group.

    Returns:
        the case.

    Raises:
        ValueError: a number out of range, groups that do not divide the channels, or a kernel larger than the padded
            input; the message holds the nearest legal value.
    """
    rank = len(size)
    size, window = per_axis("input", size, rank), per_axis("kernel", window, rank)
    stride, dilation = per_axis("stride", stride, rank), per_axis("dilation", dilation, rank)
    channels, features = groups if channels is None else channels, groups if features is None else features
    for name, count in (("groups", groups), ("channels", channels), ("features", features)):
        if count < 1:
            raise ValueError(f"{name}={count}: expected 1 or more")
        if count % groups:
            below, above = count // groups * groups, -(-count // groups) * groups
            near = f"{below} or {above}" if below else f"{above}"
            raise ValueError(f"{name}={count} with groups={groups}: expected a multiple of {groups}; nearest: {near}")
    pads = pad_pairs(padding, size, window, stride, dilation)
    made = Case(size, window, stride, pads, dilation, groups, channels, features)
    for n, k, d, (low, high), span in zip(size, window, dilation, pads, made.spans, strict=True):
        if n + low + high < span:
            raise ValueError(
                f"kernel {k} with dilation {d} spans {span} pixels, more than input {n} padded by {low} and {high} "
                f"({n + low + high}): expected a kernel of at most {(n + low + high - 1) // d + 1}, or an input of at "
                f"least {span - low - high}"
            )
    return made


def _grid() -> tuple[Case, ...]:
    one: Callable[..., Case] = lambda n, k, s=1, p=(0, 0), **rest: case((n,), k, stride=s, padding=(p,), **rest)
    two: Callable[..., Case] = lambda size, k, s=1, p=0, **rest: case(size, k, stride=s, padding=p, **rest)
    return (
        one(4, 3),
        one(5, 3, 2),
        one(6, 3, 2, channels=2, features=3),  # output_padding 1
        one(8, 4, 2, (1, 1)),
        one(9, 2, 3, channels=2),  # kernel < stride
        one(10, 3, 2, (2, 1), dilation=2),
        one(12, 5, 3, (0, 3), channels=2, features=2),
        one(11, 3, 1, (1, 2), groups=2, channels=4, features=6),
        one(13, 5, 2, (2, 2), groups=3),  # depthwise
        one(8, 6, 1, (3, 2)),
        two((4, 4), 3),  # the 4 x 16 matrix of the textbooks
        two((4, 4), 3, 1, 2),
        two((6, 6), 3, channels=2, features=3),
        two((5, 7), 3, 2, 1),
        two((6, 8), 3, 2, 1, channels=2, features=3),  # output_padding 1
        two((8, 8), 4, 2, 1, channels=2, features=2),
        two((8, 6), 2, 2, channels=2, features=3),
        two((7, 9), 2, 2),
        two((7, 8), 2, 3, channels=3, features=2),  # kernel < stride
        two((9, 7), 1, 2, channels=3, features=2),
        two((5, 6), 1, channels=3, features=4),
        two((7, 6), (3, 2), (2, 1), ((1, 0), (0, 1)), channels=2),
        two((9, 8), 3, 1, 2, dilation=2),
        two((10, 9), 3, 2, 2, dilation=2, channels=2, features=3),
        two((11, 10), (3, 2), (2, 3), ((3, 1), (0, 2)), dilation=(3, 2)),
        two((8, 8), 5, 3, 2),
        two((16, 12), 8, 4, 2, channels=2),
        two((6, 7), 3, 1, 1, groups=2, channels=4, features=6),
        two((8, 7), 3, 2, 1, groups=2, channels=4, features=2),
        two((7, 7), 3, 1, 1, groups=4),  # depthwise
        two((8, 9), 5, 2, 2, groups=3),
        two((9, 9), 3, 1, 2, dilation=2, groups=4),
        two((6, 6), 3, 2, ((0, 1), (0, 1)), groups=2, features=4),  # depthwise, two outputs per channel
        two((12, 5), (4, 5), (2, 1), ((1, 1), (4, 3))),
        two((4, 4), 4, channels=2, features=3),  # one output
        two((4, 5), 3, 2, ((4, 3), (3, 5))),  # outputs that read padding alone
    )


def _joined(values: Sequence[int], sign: str = "x", *, always: bool = False) -> str:
    return sign.join(map(str, values)) if always or len(set(values)) > 1 else str(values[0])


def _pads(pads: Sequence[tuple[int, int]]) -> str:
    texts = [str(low) if low == high else f"{low},{high}" for low, high in pads]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


GRID = _grid()
