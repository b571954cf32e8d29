"""From a price to rates: the worked example, kinks, flat pieces, rounding, refusals."""

import pytest

from auctioneer.mechanism.errors import InvalidPriceError, MechanismInputError
from auctioneer.mechanism.valuation import compute_rates
from iemas.core.types import PPM, Prices

ASK = Prices(500_000, 100_000, 2_000_000)
BID = Prices(1_000_000, 200_000, 4_000_000)
TOKENS = (360 * PPM, 640 * PPM, 50 * PPM)


def test_at_cost_the_rates_are_the_ask() -> None:
    assert compute_rates(ASK, BID, TOKENS, 344) == ASK


def test_at_value_the_rates_are_the_bid() -> None:
    assert compute_rates(ASK, BID, TOKENS, 688) == BID


def test_at_value_rounded_down_the_rates_are_the_bid() -> None:
    ask, bid = Prices(1, 1, 1), Prices(999_999, 1, 1)
    assert compute_rates(ask, bid, (PPM, 0, 0), 0) == bid


def test_a_component_at_its_limit_leaves_the_rest_to_the_others() -> None:
    # The prompt's price is capped at once; the other 340 micro-credits come from the output.
    bid = Prices(500_000, 200_000, 8_000_000)
    assert compute_rates(ASK, bid, (360 * PPM, 0, 50 * PPM), 520) == Prices(
        500_000, 200_000, 6_800_000
    )


def test_tokens_not_expected_are_priced_by_the_same_scale() -> None:
    assert compute_rates(ASK, BID, (360 * PPM, 0, 0), 270) == Prices(750_000, 150_000, 3_000_000)


def test_flat_pieces_take_the_least_scale() -> None:
    # The output's limit comes first and is not expected; then the prompt's.
    bid = Prices(1_000_000, 10_000_000, 2_000_000)
    assert compute_rates(ASK, bid, (100 * PPM, 0, 0), 80) == Prices(800_000, 160_000, 2_000_000)


def test_rates_are_at_least_one() -> None:
    assert compute_rates(ASK, BID, TOKENS, 0) == Prices(1, 1, 1)


def test_nothing_expected_gives_the_bid() -> None:
    assert compute_rates(ASK, BID, (0, 0, 0), 0) == BID


@pytest.mark.parametrize("price", [-1, 689, 2**60])
def test_prices_outside_of_zero_to_value_are_refused(price: int) -> None:
    with pytest.raises(InvalidPriceError) as refused:
        compute_rates(ASK, BID, TOKENS, price)
    assert refused.value.value_micros == 688


def test_a_bid_below_the_ask_is_refused() -> None:
    with pytest.raises(MechanismInputError) as refused:
        compute_rates(BID, ASK, TOKENS, 344)
    assert refused.value.argument == "bid_prices"


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(MechanismInputError) as refused:
        compute_rates(ASK, BID, (1, -1, 1), 0)
    assert refused.value.argument == "expected_tokens"
