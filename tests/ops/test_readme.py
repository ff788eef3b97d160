"""The derivation's README and the project's: the links lead to tests that exist, the code prints what is shown."""

import ast
import contextlib
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPS = ROOT / "segjax" / "ops" / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
pages = pytest.mark.parametrize("page", [OPS, ROOT / "README.md"], ids=["ops", "top"])


def prose(page):
    return FENCE.sub("", page.read_text())


def names_in(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def anchor(heading):
    """GitHub's: lower case, letters, digits, hyphens and underscores alone, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(page):
    text = prose(page)
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    targets = [target for _, target in LINK.findall(text)] + re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pages
def test_named_tests_exist(page):
    for name, target in LINK.findall(prose(page)):
        if name.startswith("test_") and not name.endswith(".py"):
            assert name in names_in(page.parent / target), f"{target} has no {name}"


def test_formulas_survive_markdown():
    """In inline formulas a backslash before punctuation is Markdown's, not LaTeX's."""
    formulas = re.findall(r"\$([^$]+)\$", re.sub(r"`[^`]*`", "", prose(OPS)))
    assert len(formulas) > 100
    for formula in formulas:
        assert not re.search(r"\\[^A-Za-z]", formula), formula
        assert formula == formula.strip() and "\n" not in formula, formula


def test_every_section_is_checked():
    sections = re.split(r"^## ", prose(OPS), flags=re.MULTILINE)[1:-1]  # the last lists sources
    assert len(sections) >= 10
    for section in sections:
        assert re.search(r"\[test_\w+\]", section), section.splitlines()[0]


def blocks(page):
    """(code, output) of each Python block that a text block follows; output None where none does."""
    text = page.read_text()
    fences = list(FENCE.finditer(text))
    for fence, following in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] == "python":
            shown = following and following[1] == "text" and not text[fence.end() : following.start()].strip()
            yield fence[2], following[2] if shown else None


@pages
def test_code_prints_what_is_shown(page):
    namespace, shown = {}, [block for block in blocks(page) if page == OPS or block[1] is not None]
    assert shown or page != OPS
    for code, output in shown:
        assert output is not None, f"no output under\n{code}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)
        assert printed.getvalue() == output, code
