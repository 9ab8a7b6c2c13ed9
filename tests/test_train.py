"""Training heads: the schedule, the optimizers, and what a pass over the data must and must not change."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from learnable_memory.evaluate import Score, evaluate
from learnable_memory.loading import make_loader
from learnable_memory.optim import HeadOptimizers, Recipe, rate_factor
from learnable_memory.runlog import RunLog, read_metrics
from learnable_memory.train import Best
from tiny import add_random_head, tiny_model
from toy_training import PREPROCESSING, colours, difference, fit, select_loader, toy, train_loader


# ------------------------------------------------------------------------------------------------------------ schedule
def test_rate_grows_linearly_over_five_steps_and_falls_to_zero():
    assert [rate_factor(step, 25, 5) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rate_factor(10, 25, 5) == pytest.approx((1 + math.sqrt(0.5)) / 2)  # a quarter of the way: cos 45 degrees
    assert rate_factor(15, 25, 5) == pytest.approx(0.5)
    assert rate_factor(25, 25, 5) == pytest.approx(0.0, abs=1e-15)


@settings(deadline=None)
@given(steps=st.integers(1, 3000), warmup_steps=st.integers(0, 20))
def test_rate_never_rises_again(steps, warmup_steps):
    """The 2023 implementation counted the length of its schedule in epochs: its rate swung up and down."""
    rates = [rate_factor(step, steps, warmup_steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    up, down = rates[:warmup_steps], rates[warmup_steps:]
    assert up == sorted(set(up)) and down == sorted(set(down), reverse=True)


def test_steps_are_those_of_all_epochs_or_the_limit():
    assert Recipe(epochs=3).steps(7) == 21
    assert Recipe(epochs=3, max_steps=10).steps(7) == 10
    assert Recipe(epochs=3, max_steps=100).steps(7) == 21
    assert isinstance(Recipe(epochs=3).steps(7), int)


# ----------------------------------------------------------------------------------------------------------- optimizer
def test_sgd_with_momentum_as_written_by_hand():
    recipe, steps = Recipe(lr=0.5, momentum=0.9, clip=100.0, warmup_steps=2), 6
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizers = HeadOptimizers({"A": nn.ParameterList([parameter])}, {"A": recipe}, steps)
    expected, velocity = parameter.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(steps):
        gradient = torch.tensor([step + 1.0, 0.3], dtype=torch.float64)
        rate = 0.5 * [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2][step]
        assert optimizers.rate("A") == pytest.approx(rate)
        velocity = 0.9 * velocity + gradient
        expected = expected - rate * velocity
        parameter.grad = gradient.clone()
        assert optimizers.clip().item() == pytest.approx(gradient.norm().item())
        optimizers.step("A")
        assert parameter.grad is None
    assert torch.allclose(parameter, expected, rtol=0, atol=1e-12)


def test_a_huge_gradient_is_scaled_to_the_norm_and_a_small_one_is_left():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (7,))]
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))  # of all parameters together

    def updated(scale):
        parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        recipe = Recipe(clip=1.5, warmup_steps=0, lr=1.0)
        optimizers = HeadOptimizers({"A": nn.ParameterList(parameters)}, {"A": recipe}, 10)
        assert optimizers.clip().item() == pytest.approx(norm * scale)
        optimizers.step("A")
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    raw = torch.cat([gradient.flatten() for gradient in gradients])
    assert torch.allclose(updated(1e5), -raw * 1.5 / norm, rtol=1e-6)
    assert torch.allclose(updated(1.4 / norm), -raw * 1.4 / norm, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------- best epoch
def test_best_is_the_first_of_the_best_epochs_and_a_copy():
    head, best = nn.Linear(1, 1, bias=False), Best()
    kept = []
    for epoch, top1 in enumerate([0.5, 0.8, 0.8, 0.3]):
        with torch.no_grad():
            head.weight.fill_(epoch)
        kept.append(best.consider(epoch, Score(10, top1, 1.0, 0.1, 1.0), head))
    assert kept == [True, True, False, False]
    assert best.epoch == 1 and best.score.top1 == 0.8
    assert best.tensors["weight"].item() == 1 and head.weight.item() == 3


def test_of_two_epochs_with_the_same_accuracy_the_lower_loss_is_kept():
    head, best = nn.Linear(1, 1), Best()
    losses = [0.5, 0.6, 0.3, 0.3]
    assert [best.consider(i, Score(10, 0.8, 1.0, loss, 1.0), head) for i, loss in enumerate(losses)] == [
        True, False, True, False,
    ]  # fmt: skip
    assert not best.consider(4, Score(10, 0.7, 1.0, 0.1, 1.0), head)


def test_an_epoch_without_a_right_answer_is_better_than_none():
    best = Best()
    assert best.consider(0, Score(10, 0.0, 0.0, 9.0, 1.0), nn.Linear(1, 1))
    assert best.epoch == 0


def test_the_head_is_left_as_after_its_best_epoch(after_each_epoch):
    after_each_epoch.accuracies = [0.2, 0.7, 0.7, 0.4]
    model = toy()
    best = fit(model, ["A"], Recipe(epochs=4, lr=0.3))["A"]
    assert best.epoch == 1 and best.score.top1 == 0.7
    left = model.heads.state_dict()
    assert all(torch.equal(left[name], value) for name, value in after_each_epoch.states[1].items())
    assert any(not torch.equal(left[name], value) for name, value in after_each_epoch.states[3].items())
    assert not model.training


# ------------------------------------------------------------------------------------------------------------ the loop
def test_training_learns_what_can_be_learned():
    model = toy()
    held_out = make_loader(colours(60, seed=2), PREPROCESSING.eval_transform(), 16)
    before = evaluate(model, held_out, ["A"])["A"]
    best = fit(model, ["A"], Recipe(epochs=4, lr=0.3), loader=train_loader(60, 6), select=select_loader(30))["A"]
    after = evaluate(model, held_out, ["A"])["A"]
    assert before.top1 < 0.6 < 0.95 < after.top1  # chance is 1/3
    assert after.loss < before.loss / 2
    assert evaluate(model, select_loader(30), ["A"])["A"].top1 == best.score.top1


def test_only_the_heads_that_are_trained_change():
    model = toy(("A", "B"))
    model.train_only(["B"])  # A has to be woken, B has to be frozen
    add_random_head(model, "other", 4, 1, extends=["B"])
    before = copy.deepcopy(model.state_dict())
    fit(model, ["A"], Recipe(epochs=1, lr=0.3))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("heads.A.")}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == changed


# A grid in small: heads of other sizes, a linear probe, and two initialisations of the same kind.
KINDS = {"A": {"memory_tokens": 2}, "B": {"memory_tokens": 0}, "C": {"memory_tokens": 0, "class_token": False}}
KINDS |= {"D": {"memory_tokens": 5}, "E": {"memory_tokens": 2}}


def grid_model(**changes):
    model = tiny_model(num_hidden_layers=2, **changes)
    for name, kind in KINDS.items():
        model.add_head(name, 3, **kind, generator=torch.Generator().manual_seed(ord(name)))
    return model


@pytest.mark.parametrize(
    ("changes", "rates", "tolerance", "compared"),
    [
        ({"dtype": torch.float64, "attn_implementation": "sdpa"}, (0.01, 0.03, 0.1, 0.3, 0.3), 1e-9, "BCD"),
        ({}, (0.01, 0.03, 0.03, 0.01, 0.03), 1e-6, "AE"),
        ({}, (0.3, 0.3, 0.3, 0.3, 0.1), 1e-4, "AE"),
    ],
    ids=["float64", "float32 up to 0.03", "float32 up to 0.3"],
)
def test_heads_trained_in_one_pass_end_as_each_does_alone(after_each_epoch, changes, rates, tolerance, compared):
    """50 steps; one epoch's weights are as good as another's to compare, so the last ones are."""
    recipes = {name: Recipe(epochs=9, lr=rate, max_steps=50) for name, rate in zip(KINDS, rates, strict=True)}
    after_each_epoch.accuracies = [epoch / 9 for epoch in range(9)] * (len(KINDS) + 1)
    together = grid_model(**changes)
    start = copy.deepcopy(together.heads)
    fit(together, list(KINDS), recipes, select=select_loader(3))
    for name in compared:
        alone = grid_model(**changes)
        fit(alone, [name], recipes[name], select=select_loader(3))
        assert difference(together.heads[name], alone.heads[name]) < tolerance
        assert difference(together.heads[name], start[name]) > 100 * tolerance


def test_training_in_bfloat16_keeps_heads_and_optimizer_in_float32():
    model = toy().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.vit.state_dict().items()}
    best = fit(model, ["A"], Recipe(epochs=4, lr=0.3), loader=train_loader(60, 6), select=select_loader(9))["A"]
    assert best.score.top1 > 0.9  # chance is 1/3
    assert {parameter.dtype for parameter in model.heads.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, model.vit.state_dict()[name]) for name, tensor in before.items())


def test_two_runs_give_the_same_bits_whatever_the_global_random_state():
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = toy()
        fit(model, ["A"], Recipe(epochs=2, lr=0.3))
        heads.append(model.heads["A"])
    assert difference(*heads) == 0


def test_another_seed_of_the_data_gives_another_head():
    heads = []
    for seed in (0, 1):
        model = toy()
        fit(model, ["A"], Recipe(epochs=1, lr=0.3), loader=train_loader(seed=seed))
        heads.append(model.heads["A"])
    assert difference(*heads) > 0


def test_validation_does_not_change_training(after_each_epoch):
    for count in (3, 11):
        fit(toy(), ["A"], Recipe(epochs=3, lr=0.3), select=select_loader(count))
    first, second = after_each_epoch.states[:3], after_each_epoch.states[3:]
    assert len(second) == 3
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_every_epoch_has_views_of_its_own():
    loader, seen = train_loader(8, 8), []

    class Recorded:
        """Hands the loader's batches on and keeps them."""

        batch_sampler, dataset = loader.batch_sampler, loader.dataset

        def __len__(self):
            return len(loader)

        def __iter__(self):
            for pixel_values, labels in loader:
                seen.append(pixel_values[labels.argsort(stable=True)])
                yield pixel_values, labels

    fit(toy(), ["A"], Recipe(epochs=3), loader=Recorded())
    assert len(seen) == 3
    assert not any(torch.equal(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


# -------------------------------------------------------------------------------------------------------------- metrics
PLACE = {"time", "step", "epoch"}
TRAIN = {"train/loss", "train/lr", "train/gradient_norm"}
METER = {f"train/{key}" for key in ("images_per_second", "waited_share", "seconds_left", "peak_memory_bytes")}
SELECT = {f"select/{key}" for key in ("images", "top1", "loss", "images_per_second")}  # three classes: no top-5


def test_rows_of_the_log(tmp_path):
    with RunLog(tmp_path) as log:
        best = fit(toy(), ["A"], Recipe(epochs=4, lr=0.3), log)["A"]  # 6 steps an epoch
    rows = read_metrics(log.metrics_path)
    steps = [row for row in rows if row.keys() == PLACE | TRAIN | METER]
    epochs = [row for row in rows if row.keys() == PLACE | SELECT]
    assert len(steps) + len(epochs) == len(rows)
    assert [(row["step"], row["epoch"]) for row in steps] == [(1, 1), (10, 2), (20, 4), (24, 4)]
    assert [(row["step"], row["epoch"]) for row in epochs] == [(6, 1), (12, 2), (18, 3), (24, 4)]
    # the rate that a step was taken with: the tenth is the fifth of 19 after the warm-up
    assert [row["train/lr"] for row in steps[:2]] == pytest.approx([0.06, 0.15 * (1 + math.cos(math.pi * 4 / 19))])
    assert {f"select/{key}": value for key, value in best.score.known().items()}.items() <= epochs[best.epoch].items()
    assert [row["select/images"] for row in epochs] == [9] * 4


def test_with_several_heads_each_key_ends_in_the_heads_name(tmp_path):
    with RunLog(tmp_path) as log:
        fit(toy("AB"), ["A", "B"], {"A": Recipe(epochs=1, lr=0.3), "B": Recipe(epochs=1, lr=0.1)}, log)
    rows = read_metrics(log.metrics_path)
    assert [row["step"] for row in rows] == [1, 6, 6]
    expected = [PLACE | {f"{key}/{name}" for key in keys for name in "AB"} for keys in (TRAIN, TRAIN, SELECT)]
    expected = [expected[0] | METER, expected[1] | METER, expected[2]]
    assert [row.keys() for row in rows] == expected
    assert (rows[0]["train/lr/A"], rows[0]["train/lr/B"]) == pytest.approx((0.06, 0.02))


def test_max_steps_stops_within_an_epoch_with_the_cosine_at_its_end(tmp_path):
    with RunLog(tmp_path) as log:
        fit(toy(), ["A"], Recipe(epochs=5, lr=0.4, max_steps=8), log)
    rows = read_metrics(log.metrics_path)
    assert [row["step"] for row in rows if "train/lr" in row] == [1, 8]
    assert [(row["step"], row["epoch"]) for row in rows if "select/top1" in row] == [(6, 1), (8, 2)]
    (last,) = (row for row in rows if row["step"] == 8 and "train/lr" in row)
    assert last["train/lr"] == pytest.approx(0.4 * 0.25)  # 0.5 (1 + cos 120 degrees): the last of three after warm-up


# ----------------------------------------------------------------------------------------------------------- wrong use
def test_a_head_that_diverges_stops_and_the_others_end_as_they_would_without_it(caplog):
    alone, model = toy("AC"), toy("ABC")
    with torch.no_grad():
        model.heads["B"].classifier.bias.fill_(float("nan"))
    recipes = {"A": Recipe(epochs=2), "B": Recipe(epochs=2), "C": Recipe(epochs=2, lr=0.01)}
    best = fit(model, ["A", "B", "C"], recipes)
    fit(alone, ["A", "C"], recipes)
    assert {name: each.diverged_at for name, each in best.items()} == {"A": None, "B": 1, "C": None}
    assert best["B"].score is None
    assert "The loss of B is nan, its gradient's norm nan, at step 1 and rate 0.006" in caplog.text
    assert max(difference(model.heads[name], alone.heads[name]) for name in "AC") < 1e-6


@pytest.mark.parametrize("diverging", "AB")
def test_a_head_that_diverges_does_not_reach_a_head_with_another_number_of_cells(diverging):
    alone, model = tiny_model(), tiny_model()
    for each in (alone, model):
        for name, cells in (("A", 3), ("B", 1)):
            each.add_head(name, 3, cells, generator=torch.Generator().manual_seed(ord(name)))
    (other,) = {"A", "B"} - {diverging}
    recipes = {other: Recipe(epochs=1), diverging: Recipe(epochs=1, lr=1e38)}
    best = fit(model, ["A", "B"], recipes)
    fit(alone, [other], recipes)
    assert best[diverging].diverged_at == 2 and best[other].diverged_at is None
    assert difference(model.heads[other], alone.heads[other]) < 1e-6


def test_a_rate_that_is_far_too_high_is_an_error():
    message = r"The loss of A is (nan|inf), its gradient's norm (nan|inf), at step \d+ and rate \S+e\+\d+: lower --lr"
    with pytest.raises(ValueError, match=message):
        fit(toy(), ["A"], Recipe(lr=1e38))


def test_a_limit_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="max_steps is 0, but it has to be 1 or more, or None for no limit"):
        Recipe(max_steps=0)


def test_heads_in_one_pass_need_the_same_number_of_steps():
    recipes = {"A": Recipe(epochs=2), "B": Recipe(epochs=3)}
    with pytest.raises(ValueError, match=r"need the same number of steps, above 0; got \{(12, 18|18, 12)\}"):
        fit(toy("AB"), ["A", "B"], recipes)


def test_nothing_to_train_on_is_an_error():
    empty = make_loader(colours(3).subset([]), PREPROCESSING.eval_transform(), 4)
    with pytest.raises(ValueError, match=r"need the same number of steps, above 0; got \{0\}"):
        fit(toy(), ["A"], Recipe(), loader=empty)
    with pytest.raises(ValueError, match="There are no images to evaluate on"):
        fit(toy(), ["A"], Recipe(epochs=1), select=empty)


def test_a_head_is_not_trained_together_with_its_parents():
    """The child would be built on a parent that moves, and end as it never would alone."""
    model = toy()
    model.add_head("B", 3, 1, extends=["A"])
    with pytest.raises(ValueError, match="B extends A, which would move while it learns"):
        fit(model, ["A", "B"], Recipe(epochs=1))
