"""What a step of a protocol component gives back: effects as values.

Every component has the shape ``step(input, now_ms=…) -> Ready``. The one driver (`node.daemon`;
`iemas.testing` in simulations) carries the effects out, in this order: persist (and fsync), send,
then arm one timer. Source: docs/ARCHITECTURE.md; etcd raft's `Ready`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from iemas.core.types import NodeId


class RecordKind(StrEnum):
    """The tables of a node's store."""

    BLOCK = "block"
    RESULTS = "results"
    TRANSACTION = "transaction"
    SETTLEMENT = "settlement"
    SIGNED = "signed"
    VALID = "valid"
    SNAPSHOT = "snapshot"
    CHUNK = "chunk"
    TRANSCRIPT = "transcript"
    COUNTERSIGNED_BID = "countersigned_bid"
    RELEASED_CLOSE = "released_close"
    CLOSED_ROUND = "closed_round"
    UNSETTLED = "unsettled"
    SEALED_ASK = "sealed_ask"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Record:
    """One durable write: a message (a dataclass or `Signed`) under a key; None deletes it.

    Keys sort as bytes; numbers in keys are 8 bytes big-endian.
    """

    kind: RecordKind
    key: bytes
    value: object | None


@dataclass(frozen=True, slots=True)
class Send:
    """One message to a peer."""

    to: NodeId
    message: object


@dataclass(frozen=True, slots=True)
class Answer:
    """One message to a bidder, on the bid stream that its bid came in on."""

    stream: int
    bid_hash: bytes
    message: object


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a log line and a count: a snake_case name, ids and numbers. No prompts."""

    name: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a peer's was refused; the node counts and scores it (`iemas.core.peer_scores`).

    `peer` is who has to answer for it: mostly the sender, who must check what it passes on.
    """

    peer: NodeId
    error: Exception
    message: str = ""
    """The kind of message, if it is known."""

    @property
    def name(self) -> str:
        """The error's name, under which it is counted."""
        return type(self.error).__name__


@dataclass(frozen=True, slots=True)
class Ready:
    """Effects of one step: persist, then send and answer, then wait no longer than `wake_at_ms`."""

    persist: tuple[Record, ...] = ()
    send: tuple[Send, ...] = ()
    answers: tuple[Answer, ...] = ()
    events: tuple[Event, ...] = ()
    faults: tuple[Fault, ...] = ()
    wake_at_ms: int | None = None

    def __add__(self, other: Ready) -> Ready:
        wakes = [at for at in (self.wake_at_ms, other.wake_at_ms) if at is not None]
        return Ready(
            self.persist + other.persist,
            self.send + other.send,
            self.answers + other.answers,
            self.events + other.events,
            self.faults + other.faults,
            min(wakes) if wakes else None,
        )
