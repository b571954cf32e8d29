"""What this node shows to light clients: headers with commits, and proofs under them.

A record is proven under the last decided header, so it is the state before that block: what the
block itself did is provable with the next one. Building the tree of a state takes one pass over
it, so a tree is kept and asked again for a while before a newer one is built. A transaction is
proven from its stored block and results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from iemas import wire
from iemas.consensus.messages import Commit, CommittedBlock, LightBlock, LightValidator
from iemas.core.envelope import Envelope
from iemas.core.errors import (
    InternalError,
    InvalidInputError,
    QuorumUnavailableError,
    UnknownTransactionError,
)
from iemas.core.ready import RecordKind
from iemas.core.types import AccountId, ChannelId, HubId, NodeId, require_id, short_id
from iemas.ledger.header import BlockHeader
from iemas.ledger.history import (
    BlockResults,
    TransactionPlace,
    TransactionProof,
    compute_total_id,
    prove_transaction,
)
from iemas.ledger.proofs import StateProver
from iemas.ledger.records import HoldKey, TermKey, TotalKey
from iemas.ledger.state import LedgerState
from iemas.v1 import consensus_pb2, types_pb2
from iemas.v1 import market_service_pb2 as pb
from node.driver import Driver
from node.storage import Storage

MAX_LIGHT_BLOCKS = 64
MAX_READ_BYTES = 8 * 1024 * 1024
"""Blocks are stored with their transactions: one answer reads at most so much of them."""

MAX_HEADERS = 1_000

PROVABLE_TABLES = (
    "validators",
    "jails",
    "parameters",
    "parameter_changes",
    "parameter_votes",
)
"""The tables that are proven whole: small ones, about who governs the market and how."""

REBUILD_SECONDS = 0.5
REBUILD_RATIO = 9
"""A tree is kept for so long, and so many times as long as it took, before a newer one is built."""


class LightServer:
    """Answers light clients from one node's chain."""

    def __init__(self, driver: Driver, storage: Storage) -> None:
        self._core = driver.core
        self._storage = storage
        self._build_again_at = 0.0
        self._proven: tuple[LightBlock, StateProver, LedgerState] | None = None
        self._building = asyncio.Lock()

    def list_blocks(self, from_height: int, limit: int) -> pb.ListLightBlocksResponse:
        """Give light blocks from a height on; height 0 means the last one."""
        first = min(from_height, 2**63) or self._core.engine.height
        count = min(max(limit, 1), MAX_LIGHT_BLOCKS)
        blocks: list[LightBlock] = []
        size = 0
        while len(blocks) < count and size <= MAX_READ_BYTES:
            after = (first + len(blocks)).to_bytes(8, "big")
            page = self._storage.read_page(RecordKind.BLOCK, after, 1)
            if not page or page[0][0] != after:  # a snapshot spared what lies between
                break
            data = page[0][1]
            size += len(data)
            blocks.append(self._make_light(data))
        return pb.ListLightBlocksResponse(blocks=[wire.to_proto(block) for block in blocks])

    def list_headers(self, before_height: int, limit: int) -> pb.ListHeadersResponse:
        """Give signed headers below a height, the highest first."""
        count = min(max(limit, 1), MAX_HEADERS)
        headers: list[types_pb2.Envelope] = []
        size = 0
        height = min(before_height, 2**63) - 1
        while height >= 1 and len(headers) < count and size <= MAX_READ_BYTES:
            data = self._read_at(RecordKind.BLOCK, height)
            if data is None:
                break
            size += len(data)
            stored = consensus_pb2.CommittedBlock.FromString(data)
            headers.append(stored.block.header)
            height -= 1
        return pb.ListHeadersResponse(headers=headers)

    async def prove_account(self, account: bytes, hub: HubId) -> pb.GetAccountProofResponse:
        """Prove an account's record and what the current term's allocations may draw on."""
        require_id("account", account)
        block, prover, state = await self._get_prover()
        term = state.current_terms[hub]
        hold = HoldKey(hub, term, AccountId(account))
        return pb.GetAccountProofResponse(
            block=wire.to_proto(block),
            account=wire.to_proto(prover.prove("accounts", AccountId(account))),
            current_term=wire.to_proto(prover.prove("current_terms", hub)),
            hold=wire.to_proto(prover.prove("holds", hold)),
        )

    async def prove_settlement(
        self, request: pb.GetSettlementProofRequest, hub: HubId
    ) -> pb.GetSettlementProofResponse:
        """Prove what of a channel is settled, and whether its term is still open."""
        require_id("account", request.account)
        require_id("provider", request.provider)
        block, prover, _ = await self._get_prover()
        total = TotalKey(
            hub,
            request.term,
            AccountId(request.account),
            ChannelId(request.channel),
            NodeId(request.provider),
        )
        found = self._storage.find(RecordKind.SETTLEMENT, compute_total_id(total), TransactionPlace)
        return pb.GetSettlementProofResponse(
            block=wire.to_proto(block),
            term=wire.to_proto(prover.prove("terms", TermKey(hub, request.term))),
            total=wire.to_proto(prover.prove("totals", total)),
            current_term=wire.to_proto(prover.prove("current_terms", hub)),
            settled_by=None if found is None else wire.to_proto(found),
        )

    async def prove_tables(self, tables: Sequence[str]) -> pb.GetTablesProofResponse:
        """Prove whole tables of the state: those that show who governs the market, and how."""
        for table in tables:
            if table not in PROVABLE_TABLES:
                known = ", ".join(PROVABLE_TABLES)
                raise InvalidInputError(f"the table {table!r} is not shown whole; {known} are")
        block, prover, _ = await self._get_prover()
        return pb.GetTablesProofResponse(
            block=wire.to_proto(block),
            tables=[wire.to_proto(prover.prove_table(table)) for table in tables],
        )

    async def prove_transaction(
        self, transaction_id: bytes, height: int
    ) -> pb.GetTransactionProofResponse:
        """Prove a transaction and its result; height 0 means where it was recorded first."""
        require_id("id", transaction_id)
        first = transaction_id + min(height, 2**63).to_bytes(8, "big")
        page = self._storage.read_page(RecordKind.TRANSACTION, first, 1)
        where = f" at height {height}" if height else ""
        unknown = UnknownTransactionError(
            f"node {short_id(self._core.node_id)} has no transaction {transaction_id.hex()}{where}"
        )
        if not page or not page[0][0].startswith(first if height else transaction_id):
            raise unknown
        place = wire.decode(TransactionPlace, page[0][1])
        block = self._read_at(RecordKind.BLOCK, place.height)
        results = self._read_at(RecordKind.RESULTS, place.height)
        if block is None or results is None:
            raise unknown
        proof = await asyncio.to_thread(_prove_stored, block, results, place.index)
        return pb.GetTransactionProofResponse(
            block=self.list_blocks(0, 1).blocks[0], transaction=wire.to_proto(proof)
        )

    async def _get_prover(self) -> tuple[LightBlock, StateProver, LedgerState]:
        async with self._building:
            now = asyncio.get_running_loop().time()
            if self._proven is None or now >= self._build_again_at:
                found = self._core.engine.proven
                if found is None:
                    raise QuorumUnavailableError("no block is decided yet: nothing is proven")
                committed, state = found
                block = committed.block
                if self._proven is None or self._proven[0].hash != block.hash:
                    prover = await asyncio.to_thread(StateProver, state)
                    if prover.root != block.header.message.state_root:
                        raise InternalError("the kept state is not the one under the last header")
                    light = LightBlock(
                        block.header, committed.commit, self._list_validators(block.header.message)
                    )
                    self._proven = (light, prover, state)
                    built_at = asyncio.get_running_loop().time()
                    kept_seconds = max(REBUILD_SECONDS, REBUILD_RATIO * (built_at - now))
                    self._build_again_at = built_at + kept_seconds
            if self._proven is None:
                raise InternalError("no tree was built")
            return self._proven

    def _read_at(self, kind: RecordKind, height: int) -> bytes | None:
        """Read what is stored of a height; None where this node does not have it."""
        key = height.to_bytes(8, "big")
        page = self._storage.read_page(kind, key, 1)
        return page[0][1] if page and page[0][0] == key else None

    def _make_light(self, data: bytes) -> LightBlock:
        """Take a stored block's header and commit; its transactions are not decoded."""
        stored: Any = consensus_pb2.CommittedBlock.FromString(data)
        header = wire.open_envelope(BlockHeader, wire.from_proto(Envelope, stored.block.header))
        commit = wire.from_proto(Commit, stored.commit)
        return LightBlock(header, commit, self._list_validators(header.message))

    def _list_validators(self, header: BlockHeader) -> tuple[LightValidator, ...]:
        members = self._core.state.get_consensus_validators_at(header.height)
        if not members:
            raise InvalidInputError(
                f"who voted on height {header.height} is not kept: it is out of the evidence window"
            )
        return tuple(LightValidator(node_id, power) for node_id, power in members)


def _prove_stored(block: bytes, results: bytes, index: int) -> TransactionProof:
    """Prove a transaction from what is stored; a large block takes a while to decode."""
    committed = wire.decode(CommittedBlock, block)
    return prove_transaction(committed.block, wire.decode(BlockResults, results).results, index)
