"""Catching up by snapshots, and starting from one's own. Source: docs/spec/engine.md E50 to E57."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksRequest,
    ChunksRequest,
    ChunksResponse,
    ConsensusStatus,
    LightBlockRequest,
    SnapshotChunk,
    SnapshotOffer,
    SnapshotRequest,
)
from iemas.consensus.state_sync import ANSWER_MS, PATIENCE_MS, WAIT_MS
from iemas.core.errors import ConfigurationError, InvalidInputError
from iemas.core.params import MarketParams
from iemas.core.ready import Record, RecordKind
from iemas.core.types import Hash
from iemas.ledger import snapshot as snapshots
from iemas.ledger.snapshot import Snapshot, encode_chunk
from iemas.ledger.transaction import Stake
from iemas.testing.chain import make_genesis
from tests.cluster import FOUR, OBSERVER, Cluster

INTERVAL = 10
FIRST = [1, 2]
"""What the first answer brings: that is how a node that starts finds out how far behind it is."""

PARAMS = MarketParams(block_interval_ms=10, min_stake_micros=500)


def make_cluster(params: MarketParams = PARAMS, **options: Any) -> Cluster:
    """Four validators that have decided some blocks, and an observer that is still down."""
    cluster = Cluster(
        FOUR,
        observers=[OBSERVER, "alice"],
        genesis=make_genesis(validators=FOUR, params=params),
        engine_options={"snapshot_interval": INTERVAL, **options},
    )
    for name in FOUR:
        cluster[name].start()
    return cluster


def decide(cluster: Cluster, blocks: int) -> None:
    """Have so many blocks decided."""
    for _ in range(blocks):
        transaction = cluster.submit("node-1")
        cluster.run(10_000, until=lambda t=transaction: cluster.is_applied(t))  # type: ignore[misc]


def list_spared(cluster: Cluster) -> list[int]:
    """List what a newcomer stores: the first answer, and what follows the last snapshot."""
    tip = cluster["node-1"].height
    return [*FIRST, *range((tip - 1) // INTERVAL * INTERVAL + 1, tip + 1)]


def catch_up(cluster: Cluster, name: str = OBSERVER, duration_ms: int = 30_000) -> None:
    node = cluster[name]
    if not node.alive:
        node.start()
    cluster.run(duration_ms, until=lambda: node.height == cluster["node-1"].height)
    assert node.engine.state_root == cluster["node-1"].engine.state_root


def list_stored(cluster: Cluster, name: str) -> list[int]:
    return [block.height for block in cluster[name].blocks]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iemas.consensus.chain.BATCH_BLOCKS", len(FIRST))


@pytest.fixture
def cluster() -> Cluster:
    cluster = make_cluster()
    decide(cluster, 35)
    return cluster


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that a snapshot has some, one an answer."""
    monkeypatch.setattr(snapshots, "CHUNK_LEAVES", 8)
    monkeypatch.setattr("iemas.consensus.snapshots.BATCH_BYTES", 1)


# --- catching up ---------------------------------------------------------------------------------


def test_a_node_far_behind_takes_a_snapshot_and_the_rest_by_blocks(cluster: Cluster) -> None:
    catch_up(cluster)
    heights = [applied.block.height for applied in cluster[OBSERVER].applied]
    assert heights == list_stored(cluster, OBSERVER) == list_spared(cluster)
    decide(cluster, 3)  # and it follows
    assert cluster[OBSERVER].height == cluster["node-1"].height


def test_a_node_less_far_behind_takes_the_blocks(cluster: Cluster) -> None:
    catch_up(cluster)
    before, last = list_stored(cluster, OBSERVER), cluster[OBSERVER].height
    cluster[OBSERVER].crash()
    decide(cluster, 2 * INTERVAL - 4)
    catch_up(cluster)
    now = cluster["node-1"].height
    assert list_stored(cluster, OBSERVER) == [*before, *range(last + 1, now + 1)]


def test_a_node_away_for_long_takes_a_snapshot_from_its_own_last_block_on(
    cluster: Cluster,
) -> None:
    catch_up(cluster)
    before = list_stored(cluster, OBSERVER)
    cluster[OBSERVER].crash()
    decide(cluster, 2 * INTERVAL + 3)
    catch_up(cluster)
    after = list_spared(cluster)[len(FIRST) :]
    stored = list_stored(cluster, OBSERVER)
    assert stored[: len(before)] == before
    assert stored[-len(after) :] == after
    assert len(stored) < len(before) + len(after) + INTERVAL


def test_a_node_that_wants_the_full_history_takes_every_block() -> None:
    cluster = make_cluster(full_history=True)
    decide(cluster, 25)
    catch_up(cluster)
    assert list_stored(cluster, OBSERVER) == [*range(1, cluster[OBSERVER].height + 1)]
    assert not cluster.list_sent(SnapshotRequest)


