"""`python -m learnable_memory data NAME`: look at a data set before hours are spent on it.

Prints its splits, class balance and image sizes, and draws a contact sheet: some training images as they are stored, as
evaluation shows them to the model, and as training does. `data suspects FILE` finds mislabelled images after training.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnable_memory.config import DATA_SET_NAMES, DEFAULT_BASE, DataChoice, Machine, Places, default_workers
from learnable_memory.options import NOT_EMPTY, at_least, option, parse

if TYPE_CHECKING:
    from learnable_memory.data import DataSet
    from learnable_memory.transforms import Preprocessing


@dataclass(frozen=True, kw_only=True)
class DataOptions(DataChoice, Places):
    """Which data set, where it is, and what is to be done with it."""

    name: str = option(help=DATA_SET_NAMES, flags=("NAME",), group="data", legal=NOT_EMPTY)
    base_model: str | None = option(
        None,
        "show the pixels that this base gets: a name on the hub, a folder, or a checkpoint file",
        group="output",
        legal=NOT_EMPTY,
        default_help=f"those of {DEFAULT_BASE}, without looking at it",
    )
    output: Path = option(Path("runs/data"), "folder for the contact sheet, or a file ending in .png", group="output")
    check: bool = option(
        False, "decode every image and list those that cannot be read; exit code 1 if there are any", group="output"
    )
    workers: int = option(
        default_workers(),
        "processes that decode for --check",
        group="output",
        legal=at_least(0),
        default_help="cores - 1, at most 8",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print, check if asked to, draw; or `data suspects`, which has options of its own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["suspects"]:
        from learnable_memory.commands import suspects

        return suspects.main(argv[1:])
    options = parse(DataOptions, __doc__, argv, prog="python -m learnable_memory data")

    from learnable_memory import overview
    from learnable_memory.commands.model import start_logging
    from learnable_memory.commands.processes import start_processes
    from learnable_memory.contact_sheet import contact_sheet
    from learnable_memory.sharing import is_main
    from learnable_memory.wording import count

    start_logging()
    accelerator = start_processes(Machine(device="cpu"))
    if not is_main(accelerator):  # it only helps to check
        if options.check:
            broken_images(loaded(options), options.workers, accelerator)
        return 0
    preprocessing = preprocessing_for(options)
    data = loaded(options)
    print(f"{data.name}: {count(len(data.labels), 'class', 'classes')}, from {data.source}")
    print(f"split {data.split}, split seed {data.split_seed}, selection seed {data.select_seed}\n")
    print(f"{overview.splits_table(data)}\n\n{overview.class_balance(data)}\n")
    if options.check:
        reasons = broken_images(data, options.workers, accelerator)
        print("\n".join([*reasons, f"images that cannot be read: {len(reasons):,}\n"]))
        if reasons:
            return 1
    print(overview.sampled_sizes(data))
    print(f"pixels for {options.base_model or DEFAULT_BASE}: {preprocessing.words}")
    print(f"contact sheet: {contact_sheet(data, preprocessing, picture_path(options.output, data.name))}")
    return 0


def loaded(options: DataOptions) -> DataSet:
    """The data set that the options name."""
    from learnable_memory.data import load_data_set

    return load_data_set(
        options.name, options.directory, options.split_seed, not options.no_download, split=options.split,
        image_column=options.image_column, label_column=options.label_column,
    )  # fmt: skip


def preprocessing_for(options: DataOptions) -> Preprocessing:
    """That of the base, or else that of the default base, which all of Google's ViTs for 224x224 pixels share."""
    from learnable_memory.bases import find_base, preprocessing_of
    from learnable_memory.transforms import Preprocessing

    if options.base_model is None:
        return Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return preprocessing_of(find_base(options.base_model, options.base_cache, not options.no_download))


def broken_images(data: DataSet, workers: int, accelerator: Any = None) -> list[str]:
    """What is wrong with each image that cannot be read, split by split; every image is decoded, by one process."""
    from learnable_memory.broken import ROLES, find_broken

    splits = {role: getattr(data, role) for role in ROLES}
    return [
        f"{role}: {reason}"
        for role, split in splits.items()
        for reason in find_broken(split, workers, f"checking {role}", all_faults=True, accelerator=accelerator).values()
    ]


def picture_path(output: Path, name: str) -> Path:
    """`output` if it is a PNG, or else a file in it named after the data set: `folder:/data/cats` gives cats.png."""
    if output.suffix.lower() == ".png":
        return output
    last = Path(name.partition(":")[2] or name).name
    return output / (re.sub(r"[^\w.+-]+", "_", last) + ".png")
