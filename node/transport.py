"""The two listeners of a node, and its streams to the other members.

*Peer listener*: mutual TLS. The trust bundle holds the CA certificates of the current members and
changes with them, without a restart. A chain that verifies only proves that some member signed
it, so every stream is tied to one node by `verify_leaf` before its first message is read.
*Public listener*: server TLS only; what arrives authenticates itself by signature.

Between two nodes there is one long-lived stream a direction. What `PeerTransport.send` promises:

1. It never blocks. Each peer has a queue bounded in messages and bytes; when it is full, the
   *oldest* message is dropped and counted, since later reports, blocks and probes supersede
   earlier ones and every protocol here asks again for what it misses.
2. Messages that arrive do so in the order of sending. One may be lost with a broken stream, and
   one may arrive twice where a stream broke while it was being written; never out of order.
3. A broken stream is opened again after 0.1 s, doubling to at most 2 s, with jitter.

Leaves are renewed when half of their lifetime is over, by whichever handshake first needs one.
Source: design §11; docs/spec/identity.md.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]

from iemas import wire
from iemas.core.errors import (
    ConfigurationError,
    IemasError,
    InternalError,
    LocalProtocolError,
    MalformedMessageError,
)
from iemas.core.identity import Identity
from iemas.core.types import NodeId, short_id
from iemas.rpc_errors import from_rpc_error
from iemas.tls import (
    MAX_MESSAGE_BYTES,
    Address,
    InvalidCertificateError,
    LeafCredentials,
    common_options,
    create_ca_certificate,
    create_leaf,
    extract_server_name,
    join_host_port,
    open_channel,
    parse_address,
    parse_server_name,
    split_host_port,
    to_pem,
    verify_ca_certificate,
    verify_leaf,
)
from iemas.v1 import peer_service_pb2, peer_service_pb2_grpc
from iemas.wire import PeerMessage
from node.rpc_errors import ErrorInterceptor

QUEUE_MESSAGES = 4096
QUEUE_BYTES = 2 * MAX_MESSAGE_BYTES
PUBLIC_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Bound of what a stranger may send in one message: a prompt of a million tokens fits thrice."""

_PEER_STREAMS_PER_CONNECTION = 4
_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 2.0
_SETTLED_AFTER_S = 5.0  # A stream that lasted so long makes the next delay the first one again.
_CONNECT_TIMEOUT_S = 10.0

