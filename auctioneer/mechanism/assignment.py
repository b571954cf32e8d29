"""The matching: which task goes to which provider, at the greatest total welfare.

    maximise    Σ w_ij · x_ij
    subject to  Σ_i x_ij ≤ 1 for every task j,   Σ_j x_ij ≤ slots_i for every provider i

Each provider is expanded into one copy a slot, and scipy's shortest augmenting path solvers do
the rest: the dense one for matrices, LAPJVsp for candidate lists (docs/adr/0012). They compute in
float64, yet exactly: with R the sum over the tasks of their best welfare, an alternating path
meets a task at most once with each sign, so path lengths stay within R, column potentials within
2R, row potentials within 3R, and the solver's partial sums within 7R. `MAX_TOTAL_MICROS` keeps 8R
at or below 2^53, up to which float64 holds every integer. Candidate lists are held to half of it,
as their costs have an offset of up to R, which cancels along a path but once.

Ties: among optimal matchings the solver's own is taken. It depends on the order of rows and
columns and on nothing else, so the caller decides ties by the order in which it passes providers
and tasks. A verifier needs no agreement on it: it checks optimality, not equality.
Source: docs/spec/auction.md §2; Jonker and Volgenant 1987; Crouse 2016.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.gains import CandidateGains, DenseGains, Gains


def compute_assignment(gains: Gains, slots: IntArray) -> IntArray:
    """Compute a matching of greatest welfare.

    gains, slots: as given by `read_market`.
    Returns: for each task its provider, −1 where unmatched; int64, shape (n_tasks,).
    """
    n_tasks = gains.shape[0]
    # More slots than tasks are of no use, and would only widen the matrix.
    useful = np.minimum(slots, n_tasks)
    assignment = np.full(n_tasks, -1, dtype=np.int64)
    if useful.sum() == 0:
        return assignment
    if isinstance(gains, DenseGains):
        tasks, providers = _match_dense(gains, useful)
    else:
        tasks, providers = _match_candidates(gains, useful)
    # The solvers fill every row they can; a pair of no welfare is no match.
    feasible = gains.get_pairs(tasks, providers) > 0
    assignment[tasks[feasible]] = providers[feasible]
    return assignment


def _match_dense(gains: DenseGains, slots: IntArray) -> tuple[IntArray, IntArray]:
    """Match slots with tasks in a matrix; give pairs of task and provider."""
    slot_provider = np.repeat(np.arange(len(slots)), slots)
    costs = -gains.matrix.astype(np.float64)
    # Row-major, to be minimised, and no longer than wide, so that the solver takes it as it is.
    if len(slot_provider) < len(costs):
        copies, tasks = linear_sum_assignment(
            np.repeat(np.ascontiguousarray(costs.T), slots, axis=0)
        )
    else:
        tasks, copies = linear_sum_assignment(np.repeat(costs, slots, axis=1))
    return tasks, slot_provider[copies]


def _match_candidates(gains: CandidateGains, slots: IntArray) -> tuple[IntArray, IntArray]:
    """Match tasks with slots over candidate lists; give pairs of task and provider."""
    tasks, copies = match_expanded(make_candidate_graph(gains, slots))
    placed = np.flatnonzero(copies < slots.sum())
    slot_provider = np.repeat(np.arange(len(slots)), slots)
    return tasks[placed], slot_provider[copies[placed]]


def match_expanded(graph: csr_array) -> tuple[IntArray, IntArray]:
    """Match each row of a sparse matrix of costs with a column, at the least total."""
    rows, columns = min_weight_full_bipartite_matching(graph)
    return rows.astype(np.int64), columns.astype(np.int64)


def make_candidate_graph(gains: CandidateGains, slots: IntArray) -> csr_array:
    """Expand candidate lists to costs of tasks at slots.

    The solver wants a full matching and no cost of 0, so each task gets a column of its own for
    staying unmatched, and every cost is what welfare falls short of one more than the best.
    """
    n_tasks, n_slots = gains.shape[0], int(slots.sum())
    named = gains.values > 0
    task = np.repeat(np.arange(n_tasks), named.sum(axis=1))
    provider, value = gains.providers[named], gains.values[named]
    copies, first = slots[provider], np.cumsum(slots) - slots
    # Number the copies of each pair's provider: 0, 1, … up to its slots.
    offset = np.arange(int(copies.sum())) - np.repeat(np.cumsum(copies) - copies, copies)
    rows = np.concatenate((np.repeat(task, copies), np.arange(n_tasks)))
    columns = np.concatenate(
        (np.repeat(first[provider], copies) + offset, n_slots + np.arange(n_tasks))
    )
    most = int(value.max(initial=0)) + 1
    costs = np.concatenate((most - np.repeat(value, copies), np.full(n_tasks, most)))
    return csr_array(
        (costs.astype(np.float64), (rows, columns)), shape=(n_tasks, n_slots + n_tasks)
    )
