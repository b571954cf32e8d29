"""The node's store: one SQLite file with everything that must survive a crash.

Records (blocks, transcripts, countersigned bids, unsettled totals, …) are kept as the bytes that
travelled, so signatures stay checkable. Beside them stand the ledger's double entry as plain
tables, `accounts` and `transfers`, for anyone with `sqlite3` to query. Every write is one
transaction and on disk when it returns (WAL, synchronous=FULL).

Source: docs/spec/application.md §4.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from iemas import wire
from iemas.consensus.chain import JournalEntry
from iemas.consensus.messages import CommittedBlock
from iemas.core.envelope import Signed
from iemas.core.errors import ConfigurationError, InvalidInputError
from iemas.core.ready import Record, RecordKind
from iemas.ledger.transfer import LedgerAccount, Transfer

T = TypeVar("T")

SCHEMA_VERSION = 3

BLOCKS_PAGE = 64

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


class Storage:
    """An open store of one node on one chain; one caller at a time.

    Raises: ConfigurationError, naming the fix, if the file belongs to another chain or another
    version of the schema, if another node has it open, or if it is no database or a damaged one.
    """

    def __init__(self, path: str | Path, *, chain_id: str) -> None:
        self._path = Path(path)
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

        Raises: sqlite3.Error if the disk is full or fails; then nothing was written.
        """
        with self._transaction() as connection:
            for record in records:
                _write_record(connection, record)
            for entry in journal:
                self._post(connection, entry)

    def _post(self, connection: sqlite3.Connection, entry: JournalEntry) -> None:
        """Post a height's transfers once, however often it is replayed."""
        if entry.height <= self.posted_height:
            return
        for index, transfer in enumerate(entry.transfers):
            _post_transfer(connection, entry.height, index, transfer)
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('posted_height', ?)", (str(entry.height),)
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite may have rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    # --- reading ---------------------------------------------------------------------------------

    @property
    def posted_height(self) -> int:
        """Last height whose transfers are in the ledger tables; −1 before genesis is."""
        return int(self._get_meta("posted_height") or -1)

    def read_page(self, kind: RecordKind, first: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Read up to `limit` raw records in key order, from the key `first` on."""
        rows = self._connection.execute(
            "SELECT key, value FROM records WHERE kind = ? AND key >= ? ORDER BY key LIMIT ?",
            (kind.value, first, limit),
        )
        return [(bytes(key), bytes(value)) for key, value in rows]

    def read_blocks(self, from_height: int, limit: int) -> list[CommittedBlock]:
        """Read stored blocks from a height on: the engine's `BlockReader`."""
        page = self.read_page(RecordKind.BLOCK, from_height.to_bytes(8, "big"), limit)
        return [self._decode(RecordKind.BLOCK, CommittedBlock, value) for _, value in page]

    def iterate_blocks(self) -> Iterator[CommittedBlock]:
        """Read all stored blocks in order, a page at a time. Raises: ConfigurationError."""
        height = 1
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
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"the database {self._path} cannot be opened ({error}); choose a data directory "
                "that this user may write to"
            ) from error
        try:
            self._connection = connection
            self._prepare(connection, chain_id)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise self._describe_damage(str(error)) from error
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

    def _create(self, connection: sqlite3.Connection, chain_id: str) -> None:
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            meta = [("chain_id", chain_id), ("schema_version", str(SCHEMA_VERSION))]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)

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
        raise ConfigurationError(
            f"the database {path} cannot be opened ({error.strerror}); choose a data directory "
            "that exists and that this user may write to"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigurationError(
            f"the database {path} is in use by another node; stop that one, or give this one a "
            "data directory of its own"
        ) from error
    return lock


def _write_record(connection: sqlite3.Connection, record: Record) -> None:
    if record.value is None:
        connection.execute(
            "DELETE FROM records WHERE kind = ? AND key = ?", (record.kind.value, record.key)
        )
        return
    if isinstance(record.value, Signed):
        value = wire.encode_signed(record.value)
    else:
        value = wire.encode(record.value)
    connection.execute(
        "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (record.kind.value, record.key, value)
    )


def _post_transfer(
    connection: sqlite3.Connection, height: int, index: int, transfer: Transfer
) -> None:
    _add_balance(connection, transfer.debit, -transfer.amount_micros)
    _add_balance(connection, transfer.credit, transfer.amount_micros)
    connection.execute(
        "INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?)",
        (
            height,
            index,
            transfer.debit.name,
            transfer.credit.name,
            transfer.amount_micros,
            transfer.reason.value,
        ),
    )


def _add_balance(connection: sqlite3.Connection, account: LedgerAccount, micros: int) -> None:
    connection.execute(
        "INSERT INTO accounts VALUES (?, ?, ?, ?, ?) ON CONFLICT (account) "
        "DO UPDATE SET balance_micros = balance_micros + excluded.balance_micros",
        (account.name, account.kind.name.lower(), account.owner.hex(), account.hub, micros),
    )
