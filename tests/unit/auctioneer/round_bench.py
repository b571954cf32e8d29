"""A round without a network: auctioneer, witness, providers and bidders in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from auctioneer.books import TermBooks
from auctioneer.capacity import Capacity
from auctioneer.clear_round import ProviderView
from auctioneer.lease import Lease
from auctioneer.outcomes import ClearedRound, derive_outcomes
from auctioneer.round import Auctioneer
from auctioneer.verify import verify_transcript
from auctioneer.witness import Witness
from iemas import wire
from iemas.client._bidding import PendingBid
from iemas.core.auction import (
    Allocation,
    Ask,
    Bid,
    BidAccepted,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ProviderQos,
    QosModel,
    Refusal,
    ReleaseNotice,
    RoundOutcome,
    Transcript,
    TranscriptNotice,
    Unmatched,
)
from iemas.core.digest import DigestIndex
from iemas.core.envelope import Signed
from iemas.core.params import MarketParams
from iemas.core.ready import Answer, Event, Ready, Record, Send
from iemas.core.types import AccountId, NodeId, Prices
from iemas.ledger.records import TermKey
from iemas.ledger.transaction import PostAsk
from iemas.testing.builders import (
    ASK,
    Bidder,
    make_capability,
    make_load,
    make_qos,
    make_qos_model,
    make_stamp,
)
from iemas.testing.chain import LedgerChain, make_genesis, make_identity


@dataclass
class Market:
    """What the auctioneer reads: a ledger, and providers that a test sets."""

    chain: LedgerChain
    views: dict[str, ProviderView] = field(default_factory=dict)
    capacity: Capacity = field(default_factory=Capacity)
    model: QosModel | None = None

    def get_providers(self, term: int, *, now_ms: int) -> Sequence[ProviderView]:
        free = self.capacity.compute_free_slots
        return [
            replace(
                view,
                free_slots=free(view.capability.message, view.load.message, now_ms=now_ms),
            )
            for view in self.views.values()
        ]

    def get_model(self, term: int) -> QosModel | None:
        return self.model

    def get_allowance(self, account: AccountId, term: int) -> int:
        return self.chain.state.get_allowance(self.chain.hub, account, term)

    def get_receivers(self) -> Sequence[NodeId]:
        return [self.chain.get_node("node-1"), self.chain.get_node("node-2")]

    def get_height(self) -> int:
        return self.chain.state.height

    def record_allocation(self, allocation: Signed[Allocation]) -> None:
        self.capacity.record_allocation(allocation)


class BenchLease(Lease):
    """A lease that a test gives and takes."""

    is_held = True

    def holds(self, *, now_ms: int) -> bool:
        return self.is_held

    def is_expired(self, *, now_ms: int) -> bool:
        return not self.is_held


class RoundBench:
    """One term's auctioneer and witness, and the mail between them, which tests deliver."""

    def __init__(
        self, *, params: MarketParams | None = None, validators: Sequence[str] | None = None
    ) -> None:
        names = validators if validators is not None else ("node-1", "node-2", "node-3")
        # Asks in the open can be replaced at any time, which is what some tests are about.
        self.params = params if params is not None else MarketParams(sealed_asks=False)
        self.chain = LedgerChain(make_genesis(validators=names, params=self.params))
        self.market = Market(self.chain)
        self.term = self.chain.state.get_term(self.chain.hub)
        self.auctioneer_name = self.chain.get_name(self.term.auctioneer)
        self.witness_name = self.chain.get_name(self.term.witness or self.term.auctioneer)
        self.lease = BenchLease(
            term=self.term, own_id=self.term.auctioneer, params=self.params, get_powers=list
        )
        self.witness = self.make_witness()
        self.auctioneer = self.make_auctioneer()
        self.now_ms = self.chain.now_ms
        self.decide_model(make_qos_model())
        self.mail: list[tuple[str, Send]] = []
        self.answers: list[Answer] = []
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.transcripts: list[Signed[Transcript]] = []
        self._bidders: dict[tuple[str, int], Bidder] = {}

    def make_witness(self) -> Witness:
        identity = make_identity(self.witness_name)
        witness = Witness(
            chain_id=self.chain.chain_id,
            signer=self.chain.get_signer(self.witness_name),
            hpke_key=identity.derive_hpke_key(),
        )
        witness.begin_term(self.term)
        return witness

    def make_auctioneer(self) -> Auctioneer:
        identity = make_identity(self.auctioneer_name)
        return Auctioneer(
            term=self.term,
            lease=self.lease,
            chain_id=self.chain.chain_id,
            params=self.params,
            signer=self.chain.get_signer(self.auctioneer_name),
            hpke_key=identity.derive_hpke_key(),
            market=self.market,
            decode_bid=decode_bid,
        )

    # --- the market ------------------------------------------------------------------------------

    def add_provider(
        self,
        name: str,
        *,
        ask: Prices = ASK,
        slots: int = 4,
        blocks: bytes | None = None,
        qos: dict[str, Any] | None = None,
        load: dict[str, Any] | None = None,
        capability: dict[str, Any] | None = None,
        age_ms: int = 0,
    ) -> NodeId:
        """Let a provider join: its ask goes on the ledger, its reports to the auctioneer."""
        signer = self.chain.get_signer(name)
        issued_at_ms = self.now_ms - age_ms
        stamps = [make_stamp(signer, n, now_ms=issued_at_ms) for n in (1, 2)]
        self.chain.submit(name, PostAsk(Ask(self.chain.hub, ask)))
        self.market.views[name] = ProviderView(
            capability=signer.sign(make_capability(stamps[0], slots=slots, **(capability or {}))),
            load=signer.sign(make_load(stamps[1], slots=slots, **(load or {}))),
            digest_hash=bytes(32),
            digest=DigestIndex(blocks) if blocks is not None else None,
            ask=ask,
            free_slots=0,
        )
        self.add_row(make_qos(signer.node_id, **(qos or {})))
        return signer.node_id

    def add_row(self, row: ProviderQos) -> None:
        """Let the term's model know a provider, too."""
        assert self.market.model is not None
        rows = {known.provider: known for known in self.market.model.rows} | {row.provider: row}
        self.decide_model(make_qos_model(*rows.values()))

    def decide_model(self, model: QosModel) -> None:
        """Let rounds clear under a model, as if it had been decided before the term."""
        self.market.model = model
        state, key = self.chain.state, TermKey(self.term.hub, self.term.number)
        state.terms[key] = replace(state.terms[key], model=model.hash)

    def seal(
        self, account: str = "alice", *, channel: int = 7, chain: bytes = b"", **changes: Any
    ) -> PendingBid:
        """Seal a bid on one of an account's channels."""
        key = (account, channel)
        bidder = self._bidders.setdefault(key, Bidder(self.chain, account, channel))
        return bidder.seal(self.term, chain=chain, **changes)

    # --- steps -----------------------------------------------------------------------------------

    def submit(self, pending: PendingBid, *, stream: int = 1) -> Ready:
        """Hand a bid to the auctioneer."""
        ready = self.auctioneer.submit_bid(stream, pending.submission, now_ms=self.now_ms)
        self.take(self.auctioneer_name, ready)
        return ready

    def take(self, sender: str, ready: Ready) -> None:
        """Carry out a step's effects, but leave its messages in `mail`."""
        self.records += ready.persist
        self.answers += ready.answers
        self.events += ready.events
        self.mail += [(sender, send) for send in ready.send]

    def deliver(self) -> None:
        """Deliver the messages that wait, not those that follow from them."""
        mail, self.mail = self.mail, []
        for sender, send in mail:
            self.deliver_one(sender, send)

    def deliver_one(self, sender: str, send: Send) -> None:
        sender_id = self.chain.get_node(sender)
        match send.message:
            case CountersignRequest() as request:
                self.take(self.witness_name, self.witness.countersign(sender_id, request))
            case CountersignResponse() as response:
                step = self.auctioneer.receive_countersignatures
                self.take(self.auctioneer_name, step(sender_id, response, now_ms=self.now_ms))
            case CloseNotice() as notice:
                step = self.witness.release(sender_id, notice, [self.term.auctioneer])
                self.take(self.witness_name, step)
            case ReleaseNotice() as notice:
                step = self.auctioneer.receive_release(sender_id, notice, now_ms=self.now_ms)
                self.take(self.auctioneer_name, step)
            case TranscriptNotice(transcript):
                if transcript not in self.transcripts:
                    self.transcripts.append(transcript)

    def deliver_all(self) -> None:
        """Deliver until nothing is left."""
        while self.mail:
            self.deliver()

    def clear(self, *bids: PendingBid) -> list[Allocation | Unmatched]:
        """Take bids through one round each way; give their outcomes in the order of the bids."""
        for bid in bids:
            self.submit(bid)
        self.deliver_all()
        return [self.get_outcome(bid) for bid in bids]

    # --- what came of it -------------------------------------------------------------------------

    def get_mail(self, kind: type) -> list[Any]:
        return [send.message for _, send in self.mail if isinstance(send.message, kind)]

    def get_answers(self, pending: PendingBid) -> list[object]:
        return [a.message for a in self.answers if a.bid_hash == pending.bid_hash]

    def is_acknowledged(self, pending: PendingBid) -> bool:
        return any(isinstance(a, BidAccepted) for a in self.get_answers(pending))

    def get_refusal(self, pending: PendingBid) -> Refusal:
        (refusal,) = [a for a in self.get_answers(pending) if isinstance(a, Refusal)]
        return refusal

    def get_outcome(self, pending: PendingBid) -> Allocation | Unmatched:
        """Check the bidder's way that the outcome holds, and give it."""
        (outcome,) = [a for a in self.get_answers(pending) if isinstance(a, RoundOutcome)]
        signed = pending.check_outcome(outcome, now_ms=self.now_ms, tolerance_ms=0)
        return signed.message

    def verify(
        self,
        transcript: Signed[Transcript] | None = None,
        *,
        books: TermBooks | None = None,
        params: MarketParams | None = None,
    ) -> ClearedRound:
        """Re-check a transcript, by default the last, as a node that followed the whole term."""
        followed = books if books is not None else TermBooks()
        return verify_transcript(
            transcript if transcript is not None else self.transcripts[-1],
            ledger=self.chain.state,
            chain_id=self.chain.chain_id,
            params=params if params is not None else self.params,
            decode_bid=decode_bid,
            get_reserved=followed.get_reserved,
        )

    def follow(self) -> TermBooks:
        """Keep the term's books as a verifier does: from its transcripts alone."""
        books = TermBooks()
        for transcript in self.transcripts:
            outcomes = derive_outcomes(self.verify(transcript, books=books), books, self.params)
            books.record_allocations(o for o in outcomes if isinstance(o, Allocation))
        return books

    def forge(self, **changes: Any) -> Signed[Transcript]:
        """Sign the last transcript again with changes, as a dishonest auctioneer would."""
        forged: Signed[Transcript] = self.chain.sign(
            self.auctioneer_name, replace(self.transcripts[-1].message, **changes)
        )
        return forged


def decode_bid(data: bytes) -> Bid:
    return wire.decode(Bid, data)
