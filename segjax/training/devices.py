"""Starts jax on the devices of this machine, and says what is wrong with them in the user's words."""

import contextlib
import glob
import os
import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from segjax.training import host_memory
from segjax.types import InputError

HEARTBEAT_TIMEOUT_S = 60  # a lost process ends the others after this long instead of hanging them


def start(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Connects the processes of a run, then the devices.

    Args:
        distributed: this process is one of several; jax reads the rest from the cluster unless the others are given.
        coordinator: ``host:port`` of process 0.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        InputError: the processes do not find each other, or an NVIDIA GPU is here and jax cannot use it.
    """
    host_memory.keep_freed_memory()  # before jax starts any thread
    if distributed:
        try:
            jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"jax.distributed could not start (coordinator {coordinator}, processes {processes}, process {process})"
                f": {error}\nOutside SLURM, TPU slices and Open MPI give --coordinator, --processes and --process."
            ) from error
    try:
        platform = jax.default_backend()
    except RuntimeError as error:
        raise InputError(
            f"jax cannot start on JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: {error}\n"
            "Unset JAX_PLATFORMS, or install the jax of that platform:  pip install -U 'jax[cuda]'  or  'jax[tpu]'"
        ) from error
    check_gpu_is_used(platform, glob.glob("/dev/nvidia[0-9]*"), os.environ.get("JAX_PLATFORMS", ""))


def check_gpu_is_used(platform: str, gpus: list[str], chosen: str) -> None:
    """Refuses to train on a CPU by accident.

    Args:
        platform: what jax runs on.
        gpus: the NVIDIA device files of the machine.
        chosen: JAX_PLATFORMS; whoever sets it means it.

    Raises:
        InputError: there is a GPU, jax runs on the CPU, and nobody chose so.
    """
    if platform == "cpu" and gpus and not chosen:
        raise InputError(
            f"this machine has an NVIDIA GPU ({', '.join(sorted(gpus))}), but this jax sees only the CPU.\n"
            "Install the CUDA build:  pip install -U 'jax[cuda]'   (driver 525-579: 'jax[cuda12]')\n"
            "or train on the CPU on purpose:  JAX_PLATFORMS=cpu python -m segjax.train ..."
        )


def keep_compiled_programs(folder: str | os.PathLike) -> None:
    """Turns on jax's persistent compilation cache, so that a second start compiles nothing; "" leaves it off.

    JAX_COMPILATION_CACHE_DIR in the environment wins.
    """
    if not folder or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).absolute()))


@contextlib.contextmanager
def explained(config: ConfigDict, *, key: str = "train.batch_size", flag: str = "", batch: int = 0) -> Iterator[None]:
    """Turns a device's out-of-memory error into an InputError that names the batch size to try.

    Args:
        config: of the run.
        key: of the config, the batch size at work: "train.batch_size", or "eval.batch_size" where nothing is trained.
        flag: that sets the batch size; "" stands for ``--config.KEY``.
        batch: the batch size at work; 0: the config's.

    Raises:
        InputError: as ``out_of_memory`` says.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if key == "train.batch_size":
            raise InputError(out_of_memory(config, jax.device_count(), str(error))) from error
        batch = batch or config[key.partition(".")[0]][key.partition(".")[2]]
        flag = flag or f"--config.{key}"
        raise InputError(out_of_memory_in_inference(config, flag, batch, str(error))) from error


def out_of_memory(config: ConfigDict, devices: int, reason: str) -> str:
    """What to try when a step does not fit: half the batch, or the same batch in twice as many parts."""
    batch, parts = config.train.batch_size, config.train.accumulate
    half = max(devices, batch // 2 // devices * devices)
    tries = [f"--config.train.batch_size={half}"] if half < batch else []
    if batch % (2 * parts * devices) == 0:
        tries.append(f"--config.train.accumulate={2 * parts}   (the same batch in smaller parts)")
    if config.train.dtype == "float32":
        tries.append("--config.train.dtype=bfloat16")
    tries.append("or a smaller --config.data.size")
    lines = "\n  ".join(tries)
    return (
        f"out of memory with train.batch_size={batch}, train.accumulate={parts}, data.size={tuple(config.data.size)} "
        f"on {devices} device(s): {_first_line(reason)}\n"
        f"Nothing saved is lost. Try, with a new --workdir:\n  {lines}"
    )


def out_of_memory_in_inference(config: ConfigDict, flag: str, batch: int, reason: str) -> str:
    """What to try when a batch does not fit that is not trained on: half of it, then a smaller canvas."""
    half = [f"{flag}={batch // 2}   (the result stays the same)"] if batch > 1 else []
    lines = "\n  ".join([*half, "a smaller --config.data.size   (the result changes)"])
    return (
        f"out of memory with {flag.removeprefix('--config.')}={batch}, data.size={tuple(config.data.size)}: "
        f"{_first_line(reason)}\nTry:\n  {lines}"
    )


def _first_line(reason: str) -> str:
    return reason.strip().splitlines()[0] if reason.strip() else "no memory left"
