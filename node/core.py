"""The node as one pure state machine: every message in, every effect out.

`NodeCore.step(input, now_ms=…) -> Ready` composes membership, ledger replica, rounds and the
selling side. `node.daemon` drives it with real clocks, sockets and disks; `iemas.testing.market`
drives the same class under simulated ones. After each input it does what the ledger's new state
asks of it (`_follow`), then delivers to itself what it sent to itself. Source: design §3, §4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from auctioneer.opening import BidDecoder
from auctioneer.predictors.base import Predictor
from iemas.consensus.chain import AppliedBlock
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksRequest,
    BlocksResponse,
    CommittedBlock,
    ConsensusStatus,
    ProposalNotice,
    SignRecord,
    SubmitTransaction,
    ValidRecord,
    VoteNotice,
)
from iemas.consensus.voting import DoubleVote
from iemas.core import auction, gossip
from iemas.core.auction import (
    Ask,
    BidSubmission,
    Refusal,
    RoundClose,
    ShareRelease,
    Transcript,
)
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import (
    InvalidInputError,
    InvalidReceiptError,
    InvalidSignatureError,
    InvalidTransactionError,
    NonceMismatchError,
    RemoteProtocolError,
    ReplayedReportError,
    UnknownAccountError,
)
from iemas.core.execution import ReceiptCountersigned, ReceiptNotice, TaskStart, UnsettledChannel
from iemas.core.membership import Membership, PublishReport, ReceiveGossip, Tick
from iemas.core.params import Genesis
from iemas.core.ready import Answer, Event, Ready, Send
from iemas.core.report import Report
from iemas.core.types import AccountId, FinishReason, NodeId, Prices, short_id
from iemas.ledger.records import OffenceKey, VoteKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    DoubleVoteEvidence,
    Evidence,
    PostAsk,
    ResultCode,
    ReturnToDuty,
    Transaction,
    TransactionBody,
    TransactionResult,
)
from node.execution import Execution
from node.provider import Provider
from node.reporting import CurrentLoad, NodeProfile, Reporter
from node.rounds import Rounds

TICK_MS = 250
JOIN_GRACE_MS = 5_000
RESUBMIT_MS = 2_000
REPEAT_LANDED_MS = 5_000
MAX_RESULTS = 10_000


@dataclass(frozen=True, slots=True)
class ReceivePeerMessage:
    """A peer sent a message."""

    sender: NodeId
    message: object


@dataclass(frozen=True, slots=True)
class ReceiveBid:
    """A bidder sent a bid on one of this node's bid streams."""

    stream: int
    submission: BidSubmission


@dataclass(frozen=True, slots=True)
class ReceiveTransaction:
    """Someone asks this node to have a transaction ordered."""

    transaction: Signed[Transaction]


@dataclass(frozen=True, slots=True)
class CacheChanged:
    """The backend's prefix blocks changed: a snapshot of sorted packed block keys."""

    blocks: bytes
    estimated: bool


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """The backend began or ceased to answer."""

    healthy: bool


@dataclass(frozen=True, slots=True)
class TimePassed:
    """A timer fired."""


NodeInput = (
    ReceivePeerMessage | ReceiveBid | ReceiveTransaction | CacheChanged | BackendHealth | TimePassed
)


_ADMISSION_ERRORS: dict[ResultCode, type[InvalidInputError]] = {
    ResultCode.NONCE_TOO_LOW: NonceMismatchError,
    ResultCode.UNKNOWN_ACCOUNT: UnknownAccountError,
    ResultCode.WRONG_SIGNER: InvalidSignatureError,
}


@dataclass(slots=True)
class _Duty:
    """A transaction of this node's own that is on its way."""

    transaction: Signed[Transaction]
    sent_at_ms: int


