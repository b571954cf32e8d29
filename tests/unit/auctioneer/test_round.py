"""Rounds: sealed, countersigned, closed, released, cleared. Source: docs/spec/round.md §1, §2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.core.auction import (
    Allocation,
    BidAcknowledgement,
    BidSubmission,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ReleaseNotice,
    RoundClose,
    SealedBid,
    ShareRelease,
    TranscriptNotice,
    Unmatched,
)
from iemas.core.encoding import compute_hash
from iemas.core.errors import (
    DuplicateBidError,
    InvalidBidError,
    InvalidSignatureError,
    NotAuctioneerError,
    RemoteProtocolError,
    UnfundedBidError,
)
from iemas.core.merkle import compute_root
from iemas.core.params import MarketParams
from iemas.core.peer_scores import CROSSING_POINTS, get_points
from iemas.core.ready import RecordKind
from iemas.core.sealing import combine_shares, encrypt_chain, open_share, seal_share
from iemas.core.types import UnmatchedReason
from iemas.testing.builders import BID_PRICES, make_bid
from iemas.testing.chain import make_identity
from tests.unit.auctioneer.round_bench import RoundBench


def resign(bench: RoundBench, submission: BidSubmission, **changes: object) -> BidSubmission:
    """Change a sealed bid and have its own account sign it again."""
    sealed: SealedBid = replace(submission.sealed_bid.message, **changes)
    return replace(submission, sealed_bid=bench.chain.sign("alice", sealed))


def submit_changed(bench: RoundBench, **changes: object) -> None:
    submission = resign(bench, bench.seal().submission, **changes)
    bench.auctioneer.submit_bid(1, submission, now_ms=bench.now_ms)


# --- the life of a bid (round.md R1 to R6; design §4 steps 2 to 5) -------------------------------


def test_a_bid_becomes_an_allocation(bench: RoundBench) -> None:
    bid = bench.seal()
    (outcome,) = bench.clear(bid)
    assert isinstance(outcome, Allocation)
    assert outcome.account == bid.submission.sealed_bid.message.account


def test_a_bid_goes_to_the_witness_first(bench: RoundBench) -> None:
    bid = bench.seal()
    ready = bench.submit(bid)
    (send,) = ready.send
    assert send.to == bench.term.witness
    assert send.message == CountersignRequest((bid.submission.sealed_bid,))
    assert not ready.answers


def test_the_block_chain_does_not_go_to_the_witness(bench: RoundBench) -> None:
    bid = bench.seal(chain=b"8 bytes!")
    (send,) = bench.submit(bid).send
    assert bid.submission.chain_ciphertext not in repr(send.message).encode()


def test_a_countersigned_bid_is_acknowledged_by_both(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver()
    bench.deliver()
    (accepted,) = bench.get_answers(bid)
    bid.check_acceptance(accepted)


def test_a_close_is_durable_before_it_is_sent(bench: RoundBench) -> None:
    """What is persisted and what is sent come in one Ready; the driver persists first."""
    bench.submit(bench.seal())
    bench.deliver()
    bench.deliver()
    (record,) = [r for r in bench.records if r.kind is RecordKind.CLOSED_ROUND]
    (notice,) = bench.get_mail(CloseNotice)
    assert record.value == notice.close


def test_a_release_is_durable_before_it_is_sent(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    for _ in range(3):
        bench.deliver()
    (record,) = [r for r in bench.records if r.kind is RecordKind.RELEASED_CLOSE]
    (notice,) = bench.get_mail(ReleaseNotice)
    assert record.value == notice.release


def test_the_close_commits_to_the_acknowledged_bids_in_order(bench: RoundBench) -> None:
    bids = [bench.seal(), bench.seal("bob"), bench.seal()]
    for bid in bids:
        bench.submit(bid)
    bench.deliver_all()
    close = bench.transcripts[-1].message.close.message
    assert close.bid_count == 3
    assert close.bids_root == compute_root([bid.bid_hash for bid in bids])


def test_the_transcript_goes_to_every_receiver(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    for _ in range(4):
        bench.deliver()
    sends = [send for _, send in bench.mail if isinstance(send.message, TranscriptNotice)]
    assert [send.to for send in sends] == list(bench.market.get_receivers())


def test_nothing_opens_before_the_close(bench: RoundBench) -> None:
    """Design §6, hiding: one holder's share alone does not decrypt a bid."""
    bid = bench.seal()
    sealed = bid.submission.sealed_bid.message
    own_key = make_identity(bench.auctioneer_name).derive_hpke_key()
    with pytest.raises(InvalidBidError):
        open_share(sealed.witness_seal, own_key, b"", sealed.witness_share_hash)


