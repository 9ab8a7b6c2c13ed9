"""`vit_train.py --folds`: what it leaves, how the best of a grid is chosen, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch

import vit_train
from command_lines import train, validate
from interruptions import Killed, at_call, kill
from learnable_memory import heads, out_of_fold
from learnable_memory import train as training
from learnable_memory.grid import Outcome
from learnable_memory.optim import HeadOptimizers
from test_resume import fails, flags_of

GRID = ("--lr", "0.0001", "0.3", "--rank", "0", "2", "--folds", "3", "-e", "3")


@pytest.fixture(scope="module")
def crossed(base, colours, tmp_path_factory):
    """Four cells, of which two learn nothing, cross-validated in three folds."""
    folder = tmp_path_factory.mktemp("crossed")
    train(base, folder, "-d", f"folder:{colours}", *GRID, "--keep_all")
    return folder


def cells_of(folder) -> list[Outcome]:
    record = json.loads((folder / "colours_grid.json").read_text(encoding="utf-8"))
    return [Outcome.from_row(row) for row in record["cells"]]


def test_every_training_image_is_predicted_and_nothing_is_held_out_to_choose_on(crossed):
    found = out_of_fold.load(crossed / "colours_out_of_fold.json")
    head = heads.load(crossed / "colours_model.safetensors").metadata
    assert (found.head, found.folds, found.labels) == ("colours", 3, ["blue", "green", "red"])
    # of 20 images of each of 3 classes a fifth is held out to report on, and of the other 48 none to choose on
    assert len(found) == len(set(found.image)) == 48
    assert head["dataset"]["splits"]["train"]["images"] == 48 and head["dataset"]["folds"] == 3
    assert found.dataset["splits"] == head["dataset"]["splits"]
    for fold in range(3):
        counts = np.bincount(found.label[found.fold == fold], minlength=3)
        assert counts.min() >= 5 and counts.sum() == 16
    right = (found.predicted == found.label).mean()
    assert head["metrics"]["select"]["top1"] == pytest.approx(right)
    assert [fold["images"] for fold in head["metrics"]["folds"]] == [16, 16, 16]
    assert head["metrics"]["epoch"] == 3 and "folds" in head["training"]


def test_the_best_of_the_grid_is_the_best_out_of_fold(crossed):
    cells = cells_of(crossed)
    assert len(cells) == 4
    for cell in cells:
        tops = [fold["top1"] for fold in cell.folds]
        assert cell.select["top1"] == pytest.approx(np.mean(tops))  # folds of the same size
        assert cell.heads_in_pass == 16
    best = max(cells, key=lambda cell: (cell.select["top1"], -cell.select["loss"]))
    assert best.cell.lr == 0.3 and best.select["top1"] > min(cell.select["top1"] for cell in cells)
    chosen = heads.load(crossed / "colours_model.safetensors")
    of_cell = heads.load(crossed / f"{best.head}_model.safetensors")
    assert all(torch.equal(chosen.tensors[name], tensor) for name, tensor in of_cell.tensors.items())


def test_the_run_folder_keeps_nothing_that_is_of_no_use(crossed):
    assert sorted(path.name for path in (crossed / "colours_run").iterdir()) == ["metrics.jsonl", "options.json"]
    assert not list(crossed.glob("*-f0*"))


def test_the_head_that_is_kept_is_evaluated_as_any_other(crossed, capsys):
    capsys.readouterr()
    validate(crossed, "-m", "colours")
    assert "+0.00" in capsys.readouterr().out


@pytest.mark.slow
def test_a_single_head_has_curves_and_predictions(base, colours, tmp_path, capsys):
    train(base, tmp_path, "-d", f"folder:{colours}", "--folds", "2", "-e", "2", "--cache", "memory", "--ema", "0.5")
    assert (tmp_path / "colours_curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    found = out_of_fold.load(tmp_path / "colours_out_of_fold.json")
    assert len(found) == 48
    printed = capsys.readouterr().out
    assert f"out-of-fold top-1 {(found.predicted == found.label).mean():.4f}, sd over 2 folds" in printed
    assert str(tmp_path / "colours_out_of_fold.json") in printed


@pytest.mark.slow
def test_a_cross_validated_run_goes_on_where_it_was(base, colours, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ("--folds", "2", "--checkpoint_steps", "1")
    assert vit_train.main(flags_of(base, colours, whole, *flags)) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [8], kill)
        vit_train.main(flags_of(base, colours, broken, *flags))
    assert vit_train.main(flags_of(base, colours, broken, *flags, "--resume")) == 0
    first, second = (out_of_fold.load(folder / "colours_out_of_fold.json") for folder in (whole, broken))
    assert first.columns() == second.columns()
    one, other = (heads.load(folder / "colours_model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())


@pytest.mark.slow
def test_data_seeds_draw_other_folds(base, colours, tmp_path):
    flags = ("--folds", "2", "-e", "1", "--data_seeds", "0", "1", "--keep_all")
    train(base, tmp_path, "-d", f"folder:{colours}", *flags)
    record = json.loads((tmp_path / "colours_grid.json").read_text(encoding="utf-8"))
    assert [cell["data_seed"] for cell in record["cells"]] == [0, 1]
    # --keep_all keeps the predictions of each, too
    first, second = (
        out_of_fold.load(tmp_path / f"{cell['head']}{out_of_fold.ENDING}") for cell in record["cells"]
    )  # fmt: skip
    assert first.image == second.image and first.fold.tolist() != second.fold.tolist()


@pytest.mark.slow
def test_a_later_run_without_folds_leaves_no_predictions_of_another_head(base, colours, tmp_path):
    train(base, tmp_path, "-d", f"folder:{colours}", "--folds", "2", "-e", "1")
    assert (tmp_path / "colours_out_of_fold.json").exists()
    train(base, tmp_path, "-d", f"folder:{colours}", "-e", "1", "--overwrite")
    assert not (tmp_path / "colours_out_of_fold.json").exists()


@pytest.fixture
def diverging_fold(monkeypatch):
    """Heads whose name ends in -f1, and are of the rate 0.3, get a loss that is not finite in their second step."""
    plain = HeadOptimizers.loss

    def loss(self, name, logits, labels, rows=None):
        found, recipe = plain(self, name, logits, labels, rows), self.recipes[name]
        broken = recipe.held_out == 1 and recipe.lr == 0.3 and self.rate(name) != recipe.lr / 5
        return found * float("nan") if broken else found

    monkeypatch.setattr(HeadOptimizers, "loss", loss)


def test_a_cell_with_a_diverged_fold_has_diverged(base, colours, tmp_path, diverging_fold, caplog):
    train(base, tmp_path, "-d", f"folder:{colours}", "--folds", "3", "-e", "1", "--lr", "0.1", "0.3")
    whole, broken = cells_of(tmp_path)
    assert (whole.cell.lr, whole.diverged_at, broken.diverged_at) == (0.1, None, 2)
    assert broken.diverged and broken.eval is None and broken.folds is None
    assert out_of_fold.load(tmp_path / "colours_out_of_fold.json").folds == 3
    assert any("counts as diverged, for its head without fold 1 has" in message for message in caplog.messages)


def test_a_single_cell_with_a_diverged_fold_is_one_line(base, colours, tmp_path, diverging_fold, capsys):
    line = fails(capsys, flags_of(base, colours, tmp_path, "--folds", "3"))  # its rate is 0.3
    assert "has diverged: lower --lr, and start anew with --overwrite." in line


@pytest.mark.slow
def test_parents_that_have_seen_what_is_held_out_are_named(base, colours, tmp_path, caplog):
    data = f"folder:{colours}"
    train(base, tmp_path, "-d", data, "--name", "parent", "-e", "1")
    train(base, tmp_path, "-d", data, "--name", "plain", "-e", "1", "--extends", "parent")
    assert not any("which --extends builds on" in message for message in caplog.messages)
    train(base, tmp_path, "-d", data, "--name", "child", "-e", "1", "--extends", "parent", "--folds", "2")
    assert any("parent, which --extends builds on, may have learned" in message for message in caplog.messages)
    assert len(out_of_fold.load(tmp_path / "child_out_of_fold.json")) == 48


@pytest.mark.slow
def test_broken_images_are_counted_once(base, colours, tmp_path):
    pictures = shutil.copytree(colours, tmp_path / "colours")
    broken = pictures / out_of_fold_image(base, pictures, tmp_path / "first")
    broken.write_bytes(b"no image")
    train(base, tmp_path, "-d", f"folder:{pictures}", "--folds", "2", "-e", "1", "--on_bad_image", "skip")
    record = heads.load(tmp_path / "colours_model.safetensors").metadata["dataset"]
    assert record["left_out"] == {"train": {"images": 1, "names": [str(broken.relative_to(pictures))]},
                                  "eval": {"images": 0, "names": []}}  # fmt: skip
    assert record["splits"]["train"] == record["splits"]["select"] and record["splits"]["train"]["images"] == 47


def out_of_fold_image(base, pictures, folder) -> str:
    """The name of a training image."""
    train(base, folder, "-d", f"folder:{pictures}", "--folds", "2", "-e", "1")
    return out_of_fold.load(folder / "colours_out_of_fold.json").image[0]


def test_too_many_folds_are_one_line(base, colours, tmp_path, capsys):
    line = fails(capsys, flags_of(base, colours, tmp_path, "--folds", "17"))
    assert "17 folds need a class of at least 17 images, and the largest has 16: take fewer." in line


def test_other_folds_are_no_resumed_run(base, colours, tmp_path, capsys, monkeypatch):
    flags = ("--checkpoint_steps", "1", "--folds")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [3], kill)
        vit_train.main(flags_of(base, colours, tmp_path, *flags, "2"))
    assert "--folds differ" in fails(capsys, flags_of(base, colours, tmp_path, *flags, "3", "--resume"))
