"""Tables: every number in them is worked out here by hand."""

import pytest

from experiment_rows import ANALYSIS, WITHOUT_MASK, a_card, a_grid, a_run, diverged_run, put, variant_of
from learnable_memory.experiments import together_tables
from learnable_memory.experiments.findings import Findings
from learnable_memory.experiments.tables import markdown

ACCURACY = {"title": "T", "grid": "main", "rows": "method", "columns": "data", "value": "top1"}
COST = {"title": "C", "grid": "main", "rows": "method", "where": {"data": "Digits"}}


@pytest.fixture
def card(tmp_path):
    return lambda table, **changes: a_card(tmp_path, tables=[table], **changes)


def written(card, rows) -> tuple[list[list[str]], str]:
    """The cells of the card's table, headings first, and the notes below it."""
    text, _, notes = markdown(card.tables[0], Findings(card, rows)).partition("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.split("\n")]
    assert lines.pop(1)[1:] == ["---:"] * (len(lines[0]) - 1)
    return lines, notes


def runs(card, method, data="Digits", rights=("1110",) * 3, **changes):
    """All runs of a variant: 0.1 is best, and the data seeds answer `eval` as `rights` say."""
    variant = variant_of(card, method, data)
    found = [a_run(variant, rate, select=0.1, **changes) for rate in variant.rates if rate != 0.1]
    return found + [a_run(variant, 0.1, seed, right, **changes) for seed, right in enumerate(rights)]


def test_mean_and_deviation_in_percent_and_the_best_in_bold(card):
    card = card(ACCURACY)
    rows = runs(card, "head", rights=("1000", "1000", "1111"))  # 25, 25, 100: mean 50, variance 2 * 625 + 2500 = 1875
    rows += runs(card, "1 cell", rights=("1110", "1110", "1111")) + runs(card, "head", "Fashion")
    lines, notes = written(card, rows)
    assert lines == [
        ["method", "Digits", "Fashion"],
        ["head", "50.00 ± 43.30", "75.00 ± 0.00"],
        ["1 cell", "**83.33 ± 14.43**", "-"],
        ["5 cells", "-", "-"],
    ]
    assert notes == ("Top-1 on the evaluation split, in percent, mean ± sample standard deviation over 3 data seeds.")


def test_published_numbers_stand_beside_with_their_decimals(card):
    card = card({**ACCURACY, "published": {"head": {"Digits": 85.8, "Fashion": 53}}, "note": "From the moon."})
    lines, notes = written(card, runs(card, "head"))
    assert lines[1] == ["head", "75.00 ± 0.00 (85.8)", "- (53.0)"]
    assert notes.endswith(" In brackets: published. From the moon.")


def test_fewer_data_seeds_are_told_and_not_compared(card):
    card = card(ACCURACY)
    rows = runs(card, "head", rights=("1111", "1111")) + runs(card, "1 cell") + runs(card, "5 cells")
    lines, notes = written(card, rows)
    assert [line[1] for line in lines[1:]] == ["100.00 ± 0.00", "**75.00 ± 0.00**", "**75.00 ± 0.00**"]
    assert "over 3 data seeds; head / Digits over 2." in notes


def test_of_one_data_seed_there_is_no_deviation(card):
    card = card(ACCURACY)
    lines, notes = written(card, runs(card, "head", rights=["1110"]))
    assert lines[1][1] == "75.00"
    assert notes == "Top-1 on the evaluation split, in percent, of one data seed."


def test_what_was_evaluated_on_other_images_is_not_compared(card):
    card = card(ACCURACY)
    lines, _ = written(card, runs(card, "head") + runs(card, "1 cell", eval_hash="def"))
    assert [line[1] for line in lines[1:3]] == ["75.00 ± 0.00", "75.00 ± 0.00"]


def test_diverged_runs_are_not_counted_and_told(card):
    card = card(ACCURACY)
    rows = runs(card, "5 cells", rights=("1110", "1100"))
    rows.append(diverged_run(variant_of(card, "5 cells"), 0.1, 2))
    rows += [diverged_run(variant_of(card, "head"), rate) for rate in (0.1, 1.0)]
    lines, notes = written(card, rows)
    assert lines[1][1] == "diverged" and lines[3][1] == "62.50 ± 17.68"  # 75 and 50: 25 / sqrt(2)
    assert "over 2 data seeds. Diverged, and not counted: 5 cells / Digits in 1 of 3 runs." in notes


def test_a_run_that_broke_in_its_last_step_is_not_counted(card):
    card = card(ACCURACY)
    broken = a_run(variant_of(card, "5 cells"), 0.1, 2, "0000", loss=None)
    lines, notes = written(card, [*runs(card, "5 cells", rights=("1110", "1110")), broken])
    assert lines[3][1] == "75.00 ± 0.00" and "5 cells / Digits in 1 of 3 runs" in notes


def test_a_difference_row_has_interval_and_p(card):
    card = card({**ACCURACY, "differences": [{"of": "1 cell", "to": "head"}]})
    always = ("1" * 40,) * 3
    lines, notes = written(card, runs(card, "1 cell", rights=always) + runs(card, "head", rights=("0" * 40,) * 2))
    assert lines[-1] == ["1 cell - head", "+100.00 [100.00, 100.00], p < 0.001", "-"]
    assert notes.endswith(
        "Differences in points, with the 95 % interval and two-sided p of a paired bootstrap over images."
    )
    lines, _ = written(card, runs(card, "1 cell", rights=always) + runs(card, "head", rights=always))
    assert lines[-1][1] == "+0.00 [0.00, 0.00], p = 1.000"


def test_a_difference_of_other_images_is_refused(card):
    card = card({**ACCURACY, "differences": [{"of": "1 cell", "to": "head"}]})
    message = (
        r"table 'T': Digits, 1 cell and Digits, head were evaluated on different images \(hashes abc, def\), but a "
        "paired difference needs the same: run them again, or leave it out."
    )
    with pytest.raises(ValueError, match=message):
        written(card, runs(card, "head") + runs(card, "1 cell", eval_hash="def"))


def test_a_difference_needs_the_answers(card):
    card = card({**ACCURACY, "differences": [{"of": "1 cell", "to": "head"}]})
    message = "Digits, 1 cell: the run with lr 0.1 and data seed 0 has no eval_right, so .*: run it again"
    with pytest.raises(ValueError, match=message):
        written(card, runs(card, "head") + runs(card, "1 cell", eval_right=None))


def test_all_values_beside_each_other(card):
    values = ["top1", "parameters", "trained_megabytes", "train_seconds", "eval_seconds", "step_milliseconds"]
    card = card({**COST, "value": [*values, "peak_memory", "lr", "combinable", "epoch"]})
    rows = runs(card, "head", rights=("1110", "1110"), heads_in_pass=4, combinable=False)
    rows[-1]["train_seconds"] = 4.0  # of the pass: 12 and 4, of a head 3 and 1, mean 2
    rows[-1]["epoch"] = 3
    lines, notes = written(card, rows)
    assert lines[0] == [
        "method", "top-1, %", "learned numbers", "learned, MB", "training, s", "evaluation, s", "step, ms",
        "peak memory, GiB", "learning rate", "combinable", "best epoch",
    ]  # fmt: skip
    # 1,234,567 numbers of 4 bytes; 2 s / 50 steps = 40 ms; 3 * 2^29 bytes = 1.5 GiB
    assert lines[1][1:] == ["75.00 ± 0.00", "1,234,567", "4.94", "2.0", "0.8", "40.0", "1.50", "0.1", "no", "2.5"]
    assert lines[2][1:] == ["-"] * 10
    assert notes == (
        "Means over 2 data seeds, ± sample standard deviation. Of heads that were trained in one pass each counts as "
        "an equal part of the pass's seconds. Of heads that were trained in one pass, peak memory is that of the whole "
        "pass, of 4 heads."
    )


def test_what_no_device_counted_is_left_open(card):
    card = card({**COST, "value": "peak_memory"})
    lines, _ = written(card, runs(card, "head", peak_memory_bytes=None))
    assert lines[:2] == [["method", "peak memory, GiB"], ["head", "-"]]


def test_seconds_of_a_pass_of_its_own_need_no_word(card):
    card = card({**ACCURACY, "value": "train_seconds"})
    lines, notes = written(card, runs(card, "head", train_seconds=1234.56))
    assert lines[1] == ["head", "1,234.6", "-"] and notes == "Training, s. Means over 3 data seeds."


def test_a_bar_in_a_label_does_not_end_its_cell(tmp_path):
    over = {"data": [{"label": "a|b", "dataset": "Digits"}], "method": [{"label": "head", "method": "head", "lr": 0.1}]}
    card = a_card(tmp_path, tables=[ACCURACY], grids=[a_grid(over=over)])
    assert markdown(card.tables[0], Findings(card, [])).startswith("| method | a\\|b |\n")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"eval_hash": "def"}, r"were evaluated on different images (hashes abc, def)"),
        ({"base": {"id": "b", "fingerprint": "f2"}}, "started from different bases (fingerprints f1, f2)"),
    ],
)
def test_a_mean_over_two_data_sets_or_bases_is_refused(card, what, said):
    card = card(ACCURACY)
    rows = runs(card, "head", base={"id": "b", "fingerprint": "f1"})
    rows[-1].update(what)
    with pytest.raises(ValueError) as error:
        Findings(card, rows)
    end = "so their mean says nothing: take all but one out of the results."
    assert str(error.value) == f"grid main, Digits, head: the runs with lr 0.1 {said}, {end}"


