"""Clearing one round: opened bids and reports in, a signed transcript out.

What is computed here from the transcript's inputs is computed again by `auctioneer.verify`, with
the same functions. Source: design §4 step 4, §5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism import clear, encode_clearing
from auctioneer.mechanism.valuation import Offer, Valuation, compute_valuation
from auctioneer.outcomes import ClearedRound
from iemas.core.auction import (
    Bid,
    ProviderInput,
    QosModel,
    RoundClose,
    SealedBid,
    ShareRelease,
    TaskInput,
    Transcript,
)
from iemas.core.digest import DigestIndex, count_matched_blocks
from iemas.core.election import Term
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed
from iemas.core.params import MarketParams
from iemas.core.report import CapabilityReport, LoadReport
from iemas.core.types import AccountId, NodeId, Prices, UnmatchedReason


@dataclass(frozen=True, slots=True)
class OpenedTask:
    """One bid of a closed round, opened: a valid bid, or why there is none."""

    sealed_bid: Signed[SealedBid]
    auctioneer_share: bytes
    witness_share: bytes
    bid: Bid | UnmatchedReason
    chain: bytes


@dataclass(frozen=True, slots=True)
class ProviderView:
    """What the auctioneer knows of one provider when it clears."""

    capability: Signed[CapabilityReport]
    load: Signed[LoadReport]
    digest_hash: bytes
    digest: DigestIndex | None
    ask: Prices
    free_slots: int


def compute_provider_rank(bids_root: bytes, provider: NodeId) -> bytes:
    """Rank a provider for ties: by the hash of the round's bids and its id.

    Equal welfare falls to the provider that comes first, and nobody, the auctioneer included, can
    choose a node id that always does.
    """
    return compute_hash(b"iemas provider rank", bids_root, provider)


def choose_funded(
    bids: Sequence[Bid | UnmatchedReason],
    accounts: Sequence[AccountId],
    get_funds: Callable[[AccountId], int],
) -> list[UnmatchedReason]:
    """Tell for every bid why it is dropped (UNSPECIFIED: it takes part).

    Reservations draw on the account's funds in the close's order; a bid that no longer fits is
    dropped, later smaller ones may still fit. Source: design §7 (allowances).
    """
    held: dict[AccountId, int] = {}
    dropped = []
    for bid, account in zip(bids, accounts, strict=True):
        if isinstance(bid, UnmatchedReason):
            dropped.append(bid)
            continue
        before = held.get(account, 0)
        if before + bid.reservation_micros > get_funds(account):
            dropped.append(UnmatchedReason.UNFUNDED)
            continue
        held[account] = before + bid.reservation_micros
        dropped.append(UnmatchedReason.UNSPECIFIED)
    return dropped


def compute_round_valuation(
    bids: Sequence[Bid],
    providers: Sequence[ProviderInput],
    matched_blocks: Sequence[Sequence[int]],
    model: QosModel,
    params: MarketParams,
) -> tuple[Valuation, np.ndarray]:
    """Compute the valuation of the tasks that take part, and the providers' free slots."""
    matched = np.array(matched_blocks, dtype=np.int64).reshape(len(bids), len(providers))
    offers = [_make_offer(provider, model) for provider in providers]
    valuation = compute_valuation(
        bids, offers, matched, scenarios=model.scenarios, cache_affinity=params.cache_affinity
    )
    slots = np.array([provider.free_slots for provider in providers], dtype=np.int64)
    return valuation, slots


def _make_offer(provider: ProviderInput, model: QosModel) -> Offer:
    capability = provider.capability.message
    row = model.get_row(capability.stamp.node_id)
    return Offer(capability, provider.load.message, provider.ask, row)


def clear_round(
    *,
    term: Term,
    witness: NodeId,
    close: Signed[RoundClose],
    release: Signed[ShareRelease],
    tasks: Sequence[OpenedTask],
    providers: Sequence[ProviderView],
    model: QosModel,
    get_funds: Callable[[AccountId], int],
    previous_hash: bytes,
    ledger_height: int,
    params: MarketParams,
    sign: Callable[[Transcript], Signed[Transcript]],
    now_ms: int,
) -> ClearedRound:
    """Clear a round and sign its transcript."""
    root = close.message.bids_root
    views = sorted(
        providers,
        key=lambda view: compute_provider_rank(root, view.capability.message.stamp.node_id),
    )
    inputs = tuple(
        ProviderInput(view.capability, view.load, view.digest_hash, view.ask, view.free_slots)
        for view in views
    )
    accounts = [AccountId(task.sealed_bid.message.account) for task in tasks]
    dropped = choose_funded([task.bid for task in tasks], accounts, get_funds)
    matched = [_count_matched(task.chain, views) for task in tasks]
    taking_part = [n for n, reason in enumerate(dropped) if reason is UnmatchedReason.UNSPECIFIED]
    bids = [bid for n in taking_part if isinstance(bid := tasks[n].bid, Bid)]
    valuation, slots = compute_round_valuation(
        bids, inputs, [matched[n] for n in taking_part], model, params
    )
    clearing = clear(valuation.welfare_micros, slots, mode=params.mode)
    transcript = Transcript(
        hub=term.hub,
        term=term.number,
        round=close.message.round,
        auctioneer=term.auctioneer,
        witness=witness,
        previous_hash=previous_hash,
        cleared_at_ms=now_ms,
        ledger_height=ledger_height,
        close=close,
        release=release,
        model=model,
        providers=inputs,
        tasks=tuple(
            TaskInput(
                task.sealed_bid, task.auctioneer_share, task.witness_share, tuple(blocks), reason
            )
            for task, blocks, reason in zip(tasks, matched, dropped, strict=True)
        ),
        clearing=encode_clearing(clearing),
    )
    return ClearedRound(sign(transcript), bids, taking_part, valuation, clearing)


def _count_matched(chain: bytes, providers: Sequence[ProviderView]) -> list[int]:
    return [
        0 if provider.digest is None else count_matched_blocks(chain, provider.digest)
        for provider in providers
    ]
