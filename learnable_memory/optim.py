"""How heads are optimised: recipe, schedule, clipping, optimizers and moving average."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
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


def low_rank_of(head: Any) -> list[nn.Parameter]:
    """The low-rank weights among what a head learns; none of a network that is no head."""
    return list(head.low_rank.parameters()) if hasattr(head, "low_rank") else []


class HeadOptimizers:
    """Optimizers, clipping, schedule and moving averages of all heads that are trained in one pass.

    Heads share one torch optimizer of each kind, where each has parameter groups of its own: it learns what it would
    learn alone.

    Args:
        heads: modules by name; all their parameters are learned.
        recipes: of each of them.
        steps: of the schedule, which they share.

    Attributes:
        parameters: of the heads that are still trained.
    """

    def __init__(self, heads: Mapping[str, Any], recipes: Mapping[str, Recipe], steps: int) -> None:
        self.recipes, self.steps, self.steps_done = {name: recipes[name] for name in heads}, steps, 0
        self.parameters = {name: list(head.parameters()) for name, head in heads.items()}
        groups: dict[str, list[dict[str, Any]]] = {"sgd": [], "adamw": []}
        for name, head in heads.items():
            recipe, ranked = recipes[name], low_rank_of(head)
            places = {id(parameter) for parameter in ranked}
            others = [parameter for parameter in self.parameters[name] if id(parameter) not in places]
            of_others, of_ranked = {"mixed": ("sgd", "adamw")}.get(recipe.fit.optimizer, (recipe.fit.optimizer,) * 2)
            peaks = (of_others, others, recipe.lr), (of_ranked, ranked, recipe.lr * recipe.fit.rank_lr)
            for kind, parameters, peak in peaks:
                momentum = {"momentum": recipe.momentum} if kind == "sgd" else {"betas": (recipe.momentum, 0.999)}
                group = {"params": parameters, "weight_decay": recipe.fit.weight_decay, **momentum}
                groups[kind] += [{**group, "peak": peak, "warmup_steps": recipe.warmup_steps}] if parameters else []
        makers = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
        self.optimizers = [makers[kind](found, fused=True) for kind, found in groups.items() if found]
        averaged = [name for name, recipe in self.recipes.items() if recipe.fit.ema]
        self.averages = {name: [p.detach().clone() for p in self.parameters[name]] for name in averaged}
        self.averaged_steps = dict.fromkeys(averaged, 0)

    @property
    def names(self) -> list[str]:
        """The heads that are still trained."""
        return list(self.parameters)

    def rate(self, name: str) -> float:
        """The rate of a head's coming step, low-rank weights aside."""
        recipe = self.recipes[name]
        return recipe.lr * rate_factor(self.steps_done, self.steps, recipe.warmup_steps)

    def loss(self, name: str, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean cross entropy of logits [B, C] against labels int64 [B], smoothed as the head's recipe says.

        Args:
            rows: int64, the images of the batch that count, each once; None: all. Of none the loss is 0.
        """
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if rows is not None:
            precise, labels = precise[rows], labels[rows]
            if not len(rows):
                return precise.sum()  # 0, with gradients of 0
        return F.cross_entropy(precise, labels, label_smoothing=self.recipes[name].fit.label_smoothing)

    def clip(self) -> Tensor:
        """Scale the gradient of each head down to its recipe's norm; returns their norms before, [T] on the device."""
        return torch.stack(
            [nn.utils.clip_grad_norm_(learned, self.recipes[name].clip) for name, learned in self.parameters.items()]
        )

    def step(self, names: Collection[str]) -> None:
        """One step of these heads with the gradients as they are; the others keep what they have learned.

        The schedule goes on for all, and no gradient is left.
        """
        for name, learned in self.parameters.items():
            if name not in names:
                for parameter in learned:
                    parameter.grad = None  # optimizers pass it by
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate_factor(self.steps_done, self.steps, group["warmup_steps"])
            optimizer.step()
            optimizer.zero_grad()
        self.steps_done += 1
        for name in self.averages.keys() & set(names):
            self.averaged_steps[name] += 1
            # Of the first steps more than the decay says, or the average would long be that of the initial values.
            decay = min(self.recipes[name].fit.ema, self.averaged_steps[name] / (self.averaged_steps[name] + 9))
            for mean, parameter in zip(self.averages[name], self.parameters[name], strict=True):
                mean.lerp_(parameter.detach(), 1 - decay)

    def drop(self, name: str) -> None:
        """Train a head no more."""
        del self.parameters[name]
        self.averages.pop(name, None)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters of heads that have a moving average are that average here."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.averages.items():
            for mean, parameter in zip(average, self.parameters[name], strict=True):
                kept = parameter.clone()
                parameter.copy_(mean)
                mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Momentum, where in the schedule it is, the moving averages, and which heads are still trained."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "steps_done": self.steps_done,
            "trained": self.names,
            "averages": self.averages,
            "averaged_steps": self.averaged_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same heads and recipes."""
        for name in set(self.names) - set(state["trained"]):
            self.drop(name)
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for name, average in self.averages.items():
            for mean, kept in zip(average, state["averages"][name], strict=True):
                mean.copy_(kept)
        self.steps_done, self.averaged_steps = state["steps_done"], dict(state["averaged_steps"])
