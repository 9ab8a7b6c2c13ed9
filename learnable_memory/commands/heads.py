"""`python -m learnable_memory heads SUBCOMMAND`: look at head files, put them together, take apart, exchange."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from learnable_memory.config import HEAD_NAME, ModelsFolder, Places
from learnable_memory.options import NOT_EMPTY, Options, Rule, first_word, option, parse

PROG = "python -m learnable_memory heads"
HEAD_FILE = Rule(lambda path: path.suffix == ".safetensors", "a file name ending in .safetensors")
FILE_HELP = "a head file, or the name of a head in --models_folder"


@dataclass(frozen=True, kw_only=True)
class ShowOptions(ModelsFolder):
    """What is to be looked at."""

    files: tuple[str, ...] = option(
        help="head files, folders of them, or names of heads in --models_folder", flags=("FILE",), legal=NOT_EMPTY
    )
    json: bool = option(False, "print JSON instead of a table; nothing is cut short in it")


@dataclass(frozen=True, kw_only=True)
class MergeOptions(ModelsFolder):
    """What is to be put together."""

    files: tuple[str, ...] = option(
        help="head files, or names of heads in --models_folder", flags=("FILE",), legal=NOT_EMPTY
    )
    output: Path = option(help="the file to write", flags=("-o", "--output"), legal=HEAD_FILE)
    overwrite: bool = option(False, "replace the file if it exists")


@dataclass(frozen=True, kw_only=True)
class SplitOptions(ModelsFolder):
    """What is to be taken apart."""

    file: str = option(help=FILE_HELP, flags=("FILE",), legal=NOT_EMPTY)
    output: Path | None = option(
        None, "the folder to write to", flags=("-o", "--output"), default_help="that of the file"
    )
    heads: tuple[str, ...] | None = option(None, "only these", legal=NOT_EMPTY, default_help="all")
    overwrite: bool = option(False, "replace files that exist")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Places):
    """Which file of the 2023 implementation, and what it does not say itself."""

    old: Path = option(help="the file to read, such as CIFAR100_model.pt", flags=("OLD",))
    new: Path = option(help="the file to write, ending in .safetensors", flags=("NEW",), legal=HEAD_FILE)
    names: tuple[str, ...] | None = option(
        None, "of the heads in it, parents first", legal=HEAD_NAME, default_help="from the file's name"
    )
    base_model: str | None = option(
        None,
        "compare the base in the file with this one: a name on the hub, a folder, or a checkpoint file",
        legal=NOT_EMPTY,
        default_help="not compared",
    )
    overwrite: bool = option(False, "replace the file if it exists")


@dataclass(frozen=True, kw_only=True)
class PushOptions(ModelsFolder):
    """What is to be published, and where."""

    file: str = option(help=FILE_HELP, flags=("FILE",), legal=NOT_EMPTY)
    repo: str = option(
        help="a repository on the hub, OWNER/NAME, or an existing folder to look at first",
        flags=("REPO",),
        legal=NOT_EMPTY,
    )
    private: bool = option(False, "if the repository is made: only its owner sees it")
    license: str | None = option(None, "for the model card, such as mit", legal=NOT_EMPTY, default_help="none")
    revision: str | None = option(None, "a branch", legal=NOT_EMPTY, default_help="main")
    commit_message: str | None = option(None, "of the upload", legal=NOT_EMPTY, default_help="names the file")
    create_pr: bool = option(False, "propose it as a pull request")
    overwrite_card: bool = option(False, "replace a README.md that somebody has written or edited")


@dataclass(frozen=True, kw_only=True)
class FetchOptions(Options):
    """What is to be fetched, and where it goes."""

    repo: str = option(
        help="a repository on the hub, OWNER/NAME, or a folder that stands for one", flags=("REPO",), legal=NOT_EMPTY
    )
    output: Path = option(Path("models"), "the folder to write to", flags=("-o", "--output"))
    filename: str | None = option(
        None, "which of several head files", legal=NOT_EMPTY, default_help="the only one there is"
    )
    revision: str | None = option(None, "a branch, tag or commit", legal=NOT_EMPTY, default_help="main")
    overwrite: bool = option(False, "replace the file if it exists")


class Subcommand(NamedTuple):
    """Its options, what it does, and the module with the function of its name, imported when it runs."""

    options: type[Options]
    meaning: str
    module: str = "learnable_memory.commands.head_files"


SUBCOMMANDS = {
    "show": Subcommand(
        ShowOptions,
        "look at head files: what they hold, and whether they can be put together",
        "learnable_memory.commands.heads_table",
    ),
    "merge": Subcommand(MergeOptions, "put the heads of several files into one file"),
    "split": Subcommand(SplitOptions, "write each head of a file as a file of its own"),
    "convert": Subcommand(ConvertOptions, "turn a file of the 2023 implementation into a head file"),
    "push": Subcommand(PushOptions, "publish a head file on the HuggingFace hub, with a model card"),
    "fetch": Subcommand(FetchOptions, "get a head file from the HuggingFace hub"),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the subcommand that `argv` names and return its exit code; None is success."""
    argv = list(sys.argv[1:] if argv is None else argv)
    meanings = {name: subcommand.meaning for name, subcommand in SUBCOMMANDS.items()}
    description = "Heads as files: look at them, put them together, take them apart, exchange them."
    name = first_word("subcommand", meanings, PROG, description, argv)
    subcommand = SUBCOMMANDS[name]
    sentence = f"{subcommand.meaning[0].upper()}{subcommand.meaning[1:]}."
    options = parse(subcommand.options, sentence, argv[1:], prog=f"{PROG} {name}")
    return getattr(importlib.import_module(subcommand.module), name)(options)
