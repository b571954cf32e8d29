"""What comes out if everybody lies as is best for it, not only one.

All requesters of a kind of market scale their bids by one factor, all providers their asks by
another; no other lies, and predictions are perfect. In turns, each side takes the factor that is
best for a single one of it, on average over agents and markets, while all others stay where they
are, until neither side moves. Where the turns go round in a circle, figures are means over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.book import Book, compute_profit, compute_utilities
from benchmarks.economics.rounds import BoolArray, appraise_truth, clear_all, find_possible
from benchmarks.economics.world import World, foresee
from iemas.core.types import Prices

ASK_FACTORS: Final = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)
BID_FACTORS: Final = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
MOST_TURNS: Final = 24

State = tuple[float, float]
"""The factors on bids and on asks."""

Row = dict[str, object]


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """A market whose bids and asks can be scaled: values and costs scale with them.

    `value`, `cost`: of the true bids and asks, int64, shape (n_tasks, n_providers). `prices`,
    `asks`: by kind, int64, shapes (n_tasks, 3) and (n_providers, 3).
    """

    value: IntArray
    cost: IntArray
    possible: BoolArray
    prices: IntArray
    asks: IntArray
    slots: IntArray

    @classmethod
    def make(cls, world: World) -> Scaled:
        """Appraise the truth."""
        pairs = appraise_truth(world, foresee(world, noise=0.0, bias=0.0, seed=0))
        return cls(
            pairs.value,
            pairs.cost,
            find_possible(world),
            np.array([_as_list(task.prices) for task in world.tasks], dtype=np.int64),
            np.array([_as_list(person.cost) for person in world.providers], dtype=np.int64),
            world.slots,
        )

    def declare(self, bids: IntArray | np.ndarray, asks: np.ndarray) -> Book:
        """Open the book of a market with factors on each bid and each ask."""
        value = np.floor(self.value * bids[:, None]).astype(np.int64)
        cost = np.ceil(self.cost * asks).astype(np.int64)
        prices, charges = self.prices * bids[:, None], self.asks * asks[:, None]
        covered = (prices[:, None, :] >= charges).all(axis=2)
        welfare = np.where(self.possible & covered & (value > cost), value - cost, 0)
        true_value, true_cost = self.value.astype(np.float64), self.cost.astype(np.float64)
        return Book(welfare, cost, true_value, true_cost, self.slots)


def find_equilibrium(kind: str, worlds: Sequence[World], mode: str) -> Row:
    """Let both sides take turns, and say where that ends and what everybody gets there."""
    markets = [Scaled.make(world) for world in worlds]
    path: list[State] = [(1.0, 1.0)]
    while len(path) < MOST_TURNS:
        bid, ask = path[-1]
        bid = _respond_requester(markets, mode, (bid, ask))
        ask = _respond_provider(markets, mode, (bid, ask))
        path.append((bid, ask))
        if path[-1] in path[:-1]:
            break
    circle = path[path.index(path[-1]) :]
    circle = circle[1:] or circle
    shares = np.mean([_measure(markets, mode, state) for state in circle], axis=0)
    efficiency, providers, requesters, matched = (round(float(share), 4) for share in shares)
    return {
        "market": kind,
        "mode": mode,
        "bid_factor": round(float(np.mean([bid for bid, _ in circle])), 3),
        "ask_factor": round(float(np.mean([ask for _, ask in circle])), 3),
        "turns": len(path) - 1,
        "circle": len(circle),
        "efficiency_share": efficiency,
        "providers_share": providers,
        "requesters_share": requesters,
        "matched_share": matched,
    }


def _respond_requester(markets: Sequence[Scaled], mode: str, state: State) -> float:
    """Find the factor that is best for one requester, the others staying where they are."""
    totals = np.zeros(len(BID_FACTORS))
    for market in markets:
        n_tasks, n_providers = market.value.shape
        asks = np.full(n_providers, state[1])
        for n, factor in enumerate(BID_FACTORS):
            for task in range(n_tasks):
                bids = np.full(n_tasks, state[0])
                bids[task] = factor
                book = market.declare(bids, asks)
                cleared = clear_all(book.welfare, book.slots)
                totals[n] += compute_utilities(book, cleared, mode)[task]
    return _choose(BID_FACTORS, totals, state[0])


def _respond_provider(markets: Sequence[Scaled], mode: str, state: State) -> float:
    """Find the factor that is best for one provider, the others staying where they are."""
    totals = np.zeros(len(ASK_FACTORS))
    for market in markets:
        n_tasks, n_providers = market.value.shape
        bids = np.full(n_tasks, state[0])
        for n, factor in enumerate(ASK_FACTORS):
            for provider in range(n_providers):
                asks = np.full(n_providers, state[1])
                asks[provider] = factor
                book = market.declare(bids, asks)
                cleared = clear_all(book.welfare, book.slots)
                totals[n] += compute_profit(book, cleared, mode, provider)
    return _choose(ASK_FACTORS, totals, state[1])


def _choose(factors: Sequence[float], totals: np.ndarray, now: float) -> float:
    """Choose the best factor; who gains less than a thousandth by moving stays."""
    best = int(totals.argmax())
    margin = 0.001 * abs(float(totals[best]))
    return now if totals[factors.index(now)] >= totals[best] - margin else factors[best]


def _measure(markets: Sequence[Scaled], mode: str, state: State) -> list[float]:
    """Measure efficiency, both sides' gains as shares of the optimum, and the matched tasks."""
    optimum = welfare = sold = 0.0
    matched = n_tasks = 0
    for market in markets:
        rows, columns = market.value.shape
        truth = market.declare(np.ones(rows), np.ones(columns))
        optimum += float(clear_all(truth.welfare, truth.slots).own.sum())
        book = market.declare(np.full(rows, state[0]), np.full(columns, state[1]))
        cleared = clear_all(book.welfare, book.slots)
        sold += sum(compute_profit(book, cleared, mode, provider) for provider in range(columns))
        welfare += float(compute_utilities(book, cleared, mode).sum())
        matched += len(cleared.matched)
        n_tasks += rows
    return [
        (welfare + sold) / optimum,
        sold / optimum,
        welfare / optimum,
        matched / n_tasks,
    ]


def _as_list(prices: Prices) -> list[int]:
    return [
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    ]
