"""What a node tells its operator when it cannot join the market."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from iemas.core.errors import (
    APIConnectionError,
    IemasError,
    InvalidSignatureError,
    StaleReportError,
)
from iemas.genesis import encode_genesis
from iemas.testing.chain import make_genesis, make_identity
from iemas.tls import Address
from node import bootstrap

GENESIS = encode_genesis(make_genesis())
OTHER_GENESIS = encode_genesis(make_genesis(stake_micros=7))
OWN, OTHER = (make_genesis().compute_chain_id(data) for data in (GENESIS, OTHER_GENESIS))
PEER = Address(make_identity("node-2").node_id, "localhost", 1)
REFUSED = InvalidSignatureError("the signature does not hold")


class Failing:
    """A bootstrap node that refuses, and shows a genesis; counts how often it is tried."""

    def __init__(self, error: IemasError, shown: bytes) -> None:
        self.error = error
        self.shown = shown
        self.tries = 0
        self.enough = asyncio.Event()

    async def join(self, _driver: Any, _address: Address) -> None:
        self.tries += 1
        if self.tries == 5:
            self.enough.set()
        raise self.error

    async def fetch_genesis(self, _bootstrap: Sequence[str]) -> bytes:
        return self.shown


def run(peer: Failing, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fail to join five times; give what was logged."""
    monkeypatch.setattr(bootstrap, "RETRY_S", 0.0)
    monkeypatch.setattr(bootstrap, "_join", peer.join)
    monkeypatch.setattr(bootstrap, "fetch_genesis", peer.fetch_genesis)
    core = SimpleNamespace(
        node_id=b"n" * 32, chain_id=OWN, membership=SimpleNamespace(get_peers=tuple)
    )
    driver: Any = SimpleNamespace(core=core)

    async def fail() -> None:
        joining = asyncio.create_task(bootstrap.keep_joined(driver, [PEER]))
        await peer.enough.wait()
        joining.cancel()

    with capture_logs() as logs:
        asyncio.run(fail())
    return logs


def test_a_market_of_another_genesis_is_called_that_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = run(Failing(REFUSED, OTHER_GENESIS), monkeypatch)
    assert (told["event"], told["log_level"]) == ("bootstrap_of_other_chain", "warning")
    assert f"this genesis file is of chain {OWN}, the nodes run chain {OTHER}" in told["reason"]


def test_a_second_process_with_the_same_key_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = run(Failing(StaleReportError(), GENESIS), monkeypatch)
    assert (told["event"], told["log_level"]) == ("newer_process_known", "warning")
    assert "another process runs with the same key" in told["reason"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [(REFUSED, GENESIS), (REFUSED, b"?"), (APIConnectionError("dead"), OTHER_GENESIS)],
    ids=["own genesis", "no genesis", "unreachable"],
)
def test_any_other_failure_is_told_as_it_is(
    error: IemasError, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = run(Failing(error, shown), monkeypatch)
    assert (told["event"], told["reason"]) == ("join_failed", str(error))


def test_a_failure_is_told_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "REPEAT_S", 0.0)
    assert len(run(Failing(REFUSED, OTHER_GENESIS), monkeypatch)) == 5
