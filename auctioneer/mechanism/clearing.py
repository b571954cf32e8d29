"""Clearing a round: one optimal matching, its slot prices, their proof, and who pays what.

`clear` is the one door into the mechanism and `auctioneer.mechanism.certificate.verify` the one
check of what comes out. A `Clearing` travels as `iemas.core.auction.ClearingResult`.
Source: docs/spec/auction.md; design §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism.arrays import MAX_TOTAL_MICROS, IntArray, freeze
from auctioneer.mechanism.assignment import compute_assignment
from auctioneer.mechanism.bonuses import compute_vcg_bonuses
from auctioneer.mechanism.errors import MalformedClearingError
from auctioneer.mechanism.gains import CandidateWelfare, Gains, read_market
from auctioneer.mechanism.modes import compute_surcharges, validate_mode
from auctioneer.mechanism.payments import compute_slot_prices
from auctioneer.mechanism.residual import Residual, build_residual
from iemas.core.auction import ClearingResult


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """Why each slot price is least.

    `predecessor_tasks`, int64, shape (n_providers,): the task that forces the price of a slot at
    i, −1 where the price is 0. It is unmatched with w_ji = π_i, or matched at another provider k
    with w_ji − w_jk + π_k = π_i; following predecessors from provider to provider never circles.
    The other half of the proof, the tasks' duals max(0, max_i w_ij − π_i), is recomputed.
    """

    predecessor_tasks: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Clearing:
    """The result of a round, in read-only arrays; compare two by `encode_clearing`.

    `assignment`: each task's provider, −1 unmatched; int64, shape (n_tasks,).
    `welfare_micros`: W, the greatest total welfare.
    `slot_prices`: π, micro-credits, int64, shape (n_providers,).
    `vcg_bonuses`: W − W_{−i}, what each provider adds to the market, whatever the mode;
    micro-credits, int64, shape (n_providers,).
    `surcharges`: x, what each task pays above its provider's expected cost, 0 where unmatched;
    micro-credits, int64, shape (n_tasks,).
    `mode`: the rule behind `surcharges`, see `auctioneer.mechanism.modes`.
    """

    assignment: IntArray
    welfare_micros: int
    slot_prices: IntArray
    vcg_bonuses: IntArray
    surcharges: IntArray
    mode: str
    certificate: Certificate

    @property
    def vcg_deficit_micros(self) -> int:
        """What full two-sided VCG would lose: all bonuses paid, only slot prices taken in.

        It is reported and never settled. Never negative, as n_i·π_i ≤ bonus_i.
        """
        matched = self.assignment[self.assignment >= 0]
        return int(self.vcg_bonuses.sum() - self.slot_prices[matched].sum())


@dataclass(frozen=True, slots=True, eq=False)
class PricedMatching:
    """A matching with its slot prices and their proof: what every mode begins with."""

    assignment: IntArray
    slot_prices: IntArray
    predecessor_tasks: IntArray
    residual: Residual


def clear(
    welfare: IntArray | CandidateWelfare, slots: IntArray, *, mode: str = "provider"
) -> Clearing:
    """Compute the welfare-optimal matching, the payments and the certificate of a round.

    welfare: w_ij in micro-credits, int64, shape (n_tasks, n_providers), or lists of candidates;
    ≤ 0 means "not feasible".
    slots: free slots, int64, shape (n_providers,).
    mode: how the surplus is split: "provider", "client" or "threshold".
    The same input gives the same output. Where several matchings are optimal, the order of rows
    and columns decides, so pass providers in the order that is to decide ties.
    Raises: InvalidWelfareError, InvalidCandidatesError, InvalidSlotsError, WelfareOverflowError,
    UnknownModeError.   Source: docs/spec/auction.md §2 to §5; Leonard 1983.
    """
    validate_mode(mode)
    gains = read_market(welfare, slots)
    priced = match_and_price(gains, slots)
    bonuses, fallbacks = compute_vcg_bonuses(gains, priced.assignment, priced.residual)
    own = compute_own_gains(gains, priced.assignment)
    surcharges = compute_surcharges(
        mode,
        priced.assignment,
        welfare=own,
        slot_prices=priced.slot_prices,
        bonuses=bonuses,
        fallbacks=fallbacks,
    )
    return Clearing(
        assignment=freeze(priced.assignment),
        welfare_micros=int(own.sum()),
        slot_prices=freeze(priced.slot_prices),
        vcg_bonuses=freeze(bonuses),
        surcharges=freeze(surcharges),
        mode=mode,
        certificate=Certificate(freeze(priced.predecessor_tasks)),
    )


def match_and_price(gains: Gains, slots: IntArray) -> PricedMatching:
    """Match, and compute what every requester would pay by VCG: all that `client` mode needs."""
    assignment = compute_assignment(gains, slots)
    residual = build_residual(gains, slots, assignment)
    slot_prices, predecessor_tasks = compute_slot_prices(gains, assignment, residual)
    return PricedMatching(assignment, slot_prices, predecessor_tasks, residual)


def compute_own_gains(gains: Gains, assignment: IntArray) -> IntArray:
    """Give each task's welfare where it is matched, 0 where it is not."""
    own = np.zeros(len(assignment), dtype=np.int64)
    matched = np.flatnonzero(assignment >= 0)
    own[matched] = gains.get_pairs(matched, assignment[matched])
    return own


