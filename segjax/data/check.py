"""The dataset doctor: what a set holds and what is wrong with it, before a model sees it.

    python -m segjax.data.check --root=DIR [--split=train] [--output=REPORT]     a folder of images and labels
    python -m segjax.data.check --config=experiments/deeplab.py:camvid [--config.data.root=DIR] [--output=REPORT]

Prints, for each split, sizes, a histogram of the labels, ignored pixels and every bad file by name; then duplicate
images and class weights. With --output it also writes check.json and one picture of overlays per split. Exit status 0:
no errors; 1: errors in the data; 2: it cannot start.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segjax import config as configs
from segjax import data
from segjax.data import canvas, file_pairs, folder, survey
from segjax.data.survey import Survey
from segjax.types import IMAGE, LABEL, InputError


def check(config: Mapping[str, Any], splits: Sequence[str], output: str | pathlib.Path = "") -> tuple[str, bool]:
    """Examines the splits of a set.

    Args:
      config: the `data` section of a config.
      splits: their names; the first is the training split, whose class weights are told.
      output: where given, the folder for check.json and the pictures.

    Returns:
      (the report, whether the data is free of errors).

    Raises:
      InputError: a set of objects.
    """
    surveys, lines, failed, sets, classes = [], [], {}, {}, None
    for split in splits:
        try:
            dataset = data.from_config({**config, "partial": True}, split, classes=classes)
        except InputError as error:
            failed[split] = str(error)
            lines += [f"== {split}", f"ERROR {error}", ""]
            continue
        if getattr(dataset, "instances", False):
            raise InputError(
                f"{dataset.name} is a set of objects, and the doctor knows labels of pixels; segjax.train checks "
                "the JSON, and reads every image and mask, before it starts (data.verify)"
            )
        classes = classes or dataset.classes
        sets[split] = dataset
        surveys.append(survey.survey(dataset, _progress(split)))
        lines += [*describe(surveys[-1]), ""]
    within, across = survey.duplicates(surveys)
    lines += _groups("within a split", within) + _groups("across splits (trained on and evaluated)", across)
    lines += describe_weights(surveys[0]) if surveys else []
    errors = sum(len(one.all_problems()) for one in surveys) + len(failed)
    lines += ["", f"{errors} error{'s' * (errors > 1)}" if errors else "no errors"]
    if output:
        lines += [f"written: {path}" for path in write(pathlib.Path(output), surveys, sets, failed, within, across)]
    return "\n".join(lines), errors == 0


def describe(one: Survey) -> list[str]:
    """Returns the lines of one split: sizes, histogram, bad files."""
    sizes: dict[tuple[int, int], int] = {}
    for example in one.examples:
        if example.size:
            sizes[example.size] = sizes.get(example.size, 0) + 1
    common = sorted(sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{w}x{h} ({n})" for (h, w), n in common[:6]) + (
        f", {len(common) - 6} more" if len(common) > 6 else ""
    )
    pixels, presence = one.pixels(), one.presence()
    ignored, unknown = one.ignored(), one.unknown()
    total = max(int(pixels.sum()) + ignored + sum(unknown.values()), 1)
    lines = [f"== {one.split}: {len(one.examples)} examples", f"sizes (width x height): {shown or 'none readable'}"]
    lines += [f"{'id':>5}  {'class':<20} {'pixels':>14} {'share':>8} {'images':>7}"]
    for c, name in enumerate(one.classes.names):
        absent = "" if presence[c] else "  absent"
        lines.append(f"{c:>5}  {name:<20} {pixels[c]:>14,} {pixels[c] / total:>8.3%} {presence[c]:>7}{absent}")
    lines.append(f"{one.classes.ignore_label:>5}  {'(ignored)':<20} {ignored:>14,} {ignored / total:>8.3%}")
    for value, count in unknown.items():
        lines.append(f"{value:>5}  {'UNKNOWN':<20} {count:>14,} {count / total:>8.3%}")
    return lines + [f"ERROR {kind}: {message}" for kind, message in one.all_problems()]


def describe_weights(one: Survey) -> list[str]:
    """Returns the lines of the median-frequency class weights, the last one ready to be copied."""
    weights = survey.median_frequency_weights(one)
    lines = ["", f"median-frequency class weights of {one.split} (Eigen & Fergus 2015):"]
    lines += [f"{c:>5}  {name:<20} {weights[c]:8.4f}" for c, name in enumerate(one.classes.names)]
    values = ",".join(f"{w:.4f}" for w in weights)
    return [*lines, f'--config.loss.class_weights="({values},)"']


def write(
    output: pathlib.Path,
    surveys: Sequence[Survey],
    sets: dict[str, Any],
    failed: dict[str, str],
    within: Any,
    across: Any,
) -> list[pathlib.Path]:
    """Writes check.json and overlays_<split>.png.

    Raises:
      InputError: the folder cannot be written.
    """
    report = {
        "splits": {one.split: _as_json(one) for one in surveys},
        "failed": failed,
        "duplicates_within": within,
        "duplicates_across": across,
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        written = [output / "check.json"]
        written[0].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        for one in surveys:
            good = [i for i, example in enumerate(one.examples) if not example.problems]
            if good:
                written.append(output / f"overlays_{one.split}.png")
                overlays(sets[one.split], good[:: max(len(good) // 6, 1)][:6]).save(written[-1])
    except OSError as error:
        raise InputError(f"--output={output}: cannot be written: {error}") from error
    return written


def overlays(dataset: Any, indices: Sequence[int], size: tuple[int, int] = (240, 320)) -> Image.Image:
    """Returns a sheet: each image, below it the label's colours over the image; ignored pixels are dark."""
    columns = []
    for i in indices:
        example = dataset[i]
        image = canvas.fit_image(example[IMAGE], size, "pad").astype(np.float32)
        label = canvas.fit_label(example[LABEL], size, "pad", dataset.ignore_label)
        inside = (label >= 0) & (label < dataset.num_classes)
        colors = np.where(inside[..., None], dataset.palette[np.where(inside, label, 0)], 0)
        columns.append(np.concatenate([image, 0.4 * image + 0.6 * colors]))
    return Image.fromarray(np.concatenate(columns, axis=1).round().astype(np.uint8))


