"""How fast heads train, as ratios to plain inference, all measured in turn in one run (timings drift, ratios do not).

    python benchmarks/training_speed.py [--size B/32] [--batch_size 32] [--rounds 5] [--output benchmarks/results.json]

Rows
    forward only        `ViTForImageClassification` under no_grad, as HuggingFace ships it: 1.00 by definition
    train N heads       one step of N heads with one memory cell in two streams: forward, backward, SGD
    naive, 1 head       the method as the paper writes it: one joint masked attention over all tokens and memory in
                        every layer, gradients computed everywhere, SGD on the head

Random weights: speed does not depend on them. float32, all cores.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from vit import MemoryCapableViT, SelfAttentionWithMemory, build_attention_mask

SIZES = {
    "B/32": {"patch_size": 32},
    "B/16": {"patch_size": 16},
    "L/16": {
        "patch_size": 16, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}  # fmt: skip
CLASSES = 100


def new_base(size: str) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**SIZES[size], num_labels=CLASSES)).eval()


def forward_only(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    base = new_base(size).to(pixel_values.device)

    def step() -> None:
        with torch.no_grad():
            base(pixel_values)

    return step


def train_heads(count: int) -> Callable:
    def prepare(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
        model = MemoryCapableViT.from_base(new_base(size)).to(pixel_values.device).train()
        names = [f"head{i}" for i in range(count)]
        parameters = [parameter for name in names for parameter in model.add_head(name, CLASSES, memory_tokens=1)]
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        targets = dict.fromkeys(names, labels)

        def step() -> None:
            outputs = model(pixel_values, with_base=False, labels=targets)
            optimizer.zero_grad()
            sum(output.loss for output in outputs.values()).backward()
            optimizer.step()

        return step

    return prepare


def naive(size: str, pixel_values: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
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

    return step


CASES: dict[str, Callable] = {
    "forward only": forward_only,
    "train 1 head": train_heads(1),
    "train 4 heads": train_heads(4),
    "train 20 heads": train_heads(20),
    "naive, 1 head": naive,
}


def measure(size: str, batch_size: int, rounds: int, names: list[str], device: str) -> dict[str, list[float]]:
    """Seconds of each step, case after case in every round, so that a drift of the machine meets all of them."""
    pixel_values = torch.randn(batch_size, 3, 224, 224, device=device)
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)
    steps = {name: CASES[name](size, pixel_values, labels) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="B/32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    seconds = measure(args.size, args.batch_size, args.rounds, args.cases, args.device)
    plain = seconds["forward only"]
    rows = {}
    print(
        f"ViT-{args.size}, batch {args.batch_size}, {args.device}, torch {torch.__version__}, median of {args.rounds}"
    )
    print(f"{'':16} {'images/s':>9} {'ratio to forward only':>22}")
    for name, times in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(plain, times, strict=True))
        rows[name] = {"images_per_second": args.batch_size / statistics.median(times), "ratio": ratio}
        print(f"{name:16} {rows[name]['images_per_second']:9.1f} {ratio:22.2f}")
    if args.output:
        setup = {"size": args.size, "batch_size": args.batch_size, "device": args.device, "rounds": args.rounds}
        args.output.write_text(json.dumps({**setup, "torch": torch.__version__, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
