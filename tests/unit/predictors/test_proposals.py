"""Models are judged by what they predict: honest nodes agree, bent models are refused.

Source: docs/spec/round.md §9 (what a validator agrees with).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from auctioneer.predictors.errors import ModelRefusedError
from auctioneer.predictors.first import FIRST_MODEL
from auctioneer.predictors.linear import LinearPredictor
from auctioneer.predictors.proposals import PROPOSES_FROM, make_model, validate_model
from iemas.core.auction import ProviderQos, QosModel, Scenario
from iemas.core.execution import Receipt
from iemas.core.types import FinishReason, HubId, NodeId

NODES = tuple(NodeId(bytes([n]) * 32) for n in range(1, 5))
FAST, SLOW, RARE, SILENT = NODES
SPEEDS = {FAST: 0.3, SLOW: 3.0, RARE: 1.0}
MAX_TOKENS = 400


def draw_receipt(random: Random, provider: NodeId) -> Receipt:
    """Draw a task's last receipt: prompts of all lengths, times that spread by a third."""
    speed = SPEEDS[provider]
    prompt = int(random.choice((60, 200, 800, 2_000, 6_000)) * random.uniform(0.5, 1.5))
    cached = int(prompt * random.choice((0.0, 0.0, 0.5, 0.9)))
    active, output = random.randrange(5), min(MAX_TOKENS, int(random.expovariate(1 / 120)) + 1)
    expected_ms = speed * (20 + 0.15 * (prompt - cached) + 10 * active)
    ttft_ms = max(1, int(expected_ms * random.lognormvariate(0.0, 0.4)))
    elapsed_ms = ttft_ms + int(output * 12 * speed * random.lognormvariate(0.0, 0.25))
    return Receipt(
        allocation_hash=bytes(32),
        account=bytes(32),
        provider=provider,
        hub=HubId("m"),
        term=0,
        channel=1,
        sequence=1,
        prompt_tokens=prompt,
        cached_tokens=cached,
        billed_cached_tokens=cached,
        output_tokens=output,
        prompt_late_ppm=0,
        output_late_ppm_tokens=0,
        ttft_ms=ttft_ms,
        elapsed_ms=elapsed_ms,
        amount_micros=0,
        output_hash=bytes(32),
        active_tasks=active,
        max_tokens=MAX_TOKENS,
        finish=FinishReason.LENGTH if output == MAX_TOKENS else FinishReason.STOP,
    )


def draw_receipts(seed: int, count: int) -> list[Receipt]:
    random = Random(seed)
    providers = random.choices((FAST, SLOW, RARE), weights=(8, 3, 1), k=count)
    return [draw_receipt(random, provider) for provider in providers]


def learn(receipts: list[Receipt], seed: int, *, loss: float = 0.0) -> LinearPredictor:
    """Learn as a node does: some receipts never arrive, neighbours change places."""
    random = Random(seed)
    places = {n: n + random.uniform(0, 6) for n in range(len(receipts)) if random.random() >= loss}
    predictor = LinearPredictor()
    for n in sorted(places, key=lambda n: places[n]):
        predictor.learn_one(receipts[n], max_tokens=MAX_TOKENS)
    return predictor


def propose(predictor: LinearPredictor, stood: QosModel = FIRST_MODEL) -> QosModel:
    model = make_model(predictor, stood, NODES)
    assert model is not None
    return model


def agrees(model: QosModel, judge: LinearPredictor, stood: QosModel = FIRST_MODEL) -> bool:
    try:
        validate_model(model, judge, stood, NODES)
    except ModelRefusedError:
        return False
    return True


@pytest.fixture(scope="module")
def judge() -> LinearPredictor:
    return learn(draw_receipts(1, 200), 1)


@pytest.fixture(scope="module")
def fair() -> QosModel:
    return propose(learn(draw_receipts(1, 200), 2))


def change_row(model: QosModel, provider: NodeId, **changes: int) -> QosModel:
    rows = {row.provider: row for row in model.rows}
    rows[provider] = replace(model.get_row(provider), samples=9, **changes)
    return replace(model, rows=tuple(rows[provider] for provider in sorted(rows)))


# --- honest nodes --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 60, 150])
def test_who_heard_the_same_in_another_order_agrees(count: int) -> None:
    for seed in range(5):
        receipts = draw_receipts(seed, count)
        assert agrees(propose(learn(receipts, 1)), learn(receipts, 2))


def test_who_missed_a_tenth_mostly_agrees() -> None:
    agreed = 0
    for seed in range(20):
        receipts = draw_receipts(seed, 60)
        agreed += agrees(propose(learn(receipts, 1, loss=0.1)), learn(receipts, 2, loss=0.1))
    assert agreed >= 18


def test_the_first_model_is_what_a_predictor_guesses() -> None:
    guess = LinearPredictor()
    assert (guess.quantise_scenarios(), guess.quantise_prior(), ()) == (
        FIRST_MODEL.scenarios,
        FIRST_MODEL.prior,
        FIRST_MODEL.rows,
    )


# --- proposing -----------------------------------------------------------------------------------


