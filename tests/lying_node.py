# ruff: noqa: N802 (the names of the service's methods are the protocol's)
"""A node that passes every question on to a real one, and spoils the answers it has lies for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from iemas import AsyncClient, Identity, tls
from iemas.v1 import market_service_pb2 as pb
from iemas.v1 import market_service_pb2_grpc
from node.transport import NodeCertificates, PublicListener

Lie = Callable[[Any], None]


class LyingServicer(market_service_pb2_grpc.MarketServiceServicer):
    """Passes every question on to a real node, and spoils the answers that it has lies for."""

    def __init__(self, stub: Any, lies: dict[str, Lie]) -> None:
        self._stub = stub
        self._lies = lies
        self.asked: list[str] = []

    async def _answer(self, name: str, request: Any) -> Any:
        self.asked.append(name)
        answer = await getattr(self._stub, name)(request, timeout=5)
        self._lies.get(name, lambda _: None)(answer)
        return answer

    async def ListReports(self, request: Any, context: Any) -> Any:
        return pb.ListReportsResponse()  # and names no other node

    async def GetMarket(self, request: Any, context: Any) -> Any:
        return await self._answer("GetMarket", request)

    async def GetTerm(self, request: Any, context: Any) -> Any:
        return await self._answer("GetTerm", request)

    async def GetAccount(self, request: Any, context: Any) -> Any:
        return await self._answer("GetAccount", request)

    async def ListLightBlocks(self, request: Any, context: Any) -> Any:
        return await self._answer("ListLightBlocks", request)

    async def GetAccountProof(self, request: Any, context: Any) -> Any:
        return await self._answer("GetAccountProof", request)

    async def GetSettlementProof(self, request: Any, context: Any) -> Any:
        return await self._answer("GetSettlementProof", request)

    async def GetTransactionProof(self, request: Any, context: Any) -> Any:
        return await self._answer("GetTransactionProof", request)

    async def GetTablesProof(self, request: Any, context: Any) -> Any:
        return await self._answer("GetTablesProof", request)

    async def ListHeaders(self, request: Any, context: Any) -> Any:
        return await self._answer("ListHeaders", request)


@asynccontextmanager
async def lying_node(honest: str, **lies: Lie) -> AsyncIterator[tuple[str, LyingServicer]]:
    """Run a liar in front of an honest node; give its address, and what it was asked."""
    identity = Identity(b"liar" * 8)
    async with await tls.connect(tls.parse_address(honest)) as channel:
        servicer = LyingServicer(market_service_pb2_grpc.MarketServiceStub(channel), dict(lies))
        listener = PublicListener(
            NodeCertificates(identity),
            [lambda s: market_service_pb2_grpc.add_MarketServiceServicer_to_server(servicer, s)],
        )
        port = await listener.start("127.0.0.1:0")
        try:
            yield f"{identity.node_id.hex()}@127.0.0.1:{port}", servicer
        finally:
            await listener.stop(0)


def cut(field: str) -> Lie:
    def lie(answer: Any) -> None:
        del getattr(answer, field).leaves[0].proof.path[-1:]

    return lie


async def isolate(client: AsyncClient) -> None:
    """Let the client know no node but the one that it began with."""
    await client.connect()
    del client._core.network._preferred[1:]