def test_a_run_that_is_not_reported_may_be_of_other_images_and_an_old_one_of_an_unknown_base(card):
    card = card(ACCURACY)
    rows = runs(card, "head")
    rows[0].update(eval_hash="def")  # of lr 1
    rows[1].update(base={"id": "b", "fingerprint": "f1"})
    lines, _ = written(card, rows)
    assert lines[1][1] == "75.00 ± 0.00"


def test_peak_memory_of_a_shared_pass_is_told_to_be_that_of_all_its_heads(card):
    card = card({**COST, "value": ["peak_memory", "lr"]})
    rows = runs(card, "1 cell", heads_in_pass=6) + runs(card, "5 cells")
    _, notes = written(card, rows)
    said = "Of heads that were trained in one pass, peak memory is that of the whole pass, of"
    assert notes == f"Means over 3 data seeds. {said} 6 heads."
    rows += runs(card, "head", heads_in_pass=2)
    assert written(card, rows)[1] == f"Means over 3 data seeds. {said} 2 to 6 heads."
    assert written(card, runs(card, "5 cells"))[1] == "Means over 3 data seeds."


# ------------------------------------------------------------------------------------------------- heads put together


def together(tmp_path, entry, rows):
    (analysis,) = a_card(tmp_path, together=[entry]).together
    assert together_tables.markdown(analysis, rows) == together_tables.markdown(analysis, rows[::-1])
    return together_tables.markdown(analysis, rows)


