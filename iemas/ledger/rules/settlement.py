"""Closing a term's books, and paying providers. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from iemas.core.auction import SealedBid
from iemas.core.envelope import Signed
from iemas.core.types import AccountId, ChannelId, HubId, NodeId
from iemas.ledger.records import (
    HoldKey,
    ShortfallRecord,
    TermKey,
    TermRecord,
    TotalKey,
    TotalRecord,
)
from iemas.ledger.rules.results import find_term, format_failures, is_signed_by, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    ResultCode,
    RoundRoots,
    Settle,
    SettlementEntry,
    TransactionResult,
)
from iemas.ledger.transfer import (
    TREASURY,
    Transfer,
    TransferReason,
    get_available,
    get_escrow,
)

MAX_SHORTFALLS = 1000
"""How many unpaid totals are remembered of one term."""


def apply_round_roots(
    state: LedgerState, account: AccountId, body: RoundRoots
) -> TransactionResult:
    """Close the books on an ended term: keep its roots, free its holds, charge its bid fees."""
    key = TermKey(body.hub, body.term)
    refusal, term = find_term(state, key)
    if term is None:
        return refusal
    if NodeId(account) != term.auctioneer:
        return refuse(ResultCode.NOT_AUCTIONEER)
    if key.number == state.current_terms[body.hub]:
        return refuse(ResultCode.INVALID_ENTRY, "the term has not ended")
    if term.books_closed:
        return refuse(ResultCode.ALREADY_DONE)
    reserved = {hold.account: hold.reserved_micros for hold in body.holds}
    if len(reserved) < len(body.holds):
        return refuse(ResultCode.INVALID_ENTRY, "an account is listed twice")
    state.terms[key] = replace(term, books_closed=True, roots=body.transcript_hashes)
    _free_holds(state, key, reserved)
    skipped = _charge_bid_fees(state, key, body.bids)
    return TransactionResult(ResultCode.OK, format_failures(skipped))


def _free_holds(state: LedgerState, term: TermKey, reserved: dict[AccountId, int]) -> None:
    """Hold no more than was reserved, nor less than was settled already."""
    for key in sorted(state.holds):
        if (key.hub, key.term) == term:
            hold = state.holds[key]
            wanted = max(reserved.get(key.account, 0), hold.settled_micros)
            state.holds[key] = replace(hold, held_micros=min(hold.held_micros, wanted))


def _charge_bid_fees(
    state: LedgerState, term: TermKey, bids: Iterable[Signed[SealedBid]]
) -> list[tuple[int, ResultCode]]:
    """Charge each channel its highest proven nonce, as far as its escrow is free.

    Gives the bids that prove nothing, with the reason.
    """
    nonces: dict[tuple[AccountId, ChannelId], int] = {}
    skipped: list[tuple[int, ResultCode]] = []
    for index, signed in enumerate(bids):
        bid = signed.message
        if (bid.hub, bid.term) != term:
            skipped.append((index, ResultCode.INVALID_ENTRY))
        elif not is_signed_by(signed, bid.account, state):
            skipped.append((index, ResultCode.WRONG_SIGNER))
        else:
            channel = (bid.account, bid.channel)
            nonces[channel] = max(nonces.get(channel, 0), bid.nonce)
    for (account, _), nonce in sorted(nonces.items()):
        owed_micros = nonce * state.params.bid_fee_micros
        fee_micros = min(owed_micros, state.get_free_escrow(term.hub, account))
        if fee_micros > 0:
            debit = get_escrow(account, term.hub)
            state.post(Transfer(debit, TREASURY, fee_micros, TransferReason.BID_FEES))
    return skipped


def apply_settle(state: LedgerState, account: AccountId, body: Settle) -> TransactionResult:
    """Judge each entry by itself; refused only if every entry is, with the first one's code."""
    kept = Counter((key.hub, key.term) for key in state.shortfalls)
    codes = [apply_settlement_entry(state, account, entry, kept) for entry in body.entries]
    failures = [(i, code) for i, code in enumerate(codes) if code is not ResultCode.OK]
    code = ResultCode.OK if len(failures) < len(codes) else codes[0]
    return TransactionResult(code, format_failures(failures))


