"""Standing asks. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

from iemas.core.types import AccountId, NodeId
from iemas.ledger.records import MAX_PAST_ASKS, AskKey, AskRecord, PastAsk
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import PostAsk, ResultCode, TransactionResult


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
