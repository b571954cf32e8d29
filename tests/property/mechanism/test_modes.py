"""The rules that split a surplus, on groups drawn at large: exact, and cut no more than needed."""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from auctioneer.mechanism.modes import Group, share_client, share_provider, share_threshold


def draw_groups(count: int, seed: int) -> Iterator[Group]:
    """Groups with n·π ≤ bonus ≤ S, π ≤ w, v ≤ w − π and S − bonus ≤ V."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        top = int(rng.choice([1, 3, 30, 10**6, 2**45]))
        welfare = rng.integers(1, top + 1, int(rng.integers(1, 9))).tolist()
        price = int(rng.integers(0, min(welfare) + 1))
        fallbacks = [int(rng.integers(0, own - price + 1)) for own in welfare]
        # The ends of its range are where nothing is cut, and where most is.
        least, most = sum(welfare) - sum(fallbacks), sum(welfare)
        bonus = int(rng.choice([least, most, rng.integers(least, most + 1)]))
        yield Group(price, bonus, welfare, fallbacks)


def find_least_cut(gains: list[int], available: int) -> int:
    """Halve the range in which the least whole cut lies that leaves no more than there is."""
    low, high = 0, max(gains)
    while low < high:
        middle = (low + high) // 2
        if sum(max(0, gain - middle) for gain in gains) <= available:
            high = middle
        else:
            low = middle + 1
    return low


def test_client_takes_the_slot_price() -> None:
    for group in draw_groups(1000, seed=25):
        assert share_client(group) == [group.slot_price] * len(group.welfare)


def test_provider_leaves_each_task_its_part_of_the_fallbacks() -> None:
    for group in draw_groups(3000, seed=26):
        surcharges = share_provider(group)
        kept = [own - share for own, share in zip(group.welfare, surcharges, strict=True)]
        total, available = sum(group.fallbacks), sum(group.welfare) - group.bonus
        assert sum(surcharges) == group.bonus
        sums = accumulate(group.fallbacks)
        assert list(accumulate(kept)) == [available * part // max(total, 1) for part in sums]
        for gain, fallback in zip(kept, group.fallbacks, strict=True):
            assert 0 <= gain <= fallback
            assert abs(gain * total - available * fallback) < max(total, 1)
        assert all(share >= group.slot_price for share in surcharges)


def test_threshold_cuts_every_vcg_gain_by_the_least_common_cut() -> None:
    """Nobody is cut by more than c, so by no lie does anybody gain more than c."""
    cut_short = given_back = 0
    for group in draw_groups(3000, seed=27):
        welfare, price, bonus = group.welfare, group.slot_price, group.bonus
        gains = [own - price for own in welfare]
        surcharges = share_threshold(group)
        kept = [own - share for own, share in zip(welfare, surcharges, strict=True)]
        cut = find_least_cut([*gains, bonus], sum(welfare))
        # The provider bears its cut in full; what the last unit takes too much goes to tasks.
        assert sum(surcharges) == max(0, bonus - cut)
        extra = [own - max(0, gain - cut) for own, gain in zip(kept, gains, strict=True)]
        assert set(extra) <= {0, 1}
        assert all(gain >= cut > 0 for gain, one in zip(gains, extra, strict=True) if one)
        assert sum(extra) <= sum(gain >= cut for gain in [*gains, bonus])
        full = [one for gain, one in zip(gains, extra, strict=True) if gain >= cut]
        assert full == sorted(full, reverse=True)
        assert all(price <= share <= price + cut for share in surcharges)
        cut_short += cut > 0
        given_back += sum(extra) > 0
    assert cut_short > 1000
    assert given_back > 500
