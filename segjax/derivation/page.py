"""The page of a proof: its text and its pictures in one folder."""

import html
import math
import pathlib
from collections.abc import Sequence

from PIL import Image

from segjax.derivation import matrix, pictures, region_pictures, regions, stamping
from segjax.derivation.cases import Case

_STYLE = """
:root { --ink: #1c1e24; --line: #dfe2e8; --paper: #ffffff; --good: #15803d; --bad: #b91c1c; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 27px; margin: 0 0 6px; }
h2 { font-size: 20px; margin: 40px 0 8px; border-top: 1px solid var(--line); padding-top: 22px; }
p { max-width: 78ch; margin: 6px 0; }
.verdict { font-weight: 600; }
.pass { color: var(--good); }
.fail { color: var(--bad); }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; padding: 12px 14px;
  border: 1px solid var(--line); border-radius: 8px; }
figure { margin: 14px 0; overflow-x: auto; }
img { height: auto; max-width: 100%; }
"""


def write(folder: pathlib.Path, case: Case, lines: Sequence[str], passed: bool) -> pathlib.Path:
    """Draws the pictures of a geometry and writes the page that holds them and the text.

    Args:
        folder: an existing folder; files of the same names are replaced.
        case: the geometry.
        lines: of the text, in order; a line that begins with "== " heads a section.
        passed: whether every error is within its bound.

    Returns:
        the path of index.html.

    Raises:
        OSError: a file cannot be written.
    """
    texts = _sections(lines)
    word = "pass" if passed else "fail"
    told = "Every error is within its bound." if passed else "An error exceeds its bound: see Result."
    body = [
        "<h1>A transposed convolution is the transpose of the convolution's matrix</h1>",
        f"<p>{html.escape(texts.pop('', '').strip())}</p>",
        f'<p class="verdict {word}">{word.upper()}. {told}</p>',
    ]
    geometry, errors, result = texts.values()
    titles = list(texts)
    body += [_section(titles[0], geometry), *_figures(folder, case), _section(titles[1], errors)]
    body.append(_section(titles[2], result))
    return _document(folder, case.label, body)


def write_regions(
    folder: pathlib.Path, found: dict[tuple[str, int], list[regions.Row]], lines: Sequence[str], passed: bool
) -> pathlib.Path:
    """Draws the pictures of a region under RoIPool and RoIAlign and writes the page that holds them and the text.

    Args:
        folder: an existing folder; files of the same names are replaced.
        found: {(kind of map, bins): rows of `regions.measure`}.
        lines: of the text, as in `write`.
        passed: whether the operations are those of their definitions.

    Returns:
        the path of index.html.

    Raises:
        OSError: a file cannot be written.
    """
    texts = _sections(lines)
    word = "pass" if passed else "fail"
    told = "Both operations equal their definitions." if passed else "An operation differs from its definition."
    body = [
        "<h1>RoIPool rounds a region, RoIAlign does not</h1>",
        f"<p>{html.escape(texts.pop('', '').strip())}</p>",
        f'<p class="verdict {word}">{word.upper()}. {told}</p>',
    ]
    (first, quantisation), (second, errors), (third, result) = texts.items()
    body.append(_section(first, quantisation))
    for bins in regions.BINS:
        picture = region_pictures.quantisation(bins)
        body.append(
            _figure(folder, f"quantisation{bins}", picture, f"what {bins} x {bins} bins read under three rules")
        )
    body += [_section(second, errors), _figure(folder, "errors", region_pictures.errors(found), "mean errors as bars")]
    body.append(_section(third, result))
    return _document(folder, "RoIPool and RoIAlign", body)


def _document(folder: pathlib.Path, title: str, body: Sequence[str]) -> pathlib.Path:
    path = folder / "index.html"
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>segjax.verify: {html.escape(title)}</title>\n<style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n",
        encoding="utf-8",
    )
    return path


def _figures(folder: pathlib.Path, case: Case) -> list[str]:
    parts = ["<h2>M and its transpose</h2>"]
    rows, columns = case.matrix_shape
    if rows + columns > matrix.MOST_PIXELS:
        parts.append(f"<p>M is {rows:,} x {columns:,}: too large to draw.</p>")
    else:
        parts.append(_figure(folder, "matrix", matrix.matrices(case), f"M and M.T, {rows} x {columns}"))
    parts.append("<h2>Stamping, step by step</h2>")
    if (count := math.prod(stamping.fewer_stamps(case).output)) > stamping.MOST_STAMPS:
        parts.append(f"<p>{count:,} stamps: too many to draw.</p>")
    else:
        parts.append(_figure(folder, "stamping", stamping.stamping(case), "each value of y stamps the kernel"))
    parts.append("<h2>How many taps reach a pixel</h2>")
    parts.append(_figure(folder, "checkerboard", pictures.checkerboard(case), "taps per pixel for three geometries"))
    parts.append("<h2>Ways to go up</h2>")
    parts.append(_figure(folder, "upsampling", pictures.upsamplings(), "five upsamplings of one image"))
    return parts


def _figure(folder: pathlib.Path, name: str, picture: Image.Image, words: str) -> str:
    picture.save(folder / f"{name}.png", optimize=True)
    size = f'width="{picture.width // 2}" height="{picture.height // 2}"'
    return f'<figure><img src="{name}.png" {size} alt="{html.escape(words)}"></figure>'


def _sections(lines: Sequence[str]) -> dict[str, str]:
    """{title: text}; the text before the first title under ""."""
    sections, title = {"": ""}, ""
    for line in "\n".join(lines).split("\n"):
        if line.startswith("== "):
            title = line.strip("= ")
            sections[title] = ""
        else:
            sections[title] += f"{line}\n"
    return sections


def _section(title: str, text: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n<pre>{html.escape(text.strip())}</pre>"
