"""A simulated clock with its timers: time passes only when nothing is left to do now."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from iemas.core.errors import LocalProtocolError


class SimulatedClock:
    """Runs callbacks in order of their time; those of one time in the order they were set.

    Example:
        >>> clock = SimulatedClock(start_ms=1000)
        >>> clock.call_at(1500, lambda: print(clock.now_ms))
        >>> clock.run_until(2000)
        1500
    """

    def __init__(self, *, start_ms: int) -> None:
        self.now_ms = start_ms
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def call_at(self, at_ms: int, callback: Callable[[], None]) -> None:
        """Run the callback at a time; a time that has passed means as soon as possible."""
        heapq.heappush(self._timers, (max(at_ms, self.now_ms), next(self._order), callback))

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> None:
        """Run the callback after a delay."""
        self.call_at(self.now_ms + delay_ms, callback)

    def run_until(self, end_ms: int, *, until: Callable[[], bool] | None = None) -> None:
        """Run all timers up to a time, or until a condition holds.

        Raises: LocalProtocolError if a condition was given and does not hold by then.
        """
        while self._timers and self._timers[0][0] <= end_ms:
            if until is not None and until():
                return
            self.now_ms, _, callback = heapq.heappop(self._timers)
            callback()
        self.now_ms = max(self.now_ms, end_ms)
        if until is not None and not until():
            raise LocalProtocolError(f"the condition does not hold at {end_ms} ms")
