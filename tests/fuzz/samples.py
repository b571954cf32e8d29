"""Valid messages of every class, drawn from a seeded generator: what mutations start from."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from random import Random
from typing import Any

from iemas import wire
from iemas.consensus.messages import ConsensusStatus
from iemas.consensus.voting import DoubleVote, Proposal
from iemas.core.auction import N_SCENARIOS, QosModel, Scenario, Transcript
from iemas.core.envelope import Envelope, Signed
from iemas.core.errors import MalformedMessageError
from iemas.core.execution import Receipt
from iemas.core.gossip import SignedReport
from iemas.core.identity import Identity
from iemas.core.merkle import InclusionProof
from iemas.core.params import CLEARING_MODES, Genesis, MarketParams
from iemas.core.report import CacheDigest
from iemas.core.types import ID_BYTES, NodeId
from iemas.core.vote import Vote, VoteKind

Values = dict[str, Any]

SIGNER = Identity(b"f" * 32)
ATTEMPTS = 200


def list_message_classes() -> list[type]:
    """List the dataclasses that the wire codec maps, but `Signed`, which is generic."""
    found = {
        cls
        for module in wire._CORE_MODULES
        for cls in vars(module).values()
        if isinstance(cls, type)
        and dataclasses.is_dataclass(cls)
        and cls.__module__ == module.__name__
    }
    return sorted(found - {Signed}, key=lambda cls: cls.__name__)


def list_signed_classes(classes: list[type]) -> list[type]:
    """List the classes that travel in envelopes."""
    found = set()
    for cls in classes:
        for hint in typing.get_type_hints(cls).values():
            for part in (hint, *typing.get_args(hint)):
                if typing.get_origin(part) is Signed:
                    found.add(typing.get_args(part)[0])
    return sorted(found, key=lambda cls: cls.__name__)


def make_message(cls: type, random: Random, *, chain_id: str = "fuzz") -> Any:
    """Make a valid message of a class. Raises: LookupError if no attempt was valid."""
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            return cls(**_make_values(cls, random, attempt, chain_id))
        except MalformedMessageError as error:
            failure = error
    raise LookupError(f"no valid {cls.__name__} was found: {failure}")


def _make_values(cls: type, random: Random, attempt: int, chain_id: str) -> dict[str, Any]:
    """Draw a value a field; some classes have rules that chance would hardly keep."""
    if cls is SignedReport:
        wrapped = make_wrapped(random, chain_id)
        return {field.name: getattr(wrapped, field.name) for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {
        field.name: _make_value(hints[field.name], random, attempt, chain_id)
        for field in dataclasses.fields(cls)
    }
    correct = _CORRECTIONS.get(cls)
    return values if correct is None else {**values, **correct(values, random, chain_id)}


def _correct_model(values: Values, random: Random, chain_id: str) -> Values:
    scenarios = tuple(Scenario(random.randint(1, 10**7), 0, 0) for _ in range(N_SCENARIOS))
    prior = dataclasses.replace(values["prior"], provider=NodeId(bytes(ID_BYTES)))
    rows = [
        dataclasses.replace(row, provider=NodeId(bytes([n]) * ID_BYTES), samples=n)
        for n, row in enumerate(values["rows"], start=1)
    ]
    return {"scenarios": scenarios, "prior": prior, "rows": tuple(rows)}


def _correct_transcript(values: Values, random: Random, chain_id: str) -> Values:
    counts = tuple(range(len(values["providers"])))
    tasks = (dataclasses.replace(task, matched_blocks=counts) for task in values["tasks"])
    return {"tasks": tuple(tasks)}


def _correct_params(values: Values, random: Random, chain_id: str) -> Values:
    return {
        "mode": random.choice(CLEARING_MODES),
        "evidence_window_ms": 50,
        "unbonding_ms": 500,
        "ask_reveal_ms": 50,
        "ask_epoch_ms": 500,
    }


def _correct_digest(values: Values, random: Random, chain_id: str) -> Values:
    keys = sorted(random.sample(range(1000), 5))
    return {"blocks": b"".join(key.to_bytes(8, "big") for key in keys)}


def _correct_double_vote(values: Values, random: Random, chain_id: str) -> Values:
    vote = values["first"].message
    twins = [dataclasses.replace(vote, block_hash=value) for value in (None, b"b" * 32)]
    return {"first": _sign(twins[0], chain_id), "second": _sign(twins[1], chain_id)}


_CORRECTIONS: dict[type, Callable[[Values, Random, str], Values]] = {
    Transcript: _correct_transcript,
    QosModel: _correct_model,
    MarketParams: _correct_params,
    CacheDigest: _correct_digest,
    DoubleVote: _correct_double_vote,
    InclusionProof: lambda values, random, _: {"index": random.randint(0, 9), "size": 50},
    Genesis: lambda *_: {"accounts": ()},
    Proposal: lambda *_: {"valid_round": -1},
    Vote: lambda values, random, _: {"kind": random.choice(list(VoteKind)[1:])},
    ConsensusStatus: lambda values, random, _: {"held": bytes(8 * random.randint(0, 4))},
    Receipt: lambda *_: {"prompt_tokens": 100, "cached_tokens": 10, "billed_cached_tokens": 20},
}


def make_wrapped(random: Random, chain_id: str) -> SignedReport:
    """Wrap one of the reports that gossip carries."""
    digest = make_message(CacheDigest, random, chain_id=chain_id)
    return SignedReport.wrap(_sign(digest, chain_id))


def _sign(message: Any, chain_id: str) -> Signed[Any]:
    return wire.WireSigner(SIGNER, chain_id).sign(message)


def _make_value(annotation: Any, random: Random, attempt: int, chain_id: str) -> Any:
    annotation = wire._strip_newtype(annotation)
    origin = typing.get_origin(annotation)
    if origin is Signed:
        (inner,) = typing.get_args(annotation)
        return _sign(make_message(inner, random, chain_id=chain_id), chain_id)
    if origin is tuple:
        inner = typing.get_args(annotation)[0]
        count = random.randint(1, 2)
        return tuple(_make_value(inner, random, attempt, chain_id) for _ in range(count))
    if origin in {types.UnionType, typing.Union}:
        member = random.choice(typing.get_args(annotation))
        return None if member is types.NoneType else _make_value(member, random, attempt, chain_id)
    if isinstance(annotation, type) and issubclass(annotation, IntEnum):
        return random.choice([member for member in annotation if member])
    if annotation is bool:
        return random.random() < 0.5
    if annotation is int:
        return random.randint(1, 2**32 if attempt == 0 else 100)
    if annotation is bytes:
        return SIGNER.public_key if attempt % 2 else random.randbytes(32)
    if annotation is str:
        return random.choice(("model", "fuzz", "a", "127.0.0.1:7470"))
    if annotation is Envelope:
        return Envelope(random.randbytes(9), SIGNER.public_key, random.randbytes(64))
    return make_message(annotation, random, chain_id=chain_id)
