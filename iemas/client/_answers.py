"""An answer as it arrives: pieces of text, and at the end its receipt and price."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from iemas.client._buying import Purchase
from iemas.client._task_stream import Finished, TaskEvent
from iemas.client._types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Choice,
    ChoiceDelta,
    ChunkChoice,
    Completion,
    CompletionChoice,
    MarketDetails,
    PromptTokensDetails,
    Usage,
)
from iemas.core.auction import Allocation
from iemas.core.envelope import Signed
from iemas.core.errors import APITimeoutError, LocalProtocolError
from iemas.core.execution import OutputChunk, Receipt
from iemas.core.types import FinishReason

ChunkT = TypeVar("ChunkT")
FullT = TypeVar("FullT")

_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "cancelled",
}


class Answer:
    """A bought task from its first token to its last receipt.

    Args:
        purchase: the running task.
        model: the model's name.
        started_at: when the request began, in the event loop's time.
        deadline: when it must be done.
        on_finish: called with the finished answer.

    """

    def __init__(
        self,
        purchase: Purchase,
        *,
        model: str,
        started_at: float,
        deadline: float,
        on_finish: Callable[[Answer], None],
    ) -> None:
        self.id = f"iemas-{purchase.allocation.hash.hex()[:24]}"
        self.created = int(time.time())
        self.model = model
        self.finish_reason: str | None = None
        self._purchase = purchase
        self._pending: TaskEvent | None = purchase.first
        self._started_at = started_at
        self._deadline = deadline
        self._on_finish = on_finish

    @property
    def allocation(self) -> Allocation:
        """The auctioneer's terms."""
        return self._purchase.allocation.message

    @property
    def signed_receipt(self) -> Signed[Receipt] | None:
        """The last receipt that was countersigned, with the provider's signature."""
        return self._purchase.stream.meter.receipt

    @property
    def receipt(self) -> Receipt | None:
        """The last receipt that was countersigned."""
        signed = self.signed_receipt
        return signed.message if signed is not None else None

    @property
    def text(self) -> str:
        """The text so far."""
        return self._purchase.stream.text

    @property
    def output_token_ids(self) -> tuple[int, ...]:
        """The generated token ids so far."""
        return tuple(self._purchase.stream.meter.output_token_ids)

    async def next_chunk(self) -> OutputChunk | None:
        """Give the next piece, or None once the last receipt is in.

        Raises: ProviderFailedError, APITimeoutError, each with `text` and `receipt`.
        """
        if self.finish_reason is not None:
            return None
        event, self._pending = self._pending, None
        if event is None:
            event = await self._wait()
        if isinstance(event, Finished):
            self.finish_reason = _REASONS[event.reason]
            self._on_finish(self)
            return None
        return event

    async def _wait(self) -> TaskEvent:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._purchase.stream.next_event()
        except TimeoutError as error:
            await self.close()
            raise APITimeoutError(
                "the answer was not complete within the request's time; what was streamed is in "
                "`text`",
                code="timeout",
                text=self.text,
                receipt=self.receipt,
            ) from error

    async def close(self) -> None:
        """Stop the task if it runs: what was delivered is paid, nothing more."""
        await asyncio.shield(self._purchase.stream.close())

    # --- what it was -------------------------------------------------------------------------

    def require_receipt(self) -> Receipt:
        """Give the last receipt. Raises: LocalProtocolError while there is none."""
        receipt = self.receipt
        if receipt is None:
            raise LocalProtocolError("the answer has no receipt yet")
        return receipt

    def get_usage(self) -> Usage:
        """Give the token counts of the last receipt."""
        receipt = self.require_receipt()
        return Usage(
            prompt_tokens=receipt.prompt_tokens,
            completion_tokens=receipt.output_tokens,
            total_tokens=receipt.prompt_tokens + receipt.output_tokens,
            prompt_tokens_details=PromptTokensDetails(receipt.cached_tokens),
        )

    def get_market_details(self) -> MarketDetails:
        """Give who cleared it, who served it, and at what price."""
        receipt, terms = self.require_receipt(), self.allocation
        purchase = self._purchase
        return MarketDetails(
            auctioneer=purchase.auctioneer.hex(),
            winner=terms.provider.hex(),
            term=terms.term,
            round=terms.round,
            predicted_cached_tokens=terms.cached_tokens,
            cached_tokens=receipt.cached_tokens,
            expected_price_micros=terms.price_micros,
            price_micros=receipt.amount_micros,
            matching_ms=round((purchase.matched_at - self._started_at) * 1000),
            ttft_ms=round((purchase.first_at - self._started_at) * 1000),
            attempts=purchase.attempts,
            transcript_hash=terms.transcript_hash.hex(),
        )


