# ruff: noqa: N802 (the names of the services' methods are the protocol's)
"""A small market for the SDK: real gRPC over TLS on loopback, a scripted auction and model.

It opens the sealed bids and meters with the provider's own machine, so what the SDK sends must
really hold; who wins, what is generated and what goes wrong is up to each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from iemas import wire
from iemas.core.auction import (
    Allocation,
    Bid,
    BidAccepted,
    BidAcknowledgement,
    BidSubmission,
    Refusal,
    RoundClose,
    RoundOutcome,
    SealedBid,
    Unmatched,
)
from iemas.core.envelope import Envelope, Signed, verify_signed
from iemas.core.errors import APITimeoutError, BackendError, NotAuctioneerError
from iemas.core.execution import (
    Busy,
    ChannelTotal,
    OutputChunk,
    Receipt,
    ReceiptCountersigned,
    TaskPayload,
    TaskStart,
)
from iemas.core.gossip import SignedReport
from iemas.core.identity import Identity
from iemas.core.merkle import compute_inclusion_proof, compute_root
from iemas.core.params import Genesis, GenesisValidator, MarketParams
from iemas.core.report import CapabilityReport, ReportStamp
from iemas.core.sealing import combine_shares, compute_bid_context, decrypt_bid, open_share
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.tokenizer_bundle import compute_bundle_hash, encode_bundle
from iemas.core.types import FinishReason, HashAlgorithm, HubId, Prices, UnmatchedReason
from iemas.genesis import encode_genesis
from iemas.ledger.transaction import Transaction
from iemas.testing.tokenizer import IM_END_ID, build_byte_tokenizer
from iemas.tls import create_ca_certificate
from iemas.v1 import (
    auction_service_pb2,
    auction_service_pb2_grpc,
    execution_service_pb2,
    execution_service_pb2_grpc,
    ledger_pb2,
    market_service_pb2,
    market_service_pb2_grpc,
)
from node.execution import Execution
from node.transport import NodeCertificates, PublicListener

MODEL = "byte-model"
HUB = HubId(MODEL)
BLOCK_SIZE = 16
CONTEXT_TOKENS = 4096
RATES = Prices(400_000, 100_000, 900_000)
BUYER = Identity(b"b" * 32)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Script:
    """What the market does next; queues run dry to the ordinary course."""

    reply: str = "Hello, buyer!"
    cached_tokens: int = 0
    backend_cached: int | None = None
    token_seconds: float = 0.0
    first_token_seconds: float = 0.0
    unmatched: deque[UnmatchedReason] = field(default_factory=deque)
    busy: int = 0
    fail_at: deque[int] = field(default_factory=deque)  # abort the stream after so many tokens
    backend_fails_at: int | None = None
    silent_bids: int = 0
    refuse: deque[tuple[str, str]] = field(default_factory=deque)
    tamper_allocation: Callable[[Allocation], Allocation] | None = None
    tamper_receipt: Callable[[Receipt], Receipt] | None = None
    submit_code: int = 1
    swallowed: int = 0  # so many submissions are taken and not answered


class FakeNode:
    """One node of the fake market, on a port of its own."""

    def __init__(self, market: FakeMarket, number: int) -> None:
        self.market = market
        self.identity = Identity(bytes([number]) * 32)
        self.node_id = self.identity.node_id
        self.port = 0
        self.listener: PublicListener | None = None

    @property
    def address(self) -> str:
        return f"{self.node_id.hex()}@127.0.0.1:{self.port}"

    @property
    def signer(self) -> wire.WireSigner:
        return wire.WireSigner(self.identity, self.market.chain_id)

    async def start(self) -> None:
        servicer = FakeServicer(self)
        self.listener = PublicListener(
            NodeCertificates(self.identity),
            [
                lambda s: market_service_pb2_grpc.add_MarketServiceServicer_to_server(servicer, s),
                lambda s: auction_service_pb2_grpc.add_AuctionServiceServicer_to_server(
                    servicer, s
                ),
                lambda s: execution_service_pb2_grpc.add_ExecutionServiceServicer_to_server(
                    servicer, s
                ),
            ],
        )
        self.port = await self.listener.start(f"127.0.0.1:{self.port}")

    async def stop(self) -> None:
        if self.listener is not None:
            await self.listener.stop(0)
            self.listener = None

    def capability(self) -> Signed[CapabilityReport]:
        return self.signer.sign(
            CapabilityReport(
                stamp=ReportStamp(self.node_id, 1, 1, now_ms(), 600_000),
                public_address=f"127.0.0.1:{self.port}",
                peer_address="127.0.0.1:1",
                ca_certificate=create_ca_certificate(self.identity),
                hpke_public_key=self.identity.derive_hpke_key().public_key().public_bytes_raw(),
                software="fake",
                hub=HUB,
                model=MODEL,
                model_revision="1",
                tokenizer_hash=self.market.tokenizer_hash,
                block_size=BLOCK_SIZE,
                hash_algorithm=HashAlgorithm.SHA256_CBOR,
                context_tokens=CONTEXT_TOKENS,
                slots=4,
                kv_events=True,
                hardware="none",
            )
        )


class FakeMarket:
    """Three nodes; `auctioneer`, `witness` and `provider` are indices into `nodes`."""

    def __init__(self) -> None:
        self.script = Script()
        self.params = MarketParams(term_ms=500, receipt_interval_tokens=4, window_tokens=8)
        self.nodes = [FakeNode(self, number) for number in (1, 2, 3)]
        genesis = Genesis(
            name="fake",
            time_ms=1,
            hub=HUB,
            model=MODEL,
            validators=tuple(GenesisValidator(node.node_id, 1) for node in self.nodes),
            accounts=(),
            params=self.params,
        )
        self.genesis_json = encode_genesis(genesis)
        self.chain_id = genesis.compute_chain_id(self.genesis_json)
        self.bundle = build_byte_tokenizer()
        self.tokenizer_hash = compute_bundle_hash(self.bundle)
        self.term = 7
        self.auctioneer = 0
        self.witness = 1
        self.provider = 2
        self.round = 0
        self.allowance_micros = 1_000_000
        self.escrow_micros = 4_000_000
        self.nonce = 0
        self.calls: Counter[str] = Counter()
        self.bids: list[Bid] = []
        self.sealed: list[SealedBid] = []
        self.payloads: list[TaskPayload] = []
        self.totals: list[ChannelTotal] = []
        self.executions: list[Execution] = []
        self.cancels = 0
        self.transactions: list[Transaction] = []
        self.submitted: list[Envelope] = []

    @property
    def bootstrap(self) -> list[str]:
        return [node.address for node in self.nodes]

    def rotate(self) -> None:
        """Begin the next term under another auctioneer."""
        self.term += 1
        self.auctioneer, self.witness = self.witness, self.auctioneer

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))


class FakeServicer(
    market_service_pb2_grpc.MarketServiceServicer,
    auction_service_pb2_grpc.AuctionServiceServicer,
    execution_service_pb2_grpc.ExecutionServiceServicer,
):
    """All three public services of a node."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.market = node.market

    # --- market ------------------------------------------------------------------------------

    async def GetMarket(self, request: Any, context: Any) -> Any:
        self.market.calls["GetMarket"] += 1
        return market_service_pb2.GetMarketResponse(
            genesis_json=self.market.genesis_json, node_id=self.node.node_id, software="fake"
        )

    async def ListReports(self, request: Any, context: Any) -> Any:
        self.market.calls["ListReports"] += 1
        reports = [SignedReport.wrap(node.capability()) for node in self.market.nodes]
        return market_service_pb2.ListReportsResponse(
            reports=[wire.to_proto(report) for report in reports]
        )

    async def GetTerm(self, request: Any, context: Any) -> Any:
        market = self.market
        market.calls["GetTerm"] += 1
        auctioneer, witness = market.nodes[market.auctioneer], market.nodes[market.witness]
        return market_service_pb2.GetTermResponse(
            term=market.term,
            auctioneer=auctioneer.node_id,
            witness=witness.node_id,
            auctioneer_capability=wire.to_proto(auctioneer.capability().envelope),
            witness_capability=wire.to_proto(witness.capability().envelope),
        )

    async def GetAccount(self, request: Any, context: Any) -> Any:
        market = self.market
        market.calls["GetAccount"] += 1
        return market_service_pb2.GetAccountResponse(
            exists=True,
            available_micros=123,
            escrow_micros=market.escrow_micros,
            allowance_micros=market.allowance_micros,
            nonce=market.nonce,
            height=9,
        )

    async def SubmitTransaction(self, request: Any, context: Any) -> Any:
        envelope = wire.from_proto(Envelope, request.transaction)
        signed = wire.open_envelope(Transaction, envelope)
        verify_signed(signed, self.market.chain_id, expected_signer=signed.message.account)
        self.market.transactions.append(signed.message)
        self.market.submitted.append(signed.envelope)
        if self.market.script.swallowed:
            self.market.script.swallowed -= 1
            raise APITimeoutError("the transaction was not ordered")
        self.market.nonce = signed.message.nonce
        return market_service_pb2.SubmitTransactionResponse(
            code=ledger_pb2.ResultCode.ValueType(self.market.script.submit_code), height=10
        )

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.market.calls["GetTokenizer"] += 1
        data = encode_bundle(self.market.bundle)
        for offset in range(0, len(data), 3000):
            yield market_service_pb2.GetTokenizerResponse(piece=data[offset : offset + 3000])

    # --- auction -----------------------------------------------------------------------------

    async def Bid(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.market.calls["Bid"] += 1
        async for request in request_iterator:
            submission = wire.from_proto(BidSubmission, request.submission)
            for answer in self._answer(submission):
                response = auction_service_pb2.BidResponse(bid_hash=submission.sealed_bid.hash)
                name = {BidAccepted: "accepted", RoundOutcome: "outcome", Refusal: "refused"}
                getattr(response, name[type(answer)]).CopyFrom(wire.to_proto(answer))
                yield response

    def _answer(self, submission: BidSubmission) -> Iterator[Any]:
        market, script, sealed_bid = self.market, self.market.script, submission.sealed_bid
        sealed = sealed_bid.message
        market.sealed.append(sealed)
        verify_signed(sealed_bid, market.chain_id, expected_signer=sealed.account)
        if self.node is not market.nodes[market.auctioneer] or sealed.term != market.term:
            yield Refusal(NotAuctioneerError.__name__, "ask who is")
            return
        if script.silent_bids:
            script.silent_bids -= 1
            return
        if script.refuse:
            yield Refusal(*script.refuse.popleft())
            return
        bid = self._open(sealed)
        market.bids.append(bid)
        acknowledgement = BidAcknowledgement(HUB, market.term, sealed_bid.hash)
        yield BidAccepted(
            market.nodes[market.witness].signer.sign(acknowledgement),
            self.node.signer.sign(acknowledgement),
        )
        yield self._clear(sealed_bid, bid)

    def _open(self, sealed: SealedBid) -> Bid:
        market = self.market
        context = compute_bid_context(
            market.chain_id,
            hub=sealed.hub,
            term=sealed.term,
            account=sealed.account,
            channel=sealed.channel,
            nonce=sealed.nonce,
        )
        own = open_share(
            sealed.auctioneer_seal,
            self.node.identity.derive_hpke_key(),
            context,
            sealed.auctioneer_share_hash,
        )
        other = open_share(
            sealed.witness_seal,
            market.nodes[market.witness].identity.derive_hpke_key(),
            context,
            sealed.witness_share_hash,
        )
        key = combine_shares(own, other)
        return wire.decode(Bid, decrypt_bid(key, sealed.ciphertext, context))

    def _clear(self, sealed_bid: Signed[SealedBid], bid: Bid) -> RoundOutcome:
        market, script = self.market, self.market.script
        market.round += 1
        hashes = [b"\x01" * 32, sealed_bid.hash]
        close = self.node.signer.sign(
            RoundClose(HUB, market.term, market.round, compute_root(hashes), 2, now_ms(), True)
        )
        proof = compute_inclusion_proof(hashes, 1)
        account = sealed_bid.message.account
        if script.unmatched:
            unmatched = Unmatched(
                HUB,
                market.term,
                market.round,
                sealed_bid.hash,
                account,
                script.unmatched.popleft(),
                42,
                b"\x02" * 32,
            )
            return RoundOutcome(close, proof, None, self.node.signer.sign(unmatched))
        allocation = Allocation(
            hub=HUB,
            term=market.term,
            round=market.round,
            bid_hash=sealed_bid.hash,
            account=account,
            channel=sealed_bid.message.channel,
            provider=market.nodes[market.provider].node_id,
            prompt_tokens=bid.prompt_tokens,
            cached_tokens=script.cached_tokens,
            max_tokens=bid.max_tokens,
            rates=RATES,
            lateness=bid.lateness,
            price_micros=5,
            reserved_micros=compute_worst_case_micros(RATES, bid.prompt_tokens, bid.max_tokens),
            channel_reserved_micros=10**9,
            expected_ttft_ms=3,
            expires_at_ms=now_ms() + 10_000,
            transcript_hash=b"\x02" * 32,
        )
        if script.tamper_allocation is not None:
            allocation = script.tamper_allocation(allocation)
        return RoundOutcome(close, proof, self.node.signer.sign(allocation), None)

    # --- execution ---------------------------------------------------------------------------

    async def Execute(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        market, script = self.market, self.market.script
        requests = aiter(request_iterator)
        start = wire.from_proto(TaskStart, (await anext(requests)).start)
        market.payloads.append(start.payload)
        self._take_total(start.total)
        if script.busy:
            script.busy -= 1
            busy = self.node.signer.sign(Busy(start.allocation.hash, self.node.node_id, "full"))
            yield execution_service_pb2.ExecuteResponse(busy=wire.to_proto(busy.envelope))
            return
        execution = Execution(
            start,
            chain_id=market.chain_id,
            params=market.params,
            signer=self.node.signer,
            active_tasks=0,
            now_ms=now_ms(),
        )
        market.executions.append(execution)
        cancelled, changed = asyncio.Event(), asyncio.Event()
        reader = asyncio.create_task(self._read(requests, execution, cancelled, changed))
        try:
            async for frame in self._generate(execution, cancelled, changed):
                yield self._to_response(frame)
            async with asyncio.timeout(2):
                while not execution.done and not reader.done():
                    changed.clear()
                    await changed.wait()
        finally:
            reader.cancel()

    async def _read(
        self, requests: Any, execution: Execution, cancelled: asyncio.Event, changed: asyncio.Event
    ) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            async for request in requests:
                if request.HasField("cancel"):
                    self.market.cancels += 1
                    cancelled.set()
                else:
                    signed = wire.from_proto(ReceiptCountersigned, request.countersigned)
                    execution.acknowledge(signed, now_ms=now_ms())
                    self._take_total(signed.total)
                changed.set()
        changed.set()

    def _take_total(self, total: Signed[ChannelTotal]) -> None:
        verify_signed(total, self.market.chain_id, expected_signer=total.message.account)
        self.market.totals.append(total.message)

    async def _generate(
        self, execution: Execution, cancelled: asyncio.Event, changed: asyncio.Event
    ) -> AsyncIterator[Any]:
        script, terms = self.market.script, execution.allocation
        tokens = [*script.reply.encode(), IM_END_ID]
        fail_at = script.fail_at.popleft() if script.fail_at else None
        reason = FinishReason.LENGTH if len(tokens) > terms.max_tokens else FinishReason.STOP
        await asyncio.sleep(script.first_token_seconds)
        for index, token in enumerate(tokens[: terms.max_tokens]):
            if fail_at is not None and index == fail_at:
                raise BackendError("the fake provider dies")
            if script.backend_fails_at == index:
                reason = FinishReason.FAILED
                break
            if cancelled.is_set():
                reason = FinishReason.CANCELLED
                break
            text = "" if token == IM_END_ID else bytes([token]).decode()
            for frame in execution.deliver(text, (token,), now_ms=now_ms()):
                yield frame
            await asyncio.sleep(script.token_seconds)
            while execution.blocked and not cancelled.is_set():
                changed.clear()
                await changed.wait()
        for frame in execution.finish(reason, cached_tokens=script.backend_cached):
            yield frame

    def _to_response(self, frame: Any) -> Any:
        if isinstance(frame, OutputChunk):
            return execution_service_pb2.ExecuteResponse(chunk=wire.to_proto(frame))
        if self.market.script.tamper_receipt is not None:
            frame = self.node.signer.sign(self.market.script.tamper_receipt(frame.message))
        return execution_service_pb2.ExecuteResponse(receipt=wire.to_proto(frame.envelope))


@pytest_asyncio.fixture
async def market() -> AsyncIterator[FakeMarket]:
    """A running fake market on this test's event loop."""
    fake = FakeMarket()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def market_in_thread() -> Iterator[FakeMarket]:
    """A running fake market on an event loop of its own, for the sync client."""
    fake = FakeMarket()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
    yield fake
    asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.fixture
def buyer() -> Identity:
    return BUYER


@pytest.fixture
def tamper() -> Callable[..., Any]:
    """Make a function that changes fields of a message."""
    return lambda **fields: lambda message: replace(message, **fields)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"
