"""When heights begin: blocks come on demand. Source: docs/spec/engine.md E1 to E3."""

from __future__ import annotations

from iemas.consensus.participant import Participant
from iemas.core.params import MarketParams
from iemas.ledger.state import LedgerState

EMPTY_BLOCK_INTERVAL_MS = 250
"""The least time before a block that no transaction waits for, whatever clocks and votes say."""


def compute_start_ms(
    participant: Participant,
    state: LedgerState,
    *,
    params: MarketParams,
    last_ms: int,
    has_work: bool,
) -> int:
    """Give when a validator begins the next height by itself; in the past, if it is late.

    `last_ms` is when the last block was committed here, `has_work` whether a transaction waits.
    """
    if participant.has_proposal or participant.has_correct_vote:
        return last_ms
    ends = [state.get_term(hub).started_at_ms + params.term_ms for hub in state.get_hubs()]
    due_ms = min([last_ms + params.idle_block_interval_ms, *ends])
    least_ms = last_ms + max(params.block_interval_ms, EMPTY_BLOCK_INTERVAL_MS)
    starts_at_ms = least_ms if participant.has_votes else max(due_ms, least_ms)
    if has_work:
        starts_at_ms = min(starts_at_ms, last_ms + params.block_interval_ms)
    return starts_at_ms
