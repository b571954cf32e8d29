"""One validator's part in deciding one height: the pure algorithm, signed, timed and persisted.

`Tendermint` says what to vote; this class does what it asks of its caller: checks signatures and
the blocks behind proposals, signs votes and proposals, keeps its timeouts, and gives back what
must be on disk before any of it leaves. It also answers peers that lack something.

Source: docs/spec/consensus.md §5, docs/spec/engine.md E20 to E26.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from iemas.consensus.chain import Chain
from iemas.consensus.mempool import Mempool
from iemas.consensus.messages import (
    MAX_NOTICE_VOTES,
    MAX_STATUS_ROUNDS,
    PREFIX_BYTES,
    Commit,
    CommittedBlock,
    ConsensusStatus,
    ProposalNotice,
    SignRecord,
    ValidRecord,
    VoteNotice,
)
from iemas.consensus.tendermint import (
    MAX_PROPOSALS_PER_ROUND,
    Decided,
    Output,
    Propose,
    SignState,
    Step,
    Tendermint,
    Timeout,
    compute_timeout_ms,
)
from iemas.consensus.voting import NO_ROUND, DoubleVote, Proposal, Vote, VoteKind
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import InternalError, InvalidBlockError, RemoteProtocolError
from iemas.core.ready import Event, Ready, Record, RecordKind
from iemas.core.types import Hash, NodeId, short_id
from iemas.ledger.header import Block, compute_transactions_root

RECORD_KEY = b"own"
"""A validator keeps one sign record and one valid block, of the height that it is in."""

KEPT_VOTES = 64
KEPT_ROUNDS = 8
"""Of how many past rounds all proposals are kept; of older ones those locked or valid."""

Broadcast = ProposalNotice | VoteNotice


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier process of this validator left of an undecided height."""

    signed: SignRecord
    valid: ValidRecord | None


