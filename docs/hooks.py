"""What mkdocs does not do by itself: links out of docs/, and the help of the command lines.

Pages link to pictures, code and reports by their places in the repository, so that the links hold on GitHub. What they
link to, and nothing else, is part of the site under `repository/`. A line `{help: vit_train.py}` of a page becomes what
that command line prints for `--help`.
"""

import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[/#])([^)#\s]+)")  # the relative path of a Markdown link
HELP = re.compile(r"^\{help: (.+)\}$", re.MULTILINE)
HELP_COLUMNS = "100"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/ and is linked to from within, directly or over a page that is added."""
    pages = [file.src_uri for file in files if file.is_documentation_page()]
    while pages:
        for uri in linked(pages.pop(), Path(config.docs_dir)):
            if files.get_file_from_path(uri) is None:
                place = posixpath.join("repository", uri.removeprefix("../"))
                page = uri.endswith(".md")
                dest = place.removesuffix(".md") + ".html" if page else place
                where = config.docs_dir, config.site_dir, config.use_directory_urls
                files.append(File(uri, *where, dest_uri=dest, inclusion=InclusionLevel.NOT_IN_NAV))
                pages += [uri] * page
    return files


def linked(page: str, docs: Path) -> Iterator[str]:
    """The files outside docs/ that a page links to; both are named by their paths from docs/."""
    for link in LINK.findall((docs / page).read_text(encoding="utf-8")):
        uri = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
        if uri.startswith("../") and not uri.startswith(f"../{docs.name}/") and (docs / uri).is_file():
            yield uri


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Links into docs/ from a page outside it, and the help of command lines."""
    uri = page.file.src_uri
    if uri.startswith("../"):
        markdown = LINK.sub(lambda link: from_docs(uri, link[1], Path(config.docs_dir).name), markdown)
    return HELP.sub(lambda match: f"```text\n{help_of(match[1].split())}\n```", markdown)


def from_docs(page: str, link: str, docs: str) -> str:
    """A link of a page outside docs/: one to a page within as mkdocs wants it, `/design.md`; others as they are."""
    uri = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return uri.removeprefix(f"../{docs}") if uri.startswith(f"../{docs}/") else link


def help_of(command: list[str]) -> str:
    """What `python COMMAND --help` prints. Raises CalledProcessError if it prints none."""
    environment = {**os.environ, "COLUMNS": HELP_COLUMNS, "NO_COLOR": "1"}
    root = Path(__file__).resolve().parent.parent
    ran = [sys.executable, *command, "--help"]
    return subprocess.run(ran, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout.strip()
