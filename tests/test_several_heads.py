"""Several heads in one file: they come back as they were, and load in one go or not at all."""

import json
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from learnable_memory import heads, tensor_files
from learnable_memory.commands.head_files import merge, split
from learnable_memory.commands.heads import MergeOptions, SplitOptions
from learnable_memory.heads import HeadFile
from test_vit import build, difference, forests
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

METADATA = {"labels": ["cat", "Käfer", "\N{FOX FACE}"], "metrics": {"eval": {"top1": 0.1 + 0.2}}, "notes": {"by": None}}


def family_model() -> MemoryCapableViT:
    """A, B built on A, A+B built on both (its name starts as another's does), P a linear probe."""
    model = tiny_model()
    add_random_head(model, "A", 3, 2, metadata=METADATA)
    add_random_head(model, "B", 4, 0, ("A",), memory_norm=False)
    add_random_head(model, "A+B", 5, 1, ("A", "B"))
    add_random_head(model, "P", 2, 0, class_token=False)
    return model


def head_files(model: MemoryCapableViT, folder: Path) -> list[HeadFile]:
    paths = [folder / heads.file_name(name) for name in model.head_names]
    for name, path in zip(model.head_names, paths, strict=True):
        model.save_head(name, path)
    return [heads.load(path) for path in paths]


def assert_same(found, expected) -> None:
    assert [file.metadata for file in found] == [file.metadata for file in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], value) for name, value in other.tensors.items())


def rewrite(path: Path, header: dict[str, str] | None = None, drop: str = "", **more: torch.Tensor) -> None:
    """Write the file again without any check: with another header, without one tensor, with more."""
    contents = tensor_files.read(path)
    tensors = {name: tensor for name, tensor in contents.tensors.items() if name != drop}
    texts = header or contents.header
    checksum = {tensor_files.CHECKSUM_KEY: tensor_files.checksum(tensors | more, texts)}
    save_file(tensors | more, path, texts | checksum)


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> list[HeadFile]:
    return head_files(family_model(), tmp_path_factory.mktemp("family"))


@pytest.fixture
def merged(family, tmp_path) -> Path:
    return heads.save_all(tmp_path / "all.safetensors", family)


# ---------------------------------------------------------------------------------------------------------- round trip
def test_all_heads_come_back_bit_for_bit_in_their_order(merged, family):
    assert_same(heads.load_all(merged), family)
    assert heads.read_all_metadata(merged) == [file.metadata for file in family]
    assert [file.name for file in merged.parent.iterdir()] == ["all.safetensors"]


def test_what_is_in_the_file(merged, family):
    with safe_open(merged, framework="pt") as file:
        names, header = set(file.keys()), file.metadata()
    assert set(header) == {"heads", "sha256"}
    assert [metadata["name"] for metadata in json.loads(header["heads"])] == ["A", "B", "A+B", "P"]
    assert names == {
        "A.class_token", "A.memory", "A.classifier.weight", "A.classifier.bias",
        "B.class_token", "B.classifier.weight", "B.classifier.bias",
        "A+B.class_token", "A+B.memory", "A+B.classifier.weight", "A+B.classifier.bias",
        "P.classifier.weight", "P.classifier.bias",
    }  # fmt: skip


def test_a_file_with_one_head_reads_as_a_list_of_one(family, tmp_path):
    path = heads.save(tmp_path / "A_model.safetensors", family[0].tensors, family[0].metadata)
    assert_same(heads.load_all(path), family[:1])
    assert heads.read_all_metadata(path) == [family[0].metadata]
    listed = heads.save_all(tmp_path / "one.safetensors", family[:1])
    assert_same([heads.load(listed)], family[:1])
    assert heads.read_metadata(listed) == family[0].metadata


def test_values_that_are_not_finite_are_refused_by_the_name_of_their_head(merged):
    rewrite(merged, **{"A.class_token": torch.full((32,), torch.nan)})
    with pytest.raises(ValueError, match=r"A in .*all.safetensors has values that are not finite in class_token"):
        heads.load_all(merged)