_log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Read the system's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's peer listener is (``host:port`` or ``nodeid@host:port``), and its CA (DER).

    Both are what its capability report says.
    """

    peer_address: str
    ca_certificate: bytes


class NodeCertificates:
    """A node's CA certificate and current leaf, shared by its listeners and outbound channels.

    gRPC asks for certificates from threads of its own, hence the lock.
    """

    def __init__(self, identity: Identity, clock: Clock = utc_now) -> None:
        self.identity = identity
        self.ca_certificate = create_ca_certificate(identity)
        self._clock = clock
        self._lock = threading.Lock()
        self._leaf = create_leaf(identity, clock())

    def get_leaf(self) -> LeafCredentials:
        """Give a leaf with at least half of its lifetime left."""
        with self._lock:
            now = self._clock()
            if self._leaf.is_due(now):
                self._leaf = create_leaf(self.identity, now)
            return self._leaf

    def create_server_credentials(
        self, get_roots: Callable[[], bytes] | None = None
    ) -> grpc.ServerCredentials:
        """Create credentials that follow the current leaf.

        With `get_roots`, which gives the trust bundle (PEM), clients must show a certificate.
        """

        def configure() -> grpc.ServerCertificateConfiguration:
            leaf = self.get_leaf()
            return grpc.ssl_server_certificate_configuration(
                [(leaf.private_key_pem, leaf.chain_pem)], get_roots() if get_roots else None
            )

        return grpc.dynamic_ssl_server_credentials(
            configure(), configure, require_client_authentication=get_roots is not None
        )


def _server_options(streams: int, max_message_bytes: int) -> list[tuple[str, int | str]]:
    return [
        *common_options(max_message_bytes),
        ("grpc.so_reuseport", 0),  # Or a second node would silently share the port.
        ("grpc.max_concurrent_streams", streams),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 5),
    ]


async def _start(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials, flag: str
) -> int:
    """Bind and start a server; give its port. Raises: ConfigurationError that names the flag."""
    try:
        port = server.add_secure_port(listen, credentials)
        await server.start()
    except RuntimeError as error:
        await server.stop(None)
        raise ConfigurationError(
            f"cannot listen on {listen}: {_explain_bind_failure(listen)}; "
            f"choose another address with {flag}",
            listen=listen,
        ) from error
    return port


def _explain_bind_failure(listen: str) -> str:
    """Ask the operating system again, since gRPC does not tell why it could not bind."""
    try:
        host, port = split_host_port(listen)
        family, kind, protocol, _, location = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(location)
    except OSError as error:
        return error.strerror or str(error)
    except IemasError as error:
        return str(error)
    return "the port is taken"


# --- outbound ----------------------------------------------------------------------------------


def _resolve(node_id: NodeId, member: Member) -> Address:
    if "@" in member.peer_address:
        address = parse_address(member.peer_address)
        if address.node_id != node_id:
            raise MalformedMessageError("the peer address names another node")
        return address
    host, port = split_host_port(member.peer_address)
    return Address(node_id, host, port)


class _Outbound:
    """The stream to one peer: a bounded queue and a task that keeps writing it out."""

    def __init__(self, address: Address, member: Member, transport: PeerTransport) -> None:
        self.member = member
        self.connected = False
        self._address = address
        self._transport = transport
        self._queue: deque[tuple[peer_service_pb2.DeliverRequest, int]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self.flushed = asyncio.Event()
        self.flushed.set()
        self._closed = False
        self._call: Any = None
        self._task = asyncio.create_task(self._run(), name=f"peer {short_id(address.node_id)}")

    def send(self, request: peer_service_pb2.DeliverRequest, size: int) -> None:
        self._queue.append((request, size))
        self._queued_bytes += size
        self._drop_excess()
        self.flushed.clear()
        self._wake.set()

    def _drop_excess(self) -> None:
        while len(self._queue) > QUEUE_MESSAGES or self._queued_bytes > QUEUE_BYTES:
            _, size = self._queue.popleft()
            self._queued_bytes -= size
            self._transport.dropped[self._address.node_id] += 1

    def move(self, address: Address, member: Member) -> None:
        """Follow a peer to another address; what is queued goes there."""
        self.member, self._address = member, address
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
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
            self._transport.certificates.get_leaf(),
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
            self._transport.sent += 1


# --- inbound -----------------------------------------------------------------------------------


class _Inbound:
    """One stream from a peer: its task, and why the transport ends it, if it does."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.refusal: IemasError | None = None

    def end(self, refusal: IemasError) -> None:
        self.refusal = refusal
        self.task.cancel()


class PeerTransport:
    """The peer listener and the streams to all members.

    Counters: `refused` by error name, `dropped` by peer, `sent` and `received` messages.

    Args:
        certificates: this node's.
        on_message: called for each message that arrives, in order per sender. What it raises is
            counted and ends the stream, so a refusal that the sender survives is its own to count.
        on_internal_error: told when `on_message` raised InternalError.

    """

    def __init__(
        self,
        certificates: NodeCertificates,
        on_message: Callable[[NodeId, PeerMessage], None],
        *,
        on_internal_error: Callable[[InternalError], None] | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.certificates = certificates
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[NodeId] = Counter()
        self.sent = 0
        self.received = 0
        self._on_message = on_message
        self._on_internal_error = on_internal_error
        self._clock = clock
        self._server: grpc.aio.Server | None = None
        self._members: dict[NodeId, Member] = {}
        self._roots = to_pem(certificates.ca_certificate)
        self._outbound: dict[NodeId, _Outbound] = {}
        self._inbound: dict[NodeId, _Inbound] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._last_converted: tuple[PeerMessage, peer_service_pb2.DeliverRequest, int] | None = None

    @property
    def connected(self) -> frozenset[NodeId]:
        """The members that accepted our stream and have it open."""
        return frozenset(n for n, outbound in self._outbound.items() if outbound.connected)

    async def start(self, listen: str) -> int:
        """Listen on ``host:port`` (port 0: any free one) and give the port.

        Raises: ConfigurationError if the address cannot be listened on.
        """
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor(self.refused, self._on_internal_error)],
            options=_server_options(_PEER_STREAMS_PER_CONNECTION, MAX_MESSAGE_BYTES),
        )
        # Registered by hand, as raw bytes: what does not parse must be refused by name here.
        handler = grpc.stream_unary_rpc_method_handler(
            self._deliver,
            request_deserializer=None,
            response_serializer=peer_service_pb2.DeliverResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("iemas.v1.PeerService", {"Deliver": handler})]
        )
        credentials = self.certificates.create_server_credentials(lambda: self._roots)
        port = await _start(server, listen, credentials, "--peer-listen")
        self._server = server
        return port

    async def stop(self) -> None:
        """Close all streams and the listener."""
        outbound = list(self._outbound.values())
        self._outbound.clear()
        self._members.clear()
        await asyncio.gather(*(one.close() for one in outbound), *self._closing)
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def set_members(self, members: Mapping[NodeId, Member]) -> None:
        """Make these the members: whom to listen to and keep streams to (never ourselves).

        A member whose certificate or address does not hold is refused and counted, and the others
        are served. Streams of nodes that are no longer members end.
        """
        accepted: dict[NodeId, tuple[Address, Member]] = {}
        for node_id in sorted(members):
            if node_id == self.certificates.identity.node_id:
                continue
            try:
                accepted[node_id] = self._check_member(node_id, members[node_id])
            except IemasError as error:
                self.refused[type(error).__name__] += 1
                _log.warning("member_refused", peer=short_id(node_id), reason=str(error))
        previous = self._members
        self._members = {node_id: member for node_id, (_, member) in accepted.items()}
        if previous != self._members:
            self._follow(accepted)

    def _check_member(self, node_id: NodeId, member: Member) -> tuple[Address, Member]:
        known = self._members.get(node_id)
        if known is None or known.ca_certificate != member.ca_certificate:
            verify_ca_certificate(member.ca_certificate, node_id)
        return _resolve(node_id, member), member

    def _follow(self, accepted: Mapping[NodeId, tuple[Address, Member]]) -> None:
        # Our own CA keeps the bundle from being empty, which gRPC would take for "trust no roots".
        certificates = [member.ca_certificate for _, member in accepted.values()]
        self._roots = b"".join(map(to_pem, [self.certificates.ca_certificate, *certificates]))
        for node_id, (address, member) in accepted.items():
            outbound = self._outbound.get(node_id)
            if outbound is None:
                self._outbound[node_id] = _Outbound(address, member, self)
            elif outbound.member != member:
                outbound.move(address, member)
        for node_id in self._outbound.keys() - accepted.keys():
            task = asyncio.create_task(self._outbound.pop(node_id).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for node_id in self._inbound.keys() - accepted.keys():
            self._inbound[node_id].end(_no_member(node_id))

    def send(self, to: NodeId, message: PeerMessage) -> bool:
        """Queue a message for a member; False if it is none (dropped and counted).

        Raises: MalformedMessageError if the message cannot travel.
        """
        outbound = self._outbound.get(to)
        if outbound is None:
            self.dropped[to] += 1
            return False
        request, size = self._convert(message)
        outbound.send(request, size)
        return True

    async def flush(self, timeout_s: float) -> None:
        """Wait until what was sent to connected members is on its way, at most so long."""
        waits = [one.flushed.wait() for one in self._outbound.values() if one.connected]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*waits)
        except TimeoutError:
            return

    def _convert(self, message: PeerMessage) -> tuple[peer_service_pb2.DeliverRequest, int]:
        """Convert to protobuf, once for a message that goes to many peers in a row."""
        if self._last_converted is None or self._last_converted[0] is not message:
            request = wire.to_deliver_request(message)
            size = request.ByteSize()
            if size > MAX_MESSAGE_BYTES:
                raise MalformedMessageError(
                    f"a {type(message).__name__} of {size} bytes is over {MAX_MESSAGE_BYTES}"
                )
            self._last_converted = (message, request, size)
        return self._last_converted[1], self._last_converted[2]

    async def _deliver(
        self, request_iterator: AsyncIterator[bytes], context: Any
    ) -> peer_service_pb2.DeliverResponse:
        sender = self._authenticate(context)
        task = asyncio.current_task()
        if task is None:
            raise InternalError("a servicer runs in a task")
        inbound = _Inbound(task)
        older = self._inbound.get(sender)
        if older is not None:
            older.end(LocalProtocolError("a newer stream of this node took over"))
        self._inbound[sender] = inbound
        try:
            await context.send_initial_metadata(())
            async for data in request_iterator:
                if inbound.refusal is not None:
                    raise inbound.refusal
                self.received += 1
                self._on_message(sender, _decode(data))
        except asyncio.CancelledError:
            if inbound.refusal is None:
                raise
            task.uncancel()
            raise inbound.refusal from None
        finally:
            if self._inbound.get(sender) is inbound:
                del self._inbound[sender]
        return peer_service_pb2.DeliverResponse()

    def _authenticate(self, context: Any) -> NodeId:
        """Tell which member opened the stream. Raises: InvalidCertificateError."""
        for leaf in context.auth_context().get("x509_pem_cert", ()):
            node_id = parse_server_name(extract_server_name(leaf))
            verify_leaf(leaf, node_id, self._clock())
            if node_id not in self._members:
                raise _no_member(node_id)
            return node_id
        raise InvalidCertificateError("the peer showed no certificate")


