"""How long a request keeps trying, and how it waits in between.

Two budgets: refusals (nobody won, the winner was busy) are counted; losing the auctioneer is timed,
since a new one takes over within seconds. Both end at the request's own deadline.
"""

from __future__ import annotations

import asyncio
import random

from iemas.core.errors import APIConnectionError, APITimeoutError, IemasError

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
LONGEST_LOSS_PAUSE_SECONDS = 0.5
RECOVERY_SECONDS = 20.0


class Retry:
    """The patience of one request.

    Args:
        deadline: when the request as a whole must be done, in the event loop's time.
        max_refusals: after how many refusals to give up.

    """

    def __init__(self, *, deadline: float, max_refusals: int) -> None:
        self.deadline = deadline
        self.attempts = 0
        self._max_refusals = max_refusals
        self._refusals = 0
        self._losses = 0
        self._lost_at: float | None = None

    @property
    def remaining_seconds(self) -> float:
        """What is left until the deadline, at least 0."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def answered(self) -> None:
        """Note that the auctioneer answered: the time without one starts anew."""
        self._lost_at = None
        self._losses = 0

    def count_refusal(self, error: IemasError) -> None:
        """Count a refusal. Raises: the error once patience is at its end."""
        self._refusals += 1
        if self._refusals > self._max_refusals:
            raise error

    async def pause_after_refusal(self, error: IemasError) -> None:
        """Wait a little longer each time. Raises: the error once patience is at its end."""
        self.count_refusal(error)
        await self._pause(self._refusals, LONGEST_PAUSE_SECONDS, error)

    async def pause_after_loss(self, error: IemasError, *, at_once: bool = False) -> None:
        """Wait for the next auctioneer, or go on at once if there is a new one already.

        Raises: APIConnectionError once there has been none for `RECOVERY_SECONDS`.
        """
        now = asyncio.get_running_loop().time()
        if self._lost_at is None:
            self._lost_at = now
        if now - self._lost_at > RECOVERY_SECONDS:
            raise APIConnectionError(
                f"no auctioneer took the bid for {RECOVERY_SECONDS:g} s: {error}",
                code="no_auctioneer",
            ) from error
        self._losses += 1
        if not (at_once and self._losses == 1):
            await self._pause(self._losses, LONGEST_LOSS_PAUSE_SECONDS, error)

    async def _pause(self, count: int, longest: float, error: IemasError) -> None:
        seconds = min(longest, FIRST_PAUSE_SECONDS * 2.0 ** min(count, 16))
        seconds *= random.uniform(0.5, 1.0)  # noqa: S311 (spreads retries, guards nothing)
        if seconds >= self.remaining_seconds:
            raise APITimeoutError(f"the request's time is over: {error}", code="timeout") from error
        await asyncio.sleep(seconds)
