"""Every way to get a clearing wrong has its error; every honest clearing passes."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from auctioneer.mechanism import Certificate, clear, verify
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import (
    CapacityExceededError,
    ComplementarySlacknessError,
    CyclicPredecessorsError,
    InfeasiblePairError,
    InvalidClearingError,
    InvalidSlotsError,
    InvalidWelfareError,
    MalformedClearingError,
    PriceNotLeastError,
    UnknownModeError,
    WrongBonusError,
    WrongSurchargeError,
    WrongWelfareError,
)
from iemas.core.errors import InvalidTranscriptError

WELFARE = np.array([[500, 300], [400, 350], [200, 100]], dtype=np.int64)
SLOTS = np.array([1, 1], dtype=np.int64)


def ints(*values: Any) -> IntArray:
    return np.array(values, dtype=np.int64)


def reject(
    error: Any,
    *,
    welfare: Any = WELFARE,
    slots: Any = SLOTS,
    predecessors: Any = None,
    **changes: Any,
) -> Any:
    clearing = dataclasses.replace(clear(welfare, slots), **changes)
    if predecessors is not None:
        clearing = dataclasses.replace(clearing, certificate=Certificate(ints(*predecessors)))
    with pytest.raises(error) as refused:
        verify(welfare, slots, clearing)
    assert type(refused.value) is error
    assert isinstance(refused.value, InvalidTranscriptError)
    return refused.value


def test_the_honest_clearing_passes() -> None:
    verify(WELFARE, SLOTS, clear(WELFARE, SLOTS))


def test_swapped_tasks() -> None:
    reject(ComplementarySlacknessError, assignment=ints(1, 0, -1), welfare_micros=700)


def test_a_dropped_task() -> None:
    reject(ComplementarySlacknessError, assignment=ints(0, -1, -1), welfare_micros=500)


def test_a_worse_task_in_the_place_of_a_better_one() -> None:
    reject(ComplementarySlacknessError, assignment=ints(-1, 1, 0), welfare_micros=550)


def test_an_infeasible_pair() -> None:
    welfare = np.array([[500, 300], [400, 350], [200, -1]], dtype=np.int64)
    assert reject(InfeasiblePairError, welfare=welfare, assignment=ints(0, -1, 1)).task == 2


def test_more_tasks_than_slots() -> None:
    error = reject(CapacityExceededError, assignment=ints(0, 1, 0), welfare_micros=1050)
    assert error.provider == 0


@pytest.mark.parametrize("total", [849, 851, 0, -1])
def test_a_wrong_total(total: int) -> None:
    assert reject(WrongWelfareError, welfare_micros=total).expected == 850


@pytest.mark.parametrize("provider", [0, 1])
def test_a_price_too_high_by_one(provider: int) -> None:
    prices = clear(WELFARE, SLOTS).slot_prices.copy()
    prices[provider] += 1
    reject(PriceNotLeastError, slot_prices=prices)


@pytest.mark.parametrize("provider", [0, 1])
def test_a_price_too_low_by_one(provider: int) -> None:
    prices = clear(WELFARE, SLOTS).slot_prices.copy()
    prices[provider] -= 1
    with pytest.raises(InvalidClearingError):
        verify(WELFARE, SLOTS, dataclasses.replace(clear(WELFARE, SLOTS), slot_prices=prices))


def test_another_optimal_dual() -> None:
    # Any price up to 100 proves this matching optimal, but only 0 is least.
    welfare = ints(100)[None]
    reject(PriceNotLeastError, welfare=welfare, slots=ints(1), slot_prices=ints(100))
    own = {"slot_prices": ints(1), "predecessors": [0]}
    reject(CyclicPredecessorsError, welfare=welfare, slots=ints(1), **own)


def test_prices_that_only_force_each_other() -> None:
    welfare = ints(10, 10, 10, 10).reshape(2, 2)
    honest = clear(welfare, SLOTS)
    assert honest.slot_prices.tolist() == [0, 0]
    by_provider = np.argsort(honest.assignment).tolist()
    reject(
        CyclicPredecessorsError,
        welfare=welfare,
        slots=SLOTS,
        slot_prices=ints(5, 5),
        surcharges=ints(5, 5),
        predecessors=by_provider[::-1],
    )


def test_a_long_circle_of_prices() -> None:
    n = 9
    welfare = np.full((n, n), 10, dtype=np.int64)
    slots = np.ones(n, dtype=np.int64)
    task_at = np.argsort(clear(welfare, slots).assignment)
    reject(
        CyclicPredecessorsError,
        welfare=welfare,
        slots=slots,
        slot_prices=np.full(n, 3, dtype=np.int64),
        surcharges=np.full(n, 3, dtype=np.int64),
        predecessors=np.roll(task_at, 1).tolist(),
    )


def test_a_price_where_a_slot_is_left() -> None:
    welfare = ints(5)[None]
    reject(ComplementarySlacknessError, welfare=welfare, slots=ints(2), slot_prices=ints(1))


def test_a_predecessor_that_does_not_force() -> None:
    reject(PriceNotLeastError, predecessors=[1, 1])


def test_a_missing_predecessor() -> None:
    reject(PriceNotLeastError, predecessors=[-1, -1])


def test_a_predecessor_of_a_price_of_zero() -> None:
    reject(PriceNotLeastError, welfare=ints(5)[None], slots=ints(2), predecessors=[0])


def test_a_wrong_surcharge() -> None:
    surcharges = clear(WELFARE, SLOTS).surcharges.copy()
    surcharges[1] -= 1
    assert reject(WrongSurchargeError, surcharges=surcharges).task == 1


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("provider", [0, 1])
def test_a_bonus_off_by_one(provider: int, change: int) -> None:
    bonuses = clear(WELFARE, SLOTS).vcg_bonuses.copy()
    bonuses[provider] += change
    error = reject(WrongBonusError, vcg_bonuses=bonuses)
    assert (error.provider, error.expected) == (provider, [500, 350][provider])


def test_surcharges_of_another_mode() -> None:
    reject(WrongSurchargeError, mode="client")


@pytest.mark.parametrize(
    "changes",
    [
        {"vcg_bonuses": ints(500)},
        {"vcg_bonuses": ints(500, -350)},
        {"vcg_bonuses": np.array([500.0, 350.0])},
        {"assignment": np.array([0.0, 1.0, -1.0])},
        {"assignment": ints(0, 1)},
        {"assignment": ints(0, 2, -1)},
        {"assignment": ints(0, 1, -2)},
        {"slot_prices": np.array([200, 150], dtype=np.int32)},
        {"slot_prices": ints(200, -150)},
        {"slot_prices": ints(200, 2**63 - 1)},
        {"slot_prices": ints(200)},
        {"surcharges": ints(200, 150)},
        {"surcharges": [200, 150, 0]},
        {"welfare_micros": 850.0},
        {"welfare_micros": np.int64(850)},
        {"predecessors": [2, 3]},
        {"predecessors": [2, -2]},
        {"predecessors": [2]},
    ],
)
def test_malformed_arrays(changes: dict[str, Any]) -> None:
    reject(MalformedClearingError, **changes)


def test_bad_markets_and_modes_are_the_callers_fault() -> None:
    clearing = clear(WELFARE, SLOTS)
    with pytest.raises(InvalidWelfareError):
        verify(WELFARE.astype(float), SLOTS, clearing)
    with pytest.raises(InvalidSlotsError):
        verify(WELFARE, -SLOTS, clearing)
    with pytest.raises(UnknownModeError):
        verify(WELFARE, SLOTS, dataclasses.replace(clearing, mode="free"))
