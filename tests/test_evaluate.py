"""The evaluation loop against counting by hand."""

import pytest
import torch
from torch.nn import functional as F

from learnable_memory.evaluate import evaluate
from tiny import add_random_head, images, tiny_base, tiny_model
from vit import MemoryCapableViT

SIZES = (4, 4, 3)  # the last batch is smaller


def batches(classes: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a loader gives: 11 random images with labels, in uneven batches."""
    pixel_values = images(sum(SIZES), seed=seed)
    labels = torch.randint(classes, (sum(SIZES),), generator=torch.Generator().manual_seed(seed))
    return list(zip(pixel_values.split(SIZES), labels.split(SIZES), strict=True))


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Top-1, top-5 and mean loss, image by image."""
    first = five = loss = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda answer: -row[answer])
        first += ranked[0] == label
        five += label in ranked[:5]
        loss += F.cross_entropy(torch.tensor(row), torch.tensor(label)).item()
    return first / len(labels), five / len(labels), loss / len(labels)


@torch.no_grad()
def all_at_once(model, loader, name):
    pixel_values, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return model(pixel_values)[name].logits, labels


# --------------------------------------------------------------------------------------------------------------- counts
def test_accuracy_and_loss_are_counted_over_images_not_batches():
    model = tiny_model()
    add_random_head(model, "A", 8, 2)
    loader = batches(8)
    score = evaluate(model, loader, ["A"])["A"]
    top1, top5, loss = by_hand(*all_at_once(model, loader, "A"))
    assert score.images == 11
    assert (score.top1, score.top5) == (top1, top5)
    assert score.loss == pytest.approx(loss, rel=1e-4)
    assert score.images_per_second > 0


def test_a_head_that_always_gives_the_same_answers():
    """Classes 0 to 4 in this order for every image: nothing of the model is needed to know the score."""
    model = tiny_model()
    model.add_head("A", 7, 1)
    with torch.no_grad():
        model.heads["A"].classifier.weight.zero_()
        model.heads["A"].classifier.bias.copy_(torch.arange(7.0).flip(0))
    loader = [(images(4), torch.tensor([0, 0, 1, 6])), (images(1), torch.tensor([4]))]
    score = evaluate(model, loader, ["A"])["A"]
    assert (score.images, score.top1, score.top5) == (5, 2 / 5, 4 / 5)
    # with logits 6, 5, .., 0 the loss of class c is c + log(1 + e^-1 + .. + e^-6)
    expected = (0 + 0 + 1 + 6 + 4) / 5 + torch.arange(7.0).neg().exp().sum().log().item()
    assert score.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("classes", "said"), [(1, False), (5, False), (6, True)])
def test_top5_is_left_out_where_it_says_nothing(classes, said):
    model = tiny_model()
    add_random_head(model, "A", classes)
    score = evaluate(model, batches(classes), ["A"])["A"]
    assert (score.top5 is not None) == ("top5" in score.known()) == said


def test_the_base_is_scored_like_a_head():
    model = tiny_model(num_labels=7)
    add_random_head(model, "A", 7)
    loader = batches(7)
    scores = evaluate(model, loader, ["base", "A"])
    assert list(scores) == ["base", "A"]
    for name, score in scores.items():
        assert (score.top1, score.top5) == by_hand(*all_at_once(model, loader, name))[:2]


# ------------------------------------------------------------------------------------------------------ heads together
def test_heads_alongside_answer_and_are_not_scored():
    model = tiny_model()
    add_random_head(model, "A", 8, 2)
    add_random_head(model, "few", 2, 3)  # has no class 7, which matters only where it is scored
    asked = []
    model.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs["heads"]), with_kwargs=True)
    scores = evaluate(model, batches(8), ["A"], alongside=["few", "A"])
    assert list(scores) == ["A"]
    assert asked == [["A", "few"]] * len(SIZES)


def test_together_is_as_alone():
    model = tiny_model()
    for name, memory in (("A", 2), ("B", 0), ("C", 5)):
        add_random_head(model, name, 6, memory, extends=["A"] if name == "C" else [])
    loader = batches(6)
    together = evaluate(model, loader, ["A", "B", "C"])
    for name in "ABC":
        for alone in (evaluate(model, loader, [name])[name], evaluate(model, loader, [name], "ABC")[name]):
            assert (alone.images, alone.top1, alone.top5) == (11, together[name].top1, together[name].top5)
            assert alone.loss == pytest.approx(together[name].loss, rel=1e-5)


# ------------------------------------------------------------------------------------------------ nothing else changes
@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_restored_and_nothing_is_recorded(mode):
    model = tiny_model(hidden_dropout_prob=0.5)
    parameters = add_random_head(model, "A", 5)
    model.train(mode)
    modes = []
    model.register_forward_hook(lambda module, args, output: modes.append((module.training, output["A"].logits)))
    evaluate(model, batches(5), ["A"])
    assert model.training is mode
    assert [training for training, _ in modes] == [False] * len(SIZES)
    assert not any(logits.requires_grad for _, logits in modes)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_the_global_random_state_is_left_alone():
    model = tiny_model()
    add_random_head(model, "A", 5)
    before = torch.get_rng_state()
    evaluate(model, batches(5), ["A"])
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------------------- wrong use
@pytest.mark.parametrize("label", [5, 99, -1, -100])  # torch's loss leaves -100 out without a word
@pytest.mark.parametrize("name", ["A", "base"])
def test_labels_of_other_data_are_an_error(name, label):
    model = tiny_model()
    add_random_head(model, "A", 5)
    with pytest.raises(ValueError, match=f"{name} has 5 classes, but there is a label {label}: other data?"):
        evaluate(model, [(images(3), torch.tensor([0, label, 4]))], [name])


def test_no_images_are_an_error():
    model = tiny_model()
    add_random_head(model, "A", 5)
    with pytest.raises(ValueError, match="There are no images to evaluate on"):
        evaluate(model, [], ["A"])


def test_a_base_without_answers_cannot_be_scored():
    with pytest.raises(ValueError, match="The base has no classifier, so it has no answers to score"):
        evaluate(MemoryCapableViT.from_base(tiny_base().vit), batches(5), ["base"])
