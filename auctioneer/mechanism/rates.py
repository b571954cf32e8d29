"""From a price to rates: what each kind of token costs, so that the expectation is the price.

A task settles at ``Σ over tokens of min(ρ·a, b) · late``. The clearing fixes the scale ρ such
that the expectation over the predicted, late-weighted tokens M is the price P:

    f(ρ) = Σ_k min(ρ·a_k, b_k) · M_k = P · 10^12

f is continuous, piecewise linear, never falling, with a kink at each b_k / a_k, so ρ comes from
at most three segments in exact integers. Source: docs/spec/auction.md §7; design §5.
"""

from __future__ import annotations

from typing import Final

from auctioneer.mechanism.errors import InvalidPriceError, MechanismInputError
from iemas.core.types import PPM, TOKENS_PER_MTOK, Prices

_SCALE: Final = TOKENS_PER_MTOK * PPM
"""Rates (a million tokens) times ppm-tokens give micro-credits times this."""


def compute_rates(
    ask: Prices, bid_prices: Prices, expected_tokens: tuple[int, int, int], price_micros: int
) -> Prices:
    """Compute the rates floor(min(ρ·ask, bid)), each at least 1, that make the price expected.

    ask, bid_prices: the bid covers the ask in every component.
    expected_tokens: late-weighted uncached prompt, cached prompt and output tokens, in
    ppm-tokens (`Valuation.get_expected_tokens`).
    price_micros: P, from 0 to the pair's value V; at V the rates are the bid's own prices.
    Rounding is down, once a rate, so the expectation falls short of P by less than one
    micro-credit a million tokens, and where P rounded V down, not at all. A higher price never
    lowers a rate.
    Raises: InvalidPriceError if P is outside 0..V, MechanismInputError for other bad input.
    """
    if not bid_prices.covers(ask):
        raise MechanismInputError("the bid does not cover the ask", argument="bid_prices")
    if min(expected_tokens) < 0:
        raise MechanismInputError("tokens must not be negative", argument="expected_tokens")
    asks, limits = _as_vector(ask), _as_vector(bid_prices)
    value = sum(b * m for b, m in zip(limits, expected_tokens, strict=True))
    value_micros = value // _SCALE
    if not 0 <= price_micros <= value_micros:
        raise InvalidPriceError(
            f"the price must be in 0..{value_micros}, got {price_micros}",
            argument="price_micros",
            value_micros=value_micros,
        )
    if price_micros == value_micros:
        return bid_prices
    numerator, denominator = _solve_scale(asks, limits, expected_tokens, price_micros * _SCALE)
    prompt, cached, output = (
        max(1, min(a * numerator // denominator, b)) for a, b in zip(asks, limits, strict=True)
    )
    return Prices(prompt, cached, output)


def _solve_scale(
    asks: tuple[int, ...], limits: tuple[int, ...], tokens: tuple[int, ...], target: int
) -> tuple[int, int]:
    """Solve f(ρ) = target, below f's maximum, for the least ρ as a fraction."""
    linear = list(range(len(asks)))
    capped = 0
    while True:
        slope = sum(asks[k] * tokens[k] for k in linear)
        # The kink that comes first: the least b_k / a_k, compared by cross-multiplication.
        nearest = linear[0]
        for k in linear[1:]:
            if limits[k] * asks[nearest] < limits[nearest] * asks[k]:
                nearest = k
        rest = target - capped
        # Is (rest / slope) at or before that kink? Slope 0 means that f is flat until then.
        if slope > 0 and rest * asks[nearest] <= limits[nearest] * slope:
            return rest, slope
        capped += limits[nearest] * tokens[nearest]
        linear.remove(nearest)


def _as_vector(prices: Prices) -> tuple[int, int, int]:
    return (
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    )
