"""An application that notes which verb it was called with, and can die in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from iemas.core.envelope import Signed
from iemas.core.types import Hash
from iemas.ledger.application import AppInfo, FinalizedBlock, LedgerApplication
from iemas.ledger.header import Block
from iemas.ledger.snapshot import Snapshot
from iemas.ledger.state import ProvenEntry
from iemas.ledger.transaction import Transaction, TransactionResult
from iemas.testing.chain import LedgerChain, accept_transcript
from iemas.testing.engine import CrashError

T = TypeVar("T")

MAY_CHANGE_STATE = ("init_chain", "commit", "apply_snapshot_chunk")


@dataclass(slots=True)
class Call:
    """One call of a verb: `height` and `root` are the committed state's before it."""

    replica: str
    life: int
    verb: str
    subject: Any
    height: int
    root: Hash
    output: Any = None
    error: Exception | None = None
    changed_state: bool = False


Log = list[Call]
"""The calls at all replicas, in the order in which they were made."""


class RecordingApplication(LedgerApplication):
    """The application of one life of one replica. `dies_in` names a verb that kills it, once."""

    def __init__(self, chain: LedgerChain, replica: str, life: int, log: Log) -> None:
        self.replica = replica
        self.life = life
        self.dies_in = ""
        self._log: Log | None = None
        super().__init__(chain.genesis, chain.chain_id, verify_transcript=accept_transcript)
        self._log = log

    def stop_recording(self) -> None:
        self._log = None

    def record_in(self, log: Log) -> None:
        self._log = log

    def _record(self, verb: str, subject: Any, run: Callable[[], T]) -> T:
        if self._log is None:  # while it is made
            return run()
        before = self.state
        call = Call(self.replica, self.life, verb, subject, before.height, before.compute_root())
        self._log.append(call)
        if self.dies_in == verb:
            self.dies_in = ""
            call.error = CrashError(f"{self.replica} died in {verb}")
            raise call.error
        try:
            call.output = run()
        except Exception as error:
            call.error = error
            raise
        finally:
            same = self.state is before and before.compute_root() == call.root
            call.changed_state = not same and verb not in MAY_CHANGE_STATE
        return call.output

    def info(self) -> AppInfo:
        return self._record("info", None, super().info)

    def init_chain(self) -> Hash:
        return self._record("init_chain", None, super().init_chain)

    def check_tx(self, signed: Signed[Transaction]) -> TransactionResult:
        parent = super()
        return self._record("check_tx", signed, lambda: parent.check_tx(signed))

    def prepare_proposal(
        self, waiting: Iterable[Signed[Transaction]]
    ) -> tuple[Signed[Transaction], ...]:
        parent, given = super(), tuple(waiting)
        return self._record("prepare_proposal", given, lambda: parent.prepare_proposal(given))

    def process_proposal(self, block: Block) -> None:
        parent = super()
        self._record("process_proposal", block, lambda: parent.process_proposal(block))

    def finalize_block(self, block: Block) -> FinalizedBlock:
        parent = super()
        return self._record("finalize_block", block, lambda: parent.finalize_block(block))

    def commit(self) -> int:
        return self._record("commit", None, super().commit)

    def query(self, path: str, data: bytes) -> ProvenEntry | None:
        parent = super()
        return self._record("query", data, lambda: parent.query(path, data))

    def list_snapshots(self) -> tuple[Snapshot, ...]:
        return self._record("list_snapshots", None, super().list_snapshots)

    def load_snapshot_chunk(self, height: int, chunk: int) -> bytes | None:
        parent = super()
        return self._record(
            "load_snapshot_chunk", chunk, lambda: parent.load_snapshot_chunk(height, chunk)
        )

    def offer_snapshot(self, snapshot: Snapshot, state_root: Hash) -> bool:
        parent = super()
        return self._record(
            "offer_snapshot", snapshot, lambda: parent.offer_snapshot(snapshot, state_root)
        )

    def apply_snapshot_chunk(self, chunk: bytes) -> bool:
        parent = super()
        return self._record(
            "apply_snapshot_chunk", chunk, lambda: parent.apply_snapshot_chunk(chunk)
        )