def _as_json(one: Survey) -> dict[str, Any]:
    pixels, presence = one.pixels().tolist(), one.presence().tolist()
    return {
        "examples": len(one.examples),
        "classes": [
            {"id": c, "name": name, "pixels": pixels[c], "images": presence[c]}
            for c, name in enumerate(one.classes.names)
        ],
        "ignore_label": int(one.classes.ignore_label),
        "ignored_pixels": one.ignored(),
        "unknown_pixels": {str(value): count for value, count in one.unknown().items()},
        "median_frequency_weights": survey.median_frequency_weights(one).tolist(),
        "problems": [{"kind": kind, "message": message} for kind, message in one.all_problems()],
    }


def _groups(title: str, groups: list[list[str]]) -> list[str]:
    if not groups:
        return [f"exact duplicate images {title}: none"]
    rows = ["  " + " = ".join(group) for group in groups]
    return [f"WARNING exact duplicate images {title}: {len(groups)} groups", *rows]


def _progress(split: str) -> Any:
    """Returns a callback for progress on stderr: one line rewritten on a terminal, else a line in ten seconds."""
    last = [time.monotonic()]
    live = sys.stderr.isatty()

    def _show(done: int, of: int) -> None:
        now = time.monotonic()
        if live and (done == of or now - last[0] > 0.1):
            sys.stderr.write(f"\rreading {split}: {done}/{of}" + ("\n" if done == of else ""))
        elif not live and (done == of or now - last[0] > 10):
            sys.stderr.write(f"reading {split}: {done}/{of}\n")
        else:
            return
        sys.stderr.flush()
        last[0] = now

    return _show


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str], str]:
    """Returns (data section, splits, output folder) of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m segjax.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--root", default="", help="a folder of images and labels, in place of --config")
    parser.add_argument("--config", default="", help="an experiment, FILE or FILE:VARIANT")
    parser.add_argument("--images", default="{split}/*", help="with --root: glob pattern of the images")
    parser.add_argument("--labels", default="{split}annot/*", help="with --root: glob pattern of the labels")
    parser.add_argument("--split", action="append", help="a split to examine (repeatable); default: all that are found")
    parser.add_argument("--output", default="", help="folder for check.json and overlays")
    arguments, overrides = configs.parse(parser, argv)
    if bool(arguments.config) == bool(arguments.root):
        raise InputError("give either --root=DIR or --config=FILE")
    if arguments.config:
        section = dict(configs.override(configs.load_experiment(arguments.config), overrides).data)
        return (
            section,
            arguments.split or list(dict.fromkeys([section["train_split"], section["split"]])),
            arguments.output,
        )
    if overrides:
        raise InputError(f"--config.{next(iter(overrides))} needs --config=FILE")
    place = folder.locate(arguments.root)
    found = file_pairs.splits(place, arguments.images, arguments.labels)
    # A training or validation folder without a pair is an error to show, not a split to leave out.
    for split in ("train", "val"):
        top = pathlib.PurePath(arguments.images.replace("{split}", split)).parts[0]
        if split not in found and "*" not in top and "=" not in top and (place / top).is_dir():
            found.append(split)
    splits = arguments.split or sorted(found, key=lambda split: (split != "train", split)) or ["train"]
    section = {"name": "folder", "root": arguments.root, "images": arguments.images, "labels": arguments.labels}
    return {**section, "train_split": splits[0]}, splits, arguments.output


def main(argv: Sequence[str]) -> int:
    """Runs the doctor for the arguments of a command line; returns the exit status."""
    try:
        report, healthy = check(*_parse(argv))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(report + "\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
