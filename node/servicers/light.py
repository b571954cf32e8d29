"""What this node shows to light clients: headers with commits, and proofs of single records.

A record is proven under the last decided header, so it is the state before that block: what the
block itself did is provable with the next one. Building the tree of a state takes one pass over
it, so a tree is kept and asked again for a while before a newer one is built.
"""

from __future__ import annotations

import asyncio
from typing import Any

from iemas import wire
from iemas.consensus.messages import Commit, LightBlock, LightValidator
from iemas.core.envelope import Envelope
from iemas.core.errors import InternalError, InvalidInputError, QuorumUnavailableError
from iemas.core.ready import RecordKind
from iemas.core.types import AccountId, ChannelId, HubId, NodeId, require_id
from iemas.ledger.header import BlockHeader
from iemas.ledger.proofs import StateProver
from iemas.ledger.records import HoldKey, TermKey, TotalKey
from iemas.ledger.state import LedgerState
from iemas.v1 import consensus_pb2
from iemas.v1 import market_service_pb2 as pb
from node.driver import Driver
from node.storage import Storage

MAX_LIGHT_BLOCKS = 64
MAX_READ_BYTES = 8 * 1024 * 1024
"""Blocks are stored with their transactions: one answer reads at most so much of them."""

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
            if not page:
                break
            data = page[0][1]
            size += len(data)
            blocks.append(self._make_light(data))
        return pb.ListLightBlocksResponse(blocks=[wire.to_proto(block) for block in blocks])

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
        return pb.GetSettlementProofResponse(
            block=wire.to_proto(block),
            term=wire.to_proto(prover.prove("terms", TermKey(hub, request.term))),
            total=wire.to_proto(prover.prove("totals", total)),
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
