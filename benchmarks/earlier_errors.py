"""What three errors of the earlier public reproduction cost, each measured against the same run without it.

    python benchmarks/earlier_errors.py --directory DIR --output benchmarks/earlier_errors.json
    python benchmarks/earlier_errors.py --table benchmarks/earlier_errors.json

1. The evaluation goes through the random views of training, not through the whole centre image.
2. Pixels are in [0, 1] in training and in evaluation, though the base was trained on normalised ones.
3. The held-out fifth is drawn again for the evaluation, so that most of it was trained on.

For each data set and seed a fifth of the training images is held out, heads with 5 cells are trained on the rest on
`models/base-tiny`, one for each rate in one pass, and the best on a tenth of that rest answers the held-out images.
The official test images are not touched. Errors 1 and 2 are measured on short trainings with many images (100 steps of
32), with inception-style crops and with the data set's own, milder views; error 3, which needs heads that know their
training images, on 100 images a class and 20 epochs, with one stored view of each, against 2,000 unseen images.
`--table` prints means, and the differences that each error makes, with standard deviations over the seeds. All of it
takes 13 minutes of one core.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from learnable_memory.commands.inputs import TrainingInputs, image_loader
from learnable_memory.commands.model import load_base
from learnable_memory.config import TrainOptions
from learnable_memory.data import SELECT_FRACTION, load_data_set
from learnable_memory.evaluate import evaluate
from learnable_memory.images import ImageSet, split_off
from learnable_memory.loading import EpochBatches
from learnable_memory.optim import Recipe
from learnable_memory.runlog import versions, write_json
from learnable_memory.train import train
from learnable_memory.transforms import Preprocessing

BASE = Path(__file__).resolve().parent.parent / "models" / "base-tiny"
DATA_SETS = ("CIFAR100-new20", "FashionMNIST-subset")
SEEDS = (0, 1, 2)
RATES = (0.1, 0.3, 1.0)
CELLS = 5
BATCH_SIZE = 32
HELD_OUT = 0.2
REDRAWN = 1000  # added to a seed where something is drawn again
INCEPTION = "resized_crop_flip"
SHORT = Recipe(epochs=1, max_steps=100)
LONG = Recipe(epochs=20)
LONG_IMAGES = 100  # of a class
UNSEEN = 2000  # images

# What is printed: the row's words, the measurement with the error, and the one without.
ROWS = (
    ("inception crops, centre view, normalised", "inception, centre", None),
    ("evaluated through the crops", "inception, random view", "inception, centre"),
    ("pixels in [0, 1]", "inception, [0, 1], centre", "inception, centre"),
    ("both", "inception, [0, 1], random view", "inception, centre"),
    ("the data set's own views, centre view", "own, centre", None),
    ("evaluated through these views", "own, random view", "own, centre"),
    ("100 images a class, 20 epochs, unseen images", "few, unseen", None),
    ("the held-out fifth drawn again", "few, drawn again", "few, unseen"),
)


class Trial:
    """One data set and seed: a base, the images held out, and heads that come and go."""

    def __init__(self, name: str, seed: int, options: TrainOptions) -> None:
        self.seed, self.options = seed, options
        self.data = load_data_set(name, options.directory, select_seed=seed)
        self.model, self.preprocessing = load_base(options.base_model, options)

    def learn(
        self, images: ImageSet, preprocessing: Preprocessing, views: str, recipe: Recipe, cache: str = "none"
    ) -> str:
        """Train a head for each rate in one pass; only the best on a tenth of `images` stays. Returns its name."""
        shown, select = split_off(images, SELECT_FRACTION, self.seed)
        recipes = {f"rate{i}": replace(recipe, lr=rate) for i, rate in enumerate(RATES)}
        for head in recipes:
            generator = torch.Generator().manual_seed(self.seed)
            self.model.add_head(head, len(self.data.labels), CELLS, generator=generator)
        options = replace(self.options, cache=cache)  # a cache holds one view of each image, unless told
        inputs = TrainingInputs(self.model, preprocessing, views, options, self.seed, len(recipes))
        best = train(self.model, list(recipes), inputs.train(shown), inputs.select(select), recipes, progress=False)
        chosen = max(recipes, key=lambda head: (best[head].score.top1, -best[head].score.loss))
        for head in recipes.keys() - {chosen}:
            self.model.remove_head(head)
        return chosen

    def score(self, head: str, images: ImageSet, preprocessing: Preprocessing, views: str | None = None) -> float:
        """Top-1 in the evaluation view, or in a random view of each image, which training did not show."""
        batches = EpochBatches(len(images), BATCH_SIZE)
        seed = self.seed + REDRAWN
        loader = image_loader(images, preprocessing, views, batches, self.options, torch.device("cpu"), seed)
        return evaluate(self.model, loader, [head])[head].top1

    def views_and_pixels(self) -> dict[str, float]:
        """Errors 1 and 2."""
        rest, held_out = split_off(self.data.unselected, HELD_OUT, self.seed)
        raw = replace(self.preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
        found = {}
        for label, views, preprocessing in (
            ("inception", INCEPTION, self.preprocessing),
            ("inception, [0, 1]", INCEPTION, raw),
            ("own", self.data.views, self.preprocessing),
        ):
            head = self.learn(rest, preprocessing, views, SHORT)
            found[f"{label}, centre"] = self.score(head, held_out, preprocessing)
            found[f"{label}, random view"] = self.score(head, held_out, preprocessing, views)
            self.model.remove_head(head)
        return found

    def leak(self) -> dict[str, float]:
        """Error 3."""
        everything = self.data.unselected
        others, few = split_off(everything, LONG_IMAGES * len(self.data.labels) / len(everything), self.seed)
        unseen = split_off(others, UNSEEN / len(others), self.seed)[1]
        rest = split_off(few, HELD_OUT, self.seed)[0]
        head = self.learn(rest, self.preprocessing, self.data.views, LONG, cache="memory")
        # A fifth that is drawn again is a random fifth of all: in the mean over draws it scores what all score.
        splits = {"few, unseen": unseen, "few, drawn again": few}
        return {what: self.score(head, images, self.preprocessing) for what, images in splits.items()}


def measure(directory: Path) -> dict[str, dict[str, list[float]]]:
    """Of each data set: measurement -> top-1 in [0, 1] for each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in DATA_SETS:
        options = TrainOptions(
            dataset=name, base_model=str(BASE), directory=directory, batch_size=BATCH_SIZE, workers=0
        )
        for seed in SEEDS:
            trial = Trial(name, seed, options)
            scores = trial.views_and_pixels() | trial.leak()
            print(f"{name}, seed {seed}: {scores}", flush=True)
            for what, top1 in scores.items():
                found.setdefault(name, {}).setdefault(what, []).append(top1)
    return found


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """As Markdown: top-1 in percent without an error, and by how many points each error changes it."""
    lines = [["", *found], ["---", *["---:"] * len(found)]]
    for words, what, without in ROWS:
        lines.append([words])
        for scores in found.values():
            top1, sign = scores[what], ""
            if without is not None:
                top1, sign = [wrong - right for wrong, right in zip(top1, scores[without], strict=True)], "+"
            lines[-1].append(f"{100 * fmean(top1):{sign}.2f} ± {100 * stdev(top1):.2f}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path.home(), help="holds datasets/cifar100")
    parser.add_argument("--output", type=Path, help="write the scores as JSON")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of such a file, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text(encoding="utf-8"))["top1"]))
        return
    found = measure(args.directory)
    print(table(found))
    if args.output:
        setup = {"rates": RATES, "cells": CELLS, "batch_size": BATCH_SIZE, "seeds": SEEDS}
        write_json(args.output, {**setup, "top1": found, "versions": versions()})


if __name__ == "__main__":
    main()
