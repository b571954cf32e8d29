"""The sequencer engine: one node named in genesis orders blocks, every node checks and applies.

A pure state machine around `LedgerApplication`. The sequencer keeps a mempool, makes blocks,
signs and announces them; every other node forwards transactions to it, verifies each block
against its own state, and asks for what it missed. It trusts the sequencer for the order alone:
a wrong result shows as another state root, and the node stops.

The caller's duties: carry out `Ready` in its order (a block is persisted before it is announced);
call `tick` no later than the last `wake_at_ms`; keep `set_peers` up to date; drain
`take_committed` after every step, and `take_journal` into the store if it has one.

Source: docs/spec/application.md §2; design §7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksRequest,
    BlocksResponse,
    SubmitTransaction,
)
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import (
    ConfigurationError,
    InternalError,
    InvalidBlockError,
    InvalidInputError,
)
from iemas.core.params import Genesis
from iemas.core.ready import Event, Ready, Record, RecordKind, Send
from iemas.core.types import ID_BYTES, AccountId, Hash, NodeId, short_id
from iemas.ledger.application import LedgerApplication
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import Block, ResultCode, Transaction, TransactionResult
from iemas.ledger.transfer import Transfer

SequencerMessage = SubmitTransaction | BlockAnnouncement | BlocksRequest | BlocksResponse

GENESIS_HASH = Hash(bytes(ID_BYTES))
"""What the first block names as its predecessor."""

MAX_MEMPOOL_TRANSACTIONS = 10_000
MAX_MEMPOOL_BYTES = 64 * 1024 * 1024
MAX_BUFFERED_BLOCKS = 256
BATCH_BLOCKS = 64
BATCH_BYTES = 2 * 1024 * 1024
RESUBMIT_MS = 1_000
PENDING_TIMEOUT_MS = 60_000
REQUEST_RETRY_MS = 500
STALL_GRACE_MS = 1_000
"""How long after the idle interval a node waits for a block before it asks around."""

BlockReader = Callable[[int, int], Sequence[Signed[Block]]]
"""Reads stored blocks: from a height on, at most so many."""


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """A block that this replica applied, with a result a transaction, and the money it moved."""

    block: Signed[Block]
    results: tuple[TransactionResult, ...]
    transfers: tuple[Transfer, ...]
    state_root: Hash


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The transfers of one height, for the store's ledger tables; height 0 is genesis."""

    height: int
    transfers: tuple[Transfer, ...]


@dataclass(slots=True)
class _Waiting:
    """A transaction that is not in a block yet."""

    transaction: Signed[Transaction]
    since_ms: int
    sent_at_ms: int


