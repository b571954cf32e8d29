"""A vLLM server beside the node: completions over HTTP, its prefix cache over KV events.

It serves the simulated backend as well, which speaks the same. Source: docs/guides/vllm.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client.parser import text_string_to_metric_families

from iemas.core.digest import BlockChain
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason, HashAlgorithm
from node.backends.base import (
    BackendChunk,
    BackendInfo,
    BackendProtocolError,
    BackendRequestError,
    BackendStream,
    BackendUnreachableError,
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
from node.backends.kv_events import KvEventFollower

DEFAULT_BLOCK_SIZE: Final = 16
"""vLLM's own default, where its metrics do not tell."""

DEFAULT_SLOTS: Final = 4
HASH_ALGORITHM: Final = "sha256_cbor"
_ESTIMATED_BLOCKS: Final = 65_536
_log = structlog.get_logger(__name__)


class VllmBackend:
    """A vLLM server, over HTTP at `url` and over ZMQ at the two KV endpoints.

    model: the served name to sell; may be left out where the server has one. slots: how many tasks
    at once. require_kv_events: refuse to start without an exact picture of the cache instead of
    estimating it.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        kv_events_endpoint: str | None = None,
        kv_replay_endpoint: str | None = None,
        slots: int = DEFAULT_SLOTS,
        tokenizer_path: Path | None = None,
        hardware: str = "",
        require_kv_events: bool = False,
        api_key: str | None = None,
        kv_timeout_s: float = 5.0,
    ) -> None:
        self._api = CompletionsApi(url, api_key=api_key)
        self._wanted_model = model
        self._kv_endpoints = (kv_events_endpoint, kv_replay_endpoint)
        self._slots = slots
        self._tokenizer_path = tokenizer_path
        self._hardware = hardware or f"{platform.machine()}, {os.cpu_count()} CPUs"
        self._require_kv_events = require_kv_events
        self._kv_timeout_s = kv_timeout_s
        self._info: BackendInfo | None = None
        self._follower: KvEventFollower | None = None
        self._estimate = EstimatedCache(_ESTIMATED_BLOCKS)
        self._estimate_changed = asyncio.Event()

    # --- the prefix cache -----------------------------------------------------------------------

    @property
    def estimated(self) -> bool:
        """Whether the cache snapshot is inferred from what was served."""
        return self._follower is None

    @property
    def cache_version(self) -> int:
        """Rises whenever the set of resident blocks changes."""
        return self._follower.resident.version if self._follower else self._estimate.version

    def cache_snapshot(self) -> bytes:
        """Give the resident block keys, sorted and packed."""
        return self._follower.resident.snapshot() if self._follower else self._estimate.snapshot()

    async def wait_cache_change(self, version: int) -> int:
        """Wait until `cache_version` differs from `version` and give it."""
        if self._follower is not None:
            return await self._follower.wait_change(version)
        while self._estimate.version == version:
            await self._estimate_changed.wait()
        return self._estimate.version

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> BackendInfo:
        """Find out what the server is, and draw the first picture of its cache.

        Raises: BackendUnreachableError, ModelMismatchError, KvEventsError.
        """
        try:
            self._info = await self._find_out()
        except BaseException:
            await self.close()
            raise
        if self._info.kind == "simulated":
            _log.warning("simulated_backend", url=self._api.url, hint="for tests only")
        return self._info

    async def healthy(self) -> bool:
        """Ask the server whether it can serve now."""
        return await self._api.is_healthy()

    async def close(self) -> None:
        """Close the connections."""
        if self._follower is not None:
            await self._follower.close()
        await self._api.close()

    async def _find_out(self) -> BackendInfo:
        if not await self._api.is_healthy():
            raise BackendUnreachableError(
                f"no healthy vLLM answers at {self._api.url}/health; start it (it takes a while to "
                "load), or correct the backend's URL",
                url=self._api.url,
            )
        model = choose_model(await self._api.get_models(), self._wanted_model, self._api.url)
        cache = await self._get_cache_config()
        block_size = _get_block_size(cache)
        exact = await self._start_following(cache, block_size)
        root = Path(str(model.get("root") or ""))
        simulated = model.get("owned_by") == "simulated"
        return BackendInfo(
            kind="simulated" if simulated else "vllm",
            model=str(model["id"]),
            revision=await asyncio.to_thread(_compute_revision, root),
            context_tokens=_get_context_tokens(model),
            block_size=block_size,
            hash_algorithm=HashAlgorithm.SHA256_CBOR,
            kv_events=exact,
            hardware="simulated" if simulated else self._hardware,
            slots=self._slots,
            tokenizer_path=self._tokenizer_path or await asyncio.to_thread(_find_tokenizer, root),
        )

    # --- serving --------------------------------------------------------------------------------

    async def stream(self, payload: TaskPayload) -> BackendStream:
        """Run a task: chunks as they come, then the usage, last and exactly once.

        Raises: BackendError if the server fails, refuses, or its counts do not agree.
        """
        info = self._get_info()
        _validate_length(payload, info)
        request = make_request(payload, info.model)
        request["prompt"] = list(payload.token_ids)
        request["return_token_ids"] = True
        request["ignore_eos"] = payload.ignore_eos
        if payload.cache_salt:
            request["cache_salt"] = payload.cache_salt
        output: list[int] = []
        finish, usage = FinishReason.UNSPECIFIED, None
        async with aclosing(self._api.stream(request)) as events:
            async for event in events:
                chunk = _parse_chunk(event)
                if chunk is not None:
                    output += chunk.token_ids
                    finish = parse_finish(event) or finish
                    yield chunk
                elif event.get("usage"):
                    usage = event["usage"]
        yield _check_usage(payload, usage, len(output), finish)
        self._note_served(payload, output, info.block_size)

    def _get_info(self) -> BackendInfo:
        if self._info is None:
            raise BackendProtocolError("the backend was not started")
        return self._info

    def _note_served(self, payload: TaskPayload, output: list[int], block_size: int) -> None:
        if self._follower is None:
            chain = BlockChain(block_size, cache_salt=payload.cache_salt)
            # The last token was never computed, so it is in no block.
            chain.extend((*payload.token_ids, *output[:-1]))
            self._estimate.add_served(chain.keys)
            self._estimate_changed.set()
            self._estimate_changed = asyncio.Event()

    # --- finding out ----------------------------------------------------------------------------

    async def _get_cache_config(self) -> Mapping[str, str]:
        """Read the cache's configuration from the labels of vLLM's metric of that name."""
        try:
            text = await self._api.get_text("/metrics")
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == "vllm:cache_config_info":
                        return sample.labels
        except (BackendRequestError, ValueError, OverflowError):
            pass
        _log.warning("vllm_metrics_missing", url=self._api.url, block_size=DEFAULT_BLOCK_SIZE)
        return {}

    async def _start_following(self, cache: Mapping[str, str], block_size: int) -> bool:
        """Subscribe to KV events; without them, warn or refuse. True if the picture is exact."""
        endpoint, replay = self._kv_endpoints
        algorithm = cache.get("prefix_caching_hash_algo", HASH_ALGORITHM)
        if endpoint is None:
            problem = "no KV events endpoint is configured"
        elif algorithm != HASH_ALGORITHM:
            problem = (
                f"vLLM hashes blocks with {algorithm}; start it with "
                f"--prefix-caching-hash-algo {HASH_ALGORITHM}"
            )
        else:
            follower = KvEventFollower(endpoint, replay, block_size=block_size)
            if await follower.start(timeout_s=self._kv_timeout_s):
                self._follower = follower
                return True
            problem = follower.problem or (
                f"vLLM publishes no KV events at {endpoint}; start it with --kv-events-config and "
                "an ipc:// or tcp://*:PORT endpoint (with tcp://HOST:PORT it connects, not binds)"
            )
            await follower.close()
        if self._require_kv_events:
            raise KvEventsError(problem + ", or run the node without --require-kv-events")
        _log.warning("cache_digest_estimated", problem=problem)
        return False


def _validate_length(payload: TaskPayload, info: BackendInfo) -> None:
    tokens = len(payload.token_ids) + payload.max_tokens
    if tokens > info.context_tokens:
        raise BackendRequestError(
            f"prompt and max_tokens are {tokens} tokens together, {info.model} takes "
            f"{info.context_tokens}",
            status=400,
        )


def _parse_chunk(event: Mapping[str, Any]) -> BackendChunk | None:
    """Read an event with output; None for the one with the usage.

    Raises: BackendProtocolError if it does not tell the token ids.
    """
    choice = get_choice(event)
    if not choice:
        return None
    token_ids = choice.get("token_ids")
    if not isinstance(token_ids, list) or not all(is_count(token) for token in token_ids):
        raise BackendProtocolError(
            "the server does not return token ids; it needs vLLM 0.11 or later"
        )
    return BackendChunk(str(choice.get("text") or ""), tuple(token_ids))


def _check_usage(
    payload: TaskPayload, usage: Any, output_tokens: int, finish: FinishReason
) -> BackendUsage:
    """Read the usage and hold it against what was sent and received.

    Raises: BackendProtocolError if it is missing or differs.
    """
    if not isinstance(usage, Mapping) or finish is FinishReason.UNSPECIFIED:
        raise BackendProtocolError("the server ended the task without usage or finish reason")
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    told = [usage.get("prompt_tokens"), cached or 0, usage.get("completion_tokens")]
    counts = [count for count in told if is_count(count)]
    if len(counts) < len(told):
        raise BackendProtocolError("the server's usage holds no token counts")
    read = BackendUsage(counts[0], counts[1], counts[2], finish)
    if (
        read.prompt_tokens != len(payload.token_ids)
        or read.output_tokens != output_tokens
        or not 0 <= read.cached_tokens <= read.prompt_tokens
    ):
        raise BackendProtocolError(
            "the server's usage is not what was sent and received",
            usage=read,
            sent=len(payload.token_ids),
            received=output_tokens,
        )
    return read


def _get_block_size(cache: Mapping[str, str]) -> int:
    text = cache.get("block_size") or str(DEFAULT_BLOCK_SIZE)
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text)):
        raise BackendProtocolError(f"the server's metrics name no block size, but {text[:16]!r}")
    return int(text)


def _get_context_tokens(model: Mapping[str, Any]) -> int:
    tokens = model.get("max_model_len")
    if not isinstance(tokens, int) or tokens <= 0:
        raise BackendProtocolError(
            "the server does not tell max_model_len; is it vLLM? for others use the kind "
            "openai_compatible"
        )
    return tokens


def _compute_revision(root: Path) -> str:
    """Tell models of one name apart: by their configuration where the folder is at hand."""
    config = root / "config.json"
    if root.is_absolute() and config.is_file():
        return hashlib.sha256(config.read_bytes()).hexdigest()[:16]
    return str(root) if root.name else ""


def _find_tokenizer(root: Path) -> Path | None:
    return root if root.is_absolute() and (root / "tokenizer.json").is_file() else None
