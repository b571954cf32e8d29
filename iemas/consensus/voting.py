"""What validators sign: proposals and votes; and the proof that one signed two votes.

They travel signed: the proposer and the voter are the envelope's signer.
Source: Buchman, Kwon, Milosevic 2018 (arXiv 1807.04938); docs/spec/consensus.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.envelope import Signed
from iemas.core.types import Hash, require, require_id
from iemas.core.vote import MAX_ROUND, Vote, VoteKind, require_place

__all__ = ["MAX_ROUND", "NO_ROUND", "DoubleVote", "Proposal", "Vote", "VoteKind"]

NO_ROUND = -1
"""The round of nothing: what the paper writes as -1."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The proposer of a round proposes a block, named by its hash.

    `valid_round` is the earlier round in which the proposer saw a quorum of prevotes for it (its
    *proof of lock*), `NO_ROUND` if there was none. The block itself travels beside the proposal.
    """

    height: int
    round: int
    block_hash: Hash
    valid_round: int = NO_ROUND

    def __post_init__(self) -> None:
        require_place(self.height, self.round)
        require_id("block_hash", self.block_hash)
        require(
            NO_ROUND <= self.valid_round < self.round,
            f"valid_round must be before round {self.round}, got {self.valid_round}",
        )


@dataclass(frozen=True, slots=True)
class DoubleVote:
    """Evidence: two votes of one signer, round and kind for different values, nil first.

    Whoever gets it from others checks both signatures. Raises: MalformedMessageError if the votes
    do not contradict each other or are not in order.
    """

    first: Signed[Vote]
    second: Signed[Vote]

    def __post_init__(self) -> None:
        one, other = self.first.message, self.second.message
        require(
            (one.height, one.round, one.kind) == (other.height, other.round, other.kind)
            and self.first.signer_id == self.second.signer_id,
            "evidence needs two votes of one signer, height, round and kind",
        )
        require(
            (one.block_hash or b"") < (other.block_hash or b""),
            "evidence needs votes for two values, in order",
        )
