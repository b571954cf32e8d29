"""Every market of one shape, cleared once: then a lie is only another market of the table.

Whoever lies turns the true market into one that differs in its row or its column, which is in the
table too. So all lies of all agents in all markets are looked up, not cleared again.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism import clear
from auctioneer.mechanism.arrays import IntArray
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.invariants import split_every_way


@dataclass(frozen=True)
class EveryMarket:
    """Clearings of all markets with welfare in 0..n_values − 1 and slots in 0..n_counts − 1.

    An entry of 0 stands for all that are not feasible. Arrays are indexed by the slots of each
    provider, then by each entry of the welfare matrix, row by row, then by task or provider.
    """

    n_tasks: int
    n_providers: int
    n_values: int
    n_counts: int
    assignment: IntArray
    slot_prices: IntArray
    bonuses: IntArray
    surcharges: dict[str, IntArray]

    @classmethod
    def make(cls, n_tasks: int, n_providers: int, n_values: int, n_counts: int) -> "EveryMarket":
        sides = (n_counts,) * n_providers + (n_values,) * (n_tasks * n_providers)
        assignment = np.zeros((*sides, n_tasks), dtype=np.int64)
        slot_prices = np.zeros((*sides, n_providers), dtype=np.int64)
        bonuses = np.zeros_like(slot_prices)
        surcharges = {mode: np.zeros_like(assignment) for mode in CLEARING_MODES}
        for index in np.ndindex(sides):
            slots = np.array(index[:n_providers], dtype=np.int64)
            entries = np.array(index[n_providers:], dtype=np.int64)
            welfare = entries.reshape(n_tasks, n_providers)
            clearing = clear(welfare, slots)
            assignment[index] = clearing.assignment
            slot_prices[index] = clearing.slot_prices
            bonuses[index] = clearing.vcg_bonuses
            for mode, split in split_every_way(welfare, slots, clearing).items():
                surcharges[mode][index] = split
        return cls(
            n_tasks,
            n_providers,
            n_values,
            n_counts,
            assignment,
            slot_prices,
            bonuses,
            surcharges,
        )

    def list_rows(self) -> IntArray:
        """All rows that a task can have, in the order of `by_row`; shape (n, n_providers)."""
        return np.array(list(itertools.product(range(self.n_values), repeat=self.n_providers)))

    def by_row(self, values: IntArray, task: int) -> IntArray:
        """Reorder one of the arrays to (the rest of the market, the task's row, entries)."""
        first = self.n_providers * (1 + task)
        return _bring_last(values, list(range(first, first + self.n_providers)))

    def list_columns(self) -> tuple[IntArray, IntArray]:
        """All slots and columns of a provider, in the order of `by_column`: (n,), (n, n_tasks)."""
        sides = (range(self.n_counts), *[range(self.n_values)] * self.n_tasks)
        declared = np.array(list(itertools.product(*sides)))
        return declared[:, 0], declared[:, 1:]

    def by_column(self, values: IntArray, provider: int) -> IntArray:
        """Reorder one of the arrays to (the rest, the provider's slots and column, entries)."""
        column = [self.n_providers * (1 + task) + provider for task in range(self.n_tasks)]
        return _bring_last(values, [provider, *column])


def _bring_last(values: IntArray, axes: list[int]) -> IntArray:
    moved = np.moveaxis(values, axes, range(-1 - len(axes), -1))
    declared = int(np.prod(moved.shape[-1 - len(axes) : -1]))
    return moved.reshape(-1, declared, values.shape[-1])
