"""Progress bars where somebody looks, lines where nobody does."""

import ast
import io
import sys
from pathlib import Path

import pytest

from learnable_memory import progress as module
from learnable_memory.progress import progress_bar

PACKAGE = Path(module.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only if a test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(range(3), desc="x")) == [0, 1, 2]
    assert sys.stderr.getvalue().count("\r") >= 2


def test_a_file_gets_whole_lines_and_few(clock, capsys):
    """Eight hours, ten batches a second: a line in half a minute at first, then in a twentieth of the time so far."""
    bar = progress_bar(total=288_000, desc="epoch 1", unit=" images", unit_scale=True)
    for _ in range(288_000):
        clock[0] += 0.1
        bar.set_postfix_str("loss 0.5", refresh=False)
        bar.update(1)
    bar.close()
    written = capsys.readouterr().err
    assert "\r" not in written
    lines = written.splitlines()
    assert all(line.startswith("epoch 1: ") and line.endswith("loss 0.5]") for line in lines)
    assert "100%" in lines[-1] and "288k/288k" in lines[-1]
    assert 20 + 75 < len(lines) < 20 + 85  # 600 s in half minutes, then log(48) / log(1.05) = 79


def test_what_is_done_at_once_has_no_line(clock, capsys):
    for _ in progress_bar(range(60), desc="60 tiny epochs"):
        clock[0] += 0.4
    assert capsys.readouterr().err == ""


def test_what_is_iterated_and_ends_early_says_where(clock, capsys):
    for number in progress_bar(range(100), desc="checking"):
        clock[0] += 8
        if number == 10:
            break
    assert [line.partition("|")[0] for line in capsys.readouterr().err.splitlines()] == [
        "checking:   4%", "checking:   8%", "checking:  10%"
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_no_bar_is_no_output(monkeypatch, clock, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    for _ in progress_bar(range(3), disable=True):
        clock[0] += 100
    assert sys.stderr.getvalue() == ""


def test_other_messages_leave_the_lines_alone(clock, capsys):
    with progress_bar(total=2) as bar:
        clock[0] += 31
        bar.update()
        bar.write("epoch 1", file=sys.stderr)
    written = capsys.readouterr().err
    assert written.count("\n") == 2 and "\r" not in written


def test_other_libraries_draw_no_bars_into_a_file(monkeypatch, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
    datasets.enable_progress_bars()
    module.hide_bars_of_libraries()
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(str(tmp_path / "a.parquet"))
    assert capsys.readouterr().err == ""


def test_all_bars_come_from_here():
    """A bar of tqdm's own would fill a log again."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "progress.py":
            calls = [
                node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
            ]
            assert [node.lineno for node in calls if ast.unparse(node.func).endswith("tqdm")] == [], path
