"""A model with its heads as one file for other runtimes: ONNX, or a program of `torch.export`.

The input is `pixel_values`, float32 [batch, channels, height, width] with any batch, prepared as the file's own record
says. There is one output for each head, called like the head: its logits, float32 [batch, C]. The record is JSON under
the key `learnable_memory`, so that the file alone is enough to serve it:

    session = onnxruntime.InferenceSession("heads.onnx")
    record = json.loads(session.get_modelmeta().custom_metadata_map["learnable_memory"])
    answers = dict(zip(record["heads"], session.run(list(record["heads"]), {"pixel_values": pixels})))

    files = {"learnable_memory": ""}
    program = torch.export.load("heads.pt2", extra_files=files).module()
    record, answers = json.loads(files["learnable_memory"]), program(pixels)
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from learnable_memory.files import replacing
from learnable_memory.model.loading import drop_classifier
from learnable_memory.runlog import versions

if TYPE_CHECKING:
    from vit import MemoryCapableViT

MINIMUM_TORCH = "2.9"
INPUT = "pixel_values"
RECORD_KEY = "learnable_memory"
RECORD_VERSION = 1
# Of a head's largest logit. Rounding in float32 leaves 1e-7 to 1e-5 of it; a mask, a memory or a position that went
# wrong changes some logit by a hundredth or more.
TOLERANCE = 1e-4
BATCHES = (1, 2, 5)  # what a file is checked with; 2 alone would not notice a batch that became a constant
EXTREME = 100.0  # normalised pixels are within -3 and 3
LARGEST_ONNX = 2**31 - 2**26  # bytes of weights: what protobuf can hold in one file, less room for the graph

Answers = dict[str, Tensor]


# ------------------------------------------------------------------------------------------------------------- formats
class OnnxFile:
    """ONNX, checked with onnxruntime on the CPU."""

    suffix, runtime, packages = ".onnx", "onnxruntime", ("onnx", "onnxruntime", "onnxscript")

    def __init__(self, program: ExportedProgram, outputs: Sequence[str]) -> None:
        """Raises ValueError if the weights are too large for one file, or a name cannot be an output's."""
        size = sum(tensor.nbytes for tensor in program.state_dict.values())
        if size > LARGEST_ONNX:
            raise ValueError(
                f"The weights take {size / 1e9:.1f} GB, and an ONNX file holds at most {LARGEST_ONNX / 1e9:.1f} GB: "
                "export with the format torch-export."
            )
        if INPUT in outputs:
            raise ValueError(f"A head cannot be called {INPUT} in an ONNX file, whose input has this name: rename it.")
        import onnx

        exported = torch.onnx.export(program, input_names=[INPUT], dynamo=True, verbose=False)
        assert exported is not None  # as it is without dynamo only
        self.proto = exported.model_proto
        # All that is inside gets a name that no head can have: the exporter calls values "linear" or "add" too.
        renamed = {value.name: name for value, name in zip(self.proto.graph.output, outputs, strict=True)}
        onnx.compose.add_prefix_graph(
            self.proto.graph, "/", rename_inputs=False, rename_outputs=False, inplace=True, name_map=renamed
        )

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the graph, with the record among its properties."""
        import onnx

        onnx.helper.set_model_props(self.proto, {RECORD_KEY: json.dumps(record)})
        path.write_bytes(self.proto.SerializeToString())

    def load(self, path: Path) -> Callable[[Tensor], Answers]:
        """A function from pixels [B, channels, height, width] to name -> logits [B, C].

        Raises onnx's own error if the file is not a legal model.
        """
        import onnx
        import onnxruntime

        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(pixel_values: Tensor) -> Answers:
            logits = session.run(names, {INPUT: pixel_values.numpy()})
            return {name: torch.from_numpy(values) for name, values in zip(names, logits, strict=True)}

        return run


class TorchExportFile:
    """A program of `torch.export`, checked with `torch.export.load`."""

    suffix, runtime, packages = ".pt2", "torch", ()

    def __init__(self, program: ExportedProgram, outputs: Sequence[str]) -> None:
        self.program = program

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the program, with the record as an extra file."""
        with path.open("wb") as file:  # given a path, it complains of one that does not end in .pt2 yet
            torch.export.save(self.program, file, extra_files={RECORD_KEY: json.dumps(record)})

    def load(self, path: Path) -> Callable[[Tensor], Answers]:
        """A function from pixels [B, channels, height, width] to name -> logits [B, C]."""
        with path.open("rb") as file:
            return torch.export.load(file).module()


