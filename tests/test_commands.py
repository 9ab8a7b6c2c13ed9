"""`vit_train.py` and `vit_validation.py` from flags to files, on a tiny random base and generated images."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from transformers import ViTImageProcessor

import vit_predict
import vit_train
import vit_validation
from command_lines import QUICK, rows_of, same_tensors, save_base, save_pictures, train, validate
from learnable_memory import heads
from learnable_memory.commands import model as model_command
from learnable_memory.commands import run_command
from learnable_memory.headlog import metrics_of
from learnable_memory.runlog import read_metrics
from pet_tables import PETS, encode
from test_scenes import write_sun
from vit import MemoryCapableViT

ROOT = Path(__file__).resolve().parent.parent
CIFAR100 = ROOT.parent / "shared" / "data" / "cifar100"
BASE_TINY = ROOT / "models" / "base-tiny"


@pytest.fixture(scope="module")
def trained(base, colours, brightness, tmp_path_factory) -> Path:
    """A folder with the heads `colours` (2 cells), `brightness` (no memory) and `Digits` (1 cell)."""
    folder = tmp_path_factory.mktemp("trained")
    colours_, brightness_, digits = f"folder:{colours}", f"folder:{brightness}", "Digits"
    train(base, folder, "-d", colours_, "-m", "2", "--epochs", "4", "--lr", "0.3")
    train(base, folder, "-d", brightness_, "-m", "0", "--epochs", "2", "--lr", "0.1")
    train(base, folder, "-d", digits, "--max_steps", "12", "--batch_size", "32")
    return folder


# ------------------------------------------------------------------------------------------------------------- training
def test_training_leaves_a_head_its_curves_and_its_log(trained, colours, base):
    run = trained / "colours_run"
    assert (trained / "colours_curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    metadata = heads.load(trained / "colours_model.safetensors").metadata
    assert (metadata["name"], metadata["num_labels"], metadata["memory_tokens"]) == ("colours", 3, 2)
    assert metadata["labels"] == ["blue", "green", "red"]
    assert metadata["base"]["id"] == base.name
    assert metadata["dataset"]["name"] == metadata["training"]["dataset"] == "folder:colours"
    # of 20 images of each of 3 classes, a fifth is held out to report on, and a tenth of the 16 that are left to choose
    images = {role: split["images"] for role, split in metadata["dataset"]["splits"].items()}
    assert images == {"train": 42, "select": 6, "eval": 12}
    assert metadata["preprocessing"]["height"] == 16 and metadata["preprocessing"]["mean"] == [0.5] * 3
    assert (metadata["training"]["lr"], metadata["training"]["epochs"]) == (0.3, 4)
    assert not {"directory", "output", "device", "workers"} & metadata["training"].keys()

    rows = read_metrics(run / "metrics.jsonl")
    chosen = metadata["metrics"]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 10, 20, 24]  # 42 images are 6 batches
    select = {row["epoch"]: row["select/top1"] for row in rows if "select/top1" in row}
    assert list(select) == [1, 2, 3, 4]
    assert chosen["select"]["top1"] == max(select.values()) == select[chosen["epoch"]]
    assert (rows[-1]["eval/top1"], rows[-1]["eval/images"]) == (chosen["eval"]["top1"], 12)
    assert rows[-1]["eval/top1"] > 0.6  # chance is 1/3
    options = json.loads((run / "options.json").read_text())
    assert (options["seed"], options["options"]["lr"], options["options"]["batch_size"]) == (0, [0.3], 8)
    assert options["options"]["name"] == "colours"
    assert options["places"] == {"dataset": f"folder:{colours}", "base_model": str(base)}


def test_what_training_prints(tmp_path, base, brightness, capsys):
    train(base, tmp_path, "-d", f"folder:{brightness}", "--name", "light", "-e", "1")
    printed = capsys.readouterr().out.splitlines()
    score = heads.read_metadata(tmp_path / "light_model.safetensors")["metrics"]["eval"]
    accuracy = f"{score['top1']:.4f}"  # two classes of four images each
    assert printed[0].startswith(
        f"light: top-1 {accuracy} (mean over classes {accuracy}) on 8 evaluation images, after epoch 1 "
    )
    assert printed[1].startswith(f"head    {tmp_path / 'light_model.safetensors'} (") and score["top5"] is None
    assert printed[2:] == [
        f"curves  {tmp_path / 'light_curves.png'}",
        f"classes {tmp_path / 'light_classes.json'}, {tmp_path / 'light_confusion.png'}",
        f"log     {tmp_path / 'light_run'}",
    ]


def test_max_steps_ends_training_early(trained):
    rows = read_metrics(trained / "Digits_run" / "metrics.jsonl")
    assert max(row["step"] for row in rows) == 12
    (last,) = (row for row in rows if row.get("train/lr") and row["step"] == 12)
    assert (
        last["train/lr"] < 0.03 * 0.06
    )  # the last step of a cosine over 7: (1 + cos(180 - 25.7 degrees)) / 2 = 0.0495


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("memory", {"class_token", "memory", "classifier.weight", "classifier.bias"}),
        ("head+class", {"class_token", "classifier.weight", "classifier.bias"}),
        ("head", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_methods_of_heads(tmp_path, base, brightness, method, names, capsys):
    train(base, tmp_path, "-d", f"folder:{brightness}", "-e", "1", "--method", method)
    assert heads.load(tmp_path / "brightness_model.safetensors").tensors.keys() == names
    validate(tmp_path, "-m", "brightness")
    assert rows_of(capsys.readouterr().out)["brightness"]["against the file"] == "+0.00"


@pytest.mark.slow
def test_the_same_run_gives_the_same_bits_and_another_seed_another_head(tmp_path, base, colours):
    runs = {"first": [], "second": [], "third": ["--seed", "1"]}
    for name, flags in runs.items():
        train(base, tmp_path / name, "-d", f"folder:{colours}", "-e", "2", "--lr", "0.3", *flags)
    first, second, third = (tmp_path / name / "colours_model.safetensors" for name in runs)
    assert same_tensors(first, second)
    assert not same_tensors(first, third)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path, base, colours):
    for workers in ("0", "2"):
        train(base, tmp_path / workers, "-d", f"folder:{colours}", "-e", "2", "--lr", "0.3", "--workers", workers)
    assert same_tensors(*(tmp_path / workers / "colours_model.safetensors" for workers in ("0", "2")))


def test_an_existing_head_is_replaced_only_on_request(tmp_path, base, brightness, capsys):
    flags = ["-d", f"folder:{brightness}", "-e", "1"]
    train(base, tmp_path, *flags)
    path = tmp_path / "brightness_model.safetensors"
    before = path.read_bytes()
    error = fails(capsys, vit_train, "--base_model", base, "--output", tmp_path, *flags, "-m", "3")
    assert f"{path} exists: choose another --name or --output, or replace it with --overwrite." in error
    assert path.read_bytes() == before
    train(base, tmp_path, *flags, "-m", "3", "--overwrite")
    assert heads.read_metadata(path)["memory_tokens"] == 3
    rows = read_metrics(tmp_path / "brightness_run" / "metrics.jsonl")
    assert sum("eval/top1" in row for row in rows) == 1


# ----------------------------------------------------------------------------------------------------------- validation
def test_heads_together_score_as_each_does_alone(trained, capsys):
    names = ["colours", "Digits", "brightness"]
    validate(trained, "-m", *names)
    together = rows_of(capsys.readouterr().out)
    assert list(together) == names
    for name in names:
        validate(trained, "--models-list", name)
        alone = rows_of(capsys.readouterr().out)
        assert alone == {name: {title: text for title, text in together[name].items() if title in alone[name]}}
        top1 = heads.read_metadata(trained / heads.file_name(name))["metrics"]["eval"]["top1"]
        assert together[name]["top-1"] == f"{100 * top1:.2f}"
        assert together[name]["against the file"] == "+0.00"
    assert [together[name]["cells"] for name in names] == ["2", "1", "0"]
    assert [together[name]["images"] for name in names] == ["12", "359", "8"]  # a fifth of each class
    assert together["brightness"]["top-5"] == "-" != together["Digits"]["top-5"]  # two classes, and ten


def test_heads_given_as_files_need_no_flags(trained, capsys):
    path = trained / "colours_model.safetensors"
    assert vit_validation.main([*QUICK, "--models_list", str(path)]) == 0
    assert rows_of(capsys.readouterr().out)["colours"]["against the file"] == "+0.00"


@pytest.mark.slow
def test_all_heads_of_a_file_are_evaluated(trained, tmp_path, capsys):
    """As each is from its own file; `-t` counts for all heads of the file that it stands for."""
    validate(trained, "-m", "brightness", "Digits", "colours")
    alone = rows_of(capsys.readouterr().out)
    pair = tmp_path / "pair.safetensors"
    heads.save_all(pair, [heads.load(trained / heads.file_name(name)) for name in ("brightness", "Digits")])
    validate(trained, "-m", str(pair), "colours")
    together = rows_of(capsys.readouterr().out)
    assert list(together) == ["brightness", "Digits", "colours"] and together == alone
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", pair, "colours", "-t", "0", "2")
    assert f"--number_of_memory_tokens says 0, but Digits in {pair} has 1. Leave the flag out" in error


def test_results_as_json(trained, base, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    validate(trained, "-m", "brightness", "colours", "-t", "0", "2", "--output", str(output))
    assert capsys.readouterr().out.endswith(f"written to {output}\n")
    results = json.loads(output.read_text())
    assert results.keys() == {"base", "heads", "versions"}
    assert results["base"]["id"] == base.name and "torch" in results["versions"]
    assert [row["head"] for row in results["heads"]] == ["brightness", "colours"]
    for row in results["heads"]:
        metadata = heads.read_metadata(trained / heads.file_name(row["head"]))
        stored = metadata["metrics"]["eval"]
        assert row["base"] == metadata["base"] and row["dataset"] == metadata["dataset"]
        assert (row["top1"], row["top5"], row["images"]) == (stored["top1"], stored["top5"], stored["images"])
        assert (row["stored_top1"], row["difference"]) == (stored["top1"], 0.0)
        assert row["loss"] == pytest.approx(stored["loss"], rel=1e-4)
        assert row["memory_tokens"] == metadata["memory_tokens"]
        assert (row["classes"], row["classes_without_images"]) == (metadata["num_labels"], [])


def test_another_base_folder_with_the_same_weights_will_do(trained, tmp_path, capsys):
    validate(trained, "-m", "brightness", "--base_model", str(save_base(tmp_path / "copy")))
    assert rows_of(capsys.readouterr().out)["brightness"]["against the file"] == "+0.00"


def copy_of(trained: Path, folder: Path, name: str, **changes) -> Path:
    """A head's file with changed metadata, in another folder, beside its run."""
    shutil.copytree(trained / f"{name}_run", folder / f"{name}_run")
    file = heads.load(trained / heads.file_name(name))
    return heads.save(folder / heads.file_name(name), file.tensors, {**file.metadata, **changes})


