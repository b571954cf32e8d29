"""Random rounds: every bidder can check its outcome, every node can re-check the round.

Source: docs/spec/round.md R3, R8, §3; design §5, §6.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auctioneer.books import TermBooks
from auctioneer.outcomes import derive_outcomes
from iemas.core.auction import Allocation, ClearingResult
from iemas.core.digest import compute_block_keys
from iemas.core.errors import InvalidTranscriptError
from iemas.core.params import MarketParams
from iemas.core.types import Lateness, Prices
from iemas.testing.builders import BLOCK_SIZE, ONE
from tests.unit.auctioneer.round_bench import RoundBench

PROMPT_TOKENS = 100
KEYS = compute_block_keys((1,) * PROMPT_TOKENS, BLOCK_SIZE)

prices = st.builds(Prices, *[st.integers(1, 5 * ONE)] * 3)
providers = st.lists(st.tuples(prices, st.integers(1, 3), st.booleans()), min_size=1, max_size=3)
bids = st.lists(
    st.fixed_dictionaries(
        {
            "account": st.sampled_from(["alice", "bob"]),
            "prices": prices,
            "max_tokens": st.integers(1, 100),
            "lateness": st.builds(Lateness, st.integers(0, 300), st.integers(0, 300)),
            "chain": st.sampled_from([b"", KEYS]),
        }
    ),
    min_size=1,
    max_size=6,
)


def run_rounds(
    sellers: list[tuple[Prices, int, bool]], rounds: list[list[dict[str, object]]]
) -> RoundBench:
    bench = RoundBench(params=MarketParams(ask_ratio_max=5 * ONE))
    resident = b"".join(sorted(KEYS[i : i + 8] for i in range(0, len(KEYS), 8)))
    for number, (ask, slots, warm) in enumerate(sellers, start=1):
        bench.add_provider(f"node-{number}", ask=ask, slots=slots, blocks=resident if warm else b"")
    for batch in rounds:
        bench.clear(*[bench.seal(**fields) for fields in batch])  # checks each outcome
    return bench


@settings(max_examples=60, deadline=None)
@given(providers, st.lists(bids, min_size=1, max_size=2))
def test_every_round_re_checks_and_gives_the_same_outcomes(
    sellers: list[tuple[Prices, int, bool]], rounds: list[list[dict[str, object]]]
) -> None:
    bench = run_rounds(sellers, rounds)
    assert bench.follow().get_holds() == bench.auctioneer.books.get_holds()


@settings(max_examples=60, deadline=None)
@given(providers, bids)
def test_allocations_keep_within_bid_ask_and_slots(
    sellers: list[tuple[Prices, int, bool]], batch: list[dict[str, object]]
) -> None:
    bench = run_rounds(sellers, [batch])
    cleared = bench.verify()
    outcomes = derive_outcomes(cleared, TermBooks(), bench.params)
    taken: dict[bytes, int] = {}
    for fields, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, Allocation):
            taken[outcome.provider] = taken.get(outcome.provider, 0) + 1
            assert isinstance(fields["prices"], Prices)
            assert fields["prices"].covers(outcome.rates)
            assert outcome.reserved_micros <= outcome.channel_reserved_micros
    for provider in bench.transcripts[-1].message.providers:
        node_id = provider.capability.message.stamp.node_id
        assert taken.get(node_id, 0) <= provider.free_slots


@settings(max_examples=60, deadline=None)
@given(providers, bids, st.data())
def test_no_other_clearing_of_a_round_passes_but_a_tie(
    sellers: list[tuple[Prices, int, bool]], batch: list[dict[str, object]], data: st.DataObject
) -> None:
    """Whatever number of the clearing is changed, it is refused or makes nobody pay more."""
    bench = run_rounds(sellers, [batch])
    honest = bench.transcripts[-1].message.clearing
    name = data.draw(st.sampled_from(["assignment", "slot_prices_micros"]))
    values = list(getattr(honest, name))
    index = data.draw(st.integers(0, len(values) - 1))
    values[index] += data.draw(st.sampled_from([-1, 1, 7]))
    forged: ClearingResult = replace(honest, **{name: tuple(values)})
    try:
        cleared = bench.verify(bench.forge(clearing=forged))
    except InvalidTranscriptError:
        return
    assert name == "assignment"
    assert cleared.clearing.welfare_micros == honest.welfare_micros
    assert tuple(cleared.clearing.slot_prices.tolist()) == honest.slot_prices_micros


@settings(max_examples=30, deadline=None)
@given(providers, bids, st.integers(0, 5))
def test_a_bid_left_out_is_missed(
    sellers: list[tuple[Prices, int, bool]], batch: list[dict[str, object]], index: int
) -> None:
    bench = run_rounds(sellers, [batch])
    old = bench.transcripts[-1].message
    index %= len(old.tasks)
    tasks = (*old.tasks[:index], *old.tasks[index + 1 :])
    with pytest.raises(InvalidTranscriptError):
        bench.verify(bench.forge(tasks=tasks))
