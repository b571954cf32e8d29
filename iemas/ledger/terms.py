"""Terms: how one ends and the next starts, what it freezes, and how a validator is taken out.

Source: docs/spec/ledger.md §3 and §4, docs/spec/election.md; design §7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from iemas.core.election import Candidate, compute_newcomer_priority, compute_term
from iemas.core.types import PPM, AccountId, HubId, NodeId
from iemas.ledger.records import (
    Duty,
    HoldKey,
    HoldRecord,
    PastAsk,
    TermKey,
    TermRecord,
    ValidatorKey,
    ValidatorRecord,
)
from iemas.ledger.state import LedgerState, group_open_micros
from iemas.ledger.transfer import TREASURY, Transfer, TransferReason, get_escrow


def apply_due_terms(state: LedgerState, time_ms: int) -> None:
    """Start the next term of every hub whose current one has run its time."""
    for hub in state.get_hubs():
        if time_ms >= state.get_term(hub).started_at_ms + state.params.term_ms:
            apply_next_term(state, hub, time_ms)


def apply_next_term(state: LedgerState, hub: HubId, time_ms: int) -> None:
    """End the hub's current term and start the next one at `time_ms`."""
    start_term(state, hub, state.current_terms[hub] + 1, time_ms)


def start_term(state: LedgerState, hub: HubId, number: int, time_ms: int) -> None:
    """Adopt changed parameters, elect, drop old votes, close due terms, freeze what it may use.

    That is the accounts' allowances and the QoS model.
    """
    state.adopt_parameters()
    _return_to_duty(state, hub)
    term, after = compute_term(
        hub,
        number,
        state.get_candidates(hub),
        started_at_ms=time_ms,
        sitting_out=state.get_sitting_out(hub),
    )
    _set_priorities(state, hub, after)
    consecutive = 1 + state.count_consecutive_terms(hub, term.auctioneer)
    for vote in [key for key in state.votes if key.hub == hub]:
        del state.votes[vote]
    close_terms(state, hub, number - state.params.settle_terms)
    state.terms[TermKey(hub, number)] = TermRecord(
        term.auctioneer, term.witness, time_ms, consecutive, model=state.get_model(hub)
    )
    state.current_terms[hub] = number
    _freeze_allowances(state, hub, number)


def close_terms(state: LedgerState, hub: HubId, oldest_open: int) -> None:
    """Forget the terms below `oldest_open`: what they held is free, nothing of them settles.

    What was reserved and not used costs a fee.
    """
    unused = _collect_unused(state, hub, oldest_open)
    for key in [k for k in state.terms if k.hub == hub and k.number < oldest_open]:
        del state.terms[key]
    for hold in [k for k in state.holds if k.hub == hub and k.term < oldest_open]:
        del state.holds[hold]
    _charge_reservation_fees(state, hub, unused)
    for total in [k for k in state.totals if k.hub == hub and k.term < oldest_open]:
        del state.totals[total]
    for shortfall in [k for k in state.shortfalls if k.hub == hub and k.term < oldest_open]:
        del state.shortfalls[shortfall]
    for ask, record in list(state.asks.items()):
        past: tuple[PastAsk, ...] = tuple(p for p in record.past if p.to_term >= oldest_open)
        if ask.hub == hub and len(past) < len(record.past):
            state.asks[ask] = replace(record, past=past)


def _collect_unused(state: LedgerState, hub: HubId, oldest_open: int) -> dict[AccountId, int]:
    """Add up per account what rounds of the closing terms reserved and nobody settled.

    Without closed books it is not known what was reserved.
    """
    unused: dict[AccountId, int] = {}
    for key, hold in state.holds.items():
        if key.hub == hub and key.term < oldest_open:
            term = state.terms.get(TermKey(hub, key.term))
            if term is not None and term.books_closed:
                unused[key.account] = unused.get(key.account, 0) + hold.open_micros
    return unused


