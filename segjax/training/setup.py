"""From a config to the parts of a run: data sets, model, step, first state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import data, losses, models
from segjax.data import pipeline
from segjax.data.metadata import Classes
from segjax.training import check_config, optimizer, parallel, state, step, tasks
from segjax.types import DATA_AXIS, InputError


@dataclasses.dataclass(frozen=True)
class Job:
    """What the loop runs.

    Attributes:
        module: the model; ``module.apply`` is what is trained and evaluated.
        mesh: all devices, one axis "data".
        schedule: step -> learning rate.
        train_step: (state, batch) -> (state, metrics), compiled over the devices.
        initial: the state before the first step.
        parameters: how many there are.
        summary: one line for the user.
    """

    module: Any
    mesh: Mesh
    schedule: Callable[[int], Any]
    train_step: Callable[..., Any]
    initial: state.TrainState
    parameters: int
    summary: str


def check(config: ConfigDict, devices: int, *, evaluation: bool = False) -> None:
    """Refuses keys that nothing reads or that are missing, and values that no part would name as well as this does.

    Args:
        config: of an experiment, or of a run.
        devices: that a batch is divided among.
        evaluation: the config of a run, which is evaluated and not trained: what evaluation does not read is not
            checked, since an earlier version may have written it.

    Raises:
        InputError: names the key, its value and what to write instead.
    """
    if evaluation:
        check_config.evaluation_keys(config)
        check_config.values(config, devices)
    else:
        check_config.keys(config)
        check_config.values(config, devices)
        check_config.options(config)


def open_sets(config: ConfigDict, progress: Callable[[str, int, int], None] | None = None) -> tuple[Any, Any]:
    """Opens the training and the validation split and reads every file once, so that bad data shows before a step.

    Args:
        config: the experiment.
        progress: called with (split, examples read, examples).

    Returns:
        (training set, evaluation set), see ``segjax.data``.

    Raises:
        InputError: whatever is wrong with the data, by file name and value.
    """
    train_set = data.from_config(config.data, config.data.train_split)
    eval_set = data.from_config(config.data, config.data.split, classes=train_set.classes)
    if eval_set.class_names != train_set.class_names:
        raise InputError(
            f"the splits {config.data.train_split!r} and {config.data.split!r} have different classes: "
            f"{train_set.class_names} and {eval_set.class_names}"
        )
    tasks.check_set(config, train_set)
    if config.data.verify:
        # Worker processes do not see what this one keeps in memory.
        cache = config.data.cache and config.data.worker_mode == "threads"
        for dataset, evaluated in ((train_set, False), (eval_set, True)):
            told = None if progress is None else lambda done, of, split=dataset.split: progress(split, done, of)
            tasks.of(config).read_all(config, dataset, told, evaluated=evaluated, cache=cache)
    return train_set, eval_set


def train_batches(config: ConfigDict, dataset: Any, start_step: int) -> pipeline.Batches:
    """This process's rows of the training batches from ``start_step`` on."""
    return tasks.of(config).train_batches(
        config,
        dataset,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start_step,
        num_steps=config.train.steps,
        cache=config.data.cache,
        **_reading(config),
    )


def eval_batches(config: ConfigDict, dataset: Any, *, cache: bool | None = None) -> pipeline.Batches:
    """This process's rows of the evaluation batches, every example once.

    Args:
        config: the experiment.
        dataset: see ``segjax.data``.
        cache: whether what is read is kept in memory for a second pass; None: as ``config.data.cache``.
    """
    batch_size = -(-config.eval.batch_size // jax.process_count()) * jax.process_count()
    cache = config.data.cache if cache is None else cache
    return tasks.of(config).eval_batches(config, dataset, batch_size=batch_size, cache=cache, **_reading(config))


def _reading(config: ConfigDict) -> dict[str, Any]:
    return {
        "fit": config.data.fit,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "workers": config.data.workers,
        "worker_mode": config.data.worker_mode,
    }


def build_model(config: ConfigDict, num_classes: int, axis_name: str | None = None) -> Any:
    """The linen module of ``config.model``, computing in ``config.train.dtype``."""
    options = check_config.model_options(config.model)
    return models.build(
        config.model.name, num_classes=num_classes, axis_name=axis_name, dtype=config.train.dtype, **options
    )


def make_step(config: ConfigDict, classes: Classes) -> step.Step:
    """The pure training step of a config; under pmap it adds over the axis "data".

    Raises:
        InputError: an unknown model, loss, optimizer or option.
        ValueError: an option out of range.
    """
    axis_name = DATA_AXIS if config.train.parallel == "pmap" else None
    options = check_config.loss_options(config.loss)
    module = build_model(config, len(classes), axis_name)
    return step.make_train_step(
        module.apply,
        losses.build(
            config.loss.name,
            num_classes=len(classes),
            ignore_label=classes.ignore_label,
            axis_name=axis_name,
            **options,
        ),
        optimizer.make_optimizer(total_steps=config.train.steps, **config.optimizer)[0],
        axis_name=axis_name,
        augment=tasks.of(config).augmentation(config, classes.ignore_label),
        accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay,
        frozen=getattr(module, "frozen", None),
    )


def first_state(config: ConfigDict, num_classes: int) -> state.TrainState:
    """The state before the first step, from ``config.seed``."""
    tx, _ = optimizer.make_optimizer(total_steps=config.train.steps, **config.optimizer)

    @jax.jit
    def init(key: jax.Array) -> state.TrainState:
        init_key, run_key = jax.random.split(key)
        image = jnp.zeros((1, *config.data.size, 3), jnp.float32)
        variables = build_model(config, num_classes).init(init_key, image)
        return state.create(variables, tx, key=run_key, ema=config.train.ema_decay > 0)

    return init(jax.random.key(config.seed))


def build(config: ConfigDict, classes: Classes) -> Job:
    """Builds model, optimizer, first state and compiled step.

    Raises:
        InputError: an unknown model, loss, optimizer or option, or an option out of range.
    """
    mesh, pmap = parallel.make_mesh(), config.train.parallel == "pmap"
    explained, parts = check_config.explained, ("model", "loss", "optimizer", "augment")
    train_step = explained(parts, lambda: make_step(config, classes))
    initial = explained(("model", "optimizer"), lambda: first_state(config, len(classes)))
    explained(parts, lambda: _trace(config, classes, train_step, initial, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(initial.params))
    summary = (
        f"{config.model.name} with {parameters / 1e6:.2f} M parameters, {config.train.dtype}, on {mesh.size} "
        f"{jax.default_backend().upper()} device{'s' if mesh.size > 1 else ''} ({config.train.parallel})"
    )
    return Job(
        module=build_model(config, len(classes)),
        mesh=mesh,
        schedule=optimizer.make_optimizer(total_steps=config.train.steps, **config.optimizer)[1],
        train_step=parallel.pmap_step(train_step, mesh.devices.ravel())
        if pmap
        else parallel.jit_step(train_step, mesh),
        initial=initial,
        parameters=parameters,
        summary=summary,
    )


def _trace(config: ConfigDict, classes: Classes, train_step: step.Step, initial: state.TrainState, mesh: Mesh) -> None:
    """Runs the step on shapes alone, so that what it says of an option is heard here; jit reuses what is traced."""
    if config.train.parallel == "pmap":  # its step adds over an axis that only pmap has
        train_step = make_step(configs.override(config, {"train.parallel": "jit"}), classes)
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    shapes = tasks.of(config).batch_shapes(config)
    batch = {key: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for key, (shape, dtype) in shapes.items()}
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), initial)
    jax.eval_shape(train_step, first, batch)
