"""Making a QoS model to propose, and judging whether a proposed one is what a node says itself.

Every node learns from the same receipts, though not from every one and not in the same order, so
what two honest nodes say differs a little. A proposal is compared where it matters, in what it
predicts for a few workloads (`WORKLOADS`), not number by number, and may differ from the judge's
own prediction by

    25 % + 20 ms (1 ms for the time a token) + 3 standard errors of the judge's own mean,

spreads by a factor of 3. The error leaves room for chance while receipts are few; the share for
what one node heard and the other did not. How far honest nodes are apart, and what bending a model
as far as that gains, is measured in the spec.

Who knows too little of something compares it with the model that stands, by a factor of 4. Where
nothing stands either, it takes whatever is possible at all: a node that has just started does not
keep a market from its model.

Source: docs/spec/round.md §9; design §5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from auctioneer.predictors.base import Predictor
from auctioneer.predictors.errors import ModelRefusedError
from auctioneer.predictors.first import FIRST_MODEL
from iemas.core.auction import MAX_MODEL_ROWS, ProviderQos, QosModel, Scenario
from iemas.core.types import PPM, NodeId, short_id

PROPOSES_FROM: Final = 8
"""Receipts from which on a node says something of a provider, or of the hub, by itself."""

JUDGES_FROM: Final = 4
"""Receipts from which on it judges by what it learnt: fewer, as some may not have arrived yet."""

MISSES_FROM: Final = 16
"""Receipts from which on it misses a provider's row: more, as the proposer may have had fewer."""

WORKLOADS: Final = ((32, 0, 0), (1_000, 0, 0), (1_000, 4, 0), (1_000, 0, 2_000))
"""Uncached tokens, active tasks and pending tokens at which times to first token are compared."""

SHARE: Final = 0.25
STANDARD_ERRORS: Final = 3.0
TTFT_FLOOR_US: Final = 20_000
TOKEN_FLOOR_US: Final = 1_000
_LENGTH_FLOOR: Final = 8
SPREAD_FACTOR: Final = 3

_MOST_SAMPLES: Final = 200
"""A predictor forgets: more receipts than this make it no surer."""

_STOOD_FACTOR: Final = 4
_MOST_US: Final = 600_000_000
"""Nothing takes ten minutes to answer."""

_MOST_BIAS: Final = 0.1
_MOST_VARIANCE: Final = 1.5
"""Of the deviations in standard deviations, whose mean is 0 and variance about 1."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Between which values something may lie."""

    least: float
    most: float

    def require(self, value: float, what: str) -> None:
        if not self.least <= value <= self.most:
            raise ModelRefusedError(
                f"{what} would be {value:.0f}, here it may be {self.least:.0f} to {self.most:.0f}"
            )


def make_model(
    predictor: Predictor, stood: QosModel, members: Collection[NodeId]
) -> QosModel | None:
    """Make the model that this node would propose; None if it has nothing to say.

    stood: the model that stands. What the node knows too little of stays as it stood, for the
    providers that are `members`.
    """
    prior = predictor.quantise_prior()
    if prior.samples < PROPOSES_FROM:
        return None
    rows = {row.provider: row for row in stood.rows if row.provider in members}
    for provider in predictor.list_known():
        row = predictor.quantise(provider)
        if provider in members and row.samples >= PROPOSES_FROM:
            rows[provider] = row
    best = sorted(rows.values(), key=lambda row: (-row.samples, row.provider))[:MAX_MODEL_ROWS]
    ordered = tuple(sorted(best, key=lambda row: row.provider))
    return QosModel(predictor.quantise_scenarios(), prior, ordered)


def validate_model(
    model: QosModel, predictor: Predictor, stood: QosModel, members: Collection[NodeId]
) -> None:
    """Refuse a proposed model that this node would not have come near to.

    Raises: ModelRefusedError naming what is too far off.
    """
    own = predictor.quantise_prior()
    _validate_prior(model.prior, own, stood)
    known = predictor.quantise_scenarios() if own.samples >= JUDGES_FROM else None
    _validate_scenarios(model.scenarios, known, own.samples, stood)
    for provider in sorted({row.provider for row in model.rows} | set(members)):
        own_row, stood_row = predictor.quantise(provider), stood.get_row(provider)
        row, name = model.get_row(provider), f"of {short_id(provider)}"
        if own_row.samples >= (JUDGES_FROM if row.samples > 0 else MISSES_FROM):
            _compare_row(row, own_row, name, own_row.samples)
        elif stood_row.samples > 0:
            _compare_row(row, stood_row, name, None)
        elif row.samples > 0 and own.samples >= JUDGES_FROM:
            raise ModelRefusedError(f"nobody here has a receipt {name}")
        elif row.samples > 0:
            _validate_prior(row, own, stood)


