"""Methods that change the base's tokens: each as its paper writes it, layer by layer."""

import copy
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from learnable_memory.method_spec import MethodSpec
from learnable_memory.methods import Learned, build_network
from tiny import add_random_head, images, tiny_model
from vit import SelfAttentionWithMemory

PRECISE = {"dtype": torch.float64, "attn_implementation": "sdpa"}  # eager attention has its softmax in float32
LAYERS, WIDTH, CLASSES = 3, 32, 7
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network_on(base, spec, **options):
    return build_network(base, spec, CLASSES, seeded(), **options)


def scattered(network):
    """The network with all that it learns far from its initial values."""
    generator = seeded(3)
    with torch.no_grad():
        for parameter in Learned(network).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return network


def loss_of(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)) % CLASSES)


# ---------------------------------------------------------------------------------------------- written out plainly
# Each takes a ViTModel, the tokens [B, N, D] of the images, and what is learned, by name; it gives the token [B, D]
# that is classified. None has a mask.
def cells(learned):
    return [tensor for name, tensor in learned.items() if name.startswith("memory.")]


def class_token(vit, learned, tokens):
    return (learned["class_token"] + vit.embeddings.position_embeddings[0, 0]).expand(len(tokens), 1, -1)


def vpt_deep(vit, tokens, learned):
    """Prompts behind the class token; those that leave a layer are thrown away (Jia et al. 2022, equations 4 and 5)."""
    behind = tokens.shape[1] - 1
    for layer, prompts in zip(vit.layers, cells(learned), strict=True):
        inserted = prompts.expand(len(tokens), -1, -1)
        tokens = layer(torch.cat([tokens[:, :1], inserted, tokens[:, -behind:]], dim=1))
    return tokens[:, 0]


def vpt_shallow(vit, tokens, learned):
    """Prompts behind the class token before the first layer, where they stay (equations 2 and 3)."""
    (prompts,) = cells(learned)
    tokens = torch.cat([tokens[:, :1], prompts.expand(len(tokens), -1, -1), tokens[:, 1:]], dim=1)
    for layer in vit.layers:
        tokens = layer(tokens)
    return tokens[:, 0]


def unmasked(norm, own_class):
    """Memory is asked by all tokens and asks nothing (Sandler et al. 2022, section 3)."""

    def read(vit, tokens, learned):
        if own_class:
            tokens = torch.cat([class_token(vit, learned, tokens), tokens[:, 1:]], dim=1)
        for layer, memory in zip(vit.layers, cells(learned), strict=True):
            attention = SelfAttentionWithMemory.from_attention(layer.attention)
            memory = layer.layernorm_before(memory) if norm else memory
            tokens = tokens + attention(layer.layernorm_before(tokens), memory)[0]
            tokens = tokens + layer.mlp(layer.layernorm_after(tokens))
        return tokens[:, 0]

    return read


def propagated(additive, own_class=True):
    """Memory enters the first layer as tokens that ask too, and goes on from there (Figure 2b)."""

    def read(vit, tokens, learned):
        memory, m = cells(learned), len(cells(learned)[0])
        if own_class:
            tokens = torch.cat([class_token(vit, learned, tokens), tokens[:, 1:]], dim=1)
        tokens = torch.cat([tokens, memory[0].expand(len(tokens), -1, -1)], dim=1)
        for index, layer in enumerate(vit.layers):
            if additive and index:
                tokens = torch.cat([tokens[:, :-m], tokens[:, -m:] + memory[index]], dim=1)
            tokens = layer(tokens)
        return tokens[:, 0]

    return read


def propagated_behind_a_mask(additive):
    """The base's tokens go their way alone; class token and memory go with them, and what it did to them is undone."""

    def read(vit, tokens, learned):
        memory, n = cells(learned), tokens.shape[1]
        own, carried = class_token(vit, learned, tokens), memory[0].expand(len(tokens), -1, -1)
        for index, layer in enumerate(vit.layers):
            if additive and index:
                carried = carried + memory[index]
            together = layer(torch.cat([tokens, own, carried], dim=1))
            tokens, own, carried = layer(tokens), together[:, n : n + 1], together[:, n + 1 :]
        return own[:, 0]

    return read


