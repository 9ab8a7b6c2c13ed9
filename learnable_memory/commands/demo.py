"""`python -m learnable_memory demo`: the main job on what ships with the project, in a few minutes on two cores.

Two heads are trained apart on the base that ships (Digits; the committed subset of Fashion-MNIST) and put together with
the base's own 80 classes. One model then answers all three tasks in one pass; a table and a picture show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnable_memory.config import TrainOptions, ValidationOptions
from learnable_memory.options import Options, option, parse

if TYPE_CHECKING:
    from learnable_memory.images import ImageSet
    from learnable_memory.transforms import Preprocessing
    from vit import MemoryCapableViT


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Where the demo works."""

    base_model: str = option("models/base-tiny", "the base that ships, or another one")
    output: Path = option(Path("runs/demo"), "folder for heads, logs and the picture")


# Small data sets, few steps: small batches and a rate above the default. The rest is as `vit_train.py` has it.
RECIPES: dict[str, dict[str, Any]] = {
    "Digits": {"epochs": 24, "lr": 1.0, "number_of_memory_tokens": 5, "batch_size": 16},
    "FashionMNIST": {"epochs": 8, "lr": 1.0, "number_of_memory_tokens": 10, "batch_size": 32},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train both heads, put them together, evaluate, draw."""
    options = parse(DemoOptions, __doc__, argv, prog="python -m learnable_memory demo")
    from learnable_memory.checkpoint import Interrupted
    from learnable_memory.commands import train, validation
    from learnable_memory.commands.model import load_base, start_logging

    start_logging()
    # A directory of its own, where no data sets are: the demo is about those that ship.
    where: dict[str, Any] = {
        "base_model": options.base_model,
        "directory": options.output / "data",
        "no_download": True,
    }
    together = ValidationOptions(models_list=tuple(RECIPES), models_folder=options.output, **where)
    model, preprocessing = load_base(options.base_model, together)
    if not model.has_base_classifier:
        raise ValueError(f"{options.base_model} has no classifier, so it has no answers to put beside those of heads.")
    for name, recipe in RECIPES.items():
        try:
            train.run(TrainOptions(dataset=name, output=options.output, overwrite=True, **recipe, **where))
        except Interrupted as stopped:  # it says how vit_train.py goes on
            raise Interrupted("interrupted; the next demo begins anew", stopped.signal_number) from None
    rows = validation.validate(together)
    pixels = {"linear probe on pixels": [f"{100 * linear_probe_on_pixels(row['head'], together):.2f}" for row in rows]}
    same, picture = answers_in_one_pass(model, preprocessing, together, options.output / "answers.png")
    looks = where_heads_look(model, preprocessing, together, options.output / "attention.png")
    print("\nOne model, one forward pass for all heads:\n\n" + validation.table(rows, pixels))
    print(f"\nthe base's own answers are bit for bit those without heads: {'yes' if same else 'NO'}")
    print(f"pictures: {picture}, {looks}")
    return 0 if same else 1


def linear_probe_on_pixels(name: str, options: ValidationOptions) -> float:
    """Top-1 on `eval` of a logistic regression on the raw pixels of `train`: what is there without a base."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from learnable_memory.data import load_data_set

    data = load_data_set(name, options.directory, download=False)

    def pixels(split: "ImageSet") -> np.ndarray:
        return np.stack([np.asarray(split.image(i)).ravel() / 255 for i in range(len(split))])

    probe = LogisticRegression(max_iter=1000).fit(pixels(data.train), data.train.labels)
    return probe.score(pixels(data.eval), data.eval.labels)


def answers_in_one_pass(
    model: "MemoryCapableViT", preprocessing: "Preprocessing", options: ValidationOptions, picture: Path
) -> tuple[bool, Path]:
    """Draw what one pass over images of both data sets answers, and compare the base's answers to those without heads.

    `model` is the base, without heads yet. Returns whether its own logits are the same, bit for bit, and the picture's
    path.
    """
    import torch

    from learnable_memory import heads, plots
    from learnable_memory.data import load_data_set
    from learnable_memory.predict import labels_of

    splits = [load_data_set(name, options.directory, download=False).eval for name in options.models_list]
    shown = [split.image(i) for split in splits for i in range(5)]
    pixel_values = torch.stack([preprocessing.eval_transform()(image) for image in shown])
    pixel_values = pixel_values.to(next(model.parameters()).device)
    with torch.no_grad():
        before = model(pixel_values)["base"].logits
        for path in heads.find(options.models_list, options.models_folder):
            model.load_head(path)
        outputs = model(pixel_values)
    labels = {name: labels_of(model, name) for name in outputs}
    answers = {}
    for name, output in outputs.items():
        best = output.logits.softmax(-1).max(-1)
        answers[name] = [(labels[name][i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    own = [name for name in options.models_list for _ in range(5)]
    return torch.equal(before, outputs["base"].logits), plots.answers(shown, answers, own, picture)


def where_heads_look(
    model: "MemoryCapableViT", preprocessing: "Preprocessing", options: ValidationOptions, picture: Path
) -> Path:
    """Draw where each head looks in one image of each data set, and how much its memory weighs; returns the path."""
    from learnable_memory.attention_plot import attention_picture
    from learnable_memory.data import load_data_set
    from learnable_memory.predict import predict

    names = list(options.models_list)
    images = [load_data_set(name, options.directory, download=False).eval.subset([0]) for name in names]
    passes = {preprocessing: names}
    shown = [prediction for image in images for prediction in predict(model, image, passes, top=1, attention=True)]
    return attention_picture(shown, passes, names, picture)
