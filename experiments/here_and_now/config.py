"""Here and now

Question: On the base that ships and data that any machine has, which method learns best, at what cost, and does the
paper's order (head, head+class, memory, full) hold?

Paper: Sandler et al., CVPR 2022, arXiv 2203.15243, Table 2 for the order; its numbers are of another base and other
data.

Command: `python experiments/run.py here_and_now`

Expected result: not published anywhere. Found - memory above head+class above head on Digits and Fashion-MNIST, no
difference on CIFAR100-new20; unmasked above masked where there is one; full fine-tuning first, but on Digits.

Expected time: under two hours on two CPU cores, as two processes of one thread each (OMP_NUM_THREADS=1, one with --only
CIFAR100-new20, one with --only Fashion-MNIST Digits). It took 1 h 42 min beside other work on the same two cores, so
its seconds are no measure of the methods.
"""

HEADS = (0.03, 0.1, 0.3, 1.0, 3.0)
APART = (0.03, 0.1, 0.3, 1.0)
CELLS = {"1 cell": 1, "5 cells": 5, "10 cells": 10, "20 cells": 20}
DATA = {
    "CIFAR100-new20": dict(dataset="CIFAR100-new20", epochs=2, batch_size=64),
    "Fashion-MNIST": dict(dataset="FashionMNIST-subset", epochs=2, batch_size=32),
    "Digits": dict(dataset="Digits", epochs=6, batch_size=32),
}
METHODS = {
    "full": dict(method="full", lr=(0.03, 0.1, 0.3)),
    "head": dict(method="head", lr=HEADS),
    "head+class": dict(method="head+class", lr=HEADS),
    **{name: dict(method="memory", number_of_memory_tokens=m, lr=HEADS) for name, m in CELLS.items()},
    **{
        f"{name}, unmasked": dict(method="memory", masking="none", number_of_memory_tokens=m, lr=APART)
        for name, m in CELLS.items()
    },
    "VPT-deep, 10 prompts": dict(method="vpt-deep", number_of_memory_tokens=10, lr=APART),
    "LoRA, rank 8": dict(method="lora", rank=8, lr=APART),
}

GRIDS = {
    "main": dict(options=dict(base_model="models/base-tiny", warmup_steps=5), over={"data": DATA, "method": METHODS}),
}
TABLES = [
    dict(
        title="Top-1, percent",
        rows="method",
        columns="data",
        differences=[
            ("head+class", "head"),
            *((name, "head+class") for name in CELLS),
            *((f"{name}, unmasked", name) for name in CELLS),
            ("10 cells, unmasked", "VPT-deep, 10 prompts"),
            ("10 cells, unmasked", "LoRA, rank 8"),
            ("full", "10 cells, unmasked"),
            ("full", "10 cells"),
        ],
        note="Each method at its own best rate, chosen on the selection split of the first data seed.",
    ),
    dict(
        title="What is learned for CIFAR100-new20, and whether it can be put together with others",
        rows="method",
        where={"data": "CIFAR100-new20"},
        values=("parameters", "megabytes", "combinable"),
    ),
    dict(title="Learning rates chosen on the selection split", rows="method", columns="data", values=("lr",)),
]
FIGURES = {
    "cells": dict(
        kind="lines",
        title="Accuracy against the number of cells, masked and not",
        rows="method",
        columns="data",
        x="memory_tokens",
        lines={"masked": list(CELLS), "unmasked": [f"{name}, unmasked" for name in CELLS]},
        references=["full", "head", "head+class"],
    ),
    "methods": dict(kind="points", title="Every method at its own best rate", rows="method", columns="data"),
    "rates": dict(kind="rates", title="Selection accuracy against the learning rate", rows="method", columns="data"),
}
