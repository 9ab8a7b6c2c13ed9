"""`vit_train.py --method ...`: every method through the same command line, on a tiny base and generated images."""

import json
import sys

import pytest
import torch

import vit_train
from command_lines import QUICK, train, validate
from learnable_memory import heads, tuned_files
from learnable_memory.bits import unpack_bits
from learnable_memory.commands import model as model_module
from learnable_memory.commands import passes as passes_module
from learnable_memory.commands import run_command
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions
from learnable_memory.grid import Cell
from learnable_memory.method_spec import MethodSpec
from test_convolutional import saved

APART = ["full", "bias", "lora", "vpt-shallow", "vpt-deep"]


def refused(capsys, *flags: str) -> str:
    assert run_command(vit_train.main, [*QUICK, *map(str, flags)], prog="prog") == 2
    return capsys.readouterr().err.splitlines()[-1]


def grid_of(folder, name: str) -> dict[str, dict]:
    return {row["head"]: row for row in json.loads((folder / f"{name}_grid.json").read_text())["cells"]}


class Stop(Exception):
    pass


FLAGS = [
    *(["--method", method] for method in APART),
    ["--masking", "none"],
    ["--masking", "none", "--no-train_class_token"],
    ["--masking", "none", "--no-memory_norm"],
    ["--memory_update", "propagate"],
    ["--memory_update", "additive", "--masking", "none"],
]
FAST = (["--method", "full"], ["--method", "lora"], ["--masking", "none"])


@pytest.mark.parametrize(
    "flags", [pytest.param(flags, marks=[] if flags in FAST else pytest.mark.slow) for flags in FLAGS], ids=" ".join
)
def test_each_method_leaves_a_file_that_validation_repeats(tmp_path, base, colours, flags, capsys):
    train(base, tmp_path, "-d", f"folder:{colours}", "--max_steps", "2", "--lr", "0.1", *flags)
    file = tuned_files.load(tmp_path / "colours_model.safetensors")
    assert file.metadata["combinable"] is False and file.metadata["reason"]
    assert "network " in capsys.readouterr().out
    validate(tmp_path, "-m", "colours")
    assert "+0.00" in capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_of_all_methods_is_one_pass_of_heads_and_one_of_each_other(tmp_path, base, colours, monkeypatch):
    passes = []
    plain = passes_module.Pass.run

    def counted(self, *args):
        passes.append(len(self.names))
        return plain(self, *args)

    monkeypatch.setattr(passes_module.Pass, "run", counted)
    train(
        base, tmp_path, "-d", f"folder:{colours}", "-e", "2", "--lr", "0.1", "0.3", "--method", "head", "memory",
        "full", "-m", "0", "2", "--masking", "masked", "none", "--keep_all",
    )  # fmt: skip
    assert sorted(passes) == [1, 1, 1, 1, 6]  # 2 rates of: probe, head+class, masked; unmasked; full
    cells = grid_of(tmp_path, "colours")
    assert len(cells) == 10
    for name, row in cells.items():
        path = tmp_path / f"{name}_model.safetensors"
        if row["method"] == "full" or row["masking"] == "none":
            assert tuned_files.load(path).name == name and row["heads_in_pass"] == 1
        else:
            assert heads.load(path).metadata["name"] == name and row["heads_in_pass"] == 6
        right = unpack_bits(row["eval_right"], row["eval"]["images"])
        assert right.mean() == row["eval"]["top1"]
        assert row["steps"] == 2 * 6 and row["train_seconds"] > 0 and row["peak_memory_bytes"] > 0
    assert not list((tmp_path / "colours_run").glob("*.safetensors"))


@pytest.mark.slow
def test_a_cell_of_a_grid_is_the_run_alone(tmp_path, base, colours):
    common = ["-d", f"folder:{colours}", "-e", "2", "--lr", "0.1"]
    train(base, tmp_path / "grid", *common, "--method", "head", "vpt-deep", "full", "-m", "3", "--keep_all")
    for method, name in (("vpt-deep", "colours-vpt-deep3_lr0p1_s0"), ("full", "colours-full_lr0p1_s0")):
        count = ["-m", "3"] if method == "vpt-deep" else []
        train(base, tmp_path / method, *common, "--method", method, *count)
        alone = tuned_files.load(tmp_path / method / "colours_model.safetensors").tensors
        in_grid = tuned_files.load(tmp_path / "grid" / f"{name}_model.safetensors").tensors
        assert alone.keys() == in_grid.keys()
        assert all(torch.equal(alone[key], in_grid[key]) for key in alone)


