"""Stuck bids: what is passed on, how often, and when an auctioneer counts as mute.

Source: docs/spec/election.md A1 to A8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas.client._bidding import PendingBid
from iemas.core.auction import (
    BidAccepted,
    BidAcknowledgement,
    BidWaiting,
    ForwardedAnswer,
    ForwardedBid,
    Refusal,
)
from iemas.core.errors import (
    InvalidBidError,
    InvalidSignatureError,
    NotAuctioneerError,
    RemoteProtocolError,
    UnfundedBidError,
)
from iemas.core.ready import Ready
from iemas.testing.builders import Bidder
from iemas.testing.chain import HUB, START_MS, LedgerChain, make_genesis
from node.stuck_bids import ANSWER_MS, MAX_PER_ACCOUNT, REPEAT_MS, StuckBids


class Helper:
    """A validator that requesters give their bids to, and a chain that changes terms."""

    def __init__(self) -> None:
        self.chain = LedgerChain(make_genesis())
        self.term = self.chain.state.get_term(HUB)
        others = [name for name in ("node-1", "node-2", "node-3") if not self._is_on_duty(name)]
        self.name = others[0]
        self.stuck = StuckBids(
            hub=HUB,
            own_id=self.chain.get_node(self.name),
            chain_id=self.chain.chain_id,
            get_state=lambda: self.chain.state,
        )
        self.stuck.follow_ledger()
        self.bidders: dict[str, Bidder] = {}
        self.now_ms = START_MS

    def _is_on_duty(self, name: str) -> bool:
        return self.chain.get_node(name) in (self.term.auctioneer, self.term.witness)

    def seal(self, account: str = "alice") -> PendingBid:
        bidder = self.bidders.setdefault(account, Bidder(self.chain, account))
        return bidder.seal(self.term)

    def submit(self, bid: PendingBid, *, stream: int = 1) -> Ready:
        assert self.stuck.is_for(bid.submission)
        return self.stuck.submit(stream, bid.submission, now_ms=self.now_ms)

    def answer(self, bid: PendingBid, message: Any, *, sender: str | None = None) -> Ready:
        node = self.term.auctioneer if sender is None else self.chain.get_node(sender)
        answer = ForwardedAnswer(bid.bid_hash, message)
        return self.stuck.receive_answer(node, answer, now_ms=self.now_ms)

    def pass_time(self, total_ms: int, *, step_ms: int = 50) -> Ready:
        ready = Ready()
        for _ in range(total_ms // step_ms):
            self.now_ms += step_ms
            ready += self.stuck.tick(now_ms=self.now_ms)
        return ready

    def make_acceptance(self, bid: PendingBid) -> BidAccepted:
        said = BidAcknowledgement(HUB, self.term.number, bid.bid_hash)
        signed = self.chain.sign(self.name, said)
        return BidAccepted(signed, signed)


@pytest.fixture
def helper() -> Helper:
    return Helper()


def get_passed_on(ready: Ready) -> list[bytes]:
    return [
        send.message.submission.sealed_bid.hash
        for send in ready.send
        if isinstance(send.message, ForwardedBid)
    ]


# --- passing on (A2, A3) -------------------------------------------------------------------------


def test_a_stuck_bid_goes_to_the_auctioneer_at_once_and_again(helper: Helper) -> None:
    bid = helper.seal()
    ready = helper.submit(bid)
    assert [(s.to, s.message) for s in ready.send] == [
        (helper.term.auctioneer, ForwardedBid(bid.submission))
    ]
    assert ready.wake_at_ms == START_MS + REPEAT_MS
    assert len(get_passed_on(helper.pass_time(5 * REPEAT_MS))) == 5


def test_only_anothers_bids_of_the_current_term_are_passed_on(helper: Helper) -> None:
    sealed_bid = helper.seal().submission.sealed_bid
    later = helper.chain.sign("alice", replace(sealed_bid.message, term=1))
    assert not helper.stuck.is_for(replace(helper.seal().submission, sealed_bid=later))
    own = StuckBids(
        hub=HUB,
        own_id=helper.term.auctioneer,
        chain_id=helper.chain.chain_id,
        get_state=lambda: helper.chain.state,
    )
    own.follow_ledger()
    assert not own.is_for(helper.seal().submission)


def test_one_bid_at_a_time_asks_the_auctioneer(helper: Helper) -> None:
    first, second = helper.seal(), helper.seal()
    helper.submit(first)
    assert get_passed_on(helper.submit(second, stream=2)) == []
    assert set(get_passed_on(helper.pass_time(3 * REPEAT_MS))) == {first.bid_hash}
    assert get_passed_on(helper.answer(first, BidWaiting())) == [second.bid_hash]


def test_a_bid_that_its_account_did_not_sign_is_not_passed_on(helper: Helper) -> None:
    submission = helper.seal().submission
    forged = helper.chain.sign("bob", submission.sealed_bid.message)
    with pytest.raises(InvalidSignatureError):
        helper.stuck.submit(1, replace(submission, sealed_bid=forged), now_ms=START_MS)
    assert get_passed_on(helper.pass_time(ANSWER_MS)) == []


def test_a_bid_of_an_account_without_allowance_is_not_passed_on(helper: Helper) -> None:
    with pytest.raises(UnfundedBidError):
        helper.submit(helper.seal("node-1"))
    assert get_passed_on(helper.pass_time(ANSWER_MS)) == []


def test_a_bid_with_another_block_chain_is_not_passed_on(helper: Helper) -> None:
    submission = replace(helper.seal().submission, chain_ciphertext=b"another")
    with pytest.raises(InvalidBidError):
        helper.stuck.submit(1, submission, now_ms=START_MS)


def test_few_bids_of_an_account_are_passed_on_at_once(helper: Helper) -> None:
    bids = [helper.seal() for _ in range(MAX_PER_ACCOUNT)]
    for bid in bids:
        helper.submit(bid)
    with pytest.raises(InvalidBidError):
        helper.submit(helper.seal())
    helper.submit(helper.seal("bob"))
    helper.answer(bids[0], BidWaiting())
    helper.submit(helper.seal())


# --- answers (A4) --------------------------------------------------------------------------------


def test_answers_go_back_to_every_stream_that_gave_the_bid(helper: Helper) -> None:
    bid = helper.seal()
    helper.submit(bid, stream=1)
    helper.submit(bid, stream=2)
    accepted = helper.make_acceptance(bid)
    ready = helper.answer(bid, accepted)
    assert [(a.stream, a.bid_hash, a.message) for a in ready.answers] == [
        (1, bid.bid_hash, accepted),
        (2, bid.bid_hash, accepted),
    ]


def test_that_a_bid_waits_for_its_witness_is_an_answer_but_nothing_for_the_requester(
    helper: Helper,
) -> None:
    bid = helper.seal()
    helper.submit(bid)
    assert not helper.answer(bid, BidWaiting()).answers
    helper.pass_time(3 * ANSWER_MS)
    assert helper.stuck.mute is None
    assert helper.answer(bid, helper.make_acceptance(bid)).answers


def test_a_refusal_ends_the_bid(helper: Helper) -> None:
    bid = helper.seal()
    helper.submit(bid)
    (answer,) = helper.answer(bid, Refusal("InvalidBidError", "no")).answers
    assert answer.message == Refusal("InvalidBidError", "no")
    assert get_passed_on(helper.pass_time(2 * ANSWER_MS)) == []
    assert helper.stuck.mute is None


def test_only_the_auctioneer_answers(helper: Helper) -> None:
    bid = helper.seal()
    helper.submit(bid)
    with pytest.raises(RemoteProtocolError):
        helper.answer(bid, BidWaiting(), sender="bob")
    helper.pass_time(ANSWER_MS)
    assert helper.stuck.mute == helper.term.auctioneer


# --- mute auctioneers (A5) -----------------------------------------------------------------------


def test_an_auctioneer_that_answers_nothing_is_mute(helper: Helper) -> None:
    bids = [helper.seal(), helper.seal("bob")]
    for bid in bids:
        helper.submit(bid)
    helper.pass_time(ANSWER_MS - 50)
    assert helper.stuck.mute is None
    ready = helper.pass_time(50)
    assert helper.stuck.mute == helper.term.auctioneer
    assert [event.name for event in ready.events] == ["auctioneer_mute"]
    refused = [(a.bid_hash, a.message.error) for a in ready.answers]
    assert refused == [(bid.bid_hash, "NotAuctioneerError") for bid in bids]


def test_a_mute_auctioneer_is_not_asked_again(helper: Helper) -> None:
    helper.submit(helper.seal())
    helper.pass_time(ANSWER_MS)
    with pytest.raises(NotAuctioneerError):
        helper.submit(helper.seal())


def test_that_the_lease_has_run_out_is_no_answer(helper: Helper) -> None:
    bid = helper.seal()
    helper.submit(bid)
    for _ in range(ANSWER_MS // 50):
        helper.answer(bid, Refusal("LeaseExpiredError", "cut off"))
        helper.pass_time(50)
    assert helper.stuck.mute == helper.term.auctioneer


def test_each_bid_has_the_whole_time_to_be_answered(helper: Helper) -> None:
    bids = [helper.seal(), helper.seal("bob")]
    for bid in bids:
        helper.submit(bid)
    helper.pass_time(ANSWER_MS - 50)
    helper.answer(bids[0], BidWaiting())
    helper.pass_time(ANSWER_MS - 50)
    assert helper.stuck.mute is None


def test_an_answer_that_is_late_takes_the_word_back(helper: Helper) -> None:
    taken, unanswered = helper.seal(), helper.seal("bob")
    helper.submit(taken)
    helper.answer(taken, BidWaiting())
    helper.submit(unanswered)
    helper.pass_time(ANSWER_MS)
    assert helper.stuck.mute is not None
    helper.answer(taken, helper.make_acceptance(taken))
    assert helper.stuck.mute is None


# --- terms (A6) ----------------------------------------------------------------------------------


def test_bids_of_a_term_that_is_over_are_sent_on(helper: Helper) -> None:
    taken, waiting = helper.seal(), helper.seal("bob")
    for bid in (taken, waiting):
        helper.submit(bid)
    helper.answer(taken, BidWaiting())
    helper.chain.end_term()
    ready = helper.stuck.follow_ledger()
    assert [a.bid_hash for a in ready.answers] == [waiting.bid_hash]
    assert helper.answer(taken, helper.make_acceptance(taken)).answers
    helper.pass_time(2 * ANSWER_MS)
    assert helper.stuck.mute is None
