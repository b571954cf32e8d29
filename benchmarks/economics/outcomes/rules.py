"""Rules of settlement.

    settled     the project's: min(ρ·a, b) · late a token
    one_factor  one lateness factor on the whole total, ρ from separate expectations: the rule of
                the first version, to see that what is measured here does find gains
    capped      min(ρ·a, b·late) a token
    ended       `settled`, where prices are made for answers that end as soon as a token is not
                worth what it costs, b·late < a
    counted     `capped` with such prices
    shifted     `counted` as far as one deadline and decay a task can express it

Source: docs/spec/auction.md §7 and §8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.optimize import brentq

from auctioneer.mechanism import compute_rates
from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.deals import Deal, FloatArray, Outcomes, to_array
from benchmarks.economics.outcomes.plays import Play, pick, play
from iemas.core.types import PPM

Rule = Callable[[Deal, Play], FloatArray]
"""(a deal, how it is played out) to what the first n tokens owe, shape (n, longest + 1)."""


def pay_settled(deal: Deal, played: Play) -> FloatArray:
    """Sum up the project's rule: rate · late a token."""
    late = played.weigh(deal.bid.lateness)
    return played.sum_linear(to_array(deal.rates), deal.prompt, late)


def pay_one_factor(deal: Deal, played: Play) -> FloatArray:
    """Scale the whole total by the lateness of its last token: the first version's rule.

    ρ is such that ρ · E[late] · E[a · tokens] is the price, as if the two had nothing to do with
    each other.
    """
    predicted = play(deal, Outcomes.of_scenarios(deal.scenarios))
    rows = np.arange(len(predicted.counts))
    last = predicted.weigh(deal.bid.lateness)[rows, predicted.counts - 1]
    ask = to_array(deal.seller.cost)
    mean_cost = float(np.dot(ask, [*deal.prompt, predicted.counts.mean()]))
    scale = deal.price_micros / max(float(last.mean()) * mean_cost, 1e-9)
    rates = np.minimum(scale * ask, to_array(deal.bid.prices))
    late = played.weigh(deal.bid.lateness)
    there = np.arange(late.shape[1]) < played.counts[:, None]
    total = played.sum_linear(rates, deal.prompt, there.astype(np.float64))
    # After n tokens the factor is the n-th's; where there is none, that of the last.
    behind = np.take_along_axis(late, played.counts[:, None] - 1, axis=1)
    factor = np.where(there, late, behind)
    total[:, 1:] *= factor
    return total


def _pay_capped_at(deal: Deal, played: Play, scale: float) -> FloatArray:
    ask, limit = to_array(deal.seller.cost), to_array(deal.bid.prices)
    late = played.weigh(deal.bid.lateness)
    first = np.minimum(scale * ask[:2], limit[:2] * late[:, :1])
    there = np.arange(late.shape[1]) < played.counts[:, None]
    return played.sum_up(
        first @ np.array(deal.prompt, dtype=np.float64),
        np.where(there, np.minimum(scale * ask[2], limit[2] * late), 0.0),
    )


def _pay_shifted_at(deal: Deal, played: Play, scale: float) -> FloatArray:
    """Pay r · min(1, late / θ), θ the greatest r / b: a later deadline and a shorter decay."""
    ask, limit = to_array(deal.seller.cost), to_array(deal.bid.prices)
    rates = np.minimum(scale * ask, limit)
    share = float((rates / limit).max())
    late = np.minimum(played.weigh(deal.bid.lateness) / share, 1.0)
    return played.sum_linear(rates, deal.prompt, late)


@lru_cache(maxsize=1024)
def _fit(
    deal: Deal,
    pay_at: Callable[[Deal, Play, float], FloatArray],
    price: float,
    *,
    ended: bool = False,
) -> float:
    """Find the scale at which the predicted expectation is the price.

    ended: answers end where they are not worth their cost.
    """
    predicted = play(deal, Outcomes.of_scenarios(deal.scenarios))
    whole = np.full(len(predicted.counts), predicted.elapsed_ms.shape[1])
    stops = find_worthwhile(deal, predicted) if ended else whole
    most = 1e3 * float((to_array(deal.bid.prices) / to_array(deal.seller.cost)).max())

    def miss(scale: float) -> float:
        return pick(pay_at(deal, predicted, scale), stops) - price

    if miss(most) <= 0.0:
        return most
    return float(brentq(miss, 1e-6, most, xtol=1e-9))


def pay_capped(deal: Deal, played: Play) -> FloatArray:
    """Sum up min(ρ·a, b·late) a token."""
    return _pay_capped_at(deal, played, _fit(deal, _pay_capped_at, deal.price_micros))


def find_worthwhile(deal: Deal, played: Play) -> IntArray:
    """Count the output tokens that are worth what they cost, b·late ≥ a: the first ones, if any.

    The first token always counts: it brings the prompt, whose cost is sunk by then.
    """
    late = played.weigh(deal.bid.lateness)
    limit, ask = to_array(deal.bid.prices)[2], to_array(deal.seller.cost)[2]
    there = np.arange(late.shape[1]) < played.counts[:, None]
    stops: IntArray = np.maximum(((limit * late >= ask) & there).sum(axis=1), 1)
    return stops


def _compute_ended_price(deal: Deal) -> float:
    """Compute the price if the answer is predicted to end where it is not worth its cost."""
    predicted = play(deal, Outcomes.of_scenarios(deal.scenarios))
    tokens = float(find_worthwhile(deal, predicted).mean())
    cost = float(np.dot(to_array(deal.seller.cost), [*deal.prompt, tokens]))
    # C is rounded up, as everywhere; the sum of products of floats may be off in its last digits.
    return float(deal.price_micros - deal.cost_micros + np.ceil(cost - 1e-6))


def pay_ended(deal: Deal, played: Play) -> FloatArray:
    """Sum up rate · late, at a price and rates for an answer that ends where b·late < a."""
    predicted = play(deal, Outcomes.of_scenarios(deal.scenarios))
    late = predicted.weigh(deal.bid.lateness)
    kept = pick(predicted.sum_up(np.zeros(len(late)), late), find_worthwhile(deal, predicted))
    expected = (*deal.expected[:2], int(kept * PPM))
    value = sum(np.multiply(to_array(deal.bid.prices), expected).tolist()) / PPM
    price = min(int(_compute_ended_price(deal)), int(value))
    rates = compute_rates(deal.seller.cost, deal.bid.prices, expected, price)
    return played.sum_linear(to_array(rates), deal.prompt, played.weigh(deal.bid.lateness))


def pay_counted(deal: Deal, played: Play) -> FloatArray:
    """Sum up min(ρ·a, b·late), at a price and scale for an answer that ends where b·late < a."""
    scale = _fit(deal, _pay_capped_at, _compute_ended_price(deal), ended=True)
    return _pay_capped_at(deal, played, scale)


def pay_shifted(deal: Deal, played: Play) -> FloatArray:
    """Sum up `counted` as far as one deadline and decay for all kinds can express it."""
    scale = _fit(deal, _pay_shifted_at, _compute_ended_price(deal), ended=True)
    return _pay_shifted_at(deal, played, scale)


RULES: Final[dict[str, Rule]] = {
    "settled": pay_settled,
    "one_factor": pay_one_factor,
    "capped": pay_capped,
    "ended": pay_ended,
    "counted": pay_counted,
    "shifted": pay_shifted,
}
