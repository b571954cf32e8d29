"""The node's one step: what it refuses, what it sends itself, what it owes the ledger.

Source: docs/ARCHITECTURE.md; design §4, §13 (malformed, replayed, wrongly signed input).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from auctioneer.predictors.linear import LinearPredictor
from iemas import wire
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import VoteNotice
from iemas.core.auction import (
    Bid,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
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
from iemas.core.ready import Ready, RecordKind
from iemas.core.report import CapabilityReport
from iemas.core.types import HashAlgorithm
from iemas.core.vote import VoteKind
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import TransferFunds
from iemas.testing.builders import ASK, BLOCK_SIZE, Bidder, Buyer, make_capability, make_stamp
from iemas.testing.chain import HUB, START_MS, LedgerChain, make_genesis, make_identity
from node.core import (
    BackendHealth,
    NodeCore,
    ReceiveBid,
    ReceivePeerMessage,
    TimePassed,
)
from node.reporting import NodeProfile

OBSERVER = "observer"
NODES = (OBSERVER, "node-1", "node-2")


class Nodes:
    """By default two validators that sell and an observer, with a network that loses nothing."""

    def __init__(self, names: Sequence[str] = NODES) -> None:
        self.names = names
        self.genesis = make_genesis(validators=[name for name in names if name != OBSERVER])
        self.chain = LedgerChain(self.genesis)
        self.now_ms = START_MS
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.transcripts: list[object] = []
        self.cores = {name: self.make_core(name) for name in names}

    def make_core(self, name: str) -> NodeCore:
        signer = self.chain.get_signer(name)
        sells = name != OBSERVER
        app = LedgerApplication(
            self.genesis, self.chain.chain_id, verify_transcript=lambda transcript, state: None
        )
        hpke_key = make_identity(name).derive_hpke_key()
        return NodeCore(
            genesis=self.genesis,
            chain_id=self.chain.chain_id,
            signer=signer,
            hpke_key=hpke_key,
            profile=NodeProfile(
                public_address=f"{name}:1",
                peer_address=f"{name}:2",
                ca_certificate=b"",
                hpke_public_key=hpke_key.public_key().public_bytes_raw(),
                software="test",
                hub=HUB,
                model=HUB if sells else "",
                tokenizer_hash=bytes(32) if sells else b"",
                block_size=BLOCK_SIZE if sells else 0,
                hash_algorithm=HashAlgorithm.SHA256_CBOR,
                context_tokens=4096 if sells else 0,
                slots=4 if sells else 0,
            ),
            ask=ASK if sells else None,
            engine=TendermintEngine(
                app, genesis=self.genesis, chain_id=self.chain.chain_id, signer=signer
            ),
            predictor=LinearPredictor(),
            decode_bid=lambda data: wire.decode(Bid, data),
            incarnation=START_MS,
        )

    def carry(self, name: str, ready: Ready) -> Ready:
        """Deliver what a step sent, and all that follows; give the step's own effects."""
        queue = [(name, send) for send in ready.send]
        self.log(name, ready)
        names = {core.node_id: other for other, core in self.cores.items()}
        while queue:
            sender, send = queue.pop(0)
            to = names.get(send.to)
            if to is None:
                continue
            inp = ReceivePeerMessage(self.cores[sender].node_id, send.message)
            answer = self.cores[to].step(inp, now_ms=self.now_ms)
            self.log(to, answer)
            queue += [(to, follow) for follow in answer.send]
        return ready

    def log(self, name: str, ready: Ready) -> None:
        self.events += [(name, event.name, dict(event.fields)) for event in ready.events]
        for record in ready.persist:
            if record.kind is RecordKind.TRANSCRIPT and record.value not in self.transcripts:
                self.transcripts.append(record.value)

    def step(self, name: str, inp: object) -> Ready:
        return self.carry(name, self.cores[name].step(inp, now_ms=self.now_ms))

    def join(self) -> None:
        """Let everyone know everyone."""
        for name in self.names:
            self.step(name, TimePassed())
        for name in self.names:
            for other in self.names:
                record = self.cores[name].membership.get_node(self.cores[name].node_id)
                if other != name and record is not None:
                    ready = self.cores[other].introduce(record.capability, now_ms=self.now_ms)
                    self.carry(other, ready)

    def pass_time(self, total_ms: int, *, step_ms: int = 250) -> None:
        for _ in range(total_ms // step_ms):
            self.now_ms += step_ms
            for name in self.cores:
                self.step(name, TimePassed())

    def send(self, sender: str, to: str, message: object) -> Ready:
        inp = ReceivePeerMessage(self.chain.get_node(sender), message)
        return self.carry(to, self.cores[to].step(inp, now_ms=self.now_ms))


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
    other = "node-2" if get_auctioneer(nodes) == "node-1" else "node-1"
    ready = nodes.step(other, ReceiveBid(5, pending.submission))
    (answer,) = ready.answers
    assert (answer.stream, answer.bid_hash) == (5, pending.bid_hash)
    assert isinstance(answer.message, Refusal)
    assert answer.message.error == "NotAuctioneerError"
    assert nodes.cores[other].refused["NotAuctioneerError"] == 1


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
    assert any(name == "input_refused" for _, name, _ in nodes.events)


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


def test_a_step_tells_when_to_come_back(nodes: Nodes) -> None:
    ready = nodes.step("node-1", TimePassed())
    assert ready.wake_at_ms is not None
    assert nodes.now_ms <= ready.wake_at_ms <= nodes.now_ms + 1_000


# --- duties to the ledger ------------------------------------------------------------------------


def test_a_provider_posts_its_ask(nodes: Nodes) -> None:
    nodes.pass_time(1_000)
    state = nodes.cores[OBSERVER].state
    assert state.get_ask(HUB, nodes.chain.get_node("node-1")) == ASK


def test_all_replicas_agree(nodes: Nodes) -> None:
    nodes.pass_time(12_000)
    assert len({core.state.compute_root() for core in nodes.cores.values()}) == 1
    assert nodes.cores["node-1"].state.height > 1


def test_who_answers_nothing_is_voted_absent() -> None:
    nodes = Nodes(("node-1", "node-2", "node-3", "node-4"))
    nodes.join()
    silent = nodes.cores.pop("node-2")
    nodes.now_ms += 6_000
    nodes.pass_time(10_000)
    assert not nodes.cores["node-1"].state.is_live(HUB, silent.node_id)


def test_who_votes_twice_is_reported_and_slashed() -> None:
    nodes = Nodes(("node-1", "node-2", "node-3", "node-4"))
    nodes.join()
    nodes.pass_time(1_000)
    liar, height = nodes.chain.get_node("node-2"), nodes.cores["node-1"].state.height + 1
    votes = tuple(
        nodes.chain.make_vote("node-2", height, value, kind=VoteKind.PRECOMMIT)
        for value in (None, bytes(32))
    )
    before = nodes.cores["node-1"].state.get_stake_micros(liar)
    nodes.send("node-2", "node-1", VoteNotice(votes))
    nodes.pass_time(10_000)
    for core in nodes.cores.values():
        assert core.state.get_stake_micros(liar) < before
        assert core.state.is_jailed(liar)


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