PROMPTS = {
    "vpt-deep": (MethodSpec("vpt-deep", 4), vpt_deep),
    "vpt-shallow": (MethodSpec("vpt-shallow", 4), vpt_shallow),
    "unmasked": (MethodSpec("memory", 2, "none"), unmasked(norm=True, own_class=True)),
    "unmasked-nonorm": (MethodSpec("memory", 2, "none", memory_norm=False), unmasked(norm=False, own_class=True)),
    "unmasked-base-class": (
        MethodSpec("memory", 2, "none", train_class_token=False),
        unmasked(norm=True, own_class=False),
    ),
    "unmasked-nonorm-base-class": (
        MethodSpec("memory", 2, "none", memory_norm=False, train_class_token=False),
        unmasked(norm=False, own_class=False),
    ),
    "propagate": (MethodSpec("memory", 2, memory_update="propagate"), propagated_behind_a_mask(additive=False)),
    "additive": (MethodSpec("memory", 2, memory_update="additive"), propagated_behind_a_mask(additive=True)),
    "propagate-unmasked": (MethodSpec("memory", 2, "none", "propagate"), propagated(additive=False)),
    "additive-unmasked": (MethodSpec("memory", 2, "none", "additive"), propagated(additive=True)),
    "additive-unmasked-base-class": (
        MethodSpec("memory", 2, "none", "additive", train_class_token=False),
        propagated(additive=True, own_class=False),
    ),
}
WEIGHTS = {"full": MethodSpec("full"), "bias": MethodSpec("bias"), "lora": MethodSpec("lora", rank=4)}
SPECS = WEIGHTS | {name: spec for name, (spec, _) in PROMPTS.items()}
any_method = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
any_prompts = pytest.mark.parametrize(("spec", "read"), PROMPTS.values(), ids=PROMPTS)


def resized():
    """A base for images of 24x24 pixels where it was trained with 16x16."""
    base = tiny_model(attn_implementation="sdpa")
    base.set_image_size(24)
    return base.double()


@pytest.mark.parametrize(
    ("base", "size"),
    [
        pytest.param(lambda: tiny_model(**PRECISE), 16, id="plain"),
        pytest.param(resized, 24, id="resized", marks=pytest.mark.slow),
    ],
)
@any_prompts
def test_prompts_and_memory_are_those_of_the_papers(spec, read, base, size):
    base = base()
    network, pixel_values = scattered(network_on(base, spec)), images(size=size, dtype=torch.float64)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in Learned(network).state_dict().items()}
    tokens = base.vit.embeddings(pixel_values, interpolate_pos_encoding=True)
    features = base.vit.layernorm(read(base.vit, tokens, leaves))
    expected = features @ leaves["classifier.weight"].T + leaves["classifier.bias"]
    found = network(pixel_values)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    loss_of(expected).backward()
    loss_of(found).backward()
    for name, parameter in network.named_parameters():
        if name in leaves:
            assert leaves[name].grad.abs().max() > 1e-6
            assert torch.allclose(parameter.grad, leaves[name].grad, rtol=0, atol=1e-9), name
        else:
            assert parameter.grad is None


def test_vpt_deep_is_unmasked_memory_through_the_norm_with_the_class_token_of_the_base():
    base, pixel_values = tiny_model(**PRECISE), images(dtype=torch.float64)
    vpt = scattered(network_on(base, MethodSpec("vpt-deep", 4)))
    memory = network_on(base, MethodSpec("memory", 4, "none", train_class_token=False))
    Learned(memory).load_state_dict(Learned(vpt).state_dict())
    assert torch.allclose(vpt(pixel_values), memory(pixel_values), rtol=0, atol=1e-9)
    without_norm = network_on(base, MethodSpec("memory", 4, "none", train_class_token=False, memory_norm=False))
    Learned(without_norm).load_state_dict(Learned(vpt).state_dict())
    assert not torch.allclose(vpt(pixel_values), without_norm(pixel_values), rtol=0, atol=1e-3)


@pytest.mark.parametrize("masking", ["masked", "none"])
def test_updates_of_zero_are_none(masking):
    base, pixel_values = tiny_model(**PRECISE), images(dtype=torch.float64)
    propagate = scattered(network_on(base, MethodSpec("memory", 2, masking, "propagate")))
    additive = network_on(base, MethodSpec("memory", 2, masking, "additive"))
    tensors = Learned(additive).state_dict()
    assert all(not tensors[f"memory.{layer}"].any() for layer in (1, 2))  # as they begin
    Learned(additive).load_state_dict(tensors | Learned(propagate).state_dict())
    assert torch.equal(propagate(pixel_values), additive(pixel_values))


