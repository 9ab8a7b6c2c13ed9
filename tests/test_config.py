"""Options: what is legal, what each flag says when it is not, and that all three forms (flags, objects, JSON) agree."""

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from learnable_memory import commands
from learnable_memory.commands import run_command
from learnable_memory.config import TrainOptions, ValidationOptions, build_parser, default_workers, head_name, to_dict
from learnable_memory.options import Options, add_arguments, at_least, from_arguments, option, parse


def train(*argv: str) -> TrainOptions:
    return parse(TrainOptions, "Train.", ["--dataset", "Digits", *argv])


def refused(capsys: pytest.CaptureFixture, cls: type[Options], *argv: str) -> str:
    """What is written to stderr when the command line is refused: one line, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        parse(cls, "A command.", argv, prog="command.py")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("command.py: error: ") and error.count("\n") == 1 and error.endswith("\n")
    return error


# ------------------------------------------------------------------------------------------------------------ training


def test_training_defaults_are_those_of_the_design():
    assert to_dict(train()) == {
        "dataset": "Digits",
        "directory": str(Path.home()),
        "split_seed": 0,
        "no_download": False,
        "base_model": "google/vit-base-patch32-224-in21k",
        "name": "Digits",
        "number_of_memory_tokens": 1,
        "regime": "memory",
        "memory_norm": True,
        "epochs": 20,
        "batch_size": 64,
        "lr": 0.03,
        "momentum": 0.9,
        "clip": 1.0,
        "warmup_steps": 5,
        "max_steps": None,
        "seed": 0,
        "output": "models",
        "overwrite": False,
        "workers": default_workers(),
        "device": "auto",
    }


def test_short_flags_mean_the_long_ones():
    meant = {"dataset": "CIFAR100", "directory": "data", "epochs": 3, "batch_size": 8, "number_of_memory_tokens": 5}
    short = ["-d", "CIFAR100", "-r", "data", "-e", "3", "-b", "8", "-m", "5"]
    long = [word for name, value in meant.items() for word in (f"--{name}", str(value))]
    assert parse(TrainOptions, "", short) == parse(TrainOptions, "", long) == TrainOptions(**meant)


def test_switches():
    assert train("--no-memory_norm").memory_norm is False
    assert train("--memory_norm").memory_norm is True
    assert train("--overwrite", "--no_download").overwrite is True
    assert train("--overwrite", "--no_download").no_download is True


@pytest.mark.parametrize(
    ("argv", "tokens"),
    [
        (["--regime", "memory"], 1),
        (["--regime", "head+class"], 0),
        (["--regime", "head"], 0),
        (["--regime", "head", "-m", "0"], 0),
        (["-m", "0"], 0),
    ],
)
def test_the_regime_decides_how_many_memory_tokens_there_are(argv, tokens):
    assert train(*argv).number_of_memory_tokens == tokens


def test_a_regime_without_memory_refuses_memory_tokens():
    with pytest.raises(ValueError, match="is 5, but --regime head has no memory: leave one of the two out"):
        TrainOptions(dataset="Digits", regime="head", number_of_memory_tokens=5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "--epochs is 0, but it has to be 1 or more."),
        ({"batch_size": -3}, "--batch_size is -3, but it has to be 1 or more."),
        ({"number_of_memory_tokens": -1}, "--number_of_memory_tokens is -1, but it has to be 0 or more."),
        ({"lr": 0.0}, "--lr is 0.0, but it has to be a finite number above 0."),
        ({"lr": float("nan")}, "--lr is nan, but it has to be a finite number above 0."),
        ({"lr": float("inf")}, "--lr is inf, but it has to be a finite number above 0."),
        ({"clip": -1.0}, "--clip is -1.0, but it has to be a finite number above 0."),
        ({"momentum": 1.0}, "--momentum is 1.0, but it has to be at least 0 and less than 1."),
        ({"warmup_steps": -1}, "--warmup_steps is -1, but it has to be 0 or more."),
        ({"max_steps": 0}, "--max_steps is 0, but it has to be 1 or more."),
        ({"workers": -1}, "--workers is -1, but it has to be 0 or more."),
        ({"seed": -1}, "--seed is -1, but it has to be between 0 and 4294967295."),
        ({"split_seed": 2**32}, "--split_seed is 4294967296, but it has to be between 0 and 4294967295."),
        ({"regime": "full"}, "--regime is 'full', but it has to be one of memory, head+class, head."),
        ({"dataset": ""}, "--dataset is '', but it has to be a name or path without spaces around it."),
        ({"base_model": " x"}, "--base_model is ' x', but it has to be a name or path without spaces around it."),
        (
            {"device": "gpu"},
            "--device is 'gpu', but it has to be auto, cpu, cuda, mps or xpu, with a number if wanted (cuda:1).",
        ),
        (
            {"name": "a/b"},
            "--name is 'a/b', but it has to be made of letters, digits, '_', '+' and '-', and not the word 'base'.",
        ),
        (
            {"name": "base"},
            "--name is 'base', but it has to be made of letters, digits, '_', '+' and '-', and not the word 'base'.",
        ),
    ],
)
def test_bad_values_are_refused_with_what_is_legal(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainOptions(**{"dataset": "Digits"} | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 2.5}, "--epochs is 2.5 of type float, but it has to be of type int."),
        ({"epochs": True}, "--epochs is True of type bool, but it has to be of type int."),
        ({"epochs": None}, "--epochs is None of type NoneType, but it has to be of type int."),
        ({"lr": "0.1"}, "--lr is '0.1' of type str, but it has to be of type float."),
        ({"memory_norm": 1}, "--memory_norm is 1 of type int, but it has to be of type bool."),
    ],
)
def test_wrong_types_are_refused(wrong, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        TrainOptions(**{"dataset": "Digits"} | wrong)


def test_options_convert_what_is_meant_and_stay_as_they_were_checked():
    options = TrainOptions(dataset="Digits", lr=1, directory="~/data")
    assert options.lr == 1.0 and isinstance(options.lr, float)
    assert options.directory == Path.home() / "data"
    with pytest.raises(AttributeError, match="cannot assign to field 'lr'"):
        options.lr = -1.0
    with pytest.raises(ValueError, match=r"--lr is -1\.0"):
        replace(options, lr=-1.0)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("CIFAR100-new20", "CIFAR100-new20"),
        ("folder:/data/cats", "cats"),
        ("folder:cats/", "cats"),
        ("hf:someone/cats", "cats"),
        ("parquet:/data/cats.parquet", "cats"),
    ],
)
def test_a_head_is_named_after_its_data_set(dataset, name):
    assert head_name(dataset) == name
    assert TrainOptions(dataset=dataset).name == name
    assert TrainOptions(dataset=dataset, name="mine").name == "mine"


@pytest.mark.parametrize("dataset", ["folder:", "folder:my cats", "folder:/data/v1.5", "folder:/", "base"])
def test_a_data_set_without_a_usable_name_asks_for_one(dataset):
    with pytest.raises(ValueError, match=r"cannot be the head's name, .*: give --name\.$"):
        TrainOptions(dataset=dataset)
    assert TrainOptions(dataset=dataset, name="mine").name == "mine"


# ---------------------------------------------------------------------------------------------------------- validation


def test_validation_defaults_are_those_of_the_design():
    assert to_dict(ValidationOptions(models_list=["CIFAR100", "Digits"])) == {
        "models_list": ["CIFAR100", "Digits"],
        "models_folder": "models",
        "number_of_memory_tokens": None,
        "base_model": None,
        "output": None,
        "directory": str(Path.home()),
        "no_download": False,
        "batch_size": 64,
        "workers": default_workers(),
        "device": "auto",
    }


@pytest.mark.parametrize("flag", ["-m", "--models-list", "--models_list"])
def test_the_list_of_heads_has_three_spellings(flag):
    options = parse(ValidationOptions, "", [flag, "CIFAR100", "models/x.safetensors", "-t", "1", "5", "-b", "2"])
    assert options.models_list == ("CIFAR100", "models/x.safetensors")
    assert options.number_of_memory_tokens == (1, 5)
    assert options.batch_size == 2


def test_expected_memory_tokens_are_one_for_each_head():
    def expected(*counts: int) -> tuple:
        return ValidationOptions(models_list=["A", "B"], number_of_memory_tokens=counts or None).expected_memory_tokens

    assert expected() == (None, None)
    assert expected(5) == (5, 5)
    assert expected(0, 5) == (0, 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models_list": []}, "--models_list is empty, but it needs at least one value."),
        ({"models_list": [""]}, "--models_list is '', but it has to be a name or path without spaces around it."),
        ({"models_list": ["A", "B", "A"]}, "--models_list names A more than once: name each head once."),
        ({"number_of_memory_tokens": [-1]}, "--number_of_memory_tokens is -1, but it has to be 0 or more."),
        (
            {"number_of_memory_tokens": [1, 2]},
            "--number_of_memory_tokens has 2 numbers for 3 heads: give one for all, one for each, or leave it out.",
        ),
    ],
)
def test_bad_lists_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ValidationOptions(**{"models_list": ["A", "B", "C"]} | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models_list": "CIFAR100"}, "--models_list is 'CIFAR100', but it has to be a list of str values."),
        ({"number_of_memory_tokens": 1}, "--number_of_memory_tokens is 1, but it has to be a list of int values."),
    ],
)
def test_a_single_value_is_not_a_list(wrong, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        ValidationOptions(**{"models_list": ["A"]} | wrong)


# ------------------------------------------------------------------------------------------------- flags, JSON, parser


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(dataset="folder:/data/cats", number_of_memory_tokens=5, max_steps=3, output="runs/x", lr=1),
        TrainOptions(dataset="Digits", regime="head"),
        ValidationOptions(models_list=("A", "B"), number_of_memory_tokens=(1,), output="results.json"),
    ],
)
def test_json_gives_the_options_back(options):
    assert type(options)(**json.loads(json.dumps(to_dict(options)))) == options


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "the following arguments are required: -d/--dataset"),
        (["-d", "Digits", "-e", "many"], "argument -e/--epochs: invalid int value: 'many'"),
        (["-d", "Digits", "--regime", "full"], "argument --regime: invalid choice: 'full'"),
        (["-d", "Digits", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["-d", "Digits", "-m", "-1"], "--number_of_memory_tokens is -1, but it has to be 0 or more."),
        (["-d", "folder:"], "give --name."),
    ],
)
def test_wrong_use_ends_with_one_line_and_exit_code_2(capsys, argv, part):
    error = refused(capsys, TrainOptions, *argv)
    assert part in error
    assert "--help lists the options" in error


def test_validation_without_heads_is_refused(capsys):
    assert "required: -m/--models-list/--models_list" in refused(capsys, ValidationOptions)


@dataclass(frozen=True, kw_only=True)
class Inherited(Options):
    shared: int = option(0, "shared by all", group="later")


@dataclass(frozen=True, kw_only=True)
class Small(Inherited):
    share: float | None = option(None, "100% of it", unit="images", flags=("-s", "--share"), group="first")
    quiet: bool = option(False, "say nothing", group="first")
    steps: int = option(help="how far", legal=at_least(1), group="first")


def test_help_gives_meaning_unit_and_default_under_headings():
    text = build_parser(Small, "A small command.").format_help()
    listed = " ".join(text.split("A small command.")[1].split())
    listed = listed.replace("-s X, --share X", "-s, --share X")  # as Python 3.13 and later write it
    assert "first: -s, --share X 100% of it (images) --quiet say nothing --steps N how far (required)" in listed
    assert listed.endswith("later: --shared N shared by all (default: 0)")


def test_flags_can_be_added_to_a_parser_that_has_others():
    parser = argparse.ArgumentParser()
    parser.add_argument("--other")
    add_arguments(parser, Small)
    namespace = parser.parse_args(["--other", "x", "--steps", "3", "-s", "0.5"])
    assert from_arguments(Small, namespace) == Small(steps=3, share=0.5)


# ------------------------------------------------------------------------------------------------ how a command ends


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("The head is of\nanother base."), 2, "tool: error: The head is of another base.\n"),
        (ValueError(), 2, "tool: error: ValueError\n"),
        (FileNotFoundError("There is no head file x."), 2, "tool: error: There is no head file x.\n"),
        (FileExistsError("x exists"), 2, "tool: error: x exists\n"),
        (
            ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"),
            2,
            "tool: error: the package 'pyarrow' is missing: pip install -r requirements.txt\n",
        ),
        (KeyboardInterrupt(), 130, "tool: interrupted\n"),
    ],
)
def test_users_errors_end_in_one_line(capsys, error, code, line):
    assert run_command(raising(error), prog="tool") == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "bug",
    [
        KeyError("x"),
        TypeError("x"),
        AssertionError("x"),
        RuntimeError("x"),
        ModuleNotFoundError("x", name="learnable_memory.gone"),
    ],
)
def test_bugs_keep_their_traceback(bug):
    with pytest.raises(type(bug)):
        run_command(raising(bug), prog="tool")


def test_every_error_keeps_its_traceback_on_request(monkeypatch):
    monkeypatch.setenv(commands.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="wrong"):
        run_command(raising(ValueError("wrong")), prog="tool")


def test_a_command_gets_its_arguments_and_gives_its_exit_code():
    assert run_command(lambda argv: None, ["x"]) == 0
    assert run_command(lambda argv: len(argv), ["x", "y", "z"]) == 3
