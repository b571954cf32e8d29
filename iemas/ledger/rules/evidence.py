"""Evidence of misbehaviour. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iemas.core.auction import Transcript
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidInputError
from iemas.ledger.records import Duty, TermKey, ValidatorKey
from iemas.ledger.rules.results import find_term, is_signed_by, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.terms import apply_absence
from iemas.ledger.transaction import ResultCode, TransactionResult, TranscriptEvidence

TranscriptVerifier = Callable[[Signed[Transcript], LedgerState], None]
"""Re-checks a round; raises InvalidTranscriptError if it is wrong. Must be deterministic."""


def apply_transcript_evidence(
    state: LedgerState, body: TranscriptEvidence, verify_transcript: TranscriptVerifier
) -> TransactionResult:
    """Re-check a transcript; if it is wrong, take its auctioneer out, once a term."""
    transcript = body.transcript.message
    key = TermKey(transcript.hub, transcript.term)
    refusal, term = find_term(state, key)
    if term is None:
        return refusal
    if not is_signed_by(body.transcript, term.auctioneer, state):
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
