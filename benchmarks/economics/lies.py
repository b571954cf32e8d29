"""What one agent may declare instead of the truth.

Each lie has a name and a class; what a class cannot change (decay without a deadline) stays true,
and gains nothing. `TRUTH` is the first lie of both lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.rounds import declare
from benchmarks.economics.world import Provider, World, scale_prices
from iemas.core.auction import Bid
from iemas.core.types import Lateness, Prices

KINDS: Final = ("prompt", "cached", "output")
PRICE_GROUPS: Final = ("truth", "prices", "one kind", "ask", "shape")
"""Classes that change prices and nothing else."""

_SAME: Final = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class RequesterLie:
    """Factors on a bid's numbers.

    `deadline` scales a deadline and, with it, nothing else; 0 drops it. `impatience` declares one
    where there is none, as a multiple of a second a hundred tokens.
    """

    name: str
    group: str
    prices: tuple[float, float, float] = _SAME
    deadline: float = 1.0
    decay: float = 1.0
    max_tokens: float = 1.0
    impatience: float = 0.0

    def apply(self, task: Bid) -> Bid:
        """Declare it of a task."""
        return declare(
            task,
            prices=scale_prices(task.prices, self.prices),
            lateness=self._bend(task),
            max_tokens=max(1, round(task.max_tokens * self.max_tokens)),
        )

    def _bend(self, task: Bid) -> Lateness:
        truth = task.lateness
        if truth.deadline_ms == 0:
            false_ms = round(self.impatience * 10 * task.max_tokens)
            return Lateness(false_ms, false_ms // 2)
        if self.deadline == 0.0:
            return Lateness()
        return Lateness(
            max(1, round(truth.deadline_ms * self.deadline)), round(truth.decay_ms * self.decay)
        )


@dataclass(frozen=True, slots=True)
class ProviderLie:
    """Factors on an ask, a change of the slots, and of the blocks that the digest shows.

    slots: `factor·true + shift`, at least 0; `makes_good`: it pays the requesters that it cannot
    serve what they were to gain. Blocks are `held·keep + missing·invent`, where
    missing are those of the prompt that it does not hold.
    """

    name: str
    group: str
    ask: tuple[float, float, float] = _SAME
    slots_factor: float = 1.0
    slots_shift: int = 0
    makes_good: bool = False
    keep: float = 1.0
    invent: float = 0.0

    def ask_of(self, provider: Provider) -> Prices:
        """Give the prices that it asks."""
        return scale_prices(provider.cost, self.ask)

    def slots_of(self, provider: Provider) -> int:
        """Give the slots that it declares."""
        return max(0, round(provider.slots * self.slots_factor) + self.slots_shift)

    def claim(self, world: World, provider: int) -> IntArray:
        """Give the matched blocks that its digest shows, by task; shape (n_tasks,)."""
        held = world.held_blocks[:, provider]
        if self.keep == 1.0 and self.invent == 0.0:
            return held
        size = world.providers[provider].block_size
        whole = np.array([(task.prompt_tokens - 1) // size for task in world.tasks])
        missing = np.maximum(whole - held, 0)
        claimed: IntArray = np.floor(held * self.keep + missing * self.invent).astype(np.int64)
        return claimed


def _shape(kind: int, factor: float) -> tuple[float, float, float]:
    factors = [1.0, 1.0, 1.0]
    factors[kind] = factor
    return factors[0], factors[1], factors[2]


def list_requester_lies() -> list[RequesterLie]:
    """List what requesters try."""
    lies = [RequesterLie("truth", "truth")]
    lies += [
        RequesterLie(f"prices × {factor:g}", "prices", prices=(factor,) * 3)
        for factor in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.1, 1.25, 1.5, 2.0, 4.0)
    ]
    lies += [
        RequesterLie(f"{KINDS[kind]} price × {factor:g}", "one kind", prices=_shape(kind, factor))
        for kind in range(3)
        for factor in (0.25, 0.5, 0.8, 1.25, 2.0)
    ]
    lies += [
        RequesterLie(f"deadline × {factor:g}" if factor else "no deadline", "time", deadline=factor)
        for factor in (0.0, 0.25, 0.5, 0.8, 1.25, 2.0)
    ]
    lies += [
        RequesterLie(f"decay × {factor:g}", "time", decay=factor)
        for factor in (0.0, 0.25, 0.5, 2.0, 4.0)
    ]
    lies += [
        RequesterLie(f"false deadline, {factor:g} s for 100 tokens", "time", impatience=factor)
        for factor in (0.5, 1.0, 2.0)
    ]
    lies += [
        RequesterLie(f"max_tokens × {factor:g}", "max_tokens", max_tokens=factor)
        for factor in (0.25, 0.5, 0.75, 1.5, 2.0)
    ]
    return lies


def list_provider_lies() -> list[ProviderLie]:
    """List what providers try."""
    lies = [ProviderLie("truth", "truth")]
    lies += [
        ProviderLie(f"ask × {factor:g}", "ask", ask=(factor,) * 3)
        for factor in (0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 5.0)
    ]
    lies += [
        ProviderLie(f"{KINDS[kind]} ask × {factor:g}", "shape", ask=_shape(kind, factor))
        for kind in range(3)
        for factor in (0.25, 0.5, 0.8, 1.25, 2.0)
    ]
    lies += [
        ProviderLie(f"prompt ask × {p:g}, output × {o:g}", "shape", ask=(p, 1.0, o))
        for p, o in ((1.25, 0.8), (1.5, 0.6), (2.0, 0.4), (0.8, 1.25), (0.5, 1.5), (0.25, 2.0))
    ]
    lies += [
        ProviderLie(
            f"{shift} slots" if shift else "one slot",
            "fewer slots",
            slots_factor=1.0 if shift else 0.0,
            slots_shift=shift or 1,
        )
        for shift in (-1, -2, 0)
    ]
    lies += [
        ProviderLie("half the slots", "fewer slots", slots_factor=0.5),
        ProviderLie("+1 slot", "more slots", slots_shift=1),
        ProviderLie("+2 slots", "more slots", slots_shift=2),
        ProviderLie("twice the slots", "more slots", slots_factor=2.0),
        ProviderLie("four times the slots", "more slots", slots_factor=4.0),
        ProviderLie("eight times the slots", "more slots", slots_factor=8.0),
        ProviderLie("+1 slot, made good", "more slots, made good", slots_shift=1, makes_good=True),
        ProviderLie("+2 slots, made good", "more slots, made good", slots_shift=2, makes_good=True),
        ProviderLie("digest: nothing", "digest hides", keep=0.0),
        ProviderLie("digest: half of it", "digest hides", keep=0.5),
        ProviderLie("digest: a quarter more", "digest invents", invent=0.25),
        ProviderLie("digest: half of what is missing", "digest invents", invent=0.5),
        ProviderLie("digest: everything", "digest invents", invent=1.0),
    ]
    return lies


REQUESTER_LIES: Final = tuple(list_requester_lies())
PROVIDER_LIES: Final = tuple(list_provider_lies())
