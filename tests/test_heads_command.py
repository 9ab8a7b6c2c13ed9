"""`python -m learnable_memory heads SUBCOMMAND`: what it prints is what the files hold, and what it writes loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from learnable_memory import heads, hub
from learnable_memory.commands import run_command
from learnable_memory.commands.heads import PROG, SUBCOMMANDS, main
from learnable_memory.heads import HeadFile
from test_legacy import old_state
from tiny import add_random_head, images, tiny_base, tiny_model
from vit import MemoryCapableViT

PREPROCESSING = {
    "height": 16, "width": 16, "resample": "bilinear", "rescale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3,
    "resize": [16, 16],
}  # fmt: skip
OLD_PIXELS = {**PREPROCESSING, "mean": [0.0] * 3, "std": [1.0] * 3}
SPLITS = {"eval": {"images": 400, "hash": "0" * 16}}
ALL_KNOWN = {
    "labels": ["cat", "dog", "fox"],
    "preprocessing": PREPROCESSING,
    "dataset": {"name": "Pets", "source": "folders", "split_seed": 7, "split": "seeded", "splits": SPLITS},
    "metrics": {"epoch": 3, "select": {"top1": 0.5}, "eval": {"images": 400, "top1": 0.91237, "top5": 1.0}},
}
OFFICIAL = {**ALL_KNOWN, "dataset": {**ALL_KNOWN["dataset"], "name": "Sun", "split": "official"}}
OLD = {
    "preprocessing": OLD_PIXELS,
    "dataset": {"name": "Places", "source": "the 2023 implementation", "split_seed": 0},
}


def heads_model(base: int = 0) -> MemoryCapableViT:
    """A and Old alone, B built on A, P a linear probe of which nothing is known."""
    model = tiny_model(base)
    model.base_id = "someone/vit-tiny"
    add_random_head(model, "A", 3, 2, metadata=ALL_KNOWN)
    add_random_head(model, "B", 1200, 0, ("A",), metadata={**OFFICIAL, "labels": [f"class {i}" for i in range(1200)]})
    add_random_head(model, "Old", 365, 10, memory_norm=False, metadata=OLD)
    add_random_head(model, "P", 3, 0, class_token=False)
    return model


def save_heads(model: MemoryCapableViT, folder: Path, names: str | None = None) -> Path:
    for name in names.split() if names else model.head_names:
        model.save_head(name, folder / heads.file_name(name))
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The present folder, with all heads in `models`."""
    monkeypatch.chdir(tmp_path)
    save_heads(heads_model(), Path("models"))
    return tmp_path


def run(*argv: object) -> int:
    return run_command(main, list(map(str, argv)), prog=PROG)


def output(capsys, *argv: object, code: int = 0) -> str:
    """What a subcommand that ends with this code prints."""
    assert run(*argv) == code
    return capsys.readouterr().out


def error(capsys, *argv: object) -> str:
    """The one line with which a subcommand refuses."""
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err.removeprefix(f"{PROG}: error: ").rstrip("\n")


def assert_same(path: Path, expected: HeadFile) -> None:
    found = heads.load(path)
    assert found.metadata == expected.metadata
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def kilobytes(path: str) -> str:
    return f"{round(Path(path).stat().st_size / 1000):,}"


# ---------------------------------------------------------------------------------------------------------------- show
TABLE = """\
file                          head  base      cells  classes  extends  data    split     top-1  pixels        kB
models/A_model.safetensors    A     {base}      2        3           Pets    seeded 7  91.24  16x16        {A}
models/B_model.safetensors    B     {base}      0    1,200  A        Sun     official  91.24  16x16        {B}
models/Old_model.safetensors  Old   {base}     10      365           Places  unknown       —  legacy-2023  {Old}
models/P_model.safetensors    P     {base}  probe        3           —       —             —  —            {P}

base {base}: someone/vit-tiny
They can be put together, with 3 passes over an image, for their pixels differ:
  A, B: resized to 16x16 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5
  Old: legacy-2023: resized to 16x16 (bilinear), values in [0, 1]
  P: that of the base
"""