FORMATS: dict[str, type[OnnxFile] | type[TorchExportFile]] = {"onnx": OnnxFile, "torch-export": TorchExportFile}


def check_format(format: str, path: str | os.PathLike) -> None:
    """Raise ValueError for an unknown format, a file name that is not one of its, or too old a PyTorch;
    ModuleNotFoundError if a package is missing that the format needs."""
    if format not in FORMATS:
        raise ValueError(f"The format is {format!r}; legal: {', '.join(FORMATS)}.")
    kind = FORMATS[format]
    if Path(path).suffix != kind.suffix:
        raise ValueError(f"{path} does not end in {kind.suffix}, as files of the format {format} do.")
    if torch.__version__ < MINIMUM_TORCH:
        raise ValueError(
            f"Exporting needs PyTorch {MINIMUM_TORCH}, and this is {torch.__version__}: "
            f"pip install 'torch>={MINIMUM_TORCH}'."
        )
    missing = next((package for package in kind.packages if importlib.util.find_spec(package) is None), None)
    if missing:
        what = f"the format {format} needs the package {missing}, which is missing: pip install -e '.[onnx]'"
        raise ModuleNotFoundError(what, name=missing)


# -------------------------------------------------------------------------------------------------------------- export
class _Logits(nn.Module):
    """What is exported: from pixels [B, channels, height, width] to name -> logits [B, C]."""

    def __init__(self, model: "MemoryCapableViT", heads: Sequence[str], with_base: bool) -> None:
        super().__init__()
        self.model, self.heads, self.with_base = model, heads, with_base

    def forward(self, pixel_values: Tensor) -> Answers:
        answers = self.model(pixel_values, heads=self.heads, with_base=self.with_base)
        return {name: answer.logits for name, answer in answers.items()}


