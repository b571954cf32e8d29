"""What follows from a transcript for each bidder. Source: docs/spec/round.md §4; design §4, §5."""

from __future__ import annotations

import pytest

from iemas.core.auction import Allocation, Unmatched
from iemas.core.digest import compute_block_keys
from iemas.core.params import MarketParams
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import Lateness, Prices, UnmatchedReason
from iemas.testing.builders import ASK, BLOCK_SIZE, ONE
from tests.unit.auctioneer.round_bench import RoundBench


def clear_one(bench: RoundBench, **changes: object) -> Allocation:
    (outcome,) = bench.clear(bench.seal(**changes))
    assert isinstance(outcome, Allocation)
    return outcome


def clear_unmatched(bench: RoundBench, **changes: object) -> Unmatched:
    (outcome,) = bench.clear(bench.seal(**changes))
    assert isinstance(outcome, Unmatched)
    return outcome


# --- terms of an allocation ----------------------------------------------------------------------


def test_with_free_slots_the_price_is_the_expected_cost(bench: RoundBench) -> None:
    """Two providers of one kind add nothing to each other: no surcharge."""
    allocation = clear_one(bench)
    assert allocation.price_micros == 100 + 50
    assert allocation.rates == ASK


def test_a_scarce_slot_costs_what_the_loser_would_have_brought() -> None:
    """Client mode: the slot price, here what the other bid would have brought."""
    bench = RoundBench(params=MarketParams(mode="client"))
    bench.add_provider("node-1", slots=1)
    lower = Prices(2 * ONE, 2 * ONE, 2 * ONE)
    winner, loser = bench.clear(bench.seal(), bench.seal("bob", prices=lower))
    assert isinstance(winner, Allocation)
    assert isinstance(loser, Unmatched)
    assert winner.price_micros == 150 + 150


def test_a_provider_is_paid_what_the_next_best_would_have_cost() -> None:
    """Provider mode: a Vickrey auction among the providers, above cost where one is better."""
    bench = RoundBench(params=MarketParams(mode="provider"))
    bench.add_provider("node-1")
    bench.add_provider("node-2", ask=Prices(2 * ONE, 2 * ONE, 2 * ONE))
    allocation = clear_one(bench)
    assert allocation.provider == bench.chain.get_id("node-1")
    assert allocation.price_micros == 2 * 150


def test_an_only_provider_is_paid_towards_the_bid() -> None:
    bench = RoundBench(params=MarketParams(mode="provider"))
    bench.add_provider("node-1")
    assert clear_one(bench).price_micros == 4 * 150


def test_rates_never_exceed_the_bid(bench: RoundBench) -> None:
    bench.add_provider("node-1", slots=1)
    del bench.market.views["node-2"]
    prices = Prices(2 * ONE, 6 * ONE, 9 * ONE)
    outcomes = bench.clear(bench.seal(prices=prices), bench.seal("bob"))
    (won,) = [outcome for outcome in outcomes if isinstance(outcome, Allocation)]
    assert prices.covers(won.rates)


def test_the_reservation_is_the_worst_case_at_the_rates(bench: RoundBench) -> None:
    allocation = clear_one(bench)
    assert allocation.reserved_micros == compute_worst_case_micros(allocation.rates, 100, 50)


def test_an_allocation_expires(bench: RoundBench) -> None:
    allocation = clear_one(bench)
    assert allocation.expires_at_ms == bench.now_ms + bench.params.allocation_ttl_ms


def test_the_bidders_lateness_travels_with_the_allocation(bench: RoundBench) -> None:
    assert clear_one(bench, lateness=Lateness(900, 100)).lateness == Lateness(900, 100)


# --- what a channel may settle -------------------------------------------------------------------


def test_channel_reservations_add_up_within_a_round() -> None:
    bench = RoundBench()
    bench.add_provider("node-1")
    first, second = bench.clear(bench.seal(), bench.seal())
    assert first.channel_reserved_micros == first.reserved_micros
    assert second.channel_reserved_micros == first.reserved_micros + second.reserved_micros


def test_channel_reservations_add_up_over_rounds() -> None:
    bench = RoundBench()
    bench.add_provider("node-1")
    first, second = clear_one(bench), clear_one(bench)
    assert second.channel_reserved_micros == first.reserved_micros + second.reserved_micros


def test_channels_reserve_each_for_itself() -> None:
    bench = RoundBench()
    bench.add_provider("node-1")
    outcomes = bench.clear(bench.seal(channel=1), bench.seal(channel=2), bench.seal("bob"))
    assert len({outcome.channel_reserved_micros for outcome in outcomes}) == 1


