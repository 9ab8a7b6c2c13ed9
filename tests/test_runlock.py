"""One run at a time in a folder: a second is refused before it has changed anything, and a dead one is no hindrance."""

import json
import os
import socket
import subprocess
import sys
import threading

import psutil
import pytest

import vit_train
from command_lines import QUICK
from learnable_memory import train as training
from learnable_memory.commands import run_command
from learnable_memory.runlock import LOCK, run_lock
from test_resume import contents, flags_of


def holder(process: int, host: str | None = None, started: float | None = None) -> dict:
    started = psutil.Process(process).create_time() if started is None else started
    return {"host": host or socket.gethostname(), "process": process, "started": started}


def test_a_lock_says_who_holds_it_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new" / "a_run"
    with run_lock(folder):
        assert json.loads((folder / LOCK).read_text()) == holder(os.getpid())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), run_lock(folder):
        (folder / "metrics.jsonl").write_text("kept")
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_a_second_run_is_refused(tmp_path):
    with run_lock(tmp_path):
        before = contents(tmp_path)
        with pytest.raises(FileExistsError) as caught, run_lock(tmp_path):
            pytest.fail("both are in")
        assert str(caught.value) == (
            f"another run of this name is under way, process {os.getpid()}: wait for it, or choose another --name or "
            "--output."
        )
        assert contents(tmp_path) == before
    with run_lock(tmp_path):
        pass


@pytest.fixture
def gone() -> dict:
    """Who a process was that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    was = holder(process.pid)
    process.communicate(b"\n")
    return was


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, gone):
    (tmp_path / LOCK).write_text(json.dumps(gone))
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == holder(os.getpid())


def test_so_is_that_of_one_whose_number_another_process_has_now(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(holder(os.getpid(), started=12345.0)))
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", '{"host": "a', "[1]", '{"process": 1}'])
def test_what_no_run_has_written_whole_holds_nothing(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with run_lock(tmp_path):
        pass


def test_of_another_machine_nobody_can_tell(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(holder(1, host="node7", started=1.0)))
    with (
        pytest.raises(
            FileExistsError, match=r"process 1 on node7: wait .*; if that one is gone, remove .*lock\.json\.$"
        ),
        run_lock(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "node7"


def test_of_many_that_come_at_once_one_is_let_in(tmp_path, gone):
    """Over the lock of one that is gone, which each of them may take over."""
    (tmp_path / LOCK).write_text(json.dumps(gone))
    ready, leave, inside, refused = threading.Barrier(12), threading.Event(), [], []

    def come() -> None:
        ready.wait()
        try:
            with run_lock(tmp_path):
                inside.append(1)
                leave.wait(30)
        except FileExistsError:
            refused.append(1)
        if len(refused) == 11:
            leave.set()

    threads = [threading.Thread(target=come) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 11)


# -------------------------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--resume",)])
def test_two_runs_of_one_name_do_not_meet(tmp_path, base, colours, monkeypatch, capsys, more):
    """The second comes while the first is in its third step; it changes nothing, and the first goes on."""
    flags, said, step = flags_of(base, colours, tmp_path), [], training.train_step

    def second(*given):
        if len(said) == 2:
            before = contents(tmp_path)
            capsys.readouterr()
            said.append(run_command(vit_train.main, [*flags, *more], prog="prog"))
            assert contents(tmp_path) == before
            said.append(capsys.readouterr().err)
        elif len(said) < 2:
            said.append(0)
        return step(*given)

    monkeypatch.setattr(training, "train_step", second)
    assert vit_train.main(flags) == 0
    assert said[2] == 2
    assert said[3].splitlines()[-1] == (
        f"prog: error: another run of this name is under way, process {os.getpid()}: wait for it, or choose another "
        "--name or --output."
    )
    assert (tmp_path / "colours_model.safetensors").exists() and not (tmp_path / "colours_run" / LOCK).exists()


def test_the_processes_of_a_launcher_share_one_lock(tmp_path, base, colours, monkeypatch):
    """The one that is not the first takes none: here it would meet that of the first."""
    monkeypatch.setenv("RANK", "1")
    with run_lock(tmp_path / "colours_run"):
        assert vit_train.main(flags_of(base, colours, tmp_path, *QUICK)) == 0
