"""Heads with low-rank weights through training and the command lines: cache, resume, grid, extension, serving."""

import copy
import functools
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vit_predict
import vit_train
from command_lines import QUICK, rows_of, same_tensors, validate
from command_lines import train as train_command
from feature_caches import COUNT, built
from interruptions import Killed, at_call, kill
from learnable_memory import heads
from learnable_memory import train as training
from learnable_memory.features import CachedLoader
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.optim import Recipe
from learnable_memory.projections import PROJECTIONS
from learnable_memory.train import train
from oracle import joint_logits
from process_groups import assert_same_head, launch
from tiny import add_random_head, images, tiny_model
from toy_training import PREPROCESSING, difference, fit, select_loader
from toy_training import colours as picture_set
from vit import BaseTokens, MemoryCapableViT

KINDS = {
    "plain": 0,
    "A": 1,
    "B": 3,
    "C": {"query": 2, "mlp_out": 3},
    "D": {"key": 1, "value": 2},
    "E": dict.fromkeys(PROJECTIONS, 2),
}


def untrained(**changes) -> MemoryCapableViT:
    """A head of each kind, of one to three cells."""
    model = tiny_model(**changes)
    for number, (name, rank) in enumerate(KINDS.items()):
        model.add_head(name, 3, 1 + number % 3, rank=rank, generator=torch.Generator().manual_seed(number))
    return model


def ranked(path) -> dict[str, int]:
    return heads.read_metadata(path)["low_rank"]


# ------------------------------------------------------------------------------------------------------------ training
def trained(source: str, folder=None, form: str = "keys_values") -> dict[str, torch.Tensor]:
    """All heads after three epochs; `source`: none, memory or disk."""
    model, loaders = untrained(num_hidden_layers=2), []
    for image_set, kind in ((picture_set(COUNT), "crop_flip"), (picture_set(9, seed=1), None)):
        batches = EpochBatches(len(image_set), 5, 0, shuffle=kind is not None, views=1)
        if source == "none":
            transform = PREPROCESSING.train_transform(kind) if kind else PREPROCESSING.eval_transform()
            loaders.append(make_loader(image_set, transform, batch_sampler=batches))
        else:
            cache = built(model, image_set, 1, folder, kind, form=form)
            loaders.append(CachedLoader(cache, image_set, batches, BaseTokens, torch.float32))
    train(model, list(KINDS), *loaders, Recipe(2, 0.05), progress=False)
    return dict(model.heads.state_dict())


from_pixels = functools.cache(functools.partial(trained, "none"))


@pytest.mark.parametrize(
    ("source", "form", "bound"), [("memory", "keys_values", 0), ("disk", "keys_values", 0), ("memory", "tokens", 1e-5)]
)
def test_from_a_cache_as_from_pixels(source, form, bound, tmp_path):
    found, expected = trained(source, tmp_path if source == "disk" else None, form), from_pixels()
    assert sum(".low_rank." in name for name in expected) == 2 * (4 + 4 + 2 + 2 + 6)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= bound, name
        if name.endswith(".up"):
            assert value.any(), name  # it is zero before it has learned


@pytest.mark.parametrize(
    ("changes", "rates", "tolerance", "compared"),
    [
        ({"dtype": torch.float64, "attn_implementation": "sdpa"}, (0.01, 0.03, 0.1, 0.3, 0.3, 0.1), 1e-9, "BE"),
        pytest.param({}, (0.01, 0.03, 0.03, 0.01, 0.03, 0.01), 1e-6, KINDS, marks=pytest.mark.slow),
        pytest.param({}, (0.3, 0.3, 0.3, 0.3, 0.1, 0.3), 1e-4, KINDS, marks=pytest.mark.slow),
    ],
    ids=["float64", "float32 up to 0.03", "float32 up to 0.3"],
)
def test_all_ranks_in_one_pass_as_each_alone(after_each_epoch, changes, rates, tolerance, compared):
    """50 steps, as of plain heads: one epoch's weights are as good as another's to compare, so the last ones are."""
    recipes = {name: Recipe(epochs=9, lr=rate, max_steps=50) for name, rate in zip(KINDS, rates, strict=True)}
    after_each_epoch.accuracies = [epoch / 9 for epoch in range(9)] * (len(KINDS) + 1)
    together = untrained(num_hidden_layers=2, **changes)
    start = copy.deepcopy(together.heads)
    fit(together, list(KINDS), recipes, select=select_loader(3))
    for name in compared:
        alone = untrained(num_hidden_layers=2, **changes)
        fit(alone, [name], recipes[name], select=select_loader(3))
        assert difference(together.heads[name], alone.heads[name]) < tolerance, name
        for update in together.heads[name].low_rank.values():
            assert update.up.abs().max() > 100 * tolerance
        assert difference(together.heads[name], start[name]) > 100 * tolerance