def test_heads_of_different_preprocessing_take_a_pass_each(trained, tmp_path, capsys, caplog):
    """Alone and together the same, although the pixels of one head would be wrong for the other."""
    stored = {name: heads.read_metadata(trained / heads.file_name(name)) for name in ("colours", "brightness")}
    copy_of(trained, tmp_path, "colours", preprocessing={**stored["colours"]["preprocessing"], "mean": [0.2] * 3})
    copy_of(trained, tmp_path, "brightness")
    output = tmp_path / "results.json"

    def losses(*names):
        validate(tmp_path, "-m", *names, "--output", str(output))
        return {row["head"]: row["loss"] for row in json.loads(output.read_text())["heads"]}

    alone = losses("colours")
    assert "kinds of preprocessing" not in caplog.text
    together = losses("colours", "brightness")
    assert "The heads need 2 kinds of preprocessing" in caplog.text
    assert together["colours"] == pytest.approx(alone["colours"], rel=1e-4)
    assert together["colours"] != pytest.approx(stored["colours"]["metrics"]["eval"]["loss"], rel=1e-2)
    assert together["brightness"] == pytest.approx(stored["brightness"]["metrics"]["eval"]["loss"], rel=1e-4)


def test_another_evaluation_split_is_not_compared(trained, tmp_path, capsys, caplog):
    record = heads.read_metadata(trained / "colours_model.safetensors")["dataset"]
    splits = {**record["splits"], "eval": {"images": 12, "hash": "0" * 16}}
    copy_of(trained, tmp_path, "colours", dataset={**record, "splits": splits})
    validate(tmp_path, "-m", "colours")
    assert rows_of(capsys.readouterr().out)["colours"]["against the file"] == "unknown"
    assert "colours: the evaluation split here" in caplog.text and "cannot be compared" in caplog.text


