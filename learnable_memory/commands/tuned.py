"""Networks that cannot be put together with heads, where heads could be named: from one's file to a model that answers.

chosen = choose(["CIFAR100"], Path("models"))           # heads, or one such network
model, preprocessing = load_model(chosen, options)      # either way what evaluate() and predict() take
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from learnable_memory import heads, tuned_files
from learnable_memory.bases import find_base
from learnable_memory.commands.chosen_heads import ChosenHeads, choose_heads, load_chosen
from learnable_memory.commands.model import (
    advise_bfloat16,
    autocast_of,
    check_no_attention,
    load_base,
    resolve_device,
)
from learnable_memory.commands.places import place_of_base
from learnable_memory.config import PredictOptions, RunOptions, ValidationOptions
from learnable_memory.convolutional import ConvolutionalBase
from learnable_memory.methods import OF_WEIGHTS, TunedModel, build_network
from learnable_memory.predict import names_of_classes
from learnable_memory.transforms import Preprocessing
from learnable_memory.tuned_files import TunedFile
from vit import MemoryCapableViT


@dataclass(frozen=True)
class ChosenNetwork:
    """One network that answers alone, with what evaluation and prediction ask of `ChosenHeads`."""

    path: Path
    file: TunedFile
    folder: Path

    @property
    def names(self) -> list[str]:
        """Its own name alone."""
        return [self.file.name]

    @property
    def asked(self) -> dict[Path, list[str]]:
        """File -> names in it."""
        return {self.path: self.names}

    @property
    def extended(self) -> set[str]:
        """Empty: a network is built on no head."""
        return set()

    @property
    def folders(self) -> list[Path]:
        """As of `ChosenHeads`."""
        return list(dict.fromkeys([self.path.parent, self.folder]))

    def metadata(self, name: str) -> dict:
        """What the file says."""
        return self.file.metadata

    def learned(self, name: str) -> dict:
        """What of it a table of results names: its memory tokens, or prompts, in each layer, and its method."""
        return {"memory_tokens": self.file.spec.memory_tokens, "method": self.file.spec.label}

    @property
    def labels(self) -> dict[str, list[str]]:
        """What its classes are called; "class 17" where its file does not say."""
        metadata = self.file.metadata
        return {self.file.name: names_of_classes(metadata, metadata["num_labels"])}

    def by_preprocessing(self, of_the_base: Preprocessing) -> dict[Preprocessing, list[str]]:
        """As `ChosenHeads.by_preprocessing`: its one kind of pixels."""
        return {Preprocessing.of_head(self.file.metadata) or of_the_base: self.names}


def choose(names: Sequence[str], folder: Path) -> ChosenHeads | ChosenNetwork:
    """The heads of these files, or the network in the only one; errors as in `choose_heads` and `tuned_files.load`.

    Among several files, one with a network is refused as `heads.load` refuses it.
    """
    path, *others = heads.find(names, folder)
    if not others and tuned_files.is_tuned(path):
        return ChosenNetwork(path, tuned_files.load(path), folder)
    return choose_heads(names, folder)


def load_model(
    chosen: ChosenHeads | ChosenNetwork, options: ValidationOptions | PredictOptions, device: torch.device | None = None
) -> tuple[MemoryCapableViT | TunedModel, Preprocessing]:
    """The model that answers, and the preprocessing of its base: `load_chosen` or `load_tuned`."""
    if isinstance(chosen, ChosenNetwork):
        return load_tuned(chosen, options, device)
    return load_chosen(chosen, options, device)


def load_tuned(
    chosen: ChosenNetwork, options: ValidationOptions | PredictOptions, device: torch.device | None = None
) -> tuple[TunedModel, Preprocessing]:
    """The network of a file on its base, frozen, for images of the size that it was trained on, and its preprocessing.

    Args:
        options: with a `base_model`; without it the base is the one that the file names, without a precision that of
            the training.

        device: stands for theirs.

    Raises:
        ValueError: nobody names the base, nothing tells where it is, it is another one than the network was trained on,
            or the tensors do not fit.
        FileNotFoundError: the base is neither here nor reachable.
    """
    file, base_id = chosen.file, chosen.file.metadata["base"]["id"]
    if not options.base_model and base_id is None:
        raise ValueError(f"{file.name} does not say which base it was trained on: name it with --base_model.")
    named = options.base_model or place_of_base(base_id, chosen.folders, str(chosen.path))
    precision = options.precision or file.metadata.get("training", {}).get("precision", "float32")
    device = device or resolve_device(options.device)
    if options.precision is None and precision == "float32":
        advise_bfloat16(device)
    options = dataclasses.replace(options, precision=precision)
    build = _on_convolutional if file.metadata["kind"] == "convolutional" else _on_vit
    model, preprocessing = build(file, named, options, device)
    try:
        model.heads[file.name].load_state_dict(file.tensors)
    except ValueError as error:
        raise ValueError(f"{file.name} does not fit its network on {named}. {error}") from None
    model.requires_grad_(False).eval()
    if options.compile:
        model.compile()
    return model, preprocessing


def _on_vit(file: TunedFile, named: str, options: RunOptions, device: torch.device) -> tuple[TunedModel, Preprocessing]:
    spec, own = file.spec, Preprocessing.of_head(file.metadata)
    autocast = autocast_of(options) if spec.method in OF_WEIGHTS else None
    options = dataclasses.replace(options, compile=False)
    exact = autocast is not None
    base, of_the_base = load_base(named, options, device, sized=False, own_pixels=own is None, exact=exact)
    tuned_files.check_base(file.metadata, base.fingerprint)
    preprocessing = own or of_the_base
    base.set_image_size((preprocessing.height, preprocessing.width))
    network = build_network(base, spec, file.metadata["num_labels"], autocast=autocast)
    return TunedModel({file.name: network}, base.fingerprint, base.base_id), preprocessing


def _on_convolutional(
    file: TunedFile, named: str, options: RunOptions, device: torch.device
) -> tuple[TunedModel, Preprocessing]:
    check_no_attention(named, options)
    place = find_base(named, options.base_cache, not options.no_download)
    base = ConvolutionalBase.open(place, named)
    tuned_files.check_base(file.metadata, base.fingerprint)
    network = base.network(file.spec, file.metadata["num_labels"], autocast=autocast_of(options))
    model = TunedModel({file.name: network}, base.fingerprint, base.base_id).to(device)
    return model, Preprocessing.of_head(file.metadata) or base.preprocessing