def test_a_head_that_diverges_leaves_those_of_its_rank_alone():
    recipes = {"A": Recipe(1, 0.03), "E": Recipe(1, 1e38), "C": Recipe(1, 0.03)}
    model, without = untrained(), untrained()
    best = fit(model, list(recipes), recipes)
    fit(without, ["A", "C"], {name: recipes[name] for name in "AC"})
    assert best["E"].diverged_at == 2 and best["A"].diverged_at is best["C"].diverged_at is None
    assert max(difference(model.heads[name], without.heads[name]) for name in "AC") < 1e-6


# ----------------------------------------------------------------------------------------------------- vit_train.py
GRID = ("--rank", 0, 2, 3, "--rank_of", "query", "key", "mlp_out", "-m", 2, "--lr", 0.3, "-e", 2, "--keep_all")


def flags_of(base, colours, output, *more) -> list[str]:
    return [*QUICK, *map(str, ("--base_model", base, "-d", f"folder:{colours}", "--output", output, *GRID, *more))]


@pytest.fixture(scope="module")
def whole(base, colours, tmp_path_factory):
    """The folder of a grid of three ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert vit_train.main(flags_of(base, colours, folder)) == 0
    return folder


def cells_of(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*_model.safetensors"))


def test_a_grid_of_ranks_names_and_writes_each(whole, base):
    names = [f"colours-m2{rank}_lr0p3_s0" for rank in ("", "-r2", "-r3")]
    assert cells_of(whole) == sorted([*(heads.file_name(name) for name in names), "colours_model.safetensors"])
    found = [ranked(whole / heads.file_name(name)) for name in names]
    assert found == [{}, *(dict.fromkeys(("query", "key", "mlp_out"), rank) for rank in (2, 3))]
    grid = json.loads((whole / "colours_grid.json").read_text())
    assert [(cell["rank"], cell["head"]) for cell in grid["cells"]] == list(zip((0, 2, 3), names, strict=True))
    plain, *others = (cell["parameters"] for cell in grid["cells"])
    assert [count - plain for count in others] == [3 * rank * (64 + 64 + 96) for rank in (2, 3)]
    best = next(cell for cell in grid["cells"] if cell["head"] == grid["best"])
    assert set(ranked(whole / "colours_model.safetensors").values()) == ({best["rank"]} - {0})


@pytest.mark.slow
def test_each_cell_is_the_head_that_it_would_be_alone(whole, base, colours, tmp_path):
    for rank in (2, 3):
        train_command(base, tmp_path / str(rank), *flags_of(base, colours, tmp_path / str(rank), "--rank", rank))
        alone = heads.load(tmp_path / str(rank) / "colours_model.safetensors").tensors
        together = heads.load(whole / f"colours-m2-r{rank}_lr0p3_s0_model.safetensors").tensors
        assert together.keys() == alone.keys() and sum(name.startswith("low_rank.") for name in alone) == 6
        assert max((together[name] - value).abs().max() for name, value in alone.items()) < 1e-4


@pytest.mark.parametrize("step", [9, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_resumed_as_undisturbed(whole, base, colours, tmp_path, monkeypatch, step):
    flags = flags_of(base, colours, tmp_path, "--checkpoint_steps", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [step], kill)
        vit_train.main(flags)
    assert not cells_of(tmp_path)
    assert vit_train.main([*flags, "--resume"]) == 0
    assert cells_of(tmp_path) == cells_of(whole)
    assert all(same_tensors(tmp_path / name, whole / name) for name in cells_of(whole))


def test_a_run_does_not_go_on_with_other_ranks(base, colours, tmp_path, monkeypatch):
    flags = flags_of(base, colours, tmp_path, "--checkpoint_steps", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [3], kill)
        vit_train.main(flags)
    for change in (("--rank", "0", "2"), ("--rank_of", "query")):
        with pytest.raises(ValueError, match=f"--resume needs the options of the run in .*: {change[0]} differ"):
            vit_train.main([*flags, "--resume", *change])


@pytest.mark.slow
def test_a_cache_changes_nothing(whole, base, colours, tmp_path):
    for folder, cache in (("none", ("--views", 1)), ("memory", ("--cache", "memory")), ("disk", ("--cache", "disk"))):
        where = ("--cache_folder", tmp_path / "cache") if folder == "disk" else ()
        assert vit_train.main(flags_of(base, colours, tmp_path / folder, *cache, *where)) == 0
    for folder in ("memory", "disk"):
        for name in cells_of(whole):
            assert same_tensors(tmp_path / folder / name, tmp_path / "none" / name), (folder, name)


@pytest.mark.slow
def test_two_processes_train_the_heads_of_one(whole, base, colours, tmp_path):
    launch(flags_of(base, colours, tmp_path))
    assert cells_of(tmp_path) == cells_of(whole)
    for name in cells_of(whole):
        assert_same_head(tmp_path / name, whole / name)


# ---------------------------------------------------------------------------------------------------------- extension
def test_a_ranked_child_of_a_ranked_parent_is_the_oracles(whole, base, brightness, tmp_path):
    parent = whole / "colours-m2-r3_lr0p3_s0_model.safetensors"
    before = parent.read_bytes()
    child = ("-m", "1", "--rank", "2", "--rank_of", "value", "output", "-e", "2", "--lr", "0.3")
    train_command(base, tmp_path, "-d", f"folder:{brightness}", *child, "--extends", str(parent))
    assert parent.read_bytes() == before
    path = tmp_path / "brightness_model.safetensors"
    model = MemoryCapableViT.from_pretrained(base, attn_implementation="sdpa")
    for each in (parent, path):  # which refuses parents of another hash
        model.load_head(each)
    assert set(ranked(path)) == {"value", "output"} and set(ranked(parent)) == {"query", "key", "mlp_out"}
    model, pixels = model.double(), images(dtype=torch.float64)
    with torch.no_grad():
        expected, found = joint_logits(model, pixels), model(pixels)
    assert expected.keys() == found.keys() and len(found) == 3
    assert all(torch.allclose(found[name].logits, expected[name], rtol=0, atol=1e-9) for name in found)


def test_another_rank_of_the_parent_is_another_parent(base, tmp_path):
    model = MemoryCapableViT.from_pretrained(base)
    add_random_head(model, "A", 3, 1, rank=2)
    add_random_head(model, "B", 3, 1, extends=("A",))
    model.save_head("B", tmp_path / "B.safetensors")
    with torch.no_grad():
        model.heads["A"].low_rank["mlp_in"].up[2, 5, 1] += 1
    model.save_head("A", tmp_path / "A.safetensors")
    other = MemoryCapableViT.from_pretrained(base)
    other.load_head(tmp_path / "A.safetensors")
    with pytest.raises(ValueError, match="extends the head A, which is loaded, but is not the one"):
        other.load_head(tmp_path / "B.safetensors")


# ---------------------------------------------------------------------------------- vit_validation.py, vit_predict.py
@pytest.fixture(scope="module")
def mixed(whole, base, colours, tmp_path_factory):
    """A folder with heads of rank 0, 2 and 3 and, in a file of format version 1, one that knows no ranks."""
    folder = tmp_path_factory.mktemp("mixed")
    for rank, name in (("", "zero"), ("-r2", "two"), ("-r3", "three")):
        file = heads.load(whole / f"colours-m2{rank}_lr0p3_s0_model.safetensors")
        heads.save(folder / heads.file_name(name), file.tensors, {**file.metadata, "name": name})
    file = heads.load(folder / "zero_model.safetensors")
    kept = {key: value for key, value in file.metadata.items() if key not in ("low_rank", "intermediate_size")}
    header = {"head": json.dumps({**kept, "format_version": 1, "name": "old"})}
    save_file(file.tensors, folder / "old_model.safetensors", header)
    return folder


def test_validation_of_all_together_as_of_each_alone(mixed, colours, capsys):
    names, data = ["two", "old", "three", "zero"], ("--datasets", f"folder:{colours}")
    validate(mixed, "-m", *names, *data)
    together = rows_of(capsys.readouterr().out)
    assert list(together) == names
    assert [row.pop("rank") for row in together.values()] == ["2", "0", "3", "0"]
    for name in names:
        validate(mixed, "-m", name, *data)
        alone = rows_of(capsys.readouterr().out)[name]
        assert (alone.pop("rank", None) is None) == (name in ("old", "zero"))  # a column only where there is a rank
        assert alone == together[name]
        assert together[name]["against the file"] == "+0.00"
    assert {**together["old"], "head": "zero"} == together["zero"]


def test_predictions_are_those_of_the_model(mixed, base, colours, capsys):
    names, photo = ["three", "old", "two"], colours / "green" / "3.png"
    capsys.readouterr()
    assert vit_predict.main([str(photo), "--heads", *names, "--json", "--models_folder", str(mixed), *QUICK[:2]]) == 0
    (line,) = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    model = MemoryCapableViT.from_pretrained(base)
    for name in names:
        model.load_head(mixed / heads.file_name(name))
    with Image.open(photo) as image, torch.no_grad():
        answers = model(PREPROCESSING.eval_transform()(image)[None], names)
    assert list(line["heads"]) == names
    for name in names:
        expected = answers[name].logits[0].softmax(-1).sort(descending=True).values
        said = [each["probability"] for each in line["heads"][name]]
        assert said == pytest.approx(expected.tolist()[: len(said)], abs=1e-5) and len(said) == 3
