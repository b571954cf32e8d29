"""The pure requester: seals bids, meters tasks, keeps totals, splices conversations.

No I/O, no clock, no randomness of its own: time, entropy and keys come in as arguments, messages go
out as values. The SDK drives these machines over gRPC, a simulation drives them in one thread:

>>> from iemas import wire
>>> from iemas.core.identity import Identity
>>> channel = Channel(wire.WireSigner(Identity(bytes(32)), "example-chain"), ChannelId(7))
>>> channel.take_nonce(HubId("smollm2"), 0), channel.take_nonce(HubId("smollm2"), 0)
(1, 2)
"""

from __future__ import annotations

from iemas.client._bidding import (
    ENTROPY_BYTES,
    OUTCOME_STUCK_SECONDS,
    STUCK_SECONDS,
    PendingBid,
    TermInfo,
    choose_helpers,
    make_bid_submission,
)
from iemas.client._channel import Channel
from iemas.client._metering import TaskMeter
from iemas.client._splicing import Turn, TurnMemory, splice_prompt
from iemas.core.types import ChannelId, HubId

__all__ = [
    "ENTROPY_BYTES",
    "OUTCOME_STUCK_SECONDS",
    "STUCK_SECONDS",
    "Channel",
    "ChannelId",
    "HubId",
    "PendingBid",
    "TaskMeter",
    "TermInfo",
    "Turn",
    "TurnMemory",
    "choose_helpers",
    "make_bid_submission",
    "splice_prompt",
]
