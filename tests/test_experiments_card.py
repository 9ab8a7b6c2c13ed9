"""Cards: what is read is what was written, and what is wrong is told with its place and what is legal."""

import copy
import re

import pytest

from experiment_rows import ANALYSIS, DATA, FIVE, HEAD, TEXTS, WITHOUT_MASK, a_card, a_grid, variant_of, write_card
from learnable_memory.experiments.card import card_names, card_path, read_card
from learnable_memory.experiments.strict_yaml import read_yaml


def test_variants_are_all_combinations_with_their_options_merged(tmp_path):
    card = a_card(tmp_path)
    assert [tuple(v.labels.values()) for v in card.variants()] == [
        ("Digits", "head"), ("Digits", "1 cell"), ("Digits", "5 cells"),
        ("Fashion", "head"), ("Fashion", "1 cell"), ("Fashion", "5 cells"),
    ]  # fmt: skip
    five = variant_of(card, "5 cells", "Fashion")
    assert five.options == {"epochs": 3, "dataset": "FashionMNIST", "number_of_memory_tokens": 5}
    assert (five.grid, five.rates, five.data_seeds, five.sweep) == ("main", (0.1,), (0, 1, 2), "first")
    assert five.label == "Fashion, 5 cells"


def test_later_dimensions_win_over_earlier_ones_and_over_the_grid(tmp_path):
    over = {"data": [{**DATA[0], "epochs": 5, "lr": 0.5}], "method": [{**FIVE, "epochs": 7}, {"label": "as the data"}]}
    late, early = a_card(tmp_path, grids=[a_grid(over=over)]).variants()
    assert (late.options["epochs"], late.rates) == (7, (0.1,))
    assert (early.options["epochs"], early.rates) == (5, (0.5,))


def test_rates_are_sorted_and_labels_may_be_numbers(tmp_path):
    over = {"data": DATA[:1], "size": [{"label": 224, "image_size": 224, "lr": [1, 0.1]}]}
    (variant,) = a_card(tmp_path, grids=[a_grid(over=over)]).variants()
    assert (variant.labels["size"], variant.rates) == ("224", (0.1, 1.0))


def test_a_card_is_found_by_name_folder_and_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_card(tmp_path / "experiments")
    assert card_names() == ["demo"]
    for given in ("demo", path.parent, path):
        card = read_card(given)
        assert (card.name, card.title) == ("demo", TEXTS["title"])
        assert card_path(given).samefile(path)


def test_a_card_that_is_not_there_is_told_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no card 'dem': .*\(there: none\)\.$"):
        read_card("dem")
    write_card(tmp_path / "experiments")
    with pytest.raises(FileNotFoundError, match=r"\(there: demo\)\.$"):
        read_card("dem")


def table(**changes):
    return {"title": "T", "grid": "main", "rows": "method", "columns": "data", "value": "top1", **changes}


def figure(**changes):
    return {"kind": "points", "name": "f", "title": "T", "grid": "main", "rows": "method", "columns": "data", **changes}


def lines(**changes):
    return figure(**{"kind": "lines", "x": "memory_tokens", "lines": "method", **changes})


def test_tables_and_figures_are_read(tmp_path):
    shown = table(
        published={"1 cell": {"Digits": 90}}, differences=[{"of": "1 cell", "to": "head"}], note="From a table."
    )
    several = table(columns=[], where={"data": "Fashion"}, value=["top1", "lr"])
    drawn = lines(lines={"memory": ["1 cell", "5 cells"]}, references=["head"])
    card = a_card(tmp_path, tables=[shown, several], figures=[drawn])
    first, second = card.tables
    assert first.published == {("1 cell", "Digits"): 90.0} and first.differences == (("1 cell", "head"),)
    assert (first.values, first.note) == (("top1",), "From a table.")
    assert first.view.column_labels(card.grid("main")) == ["Digits", "Fashion"]
    assert second.values == ("top1", "lr")
    assert [v.labels["data"] for v in second.view.cells(card.grid("main")).values()] == ["Fashion"] * 3
    assert card.figures[0].lines == {"memory": ("1 cell", "5 cells")} and card.figures[0].references == ("head",)


