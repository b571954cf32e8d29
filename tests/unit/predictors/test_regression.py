"""The regression against its closed form, and what it promises beyond it."""

import numpy as np
import pytest

from auctioneer.predictors.regression import Prior, Regression

PRIOR = Prior(np.array([10.0, 2.0]), np.array([1.0, 0.5]), 4.0, 3.0)


def learn(features: np.ndarray, targets: np.ndarray, forgetting: float = 1.0) -> Regression:
    regression = Regression(features.shape[1], forgetting)
    for row, target in zip(features, targets, strict=True):
        regression.learn_one(row, float(target))
    return regression


def test_without_data_the_posterior_is_the_prior() -> None:
    posterior = Regression(2, 1.0).compute_posterior(PRIOR)
    assert posterior.mean == pytest.approx([10.0, 2.0])
    assert posterior.variance == pytest.approx(4.0)
    assert posterior.compute_variance(np.array([1.0, 1.0])) == pytest.approx(4.0 * (1 + 1 + 2))


def test_it_equals_ridge_regression_towards_the_prior() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(50), rng.uniform(0, 5, 50)])
    targets = features @ [3.0, 7.0] + rng.normal(0, 1, 50)
    posterior = learn(features, targets).compute_posterior(PRIOR)
    # The prior as two more observations: sqrt(precision) of each coefficient at its mean.
    root = np.sqrt(PRIOR.precision)
    stacked = np.vstack([features, np.diag(root)])
    aims = np.concatenate([targets, root * PRIOR.mean])
    expected, residual, *_ = np.linalg.lstsq(stacked, aims)
    assert posterior.mean == pytest.approx(expected)
    assert posterior.variance == pytest.approx((residual[0] + 3.0 * 4.0) / (50 + 3))


def test_a_negative_coefficient_is_pinned_and_the_rest_fitted_again() -> None:
    features = np.column_stack([np.ones(40), np.linspace(0, 1, 40)])
    targets = 5.0 - 4.0 * features[:, 1]
    flat = Prior(np.zeros(2), np.full(2, 1e-9), 1.0, 1.0)
    posterior = learn(features, targets).compute_posterior(flat)
    assert posterior.mean[1] == 0.0
    assert posterior.mean[0] == pytest.approx(3.0)


def test_all_negative_gives_zero() -> None:
    posterior = learn(np.ones((20, 1)), np.full(20, -5.0)).compute_posterior(
        Prior(np.zeros(1), np.ones(1), 1.0, 1.0)
    )
    assert posterior.mean.tolist() == [0.0]
    assert posterior.variance > 0


def test_old_observations_fade_and_the_prior_does_not() -> None:
    targets = np.concatenate([np.full(200, 100.0), np.full(200, 20.0)])
    regression = learn(np.ones((400, 1)), targets, forgetting=0.97)
    posterior = regression.compute_posterior(Prior(np.zeros(1), np.ones(1), 1.0, 1.0))
    assert posterior.mean[0] == pytest.approx(20.0 * 33 / 34, rel=0.02)


def test_the_mean_of_the_features_is_known_once_there_are_any() -> None:
    assert Regression(2, 1.0).mean_features is None
    regression = learn(np.array([[1.0, 4.0], [1.0, 6.0]]), np.zeros(2))
    assert regression.mean_features is not None
    assert regression.mean_features.tolist() == [1.0, 5.0]
