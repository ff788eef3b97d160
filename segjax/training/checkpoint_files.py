"""What one checkpoint is on disk, and how to tell that it is whole.

    DIRECTORY/STEP/state/          the leaves, an orbax tree of NumPy arrays under the names of the tree
    DIRECTORY/STEP/info/           JSON: step, data position, metrics, and dtype, shape and CRC-32 of every leaf
    DIRECTORY/STEP/metrics.json    metrics that came after the checkpoint was written, if any
    DIRECTORY/damaged/STEP/        what was found damaged and set aside; nothing reads it

orbax renames a finished step into place, so a save that was cut short never has a plain number for a name. But orbax
keeps no checksum of the contents: flipped bytes restore without an error. Hence the checksums here, taken from the very
host arrays that are handed to orbax, and a checksum of the JSON itself.
"""

import contextlib
import datetime
import errno
import json
import logging
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segjax.types import HostArray, InputError, PyTree

FORMAT = 1
DAMAGED_FOLDER = "damaged"
_LATE_METRICS = "metrics.json"
_TEMPORARY = "orbax-checkpoint-tmp"
_STRAGGLERS_S = 0.3


class DamagedCheckpoint(Exception):
    """A checkpoint that is not whole; the message says why."""


def leaf_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf: the keys of a JAX key path joined by slashes, as ``params/head/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def host_copy(tree: PyTree) -> dict[str, HostArray]:
    """Copies every leaf to the host.

    A copy, never a view: on a CPU ``np.asarray`` shares the device's buffer, which the next step may be given to write
    into (donation) while the checkpoint is still being written.

    Args:
      tree: pytree of arrays, on one device or replicated over all of them.

    Returns:
      {leaf name: array that owns its memory}.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    for _, leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return {leaf_name(path): np.array(leaf, copy=True) for path, leaf in leaves}


def nest(leaves: Mapping[str, HostArray]) -> dict[str, Any]:
    """Nested dicts by the parts of each name: the tree that orbax writes."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def describe(step: int, leaves: Mapping[str, HostArray], metrics: Mapping[str, float] | None) -> dict[str, Any]:
    """The JSON written with a checkpoint; ``crc32`` covers all its other keys.

    Args:
      step: number of updates made, which is also the number of batches taken from the data.
      leaves: {name: array} as ``host_copy`` returns them.
      metrics: numbers that judge this step, or None.

    Returns:
      A dict of JSON values.
    """
    info = {
        "format": FORMAT,
        "step": int(step),
        "data_position": int(step),
        "saved_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "metrics": None if metrics is None else {name: float(value) for name, value in metrics.items()},
        "leaves": {name: _signature(leaf) for name, leaf in leaves.items()},
    }
    return info | {"crc32": _seal(info)}


def read_info(step_folder: pathlib.Path) -> dict[str, Any]:
    """Reads and checks a checkpoint's JSON, and that the parts orbax needs are there; costs no arrays.

    Returns:
      The dict of ``describe``, with ``metrics`` replaced by those attached later if there are any.

    Raises:
      DamagedCheckpoint: a part is missing or does not parse, or the JSON does not match its own checksum.
    """
    for part in ("state/_METADATA", "state/manifest.ocdbt", "info"):
        if not (step_folder / part).exists():
            raise DamagedCheckpoint(f"{part} is missing")
    try:
        info = ocp.JsonCheckpointHandler().restore(step_folder / "info")
        late = step_folder / _LATE_METRICS
        late_metrics = json.loads(late.read_text()) if late.exists() else None
    except Exception as error:  # whatever a parser or orbax raises on damaged bytes
        raise DamagedCheckpoint(f"its JSON cannot be read: {_first_line(error)}") from error
    if not isinstance(info, dict) or info.get("crc32") != _seal(info):
        raise DamagedCheckpoint("its JSON does not match its checksum")
    if info["format"] != FORMAT:
        raise DamagedCheckpoint(f"its format is {info['format']}, this version of segjax reads {FORMAT}")
    if str(info["step"]) != step_folder.name:
        raise DamagedCheckpoint(f"it holds step {info['step']}")
    return info | {"metrics": late_metrics} if late_metrics else info


