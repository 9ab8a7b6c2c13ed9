"""Interrupted runs: whatever ends a training, going on with it gives the bits of a run that nobody disturbed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import vit_train
from command_lines import QUICK, same_tensors, save_base
from interruptions import Killed, at_call, kill
from learnable_memory import heads, tuned_files
from learnable_memory import train as training
from learnable_memory.checkpoint import Checkpoint, Interrupted
from learnable_memory.commands import run_command
from learnable_memory.commands import train as train_command
from learnable_memory.evaluate import evaluate
from learnable_memory.optim import Recipe
from learnable_memory.runlog import RunLog, read_metrics
from learnable_memory.train import train, train_step
from toy_training import select_loader, toy, train_loader

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, PER_EPOCH = 2, 3  # 12 images in batches of 4
STEPS = EPOCHS * PER_EPOCH
RECIPES = {"A": Recipe(epochs=EPOCHS, lr=0.3), "B": Recipe(epochs=EPOCHS, lr=1e38)}  # B diverges at step 2
OF_TIME = ("time", "images_per_second", "waited_share", "seconds_left", "peak_memory_bytes")


# -------------------------------------------------------------------------------------------------- the library
def without_times(path):
    """What a log says of the heads: every value but those that no two runs share."""
    return [
        {key: value for key, value in row.items() if not any(part in OF_TIME for part in key.split("/"))}
        for row in read_metrics(path)
    ]


class Result:
    """One call of `train` on a fresh model, as a new process would make it: only the files are handed over."""

    def __init__(self, folder, names=("A",), checkpoint=None, recipes=RECIPES):
        state = checkpoint.load() if checkpoint else None
        resume_at = None if checkpoint is None else state["log_position"] if state else 0
        self.model = toy(names)
        torch.manual_seed(int(time.time()))  # another process has another global state
        with RunLog(folder, resume_at=resume_at) as log:
            self.best = train(
                self.model, names, train_loader(12), select_loader(), {name: recipes[name] for name in names}, log,
                progress=False, checkpoint=checkpoint,
            )  # fmt: skip
        self.rows = without_times(log.metrics_path)


def best_of(result):
    """Everything of `Best` that is not a time."""
    return {
        name: (best.epoch, best.diverged_at, best.score and (best.score.top1, best.score.top5, best.score.loss))
        for name, best in result.best.items()
    }


def assert_same(found, expected):
    ours, theirs = found.model.heads.state_dict(), expected.model.heads.state_dict()
    assert ours.keys() == theirs.keys()
    # equal_nan: a diverged head may hold anything, but the same
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True) for name in theirs)
    assert best_of(found) == best_of(expected)
    for name, best in expected.best.items():
        assert found.best[name].tensors.keys() == best.tensors.keys()
        assert all(torch.equal(found.best[name].tensors[key], value) for key, value in best.tensors.items())
    assert found.rows == expected.rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run without any checkpoint, so that writing one is seen to change nothing either."""
    return Result(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory):
    return Result(tmp_path_factory.mktemp("undisturbed_pair"), ("A", "B"))


def interrupted_and_resumed(folder, names=("A",), every=1):
    """The first call must be killed; the patches are the caller's, who lets them act once."""
    checkpoint = Checkpoint(folder / "state.pt", every)
    with pytest.raises(Killed):
        Result(folder, names, checkpoint)
    return Result(folder, names, checkpoint)


STEP, CHOICE, WRITE = (training, "train_step"), (training, "evaluate"), (Checkpoint, "save")


