"""What can be gained once a price stands: by stopping, by false declarations, by knowing more.

Rates are fixed at clearing so that the expectation over the predicted outcomes is the price. This
study plays deals out (`deals.py`) under two truths:

    predicted   the 16 scenarios that a deal was cleared under: predictions are right
    real        lengths of a real trace, skewed times, all correlated; the project's own model
                learnt 256 such tasks, so predictions are as wrong as they are in practice

Shares are of the sum of honest prices unless they say otherwise; `_se` are standard errors over
deals or markets. Where predictions are right there is no chance but in the choice of deals.

    python -m benchmarks.economics.outcomes --json -

It needs the Azure trace in ../shared/data and says so where it is missing.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from errno import ENOENT
from pathlib import Path
from typing import Any, Final

import numpy as np

from auctioneer.mechanism import Valuation, compute_valuation
from auctioneer.mechanism.arrays import IntArray
from auctioneer.predictors.scenarios import MAX_SAMPLES
from benchmarks._report import add_json_option, write_report
from benchmarks.economics.deals import (
    BLOCK,
    LATENESS,
    RULES,
    Deal,
    FloatArray,
    Outcomes,
    Play,
    Seller,
    declare,
    draw_bid,
    draw_outcomes,
    draw_seller,
    find_worthwhile,
    learn,
    make_deal,
    make_lateness,
    make_prices,
    offer,
    pay_ended,
    pay_one_factor,
    pay_settled,
    pick,
    play,
    settle,
    strike,
    to_array,
)
from benchmarks.economics.rounds import Cleared, clear_all
from iemas.core.auction import Bid, ProviderInput, Scenario
from iemas.core.params import CLEARING_MODES, MarketParams
from iemas.core.types import Lateness, Prices

Row = dict[str, Any]

TRACE: Final = (
    Path(__file__).resolve().parents[2].parent / "shared/data/azure/AzureLLMInferenceTrace_conv.csv"
)
REAL_DRAWS: Final = 128
MODELS: Final = 8
"""So many models learn from tasks of their own, so that the luck of one is not taken for a bias."""


def load_lengths() -> IntArray:
    """Load the lengths of real answers.

    Raises: FileNotFoundError where the trace is not there.
    """
    if not TRACE.is_file():
        raise FileNotFoundError(ENOENT, "the lengths of real answers are missing", str(TRACE))
    with TRACE.open(encoding="utf-8") as file:
        return np.array([int(row["GeneratedTokens"]) for row in csv.DictReader(file)])


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Lengths of answers, models that learnt from some of them, and a source of chance."""

    lengths: IntArray
    models: tuple[tuple[Scenario, ...], ...]
    rng: np.random.Generator

    @classmethod
    def of(cls, lengths: IntArray, seed: int) -> Study:
        """Let `MODELS` models learn."""
        rng = np.random.default_rng(seed)
        models = [learn(draw_outcomes(lengths, MAX_SAMPLES, rng), rng) for _ in range(MODELS)]
        return cls(lengths, tuple(models), rng)

    def draw_deals(self, count: int, kind: str, surcharge: float) -> list[Deal]:
        """Draw deals under a kind of lateness; the surcharge is a share of the welfare."""
        deals: list[Deal] = []
        for tries in range(20 * count):
            seller, bid = draw_seller(self.rng), draw_bid(self.rng)
            model = self.models[tries % MODELS]
            bid = declare(bid, lateness=make_lateness(kind, bid, seller, model))
            blocks = draw_blocks(self.rng, bid)
            deal = strike(bid, seller, model, blocks=blocks, surcharge=surcharge)
            deals += [deal] if deal is not None else []
            if len(deals) == count:
                break
        return deals

    def draw_real(self) -> Outcomes:
        """Draw real outcomes."""
        return draw_outcomes(self.lengths, REAL_DRAWS, self.rng)

    def list_worlds(self, deal: Deal) -> dict[str, Outcomes]:
        """Give both truths about a deal."""
        return {"predicted": Outcomes.of_scenarios(deal.scenarios), "real": self.draw_real()}


def draw_blocks(rng: np.random.Generator, bid: Bid) -> int:
    """Draw how many of the prompt's blocks are resident: none, or most."""
    held = rng.uniform(0.3, 0.95) if rng.random() < 0.5 else 0.0
    return int(held * bid.prompt_tokens) // BLOCK


