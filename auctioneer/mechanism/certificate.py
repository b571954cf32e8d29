"""Checking a clearing without a solver, and without agreement on ties.

Four facts prove a clearing. The first two are checked in time linear in the welfare matrix:

1. *Optimal.* With the duals π and u_j = max(0, max_i w_ij − π_i), any matching's welfare is at
   most Σ_j u_j + Σ_i slots_i · π_i. Complementary slackness (every matched task sits where it
   gains u_j, every unmatched task has u_j = 0, every provider with a slot left has π_i = 0)
   makes the claimed matching reach that bound.
2. *Least.* Many duals prove the same optimum. Any dual p has p_i ≥ w_ji for an unmatched j, and
   p_i ≥ w_ji − w_jk + p_k for a j matched at k. So a predecessor of each positive π_i, where
   equality holds and no circle closes, shows by induction that no dual has a smaller π_i.
3. *Bonuses.* W − W_{−i} does not depend on which optimal matching it is computed from, so once 1
   holds the verifier computes all of them from the claimed one, without a solver, and compares.
4. *Charged by rule.* Surcharges are what the mode's rule gives.
Source: docs/spec/auction.md §4; design §5.
"""

from __future__ import annotations

import numpy as np

from auctioneer.mechanism.arrays import IntArray, is_int64
from auctioneer.mechanism.bonuses import compute_vcg_bonuses
from auctioneer.mechanism.clearing import (
    Certificate,
    Clearing,
    compute_own_gains,
    validate_amounts,
    validate_indices,
)
from auctioneer.mechanism.errors import (
    CapacityExceededError,
    ComplementarySlacknessError,
    CyclicPredecessorsError,
    InfeasiblePairError,
    MalformedClearingError,
    PriceNotLeastError,
    WrongBonusError,
    WrongSurchargeError,
    WrongWelfareError,
)
from auctioneer.mechanism.gains import CandidateWelfare, Gains, read_market
from auctioneer.mechanism.modes import compute_surcharges, validate_mode
from auctioneer.mechanism.residual import build_residual


def verify(welfare: IntArray | CandidateWelfare, slots: IntArray, clearing: Clearing) -> None:
    """Check that a clearing is what the mechanism gives for this market, up to ties.

    welfare, slots: as for `clear`.
    Raises: the errors of `clear` for bad input; else a subclass of InvalidClearingError that
    names the rule broken: MalformedClearingError, InfeasiblePairError, CapacityExceededError,
    WrongWelfareError, ComplementarySlacknessError, PriceNotLeastError, CyclicPredecessorsError,
    WrongBonusError, WrongSurchargeError.
    """
    gains = verify_matching_and_prices(welfare, slots, clearing)
    fallbacks = _verify_bonuses(gains, slots, clearing)
    expected = compute_surcharges(
        clearing.mode,
        clearing.assignment,
        welfare=compute_own_gains(gains, clearing.assignment),
        slot_prices=clearing.slot_prices,
        bonuses=clearing.vcg_bonuses,
        fallbacks=fallbacks,
    )
    wrong = np.flatnonzero(clearing.surcharges != expected)
    if len(wrong):
        raise WrongSurchargeError(
            f"task {wrong[0]} is charged otherwise than mode {clearing.mode!r} says",
            task=int(wrong[0]),
        )


def verify_matching_and_prices(
    welfare: IntArray | CandidateWelfare, slots: IntArray, clearing: Clearing
) -> Gains:
    """Check the part of a clearing that needs no search: W, the matching, π and its proof.

    Returns: the market's gains, for what comes next.
    Raises: see `verify`.
    """
    gains = read_market(welfare, slots)
    validate_mode(clearing.mode)
    _validate_arrays(clearing, *gains.shape)
    used = _verify_matching(gains, slots, clearing)
    _verify_optimal(gains, slots, clearing, used)
    _verify_least(gains, clearing)
    return gains


