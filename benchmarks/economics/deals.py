"""Deals of a task and a provider, played out token by token and settled by several rules.

A `Deal` is what clearing leaves: a task, its provider, a price, and the 16 scenarios that it was
cleared under. `Outcomes` are equally likely ways in which it may go: these scenarios, or draws
with the lengths of real answers, a lognormal first token and a gamma time a token, all three
correlated. A `Play` is when each token would come; sums over its first n tokens say what each
side has got and spent if the task ends there.

Rules of settlement:

    settled     the project's: min(ρ·a, b) · late a token
    one_factor  one lateness factor on the whole total, ρ from separate expectations: the rule of
                the first version, to see that what is measured here does find gains
    capped      min(ρ·a, b·late) a token
    ended       `settled`, where prices are made for answers that end as soon as a token is not
                worth what it costs, b·late < a
    counted     `capped` with such prices
    shifted     `counted` as far as one deadline and decay a task can express it

Money is in hundredths of a micro-credit, so that rounding does not show. Source:
docs/spec/auction.md §7 and §8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import gamma, norm

from auctioneer.mechanism import Valuation, compute_rates, compute_valuation, predict
from auctioneer.mechanism.arrays import IntArray
from auctioneer.predictors.scenarios import FinishedTask, ScenarioModel
from iemas.core.auction import Bid, ProviderInput, ProviderQos, Scenario
from iemas.core.envelope import Envelope, Signed
from iemas.core.report import CapabilityReport, LoadReport, ReportStamp
from iemas.core.settlement import MeteredUsage, compute_amount_micros, compute_worst_case_micros
from iemas.core.types import PPM, HashAlgorithm, HubId, Lateness, NodeId, Prices

FloatArray = npt.NDArray[np.float64]
BLOCK: Final = 16
COST: Final = (10.0, 1.0, 40.0)
"""A typical provider's cost a token: computed prompt, cached prompt, output."""

WORTH: Final = (10.0, 10.0, 40.0)
"""What requesters' prices are a multiple of: they do not care whether a prompt was cached."""

CORRELATIONS: Final = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.5], [0.4, 0.5, 1.0]])
"""Of length, first token and time a token, between normal scores."""

_LOGNORMAL_SIGMA: Final = 0.7
_GAMMA_SHAPE: Final = 4.0
_NO_HASH: Final = bytes(32)
_UNSIGNED: Final = Envelope(b"", b"", b"")


# --- outcomes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Equally likely ways in which a task may go.

    `lengths`: the answer's, if nothing cuts it off, int64. `ttft`, `token`: how many standard
    deviations later than expected the first token comes, and how much longer each one takes.
    All of shape (n,).
    """

    lengths: IntArray
    ttft: FloatArray
    token: FloatArray

    @classmethod
    def of_scenarios(cls, scenarios: Sequence[Scenario]) -> Outcomes:
        """Take the predicted distribution for the truth."""
        return cls(
            np.array([scenario.output_tokens for scenario in scenarios], dtype=np.int64),
            np.array([scenario.ttft_deviation_ppm / PPM for scenario in scenarios]),
            np.array([scenario.token_deviation_ppm / PPM for scenario in scenarios]),
        )


def draw_outcomes(lengths: IntArray, count: int, rng: np.random.Generator) -> Outcomes:
    """Draw outcomes whose lengths are those of a trace, through a Gaussian copula."""
    scores = rng.multivariate_normal(np.zeros(3), CORRELATIONS, count)
    levels = norm.cdf(scores)
    spread = np.sqrt(np.expm1(_LOGNORMAL_SIGMA**2))
    first = np.expm1(_LOGNORMAL_SIGMA * scores[:, 1] - _LOGNORMAL_SIGMA**2 / 2) / spread
    token = (gamma.ppf(levels[:, 2], _GAMMA_SHAPE) - _GAMMA_SHAPE) / np.sqrt(_GAMMA_SHAPE)
    ordered = np.sort(lengths)
    places = np.minimum((levels[:, 0] * len(ordered)).astype(np.int64), len(ordered) - 1)
    return Outcomes(ordered[places], first, np.asarray(token, dtype=np.float64))


def learn(outcomes: Outcomes, rng: np.random.Generator) -> tuple[Scenario, ...]:
    """Let the project's model learn finished tasks, some of them cut off by `max_tokens`."""
    model = ScenarioModel()
    limits = rng.choice((256, 512, 1024), len(outcomes.lengths)).tolist()
    rows = zip(
        outcomes.lengths.tolist(), limits, outcomes.ttft.tolist(), outcomes.token.tolist(),
        strict=True,
    )  # fmt: skip
    for length, limit, ttft, token in rows:
        model.learn_one(FinishedTask(min(length, limit), length > limit, ttft, token))
    return model.quantise()


