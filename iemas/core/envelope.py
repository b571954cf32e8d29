"""Signed envelopes: payload bytes, signer, signature, and the message that they decode to.

A signature covers ``domain ‖ chain id ‖ payload`` where payload is the bytes that travelled, so
no re-encoding can change what was signed. The domain is the message type's name: a signature over
one kind of message is never one over another. Source: design §8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from iemas.core.encoding import compute_hash, compute_signing_bytes
from iemas.core.errors import InvalidSignatureError
from iemas.core.identity import compute_node_id, verify_signature
from iemas.core.types import Hash, NodeId, short_id

MessageT = TypeVar("MessageT", covariant=True)  # noqa: PLC0105
AnyT = TypeVar("AnyT")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What travels: the payload's exact bytes, the signer's public key, its signature."""

    payload: bytes
    signer: bytes
    signature: bytes

    @property
    def hash(self) -> Hash:
        """Name the signed statement: what was said and by whom, whatever the signature."""
        return compute_hash(self.payload, self.signer)


@dataclass(frozen=True, slots=True)
class Signed(Generic[MessageT]):
    """A message together with the envelope that it was decoded from.

    Decoding does not check the signature: `verify_signed` does, before anything else looks at
    the message. `iemas.wire` is the only place that pairs the two.
    """

    message: MessageT
    envelope: Envelope

    @property
    def signer_id(self) -> NodeId:
        """Node or account id of the signer."""
        return compute_node_id(self.envelope.signer)

    @property
    def hash(self) -> Hash:
        """Name the signed statement; see `Envelope.hash`."""
        return self.envelope.hash


class Signer(Protocol):
    """Encodes and signs messages: how a pure state machine gets its statements signed."""

    @property
    def node_id(self) -> NodeId:
        """Id of the signing key."""

    def sign(self, message: AnyT) -> Signed[AnyT]:
        """Encode the message once and sign those bytes."""


def get_domain(message: Any) -> str:
    """Name the signature domain of a message: its type's name under a fixed prefix."""
    return f"iemas.v1.{type(message).__name__}"


def verify_signed(
    signed: Signed[object], chain_id: str, *, expected_signer: bytes | None = None
) -> None:
    """Check the signature and, if given, that the signer's id is the expected one.

    Raises: InvalidSignatureError with `signer_id` and `domain`.
    """
    domain = get_domain(signed.message)
    envelope = signed.envelope
    signer_id = signed.signer_id
    if expected_signer is not None and signer_id != expected_signer:
        raise InvalidSignatureError(
            f"{domain} is signed by {short_id(signer_id)}, not by {short_id(expected_signer)}",
            domain=domain,
            signer_id=signer_id,
        )
    message = compute_signing_bytes(domain, chain_id, envelope.payload)
    if not verify_signature(envelope.signer, envelope.signature, message):
        raise InvalidSignatureError(
            f"the signature on {domain} by {short_id(signer_id)} does not hold",
            domain=domain,
            signer_id=signer_id,
        )
