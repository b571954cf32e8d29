"""Sealing bids: a key split between auctioneer and witness, so that neither opens a bid alone.

A bid is encrypted with ChaCha20-Poly1305 under ``k = k_A XOR k_W``. Each share is sealed to its
holder with HPKE (RFC 9180, base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305), bound to the
round's context, and its hash is public, so that a holder cannot release another share.
Source: design §4 step 2, §6.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.errors import InvalidBidError
from iemas.core.types import Hash

SHARE_BYTES = 32
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
# A key encrypts exactly two messages, told apart by these nonces, and is never used again.
_BID_NONCE = b"bid\0\0\0\0\0\0\0\0\0"
_CHAIN_NONCE = b"chain\0\0\0\0\0\0\0"


def compute_bid_context(  # the fields of a SealedBid that tell it from every other one
    chain_id: str, *, hub: str, term: int, account: bytes, channel: int, nonce: int
) -> bytes:
    """Bind ciphertexts and sealed shares to one bid of one account in one term of one market."""
    return encode_canonical(("iemas bid", chain_id, hub, term, account, channel, nonce))


def combine_shares(first: bytes, second: bytes) -> bytes:
    """XOR two 32-byte shares to the bid's key."""
    return bytes(a ^ b for a, b in zip(first, second, strict=True))


def compute_share_hash(share: bytes) -> Hash:
    """Commit to a share without telling it (it has 256 bits of entropy)."""
    return compute_hash(b"iemas key share", share)


def seal_share(share: bytes, hpke_public_key: bytes, context: bytes) -> bytes:
    """Seal a share to the holder of an X25519 key (32 raw bytes), bound to `context`."""
    return _SUITE.encrypt(share, X25519PublicKey.from_public_bytes(hpke_public_key), context)


def open_share(
    sealed: bytes, private_key: X25519PrivateKey, context: bytes, expected_hash: bytes
) -> bytes:
    """Open a sealed share and check it against its public hash.

    Raises: InvalidBidError if it does not open or is not the share that was committed to.
    """
    try:
        share = _SUITE.decrypt(sealed, private_key, context)
    except (InvalidTag, ValueError) as error:
        raise InvalidBidError("a sealed key share does not open") from error
    if len(share) != SHARE_BYTES or compute_share_hash(share) != expected_hash:
        raise InvalidBidError("a sealed key share is not the one committed to")
    return share


def encrypt_bid(key: bytes, bid: bytes, context: bytes) -> bytes:
    """Encrypt a bid under its one-time key."""
    return ChaCha20Poly1305(key).encrypt(_BID_NONCE, bid, context)


def decrypt_bid(key: bytes, ciphertext: bytes, context: bytes) -> bytes:
    """Decrypt a bid. Raises: InvalidBidError if key, context or ciphertext do not belong."""
    return _decrypt(key, _BID_NONCE, ciphertext, context)


def encrypt_chain(key: bytes, chain: bytes, context: bytes) -> bytes:
    """Encrypt a prompt's block-hash chain under the bid's key."""
    return ChaCha20Poly1305(key).encrypt(_CHAIN_NONCE, chain, context)


def decrypt_chain(key: bytes, ciphertext: bytes, context: bytes) -> bytes:
    """Decrypt a block-hash chain. Raises: InvalidBidError as `decrypt_bid`."""
    return _decrypt(key, _CHAIN_NONCE, ciphertext, context)


def _decrypt(key: bytes, nonce: bytes, ciphertext: bytes, context: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, context)
    except InvalidTag as error:
        raise InvalidBidError("a bid does not decrypt under its key shares") from error
