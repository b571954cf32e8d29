"""The linear QoS predictor: the default, small enough to be a round's public model.

It learns three things from receipts, each by `Regression`, the first two per provider:

- time to first token from the uncached prompt tokens and the tasks active beside it; prompt
  tokens queued ahead cost what one's own cost, as they are computed first by the same engine;
- time an output token, from the mean gap between a task's tokens;
- how long answers are, and how lengths and times spread together (`ScenarioModel`), over the
  whole hub: all its providers serve one model, and a provider must not win more by answering
  longer.

A hub-wide regression over all providers gives the prior mean of each single one, with the weight
of about one receipt: a new provider starts as an average one with a wide spread, and its own
receipts soon outweigh that. Before any receipt a fixed guess stands in for the hub.

No receipt can break it: contradictory ones are refused by name, extreme ones clipped, first to an
hour and then to a few standard deviations around what was expected, or twice what was expected if
that is more, so a single one moves little and a lasting change is still followed.
The number of providers is bounded; the one not heard of for longest goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from auctioneer.predictors.errors import UnusableReceiptError
from auctioneer.predictors.regression import FloatArray, Posterior, Prior, Regression
from auctioneer.predictors.scenarios import FinishedTask, ScenarioModel
from iemas.core.auction import MAX_TOKENS, ProviderQos, Scenario
from iemas.core.execution import Receipt
from iemas.core.types import ID_BYTES, FinishReason, NodeId

FORGETTING: Final = 0.995
"""What is left of an observation after the next one: half after about 140."""

MAX_PROVIDERS: Final = 4096
"""Providers remembered one by one."""

_MAX_TIME_US: Final = 3_600_000_000
_MAX_ACTIVE: Final = 65_536
_MAX_COEFFICIENT: Final = 10**10
_CLIP_SIGMAS: Final = 6.0
_KILO: Final = 1000.0
"""Prompt tokens enter in thousands, so that features are of like size."""

_GUESSED_TTFT: Final = Prior(
    # 150 ms, 0.4 ms an uncached token, 20 ms a task beside it.
    mean=np.array([150_000.0, 400_000.0, 20_000.0]),
    precision=np.array([1.0, 0.5, 0.5]),
    variance=200_000.0**2,
    weight=2.0,
)
_GUESSED_TOKEN: Final = Prior(np.array([30_000.0]), np.array([1.0]), 20_000.0**2, 2.0)
_ONE: Final = np.ones(1)


@dataclass(slots=True)
class _Model:
    """What receipts taught about one provider, or about all of a hub."""

    samples: int = 0
    ttft: Regression = field(default_factory=lambda: Regression(3, FORGETTING))
    token: Regression = field(default_factory=lambda: Regression(1, FORGETTING))


class LinearPredictor:
    """Bayesian linear QoS model of a hub's providers. See the module's text."""

    def __init__(self, *, max_providers: int = MAX_PROVIDERS) -> None:
        self._max_providers = max(max_providers, 1)
        self._hub = _Model()
        self._scenarios = ScenarioModel()
        self._providers: dict[NodeId, _Model] = {}

    def learn_one(self, receipt: Receipt, *, max_tokens: int) -> None:
        """Learn from a task's last receipt.

        max_tokens: the bound on its output that the task was allocated with.
        Raises: UnusableReceiptError with `field`; nothing is learnt then.
        """
        _validate(receipt, max_tokens)
        if receipt.output_tokens == 0:
            return  # It never began to answer: no time was measured.
        model = self._touch(receipt.provider)
        features = _make_features(receipt)
        ttft_us = min(receipt.ttft_ms * 1000, _MAX_TIME_US)
        expected = model.ttft.compute_posterior(self._make_ttft_prior())
        ttft_deviation = self._learn(model.ttft, self._hub.ttft, features, ttft_us, expected)
        token_deviation = None
        if receipt.output_tokens > 1:
            waited_us = (receipt.elapsed_ms - receipt.ttft_ms) * 1000
            token_us = min(waited_us // (receipt.output_tokens - 1), _MAX_TIME_US)
            expected = model.token.compute_posterior(self._make_token_prior())
            token_deviation = self._learn(model.token, self._hub.token, _ONE, token_us, expected)
        if receipt.finish in {FinishReason.STOP, FinishReason.LENGTH}:
            # One that ended otherwise says nothing about how long it would have been.
            bounded = receipt.finish is FinishReason.LENGTH
            self._scenarios.learn_one(
                FinishedTask(receipt.output_tokens, bounded, ttft_deviation, token_deviation)
            )
        model.samples += 1
        self._hub.samples += 1

    def quantise(self, provider: NodeId) -> ProviderQos:
        """Give the model of a provider in integers; an unknown one gets the hub's, spread wide."""
        model = self._providers.get(provider) or _Model()
        ttft = model.ttft.compute_posterior(self._make_ttft_prior())
        token = model.token.compute_posterior(self._make_token_prior())
        typical = model.ttft.mean_features
        if typical is None:
            typical = self._hub.ttft.mean_features
        if typical is None:
            typical = np.array([1.0, 1.0, 1.0])
        per_prompt_token_us = _quantise(ttft.mean[1] / _KILO)
        return ProviderQos(
            provider=provider,
            samples=model.samples,
            ttft_base_us=_quantise(ttft.mean[0]),
            ttft_per_uncached_token_us=per_prompt_token_us,
            ttft_per_active_task_us=_quantise(ttft.mean[2]),
            ttft_per_pending_token_us=per_prompt_token_us,
            ttft_sd_us=_quantise(math.sqrt(ttft.compute_variance(typical))),
            token_us=_quantise(token.mean[0]),
            token_sd_us=_quantise(math.sqrt(token.compute_variance(_ONE))),
        )

    def quantise_prior(self) -> ProviderQos:
        """Give what is predicted of a provider never met; `samples` counts the hub's receipts."""
        return replace(self.quantise(NodeId(bytes(ID_BYTES))), samples=self._hub.samples)

    def list_known(self) -> tuple[NodeId, ...]:
        """List the providers that it has receipts of, in the order of their ids."""
        return tuple(sorted(self._providers))

    def quantise_scenarios(self) -> tuple[Scenario, ...]:
        """Give the joint distribution of lengths and times of the hub's tasks."""
        return self._scenarios.quantise()

    def _touch(self, provider: NodeId) -> _Model:
        """Get a provider's model, as the one heard of last."""
        model = self._providers.pop(provider, None) or _Model()
        if len(self._providers) >= self._max_providers:
            del self._providers[next(iter(self._providers))]
        self._providers[provider] = model
        return model

    @staticmethod
    def _learn(
        own: Regression, hub: Regression, features: FloatArray, target: float, expected: Posterior
    ) -> float:
        """Teach provider and hub one observation, pulled in if it is far off.

        Returns: by how many standard deviations it missed what was expected, before pulling in.
        """
        centre = float(features @ expected.mean)
        deviation = math.sqrt(expected.compute_variance(features))
        clipped = min(float(target), centre + max(_CLIP_SIGMAS * deviation, centre))
        own.learn_one(features, clipped)
        hub.learn_one(features, clipped)
        return (target - centre) / max(deviation, 1.0)

    def _make_ttft_prior(self) -> Prior:
        return _make_prior(self._hub.ttft, _GUESSED_TTFT)

    def _make_token_prior(self) -> Prior:
        return _make_prior(self._hub.token, _GUESSED_TOKEN)


