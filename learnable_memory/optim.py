"""How one head is optimised: recipe, schedule, clipping and SGD."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How a head is trained (paper, section 4.1: SGD, momentum 0.9, 5 steps of warm-up, cosine decay).

    Attributes:
        epochs: passes over the data.
        lr: the peak rate.
        momentum: of SGD.
        clip: gradients of a head are scaled down to this norm.
        warmup_steps: the rate grows linearly over these.
        max_steps: stop after so many steps, with the cosine at zero then; None for the end of the last epoch.
    """

    epochs: int = 20
    lr: float = 0.03
    momentum: float = 0.9
    clip: float = 1.0
    warmup_steps: int = 5
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, but it has to be 1 or more, or None for no limit.")

    def steps(self, per_epoch: int) -> int:
        """The real number of steps, for a loader of `per_epoch` batches."""
        steps = self.epochs * per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


def rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """The rate of step 0, 1, .. as a share of its peak: linear warm-up, then a cosine that reaches zero at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


class HeadOptimizer:
    """SGD, clipping and schedule of one head."""

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe, steps: int) -> None:
        self.parameters, self.recipe = list(parameters), recipe
        self.sgd = torch.optim.SGD(self.parameters, lr=recipe.lr, momentum=recipe.momentum)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.sgd, lambda step: rate_factor(step, steps, recipe.warmup_steps)
        )

    @property
    def rate(self) -> float:
        """The rate of the coming step."""
        return float(self.schedule.get_last_lr()[0])

    def clip(self) -> Tensor:
        """Scale the gradient down to the recipe's norm; returns its norm before, [] on the device."""
        return nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)

    def step(self) -> None:
        """One step with the gradients as they are, which are gone afterwards."""
        self.sgd.step()
        self.schedule.step()
        self.sgd.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Momentum, and where in the schedule it is."""
        return {"sgd": self.sgd.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`, for the same parameters and recipe."""
        self.sgd.load_state_dict(state["sgd"])
        self.schedule.load_state_dict(state["schedule"])
