"""Clearing against brute force and scipy: optimal, priced by Clarke, provable, truthful."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism import (
    Certificate,
    Clearing,
    clear,
    decode_clearing,
    encode_clearing,
    verify,
)
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import InvalidClearingError

Market = tuple[IntArray, IntArray]


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


@st.composite
def markets(draw: st.DrawFn, *, max_tasks: int = 5, max_providers: int = 4) -> Market:
    n_tasks = draw(st.integers(0, max_tasks))
    n_providers = draw(st.integers(0, max_providers))
    # Few distinct values make ties, a wide range makes none.
    top = draw(st.sampled_from([1, 3, 50, 10**9]))
    entries = st.integers(-top // 2, top)
    rows = st.lists(entries, min_size=n_providers, max_size=n_providers)
    values = draw(st.lists(rows, min_size=n_tasks, max_size=n_tasks))
    slots = draw(st.lists(st.integers(0, 2), min_size=n_providers, max_size=n_providers))
    welfare = np.array(values, dtype=np.int64).reshape(n_tasks, n_providers)
    return welfare, np.array(slots, dtype=np.int64)


def draw_markets(count: int, seed: int) -> Iterator[Market]:
    """Random markets, many with ties, rows without welfare, providers without slots."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n_tasks, n_providers = int(rng.integers(0, 6)), int(rng.integers(0, 4))
        top = int(rng.choice([2, 4, 30, 10**6]))
        welfare = rng.integers(-top // 2, top, (n_tasks, n_providers))
        welfare[rng.random(n_tasks) < 0.1] = -1
        yield welfare, rng.integers(0, 3, n_providers)


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


@settings(max_examples=300)
@given(markets())
def test_requesters_and_providers_never_lose(market: Market) -> None:
    welfare, slots = market
    clearing = clear(welfare, slots, mode="client")
    for task, provider in enumerate(clearing.assignment.tolist()):
        if provider < 0:
            assert clearing.surcharges[task] == 0
        else:
            assert 0 <= clearing.surcharges[task] <= welfare[task, provider]


@st.composite
def corruptions(draw: st.DrawFn) -> tuple[Market, Clearing]:
    """An honest clearing with some of its entries changed."""
    welfare, slots = draw(markets(max_tasks=4, max_providers=3))
    n_tasks, n_providers = welfare.shape
    result = encode_clearing(clear(welfare, slots))

    def change(values: tuple[int, ...], entries: st.SearchStrategy[int]) -> tuple[int, ...]:
        changed = list(values)
        for index in range(len(changed)):
            if draw(st.booleans()):
                changed[index] = draw(entries)
        return tuple(changed)

    nearby = sorted({0, *result.slot_prices_micros, *welfare.ravel().tolist()})
    prices = st.sampled_from(nearby).flatmap(lambda x: st.integers(max(x - 1, 0), max(x, 0) + 1))
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        changes["assignment"] = change(result.assignment, st.integers(-1, n_providers - 1))
    if draw(st.booleans()):
        changes["slot_prices_micros"] = change(result.slot_prices_micros, prices)
    if draw(st.booleans()):
        changes["predecessor_tasks"] = change(
            result.predecessor_tasks, st.integers(-1, n_tasks - 1)
        )
    assignment = changes.get("assignment", result.assignment)
    if draw(st.booleans()):
        # A total that fits the changed matching, so that deeper rules have to catch it.
        pairs = [(j, i) for j, i in enumerate(assignment) if i >= 0]
        changes["welfare_micros"] = sum(int(welfare[pair]) for pair in pairs)
    corrupted = dataclasses.replace(result, **changes)
    return (welfare, slots), decode_clearing(corrupted, welfare, slots)


@settings(max_examples=1000)
@given(corruptions())
def test_whatever_passes_is_optimal_and_priced_right(case: tuple[Market, Clearing]) -> None:
    (welfare, slots), clearing = case
    try:
        verify(welfare, slots, clearing)
    except InvalidClearingError:
        return
    honest = clear(welfare, slots)
    assert clearing.welfare_micros == honest.welfare_micros
    assert clearing.slot_prices.tolist() == honest.slot_prices.tolist()


def test_no_price_vector_but_the_least_passes() -> None:
    checked = 0
    for welfare, slots in draw_markets(250, seed=4):
        n_tasks, n_providers = welfare.shape
        if welfare.max(initial=0) > 4 or n_providers > 2 or n_tasks > 3:
            continue
        honest = clear(welfare, slots)
        everywhere = range(5)
        for prices in itertools.product(everywhere, repeat=n_providers):
            for tasks in itertools.product(range(-1, n_tasks), repeat=n_providers):
                lie = _with_prices((welfare, slots), honest, prices, tasks)
                try:
                    verify(welfare, slots, lie)
                except InvalidClearingError:
                    checked += 1
                else:
                    assert lie.slot_prices.tolist() == honest.slot_prices.tolist()
    assert checked > 1000


def _with_prices(
    market: Market, honest: Clearing, prices: tuple[int, ...], tasks: tuple[int, ...]
) -> Clearing:
    result = dataclasses.replace(
        encode_clearing(honest), slot_prices_micros=prices, predecessor_tasks=tasks
    )
    decoded = decode_clearing(result, *market)
    assert isinstance(decoded.certificate, Certificate)
    return decoded


def test_a_requester_with_one_task_gains_nothing_by_any_misreport() -> None:
    """Every row over a grid that reaches below, between and above the others' values."""
    searched = 0
    for welfare, slots in draw_markets(150, seed=5):
        n_tasks, n_providers = welfare.shape
        if n_tasks == 0 or n_providers == 0 or welfare.max() > 4:
            continue
        truth = welfare[0].copy()
        honest = _compute_utility(truth, clear(welfare, slots, mode="client"))
        assert honest >= 0
        for row in itertools.product(range(-1, 6), repeat=n_providers):
            lie = welfare.copy()
            lie[0] = row
            assert _compute_utility(truth, clear(lie, slots, mode="client")) <= honest
            searched += 1
    assert searched > 2000


def _compute_utility(truth: IntArray, clearing: Clearing) -> int:
    """What the pair is truly worth to task 0, less what it pays above cost."""
    provider = clearing.assignment[0]
    return int(truth[provider] - clearing.surcharges[0]) if provider >= 0 else 0
