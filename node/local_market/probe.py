"""Short questions to one node about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import grpc

from iemas import tls
from iemas.core.types import NodeId
from iemas.rpc_errors import from_rpc_error
from iemas.tls import Address
from iemas.v1 import market_service_pb2 as pb
from iemas.v1.market_service_pb2_grpc import MarketServiceStub

ASK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node says about itself; see `GetStatusResponse`."""

    node_id: NodeId
    height: int
    state_root: bytes
    term: int
    transcripts_verified: int
    transcripts_refused: int
    last_transcript_hash: bytes
    peers_alive: int
    active_tasks: int
    total_money_micros: int
    refused: dict[str, int]
    unsettled_channels: int
    open_books: int


async def get_status(address: Address) -> NodeStatus:
    """Ask a node how it is. Raises: APIConnectionError, APITimeoutError."""
    answer = await _ask(address, "GetStatus", pb.GetStatusRequest())
    return NodeStatus(
        node_id=NodeId(answer.node_id),
        height=answer.height,
        state_root=answer.state_root,
        term=answer.term,
        transcripts_verified=answer.transcripts_verified,
        transcripts_refused=answer.transcripts_refused,
        last_transcript_hash=answer.last_transcript_hash,
        peers_alive=answer.peers_alive,
        active_tasks=answer.active_tasks,
        total_money_micros=answer.total_money_micros,
        refused=dict(answer.refused),
        unsettled_channels=answer.unsettled_channels,
        open_books=answer.open_books,
    )


async def get_account_nonce(address: Address, account: bytes) -> int:
    """Ask a node how many transactions of an account its ledger has."""
    answer = await _ask(address, "GetAccount", pb.GetAccountRequest(account=account))
    return int(answer.nonce)


async def get_term(address: Address) -> pb.GetTermResponse:
    """Ask a node for the current term."""
    answer: pb.GetTermResponse = await _ask(address, "GetTerm", pb.GetTermRequest())
    return answer


async def _ask(address: Address, method: str, request: Any) -> Any:
    try:
        async with await tls.connect(address, timeout=ASK_S) as channel:
            return await getattr(MarketServiceStub(channel), method)(request, timeout=ASK_S)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
