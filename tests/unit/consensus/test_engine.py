"""The engine around the algorithm. Source: docs/spec/engine.md"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from iemas.consensus import chain as chains
from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksRequest,
    BlocksResponse,
    CommittedBlock,
    ConsensusStatus,
    ProposalNotice,
    SignRecord,
    SubmitTransaction,
    ValidRecord,
    VoteNotice,
)
from iemas.consensus.voting import NO_ROUND, Proposal
from iemas.core.auction import Ask
from iemas.core.envelope import Signed
from iemas.core.errors import (
    ConfigurationError,
    InternalError,
    InvalidBlockError,
    InvalidSignatureError,
    MalformedMessageError,
    OversizedMessageError,
    RemoteProtocolError,
)
from iemas.core.params import MarketParams
from iemas.core.ready import RecordKind
from iemas.core.types import HubId, Prices, short_id
from iemas.core.vote import Vote, VoteKind
from iemas.ledger.header import Block
from iemas.ledger.transaction import (
    FundEscrow,
    PostAsk,
    ResultCode,
    Stake,
    Transaction,
    TransferFunds,
    Unstake,
)
from iemas.testing.chain import make_genesis
from tests.cluster import FOUR, OBSERVER, Cluster, Replica

PARAMS = MarketParams()


@pytest.fixture
def cluster() -> Cluster:
    """Four validators and an observer after block 1."""
    cluster = Cluster(observers=(OBSERVER,)).start()
    cluster.run(200)
    assert cluster.get_roots() == {(1, cluster["node-1"].engine.state_root)}
    return cluster


@pytest.fixture
def alone() -> Cluster:
    """A single validator that no block has come to yet."""
    return Cluster(["node-1"])


def list_heights(cluster: Cluster, names: Sequence[str] = FOUR) -> list[int]:
    return [cluster[name].height for name in names]


def get_proposer(cluster: Cluster, round_number: int = 0) -> str:
    """Name the proposer of the height that comes."""
    validators = cluster["node-1"].engine._chain.validators
    return cluster.chain.get_name(validators.get_proposer(round_number))


def make_proposal(
    cluster: Cluster, *, signer: str | None = None, maker: str | None = None, **changes: Any
) -> ProposalNotice:
    """Make a proposal of round 0 of the next height, with changes to its block's header."""
    signer = signer or get_proposer(cluster)
    block = cluster["node-1"].engine._chain.make_block(
        (), signer=cluster.chain.get_signer(maker or signer), now_ms=cluster.clock.now_ms
    )
    header = replace(block.header.message, **changes)
    block = Block(cluster.chain.sign(maker or signer, header), block.transactions)
    proposal = cluster.chain.sign(signer, Proposal(block.height, 0, block.hash, NO_ROUND))
    return ProposalNotice(proposal, block)


def propose(cluster: Cluster, replica: Replica, notice: ProposalNotice) -> list[Vote]:
    """Give a replica a proposal; give the votes that it sends."""
    before = len(cluster.sent)
    replica.step(notice, cluster[get_proposer(cluster)].node_id)
    notices = [m for s, _, m in cluster.sent[before:] if s == replica.node_id]
    votes = [v.message for m in notices if isinstance(m, VoteNotice) for v in m.votes]
    return list(dict.fromkeys(votes))


def get_voter(cluster: Cluster) -> Replica:
    """Give a validator that is not the next proposer."""
    return next(cluster[name] for name in FOUR if name != get_proposer(cluster))


# --- blocks on demand ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FOUR, OBSERVER])
def test_a_transaction_submitted_anywhere_is_applied_everywhere(
    cluster: Cluster, name: str
) -> None:
    transaction = cluster.submit(name)
    cluster.run(200)
    assert cluster.is_applied(transaction)
    assert len(cluster.get_roots()) == 1


def test_one_transaction_makes_one_block(cluster: Cluster) -> None:
    cluster.submit("node-1")
    cluster.run(PARAMS.idle_block_interval_ms - 100)
    assert list_heights(cluster) == [2] * 4


def test_an_idle_chain_makes_a_block_now_and_then(cluster: Cluster) -> None:
    cluster.run(PARAMS.idle_block_interval_ms - 300)
    assert list_heights(cluster) == [1] * 4
    cluster.run(400)
    assert list_heights(cluster) == [2] * 4


def test_a_term_ends_without_transactions(cluster: Cluster) -> None:
    cluster.run(PARAMS.term_ms)
    assert cluster["node-1"].engine.state.get_term(cluster.chain.hub).number == 1