def _validate_prior(row: ProviderQos, own: ProviderQos, stood: QosModel) -> None:
    """Compare a row with what this node expects of any provider, or else with what stood."""
    name = "of a provider never met"
    if own.samples >= JUDGES_FROM:
        _compare_row(row, own, name, own.samples)
    elif stood != FIRST_MODEL:
        _compare_row(row, stood.prior, name, None)
    else:
        possible = _Range(0.0, float(_MOST_US))
        for workload in WORKLOADS:
            possible.require(_predict(row, workload), f"µs to the first token {name}")
        for value in (row.ttft_sd_us, row.token_us, row.token_sd_us):
            possible.require(value, f"a time {name}")


def _compare_row(row: ProviderQos, other: ProviderQos, name: str, samples: int | None) -> None:
    """Compare predictions with another row's: with one's own, or with what stood (no samples)."""
    for workload in WORKLOADS:
        allowed = _allow(_predict(other, workload), other.ttft_sd_us, TTFT_FLOOR_US, samples)
        allowed.require(_predict(row, workload), f"µs to the first token {name} at {workload}")
    allowed = _allow(other.token_us, other.token_sd_us, TOKEN_FLOOR_US, samples)
    allowed.require(row.token_us, f"µs a token {name}")
    factor = _STOOD_FACTOR if samples is None else SPREAD_FACTOR
    for value, reference, floor in (
        (row.ttft_sd_us, other.ttft_sd_us, TTFT_FLOOR_US),
        (row.token_sd_us, other.token_sd_us, TOKEN_FLOOR_US),
    ):
        allowed = _Range(reference / factor - floor, reference * factor + floor)
        allowed.require(value, f"µs of spread {name}")


def _allow(reference: float, spread: float, floor: float, samples: int | None) -> _Range:
    if samples is None:
        return _Range(reference / _STOOD_FACTOR - floor, reference * _STOOD_FACTOR + floor)
    error = spread / math.sqrt(min(samples, _MOST_SAMPLES))
    slack = SHARE * reference + floor + STANDARD_ERRORS * error
    return _Range(reference - slack, reference + slack)


def _predict(row: ProviderQos, workload: tuple[int, int, int]) -> int:
    uncached, active, pending = workload
    return (
        row.ttft_base_us
        + row.ttft_per_uncached_token_us * uncached
        + row.ttft_per_active_task_us * active
        + row.ttft_per_pending_token_us * pending
    )


def _validate_scenarios(
    scenarios: Sequence[Scenario], own: Sequence[Scenario] | None, samples: int, stood: QosModel
) -> None:
    """Compare answer lengths slice by slice; deviations may favour neither early nor late."""
    for name in ("ttft_deviation_ppm", "token_deviation_ppm"):
        deviations = [getattr(scenario, name) / PPM for scenario in scenarios]
        bias = sum(deviations) / len(deviations)
        variance = sum(one * one for one in deviations) / len(deviations)
        if abs(bias) > _MOST_BIAS or not 1 / _MOST_VARIANCE <= variance <= _MOST_VARIANCE:
            raise ModelRefusedError(f"{name} has mean {bias:.2f} and variance {variance:.2f}")
    if own is None and stood == FIRST_MODEL:
        return
    lengths = sorted(scenario.output_tokens for scenario in scenarios)
    others = sorted(scenario.output_tokens for scenario in own or stood.scenarios)
    mean = sum(others) / len(others)
    spread = math.sqrt(sum((one - mean) ** 2 for one in others) / len(others))
    for length, other in zip(lengths, others, strict=True):
        allowed = _allow(other, spread, _LENGTH_FLOOR, None if own is None else samples)
        allowed.require(length, "the length of an answer")
