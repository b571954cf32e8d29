"""Agents that act as several, or with several tasks at once.

A *requester* with several tasks in a round is not unit demand: it shades or drops some of them to
get the others cheaper. One task stands beside for comparison, with the same lies.
A *provider* enters as two nodes with some of its slots each, one of them asking more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.book import RULES, Attempt, Book, compute_profit, compute_utilities
from benchmarks.economics.lies import ProviderLie, RequesterLie
from benchmarks.economics.rounds import appraise, clear_all
from benchmarks.economics.search import Truthful

SHADES: Final = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0)
"""Factors on all prices of a bid; 0 leaves the bid out."""

ACCOUNT_TASKS: Final = (1, 2, 4)
SPLIT_ASKS: Final = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0)


def measure_accounts(market: Truthful) -> Iterator[Attempt]:
    """Let accounts of neighbouring tasks shade all of them, or one."""
    book = Book.open(market)
    before = clear_all(book.welfare, book.slots)
    shaded = _shade_tasks(market)
    n_tasks = len(market.world.tasks)
    for size in ACCOUNT_TASKS:
        for start in range(0, n_tasks - size + 1, size):
            account = list(range(start, start + size))
            tries = [account] if size == 1 else [account, *([task] for task in account)]
            gains = dict.fromkeys(RULES, 0.0)
            truth = {
                rule: float(compute_utilities(book, before, rule)[account].sum()) for rule in RULES
            }
            for changed in tries:
                for rows in shaded:
                    welfare = book.welfare.copy()
                    welfare[changed] = rows[changed]
                    cleared = clear_all(welfare, book.slots)
                    for rule in RULES:
                        surplus = float(compute_utilities(book, cleared, rule)[account].sum())
                        gains[rule] = max(gains[rule], surplus - truth[rule])
            for rule in RULES:
                yield Attempt(
                    "account", f"{size}", rule, truth[rule], gains[rule], gains[rule], size
                )


def _shade_tasks(market: Truthful) -> list[IntArray]:
    """Value all tasks at every shade; int64, shape (n_tasks, n_providers) each."""
    world = market.world
    rows: list[IntArray] = []
    for factor in SHADES:
        if factor == 0.0:
            rows.append(np.zeros_like(market.pairs.welfare))
            continue
        lie = RequesterLie("", "", prices=(factor,) * 3)
        pairs = appraise(
            world,
            market.forecast,
            bids=[lie.apply(task) for task in world.tasks],
            tasks=range(len(world.tasks)),
            asks=[person.cost for person in world.providers],
            providers=range(len(world.providers)),
            claimed=world.held_blocks,
        )
        rows.append(pairs.welfare)
    return rows


def measure_split_providers(market: Truthful) -> Iterator[Attempt]:
    """Let every provider of two or more slots enter as two nodes, one slot or half apart."""
    world, book = market.world, Book.open(market)
    before = clear_all(book.welfare, book.slots)
    for provider, person in enumerate(world.providers):
        if person.slots < 2:
            continue
        wider = [_add_node(market, book, provider, factor) for factor in SPLIT_ASKS]
        truth = {rule: compute_profit(book, before, rule, provider) for rule in RULES}
        honest = dict.fromkeys(RULES, -np.inf)
        best = dict.fromkeys(RULES, -np.inf)
        for apart in sorted({1, person.slots // 2, person.slots - 1}):
            for factor, double in zip(SPLIT_ASKS, wider, strict=True):
                slots = double.slots.copy()
                slots[[provider, -1]] = person.slots - apart, apart
                cleared = clear_all(double.welfare, slots)
                for rule in RULES:
                    profit = compute_profit(double, cleared, rule, provider)
                    profit += compute_profit(double, cleared, rule, len(slots) - 1)
                    best[rule] = max(best[rule], profit)
                    if factor == 1.0:
                        honest[rule] = max(honest[rule], profit)
        for rule in RULES:
            for variant, found in (("same ask", honest), ("second dearer", best)):
                gain = float(found[rule]) - truth[rule]
                yield Attempt("split", variant, rule, truth[rule], gain, gain, 0)


def _add_node(market: Truthful, book: Book, provider: int, factor: float) -> Book:
    """Open the book with another node of the same provider that asks more."""
    world = market.world
    lie = ProviderLie("", "", ask=(factor,) * 3)
    pairs = appraise(
        world,
        market.forecast,
        bids=world.tasks,
        tasks=range(len(world.tasks)),
        asks=[lie.ask_of(world.providers[provider])],
        providers=[provider],
        claimed=world.held_blocks[:, [provider]],
    )
    return replace(
        book,
        welfare=_widen(book.welfare, pairs.welfare),
        cost=_widen(book.cost, pairs.cost),
        worth=np.hstack((book.worth, pairs.worth)),
        effort=np.hstack((book.effort, pairs.effort)),
        slots=np.append(book.slots, 0),
    )


def _widen(before: IntArray, column: IntArray) -> IntArray:
    wider: IntArray = np.hstack((before, column))
    return wider
