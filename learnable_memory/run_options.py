"""What every run can be told: where things are, which data, and on what to compute. Standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from learnable_memory.options import NOT_EMPTY, Options, at_least, between, matching, option

PRECISIONS = ("float32", "bfloat16")
DATA_SET_NAMES = (
    "a data set by name (CIFAR100, Digits, ...), folder:PATH with a folder for each class, hf:NAME[:CONFIG] of the "
    "hub, parquet:PATH, vtab:NAME or fgvc:NAME"
)
SEED = between(0, 2**32 - 1)
DEVICE = matching(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", "auto, cpu, cuda, mps or xpu, with a number if wanted (cuda:1)")
# A head's name becomes part of file names and parameter names, and "base" is what the base model answers under.
HEAD_NAME = matching(
    r"(?!base$)[A-Za-z0-9][A-Za-z0-9_+-]*", "made of letters, digits, '_', '+' and '-', and not the word 'base'"
)


def default_workers() -> int:
    """Loading processes where nobody chose: one core is left to the model, and more than eight seldom help."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores - 1))


def head_name(dataset: str) -> str:
    """A data set's name as the name of a head.

    CIFAR100 stays, `folder:/data/cats` gives cats, `hf:someone/cats:large` cats-large, `vtab:dtd` vtab-dtd.

    Raises:
        ValueError: the data set's name gives no legal one.
    """
    kind, colon, argument = dataset.partition(":")
    if not colon and "/" in dataset:
        raise ValueError(f"--dataset is {dataset!r}, a path: write folder:{dataset}, or parquet:{dataset} for a table.")
    if not colon:
        name = dataset
    elif kind == "hf":
        source, _, configuration = argument.partition(":")
        name = "-".join(filter(None, (Path(source).name, configuration)))
    elif kind in ("vtab", "fgvc"):  # lists of images that have a name of their own too
        name = f"{kind}-{argument}"
    else:
        name = Path(argument).name.removesuffix(".parquet")
    if not HEAD_NAME.holds(name):
        raise ValueError(
            f"--dataset is {dataset!r}, and {name!r} cannot be the head's name, which has to be {HEAD_NAME.words}: "
            "give --name."
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Places(Options):
    """Where things are."""

    directory: Path = option(
        Path("~"),
        "where data sets (datasets/) and downloaded base models (ceng502/) are",
        flags=("-r", "--directory"),
        group="data",
    )
    no_download: bool = option(False, "stop where something is missing instead of downloading it", group="data")

    @property
    def base_cache(self) -> Path:
        """The HuggingFace cache of base models."""
        return self.directory / "ceng502"


@dataclass(frozen=True, kw_only=True)
class DataChoice(Options):
    """What `data.load_data_set` is asked for, besides the name."""

    split: str = option(
        "seeded",
        "what INaturalist and Sun are evaluated on: a fifth drawn with --split_seed, or the published lists",
        group="data",
        choices=("seeded", "official"),
    )
    split_seed: int = option(0, "draws the splits that a data set does not have itself", group="data", legal=SEED)
    image_column: str | None = option(
        None,
        "of hf:, parquet: and --labels; a column of paths too, which are relative to the folder of the data",
        group="data",
        legal=NOT_EMPTY,
        default_help="found by its type",
    )
    label_column: str | None = option(
        None,
        "of hf:, parquet: and --labels; by name, or by number from 1 where a list has no names of columns",
        group="data",
        legal=NOT_EMPTY,
        default_help="found by its type",
    )
    class_folders: str | None = option(
        None,
        "of folder:, what is a class. first: each folder, with all that is below it; deepest: each folder that has "
        "images of its own, at any depth",
        group="data",
        choices=("first", "deepest"),
        default_help="first, unless those look as if they were no classes",
    )
    label_files: tuple[str, ...] | None = option(
        None,
        "of folder:, lists of images and their labels (text, CSV, JSON lines): one a split, called so, or one with a "
        "split column; in the folder, or a path",
        flags=("--labels",),
        group="data",
        legal=NOT_EMPTY,
        default_help="the names of the folders",
    )

    @property
    def choices(self) -> dict[str, Any]:
        """These, without the split seed, as keywords of `data.load_data_set`."""
        return {field.name: getattr(self, field.name) for field in fields(DataChoice) if field.name != "split_seed"}


@dataclass(frozen=True, kw_only=True)
class Machine(Places):
    """What a machine has, and where things are on it; no result depends on it but by rounding."""

    workers: int = option(
        default_workers(),
        "processes that load images",
        group="machine",
        legal=at_least(0),
        default_help="cores - 1, at most 8",
    )
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: cuda if there is one", group="machine", legal=DEVICE)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Machine):
    """What every run on images needs: where data is, and on what to compute."""

    batch_size: int = option(
        64, "batch size", flags=("-b", "--batch_size"), group="machine", legal=at_least(1), unit="images"
    )
    precision: str | None = option(
        None,
        "of the base and of what passes through it; what is learned is float32 always",
        group="machine",
        choices=PRECISIONS,
        default_help="float32; with trained heads that of their training",
    )
    compile: bool = option(False, "let torch.compile translate the model first (minutes)", group="machine")
    attn_implementation: str | None = option(
        None,
        "what computes the base's attention; flash_attention_2 needs its package, a GPU and bfloat16",
        group="machine",
        choices=("eager", "sdpa", "flash_attention_2"),
        default_help="sdpa, where HuggingFace has no other reason",
    )
