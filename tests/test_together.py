"""What speaks against loading heads into one model is known from their files, and an order is found if there is one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learnable_memory import heads
from learnable_memory.ancestry import with_ancestors
from learnable_memory.heads import HeadFile
from learnable_memory.together import check_together, hash_of, reasons_against
from tiny import add_random_head, tiny_model
from vit import MemoryCapableViT


def head_files(model: MemoryCapableViT, folder: Path) -> dict[str, HeadFile]:
    """The heads of a model as their files have them."""
    for name in model.head_names:
        model.save_head(name, folder / heads.file_name(name))
    return {name: heads.load(folder / heads.file_name(name)) for name in model.head_names}


def family_model(seed: int = 0, base: int = 0) -> MemoryCapableViT:
    """A and D alone, B built on A, C built on B and A, P a linear probe."""
    model = tiny_model(base)
    for name, extends in (("A", ()), ("B", ("A",)), ("C", ("B", "A")), ("D", ())):
        add_random_head(model, name, 4, 2, extends, seed=seed)
    add_random_head(model, "P", 3, 0, class_token=False, seed=seed)
    return model


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> dict[str, HeadFile]:
    return head_files(family_model(), tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def retrained(tmp_path_factory) -> dict[str, HeadFile]:
    """The same names on the same base, other weights."""
    return head_files(family_model(seed=1), tmp_path_factory.mktemp("retrained"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, HeadFile]:
    """The same names and weights on another base."""
    return head_files(family_model(base=1), tmp_path_factory.mktemp("elsewhere"))


def with_metadata(file: HeadFile, **changes) -> HeadFile:
    return dataclasses.replace(file, metadata={**file.metadata, **changes})


def in_order(files: list[HeadFile]) -> list[HeadFile]:
    """Parents first; several may have one name, and parents be absent."""
    numbers = range(len(files))
    extended = [{parent["name"] for parent in file.metadata["extends"]} for file in files]
    parents = [[j for j in numbers if files[j].metadata["name"] in extended[i]] for i in numbers]
    return [files[i] for i in with_ancestors(numbers, parents.__getitem__)]


# --------------------------------------------------------------------------------------------------------------- order
PARENTS = {"A": "", "B": "A", "C": "BA", "D": "", "P": ""}


@pytest.mark.parametrize(
    ("given_order", "expected"),
    [
        ("ABCDP", "ABCDP"),
        ("PDABC", "PDABC"),  # legal as it is
        ("CBA", "ABC"),
        ("DCPBA", "DABCP"),  # parents move before their first child, the others stay
        ("BA", "AB"),
        ("CD", "CD"),  # the parents are elsewhere
        ("", ""),
    ],
)
def test_parents_come_first_and_nothing_moves_without_need(given_order, expected):
    assert "".join(with_ancestors(given_order, lambda head: [p for p in PARENTS[head] if p in given_order])) == expected


def test_ancestors_that_were_not_named_come_along():
    asked = []
    assert with_ancestors("PC", lambda head: asked.append(head) or PARENTS[head]) == ["P", "A", "B", "C"]
    assert sorted(asked) == ["A", "B", "C", "P"]  # each once


@pytest.mark.parametrize(
    ("parents", "circle"), [({"A": "A"}, "A -> A"), ({"A": "B", "B": "CD", "C": "A"}, "A -> B -> C -> A")]
)
def test_heads_that_extend_each_other_in_a_circle(parents, circle):
    with pytest.raises(ValueError, match=f"Heads cannot extend each other in a circle: {circle}"):
        with_ancestors("DA", lambda head: parents.get(head, ""))


def test_the_hash_is_the_one_that_children_record(family):
    recorded = {parent["name"]: parent["hash"] for parent in family["C"].metadata["extends"]}
    assert recorded == {"A": hash_of(family["A"]), "B": hash_of(family["B"])}
    assert hash_of(family["A"]) != hash_of(with_metadata(family["A"], memory_norm=False))


# ------------------------------------------------------------------------------------------------------------- reasons
def test_nothing_speaks_against_heads_that_fit(family):
    assert reasons_against(list(family.values())) == []
    assert reasons_against([]) == []
    check_together(list(reversed(family.values())))


def test_other_bases_are_listed_with_their_heads(family, elsewhere):
    here, there = (files["A"].metadata["base"]["fingerprint"] for files in (family, elsewhere))
    files = [
        with_metadata(family["A"], base={"id": None, "fingerprint": here}),
        with_metadata(elsewhere["D"], base={"id": "someone/vit", "fingerprint": there}),
        with_metadata(family["P"], base={"id": None, "fingerprint": here}),
    ]
    assert reasons_against(files) == [
        f"they were trained on 2 bases: A, P on unnamed ({here[:8]}), D on someone/vit ({there[:8]})"
    ]


def test_one_base_may_go_by_several_names(family):
    fingerprint = family["A"].metadata["base"]["fingerprint"]
    moved = with_metadata(family["D"], base={"id": "/elsewhere/base", "fingerprint": fingerprint})
    assert reasons_against([family["A"], moved]) == []


def test_two_heads_of_one_name(family, retrained):
    assert reasons_against([family["A"], family["A"]]) == ["2 of them are called A, and they are the same head"]
    assert reasons_against([family["A"], retrained["A"], family["A"]]) == ["3 of them are called A, and they differ"]


def test_a_parent_that_is_absent(family):
    assert reasons_against([family["C"], family["A"]]) == ["C extends B, which is not among them"]


def test_a_parent_that_is_another_one(family, retrained):
    assert reasons_against([retrained["A"], family["B"]]) == [
        "B extends A, which is not the one among them: it was trained on another head of that name"
    ]


def test_a_linear_probe_as_parent(family):
    forged = with_metadata(family["D"], extends=[{"name": "P", "hash": hash_of(family["P"])}])
    assert reasons_against([family["P"], forged]) == ["D extends P, which is a linear probe and has nothing to be seen"]


def test_all_reasons_are_in_one_line(family, retrained):
    with pytest.raises(ValueError) as caught:
        check_together([family["A"], family["C"], retrained["A"]])
    assert str(caught.value) == (
        "These heads cannot be put together: 2 of them are called A, and they differ; "
        "C extends B, which is not among them."
    )


# The promise of the module: what has no reasons against it loads, and what has one does not.
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_there_are_reasons_exactly_if_a_model_refuses(family, retrained, elsewhere, data):
    sources = {"family": family, "retrained": retrained, "elsewhere": elsewhere}
    # Mostly of one family, so that sets without a fault come up too.
    which = st.sampled_from(["family"] * 6 + ["retrained", "elsewhere"])
    picks = data.draw(st.lists(st.tuples(which, st.sampled_from("ABCDP")), max_size=6))
    files = [sources[source][name] for source, name in picks]
    if data.draw(st.booleans()):  # one that claims to extend another
        parent, file = data.draw(st.sampled_from("ADP")), family["D"]
        forged = with_metadata(file, name="F", extends=[{"name": parent, "hash": hash_of(family[parent])}])
        files.append(forged)
    model = tiny_model(base_of(files, elsewhere))
    try:
        for file in in_order(files):
            model.load_head(file)
        refused = False
    except ValueError:
        refused = True
    assert bool(reasons_against(files)) == refused


def base_of(files, elsewhere) -> int:
    """The seed of the base that the first of these heads was trained on."""
    fingerprints = [file.metadata["base"]["fingerprint"] for file in files[:1]]
    return int(fingerprints == [elsewhere["A"].metadata["base"]["fingerprint"]])


def test_an_order_that_was_found_can_be_loaded(family):
    model = tiny_model()
    for file in in_order([family[name] for name in "PCDBA"]):
        model.load_head(file)
    expected = family_model()
    pixels = torch.ones(1, 3, 16, 16)
    for name in "ABCDP":
        assert torch.allclose(model(pixels)[name].logits, expected(pixels)[name].logits, atol=1e-5)
