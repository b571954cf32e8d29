"""The node's store: one SQLite file with everything that must survive a crash.

Records (blocks, transcripts, countersigned bids, unsettled totals, …) are kept as the bytes that
travelled, so signatures stay checkable. Beside them stand the ledger's double entry as plain
tables, `accounts` and `transfers`, for anyone with `sqlite3` to query. Every write is one
transaction and on disk when it returns (WAL, synchronous=FULL).

SQLite notices a torn log, and pages that do not fit together; it does not notice pages of two
times that happen to fit, as a copy made while the node writes may have. So the store keeps the sum
of all rows' hashes, and adds it up again when it is opened: what opens is what one write left.

Source: docs/spec/application.md §4.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import cbor2

from iemas import wire
from iemas.consensus.chain import JournalEntry
from iemas.consensus.messages import CommittedBlock, SnapshotChunk
from iemas.consensus.snapshots import KeptSnapshot, choose_snapshot
from iemas.core.envelope import Signed
from iemas.core.errors import ConfigurationError, InvalidInputError
from iemas.core.ready import Record, RecordKind
from iemas.core.types import NodeId
from iemas.files import explain_os_error
from iemas.ledger.snapshot import Snapshot
from iemas.ledger.transfer import LedgerAccount, Transfer

T = TypeVar("T")

SCHEMA_VERSION = 5

BLOCKS_PAGE = 64

_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_ERROR,  # tables are missing
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    }
)
"""What SQLite says of the content; all else is of the disk, the folder, other programs."""

_SUM_MODULUS = 2**128

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
  kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE accounts (
  account TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  owner TEXT NOT NULL,
  hub TEXT NOT NULL,
  balance_micros INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE transfers (
  height INTEGER NOT NULL,
  idx INTEGER NOT NULL,
  debit TEXT NOT NULL REFERENCES accounts,
  credit TEXT NOT NULL REFERENCES accounts,
  amount_micros INTEGER NOT NULL CHECK (amount_micros > 0),
  reason TEXT NOT NULL,
  PRIMARY KEY (height, idx)
) WITHOUT ROWID;
"""


class UnwritableDatabaseError(sqlite3.OperationalError):
    """The disk refused a write; the file is as it was before."""