def read(step_folder: pathlib.Path) -> tuple[dict[str, HostArray], dict[str, Any]]:
    """Reads a checkpoint and verifies names, dtype, shape and checksum of every leaf.

    Returns:
      ({leaf name: array}, the dict of ``describe``).

    Raises:
      DamagedCheckpoint: anything at all is not as it was saved.
    """
    info = read_info(step_folder)
    try:
        with quiet_orbax():
            tree = ocp.PyTreeCheckpointHandler().restore(step_folder / "state", args=ocp.args.PyTreeRestore())
        leaves = {leaf_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    except Exception as error:  # orbax raises many types, Exception itself among them, depending on what is damaged
        raise DamagedCheckpoint(f"it cannot be read: {_first_line(error)}") from error
    for name, expected in info["leaves"].items():
        if 0 in expected["shape"]:
            leaves[name] = np.zeros(expected["shape"], expected["dtype"])
        if name not in leaves:
            raise DamagedCheckpoint(f"leaf {name} is missing")
        found = _signature(leaves[name])
        if found != expected:
            wrong = [f"{key} {found[key]}, saved as {expected[key]}" for key in found if found[key] != expected[key]]
            raise DamagedCheckpoint(f"leaf {name}: {', '.join(wrong)}")
    if len(leaves) != len(info["leaves"]):
        raise DamagedCheckpoint(f"it holds {len(leaves)} leaves, {len(info['leaves'])} were saved")
    return leaves, info


def unflatten(leaves: Mapping[str, HostArray], abstract: PyTree, *, where: str) -> PyTree:
    """Puts named leaves into the structure of ``abstract``, refusing any difference of name, shape or dtype.

    Args:
      leaves: {name: array}.
      abstract: pytree whose leaves have ``shape`` and ``dtype`` (arrays or ``jax.ShapeDtypeStruct``).
      where: what the leaves came from, for the message.

    Returns:
      A pytree like ``abstract`` with host arrays.

    Raises:
      InputError: naming the first leaf that differs, what was found and what was expected.
    """
    wanted, structure = jax.tree_util.tree_flatten_with_path(abstract)
    names = [leaf_name(path) for path, _ in wanted]
    advice = (
        "The model, the optimizer or the number of classes is not the one this checkpoint was made with: use the "
        "config it was trained with, or another --workdir"
    )
    for name, (_, leaf) in zip(names, wanted, strict=True):
        if name not in leaves:
            raise InputError(f"{where} has no leaf {name} (expected {leaf.dtype}{list(leaf.shape)}). {advice}.")
        found = leaves[name]
        if found.shape != tuple(leaf.shape) or found.dtype != leaf.dtype:
            raise InputError(
                f"{where}: leaf {name} is {found.dtype}{list(found.shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}. {advice}."
            )
    extra = sorted(set(leaves) - set(names))
    if extra:
        raise InputError(f"{where} has {len(extra)} leaves that this model has not, the first is {extra[0]}. {advice}.")
    return jax.tree_util.tree_unflatten(structure, [leaves[name] for name in names])


def list_steps(directory: pathlib.Path) -> list[int]:
    """Finished steps in a folder, ascending, damaged ones included; an absent folder has none."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal() and entry.is_dir())


def leftovers(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders of saves that were cut short."""
    return directory.glob(f"*.{_TEMPORARY}*")


def set_aside(step_folder: pathlib.Path) -> pathlib.Path:
    """Moves a damaged checkpoint to the folder ``damaged`` beside it, under a name not yet taken, and returns that."""
    target = step_folder.parent / DAMAGED_FOLDER / step_folder.name
    target.parent.mkdir(exist_ok=True)
    copy = 1
    while target.exists():
        copy += 1
        target = target.with_name(f"{step_folder.name}-{copy}")
    return step_folder.rename(target)


def attach_metrics(step_folder: pathlib.Path, metrics: Mapping[str, float]) -> None:
    """Gives a finished checkpoint its metrics after the fact, atomically."""
    write_atomically(step_folder / _LATE_METRICS, json.dumps({name: float(value) for name, value in metrics.items()}))


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file's text so that a reader, or a crash, meets either the old file or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silences what orbax prints besides raising: hundreds of lines about a damaged file or a full disk.

    It logs through absl. When one file fails, the others under way find their event loop closed and write tracebacks
    through ``sys.unraisablehook``: those are dropped too, and waited for.
    """
    log, hook = logging.getLogger("absl"), sys.unraisablehook
    unless_orbax = _UnlessOrbax()  # an object of its own, as this may be entered twice
    log.addFilter(unless_orbax)
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else hook(found)
    try:
        yield
    except Exception:
        logging.getLogger("asyncio").addFilter(_not_of_orbax)  # for good: it tells of failed tasks when they are freed
        time.sleep(_STRAGGLERS_S)
        raise
    finally:
        log.removeFilter(unless_orbax)
        sys.unraisablehook = hook


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()


class _UnlessOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in pathlib.PurePath(record.pathname).parts


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one it was raised from, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left", "ENOSPC", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _signature(leaf: HostArray) -> dict[str, Any]:
    return {
        "dtype": str(leaf.dtype),
        "shape": list(leaf.shape),
        "crc32": zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)) if leaf.size else 0,
    }


def _seal(info: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in info.items() if k != "crc32"}, sort_keys=True).encode())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
