"""Checking a clearing without a solver, and without agreement on ties.

Three facts prove a clearing, each checked in time linear in the welfare matrix:

1. *Optimal.* With the duals π and u_j = max(0, max_i w_ij − π_i), any matching's welfare is at
   most Σ_j u_j + Σ_i slots_i · π_i. Complementary slackness (every matched task sits where it
   gains u_j, every unmatched task has u_j = 0, every provider with a slot left has π_i = 0)
   makes the claimed matching reach that bound.
2. *Least.* Many duals prove the same optimum. Any dual p has p_i ≥ w_ji for an unmatched j, and
   p_i ≥ w_ji − w_jk + p_k for a j matched at k. So a predecessor of each positive π_i, where
   equality holds and no circle closes, shows by induction that no dual has a smaller π_i.
3. *Charged by rule.* Surcharges are what the mode's rule gives.
Source: docs/spec/auction.md §4; design §5.
"""

from __future__ import annotations

import numpy as np

from auctioneer.mechanism.arrays import (
    MAX_TOTAL_MICROS,
    IntArray,
    is_int64,
    validate_market,
)
from auctioneer.mechanism.assignment import compute_total
from auctioneer.mechanism.clearing import Clearing, validate_indices
from auctioneer.mechanism.errors import (
    CapacityExceededError,
    ComplementarySlacknessError,
    CyclicPredecessorsError,
    InfeasiblePairError,
    MalformedClearingError,
    PriceNotLeastError,
    WrongSurchargeError,
    WrongWelfareError,
)
from auctioneer.mechanism.modes import get_surcharge_rule


def verify(welfare: IntArray, slots: IntArray, clearing: Clearing) -> None:
    """Check that a clearing is what the mechanism gives for this market, up to ties.

    welfare, slots: as for `clear`.
    Raises: the errors of `clear` for bad input; else a subclass of InvalidClearingError that
    names the rule broken: MalformedClearingError, InfeasiblePairError, CapacityExceededError,
    WrongWelfareError, ComplementarySlacknessError, PriceNotLeastError, CyclicPredecessorsError,
    WrongSurchargeError.
    """
    welfare, slots = validate_market(welfare, slots)
    compute_surcharges = get_surcharge_rule(clearing.mode)
    _validate_arrays(clearing, *welfare.shape)
    used = _verify_matching(welfare, slots, clearing)
    _verify_optimal(welfare, slots, clearing, used)
    _verify_least(welfare, clearing)
    expected = compute_surcharges(clearing.assignment, clearing.slot_prices)
    wrong = np.flatnonzero(clearing.surcharges != expected)
    if len(wrong):
        raise WrongSurchargeError(
            f"task {wrong[0]} is charged otherwise than mode {clearing.mode!r} says",
            task=int(wrong[0]),
        )


def _validate_arrays(clearing: Clearing, n_tasks: int, n_providers: int) -> None:
    """Check types, shapes and ranges, so that all later arithmetic is safe."""
    arrays = {
        "assignment": (clearing.assignment, n_tasks),
        "slot_prices": (clearing.slot_prices, n_providers),
        "surcharges": (clearing.surcharges, n_tasks),
        "predecessor_tasks": (clearing.certificate.predecessor_tasks, n_providers),
    }
    for name, (values, length) in arrays.items():
        if not is_int64(values, 1) or len(values) != length:
            raise MalformedClearingError(f"{name} must be int64 of length {length}", field=name)
    validate_indices("assignment", clearing.assignment, n_providers)
    validate_indices("predecessor_tasks", clearing.certificate.predecessor_tasks, n_tasks)
    prices = clearing.slot_prices
    if n_providers and (prices.min() < 0 or prices.max() > MAX_TOTAL_MICROS):
        raise MalformedClearingError(
            f"slot_prices must be in 0..{MAX_TOTAL_MICROS}", field="slot_prices"
        )
    if type(clearing.welfare_micros) is not int:
        raise MalformedClearingError("welfare_micros must be an int", field="welfare_micros")


