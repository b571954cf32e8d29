"""What a task owes, whatever comes of it: never more than declared, and in expectation the price.

Source: docs/spec/auction.md §7 and §8 (R5, T1 to T4); design §5 (settlement on outcome).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from auctioneer.mechanism.valuation import compute_rates, compute_valuation
from benchmarks.economics.outcomes.deals import draw_seller, make_bid, offer
from iemas.core.auction import N_SCENARIOS, Bid, ProviderQos, Scenario
from iemas.core.settlement import Delivery, compute_amount_micros, compute_worst_case_micros
from iemas.core.types import PPM, FinishReason, Lateness, Prices
from iemas.ledger.transaction import ResultCode
from tests.unit.node.selling import SELLER, Desk

MEGA = 10**12
"""Rates (a million tokens) times ppm-tokens give micro-credits times this."""

rate = st.one_of(st.integers(1, 20), st.integers(1, 10**7), st.integers(1, 10**12))
times = st.one_of(st.just(0), st.integers(1, 5_000))
latenesses = st.builds(Lateness, times, times)


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


def multiply(prices: Prices, tokens: tuple[int, int, int]) -> Fraction:
    return Fraction(sum(p * m for p, m in zip(as_tuple(prices), tokens, strict=True)), MEGA)


# --- any outcome ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Chunks of tokens and when they come; who ended the task and why does not matter."""

    prompt_tokens: int
    shown: int
    reported: int
    arrivals: list[tuple[int, int]]


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    prompt = draw(st.integers(1, 10**6))
    chunks = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3_000)), max_size=12))
    clock, arrivals = 0, []
    for tokens, wait_ms in chunks:
        clock += wait_ms
        arrivals.append((tokens, clock))
    return Outcome(prompt, draw(st.integers(0, prompt)), draw(st.integers(0, 2 * prompt)), arrivals)


@given(pairs(), st.tuples(*[st.integers(0, 10**4 * PPM)] * 3), latenesses, outcomes(), st.data())
def test_whatever_happens_nobody_owes_more_than_declared(
    pair: tuple[Prices, Prices],
    expected: tuple[int, int, int],
    lateness: Lateness,
    outcome: Outcome,
    data: st.DataObject,
) -> None:
    """Each token by itself: what it adds is at most its declared price at its own lateness."""
    ask, bid = pair
    price = data.draw(st.integers(0, int(multiply(bid, expected))))
    rates = compute_rates(ask, bid, expected, price)
    cached = min(max(outcome.shown, outcome.reported), outcome.prompt_tokens)
    delivery, owed, worth = Delivery(), 0, Fraction(0)
    for tokens, at_ms in outcome.arrivals:
        late = lateness.compute_ppm(at_ms)
        if delivery.output_tokens == 0 and tokens:
            worth += multiply(bid, ((outcome.prompt_tokens - cached) * late, cached * late, 0))
        worth += multiply(bid, (0, 0, tokens * late))
        delivery = delivery.add(tokens, late)
        usage = delivery.bill(
            outcome.prompt_tokens,
            shown_cached_tokens=outcome.shown,
            reported_cached_tokens=outcome.reported,
        )
        before, owed = owed, compute_amount_micros(rates, usage)
        assert usage.uncached_tokens + usage.cached_tokens == outcome.prompt_tokens
        assert usage.cached_tokens == cached
        assert 0 <= before <= owed <= worth
        assert owed == 0 or delivery.output_tokens > 0
    reserved = compute_worst_case_micros(rates, outcome.prompt_tokens, delivery.output_tokens)
    assert owed <= reserved
    most = compute_worst_case_micros(bid, outcome.prompt_tokens, delivery.output_tokens)
    assert reserved <= most


