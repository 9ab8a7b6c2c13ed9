"""Training heads on a frozen base: optimizer, schedule, and the loop.

Several heads can be trained in one pass over the data. Each has its own loss, gradient clipping, optimizer and
schedule, and none sees the others, so each ends as it would have alone.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from learnable_memory.evaluate import Score, evaluate
from learnable_memory.runlog import RunLog

logger = logging.getLogger(__name__)

LOG_EVERY = 10  # steps


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
        return min(self.epochs * per_epoch, self.max_steps or math.inf)


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
        return self.schedule.get_last_lr()[0]

    def clip(self) -> Tensor:
        """Scale the gradient down to the recipe's norm; returns its norm before, a scalar on the device."""
        return nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)

    def step(self) -> None:
        """One step with the gradients as they are, which are gone afterwards."""
        self.sgd.step()
        self.schedule.step()
        self.sgd.zero_grad()


@dataclass
class Best:
    """The best epoch of a head on the selection split so far.

    Attributes:
        epoch: counted from 0; -1 before the first.
        score: on the selection split.
        tensors: the head's state dict then.
        diverged_at: the step, from 1, at which its loss or gradient was not finite and it was stopped; None if it went
            through.
    """

    epoch: int = -1
    score: Score | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    diverged_at: int | None = None

    def consider(self, epoch: int, score: Score, head: nn.Module) -> bool:
        """Keep this epoch if it is better than all before it.

        On a small split many epochs have the same accuracy: then the lower loss decides, and at last the earlier one.
        """
        if self.score is not None and (score.top1, -score.loss) <= (self.score.top1, -self.score.loss):
            return False
        self.epoch, self.score = epoch, score
        self.tensors = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
        return True


def train(
    model, heads: Sequence[str], train_loader: DataLoader, select_loader: DataLoader,
    recipes: Recipe | Mapping[str, Recipe], log: RunLog | None = None, progress: bool = True,
) -> dict[str, Best]:  # fmt: skip
    """Train heads on one data set, all in the same pass, and leave each as it was after its best epoch.

    Args:
        model: a MemoryCapableViT; its base stays as it is, bit for bit, and all other heads are frozen.
        heads: names of the heads to train.
        train_loader: batches of (pixel_values, labels), with a sampler that knows `set_epoch`.
        select_loader: the selection split, whole; the epoch with the best top-1 there is kept.
        recipes: one for all heads, or one for each; they must agree on the number of steps.
        log: metrics go there: `train/loss`, `train/lr`, `train/gradient_norm` every 10 steps, `select/*` every epoch;
            with several heads each key ends in `/{head}`.
        progress: show a progress bar.

    Returns:
        For each head its best epoch, score and tensors. A head whose loss or gradient is not finite is stopped where it
        is, its `diverged_at` says where, and the others go on.

    Raises ValueError if there is nothing to train on, recipes differ in steps, one head extends another of them, or
    every head has diverged.
    """
    if isinstance(recipes, Recipe):
        recipes = dict.fromkeys(heads, recipes)
    steps = _common_steps(heads, recipes, len(train_loader))
    device = next(model.parameters()).device

    model.train_only(heads)
    model.train()
    optimizers = {name: HeadOptimizer(model.heads[name].parameters(), recipes[name], steps) for name in heads}
    best = {name: Best() for name in heads}
    writer = _Writer(log, heads)
    step, waited, start = 0, 0.0, time.perf_counter()

    # As a context, so that an error has its line for itself.
    epochs, rest = divmod(steps, len(train_loader))
    images = epochs * len(train_loader.dataset) + rest * train_loader.batch_size
    with tqdm(total=images, unit=" images", unit_scale=True, disable=not progress) as bar:
        for epoch in range(math.ceil(steps / len(train_loader))):
            train_loader.sampler.set_epoch(epoch)
            bar.set_description(f"epoch {epoch + 1}")
            ready = time.perf_counter()
            for pixel_values, labels in train_loader:
                waited += time.perf_counter() - ready

                rows = train_step(model, optimizers, pixel_values.to(device, non_blocking=True), labels.to(device))
                step += 1
                diverged = drop_diverged(optimizers, rows, best, step)

                bar.update(len(labels))
                if step % LOG_EVERY == 0 or step in (1, steps) or diverged:
                    writer.write(rows, step, epoch + 1)
                    lowest = min(row["train/loss"] for name, row in rows.items() if name in optimizers)
                    bar.set_postfix(loss=f"{lowest:.3f}", refresh=False)
                if step == steps:
                    break
                ready = time.perf_counter()

            # Choose: the selection split is seen by nobody else, and draws no random number.
            scores = evaluate(model, select_loader, list(optimizers))
            rows = {}
            for name, score in scores.items():
                best[name].consider(epoch, score, model.heads[name])
                rows[name] = {f"select/{key}": value for key, value in asdict(score).items()}
            writer.write(rows, step, epoch + 1)
            summary = ", ".join(f"{name} select top-1 {score.top1:.4f}" for name, score in scores.items())
            (bar.write if progress else logger.info)(f"epoch {epoch + 1}: {summary}")

    seconds = time.perf_counter() - start
    logger.info("%d steps in %.0f s, of which %.0f s waiting for data", steps, seconds, waited)
    for name in heads:
        if best[name].tensors:
            model.heads[name].load_state_dict(best[name].tensors)
    model.eval()
    return best


