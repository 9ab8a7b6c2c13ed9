"""What the model promises (design: two streams, exactness, gradients, freezing); heads as files are in tests/."""

import copy
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ViTForImageClassification, ViTModel

from oracle import joint_logits
from tiny import add_random_head, images, tiny_base, tiny_config, tiny_model
from vit import MemoryCapableViT, SelfAttentionWithMemory, TaskStream, build_attention_mask

INF = float("inf")
# The stock eager attention rounds its softmax to float32 even in a float64 model; the fused one does not.
EXACT = {"dtype": torch.float64, "attn_implementation": "sdpa"}


@st.composite
def forests(draw):
    """Heads as (memory tokens, memory_norm, parents): any acyclic graph, any counts, both norms."""
    count = draw(st.integers(1, 5))
    return [
        (draw(st.integers(0, 4)), draw(st.booleans()), draw(st.sets(st.integers(0, i - 1))) if i else set())
        for i in range(count)
    ]


def build(forest, model):
    for i, (memory_tokens, memory_norm, parents) in enumerate(forest):
        extends = [f"h{parent}" for parent in sorted(parents)]
        add_random_head(model, f"h{i}", 2 + i, memory_tokens, extends, memory_norm, seed=i)
    return model


def difference(found, expected):
    return (found - expected).abs().max().item()


# -------------------------------------------------------------------------------------------------------------- mask
def test_mask_of_a_concatenation_is_the_papers_table_1():
    # P = 2, two heads with 1 and 2 memory tokens; rows and columns INP INP CLS C1 C2 | M1 M2 M2
    expected = torch.tensor([
        [0, 0, 0, -INF, -INF, -INF, -INF, -INF],
        [0, 0, 0, -INF, -INF, -INF, -INF, -INF],
        [0, 0, 0, -INF, -INF, -INF, -INF, -INF],
        [0, 0, 0, 0, -INF, 0, -INF, -INF],
        [0, 0, 0, -INF, 0, -INF, 0, 0],
    ])  # fmt: skip
    assert torch.equal(build_attention_mask(2, [1, 2])[0], expected)


def test_mask_of_an_extension_adds_what_the_second_head_is_built_on():
    mask = build_attention_mask(2, [1, 2], extension=True)[0]
    assert torch.equal(mask[:4], build_attention_mask(2, [1, 2])[0, :4])
    assert torch.equal(mask[4], torch.zeros(8))


def test_mask_takes_the_closure_of_a_graph():
    mask = build_attention_mask(1, [1, 0, 1, 2], extension=[[], [0], [], [1]])[0]
    # columns: INP CLS C1 C2 C3 C4 | M1 M3 M4 M4; the fourth head sees the second and, through it, the first
    assert torch.equal(mask[5], torch.tensor([0, 0, 0, 0, -INF, 0, 0, -INF, 0, 0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, [1]), "cannot be negative"),
        ((4, [1, -2]), "cannot be negative"),
        ((4, [1], [[], []]), "2 heads, but there are 1"),
        ((4, [1, 1], [[], [2]]), "the heads are 0 to 1"),
        ((4, [1, 1, 1], [[2], [0], [1]]), "in a circle: 0 -> 2 -> 1 -> 0"),
        ((4, [1], [[0]]), "in a circle: 0 -> 0"),
    ],
)
def test_mask_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_attention_mask(*arguments)


# ---------------------------------------------------------------------------------------------------- base is untouched
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [0, 1, 40])
def test_base_logits_are_bit_for_bit_those_of_huggingface(heads, backend, dtype):
    base = tiny_base(dtype=dtype, attn_implementation=backend)
    pixel_values = images(dtype=dtype)
    with torch.no_grad():
        expected = base(pixel_values, output_hidden_states=True)
    model = MemoryCapableViT.from_base(base)
    for i in range(heads):
        add_random_head(model, f"h{i}", 3, i % 4, extends=[f"h{i - 1}"] if i % 3 == 2 else [])
    model.train()
    output = model(pixel_values, output_hidden_states=True)
    assert list(output) == ["base", *(f"h{i}" for i in range(heads))]
    assert torch.equal(output["base"].logits, expected.logits)
    assert all(map(torch.equal, output["base"].hidden_states, expected.hidden_states))
    assert len(output["base"].hidden_states) == 4


