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
from iemas.consensus.engine import EngineMessage, TendermintEngine
from iemas.consensus.messages import CommittedBlock, SignRecord, SubmitTransaction, ValidRecord
from iemas.consensus.snapshots import KeptSnapshot
from iemas.core import auction, gossip
from iemas.core.auction import (
    BidSubmission,
    QosModel,
    Refusal,
    RoundClose,
    ShareRelease,
    Transcript,
)
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import (
    IemasError,
    InternalError,
    InvalidInputError,
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
from iemas.core.peer_scores import CROSSING_POINTS, PeerScores, get_points
from iemas.core.ready import Answer, Event, Fault, Ready, Send
from iemas.core.report import Report
from iemas.core.types import FinishReason, NodeId, Prices, short_id
from iemas.ledger.history import make_history_records
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    ResultCode,
    RevealAsk,
    Transaction,
    TransactionResult,
)
from node.absence import Absence
from node.duties import Duties
from node.execution import Execution
from node.models import Models
from node.provider import Provider
from node.reporting import CurrentLoad, NodeProfile, Reporter
from node.rounds import Rounds
from node.standing_ask import StandingAsk
from node.stuck_bids import StuckBids

TICK_MS = 250
MAX_RESULTS = 10_000


@dataclass(frozen=True, slots=True)
class ReceivePeerMessage:
    """A peer sent a message."""

    sender: NodeId
    message: object


@dataclass(frozen=True, slots=True)
class ReceiveSpoilt:
    """A peer sent what is no message: too large, too much, or not to be decoded."""

    sender: NodeId
    error: IemasError


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
    ReceivePeerMessage
    | ReceiveSpoilt
    | ReceiveBid
    | ReceiveTransaction
    | CacheChanged
    | BackendHealth
    | TimePassed
)


_ADMISSION_ERRORS: dict[ResultCode, type[InvalidInputError]] = {
    ResultCode.NONCE_TOO_LOW: NonceMismatchError,
    ResultCode.UNKNOWN_ACCOUNT: UnknownAccountError,
    ResultCode.WRONG_SIGNER: InvalidSignatureError,
}


