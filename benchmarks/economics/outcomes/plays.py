"""Deals played out token by token.

A `Play` is when each token would come; sums over its first n tokens say what each side has got
and spent if the task ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.deals import (
    Deal,
    FloatArray,
    Outcomes,
    compute_ttft_us,
    to_array,
)
from iemas.core.auction import Bid, ProviderQos
from iemas.core.settlement import MeteredUsage, compute_amount_micros
from iemas.core.types import PPM, Lateness

STOP_AFTER: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Output tokens after which an agent may stop that does not look at the time."""


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
        first = np.maximum(compute_ttft_us(qos, uncached) + qos.ttft_sd_us * outcomes.ttft, 0.0)
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
        numbers = np.arange(self.elapsed_ms.shape[1])
        return np.where(numbers < self.counts[:, None], late, 0)

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


def pick(sums: FloatArray, stops: IntArray) -> float:
    """Give the mean of what the first `stops` tokens bring."""
    return float(np.take_along_axis(sums, stops[:, None], axis=1).mean())


def sum_worth(deal: Deal, played: Play, truth: Bid) -> FloatArray:
    """Sum up what a deal's tokens are truly worth; none beyond the `max_tokens` of the truth."""
    late = played.weigh(truth.lateness).copy()
    late[:, truth.max_tokens :] = 0.0
    return played.sum_linear(to_array(truth.prices), deal.prompt, late)
