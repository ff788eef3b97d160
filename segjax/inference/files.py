"""Which images are meant, where their predictions go, and how these are written."""

import dataclasses
import glob
import html
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from segjax.data import images as image_files
from segjax.data.metadata import Classes
from segjax.inference import visualize
from segjax.types import HostArray, InputError

LABELS, OVERLAYS, EFFECTS, SHEET, INDEX = "labels", "overlays", "effects", "sheet.png", "index.html"
DETECTIONS = "detections.json"
_PALETTE_SIZE = 256  # of a palette PNG


@dataclasses.dataclass(frozen=True)
class Job:
    """One image to predict.

    Attributes:
        source: the image file.
        name: path of the results below the output folders, such as ``a/x.png``.
    """

    source: pathlib.Path
    name: str


def find(inputs: Sequence[str], output: str | os.PathLike) -> list[Job]:
    """Expands files, folders (with all below them) and glob patterns.

    Results are named by the part of the path that the inputs do not share, so that equal names in different folders
    stay apart; files of one folder that differ in their suffix alone keep it (``x.jpg.png``).

    Args:
        inputs: files, taken whatever their suffix; folders and patterns, of which pictures are taken.
        output: the folder of the results; what lies in it is no input of a folder or pattern.

    Returns:
        jobs in the order of the inputs, sorted within a folder or pattern, no file twice.

    Raises:
        InputError: nothing there, no picture in it, or a result would replace an input.
    """
    output = pathlib.Path(output).absolute()
    sources = list(dict.fromkeys(path for text in inputs for path in _expand(text, output)))
    common = pathlib.Path(os.path.commonpath([path.parent for path in sources]))
    names, taken = [], set()
    stems = [str(path.relative_to(common).with_suffix("")).casefold() for path in sources]
    for path, stem in zip(sources, stems, strict=True):
        relative = path.relative_to(common)
        name = relative.with_suffix(".png") if stems.count(stem) == 1 else relative.with_name(f"{relative.name}.png")
        while str(name).casefold() in taken:
            name = name.with_name(f"{name.stem}_.png")
        taken.add(str(name).casefold())
        names.append(name.as_posix())
    real = {path.resolve() for path in sources}
    for name in [f"{folder}/{name}" for folder in (LABELS, OVERLAYS, EFFECTS) for name in names] + [SHEET, INDEX]:
        if (output / name).resolve() in real:
            raise InputError(f"--output={output} would replace the input {output / name}: choose another folder")
    return [Job(path, name) for path, name in zip(sources, names, strict=True)]


def write(output: pathlib.Path, job: Job, image: HostArray, prediction: HostArray, classes: Classes) -> HostArray:
    """Writes the palette PNG of class ids and the overlay of one image.

    Args:
        output: the folder of the results.
        job: of ``find``.
        image: u8[H, W, 3].
        prediction: class ids [H, W], all below 256.
        classes: names and colours.

    Returns:
        the overlay without its legend, u8[H, W, 3].

    Raises:
        InputError: a file cannot be written.
    """
    palette = np.zeros((_PALETTE_SIZE, 3), np.uint8)
    palette[: len(classes)] = classes.palette
    picture = visualize.overlay(image, prediction, classes.palette)
    try:
        (output / LABELS / job.name).parent.mkdir(parents=True, exist_ok=True)
        ids = Image.fromarray(prediction.astype(np.uint8))  # mode L, which a palette turns into P
        ids.putpalette(palette.tobytes())
        ids.save(output / LABELS / job.name, format="PNG")
    except OSError as error:
        raise InputError(f"cannot write the results of {job.source} to {output}: {error}") from error
    write_picture(output, OVERLAYS, job, visualize.with_legend(picture, prediction, classes))
    return picture


def write_picture(output: pathlib.Path, folder: str, job: Job, picture: HostArray) -> None:
    """Writes u8[H, W, 3] as the picture of a job in a folder of the results; InputError where that cannot be."""
    try:
        (output / folder / job.name).parent.mkdir(parents=True, exist_ok=True)
        visualize.save(output / folder / job.name, picture)
    except OSError as error:
        raise InputError(f"cannot write the results of {job.source} to {output}: {error}") from error


def index_page(
    title: str, jobs: Sequence[Job], skipped: Sequence[str], classes: Classes | None, links: Mapping[str, str]
) -> str:
    """A page of all overlays with links to the files, and the list of the files that could not be read.

    Args:
        title: of the page.
        jobs: that were predicted.
        skipped: what is wrong with each file that was not.
        classes: for the legend; None: none.
        links: {what a person calls them: folder} of the other files of each job.
    """
    chips = "".join(
        f'<span><i style="background:rgb({r},{g},{b})"></i>{html.escape(name)}</span>'
        for name, (r, g, b) in (zip(classes.names, classes.palette.tolist(), strict=True) if classes else ())
    )
    figures = "\n".join(_figure(job, links) for job in jobs)
    missing = "".join(f"<li>{html.escape(text)}</li>" for text in skipped)
    failed = f"<h2>Not read: {len(skipped)}</h2><ul>{missing}</ul>" if skipped else ""
    return _PAGE.format(title=html.escape(title), chips=chips, figures=figures, failed=failed)


def _expand(text: str, output: pathlib.Path) -> Iterable[pathlib.Path]:
    path = pathlib.Path(text).expanduser()
    if path.is_file():
        return [path.absolute()]
    matches = path.rglob("*") if path.is_dir() else map(pathlib.Path, glob.glob(str(path), recursive=True))
    found = []
    for match in sorted(matches):
        inside = match.rglob("*") if match.is_dir() and not path.is_dir() else [match]
        found += [file.absolute() for file in sorted(inside) if file.suffix.lower() in image_files.SUFFIXES]
    pictures = [file for file in found if file.is_file() and output not in file.parents]
    if not pictures:
        known = ", ".join(image_files.SUFFIXES)
        what = "holds no picture" if path.is_dir() else "is no file and no folder, and as a pattern matches no picture"
        raise InputError(f"--input={text} {what} ({known})")
    return pictures


def _figure(job: Job, links: Mapping[str, str]) -> str:
    overlay = urllib.parse.quote(f"{OVERLAYS}/{job.name}")
    name = html.escape(job.name.removesuffix(".png"))
    others = [f'<a href="{urllib.parse.quote(f"{folder}/{job.name}")}">{text}</a>' for text, folder in links.items()]
    return (
        f'<figure><a href="{overlay}"><img loading="lazy" src="{overlay}" alt="{name}"></a>'
        f"<figcaption>{' '.join([name, *others])}</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1c1e24; background: #fff; }}
h1 {{ font-size: 1.3rem; font-weight: 600; }} h2 {{ font-size: 1.05rem; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1rem 0 1.5rem; }}
.legend i {{ display: inline-block; width: 1.1em; height: .85em; margin-right: .45em; border: 1px solid #d6d8de; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; }} img {{ width: 100%; display: block; }}
figcaption {{ color: #6e727c; font-size: .85rem; overflow-wrap: anywhere; }} figcaption a {{ color: inherit; }}
</style></head><body>
<h1>{title}</h1>
<div class="legend">{chips}</div>
{failed}
<div class="grid">
{figures}
</div>
</body></html>
"""
