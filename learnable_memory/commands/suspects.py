"""`python -m learnable_memory data suspects FILE`: training images whose label may be wrong.

Reads what `vit_train.py --folds` leaves, NAME_out_of_fold.json, and shows the images whose own label is least likely by
the head that has not learned from them: in a table, as a contact sheet, and as a list (CSV) to mend labels by.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learnable_memory.config import ModelsFolder, Places, RunOptions
from learnable_memory.options import NOT_EMPTY, at_least, option, parse

if TYPE_CHECKING:
    from learnable_memory.images import ImageSet
    from learnable_memory.out_of_fold import OutOfFold

MOST_DRAWN = 200  # images of the contact sheet: 25 rows
COLUMNS = ("rank", "image", "label", "predicted", "probability", "confidence")


@dataclass(frozen=True, kw_only=True)
class SuspectsOptions(ModelsFolder, Places):
    """Which predictions, and what is to be shown of them."""

    file: str = option(
        help="a NAME_out_of_fold.json, or the name of a head whose file is in --models_folder",
        flags=("FILE",),
        group="data",
        legal=NOT_EMPTY,
    )
    most: int = option(
        40, f"how many to list; the contact sheet shows at most {MOST_DRAWN}", group="output", legal=at_least(1),
        unit="images",
    )  # fmt: skip
    output: Path = option(
        Path("runs/data"), "folder for the contact sheet and the list, or a file ending in .png", group="output"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Find the images again, print, list, draw."""
    options = parse(SuspectsOptions, __doc__, argv, prog="python -m learnable_memory data suspects")

    from learnable_memory import out_of_fold
    from learnable_memory.commands.data import picture_path
    from learnable_memory.commands.model import start_logging
    from learnable_memory.contact_sheet import suspects_sheet
    from learnable_memory.wording import printable

    start_logging()
    found = out_of_fold.load(out_of_fold.find(options.file, options.models_folder))
    train = judged_images(found, options)
    places = found.least_likely(options.most).tolist()
    picture = picture_path(options.output, f"{found.head}_suspects")

    print(
        f"{printable(found.dataset['name'])}: the {len(places):,} least likely labels of {len(found):,} training "
        f"images, each judged by the one of {found.folds} heads that has not learned from it\n"
    )
    print(f"{table(found, places)}\n")
    print(f"list: {write_list(found, train, places, picture.with_suffix('.csv'))}")
    drawn = suspects_sheet(train, found, places[:MOST_DRAWN], picture)
    print(f"contact sheet: {drawn}" + (f", the first {MOST_DRAWN}" if len(places) > MOST_DRAWN else ""))
    return 0


def judged_images(found: OutOfFold, options: Places) -> ImageSet:
    """The training images on this machine that the predictions are of, in their order.

    Raises:
        ValueError: they are others here, or have other labels or classes.
    """
    from learnable_memory.class_names import check_classes
    from learnable_memory.commands.inputs import recorded_data

    # Images that were left out as broken are known by not being there: nothing has to be decoded to find them.
    machine = RunOptions(directory=options.directory, no_download=options.no_download)
    data = recorded_data({**found.dataset, "left_out": None}, machine, found.labels)
    check_classes(found.labels, len(found.labels), data, f"The cross-validation of {found.head}")
    train = data.train
    if found.dataset.get("left_out"):
        judged = set(found.image)
        train = train.subset([index for index in range(len(train)) if train.identity(index) in judged])
    expected = found.dataset["splits"]["train"]["hash"]
    if train.hash != expected or train.labels.tolist() != found.label.tolist():
        raise ValueError(
            f"The training images of {found.dataset['name']}, or their labels, are not those that {found.head} was "
            f"cross-validated on ({len(train):,} images of hash {train.hash} here, {len(found):,} of {expected} then): "
            "choose the --directory that has those, or run vit_train.py --folds again."
        )
    return train


def table(found: OutOfFold, places: Sequence[int]) -> str:
    """A line for each image."""
    from learnable_memory.text_table import side_by_side
    from learnable_memory.wording import printable

    lines = [COLUMNS, *_lines(found, places, ".4f")]
    return side_by_side([[printable(text) for text in column] for column in zip(*lines, strict=True)], str.ljust)


def _lines(found: OutOfFold, places: Sequence[int], digits: str) -> list[tuple[str, ...]]:
    """What `COLUMNS` name, of each of these images."""
    return [
        (
            str(rank), found.image[place], found.labels[found.label[place]], found.labels[found.predicted[place]],
            format(found.probability[place], digits), format(found.confidence[place], digits),
        )
        for rank, place in enumerate(places, start=1)
    ]  # fmt: skip


def write_list(found: OutOfFold, train: ImageSet, places: Sequence[int], path: Path) -> Path:
    """The same lines as CSV, with the fold that held each image out and where it is on this machine."""
    from learnable_memory.files import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as unfinished,  # names of files may be any bytes
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "fold", "where"])
        for line, place in zip(_lines(found, places, ".6g"), places, strict=True):
            writer.writerow([*line, found.fold[place], train.describe(place)])
    return path
