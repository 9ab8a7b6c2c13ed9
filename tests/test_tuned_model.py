"""Networks behind the surface of a model with heads: they go through the one training loop and the one evaluation."""

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from interruptions import Killed, at_call, kill
from learnable_memory import train as training
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.evaluate import Score, evaluate
from learnable_memory.method_spec import MethodSpec
from learnable_memory.methods import Learned, TunedModel, build_network
from learnable_memory.optim import Recipe
from learnable_memory.train import train
from tiny import images, tiny_model
from toy_training import fit, select_loader, train_loader


class Convolutions(nn.Sequential):
    """A frozen convolution with batch norm, then one that is learned, and a classifier of three classes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip
        self[2].register_buffer("scratch", torch.zeros(1), persistent=False)
        for frozen in (self[0], self[1]):
            frozen.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self[1].eval()  # as any network with a frozen norm has to: its statistics would move
        return self


def of_batch_norm(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Convolutions()


OF_BATCH_NORM = {f"3.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
OF_BATCH_NORM |= {"2.weight", "6.weight", "6.bias"}


def of_method(method, *args, **kwargs):
    def build(seed=0):
        spec = MethodSpec(method, *args, **kwargs)
        base = tiny_model(num_hidden_layers=2, hidden_dropout_prob=0.1)
        return build_network(base, spec, 3, torch.Generator().manual_seed(seed))

    return build


NETWORKS = {
    "full": of_method("full"),
    "lora": of_method("lora", rank=2),
    "vpt-deep": of_method("vpt-deep", 3, prompt_dropout=0.2),
    "additive": of_method("memory", 2, "none", "additive"),
    "batch norm": of_batch_norm,
}
every_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


def toy(**networks):
    return TunedModel(networks, "of the base", "a base")


def state_of(model, name="A"):
    return {key: tensor.clone() for key, tensor in model.heads[name].state_dict().items()}


def all_equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ------------------------------------------------------------------------------------------------------ what is learned
def test_running_statistics_belong_to_a_norm_that_is_learned():
    network = of_batch_norm()
    learned = Learned(network)
    assert set(learned.names) == learned.state_dict().keys() == OF_BATCH_NORM
    expected = network[2].weight, network[3].weight, network[3].bias, network[6].weight, network[6].bias
    assert all(found is parameter for found, parameter in zip(learned.parameters(), expected, strict=True))
    before = copy.deepcopy(learned.state_dict())
    network.train()(images())
    moved = {name for name, tensor in learned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}
    learned.load_state_dict(before)
    assert all_equal(network.state_dict(), network.state_dict() | before)


@every_network
def test_what_was_learned_is_all_that_another_network_needs(build):
    network, other = build(), build(seed=1)
    with torch.no_grad():
        for parameter in Learned(network).parameters():
            parameter.add_(1)
    frozen = {name: tensor for name, tensor in network.state_dict().items() if name not in Learned(network).names}
    other.load_state_dict(frozen, strict=False)  # as of the same base
    parameters = list(Learned(other).parameters())
    Learned(other).load_state_dict(Learned(network).state_dict())
    assert torch.equal(network.eval()(images()), other.eval()(images()))
    assert all(ours is theirs for ours, theirs in zip(parameters, Learned(other).parameters(), strict=True))
    assert {p.data_ptr() for p in parameters}.isdisjoint(p.data_ptr() for p in Learned(network).parameters())


def test_tensors_of_another_network_are_refused():
    learned = Learned(of_method("vpt-deep", 3)())
    before, tensors = copy.deepcopy(learned.state_dict()), learned.state_dict()
    tensors["memory.0"] = torch.ones(4, 32)
    tensors["class_token"] = torch.ones(32)
    tensors["classifier.weight"] = torch.ones_like(tensors["classifier.weight"])
    del tensors["memory.1"]
    with pytest.raises(ValueError) as error:
        learned.load_state_dict(tensors)
    assert str(error.value) == (
        "These tensors are not what the network learns: class_token: found [32], expected nothing; "
        "memory.0: found [4, 32], expected [3, 32]; memory.1: found nothing, expected [3, 32]."
    )
    assert all_equal(learned.state_dict(), before)


# -------------------------------------------------------------------------------------------------------------- surface
def test_answers_are_those_of_the_networks():
    full, vpt = of_method("full")(), of_method("vpt-deep", 2)(seed=1)
    names = ["keys", "m5-unmasked"]  # legal as heads' names, but not as modules'
    model = TunedModel(dict(zip(names, (full, vpt), strict=True)), "of the base", "a base").eval()
    assert model.head_names == names
    assert (model.fingerprint, model.base_id, model.has_base_classifier) == ("of the base", "a base", False)
    labels = torch.tensor([0, 2, 1])
    answers = model(images(), with_base=True, labels={"keys": labels})
    assert list(answers) == names
    assert torch.equal(answers["keys"].logits, full(images())) and torch.equal(answers[names[1]].logits, vpt(images()))
    assert torch.equal(answers["keys"].loss, F.cross_entropy(full(images()), labels))
    assert answers[names[1]].loss is None
    assert list(model(images(), heads=names[1:])) == names[1:]
    assert not model.training and not full.training
    assert model.train().training and full.training


def test_each_name_stands_for_what_its_network_learns():
    full, vpt = of_method("full")(), of_method("vpt-deep", 2)()
    model = toy(A=full, B=vpt)
    assert model.train_only(["B"]) == list(model.heads["B"].parameters()) == list(Learned(vpt).parameters())
    assert len(model.train_only(["A", "B"])) == len(list(Learned(full).parameters())) + 4
    assert {p.data_ptr() for p in model.parameters()} >= {p.data_ptr() for p in vpt.parameters()}


def test_an_unknown_name_is_an_error():
    model = toy(A=of_method("full")())
    for ask in (lambda: model.train_only(["B"]), lambda: model(images(), heads=["B"])):
        with pytest.raises(KeyError, match="B"):
            ask()


def test_the_base_has_no_answers_to_score():
    with pytest.raises(ValueError, match="The base has no classifier, so it has no answers to score"):
        evaluate(toy(A=of_method("full")()), select_loader(), ["A", "base"])


# ------------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize(
    ("build", "lr"),
    [
        pytest.param(of_method("vpt-shallow", 5), 0.3, id="vpt-shallow"),
        *(
            pytest.param(build, lr, id=name, marks=pytest.mark.slow)
            for name, build, lr in (
                ("full", NETWORKS["full"], 0.01), ("bias", of_method("bias"), 0.1), ("lora", NETWORKS["lora"], 0.1),
                ("vpt-deep", NETWORKS["vpt-deep"], 0.3), ("additive", NETWORKS["additive"], 0.3),
                ("batch norm", NETWORKS["batch norm"], 0.1),
            )
        ),
    ],
)  # fmt: skip
def test_training_learns_what_can_be_learned(build, lr):
    torch.manual_seed(0)  # of dropout
    model = toy(A=build())
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = evaluate(model, select_loader(60), ["A"])["A"]
    best = fit(model, ["A"], Recipe(epochs=6, lr=lr), loader=train_loader(60, 6), select=select_loader(30))["A"]
    after = evaluate(model, select_loader(60), ["A"])["A"]
    assert before.top1 < 0.6 < 0.9 < after.top1  # chance is 1/3
    assert evaluate(model, select_loader(30), ["A"])["A"].top1 == best.score.top1
    learned = {f"networks.0.{name}" for name in model.heads["A"].names}
    assert all(torch.equal(model.state_dict()[name], frozen[name]) for name in frozen.keys() - learned)
    assert not model.training


@every_network
def test_the_network_is_left_as_after_its_best_epoch(build, monkeypatch):
    accuracies, states = [0.2, 0.7, 0.7, 0.4], []

    def prescribed(model, *_, **__):
        states.append(state_of(model))
        return {"A": Score(9, accuracies[len(states) - 1], 1.0, 0.1, 1.0)}

    monkeypatch.setattr(training, "evaluate", prescribed)
    model = toy(A=build())
    best = fit(model, ["A"], Recipe(epochs=4, lr=0.1), loader=train_loader(4))["A"]
    assert (best.epoch, best.score.top1) == (1, 0.7)
    assert all_equal(state_of(model), states[1])
    assert not all_equal(state_of(model), states[3])


def test_networks_trained_in_one_pass_end_as_each_does_alone():
    def without_dropout():
        return build_network(tiny_model(), MethodSpec("full"), 3, torch.Generator().manual_seed(0))

    builds = {"A": without_dropout, "B": of_method("vpt-deep", 3), "C": of_batch_norm}
    recipes = {"A": Recipe(epochs=2, lr=0.01), "B": Recipe(epochs=2, lr=0.3), "C": Recipe(epochs=2, lr=0.1)}
    together = toy(**{name: build() for name, build in builds.items()})
    fit(together, list(builds), recipes)
    for name, build in builds.items():
        alone = toy(**{name: build()})
        fit(alone, [name], recipes[name])
        assert all_equal(state_of(together, name), state_of(alone, name))


def test_a_network_that_diverges_stops_and_the_others_go_on(caplog):
    recipes = {"A": Recipe(epochs=2), "B": Recipe(epochs=2, lr=1e38)}
    vpt = of_method("vpt-deep", 3)
    model, alone = toy(A=vpt(), B=of_method("full")()), toy(A=vpt())
    best = fit(model, ["A", "B"], recipes)
    fit(alone, ["A"], recipes)
    assert (best["A"].diverged_at, best["B"].diverged_at) == (None, 2)
    assert "The loss of B is nan" in caplog.text and "The other heads go on." in caplog.text
    assert all_equal(state_of(model), state_of(alone))


def test_when_all_diverge_it_is_an_error():
    with pytest.raises(ValueError, match=r"The loss of A is (nan|inf), .* at step 2 and rate \S+e\+\d+: lower --lr\."):
        fit(toy(A=of_method("full")()), ["A"], Recipe(lr=1e38))


# -------------------------------------------------------------------------------------------------------- interrupted
def run(build, checkpoint=None, seed=0):
    """As a process of its own: a fresh model, and whatever global random state there is."""
    model = toy(A=build())
    torch.manual_seed(seed)
    recipe = Recipe(epochs=2, lr=0.05)
    best = train(model, ["A"], train_loader(12), select_loader(), recipe, progress=False, checkpoint=checkpoint)["A"]
    return state_of(model), best


undisturbed = functools.cache(run)


@pytest.mark.parametrize(
    ("build", "step"), zip(NETWORKS.values(), (2, 4, 2, 4, 4), strict=True), ids=NETWORKS
)  # of 3 steps in an epoch
def test_killed_and_resumed_it_ends_in_the_same_bits(build, step, tmp_path, monkeypatch):
    expected, best = undisturbed(build)
    made, plain = [], training.train_step
    monkeypatch.setattr(training, "train_step", lambda *args, **kwargs: made.append(1) or plain(*args, **kwargs))
    at_call(monkeypatch, training, "train_step", [step], kill)
    checkpoint = Checkpoint(tmp_path / "state.pt", 1)
    with contextlib.suppress(Killed):
        run(build, checkpoint)
    assert len(made) == step - 1
    found, resumed = run(build, checkpoint, seed=99)
    assert len(made) == 6  # none twice
    assert all_equal(found, expected)
    assert (resumed.epoch, resumed.score.top1, resumed.score.loss) == (best.epoch, best.score.top1, best.score.loss)
    assert all_equal(resumed.tensors, best.tensors)


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.pt")
    run(of_method("vpt-deep", 3), checkpoint)
    with pytest.raises(ValueError, match=r"belongs to another run \(shapes differ\)"):
        run(of_method("vpt-deep", 4), checkpoint)
