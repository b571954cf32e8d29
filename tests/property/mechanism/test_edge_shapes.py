"""The edges of what a market may be: nothing, one of each, no slots, no welfare, all alike."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from auctioneer.mechanism import CandidateWelfare, clear, decode_clearing, encode_clearing, verify
from auctioneer.mechanism.arrays import IntArray
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import Market, enumerate_optima
from tests.property.mechanism.invariants import check_invariants

SHAPES = [(t, a) for t in range(3) for a in range(3)]


def list_every_market(
    n_tasks: int, n_providers: int, values: tuple[int, ...], counts: tuple[int, ...]
) -> tuple[IntArray, IntArray]:
    """Every market of a shape with these values and numbers of slots, as one stack."""
    entries = itertools.product(values, repeat=n_tasks * n_providers)
    slots = list(itertools.product(counts, repeat=n_providers))
    pairs = list(itertools.product(entries, slots))
    welfare = np.array([rows for rows, _ in pairs], dtype=np.int64)
    capacity = np.array([free for _, free in pairs], dtype=np.int64)
    return (
        welfare.reshape(len(pairs), n_tasks, n_providers),
        capacity.reshape(len(pairs), n_providers),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_market_of_up_to_two_tasks_and_two_providers(
    shape: tuple[int, int], count: Callable[[str, int], None]
) -> None:
    stack, slot_stack = list_every_market(*shape, values=(-1, 0, 1, 2), counts=(0, 1, 3))
    optima = enumerate_optima(stack, slot_stack)
    for n, (welfare, slots) in enumerate(zip(stack, slot_stack, strict=True)):
        clearing = clear(welfare, slots, mode=CLEARING_MODES[n % len(CLEARING_MODES)])
        whole = optima.whole[n]
        assert clearing.welfare_micros == whole
        assert clearing.slot_prices.tolist() == (optima.with_slot[n] - whole).tolist()
        assert clearing.vcg_bonuses.tolist() == (whole - optima.without_provider[n]).tolist()
        check_invariants(welfare, slots, clearing)
        verify(welfare, slots, clearing)
    count("markets of every kind up to 2 × 2 equal to brute force", len(stack))


def list_edges() -> Iterator[tuple[str, Market]]:
    ones = np.ones(4, dtype=np.int64)
    shapes = [(0, 0), (0, 4), (4, 0), (1, 1), (1, 4), (4, 1), (4, 4), (9, 4)]
    for n_tasks, n_providers in shapes:
        some = np.arange(n_tasks * n_providers).reshape(n_tasks, n_providers) % 5 + 1
        name = f"{n_tasks} x {n_providers}"
        free = ones[:n_providers]
        yield f"{name}, some of each", (some, free)
        yield f"{name}, all alike", (np.full_like(some, 7), free)
        yield f"{name}, all zero", (np.zeros_like(some), free)
        yield f"{name}, all negative", (-some, free)
        yield f"{name}, no slots", (some, 0 * free)
        yield f"{name}, more slots than tasks", (some, 10 * free)
        yield f"{name}, as many slots as an int64 holds", (some, (2**63 - 1) * free)
        rows = some * (np.arange(n_tasks) % 2)[:, None] - 1
        yield f"{name}, every other row without welfare", (rows, free)
        yield f"{name}, every other provider without slots", (some, np.arange(n_providers) % 2)


@pytest.mark.parametrize("mode", CLEARING_MODES)
@pytest.mark.parametrize("market", [pytest.param(market, id=name) for name, market in list_edges()])
def test_edges_clear_verify_and_travel_in_both_forms(market: Market, mode: str) -> None:
    welfare, slots = market
    clearing = clear(welfare, slots, mode=mode)
    lists = as_lists(welfare)
    listed = clear(lists, slots, mode=mode)
    for form, cleared in itertools.product((welfare, lists), (clearing, listed)):
        verify(form, slots, cleared)
        check_invariants(welfare, slots, cleared)
        travelled = decode_clearing(encode_clearing(cleared), form, slots)
        verify(form, slots, travelled)
    if not (welfare > 0).any() or not slots.any():
        assert clearing.assignment.tolist() == [-1] * len(welfare)
        assert clearing.vcg_bonuses.tolist() == [0] * len(slots)
        assert clearing.surcharges.tolist() == [0] * len(welfare)
    if not (welfare > 0).any():
        assert clearing.slot_prices.tolist() == [0] * len(slots)


def as_lists(welfare: IntArray) -> CandidateWelfare:
    n_tasks, n_providers = welfare.shape
    return CandidateWelfare(np.tile(np.arange(n_providers), (n_tasks, 1)), welfare, n_providers)
