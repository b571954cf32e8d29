"""The node's store. Source: design §7, §13."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from iemas.consensus.chain import JournalEntry
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import (
    Commit,
    CommittedBlock,
    SignRecord,
    SubmitTransaction,
    ValidRecord,
)
from iemas.core.auction import Transcript
from iemas.core.errors import ConfigurationError
from iemas.core.ready import Record, RecordKind
from iemas.ledger.transaction import FundEscrow, SettlementEntry
from iemas.ledger.transfer import Transfer, TransferReason, get_available, get_escrow
from iemas.testing.chain import LedgerChain, make_genesis
from node import storage as storing
from node.storage import SCHEMA_VERSION, Storage, UnwritableDatabaseError

CHAIN_ID = "chain-1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


@pytest.fixture
def storage(path: Path) -> Iterator[Storage]:
    with Storage(path, chain_id=CHAIN_ID) as opened:
        yield opened


def make_blocks(chain: LedgerChain, count: int) -> list[CommittedBlock]:
    blocks = [chain.make_block(after_ms=n, height=n) for n in range(1, count + 1)]
    return [CommittedBlock(b, Commit(b.height, 0, b.hash, ())) for b in blocks]


def make_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def write_blocks(storage: Storage, blocks: list[CommittedBlock]) -> None:
    storage.write([Record(RecordKind.BLOCK, make_key(n), b) for n, b in enumerate(blocks, 1)])


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


# --- records -------------------------------------------------------------------------------------


def test_signed_records_come_back_byte_for_byte(storage: Storage) -> None:
    chain = LedgerChain()
    transcript = chain.sign("node-1", chain.make_transcript(0))
    storage.write([Record(RecordKind.TRANSCRIPT, b"1", transcript)])
    assert storage.scan_signed(RecordKind.TRANSCRIPT, Transcript) == [transcript]


def test_blocks_come_back_with_their_commits(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "BLOCKS_PAGE", 2)
    blocks = make_blocks(LedgerChain(), 5)
    write_blocks(storage, blocks)
    assert list(storage.iterate_blocks()) == blocks


def test_plain_records_come_back_with_their_keys(storage: Storage) -> None:
    chain = LedgerChain()
    entry = chain.make_entry("alice", "node-1", 0, 5)
    storage.write([Record(RecordKind.UNSETTLED, b"key", entry)])
    assert storage.scan(RecordKind.UNSETTLED, SettlementEntry) == [entry]
    assert storage.scan_items(RecordKind.UNSETTLED, SettlementEntry) == [(b"key", entry)]


def test_records_are_read_in_key_order(storage: Storage) -> None:
    chain = LedgerChain()
    entries = {n: chain.make_entry("alice", "node-1", 0, n) for n in (300, 2, 255)}
    storage.write([Record(RecordKind.UNSETTLED, make_key(n), e) for n, e in entries.items()])
    found = storage.scan(RecordKind.UNSETTLED, SettlementEntry)
    assert [e.total.message.total_micros for e in found] == [2, 255, 300]


def test_a_value_of_none_deletes(storage: Storage) -> None:
    entry = LedgerChain().make_entry("alice", "node-1", 0, 5)
    storage.write([Record(RecordKind.UNSETTLED, b"key", entry)])
    storage.write([Record(RecordKind.UNSETTLED, b"key", None)])
    assert storage.scan(RecordKind.UNSETTLED, SettlementEntry) == []


def test_a_later_record_replaces_an_earlier_one(storage: Storage) -> None:
    chain = LedgerChain()
    for total in (5, 6):
        entry = chain.make_entry("alice", "node-1", 0, total)
        storage.write([Record(RecordKind.UNSETTLED, b"key", entry)])
    assert storage.scan(RecordKind.UNSETTLED, SettlementEntry) == [entry]


def test_a_write_is_all_or_nothing(storage: Storage) -> None:
    (block,) = make_blocks(LedgerChain(), 1)
    good = Record(RecordKind.BLOCK, b"1", block)
    with pytest.raises(TypeError):
        storage.write([good, Record(RecordKind.BLOCK, b"2", object())])
    assert storage.scan(RecordKind.BLOCK, CommittedBlock) == []
    storage.write([good])
    assert storage.scan(RecordKind.BLOCK, CommittedBlock) == [block]


def test_tables_are_read_in_pages(storage: Storage) -> None:
    blocks = make_blocks(LedgerChain(), 5)
    write_blocks(storage, blocks)
    page = storage.read_page(RecordKind.BLOCK, make_key(2), 2)
    assert [key for key, _ in page] == [make_key(2), make_key(3)]
    assert storage.read_blocks(4, 10) == blocks[3:]


# --- the ledger's tables -------------------------------------------------------------------------


def test_transfers_and_balances_can_be_queried(storage: Storage, path: Path) -> None:
    chain = LedgerChain()
    alice = chain.get_id("alice")
    transfer = Transfer(
        get_available(alice), get_escrow(alice, chain.hub), 10, TransferReason.ESCROW_FUNDED
    )
    genesis = JournalEntry(0, chain.app.genesis_transfers)
    storage.write([], [genesis, JournalEntry(3, (transfer,))])
    assert query(path, "SELECT SUM(balance_micros) FROM accounts") == [(0,)]
    balances = query(
        path,
        f"SELECT kind, balance_micros FROM accounts WHERE owner = '{alice.hex()}' ORDER BY kind",
    )
    assert balances == [("available", 999_990), ("escrow", 400_010)]
    rows = query(path, "SELECT debit, credit, amount_micros, reason FROM transfers WHERE height=3")
    assert rows == [
        (f"available/{alice.hex()}", f"escrow/{alice.hex()}/model", 10, "escrow_funded")
    ]


def test_a_replayed_height_is_posted_once(storage: Storage, path: Path) -> None:
    genesis = JournalEntry(0, LedgerChain().app.genesis_transfers)
    assert storage.posted_height == -1
    storage.write([], [genesis])
    storage.write([], [genesis])
    assert storage.posted_height == 0
    count = len(genesis.transfers)
    assert query(path, "SELECT COUNT(*) FROM transfers") == [(count,)]


# --- restarts ------------------------------------------------------------------------------------


def make_engine(chain: LedgerChain) -> TendermintEngine:
    signer = chain.get_signer("node-1")
    return TendermintEngine(
        chain.make_app(), genesis=chain.genesis, chain_id=chain.chain_id, signer=signer
    )


def restore(engine: TendermintEngine, storage: Storage) -> None:
    engine.restore(
        storage.iterate_blocks(),
        storage.scan(RecordKind.SIGNED, SignRecord),
        storage.scan(RecordKind.VALID, ValidRecord),
        storage.load_snapshot(),
    )


def test_a_node_goes_on_where_it_stopped(path: Path) -> None:
    chain = LedgerChain(make_genesis(validators=["node-1"]))
    engine = make_engine(chain)
    with Storage(path, chain_id=chain.chain_id) as storage:
        for turn in range(5):
            body = FundEscrow(chain.hub, turn + 1)
            message = SubmitTransaction(chain.make_transaction("alice", body))
            ready = engine.step(message, now_ms=chain.now_ms + 1_000 * turn)
            storage.write(ready.persist, engine.take_journal())
    restored = make_engine(chain)
    with Storage(path, chain_id=chain.chain_id) as storage:
        restore(restored, storage)
        storage.write([], restored.take_journal())
    assert (restored.height, restored.state_root) == (5, engine.state_root)
    assert query(path, "SELECT COUNT(*) FROM transfers WHERE height > 0") == [(5,)]
    escrow = f"escrow/{chain.get_id('alice').hex()}/model"
    sql = f"SELECT balance_micros FROM accounts WHERE account = '{escrow}'"
    assert query(path, sql) == [(400_015,)]


def test_what_a_validator_signed_is_stored_before_it_is_sent_and_found_again(path: Path) -> None:
    chain = LedgerChain()
    engine = make_engine(chain)
    with Storage(path, chain_id=chain.chain_id) as storage:
        sent = set()
        for now_ms in (chain.now_ms, chain.now_ms + 400):
            ready = engine.tick(now_ms=now_ms)
            storage.write(ready.persist)
            sent |= {vote for s in ready.send for vote in getattr(s.message, "votes", ())}
        assert len(sent) == 1
    with Storage(path, chain_id=chain.chain_id) as storage:
        (record,) = storage.scan(RecordKind.SIGNED, SignRecord)
        assert sent <= set(record.votes)
        again = make_engine(chain)
        restore(again, storage)
    ready = again.tick(now_ms=chain.now_ms + 800)
    assert not [s for s in ready.send if getattr(s.message, "votes", ())]


# --- refusals ------------------------------------------------------------------------------------


def open_and_fail(path: Path, chain_id: str = CHAIN_ID) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Storage(path, chain_id=chain_id)
    return str(caught.value)


def test_another_chains_database_is_refused(path: Path) -> None:
    Storage(path, chain_id=CHAIN_ID).close()
    text = open_and_fail(path, "chain-2")
    assert "chain-1" in text
    assert "chain-2" in text
    assert "another data directory" in text


def test_another_schema_version_is_refused(path: Path) -> None:
    Storage(path, chain_id=CHAIN_ID).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    connection.commit()
    connection.close()
    assert f"schema version 99, this program has {SCHEMA_VERSION}" in open_and_fail(path)


def test_a_database_in_use_is_refused(storage: Storage, path: Path) -> None:
    assert "in use by another node" in open_and_fail(path)


def test_a_closed_database_can_be_opened_again(path: Path) -> None:
    for _ in range(2):
        Storage(path, chain_id=CHAIN_ID).close()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    assert "is damaged" in open_and_fail(path)


def test_a_foreign_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.commit()
    connection.close()
    assert "is damaged" in open_and_fail(path)


def test_a_damaged_page_is_refused(path: Path) -> None:
    with Storage(path, chain_id=CHAIN_ID) as storage:
        write_blocks(storage, make_blocks(LedgerChain(), 200))
    data = bytearray(path.read_bytes())
    for page in range(4, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    assert "is damaged" in open_and_fail(path)


def test_a_record_that_does_not_decode_is_named(storage: Storage, path: Path) -> None:
    (block,) = make_blocks(LedgerChain(), 1)
    storage.write([Record(RecordKind.BLOCK, b"1", block)])
    with pytest.raises(ConfigurationError, match="a block does not decode"):
        storage.scan(RecordKind.BLOCK, SettlementEntry)


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "choose a data directory" in open_and_fail(tmp_path / "nowhere" / "node.db")


# --- what is no damage ---------------------------------------------------------------------------


def test_a_database_that_another_program_holds_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage(path, chain_id=CHAIN_ID).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **options: connect(*args, timeout=0, **options)
    )
    text = open_and_fail(path)
    other.close()
    assert f"{path} cannot be read and written (database is locked)" in text
    assert "end the program that holds it open: the file is whole" in text
    assert "move" not in text
    Storage(path, chain_id=CHAIN_ID).close()


def test_a_database_that_cannot_be_opened_is_whole(path: Path) -> None:
    path.mkdir()
    text = open_and_fail(path)
    assert f"let this user write to {path.parent} and the files in it: the file is whole" in text
    assert "move" not in text


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (sqlite3.SQLITE_FULL, "free space on its disk:"),
        (sqlite3.SQLITE_IOERR_FSYNC, "free space on its disk, or mend it"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "let this user write to"),
        (sqlite3.SQLITE_CANTOPEN, "let this user write to"),
        (sqlite3.SQLITE_BUSY, "end the program"),
    ],
)
def test_what_the_disk_refuses_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fix: str
) -> None:
    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("refused")
        error.sqlite_errorcode = code
        raise error

    Storage(path, chain_id=CHAIN_ID).close()
    monkeypatch.setattr(Storage, "_prepare", fail)
    text = open_and_fail(path)
    assert fix in text
    assert "the file is whole" in text
    assert "damaged" not in text


def test_a_full_disk_is_named_with_the_file_and_the_fix(storage: Storage, path: Path) -> None:
    storage._connection.execute("PRAGMA max_page_count = 1")
    blocks = make_blocks(LedgerChain(), 50)
    with pytest.raises(UnwritableDatabaseError, match="full; free space on its disk") as caught:
        write_blocks(storage, blocks)
    assert str(path) in str(caught.value)
    storage._connection.execute("PRAGMA max_page_count = 100000")
    write_blocks(storage, blocks)
    assert list(storage.iterate_blocks()) == blocks


def test_a_read_that_fails_is_named(storage: Storage, path: Path) -> None:
    storage._connection.set_progress_handler(lambda: 1, 1)
    with pytest.raises(ConfigurationError, match=r"interrupted.*the file is whole"):
        storage.load_snapshot()
    storage._connection.set_progress_handler(None, 0)


def test_a_lock_file_that_cannot_be_made_is_named(path: Path) -> None:
    Storage(path, chain_id=CHAIN_ID).close()
    Path(f"{path}.lock").unlink()
    Path(f"{path}.lock").mkdir()
    text = open_and_fail(path)
    assert f"cannot use {path}.lock (Is a directory)" in text


# --- whose it is ---------------------------------------------------------------------------------


def test_another_nodes_database_is_refused(path: Path) -> None:
    one, other = (LedgerChain().get_id(name) for name in ("node-1", "node-2"))
    Storage(path, chain_id=CHAIN_ID).close()  # of a version that did not ask
    for _ in range(2):
        Storage(path, chain_id=CHAIN_ID, node_id=one).close()
    with pytest.raises(ConfigurationError, match="use that node's key file") as caught:
        Storage(path, chain_id=CHAIN_ID, node_id=other)
    assert one.hex() in str(caught.value)
    assert other.hex() in str(caught.value)
