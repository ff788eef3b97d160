"""A run that was trained: its config, its classes and the variables of one of its checkpoints."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.data import metadata
from segjax.data.metadata import Classes
from segjax.training import checkpoint, devices, setup, tasks, workdirs
from segjax.types import InputError, Variables

CHECKPOINTS, COMPILED = "checkpoints", "compiled"  # folders that the loop makes in a workdir


def read(workdir: str | os.PathLike, overrides: Mapping[str, Any]) -> tuple[ConfigDict, ConfigDict, Classes]:
    """What a workdir says of its run.

    Args:
        workdir: of ``segjax.train``.
        overrides: {"data.root": "/images", ...}, see ``config.override``.

    Returns:
        (the config of the run, the same with the overrides, the classes it was trained on).

    Raises:
        InputError: no such folder, a file of it is missing, an override that does not fit.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / workdirs.CONFIG).is_file():
        runs = sorted(str(path.parent) for path in workdir.parent.glob(f"*/{workdirs.CONFIG}"))
        there = f"; runs beside it: {', '.join(runs[:12])}" if runs else ""
        raise InputError(f"--workdir={workdir} is not the folder of a run: it has no {workdirs.CONFIG}{there}")
    saved = tasks.completed(configs.load_json(workdir / workdirs.CONFIG))
    config = configs.override(saved, overrides)
    setup.check(config, devices=1, evaluation=True)
    return saved, config, metadata.read(workdir / workdirs.CLASSES)


def restore(
    workdir: str | os.PathLike,
    config: ConfigDict,
    classes: Classes,
    *,
    which: str | int,
    ema: bool,
    warn: Callable[[str], None],
) -> tuple[Any, Variables, int]:
    """The model of a checkpoint.

    Args:
        workdir: of ``segjax.train``.
        config: of ``read``.
        classes: of ``read``.
        which: "best", "last" or a step.
        ema: the moving average of the parameters in place of the parameters.
        warn: called with one line for each damaged checkpoint that was passed over.

    Returns:
        (the module, its variables on the host, the step of the checkpoint).

    Raises:
        InputError: no such checkpoint, no moving average in it, or variables of another model than the config's.
    """
    module = setup.build_model(config, len(classes))
    image = jax.ShapeDtypeStruct((1, *config.data.size, 3), jnp.float32)
    expected = jax.eval_shape(lambda image: module.init(jax.random.PRNGKey(0), image), image)
    variables, step = checkpoint.restore_variables(
        pathlib.Path(workdir) / CHECKPOINTS, which, ema=ema, expected=dict(expected), warn=warn
    )
    return module, variables, step


def start_devices(workdir: str | os.PathLike, cache: str | None) -> None:
    """Starts jax with the compiled programs of the run at hand, where its folder may be written.

    Args:
        workdir: of ``segjax.train``.
        cache: another folder for compiled programs, "" for none, None for the run's own.
    """
    devices.start()
    own = pathlib.Path(workdir) / COMPILED
    devices.keep_compiled_programs(cache if cache is not None else own if os.access(workdir, os.W_OK) else "")