def test_blocks_keep_their_distance(cluster: Cluster) -> None:
    for amount in range(1, 40):
        cluster.submit("node-1", cluster.make_funding(amount))
        cluster.run(10)
    cluster.run(300)
    times = [block.block.time_ms for block in cluster["node-1"].blocks[1:]]
    assert len(times) > 3
    assert min(after - before for before, after in pairwise(times)) >= PARAMS.block_interval_ms


def test_a_transaction_after_a_pause_does_not_wait(cluster: Cluster) -> None:
    cluster.run(500)
    transaction = cluster.submit("node-1")
    cluster.run(40)
    assert cluster.is_applied(transaction)


def give(cluster: Cluster, transaction: Signed[Transaction]) -> list[type[Exception]]:
    """Let a peer give node-1 a transaction; list what the peer is blamed for."""
    message, sender = SubmitTransaction(transaction), cluster["node-2"].node_id
    ready = cluster["node-1"].engine.step(message, sender=sender, now_ms=cluster.clock.now_ms)
    return [type(fault.error) for fault in ready.faults]


def test_who_gives_a_transaction_that_a_replica_that_lags_cannot_take_is_not_blamed(
    cluster: Cluster,
) -> None:
    """Where its account is known already, this first ask is refused in a block only."""
    ask = Ask(cluster.chain.hub, Prices(1, 1, 10**9))
    assert give(cluster, cluster.chain.make_transaction("stranger", PostAsk(ask))) == []


def test_who_gives_what_no_node_passes_on_is_blamed(cluster: Cluster) -> None:
    forged = forge(cluster.make_funding())
    assert give(cluster, forged) == [InvalidSignatureError]
    large = cluster.chain.make_transaction("alice", FundEscrow(HubId("x" * 3_000_000), 1))
    assert give(cluster, large) == [OversizedMessageError]


def test_votes_of_one_validator_alone_do_not_flood_the_chain(cluster: Cluster) -> None:
    """A faulty one can begin heights, four a second at most, never as fast as the network is."""
    for _ in range(200):
        height = cluster["node-1"].height + 1
        vote = cluster.chain.make_vote("node-2", height, None)
        if get_proposer(cluster) != "node-2":
            for name in ("node-1", "node-3", "node-4"):
                cluster[name].step(VoteNotice((vote,)), cluster["node-2"].node_id)
        cluster.clock.run_until(cluster.clock.now_ms + 10)
    assert cluster["node-1"].height <= 1 + 2_000 // 250


def test_a_single_validator_decides_alone(alone: Cluster) -> None:
    alone.start()
    transaction = alone.submit("node-1")
    alone.run(100)
    assert alone.is_applied(transaction)


def test_a_step_tells_when_to_come_back(cluster: Cluster) -> None:
    replica, now_ms = cluster["node-1"], cluster.clock.now_ms
    ready = replica.engine.tick(now_ms=now_ms)
    assert ready.wake_at_ms is not None
    assert now_ms < ready.wake_at_ms <= now_ms + PARAMS.idle_block_interval_ms


# --- time ----------------------------------------------------------------------------------------


def test_block_time_never_goes_back(cluster: Cluster) -> None:
    before_ms = cluster["node-1"].engine.state.time_ms
    for replica in cluster.replicas.values():
        replica.skew_ms = -60_000
    cluster.submit("node-1")
    cluster.run(1_000)
    assert list_heights(cluster)[0] > 1
    assert cluster["node-1"].engine.state.time_ms == before_ms


def test_a_block_too_far_ahead_is_not_voted_for(cluster: Cluster) -> None:
    ahead_ms = cluster.clock.now_ms + PARAMS.clock_tolerance_ms
    voter = get_voter(cluster)
    votes = propose(cluster, voter, make_proposal(cluster, time_ms=ahead_ms + 1))
    assert [vote.block_hash for vote in votes] == [None]
    assert "ahead of this node's clock" in str(voter.events[-1].fields["reason"])


def test_a_block_a_little_ahead_is_voted_for(cluster: Cluster) -> None:
    ahead_ms = cluster.clock.now_ms + PARAMS.clock_tolerance_ms
    notice = make_proposal(cluster, time_ms=ahead_ms)
    votes = propose(cluster, get_voter(cluster), notice)
    assert [vote.block_hash for vote in votes] == [notice.block.hash]


def test_one_clock_that_is_an_hour_late_does_not_stop_anybody(cluster: Cluster) -> None:
    cluster["node-2"].skew_ms = -3_600_000
    transaction = cluster.submit("node-1")
    cluster.run(5_000)
    assert cluster.is_applied(transaction)


