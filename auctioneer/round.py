"""The auctioneer of one term: commit → countersign → close → open → clear → announce.

A pure state machine. Bids come in sealed; each is passed to the witness and is in once the witness
has countersigned. A round closes as soon as none is in flight and at least one bid is in, waiting
at most `round_window_ms` for bids that the witness still holds: an idle market adds no waiting, a
busy one batches. The close goes to the witness, whose shares open the bids; then the round is
cleared and every bidder gets its signed outcome, every node the transcript. Until its term is over
it signs only while it holds its lease. Source: design §4, §6, §7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from auctioneer.books import TermBooks
from auctioneer.clear_round import OpenedTask, ProviderView, clear_round
from auctioneer.lease import Lease
from auctioneer.opening import BidDecoder, get_bid_context, open_bid, open_chain
from auctioneer.outcomes import ClearedRound, derive_outcomes
from iemas.core.auction import (
    MAX_ROUNDS,
    Allocation,
    BidAccepted,
    BidAcknowledgement,
    BidSubmission,
    BidWaiting,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ForwardedAnswer,
    QosModel,
    Refusal,
    ReleaseNotice,
    RoundClose,
    RoundOutcome,
    SealedBid,
    ShareRelease,
    Transcript,
    TranscriptNotice,
    Unmatched,
)
from iemas.core.election import Term
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import (
    InvalidBidError,
    LeaseExpiredError,
    NotAuctioneerError,
    RemoteProtocolError,
    UnfundedBidError,
)
from iemas.core.merkle import compute_inclusion_proof, compute_root
from iemas.core.params import MarketParams
from iemas.core.ready import Answer, Event, Ready, Record, RecordKind, Send
from iemas.core.sealing import compute_share_hash, open_share
from iemas.core.types import ID_BYTES, AccountId, NodeId, short_id

MAX_BIDS_WAITING = 4096
MAX_ROUTES = 4
MAX_OUTCOMES = 1024
"""So many of a term's last outcomes are kept for bids that come again on another way."""

REPEAT_MS = 500
"""What the witness has not answered is sent again so often."""

BidRoute = int | NodeId
"""Where a bid came from and its answers go: a bid stream here, or the validator that passed it on.
"""


class MarketView(Protocol):
    """What the auctioneer reads of the market when it clears."""

    def get_providers(self, term: int, *, now_ms: int) -> Sequence[ProviderView]:
        """Give every provider whose reports are fresh enough, with its free slots."""

    def get_model(self, term: int) -> QosModel | None:
        """Give the QoS model that the term's rounds clear under; None while it is not at hand."""

    def get_allowance(self, account: AccountId, term: int) -> int:
        """Give the account's allowance in a term, from the ledger."""

    def get_receivers(self) -> Sequence[NodeId]:
        """Give the nodes that transcripts go to, this one included."""

    def get_height(self) -> int:
        """Give the height of the ledger replica."""

    def record_allocation(self, allocation: Signed[Allocation]) -> None:
        """Take note that a slot is taken."""


@dataclass(slots=True)
class _PendingBid:
    """A bid between its arrival and its round's end."""

    routes: list[BidRoute]
    submission: BidSubmission
    auctioneer_share: bytes
    arrived_at_ms: int
    countersigned: Signed[BidAcknowledgement] | None = None
    accepted: BidAccepted | None = None

    @property
    def hash(self) -> bytes:
        return self.submission.sealed_bid.hash


@dataclass(slots=True)
class _OpenRound:
    """A closed round whose shares are awaited."""

    close: Signed[RoundClose]
    bids: list[_PendingBid]
    model: QosModel

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(bid.hash for bid in self.bids)


