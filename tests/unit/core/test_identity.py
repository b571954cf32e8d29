"""Ed25519 identities."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iemas.core.identity import Identity, compute_node_id, verify_signature

# Source: RFC 8032 §7.1, tests 1 and 2: seed, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e3970"
            "1cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613"
            "d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
]


@pytest.mark.parametrize(("seed", "public_key", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_the_rfc(
    seed: str, public_key: str, message: str, signature: str
) -> None:
    identity = Identity(bytes.fromhex(seed))
    assert identity.public_key.hex() == public_key
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    assert identity.node_id == hashlib.sha256(bytes.fromhex(public_key)).digest()


@given(message=st.binary(max_size=64), position=st.integers(0, 511))
def test_a_changed_signature_does_not_hold(message: bytes, position: int) -> None:
    identity = Identity(bytes(32))
    signature = bytearray(identity.sign(message))
    assert verify_signature(identity.public_key, bytes(signature), message)
    signature[position // 8] ^= 1 << position % 8
    assert not verify_signature(identity.public_key, bytes(signature), message)


@pytest.mark.parametrize("public_key", [b"", b"short", bytes(33), b"\xff" * 32])
def test_a_malformed_key_verifies_nothing(public_key: bytes) -> None:
    assert not verify_signature(public_key, bytes(64), b"message")


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65)])
def test_a_malformed_signature_does_not_hold(signature: bytes) -> None:
    assert not verify_signature(Identity(bytes(32)).public_key, signature, b"message")


def test_the_seed_is_never_shown() -> None:
    identity = Identity(b"secret seed of 32 bytes to be sure"[:32])
    assert "secret" not in repr(identity)
    assert identity.seed.hex() not in repr(identity)


def test_derived_secrets_differ_by_purpose_and_key() -> None:
    first, second = Identity(bytes(32)), Identity(b"1" * 32)
    secrets = {first.derive_secret("a"), first.derive_secret("b"), second.derive_secret("a")}
    assert len(secrets) == 3
    assert first.seed not in secrets
    assert first.derive_secret("a") == Identity(bytes(32)).derive_secret("a")
    assert (
        first.derive_hpke_key().private_bytes_raw() != second.derive_hpke_key().private_bytes_raw()
    )


def test_the_node_id_names_the_public_key() -> None:
    identity = Identity(bytes(32))
    assert compute_node_id(identity.public_key) == identity.node_id
