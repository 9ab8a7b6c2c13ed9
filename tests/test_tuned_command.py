"""Command lines and networks that cannot be put together with heads: what evaluates them, shows them, refuses them.

What a network has to answer is worked out by HuggingFace's own models and processors.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTForImageClassification, ViTImageProcessor

import vit_predict
import vit_train
import vit_validation
from learnable_memory import heads, hub, tuned_files
from learnable_memory.commands import export, run_command
from learnable_memory.commands import heads as heads_command
from learnable_memory.convolutional import ConvolutionalBase
from learnable_memory.data import load_data_set
from learnable_memory.method_spec import MethodSpec
from learnable_memory.methods import TunedModel, build_network
from learnable_memory.transforms import Preprocessing
from tiny import add_random_head, tiny_base
from vit import MemoryCapableViT

QUICK = ["--workers", "0", "--batch_size", "8", "--device", "cpu", "--no_download"]
CLASSES = ["blue", "green", "red"]
UNMASKED = MethodSpec("memory", 2, masking="none")
REASONS = {
    "whole": "`full` model, not a head: it changes the base's own weights",
    "unmasked": "`memory` model, not a head: its memory is seen by the base's own tokens",
    "large": "`bias` model, not a head: it changes the base's own biases",
    "resnet": "`head` model, not a head: its base is a convolutional network, which has no tokens that heads could see",
}


# ------------------------------------------------------------------------------------------------------------ stand-ins
def processor(size: int = 16) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size})


def preprocessing(size: int = 16) -> dict:
    return Preprocessing(size, size, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3).to_dict()


def random_like(tensors: dict[str, torch.Tensor], std: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(tensor.shape, generator=generator) * std if tensor.is_floating_point() else tensor.clone()
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_base().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
    ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)).save_pretrained(folder)
    processor(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder for each class with 20 noisy PNGs of 20x20 pixels."""
    root, generator = tmp_path_factory.mktemp("pictures") / "colours", np.random.default_rng(0)
    for channel, name in enumerate(reversed(CLASSES)):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 100, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def stock_network(spec: MethodSpec, base: Path) -> tuple[dict[str, torch.Tensor], ViTForImageClassification]:
    """Random values of what full fine-tuning, or that of biases, learns, and HuggingFace's model that has them."""
    model = ViTForImageClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    names = [name for name in model.state_dict() if spec.method == "full" or name.endswith("bias")]
    names = sorted({*names, "classifier.weight", "classifier.bias"})
    tensors = random_like({name: model.state_dict()[name] for name in names})
    model.load_state_dict(tensors, strict=False)
    learned = {name if name.startswith("classifier") else f"base.{name}": value for name, value in tensors.items()}
    return learned, model.eval()


