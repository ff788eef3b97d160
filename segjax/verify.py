"""Proves that ops.conv_transpose is the transpose of ops.conv's matrix: arithmetic, errors and pictures on one page.

  python -m segjax.verify [--input=4x4] [--kernel=3] [--stride=1] [--padding=0] [--output=DIR] ...
  python -m segjax.verify --roi [--seed=0] [--output=DIR]

The geometry that is written out and drawn; a number is for every axis, AxB is one per axis:
--dims=2          spatial axes, 1 or 2; two unless --input says otherwise
--input=4x4       pixels of the convolution's input: 4 or 4x5
--kernel=3        taps: 3 or 3x2
--stride=1        pixels between outputs
--padding=0       zeros around the input: 1, or LOW,HIGH such as 0,1, or one per axis such as 0,1x2, or same
--dilation=1      pixels between taps
--groups=1        runs of channels; as many as channels is depthwise
--channels=N      channels of the input, one per group by default
--features=N      channels of the output, one per group by default

What is checked:
--dtype=all       float32, float64, bfloat16 or all
--no-grid         this geometry alone; by default also a grid of geometries in one and two dimensions
--seed=0          of the random values
--unflipped       shows that the check can fail: method "fractional" gets its kernel unflipped

Another page:
--roi             what RoIPool's rounding loses of a region of 200x145 pixels and lets in, RoIAlign beside it, and the
                  error of both against the exact mean over each bin; takes --seed and --output alone

--output=DIR      writes pictures and an index.html that holds everything
--help            this text

Exit status 0: every error is within its bound; 1: one is not; 2: an option is wrong; 130: Ctrl-C.
"""

import argparse
import pathlib
import platform
import sys
from collections.abc import Sequence

import jax

from segjax import config as configs
from segjax import ops
from segjax.derivation import cases, checks, page, reference, regions, table, text
from segjax.derivation.cases import Case
from segjax.types import InputError

