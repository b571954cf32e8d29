"""The public listener: what strangers may ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]

from iemas.core.errors import InternalError
from node.rpc_errors import ErrorInterceptor
from node.transport.certificates import NodeCertificates
from node.transport.listening import make_server_options, start_server

PUBLIC_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Bound of what a stranger may send in one message: a prompt of a million tokens fits thrice."""


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
            options=make_server_options(self._max_concurrent_streams, PUBLIC_MAX_MESSAGE_BYTES),
        )
        for add_servicer in self._add_servicers:
            add_servicer(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = await start_server(
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