def _common_steps(heads: Sequence[str], recipes: Mapping[str, Recipe], per_epoch: int) -> int:
    lengths = {recipes[name].steps(per_epoch) for name in heads}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"Heads that are trained in one pass need the same number of steps, above 0; got {lengths}.")
    return lengths.pop()


def train_step(
    model, optimizers: Mapping[str, HeadOptimizer], pixel_values: Tensor, labels: Tensor
) -> dict[str, dict[str, float]]:
    """One step of every head on one batch: pixel_values [B, channels, height, width], labels int64 [B].

    A head whose loss or gradient is not finite makes no step: its parameters stay finite, and so does all that stands
    beside them in the pass.

    Returns for each head its `train/loss`, `train/lr` and `train/gradient_norm`.
    """
    outputs = model(pixel_values, heads=list(optimizers), with_base=False, labels=dict.fromkeys(optimizers, labels))
    losses = torch.stack([outputs[name].loss for name in optimizers])
    losses.sum().backward()  # each head gets the gradient of its own loss: no other depends on its parameters
    norms = torch.stack([optimizer.clip() for optimizer in optimizers.values()])
    rows = {}
    for (name, optimizer), loss, norm in zip(
        optimizers.items(), losses.detach().tolist(), norms.tolist(), strict=True
    ):  # the device is waited for twice in a step, not twice for each head
        rows[name] = {"train/loss": loss, "train/lr": optimizer.rate, "train/gradient_norm": norm}
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
    return rows


def drop_diverged(
    optimizers: dict[str, HeadOptimizer], rows: Mapping[str, Mapping[str, float]], best: Mapping[str, Best], step: int
) -> bool:
    """Take heads whose loss or gradient is not finite out of training, and say whether there were any.

    Raises ValueError if none is left.
    """
    before = len(optimizers)
    for name, row in rows.items():
        if not (math.isfinite(row["train/loss"]) and math.isfinite(row["train/gradient_norm"])):
            what = (
                f"The loss of {name} is {row['train/loss']}, its gradient's norm {row['train/gradient_norm']}, "
                f"at step {step} and rate {row['train/lr']:g}: lower --lr."
            )
            best[name].diverged_at = step
            del optimizers[name]
            if not optimizers:
                raise ValueError(what)
            logger.warning("%s The other heads go on.", what)
    return len(optimizers) < before


class _Writer:
    """Metric rows; with several heads in one log, keys end in the head's name."""

    def __init__(self, log: RunLog | None, heads: Sequence[str]) -> None:
        self.log, self.suffixes = log, {name: f"/{name}" if len(heads) > 1 else "" for name in heads}

    def write(self, rows: Mapping[str, Mapping[str, float]], step: int, epoch: int) -> None:
        if self.log is not None:
            merged = {f"{key}{self.suffixes[name]}": value for name, row in rows.items() for key, value in row.items()}
            self.log.metrics(merged, step=step, epoch=epoch)