def scores(answers: Callable, data, size: int) -> tuple[float, float]:
    """Top-1 and mean loss on `eval` of what gives logits of HuggingFace's pixels."""
    images = [data.eval.image(row).convert("RGB") for row in range(len(data.eval))]
    pixel_values = processor(size)(images, return_tensors="pt")["pixel_values"]
    labels = torch.from_numpy(data.eval.labels)
    with torch.no_grad():
        logits = answers(pixel_values)
    return (logits.argmax(-1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


class Trained:
    """A folder of networks and two heads, and what each network scores: name -> (top-1, loss)."""

    def __init__(self, folder: Path, base: Path, resnet: Path, pictures: Path) -> None:
        self.folder, self.data = folder, load_data_set(f"folder:{pictures}", folder, download=False)
        self.scores: dict[str, tuple[float, float]] = {}
        model = MemoryCapableViT.from_pretrained(base)
        record = {"id": str(base), "fingerprint": model.fingerprint}
        for name, spec, size in (("whole", MethodSpec("full"), 16), ("large", MethodSpec("bias"), 32)):
            learned, stock = stock_network(spec, base)
            self.add(
                name, record, "vit", spec, learned, size,
                lambda pixels, stock=stock: stock(pixels, interpolate_pos_encoding=True).logits,
            )  # fmt: skip
        network = TunedModel({"unmasked": build_network(model, UNMASKED, 3)}, "", None)
        learned = random_like(network.heads["unmasked"].state_dict())
        network.heads["unmasked"].load_state_dict(learned)
        network.eval()
        self.add("unmasked", record, "vit", UNMASKED, learned, 16, lambda pixels: network(pixels)["unmasked"].logits)
        self.add_resnet(resnet)
        for name in ("A", "B"):
            add_random_head(model, name, 3, 1, ("A",) if name == "B" else (), metadata={"labels": CLASSES})
            model.save_head(name, folder / heads.file_name(name), {"dataset": self.data.record()})

    def add_resnet(self, resnet: Path) -> None:
        """A probe of a convolutional network; its features are those that HuggingFace's classifier reads."""
        convolutional = ConvolutionalBase.open(resnet, str(resnet))
        stock = ResNetForImageClassification.from_pretrained(resnet).eval()
        learned = random_like({"classifier.1.weight": torch.empty(3, 16), "classifier.1.bias": torch.empty(3)}, 3.0)
        weight, bias = learned.values()
        self.add(
            "resnet", {"id": str(resnet), "fingerprint": convolutional.fingerprint}, "convolutional",
            MethodSpec("head"), {f"model.{name}": tensor for name, tensor in learned.items()}, 32,
            lambda pixels: F.linear(stock.resnet(pixels).pooler_output.flatten(1), weight, bias),
        )  # fmt: skip

    def add(self, name: str, base: dict, kind: str, spec: MethodSpec, learned: dict, size: int, answers) -> None:
        self.scores[name] = scores(answers, self.data, size)
        known = {
            "labels": CLASSES, "preprocessing": preprocessing(size), "dataset": self.data.record(),
            "metrics": {"eval": {"top1": self.scores[name][0]}}, "training": {"precision": "float32"},
        }  # fmt: skip
        record = tuned_files.describe(name, base, kind, spec, 3, known)
        tuned_files.save(self.folder / heads.file_name(name), learned, record)

    def refusal(self, name: str) -> str:
        """What is said where heads are needed."""
        path = self.folder / heads.file_name(name)
        return f"{path} holds a {REASONS[name]}. Evaluate it alone with vit_validation.py."

    def copy(self, which: str, folder: Path, tensors: dict | None = None, **changes) -> Path:
        """A network's file with other tensors or metadata, in another folder; a change to ... takes the key away."""
        file = tuned_files.load(self.folder / heads.file_name(which))
        metadata = {key: value for key, value in {**file.metadata, **changes}.items() if value is not ...}
        return tuned_files.save(folder / heads.file_name(metadata["name"]), tensors or file.tensors, metadata)


@pytest.fixture(scope="module")
def trained(base, resnet, pictures, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("models"), base, resnet, pictures)


def refused(capsys, main: Callable, *argv: object) -> str:
    """The one line that a command line ends with; exit code 2, and nothing on stdout."""
    capsys.readouterr()
    assert run_command(main, list(map(str, argv)), prog="prog") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    return printed.err.splitlines()[-1].removeprefix("prog: error: ")


def validate(trained: Trained, *flags: object, folder: Path | None = None) -> list[dict]:
    output = (folder or trained.folder) / "results.json"
    where = ["--models_folder", folder or trained.folder, "--output", output]
    assert vit_validation.main([*QUICK, *map(str, [*where, *flags])]) == 0
    return json.loads(output.read_text())["heads"]


def validation_refused(capsys, folder: Path, *flags: object) -> str:
    return refused(capsys, vit_validation.main, *QUICK, "--models_folder", folder, *flags)


# ----------------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize(
    ("name", "method", "memory_tokens"),
    [("whole", "full", 0), ("large", "bias", 0), ("unmasked", "memory, 2 cells, no mask", 2), ("resnet", "head", 0)],
)
def test_one_network_is_evaluated_as_heads_are(trained, capsys, name, method, memory_tokens):
    (row,) = validate(trained, "-m", name)
    top1, loss = trained.scores[name]
    assert row["images"] == len(trained.data.eval) > 0
    assert row["top1"] == pytest.approx(top1, abs=1e-6) and row["loss"] == pytest.approx(loss, abs=1e-5)
    assert (row["stored_top1"], row["difference"]) == (pytest.approx(top1, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert (row["head"], row["method"], row["memory_tokens"]) == (name, method, memory_tokens)
    titles, line, _ = capsys.readouterr().out.splitlines()
    assert titles.split()[-4:] == ["against", "the", "file", "method"] and line.endswith(f"+0.00{' ' * 2}{method:>6}")


def test_a_network_in_another_place_on_another_copy_of_its_base(trained, base, tmp_path):
    there = tuned_files.load(trained.folder / "whole_model.safetensors").metadata["base"]
    path = trained.copy("whole", tmp_path, base={**there, "id": None})
    (row,) = validate(trained, "-m", path, "--base_model", base, "-t", "0")
    assert row["top1"] == pytest.approx(trained.scores["whole"][0], abs=1e-6)


@pytest.mark.parametrize("name", ["whole", "unmasked", "resnet"])
def test_precision_is_that_of_the_training_unless_told(trained, tmp_path, name):
    trained.copy(name, tmp_path, training={"precision": "bfloat16"})
    exact = trained.scores[name][1]
    (rounded,) = validate(trained, "-m", name, folder=tmp_path)
    assert rounded["loss"] != pytest.approx(exact, abs=1e-6)
    (told,) = validate(trained, "-m", name, "--precision", "float32", folder=tmp_path)
    assert told["loss"] == pytest.approx(exact, abs=1e-5)


def test_attention_that_cannot_be_is_refused(trained, resnet, capsys):
    def line(name, *flags):
        return validation_refused(capsys, trained.folder, "-m", name, "--attn_implementation", *flags)

    for name in ("whole", "unmasked", "A"):
        for precision in ("float32", "bfloat16"):
            assert line(name, "flash_attention_2", "--precision", precision) == (
                "--attn_implementation flash_attention_2 does not work here: it needs bfloat16 on a GPU, and this is "
                f"{precision} on cpu. Choose sdpa or eager, or give --precision and --device."
            )
    expected = f"{resnet} is a convolutional network, without attention: leave --attn_implementation out."
    assert line("resnet", "eager") == expected


def test_pixels_that_a_file_does_not_tell_are_those_of_the_base(trained, tmp_path):
    for name in ("whole", "resnet"):
        trained.copy(name, tmp_path, preprocessing=...)
        (row,) = validate(trained, "-m", name, folder=tmp_path)
        assert row["loss"] == pytest.approx(trained.scores[name][1], abs=1e-5)


@pytest.mark.parametrize("names", ["whole A", "A whole", "unmasked whole", "A resnet"])
def test_a_network_with_any_other_file_is_refused_with_the_reason(trained, capsys, names):
    first = next(name for name in names.split() if name in REASONS)
    assert validation_refused(capsys, trained.folder, "-m", *names.split()) == trained.refusal(first)


def test_another_base_is_refused(trained, tmp_path, capsys):
    tiny_base(seed=1).save_pretrained(tmp_path / "other")
    processor().save_pretrained(tmp_path / "other")
    line = validation_refused(capsys, trained.folder, "-m", "whole", "--base_model", tmp_path / "other")
    assert line.startswith("whole was trained on another base (") and "base fingerprint " in line


def test_another_convolutional_base_is_refused(trained, resnet, tmp_path, capsys):
    fingerprint = {"id": str(resnet), "fingerprint": "0" * 64}
    trained.copy("resnet", tmp_path, base=fingerprint)
    line = validation_refused(capsys, tmp_path, "-m", "resnet")
    assert line.startswith(f"resnet was trained on another base ({resnet}): base fingerprint {'0' * 64} in the file")


def test_tensors_that_do_not_fit_the_network_are_named(trained, base, tmp_path, capsys):
    tensors = dict(tuned_files.load(trained.folder / "unmasked_model.safetensors").tensors)
    tensors["memory.9"] = tensors.pop("memory.1")
    trained.copy("unmasked", tmp_path, tensors)
    line = validation_refused(capsys, tmp_path, "-m", "unmasked")
    assert line.startswith(f"unmasked does not fit its network on {base}. ")
    assert "memory.1: found nothing, expected [2, 32]; memory.9: found [2, 32], expected nothing" in line


def test_a_network_that_does_not_say_its_base_or_its_data(trained, base, tmp_path, capsys):
    trained.copy("whole", tmp_path, base={"id": None, "fingerprint": "0" * 64})
    assert validation_refused(capsys, tmp_path, "-m", "whole") == (
        "whole does not say which base it was trained on: name it with --base_model."
    )
    trained.copy("large", tmp_path, dataset=...)
    assert "does not say on which data it was trained" in validation_refused(capsys, tmp_path, "-m", "large")


def test_memory_tokens_that_are_expected(trained, capsys):
    validate(trained, "-m", "unmasked", "-t", "2")
    line = validation_refused(capsys, trained.folder, "-m", "unmasked", "-t", "3")
    path = trained.folder / "unmasked_model.safetensors"
    assert line.startswith(f"--number_of_memory_tokens says 3, but {path} has 2.")


# ----------------------------------------------------------------------------------------------------------- prediction
def predict(trained: Trained, capsys, *flags: object) -> list[dict]:
    capsys.readouterr()
    flags = [*flags, "--models_folder", trained.folder, "--json"]
    assert vit_predict.main([*map(str, flags), *QUICK]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_network_answers_for_images(trained, base, pictures, capsys):
    _, stock = stock_network(MethodSpec("full"), base)
    for line in predict(trained, capsys, *sorted(pictures.glob("red/1*.png"))[:3], "--heads", "whole"):
        with torch.no_grad(), Image.open(line["image"]) as image:
            pixel_values = processor()(image.convert("RGB"), return_tensors="pt")["pixel_values"]
            probabilities = stock(pixel_values).logits[0].softmax(-1)
        order = probabilities.argsort(descending=True).tolist()
        assert line["heads"].keys() == {"whole"}
        assert [answer["label"] for answer in line["heads"]["whole"]] == [CLASSES[index] for index in order]
        found = [answer["probability"] for answer in line["heads"]["whole"]]
        assert found == pytest.approx(probabilities[order].tolist(), abs=1e-5)


def test_classes_without_names_have_numbers(trained, pictures, tmp_path, capsys):
    path = trained.copy("resnet", tmp_path, labels=...)
    (line,) = predict(trained, capsys, pictures / "red/0.png", "--heads", path)
    assert sorted(answer["label"] for answer in line["heads"]["resnet"]) == ["class 0", "class 1", "class 2"]


def test_what_a_network_cannot_say_is_refused(trained, pictures, tmp_path, capsys):
    def line(*flags):
        flags = [pictures / "red/0.png", *flags, "--models_folder", trained.folder, *QUICK]
        return refused(capsys, vit_predict.main, *flags)

    what = f"whole is a {REASONS['whole']}. "
    picture = tmp_path / "attention.png"
    drawn = line("--heads", "whole", "--attention", picture)
    assert drawn == f"{what}--attention draws where heads look: leave it out." and not picture.exists()
    assert line("--heads", "whole", "--with_base") == f"{what}It answers alone: leave --with_base."
    assert line("--heads", "A", "whole") == trained.refusal("whole")


# ------------------------------------------------------------------------------------------------- what heads are for
@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (heads_command.main, ["merge", "A", "NAME", "--output", "new.safetensors", "--models_folder", "FOLDER"]),
        (heads_command.main, ["merge", "NAME", "--output", "new.safetensors", "--models_folder", "FOLDER"]),
        (heads_command.main, ["split", "NAME", "--output", "new.safetensors", "--models_folder", "FOLDER"]),
        (heads_command.main, ["push", "NAME", "repository", "--models_folder", "FOLDER"]),
        (export.main, ["--heads", "NAME", "--output", "new.onnx", "--models_folder", "FOLDER"]),
        (vit_train.main, [*QUICK, "-d", "Digits", "--extends", "PATH", "--output", "new"]),
    ],
    ids=["merge", "merge alone", "split", "push", "export", "train"],
)
def test_what_needs_heads_refuses_a_network_with_the_reason(trained, tmp_path, monkeypatch, capsys, main, argv, name):
    monkeypatch.chdir(tmp_path)
    Path("repository").mkdir()
    path = trained.folder / heads.file_name(name)
    stands_for = {"NAME": name, "FOLDER": trained.folder, "PATH": path}
    line = refused(capsys, main, *[stands_for.get(word, word) for word in argv])
    assert line == trained.refusal(name)
    assert list(Path("repository").iterdir()) == [] and not list(tmp_path.glob("new*"))


def test_a_network_is_not_fetched_as_a_head(trained, tmp_path, monkeypatch, capsys):
    path = trained.folder / "whole_model.safetensors"
    monkeypatch.setattr(hub, "from_hub", lambda *args, **kwargs: path)
    line = refused(capsys, heads_command.main, "fetch", "someone/pets", "-o", tmp_path)
    assert f"holds a {REASONS['whole']}" in line and list(tmp_path.iterdir()) == []


def test_a_network_with_the_name_of_a_parent_is_not_the_parent(trained, base, tmp_path, capsys):
    child = tmp_path / "B_model.safetensors"
    child.write_bytes((trained.folder / "B_model.safetensors").read_bytes())
    other = trained.copy("whole", tmp_path, name="A")
    line = validation_refused(capsys, tmp_path, "-m", "B")
    assert line.startswith(f"B extends A, but {other} is not the A that it was trained on")
    (tmp_path / "networks").mkdir()
    other.rename(tmp_path / "networks" / other.name)
    (tmp_path / "A_model.safetensors").write_bytes((trained.folder / "A_model.safetensors").read_bytes())
    assert [row["head"] for row in validate(trained, "-m", child, folder=tmp_path / "networks")] == ["B"]


# ----------------------------------------------------------------------------------------------------------- heads show
def show(trained: Trained, capsys, *flags: object) -> str:
    capsys.readouterr()
    argv = ["show", *flags, "--models_folder", trained.folder]
    assert run_command(heads_command.main, list(map(str, argv)), prog="prog") == 0
    return capsys.readouterr().out


def test_networks_are_rows_beside_heads_with_the_reason(trained, capsys):
    titles, *lines = show(trained, capsys, "A", "unmasked", "resnet").splitlines()
    shown = {line.split()[1]: line for line in lines[:3]}
    assert list(shown) == ["A", "unmasked", "resnet"]
    learned = {name: line[: titles.index("cells") + len("cells")].split()[-1] for name, line in shown.items()}
    assert learned == {"A": "1", "unmasked": "m2-unmasked", "resnet": "probe"}
    assert lines[-3:] == [
        "They cannot be put together:",
        f"  unmasked is a {REASONS['unmasked'].replace(', not a head', '')}",
        f"  resnet is a {REASONS['resnet'].replace(', not a head', '')}",
    ]


def test_a_network_by_itself(trained, capsys):
    assert show(trained, capsys, "whole").splitlines()[-2:] == [
        "It cannot be put together with others:",
        "  whole is a `full` model: it changes the base's own weights",
    ]


def test_a_folder_shows_networks_of_any_name(trained, tmp_path, capsys):
    trained.copy("whole", tmp_path).rename(tmp_path / "odd.safetensors")
    trained.copy("large", tmp_path)
    rows = json.loads(show(trained, capsys, tmp_path, "--json"))["heads"]
    assert [row["head"] for row in rows] == ["large", "whole"]


def test_json_says_all_of_it(trained, base, capsys):
    found = json.loads(show(trained, capsys, "whole", "--json"))
    path = trained.folder / "whole_model.safetensors"
    file = tuned_files.load(path)
    (row,) = found["heads"]
    assert row == {
        "file": str(path), "bytes": path.stat().st_size, "head": "whole", "base": file.metadata["base"], "classes": 3,
        "data": trained.data.name, "split": "seeded 0", "top1": trained.scores["whole"][0], "checksum": True,
        "preprocessing": {
            "size": "16x16", "name": None,
            "words": "resized to 16x16 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        },
        "kind": "vit", "spec": file.metadata["spec"], "reason": "it changes the base's own weights",
    }  # fmt: skip
    assert found["together"] == {
        "possible": False, "reasons": ["whole is a `full` model: it changes the base's own weights"], "passes": [],
    }  # fmt: skip


def test_a_damaged_network_is_a_row_too(trained, tmp_path, capsys):
    whole = (trained.folder / "whole_model.safetensors").read_bytes()
    broken = tmp_path / "whole_model.safetensors"
    broken.write_bytes(whole.replace(rb"\"combinable\":false", rb"\"combinable\":true "))
    capsys.readouterr()
    assert run_command(heads_command.main, ["show", str(broken)], prog="prog") == 1
    assert "what it holds is not what was written, as its checksum tells" in capsys.readouterr().out
