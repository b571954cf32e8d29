"""The peer listener, and the streams to all members.

Between two nodes there is one long-lived stream a direction; `outbound` says what it promises.
Who is cut off (`set_members`) is neither read nor written to, and its streams are refused by name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from iemas import wire
from iemas.core.errors import (
    FloodError,
    IemasError,
    InternalError,
    LocalProtocolError,
    MalformedMessageError,
    OversizedMessageError,
    PeerDisconnectedError,
)
from iemas.core.types import NodeId, short_id
from iemas.tls import (
    MAX_MESSAGE_BYTES,
    Address,
    InvalidCertificateError,
    extract_server_name,
    parse_server_name,
    to_pem,
    verify_ca_certificate,
    verify_leaf,
)
from iemas.v1 import peer_service_pb2
from iemas.wire import PeerMessage
from node.rpc_errors import ErrorInterceptor
from node.transport.certificates import Clock, NodeCertificates, utc_now
from node.transport.listening import make_server_options, start_server
from node.transport.outbound import Member, Outbound, Traffic, resolve
from node.transport.pace import PAUSE_S, STREAM_UNITS, UNITS_PER_S, Pace, compute_units

OVERSIZE_BYTES = 4 * 1024 * 1024
"""How far beyond the bound a message is still read, to be refused by name; gRPC ends the stream
at larger ones, and does not say so here."""

_STREAMS_PER_CONNECTION = 4

_log = structlog.get_logger(__name__)


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

    Counters: `refused` by error name, and `traffic`.

    Args:
        certificates: this node's.
        on_message: called for each message that arrives, in order per sender. What it raises is
            counted and ends the stream, so a refusal that the sender survives is its own to count.
        on_spoilt: told of what arrives and is no message: too large, too much, not to be decoded.
        on_internal_error: told when `on_message` raised InternalError.

    """

    def __init__(
        self,
        certificates: NodeCertificates,
        on_message: Callable[[NodeId, PeerMessage], None],
        *,
        on_spoilt: Callable[[NodeId, IemasError], None] | None = None,
        on_internal_error: Callable[[InternalError], None] | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.certificates = certificates
        self.refused: Counter[str] = Counter()
        self.traffic = Traffic()
        self._on_message = on_message
        self._on_spoilt = on_spoilt
        self._on_internal_error = on_internal_error
        self._clock = clock
        self._server: grpc.aio.Server | None = None
        self._members: dict[NodeId, Member] = {}
        self._cut_off: frozenset[NodeId] = frozenset()
        self._paces: dict[NodeId, Pace] = {}
        self._roots = to_pem(certificates.ca_certificate)
        self._outbound: dict[NodeId, Outbound] = {}
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
            options=make_server_options(
                _STREAMS_PER_CONNECTION, MAX_MESSAGE_BYTES + OVERSIZE_BYTES
            ),
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
        port = await start_server(server, listen, credentials, "--peer-listen")
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

    def set_members(
        self, members: Mapping[NodeId, Member], cut_off: frozenset[NodeId] = frozenset()
    ) -> None:
        """Make these the members: whom to listen to and keep streams to (never ourselves).

        A member whose certificate or address does not hold is refused and counted, and the others
        are served. Streams of nodes that are no longer members, or are cut off, end.
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
        previous = self._members, self._cut_off
        self._members = {node_id: member for node_id, (_, member) in accepted.items()}
        self._cut_off = cut_off
        if previous != (self._members, self._cut_off):
            self._follow(accepted)

    def _check_member(self, node_id: NodeId, member: Member) -> tuple[Address, Member]:
        known = self._members.get(node_id)
        if known is None or known.ca_certificate != member.ca_certificate:
            verify_ca_certificate(member.ca_certificate, node_id)
        return resolve(node_id, member), member

    def _follow(self, accepted: Mapping[NodeId, tuple[Address, Member]]) -> None:
        # Our own CA keeps the bundle from being empty, which gRPC would take for "trust no roots".
        certificates = [member.ca_certificate for _, member in accepted.values()]
        self._roots = b"".join(map(to_pem, [self.certificates.ca_certificate, *certificates]))
        heard = {n: one for n, one in accepted.items() if n not in self._cut_off}
        for node_id, (address, member) in heard.items():
            outbound = self._outbound.get(node_id)
            if outbound is None:
                self._outbound[node_id] = Outbound(
                    address, member, certificates=self.certificates, traffic=self.traffic
                )
            elif outbound.member != member:
                outbound.move(address, member)
        for node_id in self._outbound.keys() - heard.keys():
            task = asyncio.create_task(self._outbound.pop(node_id).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for node_id in self._inbound.keys() - heard.keys():
            self._inbound[node_id].end(self._explain_refusal(node_id))
        for node_id in self._paces.keys() - accepted.keys():
            del self._paces[node_id]

    def send(self, to: NodeId, message: PeerMessage) -> bool:
        """Queue a message for a member that is not cut off; else drop and count it: False.

        Raises: MalformedMessageError if the message cannot travel.
        """
        outbound = self._outbound.get(to)
        if outbound is None:
            self.traffic.dropped[to] += 1
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
            await self._keep_pace(sender, STREAM_UNITS)
            await context.send_initial_metadata(())
            async for data in request_iterator:
                if inbound.refusal is not None:
                    raise inbound.refusal
                message = self._decode(sender, data)
                await self._keep_pace(sender, compute_units(message, len(data)))
                self.traffic.received += 1
                self._on_message(sender, message)
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
            if node_id not in self._members or node_id in self._cut_off:
                raise self._explain_refusal(node_id)
            return node_id
        raise InvalidCertificateError("the peer showed no certificate")

    def _explain_refusal(self, node_id: NodeId) -> IemasError:
        """Say why a node's stream is refused."""
        if node_id in self._members and node_id in self._cut_off:
            text = "too much of what this node sent was refused; it is heard again after a while"
            return PeerDisconnectedError(text, node_id=node_id)
        return InvalidCertificateError(f"node {short_id(node_id)} is no member", node_id=node_id)

    async def _keep_pace(self, sender: NodeId, units: int) -> None:
        """Let a peer wait that sends more than its share."""
        now_s = asyncio.get_running_loop().time()
        pace = self._paces.setdefault(sender, Pace(now_s))
        if not pace.take(units, now_s=now_s):
            self._spoil(sender, FloodError(f"messages of more than {UNITS_PER_S} units a second"))
            await asyncio.sleep(PAUSE_S)

    def _spoil(self, sender: NodeId, error: IemasError) -> None:
        if self._on_spoilt is not None:
            self._on_spoilt(sender, error)

    def _decode(self, sender: NodeId, data: bytes) -> PeerMessage:
        """Decode a message. Raises: MalformedMessageError, which ends the stream."""
        try:
            return _decode(data)
        except MalformedMessageError as error:
            self._spoil(sender, error)
            raise


def _decode(data: bytes) -> PeerMessage:
    if len(data) > MAX_MESSAGE_BYTES:
        raise OversizedMessageError(f"{len(data)} bytes are over {MAX_MESSAGE_BYTES}")
    try:
        request = peer_service_pb2.DeliverRequest.FromString(data)
    except DecodeError as error:
        raise MalformedMessageError("the bytes are no DeliverRequest") from error
    return wire.from_deliver_request(request)
