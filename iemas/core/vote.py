"""A validator's vote on a block: what consensus counts, and what the ledger judges as evidence.

A vote travels signed; the voter is the envelope's signer.
Source: Buchman, Kwon, Milosevic 2018 (arXiv 1807.04938); docs/spec/consensus.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from iemas.core.types import Hash, require, require_id

MAX_ROUND = 2**31 - 1


class VoteKind(IntEnum):
    """What a vote says: "I accept this block", or "I saw a quorum accept it"."""

    UNSPECIFIED = 0
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Vote:
    """A validator's vote in one round, for a block by its hash or for none: `None` is nil."""

    height: int
    round: int
    kind: VoteKind
    block_hash: Hash | None

    def __post_init__(self) -> None:
        require_place(self.height, self.round)
        require(self.kind is not VoteKind.UNSPECIFIED, "a vote needs a kind")
        if self.block_hash is not None:
            require_id("block_hash", self.block_hash)


def require_place(height: int, round_number: int) -> None:
    """Refuse a height below 1, or a round outside 0..2^31-1. Raises: MalformedMessageError."""
    require(1 <= height < 2**63, f"heights count from 1, got {height}")
    require(0 <= round_number <= MAX_ROUND, f"round must be in 0..2^31-1, got {round_number}")
