"""The shape of the project: who may import whom, how long files are, what is declared, and what `--help` loads."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
# Where the name to install is not the name to import.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


MODULES = {name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in PACKAGE}
MODULES |= {file.stem for file in ROOT.glob("*.py")}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, anywhere in it; `from x import y` counts as x and x.y.

    What stands below `if TYPE_CHECKING` is never imported, so it does not count.
    """
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    waiting: list[ast.AST] = [parsed(path)]
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
    return imported(path) & MODULES - {"learnable_memory"}


def test_heads_is_a_leaf():
    below = {f"learnable_memory.{name}" for name in ("head_metadata", "head_schema", "legacy", "tensor_files")}
    assert imported_from_project(ROOT / "learnable_memory" / "heads.py") == below
    below = {"learnable_memory.ancestry", "learnable_memory.pickles", "learnable_memory.wording"}
    assert imported_from_project(ROOT / "learnable_memory" / "legacy.py") == below
    below = {f"learnable_memory.{name}" for name in ("head_schema", "projections", "public_names", "wording")}
    assert imported_from_project(ROOT / "learnable_memory" / "head_metadata.py") == below
    assert imported_from_project(ROOT / "learnable_memory" / "head_schema.py") == {"learnable_memory.projections"}
    assert imported_from_project(ROOT / "learnable_memory" / "tensor_files.py") == {"learnable_memory.files"}
    for leaf in ("ancestry", "files", "projections", "public_names", "pickles", "wording"):
        assert imported_from_project(ROOT / "learnable_memory" / f"{leaf}.py") == set()


def test_the_model_stands_on_heads_alone():
    below = tuple(f"learnable_memory.{name}" for name in ("ancestry", "heads", "projections", "model"))
    for path in (ROOT / "vit.py", *(ROOT / "learnable_memory" / "model").glob("*.py")):
        assert [name for name in imported_from_project(path) if not name.startswith(below)] == []


def test_the_library_never_imports_the_model_or_a_command():
    above = "vit", "learnable_memory.commands"
    assert [
        (name_of(path), name) for path in LIBRARY for name in imported_from_project(path) if name.startswith(above)
    ] == []


def test_what_command_lines_load_first_is_standard_library():
    legal = sys.stdlib_module_names | {"learnable_memory"}
    paths = [ROOT / "learnable_memory" / name for name in STANDARD_LIBRARY_ONLY]
    assert {name_of(path): more for path in paths if (more := imported_packages(path) - legal)} == {}


def test_files_stay_short():
    """400 lines; vit.py, which holds the method, 450."""
    counts = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE + TOP_LEVEL}
    assert {name: lines for name, lines in counts.items() if lines > (450 if name == "vit.py" else 400)} == {}


def test_functions_stay_short():
    long = []
    for path in PACKAGE + TOP_LEVEL:
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = node.end_lineno - first.lineno + 1  # a long docstring is no fault
                long += [f"{name_of(path)}: {node.name} has {lines} lines"] if lines > 60 else []
    assert long == []


def test_the_library_does_not_print():
    calls = [
        (path, node)
        for path in LIBRARY + TOP_LEVEL[:1]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
    ]
    assert [f"{name_of(path)}:{node.lineno}" for path, node in calls if ast.unparse(node.func) == "print"] == []


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


# --------------------------------------------------------------------------------------------------- what a shell sees
# Runs command lines one after another as a shell would, in one process: what one has loaded, the next ones have
# to answer for too. No clock, since a busy machine proves nothing.
RUN_EACH = """
import contextlib, importlib, io, json, runpy, sys
sys.path.insert(0, "")
for words in json.loads(sys.stdin.read()):
    sys.modules.pop("learnable_memory.__main__", None)
    printed, complained = io.StringIO(), io.StringIO()
    module, _, function = words[0].partition(":")
    sys.argv = words
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
        try:
            if function:
                getattr(importlib.import_module(module), function)()
            elif words[0].endswith(".py"):
                runpy.run_path(words[0], run_name="__main__")
            else:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            code = None
        except SystemExit as ended:
            code = ended.code
    heavy = {"torch", "torchvision", "transformers", "numpy", "matplotlib", "PIL", "pyarrow", "sklearn", "onnx"}
    print(json.dumps([code, printed.getvalue(), complained.getvalue(), sorted(heavy & sys.modules.keys())]))
"""
HELP = [  # command lines, and words that their help has to have
    (["vit_train.py"], ["--dataset", "--method", "--number_of_memory_tokens", "--max_steps"]),
    (["vit_validation.py"], ["--models-list", "--models_list", "--output"]),
    (["vit_predict.py"], ["IMAGE", "--heads", "--attention"]),
    (["learnable_memory"], ["demo", "figures"]),
    (["learnable_memory", "figures"], ["--output"]),
    (["learnable_memory", "demo"], []),
    (["learnable_memory", "data"], ["NAME", "--check"]),
    (["learnable_memory", "data", "suspects"], ["FILE", "--most", "--models_folder"]),
    (["learnable_memory", "bases"], ["MODEL", "--image_size"]),
    (["learnable_memory", "heads"], ["show", "merge", "split", "convert", "push", "fetch"]),
    (["learnable_memory", "heads", "merge"], ["FILE", "--output", "--overwrite"]),
    (["learnable_memory", "export"], ["--heads", "--format", "--tolerance", "--with_base"]),
    *(([function], []) for function in SCRIPTS.values()),
]
WRONG_USE = [  # command lines, and what they say to it
    (["vit_train.py", "--dataset", "Digits", "--epochs", "0"], "--epochs is 0, but it has to be 1 or more."),
    (["vit_validation.py"], "the following arguments are required: -m/--models-list/--models_list"),
    (["vit_predict.py", "a.png"], "the following arguments are required: --heads"),
    (["learnable_memory", "dance"], "argument COMMAND: invalid choice: 'dance'"),
    (["learnable_memory", "figures", "--output"], "argument --output: expected one argument"),
    *(([function, "--no_such_option"], "") for function in SCRIPTS.values()),
]


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, ...], tuple[int, str, str, list[str]]]:
    """Exit code, output, errors and heavy modules loaded of every command line above."""
    lines = [[*words, "--help"] for words, _ in HELP] + [words for words, _ in WRONG_USE]
    ran = subprocess.run(
        [sys.executable, "-c", RUN_EACH], cwd=ROOT, input=json.dumps(lines), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return {tuple(words): tuple(json.loads(line)) for words, line in zip(lines, ran.stdout.splitlines(), strict=True)}


def test_help_loads_nothing_heavy(answers):
    for words, listed in HELP:
        code, printed, complained, loaded = answers[(*words, "--help")]
        assert (code, complained, loaded) == (0, "", []), words
        assert printed.startswith("usage: "), words
        assert [word for word in listed if word not in printed] == [], words


def test_wrong_use_is_one_line_and_exit_code_2(answers):
    for words, error in WRONG_USE:
        code, printed, complained, loaded = answers[tuple(words)]
        assert (code, printed, loaded) == (2, "", []), words
        assert re.fullmatch(rf"[^\n]+: error: [^\n]*{re.escape(error)}[^\n]*\n", complained), complained


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
