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
from learnable_memory.optim import HeadOptimizers, Recipe, low_rank_of, rate_factor
from learnable_memory.train import train
from learnable_memory.train_step import train_step
from outcomes import outcome
from tiny import tiny_model
from toy_training import difference, select_loader, toy, train_loader

STEPS = 8
GRADIENTS = torch.randn(STEPS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def parameter(values=(0.5, -1.0, 2.0)) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Learned(torch.nn.Module):
    """One parameter, which is all that a head learns; as low-rank weights, or as anything else."""

    def __init__(self, parameter: torch.nn.Parameter, low_rank: bool = False) -> None:
        super().__init__()
        learned = torch.nn.ParameterList([parameter])
        if low_rank:
            self.low_rank = learned
        else:
            self.memory = learned


def stepped(fit: FitSpec, low_rank: bool = False, **recipe) -> list[torch.Tensor]:
    """The values after each step with the gradients above; clipping does not bind."""
    learned = parameter()
    recipe = Recipe(**{"lr": 0.1, "clip": 1e9, "warmup_steps": 0, "fit": fit} | recipe)
    optimizers = HeadOptimizers({"A": Learned(learned, low_rank)}, {"A": recipe}, STEPS)
    values = []
    for gradient in GRADIENTS:
        learned.grad = gradient.clone()
        optimizers.step("A")
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
    recipe = Recipe(fit=FitSpec(label_smoothing=0.3))
    optimizers = HeadOptimizers({"A": Learned(parameter())}, {"A": recipe}, 1)
    target = F.one_hot(labels, 3).double() * 0.7 + 0.1
    expected = -(target * logits.log_softmax(1)).sum(1)
    assert optimizers.loss("A", logits, labels).item() == pytest.approx(expected.mean().item(), abs=1e-12)
    rows = torch.tensor([1, 3])
    assert optimizers.loss("A", logits, labels, rows).item() == pytest.approx(expected[rows].mean().item(), abs=1e-12)


def test_the_average_follows_its_recursion():
    learned = parameter()
    optimizers = HeadOptimizers({"A": Learned(learned)}, {"A": Recipe(clip=1e9, fit=FitSpec(ema=0.6))}, STEPS)
    mean = learned.detach().clone()
    for t, gradient in enumerate(GRADIENTS, start=1):
        learned.grad = gradient.clone()
        optimizers.step("A")
        decay = min(0.6, t / (t + 9))
        mean = decay * mean + (1 - decay) * learned.detach()
        before = learned.detach().clone()
        with optimizers.averaged():
            assert torch.allclose(learned, mean, rtol=0, atol=1e-12)
        assert torch.equal(learned, before)
        assert not torch.allclose(learned, mean, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ several heads at once
FITS = {
    "sgd": PAPERS_FIT, "adamw": FitSpec("adamw", weight_decay=0.1), "average": FitSpec(ema=0.9, weight_decay=0.2),
    "mixed": FitSpec("mixed", rank_lr=0.5), "too": PAPERS_FIT,
}  # fmt: skip
LEFT_OUT = {0: {"too", "adamw"}, 3: {"mixed"}, 5: {"average", "sgd"}, 6: set(FITS)}  # in these steps


def steps_of(names, drop=(), resume_at=None):
    """What these heads have learned after the steps above, all in the same optimizers."""
    learned = {name: parameter() for name in names}
    recipes = {name: Recipe(lr=0.1 + number / 10, warmup_steps=2, fit=FITS[name]) for number, name in enumerate(FITS)}

    def optimizers_of(parameters):
        heads = {name: Learned(value, name == "mixed") for name, value in parameters.items()}
        return HeadOptimizers(heads, recipes, STEPS)

    optimizers = optimizers_of(learned)
    for step, gradient in enumerate(GRADIENTS):
        if step == resume_at:
            state = copy.deepcopy(optimizers.state_dict())
            learned = {name: torch.nn.Parameter(value.detach().clone()) for name, value in learned.items()}
            optimizers = optimizers_of(learned)
            optimizers.load_state_dict(state)
        for name in optimizers.names:
            learned[name].grad = gradient * (1 + len(name))
        optimizers.clip()
        optimizers.step([name for name in optimizers.names if name not in LEFT_OUT.get(step, ())])
        for name in {*drop} & {*optimizers.names}:
            if step == 2:
                optimizers.drop(name)
    with optimizers.averaged():
        return {name: value.detach().clone() for name, value in learned.items()}


def test_each_ends_as_it_does_alone_whatever_becomes_of_the_others():
    """Bit for bit; heads that leave out a step, the first too, keep what they have, and the schedule goes on."""
    together, alone = steps_of(FITS, drop=["too"]), {name: steps_of([name])[name] for name in FITS}
    assert all(torch.equal(together[name], alone[name]) for name in FITS if name != "too")
    assert not torch.equal(together["too"], alone["too"])


@pytest.mark.parametrize("resume_at", [1, 4, 7])
def test_a_state_that_is_read_back_goes_on_bit_for_bit(resume_at):
    found, whole = steps_of(FITS, ["too"], resume_at), steps_of(FITS, ["too"])
    assert all(torch.equal(found[name], whole[name]) for name in FITS)


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
        optimizers = HeadOptimizers({"A": plain.heads["A"]}, {"A": replace(recipe, fit=PAPERS_FIT)}, 12)
        loader = train_loader()
        plain.train_only(["A"])
        plain.train()
        done = 0
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                if done < max_steps:
                    train_step(plain, optimizers, batch)
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
