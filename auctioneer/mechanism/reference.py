"""Taking a provider away slot by slot, in plain Python: the reference, and the tool for few.

The same steps as `auctioneer.mechanism.removals`, one market and one search at a time. It reads as
the algorithm does, and where there are only a few dozen providers it is also the faster of the
two, as no array is long enough to pay for a numpy call. Source: docs/spec/auction.md §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import Gains
from auctioneer.mechanism.residual import NEVER, Residual

_FAR = -NEVER


@dataclass(frozen=True, slots=True)
class Reference:
    """A matched market in lists. Exits and prices have an entry for leaving the market, the last.

    `gains[j][i]`, with a last column of 0; `moves`, `greatest` and `exits` as for `RemovalBatch`.
    """

    gains: list[list[int]]
    tasks: list[list[int]]
    free: list[int]
    moves: list[list[int]]
    greatest: list[int]
    exits: list[int]
    changes: list[dict[int, list[int]]]

    @classmethod
    def make(
        cls,
        gains: Gains,
        assignment: IntArray,
        residual: Residual,
        greatest: IntArray,
        exits: IntArray,
    ) -> Reference:
        """Put a matched market into lists; rows of unmatched tasks stay empty."""
        matched = (assignment >= 0).nonzero()[0]
        rows: list[list[int]] = [[] for _ in range(len(assignment))]
        for task, row in zip(matched.tolist(), gains.get_rows(matched).tolist(), strict=True):
            rows[task] = [*row, 0]
        return cls(
            gains=rows,
            tasks=[
                row[:count]
                for row, count in zip(
                    residual.table.tolist(), residual.counts.tolist(), strict=True
                )
            ],
            free=residual.free.tolist(),
            moves=residual.moves.tolist(),
            greatest=[*greatest.tolist(), 0],
            exits=[*exits.tolist(), len(greatest)],
            changes=[{} for _ in rows],
        )

    def get_changes(self, task: int, provider: int) -> list[int]:
        """Give what the market gains by a task's moves from a provider, kept once computed."""
        changes = self.changes[task].get(provider)
        if changes is None:
            own = self.gains[task][provider]
            self.changes[task][provider] = changes = [gain - own for gain in self.gains[task]]
        return changes

    def compute_bonus(self, provider: int) -> int:
        """Compute W − W_{−i} by taking i's slots away one by one."""
        return _Removal(self, provider).run()


class _Removal:
    """One provider on its way out of its own copy of the market."""

    def __init__(self, market: Reference, provider: int) -> None:
        self._market = market
        self._provider = provider
        self._exit = len(market.free)
        self._tasks = list(market.tasks)
        self._free = list(market.free)
        self._prices = list(market.greatest)
        # The moves of providers that changed, computed when a search first comes by.
        self._changed: dict[int, list[int] | None] = {}
        if self._free[provider]:
            # Free slots cost nothing, but once they are gone the exit costs a task.
            self._free[provider] = 0
            self._changed[provider] = None

    def run(self) -> int:
        """Take every slot away; give what that cost the rest of the market."""
        loss = 0
        for left in range(len(self._tasks[self._provider]), 0, -1):
            way = self._find_way_out()
            loss += self._prices[self._provider]
            if left > 1:
                self._move_tasks(way)
        return loss

    def _find_way_out(self) -> list[int]:
        """Search to the nearest provider whose way out is known, and raise prices on the way.

        Returns: the whole way, from the provider to the exit.
        """
        source, prices = self._provider, self._prices
        distances = [_FAR] * len(prices)
        parents = [source] * len(prices)
        distances[source] = 0
        open_ = list(range(len(prices)))
        at = source
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
        return self._follow(parents, at)

    def _is_known(self, node: int) -> bool:
        """Tell whether no provider on a provider's way out has changed."""
        while node != self._exit:
            if node in self._changed:
                return False
            node = self._market.exits[node]
        return True

    def _follow(self, parents: list[int], end: int) -> list[int]:
        """Put the way out together: back from its found end, then on by the known way."""
        way = [end]
        while way[-1] != self._provider:
            way.append(parents[way[-1]])
        way.reverse()
        while way[-1] != self._exit:
            way.append(self._market.exits[way[-1]])
        return way

    def _get_moves(self, provider: int) -> list[int]:
        """Give the best moves of a provider's tasks as they are now."""
        if provider not in self._changed:
            return self._market.moves[provider]
        moves = self._changed[provider]
        if moves is None:
            rows = [self._market.get_changes(task, provider) for task in self._tasks[provider]]
            moves = list(map(max, *rows)) if len(rows) > 1 else list(rows[0])
            if self._free[provider]:
                moves[-1] = 0
            self._changed[provider] = moves
        return moves

    def _move_tasks(self, way: list[int]) -> None:
        """Move the best task along each step of a way out."""
        arriving: int | None = None
        get_changes = self._market.get_changes
        for source, target in pairwise(way):
            staying = list(self._tasks[source])
            if target == self._exit and self._free[source]:
                self._free[source] -= 1
                leaving = None
            else:
                changes = [get_changes(task, source)[target] for task in staying]
                leaving = staying[changes.index(max(changes))]
                staying.remove(leaving)
            self._tasks[source] = staying if arriving is None else [*staying, arriving]
            self._changed[source] = None
            arriving = leaving
