"""The sequencer engine. Source: docs/spec/application.md §2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from iemas.consensus import sequencer as sequencing
from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksRequest,
    BlocksResponse,
    SubmitTransaction,
)
from iemas.core.envelope import Signed
from iemas.core.errors import (
    ConfigurationError,
    InternalError,
    InvalidBlockError,
    InvalidSignatureError,
)
from iemas.core.params import MarketParams
from iemas.core.ready import RecordKind, Send
from iemas.ledger.transaction import Block, FundEscrow, ResultCode, TransferFunds
from iemas.testing.chain import make_identity

PARAMS = MarketParams()
SEQUENCER = make_identity("sequencer").node_id
NODE_1 = make_identity("node-1").node_id


def fund(cluster: Any, amount: int = 1, *, nonce: int | None = None) -> SubmitTransaction:
    body = FundEscrow(cluster.chain.hub, amount)
    return SubmitTransaction(cluster.chain.make_transaction("alice", body, nonce=nonce))


def start(cluster: Any) -> None:
    """Make block 1, so that what follows is not the very first block."""
    cluster.run(100)
    assert cluster.replicas["node-3"].engine.height == 1


def sign_block(cluster: Any, signer: str = "sequencer", **changes: Any) -> Signed[Block]:
    """Sign the block that would follow on node-1, with changes."""
    engine = cluster.replicas["node-1"].engine
    block = Block(
        cluster.chain.chain_id,
        engine.height + 1,
        engine._last_hash,
        cluster.now_ms,
        engine.state_root,
        (),
    )
    signed: Signed[Block] = cluster.chain.sign(signer, replace(block, **changes))
    return signed


def receive(cluster: Any, message: Any) -> None:
    engine = cluster.replicas["node-1"].engine
    ready = engine.step(message, sender=SEQUENCER, now_ms=cluster.now_ms)
    cluster.replicas["node-1"].take(ready)


# --- making blocks -------------------------------------------------------------------------------


def test_a_transaction_submitted_anywhere_is_applied_everywhere(cluster: Any) -> None:
    start(cluster)
    cluster.submit("node-2", fund(cluster, 10))
    cluster.run(200)
    assert len(cluster.get_roots()) == 1
    alice = cluster.chain.get_id("alice")
    for replica in cluster.replicas.values():
        assert replica.engine.state.get_balance(alice) == (999_990, 400_010)


def test_an_idle_sequencer_makes_a_block_now_and_then(cluster: Any) -> None:
    start(cluster)
    cluster.run(PARAMS.idle_block_interval_ms - 100)
    assert cluster.replicas["sequencer"].engine.height == 1
    cluster.run(100)
    assert cluster.replicas["sequencer"].engine.height == 2


def test_a_term_ends_without_transactions(cluster: Any) -> None:
    cluster.run(PARAMS.term_ms + 50)
    engine = cluster.replicas["node-1"].engine
    assert engine.state.get_term(cluster.chain.hub).number == 1


def test_blocks_keep_their_distance(cluster: Any) -> None:
    start(cluster)
    for amount in range(1, 20):
        cluster.submit("sequencer", fund(cluster, amount))
        cluster.run(10, step_ms=10)
    times = [signed.message.time_ms for signed in cluster.replicas["sequencer"].blocks]
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) >= PARAMS.block_interval_ms


def test_a_transaction_after_a_pause_does_not_wait(cluster: Any) -> None:
    start(cluster)
    cluster.run(500)
    cluster.submit("sequencer", fund(cluster))
    assert cluster.replicas["sequencer"].engine.height == 2


def test_block_time_never_goes_back(cluster: Any) -> None:
    start(cluster)
    before_ms = cluster.replicas["sequencer"].engine.state.time_ms
    cluster.now_ms -= 60_000
    cluster.submit("sequencer", fund(cluster))
    cluster.run(200)
    engine = cluster.replicas["sequencer"].engine
    assert (engine.height, engine.state.time_ms) == (2, before_ms)


def test_a_block_is_persisted_in_the_step_that_announces_it(cluster: Any) -> None:
    engine = cluster.replicas["sequencer"].engine
    ready = engine.tick(now_ms=cluster.now_ms)
    (record,) = ready.persist
    assert (record.kind, record.key) == (RecordKind.BLOCK, (1).to_bytes(8, "big"))
    announced = {s.to for s in ready.send if s.message == BlockAnnouncement(record.value)}
    assert announced == {v.node_id for v in cluster.chain.genesis.validators}


def test_announcements_go_to_the_peers_of_the_moment(cluster: Any) -> None:
    engine = cluster.replicas["sequencer"].engine
    engine.set_peers([NODE_1, SEQUENCER])
    ready = engine.tick(now_ms=cluster.now_ms)
    assert [send.to for send in ready.send] == [NODE_1]


def test_the_sequencer_says_when_it_wants_to_be_woken(cluster: Any) -> None:
    engine = cluster.replicas["sequencer"].engine
    ready = engine.tick(now_ms=cluster.now_ms)
    assert ready.wake_at_ms == cluster.now_ms + PARAMS.idle_block_interval_ms
    ready = engine.step(fund(cluster), now_ms=cluster.now_ms + 1)
    assert ready.wake_at_ms == cluster.now_ms + PARAMS.block_interval_ms


# --- the mempool ---------------------------------------------------------------------------------


def test_the_same_transaction_is_ordered_once(cluster: Any) -> None:
    start(cluster)
    message = fund(cluster)
    for name in ("sequencer", "node-1", "node-2", "node-1"):
        cluster.submit(name, message)
    cluster.run(3_000)
    counts = [len(signed.message.transactions) for signed in cluster.replicas["node-1"].blocks]
    assert sum(counts) == 1


def test_a_transaction_that_cannot_be_applied_is_refused_by_an_event(cluster: Any) -> None:
    start(cluster)
    body = FundEscrow(cluster.chain.hub, 1)
    unknown = cluster.chain.make_transaction("carol", body)
    cluster.submit("sequencer", SubmitTransaction(unknown))
    event = cluster.replicas["sequencer"].events[-1]
    assert (event.name, event.fields["reason"]) == ("transaction_refused", "UNKNOWN_ACCOUNT")


def test_a_follower_leaves_unknown_accounts_to_the_sequencer(cluster: Any) -> None:
    """Its replica may lag behind the block that credits the account."""
    start(cluster)
    cluster.down.add("node-1")
    gift = TransferFunds(cluster.chain.get_id("carol"), 50)
    cluster.submit("sequencer", SubmitTransaction(cluster.chain.make_transaction("alice", gift)))
    cluster.run(200)
    body = FundEscrow(cluster.chain.hub, 1)
    cluster.submit("node-1", SubmitTransaction(cluster.chain.make_transaction("carol", body)))
    cluster.down.clear()
    cluster.run(2_000)
    carol = cluster.chain.get_id("carol")
    assert cluster.replicas["node-1"].engine.state.get_balance(carol) == (49, 1)


def test_the_mempool_is_bounded(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start(cluster)
    monkeypatch.setattr(sequencing, "MAX_MEMPOOL_TRANSACTIONS", 2)
    for nonce in (1, 2, 3):
        cluster.submit("node-1", fund(cluster, nonce=nonce))
    assert cluster.replicas["node-1"].events[-1].fields["reason"] == "MEMPOOL_FULL"
    cluster.run(200)
    cluster.submit("node-1", fund(cluster, nonce=4))
    assert cluster.replicas["node-1"].events[-1].name != "transaction_refused"


def test_nonces_waiting_are_counted(cluster: Any) -> None:
    engine = cluster.replicas["node-1"].engine
    alice = cluster.chain.get_id("alice")
    assert engine.get_next_nonce(alice) == 1
    cluster.submit("node-1", fund(cluster, nonce=7))
    assert engine.get_next_nonce(alice) == 8


def test_overtaking_within_the_mempool_does_no_harm(cluster: Any) -> None:
    start(cluster)
    cluster.submit("sequencer", fund(cluster, 1, nonce=1))  # block 2: the next one must wait
    for nonce in (3, 2):
        cluster.submit("sequencer", fund(cluster, nonce, nonce=nonce))
    cluster.run(200)
    codes = [r.code for b in cluster.replicas["node-1"].committed for r in b.results]
    assert codes == [ResultCode.OK] * 3


def test_a_lost_submission_is_sent_again(cluster: Any) -> None:
    start(cluster)
    cluster.loss = 1.0
    cluster.submit("node-1", fund(cluster))
    cluster.deliver()
    cluster.loss = 0.0
    cluster.run(sequencing.RESUBMIT_MS + 200)
    assert cluster.replicas["node-1"].engine.height == 2


def test_a_submission_is_given_up_after_a_while(cluster: Any) -> None:
    start(cluster)
    cluster.down.add("sequencer")
    cluster.submit("node-1", fund(cluster))
    cluster.run(sequencing.PENDING_TIMEOUT_MS + 1_000, step_ms=500)
    reasons = [e.fields.get("reason") for e in cluster.replicas["node-1"].events]
    assert "TIMED_OUT" in reasons
    cluster.down.clear()
    cluster.run(10_000)
    assert not any(b.block.message.transactions for b in cluster.replicas["node-1"].committed)


# --- following -----------------------------------------------------------------------------------


def test_committed_blocks_come_with_their_results(cluster: Any) -> None:
    start(cluster)
    cluster.submit("node-1", fund(cluster))
    cluster.submit("node-1", fund(cluster, 10**9))
    cluster.run(200)
    committed = cluster.replicas["node-2"].committed
    codes = [result.code for block in committed for result in block.results]
    assert codes == [ResultCode.OK, ResultCode.INSUFFICIENT_BALANCE]
    assert [t.amount_micros for block in committed for t in block.transfers] == [1]
    assert committed[-1].state_root == cluster.replicas["node-2"].engine.state_root


def test_a_block_of_anyone_else_is_refused(cluster: Any) -> None:
    with pytest.raises(InvalidSignatureError):
        receive(cluster, BlockAnnouncement(sign_block(cluster, "node-2")))


def test_a_forged_block_does_not_keep_the_real_one_out(cluster: Any) -> None:
    start(cluster)
    real = sign_block(cluster)
    forged = Signed(real.message, replace(real.envelope, signature=bytes(64)))
    with pytest.raises(InvalidSignatureError):
        receive(cluster, BlockAnnouncement(forged))
    receive(cluster, BlockAnnouncement(real))
    assert cluster.replicas["node-1"].engine.height == 2


def test_a_block_on_another_predecessor_is_refused(cluster: Any) -> None:
    start(cluster)
    with pytest.raises(InvalidBlockError):
        receive(cluster, BlockAnnouncement(sign_block(cluster, previous_hash=bytes(32))))


def test_of_two_blocks_of_one_height_the_first_stands(cluster: Any) -> None:
    start(cluster)
    root = cluster.replicas["node-1"].engine.state_root
    other = sign_block(cluster, height=1)
    receive(cluster, BlockAnnouncement(other))
    assert cluster.replicas["node-1"].events[-1].name == "sequencer_forked"
    assert cluster.replicas["node-1"].engine.state_root == root


def test_another_state_root_stops_the_node(cluster: Any) -> None:
    start(cluster)
    with pytest.raises(InternalError, match="diverged at height 1"):
        receive(cluster, BlockAnnouncement(sign_block(cluster, state_root=bytes(32))))


def test_a_block_that_came_too_early_waits(cluster: Any) -> None:
    start(cluster)
    for _ in range(3):
        cluster.submit("sequencer", fund(cluster))
        cluster.now_ms += 100
    cluster.in_flight.clear()
    blocks = cluster.replicas["sequencer"].blocks
    receive(cluster, BlockAnnouncement(blocks[2]))
    assert cluster.replicas["node-1"].engine.height == 1
    receive(cluster, BlockAnnouncement(blocks[1]))
    assert cluster.replicas["node-1"].engine.height == 3


def test_a_gap_is_asked_for(cluster: Any) -> None:
    start(cluster)
    cluster.down.add("node-1")
    for _ in range(3):
        cluster.submit("sequencer", fund(cluster))
        cluster.run(100)
    cluster.down.clear()
    cluster.submit("sequencer", fund(cluster))
    cluster.run(100)
    assert BlocksRequest(2) in cluster.sent
    assert len(cluster.get_roots()) == 1


def test_a_late_joiner_catches_up_in_batches(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencing, "BATCH_BLOCKS", 4)
    cluster.down.add("node-1")
    for _ in range(30):
        cluster.submit("sequencer", fund(cluster))
        cluster.run(50)
    cluster.down.clear()
    cluster.run(1_000)
    assert cluster.replicas["node-1"].engine.height >= 30
    assert len(cluster.get_roots()) == 1


def test_batches_are_bounded_by_bytes(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencing, "BATCH_BYTES", 1)
    cluster.run(12_000)
    engine = cluster.replicas["sequencer"].engine
    ready = engine.step(BlocksRequest(1), sender=NODE_1, now_ms=cluster.now_ms)
    (response,) = [s.message for s in ready.send if isinstance(s.message, BlocksResponse)]
    assert (len(response.blocks), response.height) == (1, engine.height)


def test_any_peer_helps_out(cluster: Any) -> None:
    cluster.down.add("node-1")
    cluster.run(6_000)
    cluster.down = {"sequencer"}
    cluster.run(5_000)
    assert cluster.replicas["node-1"].engine.height == cluster.replicas["node-2"].engine.height


def test_a_node_that_hears_nothing_asks(cluster: Any) -> None:
    start(cluster)
    cluster.in_flight.clear()
    cluster.sent.clear()
    cluster.down.add("sequencer")
    cluster.run(PARAMS.idle_block_interval_ms + sequencing.STALL_GRACE_MS + 500)
    assert BlocksRequest(2) in cluster.sent


def test_requests_are_not_repeated_at_every_step(cluster: Any) -> None:
    engine = cluster.replicas["node-1"].engine
    ready = engine.tick(now_ms=cluster.now_ms)
    assert len(ready.send) == 1
    for later_ms in range(1, sequencing.REQUEST_RETRY_MS):
        assert not engine.tick(now_ms=cluster.now_ms + later_ms).send


def test_a_peer_that_claims_blocks_but_has_none_is_not_asked_for_ever(cluster: Any) -> None:
    start(cluster)
    receive(cluster, BlocksResponse((), 10**9))
    assert not cluster.replicas["node-1"].engine._is_behind()


def test_good_blocks_before_a_bad_one_are_kept(cluster: Any) -> None:
    start(cluster)
    cluster.submit("sequencer", fund(cluster))
    cluster.in_flight.clear()
    good = cluster.replicas["sequencer"].blocks[1]
    bad = sign_block(cluster, "node-2", height=3)
    receive(cluster, BlocksResponse((good, bad), 3))
    replica = cluster.replicas["node-1"]
    assert replica.engine.height == 2
    assert len(replica.disk) == 2
    assert replica.events[-1].name == "input_refused"


def test_a_sender_of_old_news_is_shown_the_last_block(cluster: Any) -> None:
    start(cluster)
    message = fund(cluster)
    cluster.submit("sequencer", message)
    engine = cluster.replicas["sequencer"].engine
    ready = engine.step(message, sender=NODE_1, now_ms=cluster.now_ms)
    last = cluster.replicas["sequencer"].blocks[-1]
    assert ready.send == (Send(NODE_1, BlockAnnouncement(last)),)


# --- faults and restarts -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_bad_network_ends_in_one_state(make_cluster: Callable[[int], Any], seed: int) -> None:
    cluster = make_cluster(seed)
    cluster.loss, cluster.duplication, cluster.shuffle = 0.3, 0.3, True
    names = ("node-1", "node-2", "node-3", "sequencer")
    for turn in range(60):
        cluster.submit(names[turn % 4], fund(cluster, turn + 1))
        cluster.run(100, step_ms=50)
    cluster.loss = 0.0
    cluster.run(8_000, step_ms=50)
    assert len(cluster.get_roots()) == 1
    assert cluster.replicas["node-1"].engine.state.get_nonce(cluster.chain.get_id("alice")) == 60


@pytest.mark.parametrize("name", ["sequencer", "node-1"])
def test_a_restarted_node_goes_on(cluster: Any, name: str) -> None:
    cluster.submit("node-1", fund(cluster))
    cluster.run(6_000)
    before = cluster.get_roots()
    engine = cluster.restart(name)
    assert cluster.get_roots() == before
    assert engine.take_committed() == ()
    cluster.submit("node-1", fund(cluster))
    cluster.run(6_000)
    assert len(cluster.get_roots()) == 1
    assert engine.state.get_nonce(cluster.chain.get_id("alice")) == 2


def test_restored_blocks_must_follow_each_other(cluster: Any) -> None:
    cluster.run(12_000)
    blocks = cluster.replicas["node-1"].blocks
    engine = cluster.make_engine("node-1")
    with pytest.raises(ConfigurationError, match="move the node's database away"):
        engine.restore([blocks[0], blocks[2]])


def test_a_sequencer_that_lost_blocks_stops_rather_than_forks(cluster: Any) -> None:
    cluster.run(12_000)
    for height in (2, 3):
        del cluster.replicas["sequencer"].disk[height.to_bytes(8, "big")]
    cluster.restart("sequencer")
    with pytest.raises(InternalError, match="lost blocks"):
        cluster.run(20_000)


def test_old_blocks_are_read_from_the_store(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencing, "BATCH_BLOCKS", 3)
    reads: list[int] = []

    def read_blocks(first: int, limit: int) -> list[Signed[Block]]:
        reads.append(first)
        return list(cluster.replicas["sequencer"].blocks[first - 1 : first - 1 + limit])

    engine = cluster.restart("sequencer", read_blocks=read_blocks)
    cluster.down.add("node-1")
    for _ in range(20):
        cluster.submit("sequencer", fund(cluster))
        cluster.run(50)
    assert len(engine._blocks) <= 2 * 3
    cluster.down.clear()
    cluster.run(1_000)
    assert 1 in reads
    assert len(cluster.get_roots()) == 1


def test_the_journal_holds_genesis_and_every_transfer(cluster: Any) -> None:
    cluster.submit("node-1", fund(cluster, 10))
    cluster.run(300)
    engine = cluster.restart("node-1")
    journal = engine.take_journal()
    assert journal[0].height == 0
    assert [t.amount_micros for t in journal[1].transfers] == [10]
    assert engine.take_journal() == ()