def test_blocks_that_a_snapshot_spared_are_not_shown_to_others(cluster: Cluster) -> None:
    catch_up(cluster)
    chain = cluster[OBSERVER].engine._chain
    assert [block.height for block in chain.load_batch(31)] == [31, 32]
    assert [block.height for block in chain.load_batch(FIRST[-1])] == FIRST[-1:]
    for from_height in (3, 29, 30):
        assert chain.load_batch(from_height) == ()
    assert chain.load_light_block(30) is None


def test_headers_between_are_asked_for_where_validators_changed(cluster: Cluster) -> None:
    cluster["alice"].start()
    cluster.submit("node-1", cluster.chain.make_transaction("alice", Stake(30_000)))
    cluster.run(20_000, until=lambda: cluster["alice"].engine.is_validator)
    for name in FOUR[1:]:
        cluster[name].crash()
    decide(cluster, 20)  # by alice and one of the old: less than a third of them
    catch_up(cluster)
    assert cluster.list_sent(LightBlockRequest)
    assert not set(list_stored(cluster, OBSERVER)) & {20, 30, 40}


def test_the_ledger_tables_are_brought_to_the_snapshots_balances(cluster: Cluster) -> None:
    node = cluster[OBSERVER]
    node.start()
    cluster.run(30_000, until=lambda: node.height == cluster["node-1"].height)
    balances: Counter[str] = Counter()
    for entry in node.engine.take_journal():
        for transfer in entry.transfers:
            balances[transfer.debit.name] -= transfer.amount_micros
            balances[transfer.credit.name] += transfer.amount_micros
    assert sum(balances.values()) == 0
    alice = cluster.chain.get_id("alice")
    assert balances[f"escrow/{alice.hex()}/model"] == 400_035  # what it was given, and 35 times 1
    assert balances["issuance"] == -node.engine.state.facts.supply_micros


def test_after_the_trusting_period_only_blocks_lead_on() -> None:
    params = replace(PARAMS, evidence_window_ms=150, unbonding_ms=200)
    cluster = make_cluster(params)
    decide(cluster, 35)
    catch_up(cluster)
    assert list_stored(cluster, OBSERVER) == [*range(1, cluster[OBSERVER].height + 1)]


# --- peers that fail or lie ----------------------------------------------------------------------


def lie(cluster: Cluster, liars: int, kind: type, change: Any) -> list[str]:
    """Let the first peers that are asked answer falsely; give who did."""
    found: list[str] = []

    def tamper(sender: str, to: str, message: Any) -> Any:
        if isinstance(message, kind) and to == OBSERVER:
            if sender not in found and len(found) < liars:
                found.append(sender)
            if sender in found:
                return change(message)
        return message

    cluster.tamper = tamper
    return found


def spoil_root(offer: SnapshotOffer) -> SnapshotOffer:
    assert offer.snapshot is not None
    return replace(offer, snapshot=replace(offer.snapshot, chunk_roots=(Hash(b"r" * 32),)))


def spoil_commit(offer: SnapshotOffer) -> SnapshotOffer:
    assert offer.block is not None
    commit = replace(offer.block.commit, precommits=offer.block.commit.precommits[:2])
    return replace(offer, block=replace(offer.block, commit=commit))


def make_up_validators(offer: SnapshotOffer) -> SnapshotOffer:
    return replace(offer, validators=offer.validators[:1])


def spoil_transactions(offer: SnapshotOffer) -> SnapshotOffer:
    assert offer.block is not None
    block = replace(offer.block.block, transactions=())
    return replace(offer, block=replace(offer.block, block=block))


def age(offer: SnapshotOffer) -> SnapshotOffer:
    assert offer.snapshot is not None
    return replace(offer, snapshot=replace(offer.snapshot, height=offer.snapshot.height - 1))


def spoil_chunks(answer: ChunksResponse) -> ChunksResponse:
    false = encode_chunk([b"money"])
    return replace(answer, chunks=(*answer.chunks[:-1], false))


def garble_chunks(answer: ChunksResponse) -> ChunksResponse:
    return replace(answer, chunks=(b"\xff",))


LIES = [
    (SnapshotOffer, spoil_root),
    (SnapshotOffer, spoil_commit),
    (SnapshotOffer, make_up_validators),
    (SnapshotOffer, spoil_transactions),
    (SnapshotOffer, age),
    (ChunksResponse, spoil_chunks),
    (ChunksResponse, garble_chunks),
]


