"""What a method may be told, how it is called, and whether its result can be put together with others."""

import itertools
from dataclasses import FrozenInstanceError

import pytest

from learnable_memory.config import HEAD_NAME
from learnable_memory.method_spec import MEMORY_UPDATES, METHODS, MethodSpec


# -------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"method": "prompt"},
            "method is 'prompt', but it has to be one of "
            "memory, head+class, head, full, bias, lora, vpt-shallow, vpt-deep.",
        ),
        ({"masking": "some"}, "masking is 'some', but it has to be one of masked, none."),
        ({"memory_update": "add"}, "memory_update is 'add', but it has to be one of none, propagate, additive."),
        ({"memory_tokens": -1}, "memory_tokens is -1, but it has to be 0 or more."),
        ({"method": "vpt-deep", "memory_tokens": -2}, "memory_tokens is -2, but it has to be 0 or more."),
        ({"method": "vpt-deep"}, "vpt-deep needs at least one prompt: give --number_of_memory_tokens."),
        ({"method": "vpt-shallow"}, "vpt-shallow needs at least one prompt: give --number_of_memory_tokens."),
        ({"method": "lora"}, "lora needs a rank of at least 1, got 0: give --rank."),
        ({"method": "lora", "rank": -4}, "lora needs a rank of at least 1, got -4: give --rank."),
        ({"masking": "none"}, "Without memory tokens there is nothing to mask or to update: that is head+class."),
        (
            {"memory_update": "propagate"},
            "Without memory tokens there is nothing to mask or to update: that is head+class.",
        ),
        (
            {"memory_tokens": 2, "train_class_token": False},
            "Masked memory is read by the class token that is learned: --train_class_token stays on.",
        ),
        (
            {"memory_tokens": 2, "memory_update": "additive", "memory_norm": False},
            "Memory with --memory_update additive is normed in each layer, as all tokens.",
        ),
    ],
)
def test_refusals(told, message):
    with pytest.raises(ValueError) as error:
        MethodSpec(**told)
    assert str(error.value) == message


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_of_its_range_is_refused(dropout):
    with pytest.raises(
        ValueError, match=rf"^prompt_dropout is {dropout}, but it has to be at least 0 and less than 1\.$"
    ):
        MethodSpec("vpt-deep", 1, prompt_dropout=dropout)


# what is not the default -> the methods that it belongs to
OTHERWISE = {
    ("memory_tokens", 3): {"memory", "vpt-shallow", "vpt-deep"},
    ("masking", "none"): {"memory"},
    ("memory_update", "propagate"): {"memory"},
    ("memory_norm", False): {"memory"},
    ("train_class_token", False): {"memory"},
    ("rank", 4): {"lora", "memory", "head+class"},
    ("prompt_dropout", 0.5): {"vpt-shallow", "vpt-deep"},
}


@pytest.mark.parametrize(("name", "value"), OTHERWISE)
def test_what_belongs_to_other_methods_is_refused(name, value):
    """Nothing that was asked for may be left out without a word."""
    owners = OTHERWISE[name, value]
    for method in set(METHODS) - owners:
        with pytest.raises(ValueError) as error:
            MethodSpec(method, **{name: value})
        words = str(error.value)
        assert words.startswith(f"{name} is {value!r}, but it belongs to ") and "\n" not in words
        assert words.endswith(f", and the method is {method}: leave it out.")
        assert set(words.split("belongs to ")[1].split(", and the method")[0].split(", ")) == owners


def test_a_spec_does_not_change():
    with pytest.raises(FrozenInstanceError):
        MethodSpec().memory_tokens = 1


# ---------------------------------------------------------------------------------------------------------------- names
def legal_specs():
    """All that is legal in a product of two or three values of everything."""
    values = {
        "method": METHODS, "memory_tokens": (0, 1, 12), "masking": ("masked", "none"), "memory_update": MEMORY_UPDATES,
        "memory_norm": (True, False), "train_class_token": (True, False), "rank": (0, 2, 12),
        "prompt_dropout": (0.0, 0.1, 1e-05),
    }  # fmt: skip
    for each in itertools.product(*values.values()):
        try:
            yield MethodSpec(**dict(zip(values, each, strict=True)))
        except ValueError:
            continue


def test_how_many_specs_of_the_product_are_legal():
    """By hand; so that the tests of names below see them all."""
    # 0 cells: norm or not, three ranks; else own masked (three ranks), own unmasked, (2 updates).
    memory = 2 * 3 + 2 * (2 * 3 + 2 * 2 + 2 * (1 + 2))
    assert len(list(legal_specs())) == memory + 3 + 3 + 2 + 2 * 2 * 3  # head+class; head, full, bias; lora; VPT


