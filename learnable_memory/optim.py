"""How one head is optimised: recipe, schedule, clipping, optimizer and moving average."""

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learnable_memory.fit_spec import PAPERS_FIT, FitSpec


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
        fit: the optimizer, weight decay, label smoothing and moving average; `momentum` is AdamW's first beta.
        held_out: the fold whose images it does not learn from, of batches that a `FoldLoader` gives; None: of all.
    """

    epochs: int = 20
    lr: float = 0.03
    momentum: float = 0.9
    clip: float = 1.0
    warmup_steps: int = 5
    max_steps: int | None = None
    fit: FitSpec = PAPERS_FIT
    held_out: int | None = None

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
    """Optimizer, clipping, schedule and moving average of one head."""

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe, steps: int) -> None:
        self.parameters, self.recipe = list(parameters), recipe
        decay = recipe.fit.weight_decay
        self.optimizer: torch.optim.Optimizer
        if recipe.fit.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                self.parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay
            )  # fmt: skip
        else:
            self.optimizer = torch.optim.AdamW(
                self.parameters, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=decay
            )  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate_factor(step, steps, recipe.warmup_steps)
        )
        self.average = [p.detach().clone() for p in self.parameters] if recipe.fit.ema else []
        self.averaged_steps = 0

    @property
    def rate(self) -> float:
        """The rate of the coming step."""
        return float(self.schedule.get_last_lr()[0])

    def loss(self, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean cross entropy of logits [B, C] against labels int64 [B], smoothed as the recipe says.

        Args:
            rows: int64, the images of the batch that count, each once; None: all. Of none the loss is 0.
        """
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if rows is not None:
            precise, labels = precise[rows], labels[rows]
            if not len(rows):
                return precise.sum()  # 0, with gradients of 0
        return F.cross_entropy(precise, labels, label_smoothing=self.recipe.fit.label_smoothing)

    def clip(self) -> Tensor:
        """Scale the gradient down to the recipe's norm; returns its norm before, [] on the device."""
        return nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)

    def step(self) -> None:
        """One step with the gradients as they are, which are gone afterwards."""
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average:
            self.averaged_steps += 1
            # Of the first steps more than the decay says, or the average would long be that of the initial values.
            decay = min(self.recipe.fit.ema, self.averaged_steps / (self.averaged_steps + 9))
            for mean, parameter in zip(self.average, self.parameters, strict=True):
                mean.lerp_(parameter.detach(), 1 - decay)

    def skip(self) -> None:
        """A step without gradients: the schedule goes on, what is learned stays."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a schedule that steps before its optimizer
            self.schedule.step()
        self.optimizer.zero_grad()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are their moving average here, if there is one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self.average:
            for mean, parameter in zip(self.average, self.parameters, strict=True):
                kept = parameter.clone()
                parameter.copy_(mean)
                mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Momentum, where in the schedule it is, and the moving average."""
        return {
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "average": self.average, "averaged_steps": self.averaged_steps,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`, for the same parameters and recipe."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for mean, kept in zip(self.average, state["average"], strict=True):
            mean.copy_(kept)
        self.averaged_steps = state["averaged_steps"]
