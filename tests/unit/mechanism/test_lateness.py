"""Expected lateness: token by token in each scenario, and against dense grids."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from auctioneer.mechanism.lateness import compute_expected_lateness
from auctioneer.predictors.scenarios import ScenarioModel
from iemas.core.auction import N_SCENARIOS, Scenario
from iemas.core.types import PPM, Lateness
from iemas.testing.builders import make_scenarios

SPREAD = ScenarioModel().quantise()
SURE = make_scenarios([1])


def compute(
    *,
    ttft_us: Any,
    ttft_sd_us: Any,
    token_us: Any,
    token_sd_us: Any,
    tokens: Any,
    deadline_ms: Any,
    decay_ms: Any,
    scenarios: Any = SPREAD,
) -> Any:
    """One pair's shares: of the prompt, and of the output; `tokens` may be one for each."""
    prompt, output = compute_expected_lateness(
        scenarios=scenarios,
        ttft_us=np.array([[ttft_us]]),
        ttft_sd_us=np.array([ttft_sd_us]),
        token_us=np.array([token_us]),
        token_sd_us=np.array([token_sd_us]),
        output_tokens=np.broadcast_to(np.array(tokens).reshape(-1, 1), (N_SCENARIOS, 1)),
        deadline_ms=np.array([deadline_ms]),
        decay_ms=np.array([decay_ms]),
    )
    assert prompt.dtype == output.dtype == np.int64
    return int(prompt[0, 0]), int(output[0, 0])


def sum_token_by_token(case: Any, scenarios: Any) -> Any:
    """What the closed form stands for."""
    lengths = np.broadcast_to(case["tokens"], (N_SCENARIOS,))
    prompt, output = 0.0, 0.0
    for scenario, length in zip(scenarios, lengths, strict=True):
        first = case["ttft_us"] + case["ttft_sd_us"] * scenario.ttft_deviation_ppm / PPM
        gap = case["token_us"] + case["token_sd_us"] * scenario.token_deviation_ppm / PPM
        times_us = max(first, 0) + max(gap, 1) * np.arange(length)
        share = (case["deadline_ms"] + case["decay_ms"] - times_us / 1000) / max(
            case["decay_ms"], 1e-9
        )
        late = np.where(times_us <= case["deadline_ms"] * 1000, 1.0, np.clip(share, 0, 1))
        prompt += late[0] / N_SCENARIOS
        output += late.sum() / N_SCENARIOS
    return prompt, output


def normal_slice_means(count: Any) -> Any:
    normal = NormalDist()
    edges = [normal.pdf(normal.inv_cdf(k / count)) for k in range(1, count)]
    return count * -np.diff([0.0, *edges, 0.0])


def compute_densely(
    *,
    ttft_us: Any,
    ttft_sd_us: Any,
    token_us: Any,
    token_sd_us: Any,
    tokens: Any,
    deadline_ms: Any,
    decay_ms: Any,
) -> Any:
    means = normal_slice_means(60)
    first = np.maximum(ttft_us + ttft_sd_us * means, 0)
    gap = np.maximum(token_us + token_sd_us * means, 1)
    times = first[:, None, None] + gap[:, None] * np.arange(tokens)

    def late(at_us: Any) -> Any:
        share = (deadline_ms + decay_ms - at_us / 1000) / max(decay_ms, 1e-9)
        return np.where(at_us <= deadline_ms * 1000, 1.0, np.clip(share, 0, 1))

    return late(first).mean(), late(times).mean()


def draw_cases(count: Any, decays: Any) -> Any:
    rng = np.random.default_rng(11)
    for _ in range(count):
        ttft_us = int(rng.uniform(1e4, 2e6))
        token_us = int(rng.uniform(1e3, 1e5))
        tokens = int(rng.integers(1, 120))
        total_ms = (ttft_us + tokens * token_us * rng.uniform()) / 1000
        yield {
            "ttft_us": ttft_us,
            "ttft_sd_us": int(ttft_us * rng.uniform()),
            "token_us": token_us,
            "token_sd_us": int(token_us * rng.uniform(0, 0.6)),
            "tokens": tokens,
            "deadline_ms": int(total_ms * rng.uniform(0.2, 1.5)) + 1,
            "decay_ms": int(rng.choice(decays) * total_ms),
        }