def test_a_clock_that_is_set_back_amid_a_height_does_not_stop_it(cluster: Cluster) -> None:
    first, second = get_proposer(cluster), get_proposer(cluster, 1)
    cluster[first].crash()  # so all three others are needed, and a timeout
    transaction = cluster.submit(second)
    cluster.run(60)
    cluster[second].skew_ms = -600_000
    cluster.run(5_000, until=lambda: cluster.is_applied(transaction))
    assert cluster.is_applied(transaction)


def test_a_clock_that_is_set_back_stops_neither_status_nor_complaint(cluster: Cluster) -> None:
    for name in FOUR[2:]:
        cluster[name].crash()
    node = cluster["node-1"]
    cluster.submit("node-1")
    cluster.run(500)
    node.skew_ms = -600_000
    before = len(cluster.sent)
    cluster.run(7_000)
    kinds = {
        type(message) for sender, _, message in cluster.sent[before:] if sender == node.node_id
    }
    assert {ConsensusStatus, BlocksRequest} <= kinds
    assert [e for e in node.events if e.name == "height_undecided"]


# --- proposals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"chain_id": "other"},
        {"height": 7},
        {"previous_hash": bytes(32)},
        {"time_ms": 5},
        {"state_root": bytes(32)},
        {"validators_hash": bytes(32)},
        {"next_validators_hash": bytes(32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_block_that_breaks_a_rule_is_not_voted_for(
    cluster: Cluster, changes: dict[str, Any]
) -> None:
    notice = make_proposal(cluster, **changes)
    proposal = cluster.chain.sign(get_proposer(cluster), replace(notice.proposal.message, height=2))
    voter = get_voter(cluster)
    votes = propose(cluster, voter, ProposalNotice(proposal, notice.block))
    assert [vote.block_hash for vote in votes] == [None]
    assert voter.events[-1].name == "proposal_refused"


def test_a_new_block_is_made_by_who_proposes_it(cluster: Cluster) -> None:
    other = get_proposer(cluster, 1)
    votes = propose(cluster, get_voter(cluster), make_proposal(cluster, maker=other))
    assert [vote.block_hash for vote in votes] == [None]


def refuse(cluster: Cluster, message: Any, error: type[Exception]) -> str:
    voter = get_voter(cluster)
    before = voter.engine.height
    with pytest.raises(error) as caught:
        voter.engine.step(
            message,
            sender=cluster[get_proposer(cluster)].node_id,
            now_ms=cluster.clock.now_ms,
        )
    assert voter.engine.height == before
    return str(caught.value)


def forge(signed: Signed[Any]) -> Signed[Any]:
    return Signed(signed.message, replace(signed.envelope, signature=bytes(64)))


def test_a_proposal_of_another_than_the_rounds_proposer_is_refused(cluster: Cluster) -> None:
    notice = make_proposal(cluster, signer=get_proposer(cluster, 1))
    assert "is not the proposer of height 2 round 0" in refuse(cluster, notice, RemoteProtocolError)


def test_a_forged_proposal_does_not_keep_the_real_one_out(cluster: Cluster) -> None:
    notice = make_proposal(cluster)
    refuse(cluster, replace(notice, proposal=forge(notice.proposal)), InvalidSignatureError)
    votes = propose(cluster, get_voter(cluster), notice)
    assert [vote.block_hash for vote in votes] == [notice.block.hash]


def test_a_block_spoilt_on_its_way_does_not_keep_the_real_one_out(cluster: Cluster) -> None:
    notice = make_proposal(cluster)
    stranger = cluster.make_funding()
    spoilt = [
        replace(notice.block, transactions=(stranger,)),
        replace(notice.block, header=forge(notice.block.header)),
        make_proposal(cluster, time_ms=cluster.clock.now_ms + 1).block,
    ]
    errors = (InvalidBlockError, InvalidSignatureError, RemoteProtocolError)
    for block, error in zip(spoilt, errors, strict=True):
        refuse(cluster, replace(notice, block=block), error)
    votes = propose(cluster, get_voter(cluster), notice)
    assert [vote.block_hash for vote in votes] == [notice.block.hash]


def test_a_dead_proposer_costs_a_round(cluster: Cluster) -> None:
    dead = get_proposer(cluster)
    cluster[dead].crash()
    name = next(name for name in FOUR if name != dead)
    transaction = cluster.submit(name)
    cluster.run(1_500)
    assert cluster.is_applied(transaction)
    assert cluster[name].applied[-1].committed.commit.round == 1


def test_a_quorum_of_precommits_for_nil_alone_does_not_end_a_round(cluster: Cluster) -> None:
    # Somebody may have locked in it, and the others are to learn of that before they leave.
    proposer = get_proposer(cluster)
    unaware = [name for name in FOUR if name != proposer][:2]

    def is_first_proposal(_: str, to: str, message: Any) -> bool:
        is_proposal = isinstance(message, ProposalNotice)
        return to in unaware and is_proposal and message.proposal.message.round == 0

    cluster.should_lose = is_first_proposal
    transaction = cluster.submit(proposer)
    cluster.run(500)  # 300 for the proposal, 100 for prevotes and, begun a little later, precommits
    assert not cluster.is_applied(transaction)
    cluster.run(100)
    assert cluster.is_applied(transaction)


def test_a_round_that_a_quorum_voted_nil_in_is_over_at_once(cluster: Cluster) -> None:
    dead = get_proposer(cluster)
    cluster[dead].crash()
    transaction = cluster.submit(next(name for name in FOUR if name != dead))
    cluster.run(400)  # 300 for the proposal, and the votes
    assert cluster.is_applied(transaction)


def test_a_silent_proposer_is_not_waited_for(cluster: Cluster) -> None:
    dead = get_proposer(cluster)
    cluster[dead].crash()
    names = [name for name in FOUR if name != dead]
    for name in names:
        cluster[name].engine.set_silent([cluster[dead].node_id])
    transaction = cluster.submit(names[0])
    cluster.run(100)
    assert cluster.is_applied(transaction)
    assert cluster[names[0]].applied[-1].committed.commit.round == 1


def test_a_proposer_that_falls_silent_while_it_is_waited_for_is_given_up(cluster: Cluster) -> None:
    dead = get_proposer(cluster)
    cluster[dead].crash()
    names = [name for name in FOUR if name != dead]
    transaction = cluster.submit(names[0])
    cluster.run(50)
    assert not cluster.is_applied(transaction)
    for name in names:
        cluster[name].engine.set_silent([cluster[dead].node_id])
        cluster[name].wake()
    cluster.run(60)
    assert cluster.is_applied(transaction)


def test_one_validators_mistake_about_the_proposer_costs_no_round(cluster: Cluster) -> None:
    proposer = get_proposer(cluster)
    mistaken = next(name for name in FOUR if name != proposer)
    cluster[mistaken].engine.set_silent([cluster[proposer].node_id])
    transaction = cluster.submit(mistaken)
    cluster.run(200)
    assert cluster.is_applied(transaction)
    assert cluster[mistaken].applied[-1].committed.commit.round == 0


# --- votes ---------------------------------------------------------------------------------------


def test_a_forged_vote_is_refused(cluster: Cluster) -> None:
    vote = forge(cluster.chain.make_vote("node-2", 2, None))
    refuse(cluster, VoteNotice((vote,)), InvalidSignatureError)


def test_a_strangers_vote_is_refused(cluster: Cluster) -> None:
    vote = cluster.chain.make_vote("alice", 2, None)
    assert "is no validator" in refuse(cluster, VoteNotice((vote,)), RemoteProtocolError)


def test_messages_are_bounded(cluster: Cluster) -> None:
    vote = cluster.chain.make_vote("node-2", 2, None)
    with pytest.raises(MalformedMessageError, match="at most 256 votes"):
        VoteNotice((vote,) * 257)
    with pytest.raises(MalformedMessageError, match="whole prefixes"):
        ConsensusStatus(2, 0, (), b"x", wants_blocks=False)
    with pytest.raises(MalformedMessageError, match="at most 65536 bytes"):
        ConsensusStatus(2, 0, (), bytes(8 * 10_000), wants_blocks=False)
    with pytest.raises(MalformedMessageError, match="at most 16 rounds"):
        ConsensusStatus(2, 0, (1,) * 17, b"", wants_blocks=False)


@pytest.mark.parametrize("height", [1, 3, 2**62])
def test_votes_of_other_heights_change_nothing(cluster: Cluster, height: int) -> None:
    vote = cluster.chain.make_vote("node-2", height, None)
    voter = cluster["node-1"]
    for _ in range(100):
        voter.step(VoteNotice((vote,)), cluster["node-2"].node_id)
    assert len(voter.engine._early.list_of(cluster["node-2"].node_id)) <= 8
    assert voter.refused == []
    assert voter.height == 1


def test_a_double_vote_is_given_out_as_evidence_once(cluster: Cluster) -> None:
    votes = tuple(cluster.chain.make_vote("node-2", 2, value) for value in (None, bytes(32)))
    replica = cluster["node-1"]
    for _ in range(2):
        replica.step(VoteNotice(votes), cluster["node-2"].node_id)
    (double,) = replica.engine.take_evidence()
    assert {double.first, double.second} == set(votes)
    assert replica.engine.take_evidence() == ()
    assert [e.name for e in replica.events].count("double_vote_seen") == 1


def test_double_votes_seen_at_once_are_told_in_the_order_of_ids(cluster: Cluster) -> None:
    """Whatever order Python's hashes give: two processes have one history."""
    liars = ("node-2", "node-3", "node-4")
    votes = [
        cluster.chain.make_vote(name, 2, value) for value in (None, bytes(32)) for name in liars
    ]
    replica = cluster["node-1"]
    replica.step(VoteNotice(tuple(votes)), cluster["node-2"].node_id)
    told = [e.fields["validator"] for e in replica.events if e.name == "double_vote_seen"]
    assert told == [short_id(node) for node in sorted(map(cluster.chain.get_node, liars))]


def test_what_validators_that_are_a_block_ahead_say_is_kept(cluster: Cluster) -> None:
    """The last precommit of a height often comes after the next height's proposal."""
    late = cluster["node-1"]
    held: list[Any] = []

    def hold_precommits(sender: str, to: str, message: Any) -> bool:
        is_late = to == "node-1" and isinstance(message, VoteNotice)
        if is_late and any(v.message.kind is VoteKind.PRECOMMIT for v in message.votes):
            held.append((sender, message))
            return True
        return False

    cluster.should_lose = hold_precommits
    cluster.submit("node-2", cluster.make_funding(1))
    cluster.run(60)
    cluster.submit("node-2", cluster.make_funding(2))
    cluster.run(60)
    assert (late.height, cluster["node-2"].height) == (1, 3)
    cluster.should_lose = lambda *_: False
    for sender, message in held:
        late.step(message, cluster[sender].node_id)
    assert late.height == 3


# --- persistence ---------------------------------------------------------------------------------


def test_what_is_signed_is_persisted_in_the_step_that_sends_it(cluster: Cluster) -> None:
    replica = get_voter(cluster)
    ready = replica.engine.step(
        make_proposal(cluster), sender=cluster["node-1"].node_id, now_ms=cluster.clock.now_ms
    )
    (record,) = [r for r in ready.persist if r.kind is RecordKind.SIGNED]
    sent = {v for s in ready.send if isinstance(s.message, VoteNotice) for v in s.message.votes}
    assert sent == set(record.value.votes)


def test_a_decided_block_is_persisted_with_its_commit_before_it_is_announced(
    alone: Cluster,
) -> None:
    alone.start()
    (committed,) = alone["node-1"].blocks
    assert committed.block.hash == committed.commit.block_hash
    assert len(committed.commit.precommits) == 1


def test_a_valid_block_is_persisted_with_its_transactions_and_proof(cluster: Cluster) -> None:
    cluster.should_lose = lambda _, __, message: any(
        v.message.kind is VoteKind.PRECOMMIT for v in getattr(message, "votes", ())
    )
    transaction = cluster.submit("node-1")
    cluster.run(200)
    for name in FOUR:
        (valid,) = cluster[name].disk.scan(RecordKind.VALID, ValidRecord)
        assert [signed.hash for signed in valid.block.transactions] == [transaction]
        assert len(valid.prevotes) >= 3


def test_all_restart_after_they_locked_and_decide_what_they_locked_on(cluster: Cluster) -> None:
    cluster.should_lose = lambda _, __, message: any(
        v.message.kind is VoteKind.PRECOMMIT for v in getattr(message, "votes", ())
    )
    transaction = cluster.submit("node-1")
    cluster.run(200)
    (valid,) = cluster["node-1"].disk.scan(RecordKind.VALID, ValidRecord)
    for replica in cluster.replicas.values():
        replica.crash()
    cluster.should_lose = lambda *_: False
    cluster.start()
    cluster.run(3_000)
    assert cluster.is_applied(transaction)
    assert cluster["node-1"].blocks[1].block.hash == valid.block.hash


@pytest.mark.parametrize("name", [*FOUR, OBSERVER])
def test_a_restarted_node_goes_on(cluster: Cluster, name: str) -> None:
    cluster[name].crash()
    cluster.submit("node-1" if name != "node-1" else "node-2")
    cluster.run(2_000)
    cluster[name].start()
    assert cluster[name].engine.take_applied() == ()
    transaction = cluster.submit(name)
    cluster.run(2_000)
    assert cluster.is_applied(transaction)
    assert len(cluster.get_roots()) == 1


def test_restored_blocks_must_follow_each_other(cluster: Cluster) -> None:
    cluster.run(12_000)
    blocks = cluster["node-1"].blocks
    with pytest.raises(ConfigurationError, match="move the node's database away"):
        cluster.make_engine("node-1").restore([blocks[0], blocks[2]])


def test_a_validator_whose_blocks_were_lost_refuses_to_start(cluster: Cluster) -> None:
    cluster.run(12_000)
    replica = cluster["node-1"]
    signed = replica.disk.scan(RecordKind.SIGNED, SignRecord)
    with pytest.raises(ConfigurationError, match="it could vote against itself"):
        cluster.make_engine("node-1").restore(replica.blocks[:1], signed)


def test_the_journal_holds_genesis_and_every_transfer(cluster: Cluster) -> None:
    cluster.submit("node-1", cluster.make_funding(10))
    cluster.run(300)
    engine = cluster.make_engine("node-1")
    engine.restore(cluster["node-1"].blocks)
    journal = engine.take_journal()
    assert journal[0].height == 0
    assert [t.amount_micros for t in journal[1].transfers] == [10]
    assert engine.take_journal() == ()


# --- gossip --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [ProposalNotice, VoteNotice], ids=lambda kind: kind.__name__)
def test_what_is_lost_comes_again_from_another_peer(cluster: Cluster, lost: type[Any]) -> None:
    """One way is cut, so only a third validator can pass it on."""
    proposer, victim = get_proposer(cluster), get_voter(cluster).name
    cluster.should_lose = lambda sender, to, message: (
        isinstance(message, lost) and sender == proposer and to == victim
    )
    transaction = cluster.submit(proposer)
    cluster.run(900)
    assert cluster.is_applied(transaction)


def test_a_status_says_what_is_held_and_gets_the_rest(cluster: Cluster) -> None:
    first, second = cluster["node-1"], cluster["node-2"]
    vote = cluster.chain.make_vote("node-3", 2, None)
    first.step(VoteNotice((vote,)), cluster["node-3"].node_id)
    before = len(cluster.sent)
    first.step(ConsensusStatus(2, 0, (), b"", wants_blocks=True), second.node_id)
    assert (first.node_id, second.node_id, VoteNotice((vote,))) in cluster.sent[before:]
    held = vote.hash[:8]
    before = len(cluster.sent)
    first.step(ConsensusStatus(2, 0, (), held, wants_blocks=True), second.node_id)
    assert cluster.sent[before:] == []


def test_a_status_of_a_decided_height_gets_the_block(cluster: Cluster) -> None:
    first, second = cluster["node-1"], cluster["node-2"]
    before = len(cluster.sent)
    first.step(ConsensusStatus(1, 3, (), b"", wants_blocks=False), second.node_id)
    (_, to, response), *_ = cluster.sent[before:]
    assert (to, response) == (second.node_id, BlocksResponse((first.blocks[0],), 1))


def test_a_validator_without_a_quorum_says_so(cluster: Cluster) -> None:
    for name in ("node-3", "node-4"):
        cluster[name].crash()
    cluster.submit("node-1")
    cluster.run(12_000)
    events = [e for e in cluster["node-1"].events if e.name == "height_undecided"]
    assert events[-1].fields["voted_power"] < events[-1].fields["quorum_power"]
    assert list_heights(cluster, ("node-1", "node-2")) == [1, 1]


# --- decided blocks ------------------------------------------------------------------------------


def test_observers_hear_of_a_block_from_more_than_a_third_of_the_power(cluster: Cluster) -> None:
    before = len(cluster.sent)
    cluster.submit("node-1")
    cluster.run(200)
    observer = cluster[OBSERVER].node_id
    announced = [s for s in cluster.sent[before:] if isinstance(s[2], BlockAnnouncement)]
    assert [to for _, to, _ in announced] == [observer] * 2


def test_an_observer_that_missed_a_block_asks_for_it(cluster: Cluster) -> None:
    cluster.should_lose = lambda _, to, __: to == OBSERVER
    cluster.submit("node-1")
    cluster.run(200)
    cluster.should_lose = lambda *_: False
    transaction = cluster.submit("node-1")
    cluster.run(500)
    assert cluster[OBSERVER].engine.state.is_applied(transaction)
    assert BlocksRequest(2) in [message for _, _, message in cluster.sent]


def test_a_node_catches_up_in_batches_while_the_others_go_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "BATCH_BLOCKS", 4)
    for name in ("node-4", OBSERVER):
        cluster[name].crash()
    for amount in range(1, 60):
        cluster.submit("node-1", cluster.make_funding(amount))
        cluster.run(100)
    behind = cluster["node-1"].height
    for name in ("node-4", OBSERVER):
        cluster[name].start()
    transaction = cluster.submit("node-1")
    cluster.run(1_500)
    assert behind > 30
    assert cluster.is_applied(transaction)
    assert len(cluster.get_roots()) == 1


def test_batches_are_bounded_by_bytes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "BATCH_BYTES", 1)
    cluster.run(12_000)
    assert len(cluster["node-1"].engine._chain.load_batch(1)) == 1


