"""Snapshots. Source: docs/spec/application.md §3."""

from __future__ import annotations

import pytest

from iemas.core.auction import Ask
from iemas.core.encoding import encode_canonical
from iemas.core.errors import InvalidSnapshotError, LocalProtocolError, MalformedMessageError
from iemas.core.merkle import compute_root
from iemas.core.params import MarketParams
from iemas.core.types import Hash
from iemas.ledger import snapshot as snapshots
from iemas.ledger.application import LedgerApplication
from iemas.ledger.snapshot import (
    CHUNK_LEAVES,
    Snapshot,
    decode_state,
    encode_chunk,
    take_snapshot,
)
from iemas.ledger.transaction import (
    AbsenceVote,
    FundEscrow,
    HoldFunds,
    PlaceDeposit,
    PostAsk,
    ResultCode,
    ReturnToDuty,
    Settle,
    Stake,
    Unstake,
    VoteModel,
    VoteParameter,
)
from iemas.testing.chain import PRICES, LedgerChain, make_genesis

MODEL = Hash(b"\x01" * 32)
PARAMS = MarketParams(min_stake_micros=500, ask_bond_micros=50)


@pytest.fixture
def busy() -> LedgerChain:
    """A chain with something in every table."""
    chain = LedgerChain(make_genesis(params=PARAMS))
    chain.submit("node-1", PostAsk(Ask(chain.hub, PRICES)))
    chain.submit("node-1", PostAsk(Ask(chain.hub, PRICES)))
    for voter in ("node-1", "node-2", "node-3"):
        chain.submit(voter, VoteParameter("jail_ms", 5))
        chain.submit(voter, VoteModel(chain.hub, 1, MODEL))
    chain.submit("node-1", VoteModel(chain.hub, 0, MODEL))
    chain.submit("alice", Stake(2 * PARAMS.min_stake_micros))
    chain.submit("alice", Unstake(PARAMS.min_stake_micros))
    chain.submit("bob", chain.make_double_vote("node-2", 1))
    chain.end_term()
    term = chain.state.get_term(chain.hub).number
    for voter in ("node-1", "alice"):
        chain.submit(voter, AbsenceVote(chain.hub, term, chain.get_node("node-3")))
    chain.submit("node-3", ReturnToDuty(chain.hub))
    chain.end_term()
    term = chain.state.get_term(chain.hub).number
    chain.submit("node-1", Settle((chain.make_entry("alice", "node-1", term, 900),)))
    chain.submit("node-2", Settle((chain.make_entry("alice", "node-2", term, 900_000),)))
    chain.submit("alice", AbsenceVote(chain.hub, term, chain.get_node("node-1")))
    for voter in ("node-1", "node-3"):
        chain.submit(voter, VoteParameter("jail_ms", 6))
    chain.submit("alice", VoteParameter("max_validators", 7))
    chain.submit("bob", PlaceDeposit(PARAMS.ask_bond_micros))
    chain.submit("bob", chain.make_commitment("bob", 1, PRICES))
    chain.submit("alice", HoldFunds(b"k" * 16, chain.get_id("bob"), 5, 1_000))
    return chain


def copy_snapshot(source: LedgerChain, target: LedgerApplication) -> None:
    offer = source.app.list_snapshots()[0]
    assert target.offer_snapshot(offer, source.state.compute_root())
    for index in range(offer.chunks):
        chunk = source.app.load_snapshot_chunk(offer.height, index)
        assert chunk is not None
        assert target.apply_snapshot_chunk(chunk) is (index == offer.chunks - 1)


def load(source: LedgerChain, offer: Snapshot, index: int) -> bytes:
    chunk = source.app.load_snapshot_chunk(offer.height, index)
    assert chunk is not None
    return chunk


def test_a_state_round_trips(busy: LedgerChain) -> None:
    assert all(busy.state.get_tables().values())
    decoded = decode_state(busy.genesis, take_snapshot(busy.state).leaves)
    assert decoded.get_tables() == busy.state.get_tables()
    assert decoded.compute_root() == busy.state.compute_root()


def test_a_replica_starts_from_a_snapshot_and_follows(busy: LedgerChain) -> None:
    replica = busy.make_app()
    copy_snapshot(busy, replica)
    applied = busy.make_transaction("alice", FundEscrow(busy.hub, 1))
    busy.apply([applied])
    replica.finalize_block(busy.blocks[-1])
    replica.commit()
    assert replica.state.compute_root() == busy.state.compute_root()
    assert replica.check_tx(applied).code is ResultCode.ALREADY_DONE


