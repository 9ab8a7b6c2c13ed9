"""The file of results, and the choice of a learning rate from it."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest

from experiment_rows import a_card, a_grid, a_run, diverged_run, put, variant_of
from learnable_memory.experiments.choice import best_rate, planned, runs_of
from learnable_memory.experiments.findings import Finding
from learnable_memory.experiments.results import Results, pack_right, unpack_right


@pytest.fixture
def result(tmp_path):
    """A row with a key."""
    variant = variant_of(a_card(tmp_path), "head")
    return lambda key, **changes: a_run(variant, 0.1, key=key, **changes)


def test_what_is_appended_is_read_in_its_order(tmp_path, result):
    results = Results(tmp_path / "new" / "results.jsonl")
    assert results.rows() == []
    together = put({"data": "Digits"}, "10", "11")
    results.append(result("b", train_seconds=np.float64(0.5)))
    results.append({**together, "loss": float("nan")})
    Results(results.path).append(result("a"))
    assert results.rows() == [result("b", train_seconds=0.5), {**together, "loss": None}, result("a")]
    assert {row["key"] for row in results.rows()} == {"a", "b", together["key"]}


@pytest.mark.parametrize("cut", ['{"key": "b", "to', '{"key": "b"}'])
def test_a_last_line_that_was_cut_short_is_left_out_and_written_over(tmp_path, result, cut):
    results = Results(tmp_path / "results.jsonl")
    results.append(result("a"))
    with results.path.open("a") as file:
        file.write(cut)
    assert results.rows() == [result("a")]
    results.append(result("c"))
    assert results.path.read_text() == "".join(json.dumps(result(key)) + "\n" for key in "ac")


def damaged(tmp_path, result, line: str) -> Results:
    """A file whose second line this is."""
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join([json.dumps(result("a")), line, json.dumps(result("c")), ""]))
    return Results(path)


@pytest.mark.parametrize("line", ['{"key": "b", "to', "[1]"])
def test_another_damaged_line_is_told_by_its_number(tmp_path, result, line):
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2 is not"):
        damaged(tmp_path, result, line).rows()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "kind is None, but it has to be one of run, together; mend or remove the line."),
        ('{"kind": "runs"}', "kind is 'runs', but it has to be one of run, together; mend or remove the line."),
        ('{"kind": "run"}', "a row of kind run lacks grid, labels, key, options, method, memory_tokens, "),
        ('{"kind": "together"}', "a row of kind together lacks analysis, labels, key, data_seed, members, top1, "),
    ],
)
def test_a_row_that_is_none_is_told_by_its_number_and_what_it_lacks(tmp_path, result, line, said):
    with pytest.raises(ValueError) as error:
        damaged(tmp_path, result, line).rows()
    assert f"results.jsonl, line 2: {said}" in str(error.value) and "\n" not in str(error.value)


def test_every_key_that_reports_need_is_asked_for(tmp_path, result):
    answers = {"eval_right", "alone_right", "eval_hash"}  # without these a change has no interval
    for row, optional in ((result("b"), set()), (put({"data": "Digits"}, "10", "11"), answers)):
        for key in row.keys() - optional - {"kind"}:
            less = json.dumps({each: value for each, value in row.items() if each != key})
            with pytest.raises(ValueError, match=rf"line 2: a row of kind {row['kind']} lacks {key}; mend or remove"):
                damaged(tmp_path, result, less).rows()


@pytest.mark.parametrize("images", [1, 7, 8, 9, 500])
def test_packed_answers_are_a_bit_each_and_come_back(images):
    right = np.random.RandomState(images).rand(images) < 0.5
    text = pack_right(right)
    assert len(base64.b64decode(text)) == -(-images // 8)
    assert np.array_equal(unpack_right(json.loads(json.dumps(text)), images), right)


def test_the_first_image_is_the_highest_bit():
    assert pack_right(np.array([True] + [False] * 6 + [True, True])) == base64.b64encode(b"\x81\x80").decode()


@pytest.mark.parametrize("right", [np.array([1, 0]), np.ones((2, 2), dtype=bool)])
def test_other_than_booleans_in_a_row_is_refused(right):
    with pytest.raises(ValueError, match=r"right is .*, but it has to be bool \[images\]\."):
        pack_right(right)


def test_answers_of_other_images_are_refused():
    text = pack_right(np.ones(9, dtype=bool))
    with pytest.raises(ValueError, match="the answers are 2 bytes, but 17 images take 3"):
        unpack_right(text, 17)
    with pytest.raises(ValueError, match="are not base64: they were not written by pack_right"):
        unpack_right("a", 1)


@pytest.fixture
def first(tmp_path):
    """Three rates; compared on data seed 0, and run on 1 and 2 with the best."""
    return variant_of(a_card(tmp_path), "1 cell")


@pytest.fixture
def every(tmp_path):
    return variant_of(a_card(tmp_path, grids=[a_grid(sweep="every", data_seeds=[4, 5])]), "1 cell")


def test_the_best_on_select_wins_whatever_it_scores_on_eval(first):
    runs = [a_run(first, 0.01, select=0.6, right="1111"), a_run(first, 0.1, select=0.7, right="0000")]
    runs.append(a_run(first, 1.0, select=0.5, right="1111"))
    assert best_rate(first, runs) == best_rate(first, runs[::-1]) == 0.1


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.7, 0.9), (0.7, 0.8), (0.6, 0.1)], 0.1),  # equal top-1: the lower loss
        ([(0.6, 0.1), (0.7, 0.8), (0.7, 0.8)], 0.1),  # equal in both: the lower rate
    ],
)
def test_ties(first, scores, best):
    runs = [a_run(first, rate, select=top1, loss=loss) for rate, (top1, loss) in zip(first.rates, scores, strict=True)]
    assert best_rate(first, runs) == best_rate(first, runs[::-1]) == best


def test_a_rate_that_diverged_never_wins(first):
    good = [a_run(first, 0.01, select=0.2), a_run(first, 0.1, select=0.3)]
    assert best_rate(first, [*good, diverged_run(first, 1.0)]) == 0.1
    broken = a_run(first, 1.0, select=0.9, loss=None)
    assert best_rate(first, [*good, broken]) == 0.1
    assert best_rate(first, [diverged_run(first, rate) for rate in first.rates]) is None


def test_nothing_is_chosen_before_all_rates_were_compared(first, every):
    assert best_rate(first, [a_run(first, 0.01), a_run(first, 0.1)]) is None
    assert Finding.of(first, [a_run(first, 0.01)]).chosen == []
    assert best_rate(every, [a_run(every, rate, 4) for rate in every.rates]) is None


def test_further_seeds_have_no_say_in_a_sweep_of_the_first(first):
    runs = [a_run(first, rate, select=0.5 + (rate == 0.1) / 10) for rate in first.rates]
    runs += [a_run(first, 0.1, seed, select=0.1) for seed in (2, 1)]
    assert best_rate(first, runs) == 0.1
    assert [run["data_seed"] for run in Finding.of(first, runs).chosen] == [0, 1, 2]


def test_the_mean_over_all_seeds_decides_a_sweep_of_every(every):
    scores = {(0.01, 4): 0.9, (0.01, 5): 0.1, (0.1, 4): 0.5, (0.1, 5): 0.7, (1.0, 4): 0.8, (1.0, 5): 0.3}
    runs = [a_run(every, rate, seed, select=top1) for (rate, seed), top1 in scores.items()]
    assert best_rate(every, runs) == 0.1
    assert [(run["lr"], run["data_seed"]) for run in Finding.of(every, runs).chosen] == [(0.1, 4), (0.1, 5)]


def test_a_rate_that_diverged_on_one_seed_never_wins(every):
    scores = {(0.01, 4): 0.2, (0.01, 5): 0.2, (0.1, 4): 0.3, (0.1, 5): 0.3, (1.0, 4): 0.9, (1.0, 5): 0.9}
    runs = [a_run(every, rate, seed, select=top1) for (rate, seed), top1 in scores.items()]
    runs[-1]["select"]["loss"] = None
    assert best_rate(every, runs) == 0.1


def test_what_is_planned(first, every):
    compared = [(0.01, 0), (0.1, 0), (1.0, 0)]
    assert planned(first, None) == compared
    assert planned(first, 0.1) == [*compared, (0.1, 1), (0.1, 2)]
    assert planned(every, None) == planned(every, 0.1) == [(rate, seed) for seed in (4, 5) for rate in (0.01, 0.1, 1.0)]


def test_two_runs_of_one_rate_and_seed_are_an_error(first):
    message = "grid main, Digits, 1 cell: two runs with lr 0.1 and data seed 0; take one out of the results."
    with pytest.raises(ValueError, match=message):
        best_rate(first, [a_run(first, 0.1), a_run(first, 0.1)])


def test_runs_of_another_variant_or_of_a_former_card_are_no_runs_of_this_one(tmp_path, first):
    other = variant_of(a_card(tmp_path), "1 cell", "Fashion")
    mine = a_run(first, 0.1)
    former = [
        a_run(first, 0.1, options={**first.options, "epochs": 9}),
        a_run(first, 0.1, options={**first.options, "batch_size": 8}),
        a_run(first, 0.1, grid="other"),
        a_run(first, 0.2),
        a_run(first, 0.1, 3),
        a_run(other, 0.1),
        {"kind": "together", "labels": dict(first.labels)},
    ]
    assert runs_of(first, [*former, mine]) == [mine]


APPENDING = """
import json, sys
from learnable_memory.experiments.results import Results
row = json.loads(sys.argv[3])
for number in range(40):
    Results(sys.argv[1]).append({**row, "key": f"{sys.argv[2]}-{number}", "text": "x" * 5000})
"""


@pytest.mark.slow
def test_processes_that_share_a_file_lose_no_row(tmp_path, result):
    results, row = Results(tmp_path / "results.jsonl"), json.dumps(result("?"))
    results.append(result("first", text="x" * 2_000_000))  # while a process reads this, another one could write
    start = [sys.executable, "-c", APPENDING, str(results.path)]
    running = [subprocess.Popen([*start, name, row]) for name in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    keys = [row["key"] for row in results.rows()]
    assert sorted(keys) == sorted(["first", *(f"{name}-{number}" for name in "abc" for number in range(40))])
