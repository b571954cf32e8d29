"""Bonuses of markets too large to enumerate, by re-solves; each way of computing them alone."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism import bonuses as bonuses_module
from auctioneer.mechanism import clear, verify
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_greatest_prices
from auctioneer.mechanism.clearing import match_and_price
from auctioneer.mechanism.gains import Gains, read_market
from auctioneer.mechanism.reference import Reference
from auctioneer.mechanism.reinsertion import ReinsertionBatch
from tests.property.mechanism.brute_force import (
    draw_large_market,
    draw_market_stacks,
    enumerate_optima,
)
from tests.property.mechanism.invariants import check_invariants


def solve(welfare: IntArray, slots: IntArray) -> int:
    gains = np.repeat(np.maximum(welfare, 0), np.minimum(slots, len(welfare)), axis=1)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    return int(gains[rows, columns].sum())


def solve_with_fewer_slots(welfare: IntArray, slots: IntArray, fewer: IntArray) -> list[int]:
    """The greatest welfare with each provider's slots in turn lowered to those of `fewer`."""
    totals = []
    for i in range(len(slots)):
        left = slots.copy()
        left[i] = fewer[i]
        totals.append(solve(welfare, left))
    return totals


def test_bonuses_equal_re_solves_on_large_markets() -> None:
    rng = np.random.default_rng(12)
    for _ in range(150):
        welfare, slots = draw_large_market(rng)
        clearing = clear(welfare, slots)
        whole = solve(welfare, slots)
        without = solve_with_fewer_slots(welfare, slots, np.zeros_like(slots))
        assert clearing.welfare_micros == whole
        assert clearing.vcg_bonuses.tolist() == [whole - left for left in without]
        check_invariants(welfare, slots, clearing)
        verify(welfare, slots, clearing)


def test_a_greatest_price_is_what_one_slot_less_loses() -> None:
    rng = np.random.default_rng(22)
    for _ in range(100):
        welfare, slots = draw_large_market(rng)
        priced = match_and_price(read_market(welfare, slots), slots)
        greatest, _ = compute_greatest_prices(priced.residual)
        left = solve_with_fewer_slots(welfare, slots, slots - 1 + (slots == 0))
        losses = solve(welfare, slots) - np.array(left)
        assert greatest[slots > 0].tolist() == losses[slots > 0].tolist()


def compute_each_way(gains: Gains, slots: IntArray) -> tuple[list[int], list[int]]:
    """All bonuses by lockstep and by the reference, nothing settled directly."""
    priced = match_and_price(gains, slots)
    greatest, exits = compute_greatest_prices(priced.residual)
    providers = np.arange(len(slots))
    batch = ReinsertionBatch(gains, priced.residual, greatest, exits, providers)
    market = Reference.make(gains, priced.assignment, priced.residual, greatest, exits)
    return batch.run().tolist(), [market.compute_bonus(i) for i in range(len(slots))]


def test_lockstep_equals_the_reference_and_the_definition(
    count: Callable[[str, int], None],
) -> None:
    for stack, slot_stack in draw_market_stacks(2000, seed=13):
        optima = enumerate_optima(stack, slot_stack)
        for n, (welfare, slots) in enumerate(zip(stack, slot_stack, strict=True)):
            batch, reference = compute_each_way(read_market(welfare, slots), slots)
            assert batch == reference
            assert batch == (optima.whole[n] - optima.without_provider[n]).tolist()
        count("random markets equal to brute force", len(stack))


def test_lockstep_equals_the_reference_on_large_markets() -> None:
    rng = np.random.default_rng(14)
    for _ in range(60):
        welfare, slots = draw_large_market(rng)
        batch, reference = compute_each_way(read_market(welfare, slots), slots)
        assert batch == reference


def test_small_batches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(15)
    welfare = rng.integers(0, 50, (120, 40))
    slots = rng.integers(0, 5, 40)
    bonuses = clear(welfare, slots).vcg_bonuses.tolist()
    monkeypatch.setattr(bonuses_module, "_BATCH_ENTRIES", 1)
    assert clear(welfare, slots).vcg_bonuses.tolist() == bonuses
