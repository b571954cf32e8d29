"""Rates: the expectation is the price, within the bid, monotone, never above when settled."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from auctioneer.mechanism.valuation import compute_rates
from iemas.core.settlement import MeteredUsage, compute_amount_micros
from iemas.core.types import PPM, Prices

SCALE = 10**12
rate = st.one_of(st.integers(1, 20), st.integers(1, 10**7), st.integers(1, 10**12))
tokens = st.one_of(st.just(0), st.integers(0, 10**4 * PPM), st.integers(0, 10**7 * PPM))
expectation = st.tuples(tokens, tokens, tokens)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Prices, Prices]:
    """An ask and a bid that covers it."""
    both = [sorted((draw(rate), draw(rate))) for _ in range(3)]
    return Prices(*(ask for ask, _ in both)), Prices(*(bid for _, bid in both))


def as_tuple(prices: Prices) -> tuple[int, int, int]:
    return (
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    )


def compute_expectation(rates: Prices, expected: tuple[int, int, int]) -> Fraction:
    return Fraction(sum(r * m for r, m in zip(as_tuple(rates), expected, strict=True)), SCALE)


@given(pairs(), expectation, st.data())
def test_the_expectation_is_the_price(
    pair: tuple[Prices, Prices], expected: tuple[int, int, int], data: st.DataObject
) -> None:
    ask, bid = pair
    value = int(compute_expectation(bid, expected))
    price = data.draw(st.integers(0, value))
    rates = compute_rates(ask, bid, expected, price)
    assert bid.covers(rates)
    slack = Fraction(sum(expected), SCALE)
    if price == value:
        assert rates == bid
    else:
        # Rounded down once a rate; up only where a rate would fall below 1.
        assert -slack < compute_expectation(rates, expected) - price <= slack
        if min(as_tuple(rates)) > 1:
            assert compute_expectation(rates, expected) <= price


@given(pairs(), expectation, st.data())
def test_rates_are_the_ask_scaled_and_cut_at_the_bid(
    pair: tuple[Prices, Prices], expected: tuple[int, int, int], data: st.DataObject
) -> None:
    ask, bid = pair
    value = int(compute_expectation(bid, expected))
    assume(value > 0)
    rates = compute_rates(ask, bid, expected, data.draw(st.integers(0, value - 1)))
    triples = list(zip(as_tuple(rates), as_tuple(ask), as_tuple(bid), strict=True))
    # One scale explains all: the highest that a rate below its limit allows is above every floor.
    below = [Fraction(r + 1, a) for r, a, b in triples if r < b]
    at_least = [Fraction(r, a) for r, a, _ in triples if r > 1]
    assert not below or not at_least or max(at_least) < min(below)


@given(pairs(), expectation, st.data())
def test_a_higher_price_never_lowers_a_rate(
    pair: tuple[Prices, Prices], expected: tuple[int, int, int], data: st.DataObject
) -> None:
    ask, bid = pair
    value = int(compute_expectation(bid, expected))
    low, high = sorted((data.draw(st.integers(0, value)), data.draw(st.integers(0, value))))
    assert compute_rates(ask, bid, expected, high).covers(compute_rates(ask, bid, expected, low))


@given(pairs(), expectation, st.data())
def test_at_cost_without_lateness_rates_are_no_lower_than_the_ask(
    pair: tuple[Prices, Prices], expected: tuple[int, int, int], data: st.DataObject
) -> None:
    ask, bid = pair
    value = int(compute_expectation(bid, expected))
    cost = -int(-compute_expectation(ask, expected) // 1)
    assume(cost <= value)
    price = data.draw(st.integers(cost, value))
    assert compute_rates(ask, bid, expected, price).covers(ask)


usages = st.builds(
    MeteredUsage,
    uncached_tokens=st.integers(0, 10**6),
    cached_tokens=st.integers(0, 10**6),
    prompt_late_ppm=st.integers(0, PPM),
    output_late_ppm_tokens=st.just(0),
)


@given(pairs(), expectation, usages, st.lists(st.integers(0, PPM), max_size=20), st.data())
def test_nobody_pays_more_than_it_declared_for_what_it_got(
    pair: tuple[Prices, Prices],
    expected: tuple[int, int, int],
    usage: MeteredUsage,
    output_late_ppm: list[int],
    data: st.DataObject,
) -> None:
    ask, bid = pair
    price = data.draw(st.integers(0, int(compute_expectation(bid, expected))))
    rates = compute_rates(ask, bid, expected, price)
    late_ppm = usage.prompt_late_ppm
    owed = 0
    for delivered in range(len(output_late_ppm) + 1):
        metered = sum(output_late_ppm[:delivered])
        weighed = (usage.uncached_tokens * late_ppm, usage.cached_tokens * late_ppm, metered)
        before = owed
        owed = compute_amount_micros(rates, replace(usage, output_late_ppm_tokens=metered))
        assert before <= owed <= compute_expectation(bid, weighed)