def _make_prior(hub: Regression, guess: Prior) -> Prior:
    """Centre a provider's prior on what its hub has shown, as wide as the guess."""
    posterior = hub.compute_posterior(guess)
    return Prior(posterior.mean, guess.precision, posterior.variance, guess.weight)


def _make_features(receipt: Receipt) -> FloatArray:
    uncached = min(receipt.prompt_tokens - receipt.cached_tokens, MAX_TOKENS)
    active = min(receipt.active_tasks, _MAX_ACTIVE)
    return np.array([1.0, uncached / _KILO, float(active)])


def _quantise(value: float) -> int:
    return min(max(round(float(value)), 0), _MAX_COEFFICIENT)


def _validate(receipt: Receipt, max_tokens: int) -> None:
    """Refuse a receipt that contradicts itself."""
    rules = {
        "max_tokens": 0 < max_tokens <= MAX_TOKENS,
        "output_tokens": 0 <= receipt.output_tokens <= max_tokens,
        "ttft_ms": receipt.ttft_ms >= 0,
        "elapsed_ms": receipt.elapsed_ms >= receipt.ttft_ms or receipt.output_tokens == 0,
        "active_tasks": receipt.active_tasks >= 0,
    }
    for name, holds in rules.items():
        if not holds:
            raise UnusableReceiptError(
                f"the receipt's {name} cannot be right: nothing is learnt from it", field=name
            )
