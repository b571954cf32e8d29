"""The node's one step: what it refuses, what it sends itself, what it owes the ledger.

Source: docs/ARCHITECTURE.md; design §4, §13 (malformed, replayed, wrongly signed input).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.core.auction import (
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ForwardedBid,
    Refusal,
    ReleaseNotice,
    RoundClose,
    ShareRelease,
    TranscriptNotice,
)
from iemas.core.errors import (
    InvalidAllocationError,
    InvalidSignatureError,
    NonceMismatchError,
    UnknownAccountError,
    WrongSignerError,
)
from iemas.core.gossip import Probe, ReportPush, SignedReport
from iemas.core.peer_scores import CROSSING_POINTS
from iemas.core.report import CapabilityReport
from iemas.ledger.transaction import TransferFunds
from iemas.testing.builders import Bidder, Buyer, make_capability, make_stamp
from iemas.testing.chain import HUB, START_MS
from node.core import (
    TICK_MS,
    BackendHealth,
    ReceiveBid,
    TimePassed,
)
from tests.unit.node.nodes import NODES, OBSERVER, Nodes


@pytest.fixture
def nodes() -> Nodes:
    made = Nodes()
    made.join()
    return made


def get_auctioneer(nodes: Nodes) -> str:
    return nodes.chain.get_name(nodes.cores["node-1"].state.get_term(HUB).auctioneer)


# --- refused input -------------------------------------------------------------------------------


def test_a_bid_that_is_refused_is_answered_on_its_stream(nodes: Nodes) -> None:
    term = nodes.cores["node-1"].state.get_term(HUB)
    pending = Bidder(nodes.chain, "alice").seal(term)
    ready = nodes.step(OBSERVER, ReceiveBid(5, pending.submission))
    (answer,) = ready.answers
    assert (answer.stream, answer.bid_hash) == (5, pending.bid_hash)
    assert isinstance(answer.message, Refusal)
    assert answer.message.error == "NotAuctioneerError"
    assert nodes.cores[OBSERVER].refused["NotAuctioneerError"] == 1


def test_a_bad_report_is_counted_by_its_name(nodes: Nodes) -> None:
    stamp = make_stamp(nodes.chain.get_signer("bob"), 1, now_ms=nodes.now_ms)
    forged = nodes.chain.sign("alice", make_capability(stamp))
    nodes.send("node-2", "node-1", ReportPush((SignedReport.wrap(forged),)))
    assert nodes.cores["node-1"].refused["WrongSignerError"] == 1


def test_who_introduces_itself_wrongly_is_told(nodes: Nodes) -> None:
    stamp = make_stamp(nodes.chain.get_signer("bob"), 1, now_ms=nodes.now_ms)
    with pytest.raises(WrongSignerError):
        nodes.cores["node-1"].introduce(
            nodes.chain.sign("alice", make_capability(stamp)), now_ms=nodes.now_ms
        )
    assert nodes.cores["node-1"].refused["WrongSignerError"] == 1


def test_introducing_oneself_twice_changes_nothing(nodes: Nodes) -> None:
    core = nodes.cores["node-1"]
    record = core.membership.get_node(nodes.chain.get_node("node-2"))
    assert record is not None
    version = core.membership.version
    core.introduce(record.capability, now_ms=nodes.now_ms)
    assert core.membership.version == version


def test_a_bid_that_no_validator_passed_on_is_refused_without_blame(nodes: Nodes) -> None:
    """Its sender may be one by a block that has not come here yet."""
    auctioneer, sent = get_auctioneer(nodes), len(nodes.sent)
    pending = Bidder(nodes.chain, "alice").seal(nodes.cores[auctioneer].state.get_term(HUB))
    nodes.send(OBSERVER, auctioneer, ForwardedBid(pending.submission))
    assert nodes.cores[auctioneer].refused["InvalidBidError"] == 1
    assert not any(isinstance(message, CountersignRequest) for _, message in nodes.sent[sent:])
    record = nodes.cores[auctioneer].peers.get_record(nodes.chain.get_node(OBSERVER))
    assert record is not None
    assert record.points == CROSSING_POINTS


@pytest.mark.parametrize(
    "make",
    [
        lambda n: CountersignResponse((), (), ()),
        lambda n: CloseNotice(
            n.chain.sign("bob", RoundClose(HUB, 0, 0, bytes(32), 1, START_MS, True)), (bytes(32),)
        ),
        lambda n: ReleaseNotice(n.chain.sign("bob", ShareRelease(HUB, 0, 0, bytes(32), ()))),
        lambda n: "not a message",
    ],
    ids=["countersignatures", "close", "release", "unknown"],
)
def test_a_hostile_message_stops_nobody(nodes: Nodes, make: object) -> None:
    for to in NODES:
        nodes.send("bob", to, make(nodes))
    nodes.pass_time(500)


def test_a_countersign_request_for_a_term_to_come_stops_nobody(nodes: Nodes) -> None:
    """It waits until the term begins, and must not fail then."""
    term = nodes.cores["node-1"].state.get_term(HUB)
    pending = Bidder(nodes.chain, "alice").seal(replace(term, number=term.number + 1))
    for sender in ("node-1", "node-2"):
        for to in ("node-1", "node-2"):
            nodes.send(sender, to, CountersignRequest((pending.submission.sealed_bid,)))
    nodes.pass_time(15_000)
    assert nodes.cores["node-1"].state.get_term(HUB).number > term.number
    assert any(name == "input_ignored" for _, name, _ in nodes.events)


# --- the step ------------------------------------------------------------------------------------


def test_what_a_node_sends_to_itself_does_not_leave_it(nodes: Nodes) -> None:
    name = get_auctioneer(nodes)
    core = nodes.cores[name]
    pending = Bidder(nodes.chain, "alice").seal(core.state.get_term(HUB))
    ready = nodes.step(name, ReceiveBid(1, pending.submission))
    assert ready.send
    assert all(send.to != core.node_id for send in ready.send)


def test_a_bid_becomes_a_verified_round_everywhere(nodes: Nodes) -> None:
    nodes.pass_time(1_000)
    name = get_auctioneer(nodes)
    pending = Bidder(nodes.chain, "alice").seal(nodes.cores[name].state.get_term(HUB), model=HUB)
    nodes.step(name, ReceiveBid(1, pending.submission))
    assert [core.rounds.verdicts["verified"] for core in nodes.cores.values()] == [1, 1, 1]


def test_a_transcript_that_comes_twice_counts_once(nodes: Nodes) -> None:
    nodes.pass_time(1_000)
    name = get_auctioneer(nodes)
    pending = Bidder(nodes.chain, "alice").seal(nodes.cores[name].state.get_term(HUB), model=HUB)
    nodes.step(name, ReceiveBid(1, pending.submission))
    core = nodes.cores[OBSERVER]
    (transcript,) = nodes.transcripts
    nodes.send(name, OBSERVER, TranscriptNotice(transcript))
    assert core.rounds.verdicts["verified"] == 1


def test_a_probe_is_answered(nodes: Nodes) -> None:
    ready = nodes.send("node-2", "node-1", Probe(3))
    assert any(send.to == nodes.chain.get_node("node-2") for send in ready.send)


def test_reports_are_published_when_due(nodes: Nodes) -> None:
    nodes.pass_time(21_000, step_ms=1_000)
    record = nodes.cores["node-2"].membership.get_node(nodes.chain.get_node("node-1"))
    assert record is not None
    assert isinstance(record.capability.message, CapabilityReport)
    assert record.capability.message.stamp.issued_at_ms > START_MS


def test_a_backend_that_goes_down_sells_no_slots(nodes: Nodes) -> None:
    nodes.step("node-1", BackendHealth(healthy=False))
    record = nodes.cores["node-2"].membership.get_node(nodes.chain.get_node("node-1"))
    assert record is not None
    assert record.load is not None
    assert record.load.message.slots == 0


def test_a_node_whose_clock_was_set_back_uses_no_report_of_the_future(nodes: Nodes) -> None:
    """A round with it would convict its auctioneer."""
    nodes.pass_time(1_000)
    core, tolerance_ms = nodes.cores["node-2"], nodes.genesis.params.clock_tolerance_ms
    records = [record for _, record in core.membership.get_nodes() if record.load is not None]
    issued_ms = min(
        max(record.load.message.stamp.issued_at_ms, record.capability.message.stamp.issued_at_ms)
        for record in records
        if record.load is not None
    )
    counts = [
        len(core.rounds.get_providers(0, now_ms=issued_ms - back_ms))
        for back_ms in (0, tolerance_ms, tolerance_ms + 1)
    ]
    assert counts == [2, 2, 0]


def test_a_step_tells_when_to_come_back(nodes: Nodes) -> None:
    ready = nodes.step("node-1", TimePassed())
    assert ready.wake_at_ms is not None
    assert nodes.now_ms <= ready.wake_at_ms <= nodes.now_ms + 1_000


def test_all_replicas_agree(nodes: Nodes) -> None:
    nodes.pass_time(12_000)
    assert len({core.state.compute_root() for core in nodes.cores.values()}) == 1
    assert nodes.cores["node-1"].state.height > 1


# --- requests that raise -------------------------------------------------------------------------


def test_a_transaction_that_can_only_be_refused_is_refused_at_once(nodes: Nodes) -> None:
    core = nodes.cores["node-1"]
    body = TransferFunds(nodes.chain.get_id("bob"), 1)
    stranger = nodes.chain.make_transaction("stranger", body)
    with pytest.raises(UnknownAccountError):
        core.require_orderable(stranger)
    forged = nodes.chain.sign("bob", stranger.message)
    with pytest.raises(InvalidSignatureError):
        core.require_orderable(forged)
    assert core.refused["UnknownAccountError"] == 1
    core.require_orderable(nodes.chain.make_transaction("alice", body))


def test_a_used_nonce_is_refused_at_once(nodes: Nodes) -> None:
    nodes.pass_time(1_000)
    core = nodes.cores["node-1"]
    body = TransferFunds(nodes.chain.get_id("bob"), 1)
    with pytest.raises(NonceMismatchError):
        core.require_orderable(nodes.chain.make_transaction("node-1", body, nonce=1))


def test_a_refused_task_is_counted(nodes: Nodes) -> None:
    core = nodes.cores["node-1"]
    start = Buyer(nodes.chain, "alice", "node-2").make_meter().start(now_ms=nodes.now_ms)
    with pytest.raises(InvalidAllocationError):
        core.begin_task(start, now_ms=nodes.now_ms)
    assert core.refused["InvalidAllocationError"] == 1


def test_a_task_is_in_the_next_load_report(nodes: Nodes) -> None:
    core = nodes.cores["node-1"]
    start = Buyer(nodes.chain, "alice", "node-1").make_meter().start(now_ms=nodes.now_ms)
    execution, ready = core.begin_task(start, now_ms=nodes.now_ms)
    nodes.carry("node-1", ready)
    node_id = nodes.chain.get_node("node-1")
    record = nodes.cores["node-2"].membership.get_node(node_id)
    assert record is not None
    assert record.load is not None
    assert record.load.message.active == (start.allocation.hash,)
    nodes.carry("node-1", core.end_task(execution, now_ms=nodes.now_ms))
    assert record.load.message.finished == (start.allocation.hash,)


def test_a_clock_that_goes_back_does_not_stop_the_duties(nodes: Nodes) -> None:
    core = nodes.cores[nodes.names[0]]
    nodes.step(nodes.names[0], TimePassed())
    nodes.now_ms -= 600_000
    nodes.step(nodes.names[0], TimePassed())
    assert core._next_tick_ms <= nodes.now_ms + TICK_MS
