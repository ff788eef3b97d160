"""Scores a trained model and writes evaluation.json.

  python -m segjax.evaluate --workdir=DIR [--checkpoint=best|last|STEP] [--ema] [--config.KEY=VALUE ...]

--workdir=DIR            the folder of a run of segjax.train
--checkpoint=best        by validation mIoU or mask AP (the default), or last, or the number of a step
--ema, --no-ema          the moving average of the parameters, or the parameters; by default as the run's eval.ema
--output=FILE            where the result goes; DIR/evaluation.json by default
--compilation_cache=DIR  compiled programs are kept there (the run's own folder by default; "" for none)
--config.KEY=VALUE       replaces one value of the run's config; the ones that matter here:
    --config.data.root=DIR --config.data.split=test      other images with the same classes
    --config.eval.resolution=input                       score on the canvas instead of at the labels' own size
    --config.eval.max_dets=1,10,500                      objects: how many of an image count; AP is of the last
    --config.eval.sizes=((256,256),(512,640))            objects: the canvases, one compilation each
    --config.eval.batch_size=N                           changes the speed; the result only if batch_norm looks at it
--config.eval.protocol=NAME  how an image is looked at; all of these stand in evaluation.json under "protocol":
    whole                                                the canvas at once (the default)
    crop   --config.eval.window=H,W                      a central window, which alone is scored
    slide  --config.eval.window=H,W [--config.eval.stride=H,W]   the mean of the logits of sliding windows
    --config.eval.scales=0.75,1.0,1.25 --config.eval.flip=true   the mean of the softmax over scales, and mirrored
    --config.eval.batch_norm=running|reestimated|batch   statistics of the training, those of the whole training set
                                                         without augmentation, or those of each batch of eval.batch_size
    --config.eval.convention=segjax|fcn|torchvision|mmsegmentation|detectron2|segnet    what the mean IoU is
--config.eval.scores=em      besides, under "em", the EM challenge's scores, of two classes (0 membrane, 1 cell): pixel
                             error, Rand and information scores with and without thinning, warping error
--help                   this text; with --workdir also every key of that run's config
"""

import argparse
import datetime
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import data, models
from segjax.data.metadata import Classes
from segjax.inference import (
    coco_results,
    em_scores,
    evaluation,
    instance_evaluation,
    population,
    precision_recall,
    protocol,
    visualize,
)
from segjax.inference.progress import Progress
from segjax.training import devices, environment, instance, parallel, semantic, setup, tasks, trained
from segjax.training.workdirs import check_classes
from segjax.types import HostArray, InputError

