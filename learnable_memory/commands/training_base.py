"""The base that a run learns on, and the models of its passes: heads of one pass, or a network by itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from learnable_memory.bases import find_base, read_config
from learnable_memory.commands.model import autocast_of, check_channels, check_no_attention, load_base, resolve_device
from learnable_memory.config import TrainOptions
from learnable_memory.convolutional import ConvolutionalBase, is_convolutional
from learnable_memory.grid import Cell
from learnable_memory.method_spec import OF_ANY_NETWORK, MethodSpec
from learnable_memory.methods import OF_WEIGHTS, TunedModel, build_network, check_method
from learnable_memory.transforms import SCALED_DECODING, Preprocessing
from vit import MemoryCapableViT

if TYPE_CHECKING:
    from learnable_memory.commands.initial import InitialValues

# Between the seeds of processes: odd, so that no two are the same; large, so that none is that of a run beside.
BETWEEN_PROCESSES = 0x9E3779B1


class TrainingBase:
    """A frozen base, and how its pixels are made.

    Args:
        options: name the base, its images' size, precision and attention.
        device: stands for theirs.
        initial: what all that is learned begins with; None: random values.
        processes, process: how many share each batch, and which of them this is, from 0.

    Attributes:
        vit: with the heads of all passes so far, in the run's precision; None for a convolutional network.
        preprocessing: of training and evaluation.

    Raises ValueError or FileNotFoundError as `load_base`, and ValueError for a method that a convolutional network does
    not know.
    """

    def __init__(
        self, options: TrainOptions, device: torch.device | None = None, initial: "InitialValues | None" = None,
        processes: int = 1, process: int = 0,
    ) -> None:  # fmt: skip
        self.options, self.initial, self.processes, self.process = options, initial, processes, process
        self.device = device or resolve_device(options.device)
        self.vit: MemoryCapableViT | None = None
        self.convolutional: ConvolutionalBase | None = None
        self._exact: MemoryCapableViT | None = None
        place = find_base(options.base_model, options.base_cache, not options.no_download)
        if place.is_dir() and is_convolutional(read_config(place)):
            self._check_convolutional()
            self.convolutional = ConvolutionalBase.open(place, options.base_model)
            check_channels(options.base_model, self.convolutional.channels)
            found = self.convolutional.preprocessing
            self.preprocessing = found if options.image_size is None else found.at(options.image_size)
        else:
            self.vit, self.preprocessing = self._load()
        scale = SCALED_DECODING if options.decoding == "scaled" else 0
        self.preprocessing = replace(self.preprocessing, scaled_decoding=scale)

    @property
    def fingerprint(self) -> str:
        """As heads and networks are bound to it."""
        return (self.convolutional or self.tokens).fingerprint

    @property
    def base_id(self) -> str | None:
        """What heads and networks say that they were trained on."""
        return (self.convolutional or self.tokens).base_id

    @property
    def tokens(self) -> MemoryCapableViT:
        """`vit`, for what needs tokens. Raises ValueError for a convolutional network."""
        if self.vit is None:
            raise ValueError(f"{self.options.base_model} is a convolutional network: it has no tokens, and no heads.")
        return self.vit

    @property
    def kind(self) -> str:
        """As in the file of a network."""
        return "vit" if self.convolutional is None else "convolutional"

    def is_head(self, spec: MethodSpec) -> bool:
        """Whether it is learned by a head, beside others in one pass."""
        return spec.combinable and self.convolutional is None

    def check(self, specs: Iterable[MethodSpec]) -> None:
        """Raise ValueError or ModuleNotFoundError for what cannot be learned on this base, before anything is."""
        if self.initial is not None:
            self.initial.check(self)
        for spec in specs:
            if self.convolutional is not None:
                self.convolutional.check(spec, self.options.gradient_checkpointing, self.processes)
            elif not spec.combinable:
                check_method(spec, self.tokens.config._attn_implementation)

    def model(
        self, cells: Mapping[str, Cell], num_labels: int, extends: Sequence[str] = ()
    ) -> MemoryCapableViT | TunedModel:
        """What a pass trains, at its initial values: the base with a head for each cell, or one network.

        Args:
            cells: by the names that they get in the model; all heads, or one that is none.
        """
        model = self._model(cells, num_labels, extends)
        if self.initial is not None:
            for name in cells:
                self.initial.put(model, name)
        return model

    def _model(
        self, cells: Mapping[str, Cell], num_labels: int, extends: Sequence[str]
    ) -> MemoryCapableViT | TunedModel:
        if all(self.is_head(cell.spec) for cell in cells.values()):
            for name, cell in cells.items():
                spec = cell.spec
                self.tokens.add_head(
                    name, num_labels, spec.memory_tokens, extends, memory_norm=spec.memory_norm,
                    class_token=spec.method != "head", rank=dict.fromkeys(self.options.rank_of, spec.rank),
                    generator=torch.Generator().manual_seed(cell.seed),
                )  # fmt: skip
            return self.tokens
        ((name, cell),) = cells.items()
        network = self._network(cell, num_labels)
        model = TunedModel({name: network}, self.fingerprint, self.base_id).to(self.device)
        if self.options.compile:
            model.compile()
        return model

    def _network(self, cell: Cell, num_labels: int) -> torch.nn.Module:
        # Dropout draws from the global generator, which takes 32 bits; each process drops for images of its own.
        torch.manual_seed((cell.seed + self.process * BETWEEN_PROCESSES) % 2**32)
        generator = torch.Generator().manual_seed(cell.seed)
        again, autocast = self.options.gradient_checkpointing, autocast_of(self.options)
        if self.convolutional is not None:
            return self.convolutional.network(cell.spec, num_labels, generator, again, autocast)
        if cell.spec.method not in OF_WEIGHTS:
            return build_network(self.tokens, cell.spec, num_labels, generator, again)
        if autocast is not None and self._exact is None:
            self._exact, _ = self._load(exact=True)
        return build_network(self._exact or self.tokens, cell.spec, num_labels, generator, again, autocast)

    def _load(self, exact: bool = False) -> tuple[MemoryCapableViT, Preprocessing]:
        options = self.options
        return load_base(options.base_model, options, self.device, options.image_size, exact=exact)

    def _check_convolutional(self) -> None:
        check_no_attention(self.options.base_model, self.options)
        without = [spec.label for spec in self.options.method_specs if spec.method not in OF_ANY_NETWORK]
        if without:
            raise ValueError(
                f"{self.options.base_model} is a convolutional network: it has no tokens for {without[0]}. Legal are "
                f"--method {' and '.join(OF_ANY_NETWORK)}."
            )
        if any(self.options.ema) and "full" in self.options.method:
            raise ValueError(
                f"{self.options.base_model} is a convolutional network: --ema would average its weights and not the "
                "statistics of its batch norms. Leave it out."
            )
        if self.options.cache != "none" or self.options.extends or self.options.folds:
            raise ValueError(
                f"{self.options.base_model} is a convolutional network: --cache, --extends and --folds are for heads."
            )
