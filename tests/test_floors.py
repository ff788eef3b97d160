"""The folder list is the architecture: no file imports upward or sideways, and linen stays behind its seam."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOOR = {
    "types": 0, "config": 1, "rle": 1, "ops": 1, "layers": 2, "losses": 2, "metrics": 2, "data": 2, "augment": 2,
    "backbones": 3, "models": 4, "interop": 5, "inference": 5, "training": 6,
}  # fmt: skip
ENTRY_POINTS = 7
FILES = sorted((ROOT / "segjax").rglob("*.py"))


def _parts(file: pathlib.Path) -> tuple[str, ...]:
    return file.relative_to(ROOT).with_suffix("").parts


def _imports(file: pathlib.Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(_parts(file)))
def test_imports_run_downwards(file: pathlib.Path):
    part = _parts(file)[1]
    mine = FLOOR.get(part, ENTRY_POINTS)
    for name in _imports(file):
        if name.startswith("segjax."):
            theirs = name.split(".")[1]
            floor = FLOOR.get(theirs, ENTRY_POINTS)
            assert theirs == part or floor < mine, f"{file} (floor {mine}) imports {name} (floor {floor})"


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(_parts(file)))
def test_only_models_know_linen_and_data_knows_no_jax(file: pathlib.Path):
    part = _parts(file)[1]
    for name in _imports(file):
        assert not name.startswith("flax.linen") or part in ("layers", "backbones", "models"), f"{file} imports {name}"
        assert name.split(".")[0] not in ("tensorflow", "torch") or file.name == "prepare.py", f"{file} imports {name}"
        assert name.split(".")[0] != "jax" or part != "data", f"{file} imports {name}"


def test_an_upward_import_would_be_seen():
    assert FLOOR["data"] < FLOOR["training"] and "segjax.training" in "segjax.training.loop"
    assert {"ops", "models", "training"} <= {_parts(file)[1] for file in FILES if len(_parts(file)) > 1}
