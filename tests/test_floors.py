"""The folder list is the architecture: no file imports upward or sideways, and linen stays behind its seam."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOOR = {
    "types": 0, "config": 1, "rle": 1, "ops": 1, "layers": 2, "losses": 2, "metrics": 2, "data": 2, "augment": 2,
    "backbones": 3, "augment_instances": 3, "models": 4, "interop": 5, "inference": 5, "derivation": 5, "training": 6,
}  # fmt: skip
ENTRY_POINTS = 7
FILES = sorted((ROOT / "segjax").rglob("*.py"))


def _parts(file: pathlib.Path) -> tuple[str, ...]:
    return file.relative_to(ROOT).with_suffix("").parts


def _imports(source: str) -> list[str]:
    """The full names that a file imports; "." and the name for a relative import."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += ["." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def _forbidden(parts: tuple[str, ...], source: str) -> list[str]:
    """The imports of the file ``segjax/part/name`` that the floors forbid."""
    part, name = parts[1], parts[-1]
    mine, wrong = FLOOR.get(part, ENTRY_POINTS), []
    for imported in _imports(source):
        top, *below = imported.split(".")
        theirs = below[0] if top == "segjax" and below else part
        upward = theirs != part and FLOOR.get(theirs, ENTRY_POINTS) >= mine
        linen = f"{imported}.".startswith("flax.linen.") and part not in ("layers", "backbones", "models")
        foreign = top in ("tensorflow", "torch") and name != "prepare"
        if imported.startswith(".") or upward or linen or foreign or (top == "jax" and part == "data"):
            wrong.append(imported)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(_parts(file)))
def test_imports_run_downwards(file: pathlib.Path):
    assert _forbidden(_parts(file), file.read_text()) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(_parts(file)))
def test_convolutions_are_ours(file: pathlib.Path):
    """Linen's and lax's transposed convolutions leave the kernel as it is and pad by other rules."""
    calls = re.findall(r"\b(?:nn|linen|lax)\.(?:Conv|ConvTranspose|ConvLocal|conv_transpose)\b", file.read_text())
    assert calls == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("segjax/data/folder", "from segjax.training import loop", "segjax.training.loop"),
        ("segjax/data/folder", "def f():\n    import segjax.losses", "segjax.losses"),
        ("segjax/data/folder", "import jax.numpy as jnp", "jax.numpy"),
        ("segjax/data/folder", "from . import canvas", "..canvas"),
        ("segjax/losses/focal", "from segjax import metrics", "segjax.metrics"),
        ("segjax/models/unet", "from segjax.inference import evaluation", "segjax.inference.evaluation"),
        ("segjax/training/loop", "from segjax import train", "segjax.train"),
        ("segjax/training/loop", "import flax.linen as nn", "flax.linen"),
        ("segjax/training/loop", "from flax import linen", "flax.linen"),
        ("segjax/train", "from segjax import evaluate", "segjax.evaluate"),
        ("segjax/ops/conv", "import torch", "torch"),
    ],
)
def test_an_import_upward_or_sideways_is_seen(file: str, source: str, wrong: str):
    assert _forbidden(tuple(file.split("/")), f"import math\n{source}\n") == [wrong]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("segjax/training/loop", "from segjax import data, models\nfrom segjax.training import state"),
        ("segjax/models/unet", "import flax.linen as nn\nfrom segjax.backbones import resnet"),
        ("segjax/data/prepare", "import tensorflow as tf\nfrom segjax.types import InputError"),
        ("segjax/train", "from segjax.training import loop"),
    ],
)
def test_what_the_floors_allow_passes(file: str, source: str):
    assert _forbidden(tuple(file.split("/")), source) == []


def test_the_files_of_the_library_are_found():
    assert {"ops", "models", "training"} <= {_parts(file)[1] for file in FILES}
