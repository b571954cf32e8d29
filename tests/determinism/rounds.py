"""The arithmetic of rounds that every node repeats: expected lateness and clearing.

A replica that re-checks a transcript as evidence must come to the verdict of all others, so the
float64 of lateness and the choice among equal matchings must not depend on Python, numpy or scipy.
The markets are drawn from hashes, so that no generator's version matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import numpy as np
import numpy.typing as npt

from auctioneer.mechanism import clear, encode_clearing
from auctioneer.mechanism.lateness import compute_expected_lateness
from iemas.core.auction import N_SCENARIOS, Scenario
from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.params import CLEARING_MODES

MARKETS = 40
Ints = npt.NDArray[np.int64]


class Draw:
    """Integers that follow from a number, the same everywhere."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._words = self._hash()

    def _hash(self) -> Iterator[int]:
        for counter in range(2**32):
            parts = (self._number.to_bytes(8, "big"), counter.to_bytes(8, "big"))
            digest = compute_hash(b"rounds", *parts)
            yield from (int.from_bytes(digest[i : i + 8], "big") for i in range(0, 32, 8))

    def below(self, limit: int) -> int:
        return next(self._words) % limit

    def array(self, limit: int, *shape: int) -> Ints:
        flat = [self.below(limit) for _ in range(int(np.prod(shape)))]
        return np.array(flat, dtype=np.int64).reshape(shape)


def list_rounds() -> list[str]:
    """Hash what each drawn market comes to, in every mode."""
    return [compute_hash(encode_canonical(_compute_round(Draw(n)))).hex() for n in range(MARKETS)]


def _compute_round(draw: Draw) -> tuple[object, ...]:
    tasks, providers = 1 + draw.below(12), 1 + draw.below(6)
    scenarios = [
        Scenario(1 + draw.below(400), draw.below(6_000_000) - 3_000_000, draw.below(3_000_000))
        for _ in range(N_SCENARIOS)
    ]
    lateness = compute_expected_lateness(
        scenarios=scenarios,
        ttft_us=draw.array(5_000_000, tasks, providers),
        ttft_sd_us=draw.array(900_000, providers),
        token_us=draw.array(90_000, providers),
        token_sd_us=draw.array(30_000, providers),
        output_tokens=1 + draw.array(500, N_SCENARIOS, tasks),
        deadline_ms=1 + draw.array(20_000, tasks),
        decay_ms=draw.array(9_000, tasks),
    )
    coarse = 10 ** draw.below(6)  # the coarser, the more matchings are equal
    welfare = (draw.array(10**6, tasks, providers) - 200_000) // coarse * coarse
    slots = draw.array(4, providers)
    cleared = [encode_clearing(clear(welfare, slots, mode=mode)) for mode in CLEARING_MODES]
    return (*[values.tolist() for values in lateness], *[astuple(result) for result in cleared])