def test_images_that_have_changed_under_the_same_names_are_not_compared(trained, colours, tmp_path, capsys, caplog):
    """Every name, every label and every size is as it was; a head of before they were recorded cannot tell."""
    record = heads.read_metadata(trained / "colours_model.safetensors")["dataset"]
    shutil.copytree(colours, tmp_path / "colours")
    moved = {**record, "name": f"folder:{tmp_path / 'colours'}"}
    of_before = {key: record["splits"]["eval"][key] for key in ("images", "hash")}
    old = {**moved, "splits": {**record["splits"], "eval": of_before}}
    copy_of(trained, tmp_path / "new", "colours", dataset=moved)
    copy_of(trained, tmp_path / "old", "colours", dataset=old)

    def against_the_file(folder: str) -> str:
        caplog.clear()
        validate(tmp_path / folder, "-m", "colours")
        return rows_of(capsys.readouterr().out)["colours"]["against the file"]

    assert against_the_file("new") == "+0.00" and "cannot be compared" not in caplog.text
    for number in range(20):  # of which four are in eval
        file = tmp_path / "colours" / "red" / f"{number}.png"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1  # behind the last pixel
        file.write_bytes(content)
    assert against_the_file("new") == "unknown"
    assert (
        "images of the same names have changed since (of the same size in all): accuracies cannot be c" in caplog.text
    )
    assert against_the_file("old") == "+0.00"


