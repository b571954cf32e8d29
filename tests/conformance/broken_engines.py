"""Engines that break one statement each: the suite must find every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iemas.consensus.validators import compute_members_hash
from iemas.core.envelope import Signed
from iemas.core.errors import InternalError, InvalidBlockError, QuorumUnavailableError
from iemas.core.types import Hash
from iemas.ledger.application import FinalizedBlock
from iemas.ledger.header import Block, compute_transactions_root
from iemas.ledger.rules.results import OK
from iemas.ledger.transaction import Evidence, Transaction, TransactionResult
from iemas.testing.engine import InProcessEngine, InProcessReplica
from tests.conformance import checks


class BrokenEngine(InProcessEngine):
    def change_header(self, block: Block, **changes: Any) -> Block:
        header = replace(block.header.message, **changes)
        return replace(block, header=self._get_signer(block.proposer).sign(header))

    def is_last(self, replica: InProcessReplica) -> bool:
        return replica is list(self.replicas.values())[-1]


class SkipsHandshake(BrokenEngine):
    def _shake_hands(self, replica: InProcessReplica) -> None:
        replica.alive = True
        for block in self.blocks[replica.app.state.height :]:
            self._apply(replica, block)


class SkipsABlock(BrokenEngine):
    def _apply(self, replica: InProcessReplica, block: Block) -> FinalizedBlock:
        if self.is_last(replica) and block.height == 3:
            return replica.finalized[2]
        return super()._apply(replica, block)


class AppliesTwice(BrokenEngine):
    def _apply(self, replica: InProcessReplica, block: Block) -> FinalizedBlock:
        super()._apply(replica, block)
        return super()._apply(replica, block)


class Reorders(BrokenEngine):
    def _apply(self, replica: InProcessReplica, block: Block) -> FinalizedBlock:
        if self.is_last(replica):
            turned = block.transactions[::-1]
            root = compute_transactions_root(turned)
            block = replace(self.change_header(block, transactions_root=root), transactions=turned)
        return super()._apply(replica, block)


class OrdersTwice(BrokenEngine):
    def propose(self) -> Block:
        block = super().propose()
        again = self.blocks[-1].transactions if self.blocks else ()
        return self.make_block(
            (*again, *block.transactions), proposer=block.proposer, time_ms=block.time_ms
        )


class HidesRefusals(BrokenEngine):
    def _apply(self, replica: InProcessReplica, block: Block) -> FinalizedBlock:
        finalized = super()._apply(replica, block)
        shown = replace(finalized, results=tuple(OK for _ in finalized.results))
        replica.finalized[block.height] = shown
        return finalized


class IsAheadOfTime(BrokenEngine):
    def propose(self) -> Block:
        block = super().propose()
        return self.change_header(block, time_ms=block.time_ms + 3_600_000)


class StopsTime(BrokenEngine):
    def propose(self) -> Block:
        return self.change_header(super().propose(), time_ms=self.state.time_ms)


class OrdersByItself(BrokenEngine):
    def propose(self) -> Block:
        block = super().propose()
        turned = block.transactions[::-1]
        return self.make_block(turned, proposer=block.proposer, time_ms=block.time_ms)


class AsksForNonsense(BrokenEngine):
    def decide(self, block: Block) -> FinalizedBlock:
        try:
            super().decide(self.change_header(block, state_root=Hash(bytes(32))))
        except InvalidBlockError:
            return super().decide(block)
        raise InternalError("nonsense was accepted")


class AppliesBeforeDecision(BrokenEngine):
    def decide(self, block: Block) -> FinalizedBlock:
        return self.execute(block)


class ReplaysEverything(BrokenEngine):
    def _shake_hands(self, replica: InProcessReplica) -> None:
        if replica.app.info().height == 0:
            replica.app.init_chain()
        replica.alive = True
        for block in self.blocks:
            self._apply(replica, block)


class ReplaysTooLittle(BrokenEngine):
    def _shake_hands(self, replica: InProcessReplica) -> None:
        blocks, self.blocks = self.blocks, self.blocks[:-1]
        super()._shake_hands(replica)
        self.blocks = blocks


class ForgetsUncommitted(BrokenEngine):
    def execute(self, block: Block) -> FinalizedBlock:
        finalized = super().execute(block)
        if len(self.alive) < len(self.replicas):
            self.blocks.pop()
        return finalized


class NeedsEverybody(BrokenEngine):
    def decide(self, block: Block) -> FinalizedBlock:
        if len(self.alive) < len(self.replicas):
            raise QuorumUnavailableError("somebody is away")
        return super().decide(block)


class MendsDivergence(BrokenEngine):
    def _apply(self, replica: InProcessReplica, block: Block) -> FinalizedBlock:
        try:
            return super()._apply(replica, block)
        except InternalError:
            replica.app._state = self.app.state
            return self.replicas[next(iter(self.replicas))].finalized[block.height]


class TakesAnything(BrokenEngine):
    def submit(self, transaction: Signed[Transaction]) -> TransactionResult:
        for replica in self.alive:
            replica.app.check_tx(transaction)
            replica.waiting[transaction.hash] = transaction
        return OK


class NamesOldRoots(BrokenEngine):
    def propose(self) -> Block:
        block = super().propose()
        if not self.blocks:
            return block
        return self.change_header(block, state_root=self.blocks[-1].header.message.state_root)


class IgnoresEvidence(BrokenEngine):
    def submit(self, transaction: Signed[Transaction]) -> TransactionResult:
        if isinstance(transaction.message.body, Evidence):
            return OK
        return super().submit(transaction)


class UpdatesValidatorsEarly(BrokenEngine):
    def propose(self) -> Block:
        block = super().propose()
        early = self.state.get_consensus_validators_at(block.height + 1)
        return self.change_header(block, validators_hash=compute_members_hash(early))


class TrustsSnapshotsAlone(BrokenEngine):
    """Takes a snapshot for the whole chain."""

    def _shake_hands(self, replica: InProcessReplica) -> None:
        info = replica.app.info()
        if info.height == 0:
            super()._shake_hands(replica)
        replica.alive = True

    def _get_root(self, height: int) -> Hash:
        self.decide(self.propose())
        return super()._get_root(height)


BROKEN: dict[type[BrokenEngine], Callable[..., None]] = {
    SkipsHandshake: checks.check_order_of_verbs,
    SkipsABlock: checks.check_one_chain,
    AppliesTwice: checks.check_one_chain,
    Reorders: checks.check_one_chain,
    OrdersTwice: checks.check_exactly_once,
    HidesRefusals: checks.check_recorded_results,
    IsAheadOfTime: checks.check_block_time,
    StopsTime: checks.check_block_time,
    OrdersByItself: checks.check_proposals_are_prepared,
    AsksForNonsense: checks.check_prepared_is_accepted,
    AppliesBeforeDecision: checks.check_only_decided_blocks,
    ReplaysEverything: checks.check_replay,
    ReplaysTooLittle: checks.check_replay,
    ForgetsUncommitted: checks.check_crash_before_commit,
    NeedsEverybody: checks.check_work_goes_on,
    MendsDivergence: checks.check_diverged_replica_stops,
    TakesAnything: checks.check_verbs_change_nothing,
    NamesOldRoots: checks.check_queries,
    IgnoresEvidence: checks.check_evidence,
    UpdatesValidatorsEarly: checks.check_validator_updates,
    TrustsSnapshotsAlone: checks.check_snapshots,
}
"""Each with the check that finds it."""
