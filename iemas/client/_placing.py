"""Placing a bid: with the auctioneer, and through other validators if it gets stuck.

The auctioneer may be dead, cut off from this requester alone, or deaf to it on purpose. So a bid
without an answer goes, the very same and sealed as it is, to other validators too: they pass it on,
bring its answers, and vote an auctioneer absent that answers nothing. Whoever answers first with
what holds is believed, as every answer is signed by those that must stand for it.
Source: docs/spec/election.md A1; design §4 step 2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from iemas.client._bidding import OUTCOME_STUCK_SECONDS, STUCK_SECONDS
from iemas.core.errors import APIConnectionError, IemasError, NotAuctioneerError
from iemas.core.types import NodeId

T = TypeVar("T")
Sender = Callable[[NodeId, Callable[[], None]], Awaitable[T]]
"""(node to send the bid to, what to call once it is acknowledged) to the bid's checked outcome."""


async def place_bid(auctioneer: NodeId, helpers: Sequence[NodeId], send: Sender[T]) -> T:
    """Send a bid, and to the helpers too once it is stuck; give the first outcome.

    Raises: what the auctioneer refuses the bid with; APIConnectionError and the like if nobody
        brings an outcome; NotAuctioneerError once all helpers say that the auctioneer is gone.
    """
    accepted = asyncio.Event()
    first = asyncio.ensure_future(send(auctioneer, accepted.set))
    tasks = [first]
    try:
        if not await _is_stuck(first, accepted):
            return first.result()
        tasks += [asyncio.ensure_future(send(helper, accepted.set)) for helper in helpers]
        return await _race(first, tasks[1:])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _is_stuck(first: asyncio.Future[T], accepted: asyncio.Event) -> bool:
    """Wait for the auctioneer's own answer; tell whether there is none worth waiting for."""
    acknowledged = asyncio.ensure_future(accepted.wait())
    waits: set[asyncio.Future[Any]] = {first, acknowledged}
    try:
        await asyncio.wait(waits, timeout=STUCK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if accepted.is_set():
            await asyncio.wait({first}, timeout=OUTCOME_STUCK_SECONDS)
    finally:
        acknowledged.cancel()
    return not first.done() or isinstance(first.exception(), APIConnectionError)


async def _race(first: asyncio.Future[T], helpers: Sequence[asyncio.Future[T]]) -> T:
    """Give the first outcome that comes, by whatever way."""
    waiting = {first, *helpers}
    gone: IemasError | None = None
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                return task.result()
            if task is first and not isinstance(error, APIConnectionError):
                raise error
            if isinstance(error, NotAuctioneerError):
                gone = error
        if gone is not None and waiting <= {first}:
            raise gone
    return first.result()  # raises why there is none
