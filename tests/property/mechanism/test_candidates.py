"""Candidate lists stand for a matrix: whichever form a market comes in, it clears alike."""

import numpy as np

from auctioneer.mechanism import CandidateWelfare, clear, verify
from auctioneer.mechanism.arrays import IntArray
from tests.property.mechanism.brute_force import draw_large_market


def make_lists(welfare: IntArray, rng: np.random.Generator) -> CandidateWelfare:
    """List what is feasible, in any order, padded, with some pairs that are not."""
    n_tasks, n_providers = welfare.shape
    order = rng.permuted(np.tile(np.arange(n_providers), (n_tasks, 1)), axis=1)
    values = np.take_along_axis(welfare, order, axis=1)
    dropped = (values <= 0) & (rng.random(values.shape) < 0.5)
    providers = np.where(dropped, -1, order)
    padding = np.full((n_tasks, 2), -1)
    return CandidateWelfare(
        np.concatenate((providers, padding), axis=1),
        np.concatenate((values, -padding), axis=1),
        n_providers,
    )


def test_candidate_lists_give_what_the_matrix_gives() -> None:
    rng = np.random.default_rng(17)
    for _ in range(300):
        welfare, slots = draw_large_market(rng)
        lists = make_lists(welfare, rng)
        dense, sparse = clear(welfare, slots), clear(lists, slots)
        assert sparse.welfare_micros == dense.welfare_micros
        assert sparse.slot_prices.tolist() == dense.slot_prices.tolist()
        assert sparse.vcg_bonuses.tolist() == dense.vcg_bonuses.tolist()
        # Each verifies the other's: they may differ in ties alone.
        verify(welfare, slots, sparse)
        verify(lists, slots, dense)
