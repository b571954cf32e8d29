"""Other deadlines and decays than the truth, in `client` mode, cancelled or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from auctioneer.mechanism import compute_valuation
from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.deals import (
    LATENESS,
    Deal,
    Outcomes,
    Seller,
    declare,
    draw_bid,
    draw_seller,
    make_deal,
    make_lateness,
    offer,
)
from benchmarks.economics.outcomes.plays import play, sum_worth
from benchmarks.economics.outcomes.rules import pay_settled
from benchmarks.economics.outcomes.samples import MODELS, Row, Study, Tally, draw_blocks
from iemas.core.auction import Bid, Scenario
from iemas.core.types import Lateness

Lie = tuple[str, Lateness]


def list_impatient(truth: Lateness, typical_ms: int) -> Iterator[Lie]:
    """Give earlier deadlines and steeper decays, the truth not among them."""
    deadline, decay = truth.deadline_ms, truth.decay_ms
    if deadline == 0:
        deadline, decay = 2 * typical_ms, 2 * typical_ms
    for first in (0.25, 0.5, 0.75, 1.0):
        for fall in (0.0, 0.5, 1.0):
            lie = Lateness(max(1, round(first * deadline)), round(fall * decay))
            if lie != truth:
                yield f"{first}_{fall}", lie


def list_patient(truth: Lateness) -> Iterator[Lie]:
    """Give later deadlines and slower decays."""
    for first in (1.5, 3.0):
        for fall in (1.0, 3.0):
            most = 86_400_000
            lie = Lateness(
                min(round(first * truth.deadline_ms), most),
                min(round(fall * max(truth.decay_ms, truth.deadline_ms)), most),
            )
            yield f"{first}_{fall}", lie
    yield "no deadline", Lateness()


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """What the rest of a market leaves one task in `client` mode: providers at slot prices.

    Neither depends on what the task declares, so it gets the provider at which its declared
    welfare exceeds the slot price by most (spec §9), for C + π.
    """

    truth: Bid
    sellers: tuple[Seller, ...]
    blocks: IntArray
    slot_prices: IntArray
    scenarios: tuple[Scenario, ...]

    def choose(self, declared: Sequence[Bid]) -> list[Deal | None]:
        """Clear each of some declarations; None: unmatched."""
        inputs = [offer(seller.cost, seller.qos) for seller in self.sellers]
        found = np.repeat(self.blocks[None, :], len(declared), axis=0)
        valuation = compute_valuation(
            declared, inputs, found, scenarios=self.scenarios, cache_affinity=True
        )
        left = np.where(
            valuation.welfare_micros > 0, valuation.welfare_micros - self.slot_prices, -1
        )
        deals: list[Deal | None] = []
        for n, bid in enumerate(declared):
            i = int(left[n].argmax())
            if left[n, i] <= 0:
                deals.append(None)
                continue
            deal = make_deal(bid, self.sellers[i], self.scenarios, valuation, (n, i))
            deals.append(deal.at(deal.cost_micros + int(self.slot_prices[i])))
        return deals


def draw_menu(study: Study, kind: str, number: int) -> Menu:
    """Draw a task and four providers; a slot costs up to 0.6 of what it would bring the task."""
    rng, model = study.rng, study.models[number % MODELS]
    sellers = tuple(draw_seller(rng) for _ in range(4))
    bid = draw_bid(rng)
    bid = declare(bid, lateness=make_lateness(kind, bid, sellers[0], model))
    blocks = np.array([draw_blocks(rng, bid) for _ in sellers], dtype=np.int64)
    inputs = [offer(seller.cost, seller.qos) for seller in sellers]
    valuation = compute_valuation(
        [bid], inputs, blocks[None, :], scenarios=model, cache_affinity=True
    )
    prices = (rng.uniform(0.0, 0.6, 4) * valuation.welfare_micros[0]).astype(np.int64)
    return Menu(bid, sellers, blocks, prices, model)


def measure_false_impatience(study: Study, tasks: int) -> list[Row]:
    """Declare other deadlines and decays than the truth in `client` mode, and cancel or not.

    worst: the greatest gain of any lie in any menu, as a share of its price. fixed: the best one
    lie for all menus. informed: in each menu the lie that turns out best.
    """
    rows = []
    for kind in LATENESS:
        menus = [draw_menu(study, kind, number) for number in range(tasks)]
        for direction in ("impatient", "patient"):
            if direction == "impatient" or kind != "none":
                rows += _tell_lies(study, menus, kind, direction)
    return rows


def _tell_lies(study: Study, menus: Sequence[Menu], kind: str, direction: str) -> list[Row]:
    tallies = {key: Tally() for key in ("predicted", "real")}
    prices = []
    for menu in menus:
        typical = make_lateness("mild", menu.truth, menu.sellers[0], menu.scenarios).deadline_ms
        lies = list(
            list_impatient(menu.truth.lateness, typical)
            if direction == "impatient"
            else list_patient(menu.truth.lateness)
        )
        honest, *deals = menu.choose(
            [menu.truth, *(declare(menu.truth, lateness=lie) for _, lie in lies)]
        )
        if honest is None:
            continue
        prices.append(float(honest.price_micros))
        for world, outcomes in study.list_worlds(honest).items():
            played = play(honest, outcomes)
            net = sum_worth(honest, played, menu.truth) - pay_settled(honest, played)
            base = float(net[:, -1].mean())
            best = {"full": -np.inf, "cancel": -np.inf}
            for (name, _), deal in zip(lies, deals, strict=True):
                for ending, value in _end_both_ways(deal, menu.truth, outcomes).items():
                    tallies[world].add(f"{ending}_{name}", value - base)
                    best[ending] = max(best[ending], value - base)
            for ending, value in best.items():
                tallies[world].add(f"informed_{ending}", value)
                tallies[world].add(f"worst_{ending}", value / honest.price_micros)
    rows = []
    for world, tally in tallies.items():
        for ending in ("full", "cancel"):
            fixed = tally.get_best(f"{ending}_")
            rows.append(
                {"lateness": kind, "direction": direction, "world": world, "ending": ending}
                | {"menus": len(prices), "best_fixed": fixed.removeprefix(f"{ending}_")}
                | tally.get_share(fixed, prices, "fixed")
                | tally.get_share(f"informed_{ending}", prices, "informed")
                | {"worst": round(tally.get_max(f"worst_{ending}"), 6)}
            )
    return rows


def _end_both_ways(deal: Deal | None, truth: Bid, outcomes: Outcomes) -> dict[str, float]:
    if deal is None:
        return {"full": 0.0, "cancel": 0.0}
    played = play(deal, outcomes)
    net = sum_worth(deal, played, truth) - pay_settled(deal, played)
    return {"full": float(net[:, -1].mean()), "cancel": float(net.max(axis=1).mean())}