class Participant:
    """One validator at the height after `chain`'s last block.

    `tolerance_ms` is how far ahead of this node's clock a block's time may be.
    """

    def __init__(
        self,
        chain: Chain,
        mempool: Mempool,
        *,
        chain_id: str,
        signer: Signer,
        tolerance_ms: int,
        kept: Kept | None = None,
    ) -> None:
        self.height = chain.height + 1
        self.validators = chain.validators
        self.committed: CommittedBlock | None = None
        self.is_started = False
        self._voters: set[NodeId] = set()
        self._chain = chain
        self._mempool = mempool
        self._chain_id = chain_id
        self._signer = signer
        self._tolerance_ms = tolerance_ms
        self._machine = Tendermint(
            height=self.height,
            validators=self.validators,
            own_id=signer.node_id,
            sign_state=_get_sign_state(kept.signed) if kept is not None else None,
        )
        self._proposals: dict[int, dict[Hash, ProposalNotice]] = {}  # by round and hash
        self._blocks: dict[Hash, Block] = {}
        self._checked: set[Hash] = set()  # blocks found valid; they stay so
        self._timeouts: dict[Timeout, int] = {}
        self._own_votes: list[Signed[Vote]] = []
        self._new_votes: list[Signed[Vote]] = []
        self._new_proposals: list[ProposalNotice] = []
        self._outbox: list[Broadcast] = []
        self._events: list[Event] = []
        self._kept_valid: tuple[Hash, int] | None = None
        if kept is not None:
            self._restore(kept)

    def _restore(self, kept: Kept) -> None:
        """Hand in again what was signed and seen before the restart."""
        self._own_votes = list(kept.signed.votes)
        votes = list(self._own_votes)
        if kept.valid is not None:
            block = kept.valid.block
            self._blocks[block.hash] = block
            self._checked.add(block.hash)
            self._kept_valid = (block.hash, kept.valid.round)
            votes += kept.valid.prevotes
        for vote in votes:
            self._machine.receive_vote(vote)

    # --- what the engine asks --------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The round that this validator is in."""
        return self._machine.round

    @property
    def has_proposal(self) -> bool:
        """Whether the proposer of a round was heard."""
        return bool(self._proposals)

    @property
    def has_votes(self) -> bool:
        """Whether a validator voted at this height."""
        return bool(self._voters)

    @property
    def has_correct_vote(self) -> bool:
        """Whether more than a third of the power voted, so a correct validator did."""
        return self.validators.compute_power(self._voters) >= self.validators.one_correct_power

    @property
    def wake_at_ms(self) -> int | None:
        """When the next timeout is due."""
        return min(self._timeouts.values(), default=None)

    @property
    def evidence(self) -> tuple[DoubleVote, ...]:
        """Double votes seen at this height, one a validator."""
        return self._machine.votes.evidence

    def take_messages(self) -> tuple[Broadcast, ...]:
        """Give what all other validators must be told, once what was given before is on disk."""
        taken, self._outbox = tuple(self._outbox), []
        return taken

    def compute_voted_power(self) -> int:
        """Sum the power of those that were heard in this validator's round."""
        votes = self._machine.votes.get_all_votes(self.round)
        return self.validators.compute_power({vote.signer_id for vote in votes})

    # --- inputs ----------------------------------------------------------------------------------

    def start(self, *, now_ms: int) -> Ready:
        """Enter the height."""
        self.is_started = True
        self._carry_out(self._machine.start(), now_ms)
        return self._flush()

    def tick(self, *, now_ms: int, silent: Collection[NodeId] = ()) -> Ready:
        """Let time pass: hand in the timeouts that are due, or that need not be waited for.

        `silent` are validators from which nothing has come for long.
        """
        self._timeouts = {  # a clock that went back prolongs none
            scheduled: min(at_ms, now_ms + compute_timeout_ms(scheduled))
            for scheduled, at_ms in self._timeouts.items()
        }
        while (timeout := self._find_due(now_ms, silent)) is not None:
            del self._timeouts[timeout]
            self._carry_out(self._machine.receive_timeout(timeout), now_ms)
        return self._flush()

    def _find_due(self, now_ms: int, silent: Collection[NodeId]) -> Timeout | None:
        """Find the first timeout whose time has passed, or that is waited for in vain."""
        due = (
            timeout
            for timeout, at_ms in self._timeouts.items()
            if at_ms <= now_ms or self._machine.is_vain(timeout, silent=silent)
        )
        return min(due, key=lambda timeout: (timeout.round, timeout.step), default=None)

    def receive_proposal(self, notice: ProposalNotice, *, now_ms: int) -> Ready:
        """Take a proposal with its block. One of a far round is dropped: it has to come again.

        One of an old round counts only if a quorum precommitted its block: that decides it.

        Raises: RemoteProtocolError, InvalidSignatureError, InvalidBlockError if it is not what
        the round's proposer sent: the fault of whoever passed it on.
        """
        proposal, block = notice.proposal, notice.block
        message = proposal.message
        held = self._proposals.get(message.round, {})
        if message.round > self.round + 1 or proposal.hash in held:
            return Ready()
        if not self._is_of_use(message.round, message.block_hash):
            return Ready()
        is_wanted = self._machine.votes.has_correct_vote(message.round, message.block_hash)
        if len(held) >= MAX_PROPOSALS_PER_ROUND and not is_wanted:
            return Ready()
        if proposal.signer_id != self.validators.get_proposer(message.round):
            raise RemoteProtocolError(
                f"{short_id(proposal.signer_id)} is not the proposer of height {self.height} "
                f"round {message.round}",
                signer_id=proposal.signer_id,
            )
        verify_signed(proposal, self._chain_id)
        self._check_delivery(message, block)
        self._keep_proposal(notice)
        is_valid = self._is_valid(proposal, block, now_ms)
        outputs = self._machine.receive_proposal(proposal, is_valid=is_valid)
        self._carry_out(outputs, now_ms)
        return self._flush()

    def receive_votes(self, votes: Iterable[Signed[Vote]], *, now_ms: int) -> Ready:
        """Take votes of this height.

        Raises: RemoteProtocolError, InvalidSignatureError; what was good before a bad vote counts.
        """
        for signed in votes:
            if signed.message.height != self.height:
                continue
            if signed.signer_id not in self.validators:
                raise RemoteProtocolError(
                    f"{short_id(signed.signer_id)} votes at height {self.height} but is no "
                    "validator there",
                    signer_id=signed.signer_id,
                )
            verify_signed(signed, self._chain_id)
            self._voters.add(signed.signer_id)
            self._carry_out(self._machine.receive_vote(signed), now_ms)
            if self.committed is not None:
                break
        return self._flush()

    # --- blocks and proposals --------------------------------------------------------------------

    def _check_delivery(self, proposal: Proposal, block: Block) -> None:
        """Check that the block is the one proposed, unspoilt on its way."""
        if proposal.block_hash != block.hash:
            raise RemoteProtocolError("a proposal came with another block than it names")
        verify_signed(block.header, self._chain_id)
        header = block.header.message
        if header.transactions_root != compute_transactions_root(block.transactions):
            raise InvalidBlockError(
                f"block {header.height}: its transactions are not those that its header names",
                height=header.height,
            )

    def _is_valid(self, proposal: Signed[Proposal], block: Block, now_ms: int) -> bool:
        """Tell the paper's valid(v), by this node's ledger and clock."""
        try:
            self._check(proposal, block, now_ms)
        except InvalidBlockError as error:
            fields = {
                "height": self.height,
                "round": proposal.message.round,
                "proposer": short_id(proposal.signer_id),
                "reason": str(error),
            }
            self._events.append(Event("proposal_refused", fields))
            return False
        return True

    def _check(self, proposal: Signed[Proposal], block: Block, now_ms: int) -> None:
        is_new = proposal.message.valid_round == NO_ROUND
        maker = block.proposer
        if maker not in self.validators or (is_new and maker != proposal.signer_id):
            raise InvalidBlockError(f"{short_id(maker)} may not have made it", height=block.height)
        if block.hash in self._checked:
            return
        ahead_ms = block.time_ms - now_ms
        # Where all clocks were set back, the time of the last block is the best that anyone has.
        if ahead_ms > self._tolerance_ms and block.time_ms > self._chain.app.state.time_ms:
            raise InvalidBlockError(
                f"its time is {ahead_ms} ms ahead of this node's clock, at most "
                f"{self._tolerance_ms} are tolerated: check the clocks",
                height=block.height,
            )
        self._chain.check_proposal(block)
        self._checked.add(block.hash)

    def _keep_proposal(self, notice: ProposalNotice) -> None:
        self._proposals.setdefault(notice.proposal.message.round, {})[notice.proposal.hash] = notice
        self._blocks[notice.block.hash] = notice.block
        machine = self._machine
        lasting = {machine.valid_round, machine.locked_round}  # peers may lack these to decide
        old = {number for number in self._proposals if number < self._first_recent_round} - lasting
        if old:
            for number in old:
                del self._proposals[number]
            kept = {n.block.hash for notices in self._proposals.values() for n in notices.values()}
            kept |= {h for h in (machine.valid_value, machine.locked_value) if h}
            kept.add(notice.block.hash)
            self._blocks = {h: block for h, block in self._blocks.items() if h in kept}
            machine.forget_proposals(self._first_recent_round, kept=kept)

    @property
    def _first_recent_round(self) -> int:
        return self.round - KEPT_ROUNDS

    def _is_of_use(self, round_number: int, value: Hash) -> bool:
        """Tell whether a proposal can still do something: of an old round only if it decides."""
        return round_number >= self._first_recent_round or self._machine.votes.has_quorum(
            round_number, VoteKind.PRECOMMIT, value
        )

    def _find_missing_proposals(self) -> list[tuple[int, Hash]]:
        """Find blocks, with rounds, that are voted on, lacking here and of use."""
        missing = self._machine.find_missing_proposals()
        return [(number, value) for number, value in missing if self._is_of_use(number, value)]

    # --- outputs ---------------------------------------------------------------------------------

    def _carry_out(self, outputs: Iterable[Output], now_ms: int) -> None:
        """Do what the algorithm asks for, until it asks for nothing more."""
        waiting = deque(outputs)
        while waiting:
            match waiting.popleft():
                case Propose() as wanted:
                    waiting += self._propose(wanted, now_ms)
                case Vote() as vote:
                    signed = self._signer.sign(vote)
                    self._new_votes.append(signed)
                    waiting += self._machine.receive_vote(signed)
                case Timeout() as timeout:
                    self._timeouts[timeout] = now_ms + compute_timeout_ms(timeout)
                case Decided() as decided:
                    self._decide(decided)

    def _propose(self, wanted: Propose, now_ms: int) -> tuple[Output, ...]:
        if wanted.block_hash is None:
            waiting = self._mempool.get_proposable()
            block = self._chain.make_block(waiting, signer=self._signer, now_ms=now_ms)
            self._checked.add(block.hash)
        elif wanted.block_hash in self._blocks:
            block = self._blocks[wanted.block_hash]
        else:
            return ()
        proposal = self._signer.sign(
            Proposal(self.height, wanted.round, block.hash, wanted.valid_round)
        )
        notice = ProposalNotice(proposal, block)
        self._keep_proposal(notice)
        self._new_proposals.append(notice)
        return self._machine.receive_proposal(proposal, is_valid=True)

    def _decide(self, decided: Decided) -> None:
        self._timeouts.clear()
        block = self._blocks.get(decided.block_hash)
        if block is None:
            raise InternalError(
                f"height {self.height} is decided by a proposal whose block is not kept",
                height=self.height,
            )
        commit = Commit(self.height, decided.round, block.hash, decided.precommits)
        self.committed = CommittedBlock(block, commit)

    def _flush(self) -> Ready:
        """Give what to persist before `take_messages` may be sent."""
        records: list[Record] = []
        if (self._new_votes or self._new_proposals) and self.committed is None:
            self._own_votes = [*self._own_votes, *self._new_votes][-KEPT_VOTES:]
            records += self._make_records()
        self._outbox += self._new_proposals
        if self._new_votes:
            self._outbox.append(VoteNotice(tuple(self._new_votes)))
        events = tuple(self._events)
        self._new_votes, self._new_proposals, self._events = [], [], []
        return Ready(persist=tuple(records), events=events)

    def _make_records(self) -> list[Record]:
        """Record what was signed and, where it changed, the valid block with its proof."""
        state = self._machine.sign_state
        signed = SignRecord(
            height=state.height,
            round=state.round,
            step=int(state.step),
            locked_value=state.locked_value,
            locked_round=state.locked_round,
            valid_value=state.valid_value,
            valid_round=state.valid_round,
            votes=tuple(self._own_votes),
        )
        records = [Record(RecordKind.SIGNED, RECORD_KEY, signed)]
        value = state.valid_value
        block = self._blocks.get(value) if value is not None else None
        if block is not None and (block.hash, state.valid_round) != self._kept_valid:
            self._kept_valid = (block.hash, state.valid_round)
            prevotes = self._machine.votes.get_votes(state.valid_round, VoteKind.PREVOTE, value)
            valid = ValidRecord(block, state.valid_round, prevotes)
            records.append(Record(RecordKind.VALID, RECORD_KEY, valid))
        return records

    # --- gossip ----------------------------------------------------------------------------------

    @property
    def lacks_blocks(self) -> bool:
        """Whether a block is missing here that the validators vote on."""
        return not self._proposals.get(self.round) or bool(self._find_missing_proposals())

    def make_status(self, *, wants_blocks: bool) -> ConsensusStatus:
        """Say what this validator has, so that a peer can send the rest."""
        rounds = self._find_needed_rounds()
        held = b"".join(sorted(self._collect((self.round, *rounds))))
        return ConsensusStatus(self.height, self.round, rounds, held, wants_blocks)

    def _find_needed_rounds(self) -> tuple[int, ...]:
        """Find other rounds whose votes or proposals this validator needs."""
        needed = {number for number, _ in self._find_missing_proposals()}
        for notice in self._proposals.get(self.round, {}).values():
            proposal = notice.proposal.message
            if proposal.valid_round != NO_ROUND and not self._machine.votes.has_quorum(
                proposal.valid_round, VoteKind.PREVOTE, proposal.block_hash
            ):
                needed.add(proposal.valid_round)
        return tuple(sorted(needed - {self.round}))[-MAX_STATUS_ROUNDS:]

    def _collect(self, rounds: Iterable[int]) -> dict[bytes, Signed[Vote] | ProposalNotice]:
        """Collect the statements of some rounds by the prefix of their hash."""
        found: dict[bytes, Signed[Vote] | ProposalNotice] = {}
        for number in rounds:
            for proposal_hash, notice in self._proposals.get(number, {}).items():
                found[proposal_hash[:PREFIX_BYTES]] = notice
            for vote in self._machine.votes.get_all_votes(number):
                found[vote.hash[:PREFIX_BYTES]] = vote
        return found

    def answer_status(self, status: ConsensusStatus) -> tuple[Broadcast, ...]:
        """Give what a peer at this height lacks of its rounds and of this validator's."""
        held = _split(status.held)
        rounds = dict.fromkeys((status.round, *status.rounds, self.round))
        missing = [v for prefix, v in self._collect(rounds).items() if prefix not in held]
        votes = [vote for vote in missing if isinstance(vote, Signed)][:MAX_NOTICE_VOTES]
        answer: list[Broadcast] = []
        if status.wants_blocks:
            answer += [notice for notice in missing if isinstance(notice, ProposalNotice)]
        if votes:
            answer.append(VoteNotice(tuple(votes)))
        return tuple(answer)

    def list_statements(
        self, signer: NodeId
    ) -> tuple[tuple[Signed[Vote], ...], tuple[Signed[Proposal], ...]]:
        """List the votes and proposals of a validator that are held here."""
        proposals = [
            notice.proposal
            for _, notices in sorted(self._proposals.items())
            for notice in notices.values()
            if notice.proposal.signer_id == signer
        ]
        return self._machine.votes.list_of(signer), tuple(proposals)

    def lacks(self, status: ConsensusStatus) -> bool:
        """Tell whether a peer at this height has something that is missing here."""
        own = self._collect((status.round, *status.rounds))
        return any(prefix not in own for prefix in _split(status.held))


def _split(held: bytes) -> set[bytes]:
    return {held[i : i + PREFIX_BYTES] for i in range(0, len(held), PREFIX_BYTES)}


def _get_sign_state(record: SignRecord) -> SignState:
    return SignState(
        record.height,
        record.round,
        Step(record.step),
        record.locked_value,
        record.locked_round,
        record.valid_value,
        record.valid_round,
    )
