"""Two-phase transfers: money is held first, then posted or voided.

Source: docs/spec/ledger.md §8; TigerBeetle, "Two-Phase Transfers" (pending, post, void, timeout).
"""

from __future__ import annotations

from dataclasses import replace

from iemas.core.types import AccountId
from iemas.ledger.records import PendingStatus, PendingTransfer
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    HoldFunds,
    PostHold,
    ResultCode,
    TransactionResult,
    VoidHold,
)
from iemas.ledger.transfer import Transfer, TransferReason, get_available, get_pending

_SETTLED = {
    PendingStatus.POSTED: refuse(ResultCode.ALREADY_DONE, "the hold was posted"),
    PendingStatus.VOIDED: refuse(ResultCode.ALREADY_DONE, "the hold was voided"),
    PendingStatus.EXPIRED: refuse(ResultCode.EXPIRED, "the hold's time is over"),
}


def apply_hold_funds(state: LedgerState, account: AccountId, body: HoldFunds) -> TransactionResult:
    """Set available money aside for another account, under a key that is used once."""
    if body.to == account:
        return refuse(ResultCode.INVALID_ENTRY, "an account cannot hold money for itself")
    known = state.pending.get(account, ())
    if any(transfer.key == body.key for transfer in known):
        return refuse(ResultCode.ALREADY_DONE, "the idempotency key was used before")
    available_micros = state.get_funds(get_available(account))
    if body.amount_micros > available_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{available_micros} are available")
    if len(known) >= state.params.max_pending_transfers:
        return refuse(ResultCode.LIMIT_REACHED, "too many holds; wait until keys are forgotten")
    kept_ms = max(body.timeout_ms, state.params.idempotency_window_ms)
    transfer = PendingTransfer(
        key=body.key,
        to=body.to,
        amount_micros=body.amount_micros,
        expires_at_ms=state.time_ms + body.timeout_ms,
        forget_at_ms=state.time_ms + kept_ms,
        status=PendingStatus.PENDING,
    )
    state.pending[account] = (*known, transfer)
    debit, credit = get_available(account), get_pending(account)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.HELD))
    return OK


def apply_post_hold(state: LedgerState, account: AccountId, body: PostHold) -> TransactionResult:
    """Pay a hold or a part of it, on behalf of either side; what is left returns to the payer."""
    transfer = state.get_pending_transfer(body.payer, body.key)
    if transfer is None:
        return refuse(ResultCode.UNKNOWN_HOLD)
    if account not in (body.payer, transfer.to):
        return refuse(ResultCode.NOT_PARTY, "only payer and payee may post a hold")
    if transfer.status is not PendingStatus.PENDING:
        return _SETTLED[transfer.status]
    if account == body.payer and body.amount_micros < transfer.amount_micros:
        return refuse(ResultCode.NOT_PARTY, "only the payee may post a part of a hold")
    if body.amount_micros > transfer.amount_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{transfer.amount_micros} are held")
    credit = get_available(transfer.to)
    state.post(
        Transfer(get_pending(body.payer), credit, body.amount_micros, TransferReason.HOLD_POSTED)
    )
    left_micros = transfer.amount_micros - body.amount_micros
    _release(state, body.payer, left_micros, TransferReason.HOLD_VOIDED)
    _set_status(state, body.payer, transfer, PendingStatus.POSTED)
    return OK


def apply_void_hold(state: LedgerState, account: AccountId, body: VoidHold) -> TransactionResult:
    """Give a hold back to the payer, on behalf of the payee, who alone gives something up."""
    transfer = state.get_pending_transfer(body.payer, body.key)
    if transfer is None:
        return refuse(ResultCode.UNKNOWN_HOLD)
    if account != transfer.to:
        return refuse(ResultCode.NOT_PARTY, "only the payee may void a hold; it expires by itself")
    if transfer.status is not PendingStatus.PENDING:
        return _SETTLED[transfer.status]
    _release(state, body.payer, transfer.amount_micros, TransferReason.HOLD_VOIDED)
    _set_status(state, body.payer, transfer, PendingStatus.VOIDED)
    return OK


def expire_holds(state: LedgerState, time_ms: int) -> None:
    """Return to their payers the holds whose time is over, and forget old keys."""
    for payer in sorted(state.pending):
        for transfer in state.pending[payer]:
            if transfer.status is PendingStatus.PENDING and transfer.expires_at_ms <= time_ms:
                _release(state, payer, transfer.amount_micros, TransferReason.HOLD_EXPIRED)
                _set_status(state, payer, transfer, PendingStatus.EXPIRED)
        _forget_keys(state, payer, time_ms)


def _forget_keys(state: LedgerState, payer: AccountId, time_ms: int) -> None:
    known = state.pending[payer]
    kept = tuple(transfer for transfer in known if transfer.forget_at_ms > time_ms)
    if not kept:
        del state.pending[payer]
    elif len(kept) < len(known):
        state.pending[payer] = kept


def _release(state: LedgerState, payer: AccountId, micros: int, reason: TransferReason) -> None:
    if micros > 0:
        state.post(Transfer(get_pending(payer), get_available(payer), micros, reason))


def _set_status(
    state: LedgerState, payer: AccountId, transfer: PendingTransfer, status: PendingStatus
) -> None:
    state.pending[payer] = tuple(
        replace(known, status=status) if known.key == transfer.key else known
        for known in state.pending[payer]
    )
