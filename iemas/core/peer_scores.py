"""Whom to stop listening to: every refused message of a peer costs points by its kind of fault.

Points run off with time; a peer that reaches the limit is cut off for a time that doubles with each
repetition, and then is heard again. What honest nodes send when messages cross costs next to
nothing, so that no honest peer is ever cut off; what no correct node can send costs much.

A pure state machine: docs/spec/membership.md §4 numbers its rules and says why each figure is what
it is. Source: design §13 (last row).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from iemas.core.errors import (
    ContradictoryReportError,
    FloodError,
    InvalidBlockError,
    InvalidSignatureError,
    MalformedMessageError,
    RemoteProtocolError,
    WrongSignerError,
)
from iemas.core.ready import Event, Fault
from iemas.core.types import NodeId, short_id

LIMIT: Final = 10_000
"""Points at which a peer is cut off."""

DECAY_PER_S: Final = 100
FIRST_CUT_MS: Final = 1_000
"""Shorter than it takes to be suspected and voted absent."""

LONGEST_CUT_MS: Final = 600_000
FORGIVEN_AFTER_MS: Final = 600_000
"""For every so long after it was heard again, a peer's next cut is half as long."""

MAX_RECORDS: Final = 10_000

CROSSING_POINTS: Final = 1
"""What honest nodes send now and then: late, repeated, of a state that this node has not yet."""

FLOOD_POINTS: Final = 250
FORGERY_POINTS: Final = 2_500

FORGERIES: Final = (
    InvalidSignatureError,
    WrongSignerError,
    ContradictoryReportError,
    MalformedMessageError,
    InvalidBlockError,
    RemoteProtocolError,
)
"""What no correct node sends or passes on: each can be told without this node's own state."""


def get_points(error: Exception) -> int:
    """Look up what a refused message costs."""
    if isinstance(error, FORGERIES):
        return FORGERY_POINTS
    return FLOOD_POINTS if isinstance(error, FloodError) else CROSSING_POINTS


@dataclass(slots=True)
class PeerRecord:
    """What a peer did. `refused` counts by name of the error, `cuts` how often it was cut off."""

    refused: Counter[str] = field(default_factory=Counter)
    points: int = 0
    counted_at_ms: int = 0
    cuts: int = 0
    severity: int = 0
    """Of the cuts, those that are not forgiven."""
    cut_until_ms: int | None = None
    heard_again_at_ms: int = 0


class PeerScores:
    """The records of all peers that ever had a message refused."""

    def __init__(self) -> None:
        self._records: dict[NodeId, PeerRecord] = {}
        self.version = 0
        """Counts changes of the set of those that are cut off."""

    # --- reads -----------------------------------------------------------------------------------

    @property
    def cut_off(self) -> frozenset[NodeId]:
        """The peers that are cut off."""
        return frozenset(n for n, record in self._records.items() if record.cut_until_ms)

    def get_record(self, peer: NodeId) -> PeerRecord | None:
        """Give what a peer did; None if nothing of it was ever refused."""
        return self._records.get(peer)

    def get_records(self) -> list[tuple[NodeId, PeerRecord]]:
        """Give all records, the worst peers first."""
        return sorted(
            self._records.items(),
            key=lambda item: (-item[1].cuts, -item[1].points, item[0]),
        )

    # --- the step --------------------------------------------------------------------------------

    def charge(
        self, faults: Iterable[Fault], *, may_cut: Callable[[NodeId], bool], now_ms: int
    ) -> tuple[Event, ...]:
        """Count what was refused of one input: each peer pays for its worst fault in it.

        `may_cut` tells whether this node can do without a peer (P7).
        """
        worst: dict[NodeId, Fault] = {}
        for fault in faults:
            self._get_record(fault.peer).refused[fault.name] += 1
            before = worst.get(fault.peer)
            if before is None or get_points(fault.error) > get_points(before.error):
                worst[fault.peer] = fault
        events: tuple[Event, ...] = ()
        for peer in sorted(worst):
            events += self._charge(worst[peer], may_cut, now_ms)
        return events

    def _charge(
        self, fault: Fault, may_cut: Callable[[NodeId], bool], now_ms: int
    ) -> tuple[Event, ...]:
        record = self._records[fault.peer]
        elapsed_ms = max(now_ms - record.counted_at_ms, 0)  # a clock that goes back gives nothing
        record.points = max(record.points - elapsed_ms * DECAY_PER_S // 1000, 0)
        record.counted_at_ms = now_ms
        record.points += get_points(fault.error)
        if record.points < LIMIT or record.cut_until_ms is not None:
            return ()
        record.points = 0
        fields = {"peer": short_id(fault.peer), "error": fault.name, "reason": str(fault.error)}
        if not may_cut(fault.peer):
            return (Event("peer_spared", fields),)
        cut_ms = self._cut(record, now_ms)
        return (Event("peer_disconnected", {**fields, "for_ms": cut_ms}),)

    def _cut(self, record: PeerRecord, now_ms: int) -> int:
        """Cut a peer off; give for how long."""
        forgiven = max(now_ms - record.heard_again_at_ms, 0) // FORGIVEN_AFTER_MS
        record.severity = max(record.severity - forgiven, 0)
        cut_ms = min(FIRST_CUT_MS << record.severity, LONGEST_CUT_MS)
        record.severity += 1
        record.cuts += 1
        record.cut_until_ms = now_ms + cut_ms
        self.version += 1
        return cut_ms

    def readmit_due(self, *, now_ms: int) -> tuple[Event, ...]:
        """Let those be heard again whose time is over, or lies further ahead than it can."""
        events: tuple[Event, ...] = ()
        for peer, record in sorted(self._records.items()):
            until_ms = record.cut_until_ms
            if until_ms is None or now_ms < until_ms <= now_ms + LONGEST_CUT_MS:
                continue
            record.cut_until_ms = None
            record.heard_again_at_ms = now_ms
            self.version += 1
            events += (Event("peer_readmitted", {"peer": short_id(peer), "cuts": record.cuts}),)
        return events

    def _get_record(self, peer: NodeId) -> PeerRecord:
        record = self._records.get(peer)
        if record is None:
            if len(self._records) >= MAX_RECORDS:
                self._forget_one()
            record = self._records[peer] = PeerRecord()
        return record

    def _forget_one(self) -> None:
        """Make room: of those that may be forgotten, the one whose last fault is the oldest."""
        records = self._records
        del records[min(records, key=lambda n: (records[n].cuts > 0, records[n].counted_at_ms, n))]
