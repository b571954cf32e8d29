"""The best lie of each single agent, with everybody else truthful.

Every lie of every agent of one market is played; what comes back is what each lie gives, by mode.
What is made of it (report.py): the best lie *with full knowledge*, picked by each agent in each
market and each draw of prediction errors, is an upper bound. The best *fixed* lie is one for all
agents and markets of a kind, picked on one half of the markets and played on the other: what
somebody can do who knows only what kind of market it is in.

With `cover=False` the rule that a bid must cover the ask kind by kind is dropped and prices are
paid as they are, not by rates, which need that rule: a control that only suits perfect
predictions and lies about prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.lies import PROVIDER_LIES, REQUESTER_LIES, ProviderLie, RequesterLie
from benchmarks.economics.rounds import (
    Cleared,
    FloatArray,
    Outcome,
    Pairs,
    appraise,
    appraise_truth,
    clear_all,
    compute_outcome,
    compute_payment,
    find_possible,
)
from benchmarks.economics.world import Forecast, World
from iemas.core.params import CLEARING_MODES


@dataclass(frozen=True, slots=True, eq=False)
class Truthful:
    """The market in which nobody lies: what a search compares to."""

    world: World
    forecast: Forecast
    pairs: Pairs
    cleared: Cleared
    outcomes: dict[str, Outcome]

    @classmethod
    def play(cls, world: World, forecast: Forecast) -> Truthful:
        """Clear and settle it in every mode."""
        pairs = appraise_truth(world, forecast)
        cleared = clear_all(pairs.welfare, world.slots)
        asks = [provider.cost for provider in world.providers]
        outcomes = {
            mode: compute_outcome(pairs, cleared, mode, asks, world.tasks)
            for mode in CLEARING_MODES
        }
        return cls(world, forecast, pairs, cleared, outcomes)


class _Memory:
    """Clearings by what was declared: many lies change nothing that the market sees."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, bytes, bytes], Cleared] = {}

    def clear(self, welfare: IntArray, slots: IntArray, *, row: int) -> Cleared:
        """Clear, or remember it. row: whose lie it is, as only the latest's are kept."""
        key = (row, welfare.tobytes(), slots.tobytes())
        if key not in self._found:
            if next(iter(self._found), key)[0] != row:
                self._found.clear()
            self._found[key] = clear_all(welfare, slots)
        return self._found[key]


def search_requesters(
    market: Truthful, lies: Sequence[RequesterLie] = REQUESTER_LIES, *, cover: bool = True
) -> FloatArray:
    """Compute every requester's utility under each of its lies.

    Returns: fine units, shape (n_modes, n_tasks, n_lies).
    """
    world = market.world
    asks = [provider.cost for provider in world.providers]
    tasks = [task for task in range(len(world.tasks)) for _ in lies]
    bids = [lie.apply(task) for task in world.tasks for lie in lies]
    rows = appraise(
        world,
        market.forecast,
        bids=bids,
        tasks=tasks,
        asks=asks,
        providers=range(len(asks)),
        claimed=world.held_blocks[tasks],
    )
    possible = find_possible(world)
    base = market.pairs.welfare if cover else market.pairs.relax(possible)
    declared = rows.welfare if cover else rows.relax(possible[tasks])
    utility = np.zeros((len(CLEARING_MODES), len(bids)))
    remembered = _Memory()
    for row, task in enumerate(tasks):
        if not declared[row].any():
            continue
        welfare = base.copy()
        welfare[task] = declared[row]
        cleared = remembered.clear(welfare, world.slots, row=task)
        at = int(cleared.assignment[task])
        if at < 0:
            continue
        for n, mode in enumerate(CLEARING_MODES):
            surcharge = int(cleared.surcharges[mode][task])
            paid = (
                compute_payment(rows, (row, at), surcharge, asks[at], bids[row])
                if cover
                else float(rows.cost[row, at] + surcharge)
            )
            utility[n, row] = rows.worth[row, at] - paid
    return utility.reshape(len(CLEARING_MODES), len(world.tasks), len(lies))


def search_providers(
    market: Truthful, lies: Sequence[ProviderLie] = PROVIDER_LIES, *, cover: bool = True
) -> FloatArray:
    """Compute every provider's utility under each of its lies.

    Of more tasks than it has slots it serves those that pay it best, and gets nothing for the
    others: they are told that it is busy. With `makes_good` it pays them what they were to gain.
    Returns: fine units, shape (n_modes, n_providers, n_lies).
    """
    world, n_lies = market.world, len(lies)
    people = list(enumerate(world.providers))
    owners = [provider for provider, _ in people for _ in lies]
    asks = [lie.ask_of(person) for _, person in people for lie in lies]
    claims = [lie.claim(world, provider) for provider, _ in people for lie in lies]
    columns = appraise(
        world,
        market.forecast,
        bids=world.tasks,
        tasks=range(len(world.tasks)),
        asks=asks,
        providers=owners,
        claimed=np.stack(claims, axis=1),
    )
    possible = find_possible(world)
    base = market.pairs.welfare if cover else market.pairs.relax(possible)
    declared = columns.welfare if cover else columns.relax(possible[:, owners])
    utility = np.zeros((len(CLEARING_MODES), len(owners)))
    remembered = _Memory()
    for column, provider in enumerate(owners):
        lie, slots, welfare = lies[column % n_lies], world.slots, base.copy()
        slots[provider] = lie.slots_of(world.providers[provider])
        welfare[:, provider] = declared[:, column]
        cleared = remembered.clear(welfare, slots, row=provider)
        served = cleared.get_tasks(provider)
        for n, mode in enumerate(CLEARING_MODES):
            profits, owed = [], []
            for task in served:
                surcharge, bid = int(cleared.surcharges[mode][task]), world.tasks[task]
                paid = (
                    compute_payment(columns, (task, column), surcharge, asks[column], bid)
                    if cover
                    else float(columns.cost[task, column] + surcharge)
                )
                profits.append(paid - float(columns.effort[task, column]))
                owed.append(float(declared[task, column] - surcharge) if lie.makes_good else 0.0)
            utility[n, column] = _serve_best(profits, owed, world.providers[provider].slots)
    return utility.reshape(len(CLEARING_MODES), len(people), n_lies)


def _serve_best(profits: list[float], owed: list[float], slots: int) -> float:
    """Serve the tasks that it is best to, and owe what is owed for the others."""
    kept = sorted(
        (profit + debt for profit, debt in zip(profits, owed, strict=True)), reverse=True
    )[:slots]
    return sum(kept) - sum(owed)