def encode_clearing(clearing: Clearing) -> ClearingResult:
    """Put a clearing into the plain integers that travel in a transcript."""
    return ClearingResult(
        mode=clearing.mode,
        assignment=tuple(clearing.assignment.tolist()),
        welfare_micros=clearing.welfare_micros,
        slot_prices_micros=tuple(clearing.slot_prices.tolist()),
        predecessor_tasks=tuple(clearing.certificate.predecessor_tasks.tolist()),
        vcg_bonuses_micros=tuple(clearing.vcg_bonuses.tolist()),
        surcharges_micros=tuple(clearing.surcharges.tolist()),
    )


def decode_clearing(
    result: ClearingResult, welfare: IntArray | CandidateWelfare, slots: IntArray
) -> Clearing:
    """Rebuild a clearing of this market from its transcript.

    Only shapes and ranges are checked: `verify` decides whether the clearing holds.
    Raises: MalformedClearingError, UnknownModeError, and the errors of `clear` for bad input.
    """
    validate_mode(result.mode)
    gains = read_market(welfare, slots)
    n_tasks, n_providers = gains.shape
    assignment = _decode_array("assignment", result.assignment, n_tasks)
    slot_prices = _decode_array("slot_prices_micros", result.slot_prices_micros, n_providers)
    bonuses = _decode_array("vcg_bonuses_micros", result.vcg_bonuses_micros, n_providers)
    surcharges = _decode_array("surcharges_micros", result.surcharges_micros, n_tasks)
    predecessors = _decode_array("predecessor_tasks", result.predecessor_tasks, n_providers)
    validate_indices("assignment", assignment, n_providers)
    validate_indices("predecessor_tasks", predecessors, n_tasks)
    validate_amounts("slot_prices_micros", slot_prices)
    validate_amounts("vcg_bonuses_micros", bonuses)
    validate_amounts("surcharges_micros", surcharges)
    return Clearing(
        assignment=freeze(assignment),
        welfare_micros=result.welfare_micros,
        slot_prices=freeze(slot_prices),
        vcg_bonuses=freeze(bonuses),
        surcharges=freeze(surcharges),
        mode=result.mode,
        certificate=Certificate(freeze(predecessors)),
    )


def validate_indices(name: str, indices: IntArray, count: int) -> None:
    """Refuse indices outside −1..count − 1.

    Raises: MalformedClearingError with `field`.
    """
    if len(indices) and (indices.min() < -1 or indices.max() >= count):
        raise MalformedClearingError(f"{name} must be in -1..{count - 1}", field=name)


def validate_amounts(name: str, amounts: IntArray) -> None:
    """Refuse amounts outside 0..`MAX_TOTAL_MICROS`.

    Raises: MalformedClearingError with `field`.
    """
    if len(amounts) and (amounts.min() < 0 or amounts.max() > MAX_TOTAL_MICROS):
        raise MalformedClearingError(f"{name} must be in 0..{MAX_TOTAL_MICROS}", field=name)


def _decode_array(name: str, values: Sequence[int], length: int) -> IntArray:
    if len(values) != length:
        raise MalformedClearingError(
            f"{name} must have {length} entries, got {len(values)}", field=name
        )
    limit = 2**63
    if any(type(value) is not int or not -limit <= value < limit for value in values):
        raise MalformedClearingError(f"{name} must hold 64-bit integers", field=name)
    return np.array(values, dtype=np.int64)