def base_rows(network, pixel_values):
    """The base's own tokens behind the attention of each layer, L of [B, N, D]."""
    rows, layers = [], network.base.vit.layers
    hooks = [
        layer.layernorm_after.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][:, :17].detach()))
        for layer in layers
    ]
    network(pixel_values)
    for hook in hooks:
        hook.remove()
    return rows


@pytest.mark.parametrize("update", ["propagate", "additive"])
def test_masked_memory_is_not_seen_by_the_base(update):
    base, pixel_values = tiny_model(**PRECISE), images(dtype=torch.float64)
    network = network_on(base, MethodSpec("memory", 2, memory_update=update))
    before, full = base_rows(network, pixel_values), network_on(base, MethodSpec("full"))
    after = base_rows(scattered(network), pixel_values)
    assert len(before) == LAYERS
    for ours, theirs, stock in zip(before, after, base_rows(full, pixel_values), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.allclose(ours, stock, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in PROMPTS if name not in ("propagate", "additive")])
def test_patches_see_what_is_not_masked(name):
    base, pixel_values = tiny_model(**PRECISE), images(dtype=torch.float64)
    network = network_on(base, PROMPTS[name][0])
    before, after = base_rows(network, pixel_values), base_rows(scattered(network), pixel_values)
    # In the first layer too: also keys and values alone are seen there. Row 0 is a class token.
    assert all((ours - theirs)[:, 1:].abs().amax(-1).min() > 1e-6 for ours, theirs in zip(before, after, strict=True))


# ------------------------------------------------------------------------------------------------------- initial values
def test_prompts_of_vpt_begin_uniform_within_their_bound():
    for spec, layers in ((MethodSpec("vpt-deep", 200), 3), (MethodSpec("vpt-shallow", 600), 1)):
        memory = network_on(tiny_model(), spec).memory
        values, bound = torch.cat(list(memory)), math.sqrt(6 / (3 * 4 * 4 + 32))
        assert len(memory) == layers and values.shape == (600, 32)
        assert 0.999 * bound < values.max() <= bound and -bound <= values.min() < -0.999 * bound
        # of a uniform distribution, within four standard errors of 19,200 values
        assert abs(values.mean()) < 4 * bound / math.sqrt(3 * 19_200)
        assert abs((values / bound).square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / 19_200)


def test_memory_begins_as_that_of_a_head():
    base = tiny_model()
    network = network_on(base, MethodSpec("memory", 200, "none"))
    values = torch.cat(list(network.memory))
    assert values.shape == (600, 32)
    assert abs(values.mean()) < 4 * 0.02 / math.sqrt(19_200)
    assert abs(values.std() / 0.02 - 1) < 4 / math.sqrt(2 * 19_200)
    assert torch.equal(network.class_token, base.vit.embeddings.cls_token.view(-1))


@any_method
def test_the_classifier_begins_small_and_unbiased(spec):
    network = build_network(tiny_model(), spec, 600, seeded())
    weight, bias = network.classifier.weight, network.classifier.bias
    assert weight.shape == (600, 32) and not bias.any()
    assert abs(weight.std() / 0.02 - 1) < 4 / math.sqrt(2 * 19_200)