def test_a_table_of_what_the_files_hold(folder, capsys):
    sizes = {name: kilobytes(f"models/{name}_model.safetensors").rjust(3) for name in ("A", "B", "Old", "P")}
    assert output(capsys, "show", "A", "B", "models/Old_model.safetensors", "P") == TABLE.format(
        base=heads_model().fingerprint[:8], **sizes
    )


def test_one_pass_where_pixels_are_alike(folder, capsys):
    printed = output(capsys, "show", "A", "B").splitlines()
    assert printed[-1] == "They can be put together: one pass over an image answers all."
    assert output(capsys, "show", "A").splitlines()[-1].startswith("base ")  # nothing to put it together with


def test_a_folder_stands_for_the_head_files_in_it(folder, capsys):
    torch.save(old_state(), "models/Cars_model.pt")
    Path("models/Cars_model.pt.part").write_bytes(b"half of it")
    save_file({"x": torch.zeros(1)}, "models/other.safetensors")
    rows = json.loads(output(capsys, "show", "models", "A", "--json"))["heads"]
    assert [row["file"] for row in rows] == [
        f"models/{name}" for name in (
            "A_model.safetensors", "B_model.safetensors", "Cars_model.pt", "Old_model.safetensors",
            "P_model.safetensors",
        )
    ]  # fmt: skip
    assert [row["head"] for row in rows] == ["A", "B", "Cars", "Old", "P"]
    assert "error" not in rows[2] and rows[2]["split"] == "unknown"


def test_a_file_of_several_heads_is_named_once(folder, capsys):
    output(capsys, "merge", "A", "B", "-o", "all.safetensors")
    lines = output(capsys, "show", "all.safetensors", "P").splitlines()
    assert [line[: lines[0].index("base")].split() for line in lines[1:4]] == [
        ["all.safetensors", "A"], ["B"], ["models/P_model.safetensors", "P"],
    ]  # fmt: skip
    assert lines[1].endswith(f" {kilobytes('all.safetensors')}") and lines[2].endswith("16x16")


def test_a_wide_table_is_cut_to_120_columns(folder, capsys):
    model = tiny_model()
    long = "CIFAR100-5cells-lr0_03-seed" + "1" * 30
    data = {"name": "folder:/home/somebody/pictures/of/many/animals/cats", "split_seed": 4294967295, "splits": {}}
    add_random_head(model, "A" * 40, 3, 1)
    add_random_head(
        model, long, 100_000, 20, ("A" * 40,), metadata={**ALL_KNOWN, "dataset": data, "labels": ["a"] * 100_000}
    )
    save_heads(model, Path("models"), long)
    assert run("show", long) == 0
    title, row = capsys.readouterr().out.splitlines()[:2]
    assert len(row) == len(title) <= 120
    file, name, base, cells, classes, extends, data, *split, top1, pixels, _ = row.split()
    assert (base, cells, classes) == (model.fingerprint[:8], "20", "100,000")
    assert (" ".join(split), top1, pixels) == ("seeded 4294967295", "91.24", "16x16")
    assert file[0] == data[0] == name[-1] == extends[-1] == "…"
    assert row[title.index("data") - 3] == row[title.index("base") - 3] == "…"  # no character is given away
    assert file[1:] == f"models/{long}_model.safetensors"[1 - len(file) :]
    assert data[1:] == "folder:/home/somebody/pictures/of/many/animals/cats"[1 - len(data) :]
    assert name[:-1] == long[: len(name) - 1] and extends[:-1] == "A" * (len(extends) - 1)
    row = json.loads(output(capsys, "show", long, "--json"))["heads"][0]
    assert (row["head"], row["extends"]) == (long, ["A" * 40])