def test_rows_of_two_dimensions_join_their_labels_and_lines_follow_one_of_them(tmp_path):
    card = a_card(
        tmp_path, figures=[lines(rows=["method", "data"], columns=[], lines="data", where={"method": "head"})]
    )
    assert card.figures[0].lines == {"Digits": ("head, Digits",), "Fashion": ("head, Fashion",)}


def test_an_analysis_is_read_with_what_its_results_will_be_of(tmp_path):
    entry = {**ANALYSIS, "order": ["Fashion", "Digits"], "value": "top1", "published": {"Digits": 50}}
    card = a_card(tmp_path, together=[entry])
    (analysis,) = card.together
    assert analysis.settings == {
        "kind": "concatenation", "grid": "main", "heads": {"method": "head"}, "along": "data",
        "order": ["Fashion", "Digits"],
    }  # fmt: skip
    assert (analysis.rows, analysis.columns, analysis.values) == (("data",), (), ("top1",))
    assert analysis.labels == [{"data": "Fashion"}, {"data": "Digits"}]
    assert analysis.published == {("Digits", ""): 50.0}
    assert analysis.members(card.grid("main")) == [variant_of(card, "head", data) for data in ("Fashion", "Digits")]


def test_without_the_mask_heads_are_added_one_by_one(tmp_path):
    published = {"Digits": {"Digits": 50}, "Digits + Fashion": {"Digits": 28.1, "Fashion": 9}}
    (analysis,) = a_card(tmp_path, together=[{**WITHOUT_MASK, "published": published}]).together
    assert analysis.labels == [
        {"together": "Digits", "data": "Digits"},
        {"together": "Digits + Fashion", "data": "Digits"},
        {"together": "Digits + Fashion", "data": "Fashion"},
    ]
    assert [analysis.place(labels) for labels in analysis.labels] == list(analysis.published)
    assert list(analysis.published.values()) == [50.0, 28.1, 9.0]


def grids(**changes):
    return {"grids": [a_grid(**changes)]}


def methods(*entries):
    return grids(over={"data": DATA[:1], "method": list(entries)})


def together(**changes):
    return {"together": [{**ANALYSIS, **changes}]}


