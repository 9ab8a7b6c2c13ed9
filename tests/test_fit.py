"""Ways of fitting a head: optimizers, weight decay, label smoothing, averages; each as its definition says."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from learnable_memory.config import TrainOptions
from learnable_memory.fit_spec import OPTIMIZERS, PAPERS_FIT, FitSpec
from learnable_memory.grid import cells, table
from learnable_memory.heads import HeadSpec
from learnable_memory.optim import HeadOptimizer, Recipe, low_rank_of, rate_factor
from learnable_memory.train import train
from learnable_memory.train_step import train_step
from outcomes import outcome
from tiny import tiny_model
from toy_training import difference, select_loader, toy, train_loader

STEPS = 8
GRADIENTS = torch.randn(STEPS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def parameter(values=(0.5, -1.0, 2.0)) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(fit: FitSpec, low_rank: bool = False, **recipe) -> list[torch.Tensor]:
    """The values after each step with the gradients above; clipping does not bind."""
    learned = parameter()
    recipe = Recipe(**{"lr": 0.1, "clip": 1e9, "warmup_steps": 0, "fit": fit} | recipe)
    optimizer = HeadOptimizer([learned], recipe, STEPS, [learned] if low_rank else ())
    values = []
    for gradient in GRADIENTS:
        learned.grad = gradient.clone()
        optimizer.step()
        values.append(learned.detach().clone())
    return values


# ------------------------------------------------------------------------------------------------- against definitions
def test_adamw_is_loshchilov_and_hutters():
    """Decoupled weight decay (arXiv 1711.05101, algorithm 2), with the schedule's rate for both parts."""
    mean, square, value = torch.zeros(3).double(), torch.zeros(3).double(), parameter().detach()
    for t, (gradient, found) in enumerate(zip(GRADIENTS, stepped(FitSpec("adamw", weight_decay=0.2)), strict=True)):
        rate = 0.1 * rate_factor(t, STEPS, 0)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        step = (mean / (1 - 0.9 ** (t + 1))) / ((square / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        value = value - rate * 0.2 * value - rate * step
        assert torch.allclose(found, value, rtol=0, atol=1e-12)


def test_weight_decay_of_sgd_is_a_gradient_of_its_own():
    momentum, value = torch.zeros(3).double(), parameter().detach()
    for t, (gradient, found) in enumerate(zip(GRADIENTS, stepped(FitSpec(weight_decay=0.2)), strict=True)):
        momentum = 0.9 * momentum + gradient + 0.2 * value
        value = value - 0.1 * rate_factor(t, STEPS, 0) * momentum
        assert torch.allclose(found, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_low_rank_weights_have_a_multiple_of_the_rate(optimizer):
    found = stepped(FitSpec(optimizer, rank_lr=0.25), low_rank=True)
    assert all(map(torch.equal, found, stepped(FitSpec(optimizer), lr=0.025)))
    assert all(map(torch.equal, stepped(FitSpec(optimizer, rank_lr=0.25)), stepped(FitSpec(optimizer))))


def test_mixed_is_adamw_for_low_rank_weights_and_sgd_for_all_else():
    mixed = FitSpec("mixed", rank_lr=0.5, weight_decay=0.1)
    assert all(map(torch.equal, stepped(mixed), stepped(FitSpec(weight_decay=0.1))))
    assert all(map(torch.equal, stepped(mixed, low_rank=True), stepped(FitSpec("adamw", weight_decay=0.1), lr=0.05)))


def test_of_a_head_low_rank_weights_are_the_factors_and_nothing_else():
    model = toy(())
    model.add_head("A", 3, 2, rank=2)
    names = {id(p): name for name, p in model.heads["A"].named_parameters()}
    assert {names[id(p)] for p in low_rank_of(model.heads["A"])} == {
        f"low_rank.{projection}.{factor}"
        for projection in ("query", "output", "mlp_in", "mlp_out")
        for factor in ("down", "up")
    }
    model.add_head("B", 3, 2)
    assert low_rank_of(model.heads["B"]) == [] and low_rank_of(object()) == []


def test_label_smoothing_is_szegedys():
    """The target is 1 - e + e / C for the label and e / C for the others (arXiv 1512.00567, section 7)."""
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 2, 1, 1])
    optimizer = HeadOptimizer([parameter()], Recipe(fit=FitSpec(label_smoothing=0.3)), 1)
    target = F.one_hot(labels, 3).double() * 0.7 + 0.1
    expected = -(target * logits.log_softmax(1)).sum(1)
    assert optimizer.loss(logits, labels).item() == pytest.approx(expected.mean().item(), abs=1e-12)
    rows = torch.tensor([1, 3])
    assert optimizer.loss(logits, labels, rows).item() == pytest.approx(expected[rows].mean().item(), abs=1e-12)


def test_the_average_follows_its_recursion():
    learned = parameter()
    optimizer = HeadOptimizer([learned], Recipe(clip=1e9, fit=FitSpec(ema=0.6)), STEPS)
    mean = learned.detach().clone()
    for t, gradient in enumerate(GRADIENTS, start=1):
        learned.grad = gradient.clone()
        optimizer.step()
        decay = min(0.6, t / (t + 9))
        mean = decay * mean + (1 - decay) * learned.detach()
        before = learned.detach().clone()
        with optimizer.averaged():
            assert torch.allclose(learned, mean, rtol=0, atol=1e-12)
        assert torch.equal(learned, before)
        assert not torch.allclose(learned, mean, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- in training
def trained(fit: FitSpec, names=("A",), select=True, **recipe):
    model = toy(names)
    recipes = Recipe(**{"epochs": 3, "lr": 0.1, "fit": fit} | recipe)
    train(model, list(names), train_loader(), select_loader() if select else None, recipes, progress=False)
    return model


def test_what_is_kept_with_an_average_is_the_average():
    """Steps are those without it: the average of them, worked out beside, is what is left."""
    steps = []
    model = toy()
    recipe = Recipe(epochs=2, lr=0.1, fit=FitSpec(ema=0.5))
    initial = copy.deepcopy(model.heads["A"].state_dict())
    plain = toy()
    for max_steps in range(1, 13):  # the schedule is that of all 12 steps
        plain = toy()
        optimizer = HeadOptimizer(plain.heads["A"].parameters(), replace(recipe, fit=PAPERS_FIT), 12)
        loader = train_loader()
        plain.train_only(["A"])
        plain.train()
        done = 0
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                if done < max_steps:
                    train_step(plain, {"A": optimizer}, batch)
                    done += 1
        steps.append(copy.deepcopy(plain.heads["A"].state_dict()))
    mean = initial
    for t, state in enumerate(steps, start=1):
        decay = min(0.5, t / (t + 9))
        mean = {name: decay * value + (1 - decay) * state[name] for name, value in mean.items()}
    train(model, ["A"], train_loader(), None, recipe, progress=False)
    left = model.heads["A"].state_dict()
    assert all(torch.allclose(left[name], value, rtol=0, atol=1e-6) for name, value in mean.items())
    assert difference(model.heads["A"], plain.heads["A"]) > 1e-3


def test_heads_fitted_differently_in_one_pass_are_those_fitted_alone():
    fits = {
        "A": PAPERS_FIT, "B": FitSpec("adamw", weight_decay=0.1), "C": FitSpec(label_smoothing=0.2, ema=0.7),
        "D": FitSpec("mixed", rank_lr=0.01),
    }  # fmt: skip
    rates = {"A": 0.1, "B": 0.003, "C": 0.1, "D": 0.1}

    def model_with(names):
        model = tiny_model(dtype=torch.float64)
        for name in names:
            generator = torch.Generator().manual_seed(ord(name))
            model.add_head(name, 3, 2, rank=2 if name == "D" else 0, generator=generator)
        return model

    def double(loader):
        class Double:
            dataset, batch_sampler = loader.dataset, loader.batch_sampler

            def __len__(self):
                return len(loader)

            def __iter__(self):
                return ((pixels.double(), labels) for pixels, labels in loader)

        return Double()

    recipes = {name: Recipe(epochs=2, lr=rates[name], fit=fit) for name, fit in fits.items()}
    together = model_with(fits)
    train(together, list(fits), double(train_loader()), double(select_loader()), recipes, progress=False)
    for name, recipe in recipes.items():
        alone = model_with(name)
        train(alone, [name], double(train_loader()), double(select_loader()), recipe, progress=False)
        assert difference(together.heads[name], alone.heads[name]) <= 1e-12


# ------------------------------------------------------------------------------------------------------------- in grids
def test_ways_of_fitting_are_dimensions_of_a_grid():
    options = TrainOptions(
        dataset="Digits", optimizer=("sgd", "adamw"), weight_decay=(0, 0.01), label_smoothing=0.1, ema=(0.0, 0.99),
        lr=(0.1, 1e-05), number_of_memory_tokens=1,
    )  # fmt: skip
    found = cells(options)
    assert len(found) == len({cell.name for cell in found}) == 16
    assert {cell.fit.label_smoothing for cell in found} == {0.1}
    for cell in found:
        assert HeadSpec(f"Digits_{cell.name}", num_labels=2).name == f"Digits_{cell.name}"
    last = found[-1]
    assert last.name == "m1_lr1e-05_adamw_wd0p01_smooth0p1_ema0p99_s0"
    assert last.fit == FitSpec("adamw", weight_decay=0.01, label_smoothing=0.1, ema=0.99)
    assert last.fit.label == "adamw, weight decay 0.01, label smoothing 0.1, average 0.99"


def test_cells_that_would_be_the_same_head_come_once():
    fits = {"dataset": "Digits", "optimizer": ("sgd", "mixed"), "rank_lr": (0.1, 1)}
    found = cells(TrainOptions(**fits, rank=(0, 4)))
    assert [cell.name for cell in found if not cell.spec.rank] == ["m1_lr0p03_s0"]
    assert len(found) == 5
    found = cells(TrainOptions(**fits, rank=4, method=("memory", "lora")))
    assert [cell.name for cell in found if cell.spec.method == "lora"] == ["lora4_lr0p03_s0"]
    assert len(found) == 5


def test_the_table_tells_ways_of_fitting_apart():
    plain = outcome(0.5, 0.4)
    other = replace(plain, cell=replace(plain.cell, fit=FitSpec("adamw", rank_lr=0.5)))
    lines = table([plain, other]).splitlines()
    assert "fit" in lines[0] and "  sgd  " in lines[1] and "adamw, low-rank rate x 0.5" in lines[2]
    assert "fit" not in table([plain, plain]).splitlines()[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam', but it has to be one of sgd, adamw, mixed."),
        ({"rank_lr": 0.0}, "rank_lr is 0.0, but it has to be above 0."),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, but it has to be 0 or more."),
        ({"weight_decay": float("nan")}, "weight_decay is nan, but it has to be 0 or more."),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0, but it has to be at least 0 and less than 1."),
        ({"ema": -0.5}, "ema is -0.5, but it has to be at least 0 and less than 1."),
    ],
)
def test_what_is_no_way_of_fitting_is_refused(wrong, message):
    with pytest.raises(ValueError) as error:
        FitSpec(**wrong)
    assert str(error.value) == message


@pytest.mark.parametrize("asked", [{"optimizer": "mixed"}, {"rank_lr": 0.1}, {"rank_lr": 0.1, "rank": 0}])
def test_what_is_for_low_rank_weights_needs_some(asked):
    with pytest.raises(ValueError, match="--optimizer mixed and --rank_lr are for low-rank weights of a head"):
        TrainOptions(dataset="Digits", **asked)
    assert TrainOptions(dataset="Digits", optimizer=OPTIMIZERS, rank_lr=(0.1, 1), rank=(0, 4)).rank == (0, 4)
