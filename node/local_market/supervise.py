"""Running a market until it is told to stop: in the foreground, or detached.

The detached form is this module as a process of its own (``python -m node.local_market.supervise``)
with its output in ``supervisor.log``; whoever started it reads its progress there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from iemas.core.errors import ConfigurationError, IemasError
from iemas.files import naming_os_errors
from node.local_market.backends import Progress
from node.local_market.home import (
    ANOTHER_HOME,
    SUPERVISOR_LOG,
    MarketHome,
    MarketState,
    ProcessRecord,
    is_alive,
)
from node.local_market.market import LocalMarket
from node.local_market.plan import MarketPlan
from node.local_market.restarts import Restarts

STOP_S: Final = 60.0
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ERROR_PREFIX: Final = "error: "
LEFT: Final = "left so: `iemas market down`, then `iemas market up`, brings it back"
_POLL_S: Final = 0.1

Watch = Callable[[LocalMarket], Awaitable[None]]
"""Shows a running market; cancelled when it is told to stop."""


async def supervise(
    market: LocalMarket, plan: MarketPlan, progress: Progress, watch: Watch, notice: Progress
) -> bool:
    """Bring a market up, watch it until a signal or until `watch` returns, take it down.

    Nodes that end by themselves are started again (`Restarts`); `notice` is told of it.
    Gives whether it came up before it was told to stop. Raises: what `LocalMarket.start` raises.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    try:
        async with market:
            if not await _finish_first(market.start(plan, progress), stopped):
                return False
            keeper = asyncio.create_task(keep_running(market, notice))
            try:
                await _finish_first(watch(market), stopped)
            finally:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
            progress("stopping")
            return True
    finally:
        stopped.cancel()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def keep_running(market: LocalMarket, notice: Progress) -> None:
    """Say why nodes end, and start them again while `Restarts` allows it."""
    restarts, loop = Restarts(), asyncio.get_running_loop()
    due_s: dict[str, float | None] = {}
    while True:
        ended = [name for name, node in market.nodes.items() if not node.running]
        for name in ended:
            if name not in due_s:
                delay_s = restarts.note_end(name, now_s=loop.time())
                due_s[name] = None if delay_s is None else loop.time() + delay_s
                then = LEFT if delay_s is None else f"started again in {delay_s:.0f} s"
                notice(f"{market.nodes[name].explain_end()}; {then}")
            at_s = due_s[name]
            if at_s is not None and loop.time() >= at_s:
                del due_s[name]
                with contextlib.suppress(ConfigurationError):  # it ended again, or is stuck
                    await market.restart_node(name)
                restarts.note_start(name, now_s=loop.time())
        await asyncio.sleep(_POLL_S)


async def _finish_first(work: Awaitable[None], stopped: asyncio.Task[bool]) -> bool:
    """Do something unless told to stop; tell whether it was finished."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


def start_detached(home: MarketHome, plan: MarketPlan, progress: Progress) -> MarketState:
    """Have a market supervised by a process of its own; return once it is open.

    Raises: ConfigurationError with what went wrong.
    """
    if home.is_held():
        raise home.describe_running()
    home.check_folder()
    log = home.path / SUPERVISOR_LOG
    with naming_os_errors(ANOTHER_HOME):
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.unlink(missing_ok=True)
        log.touch()
    text = msgspec.json.encode(plan).decode()
    command = [sys.executable, "-m", "node.local_market.supervise", str(home.path), text]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  the command is ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _wait_open(home, process, log, progress)
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _wait_open(
    home: MarketHome, process: subprocess.Popen[bytes], log: Path, progress: Progress
) -> MarketState:
    told = 0
    while True:
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[told:]:
            if not line.startswith(ERROR_PREFIX):
                progress(line)
        told = len(lines)
        if process.poll() is not None:
            errors = [line for line in lines if line.startswith(ERROR_PREFIX)] or lines[-1:]
            what = errors[-1].removeprefix(ERROR_PREFIX) if errors else "it said nothing"
            raise ConfigurationError(f"{what} (see {log})" if "see " not in what else what)
        state = home.read_state()
        if state is not None and state.supervisor.pid == process.pid:
            return state
        time.sleep(_POLL_S)


def stop_market(home: MarketHome, progress: Progress) -> int:
    """End a running market, however it was started; give how many processes it had.

    Raises: ConfigurationError if none runs, or if it does not end.
    """
    supervisor = home.read_supervisor()
    try:
        state = home.read_state()
    except ConfigurationError:  # damaged; the supervisor knows what it runs
        state = None
    if supervisor is None:
        home.require_state()  # raises: says what to do
        raise ConfigurationError(f"{home.path} does not say who runs its market")
    processes = [supervisor, *(state.processes if state is not None else ())]
    progress(f"stopping {len(processes)} processes")
    _signal(supervisor, signal.SIGTERM)
    give_up_s = time.monotonic() + STOP_S
    while home.is_held() or any(is_alive(process) for process in processes if process.pid):
        if time.monotonic() > give_up_s:
            names = ", ".join(f"{p.name} ({p.pid})" for p in processes if is_alive(p))
            raise ConfigurationError(f"still running after {STOP_S:.0f} s: {names}")
        time.sleep(_POLL_S)
    return len(processes)


def _signal(process: ProcessRecord, number: signal.Signals) -> None:
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _watch_forever(_market: LocalMarket) -> None:
    await asyncio.Event().wait()


def main() -> None:
    """Be the supervisor of one market."""
    parser = argparse.ArgumentParser(prog="python -m node.local_market.supervise")
    parser.add_argument("home", type=Path)
    parser.add_argument("plan", help="a MarketPlan as JSON")
    chosen = parser.parse_args()
    plan = msgspec.json.decode(chosen.plan, type=MarketPlan)
    try:
        asyncio.run(supervise(LocalMarket(chosen.home), plan, _tell, _watch_forever, _tell))
    except IemasError as error:
        _tell(ERROR_PREFIX + " ".join(str(error).split()))
        sys.exit(1)


if __name__ == "__main__":
    main()
