"""Replay one seed, or run many: ``python -m tests.simulation --seed N``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.simulation.faults import run_ordeal
from tests.simulation.market import SimulatedMarket


def run_ordeals(seeds: range) -> int:
    """Run seeds under faults; 129 if one broke something."""
    failed = 0
    for seed in seeds:
        broken = run_ordeal(seed)
        failed += bool(broken)
        for line in broken:
            print(f"python -m tests.simulation --ordeals 1 --seed {seed}  # {line}", flush=True)
    print(f"{len(seeds) - failed} of {len(seeds)} seeds broke nothing")
    return 129 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the market's seed")
    parser.add_argument("--log", action="store_true", help="print every event")
    parser.add_argument(
        "--ordeals", type=int, default=0, help="run so many seeds from --seed on under faults"
    )
    arguments = parser.parse_args()
    if arguments.ordeals:
        return run_ordeals(range(arguments.seed, arguments.seed + arguments.ordeals))
    market = SimulatedMarket(arguments.seed)
    market.start()
    market.run_conversations()
    market.settle()
    if arguments.log:
        for at_ms, node, name, fields in market.log:
            print(f"{at_ms} {node:10} {name} {fields}")
    for requester in market.requesters:
        for row in requester.results:
            print(row)
    print(Counter(market.events), Counter(error for error, _ in market.refusals))
    return 0


if __name__ == "__main__":
    sys.exit(main())
