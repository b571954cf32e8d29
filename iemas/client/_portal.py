"""One background event loop for all sync clients of a process.

gRPC's asyncio side wants one loop a process, so sync clients share a thread that runs it: it starts
with the first client and stops with the last. A forgotten client is closed when Python exits.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from iemas.core.errors import LocalProtocolError

T = TypeVar("T")
STOP_SECONDS = 5.0

_lock = threading.Lock()
_shared: list[_LoopThread] = []
_live: weakref.WeakSet[Portal] = weakref.WeakSet()


class _LoopThread:
    """The thread, its loop, and how many portals use it."""

    def __init__(self) -> None:
        self.users = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="iemas-client", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(STOP_SECONDS)


class Portal:
    """A sync client's way to the shared loop.

    Args:
        on_exit: run on the loop when Python exits and nobody closed the portal.

    """

    def __init__(self, on_exit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with _lock:
            if not _shared:
                _shared.append(_LoopThread())
            self._thread: _LoopThread | None = _shared[0]
            self._thread.users += 1
        self._on_exit = on_exit
        _live.add(self)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop and wait for it; Ctrl-C cancels it there, too.

        Raises: whatever the coroutine raises; LocalProtocolError after `stop`.
        """
        thread = self._thread
        if thread is None:
            raise LocalProtocolError("the client is closed")
        if threading.current_thread() is thread.thread:
            raise LocalProtocolError("a sync client cannot be used on its own event loop")
        future = asyncio.run_coroutine_threadsafe(work(), thread.loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                _cancel(future)
            raise

    def stop(self) -> None:
        """Let go of the loop; the last one stops it."""
        with _lock:
            thread, self._thread = self._thread, None
            _live.discard(self)
            if thread is None:
                return
            thread.users -= 1
            last = thread.users == 0
            if last:
                _shared.clear()
        if last:
            thread.stop()

    def exit(self) -> None:
        """Close what a forgotten client holds."""
        with contextlib.suppress(Exception):
            self.run(self._on_exit)
        self.stop()


def _cancel(future: Future[Any]) -> None:
    """Cancel the work and give it a moment to tell the provider."""
    future.cancel()
    with contextlib.suppress(FutureCancelledError, FutureTimeoutError, Exception):
        future.result(timeout=0.1)


@atexit.register
def _exit() -> None:
    for portal in list(_live):
        portal.exit()
