"""What was reserved and not used costs a fee. Source: docs/spec/ledger.md §4."""

from __future__ import annotations

import pytest

from iemas.core.params import MarketParams
from iemas.ledger.transaction import AccountHold, RoundRoots, Settle, WithdrawEscrow
from iemas.ledger.transfer import TREASURY
from iemas.testing.chain import LedgerChain, make_genesis

PARAMS = MarketParams(settle_terms=1, reservation_fee_ppm=10_000)


@pytest.fixture
def chain() -> LedgerChain:
    """Allowances of 100,000; a hundredth of what is reserved and unused is due."""
    return LedgerChain(make_genesis(params=PARAMS))


def close_books(chain: LedgerChain, reserved: int) -> None:
    holds = (AccountHold(chain.get_id("alice"), reserved),)
    body = RoundRoots(chain.hub, 0, (), holds, ())
    chain.submit(chain.get_auctioneer(0), body)


def get_fees(chain: LedgerChain) -> int:
    return chain.state.get_funds(TREASURY)


def test_unused_reservations_are_charged_when_their_term_closes(chain: LedgerChain) -> None:
    chain.end_term()
    close_books(chain, 50_000)
    assert get_fees(chain) == 0
    chain.end_term()
    assert get_fees(chain) == 500
    assert chain.state.get_balance(chain.get_id("alice"))[1] == 400_000 - 500


def test_what_was_settled_is_not_charged(chain: LedgerChain) -> None:
    chain.submit("node-1", Settle((chain.make_entry("alice", "node-1", 0, 30_000),)))
    chain.end_term()
    close_books(chain, 50_000)
    chain.end_term()
    assert get_fees(chain) == 200


def test_an_allowance_that_nobody_reserved_is_free(chain: LedgerChain) -> None:
    chain.end_term()
    close_books(chain, 0)
    chain.end_term()
    assert get_fees(chain) == 0


def test_without_closed_books_nothing_is_charged(chain: LedgerChain) -> None:
    chain.end_term()
    chain.end_term()
    assert get_fees(chain) == 0


def test_the_fee_is_rounded_down(chain: LedgerChain) -> None:
    chain.end_term()
    close_books(chain, 199)
    chain.end_term()
    assert get_fees(chain) == 1


def test_the_fee_counts_before_the_next_allowance(chain: LedgerChain) -> None:
    alice = chain.get_id("alice")
    chain.end_term()
    close_books(chain, 100_000)
    chain.submit("alice", WithdrawEscrow(chain.hub, 400_000 - 100_000 - 75_000))
    chain.end_term()  # 175,000 left, 75,000 of it frozen for term 1, 1,000 due
    assert chain.state.get_allowance(chain.hub, alice, 2) == 99_000 // 4
