"""Experiments: configurations are legal, rates are chosen on `select`, reports and documents come out of results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import ViTImageProcessor

from experiments import documents, figures, frames, report, results, run
from experiments.masking import together
from experiments.report import Difference, difference
from experiments.results import Variant
from learnable_memory.bits import pack_bits, unpack_bits
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands import run_command
from learnable_memory.commands.passes import Pass
from learnable_memory.config import TrainOptions
from tiny import tiny_base

RAN = sorted(path.parent.name for path in results.FOLDER.glob("*/results.jsonl"))
CELL = re.compile(r"(?<= )[+-][\d.]+ \[.*?\], p [=<] [\d.]+")  # of a difference


# ------------------------------------------------------------------------------------------------------ configurations
# Images left to train on: the official part, without a fifth where there is none, and without the tenth to choose on.
TRAIN_IMAGES = {
    "CIFAR10": 50_000 * 0.9, "CIFAR100": 50_000 * 0.9, "CIFAR100-new20": 9_000, "CUB": 5_994 * 0.9, "Digits": 1_295,
    "FashionMNIST-subset": 5_400, "Flowers": 1_020, "ImageNet": 1_281_167 * 0.9, "INaturalist": 675_170 * 0.8 * 0.9,
    "Pets": 3_680 * 0.9, "Places": 1_803_460 * 0.9, "Sun": 108_754 * 0.8 * 0.9,
}  # fmt: skip


@pytest.mark.parametrize("name", results.names())
def test_every_run_of_a_configuration_is_legal_and_has_the_epochs_that_its_steps_need(name):
    every = results.variants(results.load(name))
    assert len({repr((sorted(each.options.items()), each.rates)) for each in every}) == len(every)
    for variant in every:
        options = TrainOptions(**variant.options, lr=variant.rates, data_seeds=variant.data_seeds)
        assert len(options.method_specs) == 1
        if options.max_steps is not None:
            assert options.epochs * (TRAIN_IMAGES[options.dataset] // options.batch_size) >= options.max_steps, variant


@pytest.mark.parametrize("name", results.names())
def test_a_configuration_has_a_card_and_a_report_without_results(name, tmp_path):
    """The card's command is legal; tables name rows and columns that there are."""
    config = results.load(name)
    (command,) = re.findall(r"`python experiments/run.py (.*?)`", " ".join(config.__doc__.split()))
    assert run.read_arguments(shlex.split(command), "").name == name
    text = report.write(config, results.find(results.variants(config), []), tmp_path).read_text(encoding="utf-8")
    for part in ("Question", "Paper", "Command", "Expected result", "Expected time"):
        assert f"\n**{part}.** " in text
    assert "There are no results yet." in text and "## Missing runs" in text
    assert all(f"### {table['title']}\n" in text for table in config.TABLES)
    assert not list(tmp_path.glob("*.png"))


def test_later_dimensions_win_over_earlier_ones_and_rates_are_sorted():
    over = {"a": {"x": dict(epochs=1, rank=2), "y": dict(rank=3)}, "b": {"z": dict(epochs=5, lr=(0.3, 0.1))}}
    first, second = results.variants(config_of(options=dict(epochs=9), over=over))
    assert (first.options, second.options) == (dict(epochs=5, rank=2), dict(epochs=5, rank=3))
    assert (first.rates, first.labels, first.compared) == ((0.1, 0.3), {"a": "x", "b": "z"}, (0,))


# ---------------------------------------------------------------------------------------------- a synthetic experiment
def config_of(**grid: Any) -> ModuleType:
    config = ModuleType("experiments.demo.config", "Demo\n\nQuestion: Is it\nso?")
    config.GRIDS = {"main": grid}
    keywords = dict(rows="method", columns="data")
    config.TABLES = [dict(title="Top-1", **keywords, differences=[("b", "a")], published={"a": {"A": 76.9}})]
    config.FIGURES = {"rates": dict(kind="rates", title="Rates", **keywords)}
    return config


METHODS = {"a": dict(method="head", lr=(0.1, 1.0)), "b": dict(number_of_memory_tokens=1, lr=(0.1, 1.0))}
CONFIG = config_of(
    options=dict(epochs=3), over={"data": {"A": dict(dataset="A"), "B": dict(dataset="B")}, "method": METHODS}
)
A, B = results.variants(CONFIG)[:2]  # both on data set A


