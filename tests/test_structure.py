"""The shape of the project: who may import whom, how long files are, what is declared, and what `--help` loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "learnable_memory").rglob("*.py"))
COMMANDS = sorted((ROOT / "learnable_memory" / "commands").glob("*.py"))
LIBRARY = [path for path in PACKAGE if path not in COMMANDS and path.name != "__main__.py"]
TOP_LEVEL = [ROOT / "vit.py", ROOT / "vit_train.py", ROOT / "vit_validation.py", ROOT / "vit_predict.py"]
STANDARD_LIBRARY_ONLY = [
    "__init__.py",
    "__main__.py",
    "config.py",
    "files.py",
    "headlog.py",
    "head_schema.py",
    "method_spec.py",
    "options.py",
    "public_names.py",
    "run_options.py",
    "runlog.py",
    "text_table.py",
    "train_options.py",
    "wording.py",
    "commands/__init__.py",
]
# Where the name to install is not the name to import.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, anywhere in it; `from x import y` counts as x and x.y.

    What stands below `if TYPE_CHECKING` is never imported, so it does not count.
    """
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *filter(None, [node.module])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def imported_from_project(path: Path) -> set[str]:
    """The project's own modules among them, without names inside modules."""
    modules = {name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in PACKAGE}
    modules |= {file.stem for file in ROOT.glob("*.py")}
    return imported(path) & modules - {"learnable_memory"}


def test_heads_is_a_leaf():
    below = {f"learnable_memory.{name}" for name in ("head_metadata", "head_schema", "legacy", "tensor_files")}
    assert imported_from_project(ROOT / "learnable_memory" / "heads.py") == below
    below = {"learnable_memory.pickles", "learnable_memory.wording"}
    assert imported_from_project(ROOT / "learnable_memory" / "legacy.py") == below
    below = {f"learnable_memory.{name}" for name in ("head_schema", "projections", "public_names", "wording")}
    assert imported_from_project(ROOT / "learnable_memory" / "head_metadata.py") == below
    assert imported_from_project(ROOT / "learnable_memory" / "head_schema.py") == {"learnable_memory.projections"}
    assert imported_from_project(ROOT / "learnable_memory" / "tensor_files.py") == {"learnable_memory.files"}
    for leaf in ("files", "projections", "public_names", "pickles", "wording"):
        assert imported_from_project(ROOT / "learnable_memory" / f"{leaf}.py") == set()


def test_the_model_stands_on_heads_alone():
    assert imported_from_project(ROOT / "vit.py") <= {"learnable_memory.heads", "learnable_memory.projections"}


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_never_imports_the_model_or_a_command(path):
    joined = {name for name in imported_from_project(path) if name.startswith(("vit", "learnable_memory.commands"))}
    assert joined == set()


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_command_lines_load_first_is_standard_library(name):
    assert imported_packages(ROOT / "learnable_memory" / name) <= sys.stdlib_module_names | {"learnable_memory"}


# vit.py is left out: the whole model in one file is what its readers expect.
@pytest.mark.parametrize("path", PACKAGE + TOP_LEVEL[1:], ids=name_of)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("path", PACKAGE + TOP_LEVEL, ids=name_of)
def test_functions_stay_short(path):
    long = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = node.end_lineno - first.lineno + 1  # a long docstring is no fault
            long += [f"{node.name}: {lines} lines"] if lines > 60 else []
    assert long == []


@pytest.mark.parametrize("path", [*LIBRARY, ROOT / "vit.py"], ids=name_of)
def test_the_library_does_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"] == []


def test_no_file_is_called_utils():
    assert [name_of(path) for path in PACKAGE if path.stem in ("utils", "helpers", "misc")] == []


def test_what_is_imported_is_declared():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    declared = {re.split(r"[<>=~!\[ ;]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    used = set().union(*(imported_packages(path) for path in PACKAGE + TOP_LEVEL))
    used -= sys.stdlib_module_names | {"learnable_memory"} | {path.stem for path in TOP_LEVEL}
    undeclared = {DISTRIBUTIONS.get(name, name) for name in used} - declared
    # What an optional extra installs is imported inside a function, by what needs it.
    lists = dict(re.findall(r"(?m)^([a-z]+) = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    extras = {name for extra, packages in lists.items() if extra != "test" for name in re.findall(r'"(\w+)', packages)}
    assert undeclared <= extras


def test_the_readme_shows_pictures_that_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(pictures) >= 5 and [name for name in pictures if not (ROOT / name).is_file()] == []


# Runs a command line as a shell would, then tells what it has loaded: no clock, since a busy machine proves nothing.
LOADED_BY = """
import runpy, sys
target, sys.argv = sys.argv[1], sys.argv[1:]
sys.path.insert(0, "")
try:
    if target.endswith(".py"):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__")
except SystemExit as ended:
    heavy = {"torch", "torchvision", "transformers", "numpy", "matplotlib", "PIL", "pyarrow", "sklearn"}
    print("exit", ended.code, "loaded", sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("command", "listed"),
    [
        (["vit_train.py", "--help"], ["--dataset", "--method", "--number_of_memory_tokens", "--max_steps"]),
        (["vit_validation.py", "--help"], ["--models-list", "--models_list", "--output"]),
        (["vit_predict.py", "--help"], ["IMAGE", "--heads", "--attention"]),
        (["learnable_memory", "--help"], ["demo", "figures"]),
        (["learnable_memory", "figures", "--help"], ["--output"]),
        (["learnable_memory", "demo", "--help"], []),
        (["learnable_memory", "data", "--help"], ["NAME", "--check"]),
        (["learnable_memory", "data", "suspects", "--help"], ["FILE", "--most", "--models_folder"]),
        (["learnable_memory", "bases", "--help"], ["MODEL", "--image_size"]),
        (["learnable_memory", "heads", "--help"], ["show", "merge", "split", "convert", "push", "fetch"]),
        (["learnable_memory", "heads", "merge", "--help"], ["FILE", "--output", "--overwrite"]),
        (["learnable_memory", "experiments", "--help"], ["run", "report", "cost"]),
        (["learnable_memory", "experiments", "run", "--help"], ["CARD", "--only", "--smoke"]),
        (["learnable_memory", "export", "--help"], ["--heads", "--format", "--tolerance"]),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(command, listed):
    ran = subprocess.run([sys.executable, "-c", LOADED_BY, *command], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("usage: ")
    assert ran.stdout.splitlines()[-1] == "exit 0 loaded []"
    assert [word for word in listed if word not in ran.stdout] == []


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["vit_train.py", "--dataset", "Digits", "--epochs", "0"], "--epochs is 0, but it has to be 1 or more."),
        (["vit_validation.py"], "the following arguments are required: -m/--models-list/--models_list"),
        (["vit_predict.py", "a.png"], "the following arguments are required: --heads"),
        (["-m", "learnable_memory", "dance"], "argument COMMAND: invalid choice: 'dance'"),
        (["-m", "learnable_memory", "figures", "--output"], "argument --output: expected one argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_exit_code_2(command, error):
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert error in ran.stderr
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr


def test_a_reader_that_stops_reading_is_no_error():
    code = "from learnable_memory.commands import run_command\n"
    code += "def main(argv):\n    for _ in range(100_000): print('a line')\n"
    code += "raise SystemExit(run_command(main, []))"
    ran = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert ran.stdout.readline() == "a line\n"
    ran.stdout.close()
    assert ran.stderr.read() == "" and ran.wait() == 141
