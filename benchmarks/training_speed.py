"""How fast heads train, as ratios to plain inference, all measured in turn in one run (timings drift, ratios do not).

    python benchmarks/training_speed.py [--size B/32] [--batch_size 32] [--rounds 5] [--output benchmarks/results.json]

Rows
    forward only            the stock class under no_grad, as HuggingFace ships it: 1.00 by definition
    train N heads           one step of N heads with one memory cell in two streams: forward, backward, SGD
    ..., bfloat16           the same with the base in bfloat16; heads and optimizer in float32
    cache ..., N heads      the same from a cache in memory at batch 256, reading of the batch included: "keys" for keys
                            and values, "tokens" for the tokens after the norm; stored and computed in the named dtype
    naive, 1 head           the method as the paper writes it: one joint masked attention over all tokens and memory in
                            every layer, gradients computed everywhere, SGD on the head

`--memory` measures the largest resident memory instead, each case in a process of its own.

Random weights: speed does not depend on them. All cores, float32 where nothing else is said.
"""

import argparse
import copy
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

from learnable_memory.features import CachedLoader, Contents, FeatureCache
from learnable_memory.images import ArrayImages, ImageSet
from learnable_memory.loading import EpochBatches
from learnable_memory.meter import peak_memory
from vit import BaseTokens, MemoryCapableViT, SelfAttentionWithMemory, build_attention_mask

CLASSES = 100
LARGE = {
    "patch_size": 16, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096,
}  # fmt: skip
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SIZES = {  # stock class and its configuration; "naive" knows the first three only
    "B/32": (ViTForImageClassification, ViTConfig(patch_size=32, num_labels=CLASSES)),
    "B/16": (ViTForImageClassification, ViTConfig(patch_size=16, num_labels=CLASSES)),
    "L/16": (ViTForImageClassification, ViTConfig(**LARGE, num_labels=CLASSES)),
    "DINOv3-B/16": (DINOv3ViTModel, DINOv3ViTConfig(**BASE, patch_size=16, num_register_tokens=4)),
    "DINOv3-L/16": (DINOv3ViTModel, DINOv3ViTConfig(**LARGE, num_register_tokens=4)),
    "SigLIP-B/16": (SiglipVisionModel, SiglipVisionConfig(**BASE, patch_size=16)),
}
CACHED_BATCH = 256

Step = Callable[[], None]
Prepare = Callable[[str, torch.Tensor, torch.Tensor], tuple[Step, int]]  # size, pixels, labels -> step, its images


