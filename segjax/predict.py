"""Segments images of any size with a trained model.

    python -m segjax.predict --workdir=DIR --input=FILE_OR_FOLDER_OR_GLOB --output=DIR

  --workdir=DIR            the folder of a run of segjax.train
  --input=WHAT             a file, a folder (with all below it) or a quoted pattern; several after one another, too
  --output=DIR             overlays/*.png; of a semantic model labels/*.png (class ids, with the palette of the set),
                           of an instance model detections.json (COCO results: boxes, scores, classes, masks);
                           sheet.png (one page of overlays), index.html (all of them), classes.json
  --checkpoint=best        by validation mIoU or mask AP (the default), or last, or the number of a step
  --ema, --no-ema          the moving average of the parameters, or the parameters; by default as the run's eval.ema
  --batch=N                images at once; the run's eval.batch_size by default; it never changes the result
  --tile=N                 the image at its own size, in tiles of N x N pixels that overlap, --batch of them at once;
                           without it an image is fitted to the run's data.size
  --threshold=0.5          objects of at least this score are drawn (instance models; detections.json has all)
  --annotations=FILE       a COCO JSON from which detections.json takes the numbers of images and classes
  --effect=portrait        besides, effects/*.png: people sharp, the rest out of focus; other classes than people:
  --effect_class=NAME      stays sharp; several after one another, too
  --compilation_cache=DIR  compiled programs are kept there (the run's own folder by default; "" for none)
  --config.KEY=VALUE       replaces one value of the run's config, such as data.size or data.fit
  --help                   this text

Files that cannot be read are named and left out, and the exit status is then 1.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from segjax import config as configs
from segjax.data import images
from segjax.data.metadata import Classes
from segjax.inference import effects, files, outcomes, protocol, tiled_images, visualize, whole_image
from segjax.inference.progress import Progress
from segjax.training import devices, instance, parallel, tasks, trained
from segjax.types import HostArray, InputError, Variables

_THREADS = 4  # that read and write beside the device
_SHEET_CELLS, _SHEET_COLUMNS, _CELL_WIDTH = 60, 4, 320


@dataclasses.dataclass
class _Results:
    """What is written beside the device's work: two groups of images are in memory at most."""

    output: pathlib.Path
    classes: Classes
    outcome: outcomes.ClassIds | outcomes.Objects
    on_sheet: frozenset[files.Job]
    pool: ThreadPoolExecutor
    pending: dict[files.Job, Future] = dataclasses.field(default_factory=dict)
    cells: dict[files.Job, visualize.Cell | None] = dataclasses.field(default_factory=dict)

    def add(self, jobs: Sequence[files.Job], pictures: Sequence[HostArray], predictions: Sequence[Any]) -> None:
        """Waits for the group before, then hands this one to the threads."""
        self.finish()
        for job, picture, prediction in zip(jobs, pictures, predictions, strict=True):
            self.pending[job] = self.pool.submit(self._write, job, picture, prediction)

    def finish(self) -> None:
        """Waits for what is being written."""
        for job, future in self.pending.items():
            self.cells[job] = future.result()
        self.pending = {}

    def _write(self, job: files.Job, picture: HostArray, prediction: Any) -> visualize.Cell | None:
        drawn = self.outcome.write(job, picture, prediction)
        if job not in self.on_sheet:
            return None
        small = Image.fromarray(drawn)
        small.thumbnail((_CELL_WIDTH, 2 * _CELL_WIDTH))
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        return visualize.Cell(np.asarray(small), f"{job.name.removesuffix('.png')}  {size}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and predicts.

    Returns:
        the exit status: 0; 1 where files could not be read; 2 where the user has something to mend; 130 where Ctrl-C
        ended it.
    """
    try:
        arguments, overrides = configs.parse(_parser(), sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(__doc__.strip())
            return 0
        for flag in ("workdir", "input", "output"):
            if not getattr(arguments, flag):
                raise InputError(f"--{flag} is missing; --help shows an example")
        return _predict(arguments, overrides)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what was written so far stays; the same command does all again", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segjax.predict", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--workdir", default="")
    parser.add_argument("--input", nargs="+", default=[])
    parser.add_argument("--output", default="")
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--tile", type=int, default=None)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--annotations", default="")
    parser.add_argument("--effect", default="")
    parser.add_argument("--effect_class", nargs="+", default=[])
    parser.add_argument("--compilation_cache", default=None)
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _predict(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    output = pathlib.Path(arguments.output)
    _, config, classes = trained.read(arguments.workdir, overrides)
    task = tasks.of(config)
    task.check_running(config)
    jobs = files.find(arguments.input, output)
    outcome = _outcome(arguments, config, classes, jobs)
    ema = config.eval.ema if arguments.ema is None else arguments.ema
    batch_size = config.eval.batch_size if arguments.batch is None else arguments.batch
    if batch_size < 1:
        raise InputError(f"--batch={batch_size}: expected at least 1")
    trained.start_devices(arguments.workdir, arguments.compilation_cache)
    module, variables, step = trained.restore(
        arguments.workdir, config, classes, which=arguments.checkpoint, ema=ema, warn=_warn
    )
    print(f"{len(jobs)} image{'s' * (len(jobs) != 1)}, checkpoint {step} of {arguments.workdir}")
    progress = Progress(len(jobs), "predicted", sys.stdout)
    predict = _make_predict(module, variables, config, batch_size, arguments.tile, progress)
    explained = devices.explained(config, key="eval.batch_size", flag="--batch", batch=batch_size)
    with explained, ThreadPoolExecutor(_THREADS) as pool:
        stride = -(-len(jobs) // _SHEET_CELLS)
        results = _Results(output, classes, outcome, frozenset(jobs[::stride]), pool)
        skipped = _run(jobs, batch_size, predict, results, progress)
        outcome.finish()
    _write_pages(results, f"{arguments.workdir}, checkpoint {step}", jobs, skipped)
    if skipped:
        print(f"{len(skipped)} of {len(jobs)} files could not be read:", *skipped, sep="\n  ", file=sys.stderr)
    return 1 if skipped else 0


def _outcome(
    arguments: argparse.Namespace, config: ConfigDict, classes: Classes, jobs: Sequence[files.Job]
) -> outcomes.ClassIds | outcomes.Objects:
    """What is to be made of each image."""
    if arguments.effect not in ("", "portrait"):
        raise InputError(f"--effect={arguments.effect}: expected portrait")
    if arguments.effect_class and not arguments.effect:
        raise InputError(f"--effect_class={' '.join(arguments.effect_class)} needs --effect=portrait")
    sharp = effects.class_ids(classes.names, arguments.effect_class) if arguments.effect else ()
    if not 0 <= arguments.threshold <= 1:
        raise InputError(f"--threshold={arguments.threshold}: expected a score from 0 to 1")
    output = pathlib.Path(arguments.output)
    if tasks.of(config) is instance:
        if arguments.tile is not None:
            raise InputError(f"--tile={arguments.tile} is of semantic models: objects would be cut at the tiles' edges")
        image_ids, category_ids = outcomes.numbers(jobs, classes, arguments.annotations)
        return outcomes.Objects(output, classes, image_ids, category_ids, arguments.threshold, sharp)
    if arguments.annotations:
        raise InputError(f"--annotations={arguments.annotations} is of instance models")
    if len(classes) > 256:
        raise InputError(f"{len(classes)} classes do not fit into a palette PNG, which holds 256")
    return outcomes.ClassIds(output, classes, sharp)


def _make_predict(
    module: Any, variables: Variables, config: ConfigDict, batch_size: int, tile: int | None, progress: Progress
) -> Callable[[Sequence[HostArray]], list[Any]]:
    """The function from images to objects, or to class ids, of the canvas or of tiles."""
    apply = module.apply
    if tasks.of(config) is instance:
        return instance.make_predict(config, module, variables, batch_size, parallel.make_mesh())
    options = {"mean": tuple(config.augment.mean), "std": tuple(config.augment.std), "batch_size": batch_size}
    rows, columns = (tile, tile) if tile else config.data.size
    if tile is not None:
        try:
            predict = tiled_images.make_predict_images(apply, variables, tile=tile, progress=progress.part, **options)
        except ValueError as error:
            raise InputError(f"--tile={tile}: {error}") from error
    else:
        canvas = {"size": tuple(config.data.size), "fit": config.data.fit, "mesh": parallel.make_mesh()}
        canvas["views"] = protocol.views(config)
        predict = whole_image.make_predict_images(apply, variables, **canvas, **options)
    print(f"compiling the model at {rows}x{columns}; this happens once ...", flush=True)
    return predict


def _run(
    jobs: Sequence[files.Job],
    batch_size: int,
    predict: Callable[[Sequence[HostArray]], list[Any]],
    results: _Results,
    progress: Progress,
) -> list[str]:
    """Reads, predicts and writes all; returns what is wrong with the files that could not be read."""
    skipped: list[str] = []
    done = 0
    for readable, pictures, failed in _read_ahead(jobs, batch_size, results.pool):
        for text in failed:
            progress.say(f"skipped: {text}")
        skipped += failed
        predictions = predict(pictures) if pictures else []
        results.add(readable, pictures, predictions)
        done += len(readable) + len(failed)
        progress(done)
    results.finish()
    return skipped


def _read_ahead(
    jobs: Sequence[files.Job], batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[files.Job], list[HostArray], list[str]]]:
    """Groups of (readable jobs, their images, what is wrong with the others), the next group being read meanwhile."""
    chunks = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    reading: list[list[Future]] = []
    for number, chunk in enumerate(chunks):
        for following in chunks[number + len(reading) : number + 2]:
            reading.append([pool.submit(images.read_image, job.source) for job in following])
        readable, pictures, failed = [], [], []
        for job, future in zip(chunk, reading.pop(0), strict=True):
            try:
                pictures.append(future.result())
                readable.append(job)
            except InputError as error:
                failed.append(str(error))
        yield readable, pictures, failed


def _write_pages(results: _Results, model: str, jobs: Sequence[files.Job], skipped: Sequence[str]) -> None:
    output, classes = results.output, results.classes
    legend = classes if isinstance(results.outcome, outcomes.ClassIds) else None  # objects have colours of their own
    done = [job for job in jobs if job in results.cells]
    shown = [results.cells[job] for job in done if results.cells[job] is not None]
    count = f"{len(done)} image{'s' * (len(done) != 1)}"
    try:
        if shown:
            part = count if len(shown) == len(done) else f"{len(shown)} of {count}"
            columns, title = min(_SHEET_COLUMNS, len(shown)), f"{part}: {model}"
            page = visualize.sheet(shown, columns=columns, classes=legend, title=title, cell_width=_CELL_WIDTH)
            visualize.save(output / files.SHEET, page)
        output.mkdir(parents=True, exist_ok=True)
        text = files.index_page(f"{count}: {model}", done, skipped, legend, results.outcome.links)
        (output / files.INDEX).write_text(text, encoding="utf-8")
        classes.write(output / "classes.json")
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error}") from error
    print(f"wrote {count} to {output}: {results.outcome.written}, {files.SHEET}, {files.INDEX}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
