"""What every clearing keeps, whatever the market: the inequalities of docs/spec/auction.md §5."""

import numpy as np

from auctioneer.mechanism import Clearing
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_vcg_bonuses
from auctioneer.mechanism.gains import read_market
from auctioneer.mechanism.modes import compute_surcharges
from auctioneer.mechanism.residual import build_residual
from iemas.core.params import CLEARING_MODES


def get_own_gains(welfare: IntArray, assignment: IntArray) -> IntArray:
    """Each task's welfare where it is matched, 0 where it is not."""
    own = np.zeros(len(assignment), dtype=np.int64)
    matched = np.flatnonzero(assignment >= 0)
    own[matched] = np.maximum(welfare, 0)[matched, assignment[matched]]
    return own


def split_every_way(welfare: IntArray, slots: IntArray, clearing: Clearing) -> dict[str, IntArray]:
    """The surcharges of this clearing's matching in every mode."""
    gains = read_market(welfare, slots)
    residual = build_residual(gains, slots, clearing.assignment)
    _, fallbacks = compute_vcg_bonuses(gains, clearing.assignment, residual)
    return {
        mode: compute_surcharges(
            mode,
            clearing.assignment,
            welfare=get_own_gains(welfare, clearing.assignment),
            slot_prices=clearing.slot_prices,
            bonuses=clearing.vcg_bonuses,
            fallbacks=fallbacks,
        )
        for mode in CLEARING_MODES
    }


def check_invariants(welfare: IntArray, slots: IntArray, clearing: Clearing) -> None:
    """Prices, bonuses and the surcharges of every mode: in range, and what is paid is received."""
    n_providers = len(slots)
    own = get_own_gains(welfare, clearing.assignment)
    matched = np.flatnonzero(clearing.assignment >= 0)
    at = clearing.assignment[matched]
    counts = np.bincount(at, minlength=n_providers)
    surplus = sum_by(at, own[matched], n_providers)
    prices, bonuses = clearing.slot_prices, clearing.vcg_bonuses
    least = counts * prices
    assert (prices >= 0).all()
    assert (prices[at] <= own[matched]).all()
    assert (prices[counts < slots] == 0).all()
    assert (least <= bonuses).all()
    assert (bonuses <= surplus).all()
    assert clearing.vcg_deficit_micros == (bonuses - least).sum() >= 0
    splits = split_every_way(welfare, slots, clearing)
    assert splits[clearing.mode].tolist() == clearing.surcharges.tolist()
    received = {}
    for mode, surcharges in splits.items():
        assert (surcharges >= 0).all()
        assert (surcharges <= own).all()
        received[mode] = sum_by(at, surcharges[matched], n_providers)
        # All that tasks pay is received by providers: a task that is unmatched pays nothing.
        assert surcharges.sum() == received[mode].sum()
        assert (least <= received[mode]).all()
        assert (received[mode] <= bonuses).all()
    assert received["client"].tolist() == least.tolist()
    assert received["provider"].tolist() == bonuses.tolist()
    # In no mode does a task pay less than VCG asks of it: what bounds the gain of its lies.
    assert splits["client"][matched].tolist() == prices[at].tolist()
    for mode in ("provider", "threshold"):
        assert (splits[mode][matched] >= prices[at]).all()


def sum_by(at: IntArray, values: IntArray, count: int) -> IntArray:
    sums = np.zeros(count, dtype=np.int64)
    np.add.at(sums, at, values)
    return sums
