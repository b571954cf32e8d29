"""How long clearing takes: matching, all payments, and checking them, against a bare matching.

    lsa_ms          scipy's solver alone, on costs that are already expanded to slots
    client_ms       matching and all π: what `client` mode needs
    both_ms         `clear` in `provider` mode: the same with all bonuses, surcharges, certificate
    naive_ms        n + 1 matchings: one more without each provider and without each matched task;
                    some of each are timed and multiplied, or `lsa_ms` is where it is long
    verify_ms       checking W and π
    verify_both_ms  `verify`: the same with bonuses and surcharges

Each repeat runs all of them in turn, so that a noisy machine is as noisy to each; figures are
medians, ratios are to `lsa_ms`. Where one matching takes longer than `--patience` seconds there is
one repeat, and `repeats` says so. `memory_mb` is the most that one `clear` allocates.

Markets: `random`, welfare uniform in 1..10^6. `affine`: prompts of sessions whose cache a few
providers hold, providers that ask different prices, most pairs worth something. `candidates` is
the length of each task's list, its best providers; 0 stands for a matrix. Targets (design §12):
at 1000 × 200 × 4 client_ratio ≤ 1.25, both_ratio ≤ 6 aiming at 3; at 32 × 16 × 8 both_ms ≤ 1.

    python -m benchmarks.clearing --json -
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism import CandidateWelfare, clear, verify
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.assignment import make_candidate_graph, match_expanded
from auctioneer.mechanism.certificate import verify_matching_and_prices
from auctioneer.mechanism.clearing import match_and_price
from auctioneer.mechanism.gains import CandidateGains, read_market
from benchmarks._report import add_json_option, write_report

REPEATS = 15
N_CANDIDATES = 16
SIZES = ((32, 16, 8), (1000, 200, 4), (5000, 500, 8))
SPARSE_SIZE = (20_000, 1_000, 8)


@dataclass(frozen=True)
class Market:
    """A market to clear, and the bare solver's run on it."""

    name: str
    welfare: IntArray | CandidateWelfare
    slots: IntArray
    match_bare: Callable[[], object]


def draw_affine(n_tasks: int, n_providers: int, rng: np.random.Generator) -> IntArray:
    """Draw tasks of sessions: two providers hold part of each prompt, and prices differ."""
    prompt = rng.integers(200, 8_000, n_tasks)
    output = 4 * rng.integers(50, 800, n_tasks)
    limit = rng.integers(300, 900, n_tasks)
    ask = rng.integers(100, 500, n_providers)
    cached = np.zeros((n_tasks, n_providers), dtype=np.int64)
    tasks = np.arange(n_tasks)
    for _ in range(2):
        homes = rng.integers(0, n_providers, n_tasks)
        cached[tasks, homes] = (prompt * rng.random(n_tasks)).astype(np.int64)
    # A cached token costs a tenth; prices are micro-credits per 1,000 tokens.
    metered = 10 * (prompt[:, None] - cached) + cached + 10 * output[:, None]
    return (10 * (prompt + output) * limit)[:, None] - metered * ask


def make_dense(name: str, welfare: IntArray, slots: IntArray) -> Market:
    """Expand the costs for the bare solver, outside of what is timed."""
    costs = np.repeat(-np.maximum(welfare, 0).astype(np.float64), slots, axis=1)
    return Market(name, welfare, slots, lambda: linear_sum_assignment(costs))


def make_sparse(welfare: IntArray, slots: IntArray) -> Market:
    """Keep each task's best providers."""
    providers = np.argpartition(-welfare, N_CANDIDATES, axis=1)[:, :N_CANDIDATES]
    values = np.take_along_axis(welfare, providers, axis=1)
    lists = CandidateWelfare(providers, values, welfare.shape[1])
    gains = read_market(lists, slots)
    if not isinstance(gains, CandidateGains):
        raise TypeError
    graph = make_candidate_graph(gains, slots)
    return Market("affine", lists, slots, lambda: match_expanded(graph))


def time_ms(run: Callable[[], object]) -> float:
    """Time one run; a short one is run over and over for 5 ms, and what counts is the mean."""
    runs, started = 0, time.perf_counter()
    while True:
        run()
        runs += 1
        elapsed = time.perf_counter() - started
        if elapsed > 5e-3:
            return elapsed / runs * 1e3


