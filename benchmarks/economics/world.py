"""What is true, and how predictions miss it.

A `World` is one round's truth: what tasks are worth to their requesters, what tokens cost their
providers, which prompt blocks they hold, and how lengths and times are distributed. A `Forecast`
is what the market's model takes lengths and times to be: the truth, distorted by noise and bias.

Money is in hundredths of a micro-credit (`FINE`), so that rounding to whole units, which the
mechanism does everywhere, does not show among the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from auctioneer.mechanism import Offer
from auctioneer.mechanism.arrays import IntArray
from auctioneer.predictors.scenarios import FinishedTask, ScenarioModel
from iemas.core.auction import Bid, ProviderQos, Scenario
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Envelope
from iemas.core.report import CapabilityReport, LoadReport, ReportStamp
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import PPM, HashAlgorithm, HubId, Lateness, NodeId, Prices

FINE: Final = 100
"""Units of money in a micro-credit."""

MODEL: Final = "model"
LARGEST_CONTEXT: Final = 2**17
_NO_HASH: Final = bytes(32)
_UNSIGNED: Final = Envelope(b"", b"", b"")


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as it is: what tokens cost it, how many tasks it can serve, how fast it is."""

    cost: Prices
    slots: int
    qos: ProviderQos
    block_size: int = 16
    model: str = MODEL
    context_tokens: int = LARGEST_CONTEXT


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """The truth of one round.

    `tasks`: each one's true bid: prices, deadline, decay and the most tokens that are wanted.
    `held_blocks`: leading prompt blocks that a provider really holds, int64, (n_tasks,
    n_providers). `scenarios`: the true joint distribution of lengths and times.
    """

    tasks: tuple[Bid, ...]
    providers: tuple[Provider, ...]
    held_blocks: IntArray
    scenarios: tuple[Scenario, ...]

    @property
    def slots(self) -> IntArray:
        """Each provider's slots, int64, shape (n_providers,)."""
        return np.array([provider.slots for provider in self.providers], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The market's model: times of each provider, scenarios of the hub."""

    qos: tuple[ProviderQos, ...]
    scenarios: tuple[Scenario, ...]


def foresee(world: World, *, noise: float, bias: float, seed: int) -> Forecast:
    """Distort the truth: times by a factor a provider, lengths by one for the hub.

    noise: coefficient of variation of the factors, lognormal with mean 1, independent for the
    first token, the token time and the lengths. The same seed gives the same draws at every
    level, only further out. bias: by which share all factors are too high (or too low).
    """
    rng = np.random.default_rng(seed)
    sigma = math.sqrt(math.log1p(noise * noise))
    draws = rng.standard_normal(2 * len(world.providers) + 1)
    factors = (np.exp(sigma * draws - sigma * sigma / 2) * (1.0 + bias)).tolist()
    qos = [
        _scale_qos(provider.qos, factors[2 * n], factors[2 * n + 1])
        for n, provider in enumerate(world.providers)
    ]
    scenarios = [
        replace(scenario, output_tokens=max(1, round(scenario.output_tokens * factors[-1])))
        for scenario in world.scenarios
    ]
    return Forecast(tuple(qos), tuple(scenarios))


def _scale_qos(qos: ProviderQos, first: float, token: float) -> ProviderQos:
    return replace(
        qos,
        ttft_base_us=round(qos.ttft_base_us * first),
        ttft_per_uncached_token_us=round(qos.ttft_per_uncached_token_us * first),
        ttft_sd_us=round(qos.ttft_sd_us * first),
        token_us=max(1, round(qos.token_us * token)),
        token_sd_us=round(qos.token_sd_us * token),
    )


def make_task(
    prompt_tokens: int,
    max_tokens: int,
    prices: Prices,
    lateness: Lateness,
    model: str = MODEL,
) -> Bid:
    """Make a bid that reserves its worst case."""
    worst = compute_worst_case_micros(prices, prompt_tokens, max_tokens)
    return Bid(model, prompt_tokens, max_tokens, prices, lateness, worst)


def make_prices(per_token: Iterable[float]) -> Prices:
    """Make prices from micro-credits a token by kind, in fine units."""
    prompt, cached, output = (max(1, round(float(price) * FINE * PPM)) for price in per_token)
    return Prices(prompt, cached, output)


def scale_prices(prices: Prices, factors: tuple[float, float, float]) -> Prices:
    """Scale each kind's price by its own factor."""
    return Prices(
        max(1, round(prices.prompt_micros_per_mtok * factors[0])),
        max(1, round(prices.cached_micros_per_mtok * factors[1])),
        max(1, round(prices.output_micros_per_mtok * factors[2])),
    )


def make_qos(ttft_base_us: int, per_uncached_us: int, token_us: int, spread: float) -> ProviderQos:
    """Make a provider's true times; `spread` is the deviation as a share of the mean."""
    return ProviderQos(
        provider=NodeId(_NO_HASH),
        samples=100,
        ttft_base_us=ttft_base_us,
        ttft_per_uncached_token_us=per_uncached_us,
        ttft_per_active_task_us=0,
        ttft_per_pending_token_us=0,
        ttft_sd_us=round(spread * (ttft_base_us + 1000 * per_uncached_us)),
        token_us=token_us,
        token_sd_us=round(spread * token_us),
    )


def make_scenarios(
    lengths: Sequence[int], deviations: Sequence[tuple[float, float]]
) -> tuple[Scenario, ...]:
    """Let the market's own model make scenarios of finished tasks; it remembers the last 256."""
    model = ScenarioModel()
    for length, (ttft, token) in zip(lengths, deviations, strict=True):
        model.learn_one(FinishedTask(length, False, ttft, token))  # noqa: FBT003
    return model.quantise()


def offer(provider: Provider, ask: Prices, qos: ProviderQos) -> Offer:
    """Make what a round takes in of a provider, as if its reports had been signed."""
    stamp = ReportStamp(NodeId(_NO_HASH), 1, 0, 0, 1)
    capability = CapabilityReport(
        stamp=stamp,
        public_address="",
        peer_address="",
        ca_certificate=b"",
        hpke_public_key=_NO_HASH,
        software="",
        hub=HubId(MODEL),
        model=provider.model,
        model_revision="",
        tokenizer_hash=compute_hash(b""),
        block_size=provider.block_size,
        hash_algorithm=HashAlgorithm.SHA256_CBOR,
        context_tokens=provider.context_tokens,
        slots=provider.slots,
        kv_events=True,
        hardware="",
    )
    load = LoadReport(stamp, provider.slots, (), (), 0)
    return Offer(capability, load, ask, qos)
