"""The joint distribution of answer lengths and times, as 16 equally likely scenarios.

Kept are the last few hundred finished tasks of a hub: how long the answer was, and by how many
standard deviations its times missed what was expected. From these `quantise` makes

- *lengths*: the means of 16 equally likely slices. An answer that `max_tokens` cut off says only
  that it would have been longer, so its weight moves on to the longer ones (Kaplan and Meier
  1958). A guess of a few tasks' weight stands in before any are known.
- *deviations*: the means of 16 equally likely slices of a normal distribution, so that provider
  models keep their means and spreads, in an order that brings the rank correlations between
  length, first token and time a token close to those seen (Iman and Conover 1982).

Source: docs/spec/auction.md §6.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from auctioneer.predictors.regression import FloatArray
from iemas.core.auction import MAX_TOKENS, N_SCENARIOS, Scenario
from iemas.core.types import PPM

MAX_SAMPLES: Final = 256
"""Finished tasks remembered."""

_GUESSED_TOKENS: Final = 200.0
"""Mean length of an answer before any is known, exponentially distributed."""

_GUESS_WEIGHT: Final = 2.0
_CORRELATION_WEIGHT: Final = 16.0
"""So many tasks' worth of belief that lengths and times have nothing to do with each other."""


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """What one task showed.

    `bounded`: the answer was cut off by `max_tokens`. The deviations are in standard deviations
    from what was expected, None where nothing was measured.
    """

    output_tokens: int
    bounded: bool
    ttft_deviation: float
    token_deviation: float | None


class ScenarioModel:
    """Learns a hub's scenarios. See the module's text."""

    def __init__(self) -> None:
        self._tasks: deque[FinishedTask] = deque(maxlen=MAX_SAMPLES)

    def learn_one(self, task: FinishedTask) -> None:
        """Remember one finished task, and forget the oldest if there are many."""
        self._tasks.append(task)

    def quantise(self) -> tuple[Scenario, ...]:
        """Give the scenarios, in the order of their lengths."""
        ttft, token = _order_deviations(self._compute_correlations())
        return tuple(
            Scenario(
                min(max(round(float(tokens)), 1), MAX_TOKENS),
                round(float(ttft_deviation) * PPM),
                round(float(token_deviation) * PPM),
            )
            for tokens, ttft_deviation, token_deviation in zip(
                self._compute_lengths(), ttft, token, strict=True
            )
        )

    def _compute_lengths(self) -> FloatArray:
        """Compute the means of equally likely slices of the length, ascending."""
        guesses = _GUESSED_TOKENS * _EXPONENTIAL_SLICES
        weight = _GUESS_WEIGHT / len(guesses)
        tasks = sorted(
            [(length, 0, weight) for length in guesses.tolist()]
            + [(float(task.output_tokens), int(task.bounded), 1.0) for task in self._tasks]
        )
        lengths = np.array([length for length, _, _ in tasks])
        weights = np.array([weight for _, _, weight in tasks])
        ended = np.array([not bounded for _, bounded, _ in tasks])
        at_least = np.cumsum(weights[::-1])[::-1]
        hazard = np.where(ended, weights / at_least, 0.0)
        surviving = np.cumprod(1.0 - hazard)
        shares = np.append(1.0, surviving[:-1]) * hazard
        shares[-1] += surviving[-1]  # The longest stands for whatever is longer still.
        return _average_slices(lengths, shares)

    def _compute_correlations(self) -> FloatArray:
        """Estimate the rank correlations of length, first token and time a token; shape (3, 3)."""
        seen = [
            (task.output_tokens, task.ttft_deviation, task.token_deviation)
            for task in self._tasks
            if not task.bounded and task.token_deviation is not None
        ]
        if len(seen) < 3:
            return np.eye(3)
        ranks = np.array([_rank(column) for column in np.array(seen, dtype=np.float64).T])
        ranks -= ranks.mean(axis=1, keepdims=True)
        norms = np.sqrt((ranks**2).sum(axis=1))
        if not (norms > 0.0).all():
            return np.eye(3)
        raw = (ranks / norms[:, None]) @ (ranks / norms[:, None]).T
        trust = len(seen) / (len(seen) + _CORRELATION_WEIGHT)
        shrunk: FloatArray = trust * raw + (1.0 - trust) * np.eye(3)
        return shrunk


def _rank(values: FloatArray) -> FloatArray:
    """Rank values from 0; equal ones share the mean of their ranks."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    up_to = np.searchsorted(ordered, values, side="right")
    mean: FloatArray = (below + up_to - 1) / 2.0
    return mean


def _average_slices(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute the means of `N_SCENARIOS` equally likely slices of an ascending distribution."""
    shares = np.append(0.0, np.cumsum(weights)) / weights.sum()
    integral = np.append(0.0, np.cumsum(values * weights)) / weights.sum()
    edges = np.linspace(0.0, 1.0, N_SCENARIOS + 1)
    means: FloatArray = np.diff(np.interp(edges, shares, integral)) * N_SCENARIOS
    return means


def _compute_normal_slices() -> FloatArray:
    normal = NormalDist()
    densities = [normal.pdf(normal.inv_cdf(k / N_SCENARIOS)) for k in range(1, N_SCENARIOS)]
    means: FloatArray = -np.diff([0.0, *densities, 0.0]) * N_SCENARIOS
    return means


def _compute_exponential_slices() -> FloatArray:
    left = np.arange(N_SCENARIOS, 0, -1) / N_SCENARIOS
    # ∫ of the quantile function −log(1 − p), from its primitive (1 − p)·(log(1 − p) − 1).
    primitive = np.append(left * (np.log(left) - 1.0), 0.0)
    means: FloatArray = np.diff(primitive) * N_SCENARIOS
    return means


_NORMAL_SLICES: Final = _compute_normal_slices()
_EXPONENTIAL_SLICES: Final = _compute_exponential_slices()
_LATTICE: Final = np.array(
    [[k, (3 * k + 7) % N_SCENARIOS, (5 * k + 14) % N_SCENARIOS] for k in range(N_SCENARIOS)]
)
"""Ranks of length, first token and time a token: no two of them correlated by more than 0.06."""


def _order_deviations(correlations: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Order both deviations so that their rank correlations come close to these."""
    scores = _NORMAL_SLICES[_LATTICE]
    own = np.linalg.cholesky(np.corrcoef(scores, rowvar=False))
    wanted = np.linalg.cholesky(correlations)
    mixed = np.linalg.solve(own, scores.T).T @ wanted.T
    ranks = np.argsort(np.argsort(mixed[:, 1:], axis=0, kind="stable"), axis=0, kind="stable")
    return _NORMAL_SLICES[ranks[:, 0]], _NORMAL_SLICES[ranks[:, 1]]
