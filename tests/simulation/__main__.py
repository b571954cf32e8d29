"""Replay one seed, or run many: ``python -m tests.simulation --seed N``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.simulation.market import SimulatedMarket


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the market's seed")
    parser.add_argument("--log", action="store_true", help="print every event")
    arguments = parser.parse_args()
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
