"""What can be learned of a base for one data set: the methods by name, and what each of them may be told.

Standard library only, so that a command line can check its options before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

METHODS = ("memory", "head+class", "head", "full", "bias", "lora", "vpt-shallow", "vpt-deep")
MASKINGS = ("masked", "none")
MEMORY_UPDATES = ("none", "propagate", "additive")
WITH_PROMPTS = ("memory", "vpt-shallow", "vpt-deep")  # those that number_of_memory_tokens belongs to
OF_ANY_NETWORK = ("full", "head")  # convolutional baselines know these only
OWNERS = {
    "memory_tokens": WITH_PROMPTS, "masking": ("memory",), "memory_update": ("memory",), "memory_norm": ("memory",),
    "train_class_token": ("memory",), "rank": ("lora", "memory", "head+class"),
    "prompt_dropout": ("vpt-shallow", "vpt-deep"),
}  # fmt: skip

WHY_NOT = {
    "full": "it changes the base's own weights",
    "bias": "it changes the base's own biases",
    "lora": "it changes what the base's own projections give",
    "vpt-shallow": "its prompts are seen by the base's own tokens",
    "vpt-deep": "its prompts are seen by the base's own tokens",
}
UNMASKED = "its memory is seen by the base's own tokens"
PROPAGATED = "its memory goes from layer to layer, which the two streams do not carry"


@dataclass(frozen=True)
class MethodSpec:
    """One method, told everything but rate and seed.

    Args:
        method: one of METHODS.
        memory_tokens: m in each layer; for VPT the number of prompts, at least 1.
        masking: of memory. "masked": only the head's own class token sees it (paper, section 3.3); "none": patches and
            base class token see it too (paper, section 3).
        memory_update: of memory (paper, Figure 2b). "none": each layer has its own; "propagate": it enters the first
            layer and what leaves a layer enters the next; "additive": the same, and each layer adds a learned update.
        memory_norm: memory passes through the layer norm; propagated memory always does, as any token.
        train_class_token: of unmasked memory; if not, the class token stays the base's.
        rank: of LoRA's updates; of masked memory and head+class that of low-rank weights for the class token alone.
        prompt_dropout: of VPT, the share of prompt values that are dropped in training, in [0, 1).

    Raises ValueError for what is not legal, alone or together.
    """

    method: str = "memory"
    memory_tokens: int = 0
    masking: str = "masked"
    memory_update: str = "none"
    memory_norm: bool = True
    train_class_token: bool = True
    rank: int = 0
    prompt_dropout: float = 0.0

    def __post_init__(self) -> None:
        for what, legal in (("method", METHODS), ("masking", MASKINGS), ("memory_update", MEMORY_UPDATES)):
            if getattr(self, what) not in legal:
                raise ValueError(f"{what} is {getattr(self, what)!r}, but it has to be one of {', '.join(legal)}.")
        for field in fields(self):
            owners, value = OWNERS.get(field.name, METHODS), getattr(self, field.name)
            if self.method not in owners and value != field.default:
                raise ValueError(
                    f"{field.name} is {value!r}, but it belongs to {', '.join(owners)}, and the method is "
                    f"{self.method}: leave it out."
                )
        if self.memory_tokens < 0:
            raise ValueError(f"memory_tokens is {self.memory_tokens}, but it has to be 0 or more.")
        if self.method.startswith("vpt") and not self.memory_tokens:
            raise ValueError(f"{self.method} needs at least one prompt: give --number_of_memory_tokens.")
        if self.method == "lora" and self.rank < 1:
            raise ValueError(f"lora needs a rank of at least 1, got {self.rank}: give --rank.")
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}, but it has to be 0 or more.")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout is {self.prompt_dropout}, but it has to be at least 0 and less than 1.")
        if self.method == "memory":
            self._check_memory()

    def _check_memory(self) -> None:
        if (self.masking == "none" or self.memory_update != "none") and not self.memory_tokens:
            raise ValueError("Without memory tokens there is nothing to mask or to update: that is head+class.")
        if not self.train_class_token and self.masking == "masked":
            raise ValueError("Masked memory is read by the class token that is learned: --train_class_token stays on.")
        if self.rank and (self.masking == "none" or self.memory_update != "none"):
            raise ValueError(
                f"Low-rank weights of rank {self.rank} are for the class token of masked memory: leave out --rank, or "
                "--masking and --memory_update."
            )
        if self.memory_update != "none" and not self.memory_norm:
            raise ValueError(
                f"Memory with --memory_update {self.memory_update} is normed in each layer, as all tokens."
            )

    @property
    def reason(self) -> str:
        """Why it cannot be put together with others; empty if it can."""
        if self.method == "memory":
            unmasked = UNMASKED if self.masking == "none" else ""
            return unmasked or (PROPAGATED if self.memory_update != "none" else "")
        return WHY_NOT.get(self.method, "")

    @property
    def combinable(self) -> bool:
        """Whether it leaves the base's tokens as they are, so that the two streams carry it beside others."""
        return not self.reason

    @property
    def name(self) -> str:
        """Short, and made of what names of heads may be made of: `m5`, `m5-r8`, `probe`, `m5-unmasked`, `lora8`."""
        of_memory = self.method in ("memory", "head+class")
        first = f"m{self.memory_tokens}" if of_memory else f"{self._stem}{self.memory_tokens or ''}"
        return "-".join([first, *self._switches])

    @property
    def family(self) -> str:
        """What those have in common that differ in their memory tokens, or prompts: `memory`, `unmasked`, `vpt-deep`.

        Of masked memory and head+class it is `memory`, whatever the norm, with the rank if they have one; of what has
        no such number the name.
        """
        if self.method in ("memory", "head+class"):
            rank = f"-r{self.rank}" if self.rank else ""
            return f"memory{rank}" if self.combinable else "-".join(self._switches)
        return "-".join([self._stem, *self._switches])

    @property
    def _stem(self) -> str:
        return {"head": "probe", "lora": f"lora{self.rank}"}.get(self.method, self.method)

    @property
    def _switches(self) -> list[str]:
        """What is not as usual."""
        told = {
            "unmasked": self.masking == "none",
            self.memory_update: self.memory_update != "none",
            "nonorm": not self.memory_norm and self.memory_tokens > 0,
            "frozenclass": not self.train_class_token,
            f"r{self.rank}": self.rank > 0 and self.method != "lora",
            # A point is not legal in a head's name.
            f"dropout{self.prompt_dropout}".replace(".", "p"): self.prompt_dropout > 0,
        }
        return [switch for switch, is_on in told.items() if is_on]

    @property
    def label(self) -> str:
        """For readers: `memory, 5 cells, no mask`."""
        parts = [self.method]
        if self.method == "memory":
            parts += [f"{self.memory_tokens} cell{'s' * (self.memory_tokens != 1)}"]
            parts += ["no mask"] * (self.masking == "none") + [self.memory_update] * (self.memory_update != "none")
            parts += ["after the norm"] * (not self.memory_norm)
            parts += ["base class token"] * (not self.train_class_token)
        elif self.method in WITH_PROMPTS:
            parts += [f"{self.memory_tokens} prompt{'s' * (self.memory_tokens != 1)}"]
            parts += [f"dropout {self.prompt_dropout}"] * (self.prompt_dropout > 0)
        parts += [f"rank {self.rank}"] * (self.rank > 0)
        return ", ".join(parts)
