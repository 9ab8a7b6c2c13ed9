"""`python -m learnable_memory bases MODEL`: what it prints is what a model does when it is run."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTImageProcessor

from learnable_memory import cost
from learnable_memory.__main__ import main
from learnable_memory.commands.bases import describe
from learnable_memory.commands.model import open_base
from tiny import add_random_head, images, tiny_base, tiny_model


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    tiny_base().save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture, *argv: str) -> dict[str, str]:
    assert main(["bases", *argv, "--no_download"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: text.strip() for name, text in (line.split("  ", 1) for line in lines)}


def test_a_stock_base(stock: Path, capsys: pytest.CaptureFixture) -> None:
    lines = printed(capsys, str(stock))
    model, preprocessing = open_base(str(stock))
    assert lines["base"] == str(stock)
    assert lines["tokens"] == "17: the class token, 0 further special tokens, 4x4 patches of 4x4 pixels"
    assert lines["width"] == "32, MLP 64"
    assert lines["layers"] == "3, 4 attention heads each"
    assert lines["parameters"] == f"{sum(parameter.numel() for parameter in tiny_base().parameters()):,}"
    assert lines["classifier"] == "5 classes"
    assert lines["preprocessing"] == (
        f"resized to 16x16 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5; hash {preprocessing.hash}"
    )
    assert lines["fingerprint"] == model.fingerprint
    # class token 32, 3 layers of 5 cells of 32, 100 classes of 32 and a bias each
    assert f"{32 + 3 * 5 * 32 + 100 * 33:,} numbers to learn, 15 kB (100 classes)" in lines["+ a head, 5 cells"]


def test_another_family_at_another_size(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = Dinov2WithRegistersConfig(
        image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_register_tokens=4
    )
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    lines = printed(capsys, str(tmp_path), "--image_size", "56")
    assert lines["tokens"] == "21: the class token, 4 further special tokens, 4x4 patches of 14x14 pixels"
    assert lines["classifier"] == "none, so no answers of its own"
    assert "centre 56x56" in lines["preprocessing"]


@pytest.mark.parametrize(("channels", "said"), [(1, "1 channel"), (4, "4 channels")])
def test_a_base_of_other_channels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, channels: int, said: str
) -> None:
    """As it is loaded, and not at the first image."""
    tiny_base(num_channels=channels).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert main(["bases", str(tmp_path), "--no_download"]) == 2
    assert capsys.readouterr().err.endswith(
        f"error: {tmp_path} takes images of {said}, and they are given to a base in 3, grey ones too: choose a base "
        "for RGB images.\n"
    )


def test_an_image_size_that_patches_do_not_fill_is_refused(stock: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bases", str(stock), "--image_size", "18"]) == 2
    error = capsys.readouterr().err
    assert "18x18 pixels cannot be cut into patches of 4x4" in error and error.count("\n") == 1


def multiplications(model, pixel_values: torch.Tensor, heads: list[str]) -> int:
    """As torch counts them while the model runs; it counts a multiplication and its addition as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values, heads=heads)
    return counter.get_total_flops() // 2


# Not with one cell: torch turns a product with one column into a sum, which it does not count.
@pytest.mark.parametrize(("memory_tokens", "classes"), [(0, 3), (2, 7), (4, 7)])
def test_the_arithmetic_is_what_torch_counts(memory_tokens: int, classes: int) -> None:
    model = tiny_model()  # 17 tokens, D = 32, MLP 64, 3 layers, patches of 3 x 4 x 4 numbers, 5 classes
    add_random_head(model, "A", classes, memory_tokens)
    base = multiplications(model, images(1), [])
    assert base == cost.base(17, 32, 64, 3, 48, 16) + 5 * 32  # its classifier, which the formula leaves out
    head = multiplications(model, images(1), ["A"]) - base
    # What torch counts besides: keys and values of the memory, and of the row that lists are padded with.
    memory = 3 * 2 * (memory_tokens + 1) * 32 * 32
    # and, in this small product, the weight of the own key, which is no matrix product
    own = 3 * 2 * 32
    assert head == cost.head(17, 32, 64, 3, memory_tokens, classes) + memory - own


def test_describe_says_how_small_a_head_is(stock: Path) -> None:
    model, preprocessing = open_base(str(stock))
    lines = describe(model, preprocessing)
    base, head = cost.base(17, 32, 64, 3, 48, 16), cost.head(17, 32, 64, 3, 1, 100)
    assert lines["+ a head, 1 cell"].startswith(f"{head / 1e6:.2f} M more, {head / base:.2%} of the base; ")
