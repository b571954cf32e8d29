"""Whole markets under everything at once; `python -m tests.simulation --market --seeds 200`."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.simulation.plan import Kind, Plan, make_plan
from tests.simulation.run import run_seed

MOST_SEEDS = 30


@pytest.mark.parametrize("seed", [*range(6), 11_210])  # its takeover once took over 2 s
def test_no_promise_is_broken(seed: int) -> None:
    outcome = run_seed(Kind.MARKET, seed)
    assert outcome.exit_code == 0, f"{outcome.reproduction}  # {outcome.failure}"
    assert outcome.counts["turns of conversations"] == 3 * make_plan(Kind.MARKET, seed).requesters


def test_a_forgotten_ask_is_found() -> None:
    """A provider that dies between commitment and reveal must know its ask when it is back."""
    seeds = (seed for seed in range(10_000) if changes_and_dies_often(make_plan(Kind.MARKET, seed)))
    outcomes = (run_seed(Kind.MARKET, s, broken="forgotten-ask") for s in islice(seeds, MOST_SEEDS))
    failure = next(outcome.failure for outcome in outcomes if outcome.exit_code)
    assert failure.startswith("no honest bond burned")


def changes_and_dies_often(plan: Plan) -> bool:
    dies = plan.crashes + plan.kills >= 6
    return plan.changed_asks >= 5 and dies and plan.validators == 4 and not plan.villains


def test_the_same_seed_is_the_same_market() -> None:
    first, second = (run_seed(Kind.MARKET, 5) for _ in range(2))
    assert (first.digest, first.counts) == (second.digest, second.counts)