# ------------------------------------------------------------------------------------------------------ what is refused
def test_one_head_is_not_taken_from_a_file_of_several(merged):
    message = r"all.safetensors holds 4 heads \(A, B, A\+B, P\): load them all with load_heads, or split the file\.$"
    for read in (heads.load, heads.read_metadata, tiny_model().load_head):
        with pytest.raises(ValueError, match=message):
            read(merged)


def test_a_parent_has_to_stand_before_its_children(family, tmp_path):
    path = tmp_path / "all.safetensors"
    with pytest.raises(ValueError) as caught:
        heads.save_all(path, [family[2], family[0], family[1]])
    assert str(caught.value) == (f"{path} cannot hold these heads: A+B extends A, B, which has to stand before it.")
    assert not path.exists()


def test_two_heads_of_one_name_cannot_be_in_a_file(family, tmp_path):
    with pytest.raises(ValueError, match=r"cannot hold these heads: two of them are called P\.$"):
        heads.save_all(tmp_path / "all.safetensors", [family[3], family[0], family[3]])


def test_each_head_is_checked_before_anything_is_written(family, merged, tmp_path):
    before = merged.read_bytes()
    unfit = HeadFile({**family[0].tensors, "class_token": torch.zeros(31)}, family[0].metadata)
    with pytest.raises(ValueError, match=r"A in .*all.safetensors holds tensors that do not fit .* found \(31,\)"):
        heads.save_all(merged, [family[3], unfit])
    assert merged.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[{", "has a damaged header: "),
        ("[]", "has a damaged header: expected a JSON object for each head, got none"),
        ('["A"]', "has a damaged header: expected a JSON object for each head, got str"),
        ('[{"name": "A"}]', "has head format version None"),
        ('[{"name": "A", "format_version": 1}]', "is not complete: its metadata lacks base"),
    ],
)
def test_a_damaged_header(merged, header, message):
    rewrite(merged, {"heads": header})
    for read in (heads.load_all, heads.read_all_metadata):
        with pytest.raises(ValueError, match=message) as caught:
            read(merged)
        assert str(merged) in str(caught.value)


def test_a_header_with_a_name_twice(merged, family):
    rewrite(merged, {"heads": json.dumps([family[0].metadata, family[0].metadata])})
    with pytest.raises(ValueError, match="has a damaged header: several heads have one name"):
        heads.read_all_metadata(merged)


def test_a_tensor_that_is_missing_is_named_with_its_head(merged):
    rewrite(merged, drop="A+B.memory")
    with pytest.raises(ValueError, match=r"A\+B in .*memory: found nothing, expected \(3, 1, 32\)"):
        heads.load_all(merged)


def test_a_tensor_of_no_head_is_an_error(merged):
    rewrite(merged, **{"Z.class_token": torch.zeros(32), "class_token": torch.zeros(32)})
    with pytest.raises(ValueError, match=r"holds tensors of no head in it: Z.class_token, class_token\.$"):
        heads.load_all(merged)


# ---------------------------------------------------------------------------------------------------------- in a model
def test_load_heads_adds_all_of_them_frozen(merged):
    model, expected = tiny_model(), family_model()
    assert model.load_heads(merged) == model.head_names == ["A", "B", "A+B", "P"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    found, wanted = model(images()), expected(images())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].logits, wanted[name].logits) for name in wanted)
    assert model.heads["A"].spec.metadata == METADATA


def test_load_heads_takes_a_file_with_one_head_too(family, tmp_path):
    path = heads.save(tmp_path / "A_model.safetensors", family[0].tensors, family[0].metadata)
    model = tiny_model()
    assert model.load_heads(path) == ["A"]


def test_a_head_that_was_read_before_loads_without_its_file(family):
    model = tiny_model()
    assert model.load_head(family[0]) == "A"
    with pytest.raises(ValueError, match=r"^A\+B extends the head B, which is not loaded\. Load that one's file first"):
        model.load_head(family[2])


def test_parents_may_be_in_the_model_already(family, tmp_path):
    path = heads.save_all(tmp_path / "children.safetensors", family[1:3])
    model = tiny_model()
    with pytest.raises(ValueError, match="extends the head A, which is not loaded"):
        model.load_heads(path)
    assert model.head_names == []
    model.load_head(family[0])
    assert model.load_heads(path) == ["B", "A+B"]


