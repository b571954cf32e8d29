"""The election rule. Source: docs/spec/election.md."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from iemas.core.election import (
    Candidate,
    Term,
    compute_newcomer_priority,
    compute_next_auctioneer,
    compute_term,
    compute_turn,
    compute_witness,
)
from iemas.core.errors import LocalProtocolError
from iemas.core.types import HubId, NodeId

A, B, C = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
HUB = HubId("hub")


def run_terms(candidates: tuple[Candidate, ...], count: int) -> list[Term]:
    terms = []
    for number in range(count):
        term, candidates = compute_term(HUB, number, candidates, started_at_ms=number)
        terms.append(term)
    return terms


def get_priorities(candidates: tuple[Candidate, ...]) -> tuple[int, ...]:
    return tuple(candidate.priority for candidate in candidates)


def test_worked_table_of_stakes_three_to_one() -> None:
    candidates: tuple[Candidate, ...] = (Candidate(A, 3), Candidate(B, 1))
    rows = []
    for number in range(5):
        term, candidates = compute_term(HUB, number, candidates, started_at_ms=0)
        rows.append((term.auctioneer, get_priorities(candidates), term.witness))
    assert rows == [
        (A, (-1, 1), B),
        (A, (-2, 2), B),
        (B, (1, -1), A),
        (A, (0, 0), B),
        (A, (-1, 1), B),
    ]


def test_worked_table_of_an_absence_and_a_return() -> None:
    candidates: tuple[Candidate, ...] = (Candidate(A, 1), Candidate(B, 1), Candidate(C, 1))
    rows = []
    for number in range(5):
        if number == 3:
            candidates = candidates[:2]
        if number == 4:
            candidates = (*candidates, Candidate(C, 1, compute_newcomer_priority(3)))
        term, candidates = compute_term(HUB, number, candidates, started_at_ms=0)
        rows.append((term.auctioneer, get_priorities(candidates), term.witness))
    assert rows == [
        (A, (-2, 1, 1), B),
        (B, (-1, -1, 2), C),
        (C, (0, 0, 0), A),
        (A, (-1, 1), B),
        (B, (1, 0, -1), A),
    ]


def test_worked_table_of_the_cap() -> None:
    candidates: tuple[Candidate, ...] = (Candidate(A, 7), Candidate(B, 1))
    rows, consecutive = [], 0
    for number in range(7):
        sitting_out = A if consecutive == 3 else None
        term, candidates = compute_term(
            HUB, number, candidates, started_at_ms=0, sitting_out=sitting_out
        )
        consecutive = consecutive + 1 if term.auctioneer == A else 0
        rows.append((term.auctioneer, get_priorities(candidates), term.witness))
    assert rows == [
        (A, (-1, 1), B),
        (A, (-2, 2), B),
        (A, (-3, 3), B),
        (B, (-3, 3), A),
        (A, (-4, 4), B),
        (B, (3, -3), A),
        (A, (2, -2), B),
    ]


def test_who_sits_out_neither_gains_nor_loses_by_the_turn() -> None:
    candidates = (Candidate(A, 90, -4), Candidate(B, 2, 1), Candidate(C, 1, 3))
    chosen, after = compute_turn(candidates, sitting_out=A)
    assert chosen == C
    assert get_priorities(after) == (-4, 3, 1)


def test_a_lone_validator_has_its_turn_although_it_should_sit_out() -> None:
    assert compute_turn((Candidate(A, 7),), sitting_out=A)[0] == A


def test_turns_follow_the_stakes_exactly_over_a_cycle() -> None:
    stakes = {A: 5, B: 3, C: 2}
    terms = run_terms(tuple(Candidate(node, stake) for node, stake in stakes.items()), 10)
    assert Counter(term.auctioneer for term in terms) == stakes


def test_the_order_of_candidates_does_not_matter() -> None:
    forwards = run_terms((Candidate(A, 5), Candidate(B, 3), Candidate(C, 2)), 20)
    backwards = run_terms((Candidate(C, 2), Candidate(B, 3), Candidate(A, 5)), 20)
    assert forwards == backwards


def test_ties_go_to_the_lowest_id() -> None:
    assert compute_turn((Candidate(C, 1), Candidate(B, 1)))[0] == B


def test_the_witness_is_never_the_auctioneer() -> None:
    terms = run_terms((Candidate(A, 97), Candidate(B, 2), Candidate(C, 1)), 300)
    assert all(term.witness not in (None, term.auctioneer) for term in terms)


def test_a_dwarfed_validator_is_the_witness_nevertheless() -> None:
    _, after = compute_turn((Candidate(A, 2**53), Candidate(B, 1), Candidate(C, 2)))
    assert compute_witness(A, after) == C


def test_a_lone_validator_has_no_witness() -> None:
    _, after = compute_turn((Candidate(A, 7),))
    assert compute_witness(A, after) is None


def test_the_next_auctioneer_is_foreseen() -> None:
    candidates: tuple[Candidate, ...] = (Candidate(A, 5), Candidate(B, 3), Candidate(C, 2))
    for number in range(30):
        _, candidates = compute_term(HUB, number, candidates, started_at_ms=0)
        foreseen = compute_next_auctioneer(candidates)
        assert foreseen == compute_turn(candidates)[0]


def test_a_newcomer_waits_behind_everyone() -> None:
    candidates = (Candidate(A, 1), Candidate(B, 1), Candidate(C, 1, compute_newcomer_priority(3)))
    assert C not in [term.auctioneer for term in run_terms(candidates, 3)]


def test_the_spread_of_priorities_is_scaled_down() -> None:
    _, after = compute_turn((Candidate(A, 1, 1000), Candidate(B, 1, -1000)))
    priorities = get_priorities(after)
    assert max(priorities) - min(priorities) <= 2 * 2 + 2


def test_large_stakes_stay_exact() -> None:
    nodes = [NodeId(hashlib.sha256(bytes([n])).digest()) for n in range(10)]
    stakes = {node: 2**53 - n for n, node in enumerate(nodes)}
    terms = run_terms(tuple(Candidate(node, stake) for node, stake in stakes.items()), 100)
    counts = Counter(term.auctioneer for term in terms)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_no_candidate_is_an_error() -> None:
    with pytest.raises(LocalProtocolError):
        compute_turn(())
