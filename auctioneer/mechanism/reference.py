"""Inserting a provider's tasks again, in plain Python: the reference, and the tool for few.

The same steps as `auctioneer.mechanism.reinsertion`, one market and one search at a time. It reads
as the algorithm does, and where there are only a dozen providers it is also the faster of the two,
as no array is long enough to pay for a numpy call. Source: docs/spec/auction.md §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import Gains
from auctioneer.mechanism.residual import NEVER, Residual

_FAR = -NEVER


@dataclass(frozen=True, slots=True)
class Reference:
    """A matched market in lists. Rows of gains and moves end with leaving the market.

    `changes[i][j]`: what the market gains by each move of task j away from i; those at i to begin
    with, and others once they come by. `gains`: by task, empty for an unmatched one. The rest as
    for `ReinsertionBatch`.
    """

    gains: list[list[int]]
    changes: list[dict[int, list[int]]]
    tasks: list[list[int]]
    free: list[int]
    moves: list[list[int]]
    greatest: list[int]
    exits: list[int]

    @classmethod
    def make(
        cls,
        gains: Gains,
        assignment: IntArray,
        residual: Residual,
        greatest: IntArray,
        exits: IntArray,
    ) -> Reference:
        """Put a matched market into lists."""
        matched = np.flatnonzero(assignment >= 0)
        values = np.pad(gains.get_rows(matched), ((0, 0), (0, 1)))
        own = gains.get_pairs(matched, assignment[matched])
        rows: list[list[int]] = [[] for _ in range(len(assignment))]
        changes: list[dict[int, list[int]]] = [{} for _ in range(len(greatest))]
        for task, provider, row, change in zip(
            matched.tolist(),
            assignment[matched].tolist(),
            values.tolist(),
            (values - own[:, None]).tolist(),
            strict=True,
        ):
            rows[task] = row
            changes[provider][task] = change
        return cls(
            gains=rows,
            changes=changes,
            tasks=[list(there) for there in changes],
            free=residual.free.tolist(),
            moves=residual.moves.tolist(),
            greatest=[*greatest.tolist(), 0],
            exits=[*exits.tolist(), len(greatest)],
        )

    def compute_bonus(self, provider: int) -> int:
        """Compute W − W_{−i}: take i away and insert its tasks again, one by one."""
        market, loss = _Reinsertion(self, provider), 0
        left = len(self.tasks[provider])
        for task in self.tasks[provider]:
            way, value = market.find_way(task)
            loss += self.gains[task][provider] - value
            left -= 1
            if left:
                market.insert(task, way)
        return loss


class _Reinsertion:
    """A copy of the market without one provider, into which its tasks come back."""

    def __init__(self, market: Reference, removed: int) -> None:
        self._market = market
        self._removed = removed
        self._exit = len(market.free)
        self._tasks = list(market.tasks)
        self._free = list(market.free)
        self._prices = list(market.greatest)
        # The moves of providers that changed, computed when a search first comes by. The one that
        # is gone is in here too, so that no known way leads through it.
        self._changed: dict[int, list[int] | None] = {removed: None}

    def find_way(self, task: int) -> tuple[list[int], int]:
        """Find the best way to insert a task, and raise prices along it.

        The search ends at the first provider whose way out is known.
        Returns: the providers on the way and, last, the exit; what the market gains.
        """
        prices = self._prices
        distances = [p - gain for p, gain in zip(prices, self._market.gains[task], strict=True)]
        distances[self._removed] = _FAR
        at = distances.index(min(distances))
        if self._is_known(at):
            return self._follow([at]), -distances[at]
        parents = [-1] * len(prices)
        open_ = list(range(len(prices)))
        open_.remove(self._removed)
        while not self._is_known(at):
            open_.remove(at)
            base, moves, nearest = distances[at] - prices[at], self._get_moves(at), 2 * _FAR
            for node in open_:
                distance = base + prices[node] - moves[node]
                if distance < distances[node]:
                    distances[node] = distance
                    parents[node] = at
                else:
                    distance = distances[node]
                if distance < nearest:
                    nearest, following = distance, node
            at = following
        # What is nearer than the exit rises, so that moves keep costing at least 0.
        for node, distance in enumerate(distances):
            if distance < distances[at]:
                prices[node] += distances[at] - distance
        way = [at]
        while parents[way[-1]] >= 0:
            way.append(parents[way[-1]])
        return self._follow(way[::-1]), -distances[at]

    def _is_known(self, node: int) -> bool:
        """Tell whether no provider on a provider's way out has changed."""
        while node != self._exit:
            if node in self._changed:
                return False
            node = self._market.exits[node]
        return True

    def _follow(self, way: list[int]) -> list[int]:
        """Go on from the end of a way by the known way out."""
        while way[-1] != self._exit:
            way.append(self._market.exits[way[-1]])
        return way

    def _get_moves(self, provider: int) -> list[int]:
        """Give the best moves of a provider's tasks as they are now."""
        if provider not in self._changed:
            return self._market.moves[provider]
        moves = self._changed[provider]
        if moves is None:
            changes = self._market.changes[provider]
            rows = [changes[task] for task in self._tasks[provider]]
            moves = list(map(max, *rows)) if len(rows) > 1 else list(rows[0])
            if self._free[provider]:
                moves[-1] = 0
            self._changed[provider] = moves
        return moves

    def insert(self, task: int, way: list[int]) -> None:
        """Insert a task by its way: each provider passes its best task on to the next."""
        arriving = task
        for source, target in pairwise(way):
            staying, changes = list(self._tasks[source]), self._market.changes[source]
            leaving = -1
            if target == self._exit and self._free[source]:
                self._free[source] -= 1
            else:
                gained = [changes[task][target] for task in staying]
                leaving = staying.pop(gained.index(max(gained)))
            if arriving not in changes:
                row = self._market.gains[arriving]
                own = row[source]
                changes[arriving] = [gain - own for gain in row]
            self._tasks[source] = [*staying, arriving]
            self._changed[source] = None
            arriving = leaving
