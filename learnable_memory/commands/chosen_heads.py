"""The heads that a command was asked for, and those that they extend: from names and files to a model that has them.

chosen = choose_heads(["CIFAR100", "all.safetensors"], Path("models"))
model, preprocessing = load_chosen(chosen, options)
for settings, names in chosen.by_preprocessing(preprocessing).items():     # one pass for each
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from learnable_memory import heads, tuned_files
from learnable_memory.ancestry import with_ancestors
from learnable_memory.commands.model import advise_bfloat16, load_base, resolve_device
from learnable_memory.commands.places import place_of_base
from learnable_memory.config import PredictOptions, ValidationOptions
from learnable_memory.heads import HeadFile
from learnable_memory.together import check_together, hash_of
from learnable_memory.transforms import Preprocessing
from vit import MemoryCapableViT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenHeads:
    """Heads as their files give them, each file read once.

    Attributes:
        files: all of them by name, those that are extended before those that extend them.
        paths: where each was read from.
        asked: the heads in each file that was asked for, in that order; all others come along and do not answer.
        folder: where heads given by name lie.
    """

    files: dict[str, HeadFile]
    paths: dict[str, Path]
    asked: dict[Path, list[str]]
    folder: Path

    @property
    def names(self) -> list[str]:
        """The heads that were asked for, in that order."""
        return [name for names in self.asked.values() for name in names]

    def metadata(self, name: str) -> dict:
        """What the file of a head says of it."""
        return self.files[name].metadata

    @property
    def folders(self) -> list[Path]:
        """Where they lie, and where others do: what has been kept of their base and data is there."""
        return list(dict.fromkeys([*(path.parent for path in self.paths.values()), self.folder]))

    def learned(self, name: str) -> dict:
        """What of it a table of results names: its memory tokens in each layer, and its low-rank weights."""
        metadata = self.metadata(name)
        return {"memory_tokens": metadata["memory_tokens"], "low_rank": metadata.get("low_rank", {})}

    @property
    def labels(self) -> dict[str, list[str]]:
        """None but those that the model knows, for the heads bring them along."""
        return {}

    @property
    def extended(self) -> set[str]:
        """The heads that another one of all these is built on."""
        return {parent["name"] for file in self.files.values() for parent in file.metadata["extends"]}

    def record(self) -> list[dict[str, str]]:
        """What a head that extends those asked for says of them: name and hash of each."""
        return [{"name": name, "hash": hash_of(self.files[name])} for name in self.names]

    def base(self, named: str | None = None) -> str:
        """The base to load: the one that the user named, or else what the files say.

        Raises ValueError if nobody says, or nothing tells where it is.
        """
        if named:
            return named
        for name, file in self.files.items():
            if file.metadata["base"]["id"]:
                return place_of_base(file.metadata["base"]["id"], self.folders, str(self.paths[name]))
        path = next(iter(self.asked))
        raise ValueError(f"{path} does not say which base it was trained on: name it with --base_model.")

    @property
    def needs_pixels_of_the_base(self) -> bool:
        """Whether a head does not say how its pixels were made."""
        return not all(self.metadata(name).get("preprocessing") for name in self.names)

    def precision(self) -> str:
        """The precision that all were trained in, so that accuracies repeat; float32 if they differ."""
        found = {self.metadata(name).get("training", {}).get("precision", "float32") for name in self.names}
        if len(found) > 1:
            logger.info("The heads were trained in %s: all answer in float32.", " and ".join(sorted(found)))
        return found.pop() if len(found) == 1 else "float32"

    def load(self, model: MemoryCapableViT) -> None:
        """Put all of them on their base, frozen; errors as in `load_head`."""
        for file in self.files.values():
            model.load_head(file)

    def by_preprocessing(self, of_the_base: Preprocessing) -> dict[Preprocessing, list[str]]:
        """The heads that were asked for, grouped by what can share a pass: those whose pixels are made alike.

        Args:
            of_the_base: stands where a file does not say how its pixels were made.
        """
        groups: dict[Preprocessing, list[str]] = {}
        for name in self.names:
            groups.setdefault(Preprocessing.of_head(self.metadata(name)) or of_the_base, []).append(name)
        return groups


def load_chosen(
    chosen: ChosenHeads, options: ValidationOptions | PredictOptions, device: torch.device | None = None
) -> tuple[MemoryCapableViT, Preprocessing]:
    """The base with all these heads on it, on the device and in the precision of the options, and its preprocessing.

    The model is not set to a size of images: see `by_preprocessing` for what its heads need.

    Args:
        options: with a `base_model`; without a precision, it is that of the heads' training.
        device: stands for theirs.
    """
    device = device or resolve_device(options.device)
    precision = options.precision or chosen.precision()
    if options.precision is None and precision == "float32":
        advise_bfloat16(device)
    options = dataclasses.replace(options, precision=precision)
    base, own_pixels = chosen.base(options.base_model), chosen.needs_pixels_of_the_base
    model, preprocessing = load_base(base, options, device, sized=False, own_pixels=own_pixels)
    chosen.load(model)
    return model, preprocessing


def choose_heads(names: Sequence[str], folder: Path) -> ChosenHeads:
    """All heads of these files, and those that they extend, which may lie in the folder or beside them.

    Args:
        names: of heads in the folder, or files, as in `heads.find`.

    Raises:
        FileNotFoundError: a file is not there, or that of a head which one of them extends.
        ValueError: a file is damaged, or the heads cannot be put together: they belong to several bases, two have one
            name, or a head that is extended is not the one that it was.
    """
    found: dict[str, HeadFile] = {}
    paths: dict[str, Path] = {}
    asked: dict[Path, list[str]] = {}
    for path in heads.find(names, folder):
        files = heads.load_all(path)
        asked[path] = [file.metadata["name"] for file in files]
        for file in files:
            name = file.metadata["name"]
            if name in found:
                raise ValueError(
                    f"{paths[name]} and {path} both hold a head {name}: two heads of one name cannot answer together."
                )
            found[name], paths[name] = file, path

    def parents_of(child: str) -> list[str]:
        parents = found[child].metadata["extends"]
        for parent in parents:
            name = parent["name"]
            if name not in found:
                found[name], paths[name] = _find_parent(parent, child, [folder, paths[child].parent], paths[child])
                logger.info("loaded too: %s, which %s extends, from %s", name, child, paths[name])
        return [parent["name"] for parent in parents]

    in_order = {name: found[name] for name in with_ancestors(list(found), parents_of)}
    check_together(list(in_order.values()))
    return ChosenHeads(in_order, paths, asked, folder)


def _find_parent(parent: dict[str, str], child: str, folders: Sequence[Path], own: Path) -> tuple[HeadFile, Path]:
    """The head that `child` names as its parent, and its file in one of the folders, or the child's own."""
    name, others = parent["name"], []
    wanted = [heads.file_name(name, suffix) for suffix in (heads.SUFFIX, heads.OLD_SUFFIX)]
    for path in dict.fromkeys([*(folder / file_name for folder in folders for file_name in wanted), own]):
        if not path.is_file():
            continue
        if tuned_files.is_tuned(path):  # of the same name, and no head at all
            others.append(path)
            continue
        for file in heads.load_all(path):
            if file.metadata["name"] == name:
                if hash_of(file) == parent["hash"]:
                    return file, path
                others.append(path)
    if others:
        raise ValueError(
            f"{child} extends {name}, but {others[0]} is not the {name} that it was trained on: put that one's file "
            "there, or name it too."
        )
    places = " and ".join(dict.fromkeys(map(str, folders)))
    raise FileNotFoundError(
        f"{child} extends {name}, whose file is not there: looked for {wanted[0]} and {wanted[1]} in {places}. Put it "
        "there, or name it too."
    )