class NodeCore:
    """One node of one market.

    Args:
        ask: the standing ask of a provider; None for a node that sells nothing.
        engine: the consensus engine around this node's ledger replica.
        decode_bid: the wire codec's decoder of opened bids.
    """

    def __init__(
        self,
        *,
        genesis: Genesis,
        chain_id: str,
        signer: Signer,
        hpke_key: X25519PrivateKey,
        profile: NodeProfile,
        ask: Prices | None,
        engine: TendermintEngine,
        predictor: Predictor,
        decode_bid: BidDecoder,
        incarnation: int,
    ) -> None:
        self.node_id = signer.node_id
        self.genesis = genesis
        self.chain_id = chain_id
        self.engine = engine
        self.refused: Counter[str] = Counter()
        self._signer = signer
        self._account = AccountId(signer.node_id)
        self._ask = ask
        self._predictor = predictor
        self._started_at_ms = incarnation
        self._last_nonce = 0
        self._duties: dict[str, _Duty] = {}
        self._double_votes: dict[NodeId, DoubleVote] = {}
        self.results: dict[bytes, tuple[TransactionResult, int]] = {}
        """Results and heights of the last transactions, by transaction hash."""
        self._next_tick_ms = 0
        self._seen_membership = -1
        self.membership = Membership(own_id=self.node_id, chain_id=chain_id, params=genesis.params)
        self.provider = Provider(
            node_id=self.node_id,
            hub=genesis.hub,
            slots=profile.slots,
            chain_id=chain_id,
            params=genesis.params,
            signer=signer,
            get_state=lambda: self.state,
        )
        self.reporter = Reporter(
            profile=profile,
            incarnation=incarnation,
            params=genesis.params,
            signer=signer,
            get_load=self._get_load,
        )
        self.rounds = Rounds(
            hub=genesis.hub,
            chain_id=chain_id,
            params=genesis.params,
            signer=signer,
            hpke_key=hpke_key,
            membership=self.membership,
            predictor=predictor,
            get_state=lambda: self.state,
            decode_bid=decode_bid,
        )

    def restore(
        self,
        *,
        blocks: Iterable[CommittedBlock],
        signed: Sequence[SignRecord],
        valid: Sequence[ValidRecord],
        transcripts: Sequence[Signed[Transcript]],
        closes: Sequence[Signed[RoundClose]],
        releases: Sequence[Signed[ShareRelease]],
        unsettled: Sequence[UnsettledChannel],
    ) -> None:
        """Go on where an earlier process of this node stopped: call before the first step."""
        self.engine.restore(blocks, signed, valid)
        self.rounds.restore(transcripts, closes, releases)
        self.provider.restore(unsettled)

    @property
    def state(self) -> LedgerState:
        """The ledger replica's current state."""
        return self.engine.state

    # --- the step ----------------------------------------------------------------------------

    def step(self, inp: NodeInput, *, now_ms: int) -> Ready:
        """Advance by one input. A refused input is counted and changes nothing.

        Raises: InternalError if an invariant of this node broke.
        """
        try:
            ready = self._dispatch(inp, now_ms)
        except (InvalidInputError, RemoteProtocolError) as error:
            ready = self._refuse(inp, error)
        return self._complete(ready, now_ms)

    def _complete(self, ready: Ready, now_ms: int) -> Ready:
        """Follow the ledger, publish reports that are due, deliver messages to oneself."""
        ready += self._follow(now_ms)
        ready += self._publish(now_ms)
        while any(send.to == self.node_id for send in ready.send):
            own = [send.message for send in ready.send if send.to == self.node_id]
            ready = replace(ready, send=tuple(s for s in ready.send if s.to != self.node_id))
            for message in own:
                inp = ReceivePeerMessage(self.node_id, message)
                try:
                    ready += self._dispatch(inp, now_ms)
                except (InvalidInputError, RemoteProtocolError) as error:
                    ready += self._refuse(inp, error)
            ready += self._follow(now_ms)
            ready += self._publish(now_ms)
        for event in ready.events:
            if event.name == "report_refused":
                self.refused[str(event.fields["error"])] += 1
        return ready + Ready(wake_at_ms=self._next_tick_ms)

    def _refuse(self, inp: NodeInput, error: Exception) -> Ready:
        name = type(error).__name__
        self.refused[name] += 1
        fields: dict[str, object] = {"error": name, "reason": str(error)}
        match inp:
            case ReceiveBid(stream, submission):
                answer = Answer(stream, submission.sealed_bid.hash, Refusal(name, str(error)))
                return Ready(answers=(answer,), events=(Event("bid_refused", fields),))
            case ReceivePeerMessage(sender, message):
                fields |= {"peer": short_id(sender), "message": type(message).__name__}
        return Ready(events=(Event("input_refused", fields),))

    def _dispatch(self, inp: NodeInput, now_ms: int) -> Ready:
        match inp:
            case ReceivePeerMessage(sender, message):
                return self._receive(sender, message, now_ms)
            case ReceiveBid(stream, submission):
                return self.rounds.submit_bid(stream, submission, now_ms=now_ms)
            case ReceiveTransaction(transaction):
                return self.engine.step(SubmitTransaction(transaction), now_ms=now_ms)
            case CacheChanged(blocks, estimated):
                self.reporter.set_cache(blocks, estimated=estimated)
                return Ready()
            case BackendHealth(healthy):
                self.provider.backend_healthy = healthy
                return Ready(events=(Event("backend_health", {"healthy": healthy}),))
            case TimePassed():
                return self._tick(now_ms)

    def _receive(self, sender: NodeId, message: object, now_ms: int) -> Ready:
        match message:
            case (
                gossip.ReportPush()
                | gossip.ExchangeRequest()
                | gossip.ExchangeResponse()
                | gossip.Probe()
                | gossip.ProbeAcknowledgement()
            ):
                return self.membership.step(ReceiveGossip(sender, message), now_ms=now_ms)
            case (
                SubmitTransaction()
                | ProposalNotice()
                | VoteNotice()
                | ConsensusStatus()
                | BlockAnnouncement()
                | BlocksRequest()
                | BlocksResponse()
            ):
                return self.engine.step(message, sender=sender, now_ms=now_ms)
            case auction.CountersignRequest():
                return self.rounds.receive_countersign_request(sender, message)
            case auction.CountersignResponse():
                return self.rounds.receive_countersignatures(sender, message, now_ms=now_ms)
            case auction.CloseNotice():
                return self.rounds.receive_close(sender, message)
            case auction.ReleaseNotice():
                return self.rounds.receive_release(sender, message, now_ms=now_ms)
            case auction.TranscriptNotice(transcript):
                return self.rounds.receive_transcript(transcript)
            case ReceiptNotice():
                return self._learn(message)
        raise RemoteProtocolError(f"a peer cannot send {type(message).__name__}")

    def _learn(self, notice: ReceiptNotice) -> Ready:
        """Feed a finished task's co-signed receipt to this node's own predictor."""
        receipt = notice.receipt.message
        verify_signed(notice.receipt, self.chain_id, expected_signer=receipt.provider)
        verify_signed(notice.acknowledgement, self.chain_id, expected_signer=receipt.account)
        if notice.acknowledgement.message.receipt_hash != notice.receipt.hash:
            raise InvalidReceiptError("the acknowledgement is another receipt's")
        if receipt.finish is FinishReason.UNSPECIFIED:
            raise InvalidReceiptError("the receipt is not its task's last one")
        self.rounds.expect_receipt(receipt)
        self._predictor.learn_one(receipt, max_tokens=receipt.max_tokens)
        return Ready()

    # --- time and duties -----------------------------------------------------------------------

    def _tick(self, now_ms: int) -> Ready:
        ready = self.rounds.tick(now_ms=now_ms)
        ready += self.engine.tick(now_ms=now_ms)
        if now_ms >= self._next_tick_ms:
            self._next_tick_ms = now_ms + TICK_MS
            ready += self.membership.step(Tick(), now_ms=now_ms)
            ready += self._do_duties(now_ms)
        return ready

    def _follow(self, now_ms: int) -> Ready:
        """Act on peers met and blocks committed since the last look."""
        if self.membership.version != self._seen_membership:
            self._seen_membership = self.membership.version
            self.engine.set_peers(self.membership.get_peers())
        applied = self.engine.take_applied()
        if not applied:
            return Ready()
        for block in applied:
            self._record_results(block)
        ready = self.rounds.follow_ledger(now_ms=now_ms)
        ready += Ready(persist=self.provider.forget_settled())
        return ready + self._do_duties(now_ms)

    def _record_results(self, applied: AppliedBlock) -> None:
        """Keep the last transactions' results, for whoever waits for them."""
        block = applied.block
        for transaction, result in zip(block.transactions, applied.results, strict=True):
            self.results[transaction.hash] = (result, block.height)
        while len(self.results) > MAX_RESULTS:
            self.results.pop(next(iter(self.results)))

    def _publish(self, now_ms: int) -> Ready:
        ready = Ready()
        for report in self.reporter.make_due_reports(now_ms=now_ms):
            ready += self.membership.step(PublishReport(report), now_ms=now_ms)
        return ready

    def _do_duties(self, now_ms: int) -> Ready:
        """Submit what this node owes the ledger: ask, settlements, books, evidence, votes."""
        due = self._list_duties(now_ms)
        self._duties = {name: duty for name, duty in self._duties.items() if name in due}
        ready = Ready()
        for name, body in due.items():
            ready += self._submit(name, body, now_ms)
        return ready

    def _list_duties(self, now_ms: int) -> dict[str, TransactionBody]:
        """List what the ledger does not show yet, by name."""
        state, hub = self.state, self.genesis.hub
        due: dict[str, TransactionBody] = {}
        if self._ask is not None and state.get_ask(hub, self.node_id) != self._ask:
            due["ask"] = PostAsk(Ask(hub, self._ask))
        settlement = self.provider.collect_settlement()
        if settlement is not None:
            due["settlement"] = settlement
        for books in self.rounds.get_due_books():
            due[f"books of term {books.term}"] = books
        due |= self._list_double_votes()
        evidence = self.rounds.get_evidence()
        if evidence is not None:
            due["evidence"] = evidence
        if state.is_validator(self.node_id):
            if state.is_live(hub, self.node_id):
                due |= self._list_votes(now_ms)
            elif state.may_return(hub, self.node_id):
                due["return to duty"] = ReturnToDuty(hub)
        return due

    def _list_double_votes(self) -> dict[str, TransactionBody]:
        """Report who voted twice, once its height is decided and until it is punished for it."""
        state = self.state
        for double in self.engine.take_evidence():
            self._double_votes.setdefault(double.first.signer_id, double)
        due: dict[str, TransactionBody] = {}
        for signer, double in list(self._double_votes.items()):
            height = double.first.message.height
            if height > state.height:
                continue  # the ledger judges it once the height is decided
            is_too_old = state.get_voting_time(height) is None
            if is_too_old or OffenceKey(signer, height) in state.offences:
                del self._double_votes[signer]
            else:
                evidence = DoubleVoteEvidence(double.first, double.second)
                due[f"double vote of {signer.hex()} at height {height}"] = Evidence(evidence)
        return due

    def _list_votes(self, now_ms: int) -> dict[str, TransactionBody]:
        """Vote absent whoever does not answer, once a term."""
        state, hub = self.state, self.genesis.hub
        term = state.get_term(hub).number
        grace_over = now_ms > self._started_at_ms + JOIN_GRACE_MS
        votes: dict[str, TransactionBody] = {}
        for validator in state.get_validators(hub):
            if validator == self.node_id or not state.is_live(hub, validator):
                continue
            if VoteKey(hub, validator, self.node_id) in state.votes:
                continue
            joined = self.membership.get_node(validator) is not None
            if self.membership.is_suspected(validator) or (not joined and grace_over):
                name = f"absence of {validator.hex()} in term {term}"
                votes[name] = AbsenceVote(hub, term, validator)
        return votes

    def _submit(self, duty: str, body: TransactionBody, now_ms: int) -> Ready:
        """Submit a duty's transaction, and again only if the last try came to nothing."""
        last = self._duties.get(duty)
        if last is not None and not self._is_over(last, body, now_ms):
            return Ready()
        nonce = max(self._last_nonce, self.state.get_nonce(self._account)) + 1
        self._last_nonce = nonce
        transaction = self._signer.sign(Transaction(self._account, nonce, body))
        self._duties[duty] = _Duty(transaction, now_ms)
        return self.engine.step(SubmitTransaction(transaction), now_ms=now_ms)

    def _is_over(self, last: _Duty, body: TransactionBody, now_ms: int) -> bool:
        """Tell whether a duty that is still due needs a new transaction."""
        transaction = last.transaction
        waited_ms = now_ms - last.sent_at_ms
        changed = body != transaction.message.body
        if self.state.is_applied(transaction.hash):
            return changed or waited_ms >= REPEAT_LANDED_MS
        if self.state.get_nonce(self._account) >= transaction.message.nonce:
            return True  # a later one overtook it on the way: it can never be applied
        if self.engine.is_waiting(transaction.hash):
            return changed and waited_ms >= RESUBMIT_MS
        return waited_ms >= RESUBMIT_MS

    def _get_load(self) -> CurrentLoad:
        provider = self.provider
        return CurrentLoad(
            provider.slots, provider.active, provider.finished, provider.pending_prompt_tokens
        )

    # --- requests that raise what is wrong, instead of only counting it --------------------------

    def introduce(self, report: Signed[Report], *, now_ms: int) -> Ready:
        """Take in a newcomer's report. Raises: InvalidReportError, InvalidSignatureError."""
        try:
            ready = self.membership.receive_report(report, now_ms=now_ms)
        except ReplayedReportError:
            ready = Ready()  # joining again with the same report changes nothing
        except InvalidInputError as error:
            self.refused[type(error).__name__] += 1
            raise
        return self._complete(ready, now_ms)

    def require_orderable(self, transaction: Signed[Transaction]) -> None:
        """Refuse a transaction that can only be refused.

        Raises: NonceMismatchError, UnknownAccountError, InvalidSignatureError,
            InvalidTransactionError.
        """
        if transaction.hash in self.results:
            return
        result = self.engine.app.check_tx(transaction)
        if result.code is not ResultCode.OK:
            error = _ADMISSION_ERRORS.get(result.code, InvalidTransactionError)(result.detail)
            self.refused[type(error).__name__] += 1
            raise error

    # --- execution: called by the servicer that streams -------------------------------------------

    def begin_task(self, start: TaskStart, *, now_ms: int) -> tuple[Execution, Ready]:
        """Admit a task. Raises: what `Provider.begin` raises; each refusal is counted."""
        try:
            execution, record = self.provider.begin(start, now_ms=now_ms)
        except InvalidInputError as error:
            self.refused[type(error).__name__] += 1
            raise
        return execution, self._complete(Ready(persist=(record,)), now_ms)

    def acknowledge_receipt(
        self, execution: Execution, countersigned: ReceiptCountersigned, *, now_ms: int
    ) -> Ready:
        """Take a countersigned receipt. Raises: what `Provider.acknowledge` raises."""
        try:
            record = self.provider.acknowledge(execution, countersigned, now_ms=now_ms)
        except InvalidInputError as error:
            self.refused[type(error).__name__] += 1
            raise
        return self._complete(Ready(persist=(record,)), now_ms)

    def release_task(self, execution: Execution, *, now_ms: int) -> Ready:
        """Free the task's slot before its last receipt leaves, and say so in a load report."""
        self.provider.release(execution)
        return self._complete(Ready(), now_ms)

    def end_task(self, execution: Execution, *, now_ms: int) -> Ready:
        """End the task; tell everyone its last co-signed receipt."""
        self.provider.end(execution)
        ready = Ready()
        if execution.done and execution.last_acknowledged is not None:
            notice = execution.last_acknowledged
            receivers = self.rounds.get_receivers()
            ready += Ready(send=tuple(Send(node, notice) for node in receivers))
        return self._complete(ready, now_ms)
