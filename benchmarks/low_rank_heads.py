"""What low-rank weights cost: heads with them beside as many plain ones, timed in turn in one run.

    python benchmarks/low_rank_heads.py [--base tiny] [--rounds 7] [--output benchmarks/low_rank_heads_tiny.json]

For 1, 4 and 20 heads (one memory cell, 100 classes each): all plain, all of rank 8 (query, output and both projections
of the MLP), and of several heads also ranks 1, 2, 4 and 8 in turn. Of each, in turn in every round:

    forward         `MemoryCapableViT` in eval mode: heads and the base's own answers
    for_inference   the same of the copy that serves
    train           a step of all heads: forward, backward, SGD with momentum; the base runs without gradients
    train, cached   the same from keys and values in memory: the task stream alone

`tiny` is models/base-tiny with batches of 64, `B/32` a ViT-B/32 of random weights with batches of 8: speed does not
depend on them. A ratio is the median over rounds of the time of ranked heads to that of as many plain ones in the same
round; time on a CPU is what the process took of it, so that others on the machine do not count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from training_speed import CLASSES, new_base, train_on

from learnable_memory import cost
from learnable_memory.projections import USUAL_PROJECTIONS
from learnable_memory.runlog import versions
from vit import MemoryCapableViT

BASE_TINY = Path(__file__).resolve().parent.parent / "models" / "base-tiny"
COUNTS = (1, 4, 20)
KINDS = {"plain": (0,), "rank 8": (8,), "ranks 1, 2, 4, 8": (1, 2, 4, 8)}
BATCHES = {"tiny": 64, "B/32": 8}

Step = Callable[[], object]


class Case(NamedTuple):
    """So many heads of these ranks."""

    heads: int
    kind: str

    @property
    def ranks(self) -> list[int]:
        """Of each head."""
        ranks = KINDS[self.kind]
        return [ranks[i % len(ranks)] for i in range(self.heads)]


def cases() -> Iterator[Case]:
    """All that are timed, plain ones first; one head has one rank."""
    for heads in COUNTS:
        for kind, ranks in KINDS.items():
            if len(ranks) <= heads:
                yield Case(heads, kind)


def open_base(name: str):
    """A stock classifier, in eval mode."""
    if name == "tiny":
        return MemoryCapableViT.from_pretrained(BASE_TINY)
    return new_base(name)


def steps_of(case: Case, base, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Step]:
    """What is timed of a case."""
    device = images.device
    model = MemoryCapableViT.from_base(base)
    names = [f"head{i}" for i in range(case.heads)]
    for name, rank in zip(names, case.ranks, strict=True):
        model.add_head(name, CLASSES, memory_tokens=1, rank=rank)
    model.to(device).eval()
    served, tokens = model.for_inference(), model.base_tokens(images)
    optimizer = torch.optim.SGD(model.train_only(names), lr=0.001, momentum=0.9)

    def forward(served_or_not: MemoryCapableViT) -> Step:
        def step() -> None:
            with torch.inference_mode():
                served_or_not(images)

        return step

    return {
        "forward": forward(model),
        "for_inference": forward(served),
        "train": lambda: train_on(model, names, optimizer, images, labels),
        "train, cached": lambda: train_on(model, names, optimizer, tokens, labels),
    }


def timed(step: Step, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(name: str, rounds: int, device: torch.device) -> list[dict]:
    """A row for each case."""
    base = open_base(name).to(device)
    config, batch_size = base.config, BATCHES[name]
    images = torch.randn(batch_size, 3, config.image_size, config.image_size, device=device)
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)
    steps = {case: steps_of(case, base, images, labels) for case in cases()}
    seconds: dict[tuple[Case, str], list[float]] = {}
    for round_number in range(rounds + 1):
        for what in next(iter(steps.values())):
            for case in steps:
                took = timed(steps[case][what], device)
                if round_number:  # the first one warms up
                    seconds.setdefault((case, what), []).append(took)
    return [row_of(case, list(steps[case]), seconds, config, batch_size) for case in steps]


def row_of(case: Case, steps: list[str], seconds: dict, config, batch_size: int) -> dict:
    """Images a second, and times as shares of those of as many plain heads."""
    row = {"heads": case.heads, "kind": case.kind, "arithmetic": {"forward": arithmetic(case, config)}}
    for what in steps:
        own, plain = seconds[case, what], seconds[Case(case.heads, "plain"), what]
        row[what] = {
            "images_per_second": batch_size / statistics.median(own),
            "time / plain": statistics.median(a / b for a, b in zip(own, plain, strict=True)),
        }
    shown = "  ".join(f"{what} {row[what]['time / plain']:.2f}" for what in steps)
    print(f"{case.heads:3} heads, {case.kind:18}{shown}", flush=True)
    return row


def arithmetic(case: Case, config) -> float:
    """Multiplications of a forward pass as a share of those with plain heads."""
    patches = (config.image_size // config.patch_size) ** 2
    shape = patches + 1, config.hidden_size, config.intermediate_size, config.num_hidden_layers
    base = cost.base(*shape, 3 * config.patch_size**2, patches)
    ranked, plain = (
        base + sum(cost.head(*shape, 1, CLASSES, dict.fromkeys(USUAL_PROJECTIONS, rank)) for rank in ranks)
        for ranks in (case.ranks, [0] * case.heads)
    )
    return ranked / plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BATCHES, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    machine = {"device": args.device, "threads": torch.get_num_threads()}
    print(f"{args.base}, batch {BATCHES[args.base]}, {args.device}, {machine['threads']} threads")
    rows = measure(args.base, args.rounds, torch.device(args.device))
    if args.output:
        setup = {"base": args.base, "batch_size": BATCHES[args.base], "rounds": args.rounds, "machine": machine}
        args.output.write_text(json.dumps({**setup, "versions": versions(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
