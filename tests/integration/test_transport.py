"""Members talk over real mutual TLS on loopback; strangers over the public listener."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from iemas import tls, wire
from iemas.core.errors import (
    APIConnectionError,
    ConfigurationError,
    InternalError,
    MalformedMessageError,
    NotAuctioneerError,
)
from iemas.core.gossip import Probe, ProbeAcknowledgement
from iemas.core.identity import Identity
from iemas.core.types import NodeId
from iemas.rpc_errors import from_rpc_error
from iemas.v1 import (
    auction_service_pb2,
    auction_service_pb2_grpc,
    market_service_pb2,
    market_service_pb2_grpc,
)
from node.transport import Member, NodeCertificates, PeerTransport, PublicListener, outbound

A, B, C = (Identity(bytes([number]) * 32) for number in (1, 2, 3))


class Peer:
    """A transport that remembers what it got."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.certificates = NodeCertificates(identity)
        self.got: list[tuple[NodeId, object]] = []
        self.transport = PeerTransport(self.certificates, self.on_message)
        self.port = 0

    @property
    def member(self) -> Member:
        return Member(f"127.0.0.1:{self.port}", self.certificates.ca_certificate)

    def on_message(self, sender: NodeId, message: object) -> None:
        self.got.append((sender, message))

    async def start(self, port: int = 0) -> None:
        self.port = await self.transport.start(f"127.0.0.1:{port}")

    def know(self, *peers: "Peer") -> None:
        self.transport.set_members({peer.identity.node_id: peer.member for peer in peers})


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - not every change has an event
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(*identities: Identity) -> AsyncIterator[list[Peer]]:
    peers = [Peer(identity) for identity in identities]
    for peer in peers:
        await peer.start()
    try:
        yield peers
    finally:
        for peer in peers:
            await peer.transport.stop()


async def test_members_deliver_in_order_in_both_directions() -> None:
    async with running(A, B) as (a, b):
        a.know(b)
        b.know(a)
        for sequence in range(500):
            assert a.transport.send(B.node_id, Probe(sequence))
            assert b.transport.send(A.node_id, ProbeAcknowledgement(sequence))
        await wait_until(lambda: len(b.got) == 500 and len(a.got) == 500)
    assert b.got == [(A.node_id, Probe(sequence)) for sequence in range(500)]
    assert a.got == [(B.node_id, ProbeAcknowledgement(sequence)) for sequence in range(500)]
    assert a.transport.traffic.sent == 500
    assert a.transport.traffic.received == 500


async def test_a_member_is_heard_as_soon_as_it_is_known() -> None:
    async with running(A, B) as (a, b):
        a.know(b)
        a.transport.send(B.node_id, Probe(1))
        await asyncio.sleep(0.3)
        assert b.got == []
        b.know(a)
        await wait_until(lambda: b.got == [(A.node_id, Probe(1))])


async def test_a_stranger_without_a_certificate_is_refused() -> None:
    async with running(A, B) as (a, b):
        b.know(a)
        address = tls.Address(B.node_id, "127.0.0.1", b.port)
        assert await tls.fetch_ca_certificate(address) == b.certificates.ca_certificate
        error = await open_stream(b, None, b"")
    assert isinstance(from_rpc_error(error), APIConnectionError)


async def open_stream(
    b: Peer, leaf: tls.LeafCredentials | None, data: bytes
) -> grpc.aio.AioRpcError:
    """Send one message to b under any leaf and give the error that ends the stream."""
    address = tls.Address(b.identity.node_id, "127.0.0.1", b.port)
    async with tls.open_channel(address, b.certificates.ca_certificate, leaf) as channel:
        deliver = channel.stream_unary("/iemas.v1.PeerService/Deliver", None, None)
        call = deliver()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"", b"\xfa\x01\x02\x08\x01"])
async def test_malformed_messages_end_the_stream_by_name(data: bytes) -> None:
    async with running(A, B) as (a, b):
        b.know(a)
        error = await open_stream(b, a.certificates.get_leaf(), data)
        assert isinstance(from_rpc_error(error), MalformedMessageError)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert b.transport.refused == {"MalformedMessageError": 1}
        assert b.got == []


def forge_leaf(signer: Identity, named: Identity) -> tls.LeafCredentials:
    """Have a member sign a leaf that names another one and carries that one's CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca_certificate = tls.create_ca_certificate(named)
    builder = tls._build_leaf(key.public_key(), named.node_id, ca_certificate, datetime.now(UTC))
    # BoringSSL looks the issuer up by name, so the forger names itself there.
    builder._issuer_name = tls._get_subject(signer.node_id)
    builder._extensions = [
        extension
        for extension in builder._extensions
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier)
    ]
    leaf = builder.sign(signer.private_key, None)
    pem = serialization.Encoding.PEM
    return tls.LeafCredentials(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        leaf.public_bytes(pem) + tls.to_pem(tls.create_ca_certificate(signer)),
        leaf.not_valid_after_utc,
    )


async def test_a_member_cannot_speak_for_another() -> None:
    """Any member's CA is in the bundle, so TLS alone would accept this leaf."""
    async with running(A, B, C) as (a, b, c):
        c.know(a, b)
        data = wire.to_deliver_request(Probe(7)).SerializeToString()
        error = await open_stream(c, forge_leaf(B, A), data)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert isinstance(from_rpc_error(error), tls.InvalidCertificateError)
        assert c.got == []
        assert c.transport.refused == {"InvalidCertificateError": 1}