# --- deals ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seller:
    """A provider as it is: what tokens cost it, and its true times."""

    cost: Prices
    qos: ProviderQos


@dataclass(frozen=True, slots=True)
class Deal:
    """A task at a provider at a price, as cleared. `cached`: prompt tokens that are resident."""

    bid: Bid
    seller: Seller
    cached: int
    scenarios: tuple[Scenario, ...]
    expected: tuple[int, int, int]
    cost_micros: int
    value_micros: int
    price_micros: int

    @property
    def prompt(self) -> tuple[int, int]:
        """Uncached and cached prompt tokens."""
        return self.bid.prompt_tokens - self.cached, self.cached

    @property
    def rates(self) -> Prices:
        """The rates that it settles at."""
        return compute_rates(self.seller.cost, self.bid.prices, self.expected, self.price_micros)

    def at(self, price_micros: float) -> Deal:
        """Give the same deal at another price, within its value."""
        return replace(self, price_micros=min(round(price_micros), self.value_micros))


def make_prices(per_token: Sequence[float]) -> Prices:
    """Make prices from hundredths of micro-credits a token."""
    prompt, cached, output = (max(1, round(price * PPM)) for price in per_token)
    return Prices(prompt, cached, output)


def to_array(prices: Prices) -> FloatArray:
    """Give prices a token by kind: uncached, cached, output."""
    return np.array(
        [prices.prompt_micros_per_mtok, prices.cached_micros_per_mtok,
         prices.output_micros_per_mtok]
    ) / PPM  # fmt: skip


def make_bid(
    prompt_tokens: int, max_tokens: int, prices: Prices, lateness: Lateness | None = None
) -> Bid:
    """Make a bid that reserves its worst case."""
    worst = compute_worst_case_micros(prices, prompt_tokens, max_tokens)
    return Bid("m", prompt_tokens, max_tokens, prices, lateness or Lateness(), worst)


def declare(
    bid: Bid,
    *,
    prices: Prices | None = None,
    lateness: Lateness | None = None,
    max_tokens: int | None = None,
) -> Bid:
    """Declare something else of the same task."""
    return make_bid(
        bid.prompt_tokens, max_tokens or bid.max_tokens, prices or bid.prices,
        lateness or bid.lateness,
    )  # fmt: skip


def offer(ask: Prices, qos: ProviderQos, slots: int = 4) -> ProviderInput:
    """Make what a round takes in of a provider, as if its reports had been signed."""
    stamp = ReportStamp(NodeId(_NO_HASH), 1, 0, 0, 1)
    capability = CapabilityReport(
        stamp=stamp,
        public_address="",
        peer_address="",
        ca_certificate=b"",
        hpke_public_key=_NO_HASH,
        software="",
        hub=HubId("m"),
        model="m",
        model_revision="",
        tokenizer_hash=_NO_HASH,
        block_size=BLOCK,
        hash_algorithm=HashAlgorithm.SHA256_CBOR,
        context_tokens=2**20,
        slots=slots,
        kv_events=True,
        hardware="",
    )
    load = LoadReport(stamp, slots, (), (), 0)
    return ProviderInput(
        Signed(capability, _UNSIGNED), Signed(load, _UNSIGNED), _NO_HASH, ask, qos, slots
    )


