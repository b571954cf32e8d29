"""Many handshakes at once, while certificates change, do not end the process.

In a process of its own, as it died of SIGSEGV in gRPC before `CertificateFeed`.
"""

import subprocess
import sys

SECONDS = 1.0
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
    command = [sys.executable, "-c", PROGRAM, str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