def export(
    model: "MemoryCapableViT",
    path: str | os.PathLike,
    format: str = "onnx",
    heads: Sequence[str] | None = None,
    with_base: bool = True,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Write heads and their base as one file, which is kept only if it answers as the model does.

    Args:
        model: a MemoryCapableViT in float32 on the CPU; the file takes images of its present size. Not changed.
        path: ends in `.onnx` or `.pt2`; replaced if it is there.
        format: "onnx" or "torch-export".
        heads: names; None for all. What they are built on is written with them and has no output.
        with_base: also the base's own answers, as the output `base`, if it has a classifier.
        metadata: what else the record is to say, such as the preprocessing.
        tolerance: the largest difference that is allowed between the file's and the model's logits, as a share of the
            head's largest logit.

    Returns:
        The largest difference found.

    Raises:
        ValueError: as `check_format`; nothing to export, a model that is not float32 on the CPU, weights too large for
            the format, or a file that answers differently.
        ModuleNotFoundError: as `check_format`.
    """
    path = Path(path)
    check_format(format, path)
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"The model is {model.dtype} on {model.device}: load it in float32 on the CPU to export it.")
    names = model.head_names if heads is None else list(heads)
    with_base = with_base and model.has_base_classifier
    if not names and not with_base:
        raise ValueError("There is nothing to export: name a head.")

    height, width = model.image_size
    inputs = check_inputs(height, width)
    plain = _Logits(model, names, with_base)
    with torch.no_grad():
        expected = [plain(pixel_values) for pixel_values in inputs]
        program = _trace(_Logits(_to_serve(model, names, with_base), names, with_base), inputs[1])
    file = FORMATS[format](program, list(expected[0]))
    record = _record(model, expected[0], FORMATS[format].packages) | dict(metadata or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        file.write(unfinished, record)
        run = file.load(unfinished)
        found = differences(expected, [run(pixel_values) for pixel_values in inputs])
        worst = max(found, key=found.__getitem__)
        if not found[worst] <= tolerance:
            raise ValueError(
                f"{path} was not written: its head {worst} would answer differently from the model, by "
                f"{found[worst]:.1e} of its largest logit; {tolerance:.1e} is allowed."
            )
        record["checked"] = {
            "with": f"{file.runtime} {distributions.version(file.runtime)}", "batches": [len(x) for x in inputs],
            "largest_difference": found[worst], "tolerance": tolerance,
        }  # fmt: skip
        file.write(unfinished, record)  # nothing but the record has changed
    return found[worst]


def check_inputs(height: int, width: int) -> list[Tensor]:
    """Batches [B, 3, height, width] of random pixels, and one of extremes: black, white, zeros, loud noise."""
    shape = 3, height, width
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, *shape, generator=generator) for batch in BATCHES]
    flat = [torch.full(shape, value) for value in (0.0, EXTREME, -EXTREME)]
    return [*inputs, torch.stack([*flat, EXTREME * torch.randn(shape, generator=generator)])]


def differences(expected: Sequence[Answers], found: Sequence[Answers]) -> dict[str, float]:
    """For each head the largest difference, as a share of its largest expected logit; infinite where one is no number.

    Args:
        expected, found: name -> logits [B, C] for each batch.
    """
    shares = {}
    for name in expected[0]:
        wanted, given = (torch.cat([answers[name] for answers in batches]) for batches in (expected, found))
        scale = wanted.abs().max().item() or 1.0  # a classifier of zeros has no scale of its own
        share = (given - wanted).abs().max().item() / scale
        shares[name] = share if share == share else float("inf")
    return shares


def _to_serve(model: "MemoryCapableViT", names: Sequence[str], with_base: bool) -> "MemoryCapableViT":
    """A folded copy with nothing in it that has no part in these answers."""
    served = model.for_inference()
    needed = served.with_ancestors(names)
    for name in reversed(served.head_names):  # children first: what others extend cannot be removed
        if name not in needed:
            served.remove_head(name)
    if not with_base:
        drop_classifier(served)
    served = served.for_inference()  # again: without those heads, memory has to be folded anew
    embeddings: Any = served.encoder_module.embeddings
    if hasattr(embeddings, "interpolate_pos_encoding"):
        # Resized here, once: other runtimes resize in ways of their own, if at all.
        rows, columns = served.patch_grid
        own = served.anatomy.special if served.anatomy.has_class_token(served.encoder_module) else 0
        tokens = torch.zeros(1, own + rows * columns, served.base_width)  # only the shape is looked at
        positions = embeddings.interpolate_pos_encoding(tokens, *model.image_size)
        embeddings.interpolate_pos_encoding = lambda *_: positions
    return served


def _trace(module: nn.Module, example: Tensor) -> ExportedProgram:
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}}, strict=False
        )
    except RuntimeError as error:  # what torch's exporter raises is one, or made from one
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"PyTorch {torch.__version__} cannot export this model: {reason}") from error
    for graph in program.graph_module.modules():
        if isinstance(graph, fx.GraphModule):
            for node in graph.graph.nodes:
                node.meta.pop("stack_trace", None)  # would tell the paths of this machine to whoever gets the file
    return program


def _record(model: "MemoryCapableViT", answers: Answers, packages: Sequence[str]) -> dict[str, Any]:
    """What the file says of itself; `answers` for one batch of images."""
    labels = {name: model.heads[name].spec.metadata.get("labels") for name in answers if name != "base"}
    if "base" in answers:
        labels["base"] = [model.config.id2label[number] for number in range(model.config.num_labels)]
    heads = {name: {"num_labels": logits.shape[1], "labels": labels[name]} for name, logits in answers.items()}
    height, width = model.image_size
    return {
        "format_version": RECORD_VERSION,
        "base": {"id": model.base_id, "fingerprint": model.fingerprint},
        "heads": heads,
        "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", 3, height, width]},
        "versions": versions() | {package: distributions.version(package) for package in packages},
    }
