"""Write the numbers of the documents anew, from the reports of experiments and the files of benchmarks.

    python experiments/documents.py

In README.md and docs/ what stands between `<!-- results: WHAT -->` and `<!-- end -->` is written by this script. WHAT
is a function of this file without its underscores, and its arguments, each behind a semicolon.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from experiments import frames, results
from experiments.report import markdown, percent
from experiments.table2.config import IN_2023, PAPER
from learnable_memory import cost

ROOT = results.FOLDER.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"(<!-- results: (.+?) -->)(.*?)(<!-- end -->)", re.DOTALL)
DIFFERENCE = re.compile(r"([+-][\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")  # a cell of a report: mean, low, high
NUMBER = re.compile(r"[+-]?\d[\d,.]*")


def fill(text: str) -> str:
    """A page with its numbers written anew. Raises ValueError for a marker that names no function."""

    def written(marked: re.Match) -> str:
        value = value_of(marked[2])
        return marked[1] + (f"\n\n{value}\n\n" if "\n" in value else value) + marked[4]

    return MARKED.sub(written, text)


@lru_cache
def value_of(what: str) -> str:
    """What a marker asks for."""
    name, *arguments = what.split("; ")
    if name not in WRITERS:
        raise ValueError(f"a marker names {name!r}, but it has to be one of {', '.join(WRITERS)}.")
    return WRITERS[name](*arguments)


# --------------------------------------------------------------------------------------------------------- experiments
def table(name: str, number: str) -> str:
    """A table of an experiment's report, counted from 1."""
    blocks = (results.FOLDER / name / "report.md").read_text(encoding="utf-8").split("\n\n")
    return [block for block in blocks if block.startswith("| ")][int(number) - 1]


def means(name: str, number: str) -> str:
    """The same without differences."""
    return "\n".join(line for line in table(name, number).splitlines() if " - " not in line.split(" | ")[0])


def beside_the_paper() -> str:
    """Every method on the base that ships, and the paper's numbers on two of its data sets."""
    rows = rows_of(means("here_and_now", "1"))
    names = ("CIFAR-100", "iNaturalist")
    cells = {
        row: [*cells, *(str(PAPER[row][name]) if row in PAPER else "" for name in names)]
        for row, cells in rows.items()
        if row != "method"
    }
    return _table(cells, [*rows["method"], *(f"paper: {name}" for name in names)], "method")


def published() -> str:
    """The paper's Table 2, and one cell in 2023."""
    cells = {row: [f"{number:.1f}" for number in numbers.values()] for row, numbers in PAPER.items()}
    cells["1 cell, in 2023"] = [f"{number:.2f}" for number in IN_2023["1 cell"].values()]
    return _table(cells, list(PAPER["full"]), "method")


def steps() -> str:
    """From method to method: the paper's by subtraction, and ours, starred where the interval leaves out 0."""
    rows, cells = rows_of(table("here_and_now", "1")), {}
    for row in [row for row in rows if " - " in row and not set(row.split(" - ")) - set(PAPER)]:
        of, to = row.split(" - ")
        cells[row] = [f"{PAPER[of][name] - PAPER[to][name]:+.1f}" for name in PAPER["full"]]
        cells[row] += [f"{mean:+.2f}" + r" \*" * (low > 0 or high < 0) for mean, low, high in _found(rows[row])]
    return _table(cells, [*PAPER["full"], *(f"ours: {name}" for name in rows["method"])], "step")


def gap() -> str:
    """Top-1 of stronger heads and, of the distance from 5 cells to full fine-tuning, how much each closes."""
    found, first = _shares(), "CIFAR100-new20"
    cells = {}
    for method, rows in found.groupby("method", sort=False):
        cells[str(method)] = [
            f"{percent(row.top1, row.deviation)} ({100 * row.share:.0f} %)" for row in rows.itertuples()
        ]
        learned = rows[rows["data"] == first].iloc[0]
        cells[str(method)] += [f"{learned.parameters:,.0f}", "yes" if learned.combinable else "no"]
    return _table(cells, [*found["data"].unique(), f"learned, {first}", "combinable"], "method")


def closes(method: str) -> str:
    """The shares of a method, in percent."""
    found = _shares()
    return " and ".join(", ".join(f"{100 * x:.0f}" for x in found[found.method == method].share).rsplit(", ", 1))


