"""A round in plain numbers, for agents who act together or as several.

Predictions are perfect here, so prices are paid as they are. Next to the modes stands `vcg`, full
two-sided VCG, which is never settled: every task pays its slot price, every provider gets its
bonus, and somebody else pays the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.rounds import Cleared, FloatArray
from benchmarks.economics.search import Truthful
from iemas.core.params import CLEARING_MODES

RULES: Final = (*CLEARING_MODES, "vcg")


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the best of some tries brought a group of agents, in fine units.

    `variant` is what is to be told apart within a scheme. `truth` is what the group has without
    it, `gain` what comes on top before fees, `strict_gain` the same if everything that was
    allocated must be paid in full, `bids` how many bids were made for it.
    """

    scheme: str
    variant: str
    rule: str
    truth: float
    gain: float
    strict_gain: float
    bids: int


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """Declared `welfare` and `cost`, true `worth` and `effort`, by task and provider."""

    welfare: IntArray
    cost: IntArray
    worth: FloatArray
    effort: FloatArray
    slots: IntArray

    @classmethod
    def open(cls, market: Truthful) -> Book:
        """Take over the truth."""
        pairs = market.pairs
        return cls(pairs.welfare, pairs.cost, pairs.worth, pairs.effort, market.world.slots)

    def add_fakes(self, welfare: IntArray, cost: IntArray) -> Book:
        """Add tasks that are worth nothing to anybody and that nobody serves."""
        nothing = np.zeros(welfare.shape)
        return Book(
            np.vstack((self.welfare, welfare)),
            np.vstack((self.cost, cost)),
            np.vstack((self.worth, nothing)),
            np.vstack((self.effort, nothing)),
            self.slots,
        )


def compute_prices(book: Book, cleared: Cleared, rule: str) -> FloatArray:
    """Compute what each task pays, 0 if unmatched; shape (n_tasks,)."""
    prices = np.zeros(len(cleared.assignment))
    matched = np.array(cleared.matched, dtype=np.int64)
    at = cleared.assignment[matched]
    surcharges = cleared.surcharges["client" if rule == "vcg" else rule]
    prices[matched] = book.cost[matched, at] + surcharges[matched]
    return prices


def compute_profit(book: Book, cleared: Cleared, rule: str, provider: int) -> float:
    """Compute what a provider receives less what serving costs it."""
    tasks = cleared.get_tasks(provider)
    effort = float(book.effort[tasks, provider].sum())
    if rule == "vcg":
        return float(book.cost[tasks, provider].sum() + cleared.bonuses[provider]) - effort
    return float(compute_prices(book, cleared, rule)[tasks].sum()) - effort


def compute_utilities(book: Book, cleared: Cleared, rule: str) -> FloatArray:
    """Compute what each task is worth where it is matched less what it pays; shape (n_tasks,)."""
    worth = np.zeros(len(cleared.assignment))
    matched = np.array(cleared.matched, dtype=np.int64)
    worth[matched] = book.worth[matched, cleared.assignment[matched]]
    return worth - compute_prices(book, cleared, rule)
