"""How `provider` mode shares a bonus among the tasks that pay it: why not by welfare.

`provider` leaves each task its part of the fallbacks. `by_welfare` is the rule before it, as first
designed: a task pays in proportion to what it gains, bonus · w / S. Both give providers the same,
so they differ in what requesters and false slots make of them. The same attempts under both rules
are the evidence behind docs/adr/0014-provider-mode-keeps-fallbacks.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.book import Attempt, Book, compute_profit, compute_utilities
from benchmarks.economics.lies import REQUESTER_LIES
from benchmarks.economics.rounds import Cleared, appraise, clear_all
from benchmarks.economics.search import Truthful
from benchmarks.economics.shills import list_accomplices, list_crowds, sum_up

BY_WELFARE: Final = "by_welfare"
COMPARED: Final = ("provider", BY_WELFARE)
BID: Final = 10
CROWD: Final = 4
SLOTS_MORE: Final = (1, 2, 4, 8, 16)


def share_by_welfare(cleared: Cleared) -> IntArray:
    """Share each provider's bonus in proportion to welfare; int64, shape (n_tasks,).

    With s_j the running sums of its tasks' welfare and S the last, task j pays what ⌊bonus·s / S⌋
    grows by from s_{j−1} to s_j.
    """
    surcharges = np.zeros(len(cleared.assignment), dtype=np.int64)
    for provider, bonus in enumerate(cleared.bonuses.tolist()):
        tasks = cleared.get_tasks(provider)
        sums = list(accumulate(cleared.own[tasks].tolist(), initial=0))
        shares = [bonus * part // max(sums[-1], 1) for part in sums]
        surcharges[tasks] = np.diff(shares)
    return surcharges


def clear_both(welfare: IntArray, slots: IntArray) -> Cleared:
    """Clear with the former rule as one more mode."""
    cleared = clear_all(welfare, slots)
    return replace(
        cleared, surcharges={**cleared.surcharges, BY_WELFARE: share_by_welfare(cleared)}
    )


def measure_sharing(market: Truthful) -> Iterator[Attempt]:
    """Repeat the attempts that tell the two rules apart."""
    book = Book.open(market)
    before = clear_both(book.welfare, book.slots)
    yield from _measure_accomplices(market, book, before)
    yield from _measure_false_slots(book, before)
    yield from _measure_requesters(market, book, before)


def _measure_accomplices(market: Truthful, book: Book, before: Cleared) -> Iterator[Attempt]:
    """Let one accomplice bid that only its provider can serve, or a crowd that all can."""
    n_real = len(market.world.tasks)
    schemes = {
        "accomplice": [(provider, fake, 1) for provider, fake in list_accomplices(market, BID)],
        "crowd": list(list_crowds(market, CROWD)),
    }
    for scheme, found in schemes.items():
        for provider, fake, count in found:
            cleared = clear_both(fake.welfare, fake.slots)
            for rule in COMPARED:
                truth = compute_profit(book, before, rule, provider)
                gain, strict = sum_up(fake, cleared, rule, provider, n_real)
                yield Attempt(scheme, "best", rule, truth, gain - truth, strict - truth, count)


def _measure_false_slots(book: Book, before: Cleared) -> Iterator[Attempt]:
    """Let each provider declare more slots, serve whom it pays most and be busy for the others.

    Variants are how many more in all markets, and "best" what is best in each.
    """
    for provider, slots in enumerate(book.slots.tolist()):
        for rule in COMPARED:
            truth = compute_profit(book, before, rule, provider)
            gains = {"best": 0.0}
            for more in SLOTS_MORE:
                declared = book.slots.copy()
                declared[provider] += more
                cleared = clear_both(book.welfare, declared)
                tasks = cleared.get_tasks(provider)
                paid = sorted(cleared.surcharges[rule][tasks].tolist(), reverse=True)
                gains[f"+{more}"] = float(sum(paid[:slots])) - truth
            gains["best"] = max(gains.values())
            for variant, gain in gains.items():
                yield Attempt("false slots", variant, rule, truth, gain, gain, 0)


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
            cleared = clear_both(welfare, book.slots)
            for rule, best in gains.items():
                utility = compute_utilities(book, cleared, rule)[task]
                best[task] = max(best[task], utility - truth[rule][task])
    for rule, best in gains.items():
        for task, gain in enumerate(best.tolist()):
            yield Attempt("shading", "best", rule, float(truth[rule][task]), gain, gain, 1)