_GEOMETRY = ("kernel", "stride", "dilation")
_Found = list[tuple[Case, str, dict[str, checks.Error]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, prints the proof and writes its page.

    Returns:
        the exit status: 0; 1 where an error exceeds its bound; 2 where the user has something to mend; 130 where
        Ctrl-C ended it.
    """
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(__doc__.strip())
            return 0
        return 0 if (_verify_regions if arguments.roi else _verify)(arguments) else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m segjax.verify", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    for name, default in (("input", ""), ("kernel", "3"), ("stride", "1"), ("padding", "0"), ("dilation", "1")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--groups", type=int, default=1)
    for name in ("dims", "channels", "features"):
        parser.add_argument(f"--{name}", type=int, default=None)
    parser.add_argument("--dtype", default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--unflipped", action="store_true")
    parser.add_argument("--roi", action="store_true")
    parser.add_argument("--output", default="")
    parser.add_argument("-h", "--help", action="store_true")
    arguments, overrides = configs.parse(parser, argv)
    for key in overrides:
        raise InputError(f"unknown argument --config.{key}; --help lists them")
    if arguments.seed < 0:
        raise InputError(f"--seed={arguments.seed}: expected 0 or more")
    if arguments.roi:
        given = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
        if others := [name for name in given if name not in ("roi", "seed", "output", "help")]:
            raise InputError(f"--roi with --{others[0]}: it takes --seed and --output alone")
    return arguments


def _verify(arguments: argparse.Namespace) -> bool:
    dtypes, case = _dtypes(arguments.dtype), _case(arguments)
    folder = _folder(arguments.output) if arguments.output else None
    record = _Record()
    record(f"segjax.verify, jax {jax.__version__} on {jax.default_backend()}, Python {platform.python_version()}")
    record(f"\n== The geometry: {case.label} ==\n\n{text.kernel_and_matrix(case)}\n\n{text.arithmetic(case)}")
    record(f"\n== Errors ==\n\n{table.legend({dtype: checks.BOUNDS[dtype] for dtype in dtypes})}")
    todo = [case, *(other for other in cases.GRID if other != case)] if arguments.grid else [case]
    transpose = checks.unflipped if arguments.unflipped else ops.conv_transpose
    found = []
    for dtype in dtypes:
        record(f"\n{table.heading(dtype)}")
        for number, item in enumerate(todo):
            record.wait(f"{dtype}, geometry {number + 1} of {len(todo)} ...")
            with jax.enable_x64(dtype == "float64"):
                found.append((item, dtype, checks.measure(item, dtype, seed=arguments.seed, transpose=transpose)))
            record(table.row(item.label, found[-1][2]))
    verdict, passed = table.summary(found)
    flags = f" --seed={arguments.seed}" * (arguments.seed > 0) + " --unflipped" * arguments.unflipped
    told = table.failures(found, flags=flags)
    record("\n== Result ==\n" + (f"\n{told}\n" if told else "") + f"\n{verdict}")
    if folder:
        record.wait("drawing ...")
        try:
            path = page.write(folder, case, record.lines, passed)
        except OSError as error:
            raise InputError(f"--output={folder}: {error}") from error
        print(f"\nwrote {path}")
    return passed


def _verify_regions(arguments: argparse.Namespace) -> bool:
    folder = _folder(arguments.output) if arguments.output else None
    record = _Record()
    record(f"segjax.verify, jax {jax.__version__} on {jax.default_backend()}, Python {platform.python_version()}")
    record(f"\n== What rounding does ==\n\n{regions.quantisation_text()}\n\n== Errors ==\n")
    record("Against the exact mean over each bin, the float64 integral of the bilinearly interpolated map in closed")
    record("form; maps of standard deviation 1. RoIPool's maximum is another statistic than the mean: the row below it")
    record("is what its rounding alone does.")
    found, worst = {}, 0.0
    for kind in ("smooth", "noise"):
        for bins in regions.BINS:
            record.wait(f"{kind} map, {bins}x{bins} bins ...")
            found[kind, bins], difference = regions.measure(kind, bins, arguments.seed)
            worst = max(worst, difference)
            record(f"\n{regions.errors_text(kind, bins, found[kind, bins])}")
    passed = worst <= regions.BOUND
    record(
        f"\n== Result ==\n\n{'PASS' if passed else 'FAIL'}  ops.roi_align and ops.roi_pool equal float64 loops over "
        f"their definitions: largest difference {worst:.2g}, bound {regions.BOUND:g}"
    )
    if folder:
        record.wait("drawing ...")
        try:
            path = page.write_regions(folder, found, record.lines, passed)
        except OSError as error:
            raise InputError(f"--output={arguments.output}: {error}") from error
        print(f"\nwrote {path}")
    return passed


class _Record:
    """Prints lines and keeps them; on a terminal a last line says what is being waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._waiting = False

    def __call__(self, line: str) -> None:
        """Prints and keeps a line."""
        self._clear()
        print(line, flush=True)
        self.lines.append(line)

    def wait(self, line: str) -> None:
        """Shows a line until the next one, on a terminal."""
        if sys.stdout.isatty():
            self._clear()
            print(line, end="", flush=True)
            self._waiting = True

    def _clear(self) -> None:
        if self._waiting:
            print("\r\x1b[K", end="")
        self._waiting = False


def _dtypes(name: str) -> list[str]:
    if name == "all":
        return list(checks.BOUNDS)
    if name not in checks.BOUNDS:
        known = [*checks.BOUNDS, "all"]
        raise InputError(f"--dtype={name}: expected {', '.join(known)}{configs.nearest(name, known)}")
    return [name]


def _case(arguments: argparse.Namespace) -> Case:
    dims = arguments.dims
    if dims not in (None, 1, 2):
        raise InputError(f"--dims={dims}: expected 1 or 2")
    size = _numbers("input", arguments.input or "4")
    if len(size) == 1:
        size *= 2 if dims is None else dims
    if len(size) > 2 or len(size) != (dims or len(size)):
        expected = f"{dims} by --dims={dims}" if dims else "1 or 2"
        raise InputError(f"--input={arguments.input} has {len(size)} axes: expected {expected}")
    values = {name: _numbers(name, getattr(arguments, name)) for name in _GEOMETRY}
    for name, value in values.items():
        if len(value) not in (1, len(size)):
            text = "x".join(map(str, value))
            raise InputError(f"--{name}={text}: expected one number, or {len(size)} as --input has axes")
    per_axis = {name: value * len(size) if len(value) == 1 else value for name, value in values.items()}
    try:
        case = cases.case(
            size,
            per_axis["kernel"],
            stride=per_axis["stride"],
            dilation=per_axis["dilation"],
            padding=_padding(arguments.padding, len(size)),
            groups=arguments.groups,
            channels=arguments.channels,
            features=arguments.features,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    if (entries := reference.count_entries(case)) > reference.MOST_ENTRIES:
        share = (reference.MOST_ENTRIES / entries) ** (1 / case.rank)
        near = "x".join(str(int(n * share)) for n in case.size)
        raise InputError(
            f"M of {case.label} has {entries:,} entries: the loop that checks them takes up to "
            f"{reference.MOST_ENTRIES:,}; choose a smaller --input, about {near}, or a smaller --kernel"
        )
    return case


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("x"))
    except ValueError as error:
        raise InputError(f"--{name}={text}: expected a number, or one per axis such as 3x2") from error


def _padding(text: str, rank: int) -> str | tuple[tuple[int, int], ...]:
    if text in ("same", "valid"):
        return text
    try:
        pairs = tuple(tuple(int(part) for part in axis.split(",")) for axis in text.split("x"))
    except ValueError as error:
        raise InputError(f"--padding={text}: expected a number, LOW,HIGH, one of these per axis, or same") from error
    if len(pairs) not in (1, rank) or any(len(pair) > 2 for pair in pairs):
        raise InputError(f"--padding={text}: expected LOW,HIGH once, or {rank} times with an x between")
    return tuple(pair * (3 - len(pair)) for pair in (pairs * rank if len(pairs) == 1 else pairs))


def _folder(name: str) -> pathlib.Path:
    try:
        folder = pathlib.Path(name)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={name}: cannot make this folder: {error}") from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