def verify_settlement_signatures(state: LedgerState, body: Settle) -> bool:
    """Tell whether all signatures of a settlement hold; what is found is remembered.

    An entry of an unknown term is not looked at: the block will refuse it without.
    """
    checked = []
    for entry in body.entries:
        total = entry.total.message
        term = state.terms.get(TermKey(total.hub, total.term))
        if term is not None:
            checked.append(is_signed_by(entry.allocation, term.auctioneer, state))
            checked.append(is_signed_by(entry.total, total.account, state))
    return all(checked)


def apply_settlement_entry(
    state: LedgerState,
    provider: AccountId,
    entry: SettlementEntry,
    kept: Counter[tuple[HubId, int]],
) -> ResultCode:
    """Pay the provider the difference to what the channel's running total already settled.

    `kept` counts the shortfalls of each hub and term, and goes on counting.
    """
    total, allocation = entry.total.message, entry.allocation.message
    unknown, term = find_term(state, TermKey(total.hub, total.term))
    if term is None:
        return unknown.code
    refusal = _check_entry(state, provider, entry, term)
    if refusal is not None:
        return refusal
    key = TotalKey(total.hub, total.term, total.account, total.channel, total.provider)
    settled = state.get_settled_total(key)
    if total.sequence <= settled.sequence or total.total_micros < settled.total_micros:
        return ResultCode.STALE_TOTAL
    if total.total_micros > allocation.channel_reserved_micros:
        return ResultCode.OVER_RESERVATION
    due_micros = total.total_micros - settled.total_micros
    if due_micros > state.get_settleable(total.hub, total.account, total.term):
        _record_shortfall(state, key, total.total_micros, kept)
        return ResultCode.OVER_ALLOWANCE
    _pay_settlement(state, key, due_micros)
    state.totals[key] = TotalRecord(total.sequence, total.total_micros)
    return ResultCode.OK


def _record_shortfall(
    state: LedgerState, key: TotalKey, total_micros: int, kept: Counter[tuple[HubId, int]]
) -> None:
    """Remember what the auctioneer allocated beyond the allowance; slashed money pays it."""
    known = state.shortfalls.get(key)
    if known is None:
        if kept[key.hub, key.term] < MAX_SHORTFALLS:
            state.shortfalls[key] = ShortfallRecord(total_micros)
            kept[key.hub, key.term] += 1
    elif total_micros > known.claimed_micros:
        state.shortfalls[key] = replace(known, claimed_micros=total_micros)


def _check_entry(
    state: LedgerState, provider: AccountId, entry: SettlementEntry, term: TermRecord
) -> ResultCode | None:
    """Check that allocation and total belong together, to the sender, and are rightly signed."""
    total, allocation = entry.total.message, entry.allocation.message
    channel = (total.hub, total.term, total.account, total.channel, total.provider)
    if channel != (
        allocation.hub,
        allocation.term,
        allocation.account,
        allocation.channel,
        allocation.provider,
    ):
        return ResultCode.INVALID_ENTRY
    if total.provider != NodeId(provider):
        return ResultCode.INVALID_ENTRY
    if not is_signed_by(entry.allocation, term.auctioneer, state):
        return ResultCode.NOT_AUCTIONEER
    if not is_signed_by(entry.total, total.account, state):
        return ResultCode.WRONG_SIGNER
    return None


def _pay_settlement(state: LedgerState, key: TotalKey, due_micros: int) -> None:
    if due_micros == 0:
        return
    hold_key = HoldKey(key.hub, key.term, key.account)
    hold = state.holds[hold_key]
    state.holds[hold_key] = replace(hold, settled_micros=hold.settled_micros + due_micros)
    debit, credit = get_escrow(key.account, key.hub), get_available(AccountId(key.provider))
    state.post(Transfer(debit, credit, due_micros, TransferReason.SETTLEMENT))
