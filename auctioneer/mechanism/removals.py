"""Taking providers away slot by slot: many shortest-path searches in lockstep.

Row b of every array here is a market of its own, from which provider `providers[b]` is being taken
away. A round takes one used slot from each row: find the shortest way out (Dijkstra, one settled
provider a step and row), move the tasks along it, recompute the moves of the providers on the way.
Rows whose provider has no task left drop out.

All rows begin with the same residual graph and change a few providers of it. So providers' states
(their tasks, free slots and moves) stand in one growing pool, and a row points into it.
Source: docs/spec/auction.md §5.
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


class RemovalBatch:
    """Some providers, each in its own copy of the market, on their way out of it.

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
        self._left = residual.counts[providers]
        shape = (len(providers), n_providers + 1)
        self._prices = np.broadcast_to(np.append(greatest, 0), shape).copy()
        self._changed = np.zeros(shape, dtype=np.bool_)
        self._state = np.broadcast_to(np.arange(n_providers), (len(providers), n_providers)).copy()
        self._pool = _Pool(gains, residual, int(self._left.max(initial=0)))
        self._take_free_slots(residual)

    def run(self) -> IntArray:
        """Take every slot away; give what each removal cost the rest of its market."""
        losses = np.zeros(len(self._providers), dtype=np.int64)
        rows = np.flatnonzero(self._left > 0)
        while len(rows):
            distances, parents, ends = self._find_ways_out(rows)
            losses[rows] += self._raise_prices(rows, distances, ends)
            self._left[rows] -= 1
            going_on = np.flatnonzero(self._left[rows] > 0)
            if len(going_on):
                self._move_tasks(*self._trace(rows[going_on], parents[going_on], ends[going_on]))
            rows = rows[going_on]
        return losses

    def _take_free_slots(self, residual: Residual) -> None:
        """Take the free slots away first: they cost nothing, but then the exit costs a task."""
        rows = np.flatnonzero(residual.free[self._providers] > 0)
        providers = self._providers[rows]
        states = self._pool.add(providers, residual.table[providers], np.zeros_like(providers))
        self._state[rows, providers] = states
        self._changed[rows, providers] = True

    def _find_known(self, rows: IntArray) -> _BoolArray:
        """Tell which providers' ways out are untouched, so that they are 0 from the exit."""
        touched = self._changed[rows]
        hop = self._exits
        while (hop != self._exit).any():
            touched |= touched[:, hop]
            hop = hop[hop]
        return ~touched

    def _find_ways_out(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Search each row from its provider to the nearest one of a known way out, or the exit.

        Returns: distances and parents, shape (len(rows), n_providers + 1); where each row ended.
        """
        index = np.arange(len(rows))
        sources, known = self._providers[rows], self._find_known(rows)
        search = _Search.start(sources, self._prices[rows], self._state[rows])
        ends = sources.copy()
        live = np.flatnonzero(~known[index, sources])
        nearest = sources[live]
        while len(live):
            search.settle(live, nearest, self._pool.moves)
            open_ = np.where(search.settled[live], 2 * _FAR, search.distances[live])
            at = np.arange(len(live))
            goals = np.where(known[live], open_, 2 * _FAR).argmin(axis=1)
            nearest = open_.argmin(axis=1)
            arrived = open_[at, goals] <= open_[at, nearest]
            ends[live[arrived]] = goals[arrived]
            live, nearest = live[~arrived], nearest[~arrived]
        return search.distances, search.parents, ends

    def _raise_prices(self, rows: IntArray, distances: IntArray, ends: IntArray) -> IntArray:
        """Raise what is nearer than the exit, so that reduced costs stay at least 0.

        Returns: what the slot cost: the provider's price after the rise.
        """
        index = np.arange(len(rows))
        rise = np.maximum(distances[index, ends][:, None] - distances, 0)
        self._prices[rows] += rise
        costs: IntArray = self._prices[rows, self._providers[rows]]
        return costs

    def _trace(
        self, rows: IntArray, parents: IntArray, ends: IntArray
    ) -> tuple[IntArray, IntArray, IntArray]:
        """List every move of the ways out, as (rows, from, to): found ones, then known ones."""
        found: list[tuple[IntArray, IntArray, IntArray]] = []
        at, live = ends, np.flatnonzero(ends != self._providers[rows])
        while len(live):
            before = parents[live, at[live]]
            found.append((rows[live], before, at[live]))
            at = at.copy()
            at[live] = before
            live = live[before != self._providers[rows[live]]]
        at, live = ends, np.flatnonzero(ends != self._exit)
        while len(live):
            after = self._exits[at[live]]
            found.append((rows[live], at[live], after))
            at = at.copy()
            at[live] = after
            live = live[after != self._exit]
        moved, sources, targets = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return moved, sources, targets

    def _move_tasks(self, rows: IntArray, sources: IntArray, targets: IntArray) -> None:
        """Move a task along each edge of the ways out; providers on them get new states."""
        pool, states = self._pool, self._state[rows, sources]
        tasks, free = pool.tasks[states], pool.free[states]
        index = np.arange(len(rows))
        columns = find_moving_tasks(self._gains, tasks, sources, targets)
        # At a free slot nobody has to go: the task that comes takes the first empty column.
        fills = (targets == self._exit) & (free > 0)
        columns = np.where(fills, (tasks < 0).argmax(axis=1), columns)
        # At most one move a row ends at a provider, as a way out never meets one twice.
        arriving = np.full(self._changed.shape, -1, dtype=np.int64)
        arriving[rows, targets] = np.where(fills, -1, tasks[index, columns])
        tasks[index, columns] = arriving[rows, sources]
        self._state[rows, sources] = pool.add(sources, tasks, free - fills)
        self._changed[rows, sources] = True


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Dijkstra's arrays, one row a search: shape (n_rows, n_providers + 1), states without + 1."""

    prices: IntArray
    states: IntArray
    distances: IntArray
    parents: IntArray
    settled: _BoolArray

    @classmethod
    def start(cls, sources: IntArray, prices: IntArray, states: IntArray) -> _Search:
        """Begin each row at its source."""
        distances = np.full(prices.shape, _FAR, dtype=np.int64)
        distances[np.arange(len(sources)), sources] = 0
        parents = np.broadcast_to(sources[:, None], prices.shape).copy()
        return cls(prices, states, distances, parents, np.zeros(prices.shape, dtype=np.bool_))

    def settle(self, rows: IntArray, nearest: IntArray, moves: IntArray) -> None:
        """Settle a provider a row and follow its moves, at reduced cost p_l − p_k − moves[k, l]."""
        self.settled[rows, nearest] = True
        base = self.distances[rows, nearest] - self.prices[rows, nearest]
        offers = base[:, None] + self.prices[rows]
        offers -= moves[self.states[rows, nearest]]
        before = self.distances[rows]
        better = offers < before
        self.distances[rows] = np.where(better, offers, before)
        self.parents[rows] = np.where(better, nearest[:, None], self.parents[rows])


class _Pool:
    """States of providers: tasks (padded with −1), free slots, and the moves that follow."""

    def __init__(self, gains: Gains, residual: Residual, most_removed: int) -> None:
        self._gains = gains
        # A provider's tasks grow only into its free slots, by one a removal.
        room = residual.counts + np.minimum(residual.free, most_removed)
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
