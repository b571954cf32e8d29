from __future__ import annotations

import pytest

from tests.unit.auctioneer.round_bench import RoundBench


@pytest.fixture
def bench() -> RoundBench:
    """A term with two idle providers of four slots; nothing is cached."""
    made = RoundBench()
    made.add_provider("node-1")
    made.add_provider("node-2")
    return made