class Auctioneer:
    """Clears one hub during one term.

    Args:
        term: the term, of which this node is the auctioneer.
        lease: this node's lease of that term.
        market: reads of reports, ledger and slots.
        decode_bid: decodes an opened bid's bytes (the wire codec's).
        hpke_key: this node's key, which bidders seal their shares to.

    """

    def __init__(
        self,
        *,
        term: Term,
        lease: Lease,
        chain_id: str,
        params: MarketParams,
        signer: Signer,
        hpke_key: X25519PrivateKey,
        market: MarketView,
        decode_bid: BidDecoder,
    ) -> None:
        self.term = term
        self.lease = lease
        self.books = TermBooks()
        self.transcript_hashes: list[bytes] = []
        self._chain_id = chain_id
        self._params = params
        self._signer = signer
        self._hpke_key = hpke_key
        self._market = market
        self._decode_bid = decode_bid
        # A term without a second live validator has no witness: its rounds are marked unsealed.
        self._witness = term.witness if term.witness is not None else signer.node_id
        self._pending: dict[bytes, _PendingBid] = {}  # all bids without an outcome
        self._outcomes: dict[bytes, RoundOutcome] = {}
        self._countersigning: dict[bytes, _PendingBid] = {}
        self._acknowledged: list[_PendingBid] = []
        self._open_round: _OpenRound | None = None
        self._next_round = 0
        self._repeat_at_ms = 0
        self._over = False
        self._has_lease = False

    @property
    def settled(self) -> bool:
        """Whether the term is over and every acknowledged bid has its outcome."""
        return self._over and self._open_round is None and not self._acknowledged

    @property
    def witness(self) -> NodeId:
        """Who countersigns this term's bids."""
        return self._witness

    def resume(
        self, transcripts: Sequence[Signed[Transcript]], books: TermBooks, next_round: int
    ) -> None:
        """Go on after a restart: these rounds were cleared, no earlier round may be closed."""
        self.books = books
        bids = [task.sealed_bid for signed in transcripts for task in signed.message.tasks]
        # A channel's bids may have been countersigned, and so cleared, in another order.
        for bid in sorted(bids, key=lambda signed: signed.message.nonce):
            self.books.record_bid(bid)
        self.transcript_hashes = [transcript.hash for transcript in transcripts]
        self._next_round = next_round

    # --- bids come in ------------------------------------------------------------------------

    def submit_bid(self, route: BidRoute, submission: BidSubmission, *, now_ms: int) -> Ready:
        """Check a sealed bid and pass it to the witness; answer one that is known already.

        Raises: InvalidSignatureError, InvalidBidError, NotAuctioneerError, LeaseExpiredError,
            UnfundedBidError.
        """
        sealed_bid = submission.sealed_bid
        sealed = sealed_bid.message
        verify_signed(sealed_bid, self._chain_id, expected_signer=sealed.account)
        known = self._answer_again(route, sealed_bid.hash)
        if known is not None:
            return known
        self._require_term(sealed, now_ms)
        if compute_hash(submission.chain_ciphertext) != sealed.chain_hash:
            raise InvalidBidError("the block chain is not the one that the bid commits to")
        waiting = len(self._countersigning) + len(self._acknowledged)
        if waiting >= min(MAX_BIDS_WAITING, MAX_ROUNDS - self._next_round):
            raise InvalidBidError("too many bids wait for a round here; try again shortly")
        self._require_allowance(AccountId(sealed.account))
        share = open_share(
            sealed.auctioneer_seal,
            self._hpke_key,
            get_bid_context(self._chain_id, sealed),
            sealed.auctioneer_share_hash,
        )
        self.books.record_bid(sealed_bid)
        bid = _PendingBid([route], submission, share, now_ms)
        self._pending[bid.hash] = self._countersigning[bid.hash] = bid
        ready = Ready(send=(Send(self._witness, CountersignRequest((sealed_bid,))),))
        if not isinstance(route, int):
            ready += _answer_one(route, bid.hash, BidWaiting())
        return ready + self._try_close(now_ms)

    def _answer_again(self, route: BidRoute, bid_hash: bytes) -> Ready | None:
        """Answer a bid that came before, maybe on another way; None if it is new."""
        outcome = self._outcomes.get(bid_hash)
        if outcome is not None:
            return _answer_one(route, bid_hash, outcome)
        bid = self._pending.get(bid_hash)
        if bid is None:
            return None
        if route not in bid.routes:
            bid.routes = [*bid.routes, route][-MAX_ROUTES:]
        if bid.accepted is None and isinstance(route, int):
            return Ready()
        return _answer_one(route, bid_hash, bid.accepted or BidWaiting())

    def _require_term(self, sealed: SealedBid, now_ms: int) -> None:
        if self._over or sealed.term != self.term.number or sealed.hub != self.term.hub:
            raise NotAuctioneerError(
                f"term {sealed.term} of {sealed.hub} is not open here; ask any node who is the "
                "auctioneer and send the bid there",
                hint=None,
                term=self.term.number,
            )
        if self.lease.is_expired(now_ms=now_ms):
            raise LeaseExpiredError(hint=None, term=self.term.number)

    def _require_allowance(self, account: AccountId) -> None:
        allowance = self._market.get_allowance(account, self.term.number)
        reserved = self.books.get_reserved(account)
        if allowance - reserved <= 0:
            raise UnfundedBidError(
                f"the account's allowance in this term is {allowance} micro-credits, of which "
                f"{reserved} are reserved; put more into escrow or wait for the next term",
                allowance_micros=allowance,
                reserved_micros=reserved,
            )

    def receive_countersignatures(
        self, sender: NodeId, response: CountersignResponse, *, now_ms: int
    ) -> Ready:
        """Acknowledge bids that the witness countersigned; refuse those that it refused.

        Raises: RemoteProtocolError if the sender is not the witness, InvalidSignatureError.
        """
        self._require_witness(sender)
        for acknowledgement in response.acknowledgements:
            verify_signed(acknowledgement, self._chain_id, expected_signer=self._witness)
        ready = Ready()
        for acknowledgement in response.acknowledgements:
            stated = acknowledgement.message
            if (stated.hub, stated.term) != (self.term.hub, self.term.number):
                continue
            bid = self._countersigning.get(acknowledgement.message.bid_hash)
            if bid is not None:
                bid.countersigned = acknowledgement
        for bid_hash, reason in zip(response.refused, response.reasons, strict=False):
            bid = self._countersigning.get(bid_hash)
            if bid is not None:
                ready += self._refuse(bid, "InvalidBidError", f"the witness refused: {reason}")
        return ready + self._acknowledge(now_ms) + self._try_close(now_ms)

    def _acknowledge(self, now_ms: int) -> Ready:
        """Sign for the bids that the witness countersigned, once there is a lease."""
        if not self.lease.holds(now_ms=now_ms):
            return Ready()
        ready = Ready()
        for bid in list(self._countersigning.values()):
            if bid.countersigned is not None:
                del self._countersigning[bid.hash]
                own = self._signer.sign(bid.countersigned.message)
                bid.accepted = BidAccepted(bid.countersigned, own)
                self._acknowledged.append(bid)
                ready += _answer(bid, bid.accepted)
        return ready

    def _refuse(self, bid: _PendingBid, error: str, text: str) -> Ready:
        del self._countersigning[bid.hash], self._pending[bid.hash]
        return _answer(bid, Refusal(error, text))

    def _require_witness(self, sender: NodeId) -> None:
        if sender != self._witness:
            raise RemoteProtocolError(
                f"{short_id(sender)} is not the witness of term {self.term.number}"
            )

    # --- close -------------------------------------------------------------------------------

    def tick(self, *, now_ms: int) -> Ready:
        """Keep the lease, close a round whose window has passed, ask the witness again."""
        ready = self.lease.tick(now_ms=now_ms) + self._follow_lease(now_ms)
        ready += self._acknowledge(now_ms) + self._try_close(now_ms)
        if now_ms >= self._repeat_at_ms:
            self._repeat_at_ms = now_ms + REPEAT_MS
            ready += self._repeat_unanswered(now_ms)
        return ready

    def _follow_lease(self, now_ms: int) -> Ready:
        """Say when the lease is gained or lost; send those on whose bids are not in."""
        has_lease = self.lease.holds(now_ms=now_ms)
        changed, self._has_lease = has_lease != self._has_lease, has_lease
        ready = Ready()
        if changed and not self._over:
            name = "lease_gained" if has_lease else "lease_expired"
            ready += Ready(events=(Event(name, {"term": self.term.number}),))
        if self._over or not self.lease.is_expired(now_ms=now_ms):
            return ready
        for bid in list(self._countersigning.values()):
            ready += self._refuse(bid, LeaseExpiredError.__name__, str(LeaseExpiredError()))
        return ready

    def _may_sign(self, now_ms: int) -> bool:
        """Tell whether rounds may be closed and cleared.

        Once the term is over on this node's own ledger it clears what it acknowledged before.
        """
        return self._over or self.lease.holds(now_ms=now_ms)

    def _repeat_unanswered(self, now_ms: int) -> Ready:
        """Send again what the witness should have answered by now.

        A witness that restarted learns its shares of a closed round anew from the sealed bids.
        """
        late = [
            bid.submission.sealed_bid
            for bid in self._countersigning.values()
            if bid.arrived_at_ms + REPEAT_MS <= now_ms and bid.countersigned is None
        ]
        opened = self._open_round
        if opened is not None and opened.close.message.closed_at_ms + REPEAT_MS > now_ms:
            opened = None
        if opened is not None:
            late += [bid.submission.sealed_bid for bid in opened.bids]
        ready = Ready()
        if late:
            ready += Ready(send=(Send(self._witness, CountersignRequest(tuple(late))),))
        if opened is not None:
            notice = CloseNotice(opened.close, opened.hashes)
            ready += Ready(send=(Send(self._witness, notice),))
        return ready

    def end_term(self, *, now_ms: int) -> Ready:
        """Take no more bids; refuse those not yet acknowledged; clear the rest."""
        self._over = True
        ready = self.lease.release(now_ms=now_ms)
        text = "the term ended before the bid was in; send it to the next auctioneer"
        for bid in list(self._countersigning.values()):
            ready += self._refuse(bid, NotAuctioneerError.__name__, text)
        return ready + self._try_close(now_ms)

    def _try_close(self, now_ms: int) -> Ready:
        if self._open_round is not None or not self._acknowledged or not self._may_sign(now_ms):
            return Ready()
        model = self._market.get_model(self.term.number)
        if model is None:
            return Ready()  # decided while this node was away: it is being fetched
        closes_at_ms = self._acknowledged[0].arrived_at_ms + self._params.round_window_ms
        if self._countersigning and now_ms < closes_at_ms:
            return Ready(wake_at_ms=closes_at_ms)
        bids = self._acknowledged[: self._params.round_max_bids]
        del self._acknowledged[: len(bids)]
        close = self._signer.sign(
            RoundClose(
                hub=self.term.hub,
                term=self.term.number,
                round=self._next_round,
                bids_root=compute_root([bid.hash for bid in bids]),
                bid_count=len(bids),
                closed_at_ms=now_ms,
                sealed=self.term.witness is not None,
            )
        )
        self._open_round = _OpenRound(close, bids, model)
        self._next_round += 1
        key = self.term.number.to_bytes(8, "big") + close.message.round.to_bytes(8, "big")
        return Ready(
            persist=(Record(RecordKind.CLOSED_ROUND, key, close),),
            send=(Send(self._witness, CloseNotice(close, self._open_round.hashes)),),
        )

    # --- open and clear ----------------------------------------------------------------------

    def receive_release(self, sender: NodeId, notice: ReleaseNotice, *, now_ms: int) -> Ready:
        """Open the round's bids with the witness's shares, clear, announce.

        Raises: RemoteProtocolError, InvalidSignatureError.
        """
        self._require_witness(sender)
        opened = self._open_round
        release = notice.release.message
        if opened is None or release.close_hash != opened.close.hash:
            return Ready()
        if not self._may_sign(now_ms):
            return Ready()  # the close is sent again, and so the release, until there is a lease
        verify_signed(notice.release, self._chain_id, expected_signer=self._witness)
        if len(release.shares) != len(opened.bids):
            raise RemoteProtocolError("the release does not hold one share a bid")
        for bid, share in zip(opened.bids, release.shares, strict=True):
            if compute_share_hash(share) != bid.submission.sealed_bid.message.witness_share_hash:
                raise RemoteProtocolError("a released share is not the one that its bid commits to")
        self._open_round = None
        now_ms = max(now_ms, opened.close.message.closed_at_ms)
        cleared, outcomes = self._clear(opened, notice.release, now_ms)
        self.transcript_hashes.append(cleared.transcript.hash)
        ready = self._announce(opened, cleared, outcomes)
        return ready + self._try_close(now_ms)

    def _clear(
        self, opened: _OpenRound, release: Signed[ShareRelease], now_ms: int
    ) -> tuple[ClearedRound, tuple[Allocation | Unmatched, ...]]:
        tasks = [
            self._open_task(bid, share)
            for bid, share in zip(opened.bids, release.message.shares, strict=True)
        ]
        cleared = clear_round(
            term=self.term,
            witness=self._witness,
            close=opened.close,
            release=release,
            tasks=tasks,
            providers=self._market.get_providers(self.term.number, now_ms=now_ms),
            model=opened.model,
            get_funds=self._get_funds,
            previous_hash=self.transcript_hashes[-1] if self.transcript_hashes else bytes(ID_BYTES),
            ledger_height=self._market.get_height(),
            params=self._params,
            sign=self._signer.sign,
            now_ms=now_ms,
        )
        outcomes = derive_outcomes(cleared, self.books, self._params)
        self.books.record_allocations(o for o in outcomes if isinstance(o, Allocation))
        return cleared, outcomes

    def _get_funds(self, account: AccountId) -> int:
        allowance = self._market.get_allowance(account, self.term.number)
        return allowance - self.books.get_reserved(account)

    def _open_task(self, bid: _PendingBid, witness_share: bytes) -> OpenedTask:
        sealed_bid = bid.submission.sealed_bid
        own = bid.auctioneer_share
        return OpenedTask(
            sealed_bid=sealed_bid,
            auctioneer_share=own,
            witness_share=witness_share,
            bid=open_bid(self._chain_id, sealed_bid.message, own, witness_share, self._decode_bid),
            chain=open_chain(
                self._chain_id,
                sealed_bid.message,
                own,
                witness_share,
                bid.submission.chain_ciphertext,
            ),
        )

    def _announce(
        self,
        opened: _OpenRound,
        cleared: ClearedRound,
        outcomes: Sequence[Allocation | Unmatched],
    ) -> Ready:
        ready = Ready()
        for index, (bid, outcome) in enumerate(zip(opened.bids, outcomes, strict=True)):
            allocation = unmatched = None
            if isinstance(outcome, Allocation):
                allocation = self._signer.sign(outcome)
                self._market.record_allocation(allocation)
            else:
                unmatched = self._signer.sign(outcome)
            proof = compute_inclusion_proof(opened.hashes, index)
            answer = RoundOutcome(opened.close, proof, allocation, unmatched)
            ready += _answer(bid, answer)
            del self._pending[bid.hash]
            self._outcomes[bid.hash] = answer
        while len(self._outcomes) > MAX_OUTCOMES:
            self._outcomes.pop(next(iter(self._outcomes)))
        message = cleared.transcript.message
        fields = {
            "term": message.term,
            "round": message.round,
            "bids": len(opened.bids),
            "matched": sum(isinstance(outcome, Allocation) for outcome in outcomes),
            "welfare_micros": message.clearing.welfare_micros,
            "vcg_deficit_micros": cleared.clearing.vcg_deficit_micros,
        }
        notice = TranscriptNotice(cleared.transcript)
        return ready + Ready(
            send=tuple(Send(node, notice) for node in self._market.get_receivers()),
            events=(Event("round_cleared", fields),),
        )


def _answer(bid: _PendingBid, message: BidAccepted | RoundOutcome | Refusal) -> Ready:
    """Answer a bid on every way that it came."""
    ready = Ready()
    for route in bid.routes:
        ready += _answer_one(route, bid.hash, message)
    return ready


def _answer_one(
    route: BidRoute, bid_hash: bytes, message: BidAccepted | RoundOutcome | Refusal | BidWaiting
) -> Ready:
    if isinstance(route, int):
        return Ready(answers=(Answer(route, bid_hash, message),))
    return Ready(send=(Send(route, ForwardedAnswer(bid_hash, message)),))
