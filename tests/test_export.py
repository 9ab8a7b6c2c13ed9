"""Files for other runtimes against the model that they were made of. Measured: at most 2e-6 of a head's logits."""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from learnable_memory import export as exporting
from learnable_memory.export import FORMATS, OnnxFile, check_format, check_inputs, differences, export
from learnable_memory.runlog import versions
from oracle import joint_logits
from stock_families import stock
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

# "linear" and "add" are what the ONNX exporter calls values of its own.
NAMES = ["A", "a-b", "C+D", "linear", "add", "probe"]
LABELS = ["ant", "bee", "cow", "dog"]


def with_mixed_heads(model: MemoryCapableViT) -> MemoryCapableViT:
    """Different numbers of memory tokens, none, a linear probe, both norms, and heads on top of others."""
    add_random_head(model, "A", 4, 2, metadata={"labels": LABELS})
    add_random_head(model, "a-b", 3, 1, extends=("A",))
    add_random_head(model, "C+D", 5, 0, memory_norm=False)
    add_random_head(model, "linear", 2, 3, extends=("a-b", "C+D"), memory_norm=False)
    add_random_head(model, "add", 2, 1)
    add_random_head(model, "probe", 3, 0, class_token=False)
    return model


def expected_logits(model: MemoryCapableViT, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """By the oracle, which knows no linear probe: that one reads the base's class token."""
    probe = model.heads["probe"]
    del model.heads["probe"]
    try:
        logits = joint_logits(model, pixel_values)
        states = model(pixel_values, heads=[], output_hidden_states=True)["base"].hidden_states[-1]
    finally:
        model.heads["probe"] = probe
    features = model.vit.layernorm(states)[:, 0]
    return logits | {"probe": F.linear(features, probe.classifier.weight, probe.classifier.bias)}


def served(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """As somebody serves the file who has nothing but it: the lines of the module's docstring."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = list(json.loads(session.get_modelmeta().custom_metadata_map["learnable_memory"])["heads"])

    def answers(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = session.run(names, {"pixel_values": pixel_values.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, logits, strict=True)}

    return answers


def run(path: Path, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    return served(path)(pixel_values)


def record_of(path: Path) -> dict:
    if path.suffix == ".onnx":
        import onnxruntime

        return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["learnable_memory"])
    files = {"learnable_memory": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["learnable_memory"])


# Tracing takes seconds: in the fast set there is one file, which is not translated to ONNX.
@pytest.fixture(scope="module", params=["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def exported(request, tmp_path_factory) -> tuple[MemoryCapableViT, Path, float]:
    """A model, its file, and the largest difference that `export` found."""
    model = with_mixed_heads(tiny_model(num_hidden_layers=1))
    path = tmp_path_factory.mktemp("export") / f"heads{FORMATS[request.param].suffix}"
    return model, path, export(model, path, request.param, metadata={"preprocessing": {"height": 16}})


@pytest.fixture
def untraced(monkeypatch) -> str:
    """A format without the seconds that tracing takes, for what is the same in all: the module stands for its file."""

    class Untraced:
        suffix, runtime, packages = ".txt", "torch", ()

        def __init__(self, program, outputs):
            self.program = program

        def write(self, path, record):
            path.write_text(json.dumps(record))

        def load(self, path):
            return self.program

    monkeypatch.setitem(FORMATS, "untraced", Untraced)
    monkeypatch.setattr(exporting, "_trace", lambda module, example: module)
    return "untraced"


# ------------------------------------------------------------------------------------------------- what a file answers
def test_a_file_answers_as_the_joint_masked_attention(exported):
    model, path, difference = exported
    answer = served(path)
    for batch in (1, 3, 7):
        pixel_values = images(batch, seed=batch)
        answers, expected = answer(pixel_values), expected_logits(model, pixel_values)
        assert list(answers) == ["base", *NAMES]
        for name in answers:
            assert answers[name].shape == expected[name].shape and answers[name].dtype == torch.float32
            assert (answers[name] - expected[name]).abs().max() < 1e-5
    assert difference < 5e-6  # 0 on processors where both runs take the same kernels


def test_a_file_says_what_it_is(exported):
    model, path, difference = exported
    record = record_of(path)
    runtime = {".onnx": "onnxruntime", ".pt2": "torch"}[path.suffix]
    found = record.pop("versions")
    assert found.items() >= versions().items()
    assert {"onnx", "onnxruntime", "onnxscript"} <= found.keys() or path.suffix == ".pt2"
    assert record.pop("checked") == {
        "with": f"{runtime} {importlib.metadata.version(runtime)}", "batches": [1, 2, 5, 4],
        "largest_difference": difference, "tolerance": 1e-4,
    }  # fmt: skip
    sizes = {"base": 5, "A": 4, "a-b": 3, "C+D": 5, "linear": 2, "add": 2, "probe": 3}
    labels = {"base": [f"LABEL_{number}" for number in range(5)], "A": LABELS}
    assert record == {
        "format_version": 1,
        "base": {"id": model.base_id, "fingerprint": model.fingerprint},
        "heads": {name: {"num_labels": count, "labels": labels.get(name)} for name, count in sizes.items()},
        "input": {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 16, 16]},
        "preprocessing": {"height": 16},
    }


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_the_graph_of_an_onnx_file(exported):
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[1])
    (pixels,), logits = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixel_values", "tensor(float)", [3, 16, 16])
    assert {output.name: (output.type, output.shape[1:]) for output in logits}["A"] == ("tensor(float)", [4])
    assert isinstance(pixels.shape[0], str)  # a name stands for any batch
    assert all(output.shape[0] == pixels.shape[0] for output in logits)
    onnx.checker.check_model(exported[1], full_check=True)


def test_a_file_does_not_tell_where_it_was_made(exported):
    """Traces of the exporter name source files; what a .pt2 holds lies uncompressed in it."""
    content = exported[1].read_bytes()
    for folder in (Path(__file__).parent, Path(exporting.__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in content


@pytest.mark.slow
def test_a_file_holds_the_heads_that_were_asked_for_in_that_order_and_no_others(tmp_path):
    model = with_mixed_heads(tiny_model(num_hidden_layers=1))
    path = tmp_path / "some.pt2"
    export(model, path, "torch-export", heads=["probe", "a-b"], with_base=False)
    state = torch.export.load(path).state_dict
    # besides those that were asked for, the one that a-b is built on
    assert {name.split(".")[2] for name in state if name.startswith("model.heads.")} == {"A", "a-b", "probe"}
    assert not any(name.startswith("model.classifier.") for name in state)
    answers, expected = run(path, images()), expected_logits(model, images())
    assert list(answers) == list(record_of(path)["heads"]) == ["probe", "a-b"]
    assert all((answers[name] - expected[name]).abs().max() < 1e-5 for name in answers)


def test_the_base_alone_can_be_written(tmp_path, untraced):
    export(tiny_model(), tmp_path / "base.txt", untraced)
    assert list(json.loads((tmp_path / "base.txt").read_text())["heads"]) == ["base"]


def test_a_base_without_a_classifier_has_no_output(tmp_path, untraced):
    model = MemoryCapableViT.from_base(tiny_model().vit)
    add_random_head(model, "A", 4)
    export(model, tmp_path / "heads.txt", untraced)
    assert list(json.loads((tmp_path / "heads.txt").read_text())["heads"]) == ["A"]


def test_folders_are_made(tmp_path, untraced):
    export(tiny_model(), tmp_path / "new" / "folder" / "base.txt", untraced)
    assert (tmp_path / "new" / "folder" / "base.txt").is_file()


# -------------------------------------------------------------------------------------------------------- other bases
def check_other_base(model: MemoryCapableViT, path: Path) -> None:
    assert export(model, path) < 5e-6
    pixel_values = torch.randn(3, 3, *model.image_size, generator=torch.manual_seed(5))
    answers = run(path, pixel_values)
    with torch.no_grad():
        expected = model(pixel_values)
    assert answers.keys() == expected.keys()
    for name, logits in answers.items():
        assert (logits - expected[name].logits).abs().max() < 1e-5
    assert record_of(path)["input"]["shape"] == ["batch", *pixel_values.shape[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dinov3", "siglip"])
def test_other_families(case, tmp_path):
    model = MemoryCapableViT.from_base(stock(case))
    add_random_head(model, "A", 4, 2, rank=2)
    check_other_base(model, tmp_path / "heads.onnx")


@pytest.mark.slow
def test_positions_are_resized_once_not_at_every_call(tmp_path):
    model = with_mixed_heads(MemoryCapableViT.from_base(stock("dinov2 registers")))
    model.set_image_size((48, 32))
    export(model, tmp_path / "base.pt2", "torch-export")
    called = {str(node.target) for node in torch.export.load(tmp_path / "base.pt2").graph.nodes}
    assert "aten.conv2d.default" in called and not [name for name in called if "upsample" in name]


# In ONNX alone: it is translated from what `torch.export` gives.
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "deit teacher", "dinov2 registers", "dinov3 gated", "clip", "siglip",
        pytest.param("beit", marks=pytest.mark.xfail(reason="known defect: BEiT is not exported yet")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(32, 32), (48, 32)], ids=str)
def test_families_and_sizes_of_images(case, size, tmp_path):
    model = with_mixed_heads(MemoryCapableViT.from_base(stock(case)))
    model.set_image_size(size)
    check_other_base(model, tmp_path / "heads.onnx")


@pytest.mark.slow
def test_a_stock_base_at_another_size(tmp_path):
    model = with_mixed_heads(tiny_model(num_hidden_layers=1))
    model.set_image_size((8, 20))
    check_other_base(model, tmp_path / "heads.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "relu"},
        pytest.param(
            {"image_size": [16, 32]}, marks=pytest.mark.xfail(reason="known defect: sides that differ in the config")
        ),
        {"patch_size": [4, 8]},
        {"qkv_bias": False},
        {"attn_implementation": "sdpa"},
    ],
    ids=str,
)
def test_bases_of_other_shapes(changes, tmp_path):
    check_other_base(with_mixed_heads(tiny_model(num_hidden_layers=1, **changes)), tmp_path / "heads.onnx")


# ------------------------------------------------------------------------------------------- kept only if it is right
def wrong_by(amount: float):
    """A `for_inference` whose head A answers its first class with so much more."""
    right = MemoryCapableViT.for_inference

    def for_inference(model, *args, **kwargs):
        served = right(model, *args, **kwargs)
        served.heads["A"].classifier.bias.data[0] += amount / 2  # `export` folds twice
        return served

    return for_inference


def test_a_file_is_kept_only_within_the_tolerance(tmp_path, monkeypatch, untraced):
    model = tiny_model(num_hidden_layers=1)
    add_random_head(model, "A", 4)
    add_random_head(model, "B", 3)
    path = tmp_path / "heads.txt"
    path.write_text("an earlier file")
    monkeypatch.setattr(MemoryCapableViT, "for_inference", wrong_by(1.0))
    largest = max(model(pixel_values)["A"].logits.abs().max().item() for pixel_values in check_inputs(16, 16))
    with pytest.raises(ValueError) as caught:
        export(model, path, untraced)
    assert str(caught.value) == (
        f"{path} was not written: its head A would answer differently from the model, by {1 / largest:.1e} of its "
        "largest logit; 1.0e-04 is allowed."
    )
    with pytest.raises(ValueError, match="was not written"):
        export(model, path, untraced, tolerance=0.99 / largest)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "an earlier file")]
    assert export(model, path, untraced, tolerance=1.01 / largest) == pytest.approx(1 / largest, rel=1e-4)
    assert path.read_text() != "an earlier file"


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_answers_differently_is_not_kept(format, tmp_path, monkeypatch):
    model = tiny_model(num_hidden_layers=1)
    add_random_head(model, "A", 4)
    monkeypatch.setattr(MemoryCapableViT, "for_inference", wrong_by(0.01))
    with pytest.raises(ValueError, match="its head A would answer differently from the model"):
        export(model, tmp_path / f"heads{FORMATS[format].suffix}", format)
    assert list(tmp_path.iterdir()) == []


def test_answers_that_are_no_numbers_are_not_kept(tmp_path, monkeypatch, untraced):
    model = tiny_model(num_hidden_layers=1)
    add_random_head(model, "A", 4)
    monkeypatch.setattr(MemoryCapableViT, "for_inference", wrong_by(float("nan")))
    with pytest.raises(ValueError, match=r"its head A would answer differently from the model, by inf of its"):
        export(model, tmp_path / "heads.txt", untraced, tolerance=1e30)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_knows_one_batch_only_is_not_kept(tmp_path, monkeypatch, untraced):
    def load(self, path):
        return lambda x: {name: logits[:1].expand_as(logits) for name, logits in self.program(x).items()}

    monkeypatch.setattr(FORMATS[untraced], "load", load)
    with pytest.raises(ValueError, match="its head base would answer differently"):
        export(tiny_model(), tmp_path / "base.txt", untraced)


def test_differences_are_shares_of_the_largest_logit_of_a_head():
    zeros = torch.zeros(1, 2)
    expected = [{"A": torch.tensor([[1.0, -4.0]]), "B": zeros}, {"A": torch.ones(1, 2), "B": zeros}]
    found = [expected[0], {"A": torch.tensor([[1.0, 3.0]]), "B": torch.tensor([[0, 0.25]])}]
    assert differences(expected, found) == {"A": 0.5, "B": 0.25}
    found[1]["B"][0, 1] = float("nan")
    assert differences(expected, found) == {"A": 0.5, "B": float("inf")}


def test_what_a_file_is_checked_with():
    inputs = check_inputs(8, 12)
    assert [tuple(batch.shape) for batch in inputs] == [(batch, 3, 8, 12) for batch in (1, 2, 5, 4)]
    assert all(torch.equal(one, other) for one, other in zip(inputs, check_inputs(8, 12), strict=True))
    assert (inputs[3][0] == 0).all() and inputs[3].abs().max() >= 100


def test_the_model_stays_as_it_was(tmp_path, untraced):
    model = with_mixed_heads(tiny_model())
    model.set_image_size(8)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, seed = model(images(size=8)), torch.get_rng_state()
    export(model, tmp_path / "heads.txt", untraced, heads=["A"], with_base=False)
    assert torch.equal(torch.get_rng_state(), seed)
    assert trainable == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert state.keys() == model.state_dict().keys() and model.head_names == NAMES
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for name, output in model(images(size=8)).items():
        assert torch.equal(output.logits, before[name].logits)


# ------------------------------------------------------------------------------------------------------------ refusals
def test_formats_and_names_of_files():
    with pytest.raises(ValueError, match=r"^The format is 'tflite'; legal: onnx, torch-export\.$"):
        check_format("tflite", "heads.tflite")
    with pytest.raises(
        ValueError, match=r"^heads\.pt does not end in \.pt2, as files of the format torch-export do\.$"
    ):
        check_format("torch-export", "heads.pt")


@pytest.mark.parametrize(
    ("version", "old"), [("2.4.1", True), ("2.8.0+cpu", True), ("2.9.0", False), ("2.15.0", False)]
)
def test_an_old_torch_is_refused(version, old, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    if not old:
        return check_format("onnx", "heads.onnx")
    with pytest.raises(ValueError) as caught:
        check_format("onnx", "heads.onnx")
    assert str(caught.value) == f"Exporting needs PyTorch 2.9, and this is {version}: pip install 'torch>=2.9'."


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ModuleNotFoundError) as caught:
        check_format("onnx", "heads.onnx")
    assert caught.value.name == package
    assert str(caught.value) == (
        f"the format onnx needs the package {package}, which is missing: pip install -e '.[onnx]'"
    )
    check_format("torch-export", "heads.pt2")


def test_a_model_in_another_precision_is_refused(tmp_path):
    model = tiny_model(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^The model is torch.bfloat16 on cpu: load it in float32 on the CPU"):
        export(model, tmp_path / "heads.onnx")


def test_nothing_to_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^There is nothing to export: name a head\.$"):
        export(tiny_model(), tmp_path / "heads.onnx", with_base=False)


def test_an_unknown_head_is_named(tmp_path):
    with pytest.raises(KeyError, match="There is no head 'Z'"):
        export(tiny_model(), tmp_path / "heads.onnx", heads=["Z"])


def program_of(**shapes: tuple[int, ...]) -> SimpleNamespace:
    """What `OnnxFile` looks at of a program before it translates it, without memory for the weights."""
    return SimpleNamespace(state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def test_weights_too_large_for_onnx_are_refused():
    with pytest.raises(ValueError) as caught:
        OnnxFile(program_of(a=(500_000, 1000), b=(125_000, 1000)), ["A"])
    assert str(caught.value) == (
        "The weights take 2.5 GB, and an ONNX file holds at most 2.1 GB: export with the format torch-export."
    )


def test_a_head_called_as_the_input_is_refused_in_onnx():
    with pytest.raises(ValueError) as caught:
        OnnxFile(program_of(), ["A", "pixel_values"])
    assert str(caught.value) == (
        "A head cannot be called pixel_values in an ONNX file, whose input has this name: rename it."
    )


def test_a_model_that_torch_cannot_export(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Constraints violated (batch)!\nmany more lines")

    monkeypatch.setattr(torch.export, "export", fail)
    model = tiny_model()
    add_random_head(model, "A", 3, 1)
    with pytest.raises(ValueError, match=r"cannot export this model: Constraints violated \(batch\)!$"):
        export(model, tmp_path / "a.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []
