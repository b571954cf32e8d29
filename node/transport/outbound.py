"""The stream to one peer: what it promises to whoever sends.

1. It never blocks. Each peer has a queue bounded in messages and bytes; when it is full, the
   *oldest* message is dropped and counted, since later reports, blocks and probes supersede
   earlier ones and every protocol here asks again for what it misses.
2. Messages that arrive do so in the order of sending. One may be lost with a broken stream, and
   one may arrive twice where a stream broke while it was being written; never out of order.
3. A broken stream is opened again after 0.1 s, doubling to at most 2 s, with jitter.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from iemas.core.errors import IemasError, MalformedMessageError
from iemas.core.types import NodeId, short_id
from iemas.rpc_errors import from_rpc_error
from iemas.tls import MAX_MESSAGE_BYTES, Address, open_channel, parse_address, split_host_port
from iemas.v1 import peer_service_pb2, peer_service_pb2_grpc
from node.transport.certificates import NodeCertificates

QUEUE_MESSAGES = 4096
QUEUE_BYTES = 2 * MAX_MESSAGE_BYTES

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 2.0
_SETTLED_AFTER_S = 5.0  # A stream that lasted so long makes the next delay the first one again.
_CONNECT_TIMEOUT_S = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's peer listener is (``host:port`` or ``nodeid@host:port``), and its CA (DER).

    Both are what its capability report says.
    """

    peer_address: str
    ca_certificate: bytes


@dataclass(slots=True)
class Traffic:
    """Messages written and read, and how many were dropped unsent, by peer."""

    sent: int = 0
    received: int = 0
    dropped: Counter[NodeId] = field(default_factory=Counter)


def resolve(node_id: NodeId, member: Member) -> Address:
    """Find where a member listens. Raises: MalformedMessageError."""
    if "@" in member.peer_address:
        address = parse_address(member.peer_address)
        if address.node_id != node_id:
            raise MalformedMessageError("the peer address names another node")
        return address
    host, port = split_host_port(member.peer_address)
    return Address(node_id, host, port)


class Outbound:
    """The stream to one peer: a bounded queue and a task that keeps writing it out."""

    def __init__(
        self,
        address: Address,
        member: Member,
        *,
        certificates: NodeCertificates,
        traffic: Traffic,
    ) -> None:
        self.member = member
        self.connected = False
        self._address = address
        self._certificates = certificates
        self._traffic = traffic
        self._queue: deque[tuple[peer_service_pb2.DeliverRequest, int]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self.flushed = asyncio.Event()
        self.flushed.set()
        self._closed = False
        self._call: Any = None
        self._task = asyncio.create_task(self._run(), name=f"peer {short_id(address.node_id)}")

    def send(self, request: peer_service_pb2.DeliverRequest, size: int) -> None:
        """Queue a message of so many bytes; the oldest ones give way."""
        self._queue.append((request, size))
        self._queued_bytes += size
        self._drop_excess()
        self.flushed.clear()
        self._wake.set()

    def _drop_excess(self) -> None:
        while len(self._queue) > QUEUE_MESSAGES or self._queued_bytes > QUEUE_BYTES:
            _, size = self._queue.popleft()
            self._queued_bytes -= size
            self._traffic.dropped[self._address.node_id] += 1

    def move(self, address: Address, member: Member) -> None:
        """Follow a peer to another address; what is queued goes there."""
        self.member, self._address = member, address
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        """End the stream and forget what is queued."""
        # gRPC sometimes swallows a cancellation, so every loop below looks at the flag as well.
        self._closed = True
        self._wake.set()
        if self._call is not None:
            self._call.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        delay_s = _FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        while not self._closed:
            started_at = loop.time()
            try:
                await self._converse()
            except (grpc.RpcError, IemasError, TimeoutError, asyncio.InvalidStateError) as error:
                self._report(error)
            if self._closed:
                break
            if loop.time() - started_at > _SETTLED_AFTER_S:
                delay_s = _FIRST_DELAY_S
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads load
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    def _report(self, error: Exception) -> None:
        named = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
        log = _log.warning if self.connected else _log.debug
        log(
            "peer_stream_broken",
            peer=short_id(self._address.node_id),
            error=type(named).__name__,
            reason=str(named),
        )

    async def _converse(self) -> None:
        """Open one stream and write the queue to it until it breaks."""
        # A pool of its own makes every attempt a new connection, with the current leaf.
        channel = open_channel(
            self._address,
            self.member.ca_certificate,
            self._certificates.get_leaf(),
            [("grpc.use_local_subchannel_pool", 1)],
        )
        try:
            stub: Any = peer_service_pb2_grpc.PeerServiceStub(channel)
            self._call = call = stub.Deliver()
            # The peer sends its headers once it has accepted who we are.
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await call.initial_metadata()
            call.add_done_callback(lambda _: self._wake.set())
            if not call.done():
                self.connected = True
                _log.info("peer_connected", peer=short_id(self._address.node_id))
            await self._write_queue(call)
            await call  # It ended: raises what it ended with.
        except asyncio.CancelledError:
            # A call cancelled by `move` looks like this too, but then the task goes on.
            task = asyncio.current_task()
            if self._closed or (task is not None and task.cancelling()):
                raise
        finally:
            self.connected = False
            self._call = None
            await channel.close(None)

    async def _write_queue(self, call: Any) -> None:
        while not (call.done() or self._closed):
            if not self._queue:
                self.flushed.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            request, size = self._queue.popleft()
            self._queued_bytes -= size
            try:
                await call.write(request)
            except BaseException:
                self._queue.appendleft((request, size))
                self._queued_bytes += size
                self._drop_excess()
                raise
            self._traffic.sent += 1
