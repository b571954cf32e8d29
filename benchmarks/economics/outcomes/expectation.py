"""What is settled on average, against the price."""

from __future__ import annotations

from benchmarks.economics.outcomes.deals import LATENESS
from benchmarks.economics.outcomes.plays import play, settle
from benchmarks.economics.outcomes.rules import pay_one_factor
from benchmarks.economics.outcomes.samples import Row, Study, Tally


def measure_expectation(study: Study, tasks: int) -> list[Row]:
    """Compare mean settled amounts with prices, in whole units and by whole milliseconds."""
    rows = []
    for kind in LATENESS:
        deals, tally = study.draw_deals(tasks, kind, 0.3), Tally()
        prices = [float(deal.price_micros) for deal in deals]
        for deal in deals:
            worlds = study.list_worlds(deal)
            for name, outcomes in worlds.items():
                tally.add(name, float(settle(deal, outcomes).mean()) - deal.price_micros)
            owed = pay_one_factor(deal, play(deal, worlds["predicted"]))[:, -1].mean()
            tally.add("one_factor", float(owed) - deal.price_micros)
            mean = float(settle(deal, worlds["predicted"]).mean())
            tally.add("off", abs(mean / deal.price_micros - 1.0))
        rows.append(
            {"lateness": kind, "deals": len(deals)}
            | {"predicted_worst_off": round(tally.get_max("off"), 6)}
            | tally.get_share("predicted", prices)
            | tally.get_share("real", prices)
            | tally.get_share("one_factor", prices)
        )
    return rows
