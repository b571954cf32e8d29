"""How a provider's surplus is split, rule by rule."""

import pytest

from auctioneer.mechanism.modes import share_client, share_provider, share_threshold


def test_client_charges_the_slot_price() -> None:
    assert share_client([10, 7], 3, 12) == [3, 3]


def test_provider_shares_in_proportion() -> None:
    assert share_provider([30, 10], 0, 20) == [15, 5]


@pytest.mark.parametrize(
    ("bonus", "shares"), [(0, [0, 0, 0]), (1, [0, 0, 1]), (20, [6, 7, 7]), (30, [10, 10, 10])]
)
def test_provider_remainders_fall_by_running_sums(bonus: int, shares: list[int]) -> None:
    assert share_provider([10, 10, 10], 0, bonus) == shares


def test_provider_is_exact_beyond_64_bits() -> None:
    welfare = [2**49 - 1, 2**49]
    shares = share_provider(welfare, 0, 2**50 - 3)
    assert sum(shares) == 2**50 - 3
    assert all(share <= own for share, own in zip(shares, welfare, strict=True))


def test_threshold_cuts_all_gains_alike() -> None:
    # Gains of 500 for the provider and 300 for the task; 300 too much, so 150 each.
    assert share_threshold([500], 200, 500) == [350]


def test_threshold_leaves_small_gains_no_less_than_nothing() -> None:
    # Gains 90, 10, 100 of 100: a third of the excess, 34, is more than the second has, so it
    # keeps nothing and the others are cut by 45.
    assert share_threshold([90, 10], 0, 100) == [45, 10]


def test_threshold_gives_back_what_a_whole_cut_takes_too_much() -> None:
    # Gains 10, 10, 10, 30 of 30 exceed it by 30; a cut of 8 takes 32: tasks 0 and 1 get 1 back.
    assert share_threshold([10, 10, 10], 0, 30) == [7, 7, 8]


def test_threshold_without_excess_is_vcg() -> None:
    assert share_threshold([10, 7], 3, 6) == [3, 3]


def test_threshold_with_nothing_to_share() -> None:
    assert share_threshold([5], 5, 5) == [5]