def row(variant: Variant, lr: float, seed: int = 0, right: str = "1110", top1: float = 0.5, loss: Any = 1.0, **changes):
    """A run that answers the images of `eval` as the digits of `right` say."""
    answers = np.array([digit == "1" for digit in right])
    return {
        "kind": "run", "grid": variant.grid, "labels": variant.labels, "options": variant.options, "lr": lr,
        "data_seed": seed, "diverged_at": None, "select": {"top1": top1, "loss": loss}, "eval_hash": "abc",
        "eval": {"top1": float(answers.mean()), "images": len(answers)}, "eval_right": pack_bits(answers),
        "parameters": 1000, "combinable": True, "train_seconds": 12.0, "eval_seconds": 3.0, "steps": 50,
        "heads_in_pass": 2, "peak_memory_bytes": 3 * 2**29, "versions": {"torch": "2.15"},
        "machine": {"device": "cpu", "threads": 2}, **changes,
    }  # fmt: skip


def whole(variant: Variant, rights: tuple[str, ...] = ("1110", "1100", "1111"), **changes) -> list[dict]:
    """Every run of a variant, the higher rate being the better one."""
    first = row(variant, 0.1, right="0000", **changes)
    return [first, *(row(variant, 1.0, seed, right, top1=0.6, **changes) for seed, right in enumerate(rights))]


# ------------------------------------------------------------------------------------------------------ choice of rates
@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.1: (0.6, 1.0), 1.0: (0.5, 0.1)}, 0.1),  # top-1 before loss
        ({0.1: (0.6, 1.0), 1.0: (0.6, 0.9)}, 1.0),  # of equals the lower loss
        ({0.1: (0.6, 1.0), 1.0: (0.6, 1.0)}, 0.1),  # and at last the lower rate
        ({0.1: (0.4, 1.0), 1.0: (0.9, None)}, 0.1),  # broke in its last step
        ({0.1: (0.4, None), 1.0: (0.9, None)}, None),
        ({0.1: (0.6, 1.0)}, None),  # not all were compared
    ],
)
def test_the_best_on_select_is_chosen_whatever_it_scores_on_eval(scores, best):
    rows = [
        row(A, lr, top1=top1, loss=loss, right="0000" if lr == best else "1111") for lr, (top1, loss) in scores.items()
    ]
    (found,) = results.find([A], rows)
    assert found.best == best


def test_the_best_rate_alone_runs_on_further_data_seeds():
    (found,) = results.find([A], [])
    assert found.missing == [(0.1, 0), (1.0, 0)]
    (found,) = results.find([A], [row(A, 0.1, top1=0.4), row(A, 1.0, top1=0.6), row(A, 0.1, seed=1, top1=0.9)])
    assert (found.best, found.missing) == (1.0, [(1.0, 1), (1.0, 2)])
    assert [each["lr"] for each in found.scored] == [1.0]


def test_with_a_sweep_of_every_seed_the_mean_decides_and_no_rate_that_diverged_once():
    every = Variant("main", A.labels, A.options, (0.1, 1.0), (0, 1), "every")
    rows = [row(every, 0.1, 0, top1=0.5), row(every, 0.1, 1, top1=0.5), row(every, 1.0, 0, top1=0.9)]
    assert results.find([every], rows)[0].missing == [(1.0, 1)]
    assert results.find([every], [*rows, row(every, 1.0, 1, top1=0.3)])[0].best == 1.0
    assert results.find([every], [*rows, row(every, 1.0, 1, top1=0.3, diverged_at=7)])[0].best == 0.1


def test_rows_of_a_former_configuration_are_left_aside_and_two_of_one_run_refused():
    rows = whole(A)
    former = [{**rows[0], "options": {"epochs": 9}}, {**rows[0], "grid": "other"}, {**rows[0], "lr": 0.3}]
    assert results.find([A], rows + former)[0].runs.keys() == {(0.1, 0), (1.0, 0), (1.0, 1), (1.0, 2)}
    with pytest.raises(ValueError, match=r"^main, A, a: two runs with lr 0.1 and data seed 0; take one out of the res"):
        results.find([A], [*rows, rows[0].copy()])


def test_a_line_that_was_cut_short_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "results.jsonl"
    assert results.read(path) == []
    results.append(path, [{"loss": float("nan")}])
    path.write_bytes(path.read_bytes() + b'{"lr": 0.')
    assert results.read(path) == [{"loss": None}]
    results.append(path, [{"lr": 1.0}])
    assert results.read(path) == [{"loss": None}, {"lr": 1.0}]