def draw_seller(rng: np.random.Generator, spread: float = 0.25) -> Seller:
    """Draw a provider around the typical cost, with times that spread by a tenth to a half."""
    cost = make_prices(np.array(COST) * np.exp(rng.normal(0.0, spread, 3)))
    base, per_token, token = rng.integers([40_000, 50, 10_000], [200_000, 300, 40_000]).tolist()
    share = float(rng.uniform(0.1, 0.5))
    qos = ProviderQos(
        provider=NodeId(_NO_HASH),
        samples=100,
        ttft_base_us=base,
        ttft_per_uncached_token_us=per_token,
        ttft_per_active_task_us=0,
        ttft_per_pending_token_us=0,
        ttft_sd_us=round(share * base),
        token_us=token,
        token_sd_us=round(share * token),
    )
    return Seller(cost, qos)


def draw_bid(rng: np.random.Generator, *, low: float = 1.5, high: float = 5.0) -> Bid:
    """Draw a task without a deadline, worth so many times what it typically costs."""
    level = np.exp(rng.uniform(np.log(low), np.log(high)))
    prices = make_prices(np.array(WORTH) * level)
    prompt = int(np.exp(rng.uniform(np.log(100), np.log(6000))))
    return make_bid(prompt, int(rng.choice((128, 256, 512, 1024))), prices)


LATENESS: Final[dict[str, tuple[float, float]]] = {
    "none": (0.0, 0.0),
    "mild": (1.0, 2.0),
    "steep": (0.5, 0.5),
    "hard": (1.5, 0.0),
    "tight": (0.75, 0.0),
}
"""Deadline and decay, in multiples of the time that the task is expected to take."""


def make_lateness(kind: str, bid: Bid, seller: Seller, scenarios: Sequence[Scenario]) -> Lateness:
    """Make a deadline and decay of a kind for a task of this size."""
    tokens = np.mean([min(scenario.output_tokens, bid.max_tokens) for scenario in scenarios])
    first = _compute_ttft_us(seller.qos, bid.prompt_tokens)
    typical_ms = (first + float(tokens) * seller.qos.token_us) / 1000
    deadline, decay = LATENESS[kind]
    return Lateness(round(deadline * typical_ms), round(decay * typical_ms))


def strike(
    bid: Bid, seller: Seller, scenarios: tuple[Scenario, ...], *, blocks: int, surcharge: float
) -> Deal | None:
    """Clear one task at one provider; the surcharge is a share of the welfare. None: no deal."""
    found = np.array([[blocks]], dtype=np.int64)
    inputs = [offer(seller.cost, seller.qos)]
    valuation = compute_valuation([bid], inputs, found, scenarios=scenarios, cache_affinity=True)
    welfare = int(valuation.welfare_micros[0, 0])
    if welfare == 0:
        return None
    deal = make_deal(bid, seller, scenarios, valuation, (0, 0))
    return deal.at(deal.cost_micros + surcharge * welfare)


def make_deal(
    bid: Bid,
    seller: Seller,
    scenarios: tuple[Scenario, ...],
    valuation: Valuation,
    pair: tuple[int, int],
) -> Deal:
    """Make the deal of one pair of a valuation, at cost."""
    cost = int(valuation.cost_micros[pair])
    return Deal(
        bid, seller, int(valuation.cached_tokens[pair]), scenarios,
        valuation.get_expected_tokens(*pair), cost, int(valuation.value_micros[pair]), cost,
    )  # fmt: skip


def _compute_ttft_us(qos: ProviderQos, uncached_tokens: int) -> int:
    load = LoadReport(ReportStamp(NodeId(_NO_HASH), 1, 0, 0, 1), 4, (), (), 0)
    return predict(qos, load, uncached_tokens=uncached_tokens).ttft_us