def test_base_tensors_are_bit_identical_after_training_with_dropout_configured():
    model = tiny_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    before = copy.deepcopy(model.state_dict())
    parameters = model.add_head("A", 4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    model.train()
    pixel_values, labels = images(8), torch.arange(8) % 4
    first = model(pixel_values, labels={"A": labels})["A"].loss
    for _ in range(3):
        loss = model(pixel_values, labels={"A": labels})["A"].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < first
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is not None for parameter in parameters)
    assert not model.vit.training and model.heads.training
    assert torch.equal(first, first) and model(pixel_values)["base"].logits.grad_fn is None


def test_frozen_base_records_no_autograd_and_an_image_that_asks_gets_its_gradient():
    model = tiny_model()
    add_random_head(model, "A", 4)
    seen = []
    run = model.run_base(images(), lambda _, base: seen.append(base), want_states=True)
    assert not any(tensor.requires_grad for tensor in (seen[0].key, run.readout, *run.outputs.hidden_states))
    pixel_values = images().requires_grad_()
    model(pixel_values)["A"].logits.sum().backward()
    assert pixel_values.grad.abs().sum() > 0


def test_inference_mode_leaves_nothing_behind_that_training_cannot_use():
    model = build([(2, True, set()), (1, True, set())], tiny_model())
    with torch.inference_mode():
        model(images())
    model.train_only(["h0", "h1"])
    outputs = model(images(), labels={"h0": torch.tensor([0, 1, 0]), "h1": torch.tensor([0, 1, 2])})
    (outputs["h0"].loss + outputs["h1"].loss).backward()
    assert all(head.memory[0].grad.abs().sum() > 0 for head in model.heads.values())


# ----------------------------------------------------------------------------------------------------- heads are right
@settings(max_examples=40, deadline=None)
@given(forests(), st.integers(1, 3), st.sampled_from([(16, 4), (16, 8), (24, 8)]))
def test_heads_equal_the_joint_masked_attention_in_float64(forest, batch, sizes):
    model = build(forest, tiny_model(image_size=sizes[0], patch_size=sizes[1], **EXACT))
    pixel_values = images(batch, sizes[0], dtype=torch.float64)
    output, expected = model(pixel_values), joint_logits(model, pixel_values)
    assert list(output) == list(expected)
    assert max(difference(output[name].logits, expected[name]) for name in expected) < 1e-9


def test_heads_equal_the_joint_masked_attention_in_float32():
    forest = [(1, True, set()), (5, False, set()), (0, True, {0}), (3, True, {1, 2})]
    model = build(forest, MemoryCapableViT.from_base(ViTForImageClassification(tiny_config()).eval()))
    output, expected = model(images()), joint_logits(model, images())
    assert max(difference(output[name].logits, expected[name]) for name in expected) < 1e-5


@settings(max_examples=20, deadline=None)
@given(forests())
def test_together_equals_alone_in_float64(forest):
    together = build(forest, tiny_model(**EXACT))
    pixel_values = images(dtype=torch.float64)
    answers = together(pixel_values)
    for name in together.head_names:
        alone = tiny_model(**EXACT)
        for kept in together.with_ancestors([name]):
            spec = together.heads[kept].spec
            alone.add_head(kept, spec.num_labels, spec.memory_tokens, spec.extends, spec.memory_norm)
            alone.heads[kept].load_state_dict(together.heads[kept].state_dict())
        assert difference(alone(pixel_values, heads=[name])[name].logits, answers[name].logits) < 1e-9


def test_concatenated_equals_separate_in_float32():
    models = []
    for i in range(4):
        models.append(MemoryCapableViT.from_base(copy.deepcopy(ViTForImageClassification(tiny_config()).eval())))
        models[-1].vit.load_state_dict(models[0].vit.state_dict())
        add_random_head(models[-1], f"h{i}", 3, i)
    separate = {f"h{i}": model(images())[f"h{i}"].logits for i, model in enumerate(models)}
    for other in models[1:]:
        models[0].concatenate(other)
    together = models[0](images())
    assert list(together) == ["base", "h0", "h1", "h2", "h3"]
    assert max(difference(together[name].logits, logits) for name, logits in separate.items()) < 1e-5


