"""Prices that prove a matching optimal without being least, and what forces a price.

The optimal duals of a matching form a lattice between the least prices π and the greatest q, and
the whole numbers in it are closed under shifts that are cut at either end and under midpoints
(Murota 2003, L♮-convexity): so the lattice is easy to draw from.
"""

import numpy as np

from auctioneer.mechanism import Clearing
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_greatest_prices
from auctioneer.mechanism.errors import CyclicPredecessorsError, PriceNotLeastError
from auctioneer.mechanism.gains import read_market
from auctioneer.mechanism.residual import build_residual


def is_optimal_dual(
    welfare: IntArray, slots: IntArray, prices: IntArray, greatest_welfare: int
) -> bool:
    """Tell whether no matching exceeds W at these prices: strong duality, nothing else."""
    kept = np.maximum(welfare - prices, 0).max(axis=1, initial=0)
    return int(kept.sum() + slots @ prices) == greatest_welfare


def list_other_optimal_duals(
    welfare: IntArray, slots: IntArray, honest: Clearing
) -> list[IntArray]:
    """The greatest competitive prices and some between them and the least, each once."""
    residual = build_residual(read_market(welfare, slots), slots, honest.assignment)
    least = honest.slot_prices
    greatest, _ = compute_greatest_prices(residual)
    # Where there is no slot any price will do, so the greatest is out of range.
    greatest = np.minimum(greatest, least + max(int(welfare.max()), 1))
    span = int((greatest - least).max())
    drawn = [greatest, (least + greatest) // 2, least + (greatest - least + 1) // 2]
    for shift in (0, 1, span // 3, span // 2):
        drawn += [np.minimum(least + shift, greatest), np.maximum(greatest - shift, least)]
    others = {tuple(prices.tolist()) for prices in drawn} - {tuple(least.tolist())}
    return [np.array(prices, dtype=np.int64) for prices in sorted(others)]


def compute_tightness(welfare: IntArray, prices: IntArray, assignment: IntArray) -> IntArray:
    """What each task could offer for a slot at each provider, less its price: 0 where it forces.

    An unmatched task offers its welfare; one at k what it gains by leaving k, and k's price.
    """
    gains = np.maximum(welfare, 0)
    matched = assignment >= 0
    at = np.where(matched, assignment, 0)
    kept = np.where(matched, gains[np.arange(len(gains)), at] - prices[at], 0)
    return gains - kept[:, None] - prices


def draw_tight_predecessors(
    welfare: IntArray, claim: Clearing, rng: np.random.Generator
) -> IntArray:
    """Name a task that seems to force it for every positive price, wherever there is one."""
    tight = compute_tightness(welfare, claim.slot_prices, claim.assignment) == 0
    predecessors = np.full(len(claim.slot_prices), -1, dtype=np.int64)
    for provider in np.flatnonzero(claim.slot_prices > 0):
        tasks = np.flatnonzero(tight[:, provider])
        if len(tasks):
            predecessors[provider] = rng.choice(tasks)
    return predecessors


def expect_refusal(
    welfare: IntArray, prices: IntArray, predecessors: IntArray, assignment: IntArray
) -> type[PriceNotLeastError | CyclicPredecessorsError] | None:
    """Say by which error predecessors are refused that prove nothing; none if they prove π."""
    tightness = compute_tightness(welfare, prices, assignment)
    following = {}
    for provider, task in enumerate(predecessors.tolist()):
        if (prices[provider] > 0) != (task >= 0):
            return PriceNotLeastError
        if task >= 0:
            if tightness[task, provider] != 0:
                return PriceNotLeastError
            following[provider] = int(assignment[task])
    for start in following:
        at, steps = start, 0
        while at in following and steps <= len(following):
            at, steps = following[at], steps + 1
        if steps > len(following):
            return CyclicPredecessorsError
    return None
