"""Grids: which heads there are, what they are called, which of them wins, and what the table says of them."""

import json
import math
import sys
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnable_memory.config import TrainOptions
from learnable_memory.grid import Cell, Kind, Outcome, accuracies, best, by_kind, cells, shortest, table
from learnable_memory.heads import HeadSpec
from learnable_memory.method_spec import MethodSpec
from learnable_memory.runlog import jsonable
from outcomes import outcome, score

RATES = st.floats(min_value=sys.float_info.min, max_value=1e300)


def options(**values) -> TrainOptions:
    return TrainOptions(**{"dataset": "Digits"} | values)


# --------------------------------------------------------------------------------------------------------------- cells


def test_cells_are_all_combinations_in_the_order_of_the_options():
    grid = cells(options(number_of_memory_tokens=(5, 1), method=("memory", "head"), lr=(0.3, 0.1), seeds=(1, 0)))
    kinds = [("memory", 5), ("memory", 1), ("head", 0)]
    assert grid == [Cell(MethodSpec(*kind), lr, seed) for kind in kinds for lr in (0.3, 0.1) for seed in (1, 0)]


def test_the_papers_grid_is_as_large_as_it_should_be():
    grid = cells(
        options(
            number_of_memory_tokens=(0, 1, 5, 10, 20),
            method=("head", "head+class", "memory"),
            lr=(0.01, 0.03, 0.1, 0.3),
            seeds=(0, 1, 2),
        )
    )
    assert len(grid) == (1 + 1 + 4) * 4 * 3
    assert len({cell.name for cell in grid}) == len(grid)


@pytest.mark.parametrize(
    ("methods", "tokens", "kinds"),
    [
        (("head", "head+class", "memory"), (0, 1), [("head", 0), ("head+class", 0), ("memory", 1)]),
        (("memory", "head+class"), (1, 0, 5), [("memory", 1), ("head+class", 0), ("memory", 5)]),
        (("memory", "head+class"), (0,), [("head+class", 0)]),
        (("head",), None, [("head", 0)]),
        (("memory", "head"), (1, 5), [("memory", 1), ("memory", 5), ("head", 0)]),
    ],
)
def test_a_head_without_memory_comes_once_however_it_was_asked_for(methods, tokens, kinds):
    grid = cells(options(method=methods, number_of_memory_tokens=tokens))
    assert [(cell.spec.method, cell.spec.memory_tokens) for cell in grid] == kinds


def test_options_of_one_head_are_a_grid_of_one():
    assert cells(options(seed=7)) == [Cell(MethodSpec("memory", 1), 0.03, 7)]


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (Cell(MethodSpec("memory", 5), 0.03, 0), "m5_lr0p03_s0"),
        (Cell(MethodSpec("head+class", 0), 0.1, 1), "m0_lr0p1_s1"),
        (Cell(MethodSpec("head", 0), 0.1, 2), "probe_lr0p1_s2"),
        (Cell(MethodSpec("memory", 20), 1.0, 0), "m20_lr1_s0"),
        (Cell(MethodSpec("memory", 20), 10.0, 0), "m20_lr10_s0"),
        (Cell(MethodSpec("memory", 1), 0.1000001, 0), "m1_lr0p1000001_s0"),
        (Cell(MethodSpec("memory", 1), 1e-05, 0), "m1_lr1e-05_s0"),
        (Cell(MethodSpec("memory", 1), 1e05, 0), "m1_lr100000_s0"),
        (Cell(MethodSpec("memory", 1), 1e22, 0), "m1_lr1e+22_s0"),
    ],
)
def test_names_are_short_and_say_what_differs(cell, name):
    assert cell.name == name


@given(RATES, RATES)
def test_every_rate_has_a_legal_name_of_its_own(first, second):
    # The next number after the first is as close as two rates can be.
    rates = tuple({first, second, math.nextafter(first, math.inf)})
    names = [cell.name for cell in cells(options(number_of_memory_tokens=(0, 1), method=("head", "memory"), lr=rates))]
    assert len(set(names)) == len(names) == 3 * len(rates)
    for name in names:
        assert HeadSpec(f"Digits_{name}", num_labels=2).name == f"Digits_{name}"


@given(RATES)
def test_the_shortest_form_gives_the_rate_back(rate):
    assert float(shortest(rate)) == rate


def test_a_rate_of_numpy_is_named_as_any_other():
    (cell,) = cells(options(lr=np.float64(0.03)))
    assert cell.name == "m1_lr0p03_s0"


# ------------------------------------------------------------------------------------------------------------ outcomes


@pytest.mark.parametrize(
    "result",
    [
        outcome(0.5, 0.4, data_seed=3),
        outcome(0.5, tokens=None, lr=1e-05, diverged_at=12),
        outcome(None, diverged_at=1),
        outcome(0.5, loss=None),
        replace(outcome(0.5, 0.4), folds=[score(0.4), score(0.6)]),
    ],
)
def test_an_outcome_survives_json(result):
    row = json.loads(json.dumps(result.row(), allow_nan=False))
    assert Outcome.from_row(row) == result
    assert Outcome.from_row({**row, "seconds": 3.0}) == result


def test_a_row_has_the_cells_values_beside_the_others():
    row = outcome(0.5, 0.4, tokens=20, lr=0.3, seed=2, data_seed=1).row()
    assert row == {
        "method": "memory",
        "memory_tokens": 20,
        "masking": "masked",
        "memory_update": "none",
        "memory_norm": True,
        "train_class_token": True,
        "rank": 0,
        "prompt_dropout": 0.0,
        "optimizer": "sgd",
        "rank_lr": 1.0,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "ema": 0.0,
        "lr": 0.3,
        "seed": 2,
        "head": "Digits_m20_lr0p3_s2",
        "data_seed": 1,
        "parameters": 100,
        "epoch": 3,
        "diverged_at": None,
        "select": score(0.5),
        "eval": score(0.4),
        "eval_right": None,
        "folds": None,
        "steps": None,
        "train_seconds": None,
        "eval_seconds": None,
        "heads_in_pass": 1,
        "peak_memory_bytes": None,
    }


