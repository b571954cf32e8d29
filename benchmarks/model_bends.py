"""What a provider gains from a bent QoS model that honest validators would still agree with.

Rows are bent just as far as `auctioneer.predictors.proposals` lets pass that judges by 200
receipts: the provider's own to the good, all others' to the bad, or both, whichever is best for it
in its market. Markets, truth and settlement are those of `benchmarks.economics`. Source:
docs/spec/round.md §9.

    python -m benchmarks.model_bends --json -
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from auctioneer.predictors import proposals
from benchmarks._report import add_json_option, write_report
from benchmarks.economics.markets import draw_affine, draw_sessions
from benchmarks.economics.rounds import Outcome, appraise_truth, clear_all, compute_outcome
from benchmarks.economics.world import Forecast, World
from iemas.core.auction import ProviderQos
from iemas.core.params import CLEARING_MODES

MARKETS: Final = 40
SAMPLES: Final = 200
GOOD, BAD, FAIR = -1, 1, 0
BENDS: Final = ((GOOD, FAIR), (FAIR, BAD), (GOOD, BAD))
"""How the provider's own row is bent, and all others."""

KINDS: Final[dict[str, Callable[[np.random.Generator], World]]] = {
    "slots to spare": lambda rng: draw_sessions(rng, 8, [4] * 5),
    "about enough": draw_affine,
    "scarce": lambda rng: draw_sessions(rng, 20, [3] * 5),
}


def bend(row: ProviderQos, direction: int) -> ProviderQos:
    """Bend a row as far as a judge lets pass whose own row it is."""
    if direction == FAIR:
        return row

    def shift(value: int, floor: float, spread: int) -> int:
        error = proposals.STANDARD_ERRORS * spread / math.sqrt(SAMPLES)
        return max(0, round(value + direction * (proposals.SHARE * value + floor + error)))

    def spread(value: int, floor: int) -> int:
        factor = proposals.SPREAD_FACTOR
        return max(0, value // factor - floor) if direction == GOOD else value * factor + floor

    ttft_floor, token_floor = proposals.TTFT_FLOOR_US, proposals.TOKEN_FLOOR_US
    return replace(
        row,
        ttft_base_us=shift(row.ttft_base_us, ttft_floor, row.ttft_sd_us),
        ttft_per_uncached_token_us=shift(row.ttft_per_uncached_token_us, 0, 0),
        ttft_per_active_task_us=shift(row.ttft_per_active_task_us, 0, 0),
        ttft_per_pending_token_us=shift(row.ttft_per_pending_token_us, 0, 0),
        ttft_sd_us=spread(row.ttft_sd_us, ttft_floor),
        token_us=shift(row.token_us, token_floor, row.token_sd_us),
        token_sd_us=spread(row.token_sd_us, token_floor),
    )


def play(world: World, rows: list[ProviderQos]) -> dict[str, Outcome]:
    """Clear and settle a market of truthful declarations under predictions, in every mode."""
    pairs = appraise_truth(world, Forecast(tuple(rows), world.scenarios))
    cleared = clear_all(pairs.welfare, np.array([person.slots for person in world.providers]))
    asks = [person.cost for person in world.providers]
    return {
        mode: compute_outcome(pairs, cleared, mode, asks, world.tasks) for mode in CLEARING_MODES
    }


def measure(name: str, seed: int) -> dict[str, Any]:
    """Measure one kind of market."""
    gains: dict[str, list[float]] = {mode: [] for mode in CLEARING_MODES}
    revenues: dict[str, list[float]] = {mode: [] for mode in CLEARING_MODES}
    lost: list[float] = []
    for number in range(MARKETS):
        world = KINDS[name](np.random.default_rng((seed, number)))
        truth = [person.qos for person in world.providers]
        fair, liar = play(world, truth), number % len(truth)
        bent = []
        for own, others in BENDS:
            rows = [bend(row, own if n == liar else others) for n, row in enumerate(truth)]
            bent.append(play(world, rows))
        for mode in CLEARING_MODES:
            best = max(outcome[mode].providers[liar] for outcome in bent)
            gains[mode].append(float(best - fair[mode].providers[liar]))
            revenues[mode].append(float(fair[mode].payments.sum()) / len(truth))
        lost.append(1 - _sum_surplus(bent[-1]) / _sum_surplus(fair))
    figures: dict[str, Any] = {"market": name, "surplus_lost_pct": round(100 * np.mean(lost), 3)}
    for mode in CLEARING_MODES:
        scale = 100 / np.mean(revenues[mode])
        figures[f"{mode}_gain_pct"] = round(float(scale * np.mean(gains[mode])), 1)
        error = np.std(gains[mode]) / math.sqrt(MARKETS)
        figures[f"{mode}_gain_error_pct"] = round(float(scale * error), 1)
    return figures


def _sum_surplus(outcomes: dict[str, Outcome]) -> float:
    """Add up what everybody gains: the same in every mode but for rounding."""
    outcome = outcomes["client"]
    return float(outcome.requesters.sum() + outcome.providers.sum())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    results = [measure(name, options.seed) for name in KINDS]
    parameters = {"seed": options.seed, "markets": MARKETS, "samples": SAMPLES}
    write_report(
        options.json, name="model_bends", parameters=parameters, figures={"results": results}
    )


if __name__ == "__main__":
    main()
