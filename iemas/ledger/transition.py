"""Transitions: whether a transaction may be applied, and which rule applies it.

One `apply_*` function a transaction body, in `iemas.ledger.rules`. Each checks everything before it
changes anything, so a refusal leaves the state as it was; a refusal is a recorded result, never an
exception. The order of the checks is part of the rules, as the recorded code must be the same on
every replica. Source: docs/spec/ledger.md §5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import InvalidSignatureError
from iemas.core.types import AccountId
from iemas.ledger.rules.asks import (
    apply_commit_ask,
    apply_place_deposit,
    apply_post_ask,
    apply_reveal_ask,
    apply_withdraw_deposit,
    check_first_ask,
)
from iemas.ledger.rules.election import apply_absence_vote, apply_return_to_duty
from iemas.ledger.rules.evidence import TranscriptVerifier, apply_evidence
from iemas.ledger.rules.governance import apply_vote_model, apply_vote_parameter
from iemas.ledger.rules.money import (
    apply_fund_escrow,
    apply_transfer_funds,
    apply_withdraw_escrow,
)
from iemas.ledger.rules.pending import apply_hold_funds, apply_post_hold, apply_void_hold
from iemas.ledger.rules.results import refuse
from iemas.ledger.rules.settlement import apply_round_roots, apply_settle
from iemas.ledger.rules.staking import apply_stake, apply_unstake
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    CommitAsk,
    Evidence,
    FundEscrow,
    HoldFunds,
    PlaceDeposit,
    PostAsk,
    PostHold,
    ResultCode,
    ReturnToDuty,
    RevealAsk,
    RoundRoots,
    Settle,
    Stake,
    Transaction,
    TransactionBody,
    TransactionResult,
    TransferFunds,
    Unstake,
    VoidHold,
    VoteModel,
    VoteParameter,
    WithdrawDeposit,
    WithdrawEscrow,
)


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
    if state.has_account(transaction.account):
        return None
    if isinstance(transaction.body, PostAsk):
        return check_first_ask(state, transaction.body)
    return refuse(ResultCode.UNKNOWN_ACCOUNT, "the account was never credited")


def apply_body(
    state: LedgerState,
    account: AccountId,
    body: TransactionBody,
    verify_transcript: TranscriptVerifier,
) -> TransactionResult:
    """Apply a transaction's body on behalf of `account`."""
    if isinstance(body, Evidence):
        return apply_evidence(state, account, body, verify_transcript)
    return RULES[type(body)](state, account, body)


RULES: dict[type, Callable[[LedgerState, AccountId, Any], TransactionResult]] = {
    TransferFunds: apply_transfer_funds,
    FundEscrow: apply_fund_escrow,
    WithdrawEscrow: apply_withdraw_escrow,
    PostAsk: apply_post_ask,
    RoundRoots: apply_round_roots,
    Settle: apply_settle,
    AbsenceVote: apply_absence_vote,
    ReturnToDuty: apply_return_to_duty,
    Stake: apply_stake,
    Unstake: apply_unstake,
    HoldFunds: apply_hold_funds,
    PostHold: apply_post_hold,
    VoidHold: apply_void_hold,
    PlaceDeposit: apply_place_deposit,
    WithdrawDeposit: apply_withdraw_deposit,
    CommitAsk: apply_commit_ask,
    RevealAsk: apply_reveal_ask,
    VoteModel: apply_vote_model,
    VoteParameter: apply_vote_parameter,
}
"""The rule of each kind of body but evidence, which needs a verifier besides."""
