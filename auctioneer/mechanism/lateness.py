"""Expected worth of tokens that arrive at uncertain times, in answers of uncertain length.

In scenario k a task's first token comes at S_k and its n-th after that at S_k + n·D_k, for
n = 0 … N_k − 1; late_j is the requester's linear decay. This module computes the means over the
scenarios of late(S_k), which weighs the prompt, and of Σ_n late(S_k + n·D_k), which weighs the
output, in parts per million. For each scenario the sum over the output is in closed form, so
under the predicted distribution, which is these scenarios and nothing else, both are exact up to
the rounding of float64. How well 16 scenarios stand for a continuous distribution is docs/spec/
auction.md §6's V4.

Everything is +, −, ×, ÷, floor, ceil and comparisons of float64, one array operation at a time
and in a fixed order. IEEE 754 rounds each of them in one way only, so every platform gets the
same bits. Exponentials, error functions and BLAS, which do not promise that, are not used.
Source: docs/spec/auction.md §6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from auctioneer.mechanism.arrays import IntArray
from iemas.core.auction import Scenario
from iemas.core.types import PPM

FloatArray = npt.NDArray[np.float64]


def compute_expected_lateness(
    *,
    scenarios: Sequence[Scenario],
    ttft_us: IntArray,
    ttft_sd_us: IntArray,
    token_us: IntArray,
    token_sd_us: IntArray,
    output_tokens: IntArray,
    deadline_ms: IntArray,
    decay_ms: IntArray,
) -> tuple[IntArray, IntArray]:
    """Compute the expected worth of the prompt and of the output, for pairs with a deadline.

    ttft_us: mean time to the first token, shape (n_tasks, n_providers). ttft_sd_us, token_us,
    token_sd_us: shape (n_providers,). output_tokens: N by scenario and task, shape
    (n_scenarios, n_tasks). deadline_ms, decay_ms: shape (n_tasks,), as in `Lateness`, deadlines
    positive.
    Returns: E[late(S)] in ppm and E[Σ_n late] in ppm-tokens, rounded down, int64, shape
    (n_tasks, n_providers).
    """
    mean = ttft_us.astype(np.float64)
    counts = output_tokens.astype(np.float64)
    deadline = deadline_ms.astype(np.float64)[:, None] * 1000.0
    decay = decay_ms.astype(np.float64)[:, None] * 1000.0
    prompt = np.zeros_like(mean)
    output = np.zeros_like(mean)
    for scenario, count in zip(scenarios, counts, strict=True):
        first = np.maximum(mean + ttft_sd_us * (scenario.ttft_deviation_ppm / PPM), 0.0)
        gap = np.maximum(token_us + token_sd_us * (scenario.token_deviation_ppm / PPM), 1.0)
        prompt += _compute_first(first, deadline, decay)
        output += _sum_output(first, gap, count[:, None], deadline, decay)
    prompt_ppm = np.floor(prompt / len(scenarios) * PPM).astype(np.int64)
    output_ppm = np.floor(output / len(scenarios) * PPM).astype(np.int64)
    most = output_tokens.sum(axis=0)[:, None] * PPM // len(scenarios)
    return np.clip(prompt_ppm, 0, PPM), np.clip(output_ppm, 0, most)


def _compute_first(first: FloatArray, deadline: FloatArray, decay: FloatArray) -> FloatArray:
    """Give late_j at one time, in [0, 1]."""
    # A decay of 0 is a step: past the deadline the share is negative, whatever divides it.
    share: FloatArray = (deadline + decay - first) / np.maximum(decay, 1.0)
    return np.where(first <= deadline, 1.0, np.clip(share, 0.0, 1.0))


def _sum_output(
    first: FloatArray,
    gap: FloatArray,
    count: FloatArray,
    deadline: FloatArray,
    decay: FloatArray,
) -> FloatArray:
    """Sum late_j over ``count`` tokens that start at `first` and come `gap` apart, in tokens."""
    until_deadline = deadline - first
    until_worthless = until_deadline + decay
    # Tokens 0 … on_time − 1 are on time, those up to ending − 1 late yet worth something.
    on_time = np.clip(np.floor(until_deadline / gap) + 1.0, 0.0, count)
    ending = np.maximum(np.clip(np.ceil(until_worthless / gap), 0.0, count), on_time)
    mean_wait = gap * ((on_time + ending - 1.0) * 0.5)
    late = (ending - on_time) * (until_worthless - mean_wait)
    worth: FloatArray = on_time + late / np.maximum(decay, 1.0)
    return worth
