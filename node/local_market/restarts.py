"""When a node that ended by itself is started again.

A crash must not thin out a market of four that bears one fault, and a node that cannot run must not
be started for ever. Pure.
"""

from __future__ import annotations

from typing import Final

DELAYS_S: Final = (1.0, 5.0, 25.0)
"""Before the first, second and third time; then the node stays down."""

STEADY_S: Final = 60.0
"""A node that ran for so long has all its restarts before it again."""


class Restarts:
    """Counts each node's restarts. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._started_s: dict[str, float] = {}

    def note_start(self, name: str, *, now_s: float) -> None:
        """Remember when a node was started again."""
        self._started_s[name] = now_s

    def note_end(self, name: str, *, now_s: float) -> float | None:
        """Give how long to wait before a node that ended is started again; None for never."""
        if now_s - self._started_s.get(name, 0.0) >= STEADY_S:
            self._used[name] = 0
        used = self._used.get(name, 0)
        if used == len(DELAYS_S):
            return None
        self._used[name] = used + 1
        return DELAYS_S[used]
