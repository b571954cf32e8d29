"""Ledger markets under everything at once; `python -m tests.simulation --seeds 2000` runs more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path

import pytest

from tests.simulation.broken_rules import BROKEN_RULES
from tests.simulation.plan import Kind, Plan, make_plan
from tests.simulation.run import run_seed
from tests.simulation.villains import PLOT

SEEDS = range(12)
COMMON_STATES = (
    "restarts within a height",
    "torn writes",
    "messages reordered",
    "partition one way",
    "deciders cut off",
    "evidence found",
    "transaction Evidence OK",
    "heights decided in a later round",
    "proposals of a valid value",
    "changes of the validators",
    "terms",
    "batches of blocks served",
)
MOST_SEEDS = 40
"""So many seeds, of those whose plan fits, find a broken rule; mostly the first few do."""


run = cache(partial(run_seed, Kind.LEDGER))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_is_broken(seed: int) -> None:
    outcome = run(seed)
    assert outcome.exit_code == 0, f"{outcome.reproduction}  # {outcome.failure}"
    assert outcome.counts["transaction Settle OK"] > 0


def test_a_dozen_seeds_reach_what_they_are_to_test() -> None:
    counts = sum((run(seed).counts for seed in SEEDS), Counter[str]())
    assert [state for state in COMMON_STATES if not counts[state]] == []


def test_the_same_seed_is_the_same_market_in_another_process() -> None:
    """In which sets are in another order."""
    program = (
        "from tests.simulation.run import run_seed; from tests.simulation.plan import Kind; "
        "print(*[run_seed(Kind.LEDGER, seed).digest for seed in (3, 4)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [run(3).digest, run(4).digest]
    assert run(3).digest != run(4).digest


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
    "send-before-persist": lambda plan: plan.crashes >= 4,
    "forgetful-restart": lambda plan: plan.crashes >= 4,
    "unverified-evidence": plays("false accusation"),
    "ignored-evidence": plays("double vote", "votes for everything"),
    "settle-twice": lambda plan: True,
}
"""In which plans a broken rule may show."""


@pytest.mark.parametrize("name", FITTING)
def test_a_broken_rule_is_found(name: str) -> None:
    outcomes = (run_seed(Kind.LEDGER, seed, broken=name) for seed in find_seeds(FITTING[name]))
    failure = next(outcome.failure for outcome in outcomes if outcome.exit_code)
    assert failure.split(":")[0] in BROKEN_RULES[name].promises


def find_seeds(fits: Callable[[Plan], bool]) -> Iterator[int]:
    seeds = (seed for seed in range(10_000) if fits(make_plan(Kind.LEDGER, seed)))
    return islice(seeds, MOST_SEEDS)
