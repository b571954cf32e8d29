"""What each pair of task and provider is worth: from bids, asks, reports and the QoS model.

    V_ij = E[Σ b_j · m · late_j]      the most the requester would pay for what it would get
    C_ij = E[a_i · m]                 what the provider asks for doing it
    w_ij = V_ij − C_ij                where the pair is feasible, else 0

m are the metered tokens by kind: uncached prompt, cached prompt, output. Cached tokens are the
leading blocks found in the provider's digest, at least one prompt token always left to compute;
the length of the answer and all times follow the scenarios (`lateness`). V is rounded down, C up,
both exactly: from expected tokens, in whole ppm-tokens, on there is only integer arithmetic, in
two limbs of 10^6 where a product might pass 2^63.

Every verifier computes the same integers from the transcript. Source: docs/spec/auction.md §6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray, freeze, is_int64
from auctioneer.mechanism.errors import InvalidValuationInputError
from auctioneer.mechanism.lateness import compute_expected_lateness
from auctioneer.mechanism.rates import compute_rates
from iemas.core.auction import N_SCENARIOS, Bid, ProviderQos, Scenario
from iemas.core.report import CapabilityReport, LoadReport
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import PPM, Prices

__all__ = ["Offer", "Prediction", "Valuation", "compute_rates", "compute_valuation", "predict"]

MAX_TTFT_US: Final = 10**12
"""Predictions of the time to first token end here, past any deadline and decay (two days)."""

_MAX_PENDING_TOKENS: Final = 10**8
_MAX_CONTEXT_TOKENS: Final = 2**40
_MEGA: Final = np.int64(10**6)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider brings into a round: its reports, its ask, and its row of the QoS model."""

    capability: CapabilityReport
    load: LoadReport
    ask: Prices
    qos: ProviderQos


@dataclass(frozen=True, slots=True)
class Prediction:
    """The QoS model's view of the times of one task at one provider: means and deviations."""

    ttft_us: int
    ttft_sd_us: int
    token_us: int
    token_sd_us: int


@dataclass(frozen=True, slots=True, eq=False)
class Valuation:
    """What every pair is worth; read-only int64 arrays of shape (n_tasks, n_providers).

    `welfare_micros`: w, 0 where the pair is not feasible.
    `value_micros`: V rounded down. `cost_micros`: C rounded up.
    `cached_tokens`: prompt tokens predicted to be resident.
    `expected_ttft_ms`: mean time to first token, rounded up.
    `expected_ppm_tokens`: M, shape (3, n_tasks, n_providers): uncached prompt, cached prompt and
    output tokens, each weighted by late_j at its delivery, in ppm-tokens.
    """

    welfare_micros: IntArray
    value_micros: IntArray
    cost_micros: IntArray
    cached_tokens: IntArray
    expected_ttft_ms: IntArray
    expected_ppm_tokens: IntArray

    def get_expected_tokens(self, task: int, provider: int) -> tuple[int, int, int]:
        """Give M of one pair, for `compute_rates`."""
        uncached, cached, output = self.expected_ppm_tokens[:, task, provider].tolist()
        return uncached, cached, output


def predict(qos: ProviderQos, load: LoadReport, *, uncached_tokens: int) -> Prediction:
    """Predict one task's times at one provider: the reference for what `compute_valuation` does.

    uncached_tokens: prompt tokens to compute. The time to first token saturates at `MAX_TTFT_US`.
    Raises: InvalidValuationInputError if the count is negative.
    """
    if uncached_tokens < 0:
        raise InvalidValuationInputError(
            "uncached_tokens must not be negative", argument="uncached_tokens"
        )
    ttft_us = (
        qos.ttft_base_us
        + qos.ttft_per_uncached_token_us * uncached_tokens
        + qos.ttft_per_active_task_us * len(load.active)
        + qos.ttft_per_pending_token_us * min(load.pending_prompt_tokens, _MAX_PENDING_TOKENS)
    )
    return Prediction(
        ttft_us=min(ttft_us, MAX_TTFT_US),
        ttft_sd_us=qos.ttft_sd_us,
        token_us=qos.token_us,
        token_sd_us=qos.token_sd_us,
    )


