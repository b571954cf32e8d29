"""The linear predictor: learns a planted model, is calibrated, adapts, cannot be broken."""

import dataclasses
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auctioneer.mechanism.valuation import predict
from auctioneer.predictors import LinearPredictor, Predictor, UnusableReceiptError
from auctioneer.predictors.scenarios import ScenarioModel
from iemas.core.auction import N_SCENARIOS, ProviderQos
from iemas.core.errors import InvalidReceiptError
from iemas.core.execution import Receipt
from iemas.core.report import LoadReport, ReportStamp
from iemas.core.types import AccountId, ChannelId, FinishReason, HubId, NodeId

FAST, SLOW, NEW = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
MAX_TOKENS = 200


def make_receipt(provider: NodeId = FAST, **changes: Any) -> Receipt:
    fields: dict[str, Any] = {
        "allocation_hash": bytes(32),
        "account": AccountId(bytes(32)),
        "provider": provider,
        "hub": HubId("m"),
        "term": 0,
        "channel": ChannelId(1),
        "sequence": 1,
        "prompt_tokens": 1000,
        "cached_tokens": 0,
        "billed_cached_tokens": 0,
        "output_tokens": 100,
        "prompt_late_ppm": 10**6,
        "output_late_ppm_tokens": 10**8,
        "ttft_ms": 500,
        "elapsed_ms": 3470,
        "amount_micros": 0,
        "output_hash": bytes(32),
        "active_tasks": 0,
        "max_tokens": MAX_TOKENS,
        "finish": FinishReason.STOP,
    }
    return Receipt(**(fields | changes))


@dataclasses.dataclass(frozen=True)
class Plant:
    """A provider that is exactly what the model assumes."""

    base_ms: float = 80.0
    per_token_ms: float = 0.5
    per_active_ms: float = 30.0
    sd_ms: float = 25.0
    token_ms: float = 40.0
    token_sd_ms: float = 4.0
    ratio: float = 0.4

    def serve(self, provider: NodeId, count: int, seed: int) -> Iterator[Receipt]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            uncached, cached = int(rng.integers(0, 3000)), int(rng.integers(0, 2000))
            active = int(rng.integers(0, 5))
            mean_ms = self.base_ms + self.per_token_ms * uncached + self.per_active_ms * active
            ttft_ms = max(round(mean_ms + rng.normal(0, self.sd_ms)), 0)
            output = int(np.clip(rng.normal(self.ratio, 0.1) * MAX_TOKENS, 2, MAX_TOKENS))
            decoding_ms = (output - 1) * max(rng.normal(self.token_ms, self.token_sd_ms), 1)
            yield make_receipt(
                provider,
                prompt_tokens=uncached + cached,
                cached_tokens=cached,
                billed_cached_tokens=cached,
                output_tokens=output,
                ttft_ms=ttft_ms,
                elapsed_ms=ttft_ms + round(decoding_ms),
                active_tasks=active,
            )


def teach(predictor: LinearPredictor, receipts: Iterator[Receipt]) -> LinearPredictor:
    for receipt in receipts:
        predictor.learn_one(receipt, max_tokens=MAX_TOKENS)
    return predictor


def predict_ttft_us(qos: ProviderQos, receipt: Receipt) -> int:
    stamp = ReportStamp(receipt.provider, 1, 0, 1, 1000)
    load = LoadReport(stamp, 8, (bytes(32),) * receipt.active_tasks, (), 0)
    uncached = receipt.prompt_tokens - receipt.cached_tokens
    return predict(qos, load, uncached_tokens=uncached).ttft_us


