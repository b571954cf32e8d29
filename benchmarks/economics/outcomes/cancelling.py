"""Requesters that cancel: honest ones, and those that overstated what they want."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.deals import BLOCK, LATENESS, Deal, Outcomes, declare, strike
from benchmarks.economics.outcomes.plays import STOP_AFTER, Play, pick, play, sum_worth
from benchmarks.economics.outcomes.rules import find_worthwhile, pay_ended, pay_settled
from benchmarks.economics.outcomes.samples import Row, Study, Tally
from iemas.core.auction import Bid
from iemas.core.types import Lateness


def list_policies(played: Play, lateness: Lateness) -> Iterator[tuple[str, IntArray]]:
    """Give policies that do not know the future: after how many tokens each stops."""
    longest = played.elapsed_ms.shape[1]
    for count in STOP_AFTER:
        yield f"blind_after_{count}", np.full(len(played.counts), min(count, longest))
    typical_ms = float(np.median(played.elapsed_ms[:, -1]))
    for part in (0.1, 0.25, 0.5, 0.75, 1.0):
        yield f"blind_at_{part}", (played.elapsed_ms <= part * typical_ms).sum(axis=1)
    late, behind = played.weigh(lateness), np.arange(longest) >= played.counts[:, None]
    for least in (1.0, 0.75, 0.5, 0.25):
        yield f"blind_below_{least}", ((late >= least) | behind).sum(axis=1)


def measure_early_cancelling(study: Study, tasks: int) -> dict[str, list[Row]]:
    """Let requesters cancel: honest ones, and those that overstated what they want."""
    return {
        "honest": [
            _cancel_honestly(study, tasks, kind, surcharge)
            for kind in LATENESS
            for surcharge in (0.0, 0.3)
        ],
        "overstated": [
            _cancel_overstated(study, tasks, kind, surcharge)
            for kind in LATENESS
            for surcharge in (0.0, 0.3)
        ],
    }


def _cancel_honestly(study: Study, tasks: int, kind: str, surcharge: float) -> Row:
    """Stop by the best of the blind policies, picked afterwards, and by knowing everything."""
    deals, tally = study.draw_deals(tasks, kind, surcharge), Tally()
    for deal in deals:
        played = play(deal, study.draw_real())
        net = sum_worth(deal, played, deal.bid) - pay_settled(deal, played)
        full = float(net[:, -1].mean())
        for name, stops in list_policies(played, deal.bid.lateness):
            tally.add(name, pick(net, stops) - full)
        tally.add("knowing_all", float(net.max(axis=1).mean()) - full)
    prices = [float(deal.price_micros) for deal in deals]
    best = tally.get_best("blind_")
    return (
        {"lateness": kind, "surcharge": surcharge, "deals": len(deals), "best_blind": best}
        | tally.get_share(best, prices, "blind")
        | tally.get_share("knowing_all", prices)
    )


def _cancel_overstated(study: Study, tasks: int, kind: str, surcharge: float) -> Row:
    """Declare more than the truth, and cancel what is not worth what it owes.

    patient: no deadline. longer: 1024 tokens where 128 are wanted. both. patient_if_ended: what
    is left of the first by the rule `ended`. warm: cancel just before the first token, which owes
    nothing, and bid again for a prompt that is now cached.
    """
    deals, tally = study.draw_deals(tasks, kind, surcharge), Tally()
    prices = []
    for drawn in deals:
        deal = replace(drawn, bid=declare(drawn.bid, max_tokens=128))
        blocks = deal.cached // BLOCK
        honest = strike(deal.bid, deal.seller, deal.scenarios, blocks=blocks, surcharge=surcharge)
        if honest is None:
            continue
        prices.append(float(honest.price_micros))
        outcomes = study.draw_real()
        played = play(honest, outcomes)
        net = sum_worth(honest, played, honest.bid) - pay_settled(honest, played)
        for name, lie in (
            ("patient", declare(honest.bid, lateness=Lateness())),
            ("longer", declare(honest.bid, max_tokens=1024)),
            ("both", declare(honest.bid, lateness=Lateness(), max_tokens=1024)),
        ):
            dealt = _restrike(honest, lie, blocks=blocks)
            gain = _cancel(dealt, honest.bid, outcomes) - float(net[:, -1].mean())
            tally.add(name, gain)
        ended = sum_worth(honest, played, honest.bid) - pay_ended(honest, played)
        patient = _restrike(honest, declare(honest.bid, lateness=Lateness()), blocks=blocks)
        gain = _cancel(patient, honest.bid, outcomes) - pick(ended, find_worthwhile(honest, played))
        tally.add("patient_if_ended", gain)
        warm = _restrike(honest, honest.bid, blocks=honest.bid.prompt_tokens // BLOCK)
        again = warm.price_micros if warm is not None else honest.price_micros
        tally.add("warm", float(honest.price_micros - again))
    row: Row = {"lateness": kind, "surcharge": surcharge, "deals": len(prices)}
    for name in ("patient", "longer", "both", "patient_if_ended", "warm"):
        row |= tally.get_share(name, prices)
    return row


def _restrike(honest: Deal, lie: Bid, *, blocks: int) -> Deal | None:
    """Clear something else at the same provider for the same surcharge: what `client` asks."""
    deal = strike(lie, honest.seller, honest.scenarios, blocks=blocks, surcharge=0.0)
    surcharge = honest.price_micros - honest.cost_micros
    if deal is None or deal.value_micros - deal.cost_micros <= surcharge:
        return None
    return deal.at(deal.cost_micros + surcharge)


def _cancel(deal: Deal | None, truth: Bid, outcomes: Outcomes) -> float:
    """Give the mean utility of a requester that cancels as soon as going on costs it."""
    if deal is None:
        return 0.0
    played = play(deal, outcomes)
    net = sum_worth(deal, played, truth) - pay_settled(deal, played)
    return float(net.max(axis=1).mean())