def test_old_blocks_are_read_from_the_store(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "BATCH_BLOCKS", 2)
    replica, reads = cluster["node-1"], []

    def read_blocks(first: int, limit: int) -> list[CommittedBlock]:
        reads.append(first)
        return replica.blocks[first - 1 : first - 1 + limit]

    replica.crash()
    cluster.engine_options = {"read_blocks": read_blocks}
    replica.start()
    cluster.run(30_000)
    assert len(replica.engine._chain._blocks) <= 4
    assert [block.height for block in replica.engine._chain.load_batch(1)] == [1, 2]
    assert reads[-1] == 1


def test_blocks_in_memory_are_bounded_by_bytes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.run(12_000)
    assert len(cluster["node-1"].engine._chain._blocks) > 2
    monkeypatch.setattr(chains, "KEPT_BYTES", 1)
    cluster.run(6_000)
    assert len(cluster["node-1"].engine._chain._blocks) == 2


def give_block(cluster: Cluster, committed: CommittedBlock) -> Replica:
    """Give the observer a block that it does not have."""
    observer = cluster[OBSERVER]
    observer.step(BlocksResponse((committed,), committed.height), cluster["node-1"].node_id)
    return observer


@pytest.fixture
def ahead(cluster: Cluster) -> CommittedBlock:
    """Block 2, which the observer does not have."""
    cluster.should_lose = lambda _, to, __: to == OBSERVER
    cluster.submit("node-1")
    cluster.run(200)
    return cluster["node-1"].blocks[1]


