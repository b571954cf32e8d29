"""A round of the real mechanism on declarations, and what comes of it under the truth.

Valuation, matching, surcharges, rates and the worth of late tokens are the project's own
functions. What is added here is the other side: the same pairs appraised with true times, true
lengths and true caches. A lie changes one row or one column of these, so they are computed once a
market, all lies of one kind in one call, and put together round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from auctioneer.mechanism import compute_rates, compute_valuation
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_vcg_bonuses
from auctioneer.mechanism.clearing import compute_own_gains, match_and_price
from auctioneer.mechanism.gains import read_market
from auctioneer.mechanism.modes import compute_surcharges
from benchmarks.economics.world import Forecast, World, make_task, offer
from iemas.core.auction import Bid
from iemas.core.params import CLEARING_MODES
from iemas.core.types import PPM, TOKENS_PER_MTOK, Prices

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_SCALE: Final = TOKENS_PER_MTOK * PPM


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Every pair of a declared task (rows) and a declared provider (columns).

    As the market sees it: `welfare`, `cost` and `value`, int64; `expected`, the late-weighted
    tokens that rates are made for, int64, shape (3, rows, columns). As it will be, in
    expectation: `settled`, the late-weighted tokens that are billed, float64, (3, rows, columns);
    `worth` to the requester and `effort` of the provider, float64. Money in fine units.
    """

    welfare: IntArray
    cost: IntArray
    value: IntArray
    expected: IntArray
    settled: FloatArray
    worth: FloatArray
    effort: FloatArray

    def relax(self, possible: BoolArray) -> IntArray:
        """Compute welfare as if V > C were enough where a pair is possible at all."""
        gain = self.value - self.cost
        welfare: IntArray = np.where(possible & (gain > 0), gain, 0)
        return welfare


def find_possible(world: World) -> BoolArray:
    """Tell whose model and context suit whose task; shape (n_tasks, n_providers).

    Reservations cover the worst case here, so what is left of the rules is that a bid must cover
    the ask kind by kind, and V > C.
    """
    return np.array(
        [
            [
                task.model == person.model
                and task.prompt_tokens + task.max_tokens <= person.context_tokens
                for person in world.providers
            ]
            for task in world.tasks
        ],
        dtype=np.bool_,
    )


def appraise(
    world: World,
    forecast: Forecast,
    *,
    bids: Sequence[Bid],
    tasks: Sequence[int],
    asks: Sequence[Prices],
    providers: Sequence[int],
    claimed: IntArray,
) -> Pairs:
    """Appraise every pair of some declared bids and asks.

    tasks, providers: which of the world's each bid and each ask stands for.
    claimed: matched blocks by bid and ask, as the providers' digests show them.
    """
    people = [world.providers[n] for n in providers]
    seen = compute_valuation(
        bids,
        [
            offer(person, ask, forecast.qos[n])
            for person, ask, n in zip(people, asks, providers, strict=True)
        ],
        claimed,
        scenarios=forecast.scenarios,
        cache_affinity=True,
    )
    # The truth depends on who somebody is, not on what is asked: once a provider of the world.
    truly = [offer(person, person.cost, person.qos) for person in world.providers]
    held = world.held_blocks[np.array(tasks, dtype=np.int64)]
    met = compute_valuation(bids, truly, held, scenarios=world.scenarios, cache_affinity=True)
    wanted = [_get_wanted(bid, world.tasks[n]) for bid, n in zip(bids, tasks, strict=True)]
    own = compute_valuation(wanted, truly, held, scenarios=world.scenarios, cache_affinity=True)
    columns = np.array(providers, dtype=np.int64)
    return Pairs(
        welfare=seen.welfare_micros,
        cost=seen.cost_micros,
        value=seen.value_micros,
        expected=seen.expected_ppm_tokens,
        settled=_bill(bids, met.expected_ppm_tokens[:, :, columns], seen.cached_tokens),
        worth=own.value_micros[:, columns].astype(np.float64),
        effort=met.cost_micros[:, columns].astype(np.float64),
    )


def _get_wanted(bid: Bid, truth: Bid) -> Bid:
    """Give the true bid for what the declared one buys: more tokens are worthless."""
    if bid.max_tokens >= truth.max_tokens:
        return truth
    return make_task(truth.prompt_tokens, bid.max_tokens, truth.prices, truth.lateness, truth.model)


