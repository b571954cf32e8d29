"""What a refused message costs, when a peer is cut off for it, and when it is heard again."""

from __future__ import annotations

import pytest

from iemas.core import peer_scores
from iemas.core.errors import (
    ContradictoryReportError,
    FloodError,
    FutureReportError,
    IemasError,
    InvalidBidError,
    InvalidBlockError,
    InvalidReceiptError,
    InvalidSignatureError,
    InvalidTranscriptError,
    MalformedMessageError,
    OutOfHeightError,
    OversizedMessageError,
    RemoteProtocolError,
    ReplayedReportError,
    StaleReportError,
    UnknownSignerError,
    WrongSignerError,
)
from iemas.core.peer_scores import (
    CROSSING_POINTS,
    DECAY_PER_S,
    FIRST_CUT_MS,
    FLOOD_POINTS,
    FORGERY_POINTS,
    FORGIVEN_AFTER_MS,
    LIMIT,
    LONGEST_CUT_MS,
    PeerScores,
    get_points,
)
from iemas.core.ready import Event, Fault
from iemas.core.types import NodeId

A, B = NodeId(b"a" * 32), NodeId(b"b" * 32)
NOW_MS = 1_800_000_000_000
TO_LIMIT = LIMIT // FORGERY_POINTS


def charge(
    scores: PeerScores,
    *errors: IemasError,
    peer: NodeId = A,
    now_ms: int = NOW_MS,
    may_cut: bool = True,
) -> list[Event]:
    """Have each error refused as a message of its own."""
    events: list[Event] = []
    for error in errors:
        faults = (Fault(peer, error),)
        events += scores.charge(faults, may_cut=lambda _: may_cut, now_ms=now_ms)
    return events


def forge(scores: PeerScores, **options: object) -> list[Event]:
    """Forge as often as it takes to be cut off."""
    return charge(scores, *[InvalidSignatureError()] * TO_LIMIT, **options)  # type: ignore[arg-type]


@pytest.fixture
def scores() -> PeerScores:
    return PeerScores()


@pytest.mark.parametrize(
    "error",
    [
        InvalidSignatureError,
        WrongSignerError,
        ContradictoryReportError,
        MalformedMessageError,
        OversizedMessageError,
        InvalidBlockError,
        RemoteProtocolError,
    ],
)
def test_what_no_correct_node_sends_costs_much(error: type[IemasError]) -> None:
    assert get_points(error()) == FORGERY_POINTS


@pytest.mark.parametrize(
    "error",
    [
        StaleReportError,
        ReplayedReportError,
        FutureReportError,
        UnknownSignerError,
        OutOfHeightError,
        InvalidReceiptError,
        InvalidTranscriptError,
        InvalidBidError,
    ],
)
def test_what_crosses_costs_next_to_nothing(error: type[IemasError]) -> None:
    assert get_points(error()) == CROSSING_POINTS


def test_a_peer_is_cut_off_at_the_limit_and_why_is_told(scores: PeerScores) -> None:
    assert charge(scores, *[MalformedMessageError("junk")] * (TO_LIMIT - 1)) == []
    (event,) = charge(scores, MalformedMessageError("junk"))
    assert event.name == "peer_disconnected"
    assert event.fields["error"] == "MalformedMessageError"
    assert event.fields["reason"] == "junk"
    assert event.fields["for_ms"] == FIRST_CUT_MS
    assert scores.cut_off == {A}
    assert scores.version == 1


def test_refusals_are_counted_by_peer_and_name(scores: PeerScores) -> None:
    charge(scores, StaleReportError(), StaleReportError(), InvalidSignatureError())
    charge(scores, FloodError(), peer=B)
    records = dict(scores.get_records())
    assert records[A].refused == {"StaleReportError": 2, "InvalidSignatureError": 1}
    assert records[B].refused == {"FloodError": 1}


