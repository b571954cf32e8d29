"""Any server with an OpenAI-compatible completions API: llama.cpp, another vLLM far away.

Such a server publishes no KV events, so the node estimates its cache from what it served, and says
so. It takes text, not token ids, so the prompt is turned back into text; the tokens of the answer
are counted with the model's tokenizer, and the usage is the server's where it tells.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import structlog

from iemas.core.digest import BlockChain
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason, HashAlgorithm
from node.backends.base import (
    BackendChunk,
    BackendInfo,
    BackendProtocolError,
    BackendRequestError,
    BackendStream,
    BackendUsage,
    KvEventsError,
)
from node.backends.completions import (
    CompletionsApi,
    choose_model,
    get_choice,
    is_count,
    make_request,
    parse_finish,
)
from node.backends.estimated import EstimatedCache

ESTIMATED_BLOCK_SIZE: Final = 32
DEFAULT_ESTIMATED_BLOCKS: Final = 1024

Detokenize = Callable[[Sequence[int]], str]
Tokenize = Callable[[str], Sequence[int]]

_log = structlog.get_logger(__name__)


class OpenAICompatibleBackend:
    """A server at `url` that speaks the completions API and nothing more.

    detokenize, tokenize: the model's tokenizer, with special tokens kept as text and none added.
    context_tokens: needed, as the API does not tell it. estimated_blocks: how many blocks the
    server is taken to keep; `estimated_blocks` × `block_size` tokens should not exceed its cache.
    """

    estimated: Final = True

    def __init__(
        self,
        url: str,
        *,
        detokenize: Detokenize,
        tokenize: Tokenize,
        context_tokens: int,
        model: str | None = None,
        slots: int = 1,
        tokenizer_path: Path | None = None,
        hardware: str = "",
        require_kv_events: bool = False,
        api_key: str | None = None,
        block_size: int = ESTIMATED_BLOCK_SIZE,
        estimated_blocks: int = DEFAULT_ESTIMATED_BLOCKS,
    ) -> None:
        self._api = CompletionsApi(url, api_key=api_key)
        self._detokenize = detokenize
        self._tokenize = tokenize
        self._context_tokens = context_tokens
        self._wanted_model = model
        self._slots = slots
        self._tokenizer_path = tokenizer_path
        self._hardware = hardware or f"{platform.machine()}, {os.cpu_count()} CPUs"
        self._require_kv_events = require_kv_events
        self._block_size = block_size
        self._estimate = EstimatedCache(estimated_blocks)
        self._changed = asyncio.Event()
        self._info: BackendInfo | None = None

    @property
    def cache_version(self) -> int:
        """Rises whenever the estimate changes."""
        return self._estimate.version

    def cache_snapshot(self) -> bytes:
        """Give the block keys that are probably resident, sorted and packed."""
        return self._estimate.snapshot()

    async def wait_cache_change(self, version: int) -> int:
        """Wait until `cache_version` differs from `version` and give it."""
        while self._estimate.version == version:
            await self._changed.wait()
        return self._estimate.version

    async def start(self) -> BackendInfo:
        """Find out what the server serves, and warn that its cache will be estimated.

        Raises: KvEventsError if KV events are required; BackendUnreachableError,
        ModelMismatchError.
        """
        if self._require_kv_events:
            raise KvEventsError(
                "an OpenAI-compatible server publishes no KV events; use vLLM, or run the node "
                "without --require-kv-events"
            )
        try:
            models = await self._api.get_models()
            model = choose_model(models, self._wanted_model, self._api.url)
        except BaseException:
            await self.close()
            raise
        _log.warning(
            "cache_digest_estimated", problem="an OpenAI-compatible server has no KV events"
        )
        self._info = BackendInfo(
            kind="openai_compatible",
            model=str(model["id"]),
            revision="",
            context_tokens=self._context_tokens,
            block_size=self._block_size,
            hash_algorithm=HashAlgorithm.SHA256_CBOR,
            kv_events=False,
            hardware=self._hardware,
            slots=self._slots,
            tokenizer_path=self._tokenizer_path,
        )
        return self._info

    async def healthy(self) -> bool:
        """Ask the server whether it answers."""
        return await self._api.is_healthy("/v1/models")

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def stream(self, payload: TaskPayload) -> BackendStream:
        """Run a task: chunks as they come, then the usage, last and exactly once.

        The token ids of a chunk are those of its text, tokenized on its own: their number is what
        is metered, and it can differ from the server's own count by a few.
        Raises: BackendError if the server fails or refuses.
        """
        if self._info is None:
            raise BackendProtocolError("the backend was not started")
        if len(payload.token_ids) + payload.max_tokens > self._context_tokens:
            raise BackendRequestError(
                f"prompt and max_tokens exceed the {self._context_tokens} tokens of the context",
                status=400,
            )
        request = make_request(payload, self._info.model)
        request["prompt"] = self._detokenize(payload.token_ids)
        output: list[int] = []
        finish, cached = FinishReason.UNSPECIFIED, 0
        async with aclosing(self._api.stream(request)) as events:
            async for event in events:
                cached = _get_cached_tokens(event, cached)
                text = str(get_choice(event).get("text") or "")
                finish = parse_finish(event) or finish
                token_ids = tuple(self._tokenize(text)) if text else ()
                if token_ids:
                    output += token_ids
                    yield BackendChunk(text, token_ids)
        if finish is FinishReason.UNSPECIFIED:
            raise BackendProtocolError("the server ended the task without a finish reason")
        yield BackendUsage(
            prompt_tokens=len(payload.token_ids),
            cached_tokens=min(cached, len(payload.token_ids)),
            output_tokens=len(output),
            finish=finish,
        )
        self._note_served(payload, output)

    def _note_served(self, payload: TaskPayload, output: list[int]) -> None:
        chain = BlockChain(self._block_size, cache_salt=payload.cache_salt)
        chain.extend((*payload.token_ids, *output[:-1]))
        self._estimate.add_served(chain.keys)
        self._changed.set()
        self._changed = asyncio.Event()


def _get_cached_tokens(event: dict[str, Any], known: int) -> int:
    usage = event.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else known
    return cached if is_count(cached) else 0
