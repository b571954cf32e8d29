"""Bid streams over real gRPC: one that breaks leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import pytest

from iemas import tls
from iemas.core.identity import Identity
from iemas.core.ready import Answer
from iemas.v1 import auction_service_pb2_grpc
from node.driver import Driver
from node.servicers.auction import AuctionServicer
from node.transport import NodeCertificates, PublicListener

NODE = Identity(b"n" * 32)


class Streams:
    """The part of a driver that bid streams use."""

    def __init__(self) -> None:
        self.open: dict[int, asyncio.Queue[Answer]] = {}
        self._changed = asyncio.Event()

    def open_stream(self) -> tuple[int, asyncio.Queue[Answer]]:
        stream = len(self.open)
        self._changed.set()
        return stream, self.open.setdefault(stream, asyncio.Queue())

    def close_stream(self, stream: int) -> None:
        del self.open[stream]
        self._changed.set()

    async def wait_for(self, count: int) -> None:
        while len(self.open) != count:
            self._changed.clear()
            await self._changed.wait()


@pytest.mark.asyncio
async def test_a_stream_that_breaks_leaves_no_task_behind() -> None:
    streams, certificates = Streams(), NodeCertificates(NODE)
    servicer = AuctionServicer(cast("Driver", streams))
    listener = PublicListener(
        certificates,
        [
            lambda server: auction_service_pb2_grpc.add_AuctionServiceServicer_to_server(
                servicer, server
            )
        ],
    )
    port = await listener.start("127.0.0.1:0")
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    address = tls.parse_address(f"{NODE.node_id.hex()}@127.0.0.1:{port}")
    async with tls.open_channel(address, certificates.ca_certificate) as channel:
        calls = [
            cast("Any", auction_service_pb2_grpc.AuctionServiceStub(channel)).Bid()
            for _ in range(20)
        ]
        async with asyncio.timeout(10):
            await streams.wait_for(len(calls))
            for call in calls:
                call.cancel()
            await streams.wait_for(0)
    gc.collect()
    await asyncio.sleep(0)
    waiting = [task for task in asyncio.all_tasks() if "Queue.get" in repr(task)]
    await listener.stop(0)
    assert waiting == []
    assert complaints == []
