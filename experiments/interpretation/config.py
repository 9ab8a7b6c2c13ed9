"""Where we read the paper one way

Question: Does it matter on which side of the layer norm the memory comes in, when training is short, and when it is
not?

Paper: Sandler et al., CVPR 2022, arXiv 2203.15243, section 3 and Figure 2a (memory joins the input of the encoder
layer, before its norm); public implementations add it after the norm.

Command: `python experiments/run.py interpretation`

Expected result: not published anywhere. Found - through the norm ahead in most comparisons, by little, and clearly
behind in one; nothing that depends on how long the training is.

Expected time: about an hour on one CPU core that does nothing else. It took 80 minutes beside other work.
"""

RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
CELLS = {"1 cell": 1, "5 cells": 5, "20 cells": 20}
DATA = {
    "CIFAR100-new20": dict(dataset="CIFAR100-new20", batch_size=64),
    "Fashion-MNIST": dict(dataset="FashionMNIST-subset", batch_size=32),
    "Digits": dict(dataset="Digits", batch_size=32),
}
NORMS = {"through the norm": {}, "after the norm": dict(memory_norm=False)}
MEMORY = {
    f"{cells}, {norm}": dict(number_of_memory_tokens=m, **changes, lr=RATES)
    for cells, m in CELLS.items()
    for norm, changes in NORMS.items()
}
DIFFERENCES = [(f"{cells}, through the norm", f"{cells}, after the norm") for cells in CELLS]

GRIDS = {
    "norm": dict(
        options=dict(base_model="models/base-tiny", warmup_steps=5, method="memory"),
        over={
            "data": DATA,
            "training": {"60 steps": dict(epochs=2, max_steps=60), "500 steps": dict(epochs=20, max_steps=500)},
            "memory": MEMORY,
        },
    ),
}
TABLES = [
    dict(
        title="Top-1, percent, after 60 steps",
        rows="memory",
        columns="data",
        where={"training": "60 steps"},
        differences=DIFFERENCES,
        note="Each form at its own best rate, chosen on the selection split of the first data seed.",
    ),
    dict(
        title="Top-1, percent, after 500 steps",
        rows="memory",
        columns="data",
        where={"training": "500 steps"},
        differences=DIFFERENCES,
    ),
    dict(
        title="Learning rates chosen on the selection split",
        rows="memory",
        columns=("data", "training"),
        values=("lr",),
    ),
]
FIGURES = {
    "rates": dict(
        kind="rates",
        title="Selection accuracy against the learning rate, 500 steps",
        rows="memory",
        columns="data",
        where={"training": "500 steps"},
    ),
}