def compute_valuation(
    bids: Sequence[Bid],
    providers: Sequence[Offer],
    matched_blocks: IntArray,
    *,
    scenarios: Sequence[Scenario],
    cache_affinity: bool,
) -> Valuation:
    """Compute the value, cost and welfare of every pair of a round.

    matched_blocks: leading prompt blocks in each provider's digest, int64, shape
    (n_tasks, n_providers), none negative.
    scenarios: how lengths and times spread together; exactly `N_SCENARIOS` of them.
    cache_affinity: if false, nothing is taken to be cached (to measure what affinity brings).
    A pair is feasible if the models are equal, prompt and output fit the context, the bid covers
    the ask in every component, the worst case at the bid's own prices fits its reservation, and
    V > C. Free slots are the matching's business.
    Raises: InvalidValuationInputError for `matched_blocks` of another type, shape or sign, and
    for another number of scenarios.
    """
    _validate_matched_blocks(matched_blocks, len(bids), len(providers))
    if len(scenarios) != N_SCENARIOS:
        raise InvalidValuationInputError(
            f"there must be {N_SCENARIOS} scenarios, got {len(scenarios)}", argument="scenarios"
        )
    tasks, sellers = _Tasks.gather(bids), _Providers.gather(providers)
    cached = _predict_cached(tasks, sellers, matched_blocks, cache_affinity=cache_affinity)
    uncached = tasks.prompt_tokens[:, None] - cached
    ttft_us = np.minimum(sellers.per_uncached_us * uncached + sellers.ttft_us, MAX_TTFT_US)
    lengths = np.array([[scenario.output_tokens] for scenario in scenarios], dtype=np.int64)
    output = np.minimum(lengths, tasks.max_tokens)
    ppm_tokens = np.stack((uncached, cached, np.zeros_like(cached))) * PPM
    ppm_tokens[2] = output.sum(axis=0)[:, None] * (PPM // N_SCENARIOS)
    cost, above = _sum_products(sellers.asks[:, None, :], ppm_tokens)
    cost += above
    _weigh_by_lateness(ppm_tokens, scenarios, tasks, sellers, output=output, ttft_us=ttft_us)
    value, _ = _sum_products(tasks.prices[:, :, None], ppm_tokens)
    feasible = _find_feasible(bids, providers, tasks, sellers) & (value > cost)
    return Valuation(
        welfare_micros=freeze(np.where(feasible, value - cost, 0)),
        value_micros=freeze(value),
        cost_micros=freeze(cost),
        cached_tokens=freeze(cached),
        expected_ttft_ms=freeze((ttft_us + 999) // 1000),
        expected_ppm_tokens=freeze(ppm_tokens),
    )


@dataclass(frozen=True, slots=True)
class _Tasks:
    """Bids as columns: shape (n_tasks,), prices (3, n_tasks)."""

    prompt_tokens: IntArray
    max_tokens: IntArray
    deadline_ms: IntArray
    decay_ms: IntArray
    prices: IntArray

    @classmethod
    def gather(cls, bids: Sequence[Bid]) -> _Tasks:
        columns = _gather(
            [
                (
                    bid.prompt_tokens,
                    bid.max_tokens,
                    bid.lateness.deadline_ms,
                    bid.lateness.decay_ms,
                    bid.prices.prompt_micros_per_mtok,
                    bid.prices.cached_micros_per_mtok,
                    bid.prices.output_micros_per_mtok,
                )
                for bid in bids
            ],
            7,
        )
        return cls(columns[0], columns[1], columns[2], columns[3], columns[4:])


@dataclass(frozen=True, slots=True)
class _Providers:
    """Providers as columns: shape (n_providers,), asks (3, n_providers).

    `ttft_us` is the part of the time to first token that does not depend on the task.
    """

    context_tokens: IntArray
    block_size: IntArray
    ttft_us: IntArray
    per_uncached_us: IntArray
    ttft_sd_us: IntArray
    token_us: IntArray
    token_sd_us: IntArray
    asks: IntArray

    @classmethod
    def gather(cls, providers: Sequence[Offer]) -> _Providers:
        columns = _gather([_get_provider_row(provider) for provider in providers], 10)
        return cls(
            columns[0],
            columns[1],
            columns[2],
            columns[3],
            columns[4],
            columns[5],
            columns[6],
            asks=columns[7:],
        )


def _get_provider_row(provider: Offer) -> tuple[int, ...]:
    """Give the numbers of `_Providers`, within bounds that no product can overflow."""
    capability, qos, ask = provider.capability, provider.qos, provider.ask
    idle = predict(qos, provider.load, uncached_tokens=0)
    return (
        min(capability.context_tokens, _MAX_CONTEXT_TOKENS),
        min(max(capability.block_size, 1), _MAX_CONTEXT_TOKENS),
        idle.ttft_us,
        qos.ttft_per_uncached_token_us,
        idle.ttft_sd_us,
        idle.token_us,
        idle.token_sd_us,
        ask.prompt_micros_per_mtok,
        ask.cached_micros_per_mtok,
        ask.output_micros_per_mtok,
    )


def _gather(rows: list[tuple[int, ...]], width: int) -> IntArray:
    return np.ascontiguousarray(np.array(rows, dtype=np.int64).reshape(len(rows), width).T)


def _validate_matched_blocks(matched_blocks: object, n_tasks: int, n_providers: int) -> None:
    shape = (n_tasks, n_providers)
    if not (
        isinstance(matched_blocks, np.ndarray)
        and is_int64(matched_blocks, 2)
        and matched_blocks.shape == shape
        and matched_blocks.min(initial=0) >= 0
    ):
        raise InvalidValuationInputError(
            f"matched_blocks must be int64 of shape {shape}, no entry negative",
            argument="matched_blocks",
        )


def _predict_cached(
    tasks: _Tasks, sellers: _Providers, matched_blocks: IntArray, *, cache_affinity: bool
) -> IntArray:
    """Count resident prompt tokens; the last prompt token is always computed."""
    if not cache_affinity:
        return np.zeros_like(matched_blocks)
    usable_blocks = (tasks.prompt_tokens[:, None] - 1) // sellers.block_size
    cached: IntArray = np.minimum(matched_blocks, usable_blocks) * sellers.block_size
    return cached


def _weigh_by_lateness(
    ppm_tokens: IntArray,
    scenarios: Sequence[Scenario],
    tasks: _Tasks,
    sellers: _Providers,
    *,
    output: IntArray,
    ttft_us: IntArray,
) -> None:
    """Turn expected tokens into M, their expected worth at delivery, in place.

    ppm_tokens: shape (3, n_tasks, n_providers). output: shape (n_scenarios, n_tasks).
    """
    # Without a deadline every token is worth its full price whenever it comes.
    timed = np.flatnonzero(tasks.deadline_ms > 0)
    if len(timed) == 0:
        return
    prompt_ppm, output_ppm_tokens = compute_expected_lateness(
        scenarios=scenarios,
        ttft_us=ttft_us[timed],
        ttft_sd_us=sellers.ttft_sd_us,
        token_us=sellers.token_us,
        token_sd_us=sellers.token_sd_us,
        output_tokens=output[:, timed],
        deadline_ms=tasks.deadline_ms[timed],
        decay_ms=tasks.decay_ms[timed],
    )
    ppm_tokens[:2, timed] = ppm_tokens[:2, timed] // PPM * prompt_ppm
    ppm_tokens[2, timed] = output_ppm_tokens


def _sum_products(prices: IntArray, ppm_tokens: IntArray) -> tuple[IntArray, IntArray]:
    """Compute Σ_k b_k · M_k / 10^12 exactly: its floor, and 1 where that left something out.

    b ≤ 10^12 and M ≤ 10^13, so products reach 10^25. With b = B·10^6 + b' and M likewise, the
    limbs' products stay below 10^14 and their sums below 2^63. Both shapes begin with the kinds.
    """
    high, low = np.divmod(prices, _MEGA)
    tokens, parts = np.divmod(ppm_tokens, _MEGA)
    upper = (high * tokens).sum(axis=0)
    middle = (high * parts + low * tokens).sum(axis=0)
    lower = (low * parts).sum(axis=0)
    carried, rest = np.divmod(middle, _MEGA)
    more, below = np.divmod(rest * _MEGA + lower, _MEGA * _MEGA)
    whole: IntArray = upper + carried + more
    return whole, (below > 0).astype(np.int64)


def _find_feasible(
    bids: Sequence[Bid],
    providers: Sequence[Offer],
    tasks: _Tasks,
    sellers: _Providers,
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Apply the rules that need no prediction; shape (n_tasks, n_providers)."""
    names = {name: number for number, name in enumerate({bid.model for bid in bids if bid.model})}
    # A provider of a model that nobody asks for gets −2, a bid that names none −1: never equal.
    asked = np.array([names.get(bid.model, -1) for bid in bids], dtype=np.int64)
    served = np.array(
        [names.get(provider.capability.model, -2) for provider in providers],
        dtype=np.int64,
    )
    funded = np.array(
        [
            compute_worst_case_micros(bid.prices, bid.prompt_tokens, bid.max_tokens)
            <= bid.reservation_micros
            for bid in bids
        ],
        dtype=np.bool_,
    )
    longest = (tasks.prompt_tokens + tasks.max_tokens)[:, None]
    covered = (tasks.prices[:, :, None] >= sellers.asks[:, None, :]).all(axis=0)
    fits = longest <= sellers.context_tokens
    feasible: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = (
        (asked[:, None] == served) & fits & covered & funded[:, None]
    )
    return feasible