@pytest.mark.parametrize(("kind", "change"), LIES, ids=[change.__name__ for _, change in LIES])
def test_a_lie_is_refused_by_name_and_another_peer_is_asked(
    cluster: Cluster, kind: type, change: Any
) -> None:
    liars = lie(cluster, 2, kind, change)
    catch_up(cluster, duration_ms=5_000)
    assert len(liars) == 2
    refused = cluster[OBSERVER].refused
    assert len(refused) == 2
    assert all(isinstance(error, InvalidInputError) for error in refused)
    assert list_stored(cluster, OBSERVER) == list_spared(cluster)


def test_where_all_lie_about_snapshots_blocks_are_taken(cluster: Cluster) -> None:
    assert len(lie(cluster, 4, SnapshotOffer, spoil_root)) == 0
    catch_up(cluster)
    assert list_stored(cluster, OBSERVER) == [*range(1, cluster[OBSERVER].height + 1)]


def test_peers_that_have_none_or_lost_it_are_left(cluster: Cluster) -> None:
    liars = lie(cluster, 1, SnapshotOffer, lambda _: SnapshotOffer())
    catch_up(cluster, duration_ms=5_000)
    assert len(liars) == 1
    assert cluster[OBSERVER].refused == []
    assert list_stored(cluster, OBSERVER) == list_spared(cluster)


def test_a_silent_peer_is_left_after_a_while(cluster: Cluster) -> None:
    silent: list[str] = []

    def should_lose(sender: str, to: str, message: Any) -> bool:
        if isinstance(message, SnapshotRequest) and not silent:
            silent.append(to)
        return isinstance(message, SnapshotRequest) and to in silent

    cluster.should_lose = should_lose
    catch_up(cluster, duration_ms=ANSWER_MS + 1_000)
    assert silent
    assert list_stored(cluster, OBSERVER) == list_spared(cluster)


def test_strangers_that_never_answer_do_not_keep_a_node_from_the_blocks() -> None:
    strangers = [f"stranger-{number}" for number in range(16)]
    cluster = Cluster(observers=[OBSERVER, *strangers]).start()
    cluster.run(300)
    for name in strangers:
        cluster[name].crash()
    cluster.should_lose = lambda sender, to, _: OBSERVER in (sender, to)
    decided = [cluster.submit("node-1") for _ in range(3)]
    cluster.run(1_000)
    cluster.should_lose = lambda *_: False
    for name in strangers:
        status = ConsensusStatus(2**40, 0, (), b"", wants_blocks=False)
        cluster[OBSERVER].step(status, cluster[name].node_id)
    cluster.run(PATIENCE_MS + 3_000)
    assert all(cluster[OBSERVER].engine.state.is_applied(one) for one in decided)


def test_blocks_wait_while_chunks_come_but_not_for_ever(cluster: Cluster) -> None:
    sync, node = cluster["node-1"].engine._sync, cluster["node-1"]
    peers, now_ms = [cluster[name].node_id for name in FOUR[1:]], node.now_ms
    sync.tick(peers, now_ms=now_ms)
    assert sync.find_wait(now_ms=now_ms) == now_ms + PATIENCE_MS
    assert sync.find_wait(now_ms=now_ms + PATIENCE_MS) is None
    for after_ms in range(0, WAIT_MS, ANSWER_MS):
        sync._came_on_at_ms = now_ms + after_ms  # as when chunks come
        assert sync.find_wait(now_ms=now_ms + after_ms) is not None
    assert sync.find_wait(now_ms=now_ms + WAIT_MS) is None
    sync.tick(peers, now_ms=now_ms + WAIT_MS)
    assert sync.find_wait(now_ms=now_ms + WAIT_MS) is None
    sync.tick(peers, now_ms=now_ms + 2 * WAIT_MS)
    assert sync.find_wait(now_ms=now_ms + 2 * WAIT_MS) is not None


def test_an_honest_offer_that_blocks_overtook_is_nobodys_fault(cluster: Cluster) -> None:
    cluster.should_lose = lambda _sender, to, message: (
        isinstance(message, SnapshotOffer) and to == OBSERVER
    )
    node = cluster[OBSERVER]
    node.start()
    cluster.run(1_000, until=lambda: len(cluster.list_sent(SnapshotOffer)) == 1)
    sender, _, offer = cluster.list_sent(SnapshotOffer)[0]
    for block in cluster["node-1"].blocks[node.height : 33]:
        node.step(BlockAnnouncement(block), sender)
    node.step(offer, sender)
    assert node.refused == []
    assert [event.fields["reason"] for event in node.events if event.name == "snapshot_peer_left"]


