"""A node's own snapshots: when they are taken, what of them is stored, how they are served.

Every so many blocks the application takes one, which costs about as much as a block's state root.
It is stored with the next block, whose header names its root: so what is on disk can be checked
when the node starts, and shown to others.

Source: docs/spec/engine.md E50 to E52.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iemas.consensus.chain import Chain, make_light_validators
from iemas.consensus.messages import (
    ChunksRequest,
    ChunksResponse,
    CommittedBlock,
    SnapshotChunk,
    SnapshotOffer,
    SnapshotRequest,
)
from iemas.core.errors import ConfigurationError, InvalidInputError
from iemas.core.ready import Record, RecordKind
from iemas.ledger.snapshot import Snapshot

SNAPSHOT_INTERVAL = 500
"""After how many blocks the next snapshot is taken."""

BATCH_BYTES = 1024 * 1024
"""How much an answer with chunks holds; but one chunk at least."""


@dataclass(frozen=True, slots=True)
class KeptSnapshot:
    """A snapshot as a node keeps it on disk."""

    snapshot: Snapshot
    chunks: tuple[SnapshotChunk, ...]


class SnapshotShelf:
    """The snapshots that this node took or was given, of which the last one is on disk."""

    def __init__(self, chain: Chain, *, interval: int) -> None:
        self.interval = interval
        self._chain = chain
        self._offers: tuple[Snapshot, ...] = ()
        self._stored: Snapshot | None = None

    def restore(self, kept: KeptSnapshot, following: CommittedBlock | None) -> None:
        """Let the node's own snapshot be the state, if the stored block after it proves it.

        Raises: ConfigurationError if it does not.
        """
        snapshot, app = kept.snapshot, self._chain.app
        if following is None or following.height != snapshot.height + 1:
            raise _describe_damage(snapshot, "the block after it is missing")
        block = following.block
        try:
            if not app.offer_snapshot(snapshot, block.header.message.state_root):
                raise _describe_damage(snapshot, "it has not the root that the next block names")
            is_whole = [app.apply_snapshot_chunk(chunk.data) for chunk in kept.chunks][-1:]
        except InvalidInputError as error:
            raise _describe_damage(snapshot, str(error)) from error
        if is_whole != [True]:
            raise _describe_damage(snapshot, "chunks of it are missing")
        self._chain.follow_snapshot(block)
        self._stored = snapshot
        self.note_adopted()

    def note_adopted(self) -> None:
        """Note that the state is a snapshot that the application has just adopted."""
        self._offers = self._chain.app.list_snapshots()

    def note_block(self, height: int) -> tuple[Record, ...]:
        """After a block: take a snapshot if it is time; give what to store with this block."""
        records: tuple[Record, ...] = ()
        if self._offers and self._offers[0].height == height - 1:
            records = self._store(self._offers[0])
        if height % self.interval == 0:
            self._offers = self._chain.app.list_snapshots()
        return records

    def _store(self, snapshot: Snapshot) -> tuple[Record, ...]:
        """Give the records of a snapshot, instead of those of the one before."""
        records: list[Record] = []
        if self._stored is not None:
            records.append(Record(RecordKind.SNAPSHOT, _make_key(self._stored.height), None))
            records += [
                Record(RecordKind.CHUNK, _make_key(self._stored.height, index), None)
                for index in range(self._stored.chunks)
            ]
        self._stored = snapshot
        records.append(Record(RecordKind.SNAPSHOT, _make_key(snapshot.height), snapshot))
        for index in range(snapshot.chunks):
            data = self._chain.app.load_snapshot_chunk(snapshot.height, index)
            if data is not None:
                key = _make_key(snapshot.height, index)
                records.append(Record(RecordKind.CHUNK, key, SnapshotChunk(data)))
        return tuple(records)

    # --- serving ---------------------------------------------------------------------------------

    def answer(self, request: SnapshotRequest) -> SnapshotOffer:
        """Offer the newest snapshot whose next block is decided here, if it is new enough."""
        for snapshot in self._offers:
            if request.least_height <= snapshot.height < self._chain.height:
                following = self._chain.load_batch(snapshot.height + 1)
                members = self._chain.app.state.get_consensus_validators_at(snapshot.height + 1)
                if following and members:
                    return SnapshotOffer(snapshot, following[0], make_light_validators(members))
        return SnapshotOffer()

    def answer_chunks(self, request: ChunksRequest) -> ChunksResponse:
        """Give chunks from one on, as many as fit a batch."""
        app, chunks, size = self._chain.app, list[bytes](), 0
        while (
            data := app.load_snapshot_chunk(request.height, request.first + len(chunks))
        ) is not None:
            size += len(data)
            if chunks and size > BATCH_BYTES:
                break
            chunks.append(data)
        return ChunksResponse(request.height, request.first, tuple(chunks))


def choose_snapshot(
    snapshots: Sequence[Snapshot], chunks: Sequence[SnapshotChunk]
) -> KeptSnapshot | None:
    """Put together what a store holds: the one snapshot with its chunks, if there is any."""
    return KeptSnapshot(snapshots[-1], tuple(chunks)) if snapshots else None


def _make_key(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)


def _describe_damage(snapshot: Snapshot, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the stored snapshot of height {snapshot.height} is damaged ({what}); move the node's "
        "database away: the node fetches the ledger anew from its peers",
        height=snapshot.height,
    )