def test_joint_attention_layer_equals_one_layer_of_the_two_streams():
    model = tiny_model(**EXACT)
    add_random_head(model, "A", 4, 2)
    layer, head = model.vit.layers[0], model.heads["A"]
    joint = SelfAttentionWithMemory.from_attention(layer.attention)
    seen: list = []
    run = model.run_base(images(dtype=torch.float64), lambda _, base: seen.append(base), want_states=True)
    inputs, hidden = run.outputs.hidden_states[:2]
    stream = TaskStream(model, ["A"], 3, want_states=False, want_rows=True)
    tokens = stream.tokens
    normed = layer.layernorm_before(torch.cat([inputs, tokens], dim=1))  # CLS, INP, C
    mask = build_attention_mask(16, [2])
    output, weights = joint(normed, layer.layernorm_before(head.memory[0]), mask)
    after = output + torch.cat([inputs, tokens], dim=1)
    after = after + layer.mlp(layer.layernorm_after(after))
    stream.layer(0, next(model.layer_parts()), seen[0])
    assert difference(after[:, :-1], hidden) < 1e-9
    assert difference(after[:, -1:], stream.tokens) < 1e-9
    assert difference(weights[:, :, -1:], stream.rows[0]) < 1e-9
    assert torch.equal(weights[:, :, :-1, 17:], torch.zeros(3, 4, 17, 3, dtype=torch.float64))


def test_joint_attention_refuses_memory_of_another_width():
    joint = SelfAttentionWithMemory(tiny_config())
    with pytest.raises(ValueError, match="Memory is 16 wide, but the layer is 32 wide"):
        joint(torch.zeros(1, 3, 32), torch.zeros(2, 16))


# ----------------------------------------------------------------------------------------------------------- gradients
def oracle_gradients(model, name, pixel_values, labels):
    model.zero_grad()
    F.cross_entropy(joint_logits(model, pixel_values)[name], labels).backward()
    return [parameter.grad.clone() for parameter in model.heads[name].parameters()]


@pytest.mark.parametrize("memory_norm", [True, False])
def test_gradients_equal_the_oracles_and_do_not_depend_on_unrelated_heads(memory_norm):
    pixel_values, labels = images(dtype=torch.float64), torch.tensor([0, 3, 1])
    model = tiny_model(**EXACT)
    add_random_head(model, "A", 4, 2, memory_norm=memory_norm)
    expected = oracle_gradients(model, "A", pixel_values, labels)
    for others in ((), ("B", "C")):
        for other in others:
            add_random_head(model, other, 4, 3)
        model.zero_grad()
        outputs = model(pixel_values, labels={name: labels for name in ("A", *others)})
        sum(output.loss for output in outputs.values() if output.loss is not None).backward()
        found = [parameter.grad for parameter in model.heads["A"].parameters()]
        assert len(found) == 1 + 3 + 2
        assert max(map(difference, found, expected)) < 1e-9


def test_a_child_gives_its_ancestors_no_gradient_even_if_they_are_trained():
    pixel_values, labels = images(dtype=torch.float64), torch.tensor([0, 3, 1])
    model = tiny_model(**EXACT)
    add_random_head(model, "A", 4, 2)
    add_random_head(model, "B", 4, 2, extends=["A"])
    add_random_head(model, "C", 4, 1, extends=["B"])
    assert not any(parameter.requires_grad for name in "AB" for parameter in model.heads[name].parameters())
    with pytest.raises(ValueError, match="B extends A, which would move while it learns"):
        model.train_only(["A", "B", "C"])
    model.heads.requires_grad_(True)
    expected = oracle_gradients(model, "C", pixel_values, labels)
    model.zero_grad()
    model(pixel_values, labels={"C": labels})["C"].loss.backward()
    assert max(map(difference, (p.grad for p in model.heads["C"].parameters()), expected)) < 1e-9
    given = [p.grad for name in "AB" for p in model.heads[name].parameters() if p.grad is not None]
    assert all(gradient.abs().max() == 0 for gradient in given)


# ---------------------------------------------------------------------------------------------- parameters and freezing
def test_trainable_names_and_their_count_are_those_of_the_formula():
    model = tiny_model()
    model.add_head("old", 9, 4)
    parameters = model.add_head("A", 7, 2, extends=["old"])
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert list(trainable) == [
        "heads.A.class_token", "heads.A.memory.0", "heads.A.memory.1", "heads.A.memory.2",
        "heads.A.classifier.weight", "heads.A.classifier.bias",
    ]  # fmt: skip
    assert [id(p) for p in parameters] == [id(p) for p in trainable.values()]
    width, layers, memory, classes = 32, 3, 2, 7
    formula = width + layers * memory * width + classes * width + classes
    assert sum(parameter.numel() for parameter in parameters) == formula


