"""The heads of `masking` in one model, with the mask and without it: the paper's section 4.4.

    python experiments/masking/together.py [--directory DIR ...]

After `run.py masking --keep_all`, and with the same flags. With the mask it is `vit_validation.py` on the heads of all
four data sets; without it networks are added one by one, every token sees every memory, and each data set that is in is
evaluated. A head that is built on others instead of standing beside them is `vit_train.py --extends`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd

import vit_validation
from experiments import report, results
from experiments.masking import config
from experiments.results import Finding, Row
from experiments.run import read_arguments
from learnable_memory.commands import run_command
from learnable_memory.config import TrainOptions

Learned = dict[str, tuple[Row, Path]]  # data set -> its run, and the file of what it learned


def learned(findings: Sequence[Finding], folder: Path, method: str, seed: int) -> Learned:
    """The runs of a method at its best rates, in `config.ORDER`. Raises ValueError if one is not there."""
    found = {}
    for finding in findings:
        for row in finding.scored:
            path = folder / f"{row['head']}_model.safetensors"
            if finding.variant.labels["method"] == method and row["data_seed"] == seed and path.is_file():
                found[finding.variant.labels["data"]] = row, path
    lacking = [name for name in config.ORDER if name not in found]
    if lacking:
        raise ValueError(f"{folder} lacks {method} on {', '.join(lacking)}: first run.py masking --keep_all.")
    return {name: found[name] for name in config.ORDER}


def unmasked(members: Learned, machine: Mapping[str, Any]) -> str:
    """A table: top-1 in percent on each data set that is in, the first alone, the first two, and so on."""
    from learnable_memory import methods, tuned_files
    from learnable_memory.commands.inputs import chosen_data, evaluation_loader
    from learnable_memory.commands.training_base import TrainingBase
    from learnable_memory.evaluate import evaluate
    from learnable_memory.methods import PromptTuning, build_network
    from learnable_memory.unmasked_together import UnmaskedTogether

    options = {
        name: TrainOptions(**{**row["options"], **machine, "lr": row["lr"], "data_seeds": (row["data_seed"],)})
        for name, (row, _) in members.items()
    }
    base = TrainingBase(options[config.ORDER[0]])
    networks: dict[str, PromptTuning] = {}
    table = pd.DataFrame("", index=[], columns=list(members))
    for name, (_, path) in members.items():
        file = tuned_files.load(path)
        network = build_network(base.tokens, file.spec, file.metadata["num_labels"])
        assert isinstance(network, PromptTuning)  # as every unmasked memory
        methods.Learned(network).load_state_dict(file.tensors)
        networks[name] = network
        model, top1 = UnmaskedTogether(dict(networks)), dict.fromkeys(members, "")
        for inside in networks:
            (data,) = chosen_data(options[inside]).values()
            loader = evaluation_loader(data.eval, base.preprocessing, options[inside], base.device)
            top1[inside] = f"{100 * evaluate(model, loader, [inside])[inside].top1:.2f}"
        table.loc[" + ".join(networks)] = top1
    return report.markdown(table, "in the model")


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables, for each data seed."""
    args = read_arguments(["masking", *(sys.argv[1:] if argv is None else argv)], __doc__)
    findings = results.find(args.every, results.read(args.folder / "results.jsonl"))
    machine = {key: args.machine[key] for key in ("directory", "device", "workers") if key in args.machine}
    flags = [word for key, value in machine.items() for word in (f"--{key}", str(value))]
    for seed in args.every[0].data_seeds:
        members = {
            kind: learned(findings, args.folder / "learned", method, seed) for kind, method in config.TOGETHER.items()
        }
        print(f"data seed {seed}, with the mask")
        vit_validation.main(["--models-list", *(str(path) for _, path in members["masked"].values()), *flags])
        print(f"\ndata seed {seed}, without it, top-1 in percent\n\n{unmasked(members['unmasked'], machine)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
