"""Ed25519 identities: who signs, and how a node or account is named.

A node and its account share one key, so a provider's earnings go to the account named like it.
Source: design §11.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from iemas.core.encoding import compute_hash
from iemas.core.types import ID_BYTES, NodeId

REMEMBERED_BYTES = 1024


def compute_node_id(public_key: bytes) -> NodeId:
    """Name the holder of an Ed25519 public key (32 raw bytes)."""
    return NodeId(hashlib.sha256(public_key).digest())


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether an Ed25519 signature holds; malformed keys and signatures do not.

    Verdicts on short messages are remembered: a node's report comes by gossip and again in every
    transcript that uses it.
    """
    if len(message) <= REMEMBERED_BYTES:
        return _verify_remembered(public_key, signature, message)
    return _verify(public_key, signature, message)


def _verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    if len(public_key) != ID_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


_verify_remembered = lru_cache(maxsize=8192)(_verify)


def forget_verdicts() -> None:
    """Forget all remembered verdicts, so that a benchmark can time them again."""
    _verify_remembered.cache_clear()


@dataclass(frozen=True)
class Identity:
    """An Ed25519 key pair with what derives from it. Never printed, never sent.

    Args:
        seed: the 32-byte Ed25519 private seed.

    Example:
        >>> identity = Identity(bytes(32))
        >>> identity.node_id.hex()[:8]
        '139e3940'
    """

    seed: bytes = field(repr=False)
    _private: Ed25519PrivateKey = field(init=False, repr=False, compare=False)
    public_key: bytes = field(init=False)
    node_id: NodeId = field(init=False)

    def __post_init__(self) -> None:
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        public_key = private.public_key().public_bytes_raw()
        object.__setattr__(self, "_private", private)
        object.__setattr__(self, "public_key", public_key)
        object.__setattr__(self, "node_id", compute_node_id(public_key))

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The signing key, for the TLS layer that signs certificates with it."""
        return self._private

    def sign(self, message: bytes) -> bytes:
        """Sign with Ed25519 (deterministic, RFC 8032)."""
        return self._private.sign(message)

    def derive_secret(self, purpose: str) -> bytes:
        """Derive a 32-byte secret of this identity for one purpose, never the key itself."""
        return compute_hash(b"iemas derived secret", purpose.encode(), self.seed)

    def derive_hpke_key(self) -> X25519PrivateKey:
        """Derive the key that sealed shares for this node are encrypted to."""
        return X25519PrivateKey.from_private_bytes(self.derive_secret("hpke"))
