"""Clearing modes: how the surplus of a match is split between a provider and its tasks.

A task pays its provider's expected cost and a surcharge, P_j = C_ij + x_j; a mode is a rule for
x_j. Every payment goes from a requester to its own provider, so every mode balances its budget.
A mode is added by its rule in `_SURCHARGE_RULES`; matching, slot prices and certificate stay.
Source: docs/spec/auction.md §5; design §5.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import ModeNotAvailableError, UnknownModeError

MODES = ("provider", "client", "threshold")
"""Every mode that the design names."""

SurchargeRule = Callable[[IntArray, IntArray], IntArray]
"""(assignment, slot prices) to surcharges, shape (n_tasks,), 0 where unmatched."""


def _compute_client_surcharges(assignment: IntArray, slot_prices: IntArray) -> IntArray:
    """Charge each task its provider's slot price: the VCG payment."""
    surcharges = np.zeros(len(assignment), dtype=np.int64)
    matched = np.flatnonzero(assignment >= 0)
    surcharges[matched] = slot_prices[assignment[matched]]
    return surcharges


_SURCHARGE_RULES: dict[str, SurchargeRule] = {"client": _compute_client_surcharges}


def get_surcharge_rule(mode: str) -> SurchargeRule:
    """Look up a mode's rule.

    Raises: UnknownModeError, ModeNotAvailableError.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise UnknownModeError(
            f"mode must be one of {', '.join(MODES)}, got {mode!r}", argument="mode"
        )
    if mode not in _SURCHARGE_RULES:
        raise ModeNotAvailableError(
            f"mode {mode!r} comes with a later version; use 'client'",
            argument="mode",
        )
    return _SURCHARGE_RULES[mode]
