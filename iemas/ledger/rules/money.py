"""Transfers and escrow. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

from iemas.core.types import AccountId
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    FundEscrow,
    ResultCode,
    TransactionResult,
    TransferFunds,
    WithdrawEscrow,
)
from iemas.ledger.transfer import Transfer, TransferReason, get_available, get_escrow


def apply_transfer_funds(
    state: LedgerState, account: AccountId, body: TransferFunds
) -> TransactionResult:
    """Move available money; crediting an unknown account opens it."""
    available_micros = state.get_funds(get_available(account))
    if body.amount_micros > available_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{available_micros} are available")
    debit, credit = get_available(account), get_available(body.to)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.TRANSFER))
    return OK


def apply_fund_escrow(
    state: LedgerState, account: AccountId, body: FundEscrow
) -> TransactionResult:
    """Move available money into escrow; it counts for allowances from the next term on."""
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    available_micros = state.get_funds(get_available(account))
    if body.amount_micros > available_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{available_micros} are available")
    debit, credit = get_available(account), get_escrow(account, body.hub)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.ESCROW_FUNDED))
    return OK


def apply_withdraw_escrow(
    state: LedgerState, account: AccountId, body: WithdrawEscrow
) -> TransactionResult:
    """Move escrow back that no open term may still settle."""
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    free_micros = state.get_free_escrow(body.hub, account)
    if body.amount_micros > free_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{free_micros} of the escrow are free")
    debit, credit = get_escrow(account, body.hub), get_available(account)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.ESCROW_WITHDRAWN))
    return OK