def _validate_arrays(clearing: Clearing, n_tasks: int, n_providers: int) -> None:
    """Check types, shapes and ranges, so that all later arithmetic is safe."""
    if not isinstance(clearing.certificate, Certificate):
        raise MalformedClearingError("the clearing has no certificate", field="certificate")
    arrays = {
        "assignment": (clearing.assignment, n_tasks),
        "slot_prices": (clearing.slot_prices, n_providers),
        "vcg_bonuses": (clearing.vcg_bonuses, n_providers),
        "surcharges": (clearing.surcharges, n_tasks),
        "predecessor_tasks": (clearing.certificate.predecessor_tasks, n_providers),
    }
    for name, (values, length) in arrays.items():
        if not is_int64(values, 1) or len(values) != length:
            raise MalformedClearingError(f"{name} must be int64 of length {length}", field=name)
    validate_indices("assignment", clearing.assignment, n_providers)
    validate_indices("predecessor_tasks", clearing.certificate.predecessor_tasks, n_tasks)
    for name, amounts in (
        ("slot_prices", clearing.slot_prices),
        ("vcg_bonuses", clearing.vcg_bonuses),
    ):
        validate_amounts(name, amounts)
    if type(clearing.welfare_micros) is not int:
        raise MalformedClearingError("welfare_micros must be an int", field="welfare_micros")


def _verify_matching(gains: Gains, slots: IntArray, clearing: Clearing) -> IntArray:
    """Check feasibility, capacity and the total; return the slots used per provider."""
    matched = np.flatnonzero(clearing.assignment >= 0)
    providers = clearing.assignment[matched]
    own = gains.get_pairs(matched, providers)
    infeasible = matched[own <= 0]
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
    total = int(own.sum())
    if clearing.welfare_micros != total:
        raise WrongWelfareError(
            f"welfare_micros is {clearing.welfare_micros}, the matched pairs sum to {total}",
            expected=total,
        )
    return used


def _verify_optimal(gains: Gains, slots: IntArray, clearing: Clearing, used: IntArray) -> None:
    """Check that slot prices and matching prove each other optimal."""
    prices, assignment = clearing.slot_prices, clearing.assignment
    idle = np.flatnonzero((used < slots) & (prices > 0))
    if len(idle):
        raise ComplementarySlacknessError(
            f"provider {idle[0]} has a slot left, yet its slot price is positive",
            provider=int(idle[0]),
        )
    attained = np.zeros(len(assignment), dtype=np.int64)
    matched = np.flatnonzero(assignment >= 0)
    at = assignment[matched]
    attained[matched] = gains.get_pairs(matched, at) - prices[at]
    wrong = np.flatnonzero(attained != gains.compute_duals(prices))
    if len(wrong):
        raise ComplementarySlacknessError(
            f"task {wrong[0]} would gain more elsewhere at these slot prices", task=int(wrong[0])
        )


def _verify_least(gains: Gains, clearing: Clearing) -> None:
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
    at_own = gains.get_pairs(forcing, np.maximum(sources, 0)) - prices[np.maximum(sources, 0)]
    kept = np.where(sources >= 0, at_own, 0)
    loose = priced[gains.get_pairs(forcing, priced) - kept != prices[priced]]
    if len(loose):
        raise PriceNotLeastError(
            f"the predecessor of provider {loose[0]} does not force its slot price",
            provider=int(loose[0]),
        )
    _verify_acyclic(len(prices), priced, sources)


def _verify_bonuses(gains: Gains, slots: IntArray, clearing: Clearing) -> IntArray:
    """Compute every bonus from the matching, by now known to be optimal, and compare.

    Returns: the tasks' fallbacks.
    """
    residual = build_residual(gains, slots, clearing.assignment)
    bonuses, fallbacks = compute_vcg_bonuses(gains, clearing.assignment, residual)
    wrong = np.flatnonzero(clearing.vcg_bonuses != bonuses)
    if len(wrong):
        first = int(wrong[0])
        raise WrongBonusError(
            f"provider {first} has a bonus of {clearing.vcg_bonuses[first]} "
            f"and adds {bonuses[first]} to the market",
            provider=first,
            expected=int(bonuses[first]),
        )
    return fallbacks


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