# --------------------------------------------------------------------------------------------------- paired bootstrap
def test_a_big_sample_is_as_the_normal_distribution_says():
    generator = np.random.RandomState(0)
    of, to = generator.rand(1, 1000) < 0.8, generator.rand(1, 1000) < 0.76
    found, d = difference(of, to), of[0].astype(float) - to[0]
    half = 1.96 * 100 * d.std() / np.sqrt(1000)
    assert found.mean == pytest.approx(100 * d.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.05 * half)
    turned = difference(to, of)
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert difference(of, of) == Difference(0, 0, 0, 1)


def test_images_are_paired_over_all_runs():
    """Thirds that cancel are 0 exactly, and what is always better has the smallest p that there is."""
    of = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=bool)  # three times, and each other image once
    assert difference(of, of[::-1]) == Difference(0, 0, 0, 1)
    better = difference(np.ones((2, 50), dtype=bool), np.zeros((3, 50), dtype=bool))
    assert (better.mean, better.low, better.high) == (100, 100, 100)
    assert better.p == pytest.approx(2 / (1 + report.RESAMPLES))


# -------------------------------------------------------------------------------------------------------------- reports
def test_a_table_has_means_deviations_published_numbers_and_differences():
    """By hand: 75, 50 and 100 % are 75 ± 25; b is ahead on one of four images in one of three runs."""
    found = results.find(results.variants(CONFIG), whole(A) + whole(B, ("1111", "1100", "1111")))
    text = report.table(frames.frame(found), **CONFIG.TABLES[0])
    rows = {first: rest for first, *rest in (line.strip("| ").split(" | ") for line in text.splitlines()[2:7])}
    assert rows["method"] == ["A", "B"]
    assert rows["a"] == ["75.00 ± 25.00 (76.9)", "-"]
    assert rows["b"] == ["**83.33 ± 28.87**", "-"]
    assert rows["b - a"][0].startswith("+8.33 [0.00, 25.00], p = ") and rows["b - a"][1] == "-"
    assert "mean ± sample standard deviation over 3 data seeds." in text and "In brackets: published." in text


def test_fewer_runs_are_told_and_not_called_best_and_values_stand_side_by_side():
    lost = [*whole(A)[:3], row(A, 1.0, 2, "1111", diverged_at=7, top1=0.6)]
    every = frames.frame(results.find([A, B], lost + whole(B, ("1000",) * 3)))
    text = report.table(every, title="T", rows="method", columns="data")
    assert "| a | 62.50 ± 17.68 (n = 2) |" in text and "| b | 25.00 ± 0.00 |" in text
    values = ("lr", "parameters", "megabytes", "train_seconds", "step_milliseconds", "peak_memory", "combinable")
    text = report.table(every, title="T", rows="method", values=values)
    assert "| a | 1 | 1,000 | 0.00 | 6.0 | 120.0 | 1.50 | yes |" in text
    assert "equal part of the pass's seconds" in text and "of the whole pass, of 2 heads" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eval_hash": "xyz"}, r"^A was evaluated on different images \(hashes abc, xyz\): take all but one out"),
        ({"base": {"fingerprint": "2"}}, r"^None is different bases \(fingerprints 1, 2\): take all but one out"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, said):
    rows = whole(A, base={"fingerprint": "1"})
    with pytest.raises(ValueError, match=said):
        frames.frame(results.find([A], [*rows[:-1], {**rows[-1], **change}]))


def test_the_same_results_give_the_same_bytes_in_any_order(tmp_path):
    rows = [each for variant in results.variants(CONFIG) for each in whole(variant)]
    pages = []
    for folder, given in ((tmp_path / "1", rows), (tmp_path / "2", rows[::-1])):
        report.write(CONFIG, results.find(results.variants(CONFIG), given), folder)
        pages.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert pages[0] == pages[1] and set(pages[0]) == {"report.md", "rates.png"}
    text = pages[0]["report.md"].decode()
    assert "\n**Question.** Is it so?\n" in text and "Missing" not in text and "![Rates](rates.png)" in text
    assert "- main: A, a: 1 is the highest of 0.1, 1." in text
    assert "- Runs: 16, of which 0 diverged\n- Data seeds: 0, 1, 2\n" in text and "threads 2" in text


