"""The chain as one replica holds it: decided blocks applied one after the other.

Every block is checked before it is applied, also one that this validator helped to decide: by its
commit under the validators of its height, then by the application. `validators` is who votes on
the next height; it is part of the state.

Source: docs/spec/engine.md E30 to E34, docs/spec/application.md §1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from iemas.consensus.commits import make_validators, verify_commit
from iemas.consensus.messages import CommittedBlock, LightBlock, LightValidator
from iemas.consensus.validators import ValidatorSet, compute_members_hash
from iemas.core.envelope import Signed, Signer
from iemas.core.errors import InvalidBlockError
from iemas.core.types import Hash
from iemas.ledger.application import LedgerApplication
from iemas.ledger.header import (
    GENESIS_HASH,
    Block,
    BlockHeader,
    compute_transactions_root,
)
from iemas.ledger.records import ValidatorPower
from iemas.ledger.snapshot import sum_up
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import Transaction, TransactionResult
from iemas.ledger.transfer import Transfer

BATCH_BLOCKS = 64
BATCH_BYTES = 2 * 1024 * 1024

KEPT_BYTES = 16 * 1024 * 1024
"""How much of the last blocks is kept in memory where the store has them; two blocks at least."""

BlockReader = Callable[[int, int], Sequence[CommittedBlock]]
"""Reads stored blocks: from a height on, at most so many."""


@dataclass(frozen=True, slots=True)
class AppliedBlock:
    """A block that this replica applied, with a result a transaction, and the money it moved."""

    committed: CommittedBlock
    results: tuple[TransactionResult, ...]
    transfers: tuple[Transfer, ...]
    state_root: Hash

    @property
    def block(self) -> Block:
        """The block itself."""
        return self.committed.block


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The transfers of one height, for the store's ledger tables; height 0 is genesis."""

    height: int
    transfers: tuple[Transfer, ...]


