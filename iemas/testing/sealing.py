"""HPKE with a chosen ephemeral key, so that a simulated market repeats itself byte for byte.

RFC 9180 base mode for DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305: what
`iemas.core.sealing` uses. Never outside tests: an ephemeral key must be fresh and random.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

_KEM_SUITE = b"KEM" + (0x0020).to_bytes(2, "big")
_HPKE_SUITE = b"HPKE" + b"".join(part.to_bytes(2, "big") for part in (0x0020, 0x0001, 0x0003))


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, hashlib.sha256)


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    # One block of HKDF-Expand gives 32 bytes, which is all that is asked for here.
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, labeled + b"\x01", hashlib.sha256)[:length]


def seal_share_with(
    ephemeral: X25519PrivateKey, share: bytes, hpke_public_key: bytes, context: bytes
) -> bytes:
    """Seal a share like `iemas.core.sealing.seal_share`, with this ephemeral key."""
    enc = ephemeral.public_key().public_bytes_raw()
    dh = ephemeral.exchange(X25519PublicKey.from_public_bytes(hpke_public_key))
    prk = _extract(_KEM_SUITE, b"", b"eae_prk", dh)
    shared = _expand(_KEM_SUITE, prk, b"shared_secret", enc + hpke_public_key, 32)
    psk_id_hash = _extract(_HPKE_SUITE, b"", b"psk_id_hash", b"")
    info_hash = _extract(_HPKE_SUITE, b"", b"info_hash", context)
    schedule = b"\x00" + psk_id_hash + info_hash
    secret = _extract(_HPKE_SUITE, shared, b"secret", b"")
    key = _expand(_HPKE_SUITE, secret, b"key", schedule, 32)
    nonce = _expand(_HPKE_SUITE, secret, b"base_nonce", schedule, 12)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, share, b"")
