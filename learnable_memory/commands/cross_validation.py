"""`--folds K` of a pass: of each cell K heads more, each of which learns from all images but those of its fold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from learnable_memory.commands.inputs import evaluation_loader
from learnable_memory.config import TrainOptions
from learnable_memory.data import DataSet
from learnable_memory.evaluate import Answers, Score, evaluate
from learnable_memory.folds import FoldLoader, fold_of
from learnable_memory.grid import Cell
from learnable_memory.loading import Loader
from learnable_memory.optim import Recipe
from learnable_memory.out_of_fold import OutOfFold
from learnable_memory.transforms import Preprocessing
from vit import MemoryCapableViT


@dataclass(frozen=True)
class CrossValidated:
    """What the heads of one cell say of all n training images, each image by the one that has not learned from it.

    Attributes:
        score: over all images.
        folds: of each fold.
        found: image by image.
    """

    score: Score
    folds: list[Score]
    found: OutOfFold


class CrossValidation:
    """Which heads a cross-validated pass has beside its own, what they learn from, and how they do.

    Args:
        data: of `DataSet.for_folds`.
        names: of the pass's cells; the heads beside `a` are `a-f0` to `a-f{K-1}`, each without the fold of its number.

    Raises ValueError if there are too few images for so many folds.
    """

    def __init__(self, data: DataSet, names: Sequence[str]) -> None:
        assert data.folds is not None
        self.data, self.fold = data, fold_of(data.train, data.folds, data.select_seed)
        self.heads = {name: [f"{name}-f{fold}" for fold in range(data.folds)] for name in names}

    def cells(self, cells: Mapping[str, Cell]) -> dict[str, Cell]:
        """The pass's cells, and those of the heads beside them, which start at the same values."""
        return {head: cell for name, cell in cells.items() for head in (name, *self.heads[name])}

    def recipes(self, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
        """Those of the pass, and of the heads beside, which hold their fold out."""
        beside = {
            head: replace(recipe, held_out=fold)
            for name, recipe in recipes.items()
            for fold, head in enumerate(self.heads[name])
        }
        return {**recipes, **beside}

    def loader(self, train_loader: Loader) -> FoldLoader:
        """Batches that tell their folds."""
        return FoldLoader(train_loader, self.fold)

    def validate(
        self, model: MemoryCapableViT, names: Sequence[str], preprocessing: Preprocessing, options: TrainOptions,
        description: str | None = None, accelerator: Any = None,
    ) -> dict[str, CrossValidated]:  # fmt: skip
        """Try the heads of these cells on the images that they have not learned from: once over all training images.

        Several processes share the work, and all know the whole.
        """
        device = next(model.parameters()).device
        scores: dict[str, list[Score]] = {name: [] for name in names}
        answers: dict[str, list[Answers]] = {name: [] for name in names}
        members = [np.flatnonzero(self.fold == fold) for fold in range(self.data.folds or 0)]
        for fold, held_out in enumerate(members):
            part = self.data.train.subset(held_out)
            loader = evaluation_loader(part, preprocessing, options, device, accelerator)
            heads = {self.heads[name][fold]: name for name in names}
            said: dict[str, Answers] = {}
            what = None if description is None else f"{description} {fold + 1}"
            found = evaluate(model, loader, list(heads), description=what, accelerator=accelerator, answers=said)
            for head, score in found.items():
                scores[heads[head]].append(score)
                answers[heads[head]].append(said[head])
        order = np.argsort(np.concatenate(members))  # from fold by fold to the order of the training set
        return {
            name: CrossValidated(_over_all(scores[name]), scores[name], self._found(name, answers[name], order))
            for name in names
        }

    def _found(self, name: str, answers: Sequence[Answers], order: np.ndarray) -> OutOfFold:
        said = Answers(*(torch.cat(column) for column in zip(*answers, strict=True)))
        train, places = self.data.train, torch.from_numpy(order)
        return OutOfFold(
            head=name, folds=len(answers), labels=self.data.labels, dataset=self.data.record(),
            image=[train.identity(index) for index in range(len(train))], label=train.labels, fold=self.fold,
            predicted=said.predicted[places].numpy(), probability=said.probability[places].double().numpy(),
            confidence=said.confidence[places].double().numpy(),
        )  # fmt: skip


def _over_all(scores: Sequence[Score]) -> Score:
    """The score over the images of all of them."""
    images = sum(score.images for score in scores)
    keys = [key for key in ("top1", "top5", "loss") if getattr(scores[0], key) is not None]
    shares = {key: sum(getattr(score, key) * score.images for score in scores) / images for key in keys}
    seconds = sum(score.images / score.images_per_second for score in scores)
    return Score(images, **{"top5": None, **shares}, images_per_second=images / seconds)
