"""Sealing a bid, and checking what comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas import wire
from iemas.client._base import make_bid_submission
from iemas.core.auction import Bid, BidAccepted, Unmatched
from iemas.core.encoding import compute_hash
from iemas.core.envelope import verify_signed
from iemas.core.errors import (
    InvalidAllocationError,
    InvalidBidError,
    InvalidSignatureError,
    LocalProtocolError,
    RemoteProtocolError,
)
from iemas.core.identity import Identity
from iemas.core.sealing import (
    combine_shares,
    compute_bid_context,
    decrypt_bid,
    decrypt_chain,
    open_share,
)
from iemas.core.types import Lateness, Prices, UnmatchedReason

CHAIN = "test-chain"
NOW_MS = 1_000_000


def open_bid(world: Any, pending: Any, holder: Identity) -> tuple[Bid, bytes]:
    """Open with both holders' keys; `holder` holds the witness's share."""
    sealed = pending.submission.sealed_bid.message
    context = compute_bid_context(
        CHAIN,
        hub=sealed.hub,
        term=sealed.term,
        account=sealed.account,
        channel=sealed.channel,
        nonce=sealed.nonce,
    )
    key = combine_shares(
        open_share(
            sealed.auctioneer_seal,
            world.auctioneer.derive_hpke_key(),
            context,
            sealed.auctioneer_share_hash,
        ),
        open_share(
            sealed.witness_seal, holder.derive_hpke_key(), context, sealed.witness_share_hash
        ),
    )
    bid = wire.decode(Bid, decrypt_bid(key, sealed.ciphertext, context))
    return bid, decrypt_chain(key, pending.submission.chain_ciphertext, context)


def test_both_shares_open_the_bid_and_its_chain(world: Any) -> None:
    pending = world.bid()
    sealed_bid = pending.submission.sealed_bid
    verify_signed(sealed_bid, CHAIN, expected_signer=world.account.node_id)
    assert open_bid(world, pending, world.witness) == (pending.bid, b"k" * 48)
    assert sealed_bid.message.chain_hash == compute_hash(pending.submission.chain_ciphertext)
    assert pending.bid_hash == sealed_bid.hash


def test_auctioneer_alone_cannot_open_it(world: Any) -> None:
    with pytest.raises(InvalidBidError):
        open_bid(world, world.bid(), world.auctioneer)


def test_without_a_witness_the_auctioneer_holds_both_shares(world: Any) -> None:
    world.term = replace(world.term, witness=None, witness_hpke_key=b"")
    assert open_bid(world, world.bid(), world.auctioneer)[0].max_tokens == 40


def test_nonces_count_up_within_a_term(world: Any) -> None:
    nonces = [world.bid().submission.sealed_bid.message.nonce for _ in range(3)]
    world.term = replace(world.term, number=6)
    assert [*nonces, world.bid().submission.sealed_bid.message.nonce] == [1, 2, 3, 1]


def test_short_entropy_is_refused(world: Any) -> None:
    with pytest.raises(LocalProtocolError, match="entropy"):
        make_bid_submission(
            world.bid().bid,
            b"",
            term=world.term,
            channel=world.channel,
            chain_id=CHAIN,
            block_size=16,
            entropy=bytes(63),
        )


def test_acceptance_needs_both_signatures_on_this_bid(world: Any, sign: Any) -> None:
    pending = world.bid()
    good = world.acknowledgement(pending)
    other = replace(good, bid_hash=b"o" * 32)
    by_witness, by_auctioneer = sign(world.witness, good), sign(world.auctioneer, good)
    pending.check_acceptance(BidAccepted(by_witness, by_auctioneer))
    with pytest.raises(InvalidSignatureError):
        pending.check_acceptance(BidAccepted(by_auctioneer, by_auctioneer))
    with pytest.raises(InvalidSignatureError):
        pending.check_acceptance(BidAccepted(by_witness, by_witness))
    with pytest.raises(RemoteProtocolError):
        pending.check_acceptance(BidAccepted(sign(world.witness, other), by_auctioneer))


def test_without_a_witness_the_auctioneer_acknowledges_twice(world: Any, sign: Any) -> None:
    world.term = replace(world.term, witness=None, witness_hpke_key=b"")
    pending = world.bid()
    signed = sign(world.auctioneer, world.acknowledgement(pending))
    pending.check_acceptance(BidAccepted(signed, signed))


def check(world: Any, pending: Any, message: Any, **close: Any) -> Any:
    outcome = world.outcome(pending, message, **close)
    return pending.check_outcome(outcome, now_ms=NOW_MS, tolerance_ms=2_000)


def test_allocation_within_the_bid_is_accepted(world: Any) -> None:
    pending = world.bid()
    assert check(world, pending, world.allocation(pending)).message.price_micros == 90


@pytest.mark.parametrize(
    "change",
    [
        {"rates": Prices(1_000_001, 1, 1)},
        {"rates": Prices(1, 1_000_001, 1)},
        {"rates": Prices(1, 1, 3_000_001)},
        {"prompt_tokens": 99},
        {"max_tokens": 41},
        {"reserved_micros": 221},
        {"price_micros": 221},
        {"cached_tokens": 97},
        {"lateness": Lateness(0, 0)},
        {"account": b"a" * 32},
        {"channel": 78},
        {"bid_hash": b"b" * 32},
        {"round": 4},
        {"term": 6},
        {"hub": "another"},
        {"expires_at_ms": NOW_MS - 2_001},
    ],
)
def test_allocation_beyond_the_bid_is_refused(world: Any, change: dict[str, Any]) -> None:
    pending = world.bid()
    with pytest.raises(InvalidAllocationError):
        check(world, pending, world.allocation(pending, **change))


@pytest.mark.parametrize(
    "close",
    [{"bids_root": b"r" * 32}, {"bid_count": 2}, {"term": 6}, {"hub": "x"}, {"sealed": False}],
)
def test_close_must_prove_that_the_bid_is_in(world: Any, close: dict[str, Any]) -> None:
    pending = world.bid()
    with pytest.raises(InvalidAllocationError):
        check(world, pending, world.allocation(pending), **close)


def test_outcome_must_be_signed_by_the_auctioneer(world: Any, sign: Any) -> None:
    pending = world.bid()
    outcome = world.outcome(pending, world.allocation(pending))
    for field in ("close", "allocation"):
        forged = sign(world.provider, getattr(outcome, field).message)
        with pytest.raises(InvalidSignatureError):
            pending.check_outcome(
                replace(outcome, **{field: forged}), now_ms=NOW_MS, tolerance_ms=2_000
            )


def test_unmatched_is_given_with_its_reason(world: Any) -> None:
    pending = world.bid()
    unmatched = Unmatched(
        world.term.hub,
        world.term.number,
        3,
        pending.bid_hash,
        world.channel.account,
        UnmatchedReason.OUTBID,
        17,
        b"t" * 32,
    )
    assert check(world, pending, unmatched).message == unmatched
    with pytest.raises(InvalidAllocationError):
        check(world, pending, replace(unmatched, bid_hash=b"z" * 32))
    empty = replace(world.outcome(pending, unmatched), unmatched=None)
    with pytest.raises(InvalidAllocationError):
        pending.check_outcome(empty, now_ms=NOW_MS, tolerance_ms=2_000)
