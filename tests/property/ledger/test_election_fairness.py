"""The election on random stakes. Source: docs/spec/election.md R1 to R7."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from iemas.core.election import Candidate, compute_next_auctioneer, compute_term
from iemas.core.types import HubId, NodeId

stakes = st.lists(st.integers(1, 50), min_size=1, max_size=6)


def make_candidates(weights: list[int]) -> tuple[Candidate, ...]:
    return tuple(Candidate(NodeId(bytes([i]) * 32), weight) for i, weight in enumerate(weights))


@given(stakes)
def test_each_has_its_share_of_a_full_cycle(weights: list[int]) -> None:
    candidates = make_candidates(weights)
    counts: Counter[bytes] = Counter()
    current = candidates
    for number in range(sum(weights)):
        term, current = compute_term(HubId("hub"), number, current, started_at_ms=0)
        counts[term.auctioneer] += 1
    assert [counts[candidate.node_id] for candidate in candidates] == weights


@given(stakes, st.randoms())
def test_the_order_of_candidates_does_not_matter(weights: list[int], random: object) -> None:
    candidates = list(make_candidates(weights))
    expected = compute_term(HubId("hub"), 0, candidates, started_at_ms=0)
    random.shuffle(candidates)  # type: ignore[attr-defined]
    assert compute_term(HubId("hub"), 0, candidates, started_at_ms=0) == expected


@given(stakes, st.integers(1, 4))
def test_nobody_has_more_terms_in_a_row_than_the_cap(weights: list[int], cap: int) -> None:
    current = make_candidates(weights)
    last, consecutive = None, 0
    for number in range(60):
        term, current = compute_term(
            HubId("hub"),
            number,
            current,
            started_at_ms=0,
            sitting_out=last if consecutive >= cap else None,
        )
        consecutive = consecutive + 1 if term.auctioneer == last else 1
        last = term.auctioneer
        assert consecutive <= cap or len(weights) == 1


@given(stakes)
def test_auctioneer_witness_and_next_are_consistent(weights: list[int]) -> None:
    current = make_candidates(weights)
    foreseen = None
    for number in range(30):
        term, current = compute_term(HubId("hub"), number, current, started_at_ms=0)
        assert foreseen in (None, term.auctioneer)
        assert (term.witness is None) == (len(weights) == 1)
        assert term.witness != term.auctioneer
        foreseen = compute_next_auctioneer(current)
        if foreseen != term.auctioneer:
            assert term.witness == foreseen
