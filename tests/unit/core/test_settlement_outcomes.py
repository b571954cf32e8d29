"""From deliveries to the final amount, outcome by outcome.

Source: docs/spec/auction.md §8 (T1, T2); docs/spec/execution.md R5, R6, R9.
"""

from __future__ import annotations

import pytest

from iemas.core.settlement import (
    Delivery,
    MeteredUsage,
    compute_amount_micros,
    compute_worst_case_micros,
)
from iemas.core.types import PPM, Lateness, Prices

RATES = Prices(1_000_000, 200_000, 4_000_000)
"""A micro-credit a token, a fifth if cached, four for output."""

PROMPT, SHOWN = 100, 50
"""A prompt worth 50 + 10 micro-credits, as half of it was shown as cached."""

LATENESS = Lateness(deadline_ms=1000, decay_ms=1000)


def deliver(*arrivals: tuple[int, int]) -> Delivery:
    """Deliver (tokens, at ms) in turn."""
    delivery = Delivery()
    for tokens, at_ms in arrivals:
        delivery = delivery.add(tokens, LATENESS.compute_ppm(at_ms))
    return delivery


def settle(delivery: Delivery, *, reported: int = SHOWN) -> int:
    usage = delivery.bill(PROMPT, shown_cached_tokens=SHOWN, reported_cached_tokens=reported)
    return compute_amount_micros(RATES, usage)


def test_on_time_every_token_has_its_rate() -> None:
    assert settle(deliver((1, 300), (9, 1000))) == 60 + 40


def test_what_is_late_is_worth_less_token_by_token() -> None:
    assert settle(deliver((1, 300), (4, 1250), (5, 1900))) == 60 + 4 + 4 * 3 + 2


def test_a_late_first_token_makes_the_prompt_late() -> None:
    assert settle(deliver((1, 1500), (9, 1500))) == 30 + 20


def test_the_prompt_keeps_its_time_when_the_rest_is_late() -> None:
    assert settle(deliver((1, 1000), (9, 5000))) == 60 + 4


def test_nothing_is_owed_for_what_comes_when_it_is_worthless() -> None:
    assert settle(deliver((10, 2000))) == 0


def test_nothing_served_owes_nothing() -> None:
    """Not even the prompt, whoever gave up; nor does text without a token."""
    assert settle(Delivery()) == 0
    assert settle(Delivery().add(0, PPM)) == 0
    assert settle(Delivery(), reported=PROMPT) == 0


def test_text_without_tokens_does_not_make_the_prompt_arrive() -> None:
    assert Delivery().add(0, PPM).add(1, PPM // 2).prompt_late_ppm == PPM // 2


@pytest.mark.parametrize("arrived", [1, 3, 10])
def test_whoever_ends_a_task_early_what_arrived_is_owed(arrived: int) -> None:
    """Cancelled by the requester or cut off by the provider: the formula has no case for it."""
    assert settle(deliver((arrived, 500))) == 60 + 4 * arrived


def test_how_output_is_cut_into_chunks_does_not_matter() -> None:
    whole = deliver((2, 300), (6, 1400))
    assert deliver((1, 300), (1, 300), (3, 1400), (3, 1400)) == whole


@pytest.mark.parametrize(
    ("reported", "cached"), [(0, 50), (20, 50), (50, 50), (80, 80), (100, 100), (900, 100)]
)
def test_at_least_what_was_shown_is_billed_as_cached(reported: int, cached: int) -> None:
    usage = deliver((1, 0)).bill(PROMPT, shown_cached_tokens=SHOWN, reported_cached_tokens=reported)
    assert usage == MeteredUsage(100 - cached, cached, PPM, PPM)
    assert settle(deliver((1, 0)), reported=reported) == 100 - cached + cached // 5 + 4


def test_more_or_fewer_tokens_than_predicted_are_owed_as_they_came() -> None:
    amounts = [settle(deliver((n, 500))) for n in range(1, 200)]
    assert amounts == [60 + 4 * n for n in range(1, 200)]


def test_without_a_deadline_time_does_not_matter() -> None:
    delivery = Delivery().add(10, Lateness().compute_ppm(10**9))
    assert settle(delivery) == 100


def test_a_hard_deadline_is_a_step() -> None:
    hard = Lateness(1000, 0)
    delivery = Delivery().add(5, hard.compute_ppm(1000)).add(5, hard.compute_ppm(1001))
    assert settle(delivery) == 60 + 20


def test_one_rounding_at_the_very_end() -> None:
    cheap = Prices(300_000, 300_000, 300_000)
    amounts = [
        compute_amount_micros(cheap, Delivery().add(n, PPM).bill(1, shown_cached_tokens=0))
        for n in range(1, 8)
    ]
    assert amounts == [(3 * (n + 1)) // 10 for n in range(1, 8)]


def test_whatever_is_found_cached_the_worst_case_covers_it() -> None:
    """Also where cached tokens are the dearer ones."""
    odd = Prices(200_000, 1_000_000, 4_000_000)
    worst = compute_worst_case_micros(odd, PROMPT, 10)
    for reported in range(0, 2 * PROMPT, 7):
        usage = deliver((10, 0)).bill(
            PROMPT, shown_cached_tokens=0, reported_cached_tokens=reported
        )
        assert compute_amount_micros(odd, usage) <= worst
