"""Scenarios: lengths with and without bounds, how they go with times, and what is guessed."""

import numpy as np
import pytest

from auctioneer.predictors.scenarios import _LATTICE, _NORMAL_SLICES, FinishedTask, ScenarioModel
from iemas.core.auction import N_SCENARIOS, Scenario
from iemas.core.types import PPM


def make_model(tasks: list[FinishedTask]) -> ScenarioModel:
    model = ScenarioModel()
    for task in tasks:
        model.learn_one(task)
    return model


def get_columns(scenarios: tuple[Scenario, ...]) -> np.ndarray:
    rows = [(s.output_tokens, s.ttft_deviation_ppm, s.token_deviation_ppm) for s in scenarios]
    return np.array(rows, dtype=np.float64).T


def correlate(scenarios: tuple[Scenario, ...]) -> np.ndarray:
    """Rank correlations of the scenarios."""
    ranks = get_columns(scenarios).argsort(axis=1).argsort(axis=1)
    return np.corrcoef(ranks)


def draw_tasks(count: int, correlations: list[list[float]], bound: int = 10**6) -> list:
    rng = np.random.default_rng(4)
    normal = rng.multivariate_normal([0, 0, 0], correlations, count)
    lengths = np.maximum(np.exp(5 + 0.8 * normal[:, 0]).astype(int), 1)
    return [
        FinishedTask(min(int(length), bound), bool(length > bound), float(first), float(gap))
        for length, (_, first, gap) in zip(lengths, normal, strict=True)
    ]


INDEPENDENT = np.eye(3).tolist()


def test_no_two_columns_of_the_lattice_are_correlated() -> None:
    assert all(sorted(column) == list(range(N_SCENARIOS)) for column in _LATTICE.T)
    scores = _NORMAL_SLICES[_LATTICE]
    assert np.abs(np.corrcoef(scores, rowvar=False) - np.eye(3)).max() < 0.06


def test_before_any_task_lengths_are_guessed_and_go_with_nothing() -> None:
    scenarios = ScenarioModel().quantise()
    assert len(scenarios) == N_SCENARIOS
    lengths = [scenario.output_tokens for scenario in scenarios]
    assert lengths == sorted(lengths)
    assert np.mean(lengths) == pytest.approx(200, rel=0.01)
    assert np.abs(correlate(scenarios) - np.eye(3)).max() < 0.1


def test_deviations_are_the_slices_of_a_normal_distribution() -> None:
    for tasks in ([], draw_tasks(200, [[1, 0.6, 0.3], [0.6, 1, 0.2], [0.3, 0.2, 1]])):
        _, first, gap = get_columns(make_model(tasks).quantise())
        expected = np.round(_NORMAL_SLICES * PPM)
        assert sorted(first) == sorted(gap) == expected.tolist()
        assert abs(first.sum()) <= N_SCENARIOS


def test_lengths_have_the_mean_and_the_spread_seen() -> None:
    tasks = draw_tasks(256, INDEPENDENT)
    seen = np.array([task.output_tokens for task in tasks])
    lengths, _, _ = get_columns(make_model(tasks).quantise())
    # The guess still weighs two tasks of 256.
    assert lengths.mean() == pytest.approx(seen.mean(), rel=0.02)
    assert lengths.std() == pytest.approx(seen.std(), rel=0.15)


def test_an_answer_cut_off_counts_as_a_longer_one() -> None:
    """Half of all answers cut off at 150 tokens: the shorter half is known as well as before."""
    free = get_columns(make_model(draw_tasks(256, INDEPENDENT)).quantise())[0]
    cut = get_columns(make_model(draw_tasks(256, INDEPENDENT, bound=150)).quantise())[0]
    short = free < 120
    assert 4 <= short.sum() <= 12
    assert cut[short] == pytest.approx(free[short], rel=0.05)
    assert cut[~short].min() > 120
    assert cut.max() >= 150


def test_if_all_were_cut_off_answers_are_at_least_that_long() -> None:
    lengths, _, _ = get_columns(make_model([FinishedTask(5000, True, 0.0, 0.0)] * 100).quantise())
    assert np.median(lengths) == 5000


@pytest.mark.parametrize("strength", [-0.8, -0.4, 0.0, 0.4, 0.8])
def test_it_learns_what_goes_together(strength: float) -> None:
    correlations = [[1, strength, 0], [strength, 1, 0], [0, 0, 1]]
    found = correlate(make_model(draw_tasks(256, correlations)).quantise())
    assert found[0, 1] == pytest.approx(strength, abs=0.2)
    assert abs(found[0, 2]) < 0.25
    assert abs(found[1, 2]) < 0.25


def test_tasks_of_one_length_or_of_one_token_do_no_harm() -> None:
    same = [FinishedTask(7, False, 1.5, 1.5)] * 50
    single = [FinishedTask(1, False, 0.0, None)] * 50
    for tasks in (same, single):
        lengths, _, _ = get_columns(make_model(tasks).quantise())
        assert np.median(lengths) == tasks[0].output_tokens


def test_old_tasks_are_forgotten() -> None:
    model = make_model([FinishedTask(1000, False, 0.0, 0.0)] * 300)
    for _ in range(256):
        model.learn_one(FinishedTask(10, False, 0.0, 0.0))
    assert np.median(get_columns(model.quantise())[0]) == 10
