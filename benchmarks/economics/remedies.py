"""What would repair what was found: the same attempts under other rules.

*Reinsertion.* `provider` mode shares a provider's bonus over its tasks by their welfare, so a task
with a huge bid makes all others pay as if there were no competition. Taken instead as what each
task fails to bring back when a provider's tasks come back to the market without it, one by one
and in their order, the surcharges still sum to the bonus, and a task that has nowhere else to go
changes nothing for the others: it brings back nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.book import (
    Attempt,
    Book,
    compute_prices,
    compute_profit,
    compute_utilities,
)
from benchmarks.economics.lies import REQUESTER_LIES
from benchmarks.economics.rounds import Cleared, appraise, clear_all
from benchmarks.economics.search import Truthful
from benchmarks.economics.shills import list_accomplices

REINSERTION: Final = "reinsertion"
COMPARED: Final = ("provider", REINSERTION)
BID: Final = 10


@dataclass(frozen=True, slots=True)
class _Matcher:
    """Optima of a market without one provider, as tasks come back."""

    welfare: IntArray
    slots: IntArray

    def compute_optimum(self, tasks: list[int]) -> int:
        """Compute the greatest welfare of some tasks."""
        wide = np.repeat(self.welfare[tasks], self.slots, axis=1)
        rows, columns = linear_sum_assignment(-wide)
        return int(wide[rows, columns].sum())


def split_by_reinsertion(welfare: IntArray, slots: IntArray, cleared: Cleared) -> IntArray:
    """Compute surcharges that sum to each provider's bonus; int64, shape (n_tasks,)."""
    surcharges = np.zeros(len(welfare), dtype=np.int64)
    for provider in np.unique(cleared.assignment[cleared.assignment >= 0]).tolist():
        without = slots.copy()
        without[provider] = 0
        matcher = _Matcher(welfare, without)
        own = cleared.get_tasks(provider)
        there = [task for task in range(len(welfare)) if task not in own]
        before = matcher.compute_optimum(there)
        for task in own:
            there.append(task)
            after = matcher.compute_optimum(there)
            surcharges[task] = int(cleared.own[task]) - (after - before)
            before = after
    return surcharges


def clear_with_reinsertion(welfare: IntArray, slots: IntArray) -> Cleared:
    """Clear with this rule as one more mode."""
    cleared = clear_all(welfare, slots)
    surcharges = split_by_reinsertion(welfare, slots, cleared)
    return replace(cleared, surcharges={**cleared.surcharges, REINSERTION: surcharges})


def measure_remedies(market: Truthful) -> Iterator[Attempt]:
    """Repeat accomplices and requesters' lies in `provider` mode, as it is and as it might be."""
    book = Book.open(market)
    before = clear_with_reinsertion(book.welfare, book.slots)
    for provider, fake in list_accomplices(market, BID):
        cleared = clear_with_reinsertion(fake.welfare, fake.slots)
        for rule in COMPARED:
            truth = compute_profit(book, before, rule, provider)
            # What the accomplice pays its own provider stays with the two.
            kept = compute_profit(fake, cleared, rule, provider)
            kept -= _compute_own_price(fake, cleared, rule, provider)
            yield Attempt("accomplice", f"{BID}", rule, truth, kept - truth, kept - truth, 1)
    yield from _measure_requesters(market, book, before)


def _compute_own_price(book: Book, cleared: Cleared, rule: str, provider: int) -> float:
    """Compute what the last task pays, if it is matched at its accomplice."""
    if cleared.assignment[-1] != provider:
        return 0.0
    return float(compute_prices(book, cleared, rule)[-1])


def _measure_requesters(market: Truthful, book: Book, before: Cleared) -> Iterator[Attempt]:
    """Find each requester's best lie about its prices."""
    world = market.world
    lies = [lie for lie in REQUESTER_LIES if lie.group == "prices"]
    gains = {rule: np.zeros(len(world.tasks)) for rule in COMPARED}
    truth = {rule: compute_utilities(book, before, rule) for rule in gains}
    for lie in lies:
        rows = appraise(
            world,
            market.forecast,
            bids=[lie.apply(task) for task in world.tasks],
            tasks=range(len(world.tasks)),
            asks=[person.cost for person in world.providers],
            providers=range(len(world.providers)),
            claimed=world.held_blocks,
        )
        for task in range(len(world.tasks)):
            welfare = book.welfare.copy()
            welfare[task] = rows.welfare[task]
            cleared = clear_with_reinsertion(welfare, book.slots)
            for rule, best in gains.items():
                utility = compute_utilities(book, cleared, rule)[task]
                best[task] = max(best[task], utility - truth[rule][task])
    for rule, best in gains.items():
        for task, gain in enumerate(best.tolist()):
            yield Attempt("shading", "", rule, float(truth[rule][task]), gain, gain, 1)
