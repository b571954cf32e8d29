"""How fast a peer is listened to: a bucket of units that fills with time.

A peer that empties it is not read for a second; its messages then wait in the network, where flow
control makes their sender wait too. So one peer that floods takes no more than its share of this
node, and one whose messages piled up while this node stood still loses none of them. Pure.
"""

from __future__ import annotations

from typing import Final

UNITS_PER_S: Final = 5_000
"""Several times what a validator sends under full load, and as much as a node can take in."""

MOST_UNITS: Final = 10_000
MESSAGE_UNITS: Final = 1
BYTES_PER_UNIT: Final = 16 * 1024
STREAM_UNITS: Final = 1_000
"""Of opening a stream: its handshake costs more than many messages."""

PAUSE_S: Final = 1.0


def compute_units(size: int) -> int:
    """Compute what a message of so many bytes costs."""
    return MESSAGE_UNITS + size // BYTES_PER_UNIT


class Pace:
    """One peer's bucket. Times are seconds of any one clock."""

    def __init__(self, now_s: float) -> None:
        self._units = float(MOST_UNITS)
        self._filled_at_s = now_s

    def take(self, units: int, *, now_s: float) -> bool:
        """Take units out; tell whether the bucket had them, or the peer has to wait `PAUSE_S`."""
        gained = (now_s - self._filled_at_s) * UNITS_PER_S
        self._units = min(self._units + gained, MOST_UNITS) - units
        self._filled_at_s = now_s
        return self._units >= 0