WRONG = [
    ({"titel": "x"}, "has the unknown key 'titel'; legal: title, question, paper"),
    ({"title": ""}, "title is '', but it has to be text"),
    ({"grids": {}}, "grids is {}, but it has to be a list"),
    ({"grids": [a_grid(), a_grid()]}, "name has 'main' twice"),
    (grids(sweep="all"), "(main): sweep is 'all', but it has to be one of first, every"),
    (grids(data_seeds=[0, 0]), "(main): data_seeds has 0 twice"),
    (grids(data_seeds=[-1]), "data_seeds is [-1], but it has to be whole numbers from 0"),
    (grids(data_seeds=[]), "data_seeds is [], but it has to be whole numbers"),
    (grids(options={"epoch": 3}), "(main), options has the unknown key 'epoch'; legal: "),
    (grids(options={"data_seeds": [0]}), "has the unknown key 'data_seeds'; legal: "),
    (grids(options={"extends": ["a"]}), "(main), options has the unknown key 'extends'; legal: "),
    (grids(options={"epochs": 0}), "(main), Digits, head: --epochs is 0, but it has to be 1 or more"),
    (grids(options={"epochs": "3"}), "--epochs is '3' of type str, but it has to be of type int"),
    (grids(options={"method": ["head", "full"]}), "method is ['head', 'full'], but it has to be one value"),
    (grids(over={}), "over is empty, but it has to have at least one dimension"),
    (grids(over={"data": DATA, "method": []}), "method is empty, but it has to have at least one entry"),
    (methods(HEAD, HEAD), "method: label has 'head' twice"),
    (methods({"method": "head"}), "method 1 lacks label; it needs label"),
    (
        methods({**HEAD, "label": False}),
        "method 1: label is False, but it has to be text or a number: put it in",
    ),
    (methods({**HEAD, "cells": 1}), "method 1 (head) has the unknown key 'cells'; legal: "),
    (methods({**HEAD, "lr": "1e-3"}), "(head): lr is '1e-3', but it has to be a number, such as 0.001 or 1.0e-3"),
    (methods({**HEAD, "lr": [0.1, 0]}), "(head): lr is [0.1, 0], but it has to be numbers above 0"),
    (methods({**HEAD, "lr": []}), "(head): lr is [], but it has to be numbers above 0"),
    (methods({**HEAD, "lr": [0.1, 0.1]}), "(head): lr has 0.1 twice"),
    (methods({"label": "head", "method": "head"}), "(main), Digits, head: no entry has lr; give a rate, or several"),
    ({"tables": [table(grid="other")]}, "tables 1 (T): grid is 'other', but it has to be one of main"),
    ({"tables": [table(rows="methods")]}, "rows is 'methods', but it has to be one of data, method"),
    ({"tables": [table(rows=[])]}, "rows is empty, but it has to be one of data, method"),
    ({"tables": [table(columns="method")]}, "rows and columns has 'method' twice"),
    ({"tables": [table(columns=[])]}, "data is neither in rows nor in columns: choose one in where (Digits, Fashion)"),
    ({"tables": [table(where={"size": "L"})]}, "where has the unknown key 'size'; legal: data, method"),
    ({"tables": [table(where={"data": "MNIST"})]}, "where data is 'MNIST', but it has to be one of Digits, Fashion"),
    ({"tables": [table(value="top5")]}, "value is 'top5', but it has to be one of top1, parameters"),
    ({"tables": [table(value=["top1", "lr"])]}, "value is ['top1', 'lr'], but it has to be one, or without columns"),
    ({"tables": [table(published={"2 cells": {"Digits": 1}})]}, "published is '2 cells', but it has to be one of head"),
    (
        {"tables": [table(published={"head": {"MNIST": 1}})]},
        "published, head is 'MNIST', but it has to be one of",
    ),
    (
        {"tables": [table(published={"head": {"Digits": "9"}})]},
        "published, head Digits is '9', but it has to be a",
    ),
    ({"tables": [table(published={"head": 9})]}, "published, head is 9, but it has to be a mapping"),
    (
        {"tables": [table(differences=[{"of": "all", "to": "head"}])]},
        "difference 1: of is 'all', but it has to be one",
    ),
    ({"tables": [table(differences=[{"of": "head", "to": "head"}])]}, "difference 1 has 'head' twice"),
    (
        {"tables": [table(value="lr", differences=[{"of": "1 cell", "to": "head"}])]},
        "differences are of top1, but value is lr",
    ),
    (
        {"tables": [table(where={"data": "Digits"}, columns=[], value=["top1", "lr"], published={"head": 1})]},
        "published numbers are of one value, but value is top1, lr",
    ),
    ({"figures": [figure(kind="bars")]}, "figures 1: kind is 'bars', but it has to be one of points, lines, rates"),
    ({"figures": [figure(kind="lines")]}, "figures 1 lacks x, lines"),
    ({"figures": [figure(x="lr")]}, "figures 1 has the unknown key 'x'; legal: kind, name, title, grid, rows"),
    ({"figures": [figure(name="../f")]}, "name is '../f', but it has to be made of letters"),
    ({"figures": [figure(), figure()]}, "figures: name has 'f' twice"),
    ({"figures": [lines(lines="data")]}, "lines is 'data', but it has to be one of method"),
    ({"figures": [lines(lines={"memory": ["2 cells"]})]}, "lines, memory is '2 cells', but it has to be one of head"),
    ({"figures": [lines(references=["none"])]}, "references is 'none', but it has to be one of head"),
    ({"together": [{k: v for k, v in ANALYSIS.items() if k != "along"}]}, "together 1 lacks along; it needs name, "),
    (together(heds=1), "together 1 has the unknown key 'heds'; legal: name, title, kind, grid, heads, along, order, "),
    (together(value="loss"), "(all): value is 'loss', but it has to be one of top1, alone_top1, change"),
    (together(kind="stretch"), "(all): kind is 'stretch', but it has to be one of concatenation, extension, unmasked."),
    (together(grid="other"), "(all): grid is 'other', but it has to be one of main."),
    (together(along="size"), "(all): along is 'size', but it has to be one of data, method."),
    (together(heads="head"), "(all): heads is 'head', but it has to be a mapping."),
    (together(heads={"size": "L"}), "(all): heads has the unknown key 'size'; legal: data, method."),
    (together(heads={"method": "tail"}), "heads, method is 'tail', but it has to be one of head, 1 cell, 5 cells."),
    (together(heads={}), "(all): along and heads have to name the dimensions data, method, each once."),
    (
        together(heads={"method": "head", "data": "Digits"}),
        "(all): along and heads have to name the dimensions data, method, each once.",
    ),
    (together(order=["Digits", "red"]), "(all): order is 'red', but it has to be one of Digits, Fashion."),
    (together(order=["Digits", "Digits"]), "(all): order has 'Digits' twice"),
    (together(order=["Digits"]), "order is ['Digits'], but it has to be two or more of Digits, Fashion."),
    (together(rows="method"), "(all): rows is 'method', but it has to be one of data."),
    (together(rows=[]), "rows and columns have to name data, each once, and rows at least one."),
    (
        together(kind="unmasked"),
        "rows and columns have to name data, together, each once, and rows at least one.",
    ),
    (together(value="top1", published={"MNIST": 1}), "published is 'MNIST', but it has to be one of Digits, Fashion."),
    (together(published={"Digits": 1}), "published numbers are of one value, but value is alone_top1, top1, change."),
    (
        {"together": [{**WITHOUT_MASK, "published": {"Fashion": {"Fashion": 1}}}]},
        "published is 'Fashion', but it has to be one of Digits, Digits + Fashion.",
    ),
    (
        {"together": [{**WITHOUT_MASK, "published": {"Digits": {"Fashion": 1}}}]},
        "published, Digits is 'Fashion', but it has to be one of Digits.",
    ),
    ({"smoke": {"epochs": 1}}, "smoke has the unknown key 'epochs'; legal: options"),
    ({"smoke": {"options": {"epoch": 1}}}, "smoke, options has the unknown key 'epoch'; legal: "),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_what_is_wrong_is_told_in_one_line_with_its_place(tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        a_card(tmp_path, **copy.deepcopy(changes))
    assert str(error.value).startswith(str(tmp_path / "demo" / "card.yaml")) and "\n" not in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("missing", TEXTS)
def test_every_text_is_required(tmp_path, missing):
    path = write_card(tmp_path)
    path.write_text(re.sub(rf"(?m)^{missing}: .*\n", "", path.read_text()))
    with pytest.raises(ValueError, match=f"lacks {missing}; it needs title, question"):
        read_card(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: a\ngrids: []\ntitle: b\n", "line 3: the key 'title' comes twice; mend the YAML."),
        ("title: [a\n", "line 2: .*; mend the YAML."),
        ("- a\n", r"is \['a'\], but it has to be a mapping."),
        ("null: 1\n", "has the key None, which YAML reads as no text: put it in quotes."),
    ],
)
def test_what_is_no_yaml_of_a_card_is_told(tmp_path, text, message):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_card(path)


def test_a_merged_key_may_be_overridden(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text("one: &one {label: 1 cell, lr: 0.1}\nagain: {<<: *one, label: again}\n")
    assert read_yaml(path)["again"] == {"label": "again", "lr": 0.1}
