"""Several processes that share each batch end where one process ends; and trackers get what the log gets."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import torch

import vit_train
from command_lines import QUICK
from learnable_memory import heads
from learnable_memory.commands import processes as starting
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions
from learnable_memory.grid import Cell
from learnable_memory.method_spec import MethodSpec
from learnable_memory.optim import HeadOptimizer, Recipe
from learnable_memory.runlog import read_metrics
from learnable_memory.train_step import average_over_processes, train_step
from process_groups import ROOT, Other, assert_same_head, environment, launch
from tiny import add_random_head, images, tiny_model
from toy_training import train_loader


# -------------------------------------------------------------------------------------------- one step, in process
def two_heads():
    model = tiny_model(dtype=torch.float64)
    for name, cells in (("A", 2), ("B", 0)):
        add_random_head(model, name, 3, cells)
    model.train_only(["A", "B"])
    return model, {name: HeadOptimizer(model.heads[name].parameters(), Recipe(), 10) for name in "AB"}


def backward(model, pixel_values, labels):
    """The mean losses [2] of both heads, whose gradients lie on the parameters afterwards."""
    outputs = model(pixel_values, heads=["A", "B"], with_base=False, labels=dict.fromkeys("AB", labels))
    losses = torch.stack([outputs[name].loss for name in "AB"])
    losses.sum().backward()
    return losses.detach()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def batch():
    pixel_values, labels = next(iter(train_loader(5, 5)))
    return pixel_values.double(), labels


@pytest.mark.parametrize("mine", [4, 3, 5], ids=["4+1", "3+2", "5+0"])
def test_the_average_is_the_gradient_of_the_whole_batch(batch, mine):
    pixel_values, labels = batch
    model, _ = two_heads()
    expected_losses = backward(model, pixel_values, labels)
    expected = gradients(model)

    # What the other process sends: where it has no image, it has no gradient either, and that must count as nothing.
    model, optimizers = two_heads()
    rest, other = len(labels) - mine, Other()
    losses = backward(model, pixel_values[mine:], labels[mine:]) if rest else expected_losses.new_zeros(2)
    if rest:
        average_over_processes(other, optimizers, losses, [rest, rest], False)
    else:
        average_over_processes(other, optimizers, losses, [0, 0], False)
        assert not other.sent.any()

    model, optimizers = two_heads()
    losses = backward(model, pixel_values[:mine], labels[:mine])
    found_losses, images, stop = average_over_processes(Other(other.sent), optimizers, losses, [mine, mine], False)
    assert images == [5, 5]
    assert torch.allclose(found_losses, expected_losses, rtol=0, atol=1e-12)
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-12) for name, value in expected.items())
    assert any(value.abs().max() > 1e-3 for value in expected.values())
    assert stop is False


@pytest.mark.parametrize(("ours", "theirs"), [(True, 0.0), (False, 1.0), (True, 1.0)])
def test_all_processes_stop_if_one_has_to(batch, ours, theirs):
    model, optimizers = two_heads()
    rows, stop = train_step(model, optimizers, batch, Other([5.0, 5.0, theirs]), ours)
    assert stop is True and rows.keys() == {"A", "B"}


def test_a_process_without_an_image_makes_the_same_step(batch):
    model, optimizers = two_heads()
    sender = Other()
    train_step(model, optimizers, batch, sender)
    idle, optimizers = two_heads()
    before = {name: value.clone() for name, value in idle.heads.state_dict().items()}
    rows, stop = train_step(idle, optimizers, None, Other(sender.sent))
    assert stop is False
    left = idle.heads.state_dict()
    assert all(torch.equal(left[name], value) for name, value in model.heads.state_dict().items())
    assert not any(torch.equal(left[name], value) for name, value in before.items())
    assert all(row["train/loss"] > 0 for row in rows.values())


def test_a_head_that_diverges_in_the_other_process_makes_no_step_here(batch):
    model, optimizers = two_heads()
    before = {name: value.clone() for name, value in model.heads.state_dict().items()}
    # loss of A, loss of B, images of each, stop
    rows, _ = train_step(model, optimizers, batch, Other([0.0, float("nan"), 5.0, 5.0, 0.0]))
    assert rows["B"]["train/loss"] != rows["B"]["train/loss"] and rows["A"]["train/loss"] > 0
    changed = {name for name, value in model.heads.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("A.")}


def test_processes_begin_alike_and_drop_other_prompts(base):
    options = TrainOptions(dataset="Digits", base_model=str(base), device="cpu", no_download=True)

    def network(process):
        cell = Cell(MethodSpec("vpt-deep", 8, prompt_dropout=0.5), 0.1, seed=0)
        model = TrainingBase(options, processes=2, process=process).model({"x": cell}, num_labels=3)
        answers = [model(images(), ["x"])["x"].logits for _ in range(2)]
        return model.heads["x"].state_dict(), answers

    (first, dropped), (second, otherwise), (third, as_before) = (network(process) for process in (0, 1, 0))
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in first)
    assert torch.equal(dropped[0], as_before[0]) and torch.equal(dropped[1], as_before[1])
    assert not any(torch.equal(one, other) for one in dropped for other in otherwise)


# ----------------------------------------------------------------------------------------------------- how they start
def test_one_process_without_a_tracker_needs_no_accelerator(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert starting.start_accelerator(TrainOptions(dataset="Digits")) is None


def test_a_batch_smaller_than_the_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = "--batch_size is 3, the images of one step over all 4 processes: each needs one at least"
    with pytest.raises(ValueError, match=message):
        starting.start_accelerator(TrainOptions(dataset="Digits", batch_size=3))


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused(monkeypatch, tracker):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == tracker else find(name, *rest))
    with pytest.raises(ValueError, match=f"--log_with {tracker} needs the package {tracker}: pip install {tracker}"):
        starting.start_accelerator(TrainOptions(dataset="Digits", log_with=(tracker,)))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match="log_with"):
        TrainOptions(dataset="Digits", log_with=("crayon",))


# ---------------------------------------------------------------------------------------------------- two processes
def flags_of(base, colours, output, *more):
    flags = ["--base_model", base, "-d", f"folder:{colours}", "--output", output, "-e", "3", "--lr", "0.3", *more]
    return [*QUICK, *map(str, flags)]


def rows_of(folder):
    return read_metrics(folder / "colours_run" / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "more"),
    [
        (8, ()),
        (41, ()),
        (5, ()),
        (8, ("--cache", "disk", "--views", "2")),
        (8, ("--method", "full")),
        (8, ("--method", "vpt-deep")),
    ],
    # 42 images to train on, 6 to choose on, 12 to report on
    ids=[
        "the last batch has 2", "the last batch has 1", "of select the last batch has 1", "cache on disk", "full",
        "vpt-deep",
    ],
)  # fmt: skip
def test_two_processes_train_the_head_of_one(tmp_path, base, colours, batch_size, more):
    def flags(name):
        folder = ("--cache_folder", tmp_path / name / "cache") if "--cache" in more else ()
        return flags_of(base, colours, tmp_path / name, "--batch_size", batch_size, *more, *folder)

    assert vit_train.main(flags("one")) == 0
    done = launch(flags("two"))
    assert done.stdout.count("colours: top-1") == 1  # only the main process speaks
    assert_same_head(*(tmp_path / name / "colours_model.safetensors" for name in ("two", "one")))
    found, expected = rows_of(tmp_path / "two"), rows_of(tmp_path / "one")
    assert [(row["step"], row["epoch"], row.keys()) for row in found] == [
        (row["step"], row["epoch"], row.keys()) for row in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("train/loss", "train/gradient_norm", "train/lr", "select/loss"):
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-5)
    if "--cache" in more:
        files = [
            {path.relative_to(tmp_path / name): path.stat().st_size for path in (tmp_path / name).rglob("*.bin")}
            for name in ("two", "one")
        ]
        assert files[0] == files[1] and len(files[0]) == 3  # two views of train, one of select


@pytest.mark.slow
def test_two_processes_and_a_rate_that_diverges(tmp_path, base, colours):
    grid = ("--lr", "0.3", "1e38", "--keep_all")
    assert vit_train.main(flags_of(base, colours, tmp_path / "one", *grid)) == 0
    launch(flags_of(base, colours, tmp_path / "two", *grid))
    assert_same_head(*(tmp_path / name / "colours_model.safetensors" for name in ("two", "one")))
    found, expected = (json.loads((tmp_path / name / "colours_grid.json").read_text()) for name in ("two", "one"))
    assert found["best"] == expected["best"]
    diverged = [[cell["diverged_at"] for cell in each["cells"]] for each in (found, expected)]
    assert diverged[0] == diverged[1] and sum(step is not None for step in diverged[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("gone", [False, True])
def test_two_processes_leave_out_what_the_main_one_finds_broken(tmp_path, base, colours, gone):
    photos = tmp_path / "colours"
    shutil.copytree(colours, photos)
    for name in ("blue/3.png", "red/7.png"):
        (photos / name).write_bytes(b"")
    flags = ("--on_bad_image", "skip", "--data_seeds", "0", "1")
    if gone:  # a fault of the machine: the main process must not leave the other one waiting
        target = photos / "green" / "5.png"
        target.unlink()
        target.symlink_to(tmp_path / "nowhere")
        with pytest.raises(AssertionError, match="No such file"):
            launch(flags_of(base, photos, tmp_path / "two", *flags))
        return
    assert vit_train.main(flags_of(base, photos, tmp_path / "one", *flags)) == 0
    done = launch(flags_of(base, photos, tmp_path / "two", *flags))
    assert_same_head(*(tmp_path / name / "colours_model.safetensors" for name in ("two", "one")))
    left_out = heads.load(tmp_path / "two" / "colours_model.safetensors").metadata["dataset"]["left_out"]
    assert sum(role["images"] for role in left_out.values()) == 2
    assert done.stderr.count("cannot be read and are left out") <= 2 * 3  # the main process alone says it


@pytest.mark.slow
def test_an_error_of_two_processes_ends_both(tmp_path, base, colours):
    """One process would allow it: so this also shows that `launch` starts two, and the tests above compare anything."""
    with pytest.raises(AssertionError, match="--cache memory would be held by each process"):
        launch(flags_of(base, colours, tmp_path, "--cache", "memory"))


# -------------------------------------------------------------------------------------------------------- trackers
@pytest.mark.slow
def test_tensorboard_gets_what_the_log_gets(tmp_path, base, colours):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # a process of its own: accelerate keeps its state for as long as one lives
    command = [sys.executable, str(ROOT / "vit_train.py"), *flags_of(base, colours, tmp_path, "--log_with=tensorboard")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(tmp_path)
    scalars: dict[str, dict[int, float]] = {}
    for file in tmp_path.rglob("*tfevents*"):
        events = accumulator.EventAccumulator(str(file), size_guidance={accumulator.SCALARS: 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    for key in ("select/top1", "train/loss", "eval/top1"):
        expected = {row["step"]: row[key] for row in rows if key in row}
        assert expected and scalars[key] == pytest.approx(expected, abs=1e-6)
