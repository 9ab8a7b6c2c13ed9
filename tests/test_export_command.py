"""`python -m learnable_memory export` from flags to files, on a tiny base and heads with random weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ViTImageProcessor

from learnable_memory import export as exporting
from learnable_memory import heads
from learnable_memory.commands import run_command
from learnable_memory.commands.export import SUFFIXES, ExportOptions, main
from learnable_memory.transforms import Preprocessing
from tiny import add_random_head, images, tiny_base
from vit import MemoryCapableViT

PIXELS = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)
LARGE = PIXELS.at(24)
PLAIN = replace(PIXELS, mean=(0,) * 3, std=(1,) * 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_base(num_hidden_layers=1).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base) -> MemoryCapableViT:
    """The heads of the files in `folder`, as they were before they were saved."""
    model = MemoryCapableViT.from_pretrained(base)
    add_random_head(model, "A", 4, 2, metadata={"labels": list("abcd"), "preprocessing": PIXELS.to_dict()})
    add_random_head(model, "a-b", 3, 1, extends=("A",), metadata={"preprocessing": PIXELS.to_dict()})
    add_random_head(model, "silent", 2, 0, memory_norm=False)  # does not say how its pixels were made
    add_random_head(model, "large", 2, metadata={"preprocessing": LARGE.to_dict()})
    add_random_head(model, "plain", 2, metadata={"preprocessing": PLAIN.to_dict()})
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for name in model.head_names:
        model.save_head(name, folder / heads.file_name(name))
    return folder


def export(folder: Path, *flags) -> int:
    return run_command(main, ["--models_folder", str(folder), "--no_download", *map(str, flags)], prog="export")


def failed(capsys: pytest.CaptureFixture, folder: Path, *flags) -> str:
    """The one line that wrong use ends with."""
    assert export(folder, *flags) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err.removeprefix("export: error: ").rstrip()


@pytest.fixture
def exported(monkeypatch) -> list[tuple]:
    """What the library was asked to write, for what does not need the seconds that writing takes."""
    calls = []

    def note(model, path, *rest):
        calls.append((model, path, *rest))
        path.write_bytes(b"")
        return 1e-7

    monkeypatch.setattr(exporting, "export", note)
    return calls


# --------------------------------------------------------------------------------------------------------------- files
@pytest.mark.slow
def test_an_onnx_file_with_heads_and_base(model, folder, base, tmp_path, capsys, caplog):
    """A head that was merged with its parent, one that lies in the folder, and the base."""
    path, merged = tmp_path / "served.onnx", tmp_path / "both.safetensors"
    heads.save_all(merged, [heads.load(folder / heads.file_name(name)) for name in ("A", "a-b")])
    assert export(folder, "--heads", merged, "silent", "--with_base", "--output", path) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == ["base", "A", "a-b", "silent"]
    with torch.no_grad():
        expected = model(images(3))
    for output, logits in zip(
        session.get_outputs(), session.run(None, {"pixel_values": images(3).numpy()}), strict=True
    ):
        assert (torch.from_numpy(logits) - expected[output.name].logits).abs().max() < 1e-5
    record = json.loads(session.get_modelmeta().custom_metadata_map["learnable_memory"])
    assert Preprocessing.from_dict(record["preprocessing"]) == PIXELS
    assert record["preprocessing_words"] == PIXELS.words
    assert record["base"] == {"id": str(base), "fingerprint": model.fingerprint}
    assert record["heads"]["A"] == {"num_labels": 4, "labels": list("abcd")}
    printed = capsys.readouterr()
    size = f"{path.stat().st_size / 1e6:.1f}"
    assert printed.out.splitlines() == [
        f"written        {path}, {size} MB",
        "input          pixel_values, float32, batch x 3x16x16",
        f"preprocessing  {PIXELS.words}",
        "outputs        base (5 classes), A (4 classes), a-b (3 classes), silent (2 classes)",
        f"checked        differs from the model by at most {record['checked']['largest_difference']:.1e} of a head's "
        "largest logit (1.0e-04 is allowed)",
    ]
    assert not [
        record for record in caplog.records if record.name.startswith("onnx")
    ]  # its exporter has nothing to complain of


@pytest.mark.slow
def test_a_file_for_torch_export_load_of_heads_for_another_size(base, folder, tmp_path):
    path = tmp_path / "large.pt2"
    assert export(folder, "--heads", "large", "--format", "torch-export", "--output", path) == 0
    answers = torch.export.load(path).module()(images(3, size=24))
    alone = MemoryCapableViT.from_pretrained(base)
    alone.load_head(folder / "large_model.safetensors")
    alone.set_image_size(24)
    with torch.no_grad():
        expected = alone(images(3, size=24))["large"].logits
    assert list(answers) == ["large"]
    assert (answers["large"] - expected).abs().max() < 1e-5


def test_a_parent_is_found_and_does_not_answer(folder, tmp_path, exported, capsys):
    assert export(folder, "--heads", "a-b", "--output", tmp_path / "child.onnx") == 0
    ((model, path, format, names, with_base, record, tolerance),) = exported
    assert model.head_names == ["A", "a-b"] and names == ["a-b"]
    assert (path, format, with_base, tolerance) == (tmp_path / "child.onnx", "onnx", False, 1e-4)
    assert record == {"preprocessing": PIXELS.to_dict(), "preprocessing_words": PIXELS.words}
    assert "outputs        a-b (3 classes)" in capsys.readouterr().out.splitlines()


def test_the_file_lies_with_the_heads_unless_told_otherwise(folder, exported):
    for format, name in (("onnx", "heads.onnx"), ("torch-export", "heads.pt2")):
        assert export(folder, "--heads", "A", "--format", format, "--tolerance", "1e-3") == 0
        assert (folder / name).is_file()
        (folder / name).unlink()
    assert [(call[1].name, call[-1]) for call in exported] == [("heads.onnx", 1e-3), ("heads.pt2", 1e-3)]


def test_an_existing_file_is_replaced_only_if_told_so(folder, tmp_path, exported, capsys):
    path = tmp_path / "heads.onnx"
    path.write_text("earlier")
    assert failed(capsys, folder, "--heads", "A", "--output", path) == (
        f"{path} exists: choose another --output, or replace it with --overwrite."
    )
    assert path.read_text() == "earlier" and not exported
    assert export(folder, "--heads", "A", "--output", path, "--overwrite") == 0
    assert len(exported) == 1


# ----------------------------------------------------------------------------------------------------------- wrong use
def test_heads_that_need_other_pixels_are_refused(folder, exported, capsys):
    assert failed(capsys, folder, "--heads", "A", "large", "silent", "plain") == (
        f"One file takes one kind of pixels, and these heads need 3 (A, silent: {PIXELS.words}; large: {LARGE.words}; "
        f"plain: {PLAIN.words}). Export them apart, each to an --output of its own: --heads A silent, then "
        "--heads large, then --heads plain."
    )
    assert not exported


def test_heads_that_differ_in_decoding_alone_take_the_same_pixels(folder, tmp_path, exported):
    """Whoever runs the file decodes; what it says of the pixels is what all of them need."""
    scaled = replace(PIXELS, scaled_decoding=2)
    for name in ("A", "a-b"):
        file = heads.load(folder / heads.file_name(name))
        settings = {"preprocessing": scaled.to_dict()} if name == "a-b" else {}
        heads.save(tmp_path / heads.file_name(name), file.tensors, file.metadata | settings)
    for names, expected in ((["a-b", "A"], PIXELS), (["a-b"], scaled)):
        assert export(tmp_path, "--heads", *names, "--output", tmp_path / f"{len(names)}.onnx") == 0
        assert exported[-1][5] == {"preprocessing": expected.to_dict(), "preprocessing_words": expected.words}


def test_heads_of_one_file_that_need_other_pixels_have_to_be_split_first(folder, tmp_path, capsys):
    merged = tmp_path / "both.safetensors"
    heads.save_all(merged, [heads.load(folder / heads.file_name(name)) for name in ("A", "large")])
    assert "Export them apart after python -m learnable_memory heads split, each" in failed(
        capsys, folder, "--heads", merged
    )


def test_the_base_cannot_answer_from_the_pixels_of_other_heads(folder, exported, capsys):
    assert failed(capsys, folder, "--heads", "large", "--with_base") == (
        f"One file takes one kind of pixels: the base's own answers need images {PIXELS.words}, these heads "
        f"{LARGE.words}. Leave --with_base."
    )


def test_a_base_without_a_classifier_cannot_answer(base, folder, tmp_path, capsys):
    tiny_base(num_hidden_layers=1).vit.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert failed(capsys, folder, "--heads", "A", "--with_base", "--base_model", tmp_path) == (
        f"{tmp_path} has no classifier, so it has no answers of its own: leave --with_base."
    )


def test_heads_of_another_base_are_refused(folder, tmp_path, capsys):
    tiny_base(seed=1, num_hidden_layers=1).save_pretrained(tmp_path)
    assert "A was trained on another base" in failed(capsys, folder, "--heads", "A", "--base_model", tmp_path)


def test_a_head_that_is_not_there_is_named(folder, capsys):
    assert failed(capsys, folder, "--heads", "A", "Z").startswith(f"No head file for Z in {folder}")


def test_a_missing_package_is_named_before_anything_is_loaded(folder, capsys, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    assert failed(capsys, folder, "--heads", "Z") == (
        "the format onnx needs the package onnx, which is missing: pip install -e '.[onnx]'"
    )


@pytest.mark.slow
def test_a_file_that_answers_differently_is_an_error(folder, tmp_path, capsys, monkeypatch):
    fold = MemoryCapableViT.for_inference

    def folded_wrongly(model):
        served = fold(model)
        served.heads["A"].classifier.bias.data[0] += 1
        return served

    monkeypatch.setattr(MemoryCapableViT, "for_inference", folded_wrongly)
    flags = "--format", "torch-export", "--output", tmp_path / "heads.pt2"
    assert "its head A would answer differently from the model, by " in failed(capsys, folder, "--heads", "A", *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ([], "the following arguments are required: --heads"),
        (["--heads", "A", "--format", "tflite"], "argument --format: invalid choice: 'tflite'"),
        (["--heads", "A", "--tolerance", "0"], "--tolerance is 0.0, but it has to be a finite number above 0."),
        (["--heads", "A", "--output", "a.pt"], "--output is a.pt, but a file of --format onnx ends in .onnx."),
        (
            ["--heads", "A", "--output", "a.onnx", "--format", "torch-export"],
            "--output is a.onnx, but a file of --format torch-export ends in .pt2.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_are_not_legal(flags, error, capsys):
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"python -m learnable_memory export: error: {error}") and printed.count("\n") == 1


def test_options_know_what_the_library_knows():
    assert {name: kind.suffix for name, kind in exporting.FORMATS.items()} == SUFFIXES
    assert ExportOptions(heads=("A",)).tolerance == exporting.TOLERANCE