def test_nothing_that_leaves_the_machine_names_a_path_of_it(trained, tmp_path_factory):
    for path in trained.glob("*_model.safetensors"):
        assert str(tmp_path_factory.getbasetemp()).encode() not in path.read_bytes()


def test_data_that_lie_elsewhere_now_are_named(trained, colours, base, tmp_path, capsys):
    """Neither the file nor a run beside it tells where."""
    (tmp_path / "heads").mkdir()
    path = shutil.copy(trained / "colours_model.safetensors", tmp_path / "heads")
    shutil.copytree(colours, tmp_path / "moved")
    error = fails(capsys, vit_validation, "-m", path)
    assert f"{path} was trained on a base that lay in a folder {base.name}, and nothing tells where that is" in error
    error = fails(capsys, vit_validation, "-m", path, "--base_model", base)
    assert (
        "colours was trained on folder:colours, of which its file keeps no more, and nothing tells where that" in error
    )
    assert error.endswith("name it with --datasets folder:PATH.\n")
    named = ["--base_model", str(base), "--datasets", f"folder:{tmp_path / 'moved'}"]
    assert vit_validation.main([*QUICK, "-m", path, *named]) == 0
    assert rows_of(capsys.readouterr().out)["colours"]["against the file"] == "+0.00"


def test_several_runs_on_folders_of_one_name_are_no_guess(base, colours, tmp_path, capsys):
    for place in ("one", "two"):
        shutil.copytree(colours, tmp_path / place / "colours")
        train(base, tmp_path, "-d", f"folder:{tmp_path / place / 'colours'}", "--name", place, "--max_steps", "1")
    error = fails(capsys, vit_validation, "--models_folder", tmp_path, "-m", "one")
    assert (
        f"folder:colours may be folder:{tmp_path}/one/colours, folder:{tmp_path}/two/colours, by the runs in" in error
    )
    validate(tmp_path, "-m", "one", "--datasets", f"folder:{tmp_path}/one/colours")
    assert rows_of(capsys.readouterr().out)["one"]["against the file"] == "+0.00"


