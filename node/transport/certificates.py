"""What a node shows on every connection: its CA certificate and its current leaf.

Leaves are renewed when half of their lifetime is over, by whichever handshake first needs one.
Source: docs/spec/identity.md §3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import grpc

from iemas.core.identity import Identity
from iemas.tls import LeafCredentials, create_ca_certificate, create_leaf

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Read the system's clock."""
    return datetime.now(UTC)


class NodeCertificates:
    """A node's CA certificate and current leaf, shared by its listeners and outbound channels.

    gRPC asks for certificates from threads of its own, hence the lock.
    """

    def __init__(self, identity: Identity, clock: Clock = utc_now) -> None:
        self.identity = identity
        self.ca_certificate = create_ca_certificate(identity)
        self._clock = clock
        self._lock = threading.Lock()
        self._leaf = create_leaf(identity, clock())

    def get_leaf(self) -> LeafCredentials:
        """Give a leaf with at least half of its lifetime left."""
        with self._lock:
            now = self._clock()
            if self._leaf.is_due(now):
                self._leaf = create_leaf(self.identity, now)
            return self._leaf

    def create_server_credentials(
        self, get_roots: Callable[[], bytes] | None = None
    ) -> grpc.ServerCredentials:
        """Create credentials that follow the current leaf.

        With `get_roots`, which gives the trust bundle (PEM), clients must show a certificate.
        """

        def configure() -> grpc.ServerCertificateConfiguration:
            leaf = self.get_leaf()
            return grpc.ssl_server_certificate_configuration(
                [(leaf.private_key_pem, leaf.chain_pem)], get_roots() if get_roots else None
            )

        return grpc.dynamic_ssl_server_credentials(
            configure(), configure, require_client_authentication=get_roots is not None
        )
