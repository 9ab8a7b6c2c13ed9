"""What a run can be told: the options of `vit_train.py` and `vit_validation.py`, checked when they are made.

The field's name is the flag's name; how fields become flags, checks and JSON is in options.py. Standard library only.

    options = parse(TrainOptions, "Train one head.", argv)       # wrong use: one line on stderr, exit code 2
    options = TrainOptions(dataset="Digits", epochs=3)           # wrong use: ValueError or TypeError
    TrainOptions(**to_dict(options)) == options                  # to_dict is what is saved with the results
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from learnable_memory.options import (
    FRACTION,
    NOT_EMPTY,
    Options,
    above,
    at_least,
    between,
    build_parser,
    matching,
    option,
    parse,
    to_dict,
)

__all__ = [
    "DataChoice",
    "HeadChoice",
    "ModelsFolder",
    "Places",
    "PredictOptions",
    "RunOptions",
    "TrainOptions",
    "ValidationOptions",
    "build_parser",
    "head_name",
    "parse",
    "to_dict",
]

DEFAULT_BASE = "google/vit-base-patch32-224-in21k"
GRID = "head (several values: a grid of heads, trained in one pass)"
REGIMES = ("memory", "head+class", "head")
PRECISIONS = ("float32", "bfloat16")
DATA_SET_NAMES = (
    "a data set by name (CIFAR100, Digits, ...), folder:PATH with a folder for each class, hf:NAME[:CONFIG] of the "
    "hub, parquet:PATH, vtab:NAME or fgvc:NAME"
)
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
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
        None, "of hf: and parquet:", group="data", legal=NOT_EMPTY, default_help="found by its type"
    )
    label_column: str | None = option(
        None, "of hf: and parquet:", group="data", legal=NOT_EMPTY, default_help="found by its type"
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions(Places):
    """What every run on images needs: where data is, and on what to compute."""

    batch_size: int = option(
        64, "batch size", flags=("-b", "--batch_size"), group="machine", legal=at_least(1), unit="images"
    )
    workers: int = option(
        default_workers(),
        "processes that load images",
        group="machine",
        legal=at_least(0),
        default_help="cores - 1, at most 8",
    )
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: cuda if there is one", group="machine", legal=DEVICE)
    precision: str | None = option(
        None,
        "of the base and of what passes through it; heads and optimizer are float32 always",
        group="machine",
        choices=PRECISIONS,
        default_help="float32; with trained heads that of their training",
    )
    compile: bool = option(False, "let torch.compile translate the model first (minutes)", group="machine")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataChoice, RunOptions):
    """What `vit_train.py` does: it trains one head on one data set, or a grid of them in one pass."""

    dataset: str = option(
        help=f"what to learn: {DATA_SET_NAMES}",
        flags=("-d", "--dataset"),
        group="data",
        legal=NOT_EMPTY,
    )
    on_bad_image: str = option(
        "stop",
        "what to do about an image that cannot be decoded. stop: the run ends and names it; skip: all images are "
        "looked at first, and such ones left out and counted",
        group="data",
        choices=("stop", "skip"),
    )

    base_model: str = option(
        DEFAULT_BASE, "the frozen ViT: a name on the hub, a folder, or a checkpoint file", group="head", legal=NOT_EMPTY
    )
    image_size: int | None = option(
        None, "side of the images", group="head", legal=at_least(1), unit="pixels", default_help="the base's own"
    )
    name: str | None = option(None, "its name", group="head", legal=HEAD_NAME, default_help="the data set's")
    number_of_memory_tokens: tuple[int, ...] | None = option(
        None,
        "memory tokens (the paper's cells) in each layer; 0 leaves class token and classifier",
        flags=("-m", "--number_of_memory_tokens"),
        group=GRID,
        legal=at_least(0),
        default_help="1",
    )
    regimes: tuple[str, ...] = option(
        ("memory",),
        "what is learned. memory: memory, class token and classifier; head+class: no memory, the same as -m 0; "
        "head: only a classifier on the base's class token, a linear probe",
        group=GRID,
        choices=REGIMES,
    )
    lr: tuple[float, ...] = option(
        (0.03,),
        "highest learning rate of SGD",
        group=GRID,
        legal=above(0),
    )
    seeds: tuple[int, ...] | None = option(
        None,
        "draw initial values",
        group=GRID,
        legal=SEED,
        default_help="that of --seed",
    )
    extends: tuple[str, ...] | None = option(
        None,
        "heads that it is built on: it sees their class tokens and memory too, and they stay as they are; names in "
        "--output, or files",
        group="head",
        legal=NOT_EMPTY,
        default_help="none",
    )
    memory_norm: bool = option(True, "pass the memory through each layer's first norm, as the paper does", group="head")

    epochs: int = option(20, "passes over the data", flags=("-e", "--epochs"), group="training", legal=at_least(1))
    momentum: float = option(0.9, "momentum of SGD", group="training", legal=FRACTION)
    clip: float = option(1.0, "scale gradients down to this norm", group="training", legal=above(0))
    warmup_steps: int = option(5, "linear warm-up", group="training", legal=at_least(0), unit="steps")
    max_steps: int | None = option(
        None,
        "stop here, with the cosine at zero",
        group="training",
        legal=at_least(1),
        unit="steps",
        default_help="the end of the last epoch",
    )
    seed: int = option(0, "stands for --seeds and --data_seeds where they are left out", group="training", legal=SEED)
    data_seeds: tuple[int, ...] | None = option(
        None,
        "draw order, augmentation and the selection split; each is a pass of its own",
        group="training",
        legal=SEED,
        default_help="that of --seed, with the selection split of --split_seed",
    )

    views: int | None = option(
        None,
        "random views of each image; 0: the evaluation view, no augmentation",
        group="training",
        legal=at_least(0),
        default_help="a new one in each epoch; 1 with a cache",
    )

    cache: str = option(
        "none",
        "keep what the heads need of the base, so that later epochs cost the heads only",
        group="cache",
        choices=("none", "memory", "disk"),
    )
    cache_dtype: str = option("float32", "of what is kept", group="cache", choices=("float32", "bfloat16", "float16"))
    cache_form: str = option(
        "keys_values",
        "keys_values: exact and fastest; tokens: half the size, more arithmetic",
        group="cache",
        choices=("keys_values", "tokens"),
    )
    cache_folder: Path | None = option(
        None, "where --cache disk keeps it", group="cache", default_help="cache/ in --directory"
    )

    checkpoint_steps: int = option(
        500, "write the state of the training that often", group="results", legal=at_least(1), unit="steps"
    )
    resume: bool = option(False, "go on where an interrupted run was; start if there is none", group="results")
    log_with: tuple[str, ...] | None = option(
        None,
        "also log to these, through accelerate",
        group="results",
        choices=("tensorboard", "wandb"),
        default_help="JSON lines only",
    )
    output: Path = option(Path("models"), "folder for the head, its curves and its log", group="results")
    keep_all: bool = option(False, "keep all heads of a grid, not only the best", group="results")
    overwrite: bool = option(False, "replace the results of an earlier run", group="results")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None:
            self._set("name", head_name(self.dataset))
        if self.number_of_memory_tokens is None:
            self._set("number_of_memory_tokens", (1,) if "memory" in self.regimes else (0,))
        elif "memory" not in self.regimes and self.number_of_memory_tokens != (0,):
            raise ValueError(
                f"--number_of_memory_tokens is {_list(self.number_of_memory_tokens)}, but --regimes "
                f"{_list(self.regimes)} has no memory: leave one of the two out."
            )
        if self.extends and "head" in self.regimes:
            raise ValueError("--extends needs class tokens, which linear probes do not have: leave --regimes head out.")
        if self.seeds is None:
            self._set("seeds", (self.seed,))
        if self.precision is None:
            self._set("precision", "float32")
        if self.views is None and self.cache != "none":
            self._set("views", 1)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite starts it anew: give one of them.")
        for name in ("number_of_memory_tokens", "regimes", "lr", "seeds", "data_seeds", "extends"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"--{name} is {_list(values)}: name each value once.")


def _list(values: tuple) -> str:
    return " ".join(map(str, values))


@dataclass(frozen=True, kw_only=True)
class ModelsFolder(Options):
    """Where heads are."""

    models_folder: Path = option(
        Path("models"), "where heads given by name are, and those that a head extends", group="heads"
    )


@dataclass(frozen=True, kw_only=True)
class HeadChoice(ModelsFolder):
    """What decides, beside their names, which heads are loaded, and on what."""

    base_model: str | None = option(
        None,
        "the frozen ViT: a name on the hub, a folder, or a checkpoint file",
        group="heads",
        legal=NOT_EMPTY,
        default_help="the one that the heads were trained on",
    )


@dataclass(frozen=True, kw_only=True)
class ValidationOptions(HeadChoice, RunOptions):
    """What `vit_validation.py` does: it puts heads together and evaluates each on its data set, in one model."""

    models_list: tuple[str, ...] = option(
        help="the heads to put together: names in --models_folder, or files, all of whose heads are evaluated",
        flags=("-m", "--models-list", "--models_list"),
        group="heads",
        legal=NOT_EMPTY,
    )
    number_of_memory_tokens: tuple[int, ...] | None = option(
        None,
        "how many memory tokens the heads must have: one number for all, or one for each",
        flags=("-t", "--number_of_memory_tokens"),
        group="heads",
        legal=at_least(0),
        default_help="not checked",
    )
    output: Path | None = option(None, "also write the table to this JSON file", group="results")

    def __post_init__(self) -> None:
        super().__post_init__()
        repeated = sorted({name for name in self.models_list if self.models_list.count(name) > 1})
        if repeated:
            raise ValueError(f"--models_list names {', '.join(repeated)} more than once: name each head once.")
        counts = self.number_of_memory_tokens
        if counts is not None and len(counts) not in (1, len(self.models_list)):
            raise ValueError(
                f"--number_of_memory_tokens has {len(counts)} numbers for {len(self.models_list)} heads: "
                "give one for all, one for each, or leave it out."
            )

    @property
    def expected_memory_tokens(self) -> tuple[int | None, ...]:
        """For each head of `models_list`, how many memory tokens it must have; None: any number."""
        counts = self.number_of_memory_tokens or (None,)
        return counts * len(self.models_list) if len(counts) == 1 else counts


@dataclass(frozen=True, kw_only=True)
class PredictOptions(HeadChoice, RunOptions):
    """What `vit_predict.py` does: it puts heads together and shows what each says of images, in one model."""

    images: tuple[str, ...] = option(
        help="image files, folders with such files in or below them, or patterns such as 'photos/*.jpg'; given first, "
        "before --heads",
        flags=("IMAGE",),
        group="images",
        legal=matching(r"(?s).+", "a file, a folder or a pattern"),
    )
    on_bad_image: str = option(
        "stop",
        "what to do about an image that cannot be decoded. stop: the run ends there and names it; skip: all images are "
        "looked at first, and such ones left out and named",
        group="images",
        choices=("stop", "skip"),
    )
    heads: tuple[str, ...] = option(
        help="the heads that answer: names in --models_folder, or files", group="heads", legal=NOT_EMPTY
    )
    with_base: bool = option(False, "also what the base's own classifier says", group="heads")
    top: int = option(5, "how many answers of each head", group="results", legal=at_least(1))
    json: bool = option(False, "one JSON object in a line for each image, instead of text", group="results")
    attention: Path | None = option(
        None, "draw where each head looks, and how much its memory weighs, to this .png, .pdf or .svg", group="results"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention and self.attention.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(
                f"--attention is {self.attention}, but it has to be a file ending in {', '.join(PICTURE_SUFFIXES)}."
            )
