"""Cards and rows of results for the tests of reports, as `experiments run` writes them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from learnable_memory.experiments.card import Card, Variant, read_card
from learnable_memory.experiments.keys import digest
from learnable_memory.experiments.results import pack_right
from learnable_memory.method_spec import MethodSpec

TEXTS = {
    "title": "Cells on digits",
    "question": "Do more cells help?",
    "paper": "Sandler et al., CVPR 2022",
    "command": "python -m learnable_memory experiments run demo",
    "expected_time": "a minute",
    "expected_result": "They do.",
}
HEAD = {"label": "head", "method": "head", "lr": [0.1, 1.0]}
ONE = {"label": "1 cell", "number_of_memory_tokens": 1, "lr": [0.01, 0.1, 1.0]}
FIVE = {"label": "5 cells", "number_of_memory_tokens": 5, "lr": 0.1}
DATA = [{"label": "Digits", "dataset": "Digits"}, {"label": "Fashion", "dataset": "FashionMNIST"}]


def a_grid(**changes: Any) -> dict[str, Any]:
    over = {"data": DATA, "method": [HEAD, ONE, FIVE]}
    return {"name": "main", "data_seeds": [0, 1, 2], "options": {"epochs": 3}, "over": over, **changes}


def content(**changes: Any) -> dict[str, Any]:
    """A legal card, as YAML holds it."""
    return {**TEXTS, "grids": [a_grid()], **changes}


def write_card(folder: Path, **changes: Any) -> Path:
    path = folder / "demo" / "card.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content(**changes), sort_keys=False), encoding="utf-8")
    return path


def a_card(folder: Path, **changes: Any) -> Card:
    return read_card(write_card(folder, **changes))


def variant_of(card: Card, method: str, data: str = "Digits") -> Variant:
    (found,) = [v for v in card.variants() if (v.labels["method"], v.labels["data"]) == (method, data)]
    return found


def a_run(
    variant: Variant, lr: float, data_seed: int = 0, right: str = "1110", select: float = 0.5, loss: float = 1.0,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A run that answers the images of `eval` as the digits of `right` say."""
    answers = np.array([digit == "1" for digit in right])
    method = variant.options.get("method", "memory")
    spec = MethodSpec(method, variant.options.get("number_of_memory_tokens", 0))
    score = {"images": len(answers), "top1": float(answers.mean()), "top5": 1.0, "loss": 0.5, "images_per_second": 9.0}
    return {
        "kind": "run", "grid": variant.grid, "labels": dict(variant.labels), "options": dict(variant.options),
        "key": f"{variant.label} {lr} {data_seed}", **asdict(spec), "lr": lr, "seed": 0, "data_seed": data_seed,
        "head": spec.name, "parameters": 1_234_567, "epoch": 2, "diverged_at": None,
        "select": {**score, "top1": select, "loss": loss}, "eval": score, "eval_right": pack_right(answers),
        "eval_hash": "abc", "steps": 50, "train_seconds": 12.0, "eval_seconds": 3.0, "heads_in_pass": 1,
        "peak_memory_bytes": 3 * 2**29, "combinable": True, "versions": {"torch": "2.15", "python": "3.12"},
        "machine": {"device": "cpu", "threads": 2}, **changes,
    }  # fmt: skip


ANALYSIS = {
    "name": "all", "title": "T", "kind": "concatenation", "grid": "main", "heads": {"method": "head"}, "along": "data",
    "order": ["Digits", "Fashion"], "rows": "data", "value": ["alone_top1", "top1", "change"],
}  # fmt: skip
WITHOUT_MASK = {**ANALYSIS, "kind": "unmasked", "rows": "together", "columns": "data", "value": "top1"}


def put(
    labels: dict[str, str], right: str, alone: str, data_seed: int = 0, analysis: str = "all", **changes: Any
) -> dict[str, Any]:  # fmt: skip
    """One head of heads put together, which answers as the digits of `right` say, and alone as those of `alone`."""
    form = WITHOUT_MASK if "together" in labels else ANALYSIS
    settings = {key: form[key] for key in ("kind", "grid", "heads", "along", "order")}
    members = [f"{data}, head 0.1 {data_seed}" for data in ("Digits", "Fashion")]
    together, before = (np.array([digit == "1" for digit in digits]) for digits in (right, alone))
    return {
        "kind": "together", "analysis": analysis, "labels": labels,
        "key": digest([analysis, settings, members]), "data_seed": data_seed, "members": members,
        "top1": float(together.mean()), "alone_top1": float(before.mean()), "images": len(together),
        "eval_hash": "abc", "eval_right": pack_right(together), "alone_right": pack_right(before), **changes,
    }  # fmt: skip


def diverged_run(variant: Variant, lr: float, data_seed: int = 0) -> dict[str, Any]:
    lost = {"diverged_at": 7, "epoch": None, "select": None, "eval": None, "eval_right": None}
    return a_run(variant, lr, data_seed, **lost)