def _no_member(node_id: NodeId) -> InvalidCertificateError:
    return InvalidCertificateError(f"node {short_id(node_id)} is no member", node_id=node_id)


def _decode(data: bytes) -> PeerMessage:
    try:
        request = peer_service_pb2.DeliverRequest.FromString(data)
    except DecodeError as error:
        raise MalformedMessageError("the bytes are no DeliverRequest") from error
    return wire.from_deliver_request(request)


# --- the public listener -----------------------------------------------------------------------


class PublicListener:
    """Serves strangers under server TLS: the servicers given, and gRPC's health service.

    Counters: `refused` by error name (share one Counter by passing it).

    Args:
        certificates: this node's.
        add_servicers: each called with the server, to add one servicer to it, as in
            ``lambda server: add_MarketServiceServicer_to_server(market, server)``.
        max_concurrent_streams: bound for one connection.

    """

    def __init__(
        self,
        certificates: NodeCertificates,
        add_servicers: Sequence[Callable[[grpc.aio.Server], None]],
        *,
        refused: Counter[str] | None = None,
        on_internal_error: Callable[[InternalError], None] | None = None,
        max_concurrent_streams: int = 256,
    ) -> None:
        self.refused: Counter[str] = Counter() if refused is None else refused
        self._certificates = certificates
        self._add_servicers = add_servicers
        self._on_internal_error = on_internal_error
        self._max_concurrent_streams = max_concurrent_streams
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str) -> int:
        """Listen on ``host:port`` (port 0: any free one) and give the port.

        Raises: ConfigurationError if the address cannot be listened on.
        """
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor(self.refused, self._on_internal_error)],
            options=_server_options(self._max_concurrent_streams, PUBLIC_MAX_MESSAGE_BYTES),
        )
        for add_servicer in self._add_servicers:
            add_servicer(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = await _start(
            server, listen, self._certificates.create_server_credentials(), "--public-listen"
        )
        self._server = server
        return port

    async def set_serving(self, serving: bool) -> None:  # noqa: FBT001
        """Tell gRPC's health service whether the node serves."""
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then cut them."""
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(grace_s)
            self._server = None


def advertise(listen: str, port: int, advertised: str | None = None) -> str:
    """Give the ``host:port`` that others should dial for a listener bound to `port`."""
    if advertised is not None:
        host, advertised_port = split_host_port(advertised)
        return join_host_port(host, advertised_port or port)
    return join_host_port(split_host_port(listen)[0], port)
