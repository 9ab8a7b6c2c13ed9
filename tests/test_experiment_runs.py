"""`python -m learnable_memory experiments run`: a small card on a tiny base and Digits, from cards to results."""

import json
from textwrap import dedent

import numpy as np
import pytest
import torch

from command_lines import train
from learnable_memory import heads
from learnable_memory.__main__ import main
from learnable_memory.commands import experiment_runs, experiment_together
from learnable_memory.commands import passes as passes_module
from learnable_memory.commands.experiment_runs import missing, passes
from learnable_memory.experiments.card import read_card
from learnable_memory.experiments.results import Results, unpack_right

CARD = """
title: A card
question: Does it run?
paper: none
command: python -m learnable_memory experiments run small
expected_time: seconds
expected_result: none
grids:
  - name: main
    data_seeds: [0, 1]
    options: {{base_model: {base}, batch_size: 8, epochs: 2, memory_norm: true}}
    over:
      data:
        - {{label: colours, dataset: "folder:{colours}"}}
        - {{label: brightness, dataset: "folder:{brightness}"}}
      method:
        - {{label: head, method: head, lr: [0.1, 0.3]}}
        - {{label: 2 cells, method: memory, number_of_memory_tokens: 2, lr: [0.1, 0.3]}}
        - label: 2 cells, after the norm
          method: memory
          number_of_memory_tokens: 2
          memory_norm: false
          lr: [0.1]
        - {{label: unmasked, method: memory, number_of_memory_tokens: 2, masking: none, lr: [0.1]}}
        - {{label: full, method: full, lr: [0.03]}}
tables:
  - {{title: Top-1, grid: main, rows: method, columns: data, value: top1, differences: [{{of: 2 cells, to: head}}]}}
figures:
  - {{kind: points, name: accuracy, title: Accuracy, grid: main, rows: method, columns: data}}
together:
  - {{name: concatenation, title: Concatenated, kind: concatenation, grid: main, heads: {{method: 2 cells}},
     along: data, order: [colours, brightness], rows: data, value: [alone_top1, top1]}}
  - {{name: extension, title: Extended, kind: extension, grid: main, heads: {{method: 2 cells}}, along: data,
     order: [brightness, colours], rows: data, value: top1}}
  - {{name: unmasked, title: Unmasked, kind: unmasked, grid: main, heads: {{method: unmasked}}, along: data,
     order: [colours, brightness], rows: together, columns: data, value: top1}}
"""


@pytest.fixture(scope="module")
def card_file(tmp_path_factory, base, colours, brightness):
    folder = tmp_path_factory.mktemp("small")
    text = dedent(CARD).format(base=base, colours=colours, brightness=brightness)
    (folder / "card.yaml").write_text(text)
    return folder / "card.yaml"


@pytest.fixture(scope="module")
def ran(card_file):
    """The folder of the card after its run."""
    assert run(card_file) == 0
    return card_file.parent


def run(card_file, *flags: str) -> int:
    return main(["experiments", "run", str(card_file), "--workers", "0", "--device", "cpu", "--no_download", *flags])


def rows(folder, kind: str = "run") -> list[dict]:
    return [row for row in Results(folder / "results.jsonl").rows() if row["kind"] == kind]


def where(folder) -> dict:
    return {"directory": folder, "output": folder / "runs", "workers": 0, "device": "cpu", "no_download": True}


@pytest.mark.slow
def test_runs_are_all_rates_on_the_first_data_seed_and_the_best_on_the_second(ran):
    done = rows(ran)
    per_data = 2 + 2 + 1 + 1 + 1 + 5  # all rates with seed 0, one of each of five methods with seed 1
    assert len(done) == 2 * per_data
    assert len({row["key"] for row in done}) == len(done)
    for data in ("colours", "brightness"):
        mine = [row for row in done if row["labels"] == {"data": data, "method": "2 cells"}]
        first = {row["lr"]: row for row in mine if row["data_seed"] == 0}
        (second,) = (row for row in mine if row["data_seed"] == 1)
        assert set(first) == {0.1, 0.3}
        best = max(first.values(), key=lambda row: (row["select"]["top1"], -row["select"]["loss"]))
        assert second["lr"] == best["lr"]