def test_new_head_starts_as_the_paper_says():
    model = tiny_model()
    class_token, *memory, weight, bias = model.add_head("A", 400, 60)
    assert torch.equal(class_token, model.vit.embeddings.cls_token[0, 0])
    assert bias.abs().max() == 0
    drawn = torch.cat([weight.flatten(), *(m.flatten() for m in memory)])
    assert abs(drawn.std().item() - 0.02) < 5e-4 and abs(drawn.mean().item()) < 5e-4  # 4 sigma of 18,560 draws
    again = tiny_model()
    same, other = (again.add_head(n, 4, generator=torch.Generator().manual_seed(s)) for n, s in (("x", 5), ("y", 5)))
    assert all(map(torch.equal, same, other))


def test_train_only_makes_exactly_these_heads_trainable():
    model = tiny_model()
    for name in "ABC":
        model.add_head(name, 3)
    returned = model.train_only(["C", "A"])
    trainable = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"A", "C"} and len(returned) == 2 * 6


def test_linear_probe_is_a_head_that_reads_the_base_class_token():
    model = tiny_model()
    weight, bias = add_random_head(model, "probe", 6, 0, class_token=False)
    features = model.vit(images()).last_hidden_state[:, 0]
    assert torch.equal(model(images(), with_base=False)["probe"].logits, F.linear(features, weight, bias))


def test_heads_stay_float32_when_the_base_is_cast():
    model = tiny_model()
    add_random_head(model, "A", 4, 2)
    before = model.heads["A"].tensors()
    model.to(torch.bfloat16)
    assert {p.dtype for p in model.heads.parameters()} == {torch.float32}
    assert all(torch.equal(model.heads["A"].tensors()[name], value) for name, value in before.items())
    assert model.vit.layernorm.weight.dtype == torch.bfloat16
    output = model(images(), labels={"A": torch.tensor([0, 1, 2])})["A"]
    output.loss.backward()
    assert output.logits.dtype == torch.float32 and model.heads["A"].memory[0].grad.dtype == torch.float32


def test_removing_a_head_restores_the_model():
    model = tiny_model()
    add_random_head(model, "A", 4, 2)
    names, before = list(model.state_dict()), model(images())["A"].logits
    add_random_head(model, "B", 4, 3, extends=["A"])
    with pytest.raises(ValueError, match="A cannot be removed: B extend it"):
        model.remove_head("A")
    model.remove_head("B")
    assert list(model.state_dict()) == names and model.head_names == ["A"]
    assert torch.equal(model(images())["A"].logits, before)


# --------------------------------------------------------------------------------------------------------- the forward
def test_subsets_of_heads_answer_alone_and_ancestors_are_computed_but_not_returned():
    model = build([(2, True, set()), (1, True, {0}), (0, True, set())], tiny_model())
    everything = model(images())
    some = model(images(), heads=["h2", "h1"], with_base=False)
    assert list(some) == ["h2", "h1"]
    assert all(difference(some[name].logits, everything[name].logits) < 1e-5 for name in some)


def test_without_the_base_the_stream_ends_at_the_last_keys_and_values():
    model, ran = tiny_model(), []
    early, whole = [], []
    for index, layer in enumerate(model.vit.layers):  # modules that hooks do not tell of
        forward = layer.mlp.forward
        layer.mlp.forward = lambda *args, index=index, forward=forward: ran.append(index) or forward(*args)
    assert model.run_base(images(), lambda _, base: early.append(base), stop_early=True).outputs is None
    assert ran == [0, 1]
    model.run_base(images(), lambda _, base: whole.append(base))
    assert all(torch.equal(one.key, other.key) for one, other in zip(early, whole, strict=True))
    handle = model.vit.layers[2].register_forward_hook(lambda *_: ran.append("hook"))  # who waits there is not left out
    model.run_base(images(), lambda *_: None, stop_early=True)
    handle.remove()
    assert ran[-1] == "hook"


def test_labels_fill_the_loss_of_their_heads_only():
    model = build([(1, True, set()), (1, True, set())], tiny_model())
    targets = torch.tensor([0, 1, 1])
    output = model(images(), labels={"h0": targets, "base": targets})
    assert torch.equal(output["h0"].loss, F.cross_entropy(output["h0"].logits, targets))
    assert torch.equal(output["base"].loss, F.cross_entropy(output["base"].logits, targets))
    assert output["h1"].loss is None


