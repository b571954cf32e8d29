"""``client.completions``: continue plain text, or token ids, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

from iemas.client._answers import AsyncStream, make_completion, make_completion_chunk
from iemas.client._core import ClientCore
from iemas.client._options import RequestOptions, RequestSettings
from iemas.client._types import Completion

AsyncCompletionStream = AsyncStream[Completion, Completion]


class AsyncCompletions:
    """Buys continuations."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    @overload
    async def create(
        self,
        *,
        prompt: str | Sequence[int],
        stream: Literal[False] = False,
        **options: Unpack[RequestOptions],
    ) -> Completion: ...

    @overload
    async def create(
        self,
        *,
        prompt: str | Sequence[int],
        stream: Literal[True],
        **options: Unpack[RequestOptions],
    ) -> AsyncCompletionStream: ...

    async def create(
        self,
        *,
        prompt: str | Sequence[int],
        stream: bool = False,
        **options: Unpack[RequestOptions],
    ) -> Completion | AsyncCompletionStream:
        """Buy a continuation of `prompt`, text or token ids.

        Raises: as `client.chat.completions.create`.

        Example:
            >>> async def continue_text(client):
            ...     completion = await client.completions.create(prompt="Once upon a time")
            ...     print(completion.choices[0].text)

        """
        answer = await self._core.answer_prompt(prompt, RequestSettings(**options))
        chunks = AsyncStream(answer, make_completion_chunk, make_completion)
        return chunks if stream else await chunks.collect()
