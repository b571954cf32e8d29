"""Tens of thousands of random markets against brute force: W, π and bonuses by definition."""

from collections.abc import Callable

import numpy as np

from auctioneer.mechanism import clear, verify
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import draw_market_stacks, enumerate_optima
from tests.property.mechanism.invariants import check_invariants


def test_welfare_prices_and_bonuses_equal_their_definitions(
    count: Callable[[str, int], None],
) -> None:
    markets = with_rent = 0
    for stack, slot_stack in draw_market_stacks(12_000, seed=11):
        optima = enumerate_optima(stack, slot_stack)
        for n, (welfare, slots) in enumerate(zip(stack, slot_stack, strict=True)):
            mode = CLEARING_MODES[n % len(CLEARING_MODES)]
            clearing = clear(welfare, slots, mode=mode)
            whole = int(optima.whole[n])
            assert clearing.welfare_micros == whole
            assert clearing.vcg_bonuses.tolist() == (whole - optima.without_provider[n]).tolist()
            assert clearing.slot_prices.tolist() == (optima.with_slot[n] - whole).tolist()
            matched = np.flatnonzero(clearing.assignment >= 0)
            at = clearing.assignment[matched]
            clarke = optima.without_task[n, matched] - (whole - welfare[matched, at])
            assert clearing.slot_prices[at].tolist() == clarke.tolist()
            check_invariants(welfare, slots, clearing)
            verify(welfare, slots, clearing)
            markets += 1
            with_rent += clearing.vcg_deficit_micros > 0
    count("random markets equal to brute force", markets)
    assert markets >= 10_000
    assert with_rent > 1000
