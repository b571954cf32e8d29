"""What the node daemon asks of an inference server: one small interface.

A backend streams completions of token-id prompts and knows which prefix blocks its server holds.
Everything else (receipts, prices, slots) is the node's business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iemas.core.errors import BackendError, ConfigurationError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason, HashAlgorithm


class BackendUnreachableError(BackendError):
    """The inference server does not answer; start it, or correct `backend` in the configuration."""


class BackendProtocolError(BackendError):
    """The inference server answered something that its API does not allow."""


class BackendRequestError(BackendError):
    """The inference server refused the request; `status` is its HTTP status."""


class ModelMismatchError(ConfigurationError):
    """The inference server serves another model than the node is configured to sell."""


class KvEventsError(ConfigurationError):
    """The server's KV events are required and cannot be used."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What an inference server is, found out when the node starts.

    `kind` is "vllm", "openai_compatible" or "simulated"; `revision` tells apart servers of one
    model; `context_tokens` bounds prompt and output together; `slots` is how many tasks the node
    runs on it at once; `tokenizer_path` a local folder with its tokenizer, if known. `kv_events`
    tells whether the cache digest is exact.
    """

    kind: str
    model: str
    revision: str
    context_tokens: int
    block_size: int
    hash_algorithm: HashAlgorithm
    kv_events: bool
    hardware: str
    slots: int
    tokenizer_path: Path | None


@dataclass(frozen=True, slots=True)
class BackendChunk:
    """Streamed output: text, and the ids of exactly the tokens new since the last chunk.

    Text may lag behind the ids (a character of several tokens, a held-back stop string).
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BackendUsage:
    """What the server reports at the end of a task."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish: FinishReason


BackendStream = AsyncGenerator[BackendChunk | BackendUsage, None]
"""A running task's output; ``aclose`` aborts it."""


class Backend(Protocol):
    """An inference server behind a node. All methods belong to one event loop."""

    @property
    def cache_version(self) -> int:
        """Rises whenever the set of resident blocks changes."""
        ...

    @property
    def estimated(self) -> bool:
        """Whether the cache snapshot is inferred from what was served, not reported."""
        ...

    async def start(self) -> BackendInfo:
        """Check health, find out the model, subscribe to KV events.

        Raises: BackendUnreachableError, ModelMismatchError, KvEventsError, each naming the fix.
        """
        ...

    def stream(self, payload: TaskPayload) -> BackendStream:
        """Run a task: chunks as they come, then the usage, last and exactly once.

        Closing the iterator early (``aclose``, or cancelling its task) aborts it on the server.
        Raises: BackendError when the server fails, refuses, or answers nonsense.
        """
        ...

    def cache_snapshot(self) -> bytes:
        """Give the resident block keys, sorted and packed 8 bytes each."""
        ...

    async def wait_cache_change(self, version: int) -> int:
        """Wait until `cache_version` differs from `version` and give it."""
        ...

    async def healthy(self) -> bool:
        """Ask the server whether it can serve now."""
        ...

    async def close(self) -> None:
        """Close connections; running streams end with an error. Can be called twice."""
        ...
