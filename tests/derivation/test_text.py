"""The printed proof: M as the textbooks write it, sizes with the numbers put in, tables and failures."""

import numpy as np
import pytest

from segjax.derivation import checks, reference, table, text
from segjax.derivation.cases import GRID, case

TEXTBOOK = case((4, 4), 3)


def test_the_matrix_is_printed():
    lines = text.kernel_and_matrix(TEXTBOOK).split("\n")
    assert lines[1:4] == ["   1 2 3", "   4 5 6", "   7 8 9"]
    assert lines[5].startswith("M is 4 x 16, 36 entries")
    assert lines[6:] == [
        "   1 2 3 . 4 5 6 . 7 8 9 . . . . .",
        "   . 1 2 3 . 4 5 6 . 7 8 9 . . . .",
        "   . . . . 1 2 3 . 4 5 6 . 7 8 9 .",
        "   . . . . . 1 2 3 . 4 5 6 . 7 8 9",
    ]


def test_a_large_matrix_is_told_by_its_size():
    told = text.kernel_and_matrix(case((64, 64), 3, channels=2, features=4))
    assert "1 to 72 in the order (row, column, input channel, output channel)" in told
    assert "15,376 x 8,192, 276,768 entries" in told and "480 MiB dense" in told and "too large to print" in told


def test_sizes_with_the_numbers_put_in():
    lines = text.arithmetic(case((6, 9), (3, 2), stride=(2, 3), padding=((1, 0), (0, 2)), dilation=(2, 1))).split("\n")
    assert lines[2:] == [
        "rows:",
        "  n' = floor((6 + 1 + 0 - 2 (3 - 1) - 1) / 2) + 1 = floor(2 / 2) + 1 = 2",
        "  n  = (2 - 1) 2 - 1 - 0 + 2 (3 - 1) + 1 + 0 = 6",
        "  inputs with 2 outputs: 6 to 7; output_padding 0 to 1 or output_size chooses",
        "columns:",
        "  n' = floor((9 + 0 + 2 - 1 (2 - 1) - 1) / 3) + 1 = floor(9 / 3) + 1 = 4",
        "  n  = (4 - 1) 3 - 0 - 2 + 1 (2 - 1) + 1 + 0 = 9",
        "  inputs with 4 outputs: 9 to 11; output_padding 0 to 2 or output_size chooses",
    ]


@pytest.mark.parametrize("geometry", [geometry for geometry in GRID if geometry.rank == 1], ids=lambda g: g.label)
def test_the_inputs_that_give_an_output(geometry):
    line = text.arithmetic(geometry).split("\n")[-1]
    told = line.partition(": ")[2].replace(",", ";").partition(";")[0]
    same = [n for n in range(1, 30) if geometry.pads and _outputs(geometry, n) == geometry.output[0]]
    assert told == (f"{same[0]} to {same[-1]}" if len(same) > 1 else f"{same[0]}")


def _outputs(geometry, n):
    padded = n + sum(geometry.pads[0]) - geometry.spans[0]
    return padded // geometry.stride[0] + 1 if padded >= 0 else 0


@pytest.mark.parametrize("geometry", GRID, ids=lambda geometry: geometry.label)
def test_coverage_is_the_transpose_of_ones(geometry):
    one = case(geometry.size, geometry.window, **(geometry.options | {"groups": 1}))
    matrix = reference.matrix(one, np.ones(one.kernel_shape))
    np.testing.assert_array_equal(text.coverage(geometry).ravel(), matrix.sum(0))


@pytest.mark.parametrize(
    ("value", "written"), [(0, "0"), (2.2e-16, "2e-16"), (1, "1"), (0.96, "0.96"), (3e5, "> 99"), (np.inf, "inf")]
)
def test_errors_are_short(value, written):
    assert table.short(value) == written and len(written) <= 5


def _found(value):
    errors = dict.fromkeys(checks.CHECKS, checks.Error(1e-8, (0, 0, 0, 0), 1.0, 1.0))
    return [(TEXTBOOK, "float32", errors | {"stamp": checks.Error(value, (0, 1, 2, 0), 1.5, 1.0)})]


def test_a_verdict_and_its_failure():
    verdict, passed = table.summary(_found(1e-7))
    assert passed and verdict.startswith("PASS  float32") and "(stamp, 4x4 k3 s1 1>1; 15 checks)" in verdict
    assert table.failures(_found(1e-7)) == ""
    verdict, passed = table.summary(_found(0.5))
    assert not passed and verdict.startswith("FAIL  float32   worst error 0.5")
    told = table.failures(_found(0.5), flags=" --seed=3")
    assert 'method="stamp"' in told and "at (0, 1, 2, 0): got 1.5, wanted 1" in told
    assert "--no-grid --dtype=float32 --dims=2 --input=4 --kernel=3" in told and told.endswith(" --seed=3")
    assert table.failures(_found(0.5) * 4, most=3).endswith("and 1 more")
    assert not table.summary(_found(np.inf))[1]


def test_rows_and_headings_align():
    errors = _found(2e-7)[0][2]
    del errors["dense"]
    row = table.row(TEXTBOOK.label, errors)
    assert len(row) == len(table.heading("float32")) and row.split()[5] == "-"
