"""What a node shows on every connection: its CA certificate and its current leaf.

Leaves are renewed when half of their lifetime is over, by whichever handshake first needs one.
Source: docs/spec/identity.md §3.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import grpc

from iemas.core.identity import Identity
from iemas.tls import LeafCredentials, create_ca_certificate, create_leaf

REPLACE_AFTER_S = 0.05
"""A handshake that has begun takes up its certificates within microseconds."""

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
        feed = CertificateFeed(self.get_leaf, get_roots)
        return grpc.dynamic_ssl_server_credentials(
            feed.first,
            feed,  # type: ignore[arg-type] # None is allowed, say the docs
            require_client_authentication=get_roots is not None,
        )


class CertificateFeed:
    """What gRPC asks at every handshake: the certificates if they changed, None if they did not.

    gRPC frees the old ones while a handshake of another thread may just be taking them up, which
    ends the process with SIGSEGV (grpc/grpc#36693). So they are replaced only when they changed,
    and not before such a handshake has gone on; gRPC lets no other begin while it asks.
    """

    def __init__(
        self, get_leaf: Callable[[], LeafCredentials], get_roots: Callable[[], bytes] | None
    ) -> None:
        self._get_leaf = get_leaf
        self._get_roots = get_roots
        self._given = self._read()
        self.first = _configure(*self._given)
        """What to listen with from the start."""

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Give the certificates if they are not those given last."""
        current = self._read()
        if current == self._given:
            return None
        time.sleep(REPLACE_AFTER_S)
        self._given = current
        return _configure(*current)

    def _read(self) -> tuple[LeafCredentials, bytes | None]:
        return self._get_leaf(), self._get_roots() if self._get_roots else None


def _configure(leaf: LeafCredentials, roots: bytes | None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(leaf.private_key_pem, leaf.chain_pem)], roots
    )