def test_transcripts_of_a_term_are_chained(bench: RoundBench) -> None:
    bench.clear(bench.seal())
    bench.clear(bench.seal())
    first, second = bench.transcripts
    assert first.message.previous_hash == bytes(32)
    assert second.message.previous_hash == first.hash
    assert bench.auctioneer.transcript_hashes == [first.hash, second.hash]


def test_slots_given_away_are_taken_in_the_next_round() -> None:
    bench = RoundBench()
    bench.add_provider("node-1", slots=1)
    assert isinstance(bench.clear(bench.seal())[0], Allocation)
    assert isinstance(bench.clear(bench.seal())[0], Unmatched)


# --- when a round closes (round.md R4; design §4 step 3) -----------------------------------------


def test_an_idle_market_closes_at_once(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver_all()
    assert bench.transcripts[-1].message.close.message.closed_at_ms == bench.now_ms


def test_bids_that_come_while_a_round_is_open_share_the_next(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    bench.deliver()
    bench.deliver()
    (first_close,) = bench.mail
    bench.mail = []
    for bid in [bench.seal(), bench.seal("bob")]:
        bench.submit(bid)
    bench.deliver_all()
    assert not bench.transcripts
    bench.deliver_one(*first_close)
    bench.deliver_all()
    assert [t.message.close.message.bid_count for t in bench.transcripts] == [1, 2]


def test_a_round_waits_for_bids_in_flight_within_the_window(bench: RoundBench) -> None:
    first, second = bench.seal(), bench.seal()
    bench.submit(first)
    bench.deliver()
    bench.submit(second)
    (answer, in_flight) = bench.mail
    bench.mail = []
    bench.deliver_one(*answer)
    assert bench.is_acknowledged(first)
    assert not bench.get_mail(CloseNotice)
    bench.mail = [in_flight]
    bench.deliver_all()
    assert bench.transcripts[-1].message.close.message.bid_count == 2


def test_the_window_bounds_the_wait(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    bench.deliver()
    bench.submit(bench.seal())
    (answer, _) = bench.mail
    bench.mail = []
    bench.deliver_one(*answer)
    last_ms = bench.now_ms + bench.params.round_window_ms
    assert bench.auctioneer.tick(now_ms=last_ms - 1).wake_at_ms == last_ms
    (send,) = bench.auctioneer.tick(now_ms=last_ms).send
    assert send.message.close.message.bid_count == 1


def test_a_round_takes_at_most_so_many_bids() -> None:
    bench = RoundBench(params=MarketParams(round_max_bids=2))
    bench.add_provider("node-1")
    bids = [bench.seal() for _ in range(3)]
    for bid in bids:
        bench.submit(bid)
    bench.deliver_all()
    assert [t.message.close.message.bid_count for t in bench.transcripts] == [2, 1]


def test_every_acknowledged_bid_is_in_a_close(bench: RoundBench) -> None:
    """Design §6, inclusion."""
    bids = [bench.seal(account) for account in ("alice", "bob", "alice", "bob")]
    for bid in bids:
        bench.submit(bid)
        bench.deliver()
    bench.deliver_all()
    closed = {task.sealed_bid.hash for signed in bench.transcripts for task in signed.message.tasks}
    assert closed == {bid.bid_hash for bid in bids if bench.is_acknowledged(bid)}
    assert len(closed) == 4


# --- refusals (round.md R2) ----------------------------------------------------------------------


def test_a_bid_of_another_term_is_refused(bench: RoundBench) -> None:
    with pytest.raises(NotAuctioneerError):
        submit_changed(bench, term=bench.term.number + 1)


def test_a_bid_of_another_hub_is_refused(bench: RoundBench) -> None:
    with pytest.raises(NotAuctioneerError):
        submit_changed(bench, hub="another")


def test_a_bid_that_its_account_did_not_sign_is_refused(bench: RoundBench) -> None:
    submission = bench.seal().submission
    forged = replace(submission, sealed_bid=bench.chain.sign("bob", submission.sealed_bid.message))
    with pytest.raises(InvalidSignatureError):
        bench.auctioneer.submit_bid(1, forged, now_ms=bench.now_ms)


def test_a_nonce_is_used_once(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    sealed_bid = bid.submission.sealed_bid
    again = bench.chain.sign("alice", replace(sealed_bid.message, ciphertext=b"another"))
    with pytest.raises(DuplicateBidError):
        bench.submit(replace(bid, submission=replace(bid.submission, sealed_bid=again)))


def test_a_nonce_below_the_last_is_refused(bench: RoundBench) -> None:
    first, second = bench.seal(), bench.seal()
    bench.submit(second)
    with pytest.raises(DuplicateBidError):
        bench.submit(first)


def test_channels_count_their_own_nonces(bench: RoundBench) -> None:
    bench.clear(bench.seal(channel=1), bench.seal(channel=2))
    assert [bid.message.channel for bid in bench.auctioneer.books.get_last_bids()] == [1, 2]


def test_an_account_without_allowance_is_refused(bench: RoundBench) -> None:
    with pytest.raises(UnfundedBidError) as error:
        bench.submit(bench.seal("stranger"))
    assert error.value.operands["allowance_micros"] == 0


def test_another_block_chain_than_committed_is_refused(bench: RoundBench) -> None:
    submission = replace(bench.seal().submission, chain_ciphertext=b"another")
    with pytest.raises(InvalidBidError):
        bench.auctioneer.submit_bid(1, submission, now_ms=bench.now_ms)


@pytest.mark.parametrize("seal", [b"", bytes(32), bytes(80), b"x" * 80, b"\xff" * 256])
def test_a_seal_that_does_not_open_is_refused(bench: RoundBench, seal: bytes) -> None:
    with pytest.raises(InvalidBidError):
        submit_changed(bench, auctioneer_seal=seal)


def test_another_share_than_committed_is_refused(bench: RoundBench) -> None:
    with pytest.raises(InvalidBidError):
        submit_changed(bench, auctioneer_share_hash=bytes(32))


def test_a_seal_is_bound_to_its_bid(bench: RoundBench) -> None:
    """A share sealed for one nonce cannot be used under another."""
    with pytest.raises(InvalidBidError):
        submit_changed(bench, nonce=9)


def test_a_refused_bid_leaves_its_nonce_free(bench: RoundBench) -> None:
    bid = bench.seal()
    broken = resign(bench, bid.submission, auctioneer_seal=b"")
    with pytest.raises(InvalidBidError):
        bench.auctioneer.submit_bid(1, broken, now_ms=bench.now_ms)
    assert isinstance(bench.clear(bid)[0], Allocation)


# --- bids that open to nothing (round.md R7) -----------------------------------------------------


def test_a_bid_that_does_not_decrypt_is_unmatched(bench: RoundBench) -> None:
    bid = bench.seal()
    spoiled = resign(bench, bid.submission, ciphertext=b"no ciphertext of ours")
    bid = replace(bid, submission=spoiled)
    (outcome,) = bench.clear(bid)
    assert isinstance(outcome, Unmatched)
    assert outcome.reason is UnmatchedReason.UNDECRYPTABLE


def test_a_spoiled_bid_does_not_hold_up_the_others(bench: RoundBench) -> None:
    spoiled = bench.seal()
    spoiled = replace(spoiled, submission=resign(bench, spoiled.submission, ciphertext=b""))
    outcomes = bench.clear(spoiled, bench.seal("bob"))
    assert [type(outcome) for outcome in outcomes] == [Unmatched, Allocation]


@pytest.mark.parametrize("chain", [b"5 byt", b"12 bytes are", b"x" * 15])
def test_a_chain_of_broken_keys_counts_as_empty(bench: RoundBench, chain: bytes) -> None:
    bench.add_provider("node-1", blocks=bytes(8))
    outcomes = bench.clear(bench.seal(chain=chain), bench.seal("bob"))
    assert all(isinstance(outcome, Allocation) for outcome in outcomes)
    assert bench.transcripts[-1].message.tasks[0].matched_blocks == (0, 0)


def test_a_chain_that_does_not_decrypt_counts_as_empty(bench: RoundBench) -> None:
    bid = bench.seal()
    other = encrypt_chain(combine_shares(bytes(32), bytes(32)), b"8 bytes!", b"elsewhere")
    changed = resign(bench, bid.submission, chain_hash=compute_hash(other))
    bid = replace(bid, submission=replace(changed, chain_ciphertext=other))
    assert isinstance(bench.clear(bid)[0], Allocation)


# --- the term's end (round.md R9) ----------------------------------------------------------------


def test_acknowledged_bids_are_cleared_after_the_term(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver()
    bench.deliver()
    bench.take(bench.auctioneer_name, bench.auctioneer.end_term(now_ms=bench.now_ms))
    assert not bench.auctioneer.settled
    bench.deliver_all()
    assert isinstance(bench.get_outcome(bid), Allocation)
    assert bench.auctioneer.settled


def test_bids_not_yet_in_are_sent_on_to_the_next_auctioneer(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.take(bench.auctioneer_name, bench.auctioneer.end_term(now_ms=bench.now_ms))
    assert bench.get_refusal(bid).error == "NotAuctioneerError"
    bench.deliver_all()
    assert not bench.is_acknowledged(bid)
    assert bench.auctioneer.settled


def test_no_bid_is_taken_after_the_term(bench: RoundBench) -> None:
    bench.auctioneer.end_term(now_ms=bench.now_ms)
    with pytest.raises(NotAuctioneerError):
        bench.submit(bench.seal())


# --- the witness (round.md R5, R6; design §6) ----------------------------------------------------


def test_a_refusal_of_the_witness_reaches_the_bidder(bench: RoundBench) -> None:
    bid = bench.seal()
    bid = replace(bid, submission=resign(bench, bid.submission, witness_seal=bytes(80)))
    bench.submit(bid)
    bench.deliver_all()
    assert "witness refused" in bench.get_refusal(bid).message
    assert not bench.transcripts


def test_the_witness_refuses_a_share_that_was_not_committed_to(bench: RoundBench) -> None:
    bid = bench.seal()
    key = make_identity(bench.witness_name).derive_hpke_key().public_key().public_bytes_raw()
    seal = seal_share(bytes(32), key, b"")
    bid = replace(bid, submission=resign(bench, bid.submission, witness_seal=seal))
    bench.submit(bid)
    bench.deliver_all()
    assert bench.get_refusal(bid).error == "InvalidBidError"


def test_the_witness_countersigns_for_the_auctioneer_only(bench: RoundBench) -> None:
    request = CountersignRequest((bench.seal().submission.sealed_bid,))
    with pytest.raises(RemoteProtocolError):
        bench.witness.countersign(bench.chain.get_node("bob"), request)


def test_who_witnesses_another_term_refuses(bench: RoundBench) -> None:
    sealed = bench.seal().submission.sealed_bid
    other = bench.chain.sign("alice", replace(sealed.message, term=7))
    ready = bench.witness.countersign(bench.term.auctioneer, CountersignRequest((other,)))
    assert ready.send[0].message.refused == (other.hash,)


def close_over(bench: RoundBench, hashes: tuple[bytes, ...], **changes: object) -> CloseNotice:
    """Sign a close over these bids, as the term's auctioneer could."""
    close = RoundClose(
        bench.term.hub, bench.term.number, 0, compute_root(hashes), len(hashes), bench.now_ms, True
    )
    return CloseNotice(bench.chain.sign(bench.auctioneer_name, replace(close, **changes)), hashes)


def countersign(bench: RoundBench, *bids: object) -> tuple[bytes, ...]:
    request = CountersignRequest(tuple(bid.submission.sealed_bid for bid in bids))
    bench.witness.countersign(bench.term.auctioneer, request)
    return tuple(bid.hash for bid in request.bids)


def release(bench: RoundBench, notice: CloseNotice) -> ShareRelease | None:
    ready = bench.witness.release(bench.term.auctioneer, notice, [bench.term.auctioneer])
    return ready.send[0].message.release.message if ready.send else None


def test_a_close_opens_exactly_its_bids(bench: RoundBench) -> None:
    hashes = countersign(bench, bench.seal(), bench.seal("bob"))
    opened = release(bench, close_over(bench, hashes[:1]))
    assert opened is not None
    assert len(opened.shares) == 1


def test_a_second_close_of_a_round_is_refused(bench: RoundBench) -> None:
    hashes = countersign(bench, bench.seal(), bench.seal("bob"))
    release(bench, close_over(bench, hashes[:1]))
    second = close_over(bench, hashes[1:])
    ready = bench.witness.release(bench.term.auctioneer, second, [bench.term.auctioneer])
    assert not ready.send
    assert [event.name for event in ready.events] == ["second_close_refused"]


def test_a_repeated_close_gets_the_same_release(bench: RoundBench) -> None:
    notice = close_over(bench, countersign(bench, bench.seal()))
    assert release(bench, notice) == release(bench, notice)


def test_a_repeated_close_gets_the_same_release_after_a_restart(bench: RoundBench) -> None:
    notice = close_over(bench, countersign(bench, bench.seal()))
    first = bench.witness.release(bench.term.auctioneer, notice, [bench.term.auctioneer])
    bench.witness = bench.make_witness()
    bench.witness.restore(first.persist[0].value)
    again = bench.witness.release(bench.term.auctioneer, notice, [bench.term.auctioneer])
    assert again.send == first.send


def test_a_restarted_witness_refuses_a_second_close(bench: RoundBench) -> None:
    hashes = countersign(bench, bench.seal(), bench.seal("bob"))
    notice = close_over(bench, hashes[:1])
    first = bench.witness.release(bench.term.auctioneer, notice, [bench.term.auctioneer])
    bench.witness = bench.make_witness()
    bench.witness.restore(first.persist[0].value)
    assert release(bench, close_over(bench, hashes[1:])) is None


def test_a_close_with_a_bid_not_countersigned_is_refused(bench: RoundBench) -> None:
    hashes = (*countersign(bench, bench.seal()), bench.seal("bob").bid_hash)
    with pytest.raises(InvalidBidError, match="not countersigned"):
        release(bench, close_over(bench, hashes))


def test_a_close_under_another_root_is_refused(bench: RoundBench) -> None:
    hashes = countersign(bench, bench.seal(), bench.seal("bob"))
    with pytest.raises(RemoteProtocolError, match="does not commit"):
        release(bench, close_over(bench, hashes, bids_root=compute_root(hashes[:1])))


def test_a_close_that_counts_a_bid_twice_is_refused(bench: RoundBench) -> None:
    hashes = countersign(bench, bench.seal())
    with pytest.raises(RemoteProtocolError, match="twice"):
        release(bench, close_over(bench, hashes * 2))


def test_a_bid_opens_in_one_round_only(bench: RoundBench) -> None:
    """Design §4 step 3: a nonce in any signed close is spent."""
    bid = bench.seal()
    hashes = countersign(bench, bid)
    release(bench, close_over(bench, hashes))
    countersign(bench, bid)
    with pytest.raises(InvalidBidError, match="not countersigned"):
        release(bench, close_over(bench, hashes, round=1))


def test_a_close_of_a_round_that_was_skipped_is_refused_without_blame(bench: RoundBench) -> None:
    """An auctioneer that restarted sent it before; only then does it come late."""
    hashes = countersign(bench, bench.seal(), bench.seal("bob"))
    release(bench, close_over(bench, hashes[:1], round=5))
    with pytest.raises(InvalidBidError, match="later round") as refused:
        release(bench, close_over(bench, hashes[1:], round=4))
    assert get_points(refused.value) == CROSSING_POINTS


def test_a_close_by_another_node_is_refused(bench: RoundBench) -> None:
    notice = close_over(bench, countersign(bench, bench.seal()))
    with pytest.raises(InvalidSignatureError):
        bench.witness.release(bench.chain.get_node("bob"), notice, [])


def test_answers_of_others_than_the_witness_are_refused(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    bob = bench.chain.get_node("bob")
    with pytest.raises(RemoteProtocolError):
        bench.auctioneer.receive_countersignatures(
            bob, CountersignResponse((), (), ()), now_ms=bench.now_ms
        )


def test_a_forged_countersignature_acknowledges_nothing(bench: RoundBench) -> None:
    bids = [bench.seal(), bench.seal()]
    for bid in bids:
        bench.submit(bid)
    statements = [
        BidAcknowledgement(bench.term.hub, bench.term.number, bid.bid_hash) for bid in bids
    ]
    signed = (
        bench.chain.sign(bench.witness_name, statements[0]),
        bench.chain.sign("bob", statements[1]),
    )
    with pytest.raises(InvalidSignatureError):
        bench.auctioneer.receive_countersignatures(
            bench.term.witness, CountersignResponse(signed, (), ()), now_ms=bench.now_ms
        )
    bench.deliver_all()
    assert all(bench.is_acknowledged(bid) for bid in bids)


def test_a_countersignature_for_another_term_acknowledges_nothing(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    statement = BidAcknowledgement(bench.term.hub, 9, bid.bid_hash)
    response = CountersignResponse((bench.chain.sign(bench.witness_name, statement),), (), ())
    ready = bench.auctioneer.receive_countersignatures(
        bench.term.witness, response, now_ms=bench.now_ms
    )
    assert not ready.answers


def test_a_release_with_too_few_shares_is_refused(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    for _ in range(3):
        bench.deliver()
    (notice,) = bench.get_mail(ReleaseNotice)
    short = bench.chain.sign(bench.witness_name, replace(notice.release.message, shares=()))
    with pytest.raises(RemoteProtocolError):
        bench.auctioneer.receive_release(
            bench.term.witness, ReleaseNotice(short), now_ms=bench.now_ms
        )
    bench.deliver_all()
    assert bench.transcripts


def test_a_release_with_a_false_share_is_refused(bench: RoundBench) -> None:
    """Cleared with it, the round would convict its auctioneer."""
    bench.submit(bench.seal())
    for _ in range(3):
        bench.deliver()
    (notice,) = bench.get_mail(ReleaseNotice)
    false = replace(notice.release.message, shares=(bytes(32),))
    with pytest.raises(RemoteProtocolError, match="not the one that its bid commits to"):
        bench.auctioneer.receive_release(
            bench.term.witness,
            ReleaseNotice(bench.chain.sign(bench.witness_name, false)),
            now_ms=bench.now_ms,
        )
    bench.deliver_all()
    assert bench.transcripts


def test_a_clock_set_back_within_a_round_spoils_nothing(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    for _ in range(3):
        bench.deliver()
    assert bench.get_mail(ReleaseNotice)
    bench.now_ms -= 50
    bench.deliver_all()
    (transcript,) = bench.transcripts
    assert transcript.message.cleared_at_ms == transcript.message.close.message.closed_at_ms


def test_a_release_that_came_twice_clears_once(bench: RoundBench) -> None:
    bench.submit(bench.seal())
    for _ in range(3):
        bench.deliver()
    bench.mail *= 2
    bench.deliver_all()
    assert len(bench.transcripts) == 1


# --- loss and restarts (round.md R10) ------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_lost_message_only_delays_a_round(bench: RoundBench, lost: int) -> None:
    bid = bench.seal()
    bench.submit(bid)
    for _ in range(lost):
        bench.deliver()
    bench.mail = []
    for _ in range(2):
        bench.now_ms += 500
        bench.take(bench.auctioneer_name, bench.auctioneer.tick(now_ms=bench.now_ms))
        bench.deliver_all()
    assert isinstance(bench.get_outcome(bid), Allocation)


def test_a_witness_that_restarts_within_a_round_still_releases_it(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.submit(bid)
    bench.deliver()
    bench.deliver()
    bench.witness, bench.mail = bench.make_witness(), []
    bench.now_ms += 500
    bench.take(bench.auctioneer_name, bench.auctioneer.tick(now_ms=bench.now_ms))
    bench.deliver_all()
    assert isinstance(bench.get_outcome(bid), Allocation)


def test_what_is_answered_is_not_sent_again(bench: RoundBench) -> None:
    bench.clear(bench.seal())
    assert not bench.auctioneer.tick(now_ms=bench.now_ms + 500).send


def test_an_auctioneer_goes_on_where_its_stored_rounds_end(bench: RoundBench) -> None:
    bench.clear(bench.seal())
    books = bench.follow()
    reserved = books.get_reserved(bench.chain.get_id("alice"))
    bench.auctioneer = bench.make_auctioneer()
    bench.auctioneer.resume(bench.transcripts, books, next_round=1)
    (outcome,) = bench.clear(bench.seal())
    assert isinstance(outcome, Allocation)
    assert outcome.round == 1
    assert bench.transcripts[1].message.previous_hash == bench.transcripts[0].hash
    assert bench.auctioneer.books.get_reserved(outcome.account) == (
        reserved + outcome.reserved_micros
    )


def test_a_restarted_auctioneer_knows_spent_nonces(bench: RoundBench) -> None:
    bid = bench.seal()
    bench.clear(bid)
    bench.auctioneer = bench.make_auctioneer()
    bench.auctioneer.resume(bench.transcripts, bench.auctioneer.books.copy(), next_round=1)
    with pytest.raises(DuplicateBidError):
        bench.submit(bid)


def test_bids_cleared_out_of_order_do_not_hinder_a_restart(bench: RoundBench) -> None:
    """A channel's bids are acknowledged in the order of the witness's answers."""
    for bid in [bench.seal(), bench.seal()]:
        bench.submit(bid)
    bench.deliver()
    bench.mail.reverse()
    bench.deliver_all()
    nonces = [
        task.sealed_bid.message.nonce
        for signed in bench.transcripts
        for task in signed.message.tasks
    ]
    assert nonces == [2, 1]
    bench.auctioneer = bench.make_auctioneer()
    bench.auctioneer.resume(bench.transcripts, bench.auctioneer.books.copy(), next_round=2)
    assert isinstance(bench.clear(bench.seal())[0], Allocation)


# --- funding (round.md R8; design §7, allowances) ------------------------------------------------


def test_bids_beyond_the_allowance_are_dropped_in_commitment_order(bench: RoundBench) -> None:
    allowance = bench.market.get_allowance(bench.chain.get_id("alice"), bench.term.number)
    first, second = bench.seal(reservation_micros=allowance), bench.seal()
    outcomes = bench.clear(first, second)
    assert isinstance(outcomes[0], Allocation)
    assert isinstance(outcomes[1], Unmatched)
    assert outcomes[1].reason is UnmatchedReason.UNFUNDED


def test_a_smaller_bid_may_still_fit(bench: RoundBench) -> None:
    allowance = bench.market.get_allowance(bench.chain.get_id("alice"), bench.term.number)
    outcomes = bench.clear(
        bench.seal(reservation_micros=allowance + 1), bench.seal(), bench.seal("bob")
    )
    assert [type(outcome) for outcome in outcomes] == [Unmatched, Allocation, Allocation]


def test_allocations_never_reserve_beyond_the_allowance() -> None:
    bench = RoundBench()
    bench.add_provider("node-1", slots=1000)
    account = bench.chain.get_id("alice")
    allowance = bench.market.get_allowance(account, bench.term.number)
    bid = make_bid(max_tokens=2000)
    matched = 0
    while True:
        try:
            outcome = bench.clear(bench.seal(bid=bid))[0]
        except UnfundedBidError:
            break
        if isinstance(outcome, Unmatched):
            assert outcome.reason is UnmatchedReason.UNFUNDED
            break
        matched += 1
        assert bench.auctioneer.books.get_reserved(account) <= allowance
    assert matched > 1


# --- without a witness (round.md R11; design §6) -------------------------------------------------


def test_without_a_second_validator_rounds_are_marked_unsealed() -> None:
    bench = RoundBench(validators=["node-1"])
    bench.add_provider("node-1")
    assert bench.term.witness is None
    (outcome,) = bench.clear(bench.seal())
    assert isinstance(outcome, Allocation)
    transcript = bench.transcripts[-1].message
    assert not transcript.close.message.sealed
    assert transcript.witness == transcript.auctioneer
    bench.verify()


def test_prices_of_a_bid_bound_its_allocation(bench: RoundBench) -> None:
    (outcome,) = bench.clear(bench.seal())
    assert isinstance(outcome, Allocation)
    assert BID_PRICES.covers(outcome.rates)


def test_a_round_waits_for_its_model(bench: RoundBench) -> None:
    """A model decided while its auctioneer was away is fetched first."""
    model, bench.market.model = bench.market.model, None
    pending = bench.seal()
    bench.submit(pending)
    bench.deliver_all()
    assert bench.is_acknowledged(pending)
    assert bench.records == []
    bench.market.model = model
    bench.take(bench.auctioneer_name, bench.auctioneer.tick(now_ms=bench.now_ms))
    bench.deliver_all()
    assert isinstance(bench.get_outcome(pending), Allocation)
    assert bench.transcripts[-1].message.model == model
