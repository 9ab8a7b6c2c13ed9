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
        False,
        "decode every image and list those that cannot be read, that are in two splits, or that have two labels; exit "
        "code 1 if there are any",
        group="output",
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
    from learnable_memory.sharing import is_main
    from learnable_memory.wording import counted

    start_logging()
    accelerator = start_processes(Machine(device="cpu"))
    if not is_main(accelerator):  # it only helps to check
        if options.check:
            check(loaded(options), options.workers, accelerator)
        return 0
    preprocessing = preprocessing_for(options)
    data = loaded(options)
    print(f"{data.name}: {counted(len(data.labels), 'class', 'classes')}, from {data.source}")
    print(f"split {data.split}, split seed {data.split_seed}, selection seed {data.select_seed}\n")
    print(f"{overview.splits_table(data)}\n\n{overview.class_balance(data)}\n")
    faults = False
    if options.check:
        broken, found = check(data, options.workers, accelerator)
        print("\n".join([*broken, f"images that cannot be read: {len(broken):,}", *(found or ["copies: none"]), ""]))
        if broken:
            return 1
        faults = bool(found)
    print(overview.sampled_sizes(data))
    print(f"pixels for {options.base_model or DEFAULT_BASE}: {preprocessing.words}")
    print(f"contact sheet: {draw(data, preprocessing, picture_path(options.output, data.name))}")
    return 1 if faults else 0


def loaded(options: DataOptions) -> DataSet:
    """The data set that the options name."""
    from learnable_memory.data import load_data_set

    return load_data_set(
        options.name, options.directory, options.split_seed, not options.no_download, **options.choices
    )


def preprocessing_for(options: DataOptions) -> Preprocessing:
    """That of the base, or else that of the default base, which all of Google's ViTs for 224x224 pixels share."""
    from learnable_memory.bases import find_base, preprocessing_of
    from learnable_memory.transforms import Preprocessing

    if options.base_model is None:
        return Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return preprocessing_of(find_base(options.base_model, options.base_cache, not options.no_download))


def check(data: DataSet, workers: int, accelerator: Any = None) -> tuple[list[str], list[str]]:
    """What is wrong with each image that cannot be read, split by split, and the lines of `copies.copies`; every image
    is decoded, by one process."""
    from learnable_memory.broken import ROLES, inspect
    from learnable_memory.copies import copies

    looks = {role: inspect(getattr(data, role), workers, f"checking {role}", accelerator) for role in ROLES}
    broken = [f"{role}: {reason}" for role, (reasons, _) in looks.items() for reason in reasons.values()]
    return broken, copies(data, {role: digests for role, (_, digests) in looks.items()})


def draw(data: DataSet, preprocessing: Preprocessing, path: Path) -> Path:
    """The contact sheet. Raises OSError if it cannot be written there."""
    from learnable_memory.contact_sheet import contact_sheet

    try:
        return contact_sheet(data, preprocessing, path)
    except OSError as error:
        raise OSError(
            f"cannot write the contact sheet to {path} ({error}): choose another place with --output"
        ) from error


def picture_path(output: Path, name: str) -> Path:
    """`output` if it is a PNG, or else a file in it named after the data set: `folder:/data/cats` gives cats.png."""
    if output.suffix.lower() == ".png":
        return output
    last = Path(name.partition(":")[2] or name).name
    return output / (re.sub(r"[^\w.+-]+", "_", last) + ".png")
