"""The folder of a run: whose it is, whether it is finished, what it must hold before the first step."""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.data import metadata
from segjax.data.metadata import Classes
from segjax.training import environment, tasks
from segjax.training.checkpoint_files import list_steps, write_atomically
from segjax.training.retention import headline
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
        name, value = headline(summary)
        print(f"{workdir} is finished: step {summary['step']}, validation {name} {value:.4f}. Nothing to do.")
        print(next_commands(workdir))
        print(f"To train once more: add --workdir={free_workdir(workdir)}")
    return True


def prepare(workdir: pathlib.Path, config: ConfigDict, command: Sequence[str]) -> None:
    """Creates the folder and writes the resolved config and the environment into it.

    A folder in which no checkpoint was ever finished belongs to nobody yet: a command that failed can be mended and
    typed again.

    Raises:
        InputError: the folder belongs to another config, or cannot be written.
    """
    _check_owner(workdir, config, command)
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.save_json(workdir / CONFIG, config)
        _note_environment(workdir, command)
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


def check_classes(trained_on: Classes, found: Classes, where_trained: str, where_found: str) -> None:
    """Refuses a set whose class ids mean something else than the model's.

    Raises:
        InputError: another number of classes, or other names; the message shows the first that differs.
    """
    if len(found) != len(trained_on):
        raise InputError(
            f"{where_trained} was trained on {len(trained_on)} classes ({', '.join(trained_on.names)}), but "
            f"{where_found} has {len(found)} ({', '.join(found.names)}): evaluate on a set with the same classes"
        )
    for number, (ours, theirs) in enumerate(zip(trained_on.names, found.names, strict=True)):
        if ours != theirs:
            raise InputError(
                f"class {number} is {ours!r} in {where_trained}, but {theirs!r} in {where_found}: give the set's "
                "classes.json the names and the order of the run's, if the ids mean the same"
            )


def keep_classes(workdir: pathlib.Path, classes: Classes) -> None:
    """Writes ``classes.json``, which says what the ids in the checkpoints of this run mean.

    Raises:
        InputError: the checkpoints there were trained on other classes.
    """
    if (workdir / CLASSES).exists() and started(workdir):
        check_classes(metadata.read(workdir / CLASSES), classes, str(workdir), "the training split now")
    if jax.process_index() == 0:
        write_atomically(workdir / CLASSES, json.dumps(classes.to_dict(), indent=1) + "\n")


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second training out of the folder while entered; the system lets go if this process dies.

    Raises:
        InputError: another process trains there.
    """
    if jax.process_index() != 0:
        yield
        return
    with open(workdir / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise InputError(
                f"{workdir} is in use: process {lock.read().strip() or '(unknown)'} trains there. "
                f"Wait for it, stop it, or add --workdir={free_workdir(workdir)}"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def started(workdir: pathlib.Path) -> bool:
    """Whether the folder holds anything that another config would spoil."""
    checkpoints = workdir / "checkpoints"
    return (workdir / SUMMARY).exists() or (checkpoints.is_dir() and bool(list_steps(checkpoints)))


def _note_environment(workdir: pathlib.Path, command: Sequence[str]) -> None:
    """Writes ``environment.json``; of a run that is continued, the environment of each start under "continued"."""
    now, path = environment.collect(command), workdir / ENVIRONMENT
    if started(workdir) and path.exists():
        first = json.loads(path.read_text())
        now = first | {"continued": [*first.get("continued", []), now]}
    write_atomically(path, json.dumps(now, indent=2) + "\n")


def _check_owner(workdir: pathlib.Path, config: ConfigDict, command: Sequence[str]) -> None:
    if not (workdir / CONFIG).exists() or not started(workdir):
        return
    saved, now = (tasks.completed(x) for x in (configs.load_json(workdir / CONFIG), config))
    changed = configs.differences(saved, now)
    if changed:
        lines = "\n  ".join(changed)
        raise InputError(
            f"{workdir} holds a run of another config; the differences (there -> here):\n  {lines}\n"
            "Nothing was changed. To start this one beside it:\n"
            f"  {_elsewhere(command, free_workdir(workdir))}"
        )


def _elsewhere(command: Sequence[str], workdir: pathlib.Path) -> str:
    """The command with another --workdir, as one would type it."""
    kept, skip = [], False
    for word in command:
        if not skip and word != "--workdir" and not word.startswith("--workdir="):
            kept.append(word)
        skip = word == "--workdir"
    return shlex.join([*kept, f"--workdir={workdir}"])
