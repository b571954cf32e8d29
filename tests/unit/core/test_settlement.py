"""What metered usage owes. Source: docs/spec/execution.md §2; design §5 (settlement on outcome)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iemas.core.settlement import (
    MeteredUsage,
    compute_amount_micros,
    compute_worst_case_micros,
)
from iemas.core.types import PPM, Prices

RATES = Prices(1_000_000, 500_000, 2_000_000)
prices = st.integers(1, 10**12)
rates = st.builds(Prices, prices, prices, prices)
ppm = st.integers(0, PPM)


def test_every_kind_of_token_has_its_rate() -> None:
    assert compute_amount_micros(RATES, MeteredUsage(10, 20, PPM, 5 * PPM)) == 10 + 10 + 10


def test_late_tokens_are_worth_less() -> None:
    assert compute_amount_micros(RATES, MeteredUsage(10, 0, PPM // 2, 4 * PPM)) == 5 + 8


def test_the_sum_is_rounded_down_once() -> None:
    """Three parts of 0.4 micro-credits make 1, not 0."""
    third = Prices(400_000, 400_000, 400_000)
    assert compute_amount_micros(third, MeteredUsage(1, 1, PPM, PPM)) == 1


@pytest.mark.parametrize(("tokens", "worst"), [((3, 0), 3), ((0, 3), 6), ((1, 1), 3)])
def test_the_worst_case_is_all_uncached_and_on_time(tokens: tuple[int, int], worst: int) -> None:
    assert compute_worst_case_micros(RATES, *tokens) == worst


def test_the_worst_case_takes_the_dearer_prompt_rate() -> None:
    assert compute_worst_case_micros(Prices(1_000_000, 3_000_000, 1), 2, 0) == 6


def test_the_worst_case_is_rounded_up() -> None:
    assert compute_worst_case_micros(Prices(1, 1, 1), 1, 0) == 1


@given(rates, st.integers(0, 10**6), st.integers(0, 10**6), ppm, st.lists(ppm, max_size=20))
def test_the_debt_only_grows_and_stays_within_the_worst_case(
    given_rates: Prices, uncached: int, cached: int, prompt_late: int, late: list[int]
) -> None:
    usages = [
        MeteredUsage(uncached, cached, prompt_late, sum(late[:n])) for n in range(len(late) + 1)
    ]
    amounts = [compute_amount_micros(given_rates, usage) for usage in usages]
    assert amounts == sorted(amounts)
    assert amounts[0] >= 0
    assert amounts[-1] <= compute_worst_case_micros(given_rates, uncached + cached, len(late))
