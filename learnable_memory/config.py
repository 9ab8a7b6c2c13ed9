"""What a run can be told: the options of `vit_train.py` and `vit_validation.py`, checked when they are made.

The field's name is the flag's name; how fields become flags, checks and JSON is in options.py, what runs share in
run_options.py, and what training is told in train_options.py. Standard library only.

    options = parse(TrainOptions, "Train one head.", argv)       # wrong use: one line on stderr, exit code 2
    options = TrainOptions(dataset="Digits", epochs=3)           # wrong use: ValueError or TypeError
    TrainOptions(**to_dict(options)) == options                  # to_dict is what is saved with the results
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learnable_memory.options import NOT_EMPTY, Options, at_least, build_parser, matching, option, parse, to_dict
from learnable_memory.run_options import (
    DATA_SET_NAMES,
    HEAD_NAME,
    DataChoice,
    Machine,
    Places,
    RunOptions,
    default_workers,
    head_name,
)
from learnable_memory.train_options import DEFAULT_BASE, TrainOptions

__all__ = [
    "DATA_SET_NAMES",
    "DEFAULT_BASE",
    "HEAD_NAME",
    "DataChoice",
    "HeadChoice",
    "Machine",
    "ModelsFolder",
    "Places",
    "PredictOptions",
    "RunOptions",
    "TrainOptions",
    "ValidationOptions",
    "build_parser",
    "default_workers",
    "head_name",
    "parse",
    "to_dict",
]

PICTURE_SUFFIXES = (".png", ".pdf", ".svg")


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
    datasets: tuple[str, ...] | None = option(
        None,
        "where data are of which the files keep the last part of a path alone: folder:PATH, parquet:PATH or hf:PATH",
        group="data",
        legal=NOT_EMPTY,
        default_help="what the runs beside the heads have kept",
    )
    output: Path | None = option(None, "also write the table to this JSON file", group="results")
    classes: Path | None = option(
        None,
        "also write, into this folder, the accuracy of each head class by class and its confusion matrix, as JSON and "
        "as a picture",
        group="results",
    )

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
