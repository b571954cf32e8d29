"""Transfers and escrow. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

import pytest

from iemas.core.errors import InternalError
from iemas.core.types import HubId
from iemas.ledger.transaction import FundEscrow, ResultCode, TransferFunds, WithdrawEscrow
from iemas.ledger.transfer import TREASURY, Transfer, TransferReason, get_available, get_escrow
from iemas.testing.chain import LedgerChain

NOWHERE = HubId("nowhere")


def test_a_transfer_moves_available_money(chain: LedgerChain) -> None:
    result = chain.submit("alice", TransferFunds(chain.get_id("bob"), 300))
    assert result.code is ResultCode.OK
    assert chain.state.get_balance(chain.get_id("alice")) == (999_700, 400_000)
    assert chain.state.get_balance(chain.get_id("bob")) == (1_000_300, 400_000)


def test_a_transfer_opens_an_unknown_account(chain: LedgerChain) -> None:
    carol = chain.get_id("carol")
    assert not chain.state.has_account(carol)
    chain.submit("alice", TransferFunds(carol, 5))
    assert chain.state.get_balance(carol) == (5, 0)


def test_a_transfer_above_the_balance_is_refused(chain: LedgerChain) -> None:
    result = chain.submit("alice", TransferFunds(chain.get_id("bob"), 1_000_001))
    assert result.code is ResultCode.INSUFFICIENT_BALANCE
    assert chain.state.get_balance(chain.get_id("alice")) == (1_000_000, 400_000)


def test_a_transfer_to_oneself_changes_nothing(chain: LedgerChain) -> None:
    chain.submit("alice", TransferFunds(chain.get_id("alice"), 7))
    assert chain.state.get_balance(chain.get_id("alice")) == (1_000_000, 400_000)


def test_escrow_is_funded_from_available(chain: LedgerChain) -> None:
    assert chain.submit("alice", FundEscrow(chain.hub, 10)).code is ResultCode.OK
    assert chain.state.get_balance(chain.get_id("alice")) == (999_990, 400_010)


def test_escrow_above_the_balance_is_refused(chain: LedgerChain) -> None:
    result = chain.submit("alice", FundEscrow(chain.hub, 1_000_001))
    assert result.code is ResultCode.INSUFFICIENT_BALANCE


@pytest.mark.parametrize("body", [FundEscrow(NOWHERE, 1), WithdrawEscrow(NOWHERE, 1)])
def test_escrow_in_an_unknown_hub_is_refused(
    chain: LedgerChain, body: FundEscrow | WithdrawEscrow
) -> None:
    assert chain.submit("alice", body).code is ResultCode.UNKNOWN_HUB


def test_escrow_that_backs_no_term_can_be_withdrawn(chain: LedgerChain) -> None:
    assert chain.submit("alice", WithdrawEscrow(chain.hub, 300_000)).code is ResultCode.OK
    assert chain.state.get_balance(chain.get_id("alice")) == (1_300_000, 100_000)


def test_escrow_that_backs_an_open_term_cannot_be_withdrawn(chain: LedgerChain) -> None:
    result = chain.submit("alice", WithdrawEscrow(chain.hub, 300_001))
    assert result.code is ResultCode.INSUFFICIENT_BALANCE
    assert chain.state.get_free_escrow(chain.hub, chain.get_id("alice")) == 300_000


def test_every_movement_is_a_transfer(chain: LedgerChain) -> None:
    alice = chain.get_id("alice")
    finalized = chain.apply([chain.make_transaction("alice", FundEscrow(chain.hub, 10))])
    assert finalized.transfers == (
        Transfer(
            get_available(alice),
            get_escrow(alice, chain.hub),
            10,
            TransferReason.ESCROW_FUNDED,
        ),
    )


def test_genesis_is_issued_by_transfers(chain: LedgerChain) -> None:
    total = sum(transfer.amount_micros for transfer in chain.app.genesis_transfers)
    assert total == chain.state.get_total_money() == 2 * 1_400_000 + 3 * 1_000


def test_stakes_are_minted_at_genesis(chain: LedgerChain) -> None:
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 1_000
    assert chain.state.get_stake_micros(chain.get_node("alice")) == 0


def test_posting_what_an_account_does_not_hold_is_an_internal_error(chain: LedgerChain) -> None:
    state = chain.state.copy()
    with pytest.raises(InternalError):
        state.post(
            Transfer(TREASURY, get_available(chain.get_id("bob")), 1, TransferReason.GENESIS)
        )


def test_a_transfer_of_nothing_is_an_internal_error(chain: LedgerChain) -> None:
    account = get_available(chain.get_id("bob"))
    with pytest.raises(InternalError):
        Transfer(account, account, 0, TransferReason.TRANSFER)


def test_ledger_accounts_have_readable_names(chain: LedgerChain) -> None:
    alice = chain.get_id("alice")
    assert get_escrow(alice, chain.hub).name == f"escrow/{alice.hex()}/model"
    assert TREASURY.name == "treasury"
