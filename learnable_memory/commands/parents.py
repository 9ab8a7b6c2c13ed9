"""What `vit_train.py --extends` builds a new head on: other heads, read before the base and put on it frozen."""

import logging
from pathlib import Path

from learnable_memory.commands.chosen_heads import ChosenHeads, choose_heads
from learnable_memory.config import TrainOptions
from learnable_memory.public_names import public_name
from learnable_memory.transforms import Preprocessing

logger = logging.getLogger(__name__)


def read_parents(options: TrainOptions, new_file: Path) -> ChosenHeads:
    """The heads that `--extends` names, and those that they extend; none without it.

    Args:
        new_file: where the new head is going to be written.

    Raises ValueError if the new head would take the name or the file of one of them, or one is a linear probe; else as
    `choose_heads`.
    """
    parents = choose_heads(options.extends or (), options.output)
    for name, path in parents.paths.items():
        if name == options.name or path.resolve() == new_file.resolve():
            raise ValueError(f"{options.name} cannot extend the {name} in {path}: give another --name.")
    probes = [name for name in parents.names if not parents.metadata(name)["class_token"]]
    if probes:
        raise ValueError(f"--extends names {', '.join(probes)}: a linear probe has nothing that other heads could see.")
    return parents


def compare_data(parents: ChosenHeads, options: TrainOptions) -> None:
    """Say it where parents have learned from the images that `--folds` is to hold out."""
    for name, file in parents.files.items():
        name_of_data = file.metadata.get("dataset", {}).get("name")
        if options.folds and (name_of_data is None or public_name(name_of_data) == public_name(options.dataset)):
            logger.warning(
                "%s, which --extends builds on, may have learned from the images that are held out: what is said out "
                "of fold is then too good, and wrong labels are hard to see.", name,
            )  # fmt: skip


def labels_of_parents(parents: ChosenHeads, options: TrainOptions) -> dict[str, list[str]]:
    """What parents that were trained on the same data call its classes, where their files say it."""
    ours = public_name(options.dataset)
    return {
        name: file.metadata["labels"]
        for name, file in parents.files.items()
        if "labels" in file.metadata and public_name(file.metadata.get("dataset", {}).get("name", "")) == ours
    }


def compare_pixels(parents: ChosenHeads, preprocessing: Preprocessing) -> None:
    """Say it where parents were trained on pixels of another kind; they see those of the new head from now on."""
    for name, file in parents.files.items():
        settings = Preprocessing.of_head(file.metadata)
        if settings and settings.of_decoded != preprocessing.of_decoded:
            logger.info(
                "%s was trained on images %s; below the new head it sees them %s.",
                name, settings.words, preprocessing.words,
            )  # fmt: skip