def test_the_closed_form_is_the_sum_over_tokens_and_scenarios() -> None:
    rng = np.random.default_rng(12)
    for case in draw_cases(200, decays=[0, 0.3, 1.0]):
        scenarios = [
            Scenario(int(rng.integers(1, 200)), *rng.integers(-3 * PPM, 3 * PPM, 2).tolist())
            for _ in range(N_SCENARIOS)
        ]
        case["tokens"] = [scenario.output_tokens for scenario in scenarios]
        prompt, output = compute(**case, scenarios=scenarios)
        expected_prompt, expected_output = sum_token_by_token(case, scenarios)
        assert prompt == pytest.approx(expected_prompt * PPM, abs=2)
        assert output == pytest.approx(expected_output * PPM, abs=2)


def test_errors_stay_within_the_documented_bounds() -> None:
    cases = list(draw_cases(300, decays=[0, 0.05, 0.3, 1.0]))
    errors = []
    for case in cases:
        prompt, output = compute(**case)
        dense_prompt, dense_output = compute_densely(**case)
        # The prompt's proven bound, and the dense grid's own.
        assert abs(prompt / PPM - dense_prompt) <= 1 / 16 + 1 / 60
        errors.append(abs(output / PPM / case["tokens"] - dense_output))
    assert max(errors) < 0.08
    assert np.mean(errors) < 0.006


def test_without_spread_it_is_what_settlement_would_weigh() -> None:
    for case in draw_cases(100, decays=[0.3, 1.0]):
        sure = case | {"ttft_sd_us": 0, "token_sd_us": 0, "scenarios": SURE}
        lateness = Lateness(sure["deadline_ms"], max(sure["decay_ms"], 100))
        sure["decay_ms"] = lateness.decay_ms
        prompt, output = compute(**sure)
        times_us = [sure["ttft_us"] + n * sure["token_us"] for n in range(sure["tokens"])]
        # Settlement counts whole milliseconds, so it is kinder by at most one a token.
        kinder = PPM // lateness.decay_ms + 2
        metered = [lateness.compute_ppm(at_us // 1000) for at_us in times_us]
        assert 0 <= metered[0] - prompt + 1 <= kinder + 1
        assert 0 <= sum(metered) - output + 1 <= kinder * sure["tokens"] + 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (PPM, 10 * PPM)),
        ({"ttft_us": 0, "token_us": 0}, (PPM, 10 * PPM)),
        ({"ttft_us": 10**12}, (0, 0)),
        ({"ttft_us": 600_000}, (0, 0)),
        ({"ttft_us": 500_000}, (PPM, PPM)),
        ({"ttft_us": 500_000, "token_us": 0}, (PPM, PPM)),
        ({"ttft_us": 400_000, "token_us": 20_000, "decay_ms": 40}, (PPM, 6 * PPM + PPM // 2)),
        ({"token_us": 10**10, "tokens": 10**7}, (PPM, PPM)),
    ],
)
def test_edges(changes: dict[str, Any], expected: Any) -> None:
    case = {
        "ttft_us": 1000,
        "ttft_sd_us": 0,
        "token_us": 10_000,
        "token_sd_us": 0,
        "tokens": 10,
        "deadline_ms": 500,
        "decay_ms": 0,
    }
    assert compute(**(case | changes)) == expected


def test_extreme_spread_stays_in_range() -> None:
    prompt, output = compute(
        ttft_us=0,
        ttft_sd_us=10**10,
        token_us=0,
        token_sd_us=10**10,
        tokens=10**7,
        deadline_ms=86_400_000,
        decay_ms=86_400_000,
    )
    assert 0 <= prompt <= PPM
    assert 0 <= output <= 10**7 * PPM