def test_damaged_files_are_rows_too_and_the_others_are_shown(folder, capsys):
    whole = Path("models/A_model.safetensors").read_bytes()
    Path("models/B_model.safetensors").write_bytes(whole[:-1])
    printed = output(capsys, "show", "B", "A", "P", code=1).splitlines()
    assert [line.split()[:2] for line in printed[1:4]] == [
        ["models/B_model.safetensors", "unreadable"], ["models/A_model.safetensors", "A"],
        ["models/P_model.safetensors", "P"],
    ]  # fmt: skip
    assert printed[6].startswith("unreadable: models/B_model.safetensors is not a safetensors file, or is damaged")
    assert printed[7:] == ["They cannot be put together:", "  models/B_model.safetensors cannot be read"]


def test_files_without_a_checksum_are_named(folder, capsys):
    file = heads.load("models/A_model.safetensors")
    header = {"head": json.dumps({**file.metadata, "format_version": 2})}
    save_file(file.tensors, "models/A_model.safetensors", header)
    torch.save(old_state(), "Cars_model.pt")
    lines = output(capsys, "show", "A", "P", "Cars_model.pt", code=0).splitlines()
    assert "without a checksum, as all files of earlier formats: models/A_model.safetensors, Cars_model.pt" in lines
    rows = json.loads(output(capsys, "show", "A", "P", "Cars_model.pt", "--json"))["heads"]
    assert [row["checksum"] for row in rows] == [False, True, False]
    output(capsys, "merge", "A", "P", "-o", "both.safetensors")  # written again, they have one
    assert not any("checksum" in line for line in output(capsys, "show", "both.safetensors").splitlines())


def with_metadata(name: str, path: str, **changes) -> None:
    """Write a head's file again without any check."""
    file = heads.load(Path("models") / heads.file_name(name))
    heads.write(path, file.tensors, {"head": {**file.metadata, **changes}})


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "Pets"},
        {"dataset": {"name": 3}},
        {"dataset": {"name": "Pets", "splits": {}}},
        {"metrics": {"eval": {"top1": [0.9]}}},
        {"preprocessing": [224, 224]},
        {"base": {"id": 3, "fingerprint": "0" * 64}},
        {"base": {"id": None, "fingerprint": 3}},
        {"extends": [{"name": 3, "hash": "0" * 64}]},
    ],
    ids=str,
)  # fmt: skip
def test_metadata_of_other_types_are_damage_too(folder, capsys, changes):
    with_metadata("P", "odd.safetensors", **changes)
    printed = output(capsys, "show", "odd.safetensors", "A", code=1).splitlines()
    assert [line.split()[:2] for line in printed[1:3]] == [
        ["odd.safetensors", "unreadable"], ["models/A_model.safetensors", "A"],
    ]  # fmt: skip


def test_what_others_wrote_cannot_steer_the_terminal(folder, capsys):
    dataset = {"name": "Pets\n\x1b[2J\x9b2J", "splits": {}, "split": "official", "split_seed": 0}
    with_metadata("P", "odd.safetensors", dataset=dataset)
    printed = output(capsys, "show", "odd.safetensors")
    assert "Pets��[2J�2J  official" in printed and "\x1b" not in printed and "\x9b" not in printed
    printed = output(capsys, "show", "odd.safetensors", "--json")
    assert json.loads(printed)["heads"][0]["data"] == dataset["name"] and printed.isascii() and "\x1b" not in printed


def test_why_heads_cannot_be_put_together(folder, capsys):
    other = heads_model(base=1)
    save_heads(other, Path("elsewhere"), "Old")
    printed = output(capsys, "show", "B", "Old", "elsewhere/Old_model.safetensors").splitlines()
    ours, theirs = heads_model().fingerprint[:8], other.fingerprint[:8]
    assert printed[-6:] == [
        f"base {ours}: someone/vit-tiny",
        f"base {theirs}: someone/vit-tiny",
        "They cannot be put together:",
        f"  they were trained on 2 bases: B, Old on someone/vit-tiny ({ours}), Old on someone/vit-tiny ({theirs})",
        "  2 of them are called Old, and they are the same head",
        "  B extends A, which is not among them",
    ]


