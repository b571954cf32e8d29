"""Two-phase transfers. Source: docs/spec/ledger.md §8."""

from __future__ import annotations

from typing import Any

import pytest

from iemas.core.errors import MalformedMessageError
from iemas.core.params import MarketParams
from iemas.ledger.transaction import HoldFunds, PostHold, ResultCode, VoidHold
from iemas.ledger.transfer import get_pending
from iemas.testing.chain import LedgerChain, make_genesis

PARAMS = MarketParams(max_pending_transfers=3, idempotency_window_ms=10_000)
KEY, OTHER_KEY = b"k" * 16, b"o" * 32
TIMEOUT_MS = 5_000


@pytest.fixture
def chain() -> LedgerChain:
    """Alice and bob with 1,000,000 available; at most three keys an account, known for 10 s."""
    return LedgerChain(make_genesis(params=PARAMS))


def hold(
    chain: LedgerChain, amount: int = 300, key: bytes = KEY, timeout_ms: int = TIMEOUT_MS
) -> ResultCode:
    return chain.submit("alice", HoldFunds(key, chain.get_id("bob"), amount, timeout_ms)).code


def post(chain: LedgerChain, sender: str, amount: int, key: bytes = KEY) -> ResultCode:
    return chain.submit(sender, PostHold(chain.get_id("alice"), key, amount)).code


def void(chain: LedgerChain, sender: str) -> ResultCode:
    return chain.submit(sender, VoidHold(chain.get_id("alice"), KEY)).code


def get_money(chain: LedgerChain) -> tuple[int, int, int]:
    """Give what alice has, what is held of hers, and what bob has, above 1,000,000 each."""
    alice, bob = chain.get_id("alice"), chain.get_id("bob")
    return (
        chain.state.get_balance(alice)[0] - 1_000_000,
        chain.state.get_funds(get_pending(alice)),
        chain.state.get_balance(bob)[0] - 1_000_000,
    )


def test_a_hold_sets_money_aside(chain: LedgerChain) -> None:
    assert hold(chain) is ResultCode.OK
    assert get_money(chain) == (-300, 300, 0)


@pytest.mark.parametrize("sender", ["alice", "bob"])
def test_either_side_posts_a_hold(chain: LedgerChain, sender: str) -> None:
    hold(chain)
    assert post(chain, sender, 300) is ResultCode.OK
    assert get_money(chain) == (-300, 0, 300)


def test_what_is_not_posted_returns(chain: LedgerChain) -> None:
    hold(chain)
    assert post(chain, "bob", 120) is ResultCode.OK
    assert get_money(chain) == (-120, 0, 120)


def test_the_payee_voids_a_hold(chain: LedgerChain) -> None:
    hold(chain)
    assert void(chain, "bob") is ResultCode.OK
    assert get_money(chain) == (0, 0, 0)


def test_the_payer_cannot_take_it_back_before_its_time(chain: LedgerChain) -> None:
    hold(chain)
    assert void(chain, "alice") is ResultCode.NOT_PARTY
    assert post(chain, "alice", 1) is ResultCode.NOT_PARTY
    chain.apply(after_ms=TIMEOUT_MS - 1)
    assert get_money(chain) == (-300, 300, 0)
    chain.apply(after_ms=1)
    assert get_money(chain) == (0, 0, 0)


def test_a_hold_expires_before_the_transactions_of_its_block(chain: LedgerChain) -> None:
    hold(chain)
    late = chain.make_transaction("bob", PostHold(chain.get_id("alice"), KEY, 1))
    assert chain.apply([late], after_ms=TIMEOUT_MS).results[0].code is ResultCode.EXPIRED


@pytest.mark.parametrize("end", [lambda c: post(c, "bob", 1), lambda c: void(c, "bob")])
def test_a_hold_ends_once(chain: LedgerChain, end: Any) -> None:
    hold(chain)
    assert end(chain) is ResultCode.OK
    money = get_money(chain)
    assert post(chain, "bob", 1) is ResultCode.ALREADY_DONE
    assert void(chain, "bob") is ResultCode.ALREADY_DONE
    assert get_money(chain) == money


