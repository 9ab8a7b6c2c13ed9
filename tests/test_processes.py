"""Several processes that share each batch end where one process ends; and trackers get what the log gets."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import vit_predict
import vit_train
from command_lines import QUICK, save_pictures
from learnable_memory import broken as broken_images
from learnable_memory import heads
from learnable_memory.broken import find_broken
from learnable_memory.commands import data as data_command
from learnable_memory.commands import predict as predict_command
from learnable_memory.commands import processes as starting
from learnable_memory.commands import validation
from learnable_memory.commands.cross_validation import CrossValidation
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import PredictOptions, TrainOptions, ValidationOptions
from learnable_memory.data import DataSet
from learnable_memory.evaluate import evaluate
from learnable_memory.grid import Cell
from learnable_memory.images import ArrayImages, ImageFiles, ImageSet
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.method_spec import MethodSpec
from learnable_memory.optim import HeadOptimizers, Recipe
from learnable_memory.predict import predict
from learnable_memory.runlog import read_metrics
from learnable_memory.train_step import average_over_processes, train_step
from learnable_memory.transforms import Preprocessing
from process_groups import ROOT, Other, assert_same_head, environment, launch
from tiny import add_random_head, images, tiny_model
from toy_training import train_loader
from two_processes import in_two_processes


# -------------------------------------------------------------------------------------------- one step, in process
def two_heads():
    model = tiny_model(dtype=torch.float64)
    for name, cells in (("A", 2), ("B", 0)):
        add_random_head(model, name, 3, cells)
    model.train_only(["A", "B"])
    return model, HeadOptimizers({name: model.heads[name] for name in "AB"}, dict.fromkeys("AB", Recipe()), 10)


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


# --------------------------------------------------------- evaluation, prediction and checks, shared by two processes
PIXELS = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)


def eleven() -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    return ImageSet(ArrayImages(pixels, "noise"), generator.integers(0, 7, 11))


def with_head():
    model = tiny_model()
    add_random_head(model, "A", 7, 2)
    return model


@pytest.fixture
def model_of():
    """Each process has a model of its own, and they are the same; made before there are threads, for the generator."""
    models = {None: with_head(), 0: with_head(), 1: with_head()}
    return lambda rank: models[rank and rank.process_index]


@pytest.mark.parametrize("batch_size", [4, 5, 10, 64])  # the last batch has 3, 1, 1 and 11 images
def test_what_two_processes_answer_comes_in_the_order_of_one(monkeypatch, model_of, batch_size):
    def score(rank=None):
        part = {} if rank is None else {"process": rank.process_index, "processes": 2}
        batches = EpochBatches(11, batch_size, **part)
        loader = make_loader(eleven(), PIXELS.eval_transform(), batch_sampler=batches)
        answers = {}
        return evaluate(model_of(rank), loader, ["A"], accelerator=rank, answers=answers)["A"], answers["A"]

    expected, said = score()
    for found, heard in in_two_processes(score, monkeypatch):
        assert (found.images, found.top1, found.top5) == (11, expected.top1, expected.top5)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert torch.equal(heard.predicted, said.predicted) and torch.equal(heard.right, said.right)
        assert torch.allclose(heard.probability, said.probability, rtol=0, atol=1e-6)
    assert said.confidence.unique().numel() == 11  # else any order would do


@pytest.mark.parametrize("batch_size", [4, 5, 64])
def test_two_processes_predict_what_one_does_and_one_of_them_tells(monkeypatch, model_of, batch_size):
    def said(rank=None):
        answered = predict(model_of(rank), eleven(), {PIXELS: ["A"]}, batch_size=batch_size, accelerator=rank)
        return [(each.image, each.answers["A"]) for each in answered]

    expected, (main, other) = said(), in_two_processes(said, monkeypatch)
    assert [image for image, _ in main] == [image for image, _ in expected] and other == []
    for (_, ours), (_, theirs) in zip(main, expected, strict=True):
        assert [answer[:2] for answer in ours] == [answer[:2] for answer in theirs]
        assert [answer[2] for answer in ours] == pytest.approx([answer[2] for answer in theirs], abs=1e-6)


def test_folds_are_tried_by_two_processes_as_by_one(monkeypatch):
    whole = eleven()
    data = DataSet("noise", list("abcdefg"), whole, whole, whole, None, "memory", 0, 0, folds=2)
    options = TrainOptions(dataset="Digits", batch_size=4, workers=0, device="cpu")

    def with_folds():
        model = tiny_model()
        for name in ("A-f0", "A-f1"):
            add_random_head(model, name, 7, 2)
        return model

    models = {None: with_folds(), 0: with_folds(), 1: with_folds()}

    def validated(rank=None):
        cross_validation = CrossValidation(data, ["A"])
        model = models[rank and rank.process_index]
        return cross_validation.validate(model, ["A"], PIXELS, options, accelerator=rank)["A"]

    expected = validated()
    for found in in_two_processes(validated, monkeypatch):
        assert (found.score.images, found.score.top1) == (11, expected.score.top1)
        assert found.found.predicted.tolist() == expected.found.predicted.tolist()
        assert found.found.probability == pytest.approx(expected.found.probability, abs=1e-6)


def test_two_processes_look_at_half_the_images_each_and_know_of_all(tmp_path, monkeypatch):
    save_pictures(tmp_path, ["a"], lambda pixels, name: None)
    for broken in (3, 4, 17):
        (tmp_path / "a" / f"{broken}.png").write_bytes(b"")
    names = [f"a/{number}.png" for number in range(20)]
    split, looked = ImageSet(ImageFiles(tmp_path, names), np.zeros(20)), []
    look = broken_images._look
    monkeypatch.setattr(broken_images, "_look", lambda *args: looked.append(1) or look(*args))
    alone = find_broken(split, 0)
    assert list(alone) == [3, 4, 17] and len(looked) == 20
    assert in_two_processes(lambda rank: find_broken(split, 0, accelerator=rank), monkeypatch) == [alone] * 2
    assert len(looked) == 40
    (tmp_path / "a" / "5.png").unlink()  # a fault of the machine, which one of them meets
    with pytest.raises(ValueError, match=r"5\.png"):
        in_two_processes(lambda rank: find_broken(split, 0, accelerator=rank), monkeypatch)


def printed_by_two(run, monkeypatch, capsys, *modules):
    """What is printed if two processes run a command; `modules` start them."""
    mine = threading.local()
    for module in modules:
        monkeypatch.setattr(module, "start_processes", lambda *options: getattr(mine, "rank", None))

    def work(rank):
        mine.rank = rank
        return run()

    capsys.readouterr()
    assert in_two_processes(work, monkeypatch) == [0, 0]
    return capsys.readouterr().out


def test_two_processes_validate_as_one_and_print_once(tmp_path, base, colours, monkeypatch, capsys):
    vit_train.main(flags_of(base, colours, tmp_path))

    def run(name):
        told = {"models_list": "colours", "models_folder": tmp_path, "output": tmp_path / name, "batch_size": 5}
        return validation.run(ValidationOptions(**told, device="cpu", workers=0, classes=tmp_path / "classes"))

    assert run("one.json") == 0
    printed = printed_by_two(lambda: run("two.json"), monkeypatch, capsys, validation)
    assert printed.count("against the file") == printed.count("written to") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["heads"][0] for name in ("one", "two"))
    assert two.pop("images_per_second") and one.pop("images_per_second")
    assert two.pop("loss") == pytest.approx(one.pop("loss"), abs=1e-5)
    assert two == one and one["images"] == 12


def test_two_processes_print_predictions_once_in_their_order(tmp_path, base, colours, monkeypatch, capsys):
    vit_train.main(flags_of(base, colours, tmp_path, "-e", "1"))
    (tmp_path / "photos").mkdir()
    for number in range(5):
        shutil.copy(colours / "red" / f"{number}.png", tmp_path / "photos")
    (tmp_path / "photos" / "2.png").write_bytes(b"")

    def run():
        told = {"heads": "colours", "models_folder": tmp_path, "on_bad_image": "skip", "batch_size": 3, "json": True}
        return predict_command.run(PredictOptions(images=str(tmp_path / "photos"), **told, device="cpu", workers=0))

    capsys.readouterr()
    assert run() == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shared = [json.loads(line) for line in printed_by_two(run, monkeypatch, capsys, predict_command).splitlines()]
    assert [Path(line["image"]).name for line in shared] == ["0.png", "1.png", "3.png", "4.png"]
    best = [[line["heads"]["colours"][0]["label"] for line in lines] for lines in (shared, alone)]
    assert best[0] == best[1]


def test_two_processes_check_data_and_print_once(tmp_path, monkeypatch, capsys):
    photos = save_pictures(tmp_path / "photos", ["a", "b"], lambda pixels, name: None)
    (photos / "a" / "7.png").write_bytes(b"")

    mine = threading.local()
    monkeypatch.setattr(starting, "start_processes", lambda options: mine.rank)

    def work(rank):
        mine.rank = rank
        return data_command.main([f"folder:{photos}", "--check", "--workers", "0", "--output", str(tmp_path)])

    assert in_two_processes(work, monkeypatch) == [1, 0]  # the main process tells that there are some
    printed = capsys.readouterr().out
    assert printed.count("images that cannot be read: 1") == 1
    assert sum("a/7.png" in line for line in printed.splitlines()) == 1


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


def test_one_device_is_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device is cuda:1, one device for 2 processes: leave the number out"):
        starting.start_processes(ValidationOptions(models_list="A", device="cuda:1"))


ACCELERATE = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", *(variable for variable, _, _ in starting.NOT_FOR_US))


@pytest.fixture
def told(monkeypatch):
    """Sets what `accelerate launch` hands to its processes, and nothing else of it."""
    for variable in ACCELERATE:
        monkeypatch.delenv(variable, raising=False)
    return lambda **values: [monkeypatch.setenv(f"ACCELERATE_{name.upper()}", text) for name, text in values.items()]


ANY_COMMAND = {
    "train": lambda **more: TrainOptions(dataset="Digits", **more),
    "validate": lambda **more: ValidationOptions(models_list="A", **more),
    "predict": lambda **more: PredictOptions(images="a.png", heads="A", **more),
}


@pytest.mark.parametrize("command", ANY_COMMAND)
def test_what_accelerate_is_told_counts_as_options(told, command):
    told(mixed_precision="bf16", use_cpu="True", dynamo_backend="NO")
    options = ANY_COMMAND[command]
    assert starting.launched(options()) == options(precision="bfloat16", device="cpu")
    assert starting.launched(options(precision="bfloat16", device="cpu")) == options(precision="bfloat16", device="cpu")
    told(mixed_precision="no", use_cpu="False")  # as without the flags
    assert starting.launched(options(precision="float32", device="cuda")) == options(precision="float32", device="cuda")
    assert starting.launched(options()) == options()


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        ({"mixed_precision": "bf16"}, {"precision": "float32"},
         "accelerate launch says --mixed_precision bf16, and --precision says float32: leave one of them out"),
        ({"use_cpu": "true"}, {"device": "cuda:1"}, "accelerate launch says --cpu, and --device says cuda:1"),
        ({"mixed_precision": "fp16"}, {}, "--mixed_precision fp16 is not known here: take bf16, or leave it out"),
        ({"use_deepspeed": "true"}, {}, "accelerate launch --use_deepspeed means nothing here: leave it out"),
        ({"use_fsdp": "true"}, {}, "accelerate launch --use_fsdp means nothing here"),
        ({"dynamo_backend": "INDUCTOR"}, {}, r"--dynamo_backend means nothing here \(--compile does that\): leave it"),
    ],
)  # fmt: skip
def test_what_contradicts_the_options_or_is_not_known_is_refused(told, values, more, message):
    told(**values)
    with pytest.raises(ValueError, match=message):
        starting.launched(ANY_COMMAND["train"](**more))


def test_a_run_computes_as_accelerate_was_told(tmp_path, base, colours, told):
    told(mixed_precision="bf16")
    vit_train.main(flags_of(base, colours, tmp_path, "--max_steps", "1"))
    assert heads.read_metadata(tmp_path / "colours_model.safetensors")["training"]["precision"] == "bfloat16"


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
def test_torchrun_validates_and_predicts_as_one_process(tmp_path, base, colours, capsys):
    vit_train.main(flags_of(base, colours, tmp_path))
    assert (tmp_path / "colours_classes.json").exists()
    folder = ["--models_folder", str(tmp_path), *QUICK]
    validated = launch(["-m", "colours", "--output", str(tmp_path / "two.json"), *folder], script="vit_validation.py")
    assert validated.stdout.count("against the file") == 1 and "+0.00" in validated.stdout
    assert json.loads((tmp_path / "two.json").read_text())["heads"][0]["images"] == 12
    asked = [str(colours / "red"), "--heads", "colours", "--json", *folder]
    capsys.readouterr()
    assert vit_predict.main(asked) == 0
    alone = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    shared = [json.loads(line)["image"] for line in launch(asked, script="vit_predict.py").stdout.splitlines()]
    assert shared == alone and len(alone) == 20


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
