"""Stake: how a node becomes a validator, and leaves. Source: docs/spec/ledger.md §6."""

from __future__ import annotations

from iemas.core.types import AccountId, NodeId
from iemas.ledger.records import UnbondingKey
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.terms import enrol_validator, is_last_live, remove_validator
from iemas.ledger.transaction import ResultCode, Stake, TransactionResult, Unstake
from iemas.ledger.transfer import (
    Transfer,
    TransferReason,
    get_available,
    get_stake,
    get_unbonding,
)

MAX_UNBONDING_ENTRIES = 7
"""How many parts of an account's stake may unbond at once, as in Cosmos SDK's `x/staking`."""


def apply_stake(state: LedgerState, account: AccountId, body: Stake) -> TransactionResult:
    """Bond available money; a newcomer votes on the next height, is elected from the next term."""
    node = NodeId(account)
    available_micros = state.get_funds(get_available(account))
    if body.amount_micros > available_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{available_micros} are available")
    least_micros = state.params.min_stake_micros
    if state.get_stake_micros(node) + body.amount_micros < least_micros:
        return refuse(ResultCode.BELOW_MINIMUM, f"the least stake is {least_micros}")
    jail = state.jails.get(node)
    is_tombstoned = jail is not None and jail.until_ms is None
    if is_tombstoned and body.amount_micros < least_micros:
        return refuse(ResultCode.JAILED, f"stake at least {least_micros} anew")
    is_newcomer = not state.is_validator(node)
    if is_newcomer and len(state.get_consensus_validators()) >= state.params.max_validators:
        return refuse(ResultCode.LIMIT_REACHED, "there are as many validators as there may be")
    debit, credit = get_available(account), get_stake(account)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.STAKED))
    if is_tombstoned:
        del state.jails[node]
    if is_newcomer or is_tombstoned:
        enrol_validator(state, node)
    return OK


def apply_unstake(state: LedgerState, account: AccountId, body: Unstake) -> TransactionResult:
    """Let stake unbond: it gives no power any more, but can be slashed until it is released."""
    node = NodeId(account)
    if not state.is_validator(node):
        return refuse(ResultCode.NOT_VALIDATOR)
    stake_micros = state.get_stake_micros(node)
    if body.amount_micros > stake_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{stake_micros} are staked")
    left_micros = stake_micros - body.amount_micros
    shortage = _find_shortage(state, node, left_micros, body.amount_micros)
    if shortage:
        return refuse(ResultCode.BELOW_MINIMUM, shortage)
    key = UnbondingKey(state.time_ms + state.params.unbonding_ms, account)
    if key not in state.unbonding and len(state.get_unbonding(account)) >= MAX_UNBONDING_ENTRIES:
        return refuse(ResultCode.LIMIT_REACHED, f"{MAX_UNBONDING_ENTRIES} parts unbond already")
    state.unbonding[key] = state.unbonding.get(key, 0) + body.amount_micros
    debit, credit = get_stake(account), get_unbonding(account)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.UNSTAKED))
    if left_micros == 0:
        remove_validator(state, node)
    return OK


def _find_shortage(state: LedgerState, node: NodeId, left_micros: int, leaving_micros: int) -> str:
    """Say what would be too little if the stake left; empty if nothing would be."""
    least_micros = state.params.min_stake_micros
    if 0 < left_micros < least_micros:
        return f"leave all, or at least {least_micros}"
    if left_micros == 0 and is_last_live(state, node):
        return "it is the last live validator of a hub"
    remaining = [(member, power) for member, power in state.get_consensus_validators()]
    is_member = any(member == node for member, _ in remaining)
    total_micros = sum(power for _, power in remaining) - (leaving_micros if is_member else 0)
    least_micros = max(1, state.params.min_total_stake_micros)
    if is_member and total_micros < least_micros:
        return f"the validators must keep {least_micros} staked"
    return ""


def release_unbonded(state: LedgerState, time_ms: int) -> None:
    """Make available what has unbonded by a block's time."""
    for key in sorted(key for key in state.unbonding if key.release_at_ms <= time_ms):
        debit, credit = get_unbonding(key.account), get_available(key.account)
        amount_micros = state.unbonding.pop(key)
        state.post(Transfer(debit, credit, amount_micros, TransferReason.UNBONDED))
