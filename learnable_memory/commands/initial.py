"""What `vit_train.py --init_from` begins with: what another head, or network, has learned."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnable_memory import heads, tuned_files
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions
from learnable_memory.data import DataSet
from learnable_memory.heads import HeadFile
from learnable_memory.methods import TunedModel
from learnable_memory.public_names import public_name
from learnable_memory.tuned_files import TunedFile
from vit import MemoryCapableViT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialValues:
    """The file that is begun with."""

    path: Path
    file: HeadFile | TunedFile

    @property
    def metadata(self) -> dict[str, Any]:
        """What it says of itself."""
        return self.file.metadata

    @property
    def who(self) -> str:
        """What it is called in errors."""
        return f"{self.metadata['name']}, which --init_from begins with,"

    def check(self, base: TrainingBase) -> None:
        """Raise ValueError if it was trained on another base."""
        if isinstance(self.file, TunedFile):
            tuned_files.check_base(self.metadata, base.fingerprint)
            return
        config = base.tokens.config
        size = config.hidden_size, config.num_hidden_layers, config.intermediate_size
        heads.check_base(self.metadata, base.fingerprint, *size, where=str(self.path))

    def put(self, model: MemoryCapableViT | TunedModel, name: str) -> None:
        """Give a head of the model, or its network, these values. Raises ValueError if it is another kind of one."""
        if isinstance(model, TunedModel) != isinstance(self.file, TunedFile):
            raise self._other("a head is no network, and a network no head")
        if isinstance(model, TunedModel):
            try:
                model.heads[name].load_state_dict(self.file.tensors)
            except ValueError as error:
                raise self._other(str(error).rstrip(".")) from None
            return
        head = model.heads[name]
        ours = {key: tuple(tensor.shape) for key, tensor in head.tensors().items()}
        theirs = {key: tuple(tensor.shape) for key, tensor in self.file.tensors.items()}
        parents = [parent["name"] for parent in self.metadata["extends"]]
        differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        differing += [] if head.spec.memory_norm == self.metadata["memory_norm"] else ["memory_norm"]
        differing += [] if list(head.spec.extends) == parents else ["extends"]
        if differing:
            raise self._other(f"they differ in {', '.join(differing)}")
        head.load(self.file.tensors)

    def _other(self, reason: str) -> ValueError:
        return ValueError(
            f"--init_from {self.path} is something else than what is to be trained: {reason}. Give the options that it "
            "was trained with."
        )

    def announce(self, data: DataSet, options: TrainOptions) -> None:
        """Say what it is, and warn if it may have learned from images that are held out now."""
        epoch = (self.metadata.get("metrics") or {}).get("epoch")
        state = f"as it was after its epoch {epoch}" if epoch else "as it was saved"
        logger.info(
            "begins with what %s has learned, %s; the schedule is a new one of %d epochs",
            self.metadata["name"], state, options.epochs,
        )  # fmt: skip
        record = self.metadata.get("dataset", {})
        train = record.get("splits", {}).get("train", {})
        if public_name(record.get("name", "")) == public_name(data.name) and train.get("hash") != data.train.hash:
            logger.warning(
                "%s was trained on another split of %s: it may have learned from images that are held out now.",
                self.metadata["name"], data.name,
            )  # fmt: skip


def read_initial(options: TrainOptions) -> InitialValues | None:
    """What `--init_from` names, a head in `--output` or a file; None without it. Errors as `heads.find` and `load`."""
    if options.init_from is None:
        return None
    (path,) = heads.find([options.init_from], options.output)
    return InitialValues(path, tuned_files.load(path) if tuned_files.is_tuned(path) else heads.load(path))