def share(gains: Sequence[float], base: Sequence[float], name: str) -> Row:
    """Give Σ gains / Σ base and its standard error, by the residuals of the ratio."""
    gain, weight = np.array(gains, dtype=np.float64), np.array(base, dtype=np.float64)
    if weight.sum() == 0.0:
        return {name: 0.0, f"{name}_se": 0.0}
    ratio = gain.sum() / weight.sum()
    error = np.sqrt(((gain - ratio * weight) ** 2).sum()) / weight.sum()
    return {name: round(float(ratio), 6), f"{name}_se": round(float(error), 6)}


class Tally:
    """Collects figures of deals under names, and gives their shares."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Add one deal's figure."""
        self._values.setdefault(name, []).append(value)

    def get_best(self, prefix: str) -> str:
        """Give the name, of those with a prefix, that sums to most."""
        names = [name for name in self._values if name.startswith(prefix)]
        return max(names, key=lambda name: sum(self._values[name]))

    def get_max(self, name: str) -> float:
        """Give the greatest figure under a name."""
        return max(self._values[name])

    def get_share(self, name: str, base: Sequence[float], label: str = "") -> Row:
        """Give one name's share of the base."""
        return share(self._values[name], base, label or name)


# --- expectation ---------------------------------------------------------------------------------


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


# --- requesters ----------------------------------------------------------------------------------

STOP_AFTER: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


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


def sum_worth(deal: Deal, played: Play, truth: Bid) -> FloatArray:
    """Sum up what a deal's tokens are truly worth; none beyond the `max_tokens` of the truth."""
    late = played.weigh(truth.lateness).copy()
    late[:, truth.max_tokens :] = 0.0
    return played.sum_linear(to_array(truth.prices), deal.prompt, late)


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


# --- providers that stop -------------------------------------------------------------------------


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


# --- markets -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """A round's truth. blocks: resident ones, shape (n_tasks, n_sellers). slots: (n_sellers,)."""

    bids: tuple[Bid, ...]
    sellers: tuple[Seller, ...]
    blocks: IntArray
    slots: IntArray
    scenarios: tuple[Scenario, ...]

    def value(
        self,
        bids: Sequence[Bid],
        asks: Sequence[ProviderInput],
        blocks: IntArray,
    ) -> Valuation:
        """Value every pair of some declarations."""
        return compute_valuation(bids, asks, blocks, scenarios=self.scenarios, cache_affinity=True)

    def offer_all(self) -> list[ProviderInput]:
        """Give every provider's honest offer."""
        return [offer(seller.cost, seller.qos) for seller in self.sellers]

    def clear(self, welfare: IntArray) -> Cleared:
        """Clear declared welfare, and share the gains in every mode."""
        return clear_all(welfare, self.slots)


SIZES: Final = {"idle": (4, 3, 4), "scarce": (6, 3, 1)}
"""Tasks, providers, slots of each."""


def draw_market(study: Study, size: str, number: int) -> Market:
    """Draw a market without deadlines; answers are cut off by nothing but 1024 tokens."""
    n_tasks, n_sellers, slots = SIZES[size]
    rng = study.rng
    bids = tuple(declare(draw_bid(rng), max_tokens=1024) for _ in range(n_tasks))
    blocks = [[draw_blocks(rng, bid) for _ in range(n_sellers)] for bid in bids]
    return Market(
        bids,
        tuple(draw_seller(rng) for _ in range(n_sellers)),
        np.array(blocks, dtype=np.int64),
        np.full(n_sellers, slots, dtype=np.int64),
        study.models[number % MODELS],
    )


# --- hidden lengths ------------------------------------------------------------------------------

FACTORS: Final = (0.4, 0.6, 0.8, 1.0, 1.3, 2.0, 4.0)
SHAPES: Final = sorted(
    ((prompt, output) for prompt in FACTORS for output in FACTORS),
    key=lambda shape: shape != (1.0, 1.0),
)
"""Factors on an ask's prompt components and on its output component, the truth first."""

N_LEVELS: Final = 16


def measure_hidden_length(study: Study, markets: int) -> dict[str, list[Row]]:
    """Let one requester, or one provider, know more of lengths than the hub's model.

    Requesters know how long their own answer will be, of 16 equally likely lengths, and choose
    prices by kind and `max_tokens`. blind: what the best declaration gains over the truth without
    that knowledge. knowing: what it gains beyond that by knowing. Providers know how answers are
    distributed, when they are longer or shorter than predicted by a factor, and choose their ask
    by kind. Truths: the scenarios of the model, or slices of the trace.
    """
    levels = np.quantile(study.lengths, (np.arange(N_LEVELS) + 0.5) / N_LEVELS)
    truths: dict[str, IntArray | None] = {"predicted": None}
    for factor in (1.0, 0.8, 1.25):
        truths[f"real x {factor}"] = np.maximum((factor * levels).round(), 1).astype(np.int64)
    requesters, providers = [], []
    for size in SIZES:
        drawn = [draw_market(study, size, number) for number in range(markets)]
        for name, lengths in truths.items():
            where = {"market": size, "truth": name, "markets": markets}
            if name in {"predicted", "real x 1.0"}:
                requesters += [where | row for row in _know_own_length(drawn, lengths)]
        providers += [
            {"market": size, "markets": markets} | row for row in _know_all_lengths(drawn, truths)
        ]
    return {"requester": requesters, "provider": providers}