def closes_range(method: str) -> str:
    """The lowest and the highest of them."""
    share = 100 * _shares().set_index("method").loc[method, "share"]
    return f"{share.min():.0f} to {share.max():.0f}"


def _shares() -> pd.DataFrame:
    found = _frame("stronger_heads")
    low, high = (found[found.method == name].set_index("data").top1 for name in ("5 cells", "full"))
    shares = (found.top1 - found.data.map(low)) / (found.data.map(high) - found.data.map(low))
    return found.assign(share=shares)


def norm() -> str:
    """How often memory is ahead through the norm, and behind."""
    cells = _found(
        [cell for number in "12" for cells in rows_of(table("interpretation", number)).values() for cell in cells]
    )
    ahead, clear = sum(mean > 0 for mean, _, _ in cells), sum(low > 0 for _, low, _ in cells)
    behind = sum(high < 0 for _, _, high in cells)
    return (
        f"ahead in {ahead} of {len(cells)} comparisons, in {clear} of them with an interval (over test images) that "
        f"leaves out 0; behind so in {behind}"
    )


def full_ahead() -> str:
    """By how many points full fine-tuning is ahead of masked heads, and how many times as many numbers it learns."""
    found = _frame("here_and_now")
    full = found[found.method == "full"].set_index("data")
    heads = found[found.combinable == 1]
    points = 100 * (heads.data.map(full.top1) - heads.top1)
    times = heads.data.map(full.parameters) / heads.parameters
    more = f"{times.min():,.0f} to {times.max():,.0f} times as many numbers"
    return f"{points.min():.1f} to {points.max():.1f} points, and learns {more}"


def edges(name: str) -> str:
    """How many of the chosen rates lie at the edge of their grid."""
    text = (results.FOLDER / name / "report.md").read_text(encoding="utf-8")
    return f"{len(re.findall(r' is the (?:lowest|highest) of ', text))} of the {len(_frame(name))}"


def runs(name: str) -> str:
    """How many runs there are."""
    return str(len(results.read(results.FOLDER / name / "results.jsonl")))


def experiments() -> str:
    """What each experiment asks, and whether it ran."""
    cells = {}
    for name in results.names():
        card = results.load(name).__doc__ or ""
        question = " ".join(card.split("Question: ")[1].split("\n\n")[0].split())
        cells[f"`{name}`"] = [question, "yes" if (results.FOLDER / name / "results.jsonl").is_file() else "no"]
    return _table(cells, ["question", "ran"], "experiment").replace("---:", "---")


# ---------------------------------------------------------------------------------------------------------- benchmarks
def number(file: str, *keys: str) -> str:
    """A number of a file in benchmarks/; the last argument is its format."""
    found = json.loads((ROOT / "benchmarks" / file).read_text(encoding="utf-8"))
    for key in keys[:-1]:
        found = found[key]
    return format(found, keys[-1])


def ratio(name: str, case: str) -> str:
    """Speed or peak memory of a case, to plain inference."""
    return number(f"{name}.json", "cases", case, "x forward only", ".2f")


def training_speed() -> str:
    """By arithmetic a step of T heads costs the base and twice the heads, forward and backward."""
    tokens, width, mlp_width, layers, patch_values, patches = 50, 768, 3072, 12, 3 * 32 * 32, 49
    base = cost.base(tokens, width, mlp_width, layers, patch_values, patches)
    head = cost.head(tokens, width, mlp_width, layers, memory_tokens=1, classes=100)
    cells = {}
    for words, (case, heads) in {
        "inference, plain HuggingFace": ("forward only", 0),
        "training 1 head": ("train 1 head", 1),
        "training 4 heads in one pass": ("train 4 heads", 4),
        "training 20 heads in one pass": ("train 20 heads", 20),
        "training 1 head, base in bfloat16": ("train 1 head, bfloat16", None),
        "training 20 heads, base in bfloat16": ("train 20 heads, bfloat16", None),
        "training 1 head from the cache": ("cache keys float32, 1 head", None),
        "training 4 heads from the cache": ("cache keys float32, 4 heads", None),
        "training 20 heads from the cache": ("cache keys float32, 20 heads", None),
        "training 1 head from the cache, bfloat16 stored and computed": ("cache keys bfloat16, 1 head", None),
        "training 1 head from the cache, tokens instead of keys and values": ("cache tokens float32, 1 head", None),
        "training 1 head, naive": ("naive, 1 head", None),
    }.items():
        expected = "" if heads is None else f"{base / (base + 2 * heads * head):.2f}"
        a, b, c = (
            number("training_speed.json", "cases", case, key, form)
            for key, form in (("images_per_second", ".1f"), ("x forward only", ".2f"), ("x naive, 1 head", ".1f"))
        )
        cells[words] = [a, b, expected, c]
    return _table(cells, ["images a second", "to inference", "by arithmetic", "to naive training"], "")


