"""Evidence of misbehaviour: one door, a rule for each kind. Source: docs/spec/ledger.md §7."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iemas.core.auction import Transcript
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidInputError
from iemas.core.types import AccountId
from iemas.ledger.jail import apply_jail
from iemas.ledger.records import Duty, OffenceKey, TermKey, ValidatorKey
from iemas.ledger.rules.results import find_term, is_signed_by, refuse
from iemas.ledger.slashing import apply_slash
from iemas.ledger.state import LedgerState
from iemas.ledger.terms import apply_absence
from iemas.ledger.transaction import (
    DoubleVoteEvidence,
    Evidence,
    ResultCode,
    TransactionResult,
    TranscriptEvidence,
)

TranscriptVerifier = Callable[[Signed[Transcript], LedgerState], None]
"""Re-checks a round; raises InvalidTranscriptError if it is wrong. Must be deterministic."""


def apply_evidence(
    state: LedgerState,
    reporter: AccountId,
    body: Evidence,
    verify_transcript: TranscriptVerifier,
) -> TransactionResult:
    """Judge evidence; if it proves something new, punish whom it is about."""
    if isinstance(body.evidence, DoubleVoteEvidence):
        return apply_double_vote_evidence(state, reporter, body.evidence)
    return apply_transcript_evidence(state, reporter, body.evidence, verify_transcript)


def apply_double_vote_evidence(
    state: LedgerState, reporter: AccountId, evidence: DoubleVoteEvidence
) -> TransactionResult:
    """Slash a validator that voted twice, and jail it until it stakes anew."""
    refusal = _check_double_vote(state, evidence)
    if refusal is not None:
        return refusal
    signer, height = evidence.first.signer_id, evidence.first.message.height
    state.offences[OffenceKey(signer, height)] = state.time_ms
    apply_slash(state, signer, state.params.double_vote_slash_ppm, reporter)
    apply_jail(state, signer, until_ms=None)
    return TransactionResult(ResultCode.OK, "DoubleVote")


def _check_double_vote(
    state: LedgerState, evidence: DoubleVoteEvidence
) -> TransactionResult | None:
    one, other = evidence.first.message, evidence.second.message
    signer = evidence.first.signer_id
    if (
        (one.height, one.round, one.kind) != (other.height, other.round, other.kind)
        or evidence.second.signer_id != signer
        or one.block_hash == other.block_hash
    ):
        return refuse(ResultCode.INVALID_ENTRY, "the votes do not contradict each other")
    if one.height > state.height:
        return refuse(ResultCode.INVALID_ENTRY, "the height is not decided yet")
    voted_at_ms = state.get_voting_time(one.height)
    window_ms = state.params.evidence_window_ms
    if voted_at_ms is None or state.time_ms > voted_at_ms + window_ms:
        return refuse(ResultCode.EXPIRED, "the height is out of the evidence window")
    voters = state.get_consensus_validators_at(one.height)
    if not any(member == signer for member, _ in voters):
        return refuse(ResultCode.NOT_VALIDATOR, "the signer was no validator at that height")
    if OffenceKey(signer, one.height) in state.offences:
        return refuse(ResultCode.ALREADY_DONE)
    if not all(is_signed_by(vote, signer, state) for vote in (evidence.first, evidence.second)):
        return refuse(ResultCode.WRONG_SIGNER)
    return None


def apply_transcript_evidence(
    state: LedgerState,
    reporter: AccountId,
    evidence: TranscriptEvidence,
    verify_transcript: TranscriptVerifier,
) -> TransactionResult:
    """Re-check a transcript; if it is wrong, slash its auctioneer and take it out, once a term."""
    transcript = evidence.transcript.message
    key = TermKey(transcript.hub, transcript.term)
    refusal, term = find_term(state, key)
    if term is None:
        return refusal
    if not is_signed_by(evidence.transcript, term.auctioneer, state):
        return refuse(ResultCode.NOT_AUCTIONEER)
    if term.convicted:
        return refuse(ResultCode.ALREADY_DONE)
    try:
        verify_transcript(evidence.transcript, state)
    except InvalidInputError as error:
        # The name alone: an error's text may differ between versions, a result must not.
        rule = type(error).__name__
    else:
        return refuse(ResultCode.INVALID_ENTRY, "the transcript re-checks")
    state.terms[key] = replace(term, convicted=True)
    apply_slash(state, term.auctioneer, state.params.transcript_slash_ppm, reporter)
    validator = state.validators.get(ValidatorKey(key.hub, term.auctioneer))
    if validator is not None and validator.duty is not Duty.ABSENT:
        apply_absence(state, key.hub, term.auctioneer)
    return TransactionResult(ResultCode.OK, rule)