async def test_a_removed_member_loses_its_stream_and_may_come_back() -> None:
    async with running(A, B) as (a, b):
        a.know(b)
        b.know(a)
        await wait_until(lambda: a.transport.connected == {B.node_id})
        b.know()
        await wait_until(lambda: not a.transport.connected)
        assert b.transport.refused["InvalidCertificateError"] >= 1
        a.transport.send(B.node_id, Probe(1))
        await asyncio.sleep(0.3)
        assert b.got == []
        b.know(a)
        await wait_until(lambda: b.got == [(A.node_id, Probe(1))])


async def test_a_peer_that_restarts_gets_what_was_queued_in_order() -> None:
    async with running(A, B) as (a, b):
        a.know(b)
        b.know(a)
        await wait_until(lambda: a.transport.connected == {B.node_id})
        await b.transport.stop()
        await wait_until(lambda: not a.transport.connected)
        for sequence in range(10):
            a.transport.send(B.node_id, Probe(sequence))
        again = Peer(B)
        try:
            await again.start(b.port)
            again.know(a)
            await wait_until(lambda: len(again.got) == 10)
        finally:
            await again.transport.stop()
        assert [message.sequence for _, message in again.got] == list(range(10))


async def test_a_member_that_moves_is_followed() -> None:
    async with running(A, B) as (a, b):
        a.know(b)
        b.know(a)
        await wait_until(lambda: a.transport.connected == {B.node_id})
        moved = Peer(B)
        await moved.start()
        try:
            moved.know(a)
            a.know(moved)
            a.transport.send(B.node_id, Probe(1))
            await wait_until(lambda: moved.got == [(A.node_id, Probe(1))])
        finally:
            await moved.transport.stop()


async def test_a_full_queue_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "QUEUE_MESSAGES", 5)
    async with running(A, B) as (a, b):
        a.know(b)
        for sequence in range(8):
            a.transport.send(B.node_id, Probe(sequence))
        assert a.transport.traffic.dropped == {B.node_id: 3}
        b.know(a)
        await wait_until(lambda: len(b.got) == 5)
        assert [message.sequence for _, message in b.got] == [3, 4, 5, 6, 7]


async def test_a_message_to_no_member_is_dropped_and_counted() -> None:
    async with running(A) as (a,):
        assert not a.transport.send(B.node_id, Probe(1))
        assert a.transport.traffic.dropped == {B.node_id: 1}


async def test_a_member_with_a_foreign_certificate_is_refused_alone() -> None:
    async with running(A, B, C) as (a, b, c):
        wrong = Member(c.member.peer_address, b.certificates.ca_certificate)
        a.transport.set_members({B.node_id: b.member, C.node_id: wrong})
        assert a.transport.refused == {"InvalidCertificateError": 1}
        assert a.transport.send(B.node_id, Probe(1))
        assert not a.transport.send(C.node_id, Probe(1))


async def test_a_callback_that_raises_ends_the_stream_and_is_counted() -> None:
    broken: list[InternalError] = []

    def refuse(sender: NodeId, message: object) -> None:
        raise InternalError("an invariant broke")

    async with running(A) as (a,):
        b = Peer(B)
        b.transport = PeerTransport(b.certificates, refuse, on_internal_error=broken.append)
        await b.start()
        try:
            b.know(a)
            data = wire.to_deliver_request(Probe(7)).SerializeToString()
            error = await open_stream(b, a.certificates.get_leaf(), data)
        finally:
            await b.transport.stop()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "invariant" not in error.details()
    assert [str(one) for one in broken] == ["an invariant broke"]


async def test_leaves_are_renewed_without_a_restart() -> None:
    now = datetime.now(UTC)
    clock = [now - timedelta(days=3)]
    certificates = NodeCertificates(A, clock=lambda: clock[0])
    transport = PeerTransport(certificates, lambda _sender, _message: None)
    port = await transport.start("127.0.0.1:0")
    try:
        address = tls.Address(A.node_id, "127.0.0.1", port)
        first = await tls.fetch_leaf(address)
        assert await tls.fetch_leaf(address) == first
        clock[0] = now + timedelta(days=1)
        second = await tls.fetch_leaf(address)
        assert second != first
        assert tls.verify_leaf(second, A.node_id, clock[0]) == certificates.ca_certificate
    finally:
        await transport.stop()


async def test_a_taken_port_is_a_configuration_error() -> None:
    async with running(A, B) as (a, b):
        taken = f"127.0.0.1:{a.port}"
        other = PeerTransport(b.certificates, b.on_message)
        with pytest.raises(ConfigurationError, match=rf"{taken}.*in use.*--peer-listen"):
            await other.start(taken)
        public = PublicListener(b.certificates, [])
        with pytest.raises(ConfigurationError, match=rf"{taken}.*in use.*--public-listen"):
            await public.start(taken)


