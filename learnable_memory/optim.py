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


def optimizer_of(kind: str, parameters: list[nn.Parameter], lr: float, recipe: Recipe) -> torch.optim.Optimizer:
    """One of `fit_spec.OPTIMIZERS` but "mixed", with momentum and weight decay of the recipe."""
    decay = recipe.fit.weight_decay
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=lr, betas=(recipe.momentum, 0.999), weight_decay=decay)


def low_rank_of(head: Any) -> list[nn.Parameter]:
    """The low-rank weights among what a head learns; none of a network that is no head."""
    return list(head.low_rank.parameters()) if hasattr(head, "low_rank") else []


class HeadOptimizer:
    """Optimizer, clipping, schedule and moving average of one head.

    Args:
        parameters: all that is learned.
        steps: of the schedule.
        low_rank: those of `parameters` that are low-rank weights, which may have a rate and an optimizer of their own.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], recipe: Recipe, steps: int, low_rank: Iterable[nn.Parameter] = ()
    ) -> None:
        self.parameters, self.recipe = list(parameters), recipe
        ranked = list(low_rank)
        places = {id(parameter) for parameter in ranked}
        others = [parameter for parameter in self.parameters if id(parameter) not in places]
        of_others, of_ranked = {"mixed": ("sgd", "adamw")}.get(recipe.fit.optimizer, (recipe.fit.optimizer,) * 2)
        self.optimizers = [
            optimizer_of(kind, group, lr, recipe)
            for kind, group, lr in ((of_others, others, recipe.lr), (of_ranked, ranked, recipe.lr * recipe.fit.rank_lr))
            if group
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, recipe.warmup_steps))
            for optimizer in self.optimizers
        ]
        self.average = [p.detach().clone() for p in self.parameters] if recipe.fit.ema else []
        self.averaged_steps = 0

    @property
    def rate(self) -> float:
        """The rate of the coming step, low-rank weights aside."""
        return float(self.schedules[0].get_last_lr()[0])

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
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
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
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                schedule.step()
                optimizer.zero_grad()

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
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "average": self.average,
            "averaged_steps": self.averaged_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`, for the same parameters and recipe."""
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for schedule, kept in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(kept)
        for mean, kept in zip(self.average, state["average"], strict=True):
            mean.copy_(kept)
        self.averaged_steps = state["averaged_steps"]