def test_a_merged_file_beside_its_parts_is_no_reason_against(folder, capsys):
    run("merge", "A", "B", "--output", "models/both.safetensors")
    capsys.readouterr()
    lines = output(capsys, "show", "models/A_model.safetensors", "B", "models/both.safetensors").splitlines()
    assert len(lines) == 1 + 4 + 1 + 1 + 1  # titles, four rows, an empty line, the base, the verdict
    assert lines[-1] == "They can be put together: one pass over an image answers all."


def test_a_folder_shows_head_files_of_any_name_and_leaves_out_what_is_none(folder, capsys):
    Path("mixed").mkdir()
    for source, target in (("A", "odd"), ("B", "B_model")):
        Path(f"mixed/{target}.safetensors").write_bytes(Path(f"models/{source}_model.safetensors").read_bytes())
    save_file({"weight": torch.zeros(1)}, "mixed/model.safetensors")
    Path("mixed/notes.txt").write_text("no head")
    rows = output(capsys, "show", "mixed").splitlines()[1:3]
    assert [row.split()[1] for row in rows] == ["B", "A"]


def test_json_says_all_of_it(folder, capsys):
    found = json.loads(output(capsys, "show", "B", "P", "--json"))
    files = [heads.load(f"models/{name}_model.safetensors") for name in "BP"]
    specs = [heads.spec_of(file.metadata) for file in files]
    assert found["heads"][0] == {
        "file": "models/B_model.safetensors",
        "bytes": Path("models/B_model.safetensors").stat().st_size,
        "checksum": True,
        "head": "B",
        "hash": heads.head_hash(specs[0], files[0].tensors, files[0].metadata["extends"]),
        "base": {"id": "someone/vit-tiny", "fingerprint": heads_model().fingerprint},
        "memory_tokens": 0,
        "low_rank": {},
        "memory_norm": True,
        "class_token": True,
        "classes": 1200,
        "extends": ["A"],
        "data": "Sun",
        "split": "official",
        "top1": 0.91237,
        "preprocessing": {
            "size": "16x16",
            "name": None,
            "words": "resized to 16x16 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        },
    }
    unknown = {key: found["heads"][1][key] for key in ("data", "split", "top1", "preprocessing")}
    assert unknown == dict.fromkeys(unknown)
    assert found["together"] == {
        "possible": False,
        "reasons": ["B extends A, which is not among them"],
        "passes": [
            {"preprocessing": found["heads"][0]["preprocessing"]["words"], "heads": ["B"]},
            {"preprocessing": "that of the base", "heads": ["P"]},
        ],
    }


def test_json_of_a_damaged_file(folder, capsys):
    Path("x.safetensors").write_bytes(b"PK")
    found = json.loads(output(capsys, "show", "x.safetensors", "--json", code=1))
    (row,) = found["heads"]
    assert (row["file"], row["bytes"]) == ("x.safetensors", 2) and "damaged or cut short" in row["error"]
    assert found["together"] == {"possible": False, "reasons": ["x.safetensors cannot be read"], "passes": []}


def test_nothing_to_show(folder, capsys):
    Path("empty").mkdir()
    assert error(capsys, "show", "empty") == ("The folder empty has no head files: name the files themselves.")
    assert error(capsys, "show", "A", "C").startswith("No head file for C in models (looked for C_model.safetensors")


# --------------------------------------------------------------------------------------------------------------- merge
def test_merge_puts_parents_first_whatever_the_order(folder, capsys):
    assert output(capsys, "merge", "P", "B", "A", "-o", "out/all.safetensors") == (
        f"out/all.safetensors: 3 heads (P, A, B), {kilobytes('out/all.safetensors')} kB\n"
    )
    found = heads.load_all("out/all.safetensors")
    assert [file.metadata["name"] for file in found] == ["P", "A", "B"]
    model = tiny_model()
    model.load_heads("out/all.safetensors")
    found, expected = model(images()), heads_model()(images())
    assert max((found[name].logits - expected[name].logits).abs().max() for name in "ABP") <= 1e-5


def test_merge_takes_merged_and_old_files(folder, capsys, legacy):
    output(capsys, "merge", legacy / "CIFAR100_model.pt", "-o", "one.safetensors")
    output(capsys, "merge", "one.safetensors", legacy / "Places_model.pt", "-o", "two.safetensors")
    assert [metadata["name"] for metadata in heads.read_all_metadata("two.safetensors")] == ["CIFAR100", "Places"]
    model = MemoryCapableViT.from_pretrained(legacy / "base")
    model.load_heads("two.safetensors")
    expected = load_file(legacy / "expected.safetensors")
    with torch.no_grad():
        answers = model(expected["pixel_values"])
    for name in ("CIFAR100", "Places"):  # measured: 6e-08
        assert (answers[name].logits - expected[f"{name}_logits"]).abs().max() <= 1e-4


def test_a_parent_is_not_taken_unasked(folder, capsys):
    assert error(capsys, "merge", "B", "P", "-o", "all.safetensors") == (
        "These heads extend A, which was not asked for: name models/A_model.safetensors too."
    )
    Path("models/A_model.safetensors").rename("models/moved.safetensors")
    assert "B extends A, whose file is not there: looked for A_model.safetensors" in error(
        capsys, "merge", "B", "P", "-o", "all.safetensors"
    )
    assert not Path("all.safetensors").exists()
    output(capsys, "merge", "B", "P", "models/moved.safetensors", "-o", "all.safetensors")


def test_heads_of_several_bases_are_not_merged(folder, capsys):
    save_heads(heads_model(base=1), Path("elsewhere"), "P")
    message = error(capsys, "merge", "A", "elsewhere/P_model.safetensors", "-o", "all.safetensors")
    assert message.startswith("These heads cannot be put together: they were trained on 2 bases: A on someone/vit-tiny")


def test_two_heads_of_one_name_are_not_merged(folder, capsys):
    Path("copy.safetensors").write_bytes(Path("models/P_model.safetensors").read_bytes())
    message = error(capsys, "merge", "P", "copy.safetensors", "-o", "all.safetensors")
    assert message.startswith("models/P_model.safetensors and copy.safetensors both hold a head P")


def test_merge_replaces_a_file_only_if_told(folder, capsys):
    output(capsys, "merge", "A", "-o", "all.safetensors")
    before = Path("all.safetensors").read_bytes()
    assert error(capsys, "merge", "P", "-o", "all.safetensors") == (
        "all.safetensors exists: choose another place, or replace with --overwrite."
    )
    assert Path("all.safetensors").read_bytes() == before
    # into the file that is read from
    output(capsys, "merge", "all.safetensors", "P", "-o", "all.safetensors", "--overwrite")
    assert [metadata["name"] for metadata in heads.read_all_metadata("all.safetensors")] == ["A", "P"]


@pytest.mark.parametrize("place", ["all.pt", "models", "all"])
def test_a_head_file_is_called_safetensors(folder, place):
    """Another ending would not be read as what it is."""
    with pytest.raises(SystemExit) as caught:
        run("merge", "A", "-o", place)
    assert caught.value.code == 2


# --------------------------------------------------------------------------------------------------------------- split
def test_split_gives_the_files_back(folder, capsys):
    output(capsys, "merge", "P", "B", "A", "-o", "all.safetensors")
    lines = output(capsys, "split", "all.safetensors", "-o", "apart").splitlines()
    assert lines == [
        f"apart/{name}_model.safetensors: {name}, {kilobytes(f'apart/{name}_model.safetensors')} kB" for name in "PAB"
    ]
    assert sorted(path.name[0] for path in Path("apart").iterdir()) == ["A", "B", "P"]
    for name in "ABP":
        assert_same(Path("apart") / heads.file_name(name), heads.load(Path("models") / heads.file_name(name)))


def test_some_heads_only_and_what_they_need(folder, capsys):
    output(capsys, "merge", "A", "B", "P", "-o", "apart/all.safetensors")
    lines = output(capsys, "split", "apart/all.safetensors", "--heads", "P", "B").splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == [
        "apart/B_model.safetensors", "apart/P_model.safetensors",
    ]  # fmt: skip
    assert lines[2:] == ["B extends A: it needs A_model.safetensors, which is not here"]
    assert sorted(path.name for path in Path("apart").iterdir()) == [
        "B_model.safetensors", "P_model.safetensors", "all.safetensors",
    ]  # fmt: skip


def test_a_head_that_is_not_in_the_file(folder, capsys):
    output(capsys, "merge", "A", "P", "-o", "all.safetensors")
    message = error(capsys, "split", "all.safetensors", "--heads", "A", "B", "-o", "apart")
    assert message == "all.safetensors has no head B. It has: A, P."
    assert not Path("apart").exists()


def test_split_replaces_files_only_if_told(folder, capsys):
    output(capsys, "merge", "A", "Old", "P", "-o", "all.safetensors")
    for name in ("A", "P"):
        Path(f"models/{name}_model.safetensors").write_bytes(b"mine")
    assert error(capsys, "split", "all.safetensors", "-o", "models", "--heads", "A", "P") == (
        "models/A_model.safetensors, models/P_model.safetensors exist: choose another place, or replace with "
        "--overwrite."
    )
    assert Path("models/A_model.safetensors").read_bytes() == b"mine"
    output(capsys, "split", "all.safetensors", "-o", "models", "--heads", "A", "--overwrite")
    assert heads.load("models/A_model.safetensors").metadata["name"] == "A"
    assert Path("models/P_model.safetensors").read_bytes() == b"mine"


# ------------------------------------------------------------------------------------------------------------- convert
def test_an_old_file_becomes_a_head_file(folder, capsys, legacy):
    old, new = legacy / "CIFAR100_model.pt", Path("models/CIFAR100_model.safetensors")
    lines = output(capsys, "convert", old, new, "--base_model", legacy / "base").splitlines()
    metadata = heads.read_metadata(new)
    assert metadata["base"]["id"] == str(legacy / "base")
    assert lines == [
        "CIFAR100: 100 classes, 1 cell, unknown: labels, split, accuracy",
        f"base: {legacy / 'base'} ({metadata['base']['fingerprint'][:8]}), the same in the file",
        f"written to {new}, {kilobytes(new)} kB",
    ]
    model = MemoryCapableViT.from_pretrained(legacy / "base")
    model.load_head(new)
    expected = load_file(legacy / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["pixel_values"])["CIFAR100"].logits
    assert (logits - expected["CIFAR100_logits"]).abs().max() <= 1e-4  # measured: 3e-08


def test_without_a_base_it_says_that_none_was_compared(folder, capsys):
    torch.save(old_state((0, 4), ((), (1,))), "Sun_model.pt")
    lines = output(capsys, "convert", "Sun_model.pt", "new.safetensors").splitlines()
    one, two = heads.load_all("new.safetensors")
    fingerprint = one.metadata["base"]["fingerprint"]
    assert lines[:3] == [
        "Sun-1: 4 classes, 0 cells, unknown: labels, split, accuracy",
        "Sun: 5 classes, 4 cells, extends Sun-1, unknown: labels, split, accuracy",
        f"base: unnamed ({fingerprint[:8]}), not compared: name it with --base_model",
    ]
    for found, expected in zip((one, two), heads.read_old("Sun_model.pt"), strict=True):
        assert found.metadata == expected.metadata
        assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def test_heads_of_an_old_file_get_the_names_that_are_given(folder, capsys):
    torch.save(old_state((1, 2), ((), ())), "two heads.pt")
    output(capsys, "convert", "two heads.pt", "new.safetensors", "--names", "Cats", "Dogs")
    assert [metadata["name"] for metadata in heads.read_all_metadata("new.safetensors")] == ["Cats", "Dogs"]
    message = error(capsys, "convert", "two heads.pt", "other.safetensors", "--names", "Cats")
    assert "needs 2 different names" in message and not Path("other.safetensors").exists()


def test_the_base_of_an_old_file_is_compared_with_the_one_that_is_named(folder, capsys):
    torch.save(old_state(), "Cars_model.pt")
    tiny_base().save_pretrained("base")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("base")
    capsys.readouterr()
    message = error(capsys, "convert", "Cars_model.pt", "new.safetensors", "--base_model", "base")
    assert message.startswith(
        "Cars_model.pt was trained on another base (unnamed): width 8 in the file, 32 in the model"
    )
    assert not Path("new.safetensors").exists()


def test_what_is_no_old_file_is_refused(folder, capsys):
    message = error(capsys, "convert", "models/A_model.safetensors", "new.safetensors")
    assert message.startswith("models/A_model.safetensors is no head file of the 2023 implementation")
    assert error(capsys, "convert", "none.pt", "new.safetensors").startswith("There is no head file none.pt")


def test_convert_replaces_a_file_only_if_told(folder, capsys):
    torch.save(old_state(), "Cars_model.pt")
    message = error(capsys, "convert", "Cars_model.pt", "models/A_model.safetensors")
    assert message == "models/A_model.safetensors exists: choose another place, or replace with --overwrite."
    output(capsys, "convert", "Cars_model.pt", "models/A_model.safetensors", "--overwrite")
    assert heads.read_metadata("models/A_model.safetensors")["name"] == "Cars"


# ------------------------------------------------------------------------------------------------------ push and fetch
@pytest.fixture
def pushed(monkeypatch) -> list:
    """The arguments with which `push_to_hub` is called."""
    calls = []

    def push_to_hub(*args, **kwargs):
        calls.append((args, kwargs))
        return "https://hub.example/someone/pets"

    monkeypatch.setattr(hub, "push_to_hub", push_to_hub)
    return calls


DEFAULTS = {
    "private": None, "license": None, "revision": None, "commit_message": None, "create_pr": False,
    "overwrite_card": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "differing"),
    [
        ([], {}),
        (["--private", "--license", "mit"], {"private": True, "license": "mit"}),
        (["--revision", "v2", "--commit_message", "More cats", "--create_pr"],
         {"revision": "v2", "commit_message": "More cats", "create_pr": True}),
        (["--overwrite_card"], {"overwrite_card": True}),
    ],
)  # fmt: skip
def test_push_hands_over_what_it_is_told(folder, capsys, pushed, flags, differing):
    assert output(capsys, "push", "A", "someone/pets", *flags).splitlines()[-1] == "https://hub.example/someone/pets"
    assert pushed == [((Path("models/A_model.safetensors"), "someone/pets"), {**DEFAULTS, **differing})]


