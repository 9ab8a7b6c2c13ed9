"""Finding a base model: folder, cache, hub, or one line that says why not. The hub is a stand-in."""

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from transformers import ViTConfig, ViTImageProcessor

from learnable_memory.bases import SHIPPED_BASE, find_base, is_huggingface, preprocessing_of
from learnable_memory.config import DEFAULT_BASE
from learnable_memory.transforms import Preprocessing

COMMIT = "0123456789" * 4
FILES = {"config.json": "{}", "preprocessor_config.json": "{}", "model.safetensors": "weights"}
SHARDS = {f"model-{part}-of-00002.safetensors": "weights" for part in ("00001", "00002")}
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": {str(n): name for n, name in enumerate(SHARDS)}})}


def write_cache(cache: Path, name: str, files: dict[str, str]) -> Path:
    """A model in the layout of the HuggingFace cache; returns its snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (snapshot / file).write_text(content)
    return snapshot


def stand_in_hub(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """A hub whose every repository holds these files."""

    def model_info(self: object, name: str, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot_download(name: str, cache_dir: Path, allow_patterns: list[str]) -> str:
        wanted = {file: text for file, text in files.items() if any(fnmatch(file, p) for p in allow_patterns)}
        return str(write_cache(cache_dir, name, wanted))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at the hub's address, and whoever waits to try again fails the test."""

    def refuse_to_wait(seconds: float) -> None:
        raise AssertionError("waited to try again")

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", refuse_to_wait)


def test_names() -> None:
    assert DEFAULT_BASE == "google/vit-base-patch32-224-in21k"
    assert SHIPPED_BASE == "models/base-tiny"


# -------------------------------------------------------------------------------------------------------------- folder
def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_base("models/mine", tmp_path / "cache", download=False) == Path("models/mine")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"folder {tmp_path} has no config.json; give a folder saved by"):
        find_base(str(tmp_path))


# --------------------------------------------------------------------------------------------------------------- cache
@pytest.mark.parametrize("weights", [{"model.safetensors": ""}, {"pytorch_model.bin": ""}, SHARDS | INDEX])
@pytest.mark.usefixtures("no_network")
def test_what_the_cache_has_is_not_asked_for(tmp_path: Path, weights: dict[str, str]) -> None:
    files = {"config.json": "{}", "preprocessor_config.json": "{}", **weights}
    snapshot = write_cache(tmp_path, "someone/vit", files)
    assert find_base("someone/vit", tmp_path, download=False) == snapshot
    assert find_base("someone/vit", tmp_path, download=True) == snapshot


