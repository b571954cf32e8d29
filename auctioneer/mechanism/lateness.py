"""Expected worth of tokens that arrive at uncertain times.

A task's first token comes at S, its n-th after that at S + n·D (n = 0 … N − 1), where S and D are
independent and normal, cut off at 0 and at 1 µs. Late_j is the requester's linear decay. This
module computes E[late(S)], which weighs the prompt, and E[Σ_n late(S + n·D)], which weighs the
output, in parts per million.

The expectation is a mean over 12 points of the (S, D) plane. Along each axis the points are the
conditional means of the 12 equally likely slices of a normal distribution, and a lattice pairs
them, symmetric about the centre. For each point the sum over the output is in closed form. So the
prompt's error is at most 1/12 whatever the decay, as late_j falls monotonically within a slice,
and none where no slice crosses a kink. The output's error stays below 8 % of its tokens, half a
percent on average, over a wide range of times, spreads and decays, hard deadlines among them;
tests/unit/mechanism/test_lateness.py compares it with a dense grid.

Everything is +, −, ×, ÷, floor, ceil and comparisons of float64, one array operation at a time
and in a fixed order. IEEE 754 rounds each of them in one way only, so every platform gets the
same bits. Exponentials, error functions and BLAS, which do not promise that, are not used.
Source: docs/spec/auction.md §6.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from auctioneer.mechanism.arrays import IntArray
from iemas.core.types import PPM

FloatArray = npt.NDArray[np.float64]

_SLICE_MEANS: Final = (
    -1.839754,
    -1.158458,
    -0.815108,
    -0.549878,
    -0.319284,
    -0.104827,
    0.104827,
    0.319284,
    0.549878,
    0.815108,
    1.158458,
    1.839754,
)
"""Means of the 12 equally likely slices of a standard normal distribution, to 6 decimals."""

_TIMING_NODES: Final = tuple(
    (_SLICE_MEANS[k], _SLICE_MEANS[(7 * k + 3) % len(_SLICE_MEANS)])
    for k in range(len(_SLICE_MEANS))
)
"""Equally weighted points (first token, time a token) in standard deviations."""


def compute_expected_lateness(
    *,
    ttft_us: IntArray,
    ttft_sd_us: IntArray,
    token_us: IntArray,
    token_sd_us: IntArray,
    output_tokens: IntArray,
    deadline_ms: IntArray,
    decay_ms: IntArray,
) -> tuple[IntArray, IntArray]:
    """Compute the expected worth of the prompt and of the output, for pairs with a deadline.

    ttft_us, output_tokens: shape (n_tasks, n_providers). ttft_sd_us, token_us, token_sd_us: shape
    (n_providers,). deadline_ms, decay_ms: shape (n_tasks,), as in `Lateness`, deadlines positive.
    Returns: E[late(S)] in ppm and E[Σ_n late] in ppm-tokens, rounded down, int64, shape
    (n_tasks, n_providers); the second at most ``output_tokens * 10^6``.
    """
    mean = ttft_us.astype(np.float64)
    count = output_tokens.astype(np.float64)
    deadline = deadline_ms.astype(np.float64)[:, None] * 1000.0
    decay = decay_ms.astype(np.float64)[:, None] * 1000.0
    prompt = np.zeros_like(mean)
    output = np.zeros_like(mean)
    for ttft_node, token_node in _TIMING_NODES:
        first = np.maximum(mean + ttft_sd_us * ttft_node, 0.0)
        gap = np.maximum(token_us + token_sd_us * token_node, 1.0)
        prompt += _compute_first(first, deadline, decay)
        output += _sum_output(first, gap, count, deadline, decay)
    nodes = float(len(_TIMING_NODES))
    prompt_ppm = np.floor(prompt / nodes * PPM).astype(np.int64)
    output_ppm = np.floor(output / nodes * PPM).astype(np.int64)
    return np.clip(prompt_ppm, 0, PPM), np.clip(output_ppm, 0, output_tokens * PPM)


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
