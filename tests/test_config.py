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
from learnable_memory.method_spec import METHODS
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
        "split": "seeded",
        "split_seed": 0,
        "image_column": None,
        "label_column": None,
        "class_folders": None,
        "label_files": None,
        "on_bad_image": "stop",
        "decoding": "scaled",
        "no_download": False,
        "base_model": "google/vit-base-patch32-224-in21k",
        "image_size": None,
        "name": "Digits",
        "number_of_memory_tokens": [1],
        "method": ["memory"],
        "masking": ["masked"],
        "extends": None,
        "memory_norm": True,
        "memory_update": "none",
        "train_class_token": True,
        "rank": None,
        "rank_of": ["query", "output", "mlp_in", "mlp_out"],
        "optimizer": ["sgd"],
        "rank_lr": [1.0],
        "weight_decay": [0.0],
        "label_smoothing": [0.0],
        "ema": [0.0],
        "prompt_dropout": 0.0,
        "gradient_checkpointing": False,
        "attn_implementation": None,
        "epochs": 20,
        "batch_size": 64,
        "lr": [0.03],
        "seeds": [0],
        "folds": None,
        "data_seeds": None,
        "momentum": 0.9,
        "clip": 1.0,
        "warmup_steps": 5,
        "max_steps": None,
        "seed": 0,
        "init_from": None,
        "views": None,
        "cache": "none",
        "cache_dtype": "float32",
        "cache_form": "keys_values",
        "cache_folder": None,
        "checkpoint_steps": 500,
        "resume": False,
        "log_with": None,
        "output": "models",
        "keep_all": False,
        "overwrite": False,
        "workers": default_workers(),
        "device": "auto",
        "precision": None,
        "compile": False,
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
    assert train("--keep_all").keep_all is True


@pytest.mark.parametrize(
    ("argv", "tokens"),
    [
        (["--method", "memory"], (1,)),
        (["--method", "head+class"], (0,)),
        (["--method", "head"], (0,)),
        (["--method", "head", "head+class"], (0,)),
        (["--method", "head", "memory"], (1,)),
        (["--method", "head", "-m", "0"], (0,)),
        (["--method", "head", "memory", "-m", "5"], (5,)),
        (["-m", "0"], (0,)),
        (["-m", "20", "0", "5"], (20, 0, 5)),
    ],
)
def test_the_methods_decide_how_many_memory_tokens_there_are(argv, tokens):
    assert train(*argv).number_of_memory_tokens == tokens


@pytest.mark.parametrize(
    ("method", "tokens", "said"),
    [
        ("head", 5, "is 5, but --method head has no memory"),
        ("head+class", (0, 1), "is 0 1, but --method head+class has no memory"),
        (("head", "head+class"), 1, "is 1, but --method head head+class has no memory"),
    ],
)
def test_methods_without_memory_refuse_memory_tokens(method, tokens, said):
    with pytest.raises(ValueError, match=f"^--number_of_memory_tokens {re.escape(said)}: leave one of the two out"):
        TrainOptions(dataset="Digits", method=method, number_of_memory_tokens=tokens)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--method", "head", "--rank", "4"],
            "--rank belongs to lora, memory, head+class, and what is learned is head: leave it out.",
        ),
        (
            ["--masking", "none", "--rank", "4"],
            "--rank is 4, but low-rank weights belong to masked memory of each "
            "layer's own: leave it out, or --masking and --memory_update.",
        ),
        (["--rank_of", "key"], "--rank_of says what --rank of a head is for, and no head has one: leave it out."),
        (
            ["--method", "memory", "full", "--prompt_dropout", "0.1"],
            "--prompt_dropout belongs to vpt-shallow, vpt-deep, and what is learned is full, memory: leave it out.",
        ),
        (
            ["--method", "vpt-deep", "--no-memory_norm"],
            "--no-memory_norm belongs to memory, and what is learned is vpt-deep: leave it out.",
        ),
        (["-m", "0", "--no-memory_norm"], "--no-memory_norm belongs to memory, and what is learned is head+class: "),
        (["--method", "full", "--no-train_class_token"], "--no-train_class_token belongs to --masking none: "),
        (
            ["--method", "head", "memory", "--gradient_checkpointing"],
            "--gradient_checkpointing is for gradients through the base, and for head, memory there are none: leave it",
        ),
        (
            ["--method", "memory", "vpt-deep", "-m", "0", "5"],
            "vpt-deep needs at least one prompt, and one --number_of_memory_tokens is 0: leave 0 out; head+class is "
            "memory of 0 tokens.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_have_no_effect_is_refused(capsys, argv, said):
    assert said in refused(capsys, TrainOptions, "-d", "Digits", *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--method", "memory", "lora", "--rank", "4"],
        ["--method", "head", "vpt-shallow", "--prompt_dropout", "0.1"],
        ["--method", "full", "memory", "--no-memory_norm"],
        ["--method", "head", "full", "--gradient_checkpointing"],
        ["--masking", "masked", "none", "--gradient_checkpointing", "--no-train_class_token"],
        ["--method", "full", "memory", "--rank", "0", "8", "--memory_norm"],
    ],
    ids=" ".join,
)
def test_what_one_of_several_methods_is_told_is_legal(argv):
    assert train(*argv).method_specs


