"""The training loop: all effects of a run, in reading order."""

import json
import math
import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax.inference import visualize
from segjax.interop.converted import Converted
from segjax.training import pretrained, progress, report, setup, signals, tasks, workdirs, writer
from segjax.training.checkpoint import Checkpoints, NoCheckpoint
from segjax.training.retention import headline
from segjax.types import IMAGE, InputError, PyTree


def run(config: ConfigDict, workdir: pathlib.Path, stop: signals.StopRequest, command: Sequence[str]) -> None:
    """Trains from the last whole checkpoint in ``workdir`` (or from the start) to ``config.train.steps``.

    The metrics of a step are read after the next one is dispatched, so the device never waits for the host.

    Args:
        config: the resolved experiment.
        workdir: prepared by ``workdirs.prepare``.
        stop: asked after every step; a request saves a checkpoint and returns.
        command: what the user typed, for the message how to continue.

    Raises:
        InputError: bad data, a full disk, a loss that is not finite; the checkpoints saved so far stay.
    """
    setup.check(config, jax.device_count())
    line = progress.Progress(total_steps=config.train.steps, batch_size=config.train.batch_size)
    # Before the images, so that a mistake shows at once; a run that goes on does not need the file any more.
    weights = None if workdirs.started(workdir) else pretrained.read(config, line.say)
    train_set, eval_set = setup.open_sets(config, line.reading)
    workdirs.keep_classes(workdir, train_set.classes)
    if stop.signal is not None:
        return _say_how_to_continue(0, config, stop, command)
    line.say(f"building {config.model.name} ...")
    job = setup.build(config, train_set.classes)
    line.say(f"{len(train_set)} training and {len(eval_set)} validation images of {len(train_set.classes)} classes")
    line.say(job.summary)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        warn=line.say,
    )
    state, start, judged = _restore(checkpoints, config, job, weights, line)
    with (
        checkpoints,
        writer.Writer(workdir, start_step=start, tensorboard=config.log.tensorboard) as log,
        setup.train_batches(config, train_set, start) as batches,
    ):
        judge = _Judge(config, workdir, job, eval_set, log, line, start)
        scores = judge(start, state) if start and not judged and _due(start, config.eval.every_steps, config) else None
        if scores:
            checkpoints.save(start, state, metrics=scores)
        if start < config.train.steps:
            rows, columns = tasks.of(config).batch_shapes(config)[IMAGE][0][1:3]
            line.say(f"compiling the training step at {rows}x{columns}; this happens once for each canvas ...")
        line.start(start)
        pending = None  # the step before, whose metrics are still on the device
        # On a CPU a step that is dispatched early gains nothing and doubles the memory in use.
        wait = jax.default_backend() == "cpu"
        for step in range(start + 1, config.train.steps + 1):
            state, metrics = job.train_step(state, next(batches))
            if wait:
                jax.block_until_ready(metrics)
            if pending is not None:
                _report_step(*pending, job, config, checkpoints, log, line)
            pending = (step, metrics)
            judged = _due(step, config.eval.every_steps, config)
            stopping = stop.at(step)
            if judged or stopping or _due(step, config.checkpoint.every_steps, config):
                _report_step(*pending, job, config, checkpoints, log, line)  # a bad step must not be saved
                pending = None
                scores = judge(step, state) if judged and not stopping else None
                checkpoints.save(step, state, metrics=scores, wait=stopping)
            if stopping:
                line.close()
                _say_how_to_continue(step, config, stop, command)
                return
        checkpoints.wait()
        line.close()
        _finish(config, workdir, checkpoints, judge, state)


