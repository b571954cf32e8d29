"""The ledger application: one deterministic state machine behind ABCI 2.0's verbs.

An ordering engine drives it: `iemas.consensus.engine` here, CometBFT later. It decides what a
transaction does and whether a block is valid, never which block comes next. The transcript
verifier is injected, so that the ledger need not know the mechanism.
Source: docs/spec/application.md; cometbft `spec/abci/abci++_methods.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import (
    InternalError,
    InvalidBlockError,
    InvalidSignatureError,
    InvalidSnapshotError,
    LocalProtocolError,
)
from iemas.core.params import Genesis
from iemas.core.types import AccountId, Hash
from iemas.ledger.blocks import begin_block, end_block, note_voters, rotate_proposers
from iemas.ledger.epochs import start_epoch
from iemas.ledger.header import Block, compute_transactions_root
from iemas.ledger.history import compute_results_root
from iemas.ledger.invariants import check_invariants
from iemas.ledger.records import Duty, ValidatorKey, ValidatorRecord
from iemas.ledger.rules.evidence import TranscriptVerifier
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.rules.settlement import verify_settlement_signatures
from iemas.ledger.snapshot import (
    SNAPSHOT_FORMAT,
    Snapshot,
    StoredSnapshot,
    decode_chunk,
    decode_state,
    take_snapshot,
)
from iemas.ledger.state import LedgerState, ProvenEntry, make_genesis_state
from iemas.ledger.terms import start_term
from iemas.ledger.transaction import ResultCode, Settle, Transaction, TransactionResult
from iemas.ledger.transfer import (
    ISSUANCE,
    LedgerAccount,
    Transfer,
    TransferReason,
    get_available,
    get_escrow,
    get_stake,
)
from iemas.ledger.transition import apply_transaction, check_admission

MAX_BLOCK_TRANSACTIONS = 1000
MAX_TRANSACTION_BYTES = 2 * 1024 * 1024
MAX_BLOCK_BYTES = 3 * 1024 * 1024
"""Bounds that keep a block within one message between peers."""

APPLIED_WINDOW_BLOCKS = 1000
"""For so many heights a repeated transaction is told that it was applied already."""

KEPT_SNAPSHOTS = 2


@dataclass(frozen=True, slots=True)
class AppInfo:
    """Where the application stands."""

    chain_id: str
    height: int
    state_root: Hash


@dataclass(frozen=True, slots=True)
class FinalizedBlock:
    """What a block did: a result a transaction, the money it moved, the state root after it."""

    results: tuple[TransactionResult, ...]
    transfers: tuple[Transfer, ...]
    state_root: Hash


class LedgerApplication:
    """The ledger of one chain; `state` is what the last commit left.

    It starts from `genesis`; every signature is bound to `chain_id`. `verify_transcript`
    re-checks a transcript and raises InvalidTranscriptError if it is wrong; only
    `TranscriptEvidence` uses it.
    """

    def __init__(
        self, genesis: Genesis, chain_id: str, *, verify_transcript: TranscriptVerifier
    ) -> None:
        self._genesis = genesis
        self._chain_id = chain_id
        self._verify_transcript = verify_transcript
        self._pending: LedgerState | None = None
        self._snapshots: list[StoredSnapshot] = []
        self._offered: Snapshot | None = None
        self._received: dict[Hash, tuple[bytes, ...]] = {}  # leaves by chunk root
        self.init_chain()

    @property
    def state(self) -> LedgerState:
        """The committed state; never changed in place, so it may be kept."""
        return self._state

    @property
    def genesis_transfers(self) -> tuple[Transfer, ...]:
        """The money that genesis issued, in double entry."""
        return self._genesis_transfers

    def info(self) -> AppInfo:
        """Tell height and state root of the last committed block."""
        return AppInfo(self._chain_id, self._state.height, self._state.compute_root())

    def init_chain(self) -> Hash:
        """Start over from genesis; give the state root at height 0."""
        state = make_genesis_state(self._genesis, self._chain_id)
        issue_genesis(state)
        check_invariants(state)
        self._genesis_transfers = tuple(state.transfers)
        self._state = state
        self._pending = None
        return state.compute_root()

    # --- mempool and blocks ----------------------------------------------------------------------

    def check_tx(self, signed: Signed[Transaction]) -> TransactionResult:
        """Tell whether a transaction may wait for a block: size, signature, nonce, account.

        The signatures inside are checked now too: their verdicts are remembered, so the block that
        applies them need not check them again.
        """
        if len(signed.envelope.payload) > MAX_TRANSACTION_BYTES:
            limit = f"a transaction is at most {MAX_TRANSACTION_BYTES} bytes"
            return refuse(ResultCode.INVALID_ENTRY, limit)
        refusal = check_admission(self._state, signed)
        if refusal is None and isinstance(signed.message.body, Settle):
            verify_settlement_signatures(self._state, signed.message.body)
        return refusal or OK

    def prepare_proposal(
        self, waiting: Iterable[Signed[Transaction]]
    ) -> tuple[Signed[Transaction], ...]:
        """Choose what goes into the next block, in the order of arrival.

        An account's transactions keep the places in which they arrived, but fill them by nonce,
        so that one that overtook another on its way does not void it. Those already applied are
        left out.
        """
        fresh = [signed for signed in waiting if not self._state.is_applied(signed.hash)]
        chosen: list[Signed[Transaction]] = []
        total_bytes = 0
        for signed in _order_by_nonce(fresh):
            total_bytes += len(signed.envelope.payload)
            if len(chosen) == MAX_BLOCK_TRANSACTIONS or (chosen and total_bytes > MAX_BLOCK_BYTES):
                break
            chosen.append(signed)
        return tuple(chosen)

    def process_proposal(self, block: Block) -> None:
        """Check all that a proposed block must satisfy to be voted for, its clock apart.

        Every transaction in it must be signed by its account; whether it can then be applied is
        its result's business.

        Raises: InvalidBlockError with the height and the broken rule.
        """
        self._check_rules(block)
        if block.header.message.state_root != self._state.compute_root():
            raise _refuse_block(block, "its state root is not this replica's")
        self._check_results(block)
        for signed in block.transactions:
            try:
                verify_signed(signed, self._chain_id, expected_signer=signed.message.account)
            except InvalidSignatureError as error:
                raise _refuse_block(block, f"one of its transactions is wrong: {error}") from error

    def _check_rules(self, block: Block) -> None:
        """Check what is cheap. Raises: InvalidBlockError."""
        header = block.header.message
        rules = (
            (header.chain_id == self._chain_id, "it belongs to another chain"),
            (header.height == self._state.height + 1, "it does not follow the last block"),
            (header.time_ms >= self._state.time_ms, "its time goes back"),
            (len(block.transactions) <= MAX_BLOCK_TRANSACTIONS, "too many transactions"),
            (self._fits(block), "its transactions are too large"),
        )
        for holds, broken in rules:
            if not holds:
                raise _refuse_block(block, broken)
        if header.transactions_root != compute_transactions_root(block.transactions):
            raise _refuse_block(block, "its transactions are not those that its header names")

    def finalize_block(self, block: Block) -> FinalizedBlock:
        """Apply a block to a copy of the state; `commit` makes the copy the state.

        Raises: InvalidBlockError if it does not follow or breaks a bound; InternalError if its
        state root is not the one that this replica has (it diverged), or if an invariant breaks.
        """
        self._check_rules(block)
        self._check_agreement(block)
        self._check_results(block)
        state = self._state.copy()
        state.facts = replace(state.facts, height=block.height, time_ms=block.time_ms)
        begin_block(state, elapsed_ms=block.time_ms - self._state.time_ms)
        results, applied = self._apply_transactions(state, block.transactions)
        state.set_applied(block.height, applied, window=APPLIED_WINDOW_BLOCKS)
        end_block(state, block.proposer)
        state.facts = replace(state.facts, results_root=compute_results_root(results))
        check_invariants(state)
        self._pending = state
        return FinalizedBlock(tuple(results), tuple(state.transfers), state.compute_root())

    def commit(self) -> int:
        """Make the finalized block's state the state; give its height.

        Raises: LocalProtocolError if no block was finalized.
        """
        if self._pending is None:
            raise LocalProtocolError("finalize a block before you commit it")
        self._state, self._pending = self._pending, None
        return self._state.height

    def _fits(self, block: Block) -> bool:
        sizes = [len(signed.envelope.payload) for signed in block.transactions]
        return max(sizes, default=0) <= MAX_TRANSACTION_BYTES and sum(sizes) <= MAX_BLOCK_BYTES

    def _check_agreement(self, block: Block) -> None:
        own_root = self._state.compute_root()
        if block.header.message.state_root != own_root:
            raise InternalError(
                f"this replica diverged at height {self._state.height}: its state root is "
                f"{own_root.hex()}, block {block.height} says "
                f"{block.header.message.state_root.hex()}",
                height=self._state.height,
            )

    def _check_results(self, block: Block) -> None:
        if block.header.message.results_root != self._state.facts.results_root:
            raise _refuse_block(block, "it names other results of the block before it")

    def _apply_transactions(
        self, state: LedgerState, transactions: Sequence[Signed[Transaction]]
    ) -> tuple[list[TransactionResult], list[bytes]]:
        results: list[TransactionResult] = []
        applied: list[bytes] = []
        for signed in transactions:
            result, used_up = apply_transaction(state, signed, self._verify_transcript)
            results.append(result)
            if used_up:
                applied.append(signed.hash)
                state.remember_applied(signed.hash)
        return results, applied

    # --- query -----------------------------------------------------------------------------------

    def query(self, path: str, data: bytes) -> ProvenEntry | None:
        """Answer a light client: ``/account`` with an account id gives its proven record.

        Raises: LocalProtocolError for an unknown path.
        """
        if path != "/account":
            raise LocalProtocolError(f"unknown query path {path}; there is /account", path=path)
        return self._state.prove_account(AccountId(data))

    # --- snapshots -------------------------------------------------------------------------------

    def list_snapshots(self) -> tuple[Snapshot, ...]:
        """Offer the snapshots at hand, newest first, with one of the current height."""
        if not self._snapshots or self._snapshots[0].offer.height != self._state.height:
            self._snapshots.insert(0, take_snapshot(self._state))
            del self._snapshots[KEPT_SNAPSHOTS:]
        return tuple(stored.offer for stored in self._snapshots)

    def load_snapshot_chunk(self, height: int, chunk: int) -> bytes | None:
        """Give a chunk of an offered snapshot, or None if it is not at hand any more."""
        for stored in self._snapshots:
            if stored.offer.height == height and 0 <= chunk < stored.offer.chunks:
                return stored.encode_chunk(chunk)
        return None

    def offer_snapshot(self, snapshot: Snapshot, state_root: Hash) -> bool:
        """Tell whether to fetch this snapshot; `state_root` is the trusted one at its height.

        Chunks that an earlier offer brought and this one names too are kept.
        """
        usable = (
            snapshot.format == SNAPSHOT_FORMAT
            and snapshot.height > self._state.height
            and snapshot.compute_state_root() == state_root
        )
        if usable:
            self._offered = snapshot
            wanted = set(snapshot.chunk_roots)
            self._received = {r: leaves for r, leaves in self._received.items() if r in wanted}
        return usable

    def find_missing_chunk(self) -> int | None:
        """Give the first chunk of the offered snapshot that is not here; None if all are."""
        roots = self._offered.chunk_roots if self._offered is not None else ()
        return next((i for i, root in enumerate(roots) if root not in self._received), None)

    def apply_snapshot_chunk(self, chunk: bytes) -> bool:
        """Take a chunk; tell whether the snapshot is complete and is now the state.

        Raises: LocalProtocolError if none was offered; InvalidSnapshotError if the snapshot
        names no such chunk, MalformedMessageError if it is none at all: nothing changed.
        """
        if self._offered is None:
            raise LocalProtocolError("offer a snapshot before you apply its chunks")
        leaves, chunk_root = decode_chunk(chunk)
        if chunk_root not in self._offered.chunk_roots:
            raise InvalidSnapshotError("the chunk is not one of the offered snapshot's")
        self._received[chunk_root] = leaves
        if self.find_missing_chunk() is not None:
            return False
        snapshot, self._offered = self._offered, None
        self._adopt(snapshot)
        return True

    def _adopt(self, snapshot: Snapshot) -> None:
        """Make a snapshot whose chunks are all here the state. Raises: InvalidSnapshotError."""
        received, self._received = self._received, {}
        leaves = tuple(leaf for root in snapshot.chunk_roots for leaf in received[root])
        state = decode_state(self._genesis, leaves)
        if state.compute_root() != snapshot.compute_state_root():
            raise InvalidSnapshotError("the snapshot's leaves are not a state with its root")
        if (state.height, state.chain_id) != (snapshot.height, self._chain_id):
            raise InvalidSnapshotError("the snapshot is of another height or chain than it says")
        check_invariants(state)
        self._state, self._pending = state, None
        self._snapshots = [StoredSnapshot(snapshot, leaves)]


def _refuse_block(block: Block, broken: str) -> InvalidBlockError:
    return InvalidBlockError(f"block {block.height}: {broken}", height=block.height)


def issue_genesis(state: LedgerState) -> None:
    """Issue genesis' money, enrol its validators, start the hub's term 0."""
    genesis = state.genesis
    for validator in sorted(genesis.validators, key=lambda v: v.node_id):
        _issue(state, get_stake(AccountId(validator.node_id)), validator.stake_micros)
        key = ValidatorKey(genesis.hub, validator.node_id)
        state.validators[key] = ValidatorRecord(0, Duty.LIVE)
    for account in sorted(genesis.accounts, key=lambda a: a.account):
        state.set_nonce(account.account, 0)
        _issue(state, get_available(account.account), account.available_micros)
        _issue(state, get_escrow(account.account, genesis.hub), account.escrow_micros)
    start_term(state, genesis.hub, 0, genesis.time_ms)
    start_epoch(state, genesis.hub, 0, genesis.time_ms)
    note_voters(state)
    rotate_proposers(state)


def _issue(state: LedgerState, account: LedgerAccount, micros: int) -> None:
    if micros:
        state.post(Transfer(ISSUANCE, account, micros, TransferReason.GENESIS))


def _order_by_nonce(waiting: Sequence[Signed[Transaction]]) -> list[Signed[Transaction]]:
    """Let each account's transactions fill its places in the order of their nonces."""
    by_account: dict[AccountId, list[Signed[Transaction]]] = {}
    for signed in waiting:
        by_account.setdefault(signed.message.account, []).append(signed)
    for queue in by_account.values():
        queue.sort(key=lambda signed: signed.message.nonce, reverse=True)
    return [by_account[signed.message.account].pop() for signed in waiting]
