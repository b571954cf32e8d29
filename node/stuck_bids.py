"""Stuck bids: a validator passes them on to the auctioneer, and finds out whether it answers.

A requester whose bid gets no answer gives the very same sealed bid to other validators. Each asks
the auctioneer with it, one bid at a time and again at short intervals; what it says goes back to
the requester. An auctioneer that leaves a bid unanswered for `ANSWER_MS` is *mute*: `node.absence`
votes it absent. Only bids that could be taken in are passed on, few of an account, so that nobody
can wear an auctioneer out or accuse it with bids that it is right not to answer. A pure state
machine: docs/spec/election.md A1 to A8. Source: design §4 step 2, §7 (election).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iemas.core.auction import (
    BidAccepted,
    BidSubmission,
    BidWaiting,
    ForwardedAnswer,
    ForwardedBid,
    Refusal,
    RoundOutcome,
)
from iemas.core.election import Term
from iemas.core.encoding import compute_hash
from iemas.core.envelope import verify_signed
from iemas.core.errors import (
    InvalidBidError,
    LeaseExpiredError,
    NotAuctioneerError,
    RemoteProtocolError,
    UnfundedBidError,
)
from iemas.core.ready import Answer, Event, Ready, Send
from iemas.core.types import AccountId, HubId, NodeId, short_id
from iemas.ledger.state import LedgerState

ANSWER_MS = 1_000
"""An auctioneer that answers a bid with nothing for so long is mute."""

REPEAT_MS = 100
MAX_STUCK = 64
MAX_PER_ACCOUNT = 4
MAX_STREAMS = 4


@dataclass(slots=True)
class _StuckBid:
    """A bid given to this validator, whom its answers go to, and whether the auctioneer has it."""

    submission: BidSubmission
    streams: list[int]
    is_taken: bool = False

    @property
    def hash(self) -> bytes:
        return self.submission.sealed_bid.hash

    @property
    def account(self) -> bytes:
        return self.submission.sealed_bid.message.account


class StuckBids:
    """The bids that one validator passes on in one hub's current term."""

    def __init__(
        self,
        *,
        hub: HubId,
        own_id: NodeId,
        chain_id: str,
        get_state: Callable[[], LedgerState],
    ) -> None:
        self._hub = hub
        self._own_id = own_id
        self._chain_id = chain_id
        self._get_state = get_state
        self._term: Term | None = None
        self._bids: dict[bytes, _StuckBid] = {}
        self._asked_at_ms: int | None = None  # since when the first that is not taken is asked for
        self._repeat_at_ms = 0
        self._is_mute = False

    @property
    def mute(self) -> NodeId | None:
        """The current term's auctioneer if it left a bid unanswered."""
        return self._term.auctioneer if self._is_mute and self._term is not None else None

    def is_for(self, submission: BidSubmission) -> bool:
        """Tell whether a bid is one to pass on: another's to take in, in the current term."""
        term, sealed = self._term, submission.sealed_bid.message
        return (
            term is not None
            and (sealed.hub, sealed.term) == (term.hub, term.number)
            and term.auctioneer != self._own_id
            and self._get_state().is_live(self._hub, self._own_id)
        )

    def submit(self, stream: int, submission: BidSubmission, *, now_ms: int) -> Ready:
        """Take a stuck bid to pass on.

        Raises: InvalidSignatureError, InvalidBidError, UnfundedBidError, NotAuctioneerError if the
            auctioneer is known to be mute.
        """
        sealed = submission.sealed_bid.message
        verify_signed(submission.sealed_bid, self._chain_id, expected_signer=sealed.account)
        if self._is_mute:
            raise NotAuctioneerError(_MUTE_TEXT, hint=None)
        known = self._bids.get(submission.sealed_bid.hash)
        if known is not None:
            if stream not in known.streams:
                known.streams = [*known.streams, stream][-MAX_STREAMS:]
            return self._ask_again(known, now_ms) if known.is_taken else Ready()
        if compute_hash(submission.chain_ciphertext) != sealed.chain_hash:
            raise InvalidBidError("the block chain is not the one that the bid commits to")
        account = AccountId(sealed.account)
        if self._get_state().get_allowance(self._hub, account, sealed.term) <= 0:
            raise UnfundedBidError("the account has no allowance in this term")
        self._make_room(account)
        self._bids[submission.sealed_bid.hash] = _StuckBid(submission, [stream])
        return self.tick(now_ms=now_ms)

    def _make_room(self, account: AccountId) -> None:
        """Forget the account's oldest bid that was answered. Raises: InvalidBidError."""
        own = [bid for bid in self._bids.values() if bid.account == account]
        if len(own) < MAX_PER_ACCOUNT and len(self._bids) < MAX_STUCK:
            return
        for bid in own:
            if bid.is_taken:
                del self._bids[bid.hash]
                return
        raise InvalidBidError(
            f"at most {MAX_PER_ACCOUNT} bids of an account and {MAX_STUCK} in all are passed on "
            "at once; try again shortly"
        )

    def _ask_again(self, bid: _StuckBid, now_ms: int) -> Ready:
        """Ask for the answer to a taken bid again, as soon as it is its turn."""
        bid.is_taken = False
        del self._bids[bid.hash]
        self._bids[bid.hash] = bid
        return self.tick(now_ms=now_ms)

    # --- asking ------------------------------------------------------------------------------

    def tick(self, *, now_ms: int) -> Ready:
        """Ask with the first bid that is not taken, or give the auctioneer up."""
        first = next((bid for bid in self._bids.values() if not bid.is_taken), None)
        if first is None or self._term is None:
            self._asked_at_ms = None
            return Ready()
        if self._asked_at_ms is None or now_ms < self._asked_at_ms:
            self._asked_at_ms = self._repeat_at_ms = now_ms
        if now_ms >= self._asked_at_ms + ANSWER_MS:
            return self._give_up()
        ready = Ready()
        if now_ms >= self._repeat_at_ms:
            self._repeat_at_ms = now_ms + REPEAT_MS
            ready = Ready(send=(Send(self._term.auctioneer, ForwardedBid(first.submission)),))
        wake_at_ms = min(self._repeat_at_ms, self._asked_at_ms + ANSWER_MS)
        return ready + Ready(wake_at_ms=wake_at_ms)

    def _give_up(self) -> Ready:
        """Take the auctioneer for mute, and send all bids on."""
        self._is_mute, self._asked_at_ms = True, None
        auctioneer = self._term.auctioneer if self._term is not None else b""
        event = Event("auctioneer_mute", {"peer": short_id(auctioneer)})
        return Ready(events=(event,)) + self._refuse_all(_MUTE_TEXT)

    def _refuse_all(self, text: str) -> Ready:
        """Refuse the bids that are not taken; the others may still have their outcome."""
        ready = Ready()
        for bid in [bid for bid in self._bids.values() if not bid.is_taken]:
            del self._bids[bid.hash]
            ready += _answer(bid, Refusal(NotAuctioneerError.__name__, text))
        return ready

    def receive_answer(self, sender: NodeId, answer: ForwardedAnswer, *, now_ms: int) -> Ready:
        """Pass an answer on to the requester, who checks it, and go on with the next bid.

        That the auctioneer has no lease is no answer: it may be cut off from everyone else.
        Raises: RemoteProtocolError if the sender is not the bid's auctioneer.
        """
        bid = self._bids.get(answer.bid_hash)
        if bid is None:
            return Ready()
        number = bid.submission.sealed_bid.message.term
        term = self._get_state().get_term_by_number(self._hub, number)
        if term is None:
            return Ready()
        if term.auctioneer != sender:
            raise RemoteProtocolError(f"{short_id(sender)} is not the auctioneer of the bid's term")
        message = answer.answer
        if isinstance(message, Refusal) and message.error == LeaseExpiredError.__name__:
            return Ready()
        if not bid.is_taken:
            bid.is_taken, self._asked_at_ms = True, None
        if self._term is not None and number == self._term.number:
            self._is_mute = False
        ready = Ready()
        if not isinstance(message, BidWaiting):
            ready = _answer(bid, message)
        if isinstance(message, Refusal | RoundOutcome):
            del self._bids[bid.hash]
        return ready + self.tick(now_ms=now_ms)

    # --- terms -------------------------------------------------------------------------------

    def follow_ledger(self) -> Ready:
        """Send on the bids of a term that is over; what was taken may still be cleared."""
        term = self._get_state().get_term(self._hub)
        if self._term is not None and term.number == self._term.number:
            return Ready()
        self._term, self._is_mute, self._asked_at_ms = term, False, None
        ready = self._refuse_all("the term is over; send the bid to the next auctioneer")
        oldest = term.number - 1
        for bid in list(self._bids.values()):
            if bid.submission.sealed_bid.message.term < oldest:
                del self._bids[bid.hash]
        return ready


_MUTE_TEXT = "the auctioneer does not answer and is voted absent; ask any node who is the next"


def _answer(bid: _StuckBid, message: BidAccepted | RoundOutcome | Refusal) -> Ready:
    return Ready(answers=tuple(Answer(stream, bid.hash, message) for stream in bid.streams))
