"""Every family of bases, from its files through the command lines: a head is trained, and validated as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vit_train
import vit_validation
from families_reference import randomise
from learnable_memory import heads
from learnable_memory.commands import run_command
from learnable_memory.commands.model import open_base
from tiny import tiny_base

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
QUICK = ["--workers", "0", "--batch_size", "16", "--device", "cpu", "--no_download"]


# ------------------------------------------------------------------------------------------------ files of the families
def huggingface(model: str, **changes: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        cls = getattr(transformers, model)
        config = cls.config_class(**{"image_size": 16, "patch_size": 4, **SMALL, **changes})
        randomise(cls(config)).save_pretrained(folder / "base")
        return folder / "base"

    return write


def stock(folder: Path) -> Path:
    tiny_base().save_pretrained(folder / "base")
    return folder / "base"


def timm_names() -> dict[str, torch.Tensor]:
    """The encoder as timm names it: D = 48, 2 layers, 4x4 patches of 4x4."""
    generator, tensors = torch.Generator().manual_seed(0), {}

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        tensors[name] = mean + torch.empty(shape).normal_(0, 0.2, generator=generator)

    add("cls_token", 1, 1, 48)
    add("pos_embed", 1, 17, 48)
    for linear, rows, columns in (
        *((f"blocks.{i}.{part}", *shape) for i in (0, 1) for part, shape in (
            ("attn.qkv", (144, 48)), ("attn.proj", (48, 48)), ("mlp.fc1", (96, 48)), ("mlp.fc2", (48, 96)),
        )),
    ):  # fmt: skip
        add(f"{linear}.weight", rows, columns)
        add(f"{linear}.bias", rows)
    for norm in ("norm", "blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"):
        add(f"{norm}.weight", 48, mean=1.0)
        add(f"{norm}.bias", 48)
    add("patch_embed.proj.weight", 48, 3, 4, 4)
    add("patch_embed.proj.bias", 48)
    return tensors


def moco(folder: Path) -> Path:
    state = {f"module.base_encoder.{name}": tensor for name, tensor in timm_names().items()}
    torch.save(
        {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {}}, folder / "vit-s-300ep.pth.tar"
    )
    return folder / "vit-s-300ep.pth.tar"


def npz(folder: Path) -> Path:
    width, attention_heads, mlp = 32, 4, 64
    generator, arrays = np.random.default_rng(0), {}

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        arrays[name] = (mean + generator.normal(0, 0.2, shape)).astype(np.float32)

    add("cls", 1, 1, width)
    add("embedding/kernel", 4, 4, 3, width)
    add("embedding/bias", width)
    add("Transformer/posembed_input/pos_embedding", 1, 17, width)
    for norm in ("encoder_norm", *(f"encoderblock_{i}/LayerNorm_{j}" for i in (0, 1) for j in (0, 2))):
        add(f"Transformer/{norm}/scale", width, mean=1.0)
        add(f"Transformer/{norm}/bias", width)
    for i in (0, 1):
        attention = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            add(f"{attention}/{name}/kernel", width, attention_heads, width // attention_heads)
            add(f"{attention}/{name}/bias", attention_heads, width // attention_heads)
        add(f"{attention}/out/kernel", attention_heads, width // attention_heads, width)
        add(f"{attention}/out/bias", width)
        for name, shape in (("Dense_0", (width, mlp)), ("Dense_1", (mlp, width))):
            add(f"Transformer/encoderblock_{i}/MlpBlock_3/{name}/kernel", *shape)
            add(f"Transformer/encoderblock_{i}/MlpBlock_3/{name}/bias", shape[1])
    add("head/kernel", width, 7)
    add("head/bias", 7)
    np.savez(folder / "ViT-T_4.npz", **arrays)
    return folder / "ViT-T_4.npz"


def timm(folder: Path) -> Path:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 6}
    model = randomise(timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments))
    folder = folder / "base"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 6, "num_features": 32, "model_args": arguments,
        "pretrained_cfg": {**pretrained, "crop_pct": 0.9, "num_classes": 6, "fixed_input_size": True},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# family -> (its files, base tokens of an image of 16x16 pixels, classes of its own)
FAMILIES = {
    "ViT": (stock, 17, 5),
    "DeiT": (huggingface("DeiTForImageClassification", num_labels=6), 18, 6),
    "DeiT, distilled": (huggingface("DeiTForImageClassificationWithTeacher", num_labels=6), 18, 6),
    "ViT-MAE": (huggingface("ViTMAEForPreTraining"), 17, 0),
    "ViT-MSN": (huggingface("ViTMSNModel"), 17, 0),
    "DINOv2": (huggingface("Dinov2ForImageClassification", num_labels=6), 17, 6),
    "DINOv2 with registers": (huggingface("Dinov2WithRegistersModel", num_register_tokens=3), 20, 0),
    "MoCo v3": (moco, 17, 0),
    "npz": (npz, 17, 7),
    "timm": (timm, 17, 6),
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "colours"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 100, (20, 20, 3))
            pixels[..., channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


FAST = ("ViT", "npz")  # how the others are read, the tests of each family know


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FAMILIES]
)
def test_a_head_is_trained_and_validated_on_every_family(
    family: str, tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture
) -> None:
    write, tokens, classes = FAMILIES[family]
    base, output = str(write(tmp_path)), tmp_path / "out"
    model, preprocessing = open_base(base)
    assert (model.num_tokens, model.image_size) == (tokens, (16, 16)) == (tokens, (preprocessing.height,) * 2)
    assert model.has_base_classifier == (classes > 0) and (not classes or model.config.num_labels == classes)

    train = ["--dataset", f"folder:{colours}", "--base_model", base, "--output", str(output), *QUICK]
    assert vit_train.main([*train, "--epochs", "2", "--lr", "0.1", "-m", "2"]) == 0
    head = heads.load(output / "colours_model.safetensors")
    assert head.metadata["base"] == {"id": base, "fingerprint": model.fingerprint}
    results = tmp_path / "results.json"
    validate = ["--models_list", "colours", "--models_folder", str(output), "--output", str(results), *QUICK]
    assert vit_validation.main(validate) == 0
    (row,) = json.loads(results.read_text())["heads"]
    assert row["difference"] == 0 and row["images"] == 3 * 2  # a fifth of 12, rounded
    assert head.metadata["metrics"]["eval"]["top1"] == row["top1"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ViT", "DeiT, distilled", "DINOv2 with registers", "npz"])
def test_heads_of_two_image_sizes_share_a_base(
    family: str, tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """The size is in the head's preprocessing: validation takes a pass for each, and repeats both accuracies."""
    base = str(FAMILIES[family][0](tmp_path))
    train = ["--dataset", f"folder:{colours}", "--base_model", base, "--output", str(tmp_path), *QUICK, "--lr", "0.1"]
    assert vit_train.main([*train, "--epochs", "1", "--name", "small"]) == 0
    assert vit_train.main([*train, "--epochs", "1", "--name", "large", "--image_size", "24", "--cache", "memory"]) == 0
    large = heads.load(tmp_path / "large_model.safetensors").metadata
    assert (large["preprocessing"]["height"], large["training"]["image_size"]) == (24, 24)
    results = tmp_path / "results.json"
    validate = ["--models_list", "small", "large", "--models_folder", str(tmp_path), "--output", str(results), *QUICK]
    assert vit_validation.main(validate) == 0
    assert "2 kinds of preprocessing" in caplog.text
    assert [row["difference"] for row in json.loads(results.read_text())["heads"]] == [0, 0]


