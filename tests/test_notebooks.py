"""The notebooks: stored as a whole run left them, without noise, and still running from a clean kernel."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for folder in ("mnist", "notebooks") for path in (ROOT / folder).glob("*.ipynb"))
MOST_BYTES = 1_500_000
CELL_TIMEOUT = 900  # seconds; far above what a cell takes, since the machine may be busy
DRAWING = {"display", "Picture", "imshow"}  # calls that show something, print aside
NOISE = {
    "a path of a machine": r"(?<![\w.])/(tmp|home|root|work|Users|mnt|opt|usr|var|private)/",
    "a warning": r"Warning\b",
    "a progress bar": r"\d%\||it/s\]|\[\d\d:\d\d<|\r",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell: NotebookNode) -> Iterator[str]:
    """What a cell has printed or displayed, pictures aside."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def parsed(source: str) -> ast.Module:
    """Python without the lines that only IPython reads."""
    return ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))


def calls_at_once(node: ast.AST) -> Iterator[str]:
    """The names of what is called while the cell runs, not inside the functions that it defines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(child, ast.Call):
            yield getattr(child.func, "id", None) or getattr(child.func, "attr", "")
        yield from calls_at_once(child)


def shows_something(source: str) -> bool:
    """Whether a cell must have an output: it prints, draws, runs a command, or ends in a value that is no call."""
    tree = parsed(source)
    called = set(calls_at_once(tree))
    ends_in_value = bool(tree.body) and isinstance(tree.body[-1], ast.Expr)
    ends_in_value = ends_in_value and not isinstance(tree.body[-1].value, (ast.Call, ast.Await))
    return bool({"print", *DRAWING} & called) or ends_in_value or bool(re.search(r"(?m)^\s*!", source))


def names_of_the_library() -> set[str]:
    """Functions and classes of vit.py and the package that can be imported."""
    modules = [ROOT / "vit.py", *(ROOT / "learnable_memory").rglob("*.py")]
    bodies = (ast.parse(module.read_text(encoding="utf-8")).body for module in modules)
    return {node.name for body in bodies for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_all_four_are_there():
    names = {"mnist/mnist.ipynb", "notebooks/large-vit.ipynb", "notebooks/model_concatenate.ipynb"}
    assert {name_of(path) for path in NOTEBOOKS} == names | {"notebooks/vit.ipynb"}


@each_notebook
def test_is_a_valid_notebook_for_any_python(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells if "execution" in cell.metadata] == []  # times of the run
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_is_stored_as_one_run_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells if any(output.output_type == "error" for output in cell.outputs)] == []
    assert [cell.source for cell in cells if shows_something(cell.source) and not cell.outputs] == []
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert pictures > 0


@each_notebook
def test_has_no_noise(path):
    notebook = read(path)
    texts = [cell.source for cell in notebook.cells]
    texts += [text for cell in code_cells(notebook) for text in texts_of(cell)]
    found = [(what, match[0]) for what, noise in NOISE.items() for text in texts if (match := re.search(noise, text))]
    assert found == []
    errors = [output.text for cell in code_cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert errors == []


@each_notebook
def test_defines_nothing_that_the_library_has(path):
    trees = [parsed(cell.source) for cell in code_cells(read(path))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert defined & names_of_the_library() == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", False),
        ("def f():\n    print(1)", False),
        ("for i in y:\n    print(i)", True),
        ("Picture('a.png')", True),
        ("x = 1\nx", True),
        ("train(model)", False),
        ("!ls", True),
        ("%cd runs", False),
    ],
)
def test_a_cell_that_shows_something_is_known(source, expected):
    assert shows_something(source) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("written to /tmp/x/head.safetensors", "a path of a machine"),
        ("see https://example.org/a/tmp/b and runs/tmp/c", None),
        ("FutureWarning: old", "a warning"),
        ("epoch 1:  10%|█  | 3/30", "a progress bar"),
        ("top-1 91.6, 340 images/s", None),
    ],
)
def test_noise_is_known(text, what):
    assert [name for name, noise in NOISE.items() if re.search(noise, text)] == ([what] if what else [])


# ------------------------------------------------------------------------------------------------------------- running
def state_of_the_tree() -> set[str]:
    """What git sees: files that are changed, new or ignored; a notebook may write into runs/ alone."""
    command = ["git", "--no-optional-locks", "status", "--porcelain", "--ignored", "--untracked-files=all"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line for line in lines if not line.startswith("!! runs/") and "__pycache__" not in line}


@pytest.mark.release
@each_notebook
def test_runs_offline_and_leaves_the_tree_as_it_is(path, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):  # a user's own kernels, settings and history stay out of it
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None

    before = state_of_the_tree()
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources=folder).execute()
    assert state_of_the_tree() == before
