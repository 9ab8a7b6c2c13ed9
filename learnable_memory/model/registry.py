"""The heads of a model: by name, with what they are built on, and as files."""

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learnable_memory import heads as head_files
from learnable_memory.ancestry import with_ancestors
from learnable_memory.heads import HeadFile, HeadSpec
from learnable_memory.model.mixin import Stock


class Registry(Stock):
    """A mixin: `heads` is an ordered mapping of names to `vit.Head`s; ancestors stand before those who extend them."""

    heads: MutableMapping[str, Any]
    fingerprint: str
    base_id: str | None
    head_class: Any
    anatomy: Any
    encoder_module: Any
    readout_width: int

    def _without_heads(self) -> None:
        self.base_id = None
        self.heads = nn.ModuleDict()  # type: ignore[assignment]  # its values are untyped
        self._heads_changed()

    def _make_head(self, spec: HeadSpec, std: float, generator: torch.Generator | None) -> nn.Module:
        start = self.anatomy.start(self.encoder_module)
        head = self.head_class(spec, *self._size(), self.readout_width)
        head = head.to(start.device, torch.promote_types(start.dtype, torch.float32))
        if start.device.type != "meta":
            head.initialise(start, std, generator)
        return head

    @property
    def head_names(self) -> list[str]:
        """Names of the heads, in the order in which they were added; `"base"` is not among them."""
        return list(self.heads)

    def _add(self, spec: HeadSpec, std: float = 0.02, generator: torch.Generator | None = None) -> Any:
        if spec.name in self.heads:
            raise ValueError(
                f"There is a head {spec.name} already. Take another name, or remove_head({spec.name!r}) first."
            )
        self._check_parents(spec)
        self.heads[spec.name] = self._make_head(spec, std, generator)
        self._heads_changed()
        return self.heads[spec.name]

    def _check_parents(self, spec: HeadSpec) -> None:
        unknown = [parent for parent in spec.extends if parent not in self.heads]
        if unknown:
            raise ValueError(
                f"{spec.name} cannot extend {', '.join(unknown)}: no such head here. "
                f"Add or load it first; the heads are: {', '.join(self.heads) or 'none'}."
            )
        probes = [parent for parent in spec.extends if not self.heads[parent].spec.class_token]
        if probes:
            raise ValueError(f"{spec.name} cannot extend {', '.join(probes)}: a linear probe has nothing to be seen.")

    def remove_head(self, name: str) -> None:
        """Take a head out. Raises KeyError if there is none, ValueError if other heads extend it."""
        self._head(name)
        children = [child for child, head in self.heads.items() if name in head.spec.extends]
        if children:
            raise ValueError(f"{name} cannot be removed: {', '.join(children)} extend it. Remove those first.")
        del self.heads[name]
        self._heads_changed()

    def _heads_changed(self) -> None:
        self._graphs: dict[tuple, Any] = {}
        self.folded: Any = None  # slower from here, never wrong

    def train_only(self, names: Iterable[str]) -> list[nn.Parameter]:
        """Make the parameters of these heads, and no others, trainable, and return them.

        Raises ValueError if one of them extends another: what a head is built on must not move while it learns.
        """
        names = self._names(names)
        for name in names:
            moving = [ancestor for ancestor in self.with_ancestors([name])[:-1] if ancestor in names]
            if moving:
                raise ValueError(
                    f"{name} extends {', '.join(moving)}, which would move while it learns: train that first."
                )
        self.requires_grad_(False)
        self.folded = None  # it would not move with what is trained
        learned = [parameter for name in names for parameter in self.heads[name].parameters()]
        for parameter in learned:
            parameter.requires_grad_(True)
        return learned

    def concatenate(self, other: Any) -> None:
        """Copy all heads of `other` into this model; each goes on answering as before.

        Raises TypeError for another kind of model, ValueError if `other` has another base or a name is taken; then
        nothing is changed.
        """
        if not isinstance(other, Registry):
            raise TypeError(f"concatenate takes a MemoryCapableViT, got {type(other).__name__}.")
        if other.fingerprint != self.fingerprint:
            raise ValueError(
                f"The models have different bases: {self.base_id} ({self.fingerprint}) here, {other.base_id} "
                f"({other.fingerprint}) there. Heads can only be put together on the base that they were trained on."
            )
        taken = [name for name in other.heads if name in self.heads]
        if taken:
            raise ValueError(f"Both models have a head {', '.join(taken)}. Rename or remove it in one of them.")
        for name, head in other.heads.items():
            self.heads[name] = copy.deepcopy(head).to(self.device)
        self._heads_changed()

    # ---------------------------------------------------------------------------------------------------------- files
    def save_head(
        self, name: str, path: str | os.PathLike, metadata: Mapping | None = None, save_as: str | None = None
    ) -> None:
        """Write one head as a file of its own (`learnable_memory.heads`). `metadata` is added to the head's own.

        `save_as` is the name that it has in the file, where that is another one.
        """
        head = self._head(name)
        parents = self._parents(head.spec)
        merged = {**head.spec.metadata, **(metadata or {})}
        spec = dataclasses.replace(head.spec, name=save_as or name, metadata=merged)
        base = {"id": self.base_id, "fingerprint": self.fingerprint}
        width, layers, mlp_width = self._size()
        read = None if spec.class_token or self.readout_width == width else self.readout_width
        about = head_files.describe(spec, base, width, layers, parents, mlp_width, read)
        head_files.save(path, head.tensors(), about)

    def load_head(self, source: str | os.PathLike | HeadFile) -> str:
        """Add the head in a file, frozen, and return its name.

        Args:
            source: a file with one head, or what `learnable_memory.heads` read from one.

        Raises FileNotFoundError or ValueError, as `learnable_memory.heads.load`; ValueError if it belongs to another
        base, its name is taken, or a head that it extends is absent or not the one that it was trained on.
        """
        if isinstance(source, HeadFile):
            file, where = source, source.metadata["name"]
            head_files.check(file.tensors, file.metadata, where)
        else:
            file, where = head_files.load(source), str(source)  # checked by its reader
        head_files.check_base(file.metadata, self.fingerprint, *self._size(), where=where)
        for parent in file.metadata["extends"]:
            here = self._hash(parent["name"]) if parent["name"] in self.heads else None
            if here != parent["hash"]:
                what = "is not loaded" if here is None else "is loaded, but is not the one that it was trained on"
                raise ValueError(
                    f"{where} extends the head {parent['name']}, which {what}. Load that one's file first."
                )
        spec = head_files.spec_of(file.metadata)
        unseen = torch.Generator()  # what it draws is replaced; the global generator must not notice
        head = self._add(spec, generator=unseen)
        head.load(file.tensors)
        head.requires_grad_(False)
        return spec.name

    def load_heads(self, path: str | os.PathLike) -> list[str]:
        """Add all heads of a file, frozen, and return their names; errors as in `load_head`, and then none is added."""
        loaded: list[str] = []
        try:
            for file in head_files.load_all(path):
                loaded.append(self.load_head(file))
        except ValueError:
            for name in reversed(loaded):
                self.remove_head(name)
            raise
        return loaded

    def _size(self) -> tuple[int, int, int]:
        """Width, layers and width of the MLP, as head files record them."""
        return self.base_width, self.base_layers, self.base_mlp_width

    def _parents(self, spec: HeadSpec) -> list[dict[str, str]]:
        return [{"name": parent, "hash": self._hash(parent)} for parent in spec.extends]

    def _hash(self, name: str) -> str:
        self._head(name)
        known: dict[str, str] = {}
        for each in self.with_ancestors([name]):  # parents first and each once: a graph has many paths
            head = self.heads[each]
            parents = [{"name": parent, "hash": known[parent]} for parent in head.spec.extends]
            known[each] = head_files.head_hash(head.spec, head.tensors(), parents)
        return known[name]

    # ---------------------------------------------------------------------------------------------------------- names
    def _names(self, names: Iterable[str]) -> list[str]:
        """Names of heads that exist, each once. Raises TypeError for a string, KeyError for an unknown head."""
        if isinstance(names, str):
            raise TypeError(f"heads takes a list of names, got the string {names!r}; write [{names!r}].")
        return [name for name in dict.fromkeys(names) if self._head(name)]

    @staticmethod
    def _check_labels(labels: Mapping[str, Tensor], answering: Sequence[str]) -> Mapping[str, Tensor]:
        if not isinstance(labels, Mapping):
            raise TypeError(f"labels takes a mapping such as {{'CIFAR100': targets}}, got {type(labels).__name__}.")
        silent = [name for name in labels if name not in answering]
        if silent:
            raise ValueError(f"There are labels for {', '.join(silent)}, which do not answer in this pass.")
        return labels

    def _head(self, name: str) -> Any:
        if name == "base":
            raise KeyError("'base' is no head: ask for the base's own answers with with_base=True.")
        if name not in self.heads:
            raise KeyError(f"There is no head {name!r}. The heads are: {', '.join(self.heads) or 'none'}.")
        return self.heads[name]

    def with_ancestors(self, names: Iterable[str]) -> list[str]:
        """These heads and all that they are built on, in the model's order: ancestors stand before those who extend."""
        wanted = set(with_ancestors(names, lambda name: self.heads[name].spec.extends))
        return [name for name in self.heads if name in wanted]


def extends_names(extends: Sequence[str]) -> tuple[str, ...]:
    """The names of heads that a new one extends. Raises TypeError for what is no sequence of names."""
    if isinstance(extends, (str, bool)) or not isinstance(extends, Sequence):
        shown = f"({extends!r},)" if isinstance(extends, str) else "('CIFAR100',), or () for none"
        raise TypeError(f"extends takes a sequence of names of heads, got {extends!r}; write {shown}.")
    return tuple(extends)