class SequencerEngine:
    """Orders or follows the blocks of one chain, as genesis says of this node.

    `peers` is whom the engine may talk to at first: by default genesis' sequencer and validators.
    `read_blocks` reads stored blocks; without it the engine keeps all of them in memory.
    """

    def __init__(
        self,
        app: LedgerApplication,
        *,
        genesis: Genesis,
        chain_id: str,
        signer: Signer,
        peers: Iterable[NodeId] | None = None,
        read_blocks: BlockReader | None = None,
    ) -> None:
        self.app = app
        self._genesis = genesis
        self._chain_id = chain_id
        self._signer = signer
        self._read_blocks = read_blocks
        self._is_sequencer = signer.node_id == genesis.sequencer
        self._peers: tuple[NodeId, ...] = ()
        self._blocks: list[Signed[Block]] = []  # the last ones, or all without `read_blocks`
        self._last_hash = GENESIS_HASH
        self._waiting: dict[bytes, _Waiting] = {}
        self._waiting_bytes = 0
        self._resubmit_at_ms = 0
        self._buffered: dict[int, Signed[Block]] = {}
        self._known_height = 0  # the sequencer's signature says so
        self._claimed_height = 0  # a peer says so
        self._requested_at_ms = 0
        self._requests = 0
        self._heard_at_ms = 0
        self._made_at_ms = 0
        self._committed: list[CommittedBlock] = []
        self._journal: list[JournalEntry] = [JournalEntry(0, app.genesis_transfers)]
        if peers is None:
            peers = (genesis.sequencer, *(v.node_id for v in genesis.validators))
        self.set_peers(peers)

    # --- what the caller reads -------------------------------------------------------------------

    @property
    def is_sequencer(self) -> bool:
        """Whether this node orders the blocks."""
        return self._is_sequencer

    @property
    def state(self) -> LedgerState:
        """The ledger after the last committed block."""
        return self.app.state

    @property
    def height(self) -> int:
        """Height of the last committed block; 0 after genesis."""
        return self.app.state.height

    @property
    def state_root(self) -> Hash:
        """State root after the last committed block."""
        return self.app.state.compute_root()

    def take_committed(self) -> tuple[CommittedBlock, ...]:
        """Give the blocks committed since the last call, in order; restored ones not included."""
        taken, self._committed = tuple(self._committed), []
        return taken

    def take_journal(self) -> tuple[JournalEntry, ...]:
        """Give the transfers since the last call, genesis' and restored blocks' included."""
        taken, self._journal = tuple(self._journal), []
        return taken

    def get_next_nonce(self, account: AccountId) -> int:
        """Give a nonce above those applied and those waiting here."""
        waiting = [
            w.transaction.message.nonce
            for w in self._waiting.values()
            if w.transaction.message.account == account
        ]
        return max([self.state.get_nonce(account), *waiting]) + 1

    def is_waiting(self, transaction_id: bytes) -> bool:
        """Tell whether a transaction waits here for a block."""
        return transaction_id in self._waiting

    # --- life ------------------------------------------------------------------------------------

    def set_peers(self, peers: Iterable[NodeId]) -> None:
        """Say whom this node is connected to: announcements and requests go to them."""
        self._peers = tuple(sorted(set(peers) - {self._signer.node_id}))

    def restore(self, blocks: Iterable[Signed[Block]]) -> None:
        """Replay stored blocks in order; call before the first step.

        Raises: ConfigurationError if they are not this chain's, one after the other.
        """
        for signed in blocks:
            try:
                verify_signed(signed, self._chain_id, expected_signer=self._genesis.sequencer)
                self._apply(signed)
            except InvalidInputError as error:
                raise ConfigurationError(
                    f"the stored block {signed.message.height} does not follow block "
                    f"{self.height} of this chain ({error}); move the node's database away: "
                    "the node fetches the blocks anew",
                    height=signed.message.height,
                ) from error
        self._committed.clear()
        self._made_at_ms = self.state.time_ms

    def step(
        self, message: SequencerMessage, *, sender: NodeId | None = None, now_ms: int
    ) -> Ready:
        """Take a message from a peer, or from this node itself if `sender` is None.

        A transaction that cannot be applied is refused by an event; the caller that wants an
        error asks ``app.check_tx`` first.

        Raises: InvalidBlockError, InvalidSignatureError (the peer's fault, nothing changed);
        InternalError if this replica's state is not the sequencer's: the node must stop.
        """
        match message:
            case SubmitTransaction(transaction):
                ready = self._submit(transaction, sender, now_ms)
            case BlockAnnouncement(block):
                ready = self._receive_blocks((block,), sender, now_ms)
            case BlocksResponse(blocks, height):
                ready = self._receive_blocks(blocks, sender, now_ms, height=height)
            case BlocksRequest(from_height):
                ready = self._answer_request(from_height, sender)
        return ready + self.tick(now_ms=now_ms)

    def tick(self, *, now_ms: int) -> Ready:
        """Do what is due at this time: a block, a re-submission, a request for blocks."""
        if self._is_sequencer:
            ready = self._make_block(now_ms) if self._is_block_due(now_ms) else Ready()
            return ready + Ready(wake_at_ms=self._compute_next_block_ms())
        return self._resubmit(now_ms) + self._request_missing(now_ms)

    # --- transactions ----------------------------------------------------------------------------

    def _submit(
        self, transaction: Signed[Transaction], sender: NodeId | None, now_ms: int
    ) -> Ready:
        key = transaction.hash
        if key in self._waiting:
            return Ready()
        result = self.app.check_tx(transaction)
        if result.code is ResultCode.ALREADY_DONE:
            return self._show_last_block(sender)
        # A replica that lags may not know yet that an account was credited; the sequencer does.
        unknown_here = result.code is ResultCode.UNKNOWN_ACCOUNT and not self._is_sequencer
        size = len(transaction.envelope.payload)
        if result.code is not ResultCode.OK and not unknown_here:
            return _refuse(transaction, result.code.name)
        if (
            len(self._waiting) >= MAX_MEMPOOL_TRANSACTIONS
            or self._waiting_bytes + size > MAX_MEMPOOL_BYTES
        ):
            return _refuse(transaction, "MEMPOOL_FULL")
        self._waiting[key] = _Waiting(transaction, now_ms, now_ms)
        self._waiting_bytes += size
        if self._is_sequencer:
            return Ready()
        return Ready(send=(Send(self._genesis.sequencer, SubmitTransaction(transaction)),))

    def _show_last_block(self, peer: NodeId | None) -> Ready:
        """Let a peer that submits what is applied already see that it is behind."""
        if peer is None or not self._blocks:
            return Ready()
        return Ready(send=(Send(peer, BlockAnnouncement(self._blocks[-1])),))

    def _resubmit(self, now_ms: int) -> Ready:
        """Send transactions again that are in no block yet; give up on the oldest."""
        if not self._waiting or now_ms < self._resubmit_at_ms:
            return Ready(wake_at_ms=self._resubmit_at_ms if self._waiting else None)
        ready = Ready()
        for key, waiting in list(self._waiting.items()):
            message = waiting.transaction.message
            if message.nonce <= self.state.get_nonce(message.account):
                # A later one of its account overtook it: no block can take it any more.
                self._forget(key)
                ready += _refuse(waiting.transaction, ResultCode.NONCE_TOO_LOW.name)
            elif now_ms >= waiting.since_ms + PENDING_TIMEOUT_MS:
                self._forget(key)
                ready += _refuse(waiting.transaction, "TIMED_OUT")
            elif now_ms >= waiting.sent_at_ms + RESUBMIT_MS:
                waiting.sent_at_ms = now_ms
                again = SubmitTransaction(waiting.transaction)
                ready += Ready(send=(Send(self._genesis.sequencer, again),))
        sent = min((waiting.sent_at_ms for waiting in self._waiting.values()), default=now_ms)
        self._resubmit_at_ms = sent + RESUBMIT_MS
        return ready + Ready(wake_at_ms=self._resubmit_at_ms)

    def _forget(self, key: bytes) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._waiting_bytes -= len(waiting.transaction.envelope.payload)

    # --- making blocks ---------------------------------------------------------------------------

    def _compute_next_block_ms(self) -> int:
        """Give when the next block is due: transactions wait, a term ends, or it was idle long."""
        params = self._genesis.params
        if self._waiting:
            return self._made_at_ms + params.block_interval_ms
        ends = [
            self.state.get_term(hub).started_at_ms + params.term_ms for hub in self.state.get_hubs()
        ]
        idle_ms = self._made_at_ms + params.idle_block_interval_ms
        return max(min([idle_ms, *ends]), self._made_at_ms + params.block_interval_ms)

    def _is_block_due(self, now_ms: int) -> bool:
        # A clock that went back must not stop the market: it then counts from there.
        self._made_at_ms = min(self._made_at_ms, now_ms)
        return now_ms >= self._compute_next_block_ms()

    def _make_block(self, now_ms: int) -> Ready:
        waiting = [w.transaction for w in self._waiting.values()]
        chosen = self.app.prepare_proposal(waiting)
        block = Block(
            self._chain_id,
            self.height + 1,
            self._last_hash,
            max(now_ms, self.state.time_ms),
            self.state_root,
            chosen,
        )
        signed = self._signer.sign(block)
        ready = self._commit(signed)
        self._made_at_ms = now_ms
        announcement = BlockAnnouncement(signed)
        return ready + Ready(send=tuple(Send(peer, announcement) for peer in self._peers))

    # --- following blocks ------------------------------------------------------------------------

    def _receive_blocks(
        self,
        blocks: Sequence[Signed[Block]],
        sender: NodeId | None,
        now_ms: int,
        *,
        height: int = 0,
    ) -> Ready:
        """Apply the blocks that follow, keep those that come too early, ask for a gap."""
        before, was_behind = self.height, self._is_behind()
        ready = Ready()
        for signed in blocks:
            try:
                ready += self._keep(signed)
                ready += self._apply_buffered()
            except InvalidInputError as error:
                if not ready.persist:
                    raise
                # What was applied before the bad block stands, so its effects must leave.
                ready += _report_peer(sender, error)
                break
        advanced = self.height > before
        if advanced or height == self.height:
            self._heard_at_ms = now_ms
        # What a peer claims counts as long as it leads somewhere.
        self._claimed_height = height if advanced else 0
        if advanced and sender is not None and self._is_behind():
            ready += self._request_from(sender, now_ms)
        elif self._is_behind() and not was_behind:
            self._requested_at_ms = 0  # a new gap: ask for it at once
        return ready

    def _is_behind(self) -> bool:
        return self.height < max(self._known_height, self._claimed_height)

    def _keep(self, signed: Signed[Block]) -> Ready:
        """Check a block's signature and hold it until its turn; compare one already applied.

        Raises: InvalidSignatureError; InternalError as `_handle_fork`.
        """
        block = signed.message
        own = self._find_block(block.height)
        if block.height in self._buffered or (own is not None and own.hash == signed.hash):
            return Ready()
        verify_signed(signed, self._chain_id, expected_signer=self._genesis.sequencer)
        if own is not None:
            return self._handle_fork(own)
        self._known_height = max(self._known_height, block.height)
        if self.height < block.height <= self.height + MAX_BUFFERED_BLOCKS:
            self._buffered[block.height] = signed
        return Ready()

    def _handle_fork(self, own: Signed[Block]) -> Ready:
        """Keep the first of two blocks that the sequencer signed, and show it to the sequencer.

        Raises: InternalError if this is the sequencer: it must not go on.
        """
        height = own.message.height
        if self._is_sequencer:
            raise InternalError(
                f"another block of height {height} has this sequencer's signature: its database "
                "lost blocks; restore it from a backup, or start a new chain",
                height=height,
            )
        event = Event("sequencer_forked", {"height": height})
        send = Send(self._genesis.sequencer, BlockAnnouncement(own))
        return Ready(send=(send,), events=(event,))

    def _apply_buffered(self) -> Ready:
        ready = Ready()
        while (signed := self._buffered.pop(self.height + 1, None)) is not None:
            ready += self._commit(signed)
        for height in [h for h in self._buffered if h <= self.height]:
            del self._buffered[height]
        return ready

    def _request_missing(self, now_ms: int) -> Ready:
        """Ask a peer for blocks if some are known to be missing, or none came for long."""
        stalled_at_ms = (
            self._heard_at_ms + self._genesis.params.idle_block_interval_ms + STALL_GRACE_MS
        )
        if not self._is_behind() and now_ms < stalled_at_ms:
            return Ready(wake_at_ms=stalled_at_ms)
        retry_at_ms = self._requested_at_ms + REQUEST_RETRY_MS
        if now_ms < retry_at_ms or not self._peers:
            return Ready(wake_at_ms=max(retry_at_ms, now_ms + 1))
        # First the sequencer, then everyone in turn: a request or its answer may be lost.
        order = [self._genesis.sequencer, *self._peers]
        peer = order[self._requests % len(order)]
        self._requests += 1
        return self._request_from(peer, now_ms) + Ready(wake_at_ms=now_ms + REQUEST_RETRY_MS)

    def _request_from(self, peer: NodeId, now_ms: int) -> Ready:
        self._requested_at_ms = now_ms
        return Ready(send=(Send(peer, BlocksRequest(self.height + 1)),))

    def _answer_request(self, from_height: int, sender: NodeId | None) -> Ready:
        if sender is None:
            return Ready()
        if self._is_sequencer and from_height > self.height + 1:
            # The peer is ahead of the one that makes the blocks: this database is an old one.
            return Ready(send=(Send(sender, BlocksRequest(self.height + 1)),))
        batch: list[Signed[Block]] = []
        size = 0
        for signed in self._load_blocks(max(from_height, 1)):
            size += len(signed.envelope.payload)
            if batch and size > BATCH_BYTES:
                break
            batch.append(signed)
        return Ready(send=(Send(sender, BlocksResponse(tuple(batch), self.height)),))

    # --- applying --------------------------------------------------------------------------------

    def _commit(self, signed: Signed[Block]) -> Ready:
        """Apply a block and give what must follow: its record and its event."""
        committed = self._apply(signed)
        block = signed.message
        refused = sum(result.code is not ResultCode.OK for result in committed.results)
        fields = {
            "height": block.height,
            "transactions": len(block.transactions),
            "refused": refused,
            "state_root": short_id(committed.state_root),
        }
        record = Record(RecordKind.BLOCK, block.height.to_bytes(8, "big"), signed)
        return Ready(persist=(record,), events=(Event("block_committed", fields),))

    def _apply(self, signed: Signed[Block]) -> CommittedBlock:
        """Apply a block whose signature holds.

        Raises: InvalidBlockError; InternalError if this replica diverged.
        """
        block = signed.message
        if block.height == self.height + 1 and block.previous_hash != self._last_hash:
            raise InvalidBlockError(
                f"block {block.height} does not extend this replica's block {self.height}",
                height=block.height,
            )
        finalized = self.app.finalize_block(block)
        self.app.commit()
        self._remember(signed)
        committed = CommittedBlock(
            signed, finalized.results, finalized.transfers, finalized.state_root
        )
        self._committed.append(committed)
        if finalized.transfers:
            self._journal.append(JournalEntry(block.height, finalized.transfers))
        for transaction, result in zip(block.transactions, finalized.results, strict=True):
            # One with another's id but a bad signature does not stand for the real one.
            if result.code is not ResultCode.WRONG_SIGNER:
                self._forget(transaction.hash)
        return committed

    def _remember(self, signed: Signed[Block]) -> None:
        self._last_hash = signed.hash
        self._blocks.append(signed)
        if self._read_blocks is not None and len(self._blocks) > 2 * BATCH_BLOCKS:
            del self._blocks[:BATCH_BLOCKS]

    def _find_block(self, height: int) -> Signed[Block] | None:
        """Find an applied block among those in memory."""
        index = height - self._first_in_memory
        return self._blocks[index] if 0 <= index < len(self._blocks) else None

    @property
    def _first_in_memory(self) -> int:
        return self.height - len(self._blocks) + 1

    def _load_blocks(self, from_height: int) -> Sequence[Signed[Block]]:
        if from_height < self._first_in_memory and self._read_blocks is not None:
            return self._read_blocks(from_height, BATCH_BLOCKS)
        index = from_height - self._first_in_memory
        return self._blocks[index : index + BATCH_BLOCKS]


def _refuse(transaction: Signed[Transaction], reason: str) -> Ready:
    fields = {"transaction": short_id(transaction.hash), "reason": reason}
    return Ready(events=(Event("transaction_refused", fields),))


def _report_peer(peer: NodeId | None, error: Exception) -> Ready:
    fields: dict[str, object] = {"error": type(error).__name__, "reason": str(error)}
    if peer is not None:
        fields["peer"] = short_id(peer)
    return Ready(events=(Event("input_refused", fields),))