# --- playing a deal out --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Play:
    """A deal's tokens as they would come, if nobody stopped.

    `counts`: output tokens, shape (n,). `elapsed_ms`: when each comes, shape (n, longest).
    """

    counts: IntArray
    elapsed_ms: IntArray

    @classmethod
    def of(cls, outcomes: Outcomes, qos: ProviderQos, *, uncached: int, most: int) -> Play:
        """Play a task out. uncached: prompt tokens that are computed. most: `max_tokens`."""
        counts = np.minimum(outcomes.lengths, most)
        first = np.maximum(_compute_ttft_us(qos, uncached) + qos.ttft_sd_us * outcomes.ttft, 0.0)
        gap = np.maximum(qos.token_us + qos.token_sd_us * outcomes.token, 1.0)
        numbers = np.arange(int(counts.max()))
        times = (first[:, None] + gap[:, None] * numbers) // 1000
        return cls(counts, times.astype(np.int64))

    def weigh_ppm(self, lateness: Lateness) -> IntArray:
        """Give late_j of every token, `Lateness.compute_ppm`, and 0 where there is none."""
        late = np.full(self.elapsed_ms.shape, PPM, dtype=np.int64)
        if lateness.deadline_ms > 0:
            over = np.maximum(self.elapsed_ms - lateness.deadline_ms, 0)
            falling = PPM - over * PPM // max(lateness.decay_ms, 1)
            late = np.where(over == 0, PPM, np.where(over >= lateness.decay_ms, 0, falling))
        return np.where(np.arange(late.shape[1]) < self.counts[:, None], late, 0)

    def weigh(self, lateness: Lateness) -> FloatArray:
        """Give late_j of every token, in 0..1; read-only."""
        return _weigh(self, lateness)

    def sum_up(self, prompt: FloatArray, output: FloatArray) -> FloatArray:
        """Sum up what the first n tokens bring, n = 0..longest; the first brings the prompt's.

        prompt: shape (n,). output: shape (n, longest), 0 where there is no token.
        """
        tokens = output.copy()
        tokens[:, 0] += prompt
        return np.concatenate((np.zeros((len(tokens), 1)), np.cumsum(tokens, axis=1)), axis=1)

    def sum_linear(self, prices: FloatArray, prompt: Sequence[int], late: FloatArray) -> FloatArray:
        """Sum up Σ price · late."""
        return self.sum_up(np.dot(prices[:2], prompt) * late[:, 0], prices[2] * late)

    def sum_cost(self, prices: FloatArray, prompt: Sequence[int]) -> FloatArray:
        """Sum up what the first n tokens cost their provider; the prompt's cost is sunk."""
        there = (np.arange(self.elapsed_ms.shape[1]) < self.counts[:, None]).astype(np.float64)
        costs = self.sum_up(np.zeros(len(there)), prices[2] * there)
        total: FloatArray = costs + np.dot(prices[:2], prompt)
        return total


@lru_cache(maxsize=64)
def _weigh(played: Play, lateness: Lateness) -> FloatArray:
    """Weigh a play's tokens once, as every rule and policy asks for the same."""
    late: FloatArray = played.weigh_ppm(lateness) / PPM
    late.setflags(write=False)
    return late


def play(deal: Deal, outcomes: Outcomes) -> Play:
    """Play a deal out as it is."""
    return Play.of(outcomes, deal.seller.qos, uncached=deal.prompt[0], most=deal.bid.max_tokens)


def settle(deal: Deal, outcomes: Outcomes) -> IntArray:
    """Settle every outcome with the project's own formula, to whole units."""
    late = play(deal, outcomes).weigh_ppm(deal.bid.lateness)
    rates = deal.rates
    amounts = [
        compute_amount_micros(rates, MeteredUsage(*deal.prompt, prompt, total))
        for prompt, total in zip(late[:, 0].tolist(), late.sum(axis=1).tolist(), strict=True)
    ]
    return np.array(amounts, dtype=np.int64)


# --- rules of settlement -------------------------------------------------------------------------

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


def pick(sums: FloatArray, stops: IntArray) -> float:
    """Give the mean of what the first `stops` tokens bring."""
    return float(np.take_along_axis(sums, stops[:, None], axis=1).mean())


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
