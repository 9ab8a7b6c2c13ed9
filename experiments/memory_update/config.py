"""How memory goes through the layers

Question: Is memory of each layer's own better than memory that goes from layer to layer, and does it matter whether it
passes through the layer norm?

Paper: Sandler et al., CVPR 2022, arXiv 2203.15243, section 3 and Figure 2.

Command: `python experiments/run.py memory_update --directory DIR`

Expected result: Each layer's own memory at least as good as both other forms, as the paper found; through the norm
faster, and in the end nearly the same.

Expected time: About 4 days on one A100, nearly all of it for what cannot share a pass (an estimate; it has not run).
"""

from experiments.table2.config import DATA, SCHEDULE

RATES = (0.03, 0.1, 0.3)
MANY = (0.01, 0.03, 0.1, 0.3, 1.0)
SHARED = dict(**SCHEDULE, base_model="google/vit-base-patch32-224-in21k", method="memory")
TWO = {name: DATA[name] for name in ("CIFAR-100", "SUN-397")}
MASKING = {"masked": dict(masking="masked"), "unmasked": dict(masking="none")}
OTHERS = {
    "propagated": dict(memory_update="propagate", lr=RATES),
    "propagated, with an update": dict(memory_update="additive", lr=RATES),
    "own in each layer, after the norm": dict(memory_norm=False, lr=RATES),
}

GRIDS = {
    "update": dict(
        options=dict(**SHARED, number_of_memory_tokens=5),
        over={"data": TWO, "masking": MASKING, "memory": {"own in each layer": dict(lr=RATES), **OTHERS}},
    ),
    "norm": dict(
        sweep="every",
        options=SHARED,
        over={
            "data": TWO,
            "steps": {f"{steps} steps": dict(max_steps=steps) for steps in (500, 2000, 20000)},
            "cells": {"1 cell": dict(number_of_memory_tokens=1), "20 cells": dict(number_of_memory_tokens=20)},
            "norm": {"through the norm": dict(lr=MANY), "after the norm": dict(memory_norm=False, lr=MANY)},
        },
    ),
}
TABLES = [
    dict(
        title="Five cells by how they go through the layers, top-1, percent",
        rows=("masking", "memory"),
        columns="data",
        differences=[
            (f"{masking}, {other}", f"{masking}, own in each layer") for masking in MASKING for other in OTHERS
        ],
    ),
    dict(
        title="Before and after the norm, by the length of the training, top-1, percent",
        grid="norm",
        rows=("cells", "norm"),
        columns=("data", "steps"),
        differences=[(f"{cells}, through the norm", f"{cells}, after the norm") for cells in ("1 cell", "20 cells")],
    ),
]