def test_adding_loading_and_sharing_draw_nothing_from_the_global_generator(tmp_path):
    model = tiny_model()
    model.add_head("A", 4, generator=torch.Generator())
    model.save_head("A", tmp_path / "A.safetensors")
    model.remove_head("A")
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    model.load_head(tmp_path / "A.safetensors")
    model.add_head("B", 4, generator=torch.Generator())
    SelfAttentionWithMemory.from_attention(model.vit.layers[0].attention)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_logits_of_heads_are_float32_under_autocast():
    model = build([(2, True, set())], tiny_model())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images())["h0"].logits.dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attentions_and_hidden_states_under_every_backend_change_no_logit(backend):
    model = build([(2, True, set()), (1, False, {0}), (4, True, set())], tiny_model(attn_implementation=backend))
    add_random_head(model, "probe", 3, 0, class_token=False)
    plain = model(images())
    asked = model(images(), output_attentions=True, output_hidden_states=True)
    assert all(torch.equal(plain[name].logits, asked[name].logits) for name in plain)
    assert plain["h0"].attentions is None and plain["h0"].hidden_states is None
    columns = {"base": 17, "h0": 17 + 1 + 2, "h1": 17 + 2 + 3, "h2": 17 + 1 + 4, "probe": 17}
    for name, width in columns.items():
        assert [tuple(row.shape) for row in asked[name].attentions] == [(3, 4, 1, width)] * 3
        assert all(difference(row.sum(-1), torch.ones(3, 4, 1)) < 1e-5 for row in asked[name].attentions)
        assert [tuple(s.shape) for s in asked[name].hidden_states] == [(3, 17 if name == "base" else 1, 32)] * 4
    eager = tiny_base()(images(), output_attentions=True)
    assert difference(asked["base"].attentions[1], eager.attentions[1][:, :, :1]) < 1e-5


def test_other_image_sizes_take_interpolated_positions():
    base = tiny_base()
    pixel_values = images(size=24)
    with torch.no_grad():
        expected = base(pixel_values, interpolate_pos_encoding=True).logits
    model = MemoryCapableViT.from_base(base)
    add_random_head(model, "A", 4, 2)
    with pytest.raises(ValueError, match="images have 24x24 pixels, but the model takes 16x16"):
        model(pixel_values)
    output = model(pixel_values, interpolate_pos_encoding=True, output_attentions=True)
    assert torch.equal(output["base"].logits, expected)
    assert output["A"].attentions[0].shape[-1] == 36 + 1 + 1 + 2


def test_the_work_of_concatenated_heads_grows_linearly():
    """At 40 heads no tensor of heads x all memories exists: each head has as many columns as it sees."""
    model = build([(20, True, set())] * 40, tiny_model())
    graph = model.graph_of(model.head_names)
    assert graph.memory.index.shape == (40, 20)
    assert graph.inherited_memory.index.shape == (40, 0) and graph.class_mask is None


# ------------------------------------------------------------------------------------------------------- save and load
def test_save_pretrained_brings_everything_back(tmp_path):
    model = build([(2, True, set()), (1, False, {0}), (0, True, set())], tiny_model(attn_implementation="sdpa"))
    add_random_head(model, "probe", 3, 0, class_token=False, metadata={"labels": ["a", "b", "c"]})
    model.save_pretrained(tmp_path)
    again = MemoryCapableViT.from_pretrained(tmp_path)
    assert again.config.model_type == "vit" and again.head_names == model.head_names
    assert [head.spec for head in again.heads.values()] == [head.spec for head in model.heads.values()]
    before, after = model(images()), again(images())
    assert all(torch.equal(before[name].logits, after[name].logits) for name in before)
    assert again.fingerprint == model.fingerprint
    assert not any(parameter.requires_grad for parameter in again.parameters()) and not again.training
    plain = ViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(plain(images()).logits, before["base"].logits)
    cast = MemoryCapableViT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert cast.dtype == torch.bfloat16 and cast.fingerprint == model.fingerprint
    assert all(torch.equal(p, q) for p, q in zip(cast.heads.parameters(), model.heads.parameters(), strict=True))