class Storage:
    """An open store of one node on one chain; one caller at a time.

    Args:
        path: the file; made if there is none.
        chain_id: the chain whose blocks it holds.
        node_id: the node whose file it is; None asks only to read what any node wrote.

    Raises: ConfigurationError, naming the fix, if the file belongs to another chain, another node
    or another version of the schema, if another node has it open, if it is no database or a
    damaged one, or if its disk or folder does not let it be used.

    """

    def __init__(self, path: str | Path, *, chain_id: str, node_id: NodeId | None = None) -> None:
        self._path = Path(path)
        self._node_id = node_id
        self._sum = 0
        self._lock = _lock_file(self._path)
        try:
            self._connection = self._open(chain_id)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Close the file and let go of it."""
        self._connection.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing ---------------------------------------------------------------------------------

    def write(self, records: Sequence[Record], journal: Sequence[JournalEntry] = ()) -> None:
        """Write records, and the transfers of heights not posted yet, all or nothing.

        A record's value of None deletes its key. When this returns, it is on disk.

        Raises: sqlite3.Error if the disk is full or fails, UnwritableDatabaseError where there is a
            fix; then nothing was written.
        """
        try:
            with self._transaction() as connection:
                for record in records:
                    self._write_record(connection, record)
                for entry in journal:
                    self._post(connection, entry)
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise
            raise UnwritableDatabaseError(
                f"{self._path}: {error}; {self._get_fix(error)}"
            ) from error

    def _post(self, connection: sqlite3.Connection, entry: JournalEntry) -> None:
        """Post a height's transfers once, however often it is replayed."""
        if entry.height <= self.posted_height:
            return
        changes: Counter[LedgerAccount] = Counter()
        for index, transfer in enumerate(entry.transfers):
            changes[transfer.debit] -= transfer.amount_micros
            changes[transfer.credit] += transfer.amount_micros
            row = _make_transfer_row(entry.height, index, transfer)
            self._insert(connection, "transfers", row)
        for account, micros in changes.items():
            self._add_balance(connection, account, micros)
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('posted_height', ?)", (str(entry.height),)
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        before = self._sum
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('sum', ?)", (f"{self._sum:x}",)
            )
            self._connection.execute("COMMIT")
        except BaseException:
            self._sum = before
            # On a full disk SQLite may have rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _write_record(self, connection: sqlite3.Connection, record: Record) -> None:
        place = (record.kind.value, record.key)
        old = connection.execute(
            "SELECT value FROM records WHERE kind = ? AND key = ?", place
        ).fetchone()
        if old is not None:
            self._count("records", (*place, old[0]), -1)
            connection.execute("DELETE FROM records WHERE kind = ? AND key = ?", place)
        if isinstance(record.value, Signed):
            self._insert(connection, "records", (*place, wire.encode_signed(record.value)))
        elif record.value is not None:
            self._insert(connection, "records", (*place, wire.encode(record.value)))

    def _add_balance(
        self, connection: sqlite3.Connection, account: LedgerAccount, micros: int
    ) -> None:
        row = (account.name, account.kind.name.lower(), account.owner.hex(), account.hub)
        old = connection.execute(
            "SELECT balance_micros FROM accounts WHERE account = ?", row[:1]
        ).fetchone()
        before = 0
        if old is not None:
            before = old[0]
            self._count("accounts", (*row, before), -1)
            connection.execute("DELETE FROM accounts WHERE account = ?", row[:1])
        self._insert(connection, "accounts", (*row, before + micros))

    def _insert(self, connection: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> None:
        places = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} VALUES ({places})", row)  # noqa: S608
        self._count(table, row, 1)

    def _count(self, table: str, row: tuple[Any, ...], sign: int) -> None:
        """Add a row to the sum of all, or take it away."""
        self._sum = (self._sum + sign * _hash_row(table, row)) % _SUM_MODULUS

    # --- reading ---------------------------------------------------------------------------------

    @property
    def posted_height(self) -> int:
        """Last height whose transfers are in the ledger tables; −1 before genesis is."""
        return int(self._get_meta("posted_height") or -1)

    def read_page(self, kind: RecordKind, first: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Read up to `limit` raw records in key order, from the key `first` on.

        Raises: ConfigurationError if the file is damaged or its disk fails.
        """
        try:
            rows = self._connection.execute(
                "SELECT key, value FROM records WHERE kind = ? AND key >= ? ORDER BY key LIMIT ?",
                (kind.value, first, limit),
            ).fetchall()
        except sqlite3.ProgrammingError:
            raise  # the store was closed: that says nothing of the file
        except sqlite3.DatabaseError as error:
            raise self._describe(error) from error
        return [(bytes(key), bytes(value)) for key, value in rows]

    def read_blocks(self, from_height: int, limit: int) -> list[CommittedBlock]:
        """Read stored blocks from a height on: the engine's `BlockReader`."""
        page = self.read_page(RecordKind.BLOCK, from_height.to_bytes(8, "big"), limit)
        return [self._decode(RecordKind.BLOCK, CommittedBlock, value) for _, value in page]

    def load_snapshot(self) -> KeptSnapshot | None:
        """Read the node's own last snapshot. Raises: ConfigurationError."""
        snapshots = self.scan(RecordKind.SNAPSHOT, Snapshot)
        return choose_snapshot(snapshots, self.scan(RecordKind.CHUNK, SnapshotChunk))

    def iterate_blocks(self, height: int = 1) -> Iterator[CommittedBlock]:
        """Read stored blocks from a height on, a page at a time. Raises: ConfigurationError."""
        while page := self.read_blocks(height, BLOCKS_PAGE):
            yield from page
            height = page[-1].height + 1

    def find(self, kind: RecordKind, key: bytes, cls: type[T]) -> T | None:
        """Read the plain message under a key, or None. Raises: ConfigurationError."""
        page = self.read_page(kind, key, 1)
        return self._decode(kind, cls, page[0][1]) if page and page[0][0] == key else None

    def scan(self, kind: RecordKind, cls: type[T]) -> list[T]:
        """Read all plain messages of a kind in key order. Raises: ConfigurationError."""
        return [message for _, message in self.scan_items(kind, cls)]

    def scan_items(self, kind: RecordKind, cls: type[T]) -> list[tuple[bytes, T]]:
        """Read all plain messages of a kind with their keys. Raises: ConfigurationError."""
        return [(key, self._decode(kind, cls, value)) for key, value in self._read_all(kind)]

    def scan_signed(self, kind: RecordKind, cls: type[T]) -> list[Signed[T]]:
        """Read all signed messages of a kind in key order. Raises: ConfigurationError."""
        return [self._decode_signed(kind, cls, value) for _, value in self._read_all(kind)]

    def _decode(self, kind: RecordKind, cls: type[T], value: bytes) -> T:
        try:
            return wire.decode(cls, value)
        except InvalidInputError as error:
            raise self._describe_damage(f"a {kind.value} does not decode") from error

    def _decode_signed(self, kind: RecordKind, cls: type[T], value: bytes) -> Signed[T]:
        try:
            return wire.decode_signed(cls, value)
        except InvalidInputError as error:
            raise self._describe_damage(f"a {kind.value} does not decode") from error

    def _read_all(self, kind: RecordKind) -> list[tuple[bytes, bytes]]:
        return self.read_page(kind, b"", -1)

    def _get_meta(self, name: str) -> str | None:
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    # --- opening ---------------------------------------------------------------------------------

    def _open(self, chain_id: str) -> sqlite3.Connection:
        log = Path(f"{self._path}-wal")
        if _measure(log) and not _measure(self._path):
            raise ConfigurationError(
                f"there is {log}, which holds what was written last, but not {self._path}; restore "
                "both from one copy, or move both away: the node fetches the blocks anew"
            )
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise self._describe(error) from error
        try:
            self._connection = connection
            self._prepare(connection, chain_id)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise self._describe(error) from error
        except ConfigurationError:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, chain_id: str) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 5000")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self._describe_damage(str(verdict))
        if not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            self._create(connection, chain_id)
        self._check_meta(chain_id)
        self._check_sum(connection)
        self._check_node(connection)

    def _create(self, connection: sqlite3.Connection, chain_id: str) -> None:
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            meta = [("chain_id", chain_id), ("schema_version", str(SCHEMA_VERSION))]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)

    def _check_sum(self, connection: sqlite3.Connection) -> None:
        """Add up all rows' hashes: they are what one write left, or the file is damaged."""
        for table in ("records", "accounts", "transfers"):
            for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608
                self._count(table, row, 1)
        if self._get_meta("sum") != f"{self._sum:x}":
            raise self._describe_damage("its rows are not those of one moment")

    def _check_meta(self, chain_id: str) -> None:
        version, stored = self._get_meta("schema_version"), self._get_meta("chain_id")
        if version != str(SCHEMA_VERSION):
            raise ConfigurationError(
                f"the database {self._path} has schema version {version}, this program has "
                f"{SCHEMA_VERSION}; run the version of iemas that wrote it, or choose another "
                "data directory"
            )
        if stored != chain_id:
            raise ConfigurationError(
                f"the database {self._path} belongs to the chain {stored}, the genesis file to "
                f"{chain_id}; use that chain's genesis file, or another data directory"
            )

    def _check_node(self, connection: sqlite3.Connection) -> None:
        """Bind the file to its node: another one would vote what this one's votes forbid it."""
        if self._node_id is None:
            return
        stored = self._get_meta("node_id")
        if stored is None:
            row = ("node_id", self._node_id.hex())
            connection.execute("INSERT INTO meta VALUES (?, ?)", row)
        elif stored != self._node_id.hex():
            raise ConfigurationError(
                f"the database {self._path} belongs to the node {stored}, the key file to "
                f"{self._node_id.hex()}; use that node's key file, or another data directory"
            )

    def _describe(self, error: sqlite3.DatabaseError) -> ConfigurationError:
        if _is_damage(error):
            return self._describe_damage(str(error))
        return ConfigurationError(
            f"the database {self._path} cannot be read and written ({error}); "
            f"{self._get_fix(error)}"
        )

    def _get_fix(self, error: sqlite3.DatabaseError) -> str:
        allow = f"let this user write to {self._path.parent} and the files in it"
        fixes = {
            sqlite3.SQLITE_FULL: "free space on its disk",
            sqlite3.SQLITE_BUSY: "end the program that holds it open",
            sqlite3.SQLITE_LOCKED: "end the program that holds it open",
            sqlite3.SQLITE_READONLY: allow,
            sqlite3.SQLITE_PERM: allow,
            sqlite3.SQLITE_CANTOPEN: allow,
        }
        fix = fixes.get(_get_code(error), f"free space on its disk, or mend it; {allow}")
        return f"{fix}: the file is whole, leave it where it is"

    def _describe_damage(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"the database {self._path} is damaged ({what}); move it away: the node fetches the "
            "blocks anew from its peers, but what it has not settled yet is only in that file"
        )


def _lock_file(path: Path) -> int:
    """Hold a lock beside the database as long as this process lives.

    SQLite's own locks would let a second node in between two writes.
    """
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if path.exists():
            elsewhere = "end what holds it open; the database beside it is whole: leave it there"
        else:
            elsewhere = "choose a data directory that exists and that this user may write to"
        raise explain_os_error(error, elsewhere) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigurationError(
            f"the database {path} is in use by another node; stop that one, or give this one a "
            "data directory of its own"
        ) from error
    return lock


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Tell a fault of the file's content from one of its disk, its folder or its users."""
    return _get_code(error) in _DAMAGE


def _get_code(error: sqlite3.DatabaseError) -> int:
    """Give SQLite's primary code; the module's own errors, such as of types, have none."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _make_transfer_row(height: int, index: int, transfer: Transfer) -> tuple[Any, ...]:
    return (
        height,
        index,
        transfer.debit.name,
        transfer.credit.name,
        transfer.amount_micros,
        transfer.reason.value,
    )


def _hash_row(table: str, row: tuple[Any, ...]) -> int:
    """Hash a row with its table, as a number."""
    data = cbor2.dumps((table, row))
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big")


def _measure(path: Path) -> int:
    """Give a file's size; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
