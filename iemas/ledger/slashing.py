"""Slashing: what a misbehaving validator loses, and who gets it. All integers, rounded down.

Source: docs/spec/ledger.md §7; design §7 (a reporter gets at most 5 %, unpaid providers first).
"""

from __future__ import annotations

from dataclasses import replace

from iemas.core.types import PPM, AccountId, NodeId
from iemas.ledger.records import TermKey, TotalKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transfer import (
    TREASURY,
    LedgerAccount,
    Transfer,
    TransferReason,
    get_available,
    get_stake,
    get_unbonding,
)


def apply_slash(state: LedgerState, node: NodeId, ppm: int, reporter: AccountId) -> int:
    """Take `ppm` of the node's stake and of each unbonding entry; give what was taken in all.

    Unpaid providers come first, then the reporter, the rest stays with the treasury.
    """
    account = AccountId(node)
    slashed_micros = state.get_stake_micros(node) * ppm // PPM
    _pay(state, get_stake(account), TREASURY, slashed_micros, TransferReason.SLASHED)
    for key in state.get_unbonding(account):
        part_micros = state.unbonding[key] * ppm // PPM
        state.unbonding[key] -= part_micros
        _pay(state, get_unbonding(account), TREASURY, part_micros, TransferReason.SLASHED)
        slashed_micros += part_micros
    _pay_unpaid(state, node, slashed_micros * state.params.unpaid_ppm // PPM)
    if reporter != account:
        reward_micros = slashed_micros * state.params.reporter_ppm // PPM
        credit = get_available(reporter)
        _pay(state, TREASURY, credit, reward_micros, TransferReason.REPORTER_REWARD)
    return slashed_micros


def _pay_unpaid(state: LedgerState, auctioneer: NodeId, most_micros: int) -> None:
    """Pay what the auctioneer's open terms left unpaid, in proportion if it is too much."""
    claims = {key: state.get_unpaid(key) for key in _find_claims(state, auctioneer)}
    total_micros = sum(claims.values())
    for key, unpaid_micros in claims.items():
        share_micros = unpaid_micros
        if total_micros > most_micros:
            share_micros = unpaid_micros * most_micros // total_micros
        if share_micros == 0:
            continue
        settled = state.get_settled_total(key)  # what a slash pays is never settled again
        state.totals[key] = replace(settled, total_micros=settled.total_micros + share_micros)
        credit = get_available(AccountId(key.provider))
        _pay(state, TREASURY, credit, share_micros, TransferReason.UNPAID_SETTLEMENT)


def _find_claims(state: LedgerState, auctioneer: NodeId) -> list[TotalKey]:
    """List the shortfalls of others under the auctioneer's allocations, in key order."""
    return [
        key
        for key in sorted(state.shortfalls)
        if key.provider != auctioneer
        and state.terms[TermKey(key.hub, key.term)].auctioneer == auctioneer
    ]


def _pay(
    state: LedgerState,
    debit: LedgerAccount,
    credit: LedgerAccount,
    micros: int,
    reason: TransferReason,
) -> None:
    if micros > 0:
        state.post(Transfer(debit, credit, micros, reason))