@pytest.mark.slow
def test_one_that_diverges_ends_alone(tmp_path, base, colours, caplog):
    rates = ["--lr", "0.01", "1e30"]
    train(base, tmp_path, "-d", f"folder:{colours}", "-e", "1", *rates, "--method", "full", "head")
    cells = grid_of(tmp_path, "colours")
    assert cells["colours-full_lr1e+30_s0"]["diverged_at"] is not None
    assert cells["colours-full_lr1e+30_s0"]["eval"] is None
    assert cells["colours-full_lr0p01_s0"]["eval"] is not None
    assert "The other passes go on." in caplog.text


@pytest.mark.slow
def test_one_that_breaks_in_its_last_step_ends_alone(tmp_path, base, colours):
    """Its loss and gradients were finite in each step, only its loss on select is not: no other pass is lost."""
    rates = ["--lr", "1e30", "0.1", "--max_steps", "1"]
    train(base, tmp_path, "-d", f"folder:{colours}", "-e", "1", *rates, "--method", "full", "head", "--keep_all")
    cells = grid_of(tmp_path, "colours")
    broken = cells["colours-full_lr1e+30_s0"]
    assert broken["diverged_at"] is None and broken["select"]["loss"] is None
    assert cells["colours-full_lr0p1_s0"]["eval"]["images"] > 0
    assert not (tmp_path / "colours-full_lr1e+30_s0_model.safetensors").exists()
    assert (tmp_path / "colours-full_lr0p1_s0_model.safetensors").exists()


@pytest.mark.slow
def test_a_diverged_pass_is_not_made_again(tmp_path, base, colours, monkeypatch):
    flags = ["-d", f"folder:{colours}", "-e", "1", "--lr", "1e30", "0.1", "--method", "full", "vpt-deep"]
    plain, trained = passes_module.train, []

    def breaking(model, names, *args, **kwargs):
        trained.extend(names)
        if "vpt" in names[0]:
            raise Stop
        return plain(model, names, *args, **kwargs)

    monkeypatch.setattr(passes_module, "train", breaking)
    with pytest.raises(Stop):
        train(base, tmp_path, *flags)
    monkeypatch.setattr(
        passes_module, "train", lambda *args, **kwargs: trained.extend(args[1]) or plain(*args, **kwargs)
    )
    train(base, tmp_path, *flags, "--resume")
    assert trained.count("colours-full_lr1e+30_s0") == 1 and trained.count("colours-full_lr0p1_s0") == 1
    log = (tmp_path / "colours_run" / "metrics.jsonl").read_text()
    assert log.count('"train/loss/colours-full_lr1e+30_s0"') == 1


@pytest.mark.slow
def test_finished_passes_leave_no_checkpoint(tmp_path, base, colours, monkeypatch):
    states, plain = [], passes_module.train

    def looking(*args, **kwargs):
        states.append(len(list((tmp_path / "colours_run").glob("checkpoint*.pt"))))
        return plain(*args, **kwargs)

    monkeypatch.setattr(passes_module, "train", looking)
    train(base, tmp_path, "-d", f"folder:{colours}", "-e", "1", "--method", "full", "bias", "vpt-deep", "--lr", "0.1")
    assert states == [0, 0, 0]


def test_alone_a_diverging_method_is_refused_as_a_head_is(tmp_path, base, colours, capsys):
    flags = ["--base_model", base, "-d", f"folder:{colours}", "-e", "1", "--lr", "1e30", "--method", "full"]
    assert "lower --lr" in refused(capsys, *flags, "--output", tmp_path)


