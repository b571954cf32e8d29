"""What a request may say beyond the prompt: what it is worth, and how to sample.

Prices are the most that is paid a token; what is paid is decided by the market and never above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from iemas.core.auction import MAX_MICROS, Bid
from iemas.core.errors import BadRequestError, MalformedMessageError, PromptTooLongError
from iemas.core.execution import TaskPayload
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import PPM, Lateness, Prices

DEFAULT_PRICES = Prices(
    prompt_micros_per_mtok=1_000_000,
    cached_micros_per_mtok=1_000_000,
    output_micros_per_mtok=3_000_000,
)
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class BidOptions:
    """What a task is worth to its requester.

    `prices` is the most it pays a token of each kind. With `value_micros` the prices are scaled so
    that the whole task, at `max_tokens` and with nothing cached, costs at most that.
    `deadline_ms` counts from the start of the task: a token that arrives later is worth less, and
    nothing once `decay_ms` more have passed (as long as the deadline, unless given). 0: no matter.

    Example:
        >>> BidOptions(deadline_ms=2_000).make_bid("smollm2", 1_000, 100).reservation_micros
        1300
        >>> BidOptions(value_micros=650).make_bid("smollm2", 1_000, 100).prices
        Prices(prompt_micros_per_mtok=500000, cached_micros_per_mtok=500000, \
output_micros_per_mtok=1500000)

    """

    prices: Prices = DEFAULT_PRICES
    value_micros: int | None = None
    deadline_ms: int = 0
    decay_ms: int | None = None

    def make_bid(self, model: str, prompt_tokens: int, max_tokens: int) -> Bid:
        """Make the bid for a task of known size, reserving the most that it can cost.

        Raises: BadRequestError if a value lies outside its range.
        """
        try:
            return self._make_bid(model, prompt_tokens, max_tokens)
        except MalformedMessageError as error:
            raise BadRequestError(f"the bid is out of range: {error}", code="bad_bid") from error

    def _make_bid(self, model: str, prompt_tokens: int, max_tokens: int) -> Bid:
        prices = self.prices
        worst_micros = compute_worst_case_micros(prices, prompt_tokens, max_tokens)
        if self.value_micros is not None:
            prices = _scale(prices, self.value_micros, worst_micros)
            worst_micros = compute_worst_case_micros(prices, prompt_tokens, max_tokens)
        decay_ms = self.deadline_ms if self.decay_ms is None else self.decay_ms
        return Bid(
            model=model,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            prices=prices,
            lateness=Lateness(self.deadline_ms, decay_ms),
            reservation_micros=min(worst_micros, MAX_MICROS),
        )


def _scale(prices: Prices, value_micros: int, worst_micros: int) -> Prices:
    """Scale prices down or up so that the worst case costs `value_micros`; at least 1 each."""
    return Prices(
        *[
            max(1, price * value_micros // worst_micros)
            for price in (
                prices.prompt_micros_per_mtok,
                prices.cached_micros_per_mtok,
                prices.output_micros_per_mtok,
            )
        ]
    )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the answer is sampled, in the units of the `openai` package."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def make_payload(self, token_ids: Sequence[int], cache_salt: str) -> TaskPayload:
        """Make the private part of the task.

        Raises: BadRequestError if a parameter lies outside its range.
        """
        if self.seed is not None and self.seed < 0:
            raise BadRequestError("seed must not be negative", code="bad_request", param="seed")
        try:
            return TaskPayload(
                token_ids=tuple(token_ids),
                max_tokens=self.max_tokens,
                cache_salt=cache_salt,
                temperature_ppm=round(self.temperature * PPM),
                top_p_ppm=round(self.top_p * PPM),
                seed=-1 if self.seed is None else self.seed,
                stop=tuple(self.stop),
                ignore_eos=self.ignore_eos,
            )
        except (MalformedMessageError, OverflowError, ValueError) as error:
            raise BadRequestError(str(error), code="bad_request") from error


class RequestOptions(TypedDict, total=False):
    """What every request may set; what is left out has the client's default.

    `temperature`, `top_p`, `seed`, `stop`, `max_tokens` mean what they mean to `openai`.
    `share_prefix` lets the prompt share cached blocks with other accounts (a public system prompt)
    and so lets others test guesses of it; otherwise the cache is salted with the account's own
    secret. `timeout` bounds the whole request in seconds. `ignore_eos` generates on to
    `max_tokens`, for measurements.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    bid: BidOptions | None
    share_prefix: bool
    timeout: float | None
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """`RequestOptions` with every value set or None for the default."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    bid: BidOptions | None = None
    share_prefix: bool = False
    timeout: float | None = None
    ignore_eos: bool = False

    def make_sampling(self, prompt_tokens: int, context_tokens: int) -> Sampling:
        """Complete the sampling parameters for a prompt of known size.

        Raises: BadRequestError, PromptTooLongError.
        """
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadRequestError("max_tokens must be positive", code="bad_request")
        room = context_tokens - prompt_tokens
        max_tokens = min(DEFAULT_MAX_TOKENS, room) if self.max_tokens is None else self.max_tokens
        if max_tokens < 1 or max_tokens > room:
            raise PromptTooLongError(
                f"the prompt has {prompt_tokens} tokens and the answer may have "
                f"{max(max_tokens, 1)}, but the longest context on offer is {context_tokens}: "
                "shorten the prompt or lower max_tokens",
                code="prompt_too_long",
                prompt_tokens=prompt_tokens,
                context_tokens=context_tokens,
            )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
            ignore_eos=self.ignore_eos,
        )