async def test_an_unknown_host_is_a_configuration_error() -> None:
    transport = PeerTransport(NodeCertificates(A), lambda _sender, _message: None)
    with pytest.raises(ConfigurationError, match=r"203.0.113.1:0.*--peer-listen"):
        await transport.start("203.0.113.1:0")


async def test_nothing_is_left_after_stop() -> None:
    before = asyncio.all_tasks()
    async with running(A, B) as (a, b):
        a.know(b)
        b.know(a)
        await wait_until(lambda: a.transport.connected == {B.node_id})
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


# --- the public listener -----------------------------------------------------------------------


class Market(market_service_pb2_grpc.MarketServiceServicer):
    """Answers as each test needs."""

    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotAuctioneerError("ask the auctioneer", hint="somewhere:1", term=7)

    async def GetMarket(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise RuntimeError("a secret")

    async def ListBlocks(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[market_service_pb2.ListBlocksResponse]:
        yield market_service_pb2.ListBlocksResponse()
        raise MalformedMessageError("not from there", height=3)


class Auction(auction_service_pb2_grpc.AuctionServiceServicer):
    """Reads all bids and says nothing."""

    async def Bid(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[auction_service_pb2.BidResponse]:
        async for _ in request_iterator:
            yield auction_service_pb2.BidResponse()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[PublicListener, grpc.aio.Channel]]:
    listener = PublicListener(
        NodeCertificates(A),
        [
            lambda server: market_service_pb2_grpc.add_MarketServiceServicer_to_server(
                Market(), server
            ),
            lambda server: auction_service_pb2_grpc.add_AuctionServiceServicer_to_server(
                Auction(), server
            ),
        ],
    )
    port = await listener.start("127.0.0.1:0")
    try:
        async with await tls.connect(tls.Address(A.node_id, "127.0.0.1", port)) as channel:
            yield listener, channel
    finally:
        await listener.stop(0)


async def test_the_public_listener_answers_strangers_and_health_checks() -> None:
    async with serving() as (listener, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        await listener.set_serving(False)
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_named_errors_cross_the_wire_with_their_operands() -> None:
    async with serving() as (listener, channel):
        stub = market_service_pb2_grpc.MarketServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStatus(market_service_pb2.GetStatusRequest())
        error = from_rpc_error(caught.value)
        assert isinstance(error, NotAuctioneerError)
        assert str(error) == "ask the auctioneer"
        assert (error.hint, error.term) == ("somewhere:1", 7)
        assert error.status_code == "FAILED_PRECONDITION"
        assert error.__cause__ is caught.value
        assert listener.refused == {"NotAuctioneerError": 1}


async def test_unexpected_errors_say_nothing() -> None:
    async with serving() as (listener, channel):
        stub = market_service_pb2_grpc.MarketServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMarket(market_service_pb2.GetMarketRequest())
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(caught.value)
        assert listener.refused == {"InternalError": 1}


async def test_a_stream_that_fails_keeps_what_was_sent() -> None:
    async with serving() as (_, channel):
        stub = market_service_pb2_grpc.MarketServiceStub(channel)
        call = stub.ListBlocks(market_service_pb2.ListBlocksRequest())
        assert await call.read() == market_service_pb2.ListBlocksResponse()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert isinstance(from_rpc_error(caught.value), MalformedMessageError)


async def test_a_request_that_does_not_parse_is_refused_by_name() -> None:
    async with serving() as (listener, channel):
        get_status = channel.unary_unary("/iemas.v1.MarketService/GetStatus", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get_status(b"\xff\xff")
        assert isinstance(from_rpc_error(caught.value), MalformedMessageError)
        list_blocks = channel.unary_stream("/iemas.v1.MarketService/ListBlocks", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await list_blocks(b"\xff\xff").read()
        assert isinstance(from_rpc_error(caught.value), MalformedMessageError)
        bid = channel.stream_stream("/iemas.v1.AuctionService/Bid", None, None)()
        await bid.write(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bid.read()
        assert isinstance(from_rpc_error(caught.value), MalformedMessageError)
        assert listener.refused == {"MalformedMessageError": 3}


async def test_another_node_at_the_address_is_not_trusted() -> None:
    async with running(A) as (a,):
        with pytest.raises(tls.InvalidCertificateError):
            await tls.fetch_ca_certificate(tls.Address(B.node_id, "127.0.0.1", a.port))


async def test_nobody_at_the_address_is_a_connection_error() -> None:
    async with running(A) as (a,):
        port = a.port
    with pytest.raises(APIConnectionError, match=f"127.0.0.1:{port}"):
        await tls.fetch_ca_certificate(tls.Address(A.node_id, "127.0.0.1", port))


async def test_a_channel_refuses_another_node_behind_the_pinned_address() -> None:
    async with running(A) as (a,):
        address = tls.Address(B.node_id, "127.0.0.1", a.port)
        async with tls.open_channel(address, tls.create_ca_certificate(B)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
