"""Connections under load: many handshakes at once end no process, slow ones succeed."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2, health_pb2_grpc

from iemas import tls
from iemas.core.identity import Identity
from node.transport import NodeCertificates, PublicListener

SECONDS = 1.0
SLOW_S = 0.25
PROGRAM = """
import asyncio, ssl, sys
import grpc
from iemas.core.identity import Identity
from iemas.tls import create_ca_certificate, to_pem
from node.transport import NodeCertificates, certificates

ENDS_AFTER_S = float(sys.argv[1])
BUNDLES = [to_pem(create_ca_certificate(Identity(bytes([n]) * 32))) for n in (1, 2)]
certificates.REPLACE_AFTER_S = 0.02
asked = 0

def get_roots():
    global asked
    asked += 1
    return BUNDLES[asked // 100 % 2]

async def shake_hands(port, context):
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.transport.abort()

async def main():
    server = grpc.aio.server()
    credentials = NodeCertificates(Identity(bytes(32))).create_server_credentials(get_roots)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    many = asyncio.gather(*(shake_hands(port, context) for _ in range(16)))
    await asyncio.wait([many], timeout=ENDS_AFTER_S)
    many.cancel()
    await server.stop(None)
    print(asked)

asyncio.run(main())
"""


def test_many_handshakes_at_once_end_no_process() -> None:
    """In a process of its own, as it died of SIGSEGV in gRPC before `CertificateFeed`."""
    command = [sys.executable, "-c", PROGRAM, str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@contextlib.asynccontextmanager
async def slow_road(port: int) -> AsyncIterator[int]:
    """Listen for connections to a port and hold each back for a while, as a busy machine does."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(SLOW_S)
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_connection_that_takes_long_is_waited_for() -> None:
    certificates = NodeCertificates(Identity(bytes(32)))
    listener = PublicListener(certificates, [])
    port = await listener.start("127.0.0.1:0")
    try:
        async with slow_road(port) as slow_port:
            address = tls.Address(certificates.identity.node_id, "127.0.0.1", slow_port)
            async with await tls.connect(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest())
    finally:
        await listener.stop(0)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
