"""What an auctioneer signs with and without its lease, and bids that come on several ways.

Source: docs/spec/election.md L3, A4; docs/spec/round.md R13, R14.
"""

from __future__ import annotations

import pytest

from iemas.core.auction import (
    Allocation,
    BidAccepted,
    BidWaiting,
    CloseNotice,
    ForwardedAnswer,
    RoundOutcome,
)
from iemas.core.errors import InvalidSignatureError, LeaseExpiredError
from iemas.core.types import NodeId
from tests.unit.auctioneer.round_bench import RoundBench

HELPER = NodeId(bytes([9]) * 32)


def tick(bench: RoundBench, *, after_ms: int = 0) -> None:
    bench.now_ms += after_ms
    bench.take(bench.auctioneer_name, bench.auctioneer.tick(now_ms=bench.now_ms))


def get_forwarded(bench: RoundBench) -> list[object]:
    """Give what a validator is told that passed a bid on."""
    return [
        send.message.answer
        for _, send in bench.mail
        if send.to == HELPER and isinstance(send.message, ForwardedAnswer)
    ]


# --- the lease -----------------------------------------------------------------------------------


def test_without_a_lease_bids_are_sent_elsewhere(bench: RoundBench) -> None:
    bench.lease.is_held = False
    with pytest.raises(LeaseExpiredError):
        bench.submit(bench.seal())


def test_who_loses_its_lease_says_so_and_sends_on_what_is_not_in(bench: RoundBench) -> None:
    tick(bench)
    bid = bench.seal()
    bench.submit(bid)
    bench.lease.is_held = False
    tick(bench)
    assert bench.get_refusal(bid).error == "LeaseExpiredError"
    assert [event.name for event in bench.events] == ["lease_gained", "lease_expired"]
    bench.deliver_all()
    assert not bench.is_acknowledged(bid)


def test_without_a_lease_nothing_is_acknowledged(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.lease.is_held = False
    bench.deliver_all()
    assert bench.get_answers(bid) == []
    bench.lease.is_held = True
    tick(bench)
    assert bench.is_acknowledged(bid)


def test_without_a_lease_no_round_is_closed(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver()
    answers, bench.mail = bench.mail, []
    bench.submit(bench.seal("bob"))  # its way to the witness holds the round up for a while
    bench.mail = answers
    bench.deliver()
    assert bench.is_acknowledged(bid)
    bench.lease.is_held = False
    tick(bench, after_ms=100)
    assert not bench.get_mail(CloseNotice)
    bench.lease.is_held = True
    tick(bench)
    assert bench.get_mail(CloseNotice)


def test_without_a_lease_no_round_is_cleared_until_it_is_back(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    for _ in range(2):
        bench.deliver()
    assert bench.get_mail(CloseNotice)
    bench.lease.is_held = False
    bench.deliver_all()
    assert bench.transcripts == []
    bench.lease.is_held = True
    tick(bench, after_ms=600)
    bench.deliver_all()
    assert isinstance(bench.get_outcome(bid), Allocation)


def test_what_was_acknowledged_is_cleared_after_the_term_without_a_lease(
    bench: RoundBench,
) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver()
    bench.deliver()
    bench.take(bench.auctioneer_name, bench.auctioneer.end_term(now_ms=bench.now_ms))
    bench.lease.is_held = False
    bench.deliver_all()
    assert isinstance(bench.get_outcome(bid), Allocation)


# --- bids that come again ------------------------------------------------------------------------


def submit_by(bench: RoundBench, route: int | NodeId, bid: object) -> None:
    ready = bench.auctioneer.submit_bid(route, bid.submission, now_ms=bench.now_ms)  # type: ignore[attr-defined]
    bench.take(bench.auctioneer_name, ready)


def test_a_bid_that_comes_on_two_ways_is_taken_once_and_answered_on_both(
    bench: RoundBench,
) -> None:
    bid = bench.seal()
    bench.submit(bid)
    submit_by(bench, HELPER, bid)
    assert get_forwarded(bench) == [BidWaiting()]
    submit_by(bench, 2, bid)
    answers: list[object] = []
    while bench.mail:
        answers += get_forwarded(bench)
        bench.deliver()
    assert [type(answer) for answer in answers] == [BidWaiting, BidAccepted, RoundOutcome]
    for stream in (1, 2):
        own = [answer.message for answer in bench.answers if answer.stream == stream]
        assert [type(answer) for answer in own] == [BidAccepted, RoundOutcome]
    assert len(bench.transcripts) == 1
    assert len(bench.transcripts[0].message.tasks) == 1


def test_a_bid_that_was_acknowledged_is_acknowledged_again(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver()
    bench.deliver()
    submit_by(bench, HELPER, bid)
    (answer,) = get_forwarded(bench)
    assert isinstance(answer, BidAccepted)
    bid.check_acceptance(answer)


def test_a_bid_that_was_cleared_gets_its_outcome_again_even_after_the_term(
    bench: RoundBench,
) -> None:
    bid = bench.seal()
    (allocation,) = bench.clear(bid)
    bench.auctioneer.end_term(now_ms=bench.now_ms)
    submit_by(bench, HELPER, bid)
    (answer,) = get_forwarded(bench)
    assert isinstance(answer, RoundOutcome)
    checked = bid.check_outcome(answer, now_ms=bench.now_ms, tolerance_ms=0)
    assert checked.message == allocation


def test_a_repeated_bid_with_a_bad_signature_gets_no_answer(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    other = bench.seal("bob")
    forged = other.submission.sealed_bid.envelope
    sealed_bid = bid.submission.sealed_bid
    stolen = type(sealed_bid)(sealed_bid.message, forged)
    with pytest.raises(InvalidSignatureError):
        bench.auctioneer.submit_bid(
            HELPER,
            type(bid.submission)(stolen, bid.submission.chain_ciphertext),
            now_ms=bench.now_ms,
        )
