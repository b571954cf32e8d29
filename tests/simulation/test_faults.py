"""Many faults at once: `python -m tests.simulation --ordeals 100` runs more seeds."""

from __future__ import annotations

import pytest

from tests.simulation.faults import run_ordeal


@pytest.mark.parametrize("seed", [122, 204])
def test_an_ordeal_breaks_nothing(seed: int) -> None:
    assert run_ordeal(seed) == []