def test_push_shows_before_what_the_metadata_say(folder, capsys, pushed):
    """Of what is published: without the paths that an earlier version has put into the file."""
    file = heads.load("models/A_model.safetensors")
    told = {**file.metadata, "training": {"dataset": "folder:/home/ada/pets", "lr": 0.1}, "format_version": 2}
    told["dataset"] = {**told["dataset"], "name": "folder:/home/ada/pets\x1b[2J"}
    save_file(file.tensors, "models/A_model.safetensors", {"head": json.dumps(told)})
    lines = output(capsys, "push", "A", "someone/pets").splitlines()
    assert lines[0] == "A, to be published with its metadata:"
    for line in (
        "labels: cat, dog, fox", "dataset.split_seed: 7", 'training.dataset: "folder:pets"', "training.lr: 0.1",
        "extends: -", "format_version: 3", 'base.id: "someone/vit-tiny"', "metrics.select: {\"top1\": 0.5}",
    ):  # fmt: skip
        assert f"  {line}" in lines
    assert any(line.startswith('  dataset.name: "folder:pets') for line in lines) and "\x1b" not in "".join(lines)
    assert not any("/ada" in line for line in lines) and len(pushed) == 1


def test_fetch_hands_over_what_it_is_told(folder, monkeypatch, capsys):
    asked = []

    def from_hub(*args, **kwargs):
        asked.append((args, kwargs))
        return Path("models/A_model.safetensors").resolve()

    monkeypatch.setattr(hub, "from_hub", from_hub)
    output(capsys, "fetch", "someone/pets", "-o", "one")
    output(capsys, "fetch", "someone/pets", "-o", "two", "--filename", "a.safetensors", "--revision", "v2")
    assert asked == [
        (("someone/pets",), {"filename": None, "revision": None}),
        (("someone/pets",), {"filename": "a.safetensors", "revision": "v2"}),
    ]


