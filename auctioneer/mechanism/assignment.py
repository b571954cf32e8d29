"""The matching: which task goes to which provider, at the greatest total welfare.

    maximise    Σ w_ij · x_ij
    subject to  Σ_i x_ij ≤ 1 for every task j,   Σ_j x_ij ≤ slots_i for every provider i

Each provider is expanded into one column a slot, and scipy's shortest augmenting path solver does
the rest. It computes in float64, yet exactly: with R the sum over the tasks of their best
welfare, an alternating path meets a task at most once with each sign, so path lengths stay within
R, column potentials within 2R, row potentials within 3R, and the solver's partial sums within 7R.
`MAX_TOTAL_MICROS` keeps 8R at or below 2^53, up to which float64 holds every integer.

Ties: among optimal matchings the solver's own is taken. It depends on the order of rows and
columns and on nothing else, so the caller decides ties by the order in which it passes providers
and tasks. A verifier needs no agreement on it: it checks optimality, not equality.
Source: docs/spec/auction.md §2; Jonker and Volgenant 1987; Crouse 2016.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism.arrays import IntArray


def compute_assignment(welfare: IntArray, slots: IntArray) -> IntArray:
    """Compute a matching of greatest welfare.

    welfare, slots: as checked by `validate_market`.
    Returns: for each task its provider's column, −1 where unmatched; int64, shape (n_tasks,).
    """
    n_tasks, n_providers = welfare.shape
    assignment = np.full(n_tasks, -1, dtype=np.int64)
    # More slots than tasks are of no use, and would only widen the matrix.
    useful = np.minimum(slots, n_tasks)
    column_provider = np.repeat(np.arange(n_providers), useful)
    if len(column_provider) == 0:
        return assignment
    costs = -np.maximum(welfare, 0).astype(np.float64)
    # Row-major and to be minimised, so that the solver takes it as it is.
    tasks, columns = linear_sum_assignment(np.repeat(costs, useful, axis=1))
    providers = column_provider[columns]
    # The solver fills every row it can; a pair of no welfare is no match.
    feasible = welfare[tasks, providers] > 0
    assignment[tasks[feasible]] = providers[feasible]
    return assignment


def compute_total(welfare: IntArray, assignment: IntArray) -> int:
    """Compute the welfare of a matching in micro-credits."""
    matched = np.flatnonzero(assignment >= 0)
    return int(welfare[matched, assignment[matched]].sum())
