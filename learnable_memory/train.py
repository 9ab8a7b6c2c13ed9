"""Training heads on a frozen base: the loop.

Several heads can be trained in one pass over the data. Each has its own loss, gradient clipping, optimizer and
schedule, and none sees the others, so each ends as it would have alone. The same loop runs on one device or, under
`accelerate launch`, on several processes that share each batch; it can be interrupted and resumed at any step.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from learnable_memory.best_epoch import Best
from learnable_memory.checkpoint import (
    Checkpoint,
    Interrupted,
    StopRequest,
    random_state,
    set_random_state,
    stopping_on_signals,
)  # fmt: skip
from learnable_memory.evaluate import evaluate
from learnable_memory.headlog import HeadLog
from learnable_memory.loading import Loader
from learnable_memory.meter import Meter
from learnable_memory.optim import HeadOptimizers, Recipe
from learnable_memory.progress import progress_bar
from learnable_memory.runlog import RunLog
from learnable_memory.sharing import is_main, is_shared
from learnable_memory.train_step import train_step

if TYPE_CHECKING:
    from accelerate import Accelerator

    from learnable_memory.methods import TunedModel
    from vit import MemoryCapableViT

logger = logging.getLogger(__name__)

LOG_EVERY = 10  # steps


class AllDiverged(ValueError):
    """No head is left to train; `best` says of each where it ended."""

    def __init__(self, message: str, best: dict[str, Best]) -> None:
        super().__init__(message)
        self.best = best


@dataclass
class Run:
    """Everything that changes while heads are trained.

    Attributes:
        optimizers: of the heads; those that diverged are not trained any more.
        epoch: the one under way, from 0.
        batch: batches of it so far.
        step: steps in all so far.
        seconds: what the steps took, loading included and selection not.
    """

    model: "MemoryCapableViT | TunedModel"
    steps: int
    optimizers: HeadOptimizers
    best: dict[str, Best]
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in with the run that resumes it."""
        recipes = {name: asdict(recipe) for name, recipe in self.optimizers.recipes.items()}
        shapes = {name: [list(p.shape) for p in self.model.heads[name].parameters()] for name in recipes}
        return {"fingerprint": self.model.fingerprint, "steps": self.steps, "recipes": recipes, "shapes": shapes}

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors."""
        heads = {
            name: {"tensors": self.model.heads[name].state_dict(), "best": best.state_dict()}
            for name, best in self.best.items()
        }
        place = {"epoch": self.epoch, "batch": self.batch, "step": self.step, "seconds": self.seconds}
        return {**place, "heads": heads, "optimizers": self.optimizers.state_dict(), "random": random_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.seconds = state["seconds"]
        for name, head in state["heads"].items():
            self.model.heads[name].load_state_dict(head["tensors"])
            self.best[name] = Best.from_state_dict(head["best"])
        self.optimizers.load_state_dict(state["optimizers"])
        set_random_state(state["random"])


def train(
    model: "MemoryCapableViT | TunedModel", heads: Sequence[str], train_loader: Loader, select_loader: Loader | None,
    recipes: Recipe | Mapping[str, Recipe], log: RunLog | None = None, progress: bool = True, *,
    checkpoint: Checkpoint | None = None, accelerator: "Accelerator | None" = None, alone: bool | None = None,
) -> dict[str, Best]:  # fmt: skip
    """Train heads on one data set, all in the same pass, and leave each as it was after its best epoch.

    Args:
        model: a MemoryCapableViT, whose base stays as it is, bit for bit, as do all other heads; or a TunedModel.
        heads: names of the heads to train.
        train_loader: batches of (pixel_values, labels), with `EpochBatches` as its batch sampler; of any other loader
            the order and the views are its own affair, and it can be resumed between epochs only. A `FoldLoader`
            where a recipe holds a fold out.
        select_loader: the selection split, whole; the epoch with the best top-1 there is kept. None: the last one is.
        recipes: one for all heads, or one for each; they must agree on the number of steps.
        log: metrics go there: `train/loss`, `train/lr`, `train/gradient_norm` and those of `Meter` every 10 steps,
            `select/*` every epoch; unless it is `alone`, each key of a head ends in `/{head}`.
        progress: show a progress bar.
        checkpoint: the state is kept there; if it holds one already, training goes on from it. SIGTERM and Ctrl-C
            write it and raise `Interrupted`. The caller removes it when the results are safe.
        accelerator: the processes that share each batch; `log` and `progress` belong to the main one alone.
        alone: whether the log is of one head only; None: as many as are trained here.

    Returns:
        For each head its best epoch, score and tensors. A head whose loss or gradient is not finite is stopped where it
        is, its `diverged_at` says where, and the others go on.

    Raises ValueError if there is nothing to train on, recipes differ in steps, one head extends another of them, or the
    checkpoint belongs to another run; AllDiverged if every head has diverged.
    """
    if isinstance(recipes, Recipe):
        recipes = dict.fromkeys(heads, recipes)
    steps = _common_steps(heads, recipes, len(train_loader))
    model.train_only(heads)
    model.train()
    optimizers = HeadOptimizers({name: model.heads[name] for name in heads}, recipes, steps)
    run = Run(model, steps, optimizers, {name: Best() for name in heads})
    saver = _Saver(run, checkpoint, log, accelerator)
    saver.resume()

    alone = len(heads) == 1 if alone is None else alone
    writer, meter = HeadLog(log, heads, alone), Meter(steps, run.step, next(model.parameters()).device)
    total = _images(train_loader, steps)
    # Contexts, so that an error has its line for itself, and signals are what they were.
    with (
        stopping_on_signals() if checkpoint else _nothing_stops() as stop,
        progress_bar(total=total, unit=" images", unit_scale=True, disable=not progress) as bar,
    ):
        bar.update(_images(train_loader, run.step))
        while run.step < steps or run.batch:
            bar.set_description(f"epoch {run.epoch + 1}")
            train_epoch(run, train_loader, writer, meter, bar, saver, stop, accelerator)
            if select_loader is None:
                end_epoch(run)
            else:
                choose_epoch(run, select_loader, writer, bar, saver, stop, accelerator)
            saver.save()
            if stop and not saver.shares:  # it came too late for the selection; several processes agree in a step
                saver.interrupt(stop)
    logger.info("%d steps, %.0f %% of the time waiting for data", run.step, 100 * meter.waited_share)
    return _leave_best(model, run.best, run.step, run.seconds)


def _leave_best(
    model: "MemoryCapableViT | TunedModel", best: dict[str, Best], steps: int, seconds: float
) -> dict[str, Best]:
    """Put each head where it was after its best epoch."""
    for name, epoch in best.items():
        epoch.steps, epoch.seconds = steps, seconds
        if epoch.tensors:
            model.heads[name].load_state_dict(epoch.tensors)
    model.eval()
    return best


def train_epoch(
    run: Run, loader: Loader, writer: HeadLog, meter: Meter, bar: tqdm, saver: "_Saver", stop: StopRequest,
    accelerator: "Accelerator | None",
) -> None:  # fmt: skip
    """From where the run is to the end of its epoch, or of its steps."""
    per_epoch = len(loader)
    if run.batch >= per_epoch or run.step >= run.steps:
        return
    _start(loader, run.epoch, run.batch)
    batches = iter(loader)
    while run.batch < per_epoch and run.step < run.steps:
        started = time.perf_counter()
        with meter.waiting():
            batch = next(batches, None)  # None: the last batch had no image for this process

        rows, stopping = train_step(run.model, run.optimizers, batch, accelerator, stop)
        run.step, run.batch = run.step + 1, run.batch + 1
        diverged = drop_diverged(run.optimizers, rows, run.best, run.step)
        run.seconds += time.perf_counter() - started

        images = _images(loader, run.step) - _images(loader, run.step - 1)
        meter.count(images)
        bar.update(images)
        if run.step % LOG_EVERY == 0 or run.step in (1, run.steps) or diverged:
            reading = meter.read(run.step)
            writer.write(rows, run.step, run.epoch + 1, reading)
            lowest = min((rows[name]["train/loss"] for name in run.optimizers.names if name in rows), default=math.nan)
            memory = reading["train/peak_memory_bytes"] / 2**30
            text = f"loss {lowest:.3f}, waited {reading['train/waited_share']:.0%}, peak {memory:.1f} GiB"
            bar.set_postfix_str(text, refresh=False)
        saver.after_step(stopping, stop)


def end_epoch(run: Run) -> None:
    """Without a selection split what is learned at the end of the last epoch is kept."""
    if run.step >= run.steps:
        with run.optimizers.averaged():
            for name in run.optimizers.names:
                run.best[name].keep(run.epoch, run.model.heads[name])
    run.epoch, run.batch = run.epoch + 1, 0


def choose_epoch(
    run: Run, loader: Loader, writer: HeadLog, bar: tqdm, saver: "_Saver", stop: StopRequest,
    accelerator: "Accelerator | None",
) -> None:  # fmt: skip
    """Score the epoch on the selection split, which is seen by nobody else, and draws no random number."""
    try:
        with run.optimizers.averaged():
            scores = evaluate(run.model, loader, run.optimizers.names, stop=stop, accelerator=accelerator)
            for name, score in scores.items():
                run.best[name].consider(run.epoch, score, run.model.heads[name])
    except KeyboardInterrupt:
        saver.interrupt(stop)
        raise
    rows = {name: {f"select/{key}": value for key, value in score.known().items()} for name, score in scores.items()}
    writer.write(rows, run.step, run.epoch + 1)
    top1 = {name: score.top1 for name, score in scores.items()}
    leader = max(top1, key=top1.__getitem__)
    which = f"{leader} leads with select" if len(top1) > 1 else f"{leader} select"
    line = f"epoch {run.epoch + 1}: {which} top-1 {top1[leader]:.4f}"
    if bar.disable:
        logger.info("%s", line)
    else:
        bar.write(line, file=sys.stderr)
    run.epoch, run.batch = run.epoch + 1, 0


def drop_diverged(
    optimizers: HeadOptimizers, rows: Mapping[str, Mapping[str, float]], best: Mapping[str, Best], step: int
) -> bool:
    """Take heads whose loss or gradient is not finite out of training, and say whether there were any.

    Raises AllDiverged if none is left.
    """
    before = len(optimizers.names)
    for name, row in rows.items():
        if not (math.isfinite(row["train/loss"]) and math.isfinite(row["train/gradient_norm"])):
            what = (
                f"The loss of {name} is {row['train/loss']}, its gradient's norm {row['train/gradient_norm']}, "
                f"at step {step} and rate {row['train/lr']:g}: lower --lr."
            )
            best[name].diverged_at = step
            optimizers.drop(name)
            if not optimizers.names:
                raise AllDiverged(what, dict(best))
            logger.warning("%s The other heads go on.", what)
    return len(optimizers.names) < before


class _Saver:
    """When the state of a run is written, by the main process, and read, by all."""

    def __init__(
        self, run: Run, checkpoint: Checkpoint | None, log: RunLog | None, accelerator: "Accelerator | None"
    ) -> None:
        self.run, self.checkpoint, self.log = run, checkpoint, log
        self.writes = is_main(accelerator)
        self.shares = is_shared(accelerator)
        self.identity = run.identity()  # now, before any head diverges

    def resume(self) -> None:
        """Put the run where the checkpoint was, if there is one."""
        state = self.checkpoint.load() if self.checkpoint else None
        if self.checkpoint is None or state is None:
            return
        found = state.get("identity", {})
        if found != self.identity:
            differing = sorted(key for key in self.identity if found.get(key) != self.identity[key])
            raise ValueError(
                f"{self.checkpoint.path} belongs to another run ({', '.join(differing)} differ): remove it, or train "
                "with the options that it was written with."
            )
        self.run.load_state_dict(state["run"])
        logger.info("resumed after step %d of %d", self.run.step, self.run.steps)

    def save(self) -> None:
        """Write the state now."""
        if self.checkpoint and self.writes:
            position = None if self.log is None else self.log.position
            self.checkpoint.save({"identity": self.identity, "run": self.run.state_dict(), "log_position": position})

    def after_step(self, stopping: bool, stop: StopRequest) -> None:
        """Write the state if it is time, or if a signal came."""
        if self.checkpoint and stopping:
            self.interrupt(stop)
        if self.checkpoint and self.run.step % self.checkpoint.every == 0:
            self.save()

    def interrupt(self, stop: StopRequest) -> None:
        """Write the state and raise Interrupted. Without a checkpoint nothing is there to be written."""
        if self.checkpoint:
            self.save()
            where = f"after step {self.run.step} of {self.run.steps}"
            raise Interrupted(f"interrupted {where}; go on with --resume", stop.signal_number or 0)


@contextlib.contextmanager
def _nothing_stops() -> Iterator[StopRequest]:
    yield StopRequest()


def _start(loader: Loader, epoch: int, batch: int) -> None:
    """Let the next pass over the loader be this epoch from this batch on."""
    set_epoch = getattr(loader.batch_sampler, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch, batch)
    elif batch:
        raise ValueError(
            f"The loader cannot go on after batch {batch} of an epoch: give it `EpochBatches` as its batch sampler."
        )


def _images(loader: Loader, steps: int) -> int:
    """Images of the first `steps` steps, over all processes."""
    epochs, rest = divmod(steps, len(loader))
    length, batch_size = len(loader.dataset), loader.batch_sampler.batch_size
    per_epoch = min(length, len(loader) * batch_size)
    return epochs * per_epoch + min(rest * batch_size, per_epoch)


def _common_steps(heads: Sequence[str], recipes: Mapping[str, Recipe], per_epoch: int) -> int:
    lengths = {recipes[name].steps(per_epoch) for name in heads}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"Heads that are trained in one pass need the same number of steps, above 0; got {lengths}.")
    return lengths.pop()