def test_a_block_with_its_commit_is_believed_from_anyone(
    cluster: Cluster, ahead: CommittedBlock
) -> None:
    assert give_block(cluster, ahead).height == 2


def test_a_block_without_a_quorum_is_refused(cluster: Cluster, ahead: CommittedBlock) -> None:
    commit = replace(ahead.commit, precommits=ahead.commit.precommits[:2])
    observer = give_block(cluster, replace(ahead, commit=commit))
    assert observer.height == 1
    assert "a quorum is" in str(observer.refused[-1])


def test_good_blocks_before_a_bad_one_are_kept(cluster: Cluster, ahead: CommittedBlock) -> None:
    cluster.submit("node-1")
    cluster.run(200)
    third = cluster["node-1"].blocks[2]
    bad = replace(third, commit=replace(third.commit, precommits=()))
    observer = cluster[OBSERVER]
    observer.step(BlocksResponse((ahead, bad), 3), cluster["node-1"].node_id)
    assert observer.height == 2
    assert [fault.name for fault in observer.faults] == ["InvalidBlockError"]
    assert observer.faults[0].peer == cluster["node-1"].node_id


def test_another_state_root_stops_the_node(cluster: Cluster, ahead: CommittedBlock) -> None:
    state = cluster[OBSERVER].engine.state
    state.facts = replace(state.facts, time_ms=state.time_ms - 1)
    state._root = None
    with pytest.raises(InternalError, match="diverged at height 1"):
        give_block(cluster, ahead)


