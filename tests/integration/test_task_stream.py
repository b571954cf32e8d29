"""Task streams over real gRPC: one that never begins is ended."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from iemas import tls
from iemas.core.errors import RemoteProtocolError
from iemas.core.identity import Identity
from iemas.v1 import execution_service_pb2_grpc
from node.servicers import execution
from node.servicers.execution import ExecutionServicer
from node.transport import NodeCertificates, PublicListener

NODE = Identity(b"n" * 32)


@pytest.mark.asyncio
async def test_a_stream_without_a_task_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "START_TIMEOUT_S", 0.1)
    servicer = ExecutionServicer(*cast("Any", (None, None, None)))
    certificates = NodeCertificates(NODE)
    listener = PublicListener(
        certificates,
        [
            lambda server: execution_service_pb2_grpc.add_ExecutionServiceServicer_to_server(
                servicer, server
            )
        ],
    )
    port = await listener.start("127.0.0.1:0")
    address = tls.parse_address(f"{NODE.node_id.hex()}@127.0.0.1:{port}")
    async with tls.open_channel(address, certificates.ca_certificate) as channel:
        stub = cast("Any", execution_service_pb2_grpc.ExecutionServiceStub(channel))
        async with asyncio.timeout(10):
            await stub.Execute().code()
    await listener.stop(0)
    assert listener.refused[RemoteProtocolError.__name__] == 1
