"""What anyone may ask this node: market, reports, ledger, tokenizer, status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from iemas import wire
from iemas.core.envelope import Envelope, Signed
from iemas.core.errors import (
    APITimeoutError,
    InvalidInputError,
)
from iemas.core.ready import RecordKind
from iemas.core.report import CapabilityReport
from iemas.core.types import AccountId, HubId, require_id
from iemas.ledger.transaction import Transaction
from iemas.ledger.transfer import get_deposit, get_pending, get_stake, get_unbonding
from iemas.v1 import (
    consensus_pb2,
    ledger_pb2,
    market_service_pb2,
    market_service_pb2_grpc,
    types_pb2,
)
from node.clock import get_now_ms
from node.core import ReceiveTransaction
from node.driver import Driver
from node.servicers.light import LightServer
from node.storage import Storage

SUBMIT_TIMEOUT_S = 20.0
PIECE_BYTES = 1 << 20
PAGE = 100
WORST_PEERS = 64


@dataclass(frozen=True, slots=True)
class MarketFacts:
    """What does not change while the node runs."""

    genesis_json: bytes
    software: str
    tokenizer_hash: bytes
    tokenizer_bundle: bytes


class MarketServicer(market_service_pb2_grpc.MarketServiceServicer):
    """`MarketService` on the public listener."""

    def __init__(self, driver: Driver, storage: Storage, facts: MarketFacts) -> None:
        self._driver = driver
        self._core = driver.core
        self._storage = storage
        self._facts = facts
        self._light = LightServer(driver, storage)

    async def GetMarket(
        self, request: market_service_pb2.GetMarketRequest, context: Any
    ) -> market_service_pb2.GetMarketResponse:
        """Give the genesis file."""
        return market_service_pb2.GetMarketResponse(
            genesis_json=self._facts.genesis_json,
            node_id=self._core.node_id,
            software=self._facts.software,
        )

    async def Join(
        self, request: market_service_pb2.JoinRequest, context: Any
    ) -> market_service_pb2.JoinResponse:
        """Take in a newcomer's report, tell the others, give it all reports."""
        envelope = wire.from_proto(Envelope, request.capability)
        report: Signed[Any] = wire.open_envelope(CapabilityReport, envelope)
        with self._driver.guard():
            ready = self._core.introduce(report, now_ms=get_now_ms())
        self._driver.carry_out(ready)
        reports = [wire.to_proto(held) for held in self._core.membership.get_reports()]
        return market_service_pb2.JoinResponse(reports=reports)

    async def ListReports(
        self, request: market_service_pb2.ListReportsRequest, context: Any
    ) -> market_service_pb2.ListReportsResponse:
        """Give every report held here, and whom this node suspects."""
        membership = self._core.membership
        return market_service_pb2.ListReportsResponse(
            reports=[wire.to_proto(report) for report in membership.get_reports()],
            suspected=[peer for peer in membership.get_peers() if membership.is_suspected(peer)],
        )

    async def GetTerm(
        self, request: market_service_pb2.GetTermRequest, context: Any
    ) -> market_service_pb2.GetTermResponse:
        """Give the current term, with the reports that bids are sealed by."""
        hub = self._require_hub(request.hub)
        state = self._core.state
        term = state.get_term(hub)
        response = market_service_pb2.GetTermResponse(
            term=term.number,
            auctioneer=term.auctioneer,
            witness=term.witness or b"",
            started_at_ms=term.started_at_ms,
            next_auctioneer=state.get_next_auctioneer(hub),
            height=state.height,
            validators=state.get_live_validators(hub),
        )
        for node_id, field in (
            (term.auctioneer, response.auctioneer_capability),
            (term.witness, response.witness_capability),
        ):
            record = self._core.membership.get_node(node_id) if node_id is not None else None
            if record is not None:
                field.CopyFrom(wire.to_proto(record.capability.envelope))
        return response

    async def GetAccount(
        self, request: market_service_pb2.GetAccountRequest, context: Any
    ) -> market_service_pb2.GetAccountResponse:
        """Give an account's balances."""
        require_id("account", request.account)
        hub = self._require_hub(request.hub)
        account = AccountId(request.account)
        state = self._core.state
        if not state.has_account(account):
            return market_service_pb2.GetAccountResponse(exists=False, height=state.height)
        available_micros, escrow_micros = state.get_balance(account, hub)
        return market_service_pb2.GetAccountResponse(
            exists=True,
            available_micros=available_micros,
            escrow_micros=escrow_micros,
            allowance_micros=state.get_allowance(hub, account, state.get_term(hub).number),
            nonce=state.get_nonce(account),
            height=state.height,
            staked_micros=state.get_funds(get_stake(account)),
            unbonding_micros=state.get_funds(get_unbonding(account)),
            pending_micros=state.get_funds(get_pending(account)),
            deposit_micros=state.get_funds(get_deposit(account)),
        )

    async def SubmitTransaction(
        self, request: market_service_pb2.SubmitTransactionRequest, context: Any
    ) -> market_service_pb2.SubmitTransactionResponse:
        """Have a transaction ordered; answer with its recorded result."""
        envelope = wire.from_proto(Envelope, request.transaction)
        transaction = wire.open_envelope(Transaction, envelope)
        core = self._core
        core.require_orderable(transaction)
        self._driver.step(ReceiveTransaction(transaction))
        try:
            async with asyncio.timeout(SUBMIT_TIMEOUT_S):
                while transaction.hash not in core.results:
                    await self._driver.wait_committed(SUBMIT_TIMEOUT_S)
        except TimeoutError:
            raise APITimeoutError(
                f"the transaction was not ordered within {SUBMIT_TIMEOUT_S:.0f} s; more than a "
                "third of the validators may be down. It still waits, for up to a minute: sending "
                "the same signed bytes again is safe, signing another one is not"
            ) from None
        result, height = core.results[transaction.hash]
        return market_service_pb2.SubmitTransactionResponse(
            code=ledger_pb2.ResultCode.ValueType(int(result.code)),
            detail=result.detail,
            height=height,
        )

    async def GetTokenizer(
        self, request: market_service_pb2.GetTokenizerRequest, context: Any
    ) -> AsyncIterator[market_service_pb2.GetTokenizerResponse]:
        """Stream the tokenizer bundle of this node's model."""
        bundle = self._facts.tokenizer_bundle
        if not bundle or request.hash != self._facts.tokenizer_hash:
            raise InvalidInputError("this node does not hold that tokenizer; ask a provider")
        for offset in range(0, len(bundle), PIECE_BYTES):
            piece = bundle[offset : offset + PIECE_BYTES]
            yield market_service_pb2.GetTokenizerResponse(piece=piece)

    async def GetStatus(
        self, request: market_service_pb2.GetStatusRequest, context: Any
    ) -> market_service_pb2.GetStatusResponse:
        """Say how this node is."""
        core, state = self._core, self._core.state
        membership = core.membership
        alive = [peer for peer in membership.get_peers() if not membership.is_suspected(peer)]
        return market_service_pb2.GetStatusResponse(
            node_id=core.node_id,
            height=state.height,
            state_root=core.engine.state_root,
            term=state.get_term(core.genesis.hub).number,
            transcripts_verified=core.rounds.verdicts["verified"],
            transcripts_refused=core.rounds.verdicts["refused"],
            last_transcript_hash=core.rounds.last_transcript_hash,
            peers_alive=len(alive),
            active_tasks=len(core.provider.active),
            total_money_micros=state.get_total_money(),
            refused=dict(core.refused),
            unsettled_channels=core.provider.unsettled_channels,
            open_books=core.rounds.open_books,
            ask=core.ask.phase.value,
            ask_missing_micros=core.ask.missing_micros,
            peers=[
                market_service_pb2.PeerRefusals(
                    node_id=peer,
                    refused=dict(record.refused),
                    cuts=record.cuts,
                    cut_until_ms=record.cut_until_ms or 0,
                )
                for peer, record in core.peers.get_records()[:WORST_PEERS]
            ],
        )

    async def ListBlocks(
        self, request: market_service_pb2.ListBlocksRequest, context: Any
    ) -> AsyncIterator[market_service_pb2.ListBlocksResponse]:
        """Stream the stored blocks from a height on, each with its commit."""
        after = max(request.from_height, 1).to_bytes(8, "big")
        async for data in self._stream(RecordKind.BLOCK, after):
            block = consensus_pb2.CommittedBlock.FromString(data)
            yield market_service_pb2.ListBlocksResponse(block=block)

    async def ListTranscripts(
        self, request: market_service_pb2.ListTranscriptsRequest, context: Any
    ) -> AsyncIterator[market_service_pb2.ListTranscriptsResponse]:
        """Stream the verified rounds' transcripts in order of term and round."""
        after = request.from_index.to_bytes(8, "big")
        async for data in self._stream(RecordKind.TRANSCRIPT, after):
            transcript = types_pb2.Envelope.FromString(data)
            yield market_service_pb2.ListTranscriptsResponse(transcript=transcript)

    async def ListLightBlocks(
        self, request: market_service_pb2.ListLightBlocksRequest, context: Any
    ) -> market_service_pb2.ListLightBlocksResponse:
        """Give blocks without their transactions."""
        return self._light.list_blocks(request.from_height, request.limit)

    async def GetAccountProof(
        self, request: market_service_pb2.GetAccountProofRequest, context: Any
    ) -> market_service_pb2.GetAccountProofResponse:
        """Prove an account's balances, or that it has none."""
        return await self._light.prove_account(request.account, self._require_hub(request.hub))

    async def GetSettlementProof(
        self, request: market_service_pb2.GetSettlementProofRequest, context: Any
    ) -> market_service_pb2.GetSettlementProofResponse:
        """Prove what of a channel is settled."""
        return await self._light.prove_settlement(request, self._require_hub(request.hub))

    async def GetTransactionProof(
        self, request: market_service_pb2.GetTransactionProofRequest, context: Any
    ) -> market_service_pb2.GetTransactionProofResponse:
        """Prove a transaction and what became of it."""
        return await self._light.prove_transaction(request.id, request.height)

    async def GetTablesProof(
        self, request: market_service_pb2.GetTablesProofRequest, context: Any
    ) -> market_service_pb2.GetTablesProofResponse:
        """Prove whole tables."""
        return await self._light.prove_tables(request.tables)

    async def ListHeaders(
        self, request: market_service_pb2.ListHeadersRequest, context: Any
    ) -> market_service_pb2.ListHeadersResponse:
        """Give headers going back."""
        return self._light.list_headers(request.before_height, request.limit)

    async def _stream(self, kind: RecordKind, first: bytes) -> AsyncIterator[bytes]:
        """Read a table page by page, letting others run between pages."""
        while True:
            page = self._storage.read_page(kind, first, PAGE)
            for key, data in page:
                yield data
                first = key + b"\0"
            if len(page) < PAGE:
                return
            await asyncio.sleep(0)

    def _require_hub(self, name: str) -> HubId:
        hub = self._core.genesis.hub
        if name not in ("", hub):
            raise InvalidInputError(f"this market's hub is {hub!r}, not {name!r}")
        return hub
