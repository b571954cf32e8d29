"""Clearing a round: one optimal matching, its slot prices, their proof, and who pays what.

`clear` is the one door into the mechanism and `auctioneer.mechanism.certificate.verify` the one
check of what comes out. A `Clearing` travels as `iemas.core.auction.ClearingResult`: surcharges
are left out, as the mode's rule gives them back.
Source: docs/spec/auction.md; design §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism.arrays import IntArray, freeze, validate_market
from auctioneer.mechanism.assignment import compute_assignment, compute_total
from auctioneer.mechanism.errors import MalformedClearingError
from auctioneer.mechanism.modes import get_surcharge_rule
from auctioneer.mechanism.payments import compute_slot_prices
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
    `surcharges`: x, what each task pays above its provider's expected cost, 0 where unmatched;
    micro-credits, int64, shape (n_tasks,).
    `mode`: the rule behind `surcharges`, see `auctioneer.mechanism.modes`.
    """

    assignment: IntArray
    welfare_micros: int
    slot_prices: IntArray
    surcharges: IntArray
    mode: str
    certificate: Certificate


def clear(welfare: IntArray, slots: IntArray, *, mode: str = "client") -> Clearing:
    """Compute the welfare-optimal matching, the payments and the certificate of a round.

    welfare: w_ij in micro-credits, int64, shape (n_tasks, n_providers); ≤ 0 means "not feasible".
    slots: free slots, int64, shape (n_providers,).
    mode: how the surplus is split; only "client" in this version.
    The same input gives the same output. Where several matchings are optimal, the order of rows
    and columns decides, so pass providers in the order that is to decide ties.
    Raises: InvalidWelfareError, InvalidSlotsError, WelfareOverflowError, UnknownModeError,
    ModeNotAvailableError.   Source: docs/spec/auction.md §2 to §5; Leonard 1983.
    """
    compute_surcharges = get_surcharge_rule(mode)
    welfare, slots = validate_market(welfare, slots)
    assignment = compute_assignment(welfare, slots)
    slot_prices, predecessor_tasks = compute_slot_prices(welfare, assignment)
    return Clearing(
        assignment=freeze(assignment),
        welfare_micros=compute_total(welfare, assignment),
        slot_prices=freeze(slot_prices),
        surcharges=freeze(compute_surcharges(assignment, slot_prices)),
        mode=mode,
        certificate=Certificate(freeze(predecessor_tasks)),
    )


def encode_clearing(clearing: Clearing) -> ClearingResult:
    """Put a clearing into the plain integers that travel in a transcript."""
    return ClearingResult(
        mode=clearing.mode,
        assignment=tuple(clearing.assignment.tolist()),
        welfare_micros=clearing.welfare_micros,
        slot_prices_micros=tuple(clearing.slot_prices.tolist()),
        predecessor_tasks=tuple(clearing.certificate.predecessor_tasks.tolist()),
    )


def decode_clearing(result: ClearingResult, n_tasks: int, n_providers: int) -> Clearing:
    """Rebuild a clearing from its transcript; surcharges follow from the mode.

    Only shapes and ranges are checked: `verify` decides whether the clearing holds.
    Raises: MalformedClearingError, UnknownModeError, ModeNotAvailableError.
    """
    compute_surcharges = get_surcharge_rule(result.mode)
    assignment = _decode_array("assignment", result.assignment, n_tasks)
    slot_prices = _decode_array("slot_prices_micros", result.slot_prices_micros, n_providers)
    predecessors = _decode_array("predecessor_tasks", result.predecessor_tasks, n_providers)
    validate_indices("assignment", assignment, n_providers)
    validate_indices("predecessor_tasks", predecessors, n_tasks)
    return Clearing(
        assignment=freeze(assignment),
        welfare_micros=result.welfare_micros,
        slot_prices=freeze(slot_prices),
        surcharges=freeze(compute_surcharges(assignment, slot_prices)),
        mode=result.mode,
        certificate=Certificate(freeze(predecessors)),
    )


def validate_indices(name: str, indices: IntArray, count: int) -> None:
    """Refuse indices outside −1..count − 1.

    Raises: MalformedClearingError with `field`.
    """
    if len(indices) and (indices.min() < -1 or indices.max() >= count):
        raise MalformedClearingError(f"{name} must be in -1..{count - 1}", field=name)


def _decode_array(name: str, values: Sequence[int], length: int) -> IntArray:
    if len(values) != length:
        raise MalformedClearingError(
            f"{name} must have {length} entries, got {len(values)}", field=name
        )
    limit = 2**63
    if any(type(value) is not int or not -limit <= value < limit for value in values):
        raise MalformedClearingError(f"{name} must hold 64-bit integers", field=name)
    return np.array(values, dtype=np.int64)