@pytest.mark.parametrize("missing", ["config.json", "model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_an_incomplete_cache_does_not_count(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": "{}", "preprocessor_config.json": "{}", **SHARDS, **INDEX}
    write_cache(tmp_path, "someone/vit", {name: text for name, text in files.items() if name != missing})
    with pytest.raises(FileNotFoundError):
        find_base("someone/vit", tmp_path, download=False)
    stand_in_hub(monkeypatch, files)
    assert (find_base("someone/vit", tmp_path) / missing).is_file()


def test_a_processor_missing_from_the_cache_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`AutoModel.from_pretrained` leaves config and weights only."""
    snapshot = write_cache(tmp_path, "someone/vit", {"config.json": "{}", "model.safetensors": ""})
    assert find_base("someone/vit", tmp_path, download=False) == snapshot
    stand_in_hub(monkeypatch, FILES)
    assert (find_base("someone/vit", tmp_path) / "preprocessor_config.json").is_file()


@pytest.mark.usefixtures("no_network")
def test_a_cached_base_without_processor_works_without_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = write_cache(tmp_path, "someone/vit", {"config.json": "{}", "model.safetensors": ""})
    assert find_base("someone/vit", tmp_path) == snapshot
    assert "in the cache without preprocessor_config.json, which could not be fetched" in caplog.text


# ----------------------------------------------------------------------------------------------------------------- hub
OTHERS = {"README.md": "", "flax_model.msgpack": "", "tf_model.h5": "", "optimizer.pt": "", ".gitattributes": ""}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"model.safetensors", "pytorch_model.bin"}, {"model.safetensors"}),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}),
        ({*SHARDS, *INDEX, "pytorch_model.bin"}, {*SHARDS, *INDEX}),
    ],
)
def test_only_what_is_needed_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: set[str], expected: set[str]
) -> None:
    base = {"config.json": "{}", "preprocessor_config.json": "{}"}
    stand_in_hub(monkeypatch, base | OTHERS | {name: INDEX.get(name, "") for name in there})
    folder = find_base("someone/vit", tmp_path)
    assert {file.name for file in folder.iterdir()} == base.keys() | expected
    assert find_base("someone/vit", tmp_path, download=False) == folder


def test_a_repository_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_hub(monkeypatch, {"config.json": "{}", "flax_model.msgpack": ""})
    with pytest.raises(FileNotFoundError, match=r"has neither model.safetensors nor pytorch_model.bin on the hub"):
        find_base("someone/vit", tmp_path)


# ----------------------------------------------------------------------------------------------------------- not found
def check_message(caught: pytest.ExceptionInfo, name: str, cache: Path) -> None:
    message = str(caught.value)
    assert "\n" not in message
    assert f"'{name}' is neither a folder nor a file, nor in the cache {cache}, nor reachable" in message
    assert message.endswith("--base_model models/base-tiny")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [DEFAULT_BASE, "models/no-such-folder", "/no/such/folder", "a b"])
def test_without_network_one_line_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_base(name, tmp_path)
    check_message(caught, name, tmp_path)


def test_with_downloading_off(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="downloading is off") as caught:
        find_base(DEFAULT_BASE, tmp_path, download=False)
    check_message(caught, DEFAULT_BASE, tmp_path)


def test_long_errors_of_the_hub_are_cut_to_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(self: object, name: str, timeout: float) -> None:
        raise OSError("404 Client Error.\n\nRepository Not Found\nPlease make sure ...")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(FileNotFoundError, match=r"\(OSError: 404 Client Error\.\)") as caught:
        find_base("someone/vit", tmp_path)
    check_message(caught, "someone/vit", tmp_path)


# ------------------------------------------------------------------------------------------------------ preprocessing
def stock_folder(path: Path, **changes: object) -> Path:
    ViTConfig(**{"image_size": 48, "patch_size": 16, **changes}).save_pretrained(path)
    return path


def test_the_processor_of_a_folder_decides(tmp_path: Path) -> None:
    saved = ViTImageProcessor(size=48, image_mean=[0.1, 0.2, 0.3], resample=3)
    saved.save_pretrained(stock_folder(tmp_path))
    assert preprocessing_of(tmp_path) == Preprocessing.from_processor(saved)
    assert preprocessing_of(tmp_path).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("size", [96, [32, 64]])
def test_a_vit_without_processor_gets_that_of_googles_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: object
) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    found = preprocessing_of(stock_folder(tmp_path, image_size=size))
    assert found == Preprocessing(height, width, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert "has no preprocessor_config.json; pixels are made as is usual for ViT: resized to " in caplog.text
    assert f"{height}x{width} (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5." in caplog.text


# ------------------------------------------------------------------------------------------------------------- kinds
def test_a_checkpoint_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "ViT-B_16.npz").write_bytes(b"")
    assert find_base(str(tmp_path / "ViT-B_16.npz"), download=False) == tmp_path / "ViT-B_16.npz"
    assert not is_huggingface(tmp_path / "ViT-B_16.npz")


@pytest.mark.parametrize(("config", "is_so"), [('{"model_type": "deit"}', True), ('{"architecture": "vit"}', False)])
def test_the_config_says_whose_layout_it_is(tmp_path: Path, config: str, is_so: bool) -> None:
    (tmp_path / "config.json").write_text(config)
    assert is_huggingface(tmp_path) is is_so


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is damaged \(.*\): replace it") as caught:
        is_huggingface(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_cached_timm_model_needs_no_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnable_memory.bases.find._download", lambda *_: pytest.fail("asked the network"))
    snapshot = write_cache(tmp_path, "timm/vit", {"config.json": '{"architecture": "vit"}', "model.safetensors": ""})
    assert find_base("timm/vit", tmp_path) == snapshot


def test_the_base_that_ships_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).resolve().parent.parent / SHIPPED_BASE
    assert find_base(SHIPPED_BASE, tmp_path, download=False) == shipped


# ------------------------------------------------------------------------------------------------------------ safety
def test_code_that_comes_with_a_processor_neither_runs_nor_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_folder(tmp_path)
    (tmp_path / "processing_mine.py").write_text("raise SystemExit('it ran')")
    processor = {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "processing_mine.Mine"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    with pytest.raises(
        ValueError, match=r"cannot read .*preprocessor_config.json .*code that comes with a model is nev"
    ):
        preprocessing_of(tmp_path)


def test_a_known_processor_may_name_code_that_is_not_run(tmp_path: Path) -> None:
    ViTImageProcessor(size=48).save_pretrained(stock_folder(tmp_path))
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoImageProcessor": "mine.Mine"}}))
    assert preprocessing_of(tmp_path).height == 48
