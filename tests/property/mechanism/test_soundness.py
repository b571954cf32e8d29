"""Whatever `verify` accepts is right, however it was made up."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from auctioneer.mechanism import (
    Certificate,
    Clearing,
    clear,
    decode_clearing,
    encode_clearing,
    verify,
)
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import (
    ComplementarySlacknessError,
    CyclicPredecessorsError,
    InvalidClearingError,
    PriceNotLeastError,
)
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import Market, enumerate_optima
from tests.property.mechanism.duals import is_optimal_dual
from tests.property.mechanism.invariants import split_every_way
from tests.property.mechanism.strategies import markets


@st.composite
def claims(draw: st.DrawFn) -> tuple[Market, Clearing]:
    """An honest clearing with some of its entries changed."""
    welfare, slots = draw(markets(max_tasks=4, max_providers=3))
    n_tasks, n_providers = welfare.shape
    result = encode_clearing(clear(welfare, slots, mode=draw(st.sampled_from(CLEARING_MODES))))

    def change(values: tuple[int, ...], entries: st.SearchStrategy[int]) -> tuple[int, ...]:
        changed = list(values)
        for index in range(len(changed)):
            if draw(st.booleans()):
                changed[index] = draw(entries)
        return tuple(changed)

    nearby = sorted(
        {0, *result.slot_prices_micros, *result.vcg_bonuses_micros, *welfare.ravel().tolist()}
    )
    amounts = st.sampled_from(nearby).flatmap(lambda x: st.integers(max(x - 1, 0), max(x, 0) + 1))
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        changes["assignment"] = change(result.assignment, st.integers(-1, n_providers - 1))
    if draw(st.booleans()):
        changes["slot_prices_micros"] = change(result.slot_prices_micros, amounts)
    if draw(st.booleans()):
        changes["predecessor_tasks"] = change(
            result.predecessor_tasks, st.integers(-1, n_tasks - 1)
        )
    if draw(st.integers(0, 3)) == 0:
        changes["vcg_bonuses_micros"] = change(result.vcg_bonuses_micros, amounts)
    assignment = changes.get("assignment", result.assignment)
    if draw(st.booleans()):
        # A total that fits the changed matching, so that deeper rules have to catch it.
        pairs = [(j, i) for j, i in enumerate(assignment) if i >= 0]
        changes["welfare_micros"] = sum(int(welfare[pair]) for pair in pairs)
    claim = decode_clearing(dataclasses.replace(result, **changes), welfare, slots)
    if draw(st.integers(0, 3)) == 0:
        surcharges = change(tuple(claim.surcharges.tolist()), amounts)
        claim = dataclasses.replace(claim, surcharges=np.array(surcharges, dtype=np.int64))
    return (welfare, slots), claim


@settings(max_examples=1000)
@given(claims())
def test_whatever_passes_is_optimal_and_priced_right(case: tuple[Market, Clearing]) -> None:
    (welfare, slots), claim = case
    if find_refusal(welfare, slots, claim) is not None:
        return
    optima = enumerate_optima(welfare[None], slots[None])
    whole = optima.whole[0]
    assert claim.welfare_micros == whole
    assert claim.slot_prices.tolist() == (optima.with_slot[0] - whole).tolist()
    assert claim.vcg_bonuses.tolist() == (whole - optima.without_provider[0]).tolist()
    expected = split_every_way(welfare, slots, claim)[claim.mode]
    assert claim.surcharges.tolist() == expected.tolist()


def draw_tiny_markets(count: int, seed: int) -> Iterator[Market]:
    """Up to 3 tasks and 2 providers with welfare up to 3, so that all prices can be listed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n_tasks, n_providers = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        welfare = rng.integers(-1, 4, (n_tasks, n_providers))
        yield welfare, rng.integers(0, 3, n_providers)


def test_no_price_vector_but_the_least_passes_with_any_predecessors(
    count: Callable[[str, int], None],
) -> None:
    refused: Counter[type[InvalidClearingError]] = Counter()
    for welfare, slots in draw_tiny_markets(40, seed=4):
        n_tasks, n_providers = welfare.shape
        honest = clear(welfare, slots)
        for vector in itertools.product(range(5), repeat=n_providers):
            prices = np.array(vector)
            optimal = is_optimal_dual(welfare, slots, prices, honest.welfare_micros)
            least = prices.tolist() == honest.slot_prices.tolist()
            for tasks in itertools.product(range(-1, n_tasks), repeat=n_providers):
                claim = dataclasses.replace(
                    honest, slot_prices=prices, certificate=Certificate(np.array(tasks))
                )
                error = find_refusal(welfare, slots, claim)
                if error is None:
                    assert least
                else:
                    assert (error is ComplementarySlacknessError) == (not optimal)
                    refused[error] += 1
    count("price vectors refused, all there are in tiny markets", refused.total())
    for error in (ComplementarySlacknessError, PriceNotLeastError, CyclicPredecessorsError):
        assert refused[error] > 50
    assert len(refused) == 3


def find_refusal(
    welfare: IntArray, slots: IntArray, claim: Clearing
) -> type[InvalidClearingError] | None:
    try:
        verify(welfare, slots, claim)
    except InvalidClearingError as refusal:
        return type(refusal)
    return None
