"""Members of a real market that send what nobody should: refused by name, in the end cut off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio

from iemas import tls, wire
from iemas.client import AsyncClient
from iemas.consensus.messages import (
    BlockAnnouncement,
    Commit,
    CommittedBlock,
    SubmitTransaction,
    VoteNotice,
)
from iemas.consensus.voting import Vote, VoteKind
from iemas.core.envelope import Envelope, Signed
from iemas.core.errors import PeerDisconnectedError
from iemas.core.gossip import ReportPush, SignedReport
from iemas.core.identity import Identity
from iemas.core.types import AccountId, Hash
from iemas.ledger.header import Block, BlockHeader, compute_transactions_root
from iemas.ledger.transaction import Transaction, TransferFunds
from iemas.rpc_errors import from_rpc_error
from iemas.testing.builders import make_capability, make_stamp
from iemas.tls import MAX_MESSAGE_BYTES, Address, parse_address
from iemas.v1 import market_service_pb2 as pb
from iemas.v1.market_service_pb2_grpc import MarketServiceStub
from node.local_market import LocalMarket, MarketPlan
from node.transport import NodeCertificates

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY = 10_400
"""More late messages than cost a peer its place, however fast they run off."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMarket]:
    async with LocalMarket(tmp_path_factory.mktemp("hostile")) as started:
        await started.start(MarketPlan(name="hostile"), lambda _: None)
        yield started


class HostileMember:
    """A stranger with a key who joins a market and may then say anything to its first node."""

    def __init__(self, market: LocalMarket, seed: int) -> None:
        genesis = market.require_genesis()
        self.identity = Identity(bytes([seed]) * 32)
        self.certificates = NodeCertificates(self.identity)
        self.chain_id = genesis.compute_chain_id(market.home.genesis_file.read_bytes())
        self.signer = wire.WireSigner(self.identity, self.chain_id)
        self.address = parse_address(market.bootstrap[0])
        self.report = self.make_report(self.signer, sequence=1)
        self.peer_address: Address | None = None

    def make_report(self, signer: wire.WireSigner, *, sequence: int) -> Signed[Any]:
        now_ms = time.time_ns() // 1_000_000
        stamp = make_stamp(signer, sequence, now_ms=now_ms, incarnation=now_ms)
        return signer.sign(
            make_capability(
                stamp,
                peer_address="127.0.0.1:9",
                ca_certificate=self.certificates.ca_certificate,
                slots=0,
            )
        )

    @contextlib.asynccontextmanager
    async def market_service(self) -> AsyncIterator[Any]:
        async with await tls.connect(self.address) as channel:
            yield MarketServiceStub(channel)

    async def join(self) -> None:
        capability = wire.to_proto(self.report.envelope)
        async with self.market_service() as service:
            answer = await service.Join(pb.JoinRequest(capability=capability))
        for report in answer.reports:
            capability = wire.from_proto(SignedReport, report).capability
            if capability is not None and capability.signer_id == self.address.node_id:
                host, port = tls.split_host_port(capability.message.peer_address)
                self.peer_address = Address(self.address.node_id, host, port)

    async def send(self, messages: Sequence[bytes]) -> Exception | None:
        """Send on a stream of this member's own; give what ended it, if anything did."""
        assert self.peer_address is not None
        ca_certificate = await tls.fetch_ca_certificate(self.peer_address)
        credentials = tls.channel_credentials(ca_certificate, self.certificates.get_leaf())
        # The first of two values counts: unlike a correct node, this one sends what it likes.
        options = [
            ("grpc.max_send_message_length", -1),
            *tls.channel_options(self.peer_address.node_id),
        ]
        async with grpc.aio.secure_channel(
            self.peer_address.target, credentials, options=options
        ) as channel:
            call = channel.stream_unary("/iemas.v1.PeerService/Deliver", None, None)()
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await call.initial_metadata()
                for data in messages:
                    if call.done():
                        break
                    await call.write(data)
                if not call.done():
                    await call.done_writing()
            try:
                await call
            except grpc.RpcError as error:
                return from_rpc_error(error)
        return None

    async def is_refused(self) -> bool:
        """Tell whether the node refuses a new stream, for having been sent too much that is bad."""
        return isinstance(await self.send([]), PeerDisconnectedError)

    async def get_refusals(self) -> pb.PeerRefusals:
        """Ask the node what it holds against this member."""
        async with self.market_service() as service:
            status = await service.GetStatus(pb.GetStatusRequest())
        for peer in status.peers:
            if peer.node_id == self.identity.node_id:
                return peer
        return pb.PeerRefusals()


def pack(message: Any) -> bytes:
    return wire.to_deliver_request(message).SerializeToString()


