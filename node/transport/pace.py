"""How fast a peer is listened to: a bucket of units that fills with time.

A peer that empties it is not read for a second; its messages then wait in the network, where flow
control makes their sender wait too. So one peer that floods takes no more than its share of this
node, and one whose messages piled up while this node stood still loses none of them. Pure.
"""

from __future__ import annotations

from typing import Final

from iemas.consensus.messages import (
    BlocksRequest,
    ChunksRequest,
    LightBlockRequest,
    RecallRequest,
    RecallResponse,
    SnapshotRequest,
    VoteNotice,
)
from iemas.core.auction import ModelRequest
from iemas.core.gossip import ExchangeRequest
from iemas.wire import PeerMessage

UNITS_PER_S: Final = 5_000
"""Several times what a validator sends under full load, and as much as a node can take in."""

MOST_UNITS: Final = 10_000
MESSAGE_UNITS: Final = 1
BYTES_PER_UNIT: Final = 16 * 1024
REQUEST_UNITS: Final = 50
"""Of what makes this node read, encode and send far more than it got: up to 7 ms of work."""

REQUESTS: Final = (
    BlocksRequest,
    ChunksRequest,
    ExchangeRequest,
    LightBlockRequest,
    ModelRequest,
    RecallRequest,
    SnapshotRequest,
)
STREAM_UNITS: Final = 1_000
"""Of opening a stream: its handshake costs more than many messages."""

PAUSE_S: Final = 1.0


def compute_units(message: PeerMessage, size: int) -> int:
    """Compute what a message of so many bytes costs: each vote in it as much as one by itself."""
    units = MESSAGE_UNITS + size // BYTES_PER_UNIT
    match message:
        case VoteNotice(votes):
            units += max(len(votes) - 1, 0)
        case RecallResponse(_, votes, proposals):
            units += len(votes) + len(proposals)
        case _ if isinstance(message, REQUESTS):
            units += REQUEST_UNITS
    return units


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
