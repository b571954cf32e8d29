"""Settlement on outcome: what metered usage owes, in exact integers.

``pay = floor(Σ over tokens of rate(kind) · late(delivery time))`` with the rates
``min(ρ·a, b)`` fixed at clearing. Providers, requesters and verifiers all call this one function.
Source: design §5; docs/spec/auction.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.types import PPM, TOKENS_PER_MTOK, Prices


@dataclass(frozen=True, slots=True)
class MeteredUsage:
    """Tokens delivered, weighted by what they were worth when they arrived.

    `prompt_late_ppm` is late_j when the first token arrived; `output_late_ppm_tokens` is the sum
    of late_j (in ppm) over the output tokens.
    """

    uncached_tokens: int
    cached_tokens: int
    prompt_late_ppm: int
    output_late_ppm_tokens: int


def compute_amount_micros(rates: Prices, usage: MeteredUsage) -> int:
    """Compute what the usage owes, rounded down once at the very end.

    Grows with every delivered token, is never negative, and never above
    `compute_worst_case_micros` of the same rates and token counts.
    """
    prompt = (
        usage.uncached_tokens * rates.prompt_micros_per_mtok
        + usage.cached_tokens * rates.cached_micros_per_mtok
    ) * usage.prompt_late_ppm
    output = rates.output_micros_per_mtok * usage.output_late_ppm_tokens
    return (prompt + output) // (TOKENS_PER_MTOK * PPM)


def compute_worst_case_micros(rates: Prices, prompt_tokens: int, max_tokens: int) -> int:
    """Compute the largest possible payment: nothing cached, everything on time, rounded up."""
    prompt_rate = max(rates.prompt_micros_per_mtok, rates.cached_micros_per_mtok)
    micros_tokens = prompt_tokens * prompt_rate + max_tokens * rates.output_micros_per_mtok
    return -(-micros_tokens // TOKENS_PER_MTOK)
