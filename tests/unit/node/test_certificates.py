"""gRPC is given certificates only when they changed."""

import pytest

from iemas.core.identity import Identity
from node.transport import NodeCertificates, certificates
from node.transport.certificates import CertificateFeed


def test_certificates_are_given_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(certificates.time, "sleep", waits.append)
    bundle = [b"one"]
    feed = CertificateFeed(NodeCertificates(Identity(bytes(32))).get_leaf, lambda: bundle[0])
    assert feed() is None
    bundle[0] = b"two"
    assert feed() is not None
    assert waits == [certificates.REPLACE_AFTER_S]
    assert feed() is None
    assert len(waits) == 1
