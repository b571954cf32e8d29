"""Inserting removed providers' tasks again: many shortest-path searches in lockstep.

Row b of every array here is a market of its own: the optimal matching without provider
`providers[b]` and without its tasks, which is optimal for what is left. A round inserts one task in
each row: find its best way (Dijkstra, one settled provider a step and row), move tasks along it,
recompute the moves of the providers on it. Rows whose tasks are all in drop out.

All rows begin with the same residual graph and change a few providers of it. So providers' states
(their tasks, free slots and moves) stand in one growing pool, and a row points into it.
`auctioneer.mechanism.reference` is the same, one search at a time. Source: docs/spec/auction.md §5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import Gains
from auctioneer.mechanism.residual import NEVER, Residual, find_moving_tasks

_FAR = np.int64(-NEVER)
_BoolArray = npt.NDArray[np.bool_]


class ReinsertionBatch:
    """Some providers, each removed from its own copy of the market.

    greatest, exits: see `auctioneer.mechanism.bonuses.compute_greatest_prices`.
    """

    def __init__(
        self,
        gains: Gains,
        residual: Residual,
        greatest: IntArray,
        exits: IntArray,
        providers: IntArray,
    ) -> None:
        n_providers = len(greatest)
        self._gains = gains
        self._exit = n_providers
        # Leaving the market is a provider of its own here, at price 0 and nowhere to go on to.
        self._exits = np.append(exits, n_providers)
        self._providers = providers
        self._tasks = residual.table[providers]
        self._counts = residual.counts[providers]
        shape = (len(providers), n_providers + 1)
        self._prices = np.broadcast_to(np.append(greatest, 0), shape).copy()
        self._state = np.broadcast_to(np.arange(n_providers), (len(providers), n_providers)).copy()
        # The provider that is gone counts as changed, so that no known way leads through it.
        self._changed = np.zeros(shape, dtype=np.bool_)
        self._changed[np.arange(len(providers)), providers] = True
        self._pool = _Pool(gains, residual, int(self._counts.max(initial=0)))

    def run(self) -> IntArray:
        """Insert every task again; give what each market lost by its provider's removal."""
        losses = np.zeros(len(self._providers), dtype=np.int64)
        rows = np.flatnonzero(self._counts > 0)
        inserted = 0
        while len(rows):
            tasks = self._tasks[rows, inserted]
            search = self._search(rows, tasks)
            # The distance to the exit is what the market gains by the task, negated.
            losses[rows] += self._gains.get_pairs(tasks, self._providers[rows])
            losses[rows] += search.get_reached()
            self._prices[rows] += search.compute_rises()
            inserted += 1
            more = np.flatnonzero(self._counts[rows] > inserted)
            if len(more):
                self._insert(rows[more], tasks[more], search.parents[more], search.ends[more])
            rows = rows[more]
        return losses

    def _search(self, rows: IntArray, tasks: IntArray) -> _Search:
        """Search each row from its task to the nearest provider of a known way out, or the exit."""
        known = self._find_known(rows)
        search = _Search.start(self._prices[rows], self._gains.get_rows(tasks))
        search.close(self._providers[rows])
        states = self._state[rows]
        live = np.arange(len(rows))
        while True:
            open_ = np.where(search.settled[live], 2 * _FAR, search.distances[live])
            at = np.arange(len(live))
            goals = np.where(known[live], open_, 2 * _FAR).argmin(axis=1)
            nearest = open_.argmin(axis=1)
            arrived = open_[at, goals] <= open_[at, nearest]
            search.ends[live[arrived]] = goals[arrived]
            live, nearest = live[~arrived], nearest[~arrived]
            if len(live) == 0:
                return search
            search.settle(live, nearest, self._pool.moves[states[live, nearest]])

    def _find_known(self, rows: IntArray) -> _BoolArray:
        """Tell which providers' ways out are untouched, so that they are 0 from the exit."""
        touched = self._changed[rows]
        hop = self._exits
        while (hop != self._exit).any():
            touched |= touched[:, hop]
            hop = hop[hop]
        return ~touched

    def _insert(self, rows: IntArray, tasks: IntArray, parents: IntArray, ends: IntArray) -> None:
        """Insert tasks: providers on each way pass a task on, and get new states."""
        moved, sources, targets, firsts = self._trace(rows, parents, ends)
        pool, states = self._pool, self._state[moved, sources]
        tables, free = pool.tasks[states], pool.free[states]
        index = np.arange(len(moved))
        columns = find_moving_tasks(self._gains, tables, sources, targets)
        # At a free slot nobody has to go: the task that comes takes the first empty column.
        fills = (targets == self._exit) & (free > 0)
        columns = np.where(fills, (tables < 0).argmax(axis=1), columns)
        # At most one move a row ends at a provider, as a way never meets one twice.
        arriving = np.full(self._changed.shape, -1, dtype=np.int64)
        arriving[moved, targets] = tables[index, columns]
        arriving[rows, firsts] = tasks
        tables[index, columns] = arriving[moved, sources]
        self._state[moved, sources] = pool.add(sources, tables, free - fills)
        self._changed[moved, sources] = True

    def _trace(
        self, rows: IntArray, parents: IntArray, ends: IntArray
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """List every move on the ways: back over what was found, then on by the known ways out.

        Returns: the moves as (rows, from, to), and where each row's way begins.
        """
        moves: list[tuple[IntArray, IntArray, IntArray]] = []
        at, live = ends.copy(), np.arange(len(rows))
        while len(live):
            before = parents[live, at[live]]
            live, before = live[before >= 0], before[before >= 0]
            moves.append((rows[live], before, at[live]))
            at[live] = before
        firsts, at = at, ends.copy()
        live = np.flatnonzero(at != self._exit)
        while len(live):
            after = self._exits[at[live]]
            moves.append((rows[live], at[live], after))
            at[live] = after
            live = live[after != self._exit]
        moved, sources, targets = (np.concatenate(parts) for parts in zip(*moves, strict=True))
        return moved, sources, targets, firsts


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Dijkstra's arrays, one row a search: shape (n_rows, n_providers + 1); ends (n_rows,).

    `parents` is −1 where the task itself goes.
    """

    prices: IntArray
    distances: IntArray
    parents: IntArray
    settled: _BoolArray
    ends: IntArray

    @classmethod
    def start(cls, prices: IntArray, gains: IntArray) -> _Search:
        """Begin each row with its task at any provider, or out of the market."""
        distances = prices.copy()
        distances[:, :-1] -= gains
        return cls(
            prices,
            distances,
            np.full(prices.shape, -1, dtype=np.int64),
            np.zeros(prices.shape, dtype=np.bool_),
            np.zeros(len(prices), dtype=np.int64),
        )

    def close(self, providers: IntArray) -> None:
        """Keep each row away from a provider."""
        index = np.arange(len(providers))
        self.distances[index, providers] = _FAR
        self.settled[index, providers] = True

    def settle(self, rows: IntArray, nearest: IntArray, moves: IntArray) -> None:
        """Settle a provider a row and follow its moves, at reduced cost p_l − p_k − moves[k, l]."""
        self.settled[rows, nearest] = True
        base = self.distances[rows, nearest] - self.prices[rows, nearest]
        offers = base[:, None] + self.prices[rows]
        offers -= moves
        before = self.distances[rows]
        better = (offers < before) & ~self.settled[rows]
        self.distances[rows] = np.where(better, offers, before)
        self.parents[rows] = np.where(better, nearest[:, None], self.parents[rows])

    def get_reached(self) -> IntArray:
        """Give each row's distance to its end, which is that to the exit."""
        return self.distances[np.arange(len(self.ends)), self.ends]

    def compute_rises(self) -> IntArray:
        """Compute by how much what is nearer than the exit rises: moves then cost at least 0."""
        rises: IntArray = np.maximum(self.get_reached()[:, None] - self.distances, 0)
        return rises


class _Pool:
    """States of providers: tasks (padded with −1), free slots, and the moves that follow."""

    def __init__(self, gains: Gains, residual: Residual, most_inserted: int) -> None:
        self._gains = gains
        # A provider's tasks grow only into its free slots, by one a task that comes.
        room = residual.counts + np.minimum(residual.free, most_inserted)
        width = int(room.max(initial=0))
        self._used = len(residual.counts)
        self.tasks = _pad(residual.table, width)
        self.free = residual.free.copy()
        self.moves = residual.moves

    def add(self, providers: IntArray, tasks: IntArray, free: IntArray) -> IntArray:
        """Add the states of some providers; give their places in the pool."""
        first, last = self._used, self._used + len(providers)
        if last > len(self.free):
            self._grow(last)
        self.tasks[first:last] = _pad(tasks, self.tasks.shape[1])
        self.free[first:last] = free
        self.moves[first:last] = self._compute_moves(providers, self.tasks[first:last], free)
        self._used = last
        return np.arange(first, last)

    def _grow(self, needed: int) -> None:
        more = max(needed, 2 * len(self.free)) - len(self.free)
        self.tasks = np.concatenate((self.tasks, np.full((more, self.tasks.shape[1]), -1)))
        self.free = np.concatenate((self.free, np.zeros(more, dtype=np.int64)))
        self.moves = np.concatenate(
            (self.moves, np.empty((more, self.moves.shape[1]), dtype=np.int64))
        )

    def _compute_moves(self, providers: IntArray, tasks: IntArray, free: IntArray) -> IntArray:
        """Compute the best moves of each state, see `auctioneer.mechanism.residual`."""
        best = np.full((len(providers), self.moves.shape[1]), NEVER, dtype=np.int64)
        for column in tasks.T:
            filled = np.flatnonzero(column >= 0)
            chosen = column[filled]
            own = self._gains.get_pairs(chosen, providers[filled])
            rows = self._gains.get_rows(chosen)
            rows -= own[:, None]
            best[filled, :-1] = np.maximum(best[filled, :-1], rows)
            best[filled, -1] = np.maximum(best[filled, -1], -own)
        best[np.arange(len(providers)), providers] = NEVER
        best[free > 0, -1] = 0
        return best


def _pad(tasks: IntArray, width: int) -> IntArray:
    padding = np.full((len(tasks), width - tasks.shape[1]), -1, dtype=np.int64)
    return np.concatenate((tasks, padding), axis=1)