# ------------------------------------------------------------------------------------------------------ class by class
@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> list[str]:
    """Two classes to evaluate on, of 6 and 2 images; of the third there are none."""
    pictures = save_pictures(tmp_path_factory.mktemp("uneven") / "uneven", ["a", "b", "c"], lambda pixels, name: None)
    to_evaluate = [f"{name}/{number}.png" for name, count in (("a", 6), ("b", 2)) for number in range(count)]
    rows = [f"{name}/{number}.png" for name in "abc" for number in range(20)]
    lines = [f"{row},{row[0]},{'val' if row in to_evaluate else 'train'}" for row in rows]
    (pictures / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    return ["-d", f"folder:{pictures}", "--labels", str(pictures / "labels.csv")]


def test_accuracy_class_by_class_from_training_and_validation(base, uneven, tmp_path, capsys):
    train(base, tmp_path, *uneven, "-e", "1", "--lr", "0.3")
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "uneven_classes.json").read_text())
    images, right = ([each[key] for each in record["classes"]] for key in ("images", "right"))
    assert images == [6, 2, 0] and record["classes"][2]["accuracy"] is None
    top1 = heads.read_metadata(tmp_path / "uneven_model.safetensors")["metrics"]["eval"]["top1"]
    mean = (right[0] / 6 + right[1] / 2) / 2
    assert sum(right) / 8 == top1 == record["top1"] and record["mean_accuracy"] == pytest.approx(mean)
    assert f"uneven: top-1 {top1:.4f} (mean over classes {mean:.4f}) on 8 evaluation images" in printed
    assert printed.endswith("        1 of 3 classes has no evaluation image: c\n")
    assert (tmp_path / "uneven_confusion.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not list((tmp_path / "uneven_run").glob("*_classes.json"))

    validate(tmp_path, "-m", "uneven", "--classes", str(tmp_path / "seen"), "--output", str(tmp_path / "all.json"))
    printed = capsys.readouterr().out
    assert rows_of(printed)["uneven"]["mean of classes"] == f"{100 * mean:.2f}"
    assert "\nuneven: 1 of 3 classes has no evaluation image: c\n" in printed
    assert json.loads((tmp_path / "seen" / "uneven_classes.json").read_text()) == record
    assert (tmp_path / "seen" / "uneven_confusion.png").is_file()
    (row,) = json.loads((tmp_path / "all.json").read_text())["heads"]
    assert (row["mean_accuracy"], row["classes_without_images"]) == (record["mean_accuracy"], ["c"])


def test_all_heads_of_a_grid_that_are_kept_have_their_classes(base, uneven, tmp_path):
    train(base, tmp_path, *uneven, "--max_steps", "1", "--lr", "0.1", "0.3", "--keep_all")
    found = {path.name for path in tmp_path.glob("*_classes.json")}
    assert found == {"uneven_classes.json", "uneven-m1_lr0p1_s0_classes.json", "uneven-m1_lr0p3_s0_classes.json"}
    names = {json.loads((tmp_path / name).read_text())["head"] for name in found}
    assert names == {"uneven", "uneven-m1_lr0p1_s0", "uneven-m1_lr0p3_s0"}


def test_a_file_for_the_classes_is_refused_before_anything_is_done(trained, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", "--classes", tmp_path / "taken")
    assert f"--classes {tmp_path / 'taken'} is a file: name a folder." in error


# ------------------------------------------------------------------------------------------------- a faster arithmetic
@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx512_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n", False),
        ("processor : 0\nFeatures : fp asimd bf16\n", False),
    ],
)
def test_whether_a_processor_has_matrix_units(tmp_path, cpuinfo, has):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert model_command.has_bfloat16_units(tmp_path / "cpuinfo") is has
    assert model_command.has_bfloat16_units(tmp_path / "none") is False


@pytest.mark.parametrize(("units", "more"), [(True, ()), (True, ("--precision", "float32")), (False, ())])
def test_faster_arithmetic_is_told_of_once_where_nobody_chose(
    trained, base, brightness, tmp_path, monkeypatch, caplog, more, units
):
    monkeypatch.setattr(model_command, "has_bfloat16_units", lambda: units)
    caplog.set_level("INFO")
    data = f"folder:{brightness}"
    commands = {
        "train": lambda: train(base, tmp_path, "-d", data, "--max_steps", "1", *more),
        "validate": lambda: validate(trained, "-m", "brightness", *more),
        "predict": lambda: vit_predict.main(
            [str(brightness / "dark"), "--heads", "brightness", "--models_folder", str(trained), *QUICK, *more]
        ),
    }
    for command in commands.values():
        caplog.clear()
        command()
        told = [line for line in caplog.messages if "--precision bfloat16 would be several times as fast" in line]
        assert len(told) == (units and not more)


# ------------------------------------------------------------------------------------------------------------ wrong use
def fails(capsys, command, *flags) -> str:
    """The one line with which a command line ends; exit code 2."""
    capsys.readouterr()
    code = run_command(command.main, [*QUICK, *map(str, flags)], prog="prog")
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("prog: error: ")
    return printed.err


