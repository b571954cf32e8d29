"""Election: whose turn it is to clear a hub, and who keeps the other half of each bid's key.

Weighted round-robin over the live validators, computed from ledger state alone. The rule is
CometBFT's proposer priority with a cap on consecutive terms; requirements R1 to R7 and worked
tables are in docs/spec/election.md. All arithmetic is on integers; ties go to the lowest id.

Source: cometbft `spec/consensus/proposer-selection.md`; design §7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iemas.core.errors import LocalProtocolError
from iemas.core.types import HubId, NodeId

PRIORITY_WINDOW_FACTOR = 2
"""Priorities are scaled down once they spread over more than this many total stakes."""

MAX_FORESEEN_TURNS = 100
"""How many turns are simulated in search of a witness before the highest other one is taken."""


@dataclass(frozen=True, slots=True)
class Term:
    """One auctioneer's turn in a hub. `witness` is None where no second validator is live.

    `started_at_ms` is ledger time: the time of the block that started the term.
    """

    hub: HubId
    number: int
    auctioneer: NodeId
    witness: NodeId | None
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live validator with its stake and its place in the round-robin."""

    node_id: NodeId
    stake_micros: int
    priority: int = 0


def compute_newcomer_priority(total_stake_micros: int) -> int:
    """Give the priority that a validator (re)joins with: −1.125 of the total stake (R5).

    `total_stake_micros` includes the newcomer. So nobody gains a turn by leaving and returning.
    """
    return -(total_stake_micros + (total_stake_micros >> 3))


def compute_turn(
    candidates: Sequence[Candidate], *, sitting_out: NodeId | None = None
) -> tuple[NodeId, tuple[Candidate, ...]]:
    """Give whose turn it is, and the candidates in id order with their priorities after it.

    Args:
        candidates: everyone in the round-robin.
        sitting_out: who takes no part in this turn, neither gaining nor losing by it (R7); it has
            its turn all the same if there is nobody else.

    Raises: LocalProtocolError if there is no candidate.

    """
    if not candidates:
        raise LocalProtocolError("an election needs at least one live validator")
    normalised = _normalise(sorted(candidates, key=lambda candidate: candidate.node_id))
    taking_part = [c for c in normalised if c.node_id != sitting_out] or normalised
    total = sum(candidate.stake_micros for candidate in taking_part)
    # `max` keeps the first of equals, which in id order is the lowest id (R4).
    chosen = max(taking_part, key=lambda c: c.priority + c.stake_micros).node_id
    gains = {candidate.node_id: candidate.stake_micros for candidate in taking_part}
    gains[chosen] -= total
    return chosen, tuple(
        replace(candidate, priority=candidate.priority + gains.get(candidate.node_id, 0))
        for candidate in normalised
    )


def compute_witness(auctioneer: NodeId, candidates: Sequence[Candidate]) -> NodeId | None:
    """Give the next validator in line that is not the auctioneer, or None if there is none (R6).

    `candidates` are those that `compute_turn` gave back with the auctioneer.
    """
    if all(candidate.node_id == auctioneer for candidate in candidates):
        return None
    for _ in range(MAX_FORESEEN_TURNS):
        upcoming, candidates = compute_turn(candidates)
        if upcoming != auctioneer:
            return upcoming
    # A stake that dwarfs all others would be simulated for ages; the next in line is known.
    others = [candidate for candidate in candidates if candidate.node_id != auctioneer]
    return max(others, key=lambda candidate: candidate.priority).node_id


def compute_term(
    hub: HubId,
    number: int,
    candidates: Sequence[Candidate],
    *,
    started_at_ms: int,
    sitting_out: NodeId | None = None,
) -> tuple[Term, tuple[Candidate, ...]]:
    """Elect auctioneer and witness of a term; give also the candidates for the next one.

    `sitting_out` has been auctioneer as often in a row as anyone may be (R7).
    Raises: LocalProtocolError if there is no candidate.
    """
    auctioneer, after = compute_turn(candidates, sitting_out=sitting_out)
    witness = compute_witness(auctioneer, after)
    return Term(hub, number, auctioneer, witness, started_at_ms), after


def compute_next_auctioneer(
    candidates: Sequence[Candidate], *, sitting_out: NodeId | None = None
) -> NodeId:
    """Foresee the auctioneer of the next term, as long as the live validators stay the same.

    `candidates` are those that `compute_term` gave back with the current term, `sitting_out` who
    has reached the cap with it (R7).
    Raises: LocalProtocolError if there is no candidate.
    """
    return compute_turn(candidates, sitting_out=sitting_out)[0]


def _normalise(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Bound the spread of the priorities (R2), then centre them around zero (R3)."""
    priorities = [candidate.priority for candidate in candidates]
    window = PRIORITY_WINDOW_FACTOR * sum(candidate.stake_micros for candidate in candidates)
    spread = max(priorities) - min(priorities)
    if spread > window:
        ratio = -(-spread // window)
        priorities = [_truncate(priority, ratio) for priority in priorities]
    average = sum(priorities) // len(priorities)
    return [
        replace(candidate, priority=priority - average)
        for candidate, priority in zip(candidates, priorities, strict=True)
    ]


def _truncate(dividend: int, divisor: int) -> int:
    """Divide towards zero, as CometBFT does, so that no sign is favoured."""
    return -(-dividend // divisor) if dividend < 0 else dividend // divisor
