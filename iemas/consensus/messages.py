"""Messages between the ordering engines of the nodes."""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.envelope import Signed
from iemas.ledger.transaction import Block, Transaction


@dataclass(frozen=True, slots=True)
class SubmitTransaction:
    """Please order this transaction."""

    transaction: Signed[Transaction]


@dataclass(frozen=True, slots=True)
class BlockAnnouncement:
    """A new block, from its proposer to every node."""

    block: Signed[Block]


@dataclass(frozen=True, slots=True)
class BlocksRequest:
    """Send me the blocks from this height on."""

    from_height: int


@dataclass(frozen=True, slots=True)
class BlocksResponse:
    """Consecutive blocks, at most a batch; `height` is the sender's own."""

    blocks: tuple[Signed[Block], ...]
    height: int