def test_who_knows_too_little_proposes_nothing() -> None:
    predictor = learn(draw_receipts(1, PROPOSES_FROM - 1), 1)
    assert make_model(predictor, FIRST_MODEL, NODES) is None


def test_a_row_takes_receipts_enough(fair: QosModel) -> None:
    assert {row.provider for row in fair.rows} == set(SPEEDS)
    few = propose(learn(draw_receipts(1, PROPOSES_FROM), 1))
    assert few.rows == ()


def test_what_is_not_known_anew_stays_as_it_stood(fair: QosModel) -> None:
    only_fast = [receipt for receipt in draw_receipts(2, 60) if receipt.provider == FAST]
    model = propose(learn(only_fast, 1), fair)
    assert model.get_row(SLOW) == fair.get_row(SLOW)
    assert model.get_row(FAST) != fair.get_row(FAST)


def test_who_left_has_no_row(judge: LinearPredictor, fair: QosModel) -> None:
    model = make_model(judge, fair, [FAST])
    assert model is not None
    assert [row.provider for row in model.rows] == [FAST]


# --- bent models ---------------------------------------------------------------------------------


def double(row: ProviderQos, *names: str) -> dict[str, int]:
    return {name: 2 * getattr(row, name) for name in names}


def halve(row: ProviderQos, *names: str) -> dict[str, int]:
    return {name: getattr(row, name) // 2 for name in names}


TTFT = ("ttft_base_us", "ttft_per_uncached_token_us", "ttft_per_active_task_us")
Bend = Callable[[QosModel], QosModel]


def flatter_oneself(model: QosModel) -> QosModel:
    return change_row(model, SLOW, **halve(model.get_row(SLOW), "token_us"))


def answer_sooner(model: QosModel) -> QosModel:
    return change_row(model, SLOW, **dict.fromkeys(TTFT, 0))


def slander_a_rival(model: QosModel) -> QosModel:
    return change_row(model, FAST, **double(model.get_row(FAST), "token_us", *TTFT))


def never_queue(model: QosModel) -> QosModel:
    return change_row(model, SLOW, ttft_per_pending_token_us=0)


def be_surer_than_anyone(model: QosModel) -> QosModel:
    return change_row(model, SLOW, token_sd_us=0)


def leave_a_rival_out(model: QosModel) -> QosModel:
    return replace(model, rows=tuple(row for row in model.rows if row.provider != FAST))


def invent_a_row(model: QosModel) -> QosModel:
    return change_row(model, SILENT, token_us=1)


def bend_the_prior(model: QosModel) -> QosModel:
    return replace(model, prior=replace(model.prior, **double(model.prior, "token_us", *TTFT)))


def expect_long_answers(model: QosModel) -> QosModel:
    scenarios = [replace(one, output_tokens=2 * one.output_tokens) for one in model.scenarios]
    return replace(model, scenarios=tuple(scenarios))


def expect_all_to_be_early(model: QosModel) -> QosModel:
    scenarios = [replace(one, ttft_deviation_ppm=-1_000_000) for one in model.scenarios]
    return replace(model, scenarios=tuple(scenarios))


@pytest.mark.parametrize(
    "bend",
    [
        flatter_oneself,
        answer_sooner,
        slander_a_rival,
        never_queue,
        be_surer_than_anyone,
        leave_a_rival_out,
        invent_a_row,
        bend_the_prior,
        expect_long_answers,
        expect_all_to_be_early,
    ],
)
def test_a_bent_model_is_refused(judge: LinearPredictor, fair: QosModel, bend: Bend) -> None:
    assert agrees(fair, judge)
    assert not agrees(bend(fair), judge)


# --- who knows too little ------------------------------------------------------------------------


def test_who_has_just_started_compares_with_what_stood(fair: QosModel) -> None:
    newcomer = LinearPredictor()
    assert agrees(fair, newcomer, fair)
    assert agrees(change_row(fair, SLOW, token_us=fair.get_row(SLOW).token_us * 2), newcomer, fair)
    assert not agrees(
        change_row(fair, SLOW, token_us=fair.get_row(SLOW).token_us * 9), newcomer, fair
    )
    assert not agrees(change_row(fair, SILENT, token_us=10**6), newcomer, fair)


def test_where_nothing_stood_it_takes_what_is_possible(fair: QosModel) -> None:
    newcomer = LinearPredictor()
    assert agrees(fair, newcomer)
    assert agrees(change_row(fair, SLOW, token_us=10**6), newcomer)
    assert not agrees(change_row(fair, SLOW, token_us=601_000_000), newcomer)


def test_what_stood_is_the_measure_of_a_provider_not_heard_of(fair: QosModel) -> None:
    only_fast = [receipt for receipt in draw_receipts(2, 60) if receipt.provider == FAST]
    judge = learn(only_fast, 1)
    model = propose(judge, fair)
    assert agrees(model, judge, fair)
    assert not agrees(
        change_row(model, SLOW, token_us=model.get_row(SLOW).token_us // 9), judge, fair
    )


def test_a_scenario_of_no_spread_is_refused(judge: LinearPredictor, fair: QosModel) -> None:
    flat = tuple(Scenario(one.output_tokens, 0, 0) for one in fair.scenarios)
    assert not agrees(replace(fair, scenarios=flat), judge)