def _charge_reservation_fees(
    state: LedgerState, hub: HubId, unused: Mapping[AccountId, int]
) -> None:
    """Charge the fee, rounded down, as far as the account's escrow is free."""
    for account in sorted(unused):
        owed_micros = unused[account] * state.params.reservation_fee_ppm // PPM
        fee_micros = min(owed_micros, state.get_free_escrow(hub, account))
        if fee_micros > 0:
            debit = get_escrow(account, hub)
            state.post(Transfer(debit, TREASURY, fee_micros, TransferReason.RESERVATION_FEES))


def apply_absence(state: LedgerState, hub: HubId, accused: NodeId) -> bool:
    """Take a live validator out of the election, unless it is the hub's last; tell whether.

    If it is on duty, a new term starts at once, at the time of the block being applied.
    """
    if state.get_live_validators(hub) == (accused,):
        return False
    state.validators[ValidatorKey(hub, accused)] = ValidatorRecord(0, Duty.ABSENT)
    _relieve(state, hub, accused)
    return True


def enrol_validator(state: LedgerState, node: NodeId) -> None:
    """Let a node that now has stake enter every hub's election with the next term.

    One that is still jailed enters as absent: it left, but its time is not over.
    """
    duty = Duty.ABSENT if state.is_jailed(node) else Duty.RETURNING
    for hub in state.get_hubs():
        key = ValidatorKey(hub, node)
        if not state.is_live(hub, node):
            state.validators[key] = ValidatorRecord(0, duty)


def remove_validator(state: LedgerState, node: NodeId) -> None:
    """Take a node without stake out of every hub's election; it is no hub's last live one."""
    for hub in state.get_hubs():
        del state.validators[ValidatorKey(hub, node)]
        state.absences.pop(ValidatorKey(hub, node), None)
        _relieve(state, hub, node)
    for vote in [key for key in state.parameter_votes if key.voter == node]:
        del state.parameter_votes[vote]


def is_last_live(state: LedgerState, node: NodeId) -> bool:
    """Tell whether some hub would be left without a live validator."""
    return any(state.get_live_validators(hub) == (node,) for hub in state.get_hubs())


def _relieve(state: LedgerState, hub: HubId, node: NodeId) -> None:
    """Start a new term, at the time of the block being applied, if the node is on duty."""
    term = state.get_term(hub)
    if node in (term.auctioneer, term.witness):
        apply_next_term(state, hub, state.time_ms)


def is_voted_absent(state: LedgerState, hub: HubId, accused: NodeId) -> bool:
    """Tell whether live validators with more than half of the others' stake voted so."""
    others = [node for node in state.get_live_validators(hub) if node != accused]
    voters = {key.voter for key in state.votes if key.hub == hub and key.accused == accused}
    total_micros = sum(state.get_stake_micros(node) for node in others)
    voted_micros = sum(state.get_stake_micros(node) for node in others if node in voters)
    return 2 * voted_micros > total_micros


def _return_to_duty(state: LedgerState, hub: HubId) -> None:
    """Let returning validators in, each behind everyone else (election.md R5)."""
    returning = [
        node
        for node in state.get_validators(hub)
        if state.validators[ValidatorKey(hub, node)].duty is Duty.RETURNING
    ]
    members = (*state.get_live_validators(hub), *returning)
    priority = compute_newcomer_priority(sum(state.get_stake_micros(node) for node in members))
    for node in returning:
        state.validators[ValidatorKey(hub, node)] = ValidatorRecord(priority, Duty.LIVE)


def _set_priorities(state: LedgerState, hub: HubId, candidates: tuple[Candidate, ...]) -> None:
    for candidate in candidates:
        key = ValidatorKey(hub, candidate.node_id)
        state.validators[key] = ValidatorRecord(candidate.priority, Duty.LIVE)


def _freeze_allowances(state: LedgerState, hub: HubId, number: int) -> None:
    """Give each account a part of the escrow that no open term may still settle."""
    open_micros = group_open_micros(state.holds, hub)
    accounts: list[AccountId] = sorted(state.accounts)
    for account in accounts:
        free_micros = state.get_funds(get_escrow(account, hub)) - open_micros.get(account, 0)
        allowance_micros = free_micros // state.params.allowance_divisor
        if allowance_micros > 0:
            key = HoldKey(hub, number, account)
            state.holds[key] = HoldRecord(allowance_micros, allowance_micros)
