"""The reproduction report: its numbers are those of the committed results, and what it points to is there."""

import json
import re
from pathlib import Path

import pytest

from learnable_memory import cost
from learnable_memory.experiments.card import read_card
from learnable_memory.experiments.card_types import Card
from learnable_memory.experiments.findings import Findings
from learnable_memory.experiments.results import Results
from learnable_memory.experiments.significance import paired_bootstrap
from learnable_memory.experiments.tables import markdown, text_table

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "report.md"
TEXT = REPORT.read_text(encoding="utf-8")
RUN = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/results.jsonl"))
STEPS = (  # what is compared with the paper's Table 2
    ("head+class", "head"), ("1 cell", "head+class"), ("5 cells", "head+class"), ("10 cells", "head+class"),
    ("20 cells", "head+class"), ("full", "10 cells"),
)  # fmt: skip


def findings_of(name: str) -> Findings:
    folder = ROOT / "experiments" / name
    return Findings(read_card(folder), Results(folder / "results.jsonl").rows())


def accuracy_tables(name: str) -> list[str]:
    """Made anew from the results; the notes below them are left aside, for the report says them in its own words."""
    findings = findings_of(name)
    return [markdown(table, findings).split("\n\n")[0] for table in findings.card.tables if table.values == ("top1",)]


def read_json(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))


def many_heads_table() -> str:
    lines = []
    for heads in ("1", "4", "16", "100"):
        lines.append([heads])
        for size in ("b32", "b16"):
            results = read_json(f"many_heads_{size}.json")
            row = results["heads"][heads]
            plain, arithmetic = row["one model / plain base"], results["arithmetic"][heads]
            lines[-1] += [f"{plain:.2f}", f"{arithmetic:.2f}", f"{row['one model / separate models']:.1f}"]
    columns = ("to the plain base", "by arithmetic", "to T separate models")
    return text_table(["T", *(f"{size}: {column}" for size in ("B/32", "B/16") for column in columns)], lines)


def training_speed_table() -> str:
    """By arithmetic a step of T heads costs the base and twice the heads, forward and backward."""
    tokens, width, mlp_width, layers, patch_values, patches = 50, 768, 3072, 12, 3 * 32 * 32, 49
    base = cost.base(tokens, width, mlp_width, layers, patch_values, patches)
    head = cost.head(tokens, width, mlp_width, layers, memory_tokens=1, classes=100)
    rows = {
        "inference, plain HuggingFace": ("forward only", 0),
        "training 1 head": ("train 1 head", 1),
        "training 4 heads in one pass": ("train 4 heads", 4),
        "training 20 heads in one pass": ("train 20 heads", 20),
        "training 1 head, base in bfloat16": ("train 1 head, bfloat16", None),
        "training 1 head from the cache": ("cache keys float32, 1 head", None),
        "training 20 heads from the cache": ("cache keys float32, 20 heads", None),
        "training 1 head, naive": ("naive, 1 head", None),
    }
    cases = read_json("training_speed.json")["cases"]
    lines = []
    for words, (case, heads) in rows.items():
        expected = "" if heads is None else f"{base / (base + 2 * heads * head):.2f}"
        measured = cases[case]
        lines.append([words, f"{measured['x forward only']:.2f}", expected, f"{measured['x naive, 1 head']:.1f}"])
    return text_table(["", "to inference", "by arithmetic", "to naive training"], lines)


def memory_words() -> str:
    cases = read_json("training_memory.json")["cases"]
    ratios = {name: f"{case['x forward only']:.2f}" for name, case in cases.items()}
    return (
        f"training one head {ratios['train 1 head']}, 20 heads {ratios['train 20 heads']}, "
        f"naive {ratios['naive, 1 head']}"
    )


def published(card: Card) -> dict[tuple[str, str], float]:
    return dict(card.tables[0].published)


def published_table() -> str:
    card = read_card(ROOT / "experiments" / "table2")
    paper, students = published(card), dict(card.tables[1].published)
    methods, data = (card.grids[0].labels(dimension) for dimension in ("method", "data"))
    lines = [[method, *(f"{paper[method, column]:.1f}" for column in data)] for method in methods]
    lines.append(["1 cell, in 2023", *(f"{students['1 cell', column]:.2f}" for column in data)])
    return text_table(["method", *data], lines)


def steps_table() -> str:
    card, findings = read_card(ROOT / "experiments" / "table2"), findings_of("here_and_now")
    paper, data = published(card), card.grids[0].labels("data")
    grid = findings.card.grids[0]
    ours = {variant.labels["method"]: {} for variant in grid.variants()}
    for variant in grid.variants():
        ours[variant.labels["method"]][variant.labels["data"]] = findings[variant].right()
    lines = []
    for of, to in STEPS:
        lines.append([f"{of} - {to}", *(f"{paper[of, column] - paper[to, column]:+.1f}" for column in data)])
        for column in grid.labels("data"):
            found = paired_bootstrap(ours[of][column], ours[to][column])
            outside = found.low > 0 or found.high < 0
            lines[-1].append(f"{100 * found.mean:+.2f}" + r" \*" * outside)
    return text_table(["step", *data, *(f"ours: {name}" for name in grid.labels("data"))], lines)


def earlier_errors_table(monkeypatch) -> str:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from earlier_errors import table

    return table(read_json("earlier_errors.json")["top1"])


@pytest.mark.parametrize("name", RUN)
def test_every_accuracy_table_of_a_committed_experiment_is_in_the_report(name):
    tables = accuracy_tables(name)
    assert tables and [table for table in tables if table not in TEXT] == []


@pytest.mark.parametrize("table", [many_heads_table, training_speed_table, published_table, steps_table])
def test_a_table_is_what_its_results_say(table):
    assert table() in TEXT


def test_the_table_of_earlier_errors_is_what_its_results_say(monkeypatch):
    assert earlier_errors_table(monkeypatch) in TEXT


def test_peak_memory_is_what_the_benchmark_says():
    assert memory_words() in " ".join(TEXT.split())


def test_the_number_of_learned_numbers():
    width, layers, classes = 768, 12, 100
    parts = (width, layers * width, width * classes, classes)
    assert f"{' + '.join(f'{part:,}' for part in parts)} = {sum(parts):,} numbers" in " ".join(TEXT.split())


def test_links_and_pictures_are_there():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if not target.startswith("https://")]
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", TEXT)
    assert len(pictures) >= 3
    assert [target for target in targets if not (REPORT.parent / target).is_file()] == []


@pytest.mark.parametrize("what", ["Table", "Figure"])
def test_tables_and_figures_are_numbered_in_order_and_each_is_there(what):
    captions = [int(number) for number in re.findall(rf"(?m)^\*\*{what} (\d+)\.\*\*", TEXT)]
    assert captions == list(range(1, len(captions) + 1)) and len(captions) >= 3
    own = re.sub(rf"paper's {what} \d|its {what} \d|\({what} 2a\)|Is {what} \d", "", " ".join(TEXT.split()))
    assert set(map(int, re.findall(rf"{what} (\d+)", own))) == set(captions)


def test_references_are_listed_and_used():
    body, listed = TEXT.split("## References")
    cited = re.findall(r"\[(\d+(?:, \d+)*)\]", body.replace("[0, 1]", ""))  # an interval, no reference
    used = {number for group in cited for number in group.split(", ")}
    assert used == set(re.findall(r"(?m)^(\d+)\. ", listed))
