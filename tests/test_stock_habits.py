"""What people do to models of transformers works on a model with heads, and reaches the heads: hooks, checkpointing,
quantization, adapters, replaced modules, flags of the config. And the fingerprint is never that of another base."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from torch import nn
from transformers.models.vit.modeling_vit import ViTAttention

from stock_families import IMAGES, stock
from tiny import add_random_head, images, tiny_base, tiny_config, tiny_model
from vit import HeadClassifier, MemoryCapableViT


def with_head(**changes) -> MemoryCapableViT:
    model = tiny_model(**changes)
    add_random_head(model, "A", 4, 2)
    return model


# ---------------------------------------------------------------------------------------------------------------- hooks
def test_hooks_on_attention_and_layers_fire_once_and_what_they_return_is_taken():
    model, fired = with_head(), []
    for layer in model.vit.layers:
        layer.register_forward_hook(lambda *_: fired.append("layer"))
        layer.attention.register_forward_hook(lambda *_: fired.append("attention"))
    before = model(images())
    assert fired == ["attention", "layer"] * 3
    handle = model.vit.layers[0].attention.register_forward_hook(
        lambda _, args, output: (torch.zeros_like(output[0]), None)
    )
    after = model(images())
    handle.remove()
    assert all(not torch.allclose(before[name].logits, after[name].logits) for name in before)


def test_a_replaced_module_is_the_one_that_runs():
    model = with_head()
    before = model(images())["A"].logits
    kept = model.vit.layers[1].attention
    model.vit.layers[1].attention = copy.deepcopy(kept)
    assert torch.equal(model(images())["A"].logits, before)
    with torch.no_grad():
        model.vit.layers[1].attention.v_proj = nn.Linear(32, 32)
    assert not torch.allclose(model(images())["A"].logits, before)

    class Deaf(ViTAttention):
        def forward(self, hidden_states, *args, **kwargs):
            return torch.zeros_like(hidden_states), None

    model.vit.layers[1].attention = Deaf(model.config)
    with pytest.raises(RuntimeError, match="has 3 layers, but 2 of them computed their attention through"):
        model(images())


def test_flags_of_the_config_are_followed_and_arguments_win():
    model = with_head()
    model.config.output_hidden_states = model.config.output_attentions = True
    answers = model(images())
    assert [len(answer.hidden_states) for answer in answers.values()] == [4, 4]
    assert [len(answer.attentions) for answer in answers.values()] == [3, 3]
    assert model(images(), output_hidden_states=False)["A"].hidden_states is None


def test_gradients_of_returned_states_can_be_kept():
    model = with_head()
    model.vit.requires_grad_(True)
    answer = model(images(), output_hidden_states=True)
    states = [*answer["A"].hidden_states[:-1], *answer["base"].hidden_states[1:-1]]
    for state in states:
        state.retain_grad()
    (answer["A"].logits.sum() + answer["base"].logits.sum()).backward()
    assert all(state.grad is not None and state.grad.abs().sum() > 0 for state in states)


# ------------------------------------------------------------------------------------------------------- checkpointing
@pytest.mark.parametrize("lora", [False, True], ids=["unfrozen", "LoRA"])
def test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient(lora):
    peft = pytest.importorskip("peft")

    def gradients(checkpointing: bool) -> tuple[int, list[torch.Tensor]]:
        model, runs = with_head(attn_implementation="sdpa"), []
        if lora:
            torch.manual_seed(0)
            config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            peft.inject_adapter_in_model(config, model.vit)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in name or name.startswith("heads."))
        else:
            model.requires_grad_(True)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        for layer in model.vit.layers:
            forward = layer.mlp.forward
            layer.mlp.forward = lambda *args, forward=forward: runs.append(1) or forward(*args)
        model(images(), labels={"A": torch.tensor([0, 1, 2])})["A"].loss.backward()
        return len(runs), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    runs, plain = gradients(False)
    runs_again, checkpointed = gradients(True)
    assert runs_again > runs and len(plain) == len(checkpointed)
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))


# -------------------------------------------------------------------------------------------- quantization and copies
def test_a_quantized_model_answers_nearly_as_before():
    model = with_head(attn_implementation="sdpa")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized.vit.layers[0].mlp.fc1, nn.Linear)
    before, after = model(images()), quantized(images())
    for name, answer in before.items():
        error = (after[name].logits - answer.logits).abs().max()
        assert 0 < error < 0.2 * answer.logits.abs().max()


def test_copies_and_pickles_answer_alike(tmp_path):
    model = with_head()
    expected = model(images())
    torch.save(model, tmp_path / "whole.pt")
    copies = [
        copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "whole.pt", weights_only=False),
        pickle.loads(pickle.dumps(model.classifier_for("A"))),
    ]  # fmt: skip
    for again in copies[:3]:
        assert type(again) is type(model) and again.fingerprint == model.fingerprint
        assert all(torch.equal(again(images())[name].logits, expected[name].logits) for name in expected)
    assert isinstance(copies[3], HeadClassifier) and torch.equal(copies[3](images()).logits, expected["A"].logits)


def test_one_base_may_be_shared_by_models_and_used_by_itself():
    base = tiny_base()
    expected = base(images(), output_hidden_states=True)
    one, two = MemoryCapableViT.from_base(base), MemoryCapableViT.from_base(base)
    for model in (one, two):
        add_random_head(model, "A", 4, 2)
    assert torch.equal(one(images())["A"].logits, two(images())["A"].logits)
    for states in (one(images(), output_hidden_states=True)["base"].hidden_states,
                   base(images(), output_hidden_states=True).hidden_states):  # fmt: skip
        assert len(states) == 4 and all(map(torch.equal, states, expected.hidden_states))


# ----------------------------------------------------------------------------------------------------- the fingerprint
def merge_lora(model: MemoryCapableViT) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).merge_and_unload()


def train_a_step(model: MemoryCapableViT) -> None:
    model.vit.requires_grad_(True)
    model(images())["base"].logits.sum().backward()
    torch.optim.SGD(model.vit.parameters(), lr=0.1).step()


CHANGES = {
    "LoRA merged": merge_lora,
    "LoRA injected": lambda model: pytest.importorskip("peft").inject_adapter_in_model(
        pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"], init_lora_weights=False), model.vit
    ),
    "load_state_dict": lambda model: model.vit.load_state_dict(tiny_base(seed=5).vit.state_dict()),
    "trained": train_a_step,
    "written through data": lambda model: model.vit.layers[2].mlp.fc2.weight.data.mul_(1.01),
    "cast behind its back": lambda model: model.vit.layers[0].to(torch.bfloat16).to(torch.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_heads_of_the_base_as_it_was_do_not_fit_the_base_as_it_is(change, tmp_path):
    model, other = with_head(), tiny_model()
    before = model.fingerprint
    model.save_head("A", tmp_path / "before.safetensors")
    CHANGES[change](model)
    assert model.fingerprint != before
    model.remove_head("A")
    with pytest.raises(ValueError, match="was trained on another base"):
        model.load_head(tmp_path / "before.safetensors")
    with pytest.raises(ValueError, match="The models have different bases"):
        model.concatenate(other)
    add_random_head(model, "B", 3)
    model.save_head("B", tmp_path / "after.safetensors")
    with pytest.raises(ValueError, match="was trained on another base"):
        other.load_head(tmp_path / "after.safetensors")


def test_casts_copies_and_training_of_heads_leave_the_fingerprint():
    model = with_head()
    before = model.fingerprint
    assert model.to(torch.bfloat16).fingerprint == before
    assert copy.deepcopy(model).fingerprint == before and model.for_inference(torch.float32).fingerprint == before
    model = with_head()
    optimizer = torch.optim.AdamW(model.train_only(["A"]), lr=0.1)
    model(images(), labels={"A": torch.tensor([0, 1, 2])})["A"].loss.backward()
    optimizer.step()
    assert model.fingerprint == before


def test_weights_without_values_have_no_fingerprint():
    with torch.device("meta"):
        model = MemoryCapableViT(tiny_config())
    with pytest.raises(ValueError, match="are on the meta device, so nobody can say which base it is"):
        model.fingerprint  # noqa: B018


def test_a_config_and_a_state_dict_make_a_model_too():
    base = tiny_base()
    model = MemoryCapableViT.from_pretrained(None, config=base.config, state_dict=base.state_dict())
    assert isinstance(model, transformers.ViTForImageClassification) and model.base_id is None
    assert torch.equal(model(images())["base"].logits, base(images()).logits)


def test_what_a_stock_class_saved_of_our_folder_loads_again(tmp_path, caplog):
    model = with_head(attn_implementation="sdpa")
    model.save_pretrained(tmp_path / "ours")
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert type(stock) is transformers.ViTForImageClassification
    stock.save_pretrained(tmp_path / "theirs")
    again = MemoryCapableViT.from_pretrained(tmp_path / "theirs")
    assert again.head_names == [] and again.fingerprint == model.fingerprint
    assert "records heads (A), but a program that does not know them has saved it without" in caplog.text
    assert torch.equal(again(images())["base"].logits, model(images())["base"].logits)


# ----------------------------------------------------------------------------------- compilers, threads, flex attention
COMPILED = [pytest.param(case, marks=pytest.mark.slow) for case in ("vit classifier", "siglip", "beit")]


@pytest.mark.parametrize("case", ["dinov3", *COMPILED])
def test_a_whole_graph_can_be_compiled(case):
    model = MemoryCapableViT.from_base(stock(case))
    add_random_head(model, "A", 4, 2)
    add_random_head(model, "B", 3, 1, extends=("A",), rank=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    targets = {"B": torch.tensor([0, 1])}
    expected, found = (each(IMAGES, labels=targets) for each in (model, compiled))
    for name, answer in expected.items():
        assert torch.allclose(found[name].logits, answer.logits, atol=1e-5)
    found["B"].loss.backward()
    assert model.heads["B"].class_token.grad.abs().sum() > 0


def test_threads_hear_their_own_images():
    model = with_head(attn_implementation="sdpa").eval()
    batches = [images(seed=seed) for seed in range(8)]
    with torch.no_grad():
        expected = [model(batch)["A"].logits for batch in batches]

        def answer(batch):
            with torch.no_grad():
                return [model(batch)["A"].logits for _ in range(5)]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(answer, batches))
    assert all(torch.equal(logits, one) for logits, many in zip(expected, found, strict=True) for one in many)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vit classifier", "siglip"])
def test_flex_attention_answers_as_the_stock_class_under_it(case):
    """Compiled by the machine's C++ compiler: half a minute."""
    base = stock(case, attention="flex_attention")
    with torch.no_grad():
        expected = base(IMAGES, output_hidden_states=True)
        model = MemoryCapableViT.from_base(base)
        add_random_head(model, "A", 4, 2)
        run = model.run_base(IMAGES, lambda *_: None, want_states=True)
        answers = model(IMAGES)
        model.set_attn_implementation("sdpa")
        assert torch.allclose(answers["A"].logits, model(IMAGES)["A"].logits, atol=1e-4)
    assert all(map(torch.equal, run.outputs.hidden_states, expected.hidden_states))


DISK = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "classifier": "cpu"}


def test_weights_that_were_offloaded_are_named(tmp_path):
    pytest.importorskip("accelerate")
    tiny_base().save_pretrained(tmp_path / "base")
    with pytest.raises(
        ValueError, match=r"on the meta device, so nobody can say which base it is: load it with its weights"
    ):
        MemoryCapableViT.from_pretrained(tmp_path / "base", device_map=DISK, offload_folder=tmp_path / "offload")
