"""Low-rank weights on the task stream: exact, for the class token alone, and beside any other head."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from learnable_memory import heads
from learnable_memory.heads import HeadSpec
from learnable_memory.projections import PROJECTIONS
from oracle import joint_logits
from test_vit import EXACT, difference
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

USUAL = {"query": 2, "output": 2, "mlp_in": 2, "mlp_out": 2}
ranks = st.dictionaries(st.sampled_from(PROJECTIONS), st.integers(0, 3), max_size=6)


def mixed(**changes) -> MemoryCapableViT:
    """Heads of several ranks, of ranks for every projection, and of none; one built on two others; a linear probe."""
    model = tiny_model(**changes)
    add_random_head(model, "A", 4, 2, rank=2)
    add_random_head(model, "plain", 3, 1)
    add_random_head(model, "B", 5, 3, memory_norm=False, rank=dict.fromkeys(PROJECTIONS, 3))
    add_random_head(model, "C", 2, 0, rank={"mlp_out": 2, "key": 1})
    add_random_head(model, "D", 4, 1, extends=("A", "plain"), rank={"query": 2, "value": 3})
    add_random_head(model, "probe", 3, 0, class_token=False)
    return model


def logits(answers) -> dict[str, torch.Tensor]:
    return {name: output.logits.detach() for name, output in answers.items()}


def assert_close(found, expected, bound: float) -> None:
    assert list(found) == list(expected)
    for name in found:
        assert difference(found[name], expected[name]) < bound, name


# ------------------------------------------------------------------------------------------------------ what they are
@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(ranks, st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_heads_equal_the_joint_attention_with_their_own_projections(listed):
    model = tiny_model(**EXACT)
    for i, (own, memory_tokens, memory_norm, extends) in enumerate(listed):
        parents = [f"h{i - 1}"] if extends and i else []
        add_random_head(model, f"h{i}", 3, memory_tokens, parents, memory_norm, rank=own, seed=i)
    pixels = images(dtype=torch.float64)
    assert_close(logits(model(pixels)), joint_logits(model, pixels), 1e-9)


def test_float32_equals_the_joint_attention_too():
    model = tiny_model()
    model.requires_grad_(False)
    for i in range(4):
        model.add_head(f"h{i}", 3, i, rank=i)
        with torch.no_grad():
            for update in model.heads[f"h{i}"].low_rank.values():
                update.up.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
    assert_close(logits(model(images())), {k: v.detach() for k, v in joint_logits(model, images()).items()}, 1e-5)


def test_a_new_head_begins_as_the_plain_one_bit_for_bit():
    model = tiny_model()
    for name, rank in (("plain", 0), ("ranked", 4)):
        model.add_head(name, 4, 2, rank=rank, generator=torch.Generator().manual_seed(3))
    answers = model(images())
    assert torch.equal(answers["plain"].logits, answers["ranked"].logits)
    update = model.heads["ranked"].low_rank["mlp_in"]
    assert not update.up.any()
    assert abs(update.down.std().item() - 32**-0.5) < 0.02  # 384 numbers: six standard errors


def test_their_number_is_the_formulas():
    model = tiny_model()  # D 32, MLP 64, L 3
    plain = sum(p.numel() for p in model.add_head("plain", 4, 2))
    for rank in (1, 5):
        own = sum(p.numel() for p in model.add_head(f"r{rank}", 4, 2, rank=rank))
        assert own - plain == 3 * rank * ((32 + 32) + (32 + 32) + (32 + 64) + (64 + 32))
    assert set(model.heads["r1"].low_rank) == set(USUAL)


def test_ranks_of_zero_are_no_ranks():
    assert HeadSpec("A", 2, low_rank={"key": 0, "query": 2}).low_rank == {"query": 2}
    assert HeadSpec("A", 2, low_rank=0) == HeadSpec("A", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": -1}, "rank of query must be a whole number of at least 0, got -1"),
        ({"rank": True}, "rank of query must be a whole number of at least 0, got True"),
        ({"rank": {"key": 1.5}}, "rank of key must be a whole number of at least 0, got 1.5"),
        ({"rank": {"qkv": 2}}, "no projection qkv to give a rank; legal: query, key, value, output, mlp_in, mlp_out"),
        ({"rank": 2, "class_token": False, "memory_tokens": 0}, "is a linear probe: .* no rank"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model.add_head("A", 3, **arguments)
    assert not model.head_names


# ---------------------------------------------------------------------------------------------------- beside each other
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_together_as_alone_and_the_base_untouched(dtype, bound):
    """float32: weights of 0.5 in every factor make logits of several thousand; the bound is relative to them."""
    model, pixels = mixed(dtype=dtype, attn_implementation="sdpa"), images(dtype=dtype)
    together = logits(model(pixels))
    plain = tiny_model(dtype=dtype, attn_implementation="sdpa")
    assert torch.equal(together["base"], plain(pixels)["base"].logits)
    for name in ("A", "B", "C", "D", "probe"):
        alone = logits(model(pixels, heads=[name], with_base=False))[name]
        scale = max(1.0, alone.abs().max().item())
        assert difference(alone, together[name]) < bound * scale, name


def test_gradients_reach_the_head_alone_and_are_the_oracles():
    model, labels, pixels = mixed(**EXACT), torch.tensor([0, 1, 1]), images(dtype=torch.float64)
    model.remove_head("probe")  # which the joint attention does not know
    model.train_only(["B", "plain"])
    model(pixels, labels={"B": labels})["B"].loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert found and all(name.startswith("heads.B.") for name in found)
    model.zero_grad()
    model.heads["B"].requires_grad_(True)
    F.cross_entropy(joint_logits(model, pixels)["B"], labels).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, rtol=1e-9, atol=1e-9)


def test_what_a_head_is_built_on_learns_nothing_from_it():
    model = mixed(**EXACT)
    model.heads.requires_grad_(True)
    pixels = images(dtype=torch.float64)
    model(pixels, labels={"D": torch.tensor([0, 1, 2])})["D"].loss.backward()
    moved = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"D"}


def test_half_precision_of_the_base_leaves_them_float32():
    model = mixed().to(torch.bfloat16)
    assert {p.dtype for p in model.heads.parameters()} == {torch.float32}
    assert all(output.logits.isfinite().all() for output in model(images(dtype=torch.bfloat16)).values())


@pytest.mark.parametrize("keys_and_values", [True, False])
def test_from_base_tokens_as_from_pixels(keys_and_values):
    model, pixels = mixed(**EXACT), images(dtype=torch.float64)
    names = ["A", "B", "C", "D"]
    expected = logits(model(pixels, names, with_base=False))
    found = logits(model(model.base_tokens(pixels, keys_and_values), names, with_base=False))
    assert_close(found, expected, 1e-300 if keys_and_values else 1e-9)


# -------------------------------------------------------------------------------------------------------------- served
@pytest.mark.parametrize("names", [None, ["A"], ["D"], ["plain"], ["C", "B"], ["probe", "A"], []])
def test_the_served_copy_answers_as_the_model_and_merges_nothing(names):
    model, pixels = mixed(**EXACT), images(dtype=torch.float64)
    served = model.for_inference()
    assert_close(logits(served(pixels, names)), logits(model(pixels, names)), 1e-9)
    assert all(map(torch.equal, served.vit.parameters(), model.vit.parameters()))


def test_the_served_copy_stacks_once(monkeypatch):
    served = mixed().for_inference()
    monkeypatch.setattr("learnable_memory.model.inputs.stack_low_rank", lambda *_: pytest.fail("it is stacked again"))
    served(images())
    served(images(), heads=["A"])
    moved = served.double()
    assert all(group.down.dtype == torch.float64 for group in moved.folded.low_rank(["A", "B"]))


# ---------------------------------------------------------------------------------------------------------------- files
def test_a_file_brings_them_back(tmp_path):
    model, path = mixed(), tmp_path / "B.safetensors"
    model.save_head("B", path)
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert shapes["low_rank.query.down"] == (3, 3, 32) and shapes["low_rank.query.up"] == (3, 32, 3)
    assert shapes["low_rank.mlp_in.up"] == (3, 64, 3) and shapes["low_rank.mlp_out.down"] == (3, 3, 64)
    again = tiny_model()
    again.load_head(path)
    assert again.heads["B"].spec.low_rank == dict.fromkeys(PROJECTIONS, 3)
    assert torch.equal(again(images())["B"].logits, model(images(), ["B"])["B"].logits)


def test_models_with_them_are_saved_put_together_and_extended(tmp_path):
    model = mixed()
    model.save_pretrained(tmp_path)
    again = MemoryCapableViT.from_pretrained(tmp_path)
    again.set_attn_implementation("eager")
    assert_close(logits(again(images())), logits(model(images())), 1e-30)
    other = tiny_model()
    other.concatenate(model)
    assert_close(logits(other(images())), logits(model(images())), 1e-30)


def old_file(path, model) -> None:
    """A file of format version 1, which knew no ranks, with the head `plain`."""
    model.save_head("plain", path)
    file = heads.load(path)
    metadata = {key: value for key, value in file.metadata.items() if key not in ("low_rank", "intermediate_size")}
    header = {"head": json.dumps({**metadata, "format_version": 1})}
    save_file({name: tensor.contiguous() for name, tensor in file.tensors.items()}, path, metadata=header)


def test_files_of_format_version_1_are_still_read(tmp_path):
    model, path = mixed(), tmp_path / "old.safetensors"
    old_file(path, model)
    again = tiny_model()
    again.load_head(path)
    assert again.heads["plain"].spec.low_rank == {}
    assert torch.equal(again(images())["plain"].logits, model(images(), ["plain"])["plain"].logits)


def test_a_head_extends_one_of_an_old_file_and_knows_it_in_a_new_one(tmp_path):
    """What names a parent is a hash of what it is, which the format's version is not."""
    model = mixed()
    old_file(tmp_path / "old.safetensors", model)
    model.remove_head("D")
    add_random_head(model, "child", 3, 1, extends=("plain",))
    model.save_head("child", tmp_path / "child.safetensors")
    again = tiny_model()
    again.load_head(tmp_path / "old.safetensors")
    again.load_head(tmp_path / "child.safetensors")
    assert torch.equal(again(images(), ["child"])["child"].logits, model(images(), ["child"])["child"].logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_rank": {"query": 0}}, "low_rank is {'query': 0}, which is no rank of at least 1 for each"),
        ({"low_rank": {"qkv": 2}}, "does not know: low_rank.qkv. A newer"),
        ({"low_rank": [2]}, r"low_rank is \[2\]"),
        ({"intermediate_size": None}, "intermediate_size is None, and low-rank weights need it"),
        ({"low_rank": {**USUAL, "query": 3}}, r"low_rank.query.down: found \(3, 2, 32\), expected \(3, 3, 32\)"),
    ],
)
def test_damaged_ranks_are_refused(tmp_path, changes, message):
    model, path = mixed(), tmp_path / "A.safetensors"
    model.save_head("A", path)
    file = heads.load(path)
    metadata = copy.deepcopy(file.metadata) | changes
    heads.write(path, file.tensors, {"head": metadata})
    with pytest.raises(ValueError, match=message):
        heads.load(path)