class _Judge:
    """Evaluates a state on the validation split: numbers to the log, pictures to the workdir."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        job: setup.Job,
        dataset: Any,
        log: writer.Writer,
        line: progress.Progress,
        start: int,
    ) -> None:
        self.config, self.workdir, self.job, self.dataset = config, workdir, job, dataset
        self.log, self.line, self.start, self.task = log, line, start, tasks.of(config)
        self.last: tuple[int, dict[str, Any]] | None = None

    def __call__(self, step: int, state: PyTree) -> dict[str, float]:
        """Scores ``state``; returns the numbers that judge its checkpoint."""
        config = self.config
        if self.last is not None and self.last[0] == step:
            return _numbers(self.last[1])
        if self.last is None:
            self.line.say("compiling the evaluation; this happens once ...")
        variables = state.ema if config.eval.ema else {"params": state.params, "batch_stats": state.batch_stats}
        with setup.eval_batches(config, self.dataset) as batches:
            result = self.task.evaluate(
                config,
                self.job.module,
                variables,
                self.dataset,
                batches,
                mesh=self.job.mesh,
                progress=lambda done: self.line.evaluating(done, len(self.dataset)),
                collect=config.eval.pictures,
            )
        self.last = (step, result)
        self._record(step, result)
        return _numbers(result)

    def _record(self, step: int, result: dict[str, Any]) -> None:
        names = self.dataset.class_names
        scalars = {f"val/{key}": value for key, value in _numbers(result).items()}
        each = self.task.PER_CLASS
        per_class = {f"val/{each}/{name}": float(score) for name, score in zip(names, result[each], strict=True)}
        rows = writer.read_metrics(self.workdir) if step == self.start else []
        # A killed run may have written it.
        if not any(row["step"] == step and headline(_validation(row))[0] for row in rows):
            self.log.scalars(step, scalars | per_class)
        self.line.evaluated(step, *headline(result))
        if result["pictures"] and jax.process_index() == 0:
            page, pictures = self.task.pictures(result, self.dataset)
            self.log.images(step, "val/predictions", page)
            folder = self.workdir / "pictures"
            folder.mkdir(exist_ok=True)
            for number, picture in enumerate(pictures):
                visualize.save(folder / f"val-{number:03d}.png", picture)
        if jax.process_index() == 0:
            report.write(self.workdir)


def _restore(
    checkpoints: Checkpoints, config: ConfigDict, job: setup.Job, weights: Converted | None, line: progress.Progress
) -> tuple[PyTree, int, bool]:
    """(state, its step, whether it was evaluated), from the newest whole checkpoint or the start."""
    try:
        state, step, info = checkpoints.restore(job.initial, which="latest")
    except NoCheckpoint:
        weights = weights or pretrained.read(config, line.say)  # the checkpoints there may all be damaged
        if weights is None:
            fixed = getattr(job.module, "frozen", lambda params: {})(job.initial.params)
            if any(jax.tree.leaves(fixed)):
                line.say("warning: layers that are not trained have random weights: set model.pretrained")
            return job.initial, 0, False
        return pretrained.start(config, job.initial, job.module.num_classes, weights, line.say), 0, False
    line.say(f"continuing from the checkpoint of step {step}")
    return state, step, info["metrics"] is not None


def _due(step: int, every: int, config: ConfigDict) -> bool:
    return step % every == 0 or step == config.train.steps


def _report_step(
    step: int,
    metrics: dict[str, Any],
    job: setup.Job,
    config: ConfigDict,
    checkpoints: Checkpoints,
    log: writer.Writer,
    line: progress.Progress,
) -> None:
    """Reads the metrics of a step: to the log and the progress line, or the end of the run if they are not finite."""
    metrics = jax.device_get(metrics)
    if not metrics["finite"]:
        line.close()
        raise InputError(_not_finite(step, metrics, job.initial.params, config, checkpoints))
    line.step(step, float(metrics["loss"]))
    if step % config.log.every_steps == 0 or step == config.train.steps:
        kept = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0 and name != "finite"}
        scalars = {f"train/{name}": value for name, value in kept.items()}
        scalars["train/learning_rate"] = float(job.schedule(step - 1))
        scalars["train/images_per_second"] = line.images_per_second()
        log.scalars(step, scalars)


def _not_finite(
    step: int, metrics: dict[str, Any], params: PyTree, config: ConfigDict, checkpoints: Checkpoints
) -> str:
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    bad = [name for name, square in zip(names, metrics["grad_squares"], strict=True) if not math.isfinite(square)]
    where = (
        f"first leaf with a bad gradient: params/{bad[0]} ({len(bad)} of {len(names)})"
        if bad
        else "all gradients finite"
    )
    saved = checkpoints.steps()
    kept = f"the checkpoint of step {saved[-1]} stays" if saved else "no checkpoint was due yet"
    return (
        f"step {step}: the loss is {float(metrics['loss'])}, the gradient norm {float(metrics['grad_norm'])}; "
        f"{where}.\n"
        f"The update was not applied and nothing was saved; {kept} in {checkpoints.directory}.\n"
        f"Try a lower --config.optimizer.learning_rate (now {config.optimizer.learning_rate:g}), more "
        f"--config.optimizer.warmup_steps (now {config.optimizer.warmup_steps}) or --config.optimizer.clip_norm=1, "
        "with a new --workdir."
    )


def _say_how_to_continue(step: int, config: ConfigDict, stop: signals.StopRequest, command: Sequence[str]) -> None:
    if jax.process_index() == 0:
        done = f"after step {step} of {config.train.steps}; a checkpoint is saved" if step else "before the first step"
        print(f"Stopped by {stop.name} {done}. To continue:\n  {shlex.join(command)}", flush=True)


def _validation(row: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    found = {key: value for key, value in result.items() if not isinstance(value, dict) and key != "examples"}
    return {key: float(value) for key, value in found.items() if np.ndim(value) == 0}


def _finish(config: ConfigDict, workdir: pathlib.Path, checkpoints: Checkpoints, judge: _Judge, state: PyTree) -> None:
    """Writes summary.json, which marks the run as finished, and says what came out and what to type next."""
    judge(config.train.steps, state)
    best, result, each = checkpoints.best_step(), judge.last[1], judge.task.PER_CLASS
    if jax.process_index() != 0:
        return
    per_class = zip(judge.dataset.class_names, result[each], strict=True)
    summary = {
        "step": config.train.steps,
        **{name: float(result[name]) for name in judge.task.SUMMARY},
        each: {name: float(score) if np.isfinite(score) else None for name, score in per_class},
        "split": config.data.split,
        "best_step": best,
        "protocol": judge.task.rules(config, ema=config.eval.ema),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    temporary = workdir / f"{workdirs.SUMMARY}.tmp"
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.rename(workdir / workdirs.SUMMARY)
    report.write(workdir)
    name, score = headline(summary)
    print(f"\nFinished: step {summary['step']}, validation {name} {score:.4f}, best at step {best}.")
    for name, score in summary[each].items():
        print(f"  {name:<20} {judge.task.EACH} {'absent' if score is None else format(score, '.4f')}")
    print(workdirs.next_commands(workdir), flush=True)
