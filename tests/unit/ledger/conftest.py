from __future__ import annotations

import pytest

from iemas.testing.chain import LedgerChain


@pytest.fixture
def chain() -> LedgerChain:
    """Three equal validators; alice and bob with 1,000,000 available and 400,000 in escrow."""
    return LedgerChain()
