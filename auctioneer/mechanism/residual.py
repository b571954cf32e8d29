"""The residual graph of a matching, folded onto its providers.

Whatever improves or repairs a matching is a chain of moves: a task leaves provider k for i, which
makes one of i's tasks leave, and so on until a free slot is reached or a task leaves the market.
Of all tasks at k the best to move to i is the one that matters, so a chain is a path in a graph
with one node a provider and one more for leaving the market:

    moves[k, i]  max over tasks j matched at k of (w_ji − w_jk), what the market gains
    moves[k, ·]  in the last column, how a slot at k gets free without a move to another provider:
                 0 while one is free, else −(the least welfare matched at k)

An optimal matching has no circle of positive gain. Slot prices are longest paths into this graph
from its unmatched tasks, bonuses shortest ways out of it. Source: docs/spec/auction.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import Gains

NEVER: Final = -(2**60)
"""Stands for minus infinity. Sums of a few of these and of prices stay within 64 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """The residual graph of an optimal matching.

    `moves`: int64, shape (n_providers, n_providers + 1), `NEVER` where nothing can move.
    `table`: the tasks matched at each provider in rising order, padded with −1.
    `counts`: how many they are. `free`: slots left. Both shape (n_providers,).
    """

    moves: IntArray
    table: IntArray
    counts: IntArray
    free: IntArray

    @property
    def holders(self) -> IntArray:
        """The providers that have tasks."""
        return np.flatnonzero(self.counts)


def build_residual(gains: Gains, slots: IntArray, assignment: IntArray) -> Residual:
    """Fold an optimal matching onto its providers."""
    n_providers = len(slots)
    matched = np.flatnonzero(assignment >= 0)
    order = matched[np.argsort(assignment[matched], kind="stable")]
    at = assignment[order]
    counts = np.bincount(at, minlength=n_providers).astype(np.int64)
    starts = np.cumsum(counts) - counts
    table = np.full((n_providers, int(counts.max(initial=0))), -1, dtype=np.int64)
    table[at, np.arange(len(order)) - starts[at]] = order
    free = slots - counts
    moves = np.full((n_providers, n_providers + 1), NEVER, dtype=np.int64)
    _fill_moves(moves, gains, order, at, counts)
    moves[free > 0, -1] = 0
    return Residual(moves, table, counts, free)


def _fill_moves(
    moves: IntArray, gains: Gains, order: IntArray, at: IntArray, counts: IntArray
) -> None:
    """Fill in the best move of each provider's tasks, a bounded number of rows at a time."""
    holders = np.flatnonzero(counts)
    if len(holders) == 0:
        return
    own = gains.get_pairs(order, at)
    ends = np.cumsum(counts[holders])
    starts = ends - counts[holders]
    moves[holders, -1] = -np.minimum.reduceat(own, starts)
    n_providers = moves.shape[1] - 1
    first = 0
    while first < len(holders):
        # At least one provider a turn, and as many as fit the bound.
        fitting = int(np.searchsorted(ends, starts[first] + 2**22 // n_providers, side="right"))
        last = max(fitting, first + 1)
        part = slice(int(starts[first]), int(ends[last - 1]))
        rows = gains.get_rows(order[part])
        rows -= own[part, None]
        best = np.maximum.reduceat(rows, starts[first:last] - starts[first], axis=0)
        moves[holders[first:last], :-1] = best
        first = last
    moves[holders, holders] = NEVER


def find_moving_tasks(
    gains: Gains, table: IntArray, sources: IntArray, targets: IntArray
) -> IntArray:
    """Find the first best task to move from each source to its target.

    table: the tasks at each source, padded with −1, shape (len(sources), width).
    targets: providers; n_providers stands for leaving the market.
    Returns: columns of `table`, the task to move.
    """
    n_providers = gains.shape[1]
    tasks = np.maximum(table, 0)
    leaves = targets == n_providers
    there = gains.get_pairs(tasks, np.where(leaves, 0, targets)[:, None])
    change = np.where(leaves[:, None], 0, there) - gains.get_pairs(tasks, sources[:, None])
    columns: IntArray = np.where(table >= 0, change, NEVER).argmax(axis=1)
    return columns