def unanswered(*args, **changes):
    return put(*args, eval_right=None, **changes)


def test_together_beside_alone_in_the_order_of_the_analysis(tmp_path):
    rows = [
        unanswered({"data": "Fashion"}, "10100", "10000"),  # 40 and 20
        unanswered({"data": "Fashion"}, "10000", "11100", 1),  # 20 and 60
        put({"data": "Digits"}, "1110", "1010", analysis="another"),
    ]
    assert together(tmp_path, {**ANALYSIS, "order": ["Fashion", "Digits"]}, rows) == (
        "| data | alone, % | together, % | change, points |\n| --- | ---: | ---: | ---: |\n"
        # deviations: 40 / sqrt(2), 20 / sqrt(2), and of +20 and -40 60 / sqrt(2)
        "| Fashion | 40.00 ± 28.28 | 30.00 ± 14.14 | -10.00 ± 42.43 |\n"
        "| Digits | - | - | - |\n\n"
        "Means over 2 data seeds, ± sample standard deviation."
    )


def test_a_change_has_the_interval_of_a_paired_bootstrap_over_images(tmp_path):
    """The first image is won and the second lost, on every data seed; of the others nothing changes."""
    rows = [put({"data": "Digits"}, "1" * 40, "0" * 40, seed) for seed in (0, 1)]
    rows += [put({"data": "Fashion"}, "1010", "0110"), put({"data": "Fashion"}, "1011", "0111", 1)]
    table, _, notes = together(tmp_path, ANALYSIS, rows).partition("\n\n")
    digits, fashion = (line.split(" | ") for line in table.split("\n")[2:])
    assert digits == ["| Digits", "0.00 ± 0.00", "100.00 ± 0.00", "+100.00 [100.00, 100.00], p < 0.001 |"]
    # The mean of 4 draws from (+1, -1, 0, 0): P(mean <= -3/4) = (1 + 4 * 2) / 256 = 3.5 %, P(mean = -1) = 0.4 %.
    assert fashion[3] == "+0.00 [-75.00, 75.00], p = 1.000 |"
    assert notes == (
        "Means over 2 data seeds, ± sample standard deviation. Changes in points, with the 95 % interval and two-sided "
        "p of a paired bootstrap over images."
    )


