"""Providers that stop before the end, or claim that tokens came earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.economics.outcomes.deals import LATENESS, Deal, to_array
from benchmarks.economics.outcomes.plays import STOP_AFTER, Play, pick, play, sum_worth
from benchmarks.economics.outcomes.rules import RULES, find_worthwhile, pay_settled
from benchmarks.economics.outcomes.samples import Row, Study, Tally
from iemas.core.params import MarketParams


def measure_stopping_early(study: Study, tasks: int) -> list[Row]:
    """Let providers stop, under every rule.

    best: at the token from which on the rest costs more than it brings, which the time alone tells.
    fixed: after a number of tokens, the best for all deals. first: after the first token. All
    compared to serving whole answers; `ended`, `counted` and `shifted` to ending them where
    b·late < a, as is priced there.
    lost: what the requester loses by `best`. social: what both together gain by it. profit: of
    serving whole answers. `_of_surplus`: as a share of Σ w.
    """
    rows = []
    for kind in LATENESS:
        for surcharge in (0.0, 0.3):
            deals = study.draw_deals(tasks, kind, surcharge)
            for world in ("predicted", "real"):
                plays = [play(deal, study.list_worlds(deal)[world]) for deal in deals]
                rows += [
                    {"lateness": kind, "surcharge": surcharge, "world": world, "rule": rule}
                    | _stop(deals, plays, rule)
                    for rule in RULES
                ]
    return rows


def _stop(deals: Sequence[Deal], plays: Sequence[Play], rule: str) -> Row:
    tally = Tally()
    for deal, played in zip(deals, plays, strict=True):
        pay = RULES[rule](deal, played)
        profit = pay - played.sum_cost(to_array(deal.seller.cost), deal.prompt)
        worth = sum_worth(deal, played, deal.bid)
        # Where going on neither costs nor brings anything, a provider goes on.
        last = profit.shape[1] - 1
        stops = last - (profit + 1e-6 * np.arange(last + 1))[:, ::-1].argmax(axis=1)
        whole = np.full(len(stops), profit.shape[1] - 1)
        if rule in {"ended", "counted", "shifted"}:
            whole = find_worthwhile(deal, played)
        base, best = pick(profit, whole), pick(profit, stops)
        gain = best - base
        tally.add("best", gain)
        tally.add("first", pick(profit, np.ones_like(stops)) - base)
        for count in STOP_AFTER:
            after = np.minimum(whole, min(count, profit.shape[1] - 1))
            tally.add(f"fixed_{count}", pick(profit, after) - base)
        lost = pick(worth - pay, whole) - pick(worth - pay, stops)
        tally.add("lost", lost)
        tally.add("social", gain - lost)
        tally.add("profit", base)
    prices = [float(deal.price_micros) for deal in deals]
    surplus = [float(deal.value_micros - deal.cost_micros) for deal in deals]
    row: Row = {"deals": len(deals)}
    for name in ("profit", "best", "first", "lost", "social"):
        row |= tally.get_share(name, prices)
    fixed = tally.get_best("fixed_")
    row |= {"best_fixed": fixed.removeprefix("fixed_")} | tally.get_share(fixed, prices, "fixed")
    return row | tally.get_share("best", surplus, "best_of_surplus")


def measure_backdating(study: Study, tasks: int) -> list[Row]:
    """Let providers claim that tokens came earlier, by what requesters let pass.

    A requester countersigns what its own clock says less a tolerance allows. gain: of a provider
    that uses all of it. above: what is paid beyond what the tokens were worth by their true times.
    """
    rows = []
    for kind in LATENESS:
        deals = study.draw_deals(tasks, kind, 0.3)
        for tolerance_ms in (MarketParams().clock_tolerance_ms, 200):
            tally = Tally()
            for deal in deals:
                played = play(deal, study.draw_real())
                earlier = np.maximum(played.elapsed_ms - tolerance_ms, 0)
                claimed = pay_settled(deal, replace(played, elapsed_ms=earlier))[:, -1]
                owed = pay_settled(deal, played)[:, -1]
                worth = sum_worth(deal, played, deal.bid)[:, -1]
                tally.add("gain", float((claimed - owed).mean()))
                tally.add("above", float(np.maximum(claimed - worth, 0.0).mean()))
            prices = [float(deal.price_micros) for deal in deals]
            rows.append(
                {"lateness": kind, "tolerance_ms": tolerance_ms, "deals": len(deals)}
                | tally.get_share("gain", prices)
                | tally.get_share("above", prices)
            )
    return rows
