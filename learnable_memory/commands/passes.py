"""One pass over a data set: heads that learn together, or one network; chosen on `select`, scored on `eval`."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from learnable_memory import confusion, grid, heads, out_of_fold, tuned_files
from learnable_memory.best_epoch import Best
from learnable_memory.bits import pack_bits
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.cross_validation import CrossValidated, CrossValidation
from learnable_memory.commands.inputs import TrainingInputs, evaluation_loader
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.confusion import Confusion
from learnable_memory.data import DataSet
from learnable_memory.evaluate import Answers, Score, evaluate
from learnable_memory.grid import OF_A_CELL, Cell, Outcome
from learnable_memory.headlog import HeadLog
from learnable_memory.meter import peak_memory, reset_peak_memory
from learnable_memory.methods import TunedModel
from learnable_memory.optim import Recipe
from learnable_memory.public_names import public_metadata
from learnable_memory.runlog import RunLog, versions, write_json
from learnable_memory.train import AllDiverged, train
from learnable_memory.transforms import Preprocessing
from learnable_memory.wording import counted

logger = logging.getLogger(__name__)

# What a head file says elsewhere: of its own cell, and by hash.
OF_ONE_HEAD = {*OF_A_CELL, "seeds", "data_seeds", "extends"} - {"memory_norm"}
# What a head file does not keep of the options, and what a resumed run may change: it says something of a machine, and
# nothing of the head.
OF_THE_MACHINE = (
    "directory", "output", "device", "workers", "no_download", "overwrite", "keep_all", "compile", "cache_folder",
    "checkpoint_steps", "resume", "log_with", "gradient_checkpointing", "attn_implementation",
)  # fmt: skip


class Pass:
    """One pass over a data set, of heads or of one network: training and evaluation.

    Args:
        base: what is learned on; its heads stay on it.
        data: with the selection split of this pass.
        cells: by the names that they get in the model.
        seed: of order and views.
        extends: heads of the base that new ones are built on.
        alone: whether the log is of one head only.
        others: whether there are further passes, so that this one may end with all of its heads diverged.

    Attributes:
        model: trained by `run`.
        cross_validation: the heads that are trained beside those of the cells; None without `--folds`.
    """

    def __init__(
        self, base: TrainingBase, data: DataSet, options: TrainOptions, cells: Mapping[str, Cell], seed: int,
        log: RunLog | None = None, accelerator: Any = None, *, extends: Sequence[str] = (), alone: bool = False,
        others: bool = False,
    ) -> None:  # fmt: skip
        self.base, self.data, self.options, self.names, self.seed = base, data, options, cells, seed
        self.log, self.accelerator, self.extends, self.alone, self.others = log, accelerator, extends, alone, others
        self.cross_validation = CrossValidation(data, list(cells)) if data.folds else None
        trained = self.cross_validation.cells(cells) if self.cross_validation else cells
        self.model = base.model(trained, len(data.labels), extends)

    def run(self, checkpoint: Checkpoint, ending: Path, learned: Path | None = None) -> list[Outcome]:
        """Train and evaluate; with `--resume`, what is on disk of it already is not done again.

        Args:
            checkpoint: the state on the way, removed when the pass has ended.
            ending: the file of its outcomes, and of where in the log it ended; written last.
            learned: the folder where each outcome that did not diverge leaves what it learned; None: nowhere.
        """
        self._announce()
        if self.options.resume and ending.exists():
            rows = json.loads(ending.read_text(encoding="utf-8"))["outcomes"]
            outcomes = [Outcome.from_row(row) for row in rows]
            kept = [each.head for each in outcomes if not each.diverged] if learned else []
            if all(path.is_file() for name in kept for path in self._files(learned or ending.parent, name)):
                return outcomes

        device = next(self.model.parameters()).device
        reset_peak_memory(device)
        best, preparing = self._train(checkpoint)
        diverged = {name: self._diverged_at(name, best) for name in self.names}
        self._say_folds_that_diverged(best)
        whole = [name for name in self.names if best[name].tensors and diverged[name] is None]
        scores, answers, evaluating = self._evaluate(whole, device) if whole else ({}, {}, 0.0)
        validated = self._validate(whole)
        memory = peak_memory(device)
        outcomes = [
            Outcome(
                cell=cell, head=name, data_seed=self.seed, parameters=self._parameters(name),
                epoch=best[name].epoch + 1 if best[name].tensors else None, diverged_at=diverged[name],
                select=_as_dict(validated[name].score if name in validated else best[name].score),
                eval=_as_dict(scores.get(name)),
                eval_right=pack_bits(answers[name].right.numpy()) if name in answers else None,
                folds=[asdict(each) for each in validated[name].folds] if name in validated else None,
                steps=best[name].steps, train_seconds=preparing + best[name].seconds, eval_seconds=evaluating,
                heads_in_pass=len(best), peak_memory_bytes=memory,
            )
            for name, cell in self.names.items()
        ]  # fmt: skip
        if self.log is not None:
            self._leave(self.log, outcomes, ending, learned, validated, answers)
            checkpoint.remove()
        return outcomes

    def _leave(
        self, log: RunLog, outcomes: Sequence[Outcome], ending: Path, learned: Path | None,
        validated: Mapping[str, CrossValidated], answers: Mapping[str, Answers],
    ) -> None:  # fmt: skip
        evaluated = [(each, each.eval) for each in outcomes if each.eval is not None]
        if evaluated:
            rows = {
                each.head: {f"eval/{key}": value for key, value in scores.items() if value is not None}
                for each, scores in evaluated
            }
            for name, found in validated.items():
                rows[name] |= {f"folds/{key}": value for key, value in found.score.known().items()}
            whole = [each for each in outcomes if not each.diverged]
            chosen = grid.best(whole) if whole else evaluated[0][0]
            assert chosen.steps is not None and chosen.epoch is not None  # it was trained here, and evaluated
            HeadLog(log, list(self.names), self.alone).write(rows, chosen.steps, chosen.epoch)
        for each in outcomes:
            if learned is not None and not each.diverged:
                head, classes, *predictions = self._files(learned, each.head)
                self.save(each, head)
                predicted = answers[each.head].predicted.numpy()
                confusion.save(Confusion(self.data.labels, self.data.eval.labels, predicted), classes, each.head)
                for path in predictions:
                    out_of_fold.save(validated[each.head].found, path)
        write_json(ending, {"outcomes": [outcome.row() for outcome in outcomes], "log_position": log.position})

    def _files(self, folder: Path, name: str) -> list[Path]:
        """What a cell leaves there: what it has learned, its classes and, of a cross-validated one, its predictions."""
        predictions = [folder / f"{name}{out_of_fold.ENDING}"] if self.cross_validation else []
        return [folder / heads.file_name(name), folder / f"{name}{confusion.ENDING}", *predictions]

    def save(self, outcome: Outcome, path: Path) -> None:
        """Write what one of its cells has learned: the file of a head, or that of a network."""
        metadata = head_metadata(self.data, self.base.preprocessing, self.options, outcome)
        if not isinstance(self.model, TunedModel):
            self.model.save_head(outcome.head, path, metadata)
            return
        base = {"id": self.model.base_id, "fingerprint": self.model.fingerprint}
        spec, classes = outcome.cell.spec, len(self.data.labels)
        record = tuned_files.describe(outcome.head, base, self.base.kind, spec, classes, metadata)
        learned = self.model.heads[outcome.head].state_dict()
        tuned_files.save(path, {key: tensor.detach().cpu() for key, tensor in learned.items()}, record)

    def _train(self, checkpoint: Checkpoint) -> tuple[dict[str, Best], float]:
        """The best epochs, and the seconds before the first step: a cache is filled then."""
        start = time.perf_counter()
        inputs = self.inputs()
        loader, recipes = inputs.train(self.data.train), self.recipes()
        if self.cross_validation:
            select, loader = None, self.cross_validation.loader(loader)
            recipes = self.cross_validation.recipes(recipes)
        else:
            select = inputs.select(self.data.select)
        preparing = time.perf_counter() - start
        try:
            best = train(
                self.model, list(recipes), loader, select, recipes, self.log, self.log is not None,
                checkpoint=checkpoint, accelerator=self.accelerator, alone=self.alone,
            )  # fmt: skip
        except AllDiverged as all_diverged:
            if not self.others:
                raise
            logger.warning("%s The other passes go on.", all_diverged)
            best = all_diverged.best
        return best, preparing

    def _diverged_at(self, name: str, best: Mapping[str, Best]) -> int | None:
        """The step at which a cell's head diverged, or the first of those beside it."""
        beside = self.cross_validation.heads[name] if self.cross_validation else []
        return min((at for head in (name, *beside) if (at := best[head].diverged_at) is not None), default=None)

    def _say_folds_that_diverged(self, best: Mapping[str, Best]) -> None:
        """The head of all images may be whole, and its cell is not: nothing tells how good it is."""
        beside = self.cross_validation.heads if self.cross_validation else {}
        for name, fold_heads in beside.items():
            lost = [f"fold {fold}" for fold, head in enumerate(fold_heads) if best[head].diverged_at is not None]
            if lost and best[name].diverged_at is None:
                logger.warning("%s counts as diverged, for its head without %s has: lower --lr.", name, ", ".join(lost))

    def _validate(self, names: Sequence[str]) -> dict[str, CrossValidated]:
        if self.cross_validation is None or not names:
            return {}
        description = f"{self.options.name} fold" if self.log is not None else None
        preprocessing = self.base.preprocessing
        return self.cross_validation.validate(
            self.base.tokens, names, preprocessing, self.options, description, self.accelerator
        )

    def _evaluate(self, names: Sequence[str], device: torch.device) -> tuple[dict, dict, float]:
        """Of these heads the scores on `eval` and what they said of each image, and the seconds that it took."""
        loader = evaluation_loader(self.data.eval, self.base.preprocessing, self.options, device, self.accelerator)
        description = f"{self.options.name} eval" if self.log is not None else None
        answers: dict[str, Answers] = {}
        start = time.perf_counter()
        scores = evaluate(
            self.model, loader, names, description=description, accelerator=self.accelerator, answers=answers
        )
        return scores, answers, time.perf_counter() - start

    def _announce(self) -> None:
        numbers = sum(self._parameters(name) for name in self.names)
        what = self.options.name if len(self.names) == 1 else f"{len(self.names)} heads in one pass"
        what += f", built on {', '.join(self.extends)}," if self.extends else ""
        folds = self.data.folds
        what += f", each {folds} times more without a fold," if folds else ""
        chosen_on = "all of them to choose on, out of fold" if folds else f"{len(self.data.select):,} to choose on"
        logger.info(
            "%s on %s: %s numbers to learn; %s of %s (%s, %s to report on), from %s",
            what, self.model.base_id, f"{numbers:,}", counted(len(self.data.train), "image"),
            counted(len(self.data.labels), "class", "classes"), chosen_on, f"{len(self.data.eval):,}", self.data.source,
        )  # fmt: skip

    def _parameters(self, name: str) -> int:
        return sum(parameter.numel() for parameter in self.model.heads[name].parameters())

    def inputs(self) -> TrainingInputs:
        """The loaders that it is trained from."""
        return TrainingInputs(
            self.model, self.base.preprocessing, self.data.views, self.options, self.seed,
            len(self.names) * (1 + (self.data.folds or 0)), self.accelerator,
        )  # fmt: skip

    def recipes(self) -> dict[str, Recipe]:
        """How each cell is trained."""
        o = self.options
        common = Recipe(o.epochs, o.lr[0], o.momentum, o.clip, o.warmup_steps, o.max_steps)
        return {name: dataclasses.replace(common, lr=cell.lr, fit=cell.fit) for name, cell in self.names.items()}


def _as_dict(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else asdict(score)


def head_metadata(data: DataSet, preprocessing: Preprocessing, options: TrainOptions, outcome: Outcome) -> dict:
    """What a head's file says beyond its shapes: enough to evaluate it again without a flag."""
    left_out = {*OF_THE_MACHINE, *OF_ONE_HEAD}
    kept = {key: value for key, value in to_dict(options).items() if key not in left_out}
    cell = {"method": outcome.cell.spec.method, "lr": outcome.cell.lr, "seed": outcome.cell.seed}
    cell |= asdict(outcome.cell.fit)
    said = {
        "labels": data.labels,
        "preprocessing": preprocessing.to_dict(),
        "dataset": data.record(),
        "metrics": {
            "epoch": outcome.epoch,
            "select": outcome.select,
            "folds": outcome.folds,
            "eval": outcome.eval,
        },
        "training": {**kept, **cell, "precision": options.precision or "float32", "data_seed": outcome.data_seed},
        "versions": versions(),
    }
    return public_metadata(said)
