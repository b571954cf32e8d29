"""Fuzz every decoder: ``python -m tests.fuzz --inputs 1000000 --json -``."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz.decoders import list_decoders
from tests.fuzz.runner import Counts, Finding, run, share

MEMORY_LIMIT_BYTES = 4 * 1024**3
"""More than this is a MemoryError, and so a finding, instead of a machine that swaps."""


def main() -> int:
    """Run; exit with 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only decoders whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the counts as JSON; - for stdout")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, hard))
    decoders = [d for d in list_decoders() if arguments.only in d.name]
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    counts: dict[str, Counts] = {}
    findings: list[Finding] = []
    for decoder, inputs in zip(decoders, share(arguments.inputs, decoders), strict=True):
        counts[decoder.name], found = run(decoder, inputs, arguments.seed)
        findings += found
        for finding in found:
            print(
                f"{finding.decoder}: {finding.error} at {finding.where}"
                f" on {finding.input_hex[:200]}",
                file=sys.stderr,
                flush=True,
            )
    result = summarize(counts, findings)
    result |= {
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
        "memory_growth_mib": round(
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024, 1
        ),
    }
    if arguments.json == "-":
        print(json.dumps(result, indent=2))
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['inputs']} inputs to {len(counts)} decoders in {result['seconds']} s: "
        f"{result['accepted']} accepted, {sum(result['errors'].values())} refused by name, "
        f"{len(findings)} findings; slowest {result['slowest_ms']} ms, "
        f"memory +{result['memory_growth_mib']} MiB",
        file=sys.stderr,
    )
    return 1 if findings else 0


def summarize(counts: dict[str, Counts], findings: list[Finding]) -> dict[str, Any]:
    """Add everything up."""
    errors: Counter[str] = Counter()
    for count in counts.values():
        errors += count.errors
    return {
        "inputs": sum(count.inputs for count in counts.values()),
        "accepted": sum(count.accepted for count in counts.values()),
        "errors": dict(errors.most_common()),
        "slowest_ms": max((round(c.slowest_ms, 3) for c in counts.values()), default=0),
        "findings": [asdict(finding) for finding in findings],
        "decoders": {name: count.to_json() for name, count in counts.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