def test_a_peer_that_claims_blocks_but_has_none_is_not_asked_for_ever(cluster: Cluster) -> None:
    observer = cluster[OBSERVER]
    observer.step(BlocksResponse((), 10**9), cluster["node-1"].node_id)
    assert not observer.engine._catch_up._claims


# --- who votes -----------------------------------------------------------------------------------


def test_a_node_that_stakes_votes_and_one_that_unstakes_follows() -> None:
    params = MarketParams(min_stake_micros=1)
    genesis = make_genesis(validators=FOUR, accounts=("alice", OBSERVER), params=params)
    cluster = Cluster(observers=(OBSERVER,), genesis=genesis).start()
    cluster.run(200)
    cluster.submit("node-1", cluster.chain.make_transaction(OBSERVER, Stake(1_000)))
    cluster.run(200)
    cluster.submit("node-1")
    cluster.run(200)
    assert cluster[OBSERVER].engine.is_validator
    for _ in range(15):  # a newcomer starts behind the others
        cluster.submit("node-1")
        cluster.run(200)
    makers = {block.block.proposer for block in cluster["node-1"].blocks}
    assert cluster[OBSERVER].node_id in makers
    cluster.submit("node-1", cluster.chain.make_transaction(OBSERVER, Unstake(1_000)))
    cluster.run(200)
    cluster.submit("node-1")
    cluster.run(200)
    transaction = cluster.submit("node-1")
    cluster.run(400)
    assert not cluster[OBSERVER].engine.is_validator
    assert cluster.is_applied(transaction)


