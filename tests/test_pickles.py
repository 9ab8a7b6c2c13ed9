"""Pickles read without trust. Every hostile file would leave a marker behind if anything in it ran."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from learnable_memory import pickles

GOOD = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Harmless:
    """A class that somebody may have told torch to trust."""

    def __init__(self) -> None:
        self.numbers = [1]


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What payloads create."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def trust() -> Iterator[Callable]:
    """torch.serialization.add_safe_globals, for one test."""
    before = torch.serialization.get_safe_globals()
    yield torch.serialization.add_safe_globals
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def save_old(content: object, path: Path) -> None:
    """Before torch 1.6: pickles one after the other, no zip file."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(protocol: int) -> Callable[[object, Path], None]:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


def attached(value: object) -> nn.Parameter:
    """A parameter with an attribute, which torch.save keeps."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = value
    return parameter


def with_metadata(value: object) -> OrderedDict:
    """Where a module's state dict keeps versions."""
    state = OrderedDict(GOOD)
    state._metadata = {"": value}
    return state


def refused(path: Path) -> str:
    """The message, whose form is that of all messages."""
    with pytest.raises(ValueError) as caught:
        pickles.read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("save", [torch.save, save_old], ids=["new", "old"])
def test_tensors_and_plain_values_are_read(tmp_path: Path, save: Callable) -> None:
    shared = torch.arange(12.0)
    module = nn.Linear(3, 2)
    content = {
        "model": module.state_dict(), "parameter": nn.Parameter(torch.ones(2)), "half": torch.ones(3).half(),
        "views": [shared[:6], shared.view(3, 4).T], "empty": torch.empty(1, 0, 4), "size": torch.Size([2, 3]),
        "arch": "vit_small", "epoch": 300, "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "fused": None, "on": True}],
    }  # fmt: skip
    save(content, tmp_path / "x.pt")
    found = pickles.read(tmp_path / "x.pt")
    assert found.keys() == content.keys()
    for name in ("parameter", "half", "empty"):
        assert torch.equal(found[name], content[name]) and found[name].dtype == content[name].dtype
    assert all(torch.equal(a, b) for a, b in zip(found["views"], content["views"], strict=True))
    assert all(torch.equal(found["model"][name], value) for name, value in module.state_dict().items())
    assert {name: found[name] for name in ("size", "arch", "epoch", "groups")} == {
        name: content[name] for name in ("size", "arch", "epoch", "groups")
    }


