"""Absence and return. Source: docs/spec/election.md."""

from __future__ import annotations

from dataclasses import replace

from iemas.core.types import AccountId, NodeId
from iemas.ledger.jail import record_absence
from iemas.ledger.records import Duty, ValidatorKey, VoteKey
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.terms import apply_absence, is_voted_absent
from iemas.ledger.transaction import AbsenceVote, ResultCode, ReturnToDuty, TransactionResult


def apply_absence_vote(
    state: LedgerState, account: AccountId, body: AbsenceVote
) -> TransactionResult:
    """Count a live validator's vote; a majority of the others takes the accused out."""
    voter, hub = NodeId(account), body.hub
    if hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    if not state.is_live(hub, voter):
        return refuse(ResultCode.NOT_VALIDATOR, "the voter is no live validator")
    if not state.is_validator(body.validator, hub):
        return refuse(ResultCode.NOT_VALIDATOR, "the accused is no validator")
    if body.validator == voter:
        return refuse(ResultCode.INVALID_ENTRY, "a validator cannot vote itself absent")
    if body.term != state.current_terms[hub]:
        return refuse(ResultCode.UNKNOWN_TERM, f"the current term is {state.current_terms[hub]}")
    key = VoteKey(hub, body.validator, voter)
    if key in state.votes or not state.is_live(hub, body.validator):
        return refuse(ResultCode.ALREADY_DONE)
    state.votes[key] = body.term
    if is_voted_absent(state, hub, body.validator):
        apply_absence(state, hub, body.validator)
        record_absence(state, hub, body.validator, body.term)
    return OK


def apply_return_to_duty(
    state: LedgerState, account: AccountId, body: ReturnToDuty
) -> TransactionResult:
    """Let an absent or jailed validator take part again from the next term on."""
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    key = ValidatorKey(body.hub, NodeId(account))
    record = state.validators.get(key)
    if record is None:
        return refuse(ResultCode.NOT_VALIDATOR)
    if record.duty is not Duty.ABSENT:
        return refuse(ResultCode.ALREADY_DONE, "the validator is not absent")
    if not state.may_return(body.hub, key.node):
        jail = state.jails[key.node]
        wanted = "stake anew" if jail.until_ms is None else f"jailed until {jail.until_ms}"
        return refuse(ResultCode.JAILED, wanted)
    state.jails.pop(key.node, None)
    state.validators[key] = replace(record, duty=Duty.RETURNING)
    return OK
