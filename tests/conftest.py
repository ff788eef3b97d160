"""Eight virtual CPU devices for every test, and the folders of reference files that a checkout may lack."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

_BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, name: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get(variable) or _BESIDE / name)
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set {variable} to the folder of {name} files")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """Reference outputs of PyTorch libraries (``weights.py`` and ``dev/``)."""
    return _folder("SEGJAX_GOLDEN", "golden")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Real images: ``camvid/``, ``isbi_em/``, ``nuclei/``."""
    return _folder("SEGJAX_DATA", "data")
