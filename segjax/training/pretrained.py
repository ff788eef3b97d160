"""Starting a run from published or earlier weights: ``config.model.pretrained``.

Of a file of the same model every leaf is taken; where its number of classes is another one, the leaves with an axis of
classes keep their fresh values. Of a run of the same model (its folder: the best checkpoint) what both have is taken,
so that FCN-16s starts from FCN-32s. Of another model (a classifier) the backbone is taken, whole, and of a classifier
the fully connected layers that the model has in the same shape (FCN on VGG). What was kept is one line.
"""

import pathlib
import warnings
from collections.abc import Callable, Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segjax import layers
from segjax.interop import converted, torch
from segjax.interop.converted import Converted
from segjax.interop.preprocessing import Preprocessing
from segjax.training import optimizer, setup, state, trained, workdirs
from segjax.types import Array, HostArray, InputError

BACKBONE, REGIONS = "/backbone/", "/res5/"  # the latter: a ResNet's last stage where it is the head of regions
RUN = "run"  # the source of weights of a run
CONNECTED = ("params/fc6/", "params/fc7/")  # of a classifier
Leaves = Mapping[str, Array | HostArray]


def read(config: ConfigDict, warn: Callable[[str], None] = warnings.warn) -> Converted | None:
    """The weights that ``config.model.pretrained`` names; None where it names none.

    Args:
        config: the experiment.
        warn: called with one line for each damaged checkpoint of a run that was passed over.
    Raises:
        InputError: the file cannot be read, see ``interop.converted.read``; or it is of another backbone.
    """
    where = config.model.pretrained if "pretrained" in config.model else ""
    if not where:
        return None
    try:
        found = _of_run(where, warn) if pathlib.Path(where).is_dir() else converted.read(where)
    except InputError as error:
        raise InputError(f"model.pretrained={where!r}: {error}") from error
    theirs = getattr(found.module, "backbone", None)
    ours = config.model.backbone if "backbone" in config.model else theirs
    if theirs is not None and theirs != ours:
        raise InputError(f"model.pretrained={where!r} has the backbone {theirs!r}, but model.backbone is {ours!r}")
    return found


def start(
    config: ConfigDict, initial: state.TrainState, num_classes: int, weights: Converted, say: Callable[[str], None]
) -> state.TrainState:
    """The state before the first step with these weights in it.

    Args:
        config: the experiment.
        initial: the fresh state; what the weights do not hold keeps its values.
        num_classes: K of the run.
        weights: of ``read``.
        say: called with one line for what was kept, one for the options and one for each mean or std that are not the
            weights'.
    Raises:
        InputError: a leaf that the weights lack, have besides, or have in another shape.
    """
    fresh = _flat({"params": initial.params, "batch_stats": initial.batch_stats})
    theirs = _placed(fresh, _flat(weights.variables))
    where = f"model.pretrained={config.model.pretrained!r}"
    same = weights.model == config.model.name
    if same:
        shared = {name: leaf for name, leaf in fresh.items() if weights.source != RUN or name in theirs}
        theirs = {name: leaf for name, leaf in theirs.items() if weights.source != RUN or name in fresh}
        taken = _whole(shared, theirs, num_classes, weights.module.num_classes, where)
    else:
        taken = _backbone(fresh, theirs, weights.model == "classifier", where)
    say(_told(weights, fresh, taken, num_classes))
    if same:
        other = torch.differences(setup.build_model(config, num_classes), weights.module)
        lines = [f"{name} {b!r}, here {a!r}" for name, (a, b) in other.items() if name != "num_classes"]
        if lines:
            say(f"warning: the weights are of a model with other options: {', '.join(lines)}")
    for line in weights.preprocessing.differences(config.augment.mean, config.augment.std):
        say(f"warning: augment.{line}")
    leaves = {name: jnp.asarray(theirs[name]) if name in taken else leaf for name, leaf in fresh.items()}
    variables = {"params": {}, "batch_stats": {}, **flax.traverse_util.unflatten_dict(leaves, sep="/")}
    tx, _ = optimizer.make_optimizer(total_steps=config.train.steps, **config.optimizer)
    return state.create(variables, tx, key=initial.key, ema=bool(jax.tree.leaves(initial.ema)))