def test_the_older_spelling_of_method_is_understood():
    assert train("--regimes", "head", "memory") == train("--method", "head", "memory")


def test_several_values_are_a_grid():
    given = train("-m", "0", "5", "--lr", "0.01", "3e-2", "--seeds", "2", "0", "--method", "head", "memory")
    assert given.number_of_memory_tokens == (0, 5)
    assert given.lr == (0.01, 0.03)
    assert given.seeds == (2, 0)
    assert given.method == ("head", "memory")


def test_seed_stands_for_seeds_and_leaves_the_data_seeds_open():
    alone = train("--seed", "3")
    assert (alone.seeds, alone.data_seeds) == ((3,), None)
    given = train("--seed", "3", "--seeds", "0", "1", "--data_seeds", "7", "8")
    assert (given.seed, given.seeds, given.data_seeds) == (3, (0, 1), (7, 8))


@pytest.mark.parametrize(
    ("repeated", "message"),
    [
        ({"number_of_memory_tokens": (1, 5, 1)}, "--number_of_memory_tokens is 1 5 1: name each value once."),
        ({"number_of_memory_tokens": (0, 0)}, "--number_of_memory_tokens is 0 0: name each value once."),
        ({"method": ("head", "memory", "head")}, "--method is head memory head: name each value once."),
        ({"lr": (1, 1.0)}, "--lr is 1.0 1.0: name each value once."),
        ({"seeds": (0, 0)}, "--seeds is 0 0: name each value once."),
        ({"data_seeds": (2, 1, 2)}, "--data_seeds is 2 1 2: name each value once."),
    ],
)
def test_repeated_values_are_refused(repeated, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainOptions(**{"dataset": "Digits"} | repeated)


@pytest.mark.parametrize(
    ("argv", "views"),
    [
        ([], None),
        (["--cache", "none"], None),
        (["--cache", "memory"], 1),
        (["--cache", "disk"], 1),
        (["--cache", "disk", "--views", "0"], 0),
        (["--cache", "memory", "--views", "4"], 4),
        (["--views", "2"], 2),
    ],
)
def test_a_cache_keeps_one_view_where_nobody_chose(argv, views):
    assert train(*argv).views == views


def test_whether_a_precision_was_chosen_is_known():
    assert train().precision is None
    assert train("--precision", "bfloat16").precision == "bfloat16"


def test_a_run_is_not_both_gone_on_with_and_started_anew():
    with pytest.raises(ValueError, match=r"^--resume goes on with a run and --overwrite starts it anew: give one of"):
        TrainOptions(dataset="Digits", resume=True, overwrite=True)
    assert train("--resume").resume is True


@pytest.mark.parametrize(
    ("apart", "reason"),
    [
        ({"method": "full"}, "full is none: it changes the base's own weights"),
        (
            {"method": ("memory", "lora")},
            "lora, rank 8 is none: it changes what the base's own projections give",
        ),
        (
            {"masking": "none", "number_of_memory_tokens": 1},
            "memory, 1 cell, no mask is none: its memory is seen by the base's own tokens",
        ),
    ],
)
def test_folds_are_for_heads(apart, reason):
    with pytest.raises(ValueError, match=re.escape(f"--folds is for heads, which learn in one pass, and {reason}")):
        TrainOptions(dataset="Digits", folds=5, **apart)
    assert TrainOptions(dataset="Digits", folds=5, method="head").folds == 5


def test_values_that_only_look_alike_are_not_repeated():
    assert TrainOptions(dataset="Digits", lr=(0.1, 0.1000001)).lr == (0.1, 0.1000001)


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
        ({"views": -1}, "--views is -1, but it has to be 0 or more."),
        ({"folds": 1}, "--folds is 1, but it has to be 2 or more."),
        ({"checkpoint_steps": 0}, "--checkpoint_steps is 0, but it has to be 1 or more."),
        ({"cache": "ram"}, "--cache is 'ram', but it has to be one of none, memory, disk."),
        ({"cache_dtype": "int8"}, "--cache_dtype is 'int8', but it has to be one of float32, bfloat16, float16."),
        ({"cache_form": "pixels"}, "--cache_form is 'pixels', but it has to be one of keys_values, tokens."),
        ({"log_with": "paper"}, "--log_with is 'paper', but it has to be one of tensorboard, wandb."),
        ({"seeds": (0, -1)}, "--seeds is -1, but it has to be between 0 and 4294967295."),
        ({"data_seeds": 2**32}, "--data_seeds is 4294967296, but it has to be between 0 and 4294967295."),
        ({"lr": (0.1, 0.0)}, "--lr is 0.0, but it has to be a finite number above 0."),
        ({"lr": ()}, "--lr is empty, but it needs at least one value."),
        ({"seeds": []}, "--seeds is empty, but it needs at least one value."),
        ({"method": "all"}, f"--method is 'all', but it has to be one of {', '.join(METHODS)}."),
        ({"method": ("head", "all")}, f"--method is 'all', but it has to be one of {', '.join(METHODS)}."),
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
        ({"lr": (0.1, "0.3")}, "--lr is '0.3' of type str, but it has to be of type float."),
        ({"lr": None}, "--lr is None of type NoneType, but it has to be of type float."),
        ({"lr": {0.1}}, "--lr is {0.1} of type set, but it has to be of type float."),
        ({"seeds": True}, "--seeds is True of type bool, but it has to be of type int."),
        ({"seeds": 0.5}, "--seeds is 0.5 of type float, but it has to be of type int."),
        ({"method": 1}, "--method is 1 of type int, but it has to be of type str."),
        ({"memory_norm": 1}, "--memory_norm is 1 of type int, but it has to be of type bool."),
    ],
)
def test_wrong_types_are_refused(wrong, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        TrainOptions(**{"dataset": "Digits"} | wrong)


def test_options_convert_what_is_meant_and_stay_as_they_were_checked():
    options = TrainOptions(dataset="Digits", lr=[1, 0.5], directory="~/data")
    assert options.lr == (1.0, 0.5) and isinstance(options.lr[0], float)
    assert options.directory == Path.home() / "data"
    with pytest.raises(AttributeError, match="cannot assign to field 'lr'"):
        options.lr = (-1.0,)
    with pytest.raises(ValueError, match=r"--lr is -1\.0"):
        replace(options, lr=-1.0)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("CIFAR100-new20", "CIFAR100-new20"),
        ("folder:/data/cats", "cats"),
        ("folder:cats/", "cats"),
        ("hf:someone/cats", "cats"),
        ("hf:someone/cats:large", "cats-large"),
        ("vtab:dtd", "vtab-dtd"),
        ("fgvc:CUB", "fgvc-CUB"),
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


@pytest.mark.parametrize("path", ["./photos", "data/photos", "~/photos"])
def test_a_path_without_its_kind_is_told_what_to_write(path):
    message = f"--dataset is {path!r}, a path: write folder:{path}, or parquet:{path} for a table."
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainOptions(dataset=path)


# ---------------------------------------------------------------------------------------------------------- validation


def test_validation_defaults_are_those_of_the_design():
    assert to_dict(ValidationOptions(models_list=["CIFAR100", "Digits"])) == {
        "models_list": ["CIFAR100", "Digits"],
        "models_folder": "models",
        "number_of_memory_tokens": None,
        "base_model": None,
        "output": None,
        "datasets": None,
        "classes": None,
        "directory": str(Path.home()),
        "no_download": False,
        "batch_size": 64,
        "workers": default_workers(),
        "device": "auto",
        "precision": None,
        "attn_implementation": None,
        "compile": False,
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


def test_wrong_types_in_lists_are_refused():
    with pytest.raises(TypeError, match=r"^--models_list is 1 of type int, but it has to be of type str\.$"):
        ValidationOptions(models_list=["A", 1])
    with pytest.raises(TypeError, match=r"^--number_of_memory_tokens is '1' of type str, but it has to be of type int"):
        ValidationOptions(models_list=["A"], number_of_memory_tokens="1")


# ------------------------------------------------------------------------------------------- one value, several values


def test_one_value_is_a_list_of_one():
    meant = {"number_of_memory_tokens": 5, "method": "memory", "lr": 1, "seeds": 0, "data_seeds": 3}
    options = TrainOptions(dataset="Digits", **meant)
    assert options == TrainOptions(dataset="Digits", **{name: [value] for name, value in meant.items()})
    assert options.lr == (1.0,) and isinstance(options.lr[0], float)
    assert {name: getattr(options, name) for name in meant} == {name: (value,) for name, value in meant.items()}


def test_a_word_is_one_value_not_its_letters():
    options = ValidationOptions(models_list="CIFAR100", number_of_memory_tokens=1)
    assert options.models_list == ("CIFAR100",)
    assert options.number_of_memory_tokens == (1,)


# ------------------------------------------------------------------------------------------------- flags, JSON, parser


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(dataset="folder:/data/cats", number_of_memory_tokens=5, max_steps=3, output="runs/x", lr=1),
        TrainOptions(dataset="Digits", method="head"),
        TrainOptions(
            dataset="Digits",
            number_of_memory_tokens=(0, 20),
            method=("head", "memory"),
            lr=(0.1, 0.1000001, 1e-05),
            seeds=(1, 0),
            data_seeds=(4, 5),
            keep_all=True,
        ),
        TrainOptions(dataset="Digits", cache="disk", cache_folder="/data/cache", log_with=("wandb", "tensorboard")),
        TrainOptions(dataset="Digits", seed=3),
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
        (["-d", "Digits", "--method", "head", "all"], "argument --method/--regimes: invalid choice: 'all'"),
        (["-d", "Digits", "--methods", "head"], "unrecognized arguments: --methods head (did you mean --method?)"),
        (["-d", "Digits", "--seeds"], "argument --seeds: expected at least one argument"),
        (["-d", "Digits", "--lr", "0.1", "1e-1"], "--lr is 0.1 0.1: name each value once."),
        (["-d", "Digits", "--method", "head", "-m", "5"], "leave one of the two out"),
        (["-d", "Digits", "--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        (
            ["-d", "Digits", "--optimiser=adamw"],
            "unrecognized arguments: --optimiser=adamw (did you mean --optimizer?)",
        ),
        (["-d", "Digits", "--xyzzy"], "unrecognized arguments: --xyzzy (--help"),
        (["--datset", "Digits"], "are required: -d/--dataset; got --datset (did you mean --dataset?)"),
        (["-d", "Digits", "--optimizer", "adam"], "(did you mean adamw?)"),
        (["-d", "Digits", "-m", "-1"], "--number_of_memory_tokens is -1, but it has to be 0 or more."),
        (["-d", "folder:"], "give --name."),
        (["-d", "Digits", "--init_from", "A", "--folds", "3"], "that --folds would hold out: give one of them."),
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


@dataclass(frozen=True, kw_only=True)
class Several(Options):
    counts: tuple[int, ...] = option((0, 5), "how many", unit="tokens")
    kinds: tuple[str, ...] = option(("a", "b"), "which", choices=("a", "b", "c"))
    rest: tuple[float, ...] | None = option(None, "the others", default_help="none")


def test_help_shows_defaults_of_several_values_as_they_are_typed():
    text = " ".join(build_parser(Several, "").format_help().split())
    assert "--counts N [N ...] how many (tokens; default: 0 5)" in text
    assert "which (default: a b)" in text
    assert "--rest X [X ...] the others (default: none)" in text
    of_training = " ".join(build_parser(TrainOptions, "").format_help().split())
    of_training = of_training.replace("low- rank", "low-rank").replace("vpt- deep", "vpt-deep")  # broken at the dash
    assert "highest learning rate (default: 0.03)" in of_training
    assert "low-rank updates of queries and values; vpt-shallow, vpt-deep: prompts (default: memory)" in of_training


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
        (
            ModuleNotFoundError("x is a timm model: pip install timm", name="timm"),
            2,
            "tool: error: x is a timm model: pip install timm\n",
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