def test_float16_on_disk_loads_as_float32_and_keeps_its_fingerprint(tmp_path):
    base = tiny_base()
    base.half().save_pretrained(tmp_path)
    model = MemoryCapableViT.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert MemoryCapableViT.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16
    fingerprints = {MemoryCapableViT.from_pretrained(tmp_path, dtype=d).fingerprint for d in (None, "bfloat16", "auto")}
    assert fingerprints == {model.fingerprint}
    assert MemoryCapableViT.from_base(base).fingerprint == model.fingerprint
    base.vit.layernorm.bias.data[0] += 1
    assert MemoryCapableViT.from_base(base).fingerprint != model.fingerprint


def test_checkpoint_without_a_classifier_has_no_base_answers_and_the_same_fingerprint(tmp_path):
    base = tiny_base()
    encoder = ViTModel(tiny_config())  # with a pooler, as the in21k checkpoints
    encoder.load_state_dict(base.vit.state_dict(), strict=False)
    encoder.save_pretrained(tmp_path)
    model = MemoryCapableViT.from_pretrained(tmp_path)
    assert not model.has_base_classifier and list(model(images())) == []
    assert model.fingerprint == MemoryCapableViT.from_base(base).fingerprint
    assert "base" not in MemoryCapableViT.from_base(encoder.eval())(images())
    add_random_head(model, "A", 4)
    model.save_pretrained(tmp_path / "again")
    again = MemoryCapableViT.from_pretrained(tmp_path / "again")
    assert list(again(images())) == ["A"] and again.fingerprint == model.fingerprint


def test_old_key_names_load(legacy):
    model, expected = MemoryCapableViT.from_pretrained(legacy / "base"), load_file(legacy / "expected.safetensors")
    assert difference(model(expected["pixel_values"])["base"].logits, expected["base_logits"]) < 1e-5


def test_missing_and_unexpected_keys_are_errors(tmp_path):
    tiny_base().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name != "vit.layernorm.bias"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"Missing: vit\.layernorm\.bias; unexpected: nothing; of another shape: nothing"
    ):
        MemoryCapableViT.from_pretrained(tmp_path)
    save_file({**weights, "extra.weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"Missing: nothing; unexpected: extra\.weight; of another shape: nothing"):
        MemoryCapableViT.from_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for also in ({}, {"ignore_mismatched_sizes": True}):  # never a classifier of random numbers
        with pytest.raises(ValueError, match=r"of another shape: classifier\.bias, classifier\.weight"):
            MemoryCapableViT.from_pretrained(tmp_path, num_labels=9, **also)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="are damaged or cut short"):
        MemoryCapableViT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"garbage" * 100], ids=["empty", "html", "garbage"]
)
def test_damaged_pickles_are_errors_that_name_the_checkpoint(tmp_path, content):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"weights in {tmp_path} are damaged or cut short, or a pickle with more"
    ) as error:
        MemoryCapableViT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    tiny_config().save_pretrained(tmp_path)
    torch.save({"vit.embeddings.cls_token": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle with more than tensors"):
        MemoryCapableViT.from_pretrained(tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_asking_a_checkpoint_without_a_classifier_for_labels_is_an_error(tmp_path):
    ViTModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no classifier\. For a new one: add_head\(name, 9, \.\.\.\)"):
        MemoryCapableViT.from_pretrained(tmp_path, num_labels=9)


def test_a_base_that_was_changed_on_disk_is_another_base(tmp_path):
    model = tiny_model(attn_implementation="sdpa")
    model.save_pretrained(tmp_path / "bare")
    add_random_head(model, "A", 4)
    model.save_pretrained(tmp_path / "with-head")
    for folder, changed in (("bare", False), ("bare", True), ("with-head", True)):
        path = tmp_path / folder / "model.safetensors"
        if changed:
            weights = load_file(path)
            weights["vit.layernorm.bias"] += 1
            save_file(weights, path, metadata={"format": "pt"})
        if folder == "bare":
            assert (MemoryCapableViT.from_pretrained(tmp_path / folder).fingerprint == model.fingerprint) is not changed
        else:
            with pytest.raises(ValueError, match="was changed after its heads were saved with it"):
                MemoryCapableViT.from_pretrained(tmp_path / folder)


def test_a_model_saved_in_bfloat16_keeps_its_fingerprint(tmp_path):
    model = tiny_model()
    add_random_head(model, "A", 4)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = MemoryCapableViT.from_pretrained(tmp_path)
    assert again.fingerprint == model.fingerprint and again.dtype == torch.float32
    assert torch.equal(again.heads["A"].class_token, model.heads["A"].class_token)


# ----------------------------------------------------------------------------------------------------------- wrong use
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("A", 3), ValueError, "There is a head A already"),
        (("base", 3), ValueError, "'base' cannot be the name of a head"),
        (("keys", 3), ValueError, "'keys' cannot be the name of a head"),
        (("a.b", 3), ValueError, "'a.b' cannot be the name of a head"),
        (("B", 0), ValueError, "num_labels must be a whole number of at least 1, got 0"),
        (("B", 3, -1), ValueError, "memory_tokens must be a whole number of at least 0, got -1"),
        (("B", 3, 1.5), ValueError, "memory_tokens must be a whole number"),
        (("B", 3, 1, ["Z"]), ValueError, "B cannot extend Z: no such head here. .* the heads are: A"),
        (("B", 3, 1, "A"), TypeError, r"write \('A',\)"),
        (("B", 3, 1, (), True, -0.1), ValueError, "std must be 0 or more, got -0.1"),
    ],
)
def test_add_head_refuses(arguments, error, message):
    model = tiny_model()
    model.add_head("A", 3)
    before = list(model.state_dict())
    with pytest.raises(error, match=message):
        model.add_head(*arguments)
    assert list(model.state_dict()) == before


