"""Transitions: what each kind of transaction does to the ledger.

One `apply_*` function a transaction body. Each checks everything before it changes anything, so a
refusal leaves the state as it was; a refusal is a recorded result, never an exception. The order
of the checks is part of the rules, as the recorded code must be the same on every replica.
Source: docs/spec/ledger.md §5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from iemas.core.auction import SealedBid, Transcript
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import InvalidInputError, InvalidSignatureError
from iemas.core.types import AccountId, ChannelId, NodeId
from iemas.ledger.state import (
    MAX_PAST_ASKS,
    AskKey,
    AskRecord,
    Duty,
    HoldKey,
    LedgerState,
    PastAsk,
    TermKey,
    TermRecord,
    TotalKey,
    TotalRecord,
    ValidatorKey,
    VoteKey,
)
from iemas.ledger.terms import apply_absence, is_voted_absent
from iemas.ledger.transaction import (
    AbsenceVote,
    FundEscrow,
    PostAsk,
    ResultCode,
    ReturnToDuty,
    RoundRoots,
    Settle,
    SettlementEntry,
    Transaction,
    TransactionBody,
    TransactionResult,
    TranscriptEvidence,
    TransferFunds,
    WithdrawEscrow,
)
from iemas.ledger.transfer import (
    TREASURY,
    Transfer,
    TransferReason,
    get_available,
    get_escrow,
)

TranscriptVerifier = Callable[[Signed[Transcript], LedgerState], None]
"""Re-checks a round; raises InvalidTranscriptError if it is wrong. Must be deterministic."""

OK = TransactionResult(ResultCode.OK)


def refuse(code: ResultCode, detail: str = "") -> TransactionResult:
    """Make the recorded result of a refusal."""
    return TransactionResult(code, detail)


def apply_transaction(
    state: LedgerState, signed: Signed[Transaction], verify_transcript: TranscriptVerifier
) -> tuple[TransactionResult, bool]:
    """Apply one ordered transaction; give its result, and whether it used up its id and nonce.

    A transaction whose signature and nonce hold uses them up even if its body is refused, so it
    can never be applied later, in circumstances that its sender did not see.
    """
    refusal = check_admission(state, signed)
    if refusal is not None:
        return refusal, False
    transaction = signed.message
    state.set_nonce(transaction.account, transaction.nonce)
    return apply_body(state, transaction.account, transaction.body, verify_transcript), True


def check_admission(state: LedgerState, signed: Signed[Transaction]) -> TransactionResult | None:
    """Check what holds for every transaction; give the refusal, or None if it may be applied."""
    transaction = signed.message
    if state.is_applied(signed.hash):
        return refuse(ResultCode.ALREADY_DONE, "this very transaction was applied before")
    try:
        verify_signed(signed, state.chain_id, expected_signer=transaction.account)
    except InvalidSignatureError as error:
        return refuse(ResultCode.WRONG_SIGNER, str(error))
    last_nonce = state.get_nonce(transaction.account)
    if transaction.nonce <= last_nonce:
        return refuse(ResultCode.NONCE_TOO_LOW, f"the last nonce was {last_nonce}")
    # A provider that has just joined has earned nothing yet: its first ask opens its account.
    opens_account = isinstance(transaction.body, PostAsk)
    if not opens_account and not state.has_account(transaction.account):
        return refuse(ResultCode.UNKNOWN_ACCOUNT, "the account was never credited")
    return None


def apply_body(
    state: LedgerState,
    account: AccountId,
    body: TransactionBody,
    verify_transcript: TranscriptVerifier,
) -> TransactionResult:
    """Apply a transaction's body on behalf of `account`."""
    match body:
        case TransferFunds():
            return apply_transfer_funds(state, account, body)
        case FundEscrow():
            return apply_fund_escrow(state, account, body)
        case WithdrawEscrow():
            return apply_withdraw_escrow(state, account, body)
        case PostAsk():
            return apply_post_ask(state, account, body)
        case RoundRoots():
            return apply_round_roots(state, account, body)
        case Settle():
            return apply_settle(state, account, body)
        case AbsenceVote():
            return apply_absence_vote(state, account, body)
        case ReturnToDuty():
            return apply_return_to_duty(state, account, body)
        case TranscriptEvidence():
            return apply_transcript_evidence(state, body, verify_transcript)


# --- money ---------------------------------------------------------------------------------------


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


# --- the market ----------------------------------------------------------------------------------


