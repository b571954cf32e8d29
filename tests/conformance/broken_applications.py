"""Applications that break one statement each: the suite must find every one of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from iemas.core.envelope import Signed
from iemas.core.types import AccountId
from iemas.ledger.application import FinalizedBlock, LedgerApplication
from iemas.ledger.header import Block
from iemas.ledger.snapshot import Snapshot
from iemas.ledger.transaction import ResultCode, Transaction, TransactionResult
from tests.conformance import application_checks as checks

SOMEBODY = AccountId(bytes(32))


class CountsInstances(LedgerApplication):
    """Lets something outside of the blocks into the state."""

    numbers = itertools.count(1)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.number = next(self.numbers)
        super().__init__(*arguments, **options)

    def finalize_block(self, block: Block) -> FinalizedBlock:
        super().finalize_block(block)
        assert self._pending is not None
        self._pending.set_nonce(SOMEBODY, self.number)
        return FinalizedBlock((), (), self._pending.compute_root())


class CommitsAtOnce(LedgerApplication):
    def finalize_block(self, block: Block) -> FinalizedBlock:
        finalized = super().finalize_block(block)
        assert self._pending is not None
        self._state = self._pending
        return finalized


class NotesWhatItChecks(LedgerApplication):
    def check_tx(self, signed: Signed[Transaction]) -> TransactionResult:
        state = self._state.copy()
        state.set_nonce(signed.message.account, signed.message.nonce)
        self._state = state
        return super().check_tx(signed)


class ProposesEverything(LedgerApplication):
    def prepare_proposal(
        self, waiting: Iterable[Signed[Transaction]]
    ) -> tuple[Signed[Transaction], ...]:
        return tuple(waiting)


class AcceptsAnything(LedgerApplication):
    def process_proposal(self, block: Block) -> None:
        pass


class LeavesOutRefusals(LedgerApplication):
    def finalize_block(self, block: Block) -> FinalizedBlock:
        finalized = super().finalize_block(block)
        done = [result for result in finalized.results if result.code is ResultCode.OK]
        return replace(finalized, results=tuple(done))


class OffersOldSnapshots(LedgerApplication):
    def list_snapshots(self) -> tuple[Snapshot, ...]:
        return tuple(replace(offer, height=1) for offer in super().list_snapshots())


BROKEN_APPLICATIONS: dict[type[LedgerApplication], Callable[..., None]] = {
    CountsInstances: checks.check_determinism,
    CommitsAtOnce: checks.check_commit,
    NotesWhatItChecks: checks.check_other_verbs,
    ProposesEverything: checks.check_prepared_proposals,
    AcceptsAnything: checks.check_wrong_blocks,
    LeavesOutRefusals: checks.check_results,
    OffersOldSnapshots: checks.check_snapshot,
}
"""Each with the check that finds it."""