# A state is written after every step and at the end of every epoch: the 4th and the 8th are those of epochs.
@pytest.mark.parametrize(
    ("place", "number", "after"),
    [
        *((STEP, number, False) for number in (1, PER_EPOCH, PER_EPOCH + 1)),
        *((STEP, number, True) for number in (2, PER_EPOCH, STEPS)),
        (CHOICE, 1, False), (CHOICE, EPOCHS, False), (CHOICE, 1, True), (CHOICE, EPOCHS, True),
        *((WRITE, number, False) for number in (1, 4, 5, 7, 8)),
        *((WRITE, number, True) for number in (1, 3, 4, 8)),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, monkeypatch, undisturbed, place, number, after):
    at_call(monkeypatch, *place, [number], kill, after)
    assert_same(interrupted_and_resumed(tmp_path), undisturbed)


@pytest.mark.parametrize("every", [2, 500])
def test_steps_since_the_last_checkpoint_are_made_again(tmp_path, monkeypatch, undisturbed, every):
    at_call(monkeypatch, training, "train_step", [STEPS], kill)
    assert_same(interrupted_and_resumed(tmp_path, every=every), undisturbed)


def test_a_run_killed_after_every_step(tmp_path, monkeypatch, undisturbed):
    """A fresh process for each step: what is not on disk is lost six times."""
    at_call(monkeypatch, training, "train_step", range(2, 2 * STEPS, 2), kill)
    checkpoint, calls = Checkpoint(tmp_path / "state.pt", 1), 0
    while True:
        calls += 1
        with contextlib.suppress(Killed):
            result = Result(tmp_path, checkpoint=checkpoint)
            break
    assert calls == STEPS
    assert_same(result, undisturbed)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_head_that_diverged_stays_out_after_a_resume(tmp_path, monkeypatch, undisturbed_pair, step):
    assert undisturbed_pair.best["B"].diverged_at == 2 and undisturbed_pair.best["A"].diverged_at is None
    at_call(monkeypatch, training, "train_step", [step], kill)
    assert_same(interrupted_and_resumed(tmp_path, ("A", "B")), undisturbed_pair)


def test_a_finished_training_is_not_made_again(tmp_path, monkeypatch, undisturbed):
    checkpoint = Checkpoint(tmp_path / "state.pt", 1)
    Result(tmp_path, checkpoint=checkpoint)
    at_call(monkeypatch, training, "train_step", [1], kill)
    assert_same(Result(tmp_path, checkpoint=checkpoint), undisturbed)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state.pt", 1)
    at_call(monkeypatch, training, "train_step", [3], kill)
    with pytest.raises(Killed):
        Result(tmp_path, checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()
    with pytest.raises(ValueError, match=r"state\.pt belongs to another run \(recipes differ\)"):
        Result(tmp_path, checkpoint=checkpoint, recipes={"A": Recipe(epochs=EPOCHS, lr=0.1)})
    with pytest.raises(ValueError, match=r"state\.pt belongs to another run \(recipes, steps differ\)"):
        Result(tmp_path, checkpoint=checkpoint, recipes={"A": Recipe(epochs=EPOCHS + 1, lr=0.3)})
    assert checkpoint.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["half", "empty", "text", "pickle of code"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path / "state.pt")
    if damage == "pickle of code":  # a file from elsewhere must not run
        torch.save({"run": Killed}, checkpoint.path)
    else:
        checkpoint.save({"numbers": torch.arange(1000)})
        whole = checkpoint.path.read_bytes()
        checkpoint.path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"not a state"}[damage])
    with pytest.raises(ValueError, match=r"The checkpoint .*state\.pt cannot be read .*remove it to start anew"):
        train(
            toy(), ["A"], train_loader(), select_loader(), Recipe(epochs=1), progress=False, checkpoint=checkpoint
        )  # fmt: skip


FULL = OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")


@pytest.mark.parametrize("error", [FULL[0], pytest.param(FULL[1], marks=pytest.mark.slow)], ids=type)
def test_a_full_disk_keeps_the_last_state_and_does_not_end_the_training(
    tmp_path, monkeypatch, caplog, undisturbed, error
):
    checkpoint, save, writes = Checkpoint(tmp_path / "state.pt", 1), torch.save, []
    left = 2  # the last state that fits, and its step

    def full(state, path):
        writes.append(path)
        if len(writes) == 1 or len(writes) > left:  # the very first, and all the later ones
            Path(path).write_bytes(b"half of a st")
            raise error
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    assert_same(Result(tmp_path, checkpoint=checkpoint), undisturbed)
    assert len(writes) == STEPS + EPOCHS
    assert "state.pt could not be written, there is none yet" in caplog.text
    assert caplog.text.count("state.pt could not be written, the one before stays") == STEPS + EPOCHS - left
    assert checkpoint.load()["run"]["step"] == left
    assert [path.name for path in tmp_path.iterdir() if "state" in path.name] == ["state.pt"]  # no halves left
    assert_same(Result(tmp_path, checkpoint=checkpoint), undisturbed)  # and it can be gone on from


