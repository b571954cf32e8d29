"""The arrays that enter the mechanism: int64 of the right shape, or a named error.

Nothing is cast. A float matrix, even one of whole numbers, is refused: it may have been rounded
before it got here, and two verifiers might not round alike.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from auctioneer.mechanism.errors import (
    InvalidSlotsError,
    InvalidWelfareError,
    WelfareOverflowError,
)

IntArray = npt.NDArray[np.int64]

MAX_TOTAL_MICROS: Final = 2**50
"""Bound on the sum over the tasks of their best pair's welfare.

Every path sum and potential inside the matching is a whole number below eight times this, 2^53,
so float64 holds it exactly. See `auctioneer.mechanism.assignment`.
"""


def is_int64(value: object, ndim: int) -> bool:
    """Tell whether the value is an int64 array of so many dimensions.

    A subclass is none: `np.matrix` multiplies and a masked array compares in its own way.
    """
    return type(value) is np.ndarray and value.dtype == np.int64 and value.ndim == ndim


def freeze(values: IntArray) -> IntArray:
    """Make an array read-only: results are values."""
    values.setflags(write=False)
    return values


def validate_market(welfare: object, slots: object) -> IntArray:
    """Check the two arrays that describe a market; give the gains, welfare but at least 0.

    welfare: micro-credits, int64, shape (n_tasks, n_providers); entries ≤ 0 are not feasible.
    slots: free slots, int64, shape (n_providers,), no entry negative.
    Raises: InvalidWelfareError, WelfareOverflowError, InvalidSlotsError.
    """
    if not (isinstance(welfare, np.ndarray) and is_int64(welfare, 2)):
        raise InvalidWelfareError(
            f"welfare must be an int64 matrix (n_tasks, n_providers), got {describe(welfare)}",
            argument="welfare",
        )
    validate_slots(slots, welfare.shape[1])
    gains = np.maximum(welfare, 0)
    validate_total(gains)
    return gains


def validate_slots(slots: object, n_providers: int) -> None:
    """Check free slots.

    Raises: InvalidSlotsError.
    """
    if not (isinstance(slots, np.ndarray) and is_int64(slots, 1) and len(slots) == n_providers):
        raise InvalidSlotsError(
            f"slots must be an int64 array ({n_providers},), got {describe(slots)}",
            argument="slots",
        )
    if n_providers and slots.min() < 0:
        raise InvalidSlotsError("slots must not be negative", argument="slots")


def validate_total(
    welfare: IntArray, limit: int = MAX_TOTAL_MICROS, *, argument: str = "welfare"
) -> None:
    """Refuse a market whose matching might not be exact.

    welfare: one row a task, of all providers or of its candidates. argument: its name in errors.
    Raises: WelfareOverflowError.
    """
    if welfare.size == 0:
        return
    best = np.maximum(welfare.max(axis=1), 0)
    # Summed as Python's integers, which cannot wrap.
    if sum(best.tolist()) > limit:
        raise WelfareOverflowError(
            f"the tasks' best pairs sum to over {limit} micro-credits in welfare; "
            "clear fewer tasks in a round or use a larger unit",
            argument=argument,
        )


def describe(value: object) -> str:
    """Say what a value is, for an error."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
