"""Settlement on outcome: what metered usage owes, in exact integers.

``pay = floor(Σ over tokens of rate(kind) · late(delivery time))`` with the rates
``min(ρ·a, b)`` fixed at clearing. Providers, requesters and verifiers all call these functions:
`Delivery` weighs tokens as they arrive, `Delivery.bill` says which prompt tokens count as cached,
`compute_amount_micros` what that owes. How the task ended does not enter: who is cut off, gives
up or cancels owes for what had arrived.
Source: design §5; docs/spec/auction.md §8; docs/spec/execution.md §2.
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


@dataclass(frozen=True, slots=True)
class Delivery:
    """The output of one task that has arrived so far, weighed by late_j at its arrival.

    The prompt is delivered with the first token and weighed with it: before that it is worth
    nothing, so a task that delivers no token owes nothing.
    """

    output_tokens: int = 0
    prompt_late_ppm: int = 0
    output_late_ppm_tokens: int = 0

    def add(self, tokens: int, late_ppm: int) -> Delivery:
        """Add tokens that arrive together. late_ppm: `Lateness.compute_ppm` of their time."""
        if tokens == 0:
            return self
        return Delivery(
            self.output_tokens + tokens,
            self.prompt_late_ppm if self.output_tokens else late_ppm,
            self.output_late_ppm_tokens + tokens * late_ppm,
        )

    def bill(
        self, prompt_tokens: int, *, shown_cached_tokens: int, reported_cached_tokens: int = 0
    ) -> MeteredUsage:
        """Give the usage that is billed.

        shown_cached_tokens: what the provider's digest showed, as the allocation says: at least
        so many prompt tokens count as cached. reported_cached_tokens: what its backend found;
        more than the prompt has count as the prompt.
        """
        cached_tokens = min(max(shown_cached_tokens, reported_cached_tokens), prompt_tokens)
        return MeteredUsage(
            uncached_tokens=prompt_tokens - cached_tokens,
            cached_tokens=cached_tokens,
            prompt_late_ppm=self.prompt_late_ppm,
            output_late_ppm_tokens=self.output_late_ppm_tokens,
        )


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