def _verify_matching(welfare: IntArray, slots: IntArray, clearing: Clearing) -> IntArray:
    """Check feasibility, capacity and the total; return the slots used per provider."""
    matched = np.flatnonzero(clearing.assignment >= 0)
    providers = clearing.assignment[matched]
    infeasible = matched[welfare[matched, providers] <= 0]
    if len(infeasible):
        raise InfeasiblePairError(
            f"task {infeasible[0]} is matched where its welfare is not positive",
            task=int(infeasible[0]),
        )
    used = np.bincount(providers, minlength=len(slots)).astype(np.int64)
    over = np.flatnonzero(used > slots)
    if len(over):
        raise CapacityExceededError(
            f"provider {over[0]} has {slots[over[0]]} slots and got {used[over[0]]} tasks",
            provider=int(over[0]),
        )
    total = compute_total(welfare, clearing.assignment)
    if clearing.welfare_micros != total:
        raise WrongWelfareError(
            f"welfare_micros is {clearing.welfare_micros}, the matched pairs sum to {total}",
            expected=total,
        )
    return used


def _verify_optimal(welfare: IntArray, slots: IntArray, clearing: Clearing, used: IntArray) -> None:
    """Check that slot prices and matching prove each other optimal."""
    idle = np.flatnonzero((used < slots) & (clearing.slot_prices > 0))
    if len(idle):
        raise ComplementarySlacknessError(
            f"provider {idle[0]} has a slot left, yet its slot price is positive",
            provider=int(idle[0]),
        )
    gains = np.maximum(welfare, 0) - clearing.slot_prices
    duals = np.maximum(gains.max(axis=1, initial=0), 0)
    attained = np.zeros(len(welfare), dtype=np.int64)
    matched = np.flatnonzero(clearing.assignment >= 0)
    attained[matched] = gains[matched, clearing.assignment[matched]]
    wrong = np.flatnonzero(attained != duals)
    if len(wrong):
        raise ComplementarySlacknessError(
            f"task {wrong[0]} would gain more elsewhere at these slot prices", task=int(wrong[0])
        )


def _verify_least(welfare: IntArray, clearing: Clearing) -> None:
    """Check that predecessors force every positive slot price."""
    prices = clearing.slot_prices
    tasks = clearing.certificate.predecessor_tasks
    wrong = np.flatnonzero((prices > 0) != (tasks >= 0))
    if len(wrong):
        raise PriceNotLeastError(
            f"provider {wrong[0]} has a slot price of {prices[wrong[0]]} and "
            f"predecessor {tasks[wrong[0]]}",
            provider=int(wrong[0]),
        )
    priced = np.flatnonzero(prices > 0)
    forcing = tasks[priced]
    sources = clearing.assignment[forcing]
    # What the forcing task gives up: its gain at its own provider, nothing if unmatched.
    kept = np.where(sources >= 0, welfare[forcing, sources] - prices[sources], 0)
    loose = priced[np.maximum(welfare[forcing, priced], 0) - kept != prices[priced]]
    if len(loose):
        raise PriceNotLeastError(
            f"the predecessor of provider {loose[0]} does not force its slot price",
            provider=int(loose[0]),
        )
    _verify_acyclic(len(prices), priced, sources)


def _verify_acyclic(n_providers: int, priced: IntArray, sources: IntArray) -> None:
    """Follow all predecessors at once, doubling the stride, until every chain has ended."""
    end = n_providers
    following = np.full(n_providers + 1, end, dtype=np.int64)
    following[priced] = np.where(sources >= 0, sources, end)
    for _ in range(n_providers.bit_length()):
        following = following[following]
    circling = np.flatnonzero(following != end)
    if len(circling):
        raise CyclicPredecessorsError(
            f"the predecessors of provider {circling[0]} run in a circle",
            provider=int(circling[0]),
        )