@functools.lru_cache
def shared_base(size: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """One for all cases that leave it as it is, so that they do not crowd each other out of memory."""
    return new_base(size).to(device, dtype)


def new_base(size: str) -> PreTrainedModel:
    kind, config = SIZES[size]
    return kind(copy.deepcopy(config)).eval()


def new_model(size: str, heads: int, dtype: torch.dtype, device: torch.device):
    """A model with heads of one cell, and their optimizer."""
    model = MemoryCapableViT.from_base(shared_base(size, dtype, device)).train()
    names = [f"head{i}" for i in range(heads)]
    parameters = [parameter for name in names for parameter in model.add_head(name, CLASSES, memory_tokens=1)]
    return model, names, torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def train_on(model, names, optimizer, inputs, labels) -> None:
    outputs = model(inputs, with_base=False, labels=dict.fromkeys(names, labels))
    optimizer.zero_grad()
    sum(output.loss for output in outputs.values()).backward()
    optimizer.step()


def forward_only(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
    base = shared_base(size, torch.float32, pixel_values.device)

    def step() -> None:
        with torch.no_grad():
            base(pixel_values)

    return step, len(labels)


def train_heads(count: int, dtype: torch.dtype = torch.float32, compiled: bool = False) -> Prepare:
    def prepare(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
        model, names, optimizer = new_model(size, count, dtype, pixel_values.device)
        if compiled:
            model.compile()
        return lambda: train_on(model, names, optimizer, pixel_values, labels), len(labels)

    return prepare


@functools.lru_cache
def random_loader(contents: Contents) -> CachedLoader:
    """A batch of records in memory, through the loader that training uses; cases that differ in heads only share it."""
    images = ImageSet(ArrayImages(np.zeros((CACHED_BATCH, 1, 1), np.uint8), ""), np.arange(CACHED_BATCH) % CLASSES)
    cache = FeatureCache(contents, CACHED_BATCH)
    for view, shard in cache.missing():
        records = torch.empty(cache.rows(shard), contents.numbers, dtype=contents.torch_dtype)
        cache.keep(view, shard, records.uniform_(-1, 1))
    return CachedLoader(cache, images, EpochBatches(CACHED_BATCH, CACHED_BATCH, shuffle=True), BaseTokens)


def cached(count: int, form: str, name: str) -> Prepare:
    """Reading a batch from memory, and a step on it."""

    def prepare(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
        device = pixel_values.device
        model, names, optimizer = new_model(size, count, getattr(torch, name), device)
        loader = random_loader(
            Contents(
                "", name, "", "", None, 0, form, name, model.base_layers, model.base_attention_heads, model.num_tokens,
                model.base_width, model.readout_width,
            )
        )  # fmt: skip

        def step() -> None:
            for inputs, targets in loader:  # one batch
                train_on(model, names, optimizer, inputs.to(device, non_blocking=True), targets.to(device))

        return step, CACHED_BATCH

    return prepare


def naive(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
    base = new_base(size).to(pixel_values.device)
    model = MemoryCapableViT.from_base(base).to(pixel_values.device)
    parameters = model.add_head("head", CLASSES, memory_tokens=1)
    base.requires_grad_(True)
    head, vit = model.heads["head"], model.vit
    mask = build_attention_mask(vit.embeddings.patch_embeddings.num_patches, [1]).to(pixel_values.device)
    joint = [SelfAttentionWithMemory.from_attention(layer.attention) for layer in vit.layers]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def step() -> None:
        tokens = vit.embeddings(pixel_values)
        tokens = tokens.roll(-1, dims=1)  # the mask's order: patches, then the base class token
        added = head.class_token + vit.embeddings.position_embeddings[0, :1]
        tokens = torch.cat([tokens, added.expand(len(tokens), -1, -1)], dim=1)
        for layer, attention, memory in zip(vit.layers, joint, head.memory, strict=True):
            tokens = tokens + attention(layer.layernorm_before(tokens), layer.layernorm_before(memory), mask)[0]
            tokens = tokens + layer.mlp(layer.layernorm_after(tokens))
        loss = F.cross_entropy(head.classifier(vit.layernorm(tokens)[:, -1]), labels)
        model.zero_grad()
        loss.backward()
        optimizer.step()

    return step, len(labels)


BF16 = torch.bfloat16
CASES: dict[str, Prepare] = {
    "forward only": forward_only,
    "train 1 head": train_heads(1),
    "train 4 heads": train_heads(4),
    "train 20 heads": train_heads(20),
    "train 1 head, bfloat16": train_heads(1, BF16),
    "train 20 heads, bfloat16": train_heads(20, BF16),
    "train 1 head, bfloat16, compiled": train_heads(1, BF16, compiled=True),
    **{
        f"cache {short} {name}, {count} head{'s' * (count > 1)}": cached(count, form, name)
        for short, form in (("keys", "keys_values"), ("tokens", "tokens"))
        for name in ("float32", "bfloat16")
        for count in ((1, 4, 20) if short == "keys" else (1, 20))
    },
    "naive, 1 head": naive,
}
MEMORY_CASES = ["forward only", "train 1 head", "train 20 heads", "train 1 head, bfloat16", "naive, 1 head"]
DEFAULT = [name for name in CASES if "compiled" not in name]


def batch_of(batch_size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    pixel_values = torch.randn(batch_size, 3, 224, 224, device=device)
    return pixel_values, torch.randint(0, CLASSES, (batch_size,), device=device)


def measure(size: str, batch_size: int, rounds: int, names: list[str], device: str) -> dict[str, list[float]]:
    """Seconds for an image of each step, case after case in every round, so that a drift of the machine meets all."""
    steps = {name: CASES[name](size, *batch_of(batch_size, device)) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 1):
        for name, (step, images) in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first one warms up
                seconds[name].append((time.perf_counter() - start) / images)
    return seconds


def speed(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    seconds = measure(args.size, args.batch_size, args.rounds, args.cases, args.device)
    reference = {name: seconds[name] for name in ("forward only", "train 1 head", "naive, 1 head") if name in seconds}
    print(f"{'':34}{'images/s':>10}" + "".join(f"{'x ' + name:>18}" for name in reference))
    rows = {}
    for name, times in seconds.items():
        rows[name] = {"images_per_second": 1 / statistics.median(times)}
        for against, others in reference.items():
            rows[name][f"x {against}"] = statistics.median(o / t for o, t in zip(others, times, strict=True))
        print(
            f"{name:34}{rows[name]['images_per_second']:10.1f}"
            + "".join(f"{rows[name][f'x {a}']:18.2f}" for a in reference)
        )
    return rows


def memory(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Each case in a process of its own: the largest memory of a process never falls."""
    rows = {}
    for name in args.cases:
        command = [sys.executable, __file__, "--one", name, "--size", args.size, "--batch_size", str(args.batch_size)]
        ran = subprocess.run([*command, "--device", args.device], capture_output=True, text=True, check=True)
        rows[name] = {"peak_bytes": int(ran.stdout.splitlines()[-1])}
        rows[name]["x forward only"] = rows[name]["peak_bytes"] / rows["forward only"]["peak_bytes"]
        print(f"{name:34}{rows[name]['peak_bytes'] / 2**20:10.0f} MiB{rows[name]['x forward only']:8.2f}")
    return rows


def one(args: argparse.Namespace) -> None:
    step, _ = CASES[args.one](args.size, *batch_of(args.batch_size, args.device))
    for _ in range(3):
        step()
    print(peak_memory(torch.device(args.device)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="B/32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.one:
        return one(args)
    args.cases = args.cases or (MEMORY_CASES if args.memory else DEFAULT)
    if "forward only" not in args.cases:
        parser.error("--cases needs 'forward only', to which the others are compared")
    print(f"{args.size}, batch {args.batch_size}, {args.device}, torch {torch.__version__}, {args.rounds} rounds")
    rows = memory(args) if args.memory else speed(args)
    if args.output:
        setup = {"size": args.size, "batch_size": args.batch_size, "device": args.device, "rounds": args.rounds}
        setup |= {"cached_batch_size": CACHED_BATCH, "torch": torch.__version__}
        args.output.write_text(json.dumps({**setup, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
