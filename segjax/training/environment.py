"""Where a run took place: versions, devices, commit and command line."""

import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import jax

import segjax

PACKAGES = (
    "segjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "pillow",
)
_GIT_TIMEOUT_S = 5


def collect(command: Sequence[str]) -> dict[str, Any]:
    """Describes this process, its machine and its code.

    Args:
      command: what the user typed, word by word.

    Returns:
      A dict of JSON values; ``git`` is None where the code is not in a git checkout.
    """
    devices = jax.devices()
    return {
        "command": shlex.join(command),
        "folder": os.getcwd(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "git": _git_state(pathlib.Path(segjax.__file__).parent),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("JAX_", "XLA_", "SEGJAX_"))
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_state(folder: pathlib.Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds ``folder``, and whether tracked files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(changed.splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None
