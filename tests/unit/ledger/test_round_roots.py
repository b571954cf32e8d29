"""Closing a term's books. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

import pytest

from iemas.core.envelope import Signed
from iemas.core.errors import MalformedMessageError
from iemas.core.types import ChannelId, HubId
from iemas.ledger.transaction import (
    AccountHold,
    ResultCode,
    RoundRoots,
    Settle,
    TransactionResult,
)
from iemas.ledger.transfer import TREASURY
from iemas.testing.chain import SOME_HASH, LedgerChain


def close_books(
    chain: LedgerChain,
    term: int,
    *,
    holds: dict[str, int] | None = None,
    bids: tuple[Signed[object], ...] = (),
) -> TransactionResult:
    listed = tuple(AccountHold(chain.get_id(n), m) for n, m in (holds or {}).items())
    body = RoundRoots(chain.hub, term, (SOME_HASH,), listed, bids)  # type: ignore[arg-type]
    return chain.submit(chain.get_auctioneer(term), body)


def get_fees(chain: LedgerChain) -> int:
    return chain.state.get_funds(TREASURY)


def test_the_roots_are_kept_while_the_term_is_open(chain: LedgerChain) -> None:
    term = chain.end_term()
    assert chain.state.get_roots(chain.hub, term) is None
    assert close_books(chain, term).code is ResultCode.OK
    assert chain.state.get_roots(chain.hub, term) == (SOME_HASH,)


def test_only_the_auctioneer_of_the_term_closes_its_books(chain: LedgerChain) -> None:
    term = chain.end_term()
    body = RoundRoots(chain.hub, term, (), (), ())
    assert chain.submit(chain.get_auctioneer(), body).code is ResultCode.NOT_AUCTIONEER


def test_the_books_of_a_running_term_stay_open(chain: LedgerChain) -> None:
    assert close_books(chain, 0).code is ResultCode.INVALID_ENTRY


@pytest.mark.parametrize("hashes", [(bytes(31),), (bytes(1_000_000),), (bytes(32),) * 20_001])
def test_books_stay_small_enough_to_be_proven(hashes: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedMessageError):
        RoundRoots(HubId("hub"), 0, hashes, (), ())


def test_books_are_closed_once(chain: LedgerChain) -> None:
    term = chain.end_term()
    close_books(chain, term)
    assert close_books(chain, term, holds={"alice": 9}).code is ResultCode.ALREADY_DONE


def test_the_books_of_an_unknown_term_are_refused(chain: LedgerChain) -> None:
    body = RoundRoots(chain.hub, 99, (), (), ())
    assert chain.submit("node-1", body).code is ResultCode.UNKNOWN_TERM


def test_what_was_not_reserved_is_free_again(chain: LedgerChain) -> None:
    alice, bob = chain.get_id("alice"), chain.get_id("bob")
    term = chain.end_term()
    close_books(chain, term, holds={"alice": 1_000})
    assert chain.state.get_settleable(chain.hub, alice, term) == 1_000
    assert chain.state.get_settleable(chain.hub, bob, term) == 0
    assert chain.state.get_free_escrow(chain.hub, bob) == 400_000 - 75_000


def test_a_hold_is_never_above_the_allowance(chain: LedgerChain) -> None:
    term = chain.end_term()
    close_books(chain, term, holds={"alice": 10**9})
    assert chain.state.get_settleable(chain.hub, chain.get_id("alice"), term) == 100_000


def test_a_hold_is_never_below_what_was_settled(chain: LedgerChain) -> None:
    chain.submit("node-1", Settle((chain.make_entry("alice", "node-1", 0, 700),)))
    term = chain.end_term()
    close_books(chain, term)
    assert chain.state.get_settleable(chain.hub, chain.get_id("alice"), term) == 0


def test_an_account_held_twice_is_refused(chain: LedgerChain) -> None:
    term = chain.end_term()
    hold = AccountHold(chain.get_id("alice"), 1)
    body = RoundRoots(chain.hub, term, (), (hold, hold), ())
    assert chain.submit(chain.get_auctioneer(term), body).code is ResultCode.INVALID_ENTRY


def test_each_channel_owes_a_fee_for_each_of_its_bids(chain: LedgerChain) -> None:
    bids = (
        chain.sign("alice", chain.make_sealed_bid("alice", 0, nonce=5)),
        chain.sign("alice", chain.make_sealed_bid("alice", 0, nonce=2, channel=ChannelId(8))),
        chain.sign("bob", chain.make_sealed_bid("bob", 0, nonce=3)),
    )
    term = chain.end_term()
    assert close_books(chain, term, bids=bids).code is ResultCode.OK
    assert get_fees(chain) == 10 * chain.genesis.params.bid_fee_micros
    assert chain.state.get_balance(chain.get_id("alice"))[1] == 400_000 - 7


def test_a_channel_listed_twice_pays_its_highest_nonce(chain: LedgerChain) -> None:
    bids = tuple(
        chain.sign("alice", chain.make_sealed_bid("alice", 0, nonce=nonce)) for nonce in (5, 9, 2)
    )
    close_books(chain, chain.end_term(), bids=bids)
    assert get_fees(chain) == 9


@pytest.mark.parametrize(
    ("signer", "term", "code"),
    [("bob", 0, ResultCode.WRONG_SIGNER), ("alice", 5, ResultCode.INVALID_ENTRY)],
)
def test_a_bid_that_proves_nothing_costs_nothing(
    chain: LedgerChain, signer: str, term: int, code: ResultCode
) -> None:
    bid = chain.sign(signer, chain.make_sealed_bid("alice", term, nonce=9))
    result = close_books(chain, chain.end_term(), bids=(bid,))
    assert (result.code, result.detail) == (ResultCode.OK, f"0:{code.name}")
    assert get_fees(chain) == 0


def test_fees_never_touch_what_open_terms_hold(chain: LedgerChain) -> None:
    bid = chain.sign("alice", chain.make_sealed_bid("alice", 0, nonce=2**60))
    term = chain.end_term()
    close_books(chain, term, holds={"alice": 100_000}, bids=(bid,))
    assert chain.state.get_free_escrow(chain.hub, chain.get_id("alice")) == 0
    assert chain.state.get_balance(chain.get_id("alice"))[1] == 100_000 + 75_000