def test_training_on_unknown_data(tmp_path, base, capsys):
    error = fails(capsys, vit_train, "--base_model", base, "--output", tmp_path, "-d", "digit")
    assert "unknown data set 'digit', did you mean Digits?" in error
    error = fails(capsys, vit_train, "--base_model", base, "--output", tmp_path, "-d", f"folder:{tmp_path}/none")
    assert f"folder:{tmp_path}/none is not a folder" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(tmp_path, base, trained, capsys):
    error = fails(capsys, vit_train, "--base_model", base, "--output", tmp_path, "-d", "Digits", "--device", "cuda")
    assert "--device is cuda, which this machine does not have (" in error and error.endswith("use cpu or auto.\n")
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", "--device", "cuda:1")
    assert "--device is cuda:1, which this machine does not have" in error
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_nobody_has(capsys):
    with pytest.raises(SystemExit) as ended:
        vit_train.main(["-d", "Digits", "--device", "gpu"])
    assert ended.value.code == 2
    assert "--device is 'gpu', but it has to be auto, cpu, cuda, mps or xpu" in capsys.readouterr().err


def test_a_base_folder_that_is_not_there(tmp_path, capsys):
    error = fails(capsys, vit_train, "--base_model", tmp_path / "none", "--output", tmp_path, "-d", "Digits")
    assert f"the base model '{tmp_path / 'none'}' is neither a folder" in error
    assert error.endswith("or take the one that ships: --base_model models/base-tiny\n")


def test_a_rate_that_destroys_the_head_is_an_error(tmp_path, base, colours, capsys):
    flags = ["--base_model", base, "--output", tmp_path, "-d", f"folder:{colours}", "--lr", "1e38"]
    assert run_command(vit_train.main, [*QUICK, *map(str, flags)], prog="prog") == 2
    error = capsys.readouterr().err
    assert re.search(r"prog: error: The loss of colours is \S+, .* at step \d+ and rate \S+: lower --lr\.\n", error)
    assert not (tmp_path / "colours_model.safetensors").exists()


def test_an_error_within_training_has_the_last_line_for_itself(tmp_path, base, colours, capsys):
    flags = ["--base_model", base, "--output", tmp_path, "-d", f"folder:{colours}", "--lr", "1e38"]
    run_command(vit_train.main, [*QUICK, *map(str, flags)], prog="prog")
    assert capsys.readouterr().err.splitlines()[-1].startswith("prog: error: The loss of colours is ")


@pytest.mark.slow
def test_a_broken_image_in_a_loading_process_is_one_line_that_names_it(tmp_path, base, capsys):
    folder = save_pictures(tmp_path / "data", ["a", "b"], lambda pixels, name: None)
    for path in (folder / "a").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    flags = ["--base_model", base, "--output", tmp_path, "-d", f"folder:{folder}", *QUICK, "--workers", "1"]
    assert run_command(vit_train.main, [*map(str, flags)], prog="prog") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"prog: error: cannot read the image .*/data/a/\d+\.png \(", last) and "Traceback" not in last


@pytest.mark.slow
def test_an_interrupted_run_is_repeated_without_a_flag(tmp_path, base, brightness):
    (tmp_path / "brightness_run").mkdir()
    (tmp_path / "brightness_run" / "metrics.jsonl").write_text("{}\n")
    train(base, tmp_path, "-d", f"folder:{brightness}", "-e", "1")
    assert (tmp_path / "brightness_model.safetensors").exists()


@pytest.mark.slow
def test_a_head_on_a_folder_that_has_heads_already(tmp_path, base, brightness):
    model = MemoryCapableViT.from_pretrained(base)
    model.add_head("brightness", 2)
    model.save_pretrained(tmp_path / "base")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "base")
    train(tmp_path / "base", tmp_path, "-d", f"folder:{brightness}", "-e", "1")
    assert heads.read_metadata(tmp_path / "brightness_model.safetensors")["base"]["fingerprint"] == model.fingerprint


def test_heads_are_loaded_after_those_that_they_extend(trained, base, brightness, tmp_path, capsys):
    model = MemoryCapableViT.from_pretrained(base)
    parent = trained / "brightness_model.safetensors"
    model.load_head(parent)
    model.add_head("child", 2, extends=["brightness"], metadata=dict(model.heads["brightness"].spec.metadata))
    model.save_head("child", tmp_path / "child.safetensors")
    data = f"folder:{brightness}"
    validate(
        trained, "-m", str(tmp_path / "child.safetensors"), str(parent), "--base_model", str(base), "--datasets", data
    )
    assert list(rows_of(capsys.readouterr().out)) == ["child", "brightness"]