@pytest.fixture
def handlers():
    """Handlers that a test would notice, instead of those that would end pytest."""

    def unexpected(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} went past the training")

    before = {number: signal.signal(number, unexpected) for number in (signal.SIGTERM, signal.SIGINT)}
    yield unexpected
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_training_after_a_step_with_its_state_on_disk(
    tmp_path, monkeypatch, undisturbed, handlers, number
):
    checkpoint = Checkpoint(tmp_path / "state.pt", 500)  # so that nothing but the signal writes one in this epoch
    at_call(monkeypatch, training, "train_step", [2], send(number))
    with pytest.raises(Interrupted, match=rf"interrupted after step [23] of {STEPS}; go on with --resume") as error:
        Result(tmp_path, checkpoint=checkpoint)
    assert error.value.signal_number == number
    assert f"after step {checkpoint.load()['run']['step']} of {STEPS}" in str(error.value)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == [handlers] * 2
    assert_same(Result(tmp_path, checkpoint=checkpoint), undisturbed)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == [handlers] * 2


def test_a_signal_during_the_selection_is_heard_before_the_next_batch(tmp_path, monkeypatch, undisturbed, handlers):
    checkpoint = Checkpoint(tmp_path / "state.pt", 500)
    at_call(monkeypatch, training, "evaluate", [2], send(signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"after step {STEPS} of {STEPS}"):
        Result(tmp_path, checkpoint=checkpoint)
    state = checkpoint.load()["run"]
    assert (state["epoch"], state["batch"], state["step"]) == (1, PER_EPOCH, 2 * PER_EPOCH)  # not chosen yet
    assert_same(Result(tmp_path, checkpoint=checkpoint), undisturbed)


def test_without_a_checkpoint_signals_are_left_alone(monkeypatch, handlers, tmp_path):
    at_call(monkeypatch, training, "train_step", [3], send(signal.SIGTERM))
    with pytest.raises(AssertionError, match="SIGTERM went past the training"):
        Result(tmp_path)


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch, handlers):
    def twice():
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()

    at_call(monkeypatch, training, "train_step", [3], twice)
    with pytest.raises(AssertionError, match="SIGTERM went past the training"):
        Result(tmp_path, checkpoint=Checkpoint(tmp_path / "state.pt", 500))


def test_the_functions_that_are_patched_are_those_of_the_loop():
    """Else no test above would interrupt anything."""
    assert training.train_step is train_step and training.evaluate is evaluate


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Interrupted("interrupted after step 3", signal.SIGINT), 130, "tool: interrupted after step 3\n"),
        (Interrupted("interrupted after step 3", signal.SIGTERM), 143, "tool: interrupted after step 3\n"),
        (Interrupted("interrupted after step 3", 0), 130, "tool: interrupted after step 3\n"),  # another process's
        (KeyboardInterrupt(), 130, "tool: interrupted\n"),
    ],
)
def test_exit_codes_of_signals(capsys, error, code, line):
    def main(argv):
        raise error

    assert run_command(main, [], prog="tool") == code
    assert capsys.readouterr().err == line


# ----------------------------------------------------------------------------------- the command line, in process
def flags_of(base, colours, output, *more):
    flags = ["--base_model", base, "-d", f"folder:{colours}", "--output", output, "-e", "2", "--lr", "0.3", *more]
    return [*QUICK, *map(str, flags)]


def fails(capsys, flags):
    capsys.readouterr()
    assert run_command(vit_train.main, flags, prog="prog") == 2
    # the last line: messages of logging are before it
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def broken_off(tmp_path, monkeypatch, base, colours):
    """The flags of a run that was killed at its 8th step of 12."""
    flags = flags_of(base, colours, tmp_path, "--checkpoint_steps", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [8], kill)
        vit_train.main(flags)
    assert (tmp_path / "colours_run" / "checkpoint.pt").exists()
    return flags


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_resume_with_other_options_is_refused(tmp_path, capsys, broken_off):
    before = contents(tmp_path)
    for change in (("--lr", "0.1"), ("--seed", "1"), ("--batch_size", "6"), ("--number_of_memory_tokens", "2")):
        line = fails(capsys, [*broken_off, "--resume", *change])
        assert line.startswith(f"prog: error: --resume needs the options of the run in {tmp_path / 'colours_run'}: ")
        assert change[0] in line
        assert contents(tmp_path) == before