def test_a_channel_reserves_at_each_provider_for_itself(bench: RoundBench) -> None:
    bench.add_provider("node-1", slots=1)
    bench.add_provider("node-2", slots=1)
    first, second = bench.clear(bench.seal(), bench.seal())
    assert first.provider != second.provider
    assert second.channel_reserved_micros == second.reserved_micros


# --- cached tokens -------------------------------------------------------------------------------

PROMPT = compute_block_keys((1,) * 100, BLOCK_SIZE)


def test_the_provider_with_the_prefix_wins() -> None:
    bench = RoundBench()
    bench.add_provider("node-1")
    warm = bench.add_provider("node-2", blocks=b"".join(sorted(split(PROMPT))))
    allocation = clear_one(bench, chain=PROMPT)
    assert allocation.provider == warm
    assert allocation.cached_tokens == 6 * BLOCK_SIZE


def split(keys: bytes) -> list[bytes]:
    return [keys[i : i + 8] for i in range(0, len(keys), 8)]


def test_only_leading_blocks_count() -> None:
    bench = RoundBench()
    bench.add_provider("node-1", blocks=b"".join(sorted(split(PROMPT)[1:])))
    assert clear_one(bench, chain=PROMPT).cached_tokens == 0


def test_with_affinity_off_nothing_counts_as_cached() -> None:
    """Measured against a market without it; the transcript still names the matched blocks."""
    bench = RoundBench(params=MarketParams(cache_affinity=False))
    bench.add_provider("node-1", blocks=b"".join(sorted(split(PROMPT))))
    assert clear_one(bench, chain=PROMPT).cached_tokens == 0
    assert bench.transcripts[-1].message.tasks[0].matched_blocks == (6,)
    bench.verify()


# --- why there is none ---------------------------------------------------------------------------


def test_no_provider() -> None:
    assert clear_unmatched(RoundBench()).reason is UnmatchedReason.NO_PROVIDER


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "another"},
        {"prompt_tokens": 4096},
        {"prices": Prices(ONE - 1, 4 * ONE, 4 * ONE)},
        {"reservation_micros": 599},
    ],
    ids=["model", "context", "ask not covered", "reservation below worst case"],
)
def test_infeasible_everywhere(bench: RoundBench, changes: dict[str, object]) -> None:
    outcome = clear_unmatched(bench, **changes)
    assert outcome.reason is UnmatchedReason.INFEASIBLE
    assert outcome.price_to_beat_micros == 0


def test_outbid_names_what_it_would_have_taken() -> None:
    bench = RoundBench()
    bench.add_provider("node-1", slots=1)
    lower = Prices(3 * ONE, 3 * ONE, 3 * ONE)
    _, loser = bench.clear(bench.seal(), bench.seal("bob", prices=lower))
    assert isinstance(loser, Unmatched)
    assert loser.reason is UnmatchedReason.OUTBID
    # The winner's welfare is 600 - 150, the loser's 450 - 150, and its own sets the slot price.
    assert bench.transcripts[-1].message.clearing.slot_prices_micros == (300,)
    assert loser.price_to_beat_micros == 1


def test_a_full_provider_cannot_be_had_at_any_price() -> None:
    bench = RoundBench()
    bench.add_provider("node-1", slots=1, load={"active": (bytes(32),)})
    outcome = clear_unmatched(bench)
    assert outcome.reason is UnmatchedReason.NO_PROVIDER
    assert outcome.price_to_beat_micros == 0


def test_a_full_provider_sets_no_price_to_beat() -> None:
    bench = RoundBench()
    bench.add_provider("node-1", slots=1)
    bench.add_provider("node-2", slots=1, load={"active": (bytes(32),)})
    lower = Prices(3 * ONE, 3 * ONE, 3 * ONE)
    _, loser = bench.clear(bench.seal(), bench.seal("bob", prices=lower, max_tokens=10))
    assert isinstance(loser, Unmatched)
    (index,) = [n for n, p in enumerate(bench.transcripts[-1].message.providers) if p.free_slots]
    price = bench.transcripts[-1].message.clearing.slot_prices_micros[index]
    assert loser.price_to_beat_micros == price - 220 + 1


def test_a_late_answer_is_worth_less(bench: RoundBench) -> None:
    """A bid whose deadline no provider can meet is worth nothing."""
    outcome = clear_unmatched(bench, lateness=Lateness(1, 0))
    assert outcome.reason is UnmatchedReason.INFEASIBLE