def test_a_message_costs_what_its_worst_fault_costs(scores: PeerScores) -> None:
    faults = [Fault(A, StaleReportError())] * 9_000 + [Fault(A, WrongSignerError())] * 9_000
    scores.charge(faults, may_cut=lambda _: True, now_ms=NOW_MS)
    record = scores.get_record(A)
    assert record is not None
    assert record.points == FORGERY_POINTS
    assert record.refused == {"StaleReportError": 9_000, "WrongSignerError": 9_000}


def test_points_run_off(scores: PeerScores) -> None:
    apart_ms = FORGERY_POINTS * 1000 // DECAY_PER_S
    for n in range(20):
        assert charge(scores, InvalidSignatureError(), now_ms=NOW_MS + n * apart_ms) == []


def test_a_queue_of_late_messages_is_no_offence(scores: PeerScores) -> None:
    """What waits for a peer while it cannot be reached comes late, all of it at once."""
    queue_messages = 4_096
    assert charge(scores, *[OutOfHeightError()] * (2 * queue_messages)) == []
    assert scores.cut_off == frozenset()


def test_an_honest_burst_that_is_paced_is_no_offence_and_a_lasting_flood_is(
    scores: PeerScores,
) -> None:
    events = [charge(scores, FloodError(), now_ms=NOW_MS + 1000 * n) for n in range(120)]
    first = next(n for n, told in enumerate(events) if told)
    assert 60 <= first <= 70
    assert FLOOD_POINTS > DECAY_PER_S


def test_times_double_up_to_a_bound(scores: PeerScores) -> None:
    now_ms, times_ms = NOW_MS, []
    for _ in range(12):
        (event,) = forge(scores, now_ms=now_ms)
        times_ms.append(int(str(event.fields["for_ms"])))
        now_ms += times_ms[-1]
        assert scores.readmit_due(now_ms=now_ms - 1) == ()
        (back,) = scores.readmit_due(now_ms=now_ms)
        assert back.name == "peer_readmitted"
        assert scores.cut_off == frozenset()
    assert times_ms[:3] == [FIRST_CUT_MS, 2 * FIRST_CUT_MS, 4 * FIRST_CUT_MS]
    assert times_ms[-1] == LONGEST_CUT_MS


def test_good_behaviour_is_remembered(scores: PeerScores) -> None:
    now_ms = NOW_MS
    for _ in range(3):
        forge(scores, now_ms=now_ms)
        now_ms += LONGEST_CUT_MS
        scores.readmit_due(now_ms=now_ms)
    now_ms += 2 * FORGIVEN_AFTER_MS
    (event,) = forge(scores, now_ms=now_ms)
    assert event.fields["for_ms"] == 2 * FIRST_CUT_MS


def test_what_arrives_of_a_peer_that_is_cut_off_cuts_it_off_no_further(scores: PeerScores) -> None:
    forge(scores)
    assert forge(scores) == []
    record = scores.get_record(A)
    assert record is not None
    assert (record.cuts, record.cut_until_ms) == (1, NOW_MS + FIRST_CUT_MS)


def test_who_cannot_be_done_without_is_spared(scores: PeerScores) -> None:
    (event,) = forge(scores, may_cut=False)
    assert event.name == "peer_spared"
    assert scores.cut_off == frozenset()
    assert forge(scores)[0].name == "peer_disconnected"


def test_a_clock_that_goes_back_stops_nothing(scores: PeerScores) -> None:
    charge(scores, InvalidSignatureError())
    charge(scores, InvalidSignatureError(), now_ms=NOW_MS - 10**9)
    record = scores.get_record(A)
    assert record is not None
    assert record.points == 2 * FORGERY_POINTS
    forge(scores)
    assert scores.readmit_due(now_ms=NOW_MS - 10**9) != ()


def test_memory_is_bounded_and_who_was_cut_off_is_remembered(
    scores: PeerScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_scores, "MAX_RECORDS", 10)
    forge(scores)
    for n in range(50):
        charge(scores, StaleReportError(), peer=NodeId(bytes([n]) * 32), now_ms=NOW_MS + n)
    assert len(scores.get_records()) == 10
    assert scores.get_records()[0][0] == A
