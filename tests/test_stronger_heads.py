"""What the guide says of stronger heads is what the committed results say."""

import json
from pathlib import Path

from learnable_memory.experiments.card import read_card
from learnable_memory.experiments.findings import Findings
from learnable_memory.experiments.results import Results
from learnable_memory.experiments.tables import markdown, percent, text_table

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide" / "stronger-heads.md"
SHOWN = (
    "head", "head+class", "5 cells", "5 cells, rank 1", "5 cells, rank 2", "5 cells, rank 4", "5 cells, rank 8",
    "5 cells, unmasked", "LoRA, rank 1", "LoRA, rank 2", "LoRA, rank 4", "LoRA, rank 8", "full",
)  # fmt: skip


def findings_of(name: str) -> Findings:
    folder = ROOT / "experiments" / name
    return Findings(read_card(folder), Results(folder / "results.jsonl").rows())


def gap_table() -> str:
    """Top-1 of each method and, of the distance from 5 cells to full fine-tuning in the means, how much it closes."""
    findings = findings_of("stronger_heads")
    card = findings.card
    found = {(each.labels["method"], each.labels["data"]): findings[each] for each in card.variants()}
    data = card.grid("main").labels("data")
    lines = []
    for method in SHOWN:
        cells = []
        for name in data:
            top1, low, high = (found[row, name].top1 for row in (method, "5 cells", "full"))
            share = (top1.mean - low.mean) / (high.mean - low.mean)
            cells.append(f"{percent(top1.mean, top1.deviation)} ({100 * share:.0f} %)")
        first = found[method, data[0]].scored[0]
        lines.append([method, *cells, f"{first['parameters']:,}", "yes" if first["combinable"] else "no"])
    return text_table(["method", *data, f"learned, {data[0]}", "combinable"], lines)


def test_the_table_of_the_guide_is_made_of_the_results():
    assert gap_table() in GUIDE.read_text(encoding="utf-8")


def test_ways_of_fitting_are_in_the_guide_as_they_were_found():
    findings = findings_of("fitting")
    text = GUIDE.read_text(encoding="utf-8")
    for table in findings.card.tables:
        if table.values == ("top1",):
            rows = markdown(table, findings).split("\n\n")[0].splitlines()
            assert all(row in text for row in rows if " - " not in row.split("|")[1])


def cost_table() -> str:
    """Time of heads with low-rank weights, as a multiple of as many plain ones."""
    columns = ("forward", "for_inference", "train", "train, cached")
    lines = []
    for base, name in (("b32", "ViT-B/32"), ("tiny", "base-tiny")):
        path = ROOT / "benchmarks" / f"low_rank_heads_{base}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for row in (row for row in rows if row["kind"] != "plain"):
            ratios = [f"{row[column]['time / plain']:.2f}" for column in columns]
            lines.append([f"{name}, {row['heads']} of {row['kind']}", *ratios])
    return text_table(["heads", "forward", "served", "training step", "training step from a cache"], lines)


def alone_table() -> str:
    """Each method in a process of its own."""
    path = ROOT / "benchmarks" / "methods_alone.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["methods"]
    lines = [
        [name, f"{row['images_per_second']:.0f}", f"{row['peak_memory_bytes'] / 2**20:,.0f}"]
        for name, row in rows.items()
    ]
    return text_table(["trained alone", "images a second", "peak memory, MiB"], lines)


def test_costs_of_the_guide_were_measured():
    text = GUIDE.read_text(encoding="utf-8")
    assert cost_table() in text and alone_table() in text
