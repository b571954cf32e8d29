"""Canonical bytes: how values are hashed, and which domain a signature belongs to.

Messages are signed and hashed over the bytes that travelled, never over a re-encoding. Where the
project hashes a value that never travels (a ledger entry, a Merkle leaf), it is encoded as
canonical CBOR (RFC 8949 §4.2.1), the encoding that vLLM's `sha256_cbor` block hashes use too.
"""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2

from iemas.core.types import Hash


def encode_canonical(value: Any) -> bytes:
    """Encode a value of None, bool, int, bytes, str, tuple or dict as canonical CBOR."""
    return cbor2.dumps(value, canonical=True)


def compute_hash(*parts: bytes) -> Hash:
    """Hash parts with SHA-256, each prefixed by its length, so that no two splits collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return Hash(digest.digest())


def compute_signing_bytes(domain: str, chain_id: str, payload: bytes) -> bytes:
    """Join domain, chain id and payload, each length-prefixed: what a signature covers."""
    parts = (domain.encode(), chain_id.encode(), payload)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