def test_validators_are_asked_first(cluster: Cluster) -> None:
    node = cluster[OBSERVER]
    cluster["alice"].start()
    cluster["alice"].crash()  # a peer that never answers
    cluster.should_lose = lambda _, to, message: (
        to == OBSERVER and not isinstance(message, SnapshotOffer)
    )
    node.start()
    status = ConsensusStatus(2**40, 0, (), b"", wants_blocks=False)
    node.step(status, cluster["alice"].node_id)
    asked = {to for _, to, _ in cluster.list_sent(SnapshotRequest)}
    asked |= {to for sender, to, _ in cluster.list_sent(BlocksRequest) if sender == node.node_id}
    assert asked
    assert asked <= {cluster[name].node_id for name in FOUR}


@pytest.mark.usefixtures("small_chunks")
def test_chunks_that_were_good_are_not_asked_for_again(cluster: Cluster) -> None:
    sent = 0

    def should_lose(sender: str, to: str, message: Any) -> bool:
        nonlocal sent
        sent += isinstance(message, ChunksResponse)
        return isinstance(message, ChunksResponse) and sent == 3

    cluster.should_lose = should_lose
    catch_up(cluster)
    asked = [request.first for _, _, request in cluster.list_sent(ChunksRequest)]
    assert len(asked) > 4
    assert asked == [0, 1, 2, *range(2, len(asked) - 1)]
    assert len({to for _, to, _ in cluster.list_sent(ChunksRequest)}) == 2


@pytest.mark.usefixtures("small_chunks")
def test_a_crash_in_the_middle_begins_anew(cluster: Cluster) -> None:
    node = cluster[OBSERVER]
    node.start()
    cluster.run(5_000, until=lambda: len(cluster.list_sent(ChunksRequest)) == 3)
    node.crash()
    assert cluster[OBSERVER].disk.load_snapshot() is None
    catch_up(cluster)
    assert not set(list_stored(cluster, OBSERVER)) & {10, 20, 30}


# --- one's own -----------------------------------------------------------------------------------


def test_a_node_starts_from_its_own_snapshot(cluster: Cluster) -> None:
    node, root = cluster["node-2"], cluster["node-2"].engine.state_root
    kept = node.disk.load_snapshot()
    assert kept is not None
    assert kept.snapshot.height == 30
    height = node.height
    node.crash()
    node.start()
    assert (node.height, node.engine.state_root) == (height, root)
    assert node.engine._chain._blocks[0].height > 30  # only those after it were replayed
    decide(cluster, 8)
    kept = node.disk.load_snapshot()
    assert kept is not None
    assert kept.snapshot.height == 40


def test_an_adopted_snapshot_is_the_nodes_own(cluster: Cluster) -> None:
    catch_up(cluster)
    node = cluster[OBSERVER]
    node.crash()
    node.start()
    assert node.height == cluster["node-1"].height
    offer = node.engine._shelf.answer(SnapshotRequest(1))
    assert offer.snapshot is not None
    assert offer.snapshot.height == 30


def test_one_snapshot_is_stored_at_a_time(cluster: Cluster) -> None:
    disk = cluster["node-1"].disk
    assert [one.height for one in disk.scan(RecordKind.SNAPSHOT, Snapshot)] == [30]
    assert len(disk.scan(RecordKind.CHUNK, SnapshotChunk)) == 1


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (Record(RecordKind.CHUNK, bytes(7) + b"\x1e" + bytes(8), SnapshotChunk(b"x")), "no chunk"),
        (Record(RecordKind.CHUNK, bytes(7) + b"\x1e" + bytes(8), None), "are missing"),
        (Record(RecordKind.BLOCK, bytes(7) + b"\x1f", None), "the block after it is missing"),
        (
            Record(RecordKind.SNAPSHOT, bytes(7) + b"\x1e", Snapshot(30, 2, (Hash(bytes(32)),))),
            "has not the root",
        ),
    ],
)
def test_a_damaged_snapshot_is_refused_with_the_fix(
    cluster: Cluster, record: Record, what: str
) -> None:
    node = cluster["node-2"]
    node.crash()
    node.disk.write([record])
    with pytest.raises(ConfigurationError, match=what) as caught:
        node.start()
    assert "move the node's database away" in str(caught.value)


def test_nobody_is_given_what_it_did_not_ask_for(cluster: Cluster) -> None:
    node, height = cluster["node-1"], cluster["node-1"].height
    offer = node.engine._shelf.answer(SnapshotRequest(1))
    sender = cluster["node-2"].node_id
    for part in (offer, ChunksResponse(30, 0, (b"x",))):
        assert node.engine.step(part, sender=sender, now_ms=node.now_ms).send == ()
    assert node.height == height
    ready = node.engine.step(LightBlockRequest(2**40), sender=sender, now_ms=node.now_ms)
    assert ready.send[0].message.block is None
