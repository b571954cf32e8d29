"""What `clear` gives, what it refuses, and how a clearing travels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from auctioneer.mechanism import CandidateWelfare, clear, decode_clearing, encode_clearing, verify
from auctioneer.mechanism.arrays import MAX_TOTAL_MICROS, IntArray
from auctioneer.mechanism.errors import (
    InvalidCandidatesError,
    InvalidSlotsError,
    InvalidWelfareError,
    MalformedClearingError,
    UnknownModeError,
    WelfareOverflowError,
)
from iemas.core.errors import InvalidInputError


def matrix(*rows: Any) -> IntArray:
    return np.array(rows, dtype=np.int64)


def slots(*counts: Any) -> IntArray:
    return np.array(counts, dtype=np.int64)


WELFARE = matrix([500, 300], [400, 350], [200, 100])


def test_unmatched_task_sets_the_price() -> None:
    clearing = clear(matrix([7], [5], [3]), slots(1), mode="client")
    assert clearing.assignment.tolist() == [0, -1, -1]
    assert clearing.slot_prices.tolist() == [5]
    assert clearing.surcharges.tolist() == [5, 0, 0]
    assert clearing.certificate.predecessor_tasks.tolist() == [1]


def test_price_is_zero_while_a_slot_is_free() -> None:
    clearing = clear(matrix([7], [5], [3]), slots(4))
    assert clearing.welfare_micros == 15
    assert clearing.slot_prices.tolist() == [0]
    assert clearing.certificate.predecessor_tasks.tolist() == [-1]


def test_provider_without_slots_is_priced_by_what_a_slot_would_bring() -> None:
    clearing = clear(matrix([7, 2]), slots(0, 1))
    assert clearing.assignment.tolist() == [1]
    assert clearing.slot_prices.tolist() == [5, 0]
    verify(matrix([7, 2]), slots(0, 1), clearing)


def test_price_travels_along_a_chain() -> None:
    # Task 2 waits for provider 2. A slot at 0 would let task 0 leave 1, and so task 1 leave 2.
    welfare = matrix([9, 9, 0], [0, 9, 9], [0, 0, 4], [9, 0, 0])
    clearing = clear(welfare, slots(1, 1, 1))
    assert clearing.assignment.tolist() == [1, 2, -1, 0]
    assert clearing.certificate.predecessor_tasks.tolist() == [0, 1, 2]
    assert clearing.slot_prices.tolist() == [4, 4, 4]
    verify(welfare, slots(1, 1, 1), clearing)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty_markets_clear(shape: tuple[int, int]) -> None:
    welfare, capacity = np.zeros(shape, np.int64), np.ones(shape[1], np.int64)
    clearing = clear(welfare, capacity)
    assert clearing.assignment.tolist() == [-1] * shape[0]
    assert clearing.welfare_micros == 0
    assert clearing.slot_prices.tolist() == [0] * shape[1]
    verify(welfare, capacity, clearing)


def test_pairs_of_no_welfare_stay_unmatched() -> None:
    welfare = matrix([0, -5], [-1, 0])
    clearing = clear(welfare, slots(1, 1))
    assert clearing.assignment.tolist() == [-1, -1]
    assert clearing.slot_prices.tolist() == [0, 0]


def test_the_least_int64_is_just_not_feasible() -> None:
    welfare = matrix([-(2**63), 5])
    clearing = clear(welfare, slots(1, 1))
    assert clearing.assignment.tolist() == [1]
    verify(welfare, slots(1, 1), clearing)


def test_exact_at_the_bound() -> None:
    half = MAX_TOTAL_MICROS // 2
    welfare = matrix([half, half - 1], [half - 1, half - 3])
    clearing = clear(welfare, slots(1, 1))
    assert clearing.welfare_micros == 2 * half - 2
    verify(welfare, slots(1, 1), clearing)


def test_same_input_same_output() -> None:
    rng = np.random.default_rng(5)
    welfare = rng.integers(-2, 3, (40, 20))
    capacity = rng.integers(0, 3, 20)
    assert encode_clearing(clear(welfare, capacity)) == encode_clearing(
        clear(welfare.copy(order="F"), capacity)
    )


def test_inputs_stay_as_they_are_and_results_are_read_only() -> None:
    welfare = WELFARE.copy()
    clearing = clear(welfare, slots(1, 1))
    assert (welfare == WELFARE).all()
    for values in (
        clearing.assignment,
        clearing.slot_prices,
        clearing.vcg_bonuses,
        clearing.surcharges,
    ):
        assert values.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
    assert type(clearing.welfare_micros) is int


# --- bad input -----------------------------------------------------------------------------------

HONEST = clear(WELFARE, slots(1, 1))


def verify_honest(welfare: Any, capacity: Any) -> None:
    verify(welfare, capacity, HONEST)


def decode_honest(welfare: Any, capacity: Any) -> None:
    decode_clearing(encode_clearing(HONEST), welfare, capacity)


# Whoever takes a market refuses the same.
DOORS = pytest.mark.parametrize("door", [clear, verify_honest, decode_honest])


@DOORS
@pytest.mark.parametrize(
    "welfare",
    [
        WELFARE.astype(np.float64),
        np.ma.MaskedArray(WELFARE),
        WELFARE.astype(np.float32),
        np.array([[1.0, np.nan]]),
        np.array([[1.0, np.inf]]),
        WELFARE > 0,
        WELFARE.astype(np.int32),
        WELFARE.astype(np.uint64),
        WELFARE.astype(">i8"),
        WELFARE.astype("m8[us]"),
        WELFARE.astype(complex),
        WELFARE.astype(object),
        WELFARE.astype(str),
        WELFARE[0],
        WELFARE[None],
        np.array(500),
        WELFARE.tolist(),
        500,
        None,
    ],
)
def test_welfare_of_another_type_is_refused(door: Callable[..., object], welfare: Any) -> None:
    with pytest.raises(InvalidWelfareError, match="welfare must be an int64 matrix") as refused:
        door(welfare, slots(1, 1))
    assert refused.value.argument == "welfare"


@DOORS
@pytest.mark.parametrize(
    "capacity",
    [
        slots(1),
        slots(1, 1, 1),
        slots(1, 1)[None],
        slots(),
        np.array(1),
        np.array([1.0, 1.0]),
        np.ma.MaskedArray(slots(1, 1)),
        np.array([1.0, np.nan]),
        np.array([True, True]),
        np.array([1, 1], dtype=np.int32),
        np.array([1, 1], dtype=np.uint64),
        np.array([1, 1], dtype=">i8"),
        np.array([1, 1], dtype=object),
        [1, 1],
        (1, 1),
        1,
        None,
    ],
)
def test_slots_of_another_type_are_refused(door: Callable[..., object], capacity: Any) -> None:
    with pytest.raises(InvalidSlotsError, match="slots must be an int64 array") as refused:
        door(WELFARE, capacity)
    assert refused.value.argument == "slots"


@DOORS
@pytest.mark.parametrize("capacity", [slots(1, -1), slots(-(2**63), 1)])
def test_negative_slots_are_refused(door: Callable[..., object], capacity: IntArray) -> None:
    with pytest.raises(InvalidSlotsError, match="slots must not be negative") as refused:
        door(WELFARE, capacity)
    assert refused.value.argument == "slots"


@DOORS
@pytest.mark.parametrize(
    "welfare",
    [
        matrix([2**63 - 1, 0]),
        matrix([MAX_TOTAL_MICROS + 1, -(2**63)]),
        matrix([0, MAX_TOTAL_MICROS], [1, 0]),
        matrix(*[[2**62, 2**62]] * 4),  # wraps to 0 in int64
    ],
)
def test_welfare_too_large_to_be_exact_is_refused(
    door: Callable[..., object], welfare: Any
) -> None:
    with pytest.raises(WelfareOverflowError, match="micro-credits in welfare") as refused:
        door(welfare, slots(1, 1))
    assert refused.value.argument == "welfare"


def test_the_market_is_checked_before_the_clearing() -> None:
    # The caller's mistake must not look like evidence against the signer.
    wrong = dataclasses.replace(HONEST, assignment=None)
    with pytest.raises(InvalidWelfareError):
        verify(WELFARE.astype(float), slots(1, 1), wrong)


@pytest.mark.parametrize("mode", ["", "Client", "client ", "vcg", b"client", ["client"], None, 3])
def test_unknown_modes_are_refused(mode: object) -> None:
    changed = {"mode": mode}
    result = dataclasses.replace(encode_clearing(HONEST), **changed)
    for attempt in (
        lambda: clear(WELFARE, slots(1, 1), mode=mode),
        lambda: verify(WELFARE, slots(1, 1), dataclasses.replace(HONEST, **changed)),
        lambda: decode_clearing(result, WELFARE, slots(1, 1)),
    ):
        with pytest.raises(UnknownModeError, match="mode must be one of") as refused:
            attempt()
        assert refused.value.argument == "mode"
        assert isinstance(refused.value, InvalidInputError)


def test_a_clearing_travels_unchanged() -> None:
    clearing = clear(WELFARE, slots(1, 1))
    decoded = decode_clearing(encode_clearing(clearing), WELFARE, slots(1, 1))
    verify(WELFARE, slots(1, 1), decoded)
    assert encode_clearing(decoded) == encode_clearing(clearing)
    assert decoded.surcharges.tolist() == clearing.surcharges.tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("assignment", (0, 1)),
        ("assignment", (0, 1, 2)),
        ("assignment", (0, 1, -2)),
        ("assignment", (0, 1, 2**63)),
        ("assignment", (0, 1.0, -1)),
        ("slot_prices_micros", (200,)),
        ("slot_prices_micros", (200, 2**64)),
        ("slot_prices_micros", (200, True)),
        ("slot_prices_micros", (200, -1)),
        ("vcg_bonuses_micros", (500,)),
        ("vcg_bonuses_micros", (500, -1)),
        ("vcg_bonuses_micros", (500, MAX_TOTAL_MICROS + 1)),
        ("surcharges_micros", (500, 350)),
        ("surcharges_micros", (500, 350, -1)),
        ("predecessor_tasks", (2, 3)),
        ("predecessor_tasks", (2, 2, 2)),
    ],
)
def test_malformed_results_are_refused(field: str, value: object) -> None:
    result = dataclasses.replace(encode_clearing(clear(WELFARE, slots(1, 1))), **{field: value})
    with pytest.raises(MalformedClearingError) as refused:
        decode_clearing(result, WELFARE, slots(1, 1))
    assert refused.value.field == field


def test_a_clearing_without_a_certificate_is_refused() -> None:
    bare: Any = dataclasses.replace(clear(WELFARE, slots(1, 1)), certificate=None)
    with pytest.raises(MalformedClearingError) as refused:
        verify(WELFARE, slots(1, 1), bare)
    assert refused.value.field == "certificate"


# --- candidate lists -----------------------------------------------------------------------------

LISTS = CandidateWelfare(
    matrix([0, 1], [1, 0], [0, -1]), matrix([500, 300], [350, 400], [200, 9]), 2
)


def test_candidate_lists_clear_like_their_matrix() -> None:
    welfare = matrix([500, 300], [400, 350], [200, 0])
    assert encode_clearing(clear(LISTS, slots(1, 1))) == encode_clearing(
        clear(welfare, slots(1, 1))
    )
    verify(welfare, slots(1, 1), clear(LISTS, slots(1, 1)))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"providers": LISTS.providers.astype(np.int32)}, "providers"),
        ({"providers": LISTS.providers[0]}, "providers"),
        ({"providers": LISTS.providers[:, :1]}, "welfare_micros"),
        ({"providers": matrix([0, 2], [1, 0], [0, -1])}, "providers"),
        ({"providers": matrix([0, -2], [1, 0], [0, -1])}, "providers"),
        ({"providers": matrix([0, 0], [1, 0], [0, -1])}, "providers"),
        ({"providers": LISTS.providers.astype(float)}, "providers"),
        ({"providers": LISTS.providers > 0}, "providers"),
        ({"providers": LISTS.providers.tolist()}, "providers"),
        ({"providers": None}, "providers"),
        ({"welfare_micros": LISTS.welfare_micros.astype(float)}, "welfare_micros"),
        ({"welfare_micros": np.full((3, 2), np.nan)}, "welfare_micros"),
        ({"welfare_micros": LISTS.welfare_micros > 0}, "welfare_micros"),
        ({"welfare_micros": LISTS.welfare_micros[:2]}, "welfare_micros"),
        ({"welfare_micros": None}, "welfare_micros"),
        ({"n_providers": -1}, "n_providers"),
        ({"n_providers": 2.0}, "n_providers"),
        ({"n_providers": True}, "n_providers"),
        ({"n_providers": np.int64(2)}, "n_providers"),
        ({"n_providers": None}, "n_providers"),
    ],
)
def test_malformed_lists_are_refused(changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidCandidatesError, match=argument.rstrip("s")) as refused:
        clear(dataclasses.replace(LISTS, **changes), slots(1, 1))
    assert refused.value.argument == argument


def test_lists_too_large_to_be_exact_are_refused() -> None:
    values = matrix([MAX_TOTAL_MICROS // 2, 0], [1, 0], [0, 0])
    with pytest.raises(WelfareOverflowError):
        clear(dataclasses.replace(LISTS, welfare_micros=values), slots(1, 1))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty_lists_clear(shape: tuple[int, int]) -> None:
    lists = CandidateWelfare(np.zeros(shape, np.int64), np.zeros(shape, np.int64), 1)
    clearing = clear(lists, slots(1))
    assert clearing.assignment.tolist() == [-1] * shape[0]
    verify(lists, slots(1), clearing)
