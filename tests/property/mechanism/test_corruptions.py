"""Every corruption of a random market's clearing is refused, by the error that names it."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from auctioneer.mechanism import clear, verify
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import draw_large_market, draw_market
from tests.property.mechanism.corruptions import CORRUPTIONS, Case, Corruption


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Honest clearings of small markets, many with ties, and of larger ones, in every mode."""
    rng = np.random.default_rng(30)
    drawn = []
    for n in range(90):
        if n % 3:
            n_tasks, n_providers = int(rng.integers(1, 6)), int(rng.integers(2, 5))
            welfare, slots = draw_market(rng, n_tasks, n_providers)
        else:
            welfare, slots = draw_large_market(rng)
        mode = CLEARING_MODES[n // 3 % len(CLEARING_MODES)]
        # Half the slots, or else few markets would be contested.
        slots = slots // (1 + n % 2)
        drawn.append(Case(welfare, slots, clear(welfare, slots, mode=mode), rng))
    return drawn


def test_the_honest_ones_pass(cases: list[Case]) -> None:
    for case in cases:
        verify(case.welfare, case.slots, case.honest)
        verify(case.welfare, case.slots, case.mend(case.honest))


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_every_corruption_is_refused_by_its_name(
    corrupt: Callable[[Case], Iterator[Corruption]],
    cases: list[Case],
    count: Callable[[str, int], None],
) -> None:
    refused = 0
    for n, drawn in enumerate(cases):
        # Dice of its own for each, so that a failure does not depend on what ran before.
        case = dataclasses.replace(drawn, rng=np.random.default_rng(n))
        for claim, error in corrupt(case):
            with pytest.raises(error) as refusal:
                verify(case.welfare, case.slots, claim)
            assert type(refusal.value) is error
            refused += 1
    count("corrupted clearings refused by name", refused)
    assert refused > 50
