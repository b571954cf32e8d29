"""``client.sessions``: a conversation that grows turn by turn.

A session only keeps the messages. That the next turn finds its prefix cached comes from what every
request does: the prompt continues on the very tokens that were generated, and the auction knows
which node holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from iemas.client._options import RequestOptions
from iemas.client._types import ChatCompletion

if TYPE_CHECKING:
    from iemas.client.resources.chat import AsyncChatCompletions, AsyncChatStream


class AsyncSession:
    """One conversation.

    Args:
        completions: what answers are bought with.
        messages: what stands before the first turn, such as a system prompt.
        options: defaults of every turn.

    """

    def __init__(
        self,
        completions: AsyncChatCompletions,
        messages: Sequence[Mapping[str, Any]],
        options: RequestOptions,
    ) -> None:
        self._completions = completions
        self._messages = [dict(message) for message in messages]
        self._options = options

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far; a turn is in it once its answer is complete."""
        return list(self._messages)

    def extend(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Append messages without asking for an answer."""
        self._messages.extend(dict(message) for message in messages)

    @overload
    async def send(
        self, text: str, *, stream: Literal[False] = False, **options: Unpack[RequestOptions]
    ) -> ChatCompletion: ...

    @overload
    async def send(
        self, text: str, *, stream: Literal[True], **options: Unpack[RequestOptions]
    ) -> AsyncChatStream: ...

    async def send(
        self, text: str, *, stream: bool = False, **options: Unpack[RequestOptions]
    ) -> ChatCompletion | AsyncChatStream:
        """Say something and buy the answer.

        Raises: as `client.chat.completions.create`. A turn that failed is not kept: say it again.

        Example:
            >>> async def talk(client):
            ...     session = client.sessions.create(system="Answer in one word.")
            ...     await session.send("Name a colour.")
            ...     second = await session.send("Another one.")
            ...     print(second.usage.prompt_tokens_details.cached_tokens)

        """
        merged: RequestOptions = {**self._options, **options}
        messages = [{"role": "user", "content": text}]
        if stream:
            return await self._completions.create(
                messages=messages, stream=True, session=self, **merged
            )
        return await self._completions.create(messages=messages, session=self, **merged)


class AsyncSessions:
    """Makes sessions."""

    def __init__(self, completions: AsyncChatCompletions) -> None:
        self._completions = completions

    def create(
        self,
        *,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        **options: Unpack[RequestOptions],
    ) -> AsyncSession:
        """Begin a session; `options` are the defaults of its turns. Costs nothing yet.

        Example:
            >>> def begin(client):
            ...     return client.sessions.create(system="Be brief.", max_tokens=48)

        """
        before = [{"role": "system", "content": system}] if system is not None else []
        return AsyncSession(self._completions, [*before, *messages], options)
