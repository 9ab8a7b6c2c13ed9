"""Savers of memory and time change what is kept and in which precision it is computed, and not what is learned.

Errors in the tests of precision are relative, of one tensor's gradient (its norm), the largest over all tensors. They
were measured on ten random bases and all methods; tolerances are about twice the largest.
"""

import importlib.util

import pytest
import torch

from learnable_memory.method_spec import MethodSpec
from learnable_memory.methods import Learned, TunedModel
from learnable_memory.optim import Recipe
from test_methods import SPECS, WEIGHTS, any_method, loss_of, network_on, scattered
from tiny import images, tiny_model
from toy_training import fit

DROPPED = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}  # of a base that learns
BACKENDS_DIFFER_BY = 2e-5  # measured: 8.5e-6, eager against sdpa in float32
BFLOAT16_DIFFERS_BY = 0.08  # measured: 0.038
any_backend = pytest.mark.parametrize("backend", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])


def gradients(network, batch=8):
    """Of one step of training: logits, and gradients by name."""
    torch.manual_seed(0)  # dropout draws from the global generator
    logits = network.train()(images(batch))
    loss_of(logits).backward()
    return logits.detach(), {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def error(found, expected):
    """The largest relative one; without biases of keys, whose gradients are rounding errors."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name].double() - gradient.double()).norm() / gradient.double().norm()).item()
        for name, gradient in expected.items()
        if "k_proj.bias" not in name
    )


def all_equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------------------------- gradient checkpointing
def assert_checkpointing_changes_nothing(spec, changes, **options):
    base = tiny_model(**changes)
    plain, again = (
        gradients(scattered(network_on(base, spec, gradient_checkpointing=saves, **options))) for saves in (False, True)
    )
    assert torch.equal(plain[0], again[0])
    assert all_equal(again[1], plain[1])
    assert all(gradient.any() for gradient in plain[1].values())
    return plain


@any_backend
@any_method
def test_layers_computed_again_give_the_same_bits(spec, backend):
    assert_checkpointing_changes_nothing(spec, {"attn_implementation": backend})


WITH_DROPOUT = [*WEIGHTS.values()] + [
    MethodSpec(method, 4, prompt_dropout=0.3) for method in ("vpt-deep", "vpt-shallow")
]


@pytest.mark.parametrize("spec", WITH_DROPOUT, ids=lambda spec: spec.name)
def test_what_was_dropped_is_dropped_again(spec):
    logits, _ = assert_checkpointing_changes_nothing(spec, DROPPED)
    undisturbed = scattered(network_on(tiny_model(**DROPPED), spec)).eval()(images(8))
    assert not torch.allclose(logits, undisturbed, atol=1e-3)  # something was dropped


@pytest.mark.parametrize("spec", WEIGHTS.values(), ids=WEIGHTS)
def test_layers_computed_again_under_autocast_give_the_same_bits(spec):
    assert_checkpointing_changes_nothing(spec, {}, autocast=torch.bfloat16)


@any_method
def test_layers_are_computed_again_in_training_only(spec):
    """Once forward and once for the gradients: each layer was not kept."""
    counts = []
    for saves in (False, True):
        network = network_on(tiny_model(), spec, gradient_checkpointing=saves)
        calls = []
        for layer in network.base.vit.layers:
            layer.mlp.register_forward_pre_hook(lambda mlp, _, calls=calls: calls.append(mlp))
        gradients(network)
        training = [calls.count(layer.mlp) for layer in network.base.vit.layers]
        calls.clear()
        loss_of(network.eval()(images())).backward()
        counts.append((training, [calls.count(layer.mlp) for layer in network.base.vit.layers]))
    assert counts == [([1, 1, 1], [1, 1, 1]), ([2, 2, 2], [1, 1, 1])]


@pytest.mark.parametrize("name", ["full", "vpt-deep", "additive"])
def test_training_ends_in_the_same_bits(name):
    ends = []
    for saves in (False, True):
        network = network_on(tiny_model(), SPECS[name], gradient_checkpointing=saves)
        fit(TunedModel({"A": network}, "of the base", None), ["A"], Recipe(epochs=1))
        ends.append(Learned(network).state_dict())
    assert all_equal(*ends)


# ------------------------------------------------------------------------------------------------------------- backends
@any_method
def test_attention_backends_give_the_same_gradients(spec):
    by_backend = [
        gradients(scattered(network_on(tiny_model(attn_implementation=backend), spec)))[1]
        for backend in ("eager", "sdpa")
    ]
    assert error(*by_backend) < BACKENDS_DIFFER_BY


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None,
    reason="flash attention needs a GPU and the package flash_attn",
)
@pytest.mark.parametrize("name", ["vpt-deep", "vpt-shallow", "unmasked", "additive-unmasked"])
def test_flash_attention_is_as_near_to_float32_as_sdpa(name):
    def on_gpu(backend, dtype):
        network = network_on(tiny_model(attn_implementation=backend).to("cuda", dtype), SPECS[name])
        loss_of(scattered(network).train()(images(8).cuda()).cpu()).backward()
        return {name: p.grad.cpu() for name, p in network.named_parameters() if p.requires_grad}

    exact = on_gpu("sdpa", torch.float32)
    ours, sdpa = (error(on_gpu(b, torch.bfloat16), exact) for b in ("flash_attention_2", "sdpa"))
    assert ours < 2 * sdpa


# ------------------------------------------------------------------------------------------------------------ precision
def in_bfloat16(spec):
    """The frozen base in bfloat16; of weights that are learned, the arithmetic only."""
    if spec.method in WEIGHTS:
        return scattered(network_on(tiny_model(), spec, autocast=torch.bfloat16))
    return scattered(network_on(tiny_model().to(torch.bfloat16), spec))


@any_method
def test_bfloat16_gives_nearly_the_same_gradients(spec):
    exact = gradients(scattered(network_on(tiny_model(), spec)))[1]
    found = gradients(in_bfloat16(spec))[1]
    assert 1e-3 < error(found, exact) < BFLOAT16_DIFFERS_BY  # below 1e-3, it would not have been bfloat16


@any_method
def test_what_is_learned_stays_in_float32(spec):
    network = in_bfloat16(spec)
    logits, found = gradients(network)
    assert logits.dtype == torch.float32
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert {tensor.dtype for tensor in Learned(network).state_dict().values()} == {torch.float32}
    frozen = {parameter.dtype for parameter in network.parameters() if not parameter.requires_grad}
    assert frozen <= ({torch.float32} if spec.method in WEIGHTS else {torch.bfloat16})


def test_factors_of_lora_are_float32_on_a_base_in_bfloat16():
    network = scattered(network_on(tiny_model().to(torch.bfloat16), MethodSpec("lora", rank=4)))
    logits, found = gradients(network)
    assert {logits.dtype, *(gradient.dtype for gradient in found.values())} == {torch.float32}
    exact = gradients(scattered(network_on(tiny_model(), MethodSpec("lora", rank=4))))[1]
    assert 1e-3 < error(found, exact) < BFLOAT16_DIFFERS_BY