def list_declarations(truth: Bid, floor: Prices, lengths: IntArray) -> list[Bid]:
    """Give declarations of a task, the truth first: prices by kind, and `max_tokens`.

    floor: the least prices that cover every ask.
    """
    own, least = to_array(truth.prices), to_array(floor)
    prompts = [own[:2] * factor for factor in FACTORS] + [least[:2]]
    outputs = [own[2] * factor for factor in FACTORS] + [least[2]]
    shapes = [make_prices([*prompt, output]) for prompt in prompts for output in outputs]
    bent = (truth.prices, shapes[-1], make_prices([*least[:2], own[2]]),
            make_prices([*own[:2], least[2]]))  # fmt: skip
    return [
        truth,
        *(declare(truth, prices=prices) for prices in shapes),
        *(
            declare(truth, prices=prices, max_tokens=most)
            for prices in bent
            for most in [*lengths.tolist(), 4 * truth.max_tokens]
        ),
    ]


def _get_lengths(market: Market, lengths: IntArray | None) -> IntArray:
    if lengths is not None:
        return lengths
    return np.array([scenario.output_tokens for scenario in market.scenarios], dtype=np.int64)


def _know_own_length(drawn: Sequence[Market], truth: IntArray | None) -> list[Row]:
    tallies = {mode: Tally() for mode in CLEARING_MODES}
    prices: dict[str, list[float]] = {mode: [] for mode in CLEARING_MODES}
    for market in drawn:
        utility, paid = _tabulate_declarations(market, _get_lengths(market, truth))
        for mode, table in utility.items():
            blind = float(table.mean(axis=1).max())
            prices[mode].append(paid[mode])
            tallies[mode].add("honest", float(table[0].mean()))
            tallies[mode].add("blind", blind - float(table[0].mean()))
            tallies[mode].add("knowing", float(table.max(axis=0).mean()) - blind)
    return [
        {"mode": mode, "matched": sum(price > 0.0 for price in prices[mode])}
        | tally.get_share("honest", prices[mode])
        | tally.get_share("blind", prices[mode])
        | tally.get_share("knowing", prices[mode])
        for mode, tally in tallies.items()
    ]


def _tabulate_declarations(
    market: Market, lengths: IntArray
) -> tuple[dict[str, FloatArray], dict[str, float]]:
    """Give the first requester's utility by mode, (declaration, length), and its honest price."""
    offers, truth = market.offer_all(), to_array(market.bids[0].prices)
    welfare = market.value(market.bids, offers, market.blocks).welfare_micros
    asks = np.array([to_array(seller.cost) for seller in market.sellers])
    lies = list_declarations(market.bids[0], make_prices(asks.max(axis=0)), lengths)
    rows = market.value(lies, offers, np.repeat(market.blocks[:1], len(lies), axis=0))
    utility = {mode: np.zeros((len(lies), len(lengths))) for mode in CLEARING_MODES}
    paid = dict.fromkeys(CLEARING_MODES, 0.0)
    for n, lie in enumerate(lies):
        declared = welfare.copy()
        declared[0] = rows.welfare_micros[n]
        cleared = market.clear(declared)
        i = int(cleared.assignment[0])
        if i < 0:
            continue
        deal = make_deal(lie, market.sellers[i], market.scenarios, rows, (n, i))
        for mode in CLEARING_MODES:
            priced = deal.at(deal.cost_micros + int(cleared.surcharges[mode][0]))
            net = truth - to_array(priced.rates)
            tokens = np.minimum(lengths, lie.max_tokens)
            utility[mode][n] = np.dot(net[:2], deal.prompt) + net[2] * tokens
            paid[mode] = float(priced.price_micros) if n == 0 else paid[mode]
    return utility, paid