class NodeCore:
    """One node of one market.

    Args:
        ask: what a provider asks; None for a node that sells nothing.
        ask_secret: what hides the asks that this node commits to.
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
        ask_secret: bytes,
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
        self.peers = PeerScores()
        self._predictor = predictor
        self.results: dict[bytes, tuple[TransactionResult, int]] = {}
        """Results and heights of the last transactions, by transaction hash."""
        self._next_tick_ms = 0
        self._seen_membership = -1
        self._has_followed = False
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
        self.models = Models(
            hub=genesis.hub,
            chain_id=chain_id,
            signer=signer,
            membership=self.membership,
            predictor=predictor,
            get_state=lambda: self.state,
        )
        self.rounds = Rounds(
            hub=genesis.hub,
            chain_id=chain_id,
            params=genesis.params,
            signer=signer,
            hpke_key=hpke_key,
            membership=self.membership,
            models=self.models,
            get_state=lambda: self.state,
            decode_bid=decode_bid,
        )
        self.ask = StandingAsk(
            prices=ask,
            hub=genesis.hub,
            node_id=self.node_id,
            chain_id=chain_id,
            secret=ask_secret,
        )
        self.stuck_bids = StuckBids(
            hub=genesis.hub,
            own_id=self.node_id,
            chain_id=chain_id,
            get_state=lambda: self.state,
        )
        self.absence = Absence(
            hub=genesis.hub,
            own_id=self.node_id,
            params=genesis.params,
            membership=self.membership,
            stuck_bids=self.stuck_bids,
            get_state=lambda: self.state,
            started_at_ms=incarnation,
        )
        self.duties = Duties(
            hub=genesis.hub,
            signer=signer,
            ask=self.ask,
            engine=engine,
            absence=self.absence,
            provider=self.provider,
            rounds=self.rounds,
            models=self.models,
        )

    def restore(
        self,
        *,
        blocks: Iterable[CommittedBlock],
        signed: Sequence[SignRecord],
        valid: Sequence[ValidRecord],
        snapshot: KeptSnapshot | None,
        transcripts: Sequence[Signed[Transcript]],
        closes: Sequence[Signed[RoundClose]],
        releases: Sequence[Signed[ShareRelease]],
        unsettled: Sequence[UnsettledChannel],
        sealed_asks: Sequence[RevealAsk],
        models: Sequence[QosModel],
    ) -> None:
        """Go on where an earlier process of this node stopped: call before the first step."""
        self.engine.restore(blocks, signed, valid, snapshot)
        self.rounds.restore(transcripts, closes, releases)
        self.provider.restore(unsettled)
        self.ask.restore(sealed_asks)
        self.models.restore(models)

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
        """Finish a step; here nothing is an input any more that a rule could refuse."""
        try:
            return self._go_on(ready, now_ms)
        except (InvalidInputError, RemoteProtocolError) as error:
            raise InternalError(f"a step ended in {type(error).__name__}: {error}") from error

    def _go_on(self, ready: Ready, now_ms: int) -> Ready:
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
        ready += self._judge(ready.faults, now_ms)
        return ready + Ready(wake_at_ms=self._next_tick_ms)

    def _judge(self, faults: Sequence[Fault], now_ms: int) -> Ready:
        """Count what was refused, and let whoever sent it answer for it."""
        events = self.peers.readmit_due(now_ms=now_ms)
        for fault in faults:
            self.refused[fault.name] += 1
            fields = {"error": fault.name, "reason": str(fault.error), "peer": short_id(fault.peer)}
            if fault.message:
                fields["message"] = fault.message
            is_crossing = get_points(fault.error) == CROSSING_POINTS
            events += (Event("input_ignored" if is_crossing else "input_refused", fields),)
        others = [fault for fault in faults if fault.peer != self.node_id]
        events += self.peers.charge(others, may_cut=self._may_cut, now_ms=now_ms)
        return Ready(events=events)

    def _may_cut(self, peer: NodeId) -> bool:
        """Tell whether a quorum is left to talk to without this peer."""
        validators = self.engine.validators
        lost = {node for node in {*self.peers.cut_off, peer} if node in validators}
        left_power = validators.total_power - validators.compute_power(lost)
        return peer not in validators or left_power >= validators.quorum_power

    def _refuse(self, inp: NodeInput, error: Exception) -> Ready:
        if isinstance(inp, ReceivePeerMessage):
            return Ready(faults=(Fault(inp.sender, error, type(inp.message).__name__),))
        name = type(error).__name__
        self.refused[name] += 1
        fields: dict[str, object] = {"error": name, "reason": str(error)}
        if isinstance(inp, ReceiveBid):
            answer = Answer(inp.stream, inp.submission.sealed_bid.hash, Refusal(name, str(error)))
            return Ready(answers=(answer,), events=(Event("bid_refused", fields),))
        return Ready(events=(Event("input_refused", fields),))

    def _dispatch(self, inp: NodeInput, now_ms: int) -> Ready:
        match inp:
            case ReceivePeerMessage(sender, message):
                heard = self.membership.hear(sender, now_ms=now_ms)
                self._tell_who_is_silent(now_ms)
                return heard + self._receive(sender, message, now_ms)
            case ReceiveSpoilt(sender, error):
                return Ready(faults=(Fault(sender, error),))
            case ReceiveBid(stream, submission) if self.stuck_bids.is_for(submission):
                return self.stuck_bids.submit(stream, submission, now_ms=now_ms)
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
            case _ if isinstance(message, EngineMessage):
                return self.engine.step(message, sender=sender, now_ms=now_ms)
            case ReceiptNotice():
                return self._learn(message)
        return self._receive_of_auction(sender, message, now_ms)

    def _receive_of_auction(self, sender: NodeId, message: object, now_ms: int) -> Ready:
        rounds = self.rounds
        match message:
            case auction.CountersignRequest():
                return rounds.receive_countersign_request(sender, message)
            case auction.CountersignResponse():
                return rounds.receive_countersignatures(sender, message, now_ms=now_ms)
            case auction.CloseNotice():
                return rounds.receive_close(sender, message)
            case auction.ReleaseNotice():
                return rounds.receive_release(sender, message, now_ms=now_ms)
            case auction.TranscriptNotice(transcript):
                return rounds.receive_transcript(transcript)
            case auction.ModelNotice() | auction.ModelRequest() | auction.ModelResponse():
                return self.models.receive(sender, message)
            case auction.ForwardedBid():
                return rounds.receive_forwarded(sender, message, now_ms=now_ms)
            case auction.ForwardedAnswer():
                return self.stuck_bids.receive_answer(sender, message, now_ms=now_ms)
            case auction.LeaseRequest() | auction.LeaseGrant() | auction.LeaseRelease():
                return rounds.receive_of_lease(sender, message, now_ms=now_ms)
        raise RemoteProtocolError(f"a peer cannot send {type(message).__name__}")

    def _learn(self, notice: ReceiptNotice) -> Ready:
        """Feed a finished task's co-signed receipt to this node's own predictor."""
        receipt = notice.receipt.message
        verify_signed(notice.receipt, self.chain_id, expected_signer=receipt.provider)
        verify_signed(notice.acknowledgement, self.chain_id, expected_signer=receipt.account)
        if notice.acknowledgement.message.receipt_hash != notice.receipt.hash:
            raise RemoteProtocolError("the acknowledgement is another receipt's")
        if receipt.finish is FinishReason.UNSPECIFIED:
            raise RemoteProtocolError("the receipt is not its task's last one")
        self.rounds.expect_receipt(receipt)
        self._predictor.learn_one(receipt, max_tokens=receipt.max_tokens)
        return Ready()

    # --- time ---------------------------------------------------------------------------------

    def _tick(self, now_ms: int) -> Ready:
        ready = self.rounds.tick(now_ms=now_ms)
        ready += self.membership.step(Tick(), now_ms=now_ms)
        self._tell_who_is_silent(now_ms)
        ready += self.engine.tick(now_ms=now_ms)
        ready += self.stuck_bids.tick(now_ms=now_ms)
        self._next_tick_ms = min(self._next_tick_ms, now_ms + TICK_MS)
        is_due = now_ms >= self._next_tick_ms
        if is_due:
            self._next_tick_ms = now_ms + TICK_MS
            ready += self.models.tick(now_ms=now_ms)
        if is_due or self.absence.list_accused(now_ms=now_ms):
            ready += self.duties.do(now_ms=now_ms)
        return ready

    def _tell_who_is_silent(self, now_ms: int) -> None:
        others = [v.node_id for v in self.engine.validators if v.node_id != self.node_id]
        self.engine.set_silent(
            node for node in others if self.absence.is_silent(node, now_ms=now_ms)
        )

    def _follow(self, now_ms: int) -> Ready:
        """Act on peers met and blocks committed since the last look."""
        if self.membership.version != self._seen_membership:
            self._seen_membership = self.membership.version
            self.engine.set_peers(self.membership.get_peers())
        applied = self.engine.take_applied()
        if self._has_followed and not applied:
            return Ready()
        self._has_followed = True
        ready = Ready()
        for block in applied:
            ready += self._record_results(block)
        ready += self.absence.follow_ledger(now_ms=now_ms)
        ready += self.rounds.follow_ledger(now_ms=now_ms)
        ready += self.models.follow_ledger(now_ms=now_ms)
        ready += self.stuck_bids.follow_ledger()
        ready += Ready(persist=self.provider.forget_settled())
        return ready + self.duties.do(now_ms=now_ms)

    def _record_results(self, applied: AppliedBlock) -> Ready:
        """Keep the last transactions' results, for whoever waits for them, and all on disk."""
        block = applied.block
        for transaction, result in zip(block.transactions, applied.results, strict=True):
            self.results[transaction.hash] = (result, block.height)
        while len(self.results) > MAX_RESULTS:
            self.results.pop(next(iter(self.results)))
        return Ready(persist=make_history_records(block, applied.results))

    def _publish(self, now_ms: int) -> Ready:
        ready = Ready()
        for report in self.reporter.make_due_reports(now_ms=now_ms):
            ready += self.membership.step(PublishReport(report), now_ms=now_ms)
        return ready

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
