"""Ask epochs: their number follows from ledger time, their reveal window also from proposers.

Source: docs/spec/ledger.md §9; design §6.
"""

from __future__ import annotations

from dataclasses import replace

from iemas.core.types import AccountId, HubId, NodeId
from iemas.ledger.records import AskEpochRecord, ModelKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transfer import TREASURY, Transfer, TransferReason, get_deposit


def compute_epoch(state: LedgerState, time_ms: int) -> int:
    """Give the number of the ask epoch at a time; 0 is genesis' own."""
    return (time_ms - state.genesis.time_ms) // state.params.ask_epoch_ms


def start_epoch(state: LedgerState, hub: HubId, number: int, time_ms: int) -> None:
    """Start an epoch; what was committed for earlier ones and could not be revealed lapses."""
    for key in [k for k in state.commitments if k.hub == hub and k.epoch < number]:
        del state.commitments[key]
    closes_at_ms = time_ms + state.params.ask_reveal_ms
    state.ask_epochs[hub] = AskEpochRecord(number, state.height, closes_at_ms)
    _carry_model(state, hub, number)


def _carry_model(state: LedgerState, hub: HubId, number: int) -> None:
    """Let the last model that was decided stand, and forget those before and all votes."""
    known = [key for key in sorted(state.models) if key.hub == hub]
    if known:
        last = state.models[known[-1]]
        for key in known:
            del state.models[key]
        state.models[ModelKey(hub, number)] = last
    for vote in [k for k in state.model_votes if k.hub == hub and k.epoch <= number]:
        del state.model_votes[vote]


def advance_epochs(state: LedgerState, *, elapsed_ms: int) -> None:
    """Start the epochs that are due, and close the reveal windows that are over.

    elapsed_ms: ledger time between the block before and the one being applied.
    """
    number = compute_epoch(state, state.time_ms)
    for hub in state.get_hubs():
        if number > state.ask_epochs[hub].number:
            start_epoch(state, hub, number, state.time_ms)
            continue
        _prolong_window(state, hub, elapsed_ms)
        if _is_window_over(state, hub):
            _close_window(state, hub)


def _prolong_window(state: LedgerState, hub: HubId, elapsed_ms: int) -> None:
    """Do not count against the window that the chain stood still: nobody could reveal."""
    epoch = state.ask_epochs[hub]
    still_ms = elapsed_ms - state.params.idle_block_interval_ms
    if still_ms > 0 and not epoch.closed:
        state.ask_epochs[hub] = replace(epoch, closes_at_ms=epoch.closes_at_ms + still_ms)


def _is_window_over(state: LedgerState, hub: HubId) -> bool:
    """Tell whether time is up and proposers with more than a third of the power had a block.

    So at least one correct proposer could take in every reveal.
    """
    epoch = state.ask_epochs[hub]
    if epoch.closed or state.time_ms < epoch.closes_at_ms:
        return False
    powers = dict(state.get_consensus_validators())
    had_a_block = sum(powers.get(node, 0) for node in epoch.proposers)
    return 3 * had_a_block > sum(powers.values())


def count_proposer(state: LedgerState, proposer: NodeId) -> None:
    """Note that a validator proposed a block while reveal windows were open.

    The epoch's first block is none of them: who is to reveal sees by it that the epoch began.
    """
    for hub in state.get_hubs():
        epoch = state.ask_epochs[hub]
        could_take_reveals = not epoch.closed and state.height > epoch.first_height
        if could_take_reveals and proposer not in epoch.proposers:
            proposers = tuple(sorted((*epoch.proposers, proposer)))
            state.ask_epochs[hub] = replace(epoch, proposers=proposers)


def _close_window(state: LedgerState, hub: HubId) -> None:
    """Burn the bonds of what was not revealed."""
    epoch = state.ask_epochs[hub]
    state.ask_epochs[hub] = replace(epoch, closed=True, proposers=())
    keys = sorted(k for k in state.commitments if (k.hub, k.epoch) == (hub, epoch.number))
    for key in keys:
        record = state.commitments.pop(key)
        debit = get_deposit(AccountId(key.node))
        state.post(Transfer(debit, TREASURY, record.bond_micros, TransferReason.BOND_BURNED))