def _bill(bids: Sequence[Bid], met: IntArray, shown: IntArray) -> FloatArray:
    """Bill as cached what was shown to be, whatever was: docs/spec/execution.md R5."""
    prompt = np.array([[bid.prompt_tokens] for bid in bids], dtype=np.float64)
    late_ppm = (met[0] + met[1]) / prompt
    return np.stack(((prompt - shown) * late_ppm, shown * late_ppm, met[2].astype(np.float64)))


def appraise_truth(world: World, forecast: Forecast) -> Pairs:
    """Appraise the market in which everybody tells the truth."""
    return appraise(
        world,
        forecast,
        bids=world.tasks,
        tasks=range(len(world.tasks)),
        asks=[provider.cost for provider in world.providers],
        providers=range(len(world.providers)),
        claimed=world.held_blocks,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Cleared:
    """One clearing, split by every mode: the matching does not depend on it.

    `surcharges`: by mode, int64, shape (n_tasks,).
    """

    assignment: IntArray
    slot_prices: IntArray
    bonuses: IntArray
    own: IntArray
    surcharges: dict[str, IntArray]

    def get_tasks(self, provider: int) -> list[int]:
        """List the tasks matched at a provider."""
        found: list[int] = np.flatnonzero(self.assignment == provider).tolist()
        return found

    @property
    def matched(self) -> list[int]:
        """List the matched tasks."""
        found: list[int] = np.flatnonzero(self.assignment >= 0).tolist()
        return found


def clear_all(welfare: IntArray, slots: IntArray) -> Cleared:
    """Clear once and split the surplus by each mode's rule."""
    gains = read_market(welfare, slots)
    priced = match_and_price(gains, slots)
    bonuses, fallbacks = compute_vcg_bonuses(gains, priced.assignment, priced.residual)
    own = compute_own_gains(gains, priced.assignment)
    surcharges = {
        mode: compute_surcharges(
            mode,
            priced.assignment,
            welfare=own,
            slot_prices=priced.slot_prices,
            bonuses=bonuses,
            fallbacks=fallbacks,
        )
        for mode in CLEARING_MODES
    }
    return Cleared(priced.assignment, priced.slot_prices, bonuses, own, surcharges)


def compute_payment(
    pairs: Pairs, pair: tuple[int, int], surcharge: int, ask: Prices, bid: Bid
) -> float:
    """Compute what a matched task pays, in expectation over what truly happens, in fine units.

    pair: row and column. Rates are fixed by what the market expects; what is settled is theirs
    times what comes.
    """
    row, column = pair
    uncached, cached, output = pairs.expected[:, row, column].tolist()
    price = int(pairs.cost[row, column]) + surcharge
    rates = compute_rates(ask, bid.prices, (uncached, cached, output), price)
    billed = pairs.settled[:, row, column]
    owed = (
        rates.prompt_micros_per_mtok * billed[0]
        + rates.cached_micros_per_mtok * billed[1]
        + rates.output_micros_per_mtok * billed[2]
    )
    return float(owed) / _SCALE


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What everybody gets in one mode, in expectation over what truly happens, in fine units.

    `payments`, `requesters`: shape (n_tasks,). `providers`: shape (n_providers,).
    """

    payments: FloatArray
    requesters: FloatArray
    providers: FloatArray


def compute_outcome(
    pairs: Pairs, cleared: Cleared, mode: str, asks: Sequence[Prices], bids: Sequence[Bid]
) -> Outcome:
    """Settle all matched tasks."""
    payments = np.zeros(len(bids))
    requesters = np.zeros(len(bids))
    providers = np.zeros(len(asks))
    for task in cleared.matched:
        provider = int(cleared.assignment[task])
        surcharge = int(cleared.surcharges[mode][task])
        paid = compute_payment(pairs, (task, provider), surcharge, asks[provider], bids[task])
        payments[task] = paid
        requesters[task] = pairs.worth[task, provider] - paid
        providers[provider] += paid - pairs.effort[task, provider]
    return Outcome(payments, requesters, providers)


def declare(task: Bid, **changes: object) -> Bid:
    """Change a bid and reserve what the changed one may cost."""
    changed = replace(task, **changes)  # type: ignore[arg-type]
    return make_task(
        changed.prompt_tokens, changed.max_tokens, changed.prices, changed.lateness, changed.model
    )
