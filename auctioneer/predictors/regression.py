"""Bayesian linear regression in closed form, with slow forgetting and a prior from outside.

    y = x·β + noise,   β ~ N(β₀, σ² Λ₀⁻¹),   σ² ~ scaled inverse χ² (σ₀², ν₀)

The data enter as sufficient statistics alone (Σ xxᵀ, Σ xy, Σ y², n), each multiplied by a
forgetting factor before the next observation is added: memory is a few numbers however much is
learnt, and what happened long ago fades while the prior does not. The prior is combined in only
when the posterior is asked for, so it may itself have been learnt (a hub's, for a new provider).

Times and slopes are physical, so no coefficient may be negative: one that comes out so is pinned
to 0 and the others are fitted again without it, which cutting it off afterwards would not do.
Source: Gelman et al., "Bayesian Data Analysis", §14.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """What is believed before data.

    `mean`: β₀, shape (d,). `precision`: diagonal of Λ₀, shape (d,), in observations' worth.
    `variance`: σ₀². `weight`: ν₀, how many observations that guess is worth.
    """

    mean: FloatArray
    precision: FloatArray
    variance: float
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What is believed after data: coefficients, none negative, and noise variance.

    `covariance` is Λ⁻¹, to be multiplied by the variance; pinned coefficients keep theirs, so a
    spread is rather too wide than too narrow.
    """

    mean: FloatArray
    covariance: FloatArray
    variance: float

    def compute_variance(self, features: FloatArray) -> float:
        """Compute the predictive variance: the noise and what is unknown of β."""
        return self.variance * (1.0 + float(features @ self.covariance @ features))


class Regression:
    """Sufficient statistics of one regression."""

    def __init__(self, dimension: int, forgetting: float) -> None:
        self._forgetting = forgetting
        self._count = 0.0
        self._xx = np.zeros((dimension, dimension))
        self._xy = np.zeros(dimension)
        self._yy = 0.0

    @property
    def mean_features(self) -> FloatArray | None:
        """The mean of the features seen, the first of which is 1; None before any."""
        if self._count == 0.0:
            return None
        mean: FloatArray = self._xx[0] / self._count
        return mean

    def learn_one(self, features: FloatArray, target: float) -> None:
        """Forget a little, then add one observation."""
        keep = self._forgetting
        self._count = keep * self._count + 1.0
        self._xx = keep * self._xx + np.outer(features, features)
        self._xy = keep * self._xy + features * target
        self._yy = keep * self._yy + target * target

    def compute_posterior(self, prior: Prior) -> Posterior:
        """Combine prior and data."""
        precision = np.diag(prior.precision) + self._xx
        information = prior.precision * prior.mean + self._xy
        mean = _solve_non_negative(precision, information)
        # The squares left over by β, data and prior together, are what the noise must explain.
        data = self._yy - 2.0 * float(mean @ self._xy) + float(mean @ self._xx @ mean)
        shift = mean - prior.mean
        pull = float(shift @ (prior.precision * shift))
        spread = prior.weight * prior.variance + max(data, 0.0) + pull
        variance = spread / (prior.weight + self._count)
        covariance = np.linalg.inv(precision).astype(np.float64)
        return Posterior(mean, covariance, variance)


def _solve_non_negative(precision: FloatArray, information: FloatArray) -> FloatArray:
    """Solve precision · β = information, pinning coefficients that come out negative to 0."""
    free = np.arange(len(information))
    mean = np.zeros(len(information))
    while len(free):
        solution = np.linalg.solve(precision[np.ix_(free, free)], information[free])
        worst = int(solution.argmin())
        if solution[worst] >= 0.0:
            mean[free] = solution
            break
        free = np.delete(free, worst)
    return mean
