"""Ties: the same input, the same output; how ties fall changes no price and no bonus."""

from collections.abc import Callable

import numpy as np

from auctioneer.mechanism import Certificate, Clearing, clear, encode_clearing, verify
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_greatest_prices, compute_vcg_bonuses
from auctioneer.mechanism.gains import read_market
from auctioneer.mechanism.modes import compute_surcharges
from auctioneer.mechanism.payments import compute_slot_prices
from auctioneer.mechanism.reinsertion import ReinsertionBatch
from auctioneer.mechanism.residual import build_residual
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import (
    draw_large_market,
    list_optimal_assignments,
)
from tests.property.mechanism.invariants import check_invariants, get_own_gains


def test_the_same_market_clears_the_same() -> None:
    rng = np.random.default_rng(23)
    for n in range(60):
        welfare, slots = draw_large_market(rng)
        mode = CLEARING_MODES[n % len(CLEARING_MODES)]
        expected = encode_clearing(clear(welfare, slots, mode=mode))
        # Neither how the arrays lie in memory nor how far below 0 an entry is means anything.
        strided = np.repeat(np.repeat(welfare, 2, axis=0), 2, axis=1)[::2, ::2]
        lower = np.where(welfare <= 0, welfare - 7, welfare)
        for same in (welfare.copy(), np.asfortranarray(welfare), strided, lower):
            assert encode_clearing(clear(same, slots.copy(), mode=mode)) == expected


def test_the_order_of_tasks_and_providers_changes_no_price_and_no_bonus() -> None:
    rng = np.random.default_rng(16)
    for _ in range(300):
        n_tasks, n_providers = int(rng.integers(1, 12)), int(rng.integers(1, 7))
        welfare = rng.integers(-1, 4, (n_tasks, n_providers))
        slots = rng.integers(0, 4, n_providers)
        tasks, providers = rng.permutation(n_tasks), rng.permutation(n_providers)
        one = clear(welfare, slots)
        other = clear(welfare[np.ix_(tasks, providers)], slots[providers])
        assert other.welfare_micros == one.welfare_micros
        assert other.slot_prices.tolist() == one.slot_prices[providers].tolist()
        assert other.vcg_bonuses.tolist() == one.vcg_bonuses[providers].tolist()


def make_clearing(welfare: IntArray, slots: IntArray, assignment: IntArray, mode: str) -> Clearing:
    """What an implementation with another solver would publish: this matching, priced."""
    gains = read_market(welfare, slots)
    residual = build_residual(gains, slots, assignment)
    prices, predecessors = compute_slot_prices(gains, assignment, residual)
    bonuses, fallbacks = compute_vcg_bonuses(gains, assignment, residual)
    # Of the two ways to compute bonuses, a market as small as these takes the other one.
    greatest, exits = compute_greatest_prices(residual)
    batch = ReinsertionBatch(gains, residual, greatest, exits, np.arange(len(slots)))
    assert batch.run().tolist() == bonuses.tolist()
    own = get_own_gains(welfare, assignment)
    surcharges = compute_surcharges(
        mode,
        assignment,
        welfare=own,
        slot_prices=prices,
        bonuses=bonuses,
        fallbacks=fallbacks,
    )
    certificate = Certificate(predecessors)
    return Clearing(
        assignment, int(own.sum()), prices, bonuses, surcharges, mode, certificate=certificate
    )


def test_every_optimal_matching_has_the_same_prices_and_bonuses_and_passes(
    count: Callable[[str, int], None],
) -> None:
    rng = np.random.default_rng(24)
    matchings = most = 0
    for n in range(400):
        n_tasks, n_providers = int(rng.integers(2, 7)), int(rng.integers(2, 4))
        # Where a pair is worth what its two sides are worth, every way to pair them ties.
        welfare = rng.integers(-1, 4, (n_tasks, 1)) + rng.integers(0, 2, n_providers)
        welfare[rng.random(welfare.shape) < 0.1] -= 1
        slots = rng.integers(0, 4, n_providers)
        mode = CLEARING_MODES[n % len(CLEARING_MODES)]
        expected = clear(welfare, slots, mode=mode)
        optima = list_optimal_assignments(welfare, slots)
        assert expected.assignment.tolist() in optima.tolist()
        for assignment in optima:
            clearing = make_clearing(welfare, slots, assignment, mode)
            assert clearing.welfare_micros == expected.welfare_micros
            assert clearing.slot_prices.tolist() == expected.slot_prices.tolist()
            assert clearing.vcg_bonuses.tolist() == expected.vcg_bonuses.tolist()
            check_invariants(welfare, slots, clearing)
            verify(welfare, slots, clearing)
        matchings += len(optima)
        most = max(most, len(optima))
    count("optimal matchings of 400 tied markets priced alike", matchings)
    assert matchings > 1000
    assert most > 10
