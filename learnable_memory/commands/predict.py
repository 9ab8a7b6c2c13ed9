"""`vit_predict.py`: what heads, put together in one model, say of images."""

import itertools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learnable_memory.attention import check_rows
from learnable_memory.broken import find_broken
from learnable_memory.commands.chosen_heads import ChosenHeads
from learnable_memory.commands.model import check_with_base, start_logging
from learnable_memory.commands.processes import launched, start_processes
from learnable_memory.commands.tuned import ChosenNetwork, choose, load_model
from learnable_memory.config import PredictOptions
from learnable_memory.image_paths import named_images
from learnable_memory.images import ImageSet
from learnable_memory.methods import TunedModel
from learnable_memory.predict import Prediction, predict
from learnable_memory.progress import progress_bar
from learnable_memory.sharing import is_main, is_shared
from learnable_memory.text_table import side_by_side
from learnable_memory.transforms import Preprocessing
from learnable_memory.wording import printable
from vit import MemoryCapableViT

logger = logging.getLogger(__name__)

MOST_PICTURES = 8  # images of an attention picture, which has a row for each and each head


def run(options: PredictOptions) -> int:
    """Answer as the options say: results on stdout as they come, all else on stderr."""
    start_logging()
    options = launched(options)
    images = named_images(options.images)
    if options.attention:
        _check_picture(options.attention, len(images))
    chosen = choose(options.heads, options.models_folder)
    if isinstance(chosen, ChosenNetwork):
        _check_alone(chosen, options)
    accelerator = start_processes(options)
    model, passes, names = open_heads(chosen, options, accelerator.device if is_shared(accelerator) else None)
    if options.attention:
        check_rows(len(images), len(names))
    if options.on_bad_image == "skip":
        images = without_broken(images, options.workers, accelerator)
    answered = predict(
        model, images, passes, top=options.top, batch_size=options.batch_size, workers=options.workers,
        attention=options.attention is not None, labels=chosen.labels, accelerator=accelerator,
    )  # fmt: skip
    kept = []
    # A bar would run into results on the same terminal.
    hidden = (sys.stdout.isatty() and sys.stderr.isatty()) or not is_main(accelerator)
    for prediction in progress_bar(answered, total=len(images), unit=" images", disable=hidden):
        text = json_line(prediction, names) if options.json else text_block(prediction, names)
        print(text, flush=True)  # somebody may be waiting at the other end of a pipe
        if options.attention:
            kept.append(prediction)
    if options.attention and is_main(accelerator):
        from learnable_memory.attention_plot import attention_picture

        logger.info("picture: %s", attention_picture(kept, passes, names, options.attention))
    return 0


def _check_picture(path: Path, images: int) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"--attention {path} is a folder: name a file in it, such as attention.png.")
    if images > MOST_PICTURES:
        raise ValueError(f"--attention draws at most {MOST_PICTURES} images, but these are {images:,}: name fewer.")


def _check_alone(chosen: ChosenNetwork, options: PredictOptions) -> None:
    method, reason = chosen.file.spec.method, chosen.file.metadata["reason"]
    what = f"{chosen.file.name} is a `{method}` model, not a head: {reason}."
    if options.attention:
        raise ValueError(f"{what} --attention draws where heads look: leave it out.")
    if options.with_base:
        raise ValueError(f"{what} It answers alone: leave --with_base.")


def open_heads(
    chosen: ChosenHeads | ChosenNetwork, options: PredictOptions, device: torch.device | None = None
) -> tuple[MemoryCapableViT | TunedModel, dict[Preprocessing, list[str]], list[str]]:
    """The model with what was chosen, what to give to `predict`, and who answers, in order.

    Raises:
        ValueError, FileNotFoundError: as `tuned.load_model`; the base is to answer and has no classifier.
    """
    model, preprocessing = load_model(chosen, options, device)
    passes, names = chosen.by_preprocessing(preprocessing), chosen.names
    if options.with_base:
        check_with_base(model)
        alike = [each for each in passes if each.of_decoded == preprocessing.of_decoded]  # the base was shown none
        passes.setdefault(alike[0] if alike else preprocessing, []).append("base")
        names = ["base", *names]
    if len(passes) > 1:
        logger.info("The heads need %d kinds of preprocessing, so each image takes one pass of its kind.", len(passes))
    return model, passes, names


def without_broken(images: ImageSet, workers: int, accelerator: Any = None) -> ImageSet:
    """The images that can be read; the others are named in the log. Raises ValueError if none is left."""
    broken = find_broken(images, workers, "checking the images", accelerator=accelerator)
    for reason in broken.values() if is_main(accelerator) else ():
        logger.warning("left out: %s", reason)
    if len(broken) == len(images):
        raise ValueError(f"none of the {len(images):,} images can be read")
    return images.subset(np.setdiff1d(np.arange(len(images)), list(broken)))


def json_line(prediction: Prediction, names: Sequence[str]) -> str:
    """`{"image": .., "heads": {name: [{"label": .., "class": .., "probability": ..}, ..]}}` in one line."""
    heads = {
        name: [{"label": label, "class": index, "probability": p} for label, index, p in prediction.answers[name]]
        for name in names
    }
    return json.dumps({"image": prediction.image, "heads": heads})


def text_block(prediction: Prediction, names: Sequence[str]) -> str:
    """The image's name and a line for each head, its most probable class first, in columns."""
    rows = [[name, *(f"{printable(label)} {p:.1%}" for label, _, p in prediction.answers[name])] for name in names]
    lines = side_by_side(list(itertools.zip_longest(*rows, fillvalue="")), str.ljust).splitlines()
    return "\n  ".join([printable(prediction.image), *lines])