def test_a_folder_for_results_is_refused_before_anything_is_done(trained, tmp_path, capsys):
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", "--output", tmp_path)
    assert f"--output {tmp_path} is a folder: name a file in it" in error


def test_names_without_a_file(trained, capsys):
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", "colors")
    assert f"No head file for colors in {trained} (looked for colors_model.safetensors and colors_model.pt)." in error
    assert "Heads there: Digits, brightness, colours." in error


@pytest.mark.parametrize("counts", [["1"], ["2", "1"]])
def test_another_number_of_memory_tokens_than_the_files(trained, capsys, counts):
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", "brightness", "-t", *counts)
    wrong, count, has = ("colours", 1, 2) if counts == ["1"] else ("brightness", 1, 0)
    path = trained / heads.file_name(wrong)
    assert f"--number_of_memory_tokens says {count}, but {path} has {has}. Leave the flag out" in error


def test_a_head_of_another_base(trained, base, tmp_path, capsys):
    other = save_base(tmp_path / "other", seed=1)
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", "--base_model", other)
    assert f"colours was trained on another base ({base.name})" in error
    assert "base fingerprint" in error


def test_heads_of_two_bases_cannot_be_put_together(trained, base, brightness, tmp_path, capsys):
    other = save_base(tmp_path / "other", seed=1)
    train(other, tmp_path, "-d", f"folder:{brightness}", "-e", "1")
    stranger = tmp_path / "brightness_model.safetensors"
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", stranger)
    bases = rf"2 bases: colours on {base.name} \(\w{{8}}\), brightness on other \(\w{{8}}\)\."
    assert re.search(bases, error)


def test_two_heads_of_one_name(trained, tmp_path, capsys):
    path = copy_of(trained, tmp_path, "colours")
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", path)
    first = trained / "colours_model.safetensors"
    assert f"{first} and {path} both hold a head colours: two heads of one name cannot answer together." in error


def test_one_file_under_two_names(trained, capsys):
    path = trained / "colours_model.safetensors"
    error = fails(capsys, vit_validation, "--models_folder", trained, "-m", "colours", path)
    assert f"colours and {path} are the same head file" in error


def test_a_head_that_does_not_say_its_data(trained, tmp_path, capsys):
    file = heads.load(trained / "colours_model.safetensors")
    metadata = {key: value for key, value in file.metadata.items() if key != "dataset"}
    heads.save(tmp_path / "colours_model.safetensors", file.tensors, metadata)
    error = fails(capsys, vit_validation, "--models_folder", tmp_path, "-m", "colours")
    assert "The head colours does not say on which data it was trained" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (
            ["vit_train.py", "-d", "Digits"],
            "the base model 'google/vit-base-patch32-224-in21k' is neither a folder nor a file, nor in the cache",
        ),
        (["vit_validation.py", "-m", "Digits"], "No head file for Digits in models (looked for"),
    ],
    ids=["vit_train.py", "vit_validation.py"],
)
def test_without_network_or_files_a_shell_sees_one_line_and_exit_code_2(tmp_path, command, error):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / command[0]), *command[1:], "--directory", str(tmp_path)]
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith(f"{command[0]}: error: {error}")
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr
    if command[0] == "vit_train.py":
        assert ran.stderr.endswith("or take the one that ships: --base_model models/base-tiny\n")
    assert not (tmp_path / "models").exists()


# ------------------------------------------------------------------------------------------------------------ real data
@pytest.mark.slow
@pytest.mark.skipif(not CIFAR100.is_dir(), reason="the files of CIFAR-100 are not on this machine")
@pytest.mark.skipif(not BASE_TINY.is_dir(), reason="models/base-tiny is not there")
def test_real_images_together_with_digits_score_as_alone(tmp_path, capsys):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "cifar100").symlink_to(CIFAR100)
    data = ["--directory", str(tmp_path), "--batch_size", "64"]
    models = tmp_path / "models"
    train(BASE_TINY, models, "-d", "CIFAR100-new20", "--max_steps", "40", "--lr", "0.3", *data)
    train(BASE_TINY, models, "-d", "Digits", "--max_steps", "40", "--lr", "0.3", *data)
    capsys.readouterr()
    validate(models, "-m", "CIFAR100-new20", "Digits", *data)
    together = rows_of(capsys.readouterr().out)
    for name, images in (("CIFAR100-new20", "2,000"), ("Digits", "359")):
        validate(models, "-m", name, *data)
        assert rows_of(capsys.readouterr().out) == {name: together[name]}
        assert together[name]["images"] == images
        assert together[name]["against the file"] == "+0.00"
    assert float(together["CIFAR100-new20"]["top-1"]) > 20  # chance is 5
    assert float(together["Digits"]["top-1"]) > 40  # chance is 10