def test_a_change_alone_needs_no_word_of_deviations(tmp_path):
    rows = [put({"data": data}, "10", "10", seed) for data in ("Digits", "Fashion") for seed in (0, 1)]
    text = together(tmp_path, {**ANALYSIS, "value": "change"}, rows[:3])
    assert "Means over 2 data seeds; Fashion over 1. Changes in points" in text
    text = together(
        tmp_path, {**ANALYSIS, "value": "change"}, [*rows[:3], unanswered({"data": "Fashion"}, "1", "0", 1)]
    )
    assert "Means over 2 data seeds, ± sample standard deviation." in text and "Changes" in text


def test_a_change_between_other_images_is_refused(tmp_path):
    rows = [put({"data": "Digits"}, "10", "11"), put({"data": "Digits"}, "10", "11", 1, eval_hash="def")]
    message = r"together 'all': Digits was evaluated on different images \(hashes abc, def\), but a paired change needs"
    with pytest.raises(ValueError, match=message):
        together(tmp_path, ANALYSIS, rows)


def test_together_with_columns_and_published_numbers(tmp_path):
    entry = {**WITHOUT_MASK, "published": {"Digits + Fashion": {"Digits": 28.1}}, "note": "Far off."}
    rows = [
        put({"together": "Digits", "data": "Digits"}, "10", "10"),
        put({"together": "Digits + Fashion", "data": "Digits"}, "10", "10"),
        put({"together": "Digits + Fashion", "data": "Fashion"}, "1000", "10"),
    ]
    assert together(tmp_path, entry, rows) == (
        "| together | Digits | Fashion |\n| --- | ---: | ---: |\n"
        "| Digits | 50.00 | - |\n| Digits + Fashion | 50.00 (28.1) | 25.00 |\n\n"
        "Together, %. Means over one data seed. In brackets: published. Far off."
    )


def test_together_without_results(tmp_path):
    assert together(tmp_path, ANALYSIS, []) == "No results yet."


def test_together_twice_the_same_is_refused(tmp_path):
    with pytest.raises(ValueError, match="together 'all': two rows have Digits and data seed 0; take one out of the"):
        together(tmp_path, ANALYSIS, [put({"data": "Digits"}, "10", "01")] * 2)
