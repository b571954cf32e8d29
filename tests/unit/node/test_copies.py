"""Starting from a copy of the database that was taken while the node wrote, or spoilt since.

What opens is exactly what one write had left; everything else is refused with the fix. A copy is
made of each file at a time of its own, as `cp -r` makes it, and then cut, mixed or lost.
Source: docs/spec/application.md §4; design §13.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from iemas.consensus.chain import JournalEntry
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import SignRecord, SubmitTransaction, ValidRecord
from iemas.core.errors import ConfigurationError, IemasError
from iemas.core.ready import RecordKind
from iemas.ledger.transaction import FundEscrow
from iemas.testing.chain import LedgerChain, make_genesis
from node.storage import Storage

COPIES = int(os.environ.get("IEMAS_COPIES", "150"))
"""How many copies are tried; a long run sets the variable."""

WRITES = 60
SECTOR = 512
SUFFIXES = ("", "-wal", "-shm")

Files = dict[str, bytes | None]
Dump = dict[str, list[tuple[object, ...]]]


class Writer:
    """A validator that is alone, and what its files and rows were after each of its writes."""

    def __init__(self, path: Path) -> None:
        self.chain = LedgerChain(make_genesis(validators=["node-1"]))
        self.moments: list[Files] = []
        self.dumps: list[Dump] = []
        self.roots: dict[int, bytes] = {}
        with Storage(path, chain_id=self.chain.chain_id) as storage:
            storage._connection.execute("PRAGMA wal_autocheckpoint = 20")
            engine = self.make_engine(storage)
            self.roots[0] = engine.state_root
            self._note(path, storage)
            for turn in range(WRITES):
                body = FundEscrow(self.chain.hub, turn + 1)
                message = SubmitTransaction(self.chain.make_transaction("alice", body))
                ready = engine.step(message, now_ms=self.chain.now_ms + 1_000 * turn)
                storage.write(ready.persist, engine.take_journal())
                self.roots[engine.height] = engine.state_root
                self._note(path, storage)
                if turn % 17 == 0:
                    storage._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    self._note(path, storage)

    def make_engine(self, storage: Storage) -> TendermintEngine:
        return TendermintEngine(
            self.chain.make_app(),
            genesis=self.chain.genesis,
            chain_id=self.chain.chain_id,
            signer=self.chain.get_signer("node-1"),
            read_blocks=storage.read_blocks,
            snapshot_interval=7,
        )

    def _note(self, path: Path, storage: Storage) -> None:
        files = {suffix: Path(f"{path}{suffix}") for suffix in SUFFIXES}
        self.moments.append({s: f.read_bytes() if f.exists() else None for s, f in files.items()})
        self.dumps.append(dump(storage))

    def start(self, path: Path) -> TendermintEngine:
        """Start from files as a node does."""
        with Storage(path, chain_id=self.chain.chain_id) as storage:
            rows = dump(storage)
            if any(rows.values()):
                assert rows in self.dumps, "these rows never were together"
            snapshot = storage.load_snapshot()
            engine = self.make_engine(storage)
            engine.restore(
                storage.iterate_blocks(snapshot.snapshot.height + 1 if snapshot else 1),
                storage.scan(RecordKind.SIGNED, SignRecord),
                storage.scan(RecordKind.VALID, ValidRecord),
                snapshot,
            )
            storage.write([], engine.take_journal())
        return engine


def dump(storage: Storage) -> Dump:
    connection = storage._connection
    return {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("records", "accounts", "transfers")
    }


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return Writer(tmp_path_factory.mktemp("writer") / "node.db")


# --- copies --------------------------------------------------------------------------------------


def make_copy(writer: Writer, random: Random) -> tuple[str, Files]:
    """Copy each file at a moment of its own, then spoil one; say how."""
    last = len(writer.moments) - 1
    first = random.randrange(last + 1)
    files = dict(writer.moments[first])
    ways = ["as it was"]
    for suffix in SUFFIXES:
        if random.random() < 0.4:
            moment = min(max(first + random.choice((-9, -2, -1, 1, 2, 9)), 0), last)
            files[suffix] = writer.moments[moment][suffix]
            ways.append(f"{suffix or 'db'} of another time")
    if random.random() < 0.5:
        suffix = random.choice(SUFFIXES)
        way = random.choice(("missing", "cut", "torn", "flipped", "mixed", "mixed"))
        other = writer.moments[random.randrange(last + 1)][suffix]
        files[suffix] = spoil(files[suffix], other, way, random)
        ways.append(f"{suffix or 'db'} {way}")
    return ", ".join(ways), files


def spoil(data: bytes | None, other: bytes | None, way: str, random: Random) -> bytes | None:
    if not data or way == "missing":
        return None
    at = random.randrange(len(data))
    match way:
        case "cut":
            return data[:at]
        case "torn":
            return data[:at] + bytes(min(SECTOR, len(data) - at)) + data[at + SECTOR :]
        case "flipped":
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    return b"".join(
        (other or b"")[i : i + SECTOR] if random.random() < 0.3 else data[i : i + SECTOR]
        for i in range(0, len(data), SECTOR)
    )


def test_a_copy_starts_at_one_write_or_is_refused_with_the_fix(
    writer: Writer, tmp_path: Path
) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(COPIES):
        how, files = make_copy(writer, Random(seed))
        path = tmp_path / f"{seed}.db"
        for suffix, data in files.items():
            if data is not None:
                Path(f"{path}{suffix}").write_bytes(data)
        try:
            engine = writer.start(path)
        except ConfigurationError as error:
            names_fix = "move it away" in str(error) or "restore both" in str(error)
            outcomes["refused" if names_fix else f"refused without a fix: {error}"] += 1
        except (IemasError, sqlite3.Error, AssertionError) as error:
            raise AssertionError(f"seed {seed} ({how}): {error!r}") from error
        else:
            assert engine.state_root == writer.roots[engine.height], f"seed {seed} ({how})"
            outcomes["old" if engine.height < max(writer.roots) else "whole"] += 1
        for suffix in (*SUFFIXES, ".lock"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert set(outcomes) <= {"refused", "old", "whole"}, outcomes
    assert min(outcomes["refused"], outcomes["old"]) > COPIES // 20, outcomes


def test_a_log_cut_at_any_place_gives_the_last_whole_write(writer: Writer, tmp_path: Path) -> None:
    moment = next(m for m in reversed(writer.moments) if len(m["-wal"] or b"") > 40_000)
    log = moment["-wal"]
    assert log is not None
    heights = []
    for number, length in enumerate(range(0, len(log) + 1, len(log) // 40)):
        path = tmp_path / f"{number}.db"
        path.write_bytes(moment[""] or b"")
        Path(f"{path}-wal").write_bytes(log[:length])
        heights.append(writer.start(path).height)
    assert heights == sorted(heights)
    assert len(set(heights)) >= 2


def test_a_log_without_its_database_is_refused(writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    Path(f"{path}-wal").write_bytes(b"a log")
    with pytest.raises(ConfigurationError, match="restore both from one copy"):
        writer.start(path)


def test_rows_of_two_times_that_fit_are_refused(writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    whole = next(moment for moment in reversed(writer.moments) if not moment["-wal"])
    path.write_bytes(whole[""] or b"")
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM transfers WHERE height = 3")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigurationError, match="not those of one moment"):
        writer.start(path)


def test_the_sum_follows_every_kind_of_write(tmp_path: Path) -> None:
    path, chain = tmp_path / "node.db", LedgerChain()
    genesis = JournalEntry(0, chain.app.genesis_transfers)
    with Storage(path, chain_id=chain.chain_id) as storage:
        storage.write([], [genesis])
        total = storage._sum
    with Storage(path, chain_id=chain.chain_id) as storage:
        assert storage._sum == total != 0