def test_what_was_pushed_comes_back_under_the_name_of_its_head(folder, capsys):
    Path("repository").mkdir()
    output(capsys, "push", "A", "repository")
    (published,) = Path("repository").glob("*.safetensors")
    published.rename("repository/weights.safetensors")
    place = Path("fetched/A_model.safetensors")
    assert output(capsys, "fetch", "repository", "-o", "fetched") == f"{place}: 1 head (A), {kilobytes(place)} kB\n"
    assert_same(place, heads.load("models/A_model.safetensors"))
    assert [path.name for path in Path("fetched").iterdir()] == [place.name]


def test_fetch_writes_to_models_and_replaces_only_if_told(folder, capsys):
    Path("repository").mkdir()
    output(capsys, "push", "P", "repository")
    Path("models/P_model.safetensors").write_bytes(b"mine")
    message = error(capsys, "fetch", "repository")
    assert message == "models/P_model.safetensors exists: choose another place, or replace with --overwrite."
    assert Path("models/P_model.safetensors").read_bytes() == b"mine"
    output(capsys, "fetch", "repository", "--overwrite")
    assert heads.load("models/P_model.safetensors").metadata["name"] == "P"


def test_a_file_of_several_heads_and_an_old_one_keep_their_names(folder, capsys):
    Path("several").mkdir()
    output(capsys, "merge", "A", "P", "-o", "several/both.safetensors")
    assert output(capsys, "fetch", "several").startswith("models/both.safetensors: 2 heads (A, P), ")
    Path("old").mkdir()
    torch.save(old_state(), "old/Cars_model.pt")
    assert output(capsys, "fetch", "old").startswith("models/Cars_model.pt: 1 head (Cars), ")
    assert Path("models/Cars_model.pt").read_bytes() == Path("old/Cars_model.pt").read_bytes()