class Chain:
    """One replica's chain.

    `read_blocks` reads stored blocks; without it the chain keeps all of them in memory.
    """

    def __init__(
        self, app: LedgerApplication, *, chain_id: str, read_blocks: BlockReader | None = None
    ) -> None:
        self.app = app
        if app.info().height == 0:
            app.init_chain()
        self.validators: ValidatorSet = make_validators(app.state)
        self._chain_id = chain_id
        self._read_blocks = read_blocks
        self.proven_state: LedgerState | None = None
        """The state under the last block's header: the one that a light client can check."""
        self._last_hash = GENESIS_HASH
        self._blocks: list[CommittedBlock] = []  # the last ones, or all without `read_blocks`
        self._kept_bytes = 0
        self._applied: list[AppliedBlock] = []
        self._journal: list[JournalEntry] = [JournalEntry(0, app.genesis_transfers)]

    @property
    def height(self) -> int:
        """Height of the last block; 0 after genesis."""
        return self.app.state.height

    @property
    def last_block(self) -> CommittedBlock | None:
        """The last block; None after genesis."""
        return self._blocks[-1] if self._blocks else None

    def take_applied(self) -> tuple[AppliedBlock, ...]:
        """Give the blocks applied since the last call, in order."""
        taken, self._applied = tuple(self._applied), []
        return taken

    def take_journal(self) -> tuple[JournalEntry, ...]:
        """Give the transfers since the last call, genesis' included."""
        taken, self._journal = tuple(self._journal), []
        return taken

    # --- proposals -------------------------------------------------------------------------------

    def make_block(
        self, waiting: Sequence[Signed[Transaction]], *, signer: Signer, now_ms: int
    ) -> Block:
        """Make the next block of what waits; its time is the proposer's clock, never going back."""
        state = self.app.state
        transactions = self.app.prepare_proposal(waiting)
        header = BlockHeader(
            chain_id=self._chain_id,
            height=state.height + 1,
            previous_hash=self._last_hash,
            time_ms=max(now_ms, state.time_ms),
            state_root=state.compute_root(),
            transactions_root=compute_transactions_root(transactions),
            validators_hash=self.validators.compute_hash(),
            next_validators_hash=self._compute_next_validators_hash(),
            results_root=state.facts.results_root,
        )
        return Block(signer.sign(header), transactions)

    def check_proposal(self, block: Block) -> None:
        """Check all of a proposed block but its clock and who may have made it.

        Raises: InvalidBlockError.
        """
        header = block.header.message
        if header.previous_hash != self._last_hash:
            raise self._refuse(block, "it does not extend this replica's last block")
        if header.validators_hash != self.validators.compute_hash():
            raise self._refuse(block, "it names other validators than this replica knows")
        self._check_next_validators(block)
        self.app.process_proposal(block)

    def _compute_next_validators_hash(self) -> Hash:
        """Name who votes on the height after the next block's: the state knows it already."""
        state = self.app.state
        return compute_members_hash(state.get_consensus_validators_at(state.height + 2))

    def _check_next_validators(self, block: Block) -> None:
        if block.header.message.next_validators_hash != self._compute_next_validators_hash():
            raise self._refuse(block, "it names other next validators than this replica knows")

    # --- applying --------------------------------------------------------------------------------

    def apply(self, committed: CommittedBlock) -> AppliedBlock:
        """Verify the next block and apply it.

        Raises: InvalidBlockError, InvalidSignatureError; InternalError if this replica diverged.
        """
        block = committed.block
        if block.height != self.height + 1:
            raise self._refuse(block, f"it does not follow block {self.height}")
        verify_commit(committed, self.validators, self._chain_id)
        if block.header.message.previous_hash != self._last_hash:
            raise self._refuse(block, "it does not extend this replica's last block")
        self._check_next_validators(block)
        state = self.app.state
        finalized = self.app.finalize_block(block)
        self.app.commit()
        self.validators = make_validators(self.app.state)
        self.proven_state = state
        self._remember(committed)
        applied = AppliedBlock(
            committed, finalized.results, finalized.transfers, finalized.state_root
        )
        self._applied.append(applied)
        if finalized.transfers:
            self._journal.append(JournalEntry(block.height, finalized.transfers))
        return applied

    def follow_snapshot(self, block: Block, *, before: LedgerState | None = None) -> None:
        """Go on from a snapshot that the application has just adopted; `block` is the next one.

        The caller trusts the block's header, which named the snapshot's root. `before` is the
        state that the store's ledger tables show, None if they have the snapshot's already.
        """
        state = self.app.state
        self.validators = make_validators(state)
        self.proven_state = None
        self._last_hash = block.header.message.previous_hash
        self._blocks.clear()
        self._kept_bytes = 0
        if before is not None:
            self._journal.append(JournalEntry(state.height, sum_up(before, state)))

    def _remember(self, committed: CommittedBlock) -> None:
        self._last_hash = committed.block.hash
        self._blocks.append(committed)
        if self._read_blocks is None:
            return
        self._kept_bytes += _measure(committed)
        while len(self._blocks) > 2 and (
            len(self._blocks) > BATCH_BLOCKS or self._kept_bytes > KEPT_BYTES
        ):
            self._kept_bytes -= _measure(self._blocks.pop(0))

    def _refuse(self, block: Block, why: str) -> InvalidBlockError:
        return InvalidBlockError(f"block {block.height}: {why}", height=block.height)

    # --- serving ---------------------------------------------------------------------------------

    def load_batch(self, from_height: int) -> tuple[CommittedBlock, ...]:
        """Give blocks from a height on, bounded in number and size, but one if there is one."""
        batch: list[CommittedBlock] = []
        size = 0
        for height, committed in enumerate(self._load(max(from_height, 1)), max(from_height, 1)):
            size += _measure(committed)
            is_gap = committed.height != height  # what a snapshot spared is not here
            if is_gap or (batch and size > BATCH_BYTES):
                break
            batch.append(committed)
        return tuple(batch)

    def _load(self, from_height: int) -> Sequence[CommittedBlock]:
        first_in_memory = self.height - len(self._blocks) + 1
        if from_height < first_in_memory and self._read_blocks is not None:
            return self._read_blocks(from_height, BATCH_BLOCKS)
        index = max(from_height - first_in_memory, 0)
        return self._blocks[index : index + BATCH_BLOCKS]

    def load_light_block(self, height: int) -> LightBlock | None:
        """Give a block's header and commit with who voted on it; None for what is not kept."""
        members = self.app.state.get_consensus_validators_at(height)
        batch = self.load_batch(height) if 1 <= height <= self.height and members else ()
        if not batch:
            return None
        return LightBlock(batch[0].block.header, batch[0].commit, make_light_validators(members))


def make_light_validators(
    members: Iterable[ValidatorPower],
) -> tuple[LightValidator, ...]:
    """Name validators as light blocks do."""
    return tuple(LightValidator(node_id, power) for node_id, power in members)


def _measure(committed: CommittedBlock) -> int:
    """Estimate a block's bytes on the wire: an envelope adds some hundred to its payload."""
    envelopes = (*committed.block.transactions, *committed.commit.precommits)
    return sum(len(signed.envelope.payload) + 128 for signed in envelopes)
