"""A guarded process ends with its parent, however that ends, and with all that it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from node.guard import GuardedProcess

# Starts a child of its own, writes both ids, and ignores SIGTERM if told to.
PROGRAM = """
import os, signal, subprocess, sys, time
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
path = sys.argv[1]
with open(path + ".part", "w") as out:
    out.write(f"{os.getpid()} {child.pid}")
os.rename(path + ".part", path)
time.sleep(60)
"""
PARENT = """
import sys, time
from pathlib import Path
from node.guard import GuardedProcess
work = Path(sys.argv[1])
process = GuardedProcess(
    [sys.executable, "-c", sys.argv[2], str(work / "ids")],
    log_path=work / "log", remove=(work / "sockets",),
)
time.sleep(60)
"""


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def read_ids(work: Path) -> list[int]:
    wait_until((work / "ids").exists)
    return [int(pid) for pid in (work / "ids").read_text().split()]


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_ends_everything_and_removes_the_folders(tmp_path: Path, stubborn: bool) -> None:
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    extra = ["stubborn"] if stubborn else []
    process = GuardedProcess(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "ids"), *extra],
        log_path=tmp_path / "log",
        remove=(sockets,),
        grace_s=0.5,
    )
    ids = read_ids(tmp_path)
    assert process.running
    process.stop()
    process.stop()
    assert not process.running
    wait_until(lambda: not any(is_running(pid) for pid in ids))
    assert not sockets.exists()


def test_the_death_of_the_parent_ends_everything(tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), PROGRAM])
    ids = read_ids(tmp_path)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_running(pid) for pid in ids))
    wait_until(lambda: not (tmp_path / "sockets").exists())


def test_the_end_of_the_child_is_seen_and_its_output_kept(tmp_path: Path) -> None:
    process = GuardedProcess(
        [sys.executable, "-c", "print('hello from the child')"], log_path=tmp_path / "log"
    )
    wait_until(lambda: not process.running)
    assert "hello from the child" in (tmp_path / "log").read_text()
    process.stop()


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 35)", "was killed by signal 35"),
        ("raise SystemExit(3)", "exited with code 3"),
    ],
)
def test_how_the_child_ended_is_told_and_logged(tmp_path: Path, program: str, ending: str) -> None:
    process = GuardedProcess([sys.executable, "-c", program], log_path=tmp_path / "log")
    wait_until(lambda: not process.running)
    assert process.ending == ending
    assert f"guard: the process {ending}" in (tmp_path / "log").read_text()
    process.stop()
    assert process.ending == ending


def test_a_child_that_was_stopped_did_not_end_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "ids")]
    process = GuardedProcess(command, log_path=tmp_path / "log", grace_s=0.5)
    read_ids(tmp_path)
    process.stop()
    assert process.ending == ""
    assert "guard: " not in (tmp_path / "log").read_text()


def test_a_killed_guard_takes_its_child_along(tmp_path: Path) -> None:
    process = GuardedProcess(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "ids")], log_path=tmp_path / "log"
    )
    child = read_ids(tmp_path)[0]
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(child))
    process.stop()