def apply_post_ask(state: LedgerState, account: AccountId, body: PostAsk) -> TransactionResult:
    """Replace the sender's standing ask, and remember in which terms the old one stood.

    Every ask of an open term is remembered, as rounds cleared at it are still re-checked; so an ask
    can be replaced only so often.
    """
    hub = body.ask.hub
    if hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    key = AskKey(hub, NodeId(account))
    current = state.current_terms[hub]
    record = state.asks.get(key)
    past: tuple[PastAsk, ...] = ()
    if record is not None:
        if len(record.past) >= MAX_PAST_ASKS:
            limit = f"the ask was replaced {MAX_PAST_ASKS} times within the open terms; wait"
            return refuse(ResultCode.INVALID_ENTRY, limit)
        past = (*record.past, PastAsk(record.prices, record.from_term, current))
    state.asks[key] = AskRecord(body.ask.prices, current, past)
    return OK


def apply_round_roots(
    state: LedgerState, account: AccountId, body: RoundRoots
) -> TransactionResult:
    """Close the books on an ended term: keep its roots, free its holds, charge its bid fees."""
    key = TermKey(body.hub, body.term)
    refusal, term = _find_term(state, key)
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
        elif not _is_signed_by(signed, bid.account, state):
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
    codes = [apply_settlement_entry(state, account, entry) for entry in body.entries]
    failures = [(i, code) for i, code in enumerate(codes) if code is not ResultCode.OK]
    code = ResultCode.OK if len(failures) < len(codes) else codes[0]
    return TransactionResult(code, format_failures(failures))


def apply_settlement_entry(
    state: LedgerState, provider: AccountId, entry: SettlementEntry
) -> ResultCode:
    """Pay the provider the difference to what the channel's running total already settled."""
    total, allocation = entry.total.message, entry.allocation.message
    unknown, term = _find_term(state, TermKey(total.hub, total.term))
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
        return ResultCode.OVER_ALLOWANCE
    _pay_settlement(state, key, due_micros)
    state.totals[key] = TotalRecord(total.sequence, total.total_micros)
    return ResultCode.OK


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
    if not _is_signed_by(entry.allocation, term.auctioneer, state):
        return ResultCode.NOT_AUCTIONEER
    if not _is_signed_by(entry.total, total.account, state):
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


# --- the election --------------------------------------------------------------------------------


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
    return OK


def apply_return_to_duty(
    state: LedgerState, account: AccountId, body: ReturnToDuty
) -> TransactionResult:
    """Let an absent validator take part again from the next term on."""
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    key = ValidatorKey(body.hub, NodeId(account))
    record = state.validators.get(key)
    if record is None:
        return refuse(ResultCode.NOT_VALIDATOR)
    if record.duty is not Duty.ABSENT:
        return refuse(ResultCode.ALREADY_DONE, "the validator is not absent")
    state.validators[key] = replace(record, duty=Duty.RETURNING)
    return OK


def apply_transcript_evidence(
    state: LedgerState, body: TranscriptEvidence, verify_transcript: TranscriptVerifier
) -> TransactionResult:
    """Re-check a transcript; if it is wrong, take its auctioneer out, once a term."""
    transcript = body.transcript.message
    key = TermKey(transcript.hub, transcript.term)
    refusal, term = _find_term(state, key)
    if term is None:
        return refusal
    if not _is_signed_by(body.transcript, term.auctioneer, state):
        return refuse(ResultCode.NOT_AUCTIONEER)
    if term.convicted:
        return refuse(ResultCode.ALREADY_DONE)
    try:
        verify_transcript(body.transcript, state)
    except InvalidInputError as error:
        # The name alone: an error's text may differ between versions, a result must not.
        rule = type(error).__name__
    else:
        return refuse(ResultCode.INVALID_ENTRY, "the transcript re-checks")
    state.terms[key] = replace(term, convicted=True)
    if state.validators[ValidatorKey(key.hub, term.auctioneer)].duty is not Duty.ABSENT:
        apply_absence(state, key.hub, term.auctioneer)
    return TransactionResult(ResultCode.OK, rule)


# --- helpers -------------------------------------------------------------------------------------


def format_failures(failures: Iterable[tuple[int, ResultCode]]) -> str:
    """Write failed entries as ``index:CODE index:CODE``, for a result's `detail`."""
    return " ".join(f"{index}:{code.name}" for index, code in failures)


def parse_failures(detail: str) -> dict[int, ResultCode]:
    """Read what `format_failures` wrote: the failed entries by index."""
    pairs = (item.split(":", 1) for item in detail.split())
    return {int(index): ResultCode[name] for index, name in pairs}


def _find_term(state: LedgerState, key: TermKey) -> tuple[TransactionResult, TermRecord | None]:
    """Give an open term, or else the refusal that tells why there is none."""
    if key.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB), None
    return refuse(ResultCode.UNKNOWN_TERM, "the term is not open"), state.terms.get(key)


def _is_signed_by(signed: Signed[object], signer: NodeId | AccountId, state: LedgerState) -> bool:
    try:
        verify_signed(signed, state.chain_id, expected_signer=signer)
    except InvalidSignatureError:
        return False
    return True
