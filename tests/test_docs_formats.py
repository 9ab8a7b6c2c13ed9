"""The page of file formats: what fresh files hold is on it, and what is on it is in them."""

import hashlib
import json
import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import vit_train
from command_lines import save_base
from learnable_memory import head_schema, out_of_fold, tuned_files
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.config import TrainOptions
from learnable_memory.export import export
from learnable_memory.fit_spec import FitSpec
from learnable_memory.method_spec import MethodSpec
from learnable_memory.projections import PROJECTIONS
from learnable_memory.runlock import run_lock
from learnable_memory.runlog import read_metrics
from test_legacy import old_state
from tiny import tiny_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
NESTED = ("base", "extends", "preprocessing", "dataset", "metrics")  # of a head, described key by key
ALWAYS = 12  # keys of a head's header, the first of its table
SINCE_THE_RESULTS = {*(field.name for field in fields(FitSpec)), "folds"}  # what rows of the first experiments lack


def tables(section: str) -> list[list[str]]:
    """The first cells of each table of a section, without their backticks."""
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    found = re.findall(r"^\|[^\n]*\n\|[-| ]+\n((?:\|[^\n]*\n)+)", text, re.M)
    return [re.findall(r"^\| `([^`]+)`", rows, re.M) for rows in found]


def one_projection(name: str) -> str:
    """The name of a tensor as the page has it, where P is a projection."""
    return re.sub(rf"low_rank\.({'|'.join(PROJECTIONS)})\.", "low_rank.P.", name)


