"""python -m segjax.verify: one page, the right exit status, errors that say what to do."""

import re
import subprocess
import sys

import pytest

from segjax import verify
from segjax.derivation import cases

SHORT = ("--no-grid", "--dtype=float32")


def test_the_textbook_example_by_default(capsys):
    assert verify.main(SHORT) == 0
    shown = capsys.readouterr()
    assert "M is 4 x 16" in shown.out and "   1 2 3 . 4 5 6 . 7 8 9 . . . . ." in shown.out
    assert "n  = (2 - 1) 1 - 0 - 0 + 1 (3 - 1) + 1 + 0 = 4" in shown.out
    assert len(re.findall(r"^4x4 k3 s1 1>1 ", shown.out, re.M)) == 1
    assert shown.out.rstrip().split("\n")[-1].startswith("PASS  float32")
    assert shown.err == ""


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (("--dims=1", "--input=9", "--kernel=2", "--stride=3"), "9 k2 s3 1>1"),
        (("--input=5", "--padding=1,0"), "5x5 k3 s1 p1,0 1>1"),
        (
            ("--input=5x7", "--kernel=2x3", "--stride=1x2", "--padding=1,0x2", "--groups=2", "--features=4"),
            "5x7 k2x3 s1x2 p1,0x2 g2 2>4",
        ),
        (("--dims=2", "--input=6", "--dilation=2", "--padding=same", "--channels=2"), "6x6 k3 s1 p2 d2 2>1"),
    ],
)
def test_options_of_the_geometry(arguments, label, capsys):
    assert verify.main([*SHORT, *arguments]) == 0
    assert f"The geometry: {label} ==" in capsys.readouterr().out


@pytest.mark.parametrize("case", cases.GRID, ids=lambda case: case.label)
def test_the_flags_of_a_geometry_ask_for_it(case):
    assert verify._case(verify._parse(case.flags.split())) == case


def test_every_dtype_and_the_seed(capsys):
    assert verify.main(["--no-grid", "--dims=1", "--seed=1"]) == 0
    first = capsys.readouterr().out
    assert re.findall(r"^PASS  (\w+)", first, re.M) == ["float32", "float64", "bfloat16"]
    assert verify.main(["--no-grid", "--dims=1", "--seed=2"]) == 0
    assert capsys.readouterr().out != first


def test_an_unflipped_kernel_fails(capsys):
    assert verify.main([*SHORT, "--unflipped"]) == 1
    shown = capsys.readouterr().out
    assert 'FAIL 4x4 k3 s1 1>1, float32: ops.conv_transpose(y, method="fractional") and M.T y: error' in shown
    assert re.search(r"at \(\d, \d, \d, 0\): got -?[\d.]+, wanted -?[\d.]+", shown)
    assert "\nFAIL  float32   worst error" in shown
    again = re.search(r"python -m segjax.verify (.*)", shown)[1].split()
    assert verify.main(again) == 1


def test_the_grid_follows_the_geometry(monkeypatch, capsys):
    monkeypatch.setattr(cases, "GRID", (cases.case((5,), 3), cases.case((4, 4), 3), cases.case((6,), 2)))
    assert verify.main(["--dtype=float32", "--input=5", "--dims=1"]) == 0
    table = capsys.readouterr().out.partition("\nfloat32 ")[2].split("\n")
    assert [line.split()[0] for line in table[1:4]] == ["5", "4x4", "6"] and table[4] == ""