def _of_run(folder: str, warn: Callable[[str], None]) -> Converted:
    """The best checkpoint of a run; the moving average where that is what the run evaluates."""
    if not (pathlib.Path(folder) / workdirs.CONFIG).is_file():
        raise InputError(f"a folder, but not of a run of segjax.train: it has no {workdirs.CONFIG}")
    _, config, classes = trained.read(folder, {})
    module, variables, step = trained.restore(folder, config, classes, which="best", ema=config.eval.ema, warn=warn)
    prepared = Preprocessing(tuple(config.augment.mean), tuple(config.augment.std))
    return Converted(module, variables, prepared, RUN, f"{folder}, checkpoint {step}", {})


def _flat(variables: Mapping) -> dict[str, Array | HostArray]:
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def _placed(fresh: Leaves, theirs: Leaves) -> Leaves:
    """Theirs, the last stage named as the head of regions where it is one here and is none there."""
    if not any(REGIONS in name for name in fresh) or any(REGIONS in name for name in theirs):
        return theirs
    return {name.replace(f"{BACKBONE}layer4_", f"{REGIONS}layer4_"): leaf for name, leaf in theirs.items()}


def _whole(fresh: Leaves, theirs: Leaves, classes: int, their_classes: int, where: str) -> set[str]:
    """The leaves to take of the same model: all but those with an axis of another number of classes."""
    _same_names(fresh, theirs, where)
    taken = set()
    for name, leaf in fresh.items():
        ours, found = leaf.shape, theirs[name].shape
        if ours == found:
            taken.add(name)
        elif not _but_for_classes(ours, found, (classes, their_classes)):
            raise InputError(f"{where}: {name} is {list(found)} there, but {list(ours)} in this model")
    return taken


def _but_for_classes(ours: tuple[int, ...], theirs: tuple[int, ...], classes: tuple[int, int]) -> bool:
    """Whether two shapes differ in nothing but axes of classes: one number of each or four, background or not."""
    of_classes = {tuple(each * (count + more) for count in classes) for each in (1, 4) for more in (0, 1)}
    pairs = list(zip(ours, theirs, strict=False))
    return len(ours) == len(theirs) and all(a == b or (a, b) in of_classes for a, b in pairs)


def _backbone(fresh: Leaves, theirs: Leaves, classifier: bool, where: str) -> set[str]:
    """The leaves to take of another model: its backbone, and a classifier's fully connected layers where they fit."""
    ours, found = ({k: leaf for k, leaf in of.items() if BACKBONE in k or REGIONS in k} for of in (fresh, theirs))
    if not ours or not found:
        raise InputError(f"{where}: no backbone {'in this model' if found else 'there'} to take from another model")
    _same_names(ours, found, where)
    for name, leaf in ours.items():
        if leaf.shape != found[name].shape:
            raise InputError(f"{where}: {name} is {list(found[name].shape)} there, but {list(leaf.shape)} here")
    connected = [name for name in fresh if classifier and name.startswith(CONNECTED) and name in theirs]
    return {*ours, *(name for name in connected if fresh[name].shape == theirs[name].shape)}


def _same_names(ours: Leaves, theirs: Leaves, where: str) -> None:
    for names, others, what in (
        (sorted(set(ours) - set(theirs), reverse=True), theirs, "is missing there"),  # params before batch_stats
        (sorted(set(theirs) - set(ours), reverse=True), ours, "has no place in this model: its options are others"),
    ):
        if names:
            hint = layers.nearest(names[0], list(others))
            raise InputError(f"{where}: {names[0]} {what}{hint} ({len(names)} such)")


def _told(weights: Converted, fresh: Leaves, taken: set[str], num_classes: int) -> str:
    """One line: where the weights are from, what was kept, what was drawn anew."""
    drawn = [name for name in fresh if name not in taken and name.startswith("params/")]
    parts = list(dict.fromkeys(name.split("/")[1] for name in drawn))
    origin = f"starting from {weights.source} {weights.name}: {len(taken)} of {len(fresh)} leaves"
    if not drawn:
        return origin
    theirs = weights.module.num_classes
    why = f" for {num_classes} classes in place of {theirs}" if theirs != num_classes else ""
    return f"{origin}; drawn anew{why}: {', '.join(parts)}"
