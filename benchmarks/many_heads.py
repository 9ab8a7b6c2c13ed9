"""What one model with many heads answers in a second, beside as many separate models.

    python benchmarks/many_heads.py [--size B/32] [--batch_size 32] [--rounds 5] [--output FILE.json]
    python benchmarks/many_heads.py --draw images/many_heads.png benchmarks/many_heads_b*.json

For each number of heads T (1, 2, 4, 8, 16, 32, 64, 100; one memory cell, 100 classes each), in turn in every round:

    one model           `MemoryCapableViT.for_inference()` with T heads and the base's own answers
    one model, heads    the same without the base's own answers, which ends the base at the last layer's keys and values
    separate models     T times `ViTForImageClassification`, as HuggingFace ships it, on the same images. Up to eight
                        are different models in memory; more take turns with these, and are measured in one round only
    plain base          one such model: what T = 0 costs

Random weights: speed does not depend on them. Ratios are medians of pairs within a round; to more than eight separate
models, of the one time that these were measured.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from training_speed import CLASSES, SIZES, batch_of, new_base

from learnable_memory import cost
from learnable_memory.many_heads_plot import many_heads
from vit import MemoryCapableViT

HEADS = (1, 2, 4, 8, 16, 32, 64, 100)
MOST_MODELS = 8  # in memory at once

Step = Callable[[], None]


@functools.lru_cache
def separate_base(size: str, number: int, dtype: torch.dtype, device: str):
    return new_base(size).to(device, dtype)


def cases(size: str, heads: int, pixel_values: torch.Tensor, dtype: torch.dtype) -> dict[str, Step]:
    """What is timed for this number of heads."""
    device = str(pixel_values.device)
    model = MemoryCapableViT.from_base(separate_base(size, 0, dtype, device))
    for i in range(heads):
        model.add_head(f"head{i}", CLASSES, memory_tokens=1)
    served = model.for_inference()
    cast = pixel_values.to(dtype)

    def separate() -> None:
        for i in range(heads):
            separate_base(size, i % MOST_MODELS, dtype, device)(cast)

    for i in range(min(heads, MOST_MODELS)):  # built here, not while somebody looks at the clock
        separate_base(size, i, dtype, device)(cast)
    return {
        "one model": lambda: served(pixel_values),
        "one model, heads": lambda: served(pixel_values, with_base=False),
        "separate models": separate,
    }


def timed(step: Step, device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, dict]:
    """Of each number of heads: images a second, and ratios to the plain base and to separate models."""
    pixel_values, _ = batch_of(args.batch_size, args.device)
    dtype = getattr(torch, args.dtype)
    plain = separate_base(args.size, 0, dtype, args.device)
    base_step = functools.partial(plain, pixel_values.to(dtype))
    rows = {}
    for heads in args.heads:
        steps = cases(args.size, heads, pixel_values, dtype)
        seconds: dict[str, list[float]] = {name: [] for name in ("plain base", *steps)}
        for round_number in range(args.rounds + 1):
            for name, step in {"plain base": base_step, **steps}.items():
                if name == "separate models" and heads > MOST_MODELS and seconds[name]:
                    continue
                took = timed(step, args.device)
                if round_number or (name == "separate models" and heads > MOST_MODELS):  # the first one warms up
                    seconds[name].append(took)
        rows[str(heads)] = row = summary(seconds, args.batch_size)
        print(f"{heads:4} heads  " + "  ".join(f"{name} {value:.2f}" for name, value in row.items()), flush=True)
    return rows


def summary(seconds: dict[str, list[float]], images: int) -> dict[str, float]:
    """Images a second of each case, and ratios of the two kinds of one model, larger than 1 where it is faster."""
    row = {name: images / statistics.median(times) for name, times in seconds.items()}
    for name in ("one model", "one model, heads"):
        for against in ("plain base", "separate models"):
            others = seconds[against] if len(seconds[against]) > 1 else seconds[against] * len(seconds[name])
            pairs = zip(others, seconds[name], strict=True)
            row[f"{name} / {against}"] = statistics.median(other / own for other, own in pairs)
    return row


def expected(size: str, heads: int) -> float:
    """Speed of one model to that of the plain base, by arithmetic alone."""
    config = new_base(size).config
    patches = (config.image_size // config.patch_size) ** 2
    shape = patches + 1, config.hidden_size, config.intermediate_size, config.num_hidden_layers
    base = cost.base(*shape, 3 * config.patch_size**2, patches)
    return base / (base + heads * cost.head(*shape, 1, CLASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="B/32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, nargs="+", default=HEADS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--draw", nargs="+", metavar="FILE", help="draw PNG JSON...: the picture from such files")
    args = parser.parse_args()
    if args.draw:
        picture, *files = args.draw
        print(many_heads([json.loads(Path(file).read_text()) for file in files], picture))
        return
    torch.manual_seed(0)
    print(f"ViT-{args.size}, batch {args.batch_size}, {args.dtype}, {args.device}, torch {torch.__version__}")
    rows = measure(args)
    if args.output:
        setup = {"size": args.size, "batch_size": args.batch_size, "dtype": args.dtype, "device": args.device}
        setup |= {"rounds": args.rounds, "torch": torch.__version__}
        by_arithmetic = {str(heads): expected(args.size, heads) for heads in args.heads}
        args.output.write_text(json.dumps({**setup, "arithmetic": by_arithmetic, "heads": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
