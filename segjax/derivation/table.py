"""The table of errors: one line per geometry, a verdict per dtype, every failure with its values."""

from collections.abc import Mapping, Sequence

import numpy as np

from segjax.derivation.cases import Case
from segjax.derivation.checks import BOUNDS, CHECKS, MOST_DENSE, Error

_LABEL = 34  # characters
_CELL = 6


def legend(bounds: Mapping[str, float]) -> str:
    """Explains the columns of the table and what an error is relative to.

    Args:
        bounds: of the dtypes that are checked.

    Returns:
        lines of text.
    """
    limits = ", ".join(f"{dtype} {bound:g}" for dtype, bound in bounds.items())
    return "\n".join(
        [
            "Each number is the largest error over all elements, |got - wanted| / (sum of |terms|), where wanted is a",
            f"float64 loop over the definition. Bounds: {limits}.",
            *(f"  {column:<6}{meaning}" for column, meaning in CHECKS.values()),
            f"  -     left out: M has more than {MOST_DENSE:,} elements",
            "A geometry's name: input size, kernel k, stride s, padding p (LOW,HIGH where they differ), dilation d,",
            "groups g, input channels > output channels.",
        ]
    )


def heading(dtype: str) -> str:
    """Heads the table of one dtype.

    Args:
        dtype: a key of `BOUNDS`.

    Returns:
        one line.
    """
    return f"{dtype:<{_LABEL}}" + "".join(f"{column:>{_CELL}}" for column, _ in CHECKS.values())


def row(label: str, errors: Mapping[str, Error]) -> str:
    """Writes the errors of one geometry.

    Args:
        label: of the geometry.
        errors: of `checks.measure`; checks that were left out show a dash.

    Returns:
        one line.
    """
    cells = (short(errors[name].value) if name in errors else "-" for name in CHECKS)
    return f"{label:<{_LABEL}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def short(value: float) -> str:
    """Writes an error in at most five characters.

    Args:
        value: at least zero, perhaps infinite.

    Returns:
        "0", "2e-16", "inf".
    """
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    return f"{value:.0e}" if value < 0.95 else f"{value:.2g}" if value < 99.5 else "> 99"


def summary(found: Sequence[tuple[Case, str, Mapping[str, Error]]]) -> tuple[str, bool]:
    """Compares the worst error of each dtype with its bound.

    Args:
        found: (geometry, dtype, errors) of every measurement.

    Returns:
        (lines of text, whether every error is within its bound).
    """
    lines, passed = [], True
    for dtype in dict.fromkeys(dtype for _, dtype, _ in found):
        all_errors = [(e.value, name, case) for case, d, errors in found if d == dtype for name, e in errors.items()]
        value, name, case = max(all_errors, key=lambda item: item[0])
        good = value <= BOUNDS[dtype]
        passed &= good
        share = f"{value / BOUNDS[dtype]:.2g} of the bound {BOUNDS[dtype]:g}"
        lines.append(
            f"{'PASS' if good else 'FAIL'}  {dtype:<9} worst error {value:.2g}, {share}  ({name}, {case.label}; "
            f"{len(all_errors)} checks)"
        )
    return "\n".join(lines), passed


def failures(found: Sequence[tuple[Case, str, Mapping[str, Error]]], *, flags: str = "", most: int = 5) -> str:
    """Tells the errors that exceed their bounds, the first ones in full.

    Args:
        found: (geometry, dtype, errors) of every measurement.
        flags: further options of the command that repeats one.
        most: how many are told in full.

    Returns:
        lines of text, none where all is well.
    """
    bad = [
        (case, dtype, name, error)
        for case, dtype, errors in found
        for name, error in errors.items()
        if not error.value <= BOUNDS[dtype]
    ]
    lines = [failure(*item, flags) for item in bad[:most]]
    return "\n".join(lines + [f"and {len(bad) - most} more"] * (len(bad) > most))


def failure(case: Case, dtype: str, name: str, error: Error, flags: str) -> str:
    """Tells one error that exceeds its bound: what, where, the values, and the command that repeats it.

    Args:
        case: the geometry.
        dtype: a key of `BOUNDS`.
        name: a key of `CHECKS`.
        error: of `checks.measure`.
        flags: further options of the command that repeats it.

    Returns:
        lines of text.
    """
    return "\n".join(
        [
            f"FAIL {case.label}, {dtype}: {CHECKS[name][1]}: error {error.value:.2g}, bound {BOUNDS[dtype]:g}",
            f"     at {error.place}: got {error.got:.9g}, wanted {error.wanted:.9g}",
            f"     python -m segjax.verify --no-grid --dtype={dtype} {case.flags}{flags}",
        ]
    )