@pytest.mark.slow
def test_a_grid_that_broke_off_goes_on_with_the_passes_that_are_missing(tmp_path, base, colours, monkeypatch):
    flags = ["-d", f"folder:{colours}", "-e", "2", "--lr", "0.1", "--method", "full", "head", "vpt-deep", "--keep_all"]
    train(base, tmp_path / "whole", *flags)
    plain, trained = passes_module.train, []

    def breaking(model, names, *args, **kwargs):
        if len(trained) == 2:
            raise Stop
        trained.append(names)
        return plain(model, names, *args, **kwargs)

    monkeypatch.setattr(passes_module, "train", breaking)
    with pytest.raises(Stop):
        train(base, tmp_path / "broken", *flags)
    assert not (tmp_path / "broken" / "colours_model.safetensors").exists()
    monkeypatch.setattr(
        passes_module, "train", lambda *args, **kwargs: trained.append(args[1]) or plain(*args, **kwargs)
    )
    train(base, tmp_path / "broken", *flags, "--resume")
    assert len(trained) == 3
    for path in (tmp_path / "whole").glob("*-full*.safetensors"):
        one, other = (tuned_files.load(tmp_path / run / path.name).tensors for run in ("whole", "broken"))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_checkpointing_changes_no_bit(tmp_path, base, colours):
    for name, flags in {"kept": [], "again": ["--gradient_checkpointing"]}.items():
        train(base, tmp_path / name, "-d", f"folder:{colours}", "-e", "2", "--masking", "none", "-m", "2", *flags)
    kept, again = (
        tuned_files.load(tmp_path / name / "colours_model.safetensors").tensors for name in ("kept", "again")
    )
    assert all(torch.equal(kept[key], again[key]) for key in kept)


@pytest.mark.slow
def test_full_fine_tuning_in_bfloat16_learns_float32_weights(tmp_path, base, colours, capsys):
    flags = ["-d", f"folder:{colours}", "-e", "2", "--precision", "bfloat16", "--lr", "0.1"]
    train(base, tmp_path, *flags, "--method", "full")
    file = tuned_files.load(tmp_path / "colours_model.safetensors")
    weights = [tensor for name, tensor in file.tensors.items() if name.endswith("fc1.weight")]
    assert all(not torch.equal(weight, weight.bfloat16().float()) for weight in weights)
    capsys.readouterr()
    validate(tmp_path, "-m", "colours")
    assert "+0.00" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "head"])
