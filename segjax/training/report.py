"""``report.html``: a run on one page that needs no other file and no network; written again at every evaluation."""

import base64
import html
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from segjax.training import report_figures as figures
from segjax.training.checkpoint_files import write_atomically
from segjax.training.report_page import PAGE
from segjax.training.retention import HEADLINES
from segjax.training.writer import read_metrics

REPORT = "report.html"
_PICTURE_BYTES = 400_000  # a larger picture goes in as JPEG
_MAX_PICTURES = 12
_PER_CLASS = {"val/iou/": "IoU", "val/ap/": "mask AP"}  # of a semantic model, of an instance model


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes the page from what lies in a workdir; whatever is not there yet is left out.

    Args:
      workdir: folder with metrics.jsonl, config.json, environment.json, classes.json, summary.json, pictures/*.png.

    Returns:
      The path of the page.
    """
    workdir = pathlib.Path(workdir)
    rows = read_metrics(workdir)
    settings, summary = _read_json(workdir / "config.json"), _read_json(workdir / "summary.json")
    title = str(settings.get("experiment", workdir.name))
    body = [
        f"<header><h1>{html.escape(title)}</h1><p>{_status(rows, settings, summary)}</p></header>",
        _tiles(rows),
        '<section class="charts">',
        _chart("Training loss", _series(rows, "train/loss"), smooth=True),
        _chart("Learning rate", _series(rows, "train/learning_rate"), low=0.0),
        _chart(f"Validation {_headline(rows)[1]}", _series(rows, _headline(rows)[0]), low=0.0, high=1.0),
        "</section>",
        _classes(rows, _read_json(workdir / "classes.json")),
        _pictures(sorted((workdir / "pictures").glob("*.png"))[:_MAX_PICTURES]),
        _next_commands(workdir, bool(summary), _read_json(workdir / "environment.json")),
        _details("Config", _flat(settings)),
        _details("Environment", _flat(_read_json(workdir / "environment.json"))),
        f"<footer>Written {time.strftime('%Y-%m-%d %H:%M:%S')} by segjax from {html.escape(str(workdir))}</footer>",
    ]
    page = PAGE.replace("{{title}}", html.escape(title)).replace("{{body}}", "\n".join(body))
    write_atomically(workdir / REPORT, page)
    return workdir / REPORT


def _status(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    step = max((row["step"] for row in rows), default=0)
    total = settings.get("train", {}).get("steps")
    if summary:
        return f'<span class="badge done">finished</span> {summary.get("step", step)} steps'
    of = f" of {total}" if total else ""
    return f'<span class="badge">not finished</span> step {step}{of} when this page was written'


def _tiles(rows: Sequence[Mapping[str, Any]]) -> str:
    """The numbers one looks for first."""
    key, name = _headline(rows)
    judged = _series(rows, key)
    best = max(judged, key=lambda point: point[1], default=None)
    last = judged[-1] if judged else None
    tiles = [
        (f"validation {name}", f"{last[1]:.4f}" if last else None, f"at step {last[0]}" if last else ""),
        (f"best {name}", f"{best[1]:.4f}" if best else None, f"at step {best[0]}" if best else ""),
        ("pixel accuracy", _last(rows, "val/pixel_accuracy", ".4f"), "validation"),
        ("box AP", _last(rows, "val/box_ap", ".4f"), "validation"),
        ("training loss", _last(rows, "train/loss", ".4f"), "last recorded"),
        ("speed", _last(rows, "train/images_per_second", ".1f"), "images per second"),
    ]
    cells = [
        f"<div><small>{name}</small><b>{value}</b><small>{note}</small></div>" for name, value, note in tiles if value
    ]
    return f'<section class="tiles">{"".join(cells)}</section>' if cells else ""


def _headline(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(key, name) of the number that judges this run."""
    found = [(f"val/{key}", name) for key, name in HEADLINES.items() if any(f"val/{key}" in row for row in rows)]
    return found[0] if found else ("val/miou", "score")


def _chart(title: str, points: figures.Points, **options: Any) -> str:
    last = f"<span>{points[-1][1]:.4g}</span>" if points else ""
    return f"<figure><figcaption>{title}{last}</figcaption>{figures.curve(points, label=title, **options)}</figure>"


def _classes(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, Any]) -> str:
    """Score of each class at the last evaluation, in the colours of the pictures."""
    scored = [(row, prefix) for row in rows for prefix in _PER_CLASS if any(key.startswith(prefix) for key in row)]
    if not scored:
        return ""
    last, prefix = scored[-1]
    names, score = [key.removeprefix(prefix) for key in last if key.startswith(prefix)], _PER_CLASS[prefix]
    palette = dict(zip(classes.get("classes", []), classes.get("colors", []), strict=False))
    bars = [
        (name, last[prefix + name], f"rgb({','.join(str(int(c)) for c in palette.get(name, (90, 130, 200)))})")
        for name in names
    ]
    return (
        f"<section><h2>{score} of each class <small>validation, step {last['step']}</small></h2>"
        f'<div class="bars">{figures.bars(bars, label=f"{score} of each class")}</div></section>'
    )


def _pictures(paths: Sequence[pathlib.Path]) -> str:
    if not paths:
        return ""
    items = [f'<img alt="{html.escape(path.stem)}" src="{_data_uri(path)}">' for path in paths]
    heading = "<h2>Predictions <small>validation images</small></h2>"
    return f'<section>{heading}<div class="pictures">{"".join(items)}</div></section>'


def _data_uri(path: pathlib.Path) -> str:
    content, kind = path.read_bytes(), "png"
    if len(content) > _PICTURE_BYTES:
        buffer, kind = io.BytesIO(), "jpeg"
        Image.open(path).convert("RGB").save(buffer, "JPEG", quality=88)
        content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _next_commands(workdir: pathlib.Path, finished: bool, environment: Mapping[str, Any]) -> str:
    commands = [
        ("score the best checkpoint", f"python -m segjax.evaluate --workdir={workdir}"),
        (
            "segment images",
            f"python -m segjax.predict --workdir={workdir} --input=IMAGES --output={workdir}/predictions",
        ),
        ("watch the curves", f"tensorboard --logdir={workdir}"),
    ]
    if not finished and environment.get("command"):
        commands.insert(0, ("continue this run, should it stop", environment["command"]))
    lines = [f"<li>{what}<pre>{html.escape(command)}</pre></li>" for what, command in commands]
    return f"<section><h2>What to type next</h2><ul>{''.join(lines)}</ul></section>"


def _details(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [f"<tr><th>{html.escape(key)}<td>{html.escape(_text(value))}" for key, value in values.items()]
    return f"<details><summary>{title}</summary><table>{''.join(rows)}</table></details>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [(step, float(value)) for step, value in found if math.isfinite(value)]


def _last(rows: Sequence[Mapping[str, Any]], name: str, form: str) -> str | None:
    series = _series(rows, name)
    return format(series[-1][1], form) if series else None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