@given(pairs(), st.tuples(*[st.integers(0, 10**4)] * 3), st.data())
def test_rates_are_never_below_the_ask_at_any_price_that_covers_its_cost(
    pair: tuple[Prices, Prices], tokens: tuple[int, int, int], data: st.DataObject
) -> None:
    """However late tokens are expected: C counts them whole, M by what they are worth."""
    ask, bid = pair
    weights = st.integers(0, PPM)
    prompt = data.draw(weights)
    late = (prompt, prompt, data.draw(weights))
    expected = tuple(n * w for n, w in zip(tokens, late, strict=True))
    uncached, cached, output = expected
    cost = -int(-multiply(ask, (tokens[0] * PPM, tokens[1] * PPM, tokens[2] * PPM)) // 1)
    value = int(multiply(bid, (uncached, cached, output)))
    assume(cost <= value)
    price = data.draw(st.integers(cost, value))
    assert compute_rates(ask, bid, (uncached, cached, output), price).covers(ask)


endings = st.sampled_from([reason for reason in FinishReason if reason])


@settings(max_examples=25)
@given(
    st.builds(Prices, *[st.integers(1, 5_000_000)] * 3),
    st.builds(Lateness, st.integers(0, 600), st.integers(0, 600)),
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 300)), max_size=6),
    st.tuples(st.integers(0, 100), st.none() | st.integers(0, 200)),
    endings,
)
def test_what_the_requester_pays_is_what_the_provider_receives(
    rates: Prices,
    lateness: Lateness,
    chunks: list[tuple[int, int]],
    cached: tuple[int, int | None],
    ending: FinishReason,
) -> None:
    """Both meters and the ledger come to the amount of the formula, however the task ended."""
    desk, (shown, reported) = Desk(), cached
    task = desk.begin(
        prompt_tokens=100, max_tokens=96, cached_tokens=shown, rates=rates, lateness=lateness
    )
    started_ms, delivery = desk.now_ms, Delivery()
    for tokens, wait_ms in chunks:
        desk.now_ms += wait_ms
        task.deliver(tokens)
        task.acknowledge_all()
        delivery = delivery.add(tokens, lateness.compute_ppm(desk.now_ms - started_ms))
    found = task.finish(ending, cached_tokens=reported).message
    task.acknowledge_all()
    usage = delivery.bill(100, shown_cached_tokens=shown, reported_cached_tokens=reported or 0)
    owed = compute_amount_micros(rates, usage)
    assert found.amount_micros == owed == task.execution.metered_micros
    task.end()
    assert desk.get_total() == owed
    state, (alice, seller) = desk.chain.state, map(desk.chain.get_id, ("alice", SELLER))
    before = sum(state.get_balance(alice)), sum(state.get_balance(seller))
    desk.chain.end_term()
    body = desk.provider.collect_settlement()
    assert (body is None) == (owed == 0)
    if body is not None:
        assert desk.chain.submit(SELLER, body).code is ResultCode.OK
    state = desk.chain.state
    assert sum(state.get_balance(alice)) == before[0] - owed
    assert sum(state.get_balance(seller)) == before[1] + owed


# --- the expectation -----------------------------------------------------------------------------


def draw_scenarios(rng: np.random.Generator) -> tuple[Scenario, ...]:
    """Lengths and times that have to do with each other, or not."""
    scores = rng.multivariate_normal(np.zeros(3), [[1, 0.3, 0.5], [0.3, 1, 0.5], [0.5, 0.5, 1]], 16)
    if rng.random() < 0.3:
        scores = rng.standard_normal((16, 3))
    lengths = np.clip(np.exp(5.0 + 0.9 * scores[:, 0]), 1, 3000).astype(int).tolist()
    deviations = np.round(scores[:, 1:] * PPM).astype(int).tolist()
    return tuple(Scenario(n, s, d) for n, (s, d) in zip(lengths, deviations, strict=True))


def draw_pair(rng: np.random.Generator) -> tuple[Bid, Prices, ProviderQos]:
    """A bid above a provider's cost by another factor for each kind, and a deadline or none."""
    seller = draw_seller(rng)
    # Some kinds are bid at hardly more than the ask, so that there ρ is cut off.
    factors = np.where(rng.random(3) < 0.3, 1.0 + 0.02 * rng.random(3), rng.uniform(1.5, 6.0, 3))
    prices = Prices(
        *(int(a * f) + 1 for a, f in zip(as_tuple(seller.cost), factors.tolist(), strict=True))
    )
    deadline = int(rng.integers(200, 12_000)) if rng.random() < 0.75 else 0
    decay = int(rng.integers(1_000, 12_000)) if rng.random() < 0.7 else 0
    bid = make_bid(
        int(rng.integers(50, 4_000)),
        int(rng.choice((64, 256, 1024))),
        prices,
        Lateness(deadline, decay),
    )
    return bid, seller.cost, seller.qos


MS: int = 10**9
"""A millisecond in picoseconds, in which predicted times are whole numbers."""


