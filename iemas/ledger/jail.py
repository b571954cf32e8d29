"""Jail: taking a validator out of consensus and out of every hub's election.

Source: docs/spec/ledger.md §7; Cosmos SDK `x/slashing` (jailed, tombstoned).
"""

from __future__ import annotations

from iemas.core.types import HubId, NodeId
from iemas.ledger.records import Duty, JailRecord, ValidatorKey
from iemas.ledger.state import LedgerState
from iemas.ledger.terms import apply_absence, is_last_live


def apply_jail(state: LedgerState, node: NodeId, until_ms: int | None) -> bool:
    """Jail a validator, for good if `until_ms` is None, unless nobody else is left; tell whether.

    A longer sentence is not shortened.
    """
    members = {member for member, _ in state.get_consensus_validators()}
    if not state.is_validator(node) or members <= {node} or is_last_live(state, node):
        return False
    known = state.jails.get(node)
    if known is None or _is_longer(until_ms, known.until_ms):
        state.jails[node] = JailRecord(until_ms)
    for hub in state.get_hubs():
        if state.validators[ValidatorKey(hub, node)].duty is not Duty.ABSENT:
            apply_absence(state, hub, node)
    return True


def record_absence(state: LedgerState, hub: HubId, node: NodeId, term: int) -> None:
    """Count a validator's absence; too many within the window jail it for a time."""
    params = state.params
    key = ValidatorKey(hub, node)
    known = state.absences.get(key, ())
    recent = tuple(t for t in known if t > term - params.absence_window_terms)
    state.absences[key] = (*recent, term)[-params.absence_limit :]
    if len(state.absences[key]) < params.absence_limit or is_too_much_jailed(state, node):
        return
    if apply_jail(state, node, state.time_ms + params.jail_ms):
        del state.absences[key]


def is_too_much_jailed(state: LedgerState, node: NodeId) -> bool:
    """Tell whether more than a third of all stake would be jailed, this node's included."""
    nodes = {key.node for key in state.validators}
    total_micros = sum(state.get_stake_micros(member) for member in nodes)
    jailed = {member for member in nodes if state.is_jailed(member)} | {node}
    return 3 * sum(state.get_stake_micros(member) for member in jailed) > total_micros


def forget_served_jails(state: LedgerState) -> None:
    """Forget the jail of who has left in the meantime, once it would be over."""
    for node in sorted(state.jails):
        until_ms = state.jails[node].until_ms
        is_over = until_ms is not None and until_ms <= state.time_ms
        if is_over and not state.is_validator(node):
            del state.jails[node]


def _is_longer(until_ms: int | None, than_ms: int | None) -> bool:
    return than_ms is not None and (until_ms is None or until_ms > than_ms)
