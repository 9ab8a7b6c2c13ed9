"""A vision encoder as its file has it, in one spelling: tensors under names of our own, and what they do not tell.

Readers of files make an `Encoder`; `families.build` finds the class of transformers that computes the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from learnable_memory import wording

# What a classifier reads, of tokens that went through the final norm; POOLED normalises their mean instead.
CLASS, BOTH = "the class token", "class and distillation token"  # the second by two classifiers, whose mean counts
PATCHES, POOLED = "the mean of the patches", "the mean of the patches before the norm"
ATTENTION, OTHER = "an attention pool", "something else"


@dataclass
class Encoder:
    """A pre-norm transformer of any family.

    Attributes:
        source: where it comes from, for messages.
        name: what it is, for people: "DINOv2 with registers".
        tensors: of any dtype, by these names (N counts layers, H attention heads, * is "weight" and "bias"):
            patches.* [D, 3, p, p]; class_token, class_position, distillation_token, distillation_position [1, 1, D];
            registers [1, n, D], their positions added; positions [1, P, D] of the patches;
            patch_norm.* of the patches alone, first_norm.* of all tokens before the first layer, norm.* after the last,
            pooled_norm.* of what the classifier reads;
            layers.N.: norm1.*, query.*, key.*, value.*, output.*, scale1, norm2.*, mlp_in.* and mlp_out.* (or gate.*,
            up.* and down.*), scale2, relative_positions [.., H];
            relative_positions, shared by all layers; classifier.*, distillation_classifier.*;
            probe [1, 1, D] and pool.: query.*, key.*, value.*, output.*, norm.*, mlp_in.*, mlp_out.*
        num_attention_heads: H.
        layer_norm_eps: of all norms.
        hidden_act: transformers' name of the activation in the MLPs.
        image_size: (height, width) in pixels, of which the positions are.
        reads: what the classifier reads: CLASS, BOTH, PATCHES, POOLED, ATTENTION or OTHER; nothing without one.
        rope_theta: the base of rotary positions as DINOv3 has them; None for an encoder without.
        rms: whether the norms are RMS norms.
        id2label: the names of the classes, where they are known.
    """

    source: Path | str
    name: str
    tensors: dict[str, Tensor]
    num_attention_heads: int
    layer_norm_eps: float
    hidden_act: str
    image_size: tuple[int, int]
    reads: str = CLASS
    rope_theta: float | None = None
    rms: bool = False
    id2label: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        needed = {"patches.weight", "layers.0.norm1.weight"}
        needed |= {f"layers.0.{'down' if self.gated else 'mlp_out'}.weight"}
        if absent := needed - self.tensors.keys():
            raise ValueError(f"{self.source} is no whole {self.name} checkpoint; missing: {some(absent)}")
        weight = self.tensors["patches.weight"]
        if weight.ndim != 4 or weight.shape[1] != 3:
            raise ValueError(
                f"{self.source} embeds patches by weights of shape {list(weight.shape)}, but images are RGB: "
                "[D, 3, p, p]"
            )

    @property
    def width(self) -> int:
        """D."""
        return self.tensors["patches.weight"].shape[0]

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.tensors["patches.weight"].shape[2:]
        return height, width

    @property
    def depth(self) -> int:
        """L."""
        found = (re.match(r"layers\.(\d+)\.", name) for name in self.tensors)
        return max(int(match[1]) for match in found if match) + 1

    @property
    def num_registers(self) -> int:
        """How many registers it has."""
        return self.tensors["registers"].shape[1] if "registers" in self.tensors else 0

    @property
    def gated(self) -> bool:
        """Whether the MLPs are gated (SwiGLU)."""
        return self.has("gate.weight")

    @property
    def mlp_width(self) -> int:
        """What the last map of an MLP reads."""
        return self.tensors[f"layers.0.{'down' if self.gated else 'mlp_out'}.weight"].shape[1]

    @property
    def mlp_ratio(self) -> int | None:
        """The ratio by which configs like DINOv2's say `mlp_width`; None if no whole number does."""
        for ratio in range(1, 17):
            hidden = self.width * ratio
            if self.gated:  # two thirds of it, rounded up to a multiple of 8
                hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
            if hidden == self.mlp_width:
                return ratio
        return None

    def has(self, part: str) -> bool:
        """Whether any layer has a tensor of this name, such as "query.bias"."""
        return any(name.startswith("layers.") and name.endswith(f".{part}") for name in self.tensors)

    @property
    def features(self) -> frozenset[str]:
        """In what encoders differ, in words; of those listed, this one has these."""
        tensors = self.tensors
        square = self.image_size[0] == self.image_size[1] and self.patch_size[0] == self.patch_size[1]
        found = {
            "a class token": "class_token" in tensors,
            "a distillation token": "distillation_token" in tensors,
            "registers": "registers" in tensors,
            "learned positions": "positions" in tensors,
            "rotary positions": self.rope_theta is not None,
            "relative positions": "relative_positions" in tensors or self.has("relative_positions"),
            "layer scale": self.has("scale1"),
            "a gated MLP": self.gated,
            "an MLP that is no whole multiple of its width": self.mlp_ratio is None,
            "RMS norms": self.rms,
            "a norm of the patches": "patch_norm.weight" in tensors,
            "a norm before the layers": "first_norm.weight" in tensors,
            "a final norm": "norm.weight" in tensors,
            "a norm after pooling": "pooled_norm.weight" in tensors,
            "an attention pool": "probe" in tensors,
            "images or patches that are not square": not square,
        }
        return frozenset(feature for feature, is_there in found.items() if is_there)


def some(names: set[str]) -> str:
    """Names of tensors for an error message."""
    return wording.some(sorted(names), 4) or "nothing"