def weigh(lateness: Lateness, elapsed_ps: int) -> int:
    """What a token is worth at an exact time, as a numerator over `scale_worth`."""
    whole = scale_worth(lateness)
    over = elapsed_ps - lateness.deadline_ms * MS
    if lateness.deadline_ms == 0 or over <= 0:
        return whole
    return max(whole - over, 0) if lateness.decay_ms else 0


def scale_worth(lateness: Lateness) -> int:
    return max(lateness.decay_ms, 1) * MS


def list_times(scenario: Scenario, qos: ProviderQos, ttft_us: int, most: int) -> list[int]:
    first = ttft_us * PPM + qos.ttft_sd_us * scenario.ttft_deviation_ppm
    gap = qos.token_us * PPM + qos.token_sd_us * scenario.token_deviation_ppm
    first, gap = max(first, 0), max(gap, PPM)
    return [first + n * gap for n in range(min(scenario.output_tokens, most))]


@dataclass(frozen=True)
class Cleared:
    """A pair at a price, and when each token comes in each predicted outcome, in picoseconds."""

    bid: Bid
    prompt: tuple[int, int]
    expected: tuple[int, int, int]
    price: int
    value: int
    rates: Prices
    arrivals: list[list[int]]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Cleared | None:
        bid, ask, qos = draw_pair(rng)
        scenarios, blocks = draw_scenarios(rng), int(rng.integers(0, 300))
        valuation = compute_valuation(
            [bid], [offer(ask, qos)], np.array([[blocks]]), scenarios=scenarios, cache_affinity=True
        )
        value, cost = int(valuation.value_micros[0, 0]), int(valuation.cost_micros[0, 0])
        if valuation.welfare_micros[0, 0] == 0:
            return None
        price = value if rng.random() < 0.1 else int(rng.integers(cost, value + 1))
        expected = valuation.get_expected_tokens(0, 0)
        cached = int(valuation.cached_tokens[0, 0])
        uncached = bid.prompt_tokens - cached
        ttft_us = qos.ttft_base_us + qos.ttft_per_uncached_token_us * uncached
        return cls(
            bid,
            (uncached, cached),
            expected,
            price,
            value,
            compute_rates(ask, bid.prices, expected, price),
            [list_times(scenario, qos, ttft_us, bid.max_tokens) for scenario in scenarios],
        )

    def pay(self, prompt_share: Fraction | int, output_tokens: Fraction | int) -> Fraction:
        """What is owed for so much of the prompt and so many tokens of output, not rounded."""
        prompt = multiply(self.rates, (*self.prompt, 0)) * PPM
        return prompt * prompt_share + Fraction(self.rates.output_micros_per_mtok, PPM) * (
            output_tokens
        )

    def compute_exact_mean(self) -> Fraction:
        """The expectation at exact times, not rounded."""
        late = [[weigh(self.bid.lateness, at_ps) for at_ps in times] for times in self.arrivals]
        total = self.pay(sum(row[0] for row in late), sum(sum(row) for row in late))
        return total / (N_SCENARIOS * scale_worth(self.bid.lateness))

    def compute_settled_mean(self) -> Fraction:
        """The mean of what is settled: by whole milliseconds, in whole micro-credits."""
        total = 0
        for times in self.arrivals:
            delivery = Delivery()
            for at_ps in times:
                delivery = delivery.add(1, self.bid.lateness.compute_ppm(at_ps // MS))
            usage = delivery.bill(self.bid.prompt_tokens, shown_cached_tokens=self.prompt[1])
            total += compute_amount_micros(self.rates, usage)
        return Fraction(total, N_SCENARIOS)

    def count_steps(self) -> Fraction:
        """The most that whole milliseconds can bring: a step a token that comes while it falls."""
        lateness = self.bid.lateness
        begin = lateness.deadline_ms * MS
        end = begin + (lateness.decay_ms + 1) * MS
        step = Fraction(1, max(lateness.decay_ms, 1)) + Fraction(1, PPM)
        falling = [[begin < at_ps < end for at_ps in times] for times in self.arrivals]
        tokens = self.pay(sum(row[0] for row in falling), sum(sum(row) for row in falling))
        return tokens * step / N_SCENARIOS

    def list_features(self) -> list[str]:
        """What makes the case worth trying."""
        lateness = self.bid.lateness
        counts = {len(times) for times in self.arrivals}
        capped = [
            r == b for r, b in zip(as_tuple(self.rates), as_tuple(self.bid.prices), strict=True)
        ]
        last_ms = max(times[-1] for times in self.arrivals) / MS
        features = {
            "late": 0 < lateness.deadline_ms < last_ms,
            "a hard deadline": lateness.deadline_ms > 0 and lateness.decay_ms == 0,
            "max_tokens binds": self.bid.max_tokens in counts and len(counts) > 1,
            "cached": self.prompt[1] > 0,
            "some kinds at the bid": any(capped) and not all(capped),
            "all kinds at the bid": all(capped),
        }
        return [name for name, present in features.items() if present]


@pytest.fixture(scope="module")
def cleared() -> list[Cleared]:
    rng = np.random.default_rng(7)
    drawn = [Cleared.draw(rng) for _ in range(160)]
    return [case for case in drawn if case is not None]


def test_the_cases_are_of_every_kind(cleared: list[Cleared]) -> None:
    features = Counter(name for case in cleared for name in case.list_features())
    assert len(features) == 6
    assert min(features.values()) >= 10, features


def test_the_expectation_is_the_price_but_for_rounding_rates_and_tokens(
    cleared: list[Cleared],
) -> None:
    """R3: rates by less than 1 a million tokens, M by less than a millionth of each token."""
    for case in cleared:
        mean = case.compute_exact_mean()
        rates_off = Fraction(sum(case.expected), MEGA)
        # The sum over scenarios is rounded down, and before that each term to 53 bits.
        tokens_off = case.pay(Fraction(1, PPM), Fraction(1, PPM)) * Fraction(11, 10)
        if case.price == case.value:
            assert case.price <= mean < case.price + 1 + tokens_off
        else:
            assert case.price - rates_off < mean <= case.price + tokens_off


def test_settling_adds_less_than_a_unit_and_a_step_a_late_token(cleared: list[Cleared]) -> None:
    for case in cleared:
        exact = case.compute_exact_mean()
        assert exact - 1 < case.compute_settled_mean() <= exact + case.count_steps()


def test_the_mean_of_what_is_settled_is_the_price_to_a_thousandth(cleared: list[Cleared]) -> None:
    large = [case for case in cleared if case.price > 5_000]
    assert len(large) > 60
    for case in large:
        assert abs(case.compute_settled_mean() / case.price - 1) < Fraction(1, 1000)


def test_one_lateness_factor_on_the_whole_total_misses_the_price(cleared: list[Cleared]) -> None:
    """The first version's rule, by the same measure: E[late · m] is not E[late] · E[m]."""
    off = []
    for case in cleared:
        last = np.array([weigh(case.bid.lateness, times[-1]) for times in case.arrivals], float)
        whole = np.array([float(case.pay(1, len(times))) for times in case.arrivals])
        if "late" in case.list_features() and last.any():
            off.append(float((last * whole).mean() / (last.mean() * whole.mean())))
    assert len(off) > 30
    assert np.mean(off) < 0.85


@given(st.integers(0, 20_000 * MS), latenesses)
def test_whole_milliseconds_are_worth_at_most_one_step_and_to_the_provider(
    elapsed_ps: int, lateness: Lateness
) -> None:
    late = Fraction(lateness.compute_ppm(elapsed_ps // MS), PPM)
    true = Fraction(weigh(lateness, elapsed_ps), scale_worth(lateness))
    step = Fraction(1, max(lateness.decay_ms, 1)) + Fraction(1, PPM)
    assert 0 <= late - true < step
    if true == 1 or elapsed_ps >= (lateness.deadline_ms + lateness.decay_ms + 1) * MS:
        assert late == true


@pytest.mark.parametrize("decay_ms", [400, 4_000])
def test_on_average_whole_milliseconds_cancel_out_where_lateness_is_linear(decay_ms: int) -> None:
    """A node takes the difference of two floors: with its clock's phase at random it is exact."""
    lateness = Lateness(1_000, decay_ms)
    elapsed_us = 1_000_000 + 200 * decay_ms + 137
    worth = [
        lateness.compute_ppm((elapsed_us + phase) // 1000 - phase // 1000) for phase in range(1000)
    ]
    true = PPM * Fraction(weigh(lateness, elapsed_us * PPM), scale_worth(lateness))
    assert 0 <= Fraction(sum(worth), len(worth)) - true < 1
