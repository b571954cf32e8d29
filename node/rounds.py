"""A node's part in rounds: auctioneer or witness when its turn comes, verifier always.

Pure. Follows the terms of the ledger: ends the old term's auctioneer, begins the new one's,
re-checks every transcript as soon as the replica has reached the height that it names.
Source: design §4, §7 (election).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from auctioneer.books import TermBooks
from auctioneer.capacity import Capacity
from auctioneer.clear_round import ProviderView
from auctioneer.lease import Lease, LeaseGrants, Powers
from auctioneer.opening import BidDecoder
from auctioneer.outcomes import derive_outcomes
from auctioneer.round import Auctioneer, BidRoute
from auctioneer.verify import verify_transcript
from auctioneer.witness import Witness
from iemas.core.auction import (
    Allocation,
    BidSubmission,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ForwardedAnswer,
    ForwardedBid,
    LeaseGrant,
    LeaseRelease,
    LeaseRequest,
    QosModel,
    Refusal,
    ReleaseNotice,
    RoundClose,
    ShareRelease,
    Transcript,
)
from iemas.core.digest import DigestIndex
from iemas.core.election import Term
from iemas.core.envelope import Envelope, Signed, Signer, verify_signed
from iemas.core.errors import (
    InvalidBidError,
    InvalidInputError,
    InvalidReceiptError,
    InvalidTranscriptError,
    NotAuctioneerError,
    RemoteProtocolError,
)
from iemas.core.execution import Receipt
from iemas.core.membership import Membership, NodeRecord
from iemas.core.params import MarketParams
from iemas.core.ready import Event, Fault, Ready, Record, RecordKind, Send
from iemas.core.types import ID_BYTES, AccountId, HubId, NodeId, short_id
from iemas.ledger.application import MAX_TRANSACTION_BYTES
from iemas.ledger.records import TermKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import Evidence, RoundRoots, TranscriptEvidence
from node.models import Models

MAX_DEFERRED = 64
"""How many messages of one validator may wait for the replica to catch up."""

MAX_EVIDENCE_BYTES = MAX_TRANSACTION_BYTES - 4_096
"""Of a transcript that still fits into a transaction; a longer one convicts nobody."""

_TaskName = tuple[bytes, int, bytes, int, int]
"""What an allocation and its receipt say alike: account, channel, provider, token counts."""


class Rounds:
    """Auctioneer, witness and verifier of one node in one hub.

    `get_state` gives the ledger replica's current state; it is read afresh at every use.
    """

    def __init__(
        self,
        *,
        hub: HubId,
        chain_id: str,
        params: MarketParams,
        signer: Signer,
        hpke_key: X25519PrivateKey,
        membership: Membership,
        models: Models,
        get_state: Callable[[], LedgerState],
        decode_bid: BidDecoder,
    ) -> None:
        self._hub = hub
        self._chain_id = chain_id
        self._params = params
        self._signer = signer
        self._hpke_key = hpke_key
        self._membership = membership
        self._models = models
        self._get_state = get_state
        self._decode_bid = decode_bid
        self._capacity = Capacity()
        self._witness = Witness(chain_id=chain_id, signer=signer, hpke_key=hpke_key)
        self._auctioneers: dict[int, Auctioneer] = {}
        self._grants: LeaseGrants | None = None
        self._digests: dict[bytes, DigestIndex] = {}
        self._deferred: list[Signed[Transcript]] = []
        self._checked: dict[Envelope, int] = {}  # every transcript judged -> its term
        self._early_requests: list[tuple[NodeId, CountersignRequest]] = []
        self._followed: dict[int, tuple[TermBooks, bytes]] = {}  # term -> books, last hash
        # By term: tasks allocated whose receipt is not heard of, and allocations heard of.
        self._unheard: dict[int, Counter[_TaskName]] = {}
        self._heard: dict[int, set[bytes]] = {}
        self._evidence: list[Signed[Transcript]] = []
        self._stored_transcripts: list[Signed[Transcript]] = []
        self._stored_closes: list[Signed[RoundClose]] = []
        self._stored_releases: list[Signed[ShareRelease]] = []
        self.term: Term | None = None
        self.verdicts: Counter[str] = Counter()
        self.last_transcript_hash = b""

    # --- MarketView, for the auctioneer --------------------------------------------------------

    def get_providers(self, term: int, *, now_ms: int) -> list[ProviderView]:
        """Give the providers that a round may use now."""
        views = []
        for node_id, record in self._membership.get_nodes():
            view = self._view_provider(node_id, record, term, now_ms)
            if view is not None:
                views.append(view)
        live = {view.digest_hash for view in views}
        self._digests = {key: index for key, index in self._digests.items() if key in live}
        return views

    def get_model(self, term: int) -> QosModel | None:
        """Give the QoS model of a term; None while it is not at hand."""
        return self._models.get_model(term)

    def _view_provider(
        self, node_id: NodeId, record: NodeRecord, term: int, now_ms: int
    ) -> ProviderView | None:
        capability, load = record.capability.message, record.load
        if not capability.sells or capability.hub != self._hub or load is None:
            return None
        if self._membership.is_suspected(node_id):
            return None
        if load.message.stamp.incarnation != capability.stamp.incarnation:
            return None
        newest_ms = max(load.message.stamp.issued_at_ms, capability.stamp.issued_at_ms)
        if newest_ms > now_ms + self._params.clock_tolerance_ms:
            return None  # this node's clock was set back: nobody would take the round
        if now_ms - load.message.stamp.issued_at_ms > self._params.report_max_age_ms:
            return None
        if capability.stamp.expires_at_ms + self._params.clock_tolerance_ms < now_ms:
            return None
        # A round that is cleared after its term has ended must not use a later term's ask.
        asks = self._get_state().get_asks_of_term(self._hub, node_id, term)
        if not asks:
            return None
        self._capacity.observe_load(load.message)
        digest_hash, digest = self._get_digest(record, now_ms)
        return ProviderView(
            capability=record.capability,
            load=load,
            digest_hash=digest_hash,
            digest=digest,
            ask=asks[0],
            free_slots=self._capacity.compute_free_slots(capability, load.message, now_ms=now_ms),
        )

    def _get_digest(self, record: NodeRecord, now_ms: int) -> tuple[bytes, DigestIndex | None]:
        signed = record.digest
        incarnation = record.capability.message.stamp.incarnation
        if (
            signed is None
            or signed.message.stamp.incarnation != incarnation
            or signed.message.stamp.expires_at_ms < now_ms
            or signed.message.block_size != record.capability.message.block_size
        ):
            return bytes(ID_BYTES), None
        index = self._digests.get(signed.hash)
        if index is None:
            index = self._digests[signed.hash] = DigestIndex(signed.message.blocks)
        return signed.hash, index

    def get_allowance(self, account: AccountId, term: int) -> int:
        """Give an account's allowance in a term."""
        return self._get_state().get_allowance(self._hub, account, term)

    def get_receivers(self) -> Sequence[NodeId]:
        """Give every node that transcripts go to."""
        return [self._signer.node_id, *self._membership.get_peers()]

    def get_height(self) -> int:
        """Give the height of the replica."""
        return self._get_state().height

    def record_allocation(self, allocation: Signed[Allocation]) -> None:
        """Count a slot as taken."""
        self._capacity.record_allocation(allocation)

    # --- terms -------------------------------------------------------------------------------

    def follow_ledger(self, *, now_ms: int) -> Ready:
        """After new blocks: change roles if the term changed, check what waited for the height."""
        ready = Ready()
        term = self._get_state().get_term(self._hub)
        if self.term is None or term.number != self.term.number:
            ready += self._change_term(term, now_ms)
        deferred, self._deferred = self._deferred, []
        for transcript in deferred:
            try:
                ready += self.receive_transcript(transcript)
            except (InvalidInputError, RemoteProtocolError) as error:
                # It was kept as its signature holds: who signed it answers for it.
                ready += Ready(faults=(Fault(NodeId(transcript.signer_id), error),))
        return ready

    def _change_term(self, term: Term, now_ms: int) -> Ready:
        if self.term is None:
            self._grants = LeaseGrants(params=self._params, term=term, now_ms=now_ms)
            self._resume_past_terms()
        self.term = term
        own_id = self._signer.node_id
        ready = Ready(
            events=(
                Event(
                    "term_began",
                    {
                        "term": term.number,
                        "auctioneer": short_id(term.auctioneer),
                        "witness": short_id(term.witness or term.auctioneer),
                    },
                ),
            )
        )
        for auctioneer in self._auctioneers.values():
            ready += auctioneer.end_term(now_ms=now_ms)
        self._begin_witness(term)
        for number in list(self._auctioneers):
            if self._get_state().get_term_by_number(self._hub, number) is None:
                del self._auctioneers[number]  # closed: a round still open can never be paid
        if own_id == term.auctioneer:
            auctioneer = self._auctioneers[term.number] = self._begin_auctioneer(term)
            ready += auctioneer.tick(now_ms=now_ms)
        for number in [n for n in self._followed if n + self._params.settle_terms < term.number]:
            del self._followed[number]
        oldest = term.number - self._params.settle_terms
        for number in [n for n in (*self._unheard, *self._heard) if n < oldest]:
            self._unheard.pop(number, None)
            self._heard.pop(number, None)
        self._checked = {e: number for e, number in self._checked.items() if number >= oldest}
        early, self._early_requests = self._early_requests, []
        for sender, request in early:
            try:
                ready += self.receive_countersign_request(sender, request)
            except (InvalidInputError, RemoteProtocolError) as error:
                ready += Ready(faults=(Fault(sender, error),))
        return ready

    def _begin_auctioneer(self, term: Term) -> Auctioneer:
        """Begin a term, or go on with it after a restart where the stored rounds end."""
        auctioneer = Auctioneer(
            term=term,
            lease=Lease(
                term=term,
                own_id=self._signer.node_id,
                params=self._params,
                get_powers=self._get_powers,
            ),
            chain_id=self._chain_id,
            params=self._params,
            signer=self._signer,
            hpke_key=self._hpke_key,
            market=self,
            decode_bid=self._decode_bid,
        )
        stored = [t for t in self._stored_transcripts if t.message.term == term.number]
        closes = [c.message.round for c in self._stored_closes if c.message.term == term.number]
        if stored or closes:
            auctioneer.resume(stored, self._replay(stored), max(closes, default=-1) + 1)
        return auctioneer

    def _get_powers(self) -> Powers:
        """Give who votes on the next block, and with what power."""
        state = self._get_state()
        return state.get_consensus_validators_at(state.height + 1)

    def _replay(self, transcripts: Sequence[Signed[Transcript]]) -> TermBooks:
        """Rebuild a term's books from its stored rounds."""
        for transcript in transcripts:
            self._verify(transcript)
        followed = self._followed.get(transcripts[0].message.term) if transcripts else None
        return followed[0].copy() if followed is not None else TermBooks()

    def restore(
        self,
        transcripts: Sequence[Signed[Transcript]],
        closes: Sequence[Signed[RoundClose]],
        releases: Sequence[Signed[ShareRelease]],
    ) -> None:
        """Remember after a restart what this node signed, so that it contradicts none of it."""
        self.verdicts["verified"] += len(transcripts)
        if transcripts:
            self.last_transcript_hash = transcripts[-1].hash
        self._checked = {signed.envelope: signed.message.term for signed in transcripts}
        self._stored_transcripts = list(transcripts)
        self._stored_closes = list(closes)
        self._stored_releases = list(releases)

    @property
    def open_books(self) -> int:
        """How many terms of this node have rounds and are not closed on the ledger."""
        return sum(bool(a.transcript_hashes) for a in self._auctioneers.values())

    def get_due_books(self) -> tuple[RoundRoots, ...]:
        """Give the books of this node's terms that are over, until the ledger has them."""
        state = self._get_state()
        due = []
        for number, auctioneer in sorted(self._auctioneers.items()):
            if not auctioneer.settled:
                continue
            closed = state.get_term_by_number(self._hub, number) is None
            if not auctioneer.transcript_hashes or closed or state.get_roots(self._hub, number):
                del self._auctioneers[number]
                continue
            due.append(
                RoundRoots(
                    hub=self._hub,
                    term=number,
                    transcript_hashes=tuple(auctioneer.transcript_hashes),
                    holds=auctioneer.books.get_holds(),
                    bids=auctioneer.books.get_last_bids(),
                )
            )
        return tuple(due)

    def _resume_past_terms(self) -> None:
        """After a restart: take up what this node still owes terms that ended meanwhile.

        Its own terms' books, and the shares of rounds that were closed before it stopped.
        """
        for term in self._get_state().get_terms_open(self._hub)[:-1]:
            self._begin_witness(term)
            if term.auctioneer == self._signer.node_id:
                self._auctioneers[term.number] = self._begin_auctioneer(term)

    def _begin_witness(self, term: Term) -> None:
        """Witness a term if it is this node's to witness; contradict no earlier process of it."""
        witness = term.witness if term.witness is not None else term.auctioneer
        if witness == self._signer.node_id:
            self._witness.begin_term(term)
            for release in self._stored_releases:
                self._witness.restore(release)

    # --- round messages ------------------------------------------------------------------------

    def submit_bid(self, route: BidRoute, submission: BidSubmission, *, now_ms: int) -> Ready:
        """Hand a bid to the auctioneer of its term, if that is this node.

        Raises: NotAuctioneerError and what `Auctioneer.submit_bid` raises.
        """
        auctioneer = self._auctioneers.get(submission.sealed_bid.message.term)
        if auctioneer is None:
            hint = self.term.auctioneer if self.term is not None else None
            name = short_id(hint) if hint is not None else "unknown"
            raise NotAuctioneerError(
                f"this node is not the auctioneer of that term; here it is {name}", hint=hint
            )
        return auctioneer.submit_bid(route, submission, now_ms=now_ms)

    def receive_forwarded(self, sender: NodeId, forwarded: ForwardedBid, *, now_ms: int) -> Ready:
        """Take in a bid that a validator passed on, and let it have the answers.

        Raises: InvalidBidError if the sender is no validator, as far as this replica knows.
        """
        if not self._get_state().is_validator(sender, self._hub):
            raise InvalidBidError(f"{short_id(sender)} is no validator here and passes no bids on")
        submission = forwarded.submission
        try:
            return self.submit_bid(sender, submission, now_ms=now_ms)
        except InvalidInputError as error:
            refusal = Refusal(type(error).__name__, str(error))
            answer = ForwardedAnswer(submission.sealed_bid.hash, refusal)
            return Ready(send=(Send(sender, answer),))

    # --- leases --------------------------------------------------------------------------------

    def receive_of_lease(
        self, sender: NodeId, message: LeaseRequest | LeaseGrant | LeaseRelease, *, now_ms: int
    ) -> Ready:
        """Grant leases as a validator; sign what waited for the lease as the auctioneer."""
        if self._grants is None or self.term is None:
            return Ready()
        match message:
            case LeaseRequest():
                grant = self._grants.grant(sender, message, term=self.term, now_ms=now_ms)
                return Ready() if grant is None else Ready(send=(Send(sender, grant),))
            case LeaseRelease():
                self._grants.release(sender, message, now_ms=now_ms)
                return Ready()
            case LeaseGrant():
                auctioneer = self._auctioneers.get(message.term)
                if auctioneer is None:
                    return Ready()
                auctioneer.lease.receive(sender, message)
                return auctioneer.tick(now_ms=now_ms)

    def receive_countersign_request(self, sender: NodeId, request: CountersignRequest) -> Ready:
        """Countersign as the witness; a request of a term not yet seen here waits for it."""
        current = self.term.number if self.term is not None else -1
        terms = {bid.message.term for bid in request.bids}
        if terms and min(terms) > current and self._get_state().is_validator(sender, self._hub):
            if sum(one == sender for one, _ in self._early_requests) < MAX_DEFERRED:
                self._early_requests.append((sender, request))
            return Ready()
        return self._witness.countersign(sender, request)

    def receive_countersignatures(
        self, sender: NodeId, response: CountersignResponse, *, now_ms: int
    ) -> Ready:
        """Pass the witness's answers to the auctioneers that wait for them."""
        ready = Ready()
        for auctioneer in self._auctioneers.values():
            if auctioneer.witness == sender:
                ready += auctioneer.receive_countersignatures(sender, response, now_ms=now_ms)
        return ready

    def receive_close(self, sender: NodeId, notice: CloseNotice) -> Ready:
        """Release a closed round's shares to all validators, as the witness."""
        state = self._get_state()
        receivers = [node for node in self.get_receivers() if state.is_validator(node)]
        return self._witness.release(sender, notice, receivers)

    def receive_release(self, sender: NodeId, notice: ReleaseNotice, *, now_ms: int) -> Ready:
        """Open the round if this node closed it; otherwise there is nothing to do."""
        auctioneer = self._auctioneers.get(notice.release.message.term)
        if auctioneer is None:
            return Ready()
        return auctioneer.receive_release(sender, notice, now_ms=now_ms)

    def tick(self, *, now_ms: int) -> Ready:
        """Close rounds whose window has passed."""
        ready = Ready()
        for auctioneer in self._auctioneers.values():
            ready += auctioneer.tick(now_ms=now_ms)
        return ready

    # --- verification --------------------------------------------------------------------------

    def receive_transcript(self, transcript: Signed[Transcript]) -> Ready:
        """Re-check a round, or keep it until the replica is as high as its auctioneer's was.

        Only what the term's auctioneer signed is a round at all, and worth remembering.
        Raises: InvalidSignatureError, InvalidTranscriptError if it is nobody's of that term.
        """
        if transcript.envelope in self._checked:
            return Ready()
        if transcript.message.ledger_height > self._get_state().height:
            self._defer(transcript)
            return Ready()
        term = self._get_state().get_term_by_number(self._hub, transcript.message.term)
        if term is None:
            raise InvalidTranscriptError(
                "the ledger knows no such open term", term=transcript.message.term
            )
        verify_signed(transcript, self._chain_id, expected_signer=term.auctioneer)
        self._checked[transcript.envelope] = transcript.message.term
        try:
            self._verify(transcript)
        except InvalidTranscriptError as error:
            return self._refuse_transcript(transcript, error)
        self.verdicts["verified"] += 1
        self.last_transcript_hash = transcript.hash
        message = transcript.message
        key = message.term.to_bytes(8, "big") + message.round.to_bytes(8, "big")
        return Ready(
            persist=(Record(RecordKind.TRANSCRIPT, key, transcript),),
            events=(Event("round_verified", {"term": message.term, "round": message.round}),),
        )

    def _defer(self, transcript: Signed[Transcript]) -> None:
        """Keep a transcript that is ahead of the replica: a validator's, and not too many of one.

        Raises: InvalidSignatureError, InvalidTranscriptError.
        """
        signer = NodeId(transcript.signer_id)
        if not self._get_state().is_validator(signer, self._hub):
            # It may be one by the blocks that this replica lacks.
            raise InvalidTranscriptError(f"{short_id(signer)} is no validator known here")
        verify_signed(transcript, self._chain_id)
        kept = [held for held in self._deferred if held.signer_id == signer]
        if transcript not in kept and len(kept) < MAX_DEFERRED:
            self._deferred.append(transcript)

    def _refuse_transcript(
        self, transcript: Signed[Transcript], error: InvalidTranscriptError
    ) -> Ready:
        """Count a wrong transcript, and keep it as evidence if the ledger can see that too."""
        self.verdicts["refused"] += 1
        try:
            self.check_evidence(transcript, self._get_state())
        except InvalidTranscriptError:
            if len(transcript.envelope.payload) <= MAX_EVIDENCE_BYTES:
                self._evidence.append(transcript)
        fields = {
            "term": transcript.message.term,
            "round": transcript.message.round,
            "auctioneer": short_id(transcript.signer_id),
            "error": type(error).__name__,
            "reason": str(error),
        }
        return Ready(events=(Event("transcript_refused", fields),))

    def get_evidence(self) -> Evidence | None:
        """Give a wrong transcript for the ledger to judge, until it has judged that term's."""
        terms = self._get_state().terms
        while self._evidence:
            transcript = self._evidence[0]
            record = terms.get(TermKey(self._hub, transcript.message.term))
            if record is not None and not record.convicted:
                return Evidence(TranscriptEvidence(transcript))
            del self._evidence[0]
        return None

    def _verify(self, transcript: Signed[Transcript]) -> None:
        message = transcript.message
        followed = self._followed.get(message.term)
        if followed is None and message.previous_hash == bytes(ID_BYTES):
            followed = (TermBooks(), bytes(ID_BYTES))
        complete = followed is not None and followed[1] == message.previous_hash
        books = followed[0] if followed is not None and complete else None
        cleared = verify_transcript(
            transcript,
            ledger=self._get_state(),
            chain_id=self._chain_id,
            params=self._params,
            decode_bid=self._decode_bid,
            get_reserved=books.get_reserved if books is not None else None,
        )
        outcomes = derive_outcomes(cleared, books or TermBooks(), self._params)
        allocations = [outcome for outcome in outcomes if isinstance(outcome, Allocation)]
        self._unheard.setdefault(message.term, Counter()).update(map(_name_task, allocations))
        if books is not None:
            books.record_allocations(allocations)
            self._followed[message.term] = (books, transcript.hash)

    def expect_receipt(self, receipt: Receipt) -> None:
        """Check that a last receipt is of a task that a verified round allocated, heard of once.

        Or anybody could teach the predictor with tasks that never were, or one of them many times.
        Raises: InvalidReceiptError.
        """
        unheard, name = self._unheard.get(receipt.term, Counter()), _name_task(receipt)
        heard = self._heard.get(receipt.term, set())
        if receipt.hub != self._hub or unheard[name] == 0 or receipt.allocation_hash in heard:
            raise InvalidReceiptError(
                "the receipt is of no task that a verified round allocated, or was heard of before",
                allocation_hash=receipt.allocation_hash,
            )
        unheard[name] -= 1
        self._heard.setdefault(receipt.term, set()).add(receipt.allocation_hash)

    def check_evidence(self, transcript: Signed[Transcript], state: LedgerState) -> None:
        """Re-check a transcript for the ledger, which judges evidence by its own state alone.

        Raises: InvalidTranscriptError if the transcript is wrong.
        """
        verify_transcript(
            transcript,
            ledger=state,
            chain_id=self._chain_id,
            params=self._params,
            decode_bid=self._decode_bid,
        )


def _name_task(terms: Allocation | Receipt) -> _TaskName:
    return (terms.account, terms.channel, terms.provider, terms.prompt_tokens, terms.max_tokens)
