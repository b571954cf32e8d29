"""Bonuses: what each provider adds to the market, W − W_{−i}, all from one matching.

Without provider i and its tasks the matching of the others stays optimal. Then i's tasks come back
one by one, each by the best augmenting path of the residual graph: it goes to a provider, which
passes one of its own on, until a free slot is reached or a task leaves the market. After each the
matching is optimal for what is there (successive shortest paths), so what they fail to bring back
of S_i is W − W_{−i}, exactly.

What each task would still be worth elsewhere, its *fallback*, is found on the way; `provider`
mode shares a bonus by it.

Three things make bonuses cheap. Let q_k be the shortest way out from k: the greatest competitive
price, what the market would lose with one slot at k. One relaxation gives all q and the way out
that each takes.

1. *Direct.* At prices q a task of i falls back to v = max(0, max over l ≠ i of (w_jl − q_l)), and
   by duality W_{−i} ≤ W − S_i + Σ v. Where the fallbacks do not get in each other's way, this is
   reached and bonus_i = S_i − Σ v. That settles an uncontended market in one pass over the matrix.
2. *Potentials.* With p = q, every move costs p_l − p_k − moves[k, l] ≥ 0, so Dijkstra applies, and
   p is kept valid by the distances found (Johnson 1977).
3. *Ways out known.* A provider whose way out has not been touched is 0 away from the exit, so a
   search ends at the first such provider: after a few steps, as a rule.

The searches of different providers have nothing to do with each other: they run in lockstep, one
row of an array each. `auctioneer.mechanism.reference` has the same in plain Python.
Source: docs/spec/auction.md §5; Leonard 1983; Johnson 1977; Ahuja, Magnanti and Orlin 1993, §9.7.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import Gains, split_tasks
from auctioneer.mechanism.reference import Reference
from auctioneer.mechanism.reinsertion import ReinsertionBatch
from auctioneer.mechanism.residual import Residual
from iemas.core.errors import InternalError

_BATCH_ENTRIES: Final = 2**16
"""Rows × providers of a batch: its arrays then stay in the cache (512 KB each)."""

_FEW_PROVIDERS: Final = 16
"""Up to here plain Python is faster than arrays."""


def compute_vcg_bonuses(
    gains: Gains, assignment: IntArray, residual: Residual
) -> tuple[IntArray, IntArray]:
    """Compute W − W_{−i} for every provider, and every task's fallback.

    residual: of that optimal matching, see `build_residual`.
    Returns: bonuses, shape (n_providers,); and max(0, max over l ≠ i of (w_jl − q_l)) for each task
    j matched at i, 0 for others, shape (n_tasks,). Micro-credits, int64.
    Raises: InternalError if the matching is not optimal.
    """
    greatest, exits = compute_greatest_prices(residual)
    matched = np.flatnonzero(assignment >= 0)
    at = assignment[matched]
    refuges, values = _find_fallbacks(gains, matched, at, greatest)
    losses = gains.get_pairs(matched, at) - values
    bonuses, settled = _settle_directly(at, losses, refuges, residual, exits)
    fallbacks = np.zeros(len(assignment), dtype=np.int64)
    fallbacks[matched] = values
    # A provider with one used slot and none free loses just that: its greatest price.
    single = (residual.counts == 1) & (residual.free == 0)
    bonuses[single] = greatest[single]
    rest = np.flatnonzero(~settled & ~single)
    if len(bonuses) <= _FEW_PROVIDERS and len(rest):
        market = Reference.make(gains, assignment, residual, greatest, exits)
        bonuses[rest] = [market.compute_bonus(provider) for provider in rest.tolist()]
        return bonuses, fallbacks
    # Rows of a batch end together if their providers have as many tasks.
    rest = rest[np.argsort(residual.counts[rest], kind="stable")]
    size = max(1, _BATCH_ENTRIES // (len(bonuses) + 1))
    for start in range(0, len(rest), size):
        providers = rest[start : start + size]
        batch = ReinsertionBatch(gains, residual, greatest, exits, providers)
        bonuses[providers] = batch.run()
    return bonuses, fallbacks


def compute_greatest_prices(residual: Residual) -> tuple[IntArray, IntArray]:
    """Compute q, what the market would lose with one slot at each provider, and the ways out.

    Returns: q, int64, shape (n_providers,), out of any reach where there is no slot; and for each
    provider where the freed task goes, n_providers for leaving. Ways out never circle: like
    predecessors of slot prices, as q only ever falls strictly.
    Raises: InternalError if the matching is not optimal.
    """
    n_providers = len(residual.counts)
    # An exit always exists at a provider that has slots.
    greatest = -residual.moves[:, -1]
    exits = np.full(n_providers, n_providers, dtype=np.int64)
    holders = residual.holders
    active = np.flatnonzero(residual.counts + residual.free > 0)
    for _ in range(n_providers + 1):
        if len(active) == 0 or len(holders) == 0:
            return greatest, exits
        # One contiguous row a provider, over the providers whose price fell last.
        costs = greatest[active] - residual.moves[np.ix_(holders, active)]
        best = costs.min(axis=1)
        lowered = np.flatnonzero(best < greatest[holders])
        active_next = holders[lowered]
        exits[active_next] = active[costs[lowered].argmin(axis=1)]
        greatest[active_next] = best[lowered]
        active = active_next
    raise InternalError("greatest prices fall without end: the matching is not optimal")


def _settle_directly(
    at: IntArray, losses: IntArray, refuges: IntArray, residual: Residual, exits: IntArray
) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Settle the providers whose tasks fall back without getting in each other's way.

    They do so where each falls back to leaving, to a provider with free slots for all of i's tasks
    that want it, or alone to a provider one of whose tasks then leaves the market.
    at, losses, refuges: of each matched task its provider, what it loses by falling back, and
    where to. Returns: S_i − Σ v_j where settled, else 0; and which providers are.
    """
    n_providers = len(residual.counts)
    # How many tasks of the same provider want the same refuge.
    pairs = at * (n_providers + 1) + refuges
    _, inverse, claims = np.unique(pairs, return_inverse=True, return_counts=True)
    rivals = claims[inverse]
    free = np.append(residual.free, len(at))
    displaces = np.append(exits, n_providers) == n_providers
    fits = (rivals <= free[refuges]) | ((rivals == 1) & displaces[refuges])
    settled = np.bincount(at[~fits], minlength=n_providers) == 0
    sums = np.zeros(n_providers, dtype=np.int64)
    np.add.at(sums, at, losses)
    return np.where(settled, sums, 0), settled


def _find_fallbacks(
    gains: Gains, matched: IntArray, at: IntArray, greatest: IntArray
) -> tuple[IntArray, IntArray]:
    """Find each matched task's best other provider at prices q, and what is left of its gain.

    Where nothing is left the task leaves the market: n_providers, and 0.
    """
    n_providers = len(greatest)
    fallbacks = np.full(len(matched), n_providers, dtype=np.int64)
    values = np.zeros(len(matched), dtype=np.int64)
    done = 0
    for chunk in split_tasks(matched, n_providers):
        part = slice(done, done + len(chunk))
        done += len(chunk)
        rows = gains.get_rows(chunk)
        rows -= greatest
        index = np.arange(len(chunk))
        rows[index, at[part]] = -1
        best = rows.argmax(axis=1)
        left = rows[index, best]
        fallbacks[part] = np.where(left > 0, best, n_providers)
        values[part] = np.maximum(left, 0)
    return fallbacks, values
