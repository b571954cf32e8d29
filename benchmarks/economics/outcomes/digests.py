"""Providers that show more or fewer cached blocks than they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from benchmarks.economics.outcomes.deals import (
    BLOCK,
    Outcomes,
    declare,
    make_deal,
    make_lateness,
    make_prices,
    offer,
    to_array,
)
from benchmarks.economics.outcomes.markets import SIZES, Market, draw_market
from benchmarks.economics.outcomes.plays import Play
from benchmarks.economics.outcomes.rules import pay_settled
from benchmarks.economics.outcomes.samples import Row, Study, Tally

CLAIMS: Final = (-1.0, -0.5, 0.25, 0.5, 1.0)
"""Shares of the blocks that are missing (or, negative, of those held) by which a digest is off."""


def measure_digest_claims(study: Study, markets: int) -> list[Row]:
    """Let one provider show more or fewer cached blocks than it holds, in `provider` mode.

    What it shows is billed as cached, what it computes costs it. fresh: the market's model takes
    times from what is shown. learnt: it has seen that its first tokens come later than that.
    cached_worth: what a cached token is worth to requesters, of a computed one; 1 is the SDK's
    default. fixed: one claim in all markets. best: in each market the claim that pays best, not
    lying among them. hidden: of fewer, its receipts say so too, and all is billed as computed.
    """
    rows = []
    for size in SIZES:
        for worth in (1.0, 0.1):
            drawn = [draw_market(study, size, number) for number in range(markets)]
            for kind in ("none", "mild", "hard"):
                late = [_set_worth(_set_lateness(market, kind), worth) for market in drawn]
                for learnt in (False, True):
                    if learnt and kind == "none":
                        continue
                    rows.append(
                        {"market": size, "lateness": kind, "cached_worth": worth}
                        | {"model": "learnt" if learnt else "fresh", "markets": markets}
                        | _claim(late, learnt=learnt)
                    )
    return rows


def _set_lateness(market: Market, kind: str) -> Market:
    bids = [
        declare(bid, lateness=make_lateness(kind, bid, market.sellers[0], market.scenarios))
        for bid in market.bids
    ]
    return replace(market, bids=tuple(bids))


def _set_worth(market: Market, worth: float) -> Market:
    factors = np.array([1.0, worth, 1.0])
    bids = [declare(bid, prices=make_prices(to_array(bid.prices) * factors)) for bid in market.bids]
    return replace(market, bids=tuple(bids))


def _claim(drawn: Sequence[Market], *, learnt: bool) -> Row:
    tally, prices = Tally(), []
    for market in drawn:
        profit, paid = _profit_of_claim(market, 0.0, learnt=learnt)
        prices.append(paid)
        gains = {}
        for claim in CLAIMS:
            gains[claim] = _profit_of_claim(market, claim, learnt=learnt)[0] - profit
            tally.add(f"fixed_{claim}", gains[claim])
        tally.add("honest", profit)
        tally.add("best_more", max(0.0, *(gains[claim] for claim in CLAIMS if claim > 0)))
        tally.add("best_fewer", max(0.0, *(gains[claim] for claim in CLAIMS if claim < 0)))
    row: Row = {}
    for name in ("honest", *(f"fixed_{claim}" for claim in CLAIMS), "best_more", "best_fewer"):
        row |= tally.get_share(name, prices)
    return row


def _profit_of_claim(market: Market, claim: float, *, learnt: bool) -> tuple[float, float]:
    """Give the first provider's profit and the sum of its prices."""
    own, held = market.sellers[0], market.blocks[:, 0]
    prompts = np.array([bid.prompt_tokens for bid in market.bids])
    missing = np.maximum((prompts - 1) // BLOCK - held, 0)
    shown = held + np.round(claim * (missing if claim > 0 else held)).astype(np.int64)
    qos = own.qos
    if learnt:
        later = qos.ttft_per_uncached_token_us * BLOCK * float((shown - held).mean())
        qos = replace(qos, ttft_base_us=max(0, round(qos.ttft_base_us + later)))
    offers = [offer(own.cost, qos), *market.offer_all()[1:]]
    blocks = np.column_stack((shown, market.blocks[:, 1:]))
    valuation = market.value(market.bids, offers, blocks)
    cleared = market.clear(valuation.welfare_micros)
    profit = paid = 0.0
    for task in np.flatnonzero(cleared.assignment == 0).tolist():
        deal = make_deal(market.bids[task], own, market.scenarios, valuation, (task, 0))
        deal = deal.at(deal.cost_micros + int(cleared.surcharges["provider"][task]))
        truly = min(int(held[task]) * BLOCK, deal.bid.prompt_tokens - 1)
        prompt = (deal.bid.prompt_tokens - truly, truly)
        played = Play.of(
            Outcomes.of_scenarios(market.scenarios),
            own.qos,
            uncached=prompt[0],
            most=deal.bid.max_tokens,
        )
        owed = pay_settled(deal, played)[:, -1].mean()
        spent = played.sum_cost(to_array(own.cost), prompt)[:, -1].mean()
        profit += float(owed - spent)
        paid += deal.price_micros
    return profit, paid