def test_output(tmp_path, capsys):
    assert verify.main([*SHORT, f"--output={tmp_path / 'new' / 'page'}"]) == 0
    folder = tmp_path / "new/page"
    assert f"wrote {folder / 'index.html'}" in capsys.readouterr().out
    assert {file.name for file in folder.iterdir()} == {
        "index.html", "matrix.png", "stamping.png", "checkerboard.png", "upsampling.png"
    }  # fmt: skip
    page = (folder / "index.html").read_text()
    assert "M is 4 x 16" in page and "PASS  float32" in page and "ops.conv_matrix(sparse=True)" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel=5"], ["kernel 5", "input 4", "at most 4", "at least 5"]),
        (["--input=4x5x6"], ["3 axes", "1 or 2"]),
        (["--input=4x5", "--dims=1"], ["--input=4x5", "--dims=1"]),
        (["--input=four"], ["--input=four", "3x2"]),
        (["--dims=3"], ["--dims=3", "1 or 2"]),
        (["--stride=0"], ["stride", ">= 1"]),
        (["--kernel=3x3x3"], ["--kernel=3x3x3", "2"]),
        (["--padding=1,2,3"], ["--padding=1,2,3", "LOW,HIGH"]),
        (["--padding=some"], ["--padding=some", "same"]),
        (["--groups=2", "--channels=3"], ["channels=3", "groups=2", "2 or 4"]),
        (["--groups=two"], ["--groups", "two"]),
        (["--dtype=float16"], ["--dtype=float16", "bfloat16"]),
        (["--seed=-1"], ["--seed=-1", "0 or more"]),
        (["--roi", "--kernel=5"], ["--roi", "--kernel", "--seed and --output"]),
        (["--roi", "--seed=-1"], ["--seed=-1", "0 or more"]),
        (["--input=2000"], ["35,928,036", "1,000,000", "about 333x333"]),
        (["--krnel=3"], ["--krnel", "--kernel"]),
        (["--config.data.root=x"], ["--config.data.root"]),
    ],
)
def test_a_wrong_option_is_told_with_the_nearest_choice(arguments, words, capsys):
    assert verify.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    for word in words:
        assert word in shown.err


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert verify.main([f"--output={tmp_path / 'file'}"]) == 2
    assert "--output=" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "matrix.png").mkdir()
    assert verify.main([*SHORT, f"--output={tmp_path}"]) == 2
    assert "matrix.png" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    assert verify.main(["--help"]) == 0
    shown = capsys.readouterr().out
    flags = vars(verify._parse([]))
    for name in flags.keys() - {"grid"}:
        assert f"\n--{name}" in shown
    assert "\n--no-grid" in shown


def test_regions(tmp_path, capsys):
    assert verify.main(["--roi", f"--output={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "200 x 145 pixels" in shown and "6.25 x 4.53125" in shown and "\nPASS  ops.roi_align" in shown
    assert len(re.findall(r"^RoIAlign, 2 x 2 samples  .* [\d.]+ +[\d.]+$", shown, re.M)) == 4
    assert {file.name for file in tmp_path.iterdir()} == {
        "index.html", "quantisation3.png", "quantisation7.png", "errors.png"
    }  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img") == 3 and "truncated twice" in page and "PASS. Both operations" in page
    assert verify.main(["--roi", "--seed=1"]) == 0
    assert capsys.readouterr().out != shown


def test_regions_fail_beyond_their_bound(monkeypatch, capsys):
    monkeypatch.setattr(verify.regions, "BOUND", 1e-12)
    assert verify.main(["--roi"]) == 1
    assert "\nFAIL  ops.roi_align" in capsys.readouterr().out


def test_ctrl_c(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify.checks, "measure", interrupted)
    assert verify.main(SHORT) == 130
    assert "interrupted" in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert verify.main([*SHORT, "--dims=1"]) == 0
    assert "float32, geometry 1 of 1 ...\r\x1b[K4 k3 s1 1>1 " in capsys.readouterr().out


def test_the_command_without_warnings(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "segjax.verify", *SHORT, f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.slow
def test_the_whole_proof(capsys):
    assert verify.main([]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^(PASS|FAIL)  (\w+)", shown, re.M) == [
        ("PASS", "float32"), ("PASS", "float64"), ("PASS", "bfloat16")
    ]  # fmt: skip
    assert all(f"{case.label} " in shown for case in cases.GRID)
