"""Signatures, nonces, ids: what holds for every transaction. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from iemas.core.auction import Ask
from iemas.core.envelope import Signed
from iemas.core.types import HubId, Prices
from iemas.ledger.rules import asks
from iemas.ledger.transaction import (
    Evidence,
    FundEscrow,
    PostAsk,
    ResultCode,
    Transaction,
    TransactionBody,
    TransactionResult,
    TransferFunds,
)
from iemas.ledger.transition import RULES
from iemas.testing.chain import HUB, PRICES, LedgerChain


def apply_one(chain: LedgerChain, signed: Signed[Transaction]) -> TransactionResult:
    return chain.apply([signed]).results[0]


def test_every_kind_of_transaction_has_its_rule() -> None:
    assert {*RULES, Evidence} == set(get_args(TransactionBody))


def break_signature(signed: Signed[Transaction]) -> Signed[Transaction]:
    return Signed(signed.message, replace(signed.envelope, signature=bytes(64)))


def test_a_transaction_of_another_account_is_refused(chain: LedgerChain) -> None:
    body = TransferFunds(chain.get_id("bob"), 1)
    stolen = chain.sign("bob", Transaction(chain.get_id("alice"), 1, body))
    assert apply_one(chain, stolen).code is ResultCode.WRONG_SIGNER


def test_a_signature_of_another_chain_is_refused(chain: LedgerChain) -> None:
    other = LedgerChain()
    other.chain_id = "other-chain"
    foreign = other.make_transaction("alice", FundEscrow(chain.hub, 1))
    assert apply_one(chain, foreign).code is ResultCode.WRONG_SIGNER


def test_a_wrong_signature_uses_up_nothing(chain: LedgerChain) -> None:
    signed = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    assert apply_one(chain, break_signature(signed)).code is ResultCode.WRONG_SIGNER
    assert chain.state.get_nonce(chain.get_id("alice")) == 0
    assert apply_one(chain, signed).code is ResultCode.OK


def test_nonces_may_leave_gaps(chain: LedgerChain) -> None:
    signed = chain.make_transaction("alice", FundEscrow(chain.hub, 1), nonce=40)
    assert apply_one(chain, signed).code is ResultCode.OK
    assert chain.state.get_nonce(chain.get_id("alice")) == 40


def test_a_nonce_not_above_the_last_is_refused(chain: LedgerChain) -> None:
    apply_one(chain, chain.make_transaction("alice", FundEscrow(chain.hub, 1), nonce=5))
    late = chain.make_transaction("alice", FundEscrow(chain.hub, 2), nonce=5)
    assert apply_one(chain, late).code is ResultCode.NONCE_TOO_LOW


def test_a_refused_body_uses_up_its_nonce(chain: LedgerChain) -> None:
    signed = chain.make_transaction("alice", FundEscrow(HubId("nowhere"), 1), nonce=5)
    assert apply_one(chain, signed).code is ResultCode.UNKNOWN_HUB
    assert chain.state.get_nonce(chain.get_id("alice")) == 5


def test_the_same_transaction_again_is_already_done(chain: LedgerChain) -> None:
    signed = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    apply_one(chain, signed)
    assert apply_one(chain, signed).code is ResultCode.ALREADY_DONE
    assert chain.state.get_balance(chain.get_id("alice")) == (999_999, 400_001)


def test_the_same_transaction_twice_in_a_block_is_done_once(chain: LedgerChain) -> None:
    signed = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    codes = [result.code for result in chain.apply([signed, signed]).results]
    assert codes == [ResultCode.OK, ResultCode.ALREADY_DONE]


def test_an_account_never_credited_is_unknown(chain: LedgerChain) -> None:
    result = chain.submit("carol", FundEscrow(chain.hub, 1))
    assert result.code is ResultCode.UNKNOWN_ACCOUNT
    assert not chain.state.has_account(chain.get_id("carol"))


def test_the_first_ask_opens_a_providers_account(chain: LedgerChain) -> None:
    assert chain.submit("carol", PostAsk(Ask(chain.hub, PRICES))).code is ResultCode.OK
    assert chain.state.has_account(chain.get_id("carol"))


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (Ask(HubId("nowhere"), Prices(1, 1, 1)), ResultCode.UNKNOWN_HUB),
        (Ask(HUB, Prices(1, 1, 10**9)), ResultCode.INVALID_ENTRY),
    ],
    ids=["hub", "ratio"],
)
def test_an_ask_that_is_refused_opens_no_account(
    chain: LedgerChain, ask: Ask, code: ResultCode
) -> None:
    assert chain.submit("stranger", PostAsk(ask)).code is code
    assert not chain.state.has_account(chain.get_id("stranger"))


def test_only_so_many_accounts_without_money_ask(
    chain: LedgerChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "MAX_UNFUNDED_ASKS", 2)
    ask = PostAsk(Ask(chain.hub, Prices(1, 1, 1)))
    assert chain.submit("alice", ask).code is ResultCode.OK
    codes = [chain.submit(f"stranger-{n}", ask).code for n in range(3)]
    assert codes == [ResultCode.OK, ResultCode.OK, ResultCode.LIMIT_REACHED]
    chain.submit("alice", TransferFunds(chain.get_id("stranger-2"), 1))
    assert chain.submit("stranger-2", ask).code is ResultCode.OK


def test_check_tx_agrees_without_changing_anything(chain: LedgerChain) -> None:
    signed = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    root = chain.state.compute_root()
    assert chain.app.check_tx(signed).code is ResultCode.OK
    assert chain.app.check_tx(break_signature(signed)).code is ResultCode.WRONG_SIGNER
    assert chain.state.compute_root() == root
    apply_one(chain, signed)
    assert chain.app.check_tx(signed).code is ResultCode.ALREADY_DONE
