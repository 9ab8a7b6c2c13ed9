"""The run folder: what is written can be read by any JSON reader, also after a process was killed."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import learnable_memory
from learnable_memory import runlog
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.runlog import RunLog, git_commit, jsonable, read_metrics, versions, write_json


def test_metrics_are_there_as_soon_as_they_are_logged(tmp_path):
    with RunLog(tmp_path / "run") as log:
        log.metrics({"train/loss": 0.5, "train/lr": 0.03}, step=1)
        first = read_metrics(log.metrics_path)
        log.metrics({"select/top1": 0.25}, step=2, epoch=1)
        rows = read_metrics(log.metrics_path)
    assert rows[:1] == first
    assert [{key: row[key] for key in row if key != "time"} for row in rows] == [
        {"step": 1, "train/loss": 0.5, "train/lr": 0.03},
        {"step": 2, "epoch": 1, "select/top1": 0.25},
    ]
    assert rows[0]["time"] <= rows[1]["time"]


def test_what_is_not_finite_is_null(tmp_path):
    with RunLog(tmp_path) as log:
        log.metrics({"a": float("nan"), "b": float("inf"), "c": torch.tensor(float("nan")), "d": None}, step=1)
    assert "NaN" not in log.metrics_path.read_text() and "Infinity" not in log.metrics_path.read_text()
    (row,) = read_metrics(log.metrics_path)
    assert [row[key] for key in "abcd"] == [None] * 4


def test_an_earlier_run_is_replaced_only_on_request(tmp_path):
    with RunLog(tmp_path) as log:
        log.metrics({}, step=1)
    with pytest.raises(FileExistsError, match=r"holds an earlier run: .* or replace it with --overwrite"):
        RunLog(tmp_path)
    assert len(read_metrics(log.metrics_path)) == 1
    RunLog(tmp_path, overwrite=True).close()
    assert read_metrics(log.metrics_path) == []


def test_a_cut_last_line_is_left_out_at_every_length(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.25}\n'
    first, rows = whole.index("\n") + 1, [json.loads(line) for line in whole.splitlines()]
    for length in range(len(whole) + 1):
        path.write_text(whole[:length])
        assert read_metrics(path) == rows[: (length >= first) + (length == len(whole))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"metrics\.jsonl, line 2 is not JSON \(.*\): '\{broken'\. Mend or remove the line\."),
        ("3", r"metrics\.jsonl, line 2 is not a JSON object: '3'\. Mend or remove the line\."),
    ],
)
def test_any_other_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=message):
        read_metrics(path)


def test_no_metrics_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_options_are_saved_with_what_is_needed_to_repeat_the_run(tmp_path):
    options = TrainOptions(dataset="Digits", seed=7)
    with RunLog(tmp_path) as log:
        log.options(to_dict(options))
    record = json.loads(log.options_path.read_text())
    assert TrainOptions(**record["options"]) == options
    assert record["seed"] == 7
    assert record["versions"] == versions()
    assert record["commit"] == git_commit()
    assert record["platform"] and record["started"].endswith("+00:00")


def test_versions_name_what_results_depend_on(monkeypatch):
    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["learnable_memory"] == learnable_memory.__version__
    assert set(found) >= {"python", "torchvision", "transformers"}
    monkeypatch.setattr(runlog, "RECORDED_PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"


def test_the_commit_is_that_of_the_checkout_and_says_if_files_were_changed(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_commit(tmp_path) is None
    git("init")
    assert git_commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag is not the commit")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "results.json"
    write_json(path, {"top1": 0.5})
    with pytest.raises(TypeError, match=r"\(object\) cannot be written as JSON: convert it to a number or text\."):
        write_json(path, {"top1": object()})

    def full_disk(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(runlog.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"top1": 0.75})
    assert json.loads(path.read_text()) == {"top1": 0.5}
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_values_become_plain_json():
    value = {1: (Path("a"), np.float32(0.5), torch.tensor(3)), "b": [True, None, "x", np.float64(0.25)]}
    assert jsonable(value) == {"1": ["a", 0.5, 3], "b": [True, None, "x", 0.25]}
    assert type(jsonable(np.float64(0.25))) is float
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        jsonable(torch.zeros(2))
