"""The bid stream: converts, calls the core, converts back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from iemas import wire
from iemas.core.auction import BidAccepted, BidSubmission, RoundOutcome
from iemas.core.ready import Answer
from iemas.v1 import auction_service_pb2, auction_service_pb2_grpc
from node.core import ReceiveBid
from node.driver import Driver


class AuctionServicer(auction_service_pb2_grpc.AuctionServiceServicer):
    """`AuctionService` on the public listener."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def Bid(
        self, request_iterator: AsyncIterator[auction_service_pb2.BidRequest], context: Any
    ) -> AsyncIterator[auction_service_pb2.BidResponse]:
        """Carry one requester's bids and answers until it hangs up."""
        stream, answers = self._driver.open_stream()
        reader = asyncio.create_task(self._read(stream, request_iterator))
        getter = asyncio.create_task(answers.get())
        try:
            while True:
                await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    answer = getter.result()
                    getter = asyncio.create_task(answers.get())
                    yield _to_response(answer)
                    continue
                await reader  # raises what ended it: a malformed bid, or nothing at all
                return
        finally:
            reader.cancel()
            getter.cancel()
            self._driver.close_stream(stream)

    async def _read(
        self, stream: int, requests: AsyncIterator[auction_service_pb2.BidRequest]
    ) -> None:
        async for request in requests:
            submission = wire.from_proto(BidSubmission, request.submission)
            self._driver.step(ReceiveBid(stream, submission))


def _to_response(answer: Answer) -> auction_service_pb2.BidResponse:
    response = auction_service_pb2.BidResponse(bid_hash=answer.bid_hash)
    proto = wire.to_proto(answer.message)
    match answer.message:
        case BidAccepted():
            response.accepted.CopyFrom(proto)
        case RoundOutcome():
            response.outcome.CopyFrom(proto)
        case _:
            response.refused.CopyFrom(proto)
    return response
