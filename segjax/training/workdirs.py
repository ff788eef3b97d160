"""The folder of a run: whose it is, whether it is finished, what it must hold before the first step."""

import json
import os
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.training import environment
from segjax.types import InputError

CONFIG, SUMMARY, ENVIRONMENT, CLASSES = "config.json", "summary.json", "environment.json", "classes.json"


def absolute_root(config: ConfigDict) -> ConfigDict:
    """The config with ``data.root`` as an absolute path, so that the run can be repeated from any folder."""
    if not config.data.root:
        return config
    return configs.override(config, {"data.root": os.path.abspath(os.path.expanduser(config.data.root))})


def finished(workdir: pathlib.Path, config: ConfigDict, command: Sequence[str]) -> bool:
    """Whether the run of this config in ``workdir`` is complete; says so, with what to type next.

    Raises:
        InputError: the folder belongs to another config.
    """
    _check_owner(workdir, config, command)
    try:
        summary = json.loads((workdir / SUMMARY).read_text())
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise InputError(f"{workdir / SUMMARY} is not readable JSON ({error}); remove it to evaluate again") from error
    if jax.process_index() == 0:
        print(f"{workdir} is finished: step {summary['step']}, validation mIoU {summary['miou']:.4f}. Nothing to do.")
        print(next_commands(workdir))
        print(f"To train once more: add --workdir={free_workdir(workdir)}")
    return True


def prepare(workdir: pathlib.Path, config: ConfigDict, command: Sequence[str]) -> None:
    """Creates the folder and writes the resolved config and the environment into it.

    Raises:
        InputError: the folder belongs to another config, or cannot be written.
    """
    _check_owner(workdir, config, command)
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / CONFIG).exists():
            configs.save_json(workdir / CONFIG, config)
        (workdir / ENVIRONMENT).write_text(json.dumps(environment.collect(command), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to the workdir {workdir}: {error}; choose another with --workdir=") from error


def next_commands(workdir: pathlib.Path) -> str:
    """What to type once a run is done."""
    return (
        "Next:\n"
        f"  python -m segjax.evaluate --workdir={workdir}\n"
        f"  python -m segjax.predict --workdir={workdir} --input=IMAGES --output={workdir}/predictions\n"
        f"  tensorboard --logdir={workdir.parent}      (pip install tensorboard)\n"
        f"  open {workdir}/report.html"
    )


def free_workdir(workdir: pathlib.Path) -> pathlib.Path:
    """The first of ``workdir-2``, ``workdir-3``, ... that does not exist."""
    number = 2
    while (candidate := workdir.with_name(f"{workdir.name}-{number}")).exists():
        number += 1
    return candidate


def _check_owner(workdir: pathlib.Path, config: ConfigDict, command: Sequence[str]) -> None:
    if not (workdir / CONFIG).exists():
        return
    changed = configs.differences(configs.load_json(workdir / CONFIG), config)
    if changed:
        kept = " ".join(word for word in command if not word.startswith("--workdir"))
        lines = "\n  ".join(changed)
        raise InputError(
            f"{workdir} holds a run of another config; the differences (there -> here):\n  {lines}\n"
            f"Nothing was changed. To start this one beside it:\n  {kept} --workdir={free_workdir(workdir)}"
        )