def test_a_convolutional_base(tmp_path, colours, method, capsys):
    resnet = tmp_path / "resnet"
    saved("resnet", resnet)
    train(resnet, tmp_path, "-d", f"folder:{colours}", "-e", "2", "--lr", "0.1", "--method", method)
    assert tuned_files.load(tmp_path / "colours_model.safetensors").metadata["kind"] == "convolutional"
    capsys.readouterr()
    validate(tmp_path, "-m", "colours")
    assert "+0.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--method", "full", "--cache", "memory"],
            "--cache keeps what the base makes of an image, which is of no use to full",
        ),
        (["--method", "full", "head", "--extends", "Digits"], "--extends is for heads, which full is not: it changes"),
        (["--method", "full", "--masking", "none"], "--masking and --memory_update belong to --method memory"),
        (["--no-train_class_token"], "--no-train_class_token belongs to --masking none"),
        (["--memory_update", "additive", "-m", "0"], "need memory, but --number_of_memory_tokens is 0"),
        (["--method", "vpt-deep", "-m", "0"], "vpt-deep needs at least one prompt"),
        (["--attn_implementation", "flash_attention_2"], "needs --precision bfloat16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(tmp_path, base, colours, capsys, flags, said):
    with pytest.raises(SystemExit) as ended:
        vit_train.main([*QUICK, "-d", f"folder:{colours}", "--base_model", str(base), *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_convolutional_base_has_no_tokens_for_memory(tmp_path, colours, capsys):
    resnet = tmp_path / "resnet"
    saved("resnet", resnet)
    flags = ["-d", f"folder:{colours}", "--base_model", resnet, "--output", tmp_path]
    assert "it has no tokens for memory, 1 cell. Legal are --method full and head." in refused(capsys, *flags)
    for asked in (["--cache", "memory"], ["--folds", "2"]):
        assert "--cache, --extends and --folds are for heads" in refused(capsys, *flags, "--method", "head", *asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="where flash attention may work")
def test_attention_that_this_machine_lacks_is_refused(tmp_path, base, colours, capsys):
    flags = ["-d", f"folder:{colours}", "--base_model", base, "--precision", "bfloat16", "--output", tmp_path]
    error = refused(capsys, *flags, "--attn_implementation", "flash_attention_2")
    assert "--attn_implementation flash_attention_2 does not work here" in error


@pytest.mark.slow
def test_a_cell_with_dropout_is_the_run_alone(tmp_path, base, colours):
    common = ["-d", f"folder:{colours}", "-e", "2", "--lr", "0.1", "--method", "vpt-deep", "-m", "3"]
    common += ["--prompt_dropout", "0.3"]
    train(base, tmp_path / "grid", *common, "--seeds", "0", "1", "--keep_all")
    train(base, tmp_path / "alone", *common, "--seeds", "1")
    alone = tuned_files.load(tmp_path / "alone" / "colours_model.safetensors").tensors
    in_grid = tmp_path / "grid" / "colours-vpt-deep3-dropout0p3_lr0p1_s1_model.safetensors"
    in_grid = tuned_files.load(in_grid).tensors
    assert alone.keys() == in_grid.keys()
    assert all(torch.equal(alone[key], in_grid[key]) for key in alone)


def test_lora_without_peft_ends_in_one_line(tmp_path, base, colours, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    flags = ["-d", f"folder:{colours}", "--base_model", base, "--output", tmp_path, "--method", "lora"]
    assert refused(capsys, *flags) == "prog: error: LoRA needs the package peft: pip install -e '.[peft]'."


def test_attention_of_a_convolutional_base_is_refused(tmp_path, colours, capsys):
    resnet = tmp_path / "resnet"
    saved("resnet", resnet)
    flags = ["-d", f"folder:{colours}", "--base_model", resnet, "--output", tmp_path, "--method", "full"]
    assert refused(capsys, *flags, "--attn_implementation", "sdpa") == (
        f"prog: error: {resnet} is a convolutional network, without attention: leave --attn_implementation out."
    )


def base_for(model, **flags) -> TrainingBase:
    return TrainingBase(TrainOptions(dataset="Digits", base_model=str(model), device="cpu", no_download=True, **flags))


def test_what_a_base_cannot_learn_is_said_before_anything_is_trained(base, monkeypatch):
    opened = base_for(base)
    others = [MethodSpec(method) for method in ("head", "head+class", "full", "bias")]
    opened.check([*others, MethodSpec("vpt-deep", 2), MethodSpec("lora", rank=2)])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match="LoRA needs the package peft"):
        opened.check([*others, MethodSpec("lora", rank=2)])
    opened.vit.config._attn_implementation = "flash_attention_2"  # as if its package were here
    opened.check([*others, MethodSpec("memory", 2, "none", "propagate")])
    with pytest.raises(ValueError, match="memory, 2 cells, additive needs a mask, which flash_attention_2 does not"):
        opened.check([*others, MethodSpec("memory", 2, memory_update="additive")])


def test_what_a_convolutional_base_cannot_learn_is_said_before_anything_is_trained(tmp_path):
    saved("resnet", tmp_path)
    specs = [MethodSpec("head"), MethodSpec("full")]
    base_for(tmp_path, method="full").check(specs)
    with pytest.raises(ValueError, match="which has no gradient checkpointing: leave --gradient_checkpointing"):
        base_for(tmp_path, method="full", gradient_checkpointing=True).check(specs)
    options = TrainOptions(dataset="Digits", base_model=str(tmp_path), device="cpu", method="full")
    with pytest.raises(ValueError, match="which 2 processes would feed with different parts of each batch"):
        TrainingBase(options, processes=2, process=1).check(specs)


def test_exact_weights_take_the_attention_of_a_run_in_less_precision(base, monkeypatch):
    """Their arithmetic is autocast's: that they are float32 is no reason to refuse flash attention."""
    asked = []
    monkeypatch.setattr(model_module, "choose_attention", lambda model, *how: asked.append((model.dtype, *how)))
    flags = {"method": "full", "precision": "bfloat16", "attn_implementation": "flash_attention_2"}
    opened = base_for(base, **flags)
    opened.model({"x": Cell(MethodSpec("full"), 0.1, 0)}, num_labels=3)
    assert asked == [(kind, "flash_attention_2", "bfloat16") for kind in (torch.bfloat16, torch.float32)]
