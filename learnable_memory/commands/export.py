"""`python -m learnable_memory export --heads NAME...`: heads and their base as one file that other runtimes serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learnable_memory.config import HeadChoice, Places
from learnable_memory.options import NOT_EMPTY, above, option, parse
from learnable_memory.text_table import side_by_side
from learnable_memory.wording import counted

if TYPE_CHECKING:
    from learnable_memory.commands.chosen_heads import ChosenHeads
    from learnable_memory.transforms import Preprocessing
    from vit import MemoryCapableViT

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions(HeadChoice, Places):
    """Which heads, and as what."""

    heads: tuple[str, ...] = option(
        help="the heads that answer: names in --models_folder, or files", group="heads", legal=NOT_EMPTY
    )
    with_base: bool = option(False, "also what the base's own classifier says, as the output base", group="heads")
    format: str = option(
        "onnx",
        "onnx: for onnxruntime and others; torch-export: for torch.export.load",
        group="file",
        choices=tuple(SUFFIXES),
    )
    output: Path = option(
        None, "the file to write", group="file", default_help="heads.onnx or heads.pt2 in --models_folder"
    )
    tolerance: float = option(
        1e-4,
        "how far the file's logits may be from the model's before it is thrown away",
        group="file",
        legal=above(0),
        unit="share of a head's largest logit",
    )
    overwrite: bool = option(False, "replace the file if it exists", group="file")

    def __post_init__(self) -> None:
        super().__post_init__()
        suffix = SUFFIXES[self.format]
        if self.output is None:
            self._set("output", self.models_folder / f"heads{suffix}")
        if self.output.suffix != suffix:
            raise ValueError(f"--output is {self.output}, but a file of --format {self.format} ends in {suffix}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Load the heads, write the file, check it, and say what is in it."""
    options = parse(
        ExportOptions,
        "Write heads and their base as one file, which is kept only if it answers as the model does.",
        argv,
        prog="python -m learnable_memory export",
    )
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists: choose another --output, or replace it with --overwrite.")
    from learnable_memory.commands.chosen_heads import choose_heads
    from learnable_memory.commands.model import check_with_base, open_base, start_logging
    from learnable_memory.export import check_format, export

    start_logging()
    check_format(options.format, options.output)  # before anything is loaded
    chosen = choose_heads(options.heads, options.models_folder)
    base = chosen.base(options.base_model)
    own_pixels = options.with_base or chosen.needs_pixels_of_the_base
    model, of_the_base = open_base(
        base, options.base_cache, not options.no_download, sized=False, own_pixels=own_pixels
    )
    chosen.load(model)
    preprocessing = one_preprocessing(chosen, of_the_base)
    if options.with_base:
        check_with_base(model)
        check_pixels(preprocessing, of_the_base)
    model.set_image_size((preprocessing.height, preprocessing.width))
    record = {"preprocessing": preprocessing.to_dict(), "preprocessing_words": preprocessing.words}
    difference = export(
        model, options.output, options.format, chosen.names, options.with_base, record, options.tolerance
    )
    lines = describe(options, model, chosen.names, preprocessing, difference)
    print(side_by_side([list(lines), list(lines.values())], str.ljust))


def one_preprocessing(chosen: ChosenHeads, of_the_base: Preprocessing) -> Preprocessing:
    """How the pixels are made that all these heads take. Raises ValueError if they do not take the same."""
    groups = chosen.by_preprocessing(of_the_base)
    if len({settings.of_decoded for settings in groups}) == 1 < len(groups):
        return next(iter(groups)).of_decoded  # the file takes pixels, whatever scale they were decoded at
    if len(groups) > 1:
        needs = "; ".join(f"{', '.join(names)}: {settings.words}" for settings, names in groups.items())
        apart = ", then ".join(f"--heads {' '.join(names)}" for names in groups.values())
        merged = any(len(names) > 1 for names in chosen.asked.values())
        first = " after python -m learnable_memory heads split" if merged else ""
        raise ValueError(
            f"One file takes one kind of pixels, and these heads need {len(groups)} ({needs}). Export them apart"
            f"{first}, each to an --output of its own: {apart}."
        )
    return next(iter(groups))


def check_pixels(preprocessing: Preprocessing, of_the_base: Preprocessing) -> None:
    """Raise ValueError if the base needs other pixels for its own answers than the heads."""
    if preprocessing.of_decoded != of_the_base.of_decoded:
        raise ValueError(
            f"One file takes one kind of pixels: the base's own answers need images {of_the_base.words}, these heads "
            f"{preprocessing.words}. Leave --with_base."
        )


def describe(
    options: ExportOptions,
    model: MemoryCapableViT,
    names: Sequence[str],
    preprocessing: Preprocessing,
    difference: float,
) -> dict[str, str]:
    """What the command prints: a name for each line, and its text."""
    classes = {"base": model.config.num_labels} if options.with_base else {}
    classes |= {name: model.heads[name].spec.num_labels for name in names}
    shape = "x".join(map(str, (3, *model.image_size)))
    return {
        "written": f"{options.output}, {options.output.stat().st_size / 1e6:,.1f} MB",
        "input": f"pixel_values, float32, batch x {shape}",
        "preprocessing": preprocessing.words,
        "outputs": ", ".join(f"{name} ({counted(number, 'class', 'classes')})" for name, number in classes.items()),
        "checked": f"differs from the model by at most {difference:.1e} of a head's largest logit "
        f"({options.tolerance:.1e} is allowed)",
    }