def many_heads() -> str:
    """Images a second of one model with T heads."""
    cells: dict[str, list[str]] = {}
    for heads in ("1", "4", "16", "100"):
        for file in ("many_heads_b32.json", "many_heads_b16.json"):
            cells.setdefault(heads, []).extend(
                (
                    number(file, "heads", heads, "one model / plain base", ".2f"),
                    number(file, "arithmetic", heads, ".2f"),
                    number(file, "heads", heads, "one model / separate models", ".1f"),
                )
            )
    columns = ("to the plain base", "by arithmetic", "to T separate models")
    return _table(cells, [f"{size}: {column}" for size in ("B/32", "B/16") for column in columns], "T")


def low_rank_heads() -> str:
    """Time of heads with low-rank weights, as a multiple of as many plain ones."""
    columns = ("forward", "for_inference", "train", "train, cached")
    cells = {}
    for file, base in {"low_rank_heads_b32.json": "ViT-B/32", "low_rank_heads_tiny.json": "base-tiny"}.items():
        for row in json.loads((ROOT / "benchmarks" / file).read_text(encoding="utf-8"))["rows"]:
            if row["kind"] != "plain":
                cells[f"{base}, {row['heads']} of {row['kind']}"] = [
                    f"{row[key]['time / plain']:.2f}" for key in columns
                ]
    return _table(cells, ["forward", "served", "training step", "training step from a cache"], "heads")


def methods_alone() -> str:
    """Each method in a process of its own."""
    rows = json.loads((ROOT / "benchmarks" / "methods_alone.json").read_text(encoding="utf-8"))["methods"]
    cells = {
        name: [f"{row['images_per_second']:.0f}", f"{row['peak_memory_bytes'] / 2**20:,.0f}"]
        for name, row in rows.items()
    }
    return _table(cells, ["images a second", "peak memory, MiB"], "trained alone")


def earlier_errors() -> str:
    """What each error of an earlier reproduction costs."""
    from benchmarks.earlier_errors import table as of_errors

    return of_errors(json.loads((ROOT / "benchmarks" / "earlier_errors.json").read_text(encoding="utf-8"))["top1"])


# ------------------------------------------------------------------------------------------------------- what all share
def points(row: str, *what: str) -> str:
    """The first number of each cell of a row, of the table that the other arguments ask for, with its sign."""
    return ", ".join(NUMBER.findall(cell)[0] for cell in rows_of(value_of("; ".join(what)))[row])


def sizes(row: str, *what: str) -> str:
    """The same without signs."""
    return " and ".join(re.sub("[+-]", "", points(row, *what)).rsplit(", ", 1))


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell -> further cells, the line of headings first."""
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    return {first: rest for first, *rest in lines if first != "---"}


def _found(cells: Iterable[str]) -> list[tuple[float, float, float]]:
    matches = map(DIFFERENCE.match, cells)
    return [(float(match[1]), float(match[2]), float(match[3])) for match in matches if match]


def _frame(name: str) -> pd.DataFrame:
    rows = results.read(results.FOLDER / name / "results.jsonl")
    return frames.frame(results.find(results.variants(results.load(name)), rows))


def _table(cells: dict[str, list[str]], columns: Sequence[str], corner: str) -> str:
    return markdown(pd.DataFrame.from_dict(cells, orient="index", columns=list(columns)), corner)


WRITERS: dict[str, Callable[..., str]] = {
    function.__name__.replace("_", " "): function
    for function in (
        table, means, beside_the_paper, published, steps, gap, closes, closes_range, norm, full_ahead, edges, runs,
        experiments, ratio, training_speed, many_heads, low_rank_heads, methods_alone, earlier_errors, points, sizes,
    )
}  # fmt: skip


def main() -> None:
    """Rewrite the pages whose numbers have changed."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if after != before:
            page.write_text(after, encoding="utf-8", newline="\n")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
