"""How a provider's surplus is split, rule by rule."""

import pytest

from auctioneer.mechanism.modes import Group, share_client, share_provider, share_threshold


def test_client_charges_the_slot_price() -> None:
    assert share_client(Group(3, 12, [10, 7], [0, 0])) == [3, 3]


def test_provider_leaves_each_task_what_it_could_have_had_elsewhere() -> None:
    assert share_provider(Group(0, 15, [30, 10], [20, 5])) == [10, 5]


def test_provider_leaves_nothing_to_who_has_nowhere_to_go() -> None:
    assert share_provider(Group(0, 40, [30, 10], [0, 0])) == [30, 10]


@pytest.mark.parametrize(
    ("bonus", "surcharges"), [(0, [0, 0, 0]), (20, [7, 7, 6]), (29, [10, 10, 9]), (30, [10] * 3)]
)
def test_fallbacks_that_contend_are_shared_by_running_sums(
    bonus: int, surcharges: list[int]
) -> None:
    assert share_provider(Group(0, bonus, [10, 10, 10], [10, 10, 10])) == surcharges


def test_provider_is_exact_beyond_64_bits() -> None:
    welfare = [2**49 - 1, 2**49]
    surcharges = share_provider(Group(0, 2**48 + 1, welfare, welfare))
    assert sum(surcharges) == 2**48 + 1
    assert all(0 <= x <= own for x, own in zip(surcharges, welfare, strict=True))


def test_threshold_cuts_all_gains_alike() -> None:
    # Gains of 500 for the provider and 300 for the task; 300 too much, so 150 each.
    assert share_threshold(Group(200, 500, [500], [0])) == [350]


def test_threshold_leaves_small_gains_no_less_than_nothing() -> None:
    # Gains 90, 10, 100 of 100: a third of the excess, 34, is more than the second has, so it
    # keeps nothing and the others are cut by 45.
    assert share_threshold(Group(0, 100, [90, 10], [0, 0])) == [45, 10]


def test_threshold_gives_back_what_a_whole_cut_takes_too_much() -> None:
    # Gains 10, 10, 10, 30 of 30 exceed it by 30; a cut of 8 takes 32: tasks 0 and 1 get 1 back.
    assert share_threshold(Group(0, 30, [10, 10, 10], [0, 0, 0])) == [7, 7, 8]


def test_threshold_without_excess_is_vcg() -> None:
    assert share_threshold(Group(3, 6, [10, 7], [0, 0])) == [3, 3]


def test_threshold_with_nothing_to_share() -> None:
    assert share_threshold(Group(5, 5, [5], [0])) == [5]
