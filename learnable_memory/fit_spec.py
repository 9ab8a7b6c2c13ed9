"""How one cell of a grid is fitted, beside its rate and seed: the optimizer and what goes with it. Standard library."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("sgd", "adamw", "mixed")


@dataclass(frozen=True)
class FitSpec:
    """What `vit_train.py` may be told of fitting, each a dimension of a grid.

    Args:
        optimizer: "sgd", with momentum (the paper's), "adamw", or "mixed": AdamW for a head's low-rank weights and SGD
            for all else of it.
        rank_lr: the rate of low-rank weights, as a multiple of the rate of all else.
        weight_decay: of all that is learned; of SGD an L2 penalty, of AdamW decoupled from the gradient.
        label_smoothing: the share of the target that is spread over all classes, in [0, 1).
        ema: decay of an exponential moving average of what is learned, in [0, 1); the average is what is evaluated and
            kept. 0: none. After step n it is at most n / (n + 9), or the initial values would long weigh too much: 0.9
            is in force from step 81 on, 0.99 from 891.

    Raises ValueError for what is not legal.
    """

    optimizer: str = "sgd"
    rank_lr: float = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}, but it has to be one of {', '.join(OPTIMIZERS)}.")
        if not 0 < self.rank_lr < float("inf"):
            raise ValueError(f"rank_lr is {self.rank_lr}, but it has to be above 0.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay is {self.weight_decay}, but it has to be 0 or more.")
        for what in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}, but it has to be at least 0 and less than 1.")

    @property
    def _told(self) -> list[tuple[str, str, float]]:
        """What is not as usual: short name, name for readers, value."""
        numbers = (
            ("rlr", "low-rank rate x", self.rank_lr, 1.0), ("wd", "weight decay", self.weight_decay, 0.0),
            ("smooth", "label smoothing", self.label_smoothing, 0.0), ("ema", "average", self.ema, 0.0),
        )  # fmt: skip
        return [(short, long, float(value)) for short, long, value, usual in numbers if value != usual]

    @property
    def name(self) -> str:
        """Made of what names of heads may be made of: `adamw_wd0p01`; empty for the paper's."""
        parts = [] if self.optimizer == "sgd" else [self.optimizer]
        return "_".join([*parts, *(f"{short}{value!r}".replace(".", "p") for short, _, value in self._told)])

    @property
    def label(self) -> str:
        """For readers: `adamw, weight decay 0.01`; `sgd` alone for the paper's."""
        return ", ".join([self.optimizer, *(f"{long} {value:g}" for _, long, value in self._told)])


PAPERS_FIT = FitSpec()  # section 4.1
