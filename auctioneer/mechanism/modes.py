"""Clearing modes: how the surplus of a match is split between a provider and its tasks.

A task pays its provider's expected cost and a surcharge, P_j = C_ij + x_j; a mode is a rule for
x_j. Every payment goes from a requester to its own provider, so every mode balances its budget,
exactly: a rule works in whole micro-credits, and says who bears what does not divide.
A mode is added by its rule in `_SHARING_RULES`; matching, slot prices and certificate stay.
Source: docs/spec/auction.md §5; design §5; Parkes, Kalagnanam and Eso 2001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import UnknownModeError
from iemas.core.params import CLEARING_MODES


@dataclass(frozen=True, slots=True)
class Group:
    """A provider's slot price π and bonus, and of each of its tasks welfare and fallback v."""

    slot_price: int
    bonus: int
    welfare: Sequence[int]
    fallbacks: Sequence[int]


def share_client(group: Group) -> list[int]:
    """Charge each task the slot price: the VCG payment. The provider gains n·π."""
    return [group.slot_price] * len(group.welfare)


def share_provider(group: Group) -> list[int]:
    """Let each task keep what it could have had elsewhere, so that the provider gains its bonus.

    The tasks keep S − bonus together, in proportion to their fallbacks: with s_j the running sums
    of v and V the last, task j keeps what ⌊(S − bonus)·s / V⌋ grows by from s_{j−1} to s_j. As
    S − bonus ≤ V, none keeps more than its fallback; where the fallbacks do not get in each
    other's way the two are equal, and each task pays what its next best would have cost.
    """
    kept = sum(group.welfare) - group.bonus
    sums = list(accumulate(group.fallbacks))
    total = sums[-1] or 1
    shares = [kept * part // total for part in sums]
    parts = zip(group.welfare, [0, *shares], shares, strict=False)
    return [own - (after - before) for own, before, after in parts]


def share_threshold(group: Group) -> list[int]:
    """Cut the VCG gains of the provider and of its tasks to what there is, by the Threshold rule.

    Gains of bonus and w_j − π are lowered by a common cut, none below 0, until they sum to S: this
    makes the largest cut, and with it what a lie can gain, least. The cut is the least whole number
    that goes far enough; of what it takes too much, one micro-credit each goes back to those who
    were cut in full, tasks first and in their order.
    """
    gains = [max(0, own - group.slot_price) for own in group.welfare]
    available = sum(group.welfare)
    cut = _find_cut([*gains, group.bonus], available)
    kept = [max(0, gain - cut) for gain in gains]
    back = available - sum(kept) - max(0, group.bonus - cut)
    if cut > 0:
        for index, gain in enumerate(gains):
            if back > 0 and gain >= cut:
                kept[index] += 1
                back -= 1
    return [own - gain for own, gain in zip(group.welfare, kept, strict=True)]


def _find_cut(gains: list[int], available: int) -> int:
    """Find the least whole cut at which Σ max(0, gain − cut) ≤ available."""
    excess = sum(gains) - available
    if excess <= 0:
        return 0
    remaining = sum(gains)
    ordered = sorted(gains)
    for index, gain in enumerate(ordered):
        count = len(ordered) - index
        # With all gains from here on cut alike, (remaining − count·cut) is what they keep.
        cut = -((available - remaining) // count)
        if cut <= gain:
            return cut
        remaining -= gain
    return ordered[-1]


_SHARING_RULES: dict[str, Callable[[Group], list[int]]] = {
    "provider": share_provider,
    "client": share_client,
    "threshold": share_threshold,
}


def validate_mode(mode: object) -> None:
    """Refuse a name that no mode has.

    Raises: UnknownModeError.
    """
    if not isinstance(mode, str) or mode not in CLEARING_MODES:
        raise UnknownModeError(
            f"mode must be one of {', '.join(CLEARING_MODES)}, got {mode!r}", argument="mode"
        )


def compute_surcharges(
    mode: str,
    assignment: IntArray,
    *,
    welfare: IntArray,
    slot_prices: IntArray,
    bonuses: IntArray,
    fallbacks: IntArray,
) -> IntArray:
    """Compute x by the mode's rule.

    welfare: of each task's own pair, 0 where unmatched, shape (n_tasks,).
    slot_prices: shape (n_providers,). bonuses, fallbacks: as `compute_vcg_bonuses` gives them.
    Returns: micro-credits, int64, shape (n_tasks,), 0 where unmatched.
    Raises: UnknownModeError.
    """
    validate_mode(mode)
    share = _SHARING_RULES[mode]
    surcharges = np.zeros(len(assignment), dtype=np.int64)
    matched = np.flatnonzero(assignment >= 0)
    order = matched[np.argsort(assignment[matched], kind="stable")]
    counts = np.bincount(assignment[matched], minlength=len(slot_prices))
    holders = np.flatnonzero(counts)
    values, refuges = welfare[order].tolist(), fallbacks[order].tolist()
    shared: list[int] = []
    # Products of two sums reach 2^100, so this part is in Python's integers.
    for count, price, bonus in zip(
        counts[holders].tolist(),
        slot_prices[holders].tolist(),
        bonuses[holders].tolist(),
        strict=True,
    ):
        part = slice(len(shared), len(shared) + count)
        shared += share(Group(price, bonus, values[part], refuges[part]))
    surcharges[order] = shared
    return surcharges
