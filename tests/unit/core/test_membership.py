"""Membership: push, exchange, probe, and which reports are refused.

Source: docs/spec/membership.md (R1 to R13); design §8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas.core.envelope import Signed
from iemas.core.errors import (
    ContradictoryReportError,
    FutureReportError,
    InvalidReportError,
    InvalidSignatureError,
    NoRoomForReportError,
    ReplayedReportError,
    StaleReportError,
    UnknownSignerError,
    WrongSignerError,
)
from iemas.core.gossip import (
    ExchangeRequest,
    ExchangeResponse,
    Probe,
    ProbeAcknowledgement,
    ReportPush,
    SignedReport,
)
from iemas.core.membership import (
    EXCHANGE_INTERVAL_MS,
    MAX_HEARSAY_BYTES,
    MAX_HEARSAY_REPORT_BYTES,
    Membership,
    PublishReport,
    ReceiveGossip,
    Tick,
)
from iemas.core.params import MarketParams
from iemas.core.ready import Ready
from iemas.core.report import CapabilityReport, Report
from iemas.core.types import NodeId
from iemas.testing.builders import (
    INCARNATION,
    make_capability,
    make_digest,
    make_load,
    make_reports,
    make_stamp,
)
from iemas.testing.chain import LedgerChain

NOW_MS = 1_800_000_000_000
PARAMS = MarketParams()
CHAIN = LedgerChain()
NAMES = ("a", "b", "c", "d")


def get_id(name: str) -> NodeId:
    return CHAIN.get_node(name)


def make_membership(name: str) -> Membership:
    return Membership(own_id=get_id(name), chain_id=CHAIN.chain_id, params=PARAMS)


def make_report(name: str, kind: str = "capability", sequence: int = 1, **stamp: Any) -> Any:
    """Make a signed report of one kind."""
    signer = CHAIN.get_signer(name)
    made = make_stamp(signer, sequence, **({"now_ms": NOW_MS} | stamp))
    makers = {"capability": make_capability, "load": make_load, "digest": make_digest}
    return signer.sign(makers[kind](made))


@pytest.fixture
def a() -> Membership:
    """The node a, which knows b."""
    membership = make_membership("a")
    for report in make_reports(CHAIN.get_signer("a"), now_ms=NOW_MS):
        membership.step(PublishReport(report), now_ms=NOW_MS)
    push(membership, *make_reports(CHAIN.get_signer("b"), now_ms=NOW_MS), sender="b")
    return membership


def push(
    membership: Membership, *reports: Signed[Report], sender: str = "b", now_ms: int = NOW_MS
) -> Ready:
    message = ReportPush(tuple(SignedReport.wrap(report) for report in reports))
    return membership.step(ReceiveGossip(get_id(sender), message), now_ms=now_ms)


def get_refusals(ready: Ready) -> list[object]:
    return [fault.name for fault in ready.faults if fault.name != "ReplayedReportError"]


def get_held(membership: Membership, name: str) -> set[bytes]:
    record = membership.get_node(get_id(name))
    return {report.hash for report in record.get_reports()} if record is not None else set()


# --- push (R1) -----------------------------------------------------------------------------------


def test_what_others_say_of_this_node_is_no_news(a: Membership) -> None:
    push(a, make_report("a", "load", 10**6))
    report = make_report("a", "load", 1)
    a.step(PublishReport(report), now_ms=NOW_MS)
    record = a.get_node(get_id("a"))
    assert record is not None
    assert record.load == report


def test_an_own_report_goes_to_all_peers(a: Membership) -> None:
    push(a, make_report("c"), sender="c")
    report = make_report("a", "load", 9)
    ready = a.step(PublishReport(report), now_ms=NOW_MS)
    assert {send.to for send in ready.send} == {get_id("b"), get_id("c")}
    assert all(send.message.reports == (SignedReport.wrap(report),) for send in ready.send)


def test_a_newcomer_is_told_on(a: Membership) -> None:
    report = make_report("c")
    told = [send for send in push(a, report, sender="c").send if send.to != get_id("c")]
    assert [(send.to, send.message) for send in told] == [
        (get_id("b"), ReportPush((SignedReport.wrap(report),)))
    ]


def test_a_newcomer_is_exchanged_with_at_once(a: Membership) -> None:
    sends = push(a, make_report("c"), sender="b").send
    assert [(s.to, type(s.message)) for s in sends] == [(get_id("c"), ExchangeRequest)]


def test_a_known_nodes_report_is_not_told_on(a: Membership) -> None:
    assert not push(a, make_report("b", "load", 9)).send


def test_a_newcomer_that_joins_here_is_told_on(a: Membership) -> None:
    ready = a.receive_report(make_report("c"), now_ms=NOW_MS)
    kinds = {send.to: type(send.message) for send in ready.send}
    assert kinds == {get_id("b"): ReportPush, get_id("c"): ExchangeRequest}


def test_a_newer_report_replaces_an_older_one(a: Membership) -> None:
    report = make_report("b", "load", 9)
    push(a, report)
    record = a.get_node(get_id("b"))
    assert record is not None
    assert record.load == report


# --- exchange (R2, R3) ---------------------------------------------------------------------------


def deliver_all(members: dict[str, Membership], ready: Ready, sender: str) -> int:
    """Deliver messages and all that follow from them; give how many there were."""
    names = {get_id(name): name for name in members}
    queue = [(sender, send) for send in ready.send]
    count = 0
    while queue:
        origin, send = queue.pop(0)
        count += 1
        to = names.get(send.to)
        if to is not None:
            inp = ReceiveGossip(get_id(origin), send.message)
            answer = members[to].step(inp, now_ms=NOW_MS)
            queue += [(to, follow) for follow in answer.send]
    return count


def test_a_late_joiner_is_complete_after_one_exchange() -> None:
    members = {"a": make_membership("a"), "d": make_membership("d")}
    for name in ("b", "c"):
        push(members["a"], *make_reports(CHAIN.get_signer(name), now_ms=NOW_MS))
    for name, membership in members.items():
        for report in make_reports(CHAIN.get_signer(name), now_ms=NOW_MS):
            membership.step(PublishReport(report), now_ms=NOW_MS)
    push(members["d"], make_report("a"))
    request = next(
        send
        for send in members["d"].step(Tick(), now_ms=NOW_MS).send
        if isinstance(send.message, ExchangeRequest)
    )
    assert deliver_all(members, Ready(send=(request,)), "d") >= 2
    for name in NAMES:
        assert get_held(members["d"], name) == get_held(members["a"], name) != set()


def test_an_exchange_gives_back_what_the_other_lacks(a: Membership) -> None:
    response = ExchangeResponse((), ())
    ready = a.step(ReceiveGossip(get_id("b"), response), now_ms=NOW_MS)
    (send,) = ready.send
    assert send.to == get_id("b")
    assert len(send.message.reports) == 6


def test_equal_tables_exchange_nothing(a: Membership) -> None:
    response = ExchangeResponse((), a._get_versions())
    assert not a.step(ReceiveGossip(get_id("b"), response), now_ms=NOW_MS).send


def test_reports_that_ran_out_are_not_sent(a: Membership) -> None:
    """They would only be refused and counted against an honest sender."""
    push(a, make_report("b", "load", 9, ttl_ms=1_000))
    later_ms = NOW_MS + 1_000
    ready = a.step(ReceiveGossip(get_id("c"), ExchangeRequest(())), now_ms=later_ms)
    (send,) = ready.send
    sent = {report.unwrap().hash for report in send.message.reports}
    assert sent == (get_held(a, "a") | get_held(a, "b")) - {make_report("b", "load", 9).hash} - {
        make_report("b", "load", 9, ttl_ms=1_000).hash
    }


def test_a_peer_not_yet_exchanged_with_is_asked_at_once(a: Membership) -> None:
    sends = a.step(Tick(), now_ms=NOW_MS).send
    assert [s.to for s in sends if isinstance(s.message, ExchangeRequest)] == [get_id("b")]


def test_peers_are_asked_in_turn(a: Membership) -> None:
    push(a, make_report("c"), sender="c")
    for name in ("b", "c"):
        response = ExchangeResponse((), a._get_versions())
        a.step(ReceiveGossip(get_id(name), response), now_ms=NOW_MS)
    asked = []
    for turn in range(4):
        ready = a.step(Tick(), now_ms=NOW_MS + turn * EXCHANGE_INTERVAL_MS)
        asked += [s.to for s in ready.send if isinstance(s.message, ExchangeRequest)]
    assert asked[0] != asked[1]
    assert asked[:2] == asked[2:]


# --- refusals (R4 to R9): each by its name, counted by an event -----------------------------------


def refuse(membership: Membership, report: Signed[Report], error: type[Exception]) -> None:
    """Check that a report is refused both when it is pushed and when it joins."""
    assert get_refusals(push(membership, report)) == [error.__name__]
    with pytest.raises(error):
        membership.receive_report(report, now_ms=NOW_MS)


def test_an_older_sequence_is_stale(a: Membership) -> None:
    push(a, make_report("b", "load", 9))
    refuse(a, make_report("b", "load", 8), StaleReportError)


def test_a_report_past_its_time_to_live_is_stale(a: Membership) -> None:
    old_ms = NOW_MS - 60_000 - PARAMS.clock_tolerance_ms
    refuse(a, make_report("b", "load", 9, now_ms=old_ms), StaleReportError)


def test_within_tolerance_a_report_has_not_run_out(a: Membership) -> None:
    old_ms = NOW_MS - 60_000 - PARAMS.clock_tolerance_ms + 1
    assert not push(a, make_report("b", "load", 9, now_ms=old_ms)).events


def test_a_report_from_the_future_is_refused(a: Membership) -> None:
    future_ms = NOW_MS + PARAMS.clock_tolerance_ms + 1
    refuse(a, make_report("b", "load", 9, now_ms=future_ms), FutureReportError)


def test_a_replayed_report_is_refused(a: Membership) -> None:
    with pytest.raises(ReplayedReportError):
        a.receive_report(make_report("b"), now_ms=NOW_MS)


def test_a_replay_in_an_exchange_is_no_offence(a: Membership) -> None:
    """Anti-entropy and pushes cross: the same report comes twice from honest peers."""
    assert not push(a, make_report("b")).events


def test_a_report_of_another_node_is_refused(a: Membership) -> None:
    report = make_report("b", "load", 9).message
    refuse(a, CHAIN.sign("c", report), WrongSignerError)


def test_a_forged_signature_is_refused(a: Membership) -> None:
    report = make_report("b", "load", 9)
    forged = replace(report, envelope=replace(report.envelope, signature=bytes(64)))
    refuse(a, forged, InvalidSignatureError)


def test_a_report_of_another_chain_is_refused(a: Membership) -> None:
    other = LedgerChain()
    other.chain_id = "elsewhere"
    report = other.sign("b", make_report("b", "load", 9).message)
    refuse(a, report, InvalidSignatureError)


def test_two_reports_with_one_number_contradict_each_other(a: Membership) -> None:
    push(a, make_report("b", "load", 9))
    refuse(a, make_report("b", "load", 9, ttl_ms=59_999), ContradictoryReportError)


@pytest.mark.parametrize("kind", ["load", "digest"])
def test_without_a_capability_report_others_mean_nothing(a: Membership, kind: str) -> None:
    refuse(a, make_report("c", kind), UnknownSignerError)


def test_a_refused_report_changes_nothing(a: Membership) -> None:
    before = get_held(a, "b"), a.version
    push(a, make_report("b", "load", 9, now_ms=NOW_MS + 10_000))
    assert (get_held(a, "b"), a.version) == before


def test_a_bad_report_does_not_spoil_the_others_of_its_message(a: Membership) -> None:
    good = make_report("b", "load", 9)
    ready = push(a, make_report("c", "load"), good)
    assert get_refusals(ready) == ["UnknownSignerError"]
    assert good.hash in get_held(a, "b")


def test_the_table_is_bounded(a: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iemas.core.membership.MAX_NODES", 2)
    version = a.version
    refuse(a, make_report("c"), InvalidReportError)
    assert a.version == version


# --- room (R13) ----------------------------------------------------------------------------------

MANY = ("c", "d", "e", "f")


def make_large(name: str, size: int, sequence: int = 5) -> Any:
    signer = CHAIN.get_signer(name)
    stamp = make_stamp(signer, sequence, now_ms=NOW_MS)
    return signer.sign(make_digest(stamp, b"".join(n.to_bytes(8, "big") for n in range(size // 8))))


@pytest.fixture
def bounded(a: Membership, monkeypatch: pytest.MonkeyPatch) -> Membership:
    """The node a with little room; it has met b, and others only by hearsay."""
    for name, size in {
        "SMALL_REPORT_BYTES": 1_000,
        "MAX_HELD_BYTES": 10_000,
        "MAX_HEARSAY_BYTES": 5_000,
        "MAX_HEARSAY_REPORT_BYTES": 3_000,
    }.items():
        monkeypatch.setattr(f"iemas.core.membership.{name}", size)
    push(a, *(make_report(name) for name in MANY))
    return a


def test_reports_of_nodes_that_were_never_met_get_a_share_of_the_room(bounded: Membership) -> None:
    refuse(bounded, make_large("c", 4_000), NoRoomForReportError)
    assert not push(bounded, make_large("c", 2_000), make_large("d", 2_000)).faults
    refuse(bounded, make_large("e", 2_000), NoRoomForReportError)
    assert not push(bounded, make_large("b", 5_000)).faults


def test_all_large_reports_together_are_bounded(bounded: Membership) -> None:
    assert not push(bounded, make_large("b", 9_000)).faults
    refuse(bounded, make_large("c", 2_000), NoRoomForReportError)
    push(bounded, make_large("c", 2_000, 6), sender="c")
    assert make_large("c", 2_000, 6).hash not in get_held(bounded, "c")
    assert not push(bounded, make_large("b", 6_000, 6), make_large("c", 2_000, 7)).faults


def test_small_reports_always_fit_and_so_does_a_renewed_one(bounded: Membership) -> None:
    push(bounded, make_large("b", 9_900))
    renewed = [make_large("b", 9_900, 6), make_large("c", 500), make_report("c", "load", 6)]
    assert not push(bounded, *renewed).faults
    refuse(bounded, make_large("b", 9_990, 7), NoRoomForReportError)
    assert renewed[0].hash in get_held(bounded, "b")


def test_who_is_met_gets_the_room_that_hearsay_does_not(bounded: Membership) -> None:
    report = make_large("c", 4_000)
    refuse(bounded, report, NoRoomForReportError)
    before = bounded._get_versions()
    push(bounded, sender="c")
    assert not push(bounded, report).faults
    assert bounded._get_versions() == before, "what was declined must not be asked for again"
    push(bounded, make_large("d", 2_000), make_large("e", 2_000))
    assert make_large("e", 2_000).hash in get_held(bounded, "e"), "what c holds is no hearsay"


def test_forgotten_nodes_and_earlier_processes_leave_their_room(bounded: Membership) -> None:
    push(bounded, make_large("b", 4_000), make_large("c", 2_000), make_large("d", 2_000))
    push(bounded, make_report("c", incarnation=INCARNATION + 1))
    assert not push(bounded, make_large("e", 2_000)).faults
    later_ms = NOW_MS + 200_000
    bounded.step(Tick(), now_ms=later_ms)
    bounded.step(Tick(), now_ms=later_ms + 10_000)
    assert bounded.get_peers() == []
    assert set(bounded._large_bytes.values()) == {0}


def test_a_hundred_digests_of_a_megabyte_fit_even_by_hearsay() -> None:
    assert MAX_HEARSAY_REPORT_BYTES > 1_000_100
    assert MAX_HEARSAY_BYTES > 100 * 1_000_100


# --- restarts (R10) ------------------------------------------------------------------------------

LATER = INCARNATION + 1


def test_a_restarted_node_begins_its_sequence_anew(a: Membership) -> None:
    push(a, make_report("b", sequence=900))
    restarted = make_report("b", sequence=1, incarnation=LATER)
    assert not push(a, restarted).events
    assert restarted.hash in get_held(a, "b")


def test_what_the_earlier_process_reported_no_longer_holds(a: Membership) -> None:
    push(a, make_report("b", sequence=1, incarnation=LATER))
    record = a.get_node(get_id("b"))
    assert record is not None
    assert record.load is None
    assert record.digest is None


def test_the_earlier_process_is_not_heard_any_more(a: Membership) -> None:
    push(a, make_report("b", sequence=1, incarnation=LATER))
    for kind in ("capability", "load", "digest"):
        refuse(a, make_report("b", kind, 999), StaleReportError)


def test_a_report_that_overtook_the_new_capability_report_is_kept(a: Membership) -> None:
    load = make_report("b", "load", 2, incarnation=LATER)
    push(a, load)
    push(a, make_report("b", sequence=1, incarnation=LATER))
    assert load.hash in get_held(a, "b")


def test_a_restarted_node_is_exchanged_with_again(a: Membership) -> None:
    a.step(ReceiveGossip(get_id("b"), ExchangeResponse((), a._get_versions())), now_ms=NOW_MS)
    push(a, make_report("b", sequence=1, incarnation=LATER))
    sends = a.step(Tick(), now_ms=NOW_MS).send
    assert any(isinstance(send.message, ExchangeRequest) for send in sends)


# --- probes (R11, R12) ---------------------------------------------------------------------------

PATIENCE_MS = PARAMS.probe_interval_ms * (PARAMS.probe_misses + 1)


def tick(membership: Membership, times: int, *, start: int = 0) -> list[str]:
    """Let probe intervals pass; give the events."""
    return [
        event.name
        for n in range(start, start + times)
        for event in membership.step(Tick(), now_ms=NOW_MS + n * PARAMS.probe_interval_ms).events
    ]


def list_probed(membership: Membership, *, after_ms: int) -> set[NodeId]:
    """Let a tick come at a time; give whom it probes."""
    ready = membership.step(Tick(), now_ms=NOW_MS + after_ms)
    return {send.to for send in ready.send if isinstance(send.message, Probe)}


def test_a_peer_that_answers_is_probed_every_second_interval(a: Membership) -> None:
    probed = []
    for n in range(1, 7):
        probed.append(list_probed(a, after_ms=n * PARAMS.probe_interval_ms) == {get_id("b")})
        if probed[-1]:
            a.hear(get_id("b"), now_ms=at(n) + 5)
    assert probed == [True, False] * 3


def test_a_silent_peer_is_probed_every_interval(a: Membership) -> None:
    times = range(PARAMS.probe_interval_ms, 4 * PARAMS.probe_interval_ms, PARAMS.probe_interval_ms)
    assert all(list_probed(a, after_ms=ms) == {get_id("b")} for ms in times)


def test_who_is_on_duty_is_probed_every_interval(a: Membership) -> None:
    a.watch([get_id("b")], now_ms=NOW_MS)
    for n in range(1, 5):
        assert list_probed(a, after_ms=n * PARAMS.probe_interval_ms) == {get_id("b")}
        a.hear(get_id("b"), now_ms=at(n) + 5)


def test_who_is_on_duty_probes_everyone_every_interval(a: Membership) -> None:
    a.watch([get_id("a")], now_ms=NOW_MS)
    for n in range(1, 5):
        assert list_probed(a, after_ms=n * PARAMS.probe_interval_ms) == {get_id("b")}
        a.hear(get_id("b"), now_ms=at(n) + 5)


def test_who_comes_on_duty_is_probed_at_once(a: Membership) -> None:
    push(a, make_report("c"), sender="c")
    sends = a.watch([get_id("a"), get_id("b")], now_ms=NOW_MS).send
    assert [(send.to, type(send.message)) for send in sends] == [(get_id("b"), Probe)]
    assert not a.watch([get_id("a"), get_id("b")], now_ms=NOW_MS + 1).send


def test_who_was_just_heard_is_not_probed(a: Membership) -> None:
    a.step(Tick(), now_ms=NOW_MS)
    a.hear(get_id("b"), now_ms=NOW_MS + PARAMS.probe_interval_ms - 10)
    assert list_probed(a, after_ms=PARAMS.probe_interval_ms) == set()


def test_between_intervals_nobody_is_probed(a: Membership) -> None:
    a.step(Tick(), now_ms=NOW_MS)
    ready = a.step(Tick(), now_ms=NOW_MS + 1)
    assert not ready.send
    assert ready.wake_at_ms == NOW_MS + PARAMS.probe_interval_ms


def test_a_probe_is_answered(a: Membership) -> None:
    (send,) = a.step(ReceiveGossip(get_id("b"), Probe(7)), now_ms=NOW_MS).send
    assert (send.to, send.message) == (get_id("b"), ProbeAcknowledgement(7))


@pytest.mark.parametrize(
    ("on_duty", "patience_ms"), [(True, PATIENCE_MS), (False, 2 * PATIENCE_MS)]
)
def test_a_silent_peer_is_suspected(a: Membership, on_duty: bool, patience_ms: int) -> None:
    a.watch([get_id("b")] if on_duty else [], now_ms=NOW_MS)
    a.hear(get_id("b"), now_ms=NOW_MS + 7)
    a.step(Tick(), now_ms=NOW_MS + 7)
    ready = a.step(Tick(), now_ms=NOW_MS + 7 + patience_ms - 1)
    assert not a.is_suspected(get_id("b"))
    assert ready.wake_at_ms == NOW_MS + 7 + patience_ms
    ready = a.step(Tick(), now_ms=NOW_MS + 7 + patience_ms)
    assert [event.name for event in ready.events] == ["peer_suspected"]
    assert a.is_suspected(get_id("b"))


def test_who_comes_on_duty_has_the_whole_patience(a: Membership) -> None:
    began_ms = NOW_MS + PATIENCE_MS
    a.watch([get_id("b")], now_ms=began_ms)
    a.step(Tick(), now_ms=began_ms)
    a.step(Tick(), now_ms=began_ms + PATIENCE_MS - 1)
    assert not a.is_suspected(get_id("b"))
    a.step(Tick(), now_ms=began_ms + PATIENCE_MS)
    assert a.is_suspected(get_id("b"))


def test_a_clock_set_back_accuses_nobody(a: Membership) -> None:
    a.watch([get_id("b")], now_ms=NOW_MS)
    a.step(Tick(), now_ms=NOW_MS)
    for elapsed_ms in range(0, PATIENCE_MS, PARAMS.probe_interval_ms):
        a.step(Tick(), now_ms=NOW_MS - 60_000 + elapsed_ms)
    assert not a.is_suspected(get_id("b"))


def test_who_dies_after_a_clock_was_set_back_is_suspected_in_time(a: Membership) -> None:
    a.watch([get_id("b")], now_ms=NOW_MS)
    a.step(Tick(), now_ms=NOW_MS)
    earlier_ms = NOW_MS - 60_000
    a.hear(get_id("b"), now_ms=earlier_ms)
    a.step(Tick(), now_ms=earlier_ms)
    for elapsed_ms in range(0, PATIENCE_MS + 1, PARAMS.probe_interval_ms):
        a.step(Tick(), now_ms=earlier_ms + elapsed_ms)
    assert a.is_suspected(get_id("b"))


def test_a_peer_that_answers_is_not_suspected(a: Membership) -> None:
    for n in range(30):
        tick(a, 1, start=n)
        a.step(ReceiveGossip(get_id("b"), ProbeAcknowledgement(n)), now_ms=at(n))
    assert not a.is_suspected(get_id("b"))


def at(n: int) -> int:
    return NOW_MS + n * PARAMS.probe_interval_ms


def test_anything_heard_ends_a_suspicion(a: Membership) -> None:
    tick(a, 30)
    ready = push(a, make_report("b", "load", 9), now_ms=at(30))
    assert [event.name for event in ready.events] == ["peer_alive"]
    assert not a.is_suspected(get_id("b"))


def test_a_node_does_not_suspect_itself(a: Membership) -> None:
    tick(a, 30)
    assert not a.is_suspected(get_id("a"))


def test_a_silent_node_is_forgotten_once_its_reports_have_run_out(a: Membership) -> None:
    later = 65_000 // PARAMS.probe_interval_ms
    assert "peer_forgotten" in tick(a, later)
    assert a.get_peers() == []


def test_a_node_that_answers_is_not_forgotten(a: Membership) -> None:
    for n in range(65_000 // PARAMS.probe_interval_ms):
        tick(a, 1, start=n)
        a.step(ReceiveGossip(get_id("b"), ProbeAcknowledgement(n)), now_ms=at(n))
    assert a.get_peers() == [get_id("b")]


def test_the_version_counts_changes_of_who_there_is(a: Membership) -> None:
    before = a.version
    push(a, make_report("b", "load", 9))
    assert a.version == before
    push(a, make_report("c"), sender="c")
    assert a.version == before + 1


def test_a_digest_that_cannot_be_searched_is_refused(a: Membership) -> None:
    signer = CHAIN.get_signer("b")
    blocks = (2).to_bytes(8, "big") + (1).to_bytes(8, "big")
    unsorted = signer.sign(make_digest(make_stamp(signer, 9, now_ms=NOW_MS), blocks))
    (fault,) = push(a, unsorted).faults
    assert (fault.peer, fault.name) == (get_id("b"), "MalformedMessageError")
    record = a.get_node(get_id("b"))
    assert record is not None
    assert record.digest is not None
    assert record.digest.message.blocks == b""


def test_reports_that_do_not_fit_one_message_follow_later(
    a: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iemas.core.membership.MAX_MESSAGE_REPORT_BYTES", 500)
    reports = [wrapped.unwrap() for wrapped in a.get_reports()]
    assert [type(report.message) for report in reports if report][:2] == [CapabilityReport] * 2
    assert sum(len(report.envelope.payload) for report in reports if report) <= 500
    request = ReceiveGossip(get_id("c"), ExchangeRequest(()))
    (send,) = a.step(request, now_ms=NOW_MS).send
    assert isinstance(send.message, ExchangeResponse)
    assert 0 < len(send.message.reports) < 6
