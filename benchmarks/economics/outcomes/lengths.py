"""Agents that know more of answers' lengths than the hub's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.deals import (
    FloatArray,
    Seller,
    declare,
    make_deal,
    make_prices,
    offer,
    to_array,
)
from benchmarks.economics.outcomes.markets import SIZES, Market, draw_market
from benchmarks.economics.outcomes.samples import Row, Study, Tally
from iemas.core.auction import Bid
from iemas.core.params import CLEARING_MODES
from iemas.core.types import Prices

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
