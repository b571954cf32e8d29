"""Gains: welfare with every infeasible pair at 0, read from a dense matrix or candidate lists.

A round is dense. A market of many thousand tasks is not: a task names the few providers worth
considering, `CandidateWelfare` holds one short list a task, and the mechanism reads either through
the same four questions. Everything above them is the same code, so both forms give the same
clearing, up to ties.
Source: docs/spec/auction.md §1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import (
    MAX_TOTAL_MICROS,
    IntArray,
    describe,
    is_int64,
    validate_market,
    validate_slots,
    validate_total,
)
from auctioneer.mechanism.errors import InvalidCandidatesError

_CHUNK_ENTRIES: Final = 2**22
"""Dense temporaries made from candidate lists hold at most so many entries (32 MB)."""


@dataclass(frozen=True, slots=True, eq=False)
class CandidateWelfare:
    """A market by lists of candidates; what a list does not name is not feasible.

    `providers`: int64, shape (n_tasks, n_candidates); −1 pads, and no task names one twice.
    `welfare_micros`: the pairs' welfare, same shape; ≤ 0 means "not feasible".
    `n_providers`: how many providers there are.
    """

    providers: IntArray
    welfare_micros: IntArray
    n_providers: int


@dataclass(frozen=True, slots=True, eq=False)
class DenseGains:
    """Gains as a matrix, int64, shape (n_tasks, n_providers), no entry negative."""

    matrix: IntArray

    @property
    def shape(self) -> tuple[int, int]:
        """(n_tasks, n_providers)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def get_rows(self, tasks: IntArray) -> IntArray:
        """Give the gains of tasks at every provider, a copy, shape (len(tasks), n_providers)."""
        rows: IntArray = self.matrix[tasks]
        return rows

    def get_pairs(self, tasks: IntArray, providers: IntArray) -> IntArray:
        """Give the gain of each pair of a task and a provider, broadcast against each other."""
        pairs: IntArray = self.matrix[tasks, providers]
        return pairs

    def compute_duals(self, slot_prices: IntArray) -> IntArray:
        """Compute what each task gains at its best provider at these prices, at least 0."""
        if self.matrix.size == 0:
            return np.zeros(len(self.matrix), dtype=np.int64)
        duals: IntArray = np.maximum((self.matrix - slot_prices).max(axis=1), 0)
        return duals

    def compute_best_tasks(self, tasks: IntArray) -> tuple[IntArray, IntArray]:
        """Find for every provider the first best of these tasks: (gains, tasks), −1 if none."""
        return _find_best(self, tasks)


@dataclass(frozen=True, slots=True, eq=False)
class CandidateGains:
    """Gains as candidate lists: providers in 0..n_providers, the last one for no provider."""

    providers: IntArray
    values: IntArray
    n_providers: int

    @classmethod
    def make(cls, welfare: CandidateWelfare) -> CandidateGains:
        """Take what is feasible from the lists."""
        feasible = (welfare.providers >= 0) & (welfare.welfare_micros > 0)
        return cls(
            np.where(feasible, welfare.providers, welfare.n_providers),
            np.where(feasible, welfare.welfare_micros, 0),
            welfare.n_providers,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(n_tasks, n_providers)."""
        return len(self.providers), self.n_providers

    def get_rows(self, tasks: IntArray) -> IntArray:
        """See `DenseGains.get_rows`."""
        rows = np.zeros((len(tasks), self.n_providers + 1), dtype=np.int64)
        np.put_along_axis(rows, self.providers[tasks], self.values[tasks], axis=1)
        return rows[:, :-1]

    def get_pairs(self, tasks: IntArray, providers: IntArray) -> IntArray:
        """See `DenseGains.get_pairs`."""
        named = self.providers[tasks] == np.asarray(providers)[..., None]
        pairs: IntArray = np.where(named, self.values[tasks], 0).sum(axis=-1)
        return pairs

    def compute_duals(self, slot_prices: IntArray) -> IntArray:
        """See `DenseGains.compute_duals`."""
        prices = np.append(slot_prices, 0)
        duals: IntArray = (self.values - prices[self.providers]).max(axis=1, initial=0)
        return duals

    def compute_best_tasks(self, tasks: IntArray) -> tuple[IntArray, IntArray]:
        """See `DenseGains.compute_best_tasks`."""
        return _find_best(self, tasks)


Gains = DenseGains | CandidateGains


def read_market(welfare: IntArray | CandidateWelfare, slots: IntArray) -> Gains:
    """Check what describes a market, and read it: nothing is cast.

    Raises: InvalidWelfareError, InvalidCandidatesError, WelfareOverflowError, InvalidSlotsError.
    """
    if not isinstance(welfare, CandidateWelfare):
        return DenseGains(validate_market(welfare, slots))
    _validate_lists(welfare)
    validate_slots(slots, welfare.n_providers)
    validate_total(welfare.welfare_micros, MAX_TOTAL_MICROS // 2, argument="welfare_micros")
    return CandidateGains.make(welfare)


def _validate_lists(welfare: CandidateWelfare) -> None:
    """Check the types, shapes and entries of candidate lists."""
    providers, values, count = welfare.providers, welfare.welfare_micros, welfare.n_providers
    if type(count) is not int or count < 0:
        raise InvalidCandidatesError(
            f"n_providers must be an int of at least 0, got {count!r}", argument="n_providers"
        )
    for name, array in (("providers", providers), ("welfare_micros", values)):
        if not is_int64(array, 2):
            raise InvalidCandidatesError(
                f"{name} must be an int64 matrix (n_tasks, n_candidates), got {describe(array)}",
                argument=name,
            )
    if providers.shape != values.shape:
        raise InvalidCandidatesError(
            f"providers has shape {providers.shape}, welfare_micros {values.shape}",
            argument="welfare_micros",
        )
    if providers.size == 0:
        return
    if providers.min() < -1 or providers.max() >= count:
        raise InvalidCandidatesError(f"providers must be in -1..{count - 1}", argument="providers")
    ordered = np.sort(providers, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise InvalidCandidatesError("a task names a provider twice", argument="providers")


def split_tasks(tasks: IntArray, n_providers: int) -> Iterator[IntArray]:
    """Split tasks so that their dense rows stay within a bounded temporary."""
    size = max(1, _CHUNK_ENTRIES // max(1, n_providers))
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def _find_best(gains: Gains, tasks: IntArray) -> tuple[IntArray, IntArray]:
    n_providers = gains.shape[1]
    best = np.zeros(n_providers, dtype=np.int64)
    best_tasks = np.full(n_providers, -1, dtype=np.int64)
    for chunk in split_tasks(tasks, n_providers):
        rows = gains.get_rows(chunk)
        # Only a strictly better task of a later chunk displaces the first.
        better = np.flatnonzero(rows.max(axis=0, initial=0) > best)
        first = rows[:, better].argmax(axis=0)
        best[better] = rows[first, better]
        best_tasks[better] = chunk[first]
    return best, best_tasks
