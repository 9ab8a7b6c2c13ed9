"""`for_inference`: the same answers from a frozen copy whose memory is projected once."""

import pytest
import torch

from learnable_memory.model.serving import FoldedHeads
from tiny import add_random_head, images, tiny_base, tiny_model
from vit import MemoryCapableViT


def mixed_model(**changes) -> MemoryCapableViT:
    """Every kind of head: with and without memory and norm, extending one or several, a linear probe."""
    model = tiny_model(**changes)
    add_random_head(model, "A", 4, 1)
    add_random_head(model, "B", 3, 5, memory_norm=False)
    add_random_head(model, "C", 6, 2, extends=("A",))
    add_random_head(model, "D", 2, 0, extends=("B", "C"))
    add_random_head(model, "E", 5, 0)
    add_random_head(model, "probe", 3, 0, class_token=False)
    return model


def logits(answers: dict) -> dict[str, torch.Tensor]:
    return {name: output.logits for name, output in answers.items()}


def largest_difference(first: dict, second: dict) -> float:
    assert list(first) == list(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_served_copy_answers_as_the_model(dtype, bound):
    model = mixed_model(attn_implementation="sdpa").to(dtype)
    pixels = images(dtype=dtype)
    served = model.for_inference()
    assert isinstance(served.folded, FoldedHeads)
    assert largest_difference(logits(served(pixels)), logits(model(pixels))) <= bound


@pytest.mark.parametrize("names", [["A"], ["B"], ["E"], ["probe"], ["D", "A"], ["C", "probe"], []])
def test_some_heads_of_the_copy_answer_as_those_of_the_model(names):
    model = mixed_model(attn_implementation="sdpa").double()
    served, pixels = model.for_inference(), images(dtype=torch.float64)
    found, expected = (logits(each(pixels, heads=names)) for each in (served, model))
    assert largest_difference(found, expected) <= 1e-9
    rows = {name: output.attentions for name, output in served(pixels, heads=names, output_attentions=True).items()}
    for name, output in model(pixels, heads=names, output_attentions=True).items():
        for found, expected in zip(rows[name], output.attentions, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_base_answers_as_huggingface_with_fused_attention():
    plain = tiny_base(attn_implementation="sdpa")
    served = MemoryCapableViT.from_base(tiny_base()).for_inference()  # an eager base
    pixels = images()
    assert torch.equal(served(pixels)["base"].logits, plain(pixels).logits)


def test_it_shares_the_weights_of_the_base_and_leaves_the_model_alone():
    model = mixed_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train_only(["C"])
    served = model.for_inference()
    for mine, theirs in zip(model.vit.parameters(), served.vit.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    assert not any(parameter.requires_grad for parameter in served.parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("heads.C.")
    }
    assert model.config._attn_implementation == "eager" and served.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert served.state_dict().keys() == before.keys()
    assert served.fingerprint == model.fingerprint


def test_what_is_trained_later_does_not_reach_the_copy():
    model, pixels = mixed_model(), images()
    served = model.for_inference()
    before = logits(served(pixels))
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(1.0)
    assert largest_difference(logits(served(pixels)), before) == 0


def test_another_dtype_is_a_copy():
    model = mixed_model()
    before = model.vit.layernorm.weight.clone()
    served = model.for_inference(torch.bfloat16)
    assert served.vit.layernorm.weight.dtype == served.folded.key.dtype == torch.bfloat16
    assert model.vit.layernorm.weight.dtype == torch.float32 and torch.equal(model.vit.layernorm.weight, before)
    assert all(parameter.dtype == torch.float32 for parameter in served.heads.parameters())
    reference = mixed_model(attn_implementation="sdpa").to(torch.bfloat16)
    # Projected in bfloat16 here as there, so only the order of roundings differs: the bound is that of bfloat16.
    found, expected = logits(served(images())), logits(reference(images()))
    for name in expected:
        torch.testing.assert_close(found[name].float(), expected[name].float(), rtol=0.02, atol=0.05)


def test_memory_is_not_projected_again(monkeypatch):
    served = mixed_model().for_inference()
    norms = []
    for layer in served.vit.layers:
        layer.layernorm_before.register_forward_pre_hook(lambda _, inputs: norms.append(inputs[0].ndim))
    served(images(), with_base=False)
    assert set(norms) == {3}  # images and class tokens, [B, .., D]; memory would be [M, D]


@pytest.mark.parametrize("change", ["add", "remove", "train"])
def test_a_changed_copy_answers_unfolded(change):
    model = mixed_model(attn_implementation="sdpa").double()
    served, pixels = model.for_inference(), images(dtype=torch.float64)
    for each in (model, served):
        if change == "add":
            add_random_head(each, "F", 3, 2, extends=("D",))
        elif change == "remove":
            each.remove_head("D")
        else:
            each.train_only(["A"])
            with torch.no_grad():
                for parameter in each.heads["A"].parameters():
                    parameter.mul_(0.5)
    assert served.folded is None
    assert largest_difference(logits(served(pixels)), logits(model(pixels))) <= 1e-9


def test_inherited_memory_is_stored_once():
    model = tiny_model()
    for i in range(12):
        add_random_head(model, f"head{i}", 2, 4, extends=model.head_names)
    folded = model.for_inference().folded
    assert folded.key.shape == folded.value.shape == (3, 4, 12 * 4 + 1, 8)  # [L, H, M + 1, d]


def test_a_model_without_memory_can_be_served():
    model = tiny_model(attn_implementation="sdpa")
    assert list(model.for_inference()(images())) == ["base"]
    add_random_head(model, "E", 5, 0)
    served = model.for_inference()
    assert served.folded is None
    assert largest_difference(logits(served(images())), logits(model(images()))) == 0


@pytest.mark.slow
def test_it_can_be_compiled():
    torch.compiler.reset()
    model = mixed_model(attn_implementation="sdpa")
    served = model.for_inference(compile=True)
    assert served._compiled_call_impl is not None
    served._compiled_call_impl = None  # its C++ takes a minute; the graph is what can break
    served.compile(backend="eager", fullgraph=False)
    assert largest_difference(logits(served(images())), logits(model(images()))) <= 1e-5


def test_other_sizes_and_pickles():
    model = mixed_model(attn_implementation="sdpa")
    model.set_image_size(24)
    served, pixels = model.for_inference(), images(size=24)
    assert served.image_size == (24, 24)
    assert largest_difference(logits(served(pixels)), logits(model(pixels))) <= 1e-5


def test_order_of_loading_never_matters():
    """Concatenated heads in any order, each as alone."""
    pixels = images(dtype=torch.float64)
    answers = []
    for order in (["A", "B", "E"], ["E", "A", "B"], ["B", "E", "A"]):
        model = tiny_model(attn_implementation="sdpa").double()
        for name in order:
            add_random_head(model, name, 4, {"A": 1, "B": 5, "E": 0}[name])
        found = logits(model.for_inference()(pixels))
        answers.append({name: found[name] for name in ("base", "A", "B", "E")})
    assert largest_difference(answers[0], answers[1]) <= 1e-9
    assert largest_difference(answers[0], answers[2]) <= 1e-9
