"""Where deals come from, and how figures of many are put together.

Lengths of answers are those of a real trace; several models learn some of them, so that the luck
of one is not taken for a bias.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOENT
from typing import Any, Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.predictors.scenarios import MAX_SAMPLES
from benchmarks.economics.outcomes.deals import (
    BLOCK,
    Deal,
    Outcomes,
    declare,
    draw_bid,
    draw_outcomes,
    draw_seller,
    learn,
    make_lateness,
    strike,
)
from benchmarks.economics.traces import DATA
from iemas.core.auction import Bid, Scenario

Row = dict[str, Any]

TRACE: Final = DATA / "azure/AzureLLMInferenceTrace_conv.csv"
REAL_DRAWS: Final = 128
MODELS: Final = 8
"""So many models learn from tasks of their own, so that the luck of one is not taken for a bias."""


def load_lengths() -> IntArray:
    """Load the lengths of real answers.

    Raises: FileNotFoundError where the trace is not there.
    """
    if not TRACE.is_file():
        raise FileNotFoundError(ENOENT, "the lengths of real answers are missing", str(TRACE))
    with TRACE.open(encoding="utf-8") as file:
        return np.array([int(row["GeneratedTokens"]) for row in csv.DictReader(file)])


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Lengths of answers, models that learnt from some of them, and a source of chance."""

    lengths: IntArray
    models: tuple[tuple[Scenario, ...], ...]
    rng: np.random.Generator

    @classmethod
    def of(cls, lengths: IntArray, seed: int) -> Study:
        """Let `MODELS` models learn."""
        rng = np.random.default_rng(seed)
        models = [learn(draw_outcomes(lengths, MAX_SAMPLES, rng), rng) for _ in range(MODELS)]
        return cls(lengths, tuple(models), rng)

    def draw_deals(self, count: int, kind: str, surcharge: float) -> list[Deal]:
        """Draw deals under a kind of lateness; the surcharge is a share of the welfare."""
        deals: list[Deal] = []
        for tries in range(20 * count):
            seller, bid = draw_seller(self.rng), draw_bid(self.rng)
            model = self.models[tries % MODELS]
            bid = declare(bid, lateness=make_lateness(kind, bid, seller, model))
            blocks = draw_blocks(self.rng, bid)
            deal = strike(bid, seller, model, blocks=blocks, surcharge=surcharge)
            deals += [deal] if deal is not None else []
            if len(deals) == count:
                break
        return deals

    def draw_real(self) -> Outcomes:
        """Draw real outcomes."""
        return draw_outcomes(self.lengths, REAL_DRAWS, self.rng)

    def list_worlds(self, deal: Deal) -> dict[str, Outcomes]:
        """Give both truths about a deal."""
        return {"predicted": Outcomes.of_scenarios(deal.scenarios), "real": self.draw_real()}


def draw_blocks(rng: np.random.Generator, bid: Bid) -> int:
    """Draw how many of the prompt's blocks are resident: none, or most."""
    held = rng.uniform(0.3, 0.95) if rng.random() < 0.5 else 0.0
    return int(held * bid.prompt_tokens) // BLOCK


def share(gains: Sequence[float], base: Sequence[float], name: str) -> Row:
    """Give Σ gains / Σ base and its standard error, by the residuals of the ratio."""
    gain, weight = np.array(gains, dtype=np.float64), np.array(base, dtype=np.float64)
    if weight.sum() == 0.0:
        return {name: 0.0, f"{name}_se": 0.0}
    ratio = gain.sum() / weight.sum()
    error = np.sqrt(((gain - ratio * weight) ** 2).sum()) / weight.sum()
    return {name: round(float(ratio), 6), f"{name}_se": round(float(error), 6)}


class Tally:
    """Collects figures of deals under names, and gives their shares."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Add one deal's figure."""
        self._values.setdefault(name, []).append(value)

    def get_best(self, prefix: str) -> str:
        """Give the name, of those with a prefix, that sums to most."""
        names = [name for name in self._values if name.startswith(prefix)]
        return max(names, key=lambda name: sum(self._values[name]))

    def get_max(self, name: str) -> float:
        """Give the greatest figure under a name."""
        return max(self._values[name])

    def get_share(self, name: str, base: Sequence[float], label: str = "") -> Row:
        """Give one name's share of the base."""
        return share(self._values[name], base, label or name)