def test_names_are_unique_and_legal_as_names_of_heads():
    # Memory of no cells is head+class, with whatever norm: one thing, one name.
    specs = [spec for spec in legal_specs() if not (spec.method == "memory" and spec.memory_tokens == 0)]
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names) == 52
    assert all(HEAD_NAME.holds(name) and len(name) < 40 for name in names)
    assert {MethodSpec().name, MethodSpec(memory_norm=False).name} == {MethodSpec("head+class").name} == {"m0"}


@pytest.mark.parametrize(
    ("spec", "name", "label"),
    [
        (MethodSpec("memory", 1), "m1", "memory, 1 cell"),
        (MethodSpec("memory", 5, memory_norm=False), "m5-nonorm", "memory, 5 cells, after the norm"),
        (MethodSpec("memory", 5, "none"), "m5-unmasked", "memory, 5 cells, no mask"),
        (
            MethodSpec("memory", 5, "none", train_class_token=False),
            "m5-unmasked-frozenclass",
            "memory, 5 cells, no mask, base class token",
        ),
        (
            MethodSpec("memory", 2, "none", "propagate"),
            "m2-unmasked-propagate",
            "memory, 2 cells, no mask, propagate",
        ),
        (MethodSpec("memory", 2, memory_update="additive"), "m2-additive", "memory, 2 cells, additive"),
        (MethodSpec("memory", 5, rank=8), "m5-r8", "memory, 5 cells, rank 8"),
        (MethodSpec("memory", 1, memory_norm=False, rank=2), "m1-nonorm-r2", "memory, 1 cell, after the norm, rank 2"),
        (MethodSpec("head+class", rank=4), "m0-r4", "head+class, rank 4"),
        (MethodSpec("head+class"), "m0", "head+class"),
        (MethodSpec("head"), "probe", "head"),
        (MethodSpec("full"), "full", "full"),
        (MethodSpec("bias"), "bias", "bias"),
        (MethodSpec("lora", rank=8), "lora8", "lora, rank 8"),
        (MethodSpec("vpt-shallow", 1), "vpt-shallow1", "vpt-shallow, 1 prompt"),
        (MethodSpec("vpt-deep", 10), "vpt-deep10", "vpt-deep, 10 prompts"),
        (
            MethodSpec("vpt-deep", 10, prompt_dropout=0.1),
            "vpt-deep10-dropout0p1",
            "vpt-deep, 10 prompts, dropout 0.1",
        ),
    ],
)
def test_names_and_labels(spec, name, label):
    assert (spec.name, spec.label) == (name, label)


# ------------------------------------------------------------------------------------------------------ put together
def test_what_leaves_the_tokens_of_the_base_alone_can_be_put_together():
    for spec in legal_specs():
        alone = spec.method in ("full", "bias", "lora", "vpt-shallow", "vpt-deep")
        alone |= spec.masking == "none" or spec.memory_update != "none"
        assert spec.combinable is not alone
        assert bool(spec.reason) is alone


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (MethodSpec("full"), "it changes the base's own weights"),
        (MethodSpec("bias"), "it changes the base's own biases"),
        (MethodSpec("lora", rank=1), "it changes what the base's own projections give"),
        (MethodSpec("vpt-shallow", 1), "its prompts are seen by the base's own tokens"),
        (MethodSpec("vpt-deep", 1), "its prompts are seen by the base's own tokens"),
        (MethodSpec("memory", 1, "none"), "its memory is seen by the base's own tokens"),
        (MethodSpec("memory", 1, "none", "propagate"), "its memory is seen by the base's own tokens"),
        (
            MethodSpec("memory", 1, memory_update="propagate"),
            "its memory goes from layer to layer, which the two streams do not carry",
        ),
    ],
)
def test_reasons(spec, reason):
    assert spec.reason == reason


@pytest.mark.parametrize(
    ("family", "specs"),
    [
        ("probe", [MethodSpec("head")]),
        ("memory", [MethodSpec("head+class"), MethodSpec("memory", 5), MethodSpec("memory", 2, memory_norm=False)]),
        ("unmasked", [MethodSpec("memory", tokens, "none") for tokens in (1, 12)]),
        ("unmasked-frozenclass", [MethodSpec("memory", 1, "none", train_class_token=False)]),
        ("additive", [MethodSpec("memory", tokens, memory_update="additive") for tokens in (1, 2)]),
        ("lora8", [MethodSpec("lora", rank=8)]),
        ("full", [MethodSpec("full")]),
        ("vpt-deep", [MethodSpec("vpt-deep", tokens) for tokens in (1, 10)]),
        ("vpt-shallow-dropout0p1", [MethodSpec("vpt-shallow", 3, prompt_dropout=0.1)]),
    ],
)
def test_families_differ_in_numbers_of_tokens_only(family, specs):
    assert {spec.family for spec in specs} == {family}