def test_a_probe_has_no_memory_and_nothing_to_extend():
    model = tiny_model()
    with pytest.raises(ValueError, match="is a linear probe: nothing reads memory"):
        model.add_head("A", 3, 1, class_token=False)
    model.add_head("probe", 3, 0, class_token=False)
    with pytest.raises(ValueError, match="A cannot extend probe: a linear probe has nothing to be seen"):
        model.add_head("A", 3, extends=["probe"])


def test_concatenate_refuses_and_changes_nothing():
    model, other, stranger = tiny_model(), tiny_model(), tiny_model(seed=1)
    for each in (model, other, stranger):
        each.add_head("A", 3)
    with pytest.raises(ValueError, match="The models have different bases"):
        model.concatenate(stranger)
    with pytest.raises(ValueError, match="Both models have a head A"):
        model.concatenate(other)
    with pytest.raises(TypeError, match="takes a MemoryCapableViT, got Linear"):
        model.concatenate(torch.nn.Linear(1, 1))
    assert model.head_names == ["A"]


def test_models_made_from_a_config_are_different_bases():
    """Their weights were drawn, not loaded, so nothing has a fingerprint before it is asked for."""
    one, other = MemoryCapableViT(tiny_config()), MemoryCapableViT(tiny_config())
    other.add_head("A", 3)
    assert one.fingerprint != other.fingerprint
    with pytest.raises(ValueError, match="The models have different bases"):
        one.concatenate(other)