def test_masked_heads_share_a_pass_and_others_do_not(ran):
    for row in rows(ran):
        alone = row["method"] == "full" or row["masking"] == "none"
        heads_of_a_pass = {0: 2 + 2 + 1, 1: 3}[row["data_seed"]]
        assert row["heads_in_pass"] == (1 if alone else heads_of_a_pass)
        assert row["combinable"] is not alone
        right = unpack_right(row["eval_right"], row["eval"]["images"])
        assert np.mean(right) == row["eval"]["top1"]
        assert row["seed"] == row["data_seed"]


@pytest.mark.slow
def test_a_run_is_the_one_of_vit_train(ran, tmp_path, base, colours):
    flags = ["-d", f"folder:{colours}", "-e", "2", "-m", "2", "--lr", "0.1", "--data_seeds", "1", "--seed", "1"]
    train(base, tmp_path, *flags)
    expected = heads.load(tmp_path / "colours_model.safetensors").metadata["metrics"]["eval"]
    labels = {"data": "colours", "method": "2 cells, after the norm"}
    (row,) = (row for row in rows(ran) if row["labels"] == labels and row["data_seed"] == 1)
    train(base, tmp_path, *flags, "--no-memory_norm", "--overwrite")
    expected = heads.load(tmp_path / "colours_model.safetensors").metadata["metrics"]["eval"]
    assert row["eval"]["top1"] == expected["top1"]
    assert row["eval"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_what_is_there_does_not_run_again(ran, monkeypatch, capsys):
    before = (ran / "results.jsonl").read_bytes()
    monkeypatch.setattr(experiment_runs, "run_pass", lambda *args, **kwargs: pytest.fail("a run that is there"))
    assert run(ran / "card.yaml") == 0
    assert "0 done now; of 24 runs 24 are there" in capsys.readouterr().out
    assert (ran / "results.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_report_is_the_same_bytes_each_time(ran):
    written = {path.name: path.read_bytes() for path in ran.iterdir() if path.suffix in (".md", ".png")}
    assert set(written) == {"report.md", "accuracy.png"}
    assert main(["experiments", "report", str(ran / "card.yaml")]) == 0
    assert {name: (ran / name).read_bytes() for name in written} == written


def test_heads_put_together_answer_as_alone(ran):
    done = rows(ran, "together")
    concatenated = [row for row in done if row["analysis"] == "concatenation"]
    assert len(concatenated) == 2 * 2
    assert all(row["top1"] == row["alone_top1"] for row in concatenated)


def test_the_first_of_an_extension_and_of_an_unmasked_row_is_as_alone(ran):
    done = rows(ran, "together")
    extended = [row for row in done if row["analysis"] == "extension"]
    assert [row["labels"]["data"] for row in extended] == ["brightness", "colours"] * 2
    assert all(row["top1"] == row["alone_top1"] for row in extended[::2])
    unmasked = [row for row in done if row["analysis"] == "unmasked"]
    assert [row["labels"] for row in unmasked[:3]] == [
        {"data": "colours", "together": "colours"},
        {"data": "colours", "together": "colours + brightness"},
        {"data": "brightness", "together": "colours + brightness"},
    ]
    assert unmasked[0]["top1"] == unmasked[0]["alone_top1"]


@pytest.mark.slow
def test_what_an_analysis_needs_is_trained_again_where_it_was_not_kept(ran, tmp_path, caplog):
    text = (ran / "card.yaml").read_text()
    (tmp_path / "card.yaml").write_text(text)
    runs = [row for row in rows(ran)]
    for row in runs:
        Results(tmp_path / "results.jsonl").append(row)
    assert run(tmp_path / "card.yaml") == 0
    assert "trained once more" in caplog.text
    assert rows(tmp_path) == runs
    key = lambda row: json.dumps([row["analysis"], row["labels"], row["data_seed"]])  # noqa: E731
    again = {key(row): row["top1"] for row in rows(tmp_path, "together")}
    assert again == {key(row): row["top1"] for row in rows(ran, "together")}


@pytest.mark.slow
def test_what_a_pass_learned_survives_an_interruption_before_its_results(card_file, ran, tmp_path, monkeypatch):
    """Its outcomes are on disk, its rows are not: analyses later need what it learned, not what it began with."""

    def breaking(self, *rows):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Results, "append", breaking)
        run(card_file, "--output", str(tmp_path))
    monkeypatch.setattr(
        passes_module, "train", lambda *args, **kwargs: pytest.fail("a pass that has ended is trained again")
    )
    with pytest.raises(pytest.fail.Exception):  # by the second pass
        run(card_file, "--output", str(tmp_path), "--resume")
    assert len(rows(tmp_path)) == 5  # of the first pass, the heads of one data set
    kept = list((tmp_path / "runs" / "learned").glob("*.safetensors"))
    assert len(kept) == 5
    for path in kept:
        mine, theirs = (heads.load(place).tensors for place in (path, ran / "runs" / "learned" / path.name))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def changed(ran, folder, old: str, new: str):
    """A copy of the card that ran, with its results, and this change."""
    text = (ran / "card.yaml").read_text()
    assert old in text
    (folder / "card.yaml").write_text(text.replace(old, new))
    (folder / "results.jsonl").write_bytes((ran / "results.jsonl").read_bytes())
    return folder / "card.yaml"


@pytest.mark.slow
def test_an_analysis_of_other_heads_is_made_anew(ran, tmp_path):
    card = changed(ran, tmp_path, "heads: {method: 2 cells}", 'heads: {method: "2 cells, after the norm"}')
    before = rows(tmp_path, "together")
    assert run(card) == 0
    done = rows(tmp_path, "together")[len(before) :]
    assert [row["analysis"] for row in done] == ["concatenation"] * 4 + ["extension"] * 4  # of two data seeds
    keys = {row["key"] for row in rows(tmp_path) if row["labels"]["method"] == "2 cells, after the norm"}
    assert all(set(row["members"]) <= keys for row in done)
    assert all(row["top1"] == row["alone_top1"] for row in done if row["analysis"] == "concatenation")
    assert not list((tmp_path / "runs" / "passes").glob("*"))


@pytest.mark.slow
def test_an_extension_never_goes_on_from_one_with_other_parents(ran, tmp_path, monkeypatch, caplog):
    card = changed(ran, tmp_path, "title: A card", "title: It")
    keep = [row for row in rows(tmp_path) + rows(tmp_path, "together") if row.get("analysis") != "extension"]
    (tmp_path / "results.jsonl").unlink()
    for row in keep:
        Results(tmp_path / "results.jsonl").append(row)
    plain = experiment_together._evaluated

    def breaking(model, name, *args, **kwargs):
        if name == "D1":  # the child is trained, and its state is on disk
            raise Stop
        return plain(model, name, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(experiment_together, "_evaluated", breaking)
        run(card)
    order = "order: [brightness, colours], rows: data, value: top1"
    card.write_text(card.read_text().replace(order, order.replace("brightness, colours", "colours, brightness")))
    caplog.clear()
    assert run(card, "--resume") == 0
    assert "resumed after step" not in caplog.text


class Stop(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_card_goes_on(card_file, ran, tmp_path, monkeypatch, caplog):
    """Broken off after two passes, and within the third: the rest runs, and the results are those of a whole run."""
    plain, calls = experiment_runs.Pass.run, []

    def breaking(self, checkpoint, ending, learned=None):
        calls.append(self)
        if len(calls) == 3:
            checkpoint.every = 1  # a state to go on from
            with monkeypatch.context() as inside:
                inside.setattr("learnable_memory.train.choose_epoch", _stop)
                plain(self, checkpoint, ending)
        return plain(self, checkpoint, ending)

    monkeypatch.setattr(experiment_runs.Pass, "run", breaking)
    with pytest.raises(Stop):
        run(card_file, "--output", str(tmp_path), "--only", "colours")
    before = rows(tmp_path)
    assert len(before) in (2, 6)  # of two passes
    assert "resumed after step" not in caplog.text
    assert run(card_file, "--output", str(tmp_path), "--only", "colours", "--resume") == 0
    assert "resumed after step" in caplog.text
    mine = {row["key"]: row["eval"] | {"images_per_second": 0} for row in rows(tmp_path)}
    whole = {r["key"]: r["eval"] | {"images_per_second": 0} for r in rows(ran) if r["labels"]["data"] == "colours"}
    assert mine == whole


def _stop(*args):
    raise Stop


def test_only_limits_the_dimensions_that_its_labels_belong_to(card_file, tmp_path):
    card = read_card(card_file)
    runs = missing(card, [], where(tmp_path), ["colours", "head", "full"])
    assert {tuple(run.variant.labels.values()) for run in runs} == {("colours", "head"), ("colours", "full")}
    assert len(list(passes(runs))) == 2
    with pytest.raises(ValueError, match=r"^--only names Colours, but the labels are: 2 cells, .*, unmasked\.$"):
        missing(card, [], where(tmp_path), ["Colours"])


def test_the_rest_is_planned_for_its_cost(card_file, tmp_path):
    card = read_card(card_file)
    now, whole = (missing(card, [], where(tmp_path), whole=whole) for whole in (False, True))
    assert len(now) == 2 * 7 and len(whole) == 2 * 12


@pytest.mark.slow
def test_cost_measures_each_kind_of_pass_once(card_file, tmp_path, capsys):
    common = ["--workers", "0", "--device", "cpu", "--no_download", "--output", str(tmp_path)]
    assert main(["experiments", "cost", str(card_file), *common, "--only", "colours"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:1] for line in printed[1:5]] == [["colours,"]] * 4
    assert "colours, head and 4 more heads" in printed[1] and "colours, head and 2 more heads" in printed[2]
    assert printed[-2].startswith("6 passes, ") and " GiB" in printed[-2]
    assert printed[-1].startswith("not counted: putting heads together")
    assert not list(tmp_path.rglob("*.jsonl"))


def test_cost_of_a_finished_card_is_nothing(ran, capsys):
    assert main(["experiments", "cost", str(ran / "card.yaml"), "--workers", "0", "--device", "cpu"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_only_leaves_out_grids_without_the_dimension():
    card = read_card("memory_update")
    runs = experiment_runs.chosen_variants(card, ["1 cell", "CIFAR-100"])
    assert {variant.grid for variant in runs} == {"norm"}
    assert all(variant.labels["cells"] == "1 cell" and variant.labels["data"] == "CIFAR-100" for variant in runs)


def test_the_data_set_is_opened_once_for_passes_that_share_it(card_file, tmp_path):
    experiment_runs._data_of.cache_clear()
    for planned in missing(read_card(card_file), [], where(tmp_path), ["colours"]):
        experiment_runs.data_of(planned.options)
    assert experiment_runs._data_of.cache_info().misses == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind: extension": "kind: stretch"}, "stretch"),
        ({"order: [brightness, colours]": "order: [red]"}, "red"),
        ({"along: data": "along: method"}, "along"),
        ({"grid: main, heads": "grid: other, heads"}, "other"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_analysis_is_refused_before_anything_runs(card_file, tmp_path, capsys, change, said):
    text = card_file.read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "card.yaml").write_text(text)
    assert run(tmp_path / "card.yaml") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()


def test_the_machine_is_named(ran):
    assert all(row["machine"] == {"device": "cpu", "threads": torch.get_num_threads()} for row in rows(ran))


@pytest.mark.slow
def test_list_shows_the_cards_that_ship(capsys):
    assert main(["experiments", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("table2", "masking", "memory_update", "sizes", "fine_tuning", "prompts"))
