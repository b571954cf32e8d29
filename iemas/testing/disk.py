"""A simulated disk: what was written survives a crash of the process, nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iemas import wire
from iemas.core.envelope import Signed
from iemas.core.ready import Record, RecordKind


class SimulatedDisk:
    """Keeps records as bytes, as `node.storage.Storage` does."""

    def __init__(self) -> None:
        self._tables: dict[RecordKind, dict[bytes, bytes]] = {kind: {} for kind in RecordKind}

    def write(self, records: Sequence[Record]) -> None:
        """Write records durably, in order; a value of None deletes."""
        for record in records:
            table = self._tables[record.kind]
            if record.value is None:
                table.pop(record.key, None)
            elif isinstance(record.value, Signed):
                table[record.key] = wire.encode_signed(record.value)
            else:
                table[record.key] = wire.encode(record.value)

    def scan_signed(self, kind: RecordKind, cls: type[Any]) -> list[Signed[Any]]:
        """Read a table of signed messages in key order."""
        return [wire.decode_signed(cls, data) for _, data in sorted(self._tables[kind].items())]

    def scan(self, kind: RecordKind, cls: type[Any]) -> list[Any]:
        """Read a table of plain messages in key order."""
        return [wire.decode(cls, data) for _, data in sorted(self._tables[kind].items())]