def spoil(signed: Signed[Any]) -> Signed[Any]:
    envelope = signed.envelope
    return Signed(signed.message, Envelope(envelope.payload, envelope.signer, bytes(64)))


def send_junk(_member: HostileMember) -> list[bytes]:
    return [b"\xff\xff\xff"]


def send_too_much(_member: HostileMember) -> list[bytes]:
    return [bytes(MAX_MESSAGE_BYTES + 1)]


def forge_a_transaction(member: HostileMember) -> list[bytes]:
    body = TransferFunds(AccountId(member.identity.node_id), 1)
    victim = AccountId(member.address.node_id)
    return [pack(SubmitTransaction(member.signer.sign(Transaction(victim, 2**40, body))))]


def speak_of_another_chain(member: HostileMember) -> list[bytes]:
    signer = wire.WireSigner(member.identity, "another-chain")
    report = member.make_report(signer, sequence=2)
    return [pack(ReportPush((SignedReport.wrap(report),)))]


def announce_an_undecided_block(member: HostileMember) -> list[bytes]:
    nothing = Hash(bytes(32))
    blocks = []
    for height in range(1, 200):  # one of them is the next
        header = BlockHeader(
            chain_id=member.chain_id,
            height=height,
            previous_hash=nothing,
            time_ms=time.time_ns() // 1_000_000,
            state_root=nothing,
            transactions_root=compute_transactions_root(()),
            validators_hash=nothing,
            next_validators_hash=nothing,
            results_root=nothing,
        )
        block = Block(member.signer.sign(header), ())
        commit = Commit(height, 0, block.hash, ())
        blocks.append(pack(BlockAnnouncement(CommittedBlock(block, commit))))
    return blocks


def repeat_a_report(member: HostileMember) -> list[bytes]:
    return [pack(ReportPush((SignedReport.wrap(member.report),)))] * MANY


def vote_at_a_decided_height(member: HostileMember) -> list[bytes]:
    vote = member.signer.sign(Vote(1, 0, VoteKind.PREVOTE, None))
    return [pack(VoteNotice((vote,)))] * 50


Attack = Callable[[HostileMember], list[bytes]]


@pytest.mark.parametrize(
    ("seed", "attack", "name"),
    [
        (201, send_junk, "MalformedMessageError"),
        (202, forge_a_transaction, "InvalidSignatureError"),
        (203, speak_of_another_chain, "InvalidSignatureError"),
        (204, announce_an_undecided_block, "InvalidBlockError"),
        (205, repeat_a_report, "ReplayedReportError"),
    ],
)
async def test_who_goes_on_with_it_is_cut_off(
    market: LocalMarket, seed: int, attack: Attack, name: str
) -> None:
    member = HostileMember(market, seed)
    await member.join()
    for _ in range(8):
        await member.send(attack(member))
        if await member.is_refused():
            break
    else:
        pytest.fail("the node still listens")
    refusals = await member.get_refusals()
    assert refusals.cuts >= 1
    assert max(refusals.refused, key=lambda one: refusals.refused[one]) == name


async def test_who_was_cut_off_is_heard_again_and_may_be_cut_off_again(market: LocalMarket) -> None:
    member = HostileMember(market, 201)  # cut off above
    async with asyncio.timeout(10):
        while (await member.get_refusals()).cut_until_ms:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.1)
    await member.join()
    assert not await member.is_refused()
    before = (await member.get_refusals()).cuts
    for _ in range(5):  # points run off meanwhile
        await member.send(send_junk(member))
    assert (await member.get_refusals()).cuts == before + 1


async def test_a_message_that_is_too_large_is_refused_by_name(market: LocalMarket) -> None:
    member = HostileMember(market, 207)
    await member.join()
    await member.send(send_too_much(member))
    assert (await member.get_refusals()).refused == {"OversizedMessageError": 1}


async def test_late_messages_are_counted_and_cost_next_to_nothing(market: LocalMarket) -> None:
    member = HostileMember(market, 206)
    await member.join()
    assert await member.send(vote_at_a_decided_height(member)) is None
    refusals = await member.get_refusals()
    assert refusals.refused == {"OutOfHeightError": 50}
    assert not await member.is_refused()


async def test_the_others_go_on_and_hold_nothing_against_each_other(market: LocalMarket) -> None:
    async with AsyncClient(market.bootstrap, key=market.customer_key) as client:
        question = [{"role": "user", "content": "Are you still there?"}]
        completion = await client.chat.completions.create(messages=question, max_tokens=4)
    assert completion.choices[0].message.content
    members = {node.node_id for node in market.nodes.values()}
    for node in market.nodes.values():
        async with await tls.connect(parse_address(node.address)) as channel:
            status = await MarketServiceStub(channel).GetStatus(pb.GetStatusRequest())
        assert not [peer for peer in status.peers if peer.cuts and peer.node_id in members]