class AsyncStream(Generic[ChunkT, FullT]):
    """A streamed answer: iterate over its chunks, or `collect` it whole.

    Closing it early cancels the task; what was delivered until then is paid. Use it as a context
    manager, so that leaving the block closes it.

    Example:
        >>> async def show(client):
        ...     async with await client.chat.completions.create(
        ...         messages=[{"role": "user", "content": "Hello!"}], stream=True
        ...     ) as stream:
        ...         async for chunk in stream:
        ...             print(chunk.choices[0].delta.content or "", end="")

    """

    def __init__(
        self,
        answer: Answer,
        make_chunk: Callable[[Answer, OutputChunk | None, bool], ChunkT],
        make_full: Callable[[Answer], FullT],
    ) -> None:
        self.answer = answer
        self._make_chunk = make_chunk
        self._make_full = make_full
        self._started = False
        self._ended = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self.answer.text

    @property
    def allocation(self) -> Allocation:
        """The auctioneer's terms."""
        return self.answer.allocation

    @property
    def receipt(self) -> Receipt | None:
        """The last receipt that was countersigned."""
        return self.answer.receipt

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        return self

    async def __anext__(self) -> ChunkT:
        if self._ended:
            raise StopAsyncIteration
        try:
            piece = await self.answer.next_chunk()
        except Exception:
            self._ended = True
            raise
        first, self._started = not self._started, True
        self._ended = piece is None
        return self._make_chunk(self.answer, piece, first)

    async def collect(self) -> FullT:
        """Read the rest and give the whole answer.

        Raises: ProviderFailedError, APITimeoutError, each with what was streamed in `text`.
        """
        try:
            while await self.answer.next_chunk() is not None:
                pass
        except BaseException:
            await self.close()
            raise
        self._ended = True
        return self._make_full(self.answer)

    async def close(self) -> None:
        """Stop the task if it still runs."""
        self._ended = True
        await self.answer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def make_chat_chunk(
    answer: Answer,
    piece: OutputChunk | None,
    first: bool,  # noqa: FBT001
) -> ChatCompletionChunk:
    """Shape a piece of a chat's answer; no piece makes the last chunk."""
    delta = ChoiceDelta(
        content=piece.text if piece is not None else None, role="assistant" if first else None
    )
    last = piece is None
    return ChatCompletionChunk(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=(ChunkChoice(0, delta, answer.finish_reason),),
        allocation=answer.allocation,
        usage=answer.get_usage() if last else None,
        receipt=answer.receipt if last else None,
        market=answer.get_market_details() if last else None,
    )


def make_chat_completion(answer: Answer) -> ChatCompletion:
    """Shape a finished chat answer."""
    message = ChatMessage("assistant", answer.text)
    return ChatCompletion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=(Choice(0, message, answer.finish_reason or "stop"),),
        usage=answer.get_usage(),
        receipt=answer.require_receipt(),
        allocation=answer.allocation,
        market=answer.get_market_details(),
    )


def make_completion_chunk(
    answer: Answer,
    piece: OutputChunk | None,
    first: bool,  # noqa: ARG001, FBT001
) -> Completion:
    """Shape a piece of a plain continuation; no piece makes the last chunk."""
    last = piece is None
    text = piece.text if piece is not None else ""
    return Completion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=(CompletionChoice(0, text, answer.finish_reason),),
        allocation=answer.allocation,
        usage=answer.get_usage() if last else None,
        receipt=answer.receipt if last else None,
        market=answer.get_market_details() if last else None,
    )


def make_completion(answer: Answer) -> Completion:
    """Shape a finished plain continuation."""
    return Completion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=(CompletionChoice(0, answer.text, answer.finish_reason),),
        allocation=answer.allocation,
        usage=answer.get_usage(),
        receipt=answer.receipt,
        market=answer.get_market_details(),
    )
