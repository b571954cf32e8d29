"""How long it takes to value all pairs of a round: tasks with deadlines, providers with spread.

`valuation_ms` is `compute_valuation` with a deadline on every bid, `undated_ms` without any;
medians. Target: 32 tasks × 200 providers within 5 ms (docs/benchmarks/clearing.md).

    python -m benchmarks.valuation --json -
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from auctioneer.mechanism import Offer, compute_valuation
from auctioneer.mechanism.arrays import IntArray
from auctioneer.predictors.scenarios import ScenarioModel
from benchmarks._report import add_json_option, write_report
from iemas.core.auction import Bid
from iemas.core.envelope import Envelope, Signed
from iemas.core.report import ReportStamp
from iemas.core.types import Lateness, NodeId
from iemas.testing.builders import ASK, make_bid, make_capability, make_load, make_qos

SIZES = ((32, 16), (32, 200), (256, 200))
REPEATS = 51
SCENARIOS = ScenarioModel().quantise()
UNSIGNED = Envelope(b"", b"", b"")


def make_providers(count: int) -> list[Offer]:
    """Make providers of different speed; reports carry no signature, as none is checked here."""
    providers = []
    for n in range(count):
        stamp = ReportStamp(NodeId(n.to_bytes(32, "big")), 1, 1, 0, 60_000)
        qos = make_qos(
            NodeId(stamp.node_id),
            ttft_base_us=50_000 + 1_000 * n,
            ttft_sd_us=30_000,
            token_us=10_000 + 50 * n,
            token_sd_us=2_000,
        )
        capability = Signed(make_capability(stamp, context_tokens=32_768), UNSIGNED)
        load = Signed(make_load(stamp), UNSIGNED)
        providers.append(Offer(capability, load, ASK, qos))
    return providers


def make_bids(rng: np.random.Generator, count: int) -> list[Bid]:
    """Make bids with deadlines that some tokens keep and others miss."""
    return [
        make_bid(
            prompt_tokens=int(rng.integers(100, 8_000)),
            max_tokens=int(rng.integers(50, 800)),
            lateness=Lateness(int(rng.integers(200, 5_000)), int(rng.integers(100, 2_000))),
        )
        for _ in range(count)
    ]


def time_valuation(bids: Sequence[Bid], providers: Sequence[Offer], matched: IntArray) -> float:
    """Give the median time of one valuation in ms."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        compute_valuation(bids, providers, matched, scenarios=SCENARIOS, cache_affinity=True)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1000, 3)


def measure(n_tasks: int, n_providers: int, rng: np.random.Generator) -> dict[str, object]:
    """Time one size of round."""
    dated = make_bids(rng, n_tasks)
    undated = [make_bid(prompt_tokens=b.prompt_tokens, max_tokens=b.max_tokens) for b in dated]
    providers = make_providers(n_providers)
    matched = rng.integers(0, 400, (n_tasks, n_providers))
    return {
        "tasks": n_tasks,
        "providers": n_providers,
        "valuation_ms": time_valuation(dated, providers, matched),
        "undated_ms": time_valuation(undated, providers, matched),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    results = [measure(*size, rng) for size in SIZES]
    parameters = {"seed": options.seed, "repeats": REPEATS, "scenarios": len(SCENARIOS)}
    write_report(
        options.json, name="valuation", parameters=parameters, figures={"results": results}
    )


if __name__ == "__main__":
    main()
