"""All command lines on a DINOv3, a CLIP and a SigLIP folder with its own image processor, as a user names them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vit_predict
import vit_train
import vit_validation
from learnable_memory.__main__ import main
from learnable_memory.commands import run_command
from learnable_memory.commands.model import open_base
from stock_families import PLAIN, TEXT, stock
from vit import MemoryCapableViT

PROCESSORS = {
    "dinov3": ("DINOv3ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
}
QUICK = ["--workers", "0", "--batch_size", "8", "--device", "cpu", "--no_download"]


def save(case: str, folder: Path) -> Path:
    """As the hub has them: CLIP with its text tower, the others alone; all with their processors."""
    base = stock(case)
    if case == "clip":
        config = transformers.CLIPConfig(vision_config=PLAIN, text_config={**TEXT, "vocab_size": 50})
        both = transformers.CLIPModel(config)
        both.vision_model.load_state_dict(base.state_dict())
        base = both
    base.save_pretrained(folder)
    name, settings = PROCESSORS[case]
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, generator = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            pixels = generator.integers(0, 100, (40, 40, 3), dtype=np.uint8)
            pixels[..., 2 - channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in PROCESSORS if case != "dinov3"]  # a quarter minute each


@pytest.mark.parametrize("case", ["dinov3", *SLOW])
def test_every_command_line_takes_it(case, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = save(case, tmp_path / "base")
    train = ["-d", f"folder:{photos}", "--base_model", "base", *QUICK, "--lr", "0.05"]

    def run(command, *argv: str) -> str:
        code = main(list(argv)) if command is main else run_command(command, list(argv))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    printed = run(main, "bases", "base", "--no_download")
    assert type(MemoryCapableViT.from_pretrained(base)).__name__ in printed
    # A head; one from a cache; a grid with folds, ranks and a probe.
    run(vit_train.main, *train, "-e", "2", "-m", "2", "--name", "head")
    run(vit_train.main, *train, "-e", "2", "-m", "2", "--name", "cached", "--cache", "memory")
    grid = "--method", "head", "memory", "--rank", "0", "2", "--folds", "2"
    run(vit_train.main, *train, "-e", "1", *grid, "--name", "grid")
    assert len(json.loads(Path("models/grid_grid.json").read_text())["cells"]) == 3
    names = "--models-list", "head", "cached", "grid"
    printed = run(vit_validation.main, *names, "-b", "8", "--workers", "0", "--device", "cpu")
    assert all(name in printed for name in ("head", "cached", "grid"))
    printed = run(
        vit_predict.main, str(photos / "red" / "0.png"), "--heads", "head", "cached", "--attention", "looks.png"
    )
    assert "red" in printed or "green" in printed or "blue" in printed
    run(main, "heads", "show", "head")
    run(main, "export", "--heads", "head", "--format", "torch-export", "--output", "served.pt2")
    model, preprocessing = open_base("base", download=False)
    model.load_head("models/head_model.safetensors")
    image = Image.open(photos / "red" / "0.png")
    pixels = preprocessing.eval_transform()(image)[None]
    processor = transformers.AutoImageProcessor.from_pretrained(base)
    assert torch.allclose(pixels, processor(image, return_tensors="pt").pixel_values, atol=0.03)
    exported = torch.export.load("served.pt2").module()(pixels)
    with torch.no_grad():
        assert torch.allclose(exported["head"], model(pixels)["head"].logits, atol=1e-4)
