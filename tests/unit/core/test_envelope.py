"""Signed envelopes: what a signature covers, and what it does not."""

import pytest

from iemas import wire
from iemas.core.auction import BidAcknowledgement
from iemas.core.encoding import compute_hash, compute_signing_bytes
from iemas.core.envelope import Envelope, Signed, get_domain, verify_signed
from iemas.core.errors import InvalidSignatureError
from iemas.core.gossip import Probe, ProbeAcknowledgement
from iemas.core.identity import Identity
from iemas.core.types import HubId

SIGNER = Identity(bytes(32))
CHAIN = "market-1"
SIGNED = wire.WireSigner(SIGNER, CHAIN).sign(BidAcknowledgement(HubId("hub"), 1, bytes(32)))


def test_what_was_signed_verifies() -> None:
    verify_signed(SIGNED, CHAIN)
    verify_signed(SIGNED, CHAIN, expected_signer=SIGNER.node_id)
    assert SIGNED.signer_id == SIGNER.node_id


def test_another_chain_is_refused() -> None:
    with pytest.raises(InvalidSignatureError) as caught:
        verify_signed(SIGNED, "market-2")
    assert caught.value.operands["domain"] == "iemas.v1.BidAcknowledgement"


def test_another_signer_is_refused() -> None:
    other = Identity(b"1" * 32)
    with pytest.raises(InvalidSignatureError, match="is signed by"):
        verify_signed(SIGNED, CHAIN, expected_signer=other.node_id)
    envelope = Envelope(SIGNED.envelope.payload, other.public_key, SIGNED.envelope.signature)
    with pytest.raises(InvalidSignatureError, match="does not hold"):
        verify_signed(Signed(SIGNED.message, envelope), CHAIN)


def test_another_payload_is_refused() -> None:
    envelope = Envelope(
        SIGNED.envelope.payload + b"\x18\x01", SIGNER.public_key, SIGNED.envelope.signature
    )
    with pytest.raises(InvalidSignatureError):
        verify_signed(Signed(SIGNED.message, envelope), CHAIN)


def test_a_signature_over_one_kind_of_message_is_none_over_another() -> None:
    """Both have the same bytes; only the domain tells them apart."""
    probe = wire.WireSigner(SIGNER, CHAIN).sign(Probe(7))
    assert probe.envelope.payload == wire.encode(ProbeAcknowledgement(7))
    answer = wire.open_envelope(ProbeAcknowledgement, probe.envelope)
    with pytest.raises(InvalidSignatureError):
        verify_signed(answer, CHAIN)


def test_the_signature_covers_the_bytes_that_travelled() -> None:
    """An encoding that our own encoder would not make is as good, if it is what was signed."""
    probe = Probe(1)
    odd = b"\x08\x05\x08\x01"  # sequence twice: the last one counts
    assert wire.decode(Probe, odd) == probe
    assert wire.encode(probe) != odd
    signature = SIGNER.sign(compute_signing_bytes(get_domain(probe), CHAIN, odd))
    received = wire.open_envelope(Probe, Envelope(odd, SIGNER.public_key, signature))
    verify_signed(received, CHAIN)
    assert wire.decode_signed(Probe, wire.encode_signed(received)).envelope.payload == odd


def test_the_hash_names_the_statement_not_the_signature() -> None:
    envelope = SIGNED.envelope
    other_signature = Envelope(envelope.payload, envelope.signer, bytes(64))
    other_signer = Envelope(envelope.payload, bytes(32), envelope.signature)
    assert other_signature.hash == envelope.hash == SIGNED.hash
    assert other_signer.hash != envelope.hash


def test_signing_bytes_and_hashes_do_not_depend_on_how_parts_are_split() -> None:
    assert compute_signing_bytes("ab", "c", b"") != compute_signing_bytes("a", "bc", b"")
    assert compute_signing_bytes("a", "b", b"c") != compute_signing_bytes("a", "bc", b"")
    assert compute_hash(b"ab", b"c") != compute_hash(b"a", b"bc")
    assert compute_hash(b"") != compute_hash()