def _know_all_lengths(drawn: Sequence[Market], truths: Mapping[str, IntArray | None]) -> list[Row]:
    """Let the first provider shape its ask, knowing how long answers truly are."""
    keys = [(name, mode) for name in truths for mode in CLEARING_MODES]
    tallies = {key: Tally() for key in keys}
    prices: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    for market in drawn:
        profit, paid = _tabulate_asks(market, truths)
        for key, values in profit.items():
            prices[key].append(paid[key[1]])
            tallies[key].add("honest", float(values[0]))
            tallies[key].add("best", float(values.max() - values[0]))
            for (prompt, output), value in zip(SHAPES, values.tolist(), strict=True):
                tallies[key].add(f"fixed_{prompt}_{output}", value - float(values[0]))
    rows = []
    for (name, mode), tally in tallies.items():
        fixed, base = tally.get_best("fixed_"), prices[name, mode]
        rows.append(
            {"truth": name, "mode": mode, "best_fixed": fixed.removeprefix("fixed_")}
            | tally.get_share("honest", base)
            | tally.get_share("best", base)
            | tally.get_share(fixed, base, "fixed")
        )
    return rows


def _tabulate_asks(
    market: Market, truths: Mapping[str, IntArray | None]
) -> tuple[dict[tuple[str, str], FloatArray], dict[str, float]]:
    """Give the first provider's profit by truth and mode, a shape of its ask each.

    Also its honest prices by mode.
    """
    own = market.sellers[0]
    cost = to_array(own.cost)
    asks = [make_prices(cost * np.array([prompt, prompt, output])) for prompt, output in SHAPES]
    welfare = market.value(market.bids, market.offer_all(), market.blocks).welfare_micros
    columns = market.value(
        market.bids,
        [offer(ask, own.qos) for ask in asks],
        np.repeat(market.blocks[:, :1], len(asks), axis=1),
    )
    lengths = {name: _get_lengths(market, truth) for name, truth in truths.items()}
    profit = {(name, mode): np.zeros(len(asks)) for name in truths for mode in CLEARING_MODES}
    paid = dict.fromkeys(CLEARING_MODES, 0.0)
    for n, ask in enumerate(asks):
        declared = welfare.copy()
        declared[:, 0] = columns.welfare_micros[:, n]
        cleared = market.clear(declared)
        for task in np.flatnonzero(cleared.assignment == 0).tolist():
            bid = market.bids[task]
            deal = make_deal(bid, Seller(ask, own.qos), market.scenarios, columns, (task, n))
            for mode in CLEARING_MODES:
                priced = deal.at(deal.cost_micros + int(cleared.surcharges[mode][task]))
                paid[mode] += priced.price_micros if n == 0 else 0.0
                net = to_array(priced.rates) - cost
                for name, true in lengths.items():
                    tokens = float(np.minimum(true, bid.max_tokens).mean())
                    profit[name, mode][n] += float(np.dot(net, [*deal.prompt, tokens]))
    return profit, paid


# --- claims about the cache ----------------------------------------------------------------------

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


# --- all of it -----------------------------------------------------------------------------------


def run(
    seed: int = 1, tasks: int = 36, markets: int = 12, lengths: IntArray | None = None
) -> dict[str, Any]:
    """Run the study.

    tasks: deals behind each row. markets: markets of each size. lengths: of answers, by default
    those of the trace.
    Raises: FileNotFoundError where the trace is not there.
    """
    study = Study.of(load_lengths() if lengths is None else lengths, seed)
    return {
        "expectation": measure_expectation(study, tasks),
        "early_cancelling": measure_early_cancelling(study, tasks),
        "false_impatience": measure_false_impatience(study, tasks),
        "stopping_early": measure_stopping_early(study, tasks),
        "backdating": measure_backdating(study, tasks),
        "hidden_length": measure_hidden_length(study, markets),
        "digest_claims": measure_digest_claims(study, markets),
    }


def run_if_there(seed: int) -> dict[str, Any]:
    """Run the study, or say that its trace is missing. A job of `python -m benchmarks.economics`.

    It is here as what `__main__` defines cannot be sent to other processes.
    """
    try:
        return run(seed)
    except FileNotFoundError as error:
        return {"skipped": f"no trace at {error.filename}"}


def main() -> None:
    """Run the study and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_json_option(parser)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=36, help="deals behind each row")
    parser.add_argument("--markets", type=int, default=12, help="markets of each size")
    arguments = parser.parse_args()
    try:
        tables = run(arguments.seed, arguments.tasks, arguments.markets)
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")
    write_report(
        arguments.json,
        name="outcomes",
        parameters={key: getattr(arguments, key) for key in ("seed", "tasks", "markets")},
        figures=tables,
    )


if __name__ == "__main__":
    main()