def test_fetch_says_what_a_head_needs(folder, capsys):
    Path("repository").mkdir()
    heads_model().save_head("B", Path("repository/B_model.safetensors"))
    lines = output(capsys, "fetch", "repository", "--output", "elsewhere").splitlines()
    assert lines[1:] == ["B extends A: it needs A_model.safetensors, which is not here"]
    lines = output(capsys, "fetch", "repository", "--overwrite").splitlines()
    assert lines[1:] == []  # A is in models/ already


def test_what_is_not_a_head_is_not_fetched(folder, capsys):
    Path("repository").mkdir()
    Path("repository/B_model.safetensors").write_bytes(b"a page that says: not found")
    assert "is damaged or cut short" in error(capsys, "fetch", "repository", "--overwrite")
    assert heads.load("models/B_model.safetensors").metadata["name"] == "B"


# ------------------------------------------------------------------------------------------------------ the dispatcher
def test_help_lists_the_subcommands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert [name for name in SUBCOMMANDS if f"\n  {name} " not in printed] == []
    assert set(SUBCOMMANDS) == {"show", "merge", "split", "convert", "push", "fetch"}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_subcommand_has_its_help(capsys, name):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {PROG} {name} ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: SUBCOMMAND"),
        (["dance"], "argument SUBCOMMAND: invalid choice: 'dance'"),
        (["show"], "the following arguments are required: FILE"),
        (["merge", "A"], "the following arguments are required: -o/--output"),
        (["convert", "old.pt"], "the following arguments are required: NEW"),
        (["convert", "old.pt", "new.safetensors", "--names", "a b"], "--names is 'a b', but it has to be"),
        (["push", "A"], "the following arguments are required: REPO"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