def test_a_base_whose_own_images_do_not_fit_its_patches(
    tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture
) -> None:
    """The size is chosen in training, and validation needs no flag for it: the head knows."""
    base = stock(tmp_path)
    transformers.ViTImageProcessor(size={"height": 18, "width": 18}).save_pretrained(base)
    train = ["--dataset", f"folder:{colours}", "--base_model", str(base), "--output", str(tmp_path), *QUICK, "-e", "1"]
    assert run_command(vit_train.main, train) == 2
    error = capsys.readouterr().err
    assert "The base's own images do not fit it. Images of 18x18 pixels cannot be cut into patches of 4x4" in error
    assert error.rstrip().endswith("take multiples of these, such as 16x16. Choose a size with --image_size.")
    assert vit_train.main([*train, "--image_size", "20"]) == 0
    results = tmp_path / "results.json"
    validate = ["--models_list", "colours", "--models_folder", str(tmp_path), "--output", str(results), *QUICK]
    assert vit_validation.main(validate) == 0
    assert json.loads(results.read_text())["heads"][0]["difference"] == 0


def test_an_image_size_that_patches_do_not_fill_is_refused(
    tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture
) -> None:
    train = ["--dataset", f"folder:{colours}", "--base_model", str(stock(tmp_path)), "--output", str(tmp_path / "out")]
    assert run_command(vit_train.main, [*train, *QUICK, "--image_size", "18"]) == 2
    error = capsys.readouterr().err
    assert "--image_size is 18. Images of 18x18 pixels cannot be cut into patches of 4x4: take multiples of" in error


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("SwinConfig", "swin"),
        ("ConvNextConfig", "has no tokens for memory"),
        ("DINOv3ViTConfig", "dinov3_vit"),
        ("BertConfig", "bert"),
    ],
)
def test_what_cannot_be_a_base_is_refused_by_the_command_line(
    config: str, reason: str, tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture
) -> None:
    getattr(transformers, config)().save_pretrained(tmp_path)
    train = ["--dataset", f"folder:{colours}", "--base_model", str(tmp_path), "--output", str(tmp_path / "out")]
    assert run_command(vit_train.main, [*train, *QUICK]) == 2
    error = capsys.readouterr().err
    assert reason in error and "Traceback" not in error
