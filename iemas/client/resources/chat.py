"""``client.chat.completions``: the familiar way to ask for an answer."""

from __future__ import annotations

from typing import Literal, Unpack, overload

from iemas.client._answers import Answer, AsyncStream, make_chat_chunk, make_chat_completion
from iemas.client._core import ClientCore
from iemas.client._messages import Messages, normalize_messages
from iemas.client._options import RequestOptions, RequestSettings
from iemas.client._types import ChatCompletion, ChatCompletionChunk
from iemas.client.resources.sessions import AsyncSession

AsyncChatStream = AsyncStream[ChatCompletionChunk, ChatCompletion]


class AsyncChatCompletions:
    """Buys answers to chats."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        stream: Literal[False] = False,
        session: AsyncSession | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        stream: Literal[True],
        session: AsyncSession | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncChatStream: ...

    async def create(
        self,
        *,
        messages: Messages,
        stream: bool = False,
        session: AsyncSession | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletion | AsyncChatStream:
        """Buy an answer: bid for it, have the winner generate it, pay for what arrived.

        Args:
            messages: the chat so far, each message with `role` and `content`.
            stream: give the answer piece by piece; this returns with the first piece.
            session: continue this session: its messages come before `messages`, and it keeps
                both and the answer.
            options: see `RequestOptions`.

        Raises: BadRequestError, ModelNotFoundError, PromptTooLongError, InsufficientFundsError,
            UnmatchedError, ProviderFailedError, APIConnectionError, APITimeoutError.

        Example:
            >>> async def ask(client):
            ...     completion = await client.chat.completions.create(
            ...         messages=[{"role": "user", "content": "Name a prime."}],
            ...         max_tokens=16,
            ...         bid=BidOptions(deadline_ms=5_000),
            ...     )
            ...     print(completion.choices[0].message.content)
            ...     print(completion.market.price_micros, completion.receipt.cached_tokens)

        """
        settings = RequestSettings(**options)
        new = normalize_messages(messages)
        history = session.messages if session is not None else []

        def keep(answer: Answer) -> None:
            if session is not None:
                session.extend([*new, {"role": "assistant", "content": answer.text}])

        answer = await self._core.answer_messages([*history, *new], settings, keep)
        chunks = AsyncStream(answer, make_chat_chunk, make_chat_completion)
        return chunks if stream else await chunks.collect()


class AsyncChat:
    """Holds `completions`, as in the `openai` package."""

    def __init__(self, core: ClientCore) -> None:
        self.completions = AsyncChatCompletions(core)