def measure(market: Market, repeats: int, patience_s: float) -> dict[str, object]:
    """Time everything on one market."""
    welfare, slots = market.welfare, market.slots
    clearing = clear(welfare, slots)
    runs: dict[str, Callable[[], object]] = {
        "lsa_ms": market.match_bare,
        "client_ms": lambda: match_and_price(read_market(welfare, slots), slots),
        "both_ms": lambda: clear(welfare, slots),
        "verify_ms": lambda: verify_matching_and_prices(welfare, slots, clearing),
        "verify_both_ms": lambda: verify(welfare, slots, clearing),
    }
    if time_ms(market.match_bare) > patience_s * 1e3:
        repeats = 1
    times = [{key: time_ms(run) for key, run in runs.items()} for _ in range(repeats)]
    figures = {key: float(np.median([row[key] for row in times])) for key in runs}
    n_tasks, n_providers = read_market(welfare, slots).shape
    matched = int((clearing.assignment >= 0).sum())
    return {
        "market": market.name,
        "tasks": n_tasks,
        "providers": n_providers,
        "slots": int(slots[0]),
        "candidates": N_CANDIDATES if isinstance(welfare, CandidateWelfare) else 0,
        "matched": matched,
        "repeats": repeats,
        **{key: round(value, 3) for key, value in figures.items()},
        "naive_ms": round(estimate_naive_ms(market, matched, repeats, figures["lsa_ms"]), 1),
        "client_ratio": round(figures["client_ms"] / figures["lsa_ms"], 3),
        "both_ratio": round(figures["both_ms"] / figures["lsa_ms"], 3),
        "memory_mb": round(measure_memory_mb(market), 1),
        "vcg_deficit_share": round(clearing.vcg_deficit_micros / clearing.welfare_micros, 4),
    }


def estimate_naive_ms(market: Market, matched: int, repeats: int, lsa_ms: float) -> float:
    """Estimate what n + 1 matchings would take."""
    n_providers = len(market.slots)
    if repeats == 1 or isinstance(market.welfare, CandidateWelfare):
        return (1 + n_providers + matched) * lsa_ms
    costs = np.repeat(-np.maximum(market.welfare, 0).astype(np.float64), market.slots, axis=1)
    width = int(market.slots[0])
    without_task, without_provider = [], []
    for n in range(repeats):
        fewer = np.delete(costs, n, axis=0)
        narrower = np.delete(costs, np.s_[n * width : (n + 1) * width], axis=1)
        without_task.append(time_ms(lambda costs=fewer: linear_sum_assignment(costs)))
        without_provider.append(time_ms(lambda costs=narrower: linear_sum_assignment(costs)))
    return float(
        lsa_ms + n_providers * np.median(without_provider) + matched * np.median(without_task)
    )


def measure_memory_mb(market: Market) -> float:
    """Measure the most that one clearing allocates, in a run that is not timed."""
    tracemalloc.start()
    clear(market.welfare, market.slots)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    """Run all markets and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_json_option(parser)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs behind each median")
    parser.add_argument(
        "--patience", type=float, default=5.0, help="seconds a matching may take to be repeated"
    )
    parser.add_argument("--small", action="store_true", help="leave out the largest markets")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    results = []
    for n_tasks, n_providers, count in SIZES[:2] if arguments.small else SIZES:
        slots = np.full(n_providers, count, dtype=np.int64)
        uniform = rng.integers(1, 10**6, (n_tasks, n_providers))
        affine = draw_affine(n_tasks, n_providers, rng)
        for name, welfare in (("random", uniform), ("affine", affine)):
            market = make_dense(name, welfare, slots)
            results.append(measure(market, arguments.repeats, arguments.patience))
    if not arguments.small:
        n_tasks, n_providers, count = SPARSE_SIZE
        slots = np.full(n_providers, count, dtype=np.int64)
        market = make_sparse(draw_affine(n_tasks, n_providers, rng), slots)
        results.append(measure(market, arguments.repeats, arguments.patience))
    write_report(
        arguments.json,
        name="clearing",
        parameters={key: getattr(arguments, key) for key in ("repeats", "patience", "seed")},
        figures={"results": results},
    )


if __name__ == "__main__":
    main()