def test_an_interrupted_run_is_neither_resumed_nor_lost_without_being_asked_for(tmp_path, capsys, broken_off):
    before = contents(tmp_path)
    line = fails(capsys, broken_off)
    run = tmp_path / "colours_run"
    assert line == (
        f"prog: error: {run} holds an interrupted run: go on with --resume, or start anew with --overwrite."
    )
    with pytest.raises(SystemExit, match="2"):  # seen while the command line is read
        vit_train.main([*broken_off, "--resume", "--overwrite"])
    assert "--resume goes on with a run and --overwrite starts it anew" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_resume_overwrite_and_resume_of_a_finished_run(tmp_path, capsys, base, colours, broken_off):
    head, metrics = (tmp_path / name for name in ("colours_model.safetensors", "colours_run/metrics.jsonl"))
    # what a machine is told may change
    assert vit_train.main([*broken_off, "--resume", "--checkpoint_steps", "5", "--workers", "1"]) == 0
    assert not list((tmp_path / "colours_run").glob("checkpoint*"))
    assert not list((tmp_path / "colours_run").glob("outcomes*"))

    assert vit_train.main(flags_of(base, colours, tmp_path / "whole")) == 0
    assert same_tensors(head, tmp_path / "whole" / head.name)
    assert without_times(metrics) == without_times(tmp_path / "whole" / "colours_run" / metrics.name)

    before = contents(tmp_path)
    capsys.readouterr()
    assert vit_train.main([*broken_off, "--resume"]) == 0
    assert capsys.readouterr().out == f"colours: finished already, in {head}\n"
    assert contents(tmp_path) == before


def test_a_finished_run_says_how_to_learn_on(tmp_path, capsys, base, colours):
    """A cosine that has come down to zero leaves nothing to resume: a new run begins with what was learned."""
    flags = flags_of(base, colours, tmp_path)
    assert vit_train.main(flags) == 0
    head, before = tmp_path / "colours_model.safetensors", contents(tmp_path)
    line = fails(capsys, [*flags, "--resume", "--epochs", "5"])
    assert line == (
        "prog: error: colours is finished: its rate has come down to zero, and no step is left to be made. To learn on "
        f"with a new schedule, give --init_from {head} in place of --resume, and another --name or --overwrite."
    )
    assert "--lr" in fails(capsys, [*flags, "--resume", "--epochs", "5", "--lr", "0.1"])
    assert contents(tmp_path) == before


def test_a_run_begins_with_what_another_has_learned(tmp_path, base, colours, caplog):
    flags = flags_of(base, colours, tmp_path)
    assert vit_train.main(flags) == 0
    caplog.set_level("INFO")
    # Begun with itself: the file is read before anything takes its place.
    for more in (("--name", "more", "--init_from", "colours"), ("--overwrite", "--init_from", "colours")):
        assert vit_train.main([*flags, *more, "--epochs", "1"]) == 0
    assert same_tensors(tmp_path / "more_model.safetensors", tmp_path / "colours_model.safetensors")
    assert "begins with what colours has learned, as it was after its epoch" in caplog.text
    assert "the schedule is a new one of 1 epochs" in caplog.text and "another split" not in caplog.text
    metadata = heads.read_metadata(tmp_path / "more_model.safetensors")
    assert metadata["training"]["init_from"] == "colours"
    losses = [
        next(row["train/loss"] for row in without_times(tmp_path / f"{name}_run" / "metrics.jsonl"))
        for name in ("plain", "more")
        if name == "more" or vit_train.main([*flags, "--name", "plain", "--epochs", "1"]) == 0
    ]
    assert losses[1] < losses[0]  # the first step, from what was learned, and from random values


def test_what_was_learned_from_another_split_is_said(tmp_path, base, colours, caplog):
    flags = flags_of(base, colours, tmp_path, "--max_steps", "1")
    assert vit_train.main(flags) == 0
    assert vit_train.main([*flags, "--name", "more", "--init_from", "colours", "--split_seed", "1"]) == 0
    assert "colours was trained on another split of folder:" in caplog.text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-m", "2"), "is something else than what is to be trained: they differ in memory. Give the options"),
        (("--rank", "1"), "they differ in low_rank.mlp_in.down, "),
        (("--no-memory_norm",), "they differ in memory_norm."),
        (("--method", "bias"), "a head is no network, and a network no head."),
        (("--init_from", "none"), "No head file for none in"),
    ],
)
def test_what_a_run_cannot_begin_with(tmp_path, base, colours, capsys, more, said):
    flags = flags_of(base, colours, tmp_path, "--max_steps", "1")
    assert vit_train.main(flags) == 0
    assert said in fails(capsys, [*flags, "--name", "more", "--init_from", "colours", *more])