def test_it_learns_a_planted_model() -> None:
    predictor: Predictor = teach(LinearPredictor(), Plant().serve(FAST, 400, seed=0))
    qos = predictor.quantise(FAST)
    assert qos.samples == 400
    assert qos.ttft_base_us == pytest.approx(80_000, abs=10_000)
    assert qos.ttft_per_uncached_token_us == pytest.approx(500, abs=10)
    assert qos.ttft_per_pending_token_us == qos.ttft_per_uncached_token_us
    assert qos.ttft_per_active_task_us == pytest.approx(30_000, abs=3_000)
    assert qos.ttft_sd_us == pytest.approx(25_000, rel=0.2)
    assert qos.token_us == pytest.approx(40_000, rel=0.03)
    assert qos.token_sd_us == pytest.approx(4_000, rel=0.2)
    mean_tokens = np.mean([one.output_tokens for one in predictor.quantise_scenarios()])
    assert mean_tokens == pytest.approx(0.4 * MAX_TOKENS, rel=0.05)


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_its_intervals_cover_what_they_claim(coverage: float) -> None:
    predictor = teach(LinearPredictor(), Plant().serve(FAST, 300, seed=1))
    qos = predictor.quantise(FAST)
    reach = NormalDist().inv_cdf(0.5 + coverage / 2)
    ttft_inside, token_inside = [], []
    for receipt in Plant().serve(FAST, 1000, seed=2):
        error_us = receipt.ttft_ms * 1000 - predict_ttft_us(qos, receipt)
        ttft_inside.append(abs(error_us) <= reach * qos.ttft_sd_us)
        gap_us = (receipt.elapsed_ms - receipt.ttft_ms) * 1000 / (receipt.output_tokens - 1)
        token_inside.append(abs(gap_us - qos.token_us) <= reach * qos.token_sd_us)
    assert np.mean(ttft_inside) == pytest.approx(coverage, abs=0.06)
    assert np.mean(token_inside) == pytest.approx(coverage, abs=0.06)


def test_a_few_receipts_already_tell_fast_from_slow() -> None:
    predictor = LinearPredictor()
    slow = Plant(base_ms=300, per_token_ms=2.0, token_ms=120)
    teach(predictor, Plant().serve(FAST, 8, seed=3))
    teach(predictor, slow.serve(SLOW, 8, seed=4))
    probe = make_receipt()
    assert predict_ttft_us(predictor.quantise(SLOW), probe) > 2 * predict_ttft_us(
        predictor.quantise(FAST), probe
    )
    assert predictor.quantise(SLOW).token_us > 2 * predictor.quantise(FAST).token_us


def test_a_new_provider_starts_as_an_average_one_with_a_wide_spread() -> None:
    predictor = teach(LinearPredictor(), Plant().serve(FAST, 300, seed=5))
    known, new = predictor.quantise(FAST), predictor.quantise(NEW)
    assert new.samples == 0
    assert predict_ttft_us(new, make_receipt()) == pytest.approx(
        predict_ttft_us(known, make_receipt()), rel=0.1
    )
    assert new.ttft_sd_us > 2 * known.ttft_sd_us
    assert new.token_sd_us > 1.3 * known.token_sd_us


def test_before_any_receipt_there_is_a_guess() -> None:
    qos = LinearPredictor().quantise(NEW)
    assert qos.samples == 0
    assert qos.ttft_base_us > 0
    assert qos.ttft_sd_us > qos.ttft_base_us
    assert LinearPredictor().quantise_scenarios() == ScenarioModel().quantise()


def test_it_follows_a_provider_that_changes_for_good() -> None:
    predictor = teach(LinearPredictor(), Plant().serve(FAST, 200, seed=6))
    changed = Plant(base_ms=400, per_token_ms=2.5, per_active_ms=150, token_ms=200)
    teach(predictor, changed.serve(FAST, 600, seed=7))
    qos = predictor.quantise(FAST)
    assert qos.ttft_per_uncached_token_us == pytest.approx(2500, rel=0.1)
    assert qos.token_us == pytest.approx(200_000, rel=0.1)


def test_one_extreme_receipt_moves_little() -> None:
    predictor = teach(LinearPredictor(), Plant().serve(FAST, 200, seed=8))
    before = predictor.quantise(FAST)
    stuck = make_receipt(ttft_ms=10**12, elapsed_ms=10**15, active_tasks=10**9)
    predictor.learn_one(stuck, max_tokens=MAX_TOKENS)
    predictor.learn_one(make_receipt(ttft_ms=10**12, elapsed_ms=10**15), max_tokens=MAX_TOKENS)
    after = predictor.quantise(FAST)
    assert predict_ttft_us(after, make_receipt()) < 1.1 * predict_ttft_us(before, make_receipt())
    assert after.token_us < 1.1 * before.token_us


