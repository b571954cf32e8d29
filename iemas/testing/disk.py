"""A simulated disk: what was synced survives a crash; of what was not, a crash decides.

Every write is all or nothing, as a transaction of `node.storage.Storage` is: what a crash tears is
found by its checksum when the node comes back, and is as if it had never begun.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import cbor2

from iemas import wire
from iemas.consensus.messages import CommittedBlock, SnapshotChunk
from iemas.consensus.snapshots import KeptSnapshot, choose_snapshot
from iemas.core.envelope import Signed
from iemas.core.ready import Record, RecordKind
from iemas.ledger.snapshot import Snapshot

_LENGTH_BYTES = 4
_CHECKSUM_BYTES = 4

_Entry = tuple[str, bytes, bytes | None]


class SimulatedDisk:
    """Keeps records as bytes. `write` returns when all is on disk.

    `append` and `sync` are its two halves, for whoever crashes between them.
    """

    def __init__(self) -> None:
        self._tables: dict[RecordKind, dict[bytes, bytes]] = {kind: {} for kind in RecordKind}
        self._unsynced: list[list[_Entry]] = []

    # --- writing ---------------------------------------------------------------------------------

    def write(self, records: Sequence[Record]) -> None:
        """Write records durably, all or nothing; a value of None deletes."""
        self.append(records)
        self.sync()

    def append(self, records: Sequence[Record]) -> None:
        """Begin a write: it is not on disk before `sync`."""
        self._unsynced.append([_encode(record) for record in records])

    def sync(self) -> None:
        """Bring all that was appended to the disk."""
        for entries in self._unsynced:
            self._apply(entries)
        self._unsynced.clear()

    def measure_unsynced(self) -> int:
        """Give how many bytes are appended and not synced."""
        return sum(len(_frame(entries)) for entries in self._unsynced)

    def crash(self, *, kept_bytes: int = 0) -> bool:
        """Lose what was not synced but its first bytes; tell whether that tore a write."""
        reached = b"".join(_frame(entries) for entries in self._unsynced)[:kept_bytes]
        self._unsynced.clear()
        whole_bytes = 0
        for entries, end in _read_frames(reached):
            self._apply(entries)
            whole_bytes = end
        return whole_bytes < len(reached)

    def _apply(self, entries: Sequence[_Entry]) -> None:
        for kind, key, value in entries:
            table = self._tables[RecordKind(kind)]
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value

    # --- reading ---------------------------------------------------------------------------------

    def read_blocks(self, from_height: int, limit: int) -> list[CommittedBlock]:
        """Read stored blocks from a height on, in order: an engine's `BlockReader`."""
        table = self._tables[RecordKind.BLOCK]
        keys = [height.to_bytes(8, "big") for height in range(from_height, from_height + limit)]
        return [wire.decode(CommittedBlock, table[key]) for key in keys if key in table]

    def load_snapshot(self) -> KeptSnapshot | None:
        """Read the node's own snapshot."""
        chunks = self.scan(RecordKind.CHUNK, SnapshotChunk)
        return choose_snapshot(self.scan(RecordKind.SNAPSHOT, Snapshot), chunks)

    def scan_signed(self, kind: RecordKind, cls: type[Any]) -> list[Signed[Any]]:
        """Read a table of signed messages in key order."""
        return [wire.decode_signed(cls, data) for _, data in sorted(self._tables[kind].items())]

    def scan(self, kind: RecordKind, cls: type[Any]) -> list[Any]:
        """Read a table of plain messages in key order."""
        return [wire.decode(cls, data) for _, data in sorted(self._tables[kind].items())]


def _encode(record: Record) -> _Entry:
    if record.value is None:
        return record.kind.value, record.key, None
    if isinstance(record.value, Signed):
        return record.kind.value, record.key, wire.encode_signed(record.value)
    return record.kind.value, record.key, wire.encode(record.value)


def _frame(entries: Sequence[_Entry]) -> bytes:
    """Lay a write out as it goes to the platter: length, checksum, contents."""
    data: bytes = cbor2.dumps(entries)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + _compute_checksum(data) + data


def _read_frames(data: bytes) -> Iterator[tuple[list[_Entry], int]]:
    """Read writes, each with where it ends, as far as they are whole."""
    start = 0
    while True:
        header_end = start + _LENGTH_BYTES + _CHECKSUM_BYTES
        end = header_end + int.from_bytes(data[start : start + _LENGTH_BYTES], "big")
        body = data[header_end:end]
        is_whole = header_end <= len(data) and end <= len(data)
        if not is_whole or data[start + _LENGTH_BYTES : header_end] != _compute_checksum(body):
            return
        yield cbor2.loads(body), end
        start = end


def _compute_checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big")
