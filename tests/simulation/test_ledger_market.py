"""Ledger markets under everything at once; `python -m tests.simulation --seeds 2000` runs more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.simulation.broken_rules import BROKEN_RULES
from tests.simulation.plan import Kind, Plan, make_plan
from tests.simulation.run import run_seed
from tests.simulation.villains import PLOT

MOST_SEEDS = 40
"""So many seeds, of those whose plan fits, find a broken rule; mostly the first few do."""


@pytest.mark.parametrize("seed", range(12))
def test_no_promise_is_broken(seed: int) -> None:
    outcome = run_seed(Kind.LEDGER, seed)
    assert outcome.exit_code == 0, f"{outcome.reproduction}  # {outcome.failure}"
    assert outcome.counts["transaction Settle OK"] > 0


def test_the_same_seed_is_the_same_market_in_every_process() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        command = (
            "from tests.simulation.run import run_seed; from tests.simulation.plan import Kind; "
            "print([run_seed(Kind.LEDGER, seed).digest for seed in (3, 4)])"
        )
        result = subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(result.stdout)
    assert len(digests) == 1


def test_another_seed_is_another_market() -> None:
    assert run_seed(Kind.LEDGER, 3).digest != run_seed(Kind.LEDGER, 4).digest


def test_villains_hold_less_than_a_third() -> None:
    for seed in range(500):
        plan = make_plan(Kind.LEDGER, seed)
        assert 3 * sum(plan.stakes[number] for number in plan.villains) < sum(plan.stakes)


# --- rules broken on purpose ----------------------------------------------------------------------


def plays(*tricks: str) -> Callable[[Plan], bool]:
    return lambda plan: any(
        set(tricks) & set(villain.tricks) and villain.eagerness > 0.1
        for villain in plan.villains.values()
    )


FITTING: dict[str, Callable[[Plan], bool]] = {
    "no-locking": plays(PLOT),
    "half-quorum": plays(PLOT),
    "send-before-persist": lambda plan: plan.crashes >= 4,
    "forgetful-restart": lambda plan: plan.crashes >= 4,
    "unverified-evidence": plays("false accusation"),
    "ignored-evidence": plays("double vote", "votes for everything"),
    "settle-twice": lambda plan: True,
}
"""In which plans a broken rule may show."""


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_broken_rule_is_found(name: str) -> None:
    outcomes = (run_seed(Kind.LEDGER, seed, broken=name) for seed in find_seeds(FITTING[name]))
    failure = next(outcome.failure for outcome in outcomes if outcome.exit_code)
    assert failure.split(":")[0] in BROKEN_RULES[name].promises


def find_seeds(fits: Callable[[Plan], bool]) -> Iterator[int]:
    seeds = (seed for seed in range(10_000) if fits(make_plan(Kind.LEDGER, seed)))
    return islice(seeds, MOST_SEEDS)


def test_villains_and_faults_are_busy() -> None:
    """A run that tests nothing would find nothing."""
    counts: Counter[str] = Counter()
    for seed in find_seeds(
        lambda plan: plan.crashes > 2 and plan.storms > 0 and plan.villains != {}
    ):
        counts += run_seed(Kind.LEDGER, seed).counts
        if counts["restarts within a height"] and counts["proposals of a valid value"]:
            break
    assert counts["restarts within a height"]
    assert counts["proposals of a valid value"]
