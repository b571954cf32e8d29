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

from itertools import pairwise

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from iemas.core.errors import InternalError

_NEVER = np.int64(-(2**62))
"""Stands for minus infinity: no sum of a gain and a price comes near it."""


def compute_slot_prices(welfare: IntArray, assignment: IntArray) -> tuple[IntArray, IntArray]:
    """Compute π and the predecessor tasks from one optimal matching.

    welfare: int64, shape (n_tasks, n_providers). assignment: an optimal matching of it.
    Returns: slot prices and predecessor tasks (−1 where the price is 0), int64, (n_providers,).
    Raises: InternalError if the matching is not optimal, as prices then never settle.
    """
    gains = np.maximum(welfare, 0)
    prices, predecessor_tasks = _compute_direct_prices(gains, assignment)
    sources, moves, moving_tasks = _compute_moves(gains, assignment)
    active = np.arange(len(sources))
    targets = np.arange(len(prices))
    for _ in range(len(prices) + 1):
        if len(active) == 0:
            return prices, predecessor_tasks
        offers = moves[active] + prices[sources[active], None]
        best = offers.argmax(axis=0)
        offered = offers[best, targets]
        raised = offered > prices
        # All prices rise at once, from the prices of the round before.
        prices = np.where(raised, offered, prices)
        predecessor_tasks[raised] = moving_tasks[active[best[raised]], targets[raised]]
        active = np.flatnonzero(raised[sources])
    raise InternalError("slot prices rise without end: the matching is not optimal")


def _compute_direct_prices(gains: IntArray, assignment: IntArray) -> tuple[IntArray, IntArray]:
    """Price each provider by the best unmatched task alone."""
    n_providers = gains.shape[1]
    unmatched = np.flatnonzero(assignment < 0)
    if len(unmatched) == 0 or n_providers == 0:
        return np.zeros(n_providers, np.int64), np.full(n_providers, -1, np.int64)
    rows = gains[unmatched]
    best = rows.argmax(axis=0)
    prices = rows[best, np.arange(n_providers)]
    return prices, np.where(prices > 0, unmatched[best], -1)


def _compute_moves(gains: IntArray, assignment: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Compute the best move of a task from each provider that has one to every other.

    Returns: the n providers with tasks; the gain w_ji − w_jk of the best task to move from k to
    i, shape (n, n_providers), `_NEVER` where i = k; and that task, the first of the best.
    """
    n_providers = gains.shape[1]
    matched = np.flatnonzero(assignment >= 0)
    order = matched[np.argsort(assignment[matched], kind="stable")]
    sources, starts = np.unique(assignment[order], return_index=True)
    moves = np.full((len(sources), n_providers), _NEVER, dtype=np.int64)
    tasks = np.full((len(sources), n_providers), -1, dtype=np.int64)
    differences = gains[order] - gains[order, assignment[order]][:, None]
    columns = np.arange(n_providers)
    bounds = [*starts.tolist(), len(order)]
    for row, (start, end) in enumerate(pairwise(bounds)):
        group = differences[start:end]
        best = group.argmax(axis=0)
        moves[row] = group[best, columns]
        tasks[row] = order[start + best]
    moves[np.arange(len(sources)), sources] = _NEVER
    return sources, moves, tasks