# --- transactions --------------------------------------------------------------------------------


def test_committed_blocks_come_with_their_results(cluster: Cluster) -> None:
    cluster.submit("node-1", cluster.make_funding(1))
    cluster.submit("node-1", cluster.make_funding(10**9))
    cluster.run(300)
    applied = cluster["node-2"].applied
    codes = [result.code for block in applied for result in block.results]
    assert codes == [ResultCode.OK, ResultCode.INSUFFICIENT_BALANCE]
    assert [t.amount_micros for block in applied for t in block.transfers] == [1]
    assert applied[-1].state_root == cluster["node-2"].engine.state_root


def test_the_same_transaction_is_ordered_once(cluster: Cluster) -> None:
    transaction = cluster.make_funding()
    for name in ("node-1", "node-2", OBSERVER, "node-2"):
        cluster.submit(name, transaction)
    cluster.run(3_000)
    assert sum(len(block.block.transactions) for block in cluster["node-1"].blocks) == 1


def test_a_transaction_that_cannot_be_applied_is_refused_by_an_event(cluster: Cluster) -> None:
    body = FundEscrow(cluster.chain.hub, 1)
    forged = forge(cluster.chain.make_transaction("alice", body))
    cluster.submit("node-1", forged)
    event = cluster["node-1"].events[-1]
    assert (event.name, event.fields["reason"]) == ("transaction_refused", "WRONG_SIGNER")