@pytest.mark.parametrize("leaves", [1, 4, 16])
def test_a_snapshot_travels_in_chunks(
    busy: LedgerChain, monkeypatch: pytest.MonkeyPatch, leaves: int
) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_LEAVES", leaves)
    replica = busy.make_app()
    offer = busy.app.list_snapshots()[0]
    assert offer.chunks == -(-len(busy.state.list_leaves()) // leaves)
    assert offer.compute_state_root() == busy.state.compute_root()
    copy_snapshot(busy, replica)
    assert replica.state.compute_root() == busy.state.compute_root()


def test_chunks_may_come_in_any_order_and_twice(
    busy: LedgerChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_LEAVES", 4)
    replica, offer = busy.make_app(), busy.app.list_snapshots()[0]
    assert replica.offer_snapshot(offer, busy.state.compute_root())
    order = [*reversed(range(1, offer.chunks)), 1, 0]
    done = [replica.apply_snapshot_chunk(load(busy, offer, index)) for index in order]
    assert done == [False] * (len(order) - 1) + [True]


def test_a_snapshot_with_another_root_is_declined(busy: LedgerChain) -> None:
    replica = busy.make_app()
    assert not replica.offer_snapshot(busy.app.list_snapshots()[0], Hash(bytes(32)))
    with pytest.raises(LocalProtocolError):
        replica.apply_snapshot_chunk(load(busy, busy.app.list_snapshots()[0], 0))


def test_a_false_chunk_is_refused_by_itself_and_the_rest_still_counts(
    busy: LedgerChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_LEAVES", 4)
    replica, offer = busy.make_app(), busy.app.list_snapshots()[0]
    root = busy.state.compute_root()
    assert replica.offer_snapshot(offer, root)
    replica.apply_snapshot_chunk(load(busy, offer, 0))
    honest, _ = snapshots.decode_chunk(load(busy, offer, 1))
    for false in (honest[:-1], (*honest[:-1], b"money"), honest[::-1]):
        with pytest.raises(InvalidSnapshotError):
            replica.apply_snapshot_chunk(encode_chunk(false))
    assert replica.offer_snapshot(offer, root)  # from another peer: what was good is kept
    assert replica.find_missing_chunk() == 1
    for index in range(1, offer.chunks):
        replica.apply_snapshot_chunk(load(busy, offer, index))
    assert replica.state.compute_root() == root


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        encode_canonical(5),
        encode_canonical(()),
        encode_canonical((1, 2)),
        encode_chunk([b""] * (CHUNK_LEAVES + 1)),
    ],
)
def test_what_is_no_chunk_is_refused_by_name(chain: LedgerChain, data: bytes) -> None:
    replica = chain.make_app()
    assert replica.offer_snapshot(Snapshot(5, 2, (compute_root([b"x"]),)), compute_root([b"x"]))
    with pytest.raises(MalformedMessageError):
        replica.apply_snapshot_chunk(data)


@pytest.mark.parametrize(
    "leaf",
    [
        b"\xff",
        encode_canonical(5),
        encode_canonical(("nonsense", 1, 2)),
        encode_canonical(("facts", "", (1, 2))),
        encode_canonical(("proposers", b"n" * 32, 5)),
    ],
)
def test_leaves_that_are_no_state_are_refused_even_under_a_trusted_root(
    chain: LedgerChain, leaf: bytes
) -> None:
    replica, root = chain.make_app(), compute_root([leaf])
    assert replica.offer_snapshot(Snapshot(5, 2, (root,)), root)
    with pytest.raises(MalformedMessageError):
        replica.apply_snapshot_chunk(encode_chunk([leaf]))
    assert replica.state.height == 0


def test_a_snapshot_of_another_height_than_it_says_is_refused(busy: LedgerChain) -> None:
    replica, offer = busy.make_app(), busy.app.list_snapshots()[0]
    false = Snapshot(offer.height + 1, offer.format, offer.chunk_roots)
    assert replica.offer_snapshot(false, busy.state.compute_root())
    chunks = [load(busy, offer, index) for index in range(offer.chunks)]
    with pytest.raises(InvalidSnapshotError):
        list(map(replica.apply_snapshot_chunk, chunks))
    assert replica.state.height == 0


@pytest.mark.parametrize(("height", "version"), [(0, 2), (5, 1)])
def test_useless_offers_are_declined(chain: LedgerChain, height: int, version: int) -> None:
    root = Hash(bytes(32))
    assert not chain.app.offer_snapshot(Snapshot(height, version, (root,)), root)


def test_a_chunk_without_an_offer_is_an_error(chain: LedgerChain) -> None:
    with pytest.raises(LocalProtocolError):
        chain.app.apply_snapshot_chunk(b"")


def test_an_offered_snapshot_stays_at_hand_for_a_while(busy: LedgerChain) -> None:
    offer = busy.app.list_snapshots()[0]
    busy.apply()
    assert offer in busy.app.list_snapshots()
    assert busy.app.load_snapshot_chunk(offer.height, 0) is not None
    busy.apply()
    assert offer not in busy.app.list_snapshots()
    assert busy.app.load_snapshot_chunk(offer.height, 0) is None
