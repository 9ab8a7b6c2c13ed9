"""The one evaluation loop: every accuracy that this project reports comes from here."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from learnable_memory.progress import progress_bar
from learnable_memory.sharing import gathered, is_shared
from learnable_memory.wording import counted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from learnable_memory.loading import Loader
    from learnable_memory.methods import TunedModel
    from learnable_memory.unmasked_together import UnmaskedTogether
    from vit import MemoryCapableViT


FEWEST_FOR_TOP5 = 6  # classes


@dataclass(frozen=True)
class Score:
    """A head on a whole split.

    Attributes:
        images: how many were seen; every image of the split, once.
        top1: the share of images whose label is the first answer, in [0, 1].
        top5: the share of those whose label is among the first five answers, in [0, 1]; None with fewer than six
            classes, where it would say nothing.
        loss: mean cross entropy over the images.
        images_per_second: of the pass, loading included.
    """

    images: int
    top1: float
    top5: float | None
    loss: float
    images_per_second: float

    def known(self) -> dict[str, Any]:
        """As a dict, without what says nothing."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Answers(NamedTuple):
    """What a head said of each of n images, on the CPU.

    Attributes:
        right: bool [n], whether the first answer was the label.
        predicted: int64 [n], the first answer.
        probability: float32 [n], of the label.
        confidence: float32 [n], of the first answer.
    """

    right: torch.Tensor
    predicted: torch.Tensor
    probability: torch.Tensor
    confidence: torch.Tensor


@torch.no_grad()
def evaluate(
    model: "MemoryCapableViT | TunedModel | UnmaskedTogether", loader: "Loader", heads: Sequence[str],
    alongside: Sequence[str] = (), description: str | None = None, *, stop: object = False,
    accelerator: "Accelerator | None" = None, answers: dict[str, Answers] | None = None,
) -> dict[str, Score]:  # fmt: skip
    """Score heads on the data that they were trained for, all in one pass.

    Args:
        model: a MemoryCapableViT; it is put into eval mode for the pass, and back afterwards.
        loader: batches of (pixel_values [B, channels, height, width], labels int64 [B]).
        heads: names of the heads that the labels belong to; `"base"` is legal where the base has a classifier.
        alongside: further heads that answer in the same pass and are not scored (theirs are other labels).
        description: the progress bar's; None for no bar.
        stop: looked at before each batch; once it is true, KeyboardInterrupt is raised.
        accelerator: the processes that each have a part of the loader, as `EpochBatches` deals it out; all return the
            score of the whole split.
        answers: is filled with what each head said of each image, in the order of the loader, of all processes.

    Raises ValueError if the loader has no images, or a label is none of a head's classes.
    """
    if "base" in heads and not model.has_base_classifier:
        raise ValueError("The base has no classifier, so it has no answers to score.")
    device = next(model.parameters()).device
    asked = [name for name in dict.fromkeys((*heads, *alongside)) if name != "base"]
    was_training = model.training
    # Right, right among five, loss, and of each image the number of classes: a process may have no image.
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in heads}
    said: dict[str, list[Answers]] = {name: [] for name in heads}
    images, start = 0, time.perf_counter()
    try:
        model.eval()
        for pixel_values, labels in (
            bar := progress_bar(loader, desc=description, disable=description is None, unit="batch")
        ):
            if stop:
                raise KeyboardInterrupt
            labels = labels.to(device, non_blocking=True)
            outputs = model(pixel_values.to(device, non_blocking=True), heads=asked, with_base="base" in heads)
            for name in heads:
                sums[name] += _count(name, outputs[name].logits, labels)
                if answers is not None:
                    said[name].append(_answers(outputs[name].logits, labels))
            images += len(labels)
            bar.set_postfix_str(f"{images / (time.perf_counter() - start):.0f} images/s", refresh=False)
    finally:
        model.train(was_training)
    if answers is not None:
        answers.update(_in_order(said, loader, accelerator))
    if is_shared(accelerator):
        # Counts, not images, are put together: no sample is repeated to make the parts equal.
        mine = torch.cat([*sums.values(), torch.tensor([images], dtype=torch.float64)])
        *totals, seen = accelerator.reduce(mine.to(device), "sum").cpu().split([4] * len(sums) + [1])
        sums, images = dict(zip(sums, totals, strict=True)), int(seen)
    if not images:
        raise ValueError("There are no images to evaluate on.")
    speed = images / (time.perf_counter() - start)
    scores = {}
    for name, total in sums.items():
        top1, top5, loss, classes = (total / images).tolist()
        scores[name] = Score(images, top1, top5 if classes > FEWEST_FOR_TOP5 - 0.5 else None, loss, speed)
    return scores


def _in_order(
    said: dict[str, list[Answers]], loader: "Loader", accelerator: "Accelerator | None"
) -> dict[str, Answers]:
    """What each head said of all images, put in the order of the loader from the parts of all processes."""
    mine = {name: Answers(*map(torch.cat, zip(*parts, strict=True))) for name, parts in said.items() if parts}
    if not is_shared(accelerator):
        return mine
    places = [
        index for keys in loader.batch_sampler for _, index in keys
    ]  # which batches a process has, it knows again
    parts = [(there, found) for there, found in gathered((places, mine), accelerator) if there]
    if not parts:
        return {}
    order = torch.tensor([index for there, _ in parts for index in there]).argsort()
    return {
        name: Answers(*(torch.cat(column)[order] for column in zip(*(found[name] for _, found in parts), strict=True)))
        for name in said
    }


def _count(name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of a batch: right answers, right among the first five, summed loss, and classes; float64 [4], on the CPU."""
    classes = logits.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]  # -100 too, which the loss would leave out without a word
    if len(wrong):
        raise ValueError(
            f"{name} has {counted(classes, 'class', 'classes')}, but there is a label {wrong[0].item()}: other data?"
        )
    best = logits.topk(min(5, classes), dim=1).indices  # [B, 5]
    hits = best == labels[:, None]
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    all_classes = loss.new_tensor(classes * len(labels))
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, all_classes]).double().cpu()


def _answers(logits: torch.Tensor, labels: torch.Tensor) -> Answers:
    predicted = logits.topk(min(5, logits.shape[1]), dim=1).indices[:, 0]  # of equals the one that `_count` takes
    probabilities = logits.float().softmax(1)
    of = [probabilities.gather(1, classes[:, None])[:, 0] for classes in (labels, predicted)]
    return Answers(*(column.cpu() for column in (predicted == labels, predicted, *of)))
