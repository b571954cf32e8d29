"""The consensus engine: Tendermint around `LedgerApplication`, as one pure state machine.

Validators decide one block after the other (`participant.py` has one height); every other node
follows the decided blocks by their commits. Blocks are made on demand: a height begins when a
transaction waits, a hub's term ends, the chain was idle for long, or another validator began it.

The caller's duties: carry out `Ready` in its order (what was signed is on disk before it is sent);
call `tick` no later than the last `wake_at_ms`; keep `set_peers` and `set_silent` up to date; drain
`take_applied` after every step, and `take_journal` into the store if it has one; give back to
`restore` what was persisted.

Source: docs/spec/engine.md; design §7.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from iemas.consensus.answers import Request, answer_request, show_statements
from iemas.consensus.catch_up import CatchUp
from iemas.consensus.chain import AppliedBlock, BlockReader, Chain, JournalEntry
from iemas.consensus.commits import find_announcers
from iemas.consensus.early import EarlyMessages
from iemas.consensus.mempool import Dropped, Mempool
from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksRequest,
    BlocksResponse,
    ChunksRequest,
    ChunksResponse,
    CommittedBlock,
    ConsensusStatus,
    LightBlockRequest,
    LightBlockResponse,
    ProposalNotice,
    RecallRequest,
    RecallResponse,
    SignRecord,
    SnapshotOffer,
    SnapshotRequest,
    SubmitTransaction,
    ValidRecord,
    VoteNotice,
)
from iemas.consensus.pacing import compute_start_ms
from iemas.consensus.participant import RECORD_KEY, Kept, Participant
from iemas.consensus.recall import Recall
from iemas.consensus.snapshots import SNAPSHOT_INTERVAL, KeptSnapshot, SnapshotShelf
from iemas.consensus.state_sync import SnapshotPart, StateSync
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.voting import DoubleVote, Proposal, Vote
from iemas.core.envelope import Signed, Signer
from iemas.core.errors import (
    ConfigurationError,
    InternalError,
    InvalidInputError,
    InvalidSignatureError,
    OutOfHeightError,
    OversizedMessageError,
    RemoteProtocolError,
)
from iemas.core.params import Genesis
from iemas.core.ready import Event, Fault, Ready, Record, RecordKind, Send
from iemas.core.types import AccountId, Hash, NodeId, short_id
from iemas.ledger.application import MAX_TRANSACTION_BYTES, LedgerApplication
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode, Transaction

EngineMessage = (
    SubmitTransaction
    | ProposalNotice
    | VoteNotice
    | ConsensusStatus
    | BlockAnnouncement
    | BlocksRequest
    | BlocksResponse
    | SnapshotRequest
    | SnapshotOffer
    | LightBlockRequest
    | LightBlockResponse
    | ChunksRequest
    | ChunksResponse
    | RecallRequest
    | RecallResponse
)

STATUS_INTERVAL_MS = 200
"""How often a validator in an undecided height says what it has."""

STALL_INTERVAL_MS = 5_000
"""How often a validator says that a height is not decided."""


class TendermintEngine:
    """Decides or follows the blocks of one chain, as the ledger says of this node.

    `peers` is whom the engine may talk to at first: by default genesis' validators.
    `read_blocks` reads stored blocks; without it the engine keeps all of them in memory.
    `snapshot_interval` is how many blocks lie between two snapshots, `full_history` whether a node
    that is far behind fetches every block instead of one.
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
        snapshot_interval: int = SNAPSHOT_INTERVAL,
        full_history: bool = False,
    ) -> None:
        self.app = app
        self._params = genesis.params
        self._chain_id = chain_id
        self._signer = signer
        self._chain = Chain(app, chain_id=chain_id, read_blocks=read_blocks)
        self._shelf = SnapshotShelf(self._chain, interval=snapshot_interval)
        self._sync = StateSync(
            self._chain, genesis=genesis, chain_id=chain_id, interval=snapshot_interval
        )
        self._full_history = full_history
        self._recall = Recall(signer.node_id, chain_id)
        self._mempool = Mempool(app)
        self._catch_up = CatchUp(idle_ms=genesis.params.idle_block_interval_ms)
        self._peers: tuple[NodeId, ...] = ()
        self._silent: frozenset[NodeId] = frozenset()
        self._committed_at_ms = 0
        self._resend_at_ms = 0
        self._status_at_ms = 0
        self._stall_at_ms = 0
        self._statuses = 0
        self._answered_at_ms: dict[NodeId, int] = {}  # statuses sent in answer to one
        self._batch_sent_at_ms: dict[NodeId, int] = {}
        self._early = EarlyMessages()
        self._evidence: list[DoubleVote] = []
        self._accused: tuple[DoubleVote, ...] = ()
        self._is_resumed = False  # in the middle of a height, after a restart
        self._participant = self._make_participant()
        self.set_peers((v.node_id for v in genesis.validators) if peers is None else peers)

    # --- what the caller reads -------------------------------------------------------------------

    @property
    def is_validator(self) -> bool:
        """Whether this node votes on the next block."""
        return self._signer.node_id in self._chain.validators

    @property
    def validators(self) -> ValidatorSet:
        """Who votes on the next block."""
        return self._chain.validators

    @property
    def state(self) -> LedgerState:
        """The ledger after the last decided block."""
        return self.app.state

    @property
    def height(self) -> int:
        """Height of the last decided block; 0 after genesis."""
        return self.app.state.height

    @property
    def state_root(self) -> Hash:
        """State root after the last decided block."""
        return self.app.state.compute_root()

    @property
    def proven(self) -> tuple[CommittedBlock, LedgerState] | None:
        """The last decided block with the state under its header; None after genesis."""
        block, state = self._chain.last_block, self._chain.proven_state
        return None if block is None or state is None else (block, state)

    def take_applied(self) -> tuple[AppliedBlock, ...]:
        """Give the blocks applied since the last call, in order; restored ones not included."""
        return self._chain.take_applied()

    def take_journal(self) -> tuple[JournalEntry, ...]:
        """Give the transfers since the last call, genesis' and restored blocks' included."""
        return self._chain.take_journal()

    def take_evidence(self) -> tuple[DoubleVote, ...]:
        """Give the double votes seen since the last call: whoever can, makes them cost."""
        taken, self._evidence = tuple(self._evidence), []
        return taken

    def get_next_nonce(self, account: AccountId) -> int:
        """Give a nonce above those applied and those waiting here."""
        return max(self.state.get_nonce(account), self._mempool.get_last_nonce(account)) + 1

    def is_waiting(self, transaction_id: bytes) -> bool:
        """Tell whether a transaction waits here for a block."""
        return transaction_id in self._mempool

    # --- life ------------------------------------------------------------------------------------

    def set_peers(self, peers: Iterable[NodeId]) -> None:
        """Say whom this node is connected to: announcements and requests go to them."""
        self._peers = tuple(sorted(set(peers) - {self._signer.node_id}))

    def set_silent(self, validators: Iterable[NodeId]) -> None:
        """Say from whom nothing has come for long: their proposals are not waited for."""
        self._silent = frozenset(validators)

    def restore(
        self,
        blocks: Iterable[CommittedBlock],
        signed: Sequence[SignRecord] = (),
        valid: Sequence[ValidRecord] = (),
        snapshot: KeptSnapshot | None = None,
    ) -> None:
        """Replay stored blocks, then take up voting where it was left; before the first step.

        With the node's own last `snapshot`, only the blocks after it are replayed. `signed` and
        `valid` are what is stored of these kinds: at most one each.
        Raises: ConfigurationError if the blocks are not this chain's, one after the other, if the
        snapshot is not what the block after it names, or if this validator signed at a height
        beyond them.
        """
        stored = iter(blocks)
        if snapshot is not None:
            after = (one for one in stored if one.height > snapshot.snapshot.height)
            following = next(after, None)
            self._shelf.restore(snapshot, following)
            stored = itertools.chain(() if following is None else (following,), after)
        for committed in stored:
            try:
                self._chain.apply(committed)
            except InvalidInputError as error:
                raise ConfigurationError(
                    f"the stored block {committed.height} does not follow block {self.height} of "
                    f"this chain ({error}); move the node's database away: the node fetches the "
                    "blocks anew",
                    height=committed.height,
                ) from error
        self._chain.take_applied()
        self._committed_at_ms = self.state.time_ms if self.height else 0
        last = signed[-1] if signed else None
        if last is not None and last.height > self.height + 1:
            raise ConfigurationError(
                f"this validator signed at height {last.height}, but its database ends with block "
                f"{self.height}; restore the whole database, or it could vote against itself",
                height=last.height,
            )
        kept = None
        if last is not None and last.height == self.height + 1:
            is_current = bool(valid) and valid[-1].block.height == last.height
            kept = Kept(last, valid[-1] if is_current else None)
        self._participant = self._make_participant(kept)
        self._is_resumed = kept is not None
        self._recall.begin(last)

    def _make_participant(self, kept: Kept | None = None) -> Participant | None:
        """Take part in the next height, if this node is one of its validators."""
        self._accused = ()
        if not self.is_validator:
            return None
        return Participant(
            self._chain,
            self._mempool,
            chain_id=self._chain_id,
            signer=self._signer,
            tolerance_ms=self._params.clock_tolerance_ms,
            kept=kept,
        )

    def step(self, message: EngineMessage, *, sender: NodeId | None = None, now_ms: int) -> Ready:
        """Take a message from a peer, or from this node itself if `sender` is None.

        A transaction that cannot be applied is refused by an event; the caller that wants an
        error asks ``app.check_tx`` first.

        Raises: RemoteProtocolError, InvalidBlockError, InvalidSignatureError (the peer's fault,
        nothing changed); InternalError if this replica's state is not the validators': the node
        must stop.
        """
        match message:
            case SubmitTransaction(transaction):
                ready = self._submit(transaction, sender, now_ms)
            case ProposalNotice() | VoteNotice():
                ready = self._receive_statement(message, sender, now_ms)
            case ConsensusStatus():
                ready = self._receive_status(message, sender, now_ms)
            case BlockAnnouncement(block):
                ready = self._receive_announcement(block, sender, now_ms)
            case BlocksResponse(blocks, height):
                ready = self._receive_blocks(blocks, height, sender, now_ms)
            case SnapshotOffer() | LightBlockResponse() | ChunksResponse():
                ready = self._receive_snapshot_part(message, sender, now_ms)
            case RecallRequest() | RecallResponse():
                ready = self._receive_recall(message, sender)
            case BlocksRequest() | SnapshotRequest() | LightBlockRequest() | ChunksRequest():
                ready = self._answer(message, sender)
        return ready + self.tick(now_ms=now_ms)

    def tick(self, *, now_ms: int) -> Ready:
        """Do what is due at this time."""
        ready = self._take_part(now_ms)
        ready += self._resend(now_ms)
        return ready + self._request_blocks(now_ms)

    # --- transactions ----------------------------------------------------------------------------

    def _submit(
        self, transaction: Signed[Transaction], sender: NodeId | None, now_ms: int
    ) -> Ready:
        if transaction.hash in self._mempool:
            return Ready()
        is_origin = sender is None or not self.is_validator
        dropped = self._mempool.add(
            transaction, now_ms=now_ms, is_origin=is_origin, is_given=sender is not None
        )
        if dropped is not None:
            if dropped.reason == ResultCode.ALREADY_DONE.name:
                return self._show_last_block(sender)
            ready = _refuse(dropped)
            error = _find_fault(dropped)
            if sender is not None and error is not None:
                ready += _refuse_of(sender, error)
            return ready
        if not is_origin:
            return Ready()
        return self._tell_validators((SubmitTransaction(transaction),))

    def _show_last_block(self, peer: NodeId | None) -> Ready:
        """Let a peer that submits what is applied already see that it is behind."""
        last = self._chain.last_block
        if peer is None or last is None:
            return Ready()
        return Ready(send=(Send(peer, BlockAnnouncement(last)),))

    def _resend(self, now_ms: int) -> Ready:
        """Send transactions again that are in no block yet; give up on the oldest."""
        if not len(self._mempool):
            return Ready()
        self._resend_at_ms = min(self._resend_at_ms, now_ms + RESEND_CHECK_MS)
        if now_ms < self._resend_at_ms:
            return Ready(wake_at_ms=self._resend_at_ms)
        again, dropped = self._mempool.take_due(now_ms=now_ms)
        self._resend_at_ms = now_ms + RESEND_CHECK_MS
        ready = Ready(wake_at_ms=self._resend_at_ms)
        for one in dropped:
            ready += _refuse(one)
        return ready + self._tell_validators(tuple(SubmitTransaction(one) for one in again))

    def _tell_validators(self, messages: Sequence[object]) -> Ready:
        others = [v.node_id for v in self._chain.validators if v.node_id != self._signer.node_id]
        return Ready(send=tuple(Send(to, message) for message in messages for to in others))

    # --- taking part -----------------------------------------------------------------------------

    def _take_part(self, now_ms: int) -> Ready:
        """Begin the height if it is due, hand in timeouts, say what this validator has."""
        # A clock that went back must not stop the market: it then counts from there.
        self._committed_at_ms = min(self._committed_at_ms, now_ms)
        participant = self._participant
        if participant is None:
            return Ready()
        if not self._recall.may_sign(participant.height, participant.validators):
            return self._recall.tick(participant.height, participant.validators, now_ms=now_ms)
        ready = Ready()
        if not participant.is_started:
            starts_at_ms = now_ms
            if not self._is_resumed:
                starts_at_ms = compute_start_ms(
                    participant,
                    self.state,
                    params=self._params,
                    last_ms=self._committed_at_ms,
                    has_work=self._mempool.has_proposable,
                )
            if now_ms < starts_at_ms:
                return Ready(wake_at_ms=starts_at_ms)
            self._status_at_ms = now_ms + STATUS_INTERVAL_MS
            self._stall_at_ms = now_ms + STALL_INTERVAL_MS
            ready = self._follow(participant, participant.start(now_ms=now_ms), now_ms)
        if participant is self._participant:
            ticked = participant.tick(now_ms=now_ms, silent=self._silent)
            ready += self._follow(participant, ticked, now_ms)
        if participant is not self._participant:
            return ready + self._take_part(now_ms)
        ready += self._gossip(participant, now_ms)
        wakes = [self._status_at_ms, participant.wake_at_ms]
        return ready + Ready(wake_at_ms=min(at_ms for at_ms in wakes if at_ms is not None))

    def _follow(self, participant: Participant, ready: Ready, now_ms: int) -> Ready:
        """Send what the participant signed; go on to the next height once it has decided."""
        messages = participant.take_messages()
        self._recall.note_signed(_list_statements(messages))
        ready += self._tell_validators(messages)
        if participant.evidence != self._accused:
            new = [double for double in participant.evidence if double not in self._accused]
            self._accused = participant.evidence
            self._evidence += new
            for double in new:
                fields = {"validator": short_id(double.first.signer_id), "height": self.height + 1}
                ready += Ready(events=(Event("double_vote_seen", fields),))
        if participant.committed is not None and participant is self._participant:
            ready += self._commit(participant.committed, now_ms)
        return ready

    def _receive_statement(
        self, message: ProposalNotice | VoteNotice, sender: NodeId | None, now_ms: int
    ) -> Ready:
        """Hand proposals and votes to the participant if they are of its height."""
        height = _get_height(message)
        if sender is None or height is None:
            return Ready()
        if height > self.height + 1:
            self._catch_up.note_claim(sender, height - 1, own_height=self.height, now_ms=now_ms)
        if height == self.height + 2:
            if self._participant is not None and sender in self._chain.validators:
                self._early.keep(sender, message)
            return Ready()
        if height != self.height + 1:
            what = f"height {height} is not near {self.height + 1}, the one to decide here"
            return _refuse_of(sender, OutOfHeightError(what, height=height))
        return self._hand_in(message, sender, now_ms)

    def _hand_in(self, message: ProposalNotice | VoteNotice, sender: NodeId, now_ms: int) -> Ready:
        participant = self._participant
        if participant is None:
            return Ready()
        try:
            if isinstance(message, ProposalNotice):
                ready = participant.receive_proposal(message, now_ms=now_ms)
            else:
                ready = participant.receive_votes(message.votes, now_ms=now_ms)
        except (InvalidInputError, RemoteProtocolError) as error:
            # Votes before the bad one count, so their effects must leave.
            ready = self._follow(participant, participant.tick(now_ms=now_ms), now_ms)
            if ready == Ready():
                raise
            return ready + _refuse_of(sender, error)
        return self._follow(participant, ready, now_ms)

    # --- gossip ----------------------------------------------------------------------------------

    def _gossip(self, participant: Participant, now_ms: int) -> Ready:
        """Say now and then what this validator has; one peer in turn is asked for blocks."""
        self._status_at_ms = min(self._status_at_ms, now_ms + STATUS_INTERVAL_MS)
        self._stall_at_ms = min(self._stall_at_ms, now_ms + STALL_INTERVAL_MS)
        if now_ms < self._status_at_ms:
            return Ready()
        self._status_at_ms = now_ms + STATUS_INTERVAL_MS
        others = [v.node_id for v in self._chain.validators if v.node_id != self._signer.node_id]
        ready = Ready()
        if others:
            self._statuses += 1
            asked = others[self._statuses % len(others)] if participant.lacks_blocks else None
            plain = participant.make_status(wants_blocks=False)
            sends = [Send(to, plain) for to in others if to != asked]
            if asked is not None:
                sends.append(Send(asked, participant.make_status(wants_blocks=True)))
            ready = Ready(send=tuple(sends))
        if now_ms >= self._stall_at_ms:
            self._stall_at_ms = now_ms + STALL_INTERVAL_MS
            fields = {
                "height": participant.height,
                "round": participant.round,
                "voted_power": participant.compute_voted_power(),
                "quorum_power": participant.validators.quorum_power,
            }
            ready += Ready(events=(Event("height_undecided", fields),))
        return ready

    def _receive_status(self, status: ConsensusStatus, sender: NodeId | None, now_ms: int) -> Ready:
        """Send a validator what it lacks: votes, blocks proposed, or the blocks decided since."""
        if sender is None:
            return Ready()
        if status.height <= self.height:
            return self._send_batch(sender, status.height, now_ms)
        if status.height > self.height + 1:
            self._catch_up.note_claim(
                sender, status.height - 1, own_height=self.height, now_ms=now_ms
            )
            return Ready()
        participant = self._participant
        if participant is None:
            return Ready()
        ready = Ready(
            send=tuple(Send(sender, message) for message in participant.answer_status(status))
        )
        if participant.lacks(status) and _is_due(
            self._answered_at_ms, sender, now_ms, STATUS_INTERVAL_MS
        ):
            own = participant.make_status(wants_blocks=participant.lacks_blocks)
            ready += Ready(send=(Send(sender, own),))
        return ready

    def _receive_recall(
        self, message: RecallRequest | RecallResponse, sender: NodeId | None
    ) -> Ready:
        """Show a validator that has just started what it signed; or be shown one's own."""
        if sender is None:
            return Ready()
        if isinstance(message, RecallResponse):
            ready = self._recall.receive(message, sender, own_height=self.height)
            participant = self._participant
            if (
                participant is not None
                and participant.is_started
                and not self._recall.may_sign(participant.height, participant.validators)
            ):
                self._participant = self._make_participant()  # the others decide this height
            return ready
        answer = show_statements(sender, self.height, self._participant, self._early)
        return Ready(send=(Send(sender, answer),))

    def _send_batch(self, peer: NodeId, from_height: int, now_ms: int) -> Ready:
        """Send decided blocks unasked to a validator that lags, not at every status."""
        if not _is_due(self._batch_sent_at_ms, peer, now_ms, STATUS_INTERVAL_MS // 2):
            return Ready()
        return self._answer(BlocksRequest(from_height), peer)

    # --- decided blocks --------------------------------------------------------------------------

    def _commit(self, committed: CommittedBlock, now_ms: int) -> Ready:
        """Apply a decided block; give its record, its event, its announcement.

        Raises: InvalidBlockError, InvalidSignatureError, InternalError as `Chain.apply`.
        """
        announcers = find_announcers(committed.block, self._chain.validators)
        followers = [peer for peer in self._peers if peer not in self._chain.validators]
        applied = self._chain.apply(committed)
        block = applied.block
        self._committed_at_ms = now_ms
        self._is_resumed = False
        self._catch_up.note_block(self.height, now_ms=now_ms)
        # One with another's id but a bad signature does not stand for the real one.
        done = [
            transaction.hash
            for transaction, result in zip(block.transactions, applied.results, strict=True)
            if result.code is not ResultCode.WRONG_SIGNER
        ]
        self._mempool.forget(done)
        dropped = self._mempool.recheck()
        refused = sum(result.code is not ResultCode.OK for result in applied.results)
        fields = {
            "height": block.height,
            "round": committed.commit.round,
            "transactions": len(block.transactions),
            "refused": refused,
            "state_root": short_id(applied.state_root),
        }
        records = [Record(RecordKind.BLOCK, block.height.to_bytes(8, "big"), committed)]
        if self._participant is not None:
            records.append(Record(RecordKind.VALID, RECORD_KEY, None))
        records += self._shelf.note_block(block.height)
        ready = Ready(persist=tuple(records), events=(Event("block_committed", fields),))
        for one in dropped:
            ready += _refuse(one)
        if self._signer.node_id in announcers:
            announcement = BlockAnnouncement(committed)
            ready += Ready(send=tuple(Send(peer, announcement) for peer in followers))
        self._participant = self._make_participant()
        return ready + self._hand_in_early(now_ms)

    def _hand_in_early(self, now_ms: int) -> Ready:
        """Hand in what validators that were ahead said of the height that begins now."""
        ready = Ready()
        for sender, message in self._early.take():
            try:
                ready += self._receive_statement(message, sender, now_ms)
            except (InvalidInputError, RemoteProtocolError) as error:
                ready += _refuse_of(sender, error)
        return ready

    def _receive_announcement(
        self, committed: CommittedBlock, sender: NodeId | None, now_ms: int
    ) -> Ready:
        if sender is not None and committed.height > self.height + 1:
            self._catch_up.note_claim(
                sender, committed.height, own_height=self.height, now_ms=now_ms
            )
            return Ready()
        return self._receive_blocks((committed,), committed.height, sender, now_ms)

    def _receive_blocks(
        self,
        blocks: Sequence[CommittedBlock],
        height: int,
        sender: NodeId | None,
        now_ms: int,
    ) -> Ready:
        """Apply the decided blocks that follow; `height` is the sender's own, as it says."""
        if sender is None:
            return Ready()
        before = self.height
        ready = Ready()
        for committed in blocks:
            if committed.height <= self.height:
                continue
            if committed.height > self.height + 1:
                break
            try:
                ready += self._commit(committed, now_ms)
            except InvalidInputError as error:
                if self.height == before:
                    raise
                # What was applied before the bad block stands, so its effects must leave.
                ready += _refuse_of(sender, error)
                break
        wants_more = self._catch_up.note_answer(
            sender, height, own_height=self.height, advanced=self.height > before, now_ms=now_ms
        )
        if wants_more:
            ready += self._try_snapshot(now_ms)
            if self._sync.find_wait(now_ms=now_ms) is None:
                ready += Ready(send=(Send(sender, BlocksRequest(self.height + 1)),))
        return ready

    def _request_blocks(self, now_ms: int) -> Ready:
        """Ask a peer for blocks if some are known to be missing, or none came for long.

        Where very many are, for a snapshot.
        """
        ready = self._try_snapshot(now_ms)
        waits_until_ms = self._sync.find_wait(now_ms=now_ms)
        if waits_until_ms is not None:
            return ready + Ready(wake_at_ms=waits_until_ms)
        validators, others = self._split_peers()
        peer, wake_at_ms = self._catch_up.choose_peer(
            self.height, validators, others, now_ms=now_ms
        )
        ready += Ready(wake_at_ms=wake_at_ms)
        if peer is not None:
            ready += Ready(send=(Send(peer, BlocksRequest(self.height + 1)),))
        return ready

    def _split_peers(self) -> tuple[list[NodeId], list[NodeId]]:
        """Tell the validators among the peers from the others."""
        validators = [peer for peer in self._peers if peer in self._chain.validators]
        return validators, [peer for peer in self._peers if peer not in self._chain.validators]

    def _answer(self, request: Request, sender: NodeId | None) -> Ready:
        """Show a peer what this node has; whoever asks checks it."""
        if sender is None:
            return Ready()
        answer = answer_request(request, self._chain, self._shelf)
        return Ready(send=(Send(sender, answer),))

    # --- snapshots -------------------------------------------------------------------------------

    def _try_snapshot(self, now_ms: int) -> Ready:
        """Ask a peer that is far ahead for its snapshot, if there is one to ask."""
        if self._full_history:
            return Ready()
        validators, others = self._split_peers()
        ahead = self._catch_up.list_claimants(self._sync.least_claim, self._peers)
        # Validators first, even those that claim nothing; of each kind first those that do.
        peers = sorted(validators, key=ahead.__contains__, reverse=True)
        peers += sorted(others, key=ahead.__contains__, reverse=True)
        asked = self._sync.peer
        ready = self._sync.tick(peers if ahead else (), now_ms=now_ms)
        if asked is not None and self._sync.peer != asked:
            self._catch_up.forget_claim(asked)  # it took too long
        return ready

    def _receive_snapshot_part(
        self, part: SnapshotPart, sender: NodeId | None, now_ms: int
    ) -> Ready:
        """Take an answer about a snapshot; once it is the ledger here, go on from it."""
        if sender is None:
            return Ready()
        ready, following = self._sync.receive(part, sender, now_ms=now_ms)
        if following is None:
            return ready
        fields = {"height": self.height, "peer": short_id(sender)}
        ready += Ready(events=(Event("snapshot_adopted", fields),))
        self._shelf.note_adopted()
        try:
            ready += self._commit(following, now_ms)
        except InvalidInputError as error:
            raise InternalError(
                f"the block after a snapshot that was trusted does not follow it: {error}",
                height=following.height,
            ) from error
        return ready + Ready(send=(Send(sender, BlocksRequest(self.height + 1)),))


RESEND_CHECK_MS = 250
"""How often the mempool is looked through for what to send again."""


def _get_height(message: ProposalNotice | VoteNotice) -> int | None:
    """Give the height that a message speaks of; None for no votes at all."""
    if isinstance(message, ProposalNotice):
        return message.proposal.message.height
    return max((signed.message.height for signed in message.votes), default=None)


def _list_statements(messages: Iterable[ProposalNotice | VoteNotice]) -> list[Vote | Proposal]:
    """List what messages say under signatures."""
    statements: list[Vote | Proposal] = []
    for message in messages:
        if isinstance(message, ProposalNotice):
            statements.append(message.proposal.message)
        else:
            statements += [signed.message for signed in message.votes]
    return statements


def _is_due(last_ms: dict[NodeId, int], peer: NodeId, now_ms: int, interval_ms: int) -> bool:
    """Tell whether a peer's turn has come again, and note that it has."""
    last = last_ms.get(peer)
    if last is not None and last <= now_ms < last + interval_ms:
        return False
    last_ms[peer] = now_ms
    return True


def _find_fault(dropped: Dropped) -> InvalidInputError | None:
    """Give what every node finds out before it sends a transaction on, whatever its state."""
    if dropped.reason == ResultCode.WRONG_SIGNER.name:
        return InvalidSignatureError("the transaction is not signed by its account")
    if len(dropped.transaction.envelope.payload) > MAX_TRANSACTION_BYTES:
        return OversizedMessageError(f"a transaction has at most {MAX_TRANSACTION_BYTES} bytes")
    return None


def _refuse(dropped: Dropped) -> Ready:
    fields = {"transaction": short_id(dropped.transaction.hash), "reason": dropped.reason}
    return Ready(events=(Event("transaction_refused", fields),))


def _refuse_of(sender: NodeId, error: Exception) -> Ready:
    return Ready(faults=(Fault(sender, error),))
