"""One market of the study: everything that is measured on it, and which markets there are.

Markets are independent of each other, so they are studied in parallel; each is made from the seed,
its kind and its number alone.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.economics.baseline import Row, compute_relaxed_optimum, measure_market
from benchmarks.economics.book import Attempt
from benchmarks.economics.lies import PRICE_GROUPS, PROVIDER_LIES, REQUESTER_LIES
from benchmarks.economics.markets import DRAWN
from benchmarks.economics.rounds import FloatArray
from benchmarks.economics.search import Truthful, search_providers, search_requesters
from benchmarks.economics.sharing import measure_sharing
from benchmarks.economics.shills import measure_accomplices, measure_crowds, measure_shills
from benchmarks.economics.splits import measure_accounts, measure_split_providers
from benchmarks.economics.traces import LOADERS, cut_markets
from benchmarks.economics.world import World, foresee

PARTS: Final = ("baseline", "lies", "collusion", "equilibrium", "outcomes")
MARKET_PARTS: Final = frozenset({"baseline", "lies", "collusion"})
"""Parts that look at one market at a time."""
LEVELS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Setting:
    """How predictions miss the truth: see `foresee`."""

    noise: float = 0.0
    bias: float = 0.0


PERFECT: Final = Setting()
SETTINGS: Final = (
    PERFECT,
    *(Setting(noise=level) for level in LEVELS),
    *(Setting(bias=sign * level) for level in LEVELS for sign in (-1.0, 1.0)),
)


@dataclass(frozen=True, slots=True, eq=False)
class MarketTask:
    """A market to study."""

    kind: str
    number: int
    seed: int
    world: World
    parts: tuple[str, ...]


@dataclass(slots=True, eq=False)
class MarketResult:
    """What one market shows, in fine units.

    `baseline`: by setting and mode. `requesters`, `providers`: utilities by setting, shape
    (n_modes, n_agents, n_lies). `relaxed`: the same for lies about prices under perfect
    predictions without the rule that bids cover asks kind by kind, by side.
    `requester_vcg`, `provider_vcg`: VCG payoffs under perfect predictions, by agent.
    """

    kind: str
    number: int
    optimum: float
    relaxed_optimum: float
    requester_vcg: FloatArray
    provider_vcg: FloatArray
    baseline: dict[tuple[Setting, str], Row] = field(default_factory=dict)
    requesters: dict[Setting, FloatArray] = field(default_factory=dict)
    providers: dict[Setting, FloatArray] = field(default_factory=dict)
    relaxed: dict[str, FloatArray] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    sharing: list[Attempt] = field(default_factory=list)


def end_on_interrupt() -> None:
    """Let Ctrl-C end this worker at once and without a word: the parent process speaks."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def study_market(task: MarketTask) -> MarketResult:
    """Measure all that is wanted of one market."""
    worlds = {
        setting: foresee(
            task.world, noise=setting.noise, bias=setting.bias, seed=task.seed + task.number
        )
        for setting in SETTINGS
    }
    perfect = Truthful.play(task.world, worlds[PERFECT])
    cleared = perfect.cleared
    prices = cleared.slot_prices[np.maximum(cleared.assignment, 0)]
    result = MarketResult(
        kind=task.kind,
        number=task.number,
        optimum=float(cleared.own.sum()),
        relaxed_optimum=compute_relaxed_optimum(perfect),
        requester_vcg=np.where(cleared.assignment >= 0, cleared.own - prices, 0).astype(np.float64),
        provider_vcg=cleared.bonuses.astype(np.float64),
    )
    for setting, forecast in worlds.items():
        market = Truthful.play(task.world, forecast)
        for mode, row in measure_market(market, result.optimum):
            result.baseline[setting, mode] = row
        if "lies" in task.parts:
            result.requesters[setting] = search_requesters(market)
            result.providers[setting] = search_providers(market)
    if "lies" in task.parts:
        result.relaxed = _search_without_cover_rule(perfect)
    if "collusion" in task.parts:
        for measure in (
            measure_shills,
            measure_accomplices,
            measure_crowds,
            measure_accounts,
            measure_split_providers,
        ):
            result.attempts += measure(perfect)
        result.sharing += measure_sharing(perfect)
    return result


def _search_without_cover_rule(perfect: Truthful) -> dict[str, FloatArray]:
    requester_lies = [lie for lie in REQUESTER_LIES if lie.group in PRICE_GROUPS]
    provider_lies = [lie for lie in PROVIDER_LIES if lie.group in PRICE_GROUPS]
    return {
        "requester": search_requesters(perfect, requester_lies, cover=False),
        "provider": search_providers(perfect, provider_lies, cover=False),
    }


def list_markets(
    count: int, seed: int, parts: Collection[str], data: Path
) -> tuple[list[MarketTask], dict[str, str]]:
    """List the markets of every kind, and why there are none of some kinds."""
    tasks, skipped = [], {}
    wanted = tuple(part for part in PARTS if part in parts)
    for kind, draw in DRAWN.items():
        worlds = [draw(np.random.default_rng([seed, n, *kind.encode()])) for n in range(count)]
        tasks += [MarketTask(kind, n, seed, world, wanted) for n, world in enumerate(worlds)]
    for kind, load in LOADERS.items():
        try:
            trace = load(data)
        except FileNotFoundError as error:
            skipped[kind] = f"no trace at {error.filename}"
            continue
        worlds = cut_markets(trace, count, seed)
        tasks += [MarketTask(kind, n, seed, world, wanted) for n, world in enumerate(worlds)]
    return tasks, skipped