@pytest.mark.parametrize("taken", ["P", "A+B"])
def test_if_one_is_refused_none_is_added(merged, taken):
    model = tiny_model()
    add_random_head(model, taken, 3, 1)
    before = model(images())
    with pytest.raises(ValueError, match=f"There is a head {taken} already".replace("+", r"\+")):
        model.load_heads(merged)
    assert model.head_names == [taken]
    assert torch.equal(model(images())[taken].logits, before[taken].logits)


def test_all_are_refused_on_another_base(merged):
    model = tiny_model(seed=1)
    with pytest.raises(ValueError, match="A was trained on another base"):
        model.load_heads(merged)
    assert model.head_names == []


# ------------------------------------------------------------------------------------------------- order never matters
def exact_model() -> MemoryCapableViT:
    """In float64, with an attention that stays in it (HuggingFace's eager one takes its softmax in float32)."""
    return tiny_model(dtype=torch.float64, attn_implementation="sdpa")


@settings(max_examples=10, deadline=None)
@given(forest=forests(), shuffle=st.randoms(use_true_random=False))
def test_heads_of_files_in_any_order_answer_as_they_did(forest, shuffle: random.Random):
    """Some in files of their own, some several in a file; merged in any order, taken apart, saved with the model."""
    trained = build(forest, exact_model())
    pixels = images(dtype=torch.float64)
    expected = trained(pixels)

    def largest_difference(model: MemoryCapableViT) -> float:
        answers = model(pixels)
        assert answers.keys() == expected.keys()
        return max(difference(answers[name].logits, expected[name].logits) for name in expected)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = head_files(trained, folder / "alone")
        several = [file for file in files if shuffle.random() < 0.5]
        groups = [several] * bool(several) + [[file] for file in files if not any(file is other for other in several)]
        paths = [heads.save_all(folder / f"{number}.safetensors", group) for number, group in enumerate(groups)]
        shuffle.shuffle(paths)
        everything = folder / "all.safetensors"
        merge(MergeOptions(files=tuple(map(str, paths)), output=everything, models_folder=folder))
        together = exact_model()
        together.load_heads(everything)
        assert largest_difference(together) <= 1e-9

        split(SplitOptions(file=str(everything), output=folder / "split"))
        paths = [folder / "split" / heads.file_name(head) for head in trained.head_names]
        assert_same([heads.load(path) for path in paths], files)
        assert sorted(paths) == sorted((folder / "split").iterdir())

        together.save_pretrained(folder / "model")
        again = MemoryCapableViT.from_pretrained(folder / "model", dtype=torch.float64)
        assert again.head_names == together.head_names
        assert largest_difference(again) <= 1e-9


def test_no_heads_are_no_file(tmp_path):
    with pytest.raises(ValueError, match="would hold no head: give at least one"):
        heads.save_all(tmp_path / "all.safetensors", [])


def test_a_file_is_not_called_as_those_of_2023(tmp_path, family):
    for write in (lambda path: heads.save_all(path, family), lambda path: heads.save(path, *vars(family[0]).values())):
        with pytest.raises(ValueError, match=r"ends as a file of the 2023 implementation: call it all\.safetensors\."):
            write(tmp_path / "all.pt")
    assert list(tmp_path.iterdir()) == []


def test_heads_that_share_their_storage_are_written(tmp_path, family):
    twin = HeadFile(family[0].tensors, {**family[0].metadata, "name": "Twin"})
    path = heads.save_all(tmp_path / "all.safetensors", [family[0], twin])
    assert_same(heads.load_all(path), [family[0], twin])


def test_an_object_instead_of_a_list_is_a_damaged_header(tmp_path, family):
    path = heads.save_all(tmp_path / "all.safetensors", family[:1])
    rewrite(path, {heads.SEVERAL_KEY: json.dumps(family[0].metadata)})
    with pytest.raises(ValueError, match="expected a JSON object for each head, got dict"):
        heads.load_all(path)