# ------------------------------------------------------------------------------------------------ names and selections
@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "loss", "top1"])
def test_a_head_may_be_called_as_a_metric_is(name, base, colours, tmp_path):
    train(base, tmp_path, "-d", f"folder:{colours}", "--name", name, "--max_steps", "2")
    assert (tmp_path / f"{name}_model.safetensors").is_file()
    rows = read_metrics(tmp_path / f"{name}_run" / "metrics.jsonl")
    assert {"train/loss", "select/top1"} <= set().union(*rows)


@pytest.mark.slow
def test_the_curves_of_a_data_seed_are_its_own(base, colours, tmp_path):
    train(base, tmp_path, "-d", f"folder:{colours}", "--data_seeds", "0", "1", "--max_steps", "2", "--name", "two")
    rows = read_metrics(tmp_path / "two_run" / "metrics.jsonl")
    heads_of = {key.rpartition("/")[2] for row in rows for key in row if key.startswith("select/top1")}
    assert len(heads_of) == 2 and all(name.startswith("two-") for name in heads_of)
    for name in heads_of:
        assert [row["step"] for row in metrics_of(rows, name) if "select/top1" in row] == [2]


def test_a_name_that_torch_needs_asks_for_another(base, colours, tmp_path, capsys):
    line = [*QUICK, "--base_model", str(base), "--output", str(tmp_path), "-d", f"folder:{colours}", "--name", "train"]
    assert run_command(vit_train.main, line) == 2
    assert "'train' cannot be the name of a head" in (error := capsys.readouterr().err)
    assert error.endswith("Give another one with --name.\n")


@pytest.mark.slow
def test_heads_of_both_splits_of_a_data_set_are_validated_on_their_own(base, tmp_path):
    write_sun(tmp_path, partition=True)
    where = ["--directory", str(tmp_path)]
    for split in ("seeded", "official"):
        train(base, tmp_path, "-d", "Sun", "--split", split, "--name", split, "--max_steps", "2", *where)
    results = tmp_path / "results.json"
    validate(tmp_path, "-m", "seeded", "official", "--output", str(results), *where)
    rows = json.loads(results.read_text())["heads"]
    assert [row["dataset"]["split"] for row in rows] == ["seeded", "official"]
    assert [row["difference"] for row in rows] == [0, 0]
    hashes = [row["dataset"]["splits"]["eval"]["hash"] for row in rows]
    assert hashes[0] != hashes[1]


@pytest.mark.slow
def test_a_label_column_is_remembered(base, tmp_path):
    """Two columns could be the labels: the one that was named is in the head, and validation takes it again."""
    features = Features({"image": datasets.Image(), "animal": PETS, "mood": ClassLabel(names=["calm", "glad", "sad"])})
    pictures = [{"bytes": encode(row), "path": None} for row in range(12)]
    columns = {"image": pictures, "animal": [0, 1] * 6, "mood": [0, 1, 2] * 4}
    Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "pets.parquet"))
    name = f"parquet:{tmp_path / 'pets.parquet'}"
    line = [*QUICK, "--base_model", str(base), "--output", str(tmp_path), "-d", name, "--directory", str(tmp_path)]
    with pytest.raises(ValueError, match="name one of animal, mood with --label_column"):
        vit_train.main(line)
    assert vit_train.main([*line, "--label_column", "mood", "--max_steps", "2"]) == 0
    assert heads.load(tmp_path / "pets_model.safetensors").metadata["labels"] == ["calm", "glad", "sad"]
    results = tmp_path / "results.json"
    validate(tmp_path, "-m", "pets", "--output", str(results), "--directory", str(tmp_path))
    assert json.loads(results.read_text())["heads"][0]["difference"] == 0
