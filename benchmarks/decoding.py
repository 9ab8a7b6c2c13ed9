"""How many photographs a core makes ready for a model in a second, decoded whole and scaled, beside timm's transforms.

    python benchmarks/decoding.py [--rounds 5] [--photographs DIR] [--output benchmarks/decoding.json]

Rows: JPEG files of four sizes. Columns: images a second of one core, for evaluation and for training (a random resized
crop, mirrored half of the time), all measured in turn in one run: times drift, ratios do not.

    whole       this library, with `--decoding full`
    scaled      this library, with `--decoding scaled`, the default: at 1/2, 1/4 or 1/8, twice the model's size at least
    timm        `timm.data.create_transform` on an image that Pillow has decoded

Then, for the same files, how far the pixels of the two decodings are apart (on the scale from -1 to 1), and the logits
of the base that ships (for 32x32 pixels), beside the standard deviation of its logits over classes and images.

The photographs are the two that come with scikit-learn, in many cut-outs, enlarged, with grain that gives a file about
0.2 bytes for a pixel, as telephones do. `--photographs DIR` takes others, of at least 4,000 pixels.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import timm.data
import torch
from PIL import Image

from learnable_memory.commands.model import open_base
from learnable_memory.image_paths import named_images
from learnable_memory.runlog import versions, write_json
from learnable_memory.text_table import side_by_side
from learnable_memory.transforms import SCALED_DECODING, Preprocessing

SIZES = {256: (341, 256), 512: (683, 512), 1024: (1365, 1024), 4000: (4000, 3000)}  # name -> width and height
TIMED = {256: 48, 512: 24, 1024: 12, 4000: 2}  # images that a round decodes
COMPARED = {256: 48, 512: 48, 1024: 24, 4000: 8}  # files whose pixels and logits are compared
QUALITY, GRAIN = 90, 5.0
MEAN = STD = (0.5, 0.5, 0.5)
WHOLE = Preprocessing(224, 224, "bilinear", 1 / 255, MEAN, STD)
SCALED = Preprocessing(224, 224, "bilinear", 1 / 255, MEAN, STD, scaled_decoding=SCALED_DECODING)
BASE = Path(__file__).resolve().parent.parent / "models" / "base-tiny"

Make = Callable[[bytes], torch.Tensor]


# ------------------------------------------------------------------------------------------------------ the photographs
def photographs(folder: Path | None) -> list[Image.Image]:
    """As many as are compared, all different."""
    most = max(COMPARED.values())
    if folder is not None:
        images = named_images([folder])
        return [images.image(index).convert("RGB") for index in range(min(most, len(images)))]
    from sklearn.datasets import load_sample_images

    generator, originals = np.random.default_rng(0), [Image.fromarray(pixels) for pixels in load_sample_images().images]
    found = []
    for number in range(most):
        width = int(generator.integers(320, 570))
        height = width * 3 // 4
        left, top = int(generator.integers(0, 640 - width + 1)), int(generator.integers(0, 427 - height + 1))
        found.append(originals[number % 2].crop((left, top, left + width, top + height)))
    return found


def jpeg(image: Image.Image, size: tuple[int, int], seed: int, grain: float) -> bytes:
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    pixels = pixels + np.random.default_rng(seed).normal(0, grain, pixels.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------- the methods
def ours(preprocessing: Preprocessing, views: str | None) -> Make:
    transform = preprocessing.train_transform(views) if views else preprocessing.eval_transform()
    return lambda file: transform(Image.open(io.BytesIO(file)))


def timms(training: bool) -> Make:
    transform = timm.data.create_transform(
        (3, 224, 224), is_training=training, interpolation="bilinear", mean=MEAN, std=STD, color_jitter=None
    )
    return lambda file: transform(Image.open(io.BytesIO(file)).convert("RGB"))


METHODS = {
    "evaluation": {"whole": ours(WHOLE, None), "scaled": ours(SCALED, None), "timm": timms(False)},
    "training": {
        "whole": ours(WHOLE, "resized_crop_flip"), "scaled": ours(SCALED, "resized_crop_flip"), "timm": timms(True),
    },
}  # fmt: skip


def speeds(files: list[bytes], rounds: int) -> dict[str, dict[str, float]]:
    """Images in a second of the processor's time, of one thread: the median of the rounds, in which all take turns."""
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for kind, methods in METHODS.items():
            for name, make in methods.items():
                start = time.process_time()
                for file in files:
                    make(file)
                taken.setdefault((kind, name), []).append(len(files) / (time.process_time() - start))
    return {kind: {name: statistics.median(taken[kind, name]) for name in METHODS[kind]} for kind in METHODS}


# ------------------------------------------------------------------------------------------------------ the differences
@torch.no_grad()
def differences(files: list[bytes]) -> dict[str, float]:
    """Of the pixels for 224x224, and of the logits of the base that ships."""
    apart = torch.stack([ours(SCALED, None)(file) - ours(WHOLE, None)(file) for file in files]).abs()
    model, preprocessing = open_base(str(BASE))
    scaled = Preprocessing.from_dict({**preprocessing.to_dict(), "scaled_decoding": SCALED_DECODING})
    logits = {}
    for name, settings in (("whole", preprocessing), ("scaled", scaled)):
        pixel_values = torch.stack([ours(settings, None)(file) for file in files])
        logits[name] = model(pixel_values, heads=[])["base"].logits  # [n, C]
    shift = (logits["scaled"] - logits["whole"]).abs()
    same = (logits["scaled"].argmax(1) == logits["whole"].argmax(1)).float().mean()
    return {
        "pixels_mean": float(apart.mean()), "pixels_max": float(apart.max()),
        "logits_mean": float(shift.mean()), "logits_max": float(shift.max()),
        "logits_sd": float(logits["whole"].std()), "same_top1": float(same),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, help="a folder of photographs, instead of scikit-learn's two")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    originals, grain = photographs(options.photographs), 0.0 if options.photographs else GRAIN
    rows = []
    for name in options.sizes:
        shown = originals[: COMPARED[name]]
        files = [jpeg(image, SIZES[name], seed, grain) for seed, image in enumerate(shown)]
        width, height = SIZES[name]
        row = {"pixels": f"{width}x{height}", "bytes_per_pixel": len(b"".join(files)) / len(files) / width / height}
        rows.append({**row, "images_per_second": speeds(files[: TIMED[name]], options.rounds), **differences(files)})
        print(table(rows[-1:]) if name == options.sizes[0] else table(rows[-1:]).partition("\n")[2], flush=True)
    if options.output:
        write_json(options.output, {"rounds": options.rounds, "rows": rows, "versions": versions()})


def table(rows: list[dict]) -> str:
    columns = [["pixels", *(f"{row['pixels']:>9}" for row in rows)]]
    for kind, methods in METHODS.items():
        for name in methods:
            columns.append([f"{kind[:5]} {name}", *(f"{row['images_per_second'][kind][name]:8.1f}" for row in rows)])
    for key in ("bytes_per_pixel", "pixels_mean", "pixels_max", "logits_mean", "logits_max", "logits_sd", "same_top1"):
        columns.append([key, *(f"{row[key]:.4f}" for row in rows)])
    return side_by_side(columns)


if __name__ == "__main__":
    main()
