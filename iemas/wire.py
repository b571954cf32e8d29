"""The wire codec: protobuf messages to the core's dataclasses and back.

Nothing below this module sees a generated message. A dataclass and its protobuf message have the
same name and the same field names, so one generic mapping serves them all; what it does with a
field follows from the field's annotation: integers, strings, bytes, booleans, enums, nested
messages, tuples (repeated), unions (oneof; with None, optional), and `Signed[T]` (an `Envelope`
whose payload is an encoded T). `tests/unit/wire` checks that every dataclass and its message agree
field by field.

Decoding never checks signatures (`iemas.core.envelope.verify_signed` does) and never accepts a
value outside its dataclass's documented range.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, EncodeError, Message

from iemas.consensus import messages as consensus
from iemas.consensus import voting
from iemas.core import auction, execution, gossip, merkle, params, report, vote
from iemas.core import envelope as envelopes
from iemas.core import types as core_types
from iemas.core.encoding import compute_signing_bytes
from iemas.core.envelope import Envelope, Signed, get_domain
from iemas.core.errors import IemasError, MalformedMessageError
from iemas.core.identity import Identity
from iemas.core.types import NodeId
from iemas.ledger import header, history, proofs, snapshot, transaction
from iemas.v1 import (
    auction_pb2,
    consensus_pb2,
    execution_pb2,
    gossip_pb2,
    ledger_pb2,
    peer_service_pb2,
    report_pb2,
    types_pb2,
    vote_pb2,
)

T = TypeVar("T")

PeerMessage = (
    gossip.ReportPush
    | gossip.ExchangeRequest
    | gossip.ExchangeResponse
    | gossip.Probe
    | gossip.ProbeAcknowledgement
    | consensus.SubmitTransaction
    | consensus.BlockAnnouncement
    | consensus.BlocksRequest
    | consensus.BlocksResponse
    | consensus.ProposalNotice
    | consensus.VoteNotice
    | consensus.ConsensusStatus
    | consensus.SnapshotRequest
    | consensus.SnapshotOffer
    | consensus.LightBlockRequest
    | consensus.LightBlockResponse
    | consensus.ChunksRequest
    | consensus.ChunksResponse
    | consensus.RecallRequest
    | consensus.RecallResponse
    | auction.CountersignRequest
    | auction.CountersignResponse
    | auction.CloseNotice
    | auction.ReleaseNotice
    | auction.TranscriptNotice
    | auction.ForwardedBid
    | auction.ForwardedAnswer
    | auction.LeaseRequest
    | auction.LeaseGrant
    | auction.LeaseRelease
    | execution.ReceiptNotice
    | auction.ModelNotice
    | auction.ModelRequest
    | auction.ModelResponse
)
"""What members say to each other; `DeliverRequest` is its protobuf form."""

_CORE_MODULES = (
    core_types,
    envelopes,
    merkle,
    report,
    auction,
    execution,
    gossip,
    params,
    vote,
    transaction,
    header,
    history,
    proofs,
    snapshot,
    voting,
    consensus,
)
_PROTO_MODULES = (
    types_pb2,
    report_pb2,
    auction_pb2,
    execution_pb2,
    gossip_pb2,
    vote_pb2,
    ledger_pb2,
    consensus_pb2,
)


class _Field(NamedTuple):
    """How one field travels."""

    name: str
    to_proto: Callable[[Any, Any], None]  # (protobuf message, value): sets it
    from_proto: Callable[[Any], Any]  # protobuf message: gives the value


def _find_message_class(cls: type) -> type[Message]:
    for module in _PROTO_MODULES:
        found = getattr(module, cls.__name__, None)
        if found is not None:
            return typing.cast(type[Message], found)
    raise LookupError(f"no protobuf message is called {cls.__name__}")


def _strip_newtype(annotation: Any) -> Any:
    while isinstance(annotation, typing.NewType):
        annotation = annotation.__supertype__
    return annotation


def _scalar(annotation: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]] | None:
    """Give (encode, decode) of an element that is no message, or None if it is one."""
    if isinstance(annotation, type) and issubclass(annotation, IntEnum):
        return int, annotation
    if annotation in (int, str, bytes, bool):
        return (lambda value: value), (lambda value: value)
    return None


def _element(annotation: Any) -> tuple[Callable[[Any], Message], Callable[[Any], Any]]:
    """Give (to protobuf, from protobuf) of an element that is a message or an envelope."""
    if typing.get_origin(annotation) is Signed:
        (inner,) = typing.get_args(annotation)
        return (
            lambda signed: to_proto(signed.envelope),
            lambda proto: open_envelope(inner, from_proto(Envelope, proto)),
        )
    return to_proto, lambda proto: from_proto(annotation, proto)


def _plan_field(name: str, annotation: Any) -> _Field:
    annotation = _strip_newtype(annotation)
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return _plan_repeated(name, _strip_newtype(typing.get_args(annotation)[0]))
    if origin in (types.UnionType, typing.Union):
        members = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        if len(members) > 1:
            return _plan_oneof(name, members)
        member = _strip_newtype(members[0])
        if _scalar(member) is not None:
            return _plan_optional_scalar(name, member)
        return _plan_message(name, member, optional=True)
    scalar = _scalar(annotation)
    if scalar is None:
        return _plan_message(name, annotation, optional=False)
    encode, decode = scalar
    return _Field(
        name,
        lambda proto, value: setattr(proto, name, encode(value)),
        lambda proto: decode(getattr(proto, name)),
    )


def _plan_optional_scalar(name: str, annotation: Any) -> _Field:
    """Match a scalar or None to a field that is `optional` in its proto."""
    scalar = _scalar(annotation)
    if scalar is None:
        raise TypeError(f"{name} is no scalar")
    encode, decode = scalar

    def set_value(proto: Any, value: Any) -> None:
        if value is not None:
            setattr(proto, name, encode(value))

    return _Field(
        name,
        set_value,
        lambda proto: decode(getattr(proto, name)) if proto.HasField(name) else None,
    )


def _plan_repeated(name: str, annotation: Any) -> _Field:
    scalar = _scalar(annotation)
    encode, decode = scalar if scalar is not None else _element(annotation)
    return _Field(
        name,
        lambda proto, value: getattr(proto, name).extend([encode(item) for item in value]),
        lambda proto: tuple([decode(item) for item in getattr(proto, name)]),
    )


def _plan_message(name: str, annotation: Any, *, optional: bool) -> _Field:
    encode, decode = _element(annotation)

    def set_value(proto: Any, value: Any) -> None:
        if value is not None:
            getattr(proto, name).CopyFrom(encode(value))

    def get_value(proto: Any) -> Any:
        if proto.HasField(name):
            return decode(getattr(proto, name))
        if optional:
            return None
        raise MalformedMessageError(f"the field {name} is missing", field=name)

    return _Field(name, set_value, get_value)


def _plan_oneof(name: str, members: list[type]) -> _Field:
    """Match a union's members to the oneof's fields by message name."""
    field_of: dict[type, str] = {}
    class_of: dict[str, type] = {}

    def prepare(descriptor: Any) -> None:
        if not field_of:
            by_name = {member.__name__: member for member in members}
            for field in descriptor.oneofs_by_name[name].fields:
                member = by_name[field.message_type.name]
                field_of[member] = field.name
                class_of[field.name] = member

    def set_value(proto: Any, value: Any) -> None:
        prepare(proto.DESCRIPTOR)
        getattr(proto, field_of[type(value)]).CopyFrom(to_proto(value))

    def get_value(proto: Any) -> Any:
        prepare(proto.DESCRIPTOR)
        chosen = proto.WhichOneof(name)
        if chosen is None:
            raise MalformedMessageError(f"nothing is set in {name}", field=name)
        return from_proto(class_of[chosen], getattr(proto, chosen))

    return _Field(name, set_value, get_value)


_plans: dict[type, tuple[type[Message], tuple[_Field, ...]]] = {}


def _get_plan(cls: type) -> tuple[type[Message], tuple[_Field, ...]]:
    plan = _plans.get(cls)
    if plan is None:
        hints = typing.get_type_hints(cls)
        fields = tuple(_plan_field(f.name, hints[f.name]) for f in dataclasses.fields(cls))
        plan = _plans[cls] = (_find_message_class(cls), fields)
    return plan


def to_proto(value: Any) -> Any:
    """Convert a core dataclass to its protobuf message.

    Raises: MalformedMessageError if a value does not fit its field.
    """
    message_class, fields = _get_plan(type(value))
    proto = message_class()
    try:
        for field in fields:
            field.to_proto(proto, getattr(value, field.name))
    except (ValueError, TypeError) as error:
        raise MalformedMessageError(f"{type(value).__name__} cannot travel: {error}") from error
    return proto


def from_proto(cls: type[T], proto: Any) -> T:
    """Convert a protobuf message to its core dataclass.

    Raises: MalformedMessageError if a field is missing or outside its range.
    """
    _, fields = _get_plan(cls)
    try:
        return cls(*[field.from_proto(proto) for field in fields])
    except IemasError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedMessageError(f"{cls.__name__} is malformed: {error}") from error


def encode(value: Any) -> bytes:
    """Encode a core dataclass to bytes. Raises: MalformedMessageError."""
    try:
        return typing.cast(bytes, to_proto(value).SerializeToString(deterministic=True))
    except EncodeError as error:
        raise MalformedMessageError(f"{type(value).__name__} cannot travel: {error}") from error


def decode(cls: type[T], data: bytes) -> T:
    """Decode bytes to a core dataclass. Raises: MalformedMessageError."""
    message_class, _ = _get_plan(cls)
    try:
        proto = message_class.FromString(data)
    except DecodeError as error:
        raise MalformedMessageError(f"the bytes are no {cls.__name__}") from error
    return from_proto(cls, proto)


def open_envelope(cls: type[T], envelope: Envelope) -> Signed[T]:
    """Decode an envelope's payload as `cls`, keeping the bytes that the signature covers.

    Raises: MalformedMessageError. The signature is not checked here.
    """
    return Signed(decode(cls, envelope.payload), envelope)


def decode_signed(cls: type[T], data: bytes) -> Signed[T]:
    """Decode the bytes of an envelope that holds a `cls`. Raises: MalformedMessageError."""
    return open_envelope(cls, decode(Envelope, data))


def encode_signed(signed: Signed[Any]) -> bytes:
    """Encode the envelope of a signed message, byte for byte as it was signed."""
    return encode(signed.envelope)


def _map_peer_messages() -> tuple[dict[type, str], dict[str, type]]:
    by_name = {member.__name__: member for member in typing.get_args(PeerMessage)}
    descriptor = peer_service_pb2.DeliverRequest.DESCRIPTOR.oneofs_by_name["message"]
    class_of = {
        field.name: by_name[field.message_type.name]
        for field in descriptor.fields
        if field.message_type is not None
    }
    return {cls: name for name, cls in class_of.items()}, class_of


_PEER_FIELD_OF, _PEER_CLASS_OF = _map_peer_messages()


def to_deliver_request(message: PeerMessage) -> peer_service_pb2.DeliverRequest:
    """Wrap a peer message for its stream. Raises: MalformedMessageError."""
    request = peer_service_pb2.DeliverRequest()
    getattr(request, _PEER_FIELD_OF[type(message)]).CopyFrom(to_proto(message))
    return request


def from_deliver_request(request: peer_service_pb2.DeliverRequest) -> PeerMessage:
    """Unwrap what a peer's stream delivered. Raises: MalformedMessageError."""
    chosen = request.WhichOneof("message")
    if chosen is None:
        raise MalformedMessageError("the peer message is empty or of a kind unknown here")
    message: PeerMessage = from_proto(_PEER_CLASS_OF[chosen], getattr(request, chosen))
    return message


class WireSigner:
    """Signs messages for one identity on one chain (`iemas.core.envelope.Signer`)."""

    def __init__(self, identity: Identity, chain_id: str) -> None:
        self._identity = identity
        self._chain_id = chain_id

    @property
    def node_id(self) -> NodeId:
        """Id of the signing key."""
        return self._identity.node_id

    def sign(self, message: T) -> Signed[T]:
        """Encode the message once and sign those bytes."""
        payload = encode(message)
        signing_bytes = compute_signing_bytes(get_domain(message), self._chain_id, payload)
        signature = self._identity.sign(signing_bytes)
        return Signed(message, Envelope(payload, self._identity.public_key, signature))