@pytest.mark.parametrize("missing", ["lr", "select"])
def test_rows_of_something_else_are_refused(missing):
    row = outcome(0.5).row()
    del row[missing]
    with pytest.raises(ValueError, match=f"A row has no '{missing}': check that these are the rows of a grid's"):
        Outcome.from_row(row)


BROKEN = [
    outcome(0.9, 0.9, diverged_at=40),  # stopped after a good epoch
    outcome(None, diverged_at=1),
    outcome(0.9, 0.9, loss=math.nan),  # broken in the last step, after which nobody looks at the training loss
    outcome(0.9, 0.9, loss=math.inf),
    outcome(0.9, 0.9, loss=None),  # the same, read back from JSON
]


@pytest.mark.parametrize("broken", BROKEN)
def test_what_has_diverged_never_wins(broken):
    whole = outcome(0.1, tokens=1)
    assert broken.diverged and not whole.diverged
    assert best([broken, whole]) == best([whole, broken]) == whole


def test_a_broken_loss_is_the_same_after_json():
    broken = outcome(0.9, loss=math.nan)
    assert Outcome.from_row(jsonable(broken.row())).diverged


def test_the_best_has_the_highest_accuracy_then_the_lowest_loss_then_comes_first():
    low = outcome(0.6, 0.9, loss=0.1, seed=0)
    lossy = outcome(0.7, loss=1.0, seed=1)
    first, second = outcome(0.7, loss=0.5, seed=2), outcome(0.7, loss=0.5, seed=3)
    assert best([low, lossy]) == lossy
    assert best([low, lossy, first, second]) == first
    assert best([second, first, lossy, low]) == second


def test_nothing_is_best_where_all_have_diverged():
    with pytest.raises(
        ValueError, match=r"^Everything that was trained has diverged: lower --lr, and start anew with --overwrite\.$"
    ):
        best(BROKEN)


# --------------------------------------------------------------------------------------------------------------- table


def test_runs_that_differ_in_seeds_only_are_of_one_kind():
    first, other, second = outcome(0.1, seed=0), outcome(0.2, lr=0.3), outcome(0.3, seed=1, data_seed=1)
    assert by_kind([first, other, second]) == {
        Kind(MethodSpec("memory", 5), 0.1): [first, second],
        Kind(MethodSpec("memory", 5), 0.3): [other],
    }


def test_accuracies_are_of_runs_that_did_not_diverge_and_have_been_there():
    runs = [*BROKEN, outcome(0.5, 0.4), outcome(0.6)]
    assert accuracies(runs, "select") == [0.5, 0.6]
    assert accuracies(runs, "eval") == [0.4]


def test_the_table_has_means_deviations_and_divergences_in_the_order_of_the_options():
    # Sample deviations: of 50, 60, 70 it is 10; of 81, 83 it is the root of 2.
    outcomes = [
        outcome(0.25, 0.125, tokens=None, lr=0.1),
        outcome(0.50, 0.81, tokens=20, lr=0.3, seed=0),
        outcome(0.60, tokens=20, lr=0.3, seed=1),
        outcome(0.99, 0.99, tokens=20, lr=0.3, seed=2, diverged_at=9),
        outcome(None, tokens=20, lr=0.00001, diverged_at=2),
        outcome(0.04, 0.05, tokens=0, lr=1.0),
        outcome(0.70, 0.83, tokens=20, lr=0.3, seed=0, data_seed=1),
    ]
    assert (
        table(outcomes)
        == dedent(
            """
            method               lr  runs  diverged  select top-1 % ± sd  eval top-1 % ± sd
            head                0.1     1         0        25.00               12.50
            memory, 20 cells    0.3     4         1        60.00 ± 10.00       82.00 ± 1.41
            memory, 20 cells  1e-05     1         1            -                   -
            head+class            1     1         0         4.00                5.00
            """
        ).strip()
    )


def test_the_table_of_cross_validated_runs_has_the_folds_in_place_of_the_selection_split():
    folds = [[score(0.40), score(0.60)], [score(0.70), score(0.90)]]
    outcomes = [replace(outcome(0.1, 0.4, data_seed=seed), folds=each) for seed, each in enumerate(folds)]
    outcomes.append(outcome(None, lr=0.3, diverged_at=2))
    # Of 40, 60, 70, 90: the mean is 65, the sample deviation the root of (625 + 25 + 25 + 625) / 3.
    assert (
        table(outcomes)
        == dedent(
            """
            method            lr  runs  diverged  out-of-fold top-1 % ± sd  eval top-1 % ± sd
            memory, 5 cells  0.1     2         0             65.00 ± 20.82       40.00 ± 0.00
            memory, 5 cells  0.3     1         1                 -                   -
            """
        ).strip()
    )


def test_a_table_of_single_runs_has_no_deviations():
    text = table([outcome(0.5, 0.4), outcome(1.0, lr=0.3)])
    assert (
        text
        == dedent(
            """
            method            lr  runs  diverged  select top-1 %  eval top-1 %
            memory, 5 cells  0.1     1         0           50.00         40.00
            memory, 5 cells  0.3     1         0          100.00             -
            """
        ).strip()
    )