@any_method
def test_initial_values_are_drawn_from_the_generator_alone(spec):
    state = torch.get_rng_state()
    first, again = (Learned(network_on(tiny_model(), spec)).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    other = Learned(build_network(tiny_model(), spec, CLASSES, seeded(1))).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    updates = {"memory.1", "memory.2"} if spec.memory_update == "additive" else set()
    drawn = {name for name in first if name.startswith("memory.") or "lora_A" in name} - updates | {"classifier.weight"}
    assert {name for name in first if not torch.equal(first[name], other[name])} == drawn


# ------------------------------------------------------------------------------------------------------ what is learned
def names_of_memory(layers):
    return {f"memory.{layer}" for layer in range(layers)}


OF_A_LAYER = 4 * WIDTH + 2 * WIDTH + 64 + WIDTH  # biases: projections, norms, MLP
LEARNED = {
    "vpt-deep": (names_of_memory(3), 3 * 4 * WIDTH),
    "vpt-shallow": (names_of_memory(1), 4 * WIDTH),
    "unmasked": (names_of_memory(3) | {"class_token"}, 3 * 2 * WIDTH + WIDTH),
    "unmasked-base-class": (names_of_memory(3), 3 * 2 * WIDTH),
    "propagate": (names_of_memory(1) | {"class_token"}, 2 * WIDTH + WIDTH),
    "additive": (names_of_memory(3) | {"class_token"}, 3 * 2 * WIDTH + WIDTH),
    "lora": (
        {
            f"base.vit.layers.{layer}.attention.{projection}_proj.lora_{factor}.default.weight"
            for layer in range(3)
            for projection in "qv"
            for factor in "AB"
        },
        2 * LAYERS * 4 * 2 * WIDTH,
    ),
    "bias": (
        {f"base.vit.{name}" for name, _ in tiny_model().vit.named_parameters() if name.endswith("bias")},
        LAYERS * OF_A_LAYER + WIDTH + WIDTH,  # and of patches and final norm
    ),
    "full": (
        {f"base.vit.{name}" for name, _ in tiny_model().vit.named_parameters()},
        LAYERS * (OF_A_LAYER + 2 * WIDTH + 4 * WIDTH**2 + 2 * WIDTH * 64)  # weights of norms, attention, MLP
        + (3 * 4 * 4 * WIDTH + WIDTH)  # patches
        + (1 + 17) * WIDTH  # class token, positions
        + 2 * WIDTH,  # final norm
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_exactly_what_the_method_learns_wants_gradients(name):
    network, (names, count) = network_on(tiny_model(), SPECS[name]), LEARNED[name]
    assert {name for name, p in network.named_parameters() if p.requires_grad} == names | CLASSIFIER
    assert sum(p.numel() for p in Learned(network).parameters()) == count + WIDTH * CLASSES + CLASSES
    loss_of(network(images())).backward()
    if name == "lora":  # whose first factors are behind second ones of zero
        names = {name for name in names if "lora_B" in name}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad
        if name in names and "k_proj.bias" not in name:  # which adds the same to all scores: no gradient, but rounding
            assert parameter.grad.abs().max() > 1e-6, name


def test_a_pooler_is_not_learned():
    """A ViTModel has one by default; nothing here reads it."""
    base = tiny_model()
    base.vit.pooler = nn.Linear(WIDTH, WIDTH)
    names = Learned(network_on(base, MethodSpec("full"))).names
    assert set(names) == LEARNED["full"][0] | CLASSIFIER


@any_method
def test_the_base_stays_as_it_is(spec):
    base = tiny_model()
    add_random_head(base, "A", 5, 2)
    base.requires_grad_(False)
    before, answers = copy.deepcopy(base.state_dict()), base(images())
    network = scattered(network_on(base, spec)).train()
    learned = Learned(network)
    start = {name: tensor.clone() for name, tensor in learned.state_dict().items()}
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(network(images())).backward()
        optimizer.step()
    stayed = {name for name, tensor in learned.state_dict().items() if torch.equal(start[name], tensor)}
    assert all("k_proj.bias" in name for name in stayed)  # its gradient is rounding
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.parameters())
    assert all(torch.equal(answers[name].logits, base(images())[name].logits) for name in ("base", "A"))


@any_method
def test_what_is_not_learned_is_not_copied(spec):
    base = tiny_model()
    add_random_head(base, "A", 5, 2)
    network = network_on(base, spec)
    ours = {parameter.data_ptr() for parameter in base.vit.parameters()}
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    assert {parameter.data_ptr() for parameter in frozen} <= ours
    assert not {parameter.data_ptr() for parameter in Learned(network).parameters()} & ours
    if spec.method != "full":
        biases = [name for name, _ in base.vit.named_parameters() if name.endswith("bias")]
        assert len(frozen) == len(ours) - len(biases) * (spec.method == "bias")


# ------------------------------------------------------------------------------------------------- weights of the base
@pytest.mark.parametrize("spec", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_begin_as_a_linear_probe(spec):
    base, pixel_values = tiny_model(**PRECISE), images(dtype=torch.float64)
    add_random_head(base, "probe", CLASSES, 0, class_token=False)
    network = network_on(base, spec)
    network.classifier.load_state_dict(base.heads["probe"].classifier.state_dict())
    expected = base(pixel_values, ["probe"], with_base=False)["probe"].logits
    assert torch.allclose(network(pixel_values), expected, rtol=0, atol=1e-9)


def test_lora_adds_the_product_of_its_factors():
    """W + B A, that is alpha / r = 1, for queries and values (Hu et al. 2022, equation 3)."""
    base, pixel_values = tiny_model(**PRECISE), images(dtype=torch.float64)
    network = scattered(network_on(base, MethodSpec("lora", rank=4)))
    tensors, plain = Learned(network).state_dict(), copy.deepcopy(base.vit)
    with torch.no_grad():
        for index, layer in enumerate(plain.layers):
            for name in ("q_proj", "v_proj"):
                prefix = f"base.vit.layers.{index}.attention.{name}.lora"
                update = tensors[f"{prefix}_B.default.weight"] @ tensors[f"{prefix}_A.default.weight"]
                assert update.abs().max() > 0.1
                getattr(layer.attention, name).weight.add_(update)
        features = plain(pixel_values).last_hidden_state[:, 0]
        expected = F.linear(features, tensors["classifier.weight"], tensors["classifier.bias"])
    assert torch.allclose(network(pixel_values), expected, rtol=0, atol=1e-9)


def test_first_factors_of_lora_begin_uniform_and_second_ones_zero():
    tensors = Learned(build_network(tiny_model(), MethodSpec("lora", rank=100), CLASSES, seeded())).state_dict()
    first = torch.cat([tensor for name, tensor in tensors.items() if "lora_A" in name])
    bound = 1 / math.sqrt(WIDTH)  # of a linear layer's own Kaiming initialisation
    assert first.shape == (600, WIDTH)
    assert 0.999 * bound < first.max() <= bound and -bound <= first.min() < -0.999 * bound
    assert all(not tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_lora_without_peft_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^LoRA needs the package peft: pip install -e '\.\[peft\]'\.$"
    ) as error:
        network_on(tiny_model(), MethodSpec("lora", rank=4))
    assert error.value.name == "peft"  # so a command line ends in one line


# -------------------------------------------------------------------------------------------------------------- dropout
@pytest.mark.parametrize("method", ["vpt-deep", "vpt-shallow"])
def test_prompts_are_dropped_in_training_only_and_for_each_image(method):
    network = network_on(tiny_model(), MethodSpec(method, 10, prompt_dropout=0.25))
    seen, norm = [], network.base.vit.layers[0].layernorm_before

    def keep(_, inputs):  # of VPT-deep prompts alone, of VPT-shallow with the image, and never the image alone
        if inputs[0].shape[1] != 17:
            seen.append(inputs[0][:, -10:].detach())

    norm.register_forward_pre_hook(keep)
    same = images(1).expand(40, -1, -1, -1)
    torch.manual_seed(0)
    dropped, others = network.train()(same), network(same)
    training_prompts, prompts = seen[0], network.memory[0].detach()  # [40, 10, D], [10, D]
    kept = training_prompts != 0
    assert abs(kept.double().mean() - 0.75) < 4 * math.sqrt(0.25 * 0.75 / kept.numel())
    assert torch.allclose(training_prompts, torch.where(kept, prompts / 0.75, 0.0))
    assert len(kept.flatten(1).unique(dim=0)) == len(dropped.unique(dim=0)) == 40
    assert not torch.equal(dropped, others)
    seen.clear()
    answers = network.eval()(same)
    assert torch.equal(seen[0], prompts.expand(40, -1, -1)) and torch.equal(answers, network(same))


def test_without_dropout_training_gives_the_answers_of_evaluation():
    base = tiny_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    network = network_on(base, MethodSpec("vpt-deep", 3))
    assert torch.equal(network.train()(images()), network.eval()(images()))  # the base's own dropout stays off


# -------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("spec", [MethodSpec("memory", 2), MethodSpec("head+class"), MethodSpec("head")])
def test_what_heads_are_for_is_refused(spec):
    with pytest.raises(ValueError) as error:
        network_on(tiny_model(), spec)
    assert str(error.value) == f"{spec.label} is learned by a head: add_head makes it."


@pytest.mark.parametrize("method", ["full", "bias"])
def test_weights_in_half_precision_are_not_learned(method):
    with pytest.raises(ValueError) as error:
        network_on(tiny_model(dtype=torch.bfloat16), MethodSpec(method))
    assert str(error.value) == (
        f"{method} learns the base's own weights, and they are torch.bfloat16: open the base in float32, and give "
        "autocast."
    )


def test_a_mask_for_flash_attention_is_refused():
    base = tiny_model()
    base.config._attn_implementation = "flash_attention_2"  # as if its package were here
    with pytest.raises(ValueError) as error:
        network_on(base, MethodSpec("memory", 2, memory_update="propagate"))
    assert str(error.value) == (
        "memory, 2 cells, propagate needs a mask, which flash_attention_2 does not take: choose sdpa or eager."
    )
