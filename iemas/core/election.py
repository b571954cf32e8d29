"""Election: whose turn it is to clear a hub, and who keeps the other half of each bid's key.

Weighted round-robin over the live validators, computed from ledger state alone. The rule is
CometBFT's proposer priority; requirements R1 to R6 and a worked table are in
docs/spec/election.md. All arithmetic is on integers, and ties go to the lowest id.

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


def compute_turn(candidates: Sequence[Candidate]) -> tuple[NodeId, tuple[Candidate, ...]]:
    """Give whose turn it is, and the candidates in id order with their priorities after it.

    Raises: LocalProtocolError if there is no candidate.
    """
    if not candidates:
        raise LocalProtocolError("an election needs at least one live validator")
    ordered = sorted(candidates, key=lambda candidate: candidate.node_id)
    total = sum(candidate.stake_micros for candidate in ordered)
    raised = [
        replace(candidate, priority=priority + candidate.stake_micros)
        for candidate, priority in zip(ordered, _normalise(ordered, total), strict=True)
    ]
    # `max` keeps the first of equals, which in id order is the lowest id (R4).
    chosen = max(raised, key=lambda candidate: candidate.priority).node_id
    return chosen, tuple(
        replace(candidate, priority=candidate.priority - total)
        if candidate.node_id == chosen
        else candidate
        for candidate in raised
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
    hub: HubId, number: int, candidates: Sequence[Candidate], *, started_at_ms: int
) -> tuple[Term, tuple[Candidate, ...]]:
    """Elect auctioneer and witness of a term; give also the candidates for the next one.

    Raises: LocalProtocolError if there is no candidate.
    """
    auctioneer, after = compute_turn(candidates)
    witness = compute_witness(auctioneer, after)
    return Term(hub, number, auctioneer, witness, started_at_ms), after


def compute_next_auctioneer(candidates: Sequence[Candidate]) -> NodeId:
    """Foresee the auctioneer of the next term, as long as the live validators stay the same.

    `candidates` are those that `compute_term` gave back with the current term.
    Raises: LocalProtocolError if there is no candidate.
    """
    return compute_turn(candidates)[0]


def _normalise(ordered: Sequence[Candidate], total: int) -> list[int]:
    """Bound the spread of the priorities (R2), then centre them around zero (R3)."""
    priorities = [candidate.priority for candidate in ordered]
    window = PRIORITY_WINDOW_FACTOR * total
    spread = max(priorities) - min(priorities)
    if spread > window:
        ratio = -(-spread // window)
        priorities = [_truncate(priority, ratio) for priority in priorities]
    average = sum(priorities) // len(priorities)
    return [priority - average for priority in priorities]


def _truncate(dividend: int, divisor: int) -> int:
    """Divide towards zero, as CometBFT does, so that no sign is favoured."""
    return -(-dividend // divisor) if dividend < 0 else dividend // divisor
