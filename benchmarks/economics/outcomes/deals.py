"""Tasks, providers, deals between them, and how they may go.

A `Deal` is what clearing leaves: a task, its provider, a price, and the 16 scenarios that it was
cleared under. `Outcomes` are equally likely ways in which it may go: these scenarios, or draws
with the lengths of real answers, a lognormal first token and a gamma time a token, all three
correlated. Money is in hundredths of a micro-credit, so that rounding does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import gamma, norm

from auctioneer.mechanism import Offer, Valuation, compute_rates, compute_valuation, predict
from auctioneer.mechanism.arrays import IntArray
from auctioneer.predictors.scenarios import FinishedTask, ScenarioModel
from iemas.core.auction import Bid, ProviderQos, Scenario
from iemas.core.envelope import Envelope
from iemas.core.report import CapabilityReport, LoadReport, ReportStamp
from iemas.core.settlement import compute_worst_case_micros
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


def make_prices(per_token: Sequence[float] | FloatArray) -> Prices:
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


def offer(ask: Prices, qos: ProviderQos, slots: int = 4) -> Offer:
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
    return Offer(capability, load, ask, qos)


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
    first = compute_ttft_us(seller.qos, bid.prompt_tokens)
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


def compute_ttft_us(qos: ProviderQos, uncached_tokens: int) -> int:
    """Compute when the first token is expected on an idle node."""
    load = LoadReport(ReportStamp(NodeId(_NO_HASH), 1, 0, 0, 1), 4, (), (), 0)
    return predict(qos, load, uncached_tokens=uncached_tokens).ttft_us