def test_a_key_holds_once_within_its_window(chain: LedgerChain) -> None:
    assert hold(chain) is ResultCode.OK
    assert hold(chain) is ResultCode.ALREADY_DONE
    void(chain, "bob")
    assert hold(chain) is ResultCode.ALREADY_DONE
    chain.apply(after_ms=PARAMS.idempotency_window_ms)
    assert hold(chain) is ResultCode.OK


def test_a_key_is_known_as_long_as_its_hold_is_pending(chain: LedgerChain) -> None:
    long_ms = 2 * PARAMS.idempotency_window_ms
    hold(chain, timeout_ms=long_ms)
    chain.apply(after_ms=long_ms - 1)
    assert hold(chain) is ResultCode.ALREADY_DONE
    assert post(chain, "bob", 300) is ResultCode.OK


def test_keys_are_an_accounts_own(chain: LedgerChain) -> None:
    hold(chain)
    body = HoldFunds(KEY, chain.get_id("alice"), 5, TIMEOUT_MS)
    assert chain.submit("bob", body).code is ResultCode.OK


def test_an_account_has_only_so_many_keys(chain: LedgerChain) -> None:
    codes = [hold(chain, 1, bytes([n]) * 16) for n in range(4)]
    assert codes == [ResultCode.OK] * 3 + [ResultCode.LIMIT_REACHED]
    chain.apply(after_ms=PARAMS.idempotency_window_ms)
    assert chain.state.pending == {}
    assert hold(chain) is ResultCode.OK


@pytest.mark.parametrize(
    ("sender", "amount", "key", "code"),
    [
        ("bob", 1, OTHER_KEY, ResultCode.UNKNOWN_HOLD),
        ("node-1", 1, KEY, ResultCode.NOT_PARTY),
        ("bob", 301, KEY, ResultCode.INSUFFICIENT_BALANCE),
    ],
)
def test_a_wrong_post_is_refused(
    chain: LedgerChain, sender: str, amount: int, key: bytes, code: ResultCode
) -> None:
    chain.submit("alice", HoldFunds(KEY, chain.get_id("bob"), 300, TIMEOUT_MS))
    assert post(chain, sender, amount, key) is code
    assert get_money(chain) == (-300, 300, 0)


def test_an_unknown_hold_cannot_be_voided(chain: LedgerChain) -> None:
    assert void(chain, "bob") is ResultCode.UNKNOWN_HOLD


def test_a_wrong_hold_is_refused(chain: LedgerChain) -> None:
    assert hold(chain, 1_000_001) is ResultCode.INSUFFICIENT_BALANCE
    to_itself = HoldFunds(KEY, chain.get_id("alice"), 1, TIMEOUT_MS)
    assert chain.submit("alice", to_itself).code is ResultCode.INVALID_ENTRY


def test_a_hold_may_open_an_account_when_it_is_posted(chain: LedgerChain) -> None:
    carol = chain.get_id("carol")
    chain.submit("alice", HoldFunds(KEY, carol, 5, TIMEOUT_MS))
    assert not chain.state.has_account(carol)
    assert post(chain, "alice", 5) is ResultCode.OK
    assert chain.state.get_balance(carol)[0] == 5


@pytest.mark.parametrize(
    ("key", "amount", "timeout_ms"),
    [(b"short", 1, 1), (b"k" * 17, 1, 1), (KEY, 0, 1), (KEY, 1, 0), (KEY, 1, 31 * 86_400_000)],
)
def test_a_hold_outside_its_ranges_is_refused(key: bytes, amount: int, timeout_ms: int) -> None:
    with pytest.raises(MalformedMessageError):
        HoldFunds(key, LedgerChain().get_id("bob"), amount, timeout_ms)  # type: ignore[arg-type]