_SCALARS = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou", "mean_dice")
_PER_CLASS = ("iou", "accuracy", "dice", "support")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and evaluates.

    Returns:
        the exit status: 0; 2 where the user has something to mend; 130 where Ctrl-C ended it.
    """
    try:
        arguments, overrides = configs.parse(_parser(), sys.argv[1:] if argv is None else argv)
        if arguments.help:
            _help(arguments, overrides)
        elif not arguments.workdir:
            raise InputError("--workdir is missing: the folder of a run, such as --workdir=runs/deeplab_shapes")
        else:
            _evaluate(arguments, overrides)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: no result was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segjax.evaluate", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--workdir", default="")
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--output", default="")
    parser.add_argument("--compilation_cache", default=None)
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _help(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    print(__doc__.strip())
    if arguments.workdir:
        _, config, _ = trained.read(arguments.workdir, overrides)
        print(f"\nThe config of {arguments.workdir}:\n\n{configs.describe(config)}")


def _evaluate(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    workdir = pathlib.Path(arguments.workdir)
    saved, config, classes = trained.read(workdir, overrides)
    ema = config.eval.ema if arguments.ema is None else arguments.ema
    dataset = data.from_config(config.data, config.data.split, classes=classes)
    check_classes(classes, dataset.classes, f"{workdir}", f"{dataset.name}, split {config.data.split!r},")
    task = tasks.of(config)
    if task is semantic and protocol.scores(config) == "em" and len(classes) != 2:
        raise InputError(f"eval.scores='em' is of two classes, membrane and cell, but {workdir} has {len(classes)}")
    trained.start_devices(workdir, arguments.compilation_cache)
    module, variables, step = trained.restore(workdir, config, classes, which=arguments.checkpoint, ema=ema, warn=_warn)
    rules = task.rules(config, ema=ema)
    for line in protocol.differences(task.rules(saved, ema=saved.eval.ema), rules):
        _warn(f"not the protocol of the run's own evaluations: {line}")
    kind = "moving average of the parameters, " if ema else ""
    print(f"{workdir}, {kind}checkpoint {step} ({arguments.checkpoint})")
    print(f"{dataset.name}, split {config.data.split!r}: {len(dataset)} images of {len(classes)} classes")
    canvases = ", ".join(f"{rows}x{columns}" for rows, columns in rules.get("canvases", [config.data.size]))
    print(f"compiling the model at {canvases}; this happens once ...", flush=True)
    output = pathlib.Path(arguments.output or workdir / "evaluation.json")
    with devices.explained(config, key="eval.batch_size"):
        if task is semantic:
            text, scores, beside = *_class_scores(config, dataset, module, variables), []
        else:
            text, scores, beside = _object_scores(config, dataset, module, variables, output)
    print(text)
    report = (
        scores
        | _facts(rules)
        | {
            "split": config.data.split,
            "checkpoint": step,
            "ema": ema,
            "data": {"name": config.data.name, "root": str(config.data.root), "size": list(config.data.size)},
            "config": dict(overrides),
            "workdir": str(workdir),
        }
    )
    _write(output, report)
    print(f"\nwrote {', '.join(map(str, [output, *beside]))}")


def _class_scores(config: ConfigDict, dataset: Any, module: Any, variables: Any) -> tuple[str, dict[str, Any]]:
    """What a semantic model scores: lines for a person, and JSON."""
    names = dataset.class_names
    apply, variables = _normalised(config, dataset.classes, module.apply, variables)
    result = _scores(config, dataset, apply, variables)
    text = table(result, names)
    report = {key: _json(result[key]) for key in (*_SCALARS, "pixels", "examples")}
    report |= {key: dict(zip(names, _json(result[key]), strict=True)) for key in _PER_CLASS}
    if protocol.scores(config) == "em":
        em = _em_scores(config, dataset, apply, variables)
        em = {"cell": names[em_scores.CELL], "foreground_iou": float(result["iou"][em_scores.CELL]), **em}
        text, report = f"{text}\n\n{em_table(em)}", report | {"em": _json(em)}
    return text, report


def _object_scores(
    config: ConfigDict, dataset: Any, module: Any, variables: Any, output: pathlib.Path
) -> tuple[str, dict[str, Any], list[pathlib.Path]]:
    """What an instance model scores: lines for a person, JSON, and the files that were written beside it."""
    with setup.eval_batches(config, dataset, cache=False) as batches:
        progress, mesh = Progress(len(dataset), "evaluated", sys.stdout), parallel.make_mesh()
        result = instance.evaluate(config, module, variables, dataset, batches, mesh=mesh, progress=progress)
    detections = output.with_name(f"{output.stem}_detections.json")
    curves = output.with_name(f"{output.stem}_curves.png")
    coco_results.write(detections, result["results"])
    try:
        visualize.save(curves, precision_recall.by_threshold(result["mask"]))
    except OSError as error:
        raise InputError(f"cannot write {curves}: {error}") from error
    report = _json(instance_evaluation.report(result))
    return instance_evaluation.table(result), report, [detections, curves]


def table(result: Mapping[str, Any], names: Sequence[str]) -> str:
    """The scores of each class and their means, for a person.

    Args:
        result: of ``evaluation.evaluate``.
        names: of the classes.

    Returns:
        lines of text; a class that takes no part shows a dash.
    """
    width = max(len("pixel accuracy"), *map(len, names))
    lines = [f"{'class':<{width}}     IoU  accuracy    Dice        pixels   share"]
    support = np.asarray(result["support"], np.float64)
    total = support.sum() or 1.0
    for k, name in enumerate(names):
        iou, accuracy, dice = (_number(result[key][k]) for key in ("iou", "accuracy", "dice"))
        share = f"{support[k] / total:.2%}"
        lines.append(f"{name:<{width}}  {iou:>6}    {accuracy:>6}  {dice:>6}  {int(support[k]):>12,}  {share:>6}")
    means = (_number(result[key]) for key in ("miou", "mean_accuracy", "mean_dice"))
    iou, accuracy, dice = means
    lines.append("-" * len(lines[0]))
    lines.append(f"{'mean':<{width}}  {iou:>6}    {accuracy:>6}  {dice:>6}  {int(support.sum()):>12,}")
    lines.append(f"{'pixel accuracy':<{width}}  {_number(result['pixel_accuracy']):>6}")
    lines.append(f"{'fw IoU':<{width}}  {_number(result['fwiou']):>6}")
    return "\n".join(lines)


def em_table(scores: Mapping[str, Any]) -> str:
    """The EM challenge's scores, for a person.

    Args:
        scores: of ``em_scores.evaluate``, with "cell", the name of class 1, and "foreground_iou".

    Returns:
        lines of text; a score that no section has shows a dash.
    """
    width = max(map(len, scores["best"]))
    lines = [f"{'EM challenge':<{width}}  at {scores['threshold']}    best   at threshold"]
    for name, best in scores["best"].items():
        value, most = _number(scores[name]), _number(best["value"])
        lines.append(f"{name:<{width}}  {value:>6}  {most:>6}   {best['threshold']:.1f}")
    lines.append(f"{scores['sections']} sections; IoU of {scores['cell']!r}: {_number(scores['foreground_iou'])}")
    return "\n".join(lines)


def _normalised(config: ConfigDict, classes: Classes, apply: Any, variables: Any) -> tuple[Any, Any]:
    """(apply, variables) with batch norm by the statistics that the protocol asks for."""
    mode = protocol.batch_norm(config)
    if mode == "running":
        return apply, variables
    module = setup.build_model(config, len(classes))
    if mode == "batch":
        return lambda variables, image, train: models.apply_batch_norm(module, variables, image)[0], variables
    dataset = data.from_config(config.data, config.data.train_split, classes=classes)
    print(f"batch norm: statistics of {dataset.name}, split {config.data.train_split!r}: {len(dataset)} images")
    colours = {"mean": tuple(config.augment.mean), "std": tuple(config.augment.std)}
    with setup.eval_batches(config, dataset, cache=False) as batches:
        mesh = parallel.make_mesh()
        return apply, population.reestimate(module, variables, batches, mesh=mesh, **colours)


def _scores(config: ConfigDict, dataset: Any, apply: Any, variables: Any) -> dict[str, Any]:
    with setup.eval_batches(config, dataset, cache=False) as batches:
        return evaluation.evaluate(
            apply,
            variables,
            protocol.batches(config, batches, dataset.ignore_label),
            num_classes=dataset.num_classes,
            ignore_label=dataset.ignore_label,
            mesh=_mesh(config),
            **protocol.options(config),
            progress=Progress(len(dataset), "evaluated", sys.stdout),
        )


def _em_scores(config: ConfigDict, dataset: Any, apply: Any, variables: Any) -> dict[str, Any]:
    options = protocol.options(config)
    with setup.eval_batches(config, dataset, cache=False) as batches:
        return em_scores.evaluate(
            apply,
            variables,
            protocol.batches(config, batches, dataset.ignore_label),
            ignore_label=dataset.ignore_label,
            mesh=_mesh(config),
            **{key: options[key] for key in ("mean", "std", "resolution", "views")},
            progress=Progress(len(dataset), "scored", sys.stdout),
        )


def _mesh(config: ConfigDict) -> Any:
    # Statistics of a batch are those of all its rows: they would differ from device to device.
    return None if protocol.batch_norm(config) == "batch" else parallel.make_mesh()


def _facts(rules: Mapping[str, Any]) -> dict[str, Any]:
    facts = environment.collect(["python", "-m", "segjax.evaluate", *sys.argv[1:]])
    return {
        "protocol": dict(rules),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": facts["python"], **facts["packages"]},
        "git": facts["git"],
        "devices": facts["devices"],
    }


def _write(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    try:
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}; choose another file with --output=") from error


def _json(value: Any) -> Any:
    """Python numbers, NaN as None: JSON has no NaN."""
    value = value.tolist() if isinstance(value, (HostArray, np.generic, jax.Array)) else value
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    return f"{float(value):.4f}" if math.isfinite(value) else "-"


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
