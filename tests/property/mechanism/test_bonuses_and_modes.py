"""Bonuses against brute force and re-solves; modes: what every split must keep."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from auctioneer.mechanism import CandidateWelfare, Clearing, clear, verify
from auctioneer.mechanism import bonuses as bonuses_module
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_greatest_prices
from auctioneer.mechanism.clearing import compute_own_gains, match_and_price
from auctioneer.mechanism.errors import (
    InvalidClearingError,
    WrongBonusError,
    WrongSurchargeError,
)
from auctioneer.mechanism.gains import Gains, read_market
from auctioneer.mechanism.modes import compute_surcharges
from auctioneer.mechanism.reference import Reference
from auctioneer.mechanism.reinsertion import ReinsertionBatch
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import (
    draw_large_market,
    draw_market_stacks,
    enumerate_optima,
)


def test_welfare_prices_and_bonuses_equal_their_definitions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    markets = chained = 0
    for stack, slot_stack in draw_market_stacks(12_000, seed=11):
        optima = enumerate_optima(stack, slot_stack)
        for n, (welfare, slots) in enumerate(zip(stack, slot_stack, strict=True)):
            clearing = clear(welfare, slots)
            whole = int(optima.whole[n])
            assert clearing.welfare_micros == whole
            assert clearing.vcg_bonuses.tolist() == (whole - optima.without_provider[n]).tolist()
            matched = np.flatnonzero(clearing.assignment >= 0)
            at = clearing.assignment[matched]
            clarke = optima.without_task[n, matched] - (whole - welfare[matched, at])
            assert clearing.slot_prices[at].tolist() == clarke.tolist()
            check_every_mode(clearing, np.maximum(welfare, 0))
            markets += 1
            chained += bool((clearing.vcg_bonuses > clearing.slot_prices).any())
    with capsys.disabled():
        print(f"\n{markets} random markets equal brute force, {chained} with a provider's rent")
    assert markets >= 10_000
    assert chained > 1000


def check_every_mode(clearing: Clearing, gains: IntArray) -> None:
    """0 ≤ x ≤ w, n·π ≤ Σ x ≤ bonus ≤ S, with equality at the ends by mode; all exact."""
    own = np.zeros(len(clearing.assignment), dtype=np.int64)
    matched = np.flatnonzero(clearing.assignment >= 0)
    own[matched] = gains[matched, clearing.assignment[matched]]
    n_providers = len(clearing.slot_prices)
    at = clearing.assignment[matched]
    counts = np.bincount(at, minlength=n_providers)
    least = counts * clearing.slot_prices
    surplus = sum_by(at, own[matched], n_providers)
    assert (least <= clearing.vcg_bonuses).all()
    assert (clearing.vcg_bonuses <= surplus).all()
    assert clearing.vcg_deficit_micros == (clearing.vcg_bonuses - least).sum() >= 0
    gained = {}
    for mode in CLEARING_MODES:
        surcharges = compute_surcharges(
            mode, clearing.assignment, own, clearing.slot_prices, clearing.vcg_bonuses
        )
        assert (surcharges >= 0).all()
        assert (surcharges <= own).all()
        gained[mode] = sum_by(at, surcharges[matched], n_providers)
        if mode == clearing.mode:
            assert surcharges.tolist() == clearing.surcharges.tolist()
    assert gained["client"].tolist() == least.tolist()
    assert gained["provider"].tolist() == clearing.vcg_bonuses.tolist()
    assert (least <= gained["threshold"]).all()
    assert (gained["threshold"] <= clearing.vcg_bonuses).all()


def sum_by(at: IntArray, values: IntArray, count: int) -> IntArray:
    sums = np.zeros(count, dtype=np.int64)
    np.add.at(sums, at, values)
    return sums


def solve(welfare: IntArray, slots: IntArray) -> int:
    gains = np.repeat(np.maximum(welfare, 0), np.minimum(slots, len(welfare)), axis=1)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    return int(gains[rows, columns].sum())


def solve_without_each_provider(welfare: IntArray, slots: IntArray) -> list[int]:
    without = []
    for i in range(len(slots)):
        left = slots.copy()
        left[i] = 0
        without.append(solve(welfare, left))
    return without


def test_bonuses_equal_re_solves_on_large_markets() -> None:
    rng = np.random.default_rng(12)
    for _ in range(150):
        welfare, slots = draw_large_market(rng)
        clearing = clear(welfare, slots)
        whole = solve(welfare, slots)
        expected = [whole - left for left in solve_without_each_provider(welfare, slots)]
        assert clearing.welfare_micros == whole
        assert clearing.vcg_bonuses.tolist() == expected
        check_every_mode(clearing, np.maximum(welfare, 0))
        verify(welfare, slots, clearing)


def compute_by_batch(gains: Gains, slots: IntArray) -> tuple[list[int], list[int]]:
    """All bonuses by lockstep and by the reference, nothing settled directly."""
    priced = match_and_price(gains, slots)
    greatest, exits = compute_greatest_prices(priced.residual)
    providers = np.arange(len(slots))
    batch = ReinsertionBatch(gains, priced.residual, greatest, exits, providers)
    market = Reference.make(gains, priced.assignment, priced.residual, greatest, exits)
    return batch.run().tolist(), [market.compute_bonus(i) for i in range(len(slots))]


def test_lockstep_equals_the_reference_and_the_definition() -> None:
    for stack, slot_stack in draw_market_stacks(2000, seed=13):
        optima = enumerate_optima(stack, slot_stack)
        for n, (welfare, slots) in enumerate(zip(stack, slot_stack, strict=True)):
            batch, reference = compute_by_batch(read_market(welfare, slots), slots)
            assert batch == reference
            assert batch == (optima.whole[n] - optima.without_provider[n]).tolist()


def test_lockstep_equals_the_reference_on_large_markets() -> None:
    rng = np.random.default_rng(14)
    for _ in range(60):
        welfare, slots = draw_large_market(rng)
        batch, reference = compute_by_batch(read_market(welfare, slots), slots)
        assert batch == reference


def test_small_batches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(15)
    welfare = rng.integers(0, 50, (120, 40))
    slots = rng.integers(0, 5, 40)
    bonuses = clear(welfare, slots).vcg_bonuses.tolist()
    monkeypatch.setattr(bonuses_module, "_BATCH_ENTRIES", 1)
    assert clear(welfare, slots).vcg_bonuses.tolist() == bonuses


def test_how_ties_fell_changes_no_price_and_no_bonus() -> None:
    rng = np.random.default_rng(16)
    for _ in range(300):
        n_tasks, n_providers = int(rng.integers(1, 12)), int(rng.integers(1, 7))
        welfare = rng.integers(-1, 4, (n_tasks, n_providers))
        slots = rng.integers(0, 4, n_providers)
        tasks, providers = rng.permutation(n_tasks), rng.permutation(n_providers)
        one = clear(welfare, slots)
        other = clear(welfare[np.ix_(tasks, providers)], slots[providers])
        assert other.welfare_micros == one.welfare_micros
        assert other.slot_prices.tolist() == one.slot_prices[providers].tolist()
        assert other.vcg_bonuses.tolist() == one.vcg_bonuses[providers].tolist()


# --- candidate lists -----------------------------------------------------------------------------


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


# --- corruptions ---------------------------------------------------------------------------------


def test_every_wrong_bonus_is_refused_by_name() -> None:
    rng = np.random.default_rng(18)
    refused = 0
    for _ in range(200):
        welfare, slots = draw_large_market(rng)
        clearing = clear(welfare, slots)
        bonuses = clearing.vcg_bonuses.copy()
        i = int(rng.integers(len(slots)))
        bonuses[i] += int(rng.choice([-1, 1, 1000]))
        if bonuses[i] < 0:
            continue
        with pytest.raises(WrongBonusError) as error:
            verify(welfare, slots, dataclasses.replace(clearing, vcg_bonuses=bonuses))
        assert error.value.provider == i
        assert error.value.expected == clearing.vcg_bonuses[i]
        refused += 1
    assert refused > 100


@pytest.mark.parametrize("mode", CLEARING_MODES)
def test_every_wrong_surcharge_is_refused_by_name(mode: str) -> None:
    rng = np.random.default_rng(19)
    for _ in range(100):
        welfare, slots = draw_large_market(rng)
        clearing = clear(welfare, slots, mode=mode)
        matched = np.flatnonzero(clearing.assignment >= 0)
        if len(matched) < 2:
            continue
        # Shares moved from one task to another: the sum stays.
        surcharges = clearing.surcharges.copy()
        surcharges[matched[0]] += 1
        surcharges[matched[-1]] -= 1
        with pytest.raises(WrongSurchargeError):
            verify(welfare, slots, dataclasses.replace(clearing, surcharges=surcharges))


def test_swapped_dropped_and_repriced_clearings_are_refused() -> None:
    rng = np.random.default_rng(20)
    refused = 0
    for _ in range(200):
        welfare, slots = draw_large_market(rng)
        clearing = clear(welfare, slots)
        for lie in list_lies(welfare, clearing, rng):
            with pytest.raises(InvalidClearingError):
                verify(welfare, slots, lie)
            refused += 1
    assert refused > 500


def list_lies(welfare: IntArray, clearing: Clearing, rng: np.random.Generator) -> list[Clearing]:
    """A task dropped, two swapped at a loss, a price off by one, another total."""
    lies = [dataclasses.replace(clearing, welfare_micros=clearing.welfare_micros + 1)]
    for change in (-1, 1):
        prices = clearing.slot_prices.copy()
        prices[rng.integers(len(prices))] += change
        lies.append(dataclasses.replace(clearing, slot_prices=prices))
    matched = np.flatnonzero(clearing.assignment >= 0)
    if len(matched):
        dropped = clearing.assignment.copy()
        dropped[matched[0]] = -1
        lies.append(with_assignment(welfare, clearing, dropped))
    if len(matched) > 1:
        one, other = rng.permutation(matched)[:2]
        swapped = clearing.assignment.copy()
        swapped[[one, other]] = swapped[[other, one]]
        lie = with_assignment(welfare, clearing, swapped)
        if lie.welfare_micros < clearing.welfare_micros:
            lies.append(lie)
    return lies


def with_assignment(welfare: IntArray, clearing: Clearing, assignment: IntArray) -> Clearing:
    """Claim another matching, with the total that fits it."""
    gains = read_market(welfare, np.ones(welfare.shape[1], dtype=np.int64))
    total = int(compute_own_gains(gains, assignment).sum())
    return dataclasses.replace(clearing, assignment=assignment, welfare_micros=total)


# --- truthfulness of providers -------------------------------------------------------------------


def test_a_provider_gains_nothing_by_any_misreport_of_cost_or_slots() -> None:
    """`provider` mode: it gains its bonus at the declared welfare, plus what it misstated.

    A provider that declares cost C' instead of C changes its column to w' = w + C − C', is paid
    C' + x and so gains Σ x + Σ (w − w') over its tasks. Declared slots may only be fewer: a task
    that it cannot serve is a breach, not a price.
    """
    rng = np.random.default_rng(21)
    searched = 0
    for _ in range(40):
        n_tasks, n_providers = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        welfare = rng.integers(-1, 5, (n_tasks, n_providers))
        slots = rng.integers(0, 3, n_providers)
        honest = compute_provider_gain(welfare[:, 0], clear(welfare, slots), welfare[:, 0])
        for column in np.ndindex(*(7,) * n_tasks):
            for declared in range(int(slots[0]) + 1):
                lie, fewer = welfare.copy(), slots.copy()
                lie[:, 0] = np.array(column) - 1
                fewer[0] = declared
                gain = compute_provider_gain(welfare[:, 0], clear(lie, fewer), lie[:, 0])
                assert gain <= honest
                searched += 1
    assert searched > 3000


def compute_provider_gain(truth: IntArray, clearing: Clearing, declared: IntArray) -> int:
    served = clearing.assignment == 0
    return int((clearing.surcharges + truth - declared)[served].sum())
