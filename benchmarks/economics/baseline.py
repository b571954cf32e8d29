"""Everybody truthful: how good the matching is, who gets the gains, who loses.

What a market gives is returned in money of that market; report.py adds up before it divides, so
large markets count for more.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from benchmarks.economics.rounds import clear_all, find_possible
from benchmarks.economics.search import Truthful
from iemas.core.params import CLEARING_MODES

_LOSS: Final = 100.0
"""Less than a micro-credit is rounding, not a loss."""

Row = dict[str, float]


def measure_market(market: Truthful, optimum: float) -> list[tuple[str, Row]]:
    """Measure one market under one forecast: a row a mode.

    optimum: the welfare of the same market's matching under perfect predictions, fine units.
    """
    pairs, cleared = market.pairs, market.cleared
    matched = np.array(cleared.matched, dtype=np.int64)
    at = cleared.assignment[matched]
    welfare = float((pairs.worth - pairs.effort)[matched, at].sum())
    deficit = float(cleared.bonuses.sum() - cleared.slot_prices[at].sum())
    rows = []
    for mode in CLEARING_MODES:
        outcome = market.outcomes[mode]
        requesters, payments = outcome.requesters[matched], outcome.payments[matched]
        busy = np.unique(at)
        providers = outcome.providers[busy]
        rows.append(
            (
                mode,
                {
                    "optimum": optimum,
                    "welfare": welfare,
                    "declared_welfare": float(cleared.own.sum()),
                    "matched": float(len(matched)),
                    "tasks": float(len(cleared.assignment)),
                    "busy_providers": float(len(busy)),
                    "payments": float(payments.sum()),
                    "providers_gain": float(outcome.providers.sum()),
                    "requesters_gain": float(outcome.requesters.sum()),
                    "deficit": deficit,
                    "losing_requesters": float((requesters < -_LOSS).sum()),
                    "losing_providers": float((providers < -_LOSS).sum()),
                    "requesters_loss": float(-requesters[requesters < 0].sum()),
                    "providers_loss": float(-providers[providers < 0].sum()),
                },
            )
        )
    return rows


def compute_relaxed_optimum(market: Truthful) -> float:
    """Compute the optimum if a bid need not cover the ask kind by kind, only in the sum."""
    world, pairs = market.world, market.pairs
    relaxed = pairs.relax(find_possible(world))
    return float(clear_all(relaxed, world.slots).own.sum())
