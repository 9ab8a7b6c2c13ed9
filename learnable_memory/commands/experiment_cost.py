"""What a card will cost on this machine: each kind of pass is measured for a few steps, on its own data."""

import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from learnable_memory.commands.experiment_runs import PlannedRun, data_of, missing, passes
from learnable_memory.commands.inputs import evaluation_loader
from learnable_memory.commands.passes import Pass
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import to_dict
from learnable_memory.evaluate import evaluate
from learnable_memory.experiments.card import Card
from learnable_memory.grid import OF_A_CELL
from learnable_memory.meter import peak_memory, reset_peak_memory
from learnable_memory.optim import HeadOptimizers
from learnable_memory.text_table import side_by_side
from learnable_memory.train_step import train_step

logger = logging.getLogger(__name__)

WARM_UP, MEASURED = 2, 5  # steps; the first ones are slower
OF_A_SEED = ("seed", "seeds", "data_seeds", "output", "name")


@dataclass(frozen=True)
class Measured:
    """One pass, extrapolated.

    Attributes:
        words: what it is.
        passes: how many of this kind are missing.
        start_seconds: until the first step: base, data, loaders.
        step_seconds: of a training step, loading included.
        steps: of the whole pass.
        image_seconds: of an evaluated image.
        images: that are evaluated in the whole pass, on `select` and on `eval`.
        peak_bytes: as `meter.peak_memory`.
    """

    words: str
    passes: int
    start_seconds: float
    step_seconds: float
    steps: int
    image_seconds: float
    images: int
    peak_bytes: int

    @property
    def training_seconds(self) -> float:
        """Of all passes."""
        return self.passes * self.steps * self.step_seconds

    @property
    def seconds(self) -> float:
        """Of all passes, with evaluation and what comes before the first step."""
        return self.training_seconds + self.passes * (self.start_seconds + self.images * self.image_seconds)


def predicted(
    card: Card, rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any], only: Sequence[str] = ()
) -> str:  # fmt: skip
    """A table of what is missing of the card: passes, time and memory, and the sum.

    Args: as of `experiment_runs.missing`.
    """
    kinds: dict[str, list[list[PlannedRun]]] = {}
    for group in passes(missing(card, rows, where, only, whole=True)):
        kinds.setdefault(_kind(group), []).append(group)
    if not kinds:
        return f"{card.name}: nothing is missing."
    found = []
    for number, groups in enumerate(kinds.values(), start=1):
        logger.info("measuring %d of %d: %s", number, len(kinds), _words(groups[0]))
        found.append(measure(groups[0], len(groups)))
    further = "\nnot counted: putting heads together, which takes evaluations and, for extensions, further training"
    return table(found) + further * bool(card.together)


def _kind(group: Sequence[PlannedRun]) -> str:
    """The same for passes that cost the same: those that differ in rates and seeds."""
    options = to_dict(group[0].options)
    shared = {key: value for key, value in options.items() if key not in OF_A_CELL + OF_A_SEED}
    return json.dumps([shared, [asdict(run.cell.spec) for run in group]], sort_keys=True)


def _words(group: Sequence[PlannedRun]) -> str:
    heads = f" and {len(group) - 1} more heads" if len(group) > 1 else ""
    return f"{group[0].variant.label}{heads}"


def measure(group: Sequence[PlannedRun], count: int) -> Measured:
    """Train a few steps of a pass and evaluate a few batches; nothing is written."""
    begin = time.perf_counter()
    options = group[0].options
    base, data = TrainingBase(options), data_of(options)
    base.check(run.cell.spec for run in group)
    if base.convolutional is not None:  # each a pass of its own
        group, count = group[:1], count * len(group)
    reset_peak_memory(base.device)
    cells = {f"h{number}": run.cell for number, run in enumerate(group)}
    one_pass = Pass(base, data, options, cells, group[0].data_seed)
    model, recipes = one_pass.model, one_pass.recipes()
    loader = one_pass.inputs().train(data.train)
    steps = recipes["h0"].steps(len(loader))
    model.train_only(list(cells))
    model.train()
    optimizers = HeadOptimizers({name: model.heads[name] for name in cells}, recipes, steps)
    batches = _endless(loader)
    start = time.perf_counter()
    for number in range(WARM_UP + MEASURED):
        if number == WARM_UP:
            start = time.perf_counter()
        train_step(model, optimizers, next(batches))
    step_seconds = (time.perf_counter() - start) / MEASURED
    some = data.eval.subset(range(min(len(data.eval), 4 * options.batch_size)))
    score = evaluate(model, evaluation_loader(some, base.preprocessing, options, base.device), list(cells))["h0"]
    epochs = math.ceil(steps / len(loader))
    return Measured(
        _words(group), count, start - begin - WARM_UP * step_seconds, step_seconds, steps, 1 / score.images_per_second,
        epochs * len(data.select) + len(data.eval), peak_memory(base.device),
    )  # fmt: skip


def _endless(loader: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def table(found: Sequence[Measured]) -> str:
    """For the terminal: a line for each kind of pass, and the sum."""
    total, training = sum(kind.seconds for kind in found), sum(kind.training_seconds for kind in found)
    columns = [
        ["pass", *(kind.words for kind in found)],
        ["passes", *(str(kind.passes) for kind in found)],
        ["steps", *(f"{kind.steps:,}" for kind in found)],
        ["ms a step", *(f"{1000 * kind.step_seconds:.1f}" for kind in found)],
        ["evaluated images/s", *(f"{1 / kind.image_seconds:,.0f}" for kind in found)],
        ["hours in all", *(f"{kind.seconds / 3600:.2f}" for kind in found)],
        ["peak GiB", *(f"{kind.peak_bytes / 2**30:.2f}" for kind in found)],
    ]
    return (
        f"{side_by_side(columns)}\n\n{sum(kind.passes for kind in found)} passes, {total / 3600:.2f} hours, "
        f"{training / 3600:.2f} of them training; at most {max(kind.peak_bytes for kind in found) / 2**30:.2f} GiB"
    )