def test_a_line_goes_through_its_rows_and_references_across(drawn, tmp_path):
    rows = [*whole(A, rank=0), *whole(B, ("1111",) * 3, rank=8)]
    every = frames.frame(results.find([A, B], rows))
    keywords = dict(x="rank", lines={"both": ["b", "a"]}, references=["a", "not there"])
    figures.draw(every, kind="lines", path=tmp_path / "a.png", title="T", rows="method", columns="data", **keywords)
    (axes,) = drawn[0].axes
    line, reference = axes.containers[0].lines[0], axes.lines[-1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 0], [1.0, 0.75])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "8"]
    assert list(reference.get_ydata()) == [0.75, 0.75]


@pytest.mark.parametrize("name", RAN)
def test_a_committed_report_is_what_the_results_say(name, tmp_path, monkeypatch):
    """But for the intervals and the figures, which take minutes."""
    monkeypatch.setattr(report, "difference", lambda of, to: Difference(0, 0, 0, 1))
    monkeypatch.setattr(figures, "draw", lambda every, *, path, **keywords: path)
    ours, theirs = rewritten(name, tmp_path)
    assert CELL.sub("", ours) == CELL.sub("", theirs)
    assert "Missing runs" not in theirs


@pytest.mark.release
@pytest.mark.parametrize("name", RAN)
def test_a_committed_report_is_the_same_bytes_again(name, tmp_path):
    ours, theirs = rewritten(name, tmp_path)
    assert ours == theirs
    pictures = {path.name for path in (results.FOLDER / name).glob("*.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


def rewritten(name: str, folder: Path) -> tuple[str, str]:
    config, place = results.load(name), results.FOLDER / name
    findings = results.find(results.variants(config), results.read(place / "results.jsonl"))
    pages = report.write(config, findings, folder), place / "report.md"
    return tuple(page.read_bytes().decode() for page in pages)


# ------------------------------------------------------------------------------------------------------------ documents
@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.stem)
def test_the_numbers_of_the_documents_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert documents.fill(text) == text
    assert text.count("<!-- results: ") == text.count("<!-- end -->") == len(documents.MARKED.findall(text))


def test_the_documents_show_what_was_measured():
    marked = {page.name for page in documents.PAGES if documents.MARKED.search(page.read_text(encoding="utf-8"))}
    assert marked == {"README.md", "report.md", "speed.md", "stronger-heads.md", "experiments.md"}
    with pytest.raises(ValueError, match=r"^a marker names 'tables', but it has to be one of table, means, "):
        documents.fill("<!-- results: tables; fitting --><!-- end -->")


@pytest.mark.parametrize("what", ["Table", "Figure"])
def test_tables_and_figures_of_the_report_are_numbered_in_order(what):
    text = (documents.ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    captions = [int(number) for number in re.findall(rf"(?m)^\*\*{what} (\d+)\.\*\*", text)]
    assert captions == list(range(1, len(captions) + 1)) and len(captions) >= 3


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Flags that make any experiment small."""
    base = tmp_path_factory.mktemp("base")
    tiny_base().save_pretrained(base)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    flags = ["--base_model", str(base), "--dataset", "Digits", "--max_steps", "2", "--batch_size", "64"]
    return [*flags, "--precision", "float32", "--workers", "0", "--device", "cpu", "--no_download"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table3"], "there is no experiment 'table3', but there are fine_tuning, "),
        (["table2", "--max_steps", "2"], "--max_steps would change what table2 is: give --output, so that"),
        (["table2", "--only", "CIFAR"], "--only names CIFAR, but the labels are: 1 cell, 10 cells, "),
        (["table2", "--output", "x", "--rank", "0", "1"], "--rank is [0, 1], but a run has one value of it: make it"),
        (["table2", "--data", "x"], "unrecognized arguments: --data x"),
    ],
)
def test_wrong_use_is_one_line(words, said, capsys):
    try:
        code = run_command(run.main, words)
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and said in capsys.readouterr().err


def test_only_limits_the_dimensions_that_its_labels_belong_to_and_heads_share_a_pass():
    args = run.read_arguments(["stronger_heads", "--only", "Digits", "head", "5 cells, rank 8", "full"], "")
    assert {v.label for v in args.chosen} == {"Digits, head", "Digits, 5 cells, rank 8", "Digits, full"}
    assert len(args.every) == 39
    groups = run.passes(run.missing(args.chosen, [], {"device": "cpu"}))
    assert sorted(len(group) for group in groups) == [1, 1, 1, 1, 10]  # four rates of full, five of each head


@pytest.mark.release
def test_an_experiment_runs_goes_on_and_is_done_once(small, tmp_path, monkeypatch, capsys):
    words = ["stronger_heads", "--output", str(tmp_path), "--lr", "0.1", "0.3", "--data_seeds", "0", "1", *small]
    words += ["--only", "Digits", "head", "5 cells, rank 8", "LoRA, rank 1"]
    plain, calls = Pass.run, []

    def breaking(self, checkpoint, ending, learned=None):
        calls.append(self)
        if len(calls) == 2:
            plain(self, Checkpoint(checkpoint.path, 1), ending, learned)
            raise KeyboardInterrupt  # its outcomes are on disk, its rows are not
        return plain(self, checkpoint, ending, learned)

    monkeypatch.setattr(Pass, "run", breaking)
    with pytest.raises(KeyboardInterrupt):
        run.main(words)
    assert len(results.read(tmp_path / "results.jsonl")) == 4  # the heads of the first pass
    monkeypatch.setattr(Pass, "run", plain)
    assert run.main(words) == 0
    rows = results.read(tmp_path / "results.jsonl")
    assert len(rows) == 3 * (2 + 1)  # both rates with one data seed, the better one with the other
    for each in rows:
        assert each["heads_in_pass"] == ({0: 4, 1: 2}[each["data_seed"]] if each["combinable"] else 1)
        assert unpack_bits(each["eval_right"], each["eval"]["images"]).mean() == each["eval"]["top1"]
        assert each["seed"] == each["data_seed"] and each["steps"] == 2
        assert each["machine"]["device"] == "cpu" and each["eval_hash"] == each["splits"]["eval"]
    written = results.read(results.FOLDER / "stronger_heads" / "results.jsonl")[0].keys()
    assert written <= rows[0].keys()  # later versions add keys
    assert list((tmp_path / "runs").iterdir()) == []
    before = (tmp_path / "results.jsonl").read_bytes()
    assert run.main(words) == 0 and (tmp_path / "results.jsonl").read_bytes() == before
    assert f"report  {tmp_path / 'report.md'}" in capsys.readouterr().out
    assert "| 5 cells, rank 8 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.release
def test_heads_of_masking_stand_together_as_alone(small, tmp_path, capsys):
    words = ["--output", str(tmp_path), "--lr", "0.1", "--data_seeds", "0", *small]
    with pytest.raises(ValueError, match=r"lacks masked, 10 cells on iNaturalist, .*: first run.py masking --keep_all"):
        together.main(words)
    chosen = ["--only", *together.config.TOGETHER.values()]
    assert run.main(["masking", "--keep_all", *words, *chosen]) == 0
    rows = results.read(tmp_path / "results.jsonl")
    capsys.readouterr()
    assert together.main(words) == 0
    with_mask, without = capsys.readouterr().out.split("without it")
    assert with_mask.count("+0.00") == 4  # against the file
    lines = [line.split("|")[2:-1] for line in without.splitlines() if line.startswith("| iNaturalist")]
    assert [sum(bool(cell.strip()) for cell in line) for line in lines] == [1, 2, 3, 4]
    (alone,) = (r for r in rows if r["labels"] == {"data": "iNaturalist", "method": "unmasked, 10 cells"})
    assert float(lines[0][0]) == pytest.approx(100 * alone["eval"]["top1"], abs=0.005)


# ----------------------------------------------------------------------------------------------------------------- bits
@pytest.mark.parametrize("images", [1, 7, 8, 9, 359])
def test_answers_are_a_bit_each_and_come_back(images):
    right = np.random.RandomState(images).rand(images) < 0.5
    assert np.array_equal(unpack_bits(pack_bits(right), images), right)


def test_the_first_image_is_the_highest_bit_and_what_is_no_answer_is_refused():
    assert pack_bits(np.array([True] + [False] * 7)) == "gA=="  # base64 of 0x80
    with pytest.raises(ValueError, match=r"right is int64 \[2\], but it has to be bool \[images\]"):
        pack_bits(np.array([1, 0]))
    with pytest.raises(ValueError, match="the answers are 1 bytes, but 9 images take 2"):
        unpack_bits("gA==", 9)
    with pytest.raises(ValueError, match=r"the answers '!!!!'\.\. are not base64"):
        unpack_bits("!!!!", 8)
