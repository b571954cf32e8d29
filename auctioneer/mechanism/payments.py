"""Slot prices: what one more slot at each provider would be worth to this market.

π is the least fix point, reached from 0 upwards, of

    π_i = max(0, max over unmatched j of w_ji,
              max over k ≠ i of (max over tasks j matched at k of (w_ji − w_jk)) + π_k)

One more slot at i goes to an unmatched task, or to a task that leaves k and so frees a slot worth
π_k there. This is the longest path in a graph of providers; a positive cycle would improve the
matching, so an optimal one has none and Bellman and Ford's rounds end. Then π is the minimal
competitive price (Leonard 1983) and each matched task's Clarke payment: what the others lose by
its presence, π_i = W_{−j} − (W − w_ji). One matching suffices; nothing is solved again.

Each positive π_i comes with the task that forces it, its predecessor. Following predecessors
always ends at an unmatched task or at a provider of price 0: a price is only ever raised strictly,
so a circle would be a cycle of gain 0 through a node that was just raised, while its successor,
not raised, already stood at the higher value.
Source: docs/spec/auction.md §3 and §4; Leonard 1983.
"""

from __future__ import annotations

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import Gains
from auctioneer.mechanism.residual import Residual, find_moving_tasks
from iemas.core.errors import InternalError


def compute_slot_prices(
    gains: Gains, assignment: IntArray, residual: Residual
) -> tuple[IntArray, IntArray]:
    """Compute π and the predecessor tasks from one optimal matching.

    residual: of that matching, see `build_residual`.
    Returns: slot prices and predecessor tasks (−1 where the price is 0), int64, (n_providers,).
    Raises: InternalError if the matching is not optimal, as prices then never settle.
    """
    # First every provider is priced by the best unmatched task alone.
    prices, predecessor_tasks = gains.compute_best_tasks(np.flatnonzero(assignment < 0))
    sources = np.full(len(prices), -1, dtype=np.int64)
    active = residual.holders
    for _ in range(len(prices) + 1):
        if len(active) == 0:
            break
        # All prices rise at once, from the prices of the round before.
        offers = residual.moves[active, :-1] + prices[active, None]
        best = offers.max(axis=0)
        raised = np.flatnonzero(best > prices)
        sources[raised] = active[offers[:, raised].argmax(axis=0)]
        prices[raised] = best[raised]
        active = raised[residual.counts[raised] > 0]
    else:
        raise InternalError("slot prices rise without end: the matching is not optimal")
    moved = np.flatnonzero(sources >= 0)
    if len(moved):
        tasks = residual.table[sources[moved]]
        columns = find_moving_tasks(gains, tasks, sources[moved], moved)
        predecessor_tasks[moved] = tasks[np.arange(len(moved)), columns]
    return prices, predecessor_tasks
