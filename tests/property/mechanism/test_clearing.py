"""Clearing against brute force and scipy: optimal, priced by Clarke, sound to send."""

import numpy as np
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism import clear, decode_clearing, encode_clearing, verify
from tests.property.mechanism.brute_force import Market
from tests.property.mechanism.strategies import markets


def compute_greatest_welfare(rows: list[list[int]], slots: tuple[int, ...]) -> int:
    """Try everything: each task in turn nowhere, or at each provider with a slot left."""
    best = {slots: 0}
    for row in rows:
        following = dict(best)
        for left, total in best.items():
            for i, gain in enumerate(row):
                if gain > 0 and left[i] > 0:
                    after = (*left[:i], left[i] - 1, *left[i + 1 :])
                    following[after] = max(following.get(after, 0), total + gain)
        best = following
    return max(best.values())


@settings(max_examples=300)
@given(markets())
def test_a_slot_price_is_what_one_more_slot_adds(market: Market) -> None:
    welfare, slots = market
    clearing = clear(welfare, slots, mode="client")
    for i in range(len(slots)):
        more = slots.copy()
        more[i] += 1
        greater = compute_greatest_welfare(welfare.tolist(), tuple(more.tolist()))
        assert clearing.slot_prices[i] == greater - clearing.welfare_micros


def test_welfare_equals_scipy_on_large_markets() -> None:
    rng = np.random.default_rng(2)
    for n_tasks, n_providers, top in [(300, 60, 10**9), (60, 300, 5), (200, 200, 40), (1, 50, 9)]:
        welfare = rng.integers(-top // 3, top, (n_tasks, n_providers))
        slots = rng.integers(0, 5, n_providers)
        clearing = clear(welfare, slots, mode="client")
        gains = np.maximum(welfare, 0)[:, np.repeat(np.arange(n_providers), slots)]
        rows, columns = linear_sum_assignment(gains, maximize=True)
        assert clearing.welfare_micros == gains[rows, columns].sum()
        verify(welfare, slots, clearing)


def test_prices_equal_scipy_re_solves_on_large_markets() -> None:
    rng = np.random.default_rng(3)
    welfare = rng.integers(-100, 1000, (80, 25))
    slots = rng.integers(0, 4, 25)
    clearing = clear(welfare, slots, mode="client")
    for task in np.flatnonzero(clearing.assignment >= 0):
        others = clear(np.delete(welfare, task, axis=0), slots).welfare_micros
        own = welfare[task, clearing.assignment[task]]
        assert clearing.surcharges[task] == others - (clearing.welfare_micros - own)


@settings(max_examples=300)
@given(markets(max_tasks=12, max_providers=6))
def test_honest_clearings_pass_also_after_travelling(market: Market) -> None:
    welfare, slots = market
    clearing = clear(welfare, slots, mode="client")
    verify(welfare, slots, clearing)
    decoded = decode_clearing(encode_clearing(clearing), welfare, slots)
    verify(welfare, slots, decoded)
    assert encode_clearing(decoded) == encode_clearing(clear(welfare, slots, mode="client"))