def header(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {key, "sha256"}
        return json.loads(file.metadata()[key])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a real run: a grid of two heads from a cache on disk, and the first checkpoint as JSON keys."""
    folder = tmp_path_factory.mktemp("run")
    base, states, save = save_base(folder / "base"), [], Checkpoint.save
    flags = ["--dataset", "Digits", "--base_model", str(base), "--output", str(folder), "--name", "grid", "-e", "1"]
    flags += ["--lr", "0.1", "1", "-m", "2", "--rank", "1", "--batch_size", "256", "--workers", "0", "--device", "cpu"]
    flags += ["--cache", "disk", "--cache_folder", str(folder / "cache"), "--keep_all"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", lambda self, state: states.append(state) or save(self, state))
        assert vit_train.main(flags) == 0
    (folder / "checkpoint.json").write_text(json.dumps({**dict.fromkeys(states[0]), "run": [*states[0]["run"]]}))
    return folder


@pytest.fixture(scope="module")
def cross_validated(tmp_path_factory) -> Path:
    """The folder of a run with `--folds`."""
    folder = tmp_path_factory.mktemp("folds")
    base = save_base(folder / "base")
    flags = ["--dataset", "Digits", "--base_model", str(base), "--output", str(folder), "--name", "digits", "-e", "1"]
    flags += ["--folds", "2", "--batch_size", "256", "--workers", "0", "--device", "cpu"]
    assert vit_train.main(flags) == 0
    return folder


# --------------------------------------------------------------------------------------------------------------- heads
def test_a_head_file(run):
    tensors, top, nested = tables("Head file")
    path = run / "grid_model.safetensors"
    with safe_open(path, framework="pt") as file:
        found = {one_projection(name): len(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == {name: PAGE.split(f"| `{name}` | [", 1)[1].split("]")[0].count(",") + 1 for name in tensors}
    metadata = header(path, "head")
    assert set(metadata) == set(top) - {
        "notes",
        "readout_width",
    }  # which training, of a head with a class token, has none of
    assert set(top) == set(head_schema.HEAD) and set(nested) <= set(head_schema.names(head_schema.HEAD))
    parts = {key: metadata[key] for key in NESTED if key != "extends"} | {"extends": {"name": "", "hash": ""}}
    assert {f"{key}.{inner}" for key, part in parts.items() for inner in part} == set(nested)
    options = {field.name for field in fields(TrainOptions)} | {"data_seed"}
    assert set(metadata["training"]) <= options


def test_projections_and_their_sizes(tmp_path):
    model = tiny_model()
    model.add_head("A", 3, rank=dict.fromkeys(PROJECTIONS, 2))
    model.save_head("A", tmp_path / "A.safetensors")
    words = re.search(r"^P is (.*?)\.$", PAGE, re.M | re.S)[1]
    words = " ".join(words.split()).partition("; those")[0]
    sizes, waiting = {}, []
    for name, size in re.findall(r"`(\w+)`|\(([^)]*)\)", words):
        waiting += [name] if name else []
        if size:
            sizes |= dict.fromkeys(waiting, size)
            waiting = []
    letters = {"D inputs and outputs": (32, 32), "D inputs, F outputs": (32, 64), "F inputs, D outputs": (64, 32)}
    with safe_open(tmp_path / "A.safetensors", framework="pt") as file:
        for projection in PROJECTIONS:
            inputs, outputs = letters[sizes.pop(projection)]
            assert file.get_slice(f"low_rank.{projection}.down").get_shape() == [3, 2, inputs]
            assert file.get_slice(f"low_rank.{projection}.up").get_shape() == [3, outputs, 2]
    assert sizes == {}


def test_parents_in_a_head_file(tmp_path):
    model = tiny_model()
    model.add_head("A", 3)
    model.add_head("B", 4, extends=("A",))
    model.save_head("B", tmp_path / "B.safetensors")
    metadata = header(tmp_path / "B.safetensors", "head")
    _, top, nested = tables("Head file")
    assert set(metadata) == set(top[:ALWAYS])
    assert {f"extends.{key}" for key in metadata["extends"][0]} == {key for key in nested if key.startswith("extends.")}


def test_a_networks_file():
    written = tuned_files.describe("full", {"id": "", "fingerprint": ""}, "vit", MethodSpec("full"), 3)
    (keys,) = tables("Networks")
    assert set(keys) == set(written) | set(head_schema.KNOWN) == set(tuned_files.SCHEMA)


def test_a_checksum_is_made_as_the_page_says(run):
    path = run / "grid_model.safetensors"
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
        written = texts.pop("sha256")
        for key in sorted(texts):
            digest.update(json.dumps([key, texts[key]]).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(json.dumps([name, "torch.float32", list(tensor.shape)]).encode())
            digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == written


# ----------------------------------------------------------------------------------------------------------------- runs
def test_a_run_folder(run):
    options, metrics = tables("Run folder")
    assert set(json.loads((run / "grid_run" / "options.json").read_text(encoding="utf-8"))) == set(options)
    cells = json.loads((run / "grid_grid.json").read_text(encoding="utf-8"))["cells"]
    endings = tuple(f"/{cell['head']}" for cell in cells)
    keys = {key for row in read_metrics(run / "grid_run" / "metrics.jsonl") for key in row}
    assert sum(key.endswith(endings) for key in keys) == 2 * 13  # what each head has of its own
    of_folds = {key for key in metrics if key.startswith("folds/")}
    assert {key.removesuffix(endings[0]).removesuffix(endings[1]) for key in keys} == set(metrics) - of_folds


def test_the_classes_of_a_head(run):
    (keys,) = tables("Classes")
    record = json.loads((run / "grid_classes.json").read_text(encoding="utf-8"))
    assert set(record) == set(keys)
    line = next(line for line in PAGE.splitlines() if line.startswith("| `classes` | list"))
    assert all(f"`{key}`" in line for key in record["classes"][0])


def test_a_lock(tmp_path):
    with run_lock(tmp_path):
        keys = json.loads((tmp_path / "lock.json").read_text(encoding="utf-8"))
    line = next(line for line in PAGE.splitlines() if "`lock.json`" in line)
    assert re.findall(r"`(\w+)`", line) == list(keys)


def test_a_grids_file(run):
    top, cell = tables("Grid")
    grid = json.loads((run / "grid_grid.json").read_text(encoding="utf-8"))
    assert set(grid) == set(top)
    assert [set(row) for row in grid["cells"]] == [set(cell)] * 2


def test_a_run_with_folds(cross_validated):
    _, metrics = tables("Run folder")
    rows = read_metrics(cross_validated / "digits_run" / "metrics.jsonl")
    found = {key.partition("/digits")[0] for row in rows for key in row}
    assert {key for key in metrics if key.startswith("folds/")} == {key for key in found if key.startswith("folds/")}
    assert found <= set(metrics)
    metadata = header(cross_validated / "digits_model.safetensors", "head")
    _, _, nested = tables("Head file")
    assert {f"metrics.{key}" for key in metadata["metrics"]} == {key for key in nested if key.startswith("metrics.")}
    assert metadata["dataset"]["folds"] == len(metadata["metrics"]["folds"]) == 2


def test_a_file_of_out_of_fold_predictions(cross_validated):
    path = cross_validated / f"digits{out_of_fold.ENDING}"
    top, columns = tables("Out-of-fold predictions")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record) == set(top) and set(record["images"]) == set(columns)
    assert {len(column) for column in record["images"].values()} == {len(out_of_fold.load(path))}
    assert record["format"] == 1 and record["head"] == "digits" and record["folds"] == 2
    assert len(out_of_fold.load(path)) == record["dataset"]["splits"]["train"]["images"]


def test_a_checkpoint(run):
    state = json.loads((run / "checkpoint.json").read_text(encoding="utf-8"))
    (keys,) = tables("Checkpoint")
    assert {"identity", "log_position", *(f"run.{key}" for key in state.pop("run"))} == set(keys)
    assert set(state) == {"identity", "log_position"}


def test_a_cache_folder(run):
    (keys,) = tables("Cache of features")
    manifests = list((run / "cache").glob("*/manifest.json"))
    assert len(manifests) == 2  # of `train` and of `select`
    for path in manifests:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        assert set(manifest) == set(keys)
        heads, width = manifest["heads"], manifest["width"]
        record = manifest["layers"] * 2 * heads * manifest["tokens"] * (width // heads) + manifest["readout"]
        assert (path.parent / "v0000_000000.bin").stat().st_size == 4 * manifest["count"] * record


# ------------------------------------------------------------------------------------------------------------- results
def test_results_of_runs():
    (of_run,), (_, cell) = tables("Results of experiments"), tables("Grid")
    rows = (ROOT / "experiments" / "here_and_now" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    written = set().union(*map(json.loads, rows))
    documented = {*of_run, *cell}
    assert documented - SINCE_THE_RESULTS <= written <= documented and documented >= SINCE_THE_RESULTS


# --------------------------------------------------------------------------------------------------------- other files
def test_an_exported_file(tmp_path):
    model = tiny_model()
    model.add_head("A", 3, metadata={"labels": ["a", "b", "c"]})
    metadata = {"preprocessing": {}, "preprocessing_words": ""}  # as the command line gives them
    export(model, tmp_path / "heads.pt2", "torch-export", metadata=metadata)
    with zipfile.ZipFile(tmp_path / "heads.pt2") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/learnable_memory")]
        record = json.loads(archive.read(name))
    (keys,) = tables("Exported files")
    assert set(record) == set(keys)
    assert set(record["checked"]) == {"with", "batches", "largest_difference", "tolerance"}
    line = next(line for line in PAGE.splitlines() if line.startswith("| `checked`"))
    assert all(f"`{key}`" in line for key in record["checked"])


def test_a_model_folder(tmp_path):
    model = tiny_model()
    model.add_head("A", 3, rank=2)
    model.classifier_for("A").save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["learnable_memory"]
    (keys,) = tables("Model folders")
    assert set(record) == set(keys)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = [name.replace(".A.", ".NAME.") for name in file.keys() if name.startswith("heads.")]  # noqa: SIM118
    names = list(map(one_projection, names))
    assert "heads.NAME.low_rank.P.up" in names
    text = " ".join(PAGE.split())
    assert [name for name in names if f"`{re.sub(r'[.][12]$', '.0', name)}`" not in text] == []


def test_a_file_of_2023():
    (patterns,) = tables("Files of 2023")
    written = {re.sub(r"layer\.\d+", "layer.{l}", name) for name in old_state((1, 2), ((), (1,)))}
    expanded = {each for pattern in patterns for each in alternatives(pattern)}
    assert {general(name) for name in written} == {general(name) for name in expanded}


def alternatives(pattern: str) -> list[str]:
    """`a.{b,c}` -> a.b, a.c; braces without a comma stand for a number."""
    found = re.search(r"\{([^{}]+,[^{}]+)\}", pattern)
    if not found:
        return [pattern]
    each = (pattern[: found.start()] + choice + pattern[found.end() :] for choice in found[1].split(","))
    return [name for one in each for name in alternatives(one)]


def general(name: str) -> str:
    """With `i` for the number of a head."""
    return re.sub(r"(cls_tokens|memory_tokens|classifiers)\.(\{[^}]*\}|\d+)", r"\1.i", name)
