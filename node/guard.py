"""Child processes that never outlive their parent, however it ends.

A small guard process stands between the two. It holds the reading end of a pipe whose other end
only the parent has: when the parent closes it, or dies in any way, the guard ends the child and
everything the child has started (one process group), removes the given folders, and leaves. Unlike
a signal set in a forked child (``PR_SET_PDEATHSIG`` alone), this neither forks a process that runs
threads nor depends on which thread started the child.

When the child ends by itself, the guard says how, by exit code or name of the signal: to the
parent, and in the child's log, as one that dies of a signal cannot say so itself.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

GRACE_S: Final = 10.0
LOG_PREFIX: Final = "guard: "
_POLL_S: Final = 0.1
_REPORT_BYTES: Final = 256
_PR_SET_PDEATHSIG: Final = 1


class GuardedProcess:
    """A child process, with all that it starts, that ends at the latest when this process does.

    command: program and arguments. log_path: where its output goes, appended. remove: folders
    that are removed once it has ended. grace_s: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        remove: Sequence[Path] = (),
        grace_s: float = GRACE_S,
    ) -> None:
        self._grace_s = grace_s
        self._remove = tuple(remove)
        self._report: int | None
        self._report, report = os.pipe()
        self._ending = ""
        arguments = [sys.executable, "-m", "node.guard", "--grace-s", str(grace_s)]
        arguments += ["--report-fd", str(report)]
        for folder in remove:
            arguments += ["--remove", str(folder)]
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603  the command is ours
                [*arguments, "--", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**env, "PYTHONPATH": _get_python_path(env)},
                start_new_session=True,
                pass_fds=(report,),
            )
        os.close(report)

    @property
    def pid(self) -> int:
        """The guard's process id, which is also the id of the whole process group."""
        return self._guard.pid

    @property
    def running(self) -> bool:
        """Whether the child still runs."""
        return self._guard.poll() is None

    @property
    def ending(self) -> str:
        """How the child ended by itself, as `describe_exit` words it; empty if it did not."""
        if not self.running:
            self._read_report()
        return self._ending

    def _read_report(self) -> None:
        if self._report is not None:
            self._ending = os.read(self._report, _REPORT_BYTES).decode()
            os.close(self._report)
            self._report = None

    def stop(self) -> None:
        """End the child and all that it started, and wait for that. Can be called twice."""
        if self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
        try:
            self._guard.wait(self._grace_s + 5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
        self._read_report()
        _remove_folders(self._remove)


def describe_exit(return_code: int) -> str:
    """Word how a process ended: its exit code, or the signal that killed it by name."""
    if return_code >= 0:
        return f"exited with code {return_code}"
    try:
        return f"was killed by {signal.Signals(-return_code).name}"
    except ValueError:
        return f"was killed by signal {-return_code}"


def _get_python_path(env: Mapping[str, str]) -> str:
    """Let the guard find this package even where it is not installed, such as in a checkout."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, (here, env.get("PYTHONPATH", ""))))


def _guard(
    command: Sequence[str], remove: Sequence[Path], grace_s: float, report: int | None
) -> None:
    """Run the command until it ends or standard input closes; then leave nothing behind."""
    asked_to_stop = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    child = subprocess.Popen(  # noqa: S603  the command came from our own parent
        command,
        stdin=subprocess.DEVNULL,
        env=env,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  this process has one thread
    )
    while child.poll() is None and not asked_to_stop and not _is_input_closed():
        pass
    return_code = child.poll()
    if return_code is not None:
        _tell(describe_exit(return_code), report)
    _end(child, grace_s)
    _remove_folders(remove)
    # What the child started and left behind is in this process's group, and so is this process.
    os.killpg(0, signal.SIGKILL)


def _tell(ending: str, report: int | None) -> None:
    """Write how the child ended into its log, and to the parent if it still listens."""
    sys.stdout.write(f"{LOG_PREFIX}the process {ending}\n")
    sys.stdout.flush()
    if report is not None:
        with contextlib.suppress(OSError):
            os.write(report, ending.encode())


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    child.kill()
    child.wait()


def _is_input_closed() -> bool:
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], _POLL_S)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def _die_with_parent() -> None:
    """Have the kernel end the child should the guard itself be killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _remove_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Be the guard of one command."""
    parser = argparse.ArgumentParser(prog="python -m node.guard", description=__doc__)
    parser.add_argument("--grace-s", type=float, default=GRACE_S)
    parser.add_argument("--report-fd", type=int)
    parser.add_argument("--remove", type=Path, action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    command = chosen.command[1:] if chosen.command[:1] == ["--"] else chosen.command
    if not command:
        parser.error("no command to guard")
    _guard(command, chosen.remove, chosen.grace_s, chosen.report_fd)


if __name__ == "__main__":
    main()
