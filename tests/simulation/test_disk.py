"""The simulated disk: what a crash may and may not take."""

from __future__ import annotations

import pytest

from iemas.consensus.messages import SignRecord
from iemas.core.ready import Record, RecordKind
from iemas.testing.disk import SimulatedDisk


def make_record(height: int) -> Record:
    signed = SignRecord(height, 0, 1, None, -1, None, -1, ())
    return Record(RecordKind.SIGNED, height.to_bytes(8, "big"), signed)


def read(disk: SimulatedDisk) -> list[int]:
    return [record.height for record in disk.scan(RecordKind.SIGNED, SignRecord)]


def test_what_was_written_survives() -> None:
    disk = SimulatedDisk()
    disk.write([make_record(1)])
    disk.append([make_record(2)])
    disk.sync()
    disk.crash()
    assert read(disk) == [1, 2]


def test_a_crash_keeps_unsynced_writes_in_order_and_each_of_them_whole() -> None:
    tail = SimulatedDisk()
    tail.append([make_record(2), make_record(3)])
    first_bytes = tail.measure_unsynced()
    tail.append([make_record(4)])
    for kept_bytes in range(tail.measure_unsynced() + 1):
        disk = SimulatedDisk()
        disk.write([make_record(1)])
        disk.append([make_record(2), make_record(3)])
        disk.append([make_record(4)])
        is_torn = disk.crash(kept_bytes=kept_bytes)
        whole = kept_bytes in (0, first_bytes, tail.measure_unsynced())
        assert is_torn is not whole
        expected = [1] + [2, 3] * (kept_bytes >= first_bytes)
        assert read(disk) == expected + [4] * (kept_bytes == tail.measure_unsynced())


@pytest.mark.parametrize("kept_bytes", [0, 10])
def test_after_a_crash_it_goes_on(kept_bytes: int) -> None:
    disk = SimulatedDisk()
    disk.append([make_record(1)])
    disk.crash(kept_bytes=kept_bytes)
    disk.write([make_record(2)])
    assert read(disk) == [2]


def test_none_deletes() -> None:
    disk = SimulatedDisk()
    disk.write([make_record(1)])
    disk.write([Record(RecordKind.SIGNED, make_record(1).key, None)])
    assert read(disk) == []
