"""From a transcript to each bidder's outcome: allocation terms, or why there is none.

The auctioneer signs what `derive_outcomes` gives; a verifier derives the same from the same
transcript. Nothing in an allocation is decided anywhere else. Source: design §4 step 5, §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auctioneer.books import TermBooks
from auctioneer.mechanism import Clearing
from auctioneer.mechanism.rates import compute_rates
from auctioneer.mechanism.valuation import Valuation
from iemas.core.auction import Allocation, Bid, Transcript, Unmatched
from iemas.core.envelope import Signed
from iemas.core.params import MarketParams
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import NodeId, UnmatchedReason


@dataclass(frozen=True, slots=True)
class ClearedRound:
    """A transcript with what follows from it: opened bids, valuation and clearing.

    `bids[n]` is the opened bid of the n-th task that took part, `tasks[n]` its index in the
    transcript.
    """

    transcript: Signed[Transcript]
    bids: Sequence[Bid]
    tasks: Sequence[int]
    valuation: Valuation
    clearing: Clearing


def derive_outcomes(
    cleared: ClearedRound, books: TermBooks, params: MarketParams
) -> tuple[Allocation | Unmatched, ...]:
    """Derive every task's outcome, in the transcript's order.

    `books` are the term's before this round; they are not changed.
    """
    transcript = cleared.transcript.message
    position = {task: n for n, task in enumerate(cleared.tasks)}
    running: dict[tuple[bytes, int, bytes], int] = {}
    outcomes: list[Allocation | Unmatched] = []
    for index, task in enumerate(transcript.tasks):
        n = position.get(index)
        if n is None:
            outcomes.append(_make_unmatched(cleared, index, task.dropped, 0))
        elif int(cleared.clearing.assignment[n]) < 0:
            outcomes.append(_explain_unmatched(cleared, index, n))
        else:
            outcomes.append(_make_allocation(cleared, index, n, books, running, params=params))
    return tuple(outcomes)


def _make_allocation(
    cleared: ClearedRound,
    index: int,
    n: int,
    books: TermBooks,
    running: dict[tuple[bytes, int, bytes], int],
    *,
    params: MarketParams,
) -> Allocation:
    transcript = cleared.transcript.message
    sealed_bid = transcript.tasks[index].sealed_bid
    sealed, bid = sealed_bid.message, cleared.bids[n]
    i = int(cleared.clearing.assignment[n])
    provider = NodeId(transcript.providers[i].capability.message.stamp.node_id)
    valuation = cleared.valuation
    price_micros = int(valuation.cost_micros[n, i] + cleared.clearing.surcharges[n])
    rates = compute_rates(
        transcript.providers[i].ask, bid.prices, valuation.get_expected_tokens(n, i), price_micros
    )
    reserved_micros = compute_worst_case_micros(rates, bid.prompt_tokens, bid.max_tokens)
    key = (sealed.account, sealed.channel, provider)
    before = running.get(key, books.get_channel_reserved(*key))
    running[key] = before + reserved_micros
    return Allocation(
        hub=transcript.hub,
        term=transcript.term,
        round=transcript.round,
        bid_hash=sealed_bid.hash,
        account=sealed.account,
        channel=sealed.channel,
        provider=provider,
        prompt_tokens=bid.prompt_tokens,
        cached_tokens=int(valuation.cached_tokens[n, i]),
        max_tokens=bid.max_tokens,
        rates=rates,
        lateness=bid.lateness,
        price_micros=price_micros,
        reserved_micros=reserved_micros,
        channel_reserved_micros=running[key],
        expected_ttft_ms=int(valuation.expected_ttft_ms[n, i]),
        expires_at_ms=transcript.cleared_at_ms + params.allocation_ttl_ms,
        transcript_hash=cleared.transcript.hash,
    )


def _explain_unmatched(cleared: ClearedRound, index: int, n: int) -> Unmatched:
    """Say by how much the bid fell short where it came closest, if anything was feasible."""
    welfare = cleared.valuation.welfare_micros[n]
    providers = cleared.transcript.message.providers
    feasible = welfare > 0
    if not providers:
        return _make_unmatched(cleared, index, UnmatchedReason.NO_PROVIDER, 0)
    if not feasible.any():
        return _make_unmatched(cleared, index, UnmatchedReason.INFEASIBLE, 0)
    # A provider without a slot cannot be had at any price.
    feasible &= np.array([provider.free_slots > 0 for provider in providers])
    if not feasible.any():
        return _make_unmatched(cleared, index, UnmatchedReason.NO_PROVIDER, 0)
    shortfall = int(np.min((cleared.clearing.slot_prices - welfare)[feasible]))
    return _make_unmatched(cleared, index, UnmatchedReason.OUTBID, max(shortfall, 0) + 1)


def _make_unmatched(
    cleared: ClearedRound, index: int, reason: UnmatchedReason, price_to_beat_micros: int
) -> Unmatched:
    transcript = cleared.transcript.message
    sealed_bid = transcript.tasks[index].sealed_bid
    return Unmatched(
        hub=transcript.hub,
        term=transcript.term,
        round=transcript.round,
        bid_hash=sealed_bid.hash,
        account=sealed_bid.message.account,
        reason=reason,
        price_to_beat_micros=price_to_beat_micros,
        transcript_hash=cleared.transcript.hash,
    )
