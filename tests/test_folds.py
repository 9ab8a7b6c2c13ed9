"""Cross-validation in one pass: each fold's head is the one trained alone on the other folds, in their order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.cross_validation import CrossValidation
from learnable_memory.config import TrainOptions
from learnable_memory.data import DataSet
from learnable_memory.fit_spec import FitSpec
from learnable_memory.folds import FoldLoader, fold_of
from learnable_memory.grid import Cell
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.method_spec import MethodSpec
from learnable_memory.optim import HeadOptimizers, Recipe
from learnable_memory.train import train
from learnable_memory.train_step import average_over_processes, train_step
from process_groups import Other
from toy_training import PREPROCESSING, colours, difference, toy

K = 3
RECIPES = {
    "the paper's": Recipe(epochs=2, lr=0.1),
    "adamw": Recipe(epochs=2, lr=0.003, fit=FitSpec("adamw", 0.01, 0.1)),
    "average": Recipe(epochs=2, lr=0.1, fit=FitSpec(ema=0.9)),
}


class Without(EpochBatches):
    """The same batches without the images of a fold: what a head that is trained alone on the others gets."""

    def __init__(self, *args, fold: np.ndarray, held_out: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fold, self.held_out = fold, held_out

    def __iter__(self):
        batches = list(super().__iter__())
        return iter([[key for key in batch if self.fold[key[1]] != self.held_out] for batch in batches])


def batches(count: int = 24, **options) -> EpochBatches:
    return EpochBatches(count, 4, seed=0, shuffle=True, **options)


def loader_of(sampler):
    image_set, transform = colours(sampler.length), PREPROCESSING.train_transform("crop_flip")
    return make_loader(image_set, transform, seed=0, batch_sampler=sampler)


def model_of(names, dtype=torch.float64):
    model = toy((), dtype=dtype)
    for name in names:
        model.add_head(name, 3, 2, rank=2, generator=torch.Generator().manual_seed(7))
    return model


# ------------------------------------------------------------------------------------------------------------ exactness
@pytest.mark.parametrize(
    ("recipe", "dtype", "tolerance"),
    [
        (RECIPES["the paper's"], torch.float64, 1e-12),
        (RECIPES["adamw"], torch.float32, 1e-5),
        (RECIPES["average"], torch.float64, 1e-12),
    ],
    ids=RECIPES,
)
def test_each_fold_is_the_head_trained_alone_on_the_others(recipe, dtype, tolerance):
    fold = fold_of(colours(24), K, seed=0)
    names = ["all", *(f"f{k}" for k in range(K))]
    together = model_of(names, dtype)
    recipes = {"all": recipe, **{f"f{k}": replace(recipe, held_out=k) for k in range(K)}}
    train(together, names, FoldLoader(loader_of(batches()), fold), None, recipes, progress=False)
    for k in range(K):
        alone = model_of(["f"], dtype)
        train(alone, ["f"], loader_of(Without(24, 4, 0, True, fold=fold, held_out=k)), None, recipe, progress=False)
        assert difference(together.heads[f"f{k}"], alone.heads["f"]) <= tolerance
        # Not because nothing moved, or because all folds are the same.
        assert difference(together.heads[f"f{k}"], model_of(["f"], dtype).heads["f"]) > 1e-2
        assert difference(together.heads[f"f{k}"], together.heads["all"]) > 1e-3


def test_the_head_beside_them_is_the_one_of_a_plain_run():
    fold, names = fold_of(colours(24), K, seed=0), ["all", "f0"]
    recipe = Recipe(epochs=2, lr=0.1)
    beside, plain = model_of(names), model_of(["all"])
    recipes = {"all": recipe, "f0": replace(recipe, held_out=0)}
    train(beside, names, FoldLoader(loader_of(batches()), fold), None, recipes, progress=False)
    best = train(plain, ["all"], loader_of(batches()), None, recipe, progress=False)
    assert difference(beside.heads["all"], plain.heads["all"]) <= 1e-12
    assert best["all"].epoch == 1 and best["all"].score is None


def test_a_head_does_not_depend_on_what_it_holds_out():
    """Other pixels in a fold change the other heads, and not the one that holds it out."""
    fold, found = fold_of(colours(24), K, seed=0), []
    for flipped in (False, True):
        image_set = colours(24)
        if flipped:
            image_set.images.pixels[fold == 1] = 255 - image_set.images.pixels[fold == 1]
        loader = make_loader(image_set, PREPROCESSING.train_transform("crop_flip"), batch_sampler=batches())
        model = model_of(["f0", "f1"])
        recipes = {f"f{k}": Recipe(epochs=1, lr=0.1, held_out=k) for k in range(2)}
        train(model, ["f0", "f1"], FoldLoader(loader, fold), None, recipes, progress=False)
        found.append(model)
    assert difference(found[0].heads["f1"], found[1].heads["f1"]) == 0
    assert difference(found[0].heads["f0"], found[1].heads["f0"]) > 1e-3


def test_an_interrupted_run_ends_at_the_same_bits(tmp_path):
    fold, names = fold_of(colours(24), K, seed=0), ["all", "f0", "f1", "f2"]
    recipe = RECIPES["average"]
    recipes = {name: replace(recipe, held_out=k) for name, k in zip(names, (None, 0, 1, 2), strict=True)}
    whole = model_of(names)
    train(whole, names, FoldLoader(loader_of(batches()), fold), None, recipes, progress=False)

    class Stops(Exception):
        pass

    class Broken(FoldLoader):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if self.batch_sampler.epoch == 1 and number == 4:
                    raise Stops
                yield batch

    checkpoint = Checkpoint(tmp_path / "state.pt", every=2)
    with pytest.raises(Stops):
        train(model_of(names), names, Broken(loader_of(batches()), fold), None, recipes, progress=False,
              checkpoint=checkpoint)  # fmt: skip
    resumed = model_of(names)
    train(resumed, names, FoldLoader(loader_of(batches()), fold), None, recipes, progress=False, checkpoint=checkpoint)
    assert all(difference(resumed.heads[name], whole.heads[name]) == 0 for name in names)


# ----------------------------------------------------------------------------------------------------------- one step
def two_optimizers(model, held_out=(None, 0)):
    recipes = {name: Recipe(lr=0.1, held_out=fold) for name, fold in zip("ab", held_out, strict=True)}
    return HeadOptimizers({name: model.heads[name] for name in "ab"}, recipes, steps=10)


def one_step(folds, held_out=(None, 0), accelerator=None):
    model = model_of(["a", "b"])
    model.train_only(["a", "b"])
    optimizers = two_optimizers(model, held_out)
    pixel_values, labels = next(iter(loader_of(batches())))
    batch = (pixel_values.double(), labels) if folds is None else (pixel_values.double(), labels, torch.tensor(folds))
    rows, _ = train_step(model, optimizers, batch, accelerator)
    return model, optimizers, rows


def test_a_batch_that_is_held_out_whole_moves_the_schedule_alone():
    model, optimizers, rows = one_step([0, 0, 0, 0])
    before = model_of(["a", "b"])
    assert difference(model.heads["b"], before.heads["b"]) == 0
    assert difference(model.heads["a"], before.heads["a"]) > 0
    assert rows.keys() == {"a"}
    assert optimizers.rate("b") == optimizers.rate("a") == pytest.approx(0.1 * 2 / 5)  # of the second of 5 to warm up
    assert all(parameter.grad is None for parameter in optimizers.parameters["b"])


def test_the_loss_is_the_mean_over_the_images_that_are_learned_from():
    _, _, some = one_step([1, 0, 1, 0])
    model = model_of(["b"])
    pixel_values, labels = next(iter(loader_of(batches())))
    logits = model(pixel_values.double(), heads=["b"])["b"].logits.detach()
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]]).item()
    assert some["b"]["train/loss"] == pytest.approx(expected, abs=1e-12)


def test_batches_without_folds_are_refused_where_one_is_held_out():
    with pytest.raises(ValueError, match="FoldLoader"):
        one_step(None)


def test_processes_weigh_what_each_head_has_learned_from():
    """Two processes with two images each, of which a head holds one out in the first: the mean is over three."""
    fold = [0, 1, 1, 1]
    whole, optimizers, rows = one_step(fold)
    pixel_values, labels = next(iter(loader_of(batches())))
    sent = None
    for part in (slice(2, 4), slice(0, 2)):
        model = model_of(["a", "b"])
        model.train_only(["a", "b"])
        optimizers = two_optimizers(model)
        other = Other(sent) if sent is not None else Other()
        batch = pixel_values[part].double(), labels[part], torch.tensor(fold[part])
        found, _ = train_step(model, optimizers, batch, other)
        sent = other.sent
    assert all(difference(model.heads[name], whole.heads[name]) <= 1e-12 for name in "ab")
    assert all(found[name]["train/loss"] == pytest.approx(rows[name]["train/loss"], abs=1e-12) for name in "ab")


def test_a_head_that_no_process_learns_from_is_not_divided_by_zero():
    model = model_of(["a"])
    optimizers = HeadOptimizers({"a": model.heads["a"]}, {"a": Recipe()}, steps=2)
    losses, images, _ = average_over_processes(Other(), optimizers, torch.zeros(1).double(), [0], False)
    assert losses.tolist() == [0.0] and images == [0]


# ------------------------------------------------------------------------------------------------ predictions of a pass
def data_of(count: int = 24) -> DataSet:
    image_set = colours(count)
    parts = image_set.subset(range(18)), image_set.subset(range(18, count))
    return DataSet(
        "colours", list("rgb"), *parts, colours(9, seed=1), "crop_flip", "here", 0, 0, unselected=image_set
    ).for_folds(K)  # fmt: skip


def test_nothing_is_held_out_to_choose_on():
    data = data_of()
    assert len(data.train) == len(data.select) == 24
    assert data.record()["folds"] == K
    own = replace(data, train=data.train.subset(range(10)), unselected=None).for_folds(2)
    assert len(own.train) == 10


def test_each_image_is_predicted_by_the_head_that_has_not_seen_it():
    data = data_of()
    cross = CrossValidation(data, ["c"])
    model = model_of(["c", *cross.heads["c"]], torch.float32)
    for seed, name in enumerate(model.head_names):  # heads that disagree, so that a mistaken one shows
        torch.nn.init.normal_(model.heads[name].classifier.weight, generator=torch.Generator().manual_seed(seed))
    options = TrainOptions(dataset="Digits", batch_size=5, workers=0)
    result = cross.validate(model, ["c"], PREPROCESSING, options)["c"]
    transform = PREPROCESSING.eval_transform()
    for index in range(len(data.train)):
        image, label = data.train[index]
        head = f"c-f{result.found.fold[index]}"
        probabilities = model(transform(image)[None], heads=[head])[head].logits.detach().softmax(1)[0]
        assert result.found.predicted[index] == probabilities.argmax()
        assert result.found.probability[index] == pytest.approx(probabilities[label].item(), abs=1e-5)
        assert result.found.confidence[index] == pytest.approx(probabilities.max().item(), abs=1e-5)
        assert result.found.label[index] == label and result.found.image[index] == data.train.identity(index)
    right = result.found.predicted == result.found.label
    assert result.score.images == 24 and result.score.top1 == pytest.approx(right.mean())
    for k, score in enumerate(result.folds):
        assert score.images == (result.found.fold == k).sum()
        assert score.top1 == pytest.approx(right[result.found.fold == k].mean())
    assert result.score.loss == pytest.approx(-np.log(result.found.probability).mean(), abs=1e-5)


def test_recipes_and_cells_of_a_cross_validated_pass():
    cross = CrossValidation(data_of(), ["a", "b"])
    recipes = cross.recipes({"a": Recipe(lr=0.1), "b": Recipe(lr=0.2)})
    assert {name: recipe.held_out for name, recipe in recipes.items()} == {
        "a": None, "b": None, "a-f0": 0, "a-f1": 1, "a-f2": 2, "b-f0": 0, "b-f1": 1, "b-f2": 2,
    }  # fmt: skip
    assert all(recipes[f"b-f{k}"].lr == 0.2 for k in range(K))
    cells = {"a": Cell(MethodSpec("memory", 1), 0.1, 0), "b": Cell(MethodSpec("memory", 2), 0.2, 0)}
    assert cross.cells(cells)["b-f2"] == cells["b"] and cross.cells(cells).keys() == recipes.keys()