def test_answers_cut_off_say_nothing_about_length() -> None:
    predictor = LinearPredictor()
    before = predictor.quantise_scenarios()
    for finish in (FinishReason.CANCELLED, FinishReason.FAILED, FinishReason.UNSPECIFIED):
        predictor.learn_one(make_receipt(finish=finish, output_tokens=2), max_tokens=MAX_TOKENS)
    assert predictor.quantise_scenarios() == before
    predictor.learn_one(make_receipt(finish=FinishReason.STOP), max_tokens=100)
    assert predictor.quantise_scenarios() != before


def test_tasks_that_never_answered_teach_nothing() -> None:
    predictor = LinearPredictor()
    before = predictor.quantise(FAST)
    receipt = make_receipt(output_tokens=0, ttft_ms=0, elapsed_ms=0, finish=FinishReason.FAILED)
    predictor.learn_one(receipt, max_tokens=MAX_TOKENS)
    assert predictor.quantise(FAST) == before


def test_single_tokens_teach_no_pace() -> None:
    predictor = LinearPredictor()
    predictor.learn_one(make_receipt(output_tokens=1, elapsed_ms=500), max_tokens=MAX_TOKENS)
    assert predictor.quantise(FAST).token_us == LinearPredictor().quantise(FAST).token_us


@pytest.mark.parametrize(
    ("changes", "max_tokens", "field"),
    [
        ({}, 0, "max_tokens"),
        ({}, -5, "max_tokens"),
        ({}, 10**9, "max_tokens"),
        ({}, 99, "output_tokens"),
        ({"output_tokens": -1}, 100, "output_tokens"),
        ({"ttft_ms": -1}, 100, "ttft_ms"),
        ({"elapsed_ms": 499}, 100, "elapsed_ms"),
        ({"active_tasks": -1}, 100, "active_tasks"),
    ],
)
def test_contradictory_receipts_are_refused_and_teach_nothing(
    changes: dict[str, Any], max_tokens: int, field: str
) -> None:
    predictor = LinearPredictor()
    before = predictor.quantise(FAST)
    with pytest.raises(UnusableReceiptError) as refused:
        predictor.learn_one(make_receipt(**changes), max_tokens=max_tokens)
    assert refused.value.operands["field"] == field
    assert isinstance(refused.value, InvalidReceiptError)
    assert predictor.quantise(FAST) == before


def test_it_remembers_only_so_many_providers() -> None:
    predictor = LinearPredictor(max_providers=2)
    for provider in (FAST, SLOW, FAST, NEW):
        predictor.learn_one(make_receipt(provider), max_tokens=MAX_TOKENS)
    assert predictor.quantise(FAST).samples == 2
    assert predictor.quantise(NEW).samples == 1
    assert predictor.quantise(SLOW).samples == 0


large = st.one_of(st.integers(0, 10), st.integers(0, 10**7), st.integers(0, 2**63 - 1))


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    prompt_tokens, cached_tokens = draw(large), draw(large)
    ttft_ms, decoding_ms = draw(large), draw(large)
    return make_receipt(
        draw(st.sampled_from([FAST, SLOW])),
        prompt_tokens=max(prompt_tokens, cached_tokens),
        cached_tokens=cached_tokens,
        output_tokens=draw(st.integers(0, 10**7)),
        ttft_ms=ttft_ms,
        elapsed_ms=ttft_ms + decoding_ms,
        active_tasks=draw(large),
        finish=draw(st.sampled_from(FinishReason)),
    )


@given(st.lists(receipts(), max_size=15))
def test_whatever_receipts_say_the_model_stays_within_its_bounds(batch: list[Receipt]) -> None:
    predictor = LinearPredictor()
    for receipt in batch:
        predictor.learn_one(receipt, max_tokens=10**7)
        for provider in (FAST, SLOW, NEW):
            # `ProviderQos` and `Scenario` check every bound themselves.
            assert predictor.quantise(provider).ttft_sd_us >= 0
        assert len(predictor.quantise_scenarios()) == N_SCENARIOS
