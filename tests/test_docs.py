"""The documentation: every public name has a docstring, every link leads somewhere, and the site is built from both."""

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from learnable_memory.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
CODE = [ROOT / "vit.py", *sorted((ROOT / "learnable_memory").rglob("*.py"))]
SHAPE = re.compile(r"\[[^\]]*\]")
BY_NAME = re.compile(r"\b(Mapping|dict)\[str, (torch\.)?Tensor\]")  # whose shapes belong to the names
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
DIRECTIVE = re.compile(
    r"^::: (\S+)\n(?:    options:\n(?:      \S.*\n)*      members:(?: \[(.*?)\]|\n((?:        - \w+\n)+)))?", re.M
)  # the module, and its members in one line or in several
Definition = ast.ClassDef | ast.FunctionDef


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------------------------------------------------- docstrings
def public(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node


def definitions(path: Path) -> Iterator[tuple[str, Definition, str]]:
    """Public classes, functions and methods of a file: name, definition, and the docstring of the class around it.

    What a protocol of the same file says of its methods is said of all who have them.
    """
    tree = parsed(path)
    protocols = [node for node in public(tree.body) if "Protocol" in map(ast.unparse, getattr(node, "bases", ()))]
    promised = {method.name for protocol in protocols for method in public(protocol.body)}
    for node in public(tree.body):
        yield node.name, node, ""
        if isinstance(node, ast.ClassDef):
            for method in public(node.body):
                if node in protocols or method.name not in promised:
                    yield f"{node.name}.{method.name}", method, ast.get_docstring(node) or ""


DEFINITIONS = [(path, *found) for path in CODE for found in definitions(path)]


def takes_or_gives_tensors(node: ast.FunctionDef) -> bool:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    annotations = [*(argument.annotation for argument in arguments), node.returns]
    text = " ".join(ast.unparse(annotation) for annotation in annotations if annotation)
    return re.search(r"\bTensor\b", BY_NAME.sub("", text)) is not None


def test_every_public_name_has_a_docstring():
    silent = [name_of(path) for path in CODE if not ast.get_docstring(parsed(path))]
    silent += [f"{name_of(path)}: {name}" for path, name, node, _ in DEFINITIONS if not ast.get_docstring(node)]
    assert silent == []


def test_what_takes_or_gives_tensors_says_their_shapes():
    silent = [
        f"{name_of(path)}: {name}"
        for path, name, node, around in DEFINITIONS
        if isinstance(node, ast.FunctionDef)
        and takes_or_gives_tensors(node)
        and not SHAPE.search((ast.get_docstring(node) or "") + around)
    ]
    assert silent == []


def test_sections_of_docstrings_are_read_as_they_are_meant():
    """A colon in the first line of Returns would make a type of what stands before it, and Attributes know one name."""
    for path, name, node, _ in DEFINITIONS:
        text = ast.get_docstring(node) or ""
        first = re.search(r"^Returns:\n +(.*)", text, re.M)
        assert not (first and ":" in first[1]), f"{name_of(path)}: {name}"
        attributes = re.search(r"^Attributes:\n((?: +.*\n?)+)", text, re.M)
        assert not (attributes and re.search(r"^    \w+, \w.*:", attributes[1], re.M)), f"{name_of(path)}: {name}"


# --------------------------------------------------------------------------------------------------------------- pages
def text_of(page: Path) -> str:
    """Without code blocks, in which brackets are no links."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


OTHERS = ["README.md", "CONTRIBUTING.md", "mnist/README.md", "notebooks/README.md"]


def test_links_lead_somewhere():
    broken = []
    for page in [*PAGES, *(ROOT / name for name in OTHERS)]:
        for link in LINK.findall(text_of(page)):
            place, _, anchor = link.partition("#")
            target = (page.parent / place).resolve() if place else page
            if not target.is_file() or (anchor and anchor not in anchors_of(target)):
                broken.append(f"{name_of(page)}: {link}")
    assert broken == []


def nav_pages(entries: list) -> Iterator[str]:
    for entry in entries:
        value = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [value] if isinstance(value, str) else nav_pages(value)


def test_the_menu_has_every_page_once():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(nav_pages(menu)) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_the_reference_names_what_is_there():
    """mkdocstrings leaves out without a word what it does not find."""
    for page in REFERENCE:
        directives = DIRECTIVE.findall(page.read_text(encoding="utf-8"))
        assert bool(directives) == (page.stem != "commands"), name_of(page)
        for module, in_a_line, in_lines in directives:
            path = ROOT / f"{module.replace('.', '/')}.py"
            if not path.exists():
                path = path.with_suffix("") / "__init__.py"
            tree = parsed(path)
            there = {node.name for node in public(tree.body)}
            there |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
            members = re.findall(r"\w+", in_a_line or in_lines)
            assert members and set(members) <= there, module


def test_every_command_is_on_the_page_of_commands():
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\{help: (.+)\}$", text, re.M)
    assert {"vit_train.py", "vit_validation.py", "vit_predict.py", "-m learnable_memory"} <= set(shown)
    assert {command.split()[2] for command in shown if command.startswith("-m learnable_memory ")} == set(COMMANDS)


@pytest.mark.release
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stderr
    assert (tmp_path / "repository" / "images" / "two_streams.png").is_file()
    model = (tmp_path / "reference" / "model.html").read_text(encoding="utf-8")
    assert 'id="vit.MemoryCapableViT.forward"' in model and "[B, N, D]" in model
    assert "--number_of_memory_tokens" in (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"(https?:[^\"]+)", page.read_text("utf-8")
        )
        assert [url for url in loaded if "canonical" not in url] == [], page.name
