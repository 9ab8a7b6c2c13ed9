"""Folds, batches that tell them, and the file of out-of-fold predictions."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from learnable_memory import out_of_fold
from learnable_memory.features import CachedLoader, FeatureCache, contents_of
from learnable_memory.folds import FoldLoader, fold_of
from learnable_memory.images import ArrayImages, ImageSet
from learnable_memory.loading import EpochBatches, Loader, make_loader
from learnable_memory.out_of_fold import OutOfFold
from learnable_memory.small_images import SmallImageLoader
from learnable_memory.transforms import Preprocessing
from tiny import tiny_model
from vit import BaseTokens

PREPROCESSING = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def labelled(labels: list[int]) -> ImageSet:
    """Images of one value each, by which they can be told apart: image i is all i."""
    pixels = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 4, 4))
    return ImageSet(ArrayImages(pixels.copy(), "numbers"), np.array(labels))


# --------------------------------------------------------------------------------------------------------------- folds
@pytest.mark.parametrize("folds", [2, 3, 7])
def test_each_class_is_spread_evenly_over_the_folds(folds: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 2, 5], [40, 7, 23])).tolist()  # 1, 3 and 4 have none
    fold = fold_of(labelled(labels), folds, seed=3)
    assert (fold.dtype, fold.shape) == (np.int64, (70,))
    for label in (0, 2, 5):
        counts = np.bincount(fold[np.array(labels) == label], minlength=folds)
        assert len(counts) == folds and counts.max() - counts.min() <= 1
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= 1


def test_folds_are_drawn_by_the_seed_alone() -> None:
    image_set = labelled([0, 1] * 20)
    before = np.random.get_state()[1].copy()
    first = fold_of(image_set, 4, seed=1)
    assert np.array_equal(first, fold_of(image_set, 4, seed=1))
    assert not np.array_equal(first, fold_of(image_set, 4, seed=2))
    assert np.array_equal(before, np.random.get_state()[1])
    # not by place alone: the images of a class are shuffled
    assert not np.array_equal(np.sort(first[::2]), first[::2])


def test_folds_are_those_of_a_subset_s_own_images() -> None:
    image_set = labelled([0] * 6 + [1] * 12).subset(np.arange(6, 18))
    assert np.bincount(fold_of(image_set, 3, seed=0)).tolist() == [4, 4, 4]


@pytest.mark.filterwarnings("error")
def test_a_class_rarer_than_there_are_folds_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fold = fold_of(labelled([0] * 9 + [1] * 2 + [3]), 4, seed=0)
    assert np.bincount(fold[9:11]).max() == 1  # two images, two folds
    assert caplog.messages == ["Classes with fewer images than the 4 folds, so that some folds have none: 2."]
    caplog.clear()
    fold_of(labelled([0] * 4 + [1] * 4), 4, seed=0)
    assert caplog.messages == []


def test_more_folds_than_images_of_any_class() -> None:
    with pytest.raises(ValueError, match=r"^6 folds need a class of at least 6 images, and the largest has 5: take fe"):
        fold_of(labelled([0] * 5 + [1] * 3), 6, seed=0)


# -------------------------------------------------------------------------------------------------------------- loader
COUNT, BATCH = 22, 5  # the last batch of an epoch is a smaller one


@pytest.fixture(scope="module")
def numbers() -> ImageSet:
    return labelled([index % 3 for index in range(COUNT)])


def from_files(image_set: ImageSet, batches: EpochBatches, workers: int) -> Loader:
    transform = PREPROCESSING.train_transform("flip")
    return make_loader(image_set, transform, workers=workers, batch_sampler=batches)


def from_cache(image_set: ImageSet, batches: EpochBatches) -> Loader:
    model = tiny_model()
    contents = contents_of(model, image_set, PREPROCESSING.hash, None, 0, "keys_values", "float32")
    cache = FeatureCache(contents, len(image_set))
    cache.build(model, lambda keys: SmallImageLoader(image_set, PREPROCESSING, None, keys), 8)
    return CachedLoader(cache, image_set, batches, BaseTokens)


LOADERS: dict[str, Callable[[ImageSet, EpochBatches], Loader]] = {
    "decoded here": lambda image_set, batches: from_files(image_set, batches, 0),
    "decoded by workers": lambda image_set, batches: from_files(image_set, batches, 2),
    "small": lambda image_set, batches: SmallImageLoader(image_set, PREPROCESSING, "flip", batches),
    "cached": from_cache,
}


def values(inputs: torch.Tensor | BaseTokens) -> torch.Tensor:
    return inputs.output if isinstance(inputs, BaseTokens) else inputs


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_the_loader_s_own_and_tell_their_folds(kind: str, numbers: ImageSet) -> None:
    """In every epoch, after a resumed start too. An image's fold is its number here, so its pixels give it away."""
    views = 1 if kind == "cached" else None
    plain = LOADERS[kind](numbers, EpochBatches(COUNT, BATCH, seed=4, shuffle=True, views=views))
    batches = EpochBatches(COUNT, BATCH, seed=4, shuffle=True, views=views)
    loader = FoldLoader(LOADERS[kind](numbers, batches), np.arange(COUNT))
    assert len(loader) == len(plain) == 5 and loader.batch_sampler is batches
    assert len(loader.dataset) == COUNT
    orders = []
    for epoch, start in ((0, 0), (1, 0), (2, 3)):
        plain.batch_sampler.set_epoch(epoch, start)
        loader.batch_sampler.set_epoch(epoch, start)
        seen = []
        for (expected, expected_labels), (inputs, labels, folds) in zip(plain, loader, strict=True):
            assert torch.equal(values(inputs), values(expected)) and torch.equal(labels, expected_labels)
            assert folds.dtype == torch.int64 and torch.equal(folds % 3, labels)
            if kind != "cached":
                assert torch.equal(folds, ((inputs[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long())
            seen += folds.tolist()
        assert len(seen) == COUNT - start * BATCH
        orders.append(seen)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(COUNT)) and orders[0] != orders[1]


def test_of_several_processes_each_gets_the_folds_of_its_part(numbers: ImageSet) -> None:
    whole = FoldLoader(LOADERS["small"](numbers, EpochBatches(COUNT, BATCH, shuffle=True)), np.arange(COUNT))
    for process in range(3):
        batches = EpochBatches(COUNT, BATCH, shuffle=True, process=process, processes=3)
        part = list(FoldLoader(LOADERS["small"](numbers, batches), np.arange(COUNT)))
        for (_, _, expected), (_, _, folds) in zip(whole, part, strict=False):
            assert torch.equal(folds, expected[process::3])
        assert len(part) == (4 if process == 2 else 5)  # the last batch is of two images


@pytest.mark.parametrize("kind", LOADERS)
def test_the_epoch_is_the_one_at_the_time_of_iter(kind: str, numbers: ImageSet) -> None:
    batches = EpochBatches(COUNT, BATCH, seed=4, shuffle=True, views=1)
    loader = FoldLoader(LOADERS[kind](numbers, batches), np.arange(COUNT))
    expected = torch.cat([folds for _, _, folds in loader])
    passing = iter(loader)
    batches.set_epoch(1, 2)
    assert torch.equal(torch.cat([folds for _, _, folds in passing]), expected)


def test_a_fold_for_each_image(numbers: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"^21 folds for 22 images: give one for each, as fold_of does\.$"):
        FoldLoader(LOADERS["small"](numbers, EpochBatches(COUNT, BATCH)), np.arange(COUNT - 1))


# ---------------------------------------------------------------------------------------------------------------- file
FOUND = OutOfFold(
    head="pets", folds=2, labels=["cat", "dog", "a, b"],
    dataset={"name": "folder:/pets", "split_seed": 0, "folds": 2,
             "splits": {"train": {"images": 4, "hash": "0123456789abcdef"}}},
    image=["cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "a, b/ü.png"], label=np.array([0, 0, 1, 2]),
    fold=np.array([1, 0, 1, 0]), predicted=np.array([0, 1, 1, 2]),
    probability=np.array([0.75, 0.1, 1.23456789e-9, 0.1]), confidence=np.array([0.75, 0.9, 0.987654321, 0.6]),
)  # fmt: skip


def test_what_is_saved_can_be_read(tmp_path: Path) -> None:
    """Of probabilities six significant digits, however small."""
    path = out_of_fold.save(FOUND, tmp_path / "new" / "pets_out_of_fold.json")
    found = out_of_fold.load(path)
    for field in dataclasses.fields(OutOfFold):
        value, expected = getattr(found, field.name), getattr(FOUND, field.name)
        if isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype
            np.testing.assert_allclose(value, expected, rtol=5e-6)
        else:
            assert value == expected
    assert (found.probability[2], found.confidence[2]) == (1.23457e-9, 0.987654)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert list(record) == ["format", "head", "folds", "labels", "dataset", "images"] and record["format"] == 1
    assert record["images"] == {**FOUND.columns(), "probability": [0.75, 0.1, 1.23457e-9, 0.1],
                                "confidence": [0.75, 0.9, 0.987654, 0.6]}  # fmt: skip


def test_the_least_likely_come_first_and_equal_ones_in_their_order() -> None:
    assert [FOUND.least_likely(most).tolist() for most in (1, 3, 9)] == [[2], [2, 1, 3], [2, 1, 3, 0]]
    assert len(FOUND) == 4


def changed(**images: list) -> str:
    """The file with other columns."""
    record = {"format": 1, "head": "pets", "folds": 2, "labels": FOUND.labels, "dataset": FOUND.dataset}
    return json.dumps({**record, "images": {**FOUND.columns(), **images}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "list indices must be integers"),
        ('{"best": "a", "cells": []}', "it has no 'format'"),
        ('{"format": 2}', "its format is 2, and 1 can be read"),
        ('{"format": 1}', "it has no 'images'"),
        (changed(label=[0, 0, 1]), "its columns differ in length: 4 in image, 3 in label"),
        (changed(confidence=[]), "its columns differ in length: 4 in image, 0 in confidence"),
        (changed(predicted=[0, 0, 1, 3]), "its column predicted has values that are not between 0 and 2"),
        (changed(label=[0, 0, 1, -1]), "its column label has values that are not between 0 and 2"),
        (changed(fold=[0, 0, 1, 2]), "its column fold has values that are not between 0 and 1"),
        (changed(probability=[0.5, 0.5, 0.5, None]), "its column probability has values that are not between 0 and 1"),
        (changed(label=[0, 0, 1, 10**30]), "too large"),
        (changed().replace('"splits"', '"split"'), "it has no 'splits'"),
        (changed().replace('"folds": 2, "splits"', '"folds": 3, "splits"'), "it says 2 folds, and its data 3"),
        (changed(image=[1, 2, 3, 4]), "its names are not texts"),
        (changed().replace('"head": "pets"', '"head": 5'), "its names are not texts"),
        ("[" * 200_000, "recursion"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        out_of_fold.load(path)
    start = f"{path} is no file of out-of-fold predictions, as vit_train.py --folds writes ("
    message = str(refused.value)
    assert message.startswith(start) and message.endswith(").") and reason in message and "\n" not in message


def test_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a_model.safetensors").write_bytes(b"\x88\xff\x00\x00{}")
    with pytest.raises(ValueError, match=r"a_model\.safetensors is no file of out-of-fold predictions, as vit_train"):
        out_of_fold.load(tmp_path / "a_model.safetensors")


def test_a_name_is_a_file_or_a_head_in_the_folder(tmp_path: Path) -> None:
    path = out_of_fold.save(FOUND, tmp_path / "pets_out_of_fold.json")
    assert out_of_fold.find("pets", tmp_path) == path
    assert out_of_fold.find(str(path), tmp_path / "elsewhere") == path
    lost = (
        rf"^There is no file dogs, and no dogs_out_of_fold\.json in {tmp_path} \(there: pets\): vit_train\.py --folds"
    )
    with pytest.raises(FileNotFoundError, match=lost):
        out_of_fold.find("dogs", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"in nowhere \(there: none\)"):
        out_of_fold.find("pets", "nowhere")