def test_a_run_begins_with_no_head_of_another_base(tmp_path, base, colours, capsys):
    assert vit_train.main(flags_of(base, colours, tmp_path, "--max_steps", "1")) == 0
    flags = flags_of(save_base(tmp_path / "other", seed=1), colours, tmp_path, "--name", "more")
    assert "was trained on another base (" in fails(capsys, [*flags, "--init_from", "colours"])


def test_a_network_begins_with_a_network(tmp_path, base, colours):
    flags = flags_of(base, colours, tmp_path, "--method", "vpt-deep", "--max_steps", "2")
    assert vit_train.main(flags) == 0
    assert vit_train.main([*flags, "--name", "more", "--init_from", "colours", "--lr", "1e-9"]) == 0
    found, expected = (tuned_files.load(tmp_path / f"{name}_model.safetensors") for name in ("more", "colours"))
    assert all(torch.allclose(found.tensors[key], value, atol=1e-6) for key, value in expected.tensors.items())


def test_a_run_that_replaces_a_head_and_is_broken_off_is_not_finished(
    tmp_path, monkeypatch, base, colours, capsys
):  # fmt: skip
    flags = flags_of(base, colours, tmp_path)
    assert vit_train.main(flags) == 0
    changed = [*flags, "--lr", "0.1", "--checkpoint_steps", "1"]
    for step in (1, 8):  # before there is a checkpoint, and after
        with monkeypatch.context() as patch, pytest.raises(Killed):
            at_call(patch, training, "train_step", [step], kill)
            vit_train.main([*changed, "--overwrite"])
        assert vit_train.main([*changed, "--resume"]) == 0
        assert "finished already" not in capsys.readouterr().out
    metadata = heads.read_metadata(tmp_path / "colours_model.safetensors")
    assert metadata["training"]["lr"] == 0.1


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_images(tmp_path, capsys, base, broken_off, monkeypatch):
    """A file that was added moves others between training and evaluation; one that changed is another image."""
    photos = tmp_path / "photos"
    for name in ("ant", "bee"):
        (photos / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(photos / name / f"{number}.png")
    flags = flags_of(base, photos, tmp_path / "out", "--checkpoint_steps", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [2], kill)
        vit_train.main(flags)
    whole = [(file, file.read_bytes()) for file in photos.glob("*/*")]
    for file, content in whole:
        file.write_bytes(content[:-1] + b"x")
    changed = (
        "has other images in its splits (eval: images of the same names have changed since (of the same size in all))"
    )
    assert f"{changed} than when the run in" in fails(capsys, [*flags, "--resume"])
    for file, content in whole:
        file.write_bytes(content)
    Image.new("RGB", (8, 8), (99, 0, 0)).save(photos / "ant" / "00.png")
    line = fails(capsys, [*flags, "--resume"])
    assert "has other images in its splits (train: it has other images or labels (15 here, 14 there)" in line
    assert "than when the run in" in line and line.endswith("anew with --overwrite.")
    (photos / "ant" / "00.png").unlink()
    assert vit_train.main([*flags, "--resume"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_a_pass_that_has_ended_is_made_again_only_if_what_it_learned_is_lost(
    tmp_path, base, colours, monkeypatch, kept
):  # fmt: skip
    flags = flags_of(base, colours, tmp_path)
    assert vit_train.main(flags_of(base, colours, tmp_path / "whole")) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, train_command, "leave", [1], kill)
        vit_train.main(flags)
    run = tmp_path / "colours_run"
    assert (run / "outcomes.json").exists() and not (run / "checkpoint.pt").exists()
    if not kept:
        (run / "colours_model.safetensors").unlink()
    steps, plain = [], training.train_step
    monkeypatch.setattr(training, "train_step", lambda *args, **kwargs: steps.append(1) or plain(*args, **kwargs))
    assert vit_train.main([*flags, "--resume"]) == 0
    assert bool(steps) is not kept
    assert same_tensors(tmp_path / "colours_model.safetensors", tmp_path / "whole" / "colours_model.safetensors")


@pytest.mark.slow
def test_overwrite_starts_an_interrupted_run_anew(tmp_path, base, colours, broken_off):
    assert vit_train.main([*broken_off, "--overwrite"]) == 0
    rows = without_times(tmp_path / "colours_run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 10, 12]


@pytest.mark.slow
def test_resume_without_an_earlier_run_starts_one(tmp_path, base, colours):
    assert vit_train.main(flags_of(base, colours, tmp_path, "--resume")) == 0
    assert heads.load(tmp_path / "colours_model.safetensors").metadata["name"] == "colours"


# ---------------------------------------------------------------------------------------- the command line, killed
def start(flags):
    """A process of its own, with one thread as the tests have, so that both add in the same order."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "vit_train.py"), *flags],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end_when(process, ready, number):
    """Send the signal as soon as `ready()`; returns stderr. The exit code tells a process that ended before."""
    limit = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.001)
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def finish(flags):
    process = start(flags)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error


def lines(run):
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def long_flags(base, colours, output, *more):
    """42 images one by one for 4 epochs: 168 steps, each with a state, and 23 rows in the log."""
    return flags_of(base, colours, output, "-e", 4, "--batch_size", 1, "--checkpoint_steps", 1, *more)


@pytest.fixture(scope="module")
def whole(base, colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert vit_train.main(long_flags(base, colours, folder)) == 0
    return folder


def assert_same_run(found, expected):
    assert same_tensors(found / "colours_model.safetensors", expected / "colours_model.safetensors")
    run = found / "colours_run"
    assert without_times(run / "metrics.jsonl") == without_times(expected / "colours_run" / "metrics.jsonl")
    left = sorted(path.name for path in run.iterdir())
    assert left == ["metrics.jsonl", "options.json"]


@pytest.mark.slow
def test_a_process_killed_again_and_again(tmp_path, base, colours, whole):
    run = tmp_path / "colours_run"
    # first before there is any state: the end of the first epoch, at 42 steps, would write one
    process = start([*long_flags(base, colours, tmp_path), "--checkpoint_steps", "500"])
    end_when(process, lambda: lines(run) >= 2, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    flags = [*long_flags(base, colours, tmp_path), "--resume"]
    for rows in (3, 7, 16):
        # A resume first cuts rows behind its state off; the time of the head file tells an end that came too early.
        process, before = start(flags), time.time()
        end_when(process, lambda rows=rows, before=before: changed(run, before) and lines(run) >= rows, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "colours_model.safetensors").exists()
    finish(flags)
    assert_same_run(tmp_path, whole)


def changed(run, since):
    """Whether the process that was just started has written a state of its own."""
    state = run / "checkpoint.pt"
    with contextlib.suppress(FileNotFoundError):
        return state.stat().st_mtime > since
    return False


@pytest.mark.slow
def test_a_terminated_process_says_where_it_is_and_goes_on(tmp_path, base, colours, whole):
    flags = [*long_flags(base, colours, tmp_path), "--checkpoint_steps", "500"]
    process = start(flags)
    error = end_when(process, lambda: lines(tmp_path / "colours_run") >= 8, signal.SIGTERM)
    assert process.returncode == 143
    step = Checkpoint(tmp_path / "colours_run" / "checkpoint.pt").load()["run"]["step"]
    assert 50 <= step < 168
    assert error.splitlines()[-1] == f"vit_train.py: interrupted after step {step} of 168; go on with --resume"
    assert "Traceback" not in error
    finish([*flags, "--resume"])
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_a_grid_killed_in_its_second_pass(tmp_path, base, colours):
    grid = ("--data_seeds", 0, 1, "--lr", 0.3, 0.1, "--keep_all")
    assert vit_train.main(long_flags(base, colours, tmp_path / "whole", *grid)) == 0
    flags, run = long_flags(base, colours, tmp_path / "killed", *grid), tmp_path / "killed" / "colours_run"
    process = start(flags)
    end_when(process, (run / "checkpoint_d1.pt").exists, signal.SIGKILL)
    assert (run / "outcomes_d0.json").exists() and not (run / "outcomes_d1.json").exists()
    finish([*flags, "--resume"])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(names) == 5
    assert all(same_tensors(tmp_path / "killed" / name, tmp_path / "whole" / name) for name in names)
    found, expected = (json.loads((tmp_path / name / "colours_grid.json").read_text()) for name in ("killed", "whole"))
    assert found["best"] == expected["best"]
    for ours, theirs in zip(found["cells"], expected["cells"], strict=True):
        other = dict.fromkeys(("select", "eval", "train_seconds", "eval_seconds", "peak_memory_bytes"), 0)
        assert {**ours, **other} == {**theirs, **other}
        for role in ("select", "eval"):
            assert {**ours[role], "images_per_second": 0} == {**theirs[role], "images_per_second": 0}