def test_forward_and_from_base_refuse():
    model = tiny_model()
    model.add_head("A", 3)
    with pytest.raises(KeyError, match=r"There is no head 'B'\. The heads are: A"):
        model(images(), heads=["B"])
    with pytest.raises(ValueError, match="There are labels for base, which do not answer in this pass"):
        model(images(), with_base=False, labels={"base": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(TypeError, match=r"labels takes a mapping such as \{'CIFAR100': targets\}, got Tensor"):
        model(images(), labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match=r"got the string 'A'; write \['A'\]"):
        model(images(), heads="A")
    with pytest.raises(KeyError, match="ask for the base's own answers with with_base=True"):
        model(images(), heads=["base"])
    with pytest.raises(TypeError, match="from_base takes a vision encoder of transformers, got Linear"):
        MemoryCapableViT.from_base(torch.nn.Linear(1, 1))
    with pytest.raises(KeyError, match="There is no head 'B'"):
        model.remove_head("B")


# ------------------------------------------------------------------------------------------------ from kept base tokens
GRAPH = [(2, True, set()), (0, True, {0}), (5, False, set()), (3, True, {1, 2}), (1, False, {0})]


def with_a_graph(**changes):
    """Five heads that extend each other, of several counts and both norms, and a linear probe."""
    model = build(GRAPH, tiny_model(**changes))
    add_random_head(model, "probe", 3, 0, class_token=False)
    return model


def logits_and_gradients(model, inputs):
    """Everything that training sees: all logits, and the gradient of every parameter of every head."""
    model.zero_grad()
    model.heads.requires_grad_(True)
    labels = torch.tensor([0, 1, 1])
    outputs = model(inputs, labels=dict.fromkeys(model.head_names, labels))
    sum(output.loss for name, output in outputs.items() if name != "base").backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.heads.named_parameters()}
    return {name: output.logits.detach() for name, output in outputs.items()}, gradients


KINDS = pytest.mark.parametrize("changes", [{}, {"attn_implementation": "sdpa"}, {"qkv_bias": False}], ids=str)


@KINDS
def test_kept_keys_and_values_answer_bit_for_bit_as_pixels(changes):
    model = with_a_graph(**changes)
    found, gradients = logits_and_gradients(model, model.base_tokens(images()))
    expected, expected_gradients = logits_and_gradients(model, images())
    assert list(found) == list(expected) == ["base", "h0", "h1", "h2", "h3", "h4", "probe"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert gradients.keys() == expected_gradients.keys()
    assert all(value.abs().max() > 0 for value in expected_gradients.values())
    assert max(difference(gradients[name], value) for name, value in expected_gradients.items()) < 1e-6


@KINDS
def test_kept_keys_and_values_teach_bit_for_bit_as_pixels(changes):
    model = with_a_graph(**changes)
    _, found = logits_and_gradients(model, model.base_tokens(images()))
    _, expected = logits_and_gradients(model, images())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_kept_tokens_answer_and_teach_as_pixels_up_to_rounding(dtype, bound, qkv_bias):
    """Their scores are the same sums in another order, so the bound is that of the dtype."""
    model = with_a_graph(dtype=dtype, attn_implementation="sdpa", qkv_bias=qkv_bias)
    # Weights of 0.3 grow values, and their rounding, far beyond those of any trained base.
    with torch.no_grad():
        for parameter in model.vit.layers.parameters():
            parameter.mul_(0.5)
    kept = model.base_tokens(images(dtype=dtype), keys_and_values=False)
    assert kept.layers.shape == (3, 3, 17, 32)  # L, B, N, D
    found, expected = logits_and_gradients(model, kept), logits_and_gradients(model, images(dtype=dtype))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        # Relative to the largest number of a tensor: gradients of several heads reach far beyond 1.
        errors = {name: difference(ours[name], value) / max(1, value.abs().max()) for name, value in theirs.items()}
        assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("keys_and_values", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kept_numbers_of_another_dtype_are_cast_to_the_bases(dtype, keys_and_values):
    model = with_a_graph()
    kept = model.base_tokens(images(), keys_and_values)
    short = kept.to(dtype)
    assert (short.layers.dtype, short.output.dtype, len(short)) == (dtype, dtype, 3)
    assert (kept.layers.dtype, kept.output.dtype) == (torch.float32, torch.float32)  # a copy
    found, cast_before = model(short), model(short.to(torch.float32))
    assert all(torch.equal(found[name].logits, cast_before[name].logits) for name in found)
    assert {name: output.logits.dtype for name, output in found.items()} == dict.fromkeys(found, torch.float32)
    assert any(not torch.equal(found[name].logits, answer.logits) for name, answer in model(kept).items())


def test_kept_tokens_give_the_heads_states_and_attentions_but_not_the_bases():
    model = with_a_graph()
    asked = {"output_hidden_states": True, "output_attentions": True}
    found, expected = model(model.base_tokens(images()), **asked), model(images(), **asked)
    for name in model.head_names[:-1]:
        assert len(found[name].hidden_states) == 4 and len(found[name].attentions) == 3
        for ours, theirs in zip(
            (*found[name].hidden_states, *found[name].attentions),
            (*expected[name].hidden_states, *expected[name].attentions),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
    for name in ("base", "probe"):  # what they would show is the base's, which did not run
        assert found[name].hidden_states is None and found[name].attentions is None


def test_kept_tokens_record_nothing_of_the_base_and_leave_the_callers_mode():
    model = with_a_graph()
    kept = model.base_tokens(images().requires_grad_())
    assert not kept.layers.requires_grad and not kept.output.requires_grad and torch.is_grad_enabled()
    model.train_only(["h2"])
    assert model(kept, heads=["h2"])["h2"].logits.requires_grad
    with torch.inference_mode():
        assert torch.equal(model(kept)["h3"].logits, model(images())["h3"].logits)
