"""Markets, and what is true of them by definition: every matching is tried.

`enumerate_optima` tries all matchings of many markets of one shape at once, so that tens of
thousands of markets are checked in seconds.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism.arrays import IntArray

Market = tuple[IntArray, IntArray]


@dataclass(frozen=True)
class Optima:
    """Greatest welfare of n markets: whole, and without each provider or task.

    `with_slot`: with one more slot at each provider.
    """

    whole: IntArray
    without_provider: IntArray
    without_task: IntArray
    with_slot: IntArray


def enumerate_optima(welfare: IntArray, slots: IntArray) -> Optima:
    """Try every matching. welfare: (n, n_tasks, n_providers); slots: (n, n_providers)."""
    n, n_tasks, n_providers = welfare.shape
    choices = list_choices(n_tasks, n_providers)
    gains = np.concatenate((welfare, np.zeros((n, n_tasks, 1), dtype=np.int64)), axis=2)
    totals = gains[:, np.arange(n_tasks), choices].sum(axis=2)
    used = (choices[:, :, None] == np.arange(n_providers)).sum(axis=1)

    def find_best(available: IntArray, chosen: np.ndarray) -> IntArray:
        fits = (used[chosen][None] <= available[:, None, :]).all(axis=2)
        best: IntArray = np.where(fits, totals[:, chosen], -1).max(axis=1)
        return best

    def stack(columns: list[IntArray]) -> IntArray:
        return np.stack(columns, axis=1) if columns else np.zeros((n, 0), dtype=np.int64)

    everything = np.ones(len(choices), dtype=bool)
    one_slot = np.eye(n_providers, dtype=np.int64)
    return Optima(
        find_best(slots, everything),
        stack([find_best(slots, used[:, i] == 0) for i in range(n_providers)]),
        stack([find_best(slots, choices[:, j] == n_providers) for j in range(n_tasks)]),
        stack([find_best(slots + one_slot[i], everything) for i in range(n_providers)]),
    )


def list_choices(n_tasks: int, n_providers: int) -> IntArray:
    """List every choice of a provider by each task; n_providers stands for none."""
    choices = list(itertools.product(range(n_providers + 1), repeat=n_tasks))
    return np.array(choices, dtype=np.int64).reshape((n_providers + 1) ** n_tasks, n_tasks)


def list_optimal_assignments(welfare: IntArray, slots: IntArray) -> IntArray:
    """List all optimal matchings of one market, −1 for unmatched; shape (n, n_tasks)."""
    n_tasks, n_providers = welfare.shape
    choices = list_choices(n_tasks, n_providers)
    # A pair of no welfare is no match, so it may not even stand where it costs nothing.
    gains = np.where(welfare > 0, welfare, -1 - np.maximum(welfare, 0).sum())
    gains = np.concatenate((gains, np.zeros((n_tasks, 1), dtype=np.int64)), axis=1)
    totals = gains[np.arange(n_tasks), choices].sum(axis=1)
    used = (choices[:, :, None] == np.arange(n_providers)).sum(axis=1)
    totals = np.where((used <= slots).all(axis=1), totals, -1)
    optimal = choices[totals == totals.max()]
    return np.where(optimal == n_providers, -1, optimal)


def draw_market_stacks(count: int, seed: int) -> Iterator[tuple[IntArray, IntArray]]:
    """About `count` random markets in stacks of one shape each.

    All shapes from 0 × 0 to 4 tasks × 3 providers and 3 × 4; values with many ties, with none,
    with zeros, rows without welfare, providers without slots, more slots than tasks.
    """
    rng = np.random.default_rng(seed)
    shapes = [(t, a) for t in range(5) for a in range(5) if t + a <= 7]
    per_shape = -(-count // len(shapes))
    for n_tasks, n_providers in shapes:
        top = rng.choice([1, 2, 5, 40, 10**9], (per_shape, 1, 1))
        lowest = -top * rng.integers(0, 2, (per_shape, 1, 1)) // 2
        welfare = rng.integers(lowest, top + 1, (per_shape, n_tasks, n_providers))
        welfare[rng.random((per_shape, n_tasks)) < 0.1] = -1
        slots = rng.integers(0, rng.integers(2, 6, (per_shape, 1)), (per_shape, n_providers))
        yield welfare, slots


def draw_large_market(rng: np.random.Generator) -> Market:
    """A market too large to enumerate, some with many ties, some with a price chain or two."""
    n_tasks, n_providers = int(rng.integers(1, 60)), int(rng.integers(2, 30))
    return draw_market(rng, n_tasks, n_providers)


def draw_market(rng: np.random.Generator, n_tasks: int, n_providers: int) -> Market:
    """A market of this shape, its values from a narrow range or a wide one."""
    top = int(rng.choice([3, 30, 10**6]))
    welfare = rng.integers(-top // 3, top, (n_tasks, n_providers))
    if rng.random() < 0.5:
        # A value a task and a cost a provider: everybody wants the same, so prices chain.
        welfare += rng.integers(0, 3 * top, (n_tasks, 1)) - rng.integers(0, top, n_providers)
    return welfare, rng.integers(0, 6, n_providers)
