"""What heads say of images that nobody has labelled.

    images = named_images(["photos/", "more/*.jpg"])                # or a split of a data set
    for prediction in predict(model, images, {preprocessing: model.head_names}):
        print(prediction.image, prediction.answers["CIFAR100"][0].label)

Each preprocessing is a pass of its own over the images, answered by the heads that need it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from learnable_memory.attention import HeadAttention, attention_of, columns_of
from learnable_memory.images import ImageSet
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.sharing import gathered, is_main, is_shared
from learnable_memory.transforms import Preprocessing

if TYPE_CHECKING:
    from accelerate import Accelerator

    from learnable_memory.methods import TunedModel
    from vit import MemoryCapableViT


class Answer(NamedTuple):
    """One class of a head: its name, its number, and its probability among all classes of that head."""

    label: str
    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    probability: float


class Look(NamedTuple):
    """What a head has looked at: the image as it came, float32 [3, height, width], and the weights of its tokens."""

    pixel_values: Tensor
    attention: HeadAttention


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        image: what the image is called: its path.
        answers: head -> its most probable classes, the best first.
        looks: head -> where its class token has looked; empty unless asked for.
    """

    image: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)


def predict(
    model: "MemoryCapableViT | TunedModel", images: ImageSet, passes: Mapping[Preprocessing, Sequence[str]], *,
    top: int = 5, batch_size: int = 64, workers: int = 0, attention: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None, accelerator: "Accelerator | None" = None,
) -> Iterator[Prediction]:  # fmt: skip
    """Answer image by image, in order; no more than a few batches are in memory at a time.

    Each image is decoded once for all preprocessings that decode it alike, and passes once through the model for each.

    Args:
        model: a MemoryCapableViT, or a TunedModel. It is in eval mode meanwhile, and takes images of the last
            preprocessing's size afterwards.
        images: their labels do not matter.
        passes: how pixels are made -> the heads that want them so; `"base"` is legal where the base has a classifier.
        top: how many classes of each head; all where it has fewer.
        workers: processes that decode; none start for a single batch.
        attention: also tell where each head looks; of a MemoryCapableViT only.
        labels: head -> what its classes are called, where the model does not say it; a TunedModel never does.
        accelerator: processes that share each batch. All have to go through the iterator; the main one alone gets the
            predictions.

    Raises:
        ValueError: the base is asked and has no classifier; from the iterator, an image that cannot be decoded.
    """
    if any("base" in names for names in passes.values()) and not model.has_base_classifier:
        raise ValueError("The base has no classifier, so it has no answers of its own: ask the heads alone.")
    given = labels or {}
    class_names = {
        name: given.get(name) or labels_of(model, name)  # type: ignore[arg-type]  # a TunedModel comes with `labels`
        for names in passes.values()
        for name in names
    }
    batches = _predictions(model, images, passes, class_names, top, batch_size, workers, attention, accelerator)
    if not is_shared(accelerator):
        return (prediction for batch in batches for _, prediction in batch)
    return _of_all(batches, -(-len(images) // batch_size), accelerator)


def _of_all(
    batches: Iterator[list[tuple[int, Prediction]]], count: int, accelerator: "Accelerator"
) -> Iterator[Prediction]:
    """The predictions of all processes, put in order batch by batch; none but in the main process."""
    for _ in range(count):
        parts = gathered(next(batches, []), accelerator)  # of the last batch some have no image
        whole = sorted((item for part in parts for item in part), key=lambda item: item[0])
        if is_main(accelerator):
            yield from (prediction for _, prediction in whole)


def _predictions(
    model: "MemoryCapableViT | TunedModel", images: ImageSet, passes: Mapping[Preprocessing, Sequence[str]],
    class_names: Mapping[str, Sequence[str]], top: int, batch_size: int, workers: int, attention: bool,
    accelerator: "Accelerator | None",
) -> Iterator[list[tuple[int, Prediction]]]:  # fmt: skip
    """This process's part of each batch: which image, and what is said of it."""
    by_decoding: dict[int, list[Preprocessing]] = {}
    for preprocessing in passes:
        by_decoding.setdefault(preprocessing.decoded_side, []).append(preprocessing)
    workers = workers if len(images) > batch_size else 0
    shares = (accelerator.process_index, accelerator.num_processes) if is_shared(accelerator) else (0, 1)
    order = EpochBatches(len(images), batch_size, process=shares[0], processes=shares[1])
    views_of: list[Any] = [_Views(alike) for alike in by_decoding.values()]  # lists are batched item by item
    loaders = [make_loader(images, views, workers=workers, batch_sampler=order) for views in views_of]
    was_training = model.training
    try:
        model.eval()
        for keys, *loaded in zip(order, *loaders, strict=True):
            places = [index for _, index in keys]
            batch = [Prediction(images.describe(index)) for index in places]
            for (views, _), alike in zip(loaded, by_decoding.values(), strict=True):
                for pixel_values, preprocessing in zip(views, alike, strict=True):
                    model.set_image_size((preprocessing.height, preprocessing.width))
                    asked = {name: class_names[name] for name in passes[preprocessing]}
                    _one_pass(model, pixel_values, asked, batch, top, attention)
            yield list(zip(places, batch, strict=True))
    finally:
        model.train(was_training)


class _Views:
    """All views of an image that is decoded once; a class, because loader processes may have to unpickle it."""

    def __init__(self, passes: Sequence[Preprocessing]) -> None:
        self.transforms = [preprocessing.eval_transform() for preprocessing in passes]
        self.decoded_side = passes[0].decoded_side  # of all of them

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [transform(image) for transform in self.transforms]


@torch.no_grad()
def _one_pass(
    model: "MemoryCapableViT | TunedModel", pixel_values: Tensor, class_names: Mapping[str, Sequence[str]],
    batch: Sequence[Prediction], top: int, attention: bool,
) -> None:  # fmt: skip
    """Add what these heads say of pixel_values [B, 3, height, width] to the predictions of the batch."""
    heads = [name for name in class_names if name != "base"]
    on_device = pixel_values.to(next(model.parameters()).device, non_blocking=True)
    traced = {"output_attentions": True} if attention else {}
    outputs = model(on_device, heads=heads, with_base="base" in class_names, **traced)
    for name, output in outputs.items():
        best = output.logits.float().softmax(dim=-1).topk(min(top, output.logits.shape[1]))  # [B, top]
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for prediction, (classes, probabilities) in zip(batch, rows, strict=True):
            prediction.answers[name] = [
                Answer(class_names[name][index], index, probability)
                for index, probability in zip(classes, probabilities, strict=True)
            ]
        if attention:
            columns = columns_of(model, name)  # type: ignore[arg-type]  # a TunedModel is not asked for attention
            of_images = attention_of(name, output.attentions, columns)
            for prediction, *look in zip(batch, pixel_values, of_images, strict=True):
                prediction.looks[name] = Look(*look)


def labels_of(model: "MemoryCapableViT", name: str) -> list[str]:
    """What the classes of a head, or of the base, are called; "class 17" where nobody has named them."""
    if name == "base":
        return [model.config.id2label[index] for index in range(model.config.num_labels)]
    spec = model.heads[name].spec
    return names_of_classes(spec.metadata, spec.num_labels)


def names_of_classes(metadata: Mapping[str, Any], num_labels: int) -> list[str]:
    """What the metadata of a head or network calls its classes; "class 17" where nobody has named them."""
    return list(metadata.get("labels") or (f"class {index}" for index in range(num_labels)))
