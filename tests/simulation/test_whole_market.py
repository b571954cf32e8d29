"""Whole markets under everything at once; `python -m tests.simulation --market --seeds 200`."""

from __future__ import annotations

import pytest

from tests.simulation.plan import Kind, make_plan
from tests.simulation.run import run_seed


@pytest.mark.parametrize("seed", range(6))
def test_no_promise_is_broken(seed: int) -> None:
    outcome = run_seed(Kind.MARKET, seed)
    assert outcome.exit_code == 0, f"{outcome.reproduction}  # {outcome.failure}"
    assert outcome.counts["turns of conversations"] == 3 * make_plan(Kind.MARKET, seed).requesters


def test_the_same_seed_is_the_same_market() -> None:
    first, second = (run_seed(Kind.MARKET, 5) for _ in range(2))
    assert (first.digest, first.counts) == (second.digest, second.counts)
