"""One long-lived stream of bids to a node, shared by all requests of a client.

Bids go up as they come; acknowledgements and outcomes come down in any order and find their
request by the bid's hash. A stream that breaks fails every request that waits on it, and each of
those decides for itself what to do. Source: design §12 (one stream a requester).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from iemas import wire
from iemas.client._bidding import PendingBid
from iemas.core.auction import BidAccepted, Refusal, RoundOutcome
from iemas.core.errors import APIConnectionError, APITimeoutError, IemasError, InvalidInputError
from iemas.core.types import short_id
from iemas.rpc_errors import build_error, from_rpc_error
from iemas.v1.auction_service_pb2 import BidRequest, BidResponse
from iemas.v1.auction_service_pb2_grpc import AuctionServiceStub

T = TypeVar("T")


class _Ticket:
    """A bid that waits for its answers."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[BidAccepted] = loop.create_future()
        self.outcome: asyncio.Future[RoundOutcome] = loop.create_future()

    def fail(self, error: IemasError) -> None:
        for future in (self.accepted, self.outcome):
            if not future.done():
                future.set_exception(error)
                future.exception()  # Mark as seen: nobody may be waiting for this one.


class BidStream:
    """The bid stream to one node; open while `alive`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: Any = AuctionServiceStub(channel)
        self._call = stub.Bid()
        self._tickets: dict[bytes, _Ticket] = {}
        self._writing = asyncio.Lock()
        self._failure: IemasError | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def alive(self) -> bool:
        """Whether bids can still be sent."""
        return self._failure is None

    async def bid(
        self,
        pending: PendingBid,
        *,
        accept_seconds: float,
        outcome_seconds: float,
        on_accepted: Callable[[], None],
    ) -> RoundOutcome:
        """Send a bid, check its acknowledgement, and wait for the outcome of its round.

        `on_accepted` is called once the acknowledgement holds.

        Raises: NotAuctioneerError and other named refusals; APIConnectionError if the stream
            breaks; APITimeoutError if the auctioneer is silent; InvalidSignatureError,
            RemoteProtocolError if the acknowledgement does not hold.
        """
        ticket = self._tickets[pending.bid_hash] = _Ticket()
        try:
            await self._send(pending)
            accepted = await _wait(ticket.accepted, accept_seconds, "acknowledge the bid")
            # Checking takes its time while the auctioneer clears the round.
            pending.check_acceptance(accepted)
            on_accepted()
            return await _wait(ticket.outcome, outcome_seconds, "clear the bid's round")
        finally:
            self._tickets.pop(pending.bid_hash, None)

    async def _send(self, pending: PendingBid) -> None:
        request = BidRequest(submission=wire.to_proto(pending.submission))
        try:
            async with self._writing:
                if self._failure is not None:
                    raise self._failure
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise APIConnectionError("the bid stream to the auctioneer broke") from error

    async def _read(self) -> None:
        failure: IemasError = APIConnectionError("the auctioneer closed the bid stream")
        try:
            async for response in self._call:
                self._dispatch(response)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        except InvalidInputError as error:
            failure = APIConnectionError(f"the auctioneer's answer is malformed: {error}")
        finally:
            self._failure = failure
            for ticket in self._tickets.values():
                ticket.fail(failure)
            self._call.cancel()

    def _dispatch(self, response: BidResponse) -> None:
        ticket = self._tickets.get(response.bid_hash)
        if ticket is None:
            return  # The request was given up meanwhile.
        match response.WhichOneof("answer"):
            case "accepted":
                accepted = wire.from_proto(BidAccepted, response.accepted)
                if not ticket.accepted.done():
                    ticket.accepted.set_result(accepted)
            case "outcome":
                outcome = wire.from_proto(RoundOutcome, response.outcome)
                if not ticket.outcome.done():
                    ticket.outcome.set_result(outcome)
            case "refused":
                refusal = wire.from_proto(Refusal, response.refused)
                ticket.fail(build_error(refusal.error, refusal.message))
            case _:
                raise InvalidInputError(f"no answer to bid {short_id(response.bid_hash)}")

    async def close(self) -> None:
        """Close the stream; bids that wait fail."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader


async def _wait(future: asyncio.Future[T], seconds: float, what: str) -> T:
    done, _ = await asyncio.wait({future}, timeout=seconds)
    if not done:
        raise APITimeoutError(f"the auctioneer did not {what} within {seconds:g} s")
    return future.result()
