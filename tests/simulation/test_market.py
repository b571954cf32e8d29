"""A whole market under simulated clock, network and disk: one thread, one seed."""

from __future__ import annotations

from collections import Counter

import pytest

from iemas.core.params import MarketParams
from iemas.ledger.transfer import TREASURY
from iemas.testing.network import NetworkFaults
from tests.simulation.market import SimulatedMarket
from tests.simulation.market_node import BLOCK_SIZE, HUB


def run_market(seed: int, **options: object) -> SimulatedMarket:
    market = SimulatedMarket(seed, **options)
    market.start()
    market.run_conversations()
    market.settle()
    return market


@pytest.fixture(scope="module")
def market() -> SimulatedMarket:
    return run_market(1)


def get_cached_share(market: SimulatedMarket) -> float:
    """The share of the previous prompts' full blocks that the backends found cached."""
    rows = [row for r in market.requesters for row in r.results if row.turn > 1]
    full = [row.previous_prompt_tokens // BLOCK_SIZE * BLOCK_SIZE for row in rows]
    cached = [min(row.cached_tokens, tokens) for row, tokens in zip(rows, full, strict=True)]
    return sum(cached) / sum(full)


def test_every_conversation_completes(market: SimulatedMarket) -> None:
    assert [len(requester.results) for requester in market.requesters] == [4, 4, 4, 4]


def test_same_seed_same_market() -> None:
    first, second = run_market(2), run_market(2)
    assert [r.results for r in first.requesters] == [r.results for r in second.requesters]
    assert first.log == second.log
    roots = {node.core.engine.state_root for node in first.nodes.values()}
    assert roots == {node.core.engine.state_root for node in second.nodes.values()}


def test_another_seed_is_another_market(market: SimulatedMarket) -> None:
    assert run_market(3).log != market.log


def test_money_is_conserved(market: SimulatedMarket) -> None:
    issued = sum(v.stake_micros for v in market.genesis.validators) + sum(
        a.available_micros + a.escrow_micros for a in market.genesis.accounts
    )
    for node in market.nodes.values():
        assert node.core.state.get_total_money() == issued


def test_one_state_root(market: SimulatedMarket) -> None:
    assert len({node.core.engine.state_root for node in market.nodes.values()}) == 1


def test_providers_are_paid_what_receipts_say(market: SimulatedMarket) -> None:
    state = market.nodes["observer"].core.state
    for name, node in market.nodes.items():
        earned = sum(
            row.amount_micros
            for requester in market.requesters
            for row in requester.results
            if row.winner == name
        )
        assert state.get_balance(node.node_id, HUB)[0] == earned


def test_every_terms_books_close_and_fees_reach_the_treasury() -> None:
    market = run_market(4, providers=2, turns=16)
    rounds = market.get_transcripts()
    auctioneers = Counter(auctioneer for auctioneer, _ in {(t.auctioneer, t.term) for t in rounds})
    assert max(auctioneers.values()) >= 2  # someone closed the books of two terms
    last_nonces: dict[tuple[bytes, int, int], int] = {}
    for transcript in rounds:
        for task in transcript.tasks:
            bid = task.sealed_bid.message
            key = (bid.account, bid.channel, bid.term)
            last_nonces[key] = max(last_nonces.get(key, 0), bid.nonce)
    treasury = market.nodes["observer"].core.state.get_funds(TREASURY)
    assert treasury == sum(last_nonces.values()) * market.genesis.params.bid_fee_micros


def test_every_round_is_verified_by_every_node(market: SimulatedMarket) -> None:
    cleared = market.events.count("round_cleared")
    assert cleared > 0
    for node in market.nodes.values():
        assert node.core.rounds.verdicts == Counter(verified=cleared)


def test_auctioneer_rotates(market: SimulatedMarket) -> None:
    terms = {fields["term"] for _, _, name, fields in market.log if name == "round_cleared"}
    assert len(terms) >= 1
    auctioneers = [
        fields["auctioneer"]
        for _, node, name, fields in market.log
        if name == "term_began" and node == "observer"
    ]
    assert len(set(auctioneers)) >= 2


def test_affinity_comes_from_digests_and_prices(market: SimulatedMarket) -> None:
    without = run_market(1, requesters=8, params=MarketParams(cache_affinity=False))
    assert get_cached_share(market) >= 0.8
    assert get_cached_share(without) < 0.6


@pytest.mark.parametrize("seed", [11, 12])
def test_bad_network_loses_nothing(seed: int) -> None:
    faults = NetworkFaults(most_delay_ms=80, loss_ppm=20_000, duplication_ppm=20_000)
    market = run_market(seed, faults=faults)
    assert market.network.counts["lost"] > 0
    assert all(requester.done for requester in market.requesters)
    assert len({node.core.engine.state_root for node in market.nodes.values()}) == 1


def test_auctioneer_dies_and_market_goes_on() -> None:
    market = SimulatedMarket(21)
    market.start()
    market.clock.run_until(market.clock.now_ms + 2_000)
    term = market.get_view().core.state.get_term(HUB)
    market.by_id[term.auctioneer].crash()
    died_at_ms = market.clock.now_ms
    market.run_conversations()
    began_at_ms = next(
        at_ms
        for at_ms, _, name, fields in market.log
        if name == "term_began" and fields["term"] == term.number + 1
    )
    assert began_at_ms - died_at_ms <= 3_000
    assert all(requester.done for requester in market.requesters)


def test_crashed_node_comes_back_and_catches_up() -> None:
    market = SimulatedMarket(22)
    market.start()
    node = market.nodes["node1"]
    market.clock.call_later(1_500, node.crash)
    market.clock.call_later(9_000, node.start)
    market.run_conversations()
    market.settle()
    assert len({node.core.engine.state_root for node in market.nodes.values()}) == 1
    assert all(requester.done for requester in market.requesters)
