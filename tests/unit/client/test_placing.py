"""A stuck bid goes to other validators too, and whoever brings the outcome first is heard.

Source: docs/spec/election.md A1. Nothing here waits for real: senders finish when a test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from iemas.client import _placing
from iemas.client._bidding import TermInfo, choose_helpers
from iemas.client._placing import place_bid
from iemas.core.errors import APIConnectionError, InvalidBidError, NotAuctioneerError
from iemas.core.types import HubId, NodeId

AUCTIONEER, WITNESS, OTHER, LAST = (NodeId(bytes([n]) * 32) for n in range(4))
GONE, REFUSED = NotAuctioneerError("gone"), InvalidBidError("refused")
BROKEN = APIConnectionError("broken")


class Ways:
    """The ways to send a bid on, and what comes of each: a text, an error, or nothing."""

    def __init__(self, **results: object) -> None:
        self.results = results
        self.used: list[str] = []
        self.accepts: set[str] = set()

    async def send(self, node: NodeId, on_accepted: Callable[[], None]) -> str:
        name = {AUCTIONEER: "auctioneer", WITNESS: "witness", OTHER: "other"}[node]
        self.used.append(name)
        if name in self.accepts:
            on_accepted()
        result = self.results.get(name)
        if result is None:
            await asyncio.Event().wait()
        if isinstance(result, Exception):
            raise result
        return str(result)

    async def place(self) -> str:
        return await place_bid(AUCTIONEER, [WITNESS, OTHER], self.send)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placing, "STUCK_SECONDS", 0.001)
    monkeypatch.setattr(_placing, "OUTCOME_STUCK_SECONDS", 0.001)


@pytest.mark.asyncio
async def test_a_bid_that_is_answered_goes_to_the_auctioneer_alone() -> None:
    ways = Ways(auctioneer="outcome")
    assert await ways.place() == "outcome"
    assert ways.used == ["auctioneer"]


@pytest.mark.asyncio
async def test_a_refusal_of_the_auctioneer_is_final() -> None:
    ways = Ways(auctioneer=REFUSED)
    with pytest.raises(InvalidBidError):
        await ways.place()
    assert ways.used == ["auctioneer"]


@pytest.mark.asyncio
@pytest.mark.parametrize("accepted", [False, True], ids=["unacknowledged", "without outcome"])
async def test_a_stuck_bid_goes_to_the_helpers(accepted: bool) -> None:
    ways = Ways(witness="outcome")
    ways.accepts = {"auctioneer"} if accepted else set()
    assert await ways.place() == "outcome"
    assert ways.used == ["auctioneer", "witness", "other"]


@pytest.mark.asyncio
async def test_a_broken_connection_is_bridged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placing, "STUCK_SECONDS", 60.0)
    assert await Ways(auctioneer=BROKEN, witness=GONE, other="outcome").place() == "outcome"


@pytest.mark.asyncio
async def test_a_helpers_own_refusal_ends_nothing() -> None:
    ways = Ways(witness=BROKEN, other=REFUSED)
    placed = asyncio.ensure_future(ways.place())
    await asyncio.sleep(0.02)
    assert not placed.done()
    placed.cancel()


@pytest.mark.asyncio
async def test_helpers_that_say_that_the_auctioneer_is_gone_end_the_wait() -> None:
    with pytest.raises(NotAuctioneerError):
        await Ways(witness=GONE, other=BROKEN).place()


@pytest.mark.asyncio
async def test_who_gets_nowhere_hears_of_the_auctioneers_own_failure() -> None:
    with pytest.raises(APIConnectionError):
        await Ways(auctioneer=BROKEN, witness=REFUSED, other=REFUSED).place()


@pytest.mark.asyncio
async def test_nothing_is_left_running() -> None:
    before = len(asyncio.all_tasks())
    await Ways(witness="outcome").place()
    assert len(asyncio.all_tasks()) == before


# --- whom to ask ---------------------------------------------------------------------------------


def test_the_witness_is_asked_first_and_then_others_in_turn() -> None:
    nodes = (AUCTIONEER, WITNESS, OTHER, LAST)
    term = TermInfo(HubId("hub"), 1, AUCTIONEER, b"", WITNESS, b"", nodes)
    assert [choose_helpers(term, n) for n in (0, 1, 2)] == [
        [WITNESS, OTHER],
        [WITNESS, LAST],
        [WITNESS, OTHER],
    ]


def test_without_a_witness_others_are_asked() -> None:
    term = TermInfo(HubId("hub"), 1, AUCTIONEER, b"", validators=(AUCTIONEER, OTHER, LAST))
    assert choose_helpers(term, 0) == [OTHER, LAST]
    alone = TermInfo(HubId("hub"), 1, AUCTIONEER, b"", validators=(AUCTIONEER,))
    assert choose_helpers(alone, 5) == []