def test_an_account_that_is_credited_elsewhere_already_may_spend_here(cluster: Cluster) -> None:
    """This replica may lag behind the block that credits it."""
    cluster.should_lose = lambda _, to, __: to == "node-4"
    gift = TransferFunds(cluster.chain.get_id("carol"), 50)
    cluster.submit("node-1", cluster.chain.make_transaction("alice", gift))
    cluster.run(1_500)
    spend = cluster.chain.make_transaction("carol", TransferFunds(cluster.chain.get_id("bob"), 1))
    cluster.submit("node-4", spend)
    cluster.should_lose = lambda *_: False
    cluster.run(3_000)
    assert cluster.is_applied(spend.hash)


def test_a_lost_submission_is_sent_again(cluster: Cluster) -> None:
    cluster.should_lose = lambda *_: True
    transaction = cluster.submit(OBSERVER)
    cluster.should_lose = lambda *_: False
    cluster.run(1_500)
    assert cluster.is_applied(transaction)


def test_what_strangers_give_a_node_is_passed_on_once(cluster: Cluster) -> None:
    transaction = cluster.make_funding_by("stranger", 1)
    cluster[OBSERVER].step(SubmitTransaction(transaction), cluster["node-1"].node_id)
    cluster.run(3_000)
    assert len(cluster.list_sent(SubmitTransaction)) == len(FOUR)


def test_a_sender_of_old_news_is_shown_the_last_block(cluster: Cluster) -> None:
    transaction = cluster.make_funding()
    cluster.submit("node-1", transaction)
    cluster.run(300)
    before = len(cluster.sent)
    cluster["node-1"].step(SubmitTransaction(transaction), cluster[OBSERVER].node_id)
    last = cluster["node-1"].blocks[-1]
    sent = (cluster["node-1"].node_id, cluster[OBSERVER].node_id, BlockAnnouncement(last))
    assert sent in cluster.sent[before:]


def test_nonces_waiting_are_counted(cluster: Cluster) -> None:
    engine, alice = cluster["node-1"].engine, cluster.chain.get_id("alice")
    assert engine.get_next_nonce(alice) == 1
    cluster.submit("node-1", cluster.make_funding(nonce=7))
    assert engine.get_next_nonce(alice) == 8
