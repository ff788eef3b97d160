"""docs/derivation.ipynb: its cells print what is stored in it.

The cells run in order in a fresh namespace, without Jupyter. After a change to the notebook's code,

    python tests/test_notebook.py --write

runs them in the same way and stores what they print.
"""

import contextlib
import io
import json
import pathlib
import re
import sys

PATH = pathlib.Path(__file__).resolve().parents[1] / "docs" / "derivation.ipynb"


def read():
    return json.loads(PATH.read_text())


def run(notebook):
    """What each code cell prints, in order."""
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"{PATH.name}, cell {number}", "exec"), namespace)
            yield cell, printed.getvalue()


def stored(text):
    """The outputs of a cell that printed this."""
    return [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []


def write():
    notebook = read()
    for count, (cell, text) in enumerate(run(notebook), start=1):
        cell.update(execution_count=count, outputs=stored(text))
    PATH.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def test_cells_print_what_is_stored():
    for cell, text in run(read()):
        assert cell["outputs"] == stored(text), "".join(cell["source"])


def test_is_a_notebook_of_format_four():
    notebook = read()
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    assert notebook["metadata"]["language_info"]["name"] == "python"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in ids)
    common = {"cell_type", "id", "metadata", "source"}
    for cell in notebook["cells"]:
        is_code = cell["cell_type"] == "code"
        assert is_code or cell["cell_type"] == "markdown"
        assert set(cell) == common | ({"execution_count", "outputs"} if is_code else set())
        assert cell["metadata"] == {}
        lines = cell["source"]
        assert lines and all(line.endswith("\n") for line in lines[:-1]) and not lines[-1].endswith("\n")
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_pictures_exist():
    text = "".join("".join(cell["source"]) for cell in read()["cells"] if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) >= 4
    for target in targets:
        assert (PATH.parent / target).exists(), target


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/test_notebook.py --write")
    write()
