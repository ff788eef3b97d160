"""Checkpoints: written in the background, the last few and the best kept, never a damaged one loaded.

orbax writes (asynchronously, each step renamed into place when it is complete) and forgets old steps; reading and
verifying is ours, see ``checkpoint_files``. A damaged step is moved to ``damaged/`` with a warning, so that it neither
counts as one of the kept steps nor disappears.

Processes: every process calls every method; process 0 writes, all read.
"""

import contextlib
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from segjax.training import checkpoint_files as files
from segjax.training.retention import LatestAndBest, score
from segjax.types import HostArray, InputError, PyTree

_log = logging.getLogger(__name__)


class NoCheckpoint(InputError):
    """There is no checkpoint to restore: none was written, or none is whole."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: folder of the checkpoints, made if absent (unless ``read_only``).
      keep_last: how many of the newest steps to keep, at least 1.
      keep_best: how many of the steps with the highest mIoU to keep besides.
      read_only: touch nothing on disk: for those who read the folder of a run that may still be going on.
      warn: called with one line for each thing found wrong; default is this module's logger.

    Raises:
      ValueError: keep_last < 1 or keep_best < 0.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        read_only: bool = False,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last={keep_last}, keep_best={keep_best}: expected keep_last >= 1, keep_best >= 0")
        self.directory = pathlib.Path(directory).absolute()
        self.skipped: list[tuple[int, str]] = []
        self._warn = warn if jax.process_index() == 0 else _log.info
        self._read_only = read_only
        self._keep = LatestAndBest(keep_last, keep_best)
        self._manager: ocp.CheckpointManager | None = None
        self._quiet = contextlib.ExitStack()  # while there is a manager: its threads print too
        self._saving: tuple[int, int] | None = None  # step and bytes of the save under way
        if not read_only:
            self._prepare_folder()

    def save(self, step: int, state: PyTree, *, metrics: Mapping[str, float] | None = None, wait: bool = False) -> bool:
        """Saves a state; returns as soon as it is copied to the host, the files are written in the background.

        A step that is already there is left alone, but for metrics it has not had yet.

        Args:
          step: number of updates made; it is the data position too.
          state: pytree of arrays on one device, or replicated over all devices of all processes.
          metrics: numbers that judge this step; one of ``retention.HEADLINES`` decides which are the best.
            None: not judged.
          wait: return only when the checkpoint is complete on disk.

        Returns:
          Whether a checkpoint was written.

        Raises:
          InputError: the disk is full (now, or in the background since the last call).
          ValueError: step is older than the newest checkpoint, or the folder was opened read-only.
        """
        if self._read_only:
            raise ValueError(f"{self.directory} was opened read-only: expected no save")
        present = self._guard(self.steps)
        if present and step < present[-1]:
            raise ValueError(f"step {step} is older than the newest checkpoint, {present[-1]}, in {self.directory}")
        if step in present:
            self._attach(step, metrics)
            if wait:
                self.wait()
            return False
        leaves = files.host_copy(state)
        info = files.describe(step, leaves, metrics)
        self._keep.scores |= score(step, metrics)
        tree = files.nest({name: leaf for name, leaf in leaves.items() if leaf.size})  # orbax refuses size 0
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(tree), info=ocp.args.JsonSave(info))
        self.wait()  # for the save before this one, so that an error of its is told as its own
        self._saving = (step, sum(leaf.nbytes for leaf in leaves.values()))
        manager = self._open_manager()
        self._guard(lambda: manager.save(step, args=args, force=True))
        if wait:
            self.wait()
        return True

    def restore(self, abstract_state: PyTree, *, which: str | int = "latest") -> tuple[PyTree, int, dict[str, Any]]:
        """Reads the newest (or the best, or one) checkpoint that is whole.

        Args:
          abstract_state: the tree expected, leaves with ``shape`` and ``dtype``.
          which: "latest", "best" (highest mIoU; the latest if none has one) or a step.

        Returns:
          (state of host arrays, step, info): ``info["metrics"]`` are those it was saved with, or None,
          ``info["data_position"]`` is the number of batches taken. Bit for bit what was saved.

        Raises:
          NoCheckpoint: there is none, or none is whole.
          InputError: a leaf is missing, or differs in shape or dtype from the one expected; a step that is not there.
        """
        leaves, step, info = self._read(which)
        if not self._read_only:
            self._audit(but=step)
        where = f"checkpoint {step} in {self.directory}"
        return files.unflatten(leaves, abstract_state, where=where), step, info

    def steps(self) -> list[int]:
        """Steps that can be restored, ascending: finished and not known to be damaged."""
        self.wait()
        known_bad = {step for step, _ in self.skipped} if self._read_only else set()
        return [step for step in files.list_steps(self.directory) if step not in known_bad]

    def best_step(self) -> int | None:
        """The step with the highest mIoU, the newest of equals; None where no step has one."""
        scores = self._scores()
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def wait(self) -> None:
        """Blocks until the checkpoint being written is complete; raises InputError if the disk is full."""
        if self._manager is not None:
            self._guard(self._manager.wait_until_finished)
            self._saving = None

    def close(self) -> None:
        """Waits for the checkpoint being written and ends the background threads."""
        if self._manager is not None:
            try:
                self.wait()
            finally:
                self._drop_manager()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare_folder(self) -> None:
        if jax.process_index() == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot make the folder of checkpoints {self.directory}: {error.strerror}") from error
            for leftover in files.leftovers(self.directory):
                self._warn(f"removing {leftover}: a checkpoint whose writing was cut short")
                shutil.rmtree(leftover)
            self._skip_unreadable()
        _barrier("segjax_checkpoints_opened")
        self._keep.scores = self._scores()

    def _skip_unreadable(self) -> None:
        for step in self.steps():
            try:
                files.read_info(self.directory / str(step))
            except files.DamagedCheckpoint as damage:
                self._skip(step, str(damage))

    def _open_manager(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._quiet.enter_context(files.quiet_orbax())
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, create=False, save_root_metadata=False
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "info"))
        return self._manager

    def _read(self, which: str | int) -> tuple[dict[str, HostArray], int, dict[str, Any]]:
        for step in self._candidates(which):
            try:
                result, reason = files.read(self.directory / str(step)), ""
            except files.DamagedCheckpoint as damage:
                result, reason = None, str(damage)
            if _all_agree(result is not None) and result is not None:
                return result[0], step, result[1]
            self._skip(step, reason or "another process cannot read it")
            _barrier("segjax_checkpoint_skipped")
        damaged = "".join(f"\n  {step}: {reason}" for step, reason in self.skipped)
        raise NoCheckpoint(
            f"no checkpoint to restore in {self.directory}"
            + (f"; not whole are{damaged}" if damaged else ": nothing has been saved there yet")
        )

    def _candidates(self, which: str | int) -> Sequence[int]:
        if which == "best" and self._read_only:
            self._skip_unreadable()  # the best may be among them: do not pass over it without a word
        newest_first = self.steps()[::-1]
        if which in ("latest", "last"):
            return newest_first
        if which == "best":
            scores = self._scores()
            if newest_first and not scores:
                self._warn(f"no checkpoint in {self.directory} has an mIoU yet: taking the latest")
            return sorted(newest_first, key=lambda step: (scores.get(step, -math.inf), step), reverse=True)
        if not str(which).isdecimal():
            raise InputError(f'checkpoint {which!r}: expected "last", "best" or one of {newest_first[::-1]}')
        if int(which) not in newest_first:
            raise InputError(f"no checkpoint {which} in {self.directory}: there are {newest_first[::-1]}")
        return [int(which)]

    def _audit(self, *, but: int) -> None:
        """Reads the other steps too: one that is damaged must not take the place of a good one among those kept."""
        for step in self.steps():
            if step != but:
                try:
                    files.read(self.directory / str(step))
                    reason = ""
                except files.DamagedCheckpoint as damage:
                    reason = str(damage)
                if not _all_agree(not reason):
                    self._skip(step, reason or "another process cannot read it")
                    _barrier("segjax_checkpoint_skipped")
        self._keep.scores = self._scores()

    def _skip(self, step: int, reason: str) -> None:
        self.skipped.append((step, reason))
        fate = "left where it is"
        if not self._read_only:
            self._drop_manager()  # it has counted this step
            fate = f"moved to {self.directory / files.DAMAGED_FOLDER}"
            if jax.process_index() == 0:
                fate = f"moved to {files.set_aside(self.directory / str(step))}"
        self._warn(f"checkpoint {step} in {self.directory} is damaged and will not be used ({reason}); {fate}")

    def _attach(self, step: int, metrics: Mapping[str, float] | None) -> None:
        if metrics is not None and step not in self._scores():
            if jax.process_index() == 0:
                files.attach_metrics(self.directory / str(step), metrics)
            self._keep.scores |= score(step, metrics)

    def _scores(self) -> dict[int, float]:
        scores: dict[int, float] = {}
        for step in self.steps():
            try:
                scores |= score(step, files.read_info(self.directory / str(step))["metrics"])
            except files.DamagedCheckpoint as damage:
                _log.info("checkpoint %d has no score: %s", step, damage)
        return scores

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            with files.quiet_orbax():
                return call()
        except InputError:
            raise
        except Exception as error:
            step, size = self._saving or (None, 0)
            self._saving = None
            self._drop_manager()
            if not files.is_disk_full(error):
                raise
            if jax.process_index() == 0:
                for leftover in files.leftovers(self.directory):
                    shutil.rmtree(leftover, ignore_errors=True)
            free = shutil.disk_usage(self.directory).free
            raise InputError(
                f"disk full while saving checkpoint {step} to {self.directory}: it needs up to {_megabytes(size)}, "
                f"{_megabytes(free)} are free now. Older checkpoints are untouched {files.list_steps(self.directory)}: "
                "make room and run the same command again."
            ) from error

    def _drop_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.close()
            except Exception as error:  # a failed save raises a second time here; it has been told already
                _log.info("closing the checkpoint manager: %s", error)
            finally:
                self._quiet.close()


def restore_variables(
    directory: str | pathlib.Path,
    which: str | int = "best",
    *,
    ema: bool = False,
    expected: PyTree | None = None,
    warn: Callable[[str], None] = _log.warning,
) -> tuple[dict[str, PyTree], int]:
    """Reads only what a model needs, without knowing the optimizer; touches nothing on disk.

    Args:
      directory: folder of the checkpoints.
      which: "best", "latest" or a step.
      ema: the moving average of the parameters in place of the parameters.
      expected: variables (arrays or ``jax.ShapeDtypeStruct``) the result must agree with in names, shapes and dtypes.
      warn: called with one line for each damaged checkpoint that was passed over.

    Returns:
      ({"params": ..., "batch_stats": ...}, step), nested dicts of host arrays.

    Raises:
      NoCheckpoint: there is none, or none is whole.
      InputError: no such step; ema was off in that run; a leaf differs from ``expected``.
    """
    checkpoints = Checkpoints(directory, read_only=True, warn=warn)
    leaves, step, _ = checkpoints._read(which)
    where = f"checkpoint {step} in {checkpoints.directory}"
    sources = {name: f"ema/{name}" if ema else name for name in ("params", "batch_stats")}
    chosen = {
        f"{target}/{name.removeprefix(source + '/')}": leaf
        for target, source in sources.items()
        for name, leaf in leaves.items()
        if name.startswith(source + "/")
    }
    if ema and not any(name.startswith("params/") for name in chosen):
        raise InputError(f"{where} holds no moving average of the parameters: that run had it switched off")
    tree = files.nest(chosen) if expected is None else dict(files.unflatten(chosen, expected, where=where))
    return {"params": {}, "batch_stats": {}} | tree, step


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _all_agree(ok: bool) -> bool:
    """Whether every process says ok: all must take the same checkpoint."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.array(ok))))