def test_a_container_may_hold_itself(tmp_path: Path) -> None:
    content: dict = dict(GOOD)
    content["again"] = [content]
    torch.save(content, tmp_path / "x.pt")
    found = pickles.read(tmp_path / "x.pt")
    assert found["again"][0] is found and torch.equal(found["bias"], GOOD["bias"])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pickles.read(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------------------------ hostile files
PAYLOADS = {
    "os.system": (lambda marker: Payload(os.system, f"touch '{marker}'"), f"{os.name}.system"),
    "eval": (lambda marker: Payload(eval, f"open({str(marker)!r}, 'w')"), "eval"),
    "exec": (lambda marker: Payload(exec, f"open({str(marker)!r}, 'w')"), "exec"),
    "method": (lambda marker: Payload(Path.touch, marker), "getattr"),
}
PLACES = {
    "alone": lambda payload: payload,
    "beside tensors": lambda payload: {**GOOD, "running_mean": payload},
    "before tensors": lambda payload: {"running_mean": payload, **GOOD},
    "nested": lambda payload: {"model": GOOD, "optimizer": {"state": [({"step": payload},)]}},
    "as a name": lambda payload: {**GOOD, payload: 1},
    "in metadata": with_metadata,
    "on a tensor": lambda payload: {**GOOD, "parameter": attached(payload)},
}
FORMATS = {"new": torch.save, "old": save_old, "pickle": pickled(protocol=2)}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_would_run(tmp_path: Path, payload: str) -> None:
    """Else the tests below would prove nothing."""
    make, _ = PAYLOADS[payload]
    pickle.loads(pickle.dumps(make(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_in_a_pickle_runs(tmp_path: Path, marker: Path, place: str, save: str) -> None:
    for make, name in PAYLOADS.values():
        FORMATS[save](PLACES[place](make(marker)), tmp_path / "x.pt")
        message = refused(tmp_path / "x.pt")
        if save != "pickle" or place == "alone":  # else its tensors, which are not torch.save's, come first
            named = rf"holds {re.escape(name)} beside its tensors"
            assert re.search(f"{named}, and such a pickle can run any code: where you trust it, load it and", message)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("new", [True, False])
def test_newer_pickles_do_not_run_either(tmp_path: Path, marker: Path, new: bool) -> None:
    payload = Payload(os.system, f"touch '{marker}'")
    torch.save(GOOD | {"x": payload}, tmp_path / "x.pt", pickle_protocol=4, _use_new_zipfile_serialization=new)
    assert "it is no checkpoint, is damaged, or holds more than tensors; replace it" in refused(tmp_path / "x.pt")


def test_whole_models_are_refused(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "x.pt")
    assert "holds torch.nn.modules.linear.Linear beside its tensors" in refused(tmp_path / "x.pt")


def test_arrays_of_objects(tmp_path: Path, marker: Path) -> None:
    objects = np.array([Payload(os.system, f"touch '{marker}'")], dtype=object)
    torch.save({**GOOD, "labels": objects}, tmp_path / "x.pt")
    assert re.search(r"holds numpy\.\S*_reconstruct beside its tensors", refused(tmp_path / "x.pt"))


# --------------------------------------------------------------------------- what torch lets through, and this does not
def test_what_the_process_trusts_is_not_trusted_here(tmp_path: Path, trust: Callable) -> None:
    torch.save({**GOOD, "x": [Harmless()]}, tmp_path / "x.pt")
    trust([Harmless])
    assert isinstance(torch.load(tmp_path / "x.pt", weights_only=True)["x"][0], Harmless)
    assert f"holds {__name__}.Harmless beside its tensors" in refused(tmp_path / "x.pt")


def test_arrays_that_the_process_trusts(tmp_path: Path, trust: Callable) -> None:
    """As transformers' Trainer lets torch load its random states."""
    torch.save({**GOOD, "x": np.arange(3)}, tmp_path / "x.pt")
    reconstruct = np.arange(3).__reduce__()[0]
    trust([reconstruct, np.ndarray, np.dtype, type(np.dtype(np.int64))])
    assert torch.load(tmp_path / "x.pt", weights_only=True)["x"].tolist() == [0, 1, 2]
    assert "holds numpy.ndarray beside its tensors" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.Tensor, "_TensorMeta"),  # a class by its name, which torch takes for nothing worse than a word
        (torch._utils._rebuild_tensor_v2, "builtins.function"),
    ],
)
def test_names_of_functions_are_no_values(tmp_path: Path, value: object, found: str) -> None:
    for place in ("beside tensors", "nested", "as a name"):
        torch.save(PLACES[place](value), tmp_path / "x.pt")
        assert f"{found} beside its tensors" in refused(tmp_path / "x.pt")


def test_tensors_without_values_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1).expand(10**6, 10**6)}, path)
    assert "holds 4 bytes of a tensor that takes 4000000000000: copy it before it is saved" in refused(path)
    torch.save({"x": torch.empty(2, 2, device="meta")}, path)
    assert "holds a torch.strided tensor on meta; legal are dense ones with values: convert it" in refused(path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_sparse_tensors(tmp_path: Path) -> None:
    torch.save({"x": torch.eye(2).to_sparse()}, tmp_path / "x.pt")
    assert "holds a torch.sparse_coo tensor on cpu" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(("content", "name"), [(torch.zeros(3), "Tensor"), ([GOOD], "list"), (None, "NoneType")])
def test_what_is_no_dict(tmp_path: Path, content: object, name: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert refused(tmp_path / "x.pt").endswith(f"holds a {name}; a checkpoint is a dict of tensors")


# ------------------------------------------------------------------------------------------------------ damaged files
def test_programs_of_torchscript(tmp_path: Path) -> None:
    """The entries that torch.jit.save writes."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"x/{name}", b"\x80\x02}.")
    message = refused(tmp_path / "x.pt")
    assert "is a TorchScript archive, a program and no checkpoint: where you trust it, load it with" in message


def test_bombs(tmp_path: Path) -> None:
    """50 MB of zeros, packed."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + bytes(50_000_000))
    size = (tmp_path / "x.pt").stat().st_size
    assert size < 100_000
    assert f"has {size} bytes and would take 50000002 unpacked; torch.save does not c" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("save", [torch.save, save_old], ids=["new", "old"])
def test_files_cut_short(tmp_path: Path, save: Callable) -> None:
    save({f"layers.{i}": torch.ones(50) for i in range(3)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for length in range(1, len(content) - 1, 37):
        (tmp_path / "x.pt").write_bytes(content[:length])
        # In the old format the cut may leave half a name, which is none that is allowed.
        assert re.search("^cannot read | beside its tensors", refused(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), b"hello\n" * 20, bytes(1000), b"\xff" * 1000,
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12\n",
    ],
    ids=["empty", "byte", "magic", "zeros in zip", "text", "zeros", "ones", "html", "pointer"],
)  # fmt: skip
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert re.search(r"cannot read .*(damaged, or no checkpoint|it is no checkpoint, is d)", refused(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyError(101), "no pickle"), (EOFError(), "it ends too early"), (RuntimeError("a\n  b"), "a b")],
)
def test_reasons_are_one_line(error: Exception, reason: str) -> None:
    message = str(pickles.unreadable(Path("x.pt"), error))
    assert message == f"cannot read x.pt ({reason}): it is damaged, or no checkpoint; replace it"
