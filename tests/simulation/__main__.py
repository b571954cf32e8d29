"""Replay one seed with an account of it, or run many.

    python -m tests.simulation --seed 7                    one whole ledger market, with its account
    python -m tests.simulation --seeds 2000 --jobs 2       many, both kinds mixed
    python -m tests.simulation --seeds 200 --broken NAME   with a rule broken on purpose

Exit codes: 0; 1 if a fault or a state was never reached in a long run; 127 crash, 128 liveness,
129 safety.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.simulation.broken_rules import BROKEN_RULES
from tests.simulation.campaign import Report, run_campaign
from tests.simulation.plan import Kind
from tests.simulation.run import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_mutually_exclusive_group()
    for kind in Kind:
        kinds.add_argument(
            f"--{kind}", dest="kind", action="store_const", const=kind, help=f"only {kind} runs"
        )
    parser.add_argument("--seed", type=int, help="replay this seed and tell what happens")
    parser.add_argument("--seeds", type=int, help="run so many seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="on so many processes")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - is the terminal")
    parser.add_argument("--broken", choices=sorted(BROKEN_RULES), default="", help="break a rule")
    arguments = parser.parse_args()
    if (arguments.seed is None) == (arguments.seeds is None):
        parser.error("give either --seed or --seeds")
    if arguments.seed is not None:
        return replay(arguments.kind or Kind.LEDGER, arguments.seed, arguments.broken)
    return run_many(arguments)


def replay(kind: Kind, seed: int, broken: str) -> int:
    """Run one seed and print its account."""
    outcome = run_seed(kind, seed, broken=broken, keep_account=True)
    print("\n".join(outcome.account))
    print(f"{outcome.digest}  {outcome.cpu_s:.1f} s")
    print(outcome.failure or "nothing broke")
    return outcome.exit_code


def run_many(arguments: argparse.Namespace) -> int:
    """Run many seeds and print what came of them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the workers too
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    kinds = [arguments.kind] if arguments.kind else list(Kind)
    report = Report(seeds.start, arguments.broken)
    told = 0
    for report in run_campaign(kinds, seeds, jobs=arguments.jobs, broken=arguments.broken):
        for outcome in report.failures[told:]:
            print(f"{outcome.reproduction}  # {outcome.failure}", file=sys.stderr, flush=True)
        told = len(report.failures)
    text = json.dumps(report.summarise(), indent=2, ensure_ascii=False)
    if arguments.json == "-":
        print(text)
    elif arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    broke = len(report.failures)
    print(
        f"{sum(report.seeds.values()) - broke} of {len(seeds)} seeds broke nothing "
        f"({report.wall_s:.0f} s)",
        file=sys.stderr,
    )
    unreached = report.find_unreached()
    for what in unreached:
        print(f"never reached: {what}", file=sys.stderr)
    return report.exit_code or int(bool(unreached))


if __name__ == "__main__":
    sys.exit(main())
