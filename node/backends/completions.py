"""The OpenAI completions API as both kinds of backend use it: requests, streams, errors.

No text, token id or error body of the server is logged or put into an error: a server may quote
the prompt in them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final, TypeGuard

import aiohttp
import msgspec

from iemas.core.errors import BackendError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason
from node.backends.base import (
    BackendProtocolError,
    BackendRequestError,
    BackendUnreachableError,
    ModelMismatchError,
)

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 600.0
"""How long a server may be silent: a long prompt on a CPU takes minutes to compute."""

MAX_EVENT_BYTES: Final = 64 * 1024 * 1024

_FINISH_REASONS: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_DONE: Final = b"[DONE]"


class CompletionsApi:
    """An HTTP session with one server."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The HTTP session; made at first use, within the event loop."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
            )
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=timeout,
                connector=aiohttp.TCPConnector(limit=0),
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def is_healthy(self, path: str = "/health", *, timeout_s: float = 5.0) -> bool:
        """Tell whether the server answers with success."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self.session.get(self.url + path, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def get_text(self, path: str) -> str:
        """Get a page.

        Raises: BackendUnreachableError, BackendRequestError.
        """
        timeout = aiohttp.ClientTimeout(total=10)
        try:
            async with self.session.get(self.url + path, timeout=timeout) as answer:
                if answer.status != 200:
                    raise _make_refusal(answer.status, path)
                return await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._make_unreachable() from error

    async def get_models(self) -> list[dict[str, Any]]:
        """Get what the server says of its models.

        Raises: BackendUnreachableError, BackendRequestError, BackendProtocolError.
        """
        answer = _decode(await self.get_text("/v1/models"))
        models = answer.get("data")
        if not isinstance(models, list) or not all(
            isinstance(model, dict) and isinstance(model.get("id"), str) for model in models
        ):
            raise BackendProtocolError(f"{self.url}/v1/models answers no list of models")
        return models

    async def stream(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Post a streaming completion and give its events; leaving early hangs up.

        Raises: BackendError of the kind that fits.
        """
        path = "/v1/completions"
        try:
            async with self.session.post(self.url + path, json=request) as answer:
                if answer.status != 200:
                    raise _make_refusal(answer.status, path)
                async for event in _read_events(answer.content):
                    if event == _DONE:
                        return
                    yield _decode(event)
        except aiohttp.ClientConnectorError as error:
            raise self._make_unreachable() from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BackendError(
                f"the inference server at {self.url} broke off ({type(error).__name__})"
            ) from error
        raise BackendProtocolError("the inference server's stream ended without [DONE]")

    def _make_unreachable(self) -> BackendUnreachableError:
        return BackendUnreachableError(
            f"no inference server answers at {self.url}; start it, or correct the backend's URL",
            url=self.url,
        )


def make_request(payload: TaskPayload, model: str) -> dict[str, Any]:
    """Translate a task, all but its prompt, into a streaming completion request."""
    request: dict[str, Any] = {
        "model": model,
        "max_tokens": payload.max_tokens,
        "temperature": payload.temperature_ppm / 1_000_000,
        "top_p": payload.top_p_ppm / 1_000_000,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if payload.seed >= 0:
        request["seed"] = payload.seed
    if payload.stop:
        request["stop"] = list(payload.stop)
    return request


def parse_finish(event: Mapping[str, Any]) -> FinishReason:
    """Give the finish reason of an event's choice; UNSPECIFIED while it goes on.

    Raises: BackendError if the server gave up.
    """
    reason = get_choice(event).get("finish_reason")
    if reason is None:
        return FinishReason.UNSPECIFIED
    finish = _FINISH_REASONS.get(reason) if isinstance(reason, str) else None
    if finish is None:
        raise BackendError("the inference server gave the task up", reason=str(reason)[:32])
    return finish


def get_choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the only choice of an event; empty for the one with the usage.

    Raises: BackendRequestError or BackendError if the event reports an error,
    BackendProtocolError if it has no choices.
    """
    if "error" in event:
        raise _make_stream_error(event["error"])
    choices = event.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise BackendProtocolError("a completion event has no choices")
    return choices[0] if choices else {}


def is_count(value: object) -> TypeGuard[int]:
    """Tell whether JSON has a token id or a count here: bool is an int to Python alone."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def choose_model(models: list[dict[str, Any]], wanted: str | None, url: str) -> dict[str, Any]:
    """Find the wanted model among those served; without a wish there must be exactly one.

    Raises: ModelMismatchError, naming what is served.
    """
    names = [str(model["id"]) for model in models]
    if wanted is not None:
        if wanted not in names:
            raise ModelMismatchError(
                f"the node is to sell {wanted!r}, but {url} serves {', '.join(names) or 'nothing'};"
                " correct `model`, or start the server with --served-model-name",
                wanted=wanted,
                served=names,
            )
        return models[names.index(wanted)]
    if len(models) != 1:
        raise ModelMismatchError(
            f"{url} serves {len(models)} models ({', '.join(names)}); choose one with `model`",
            served=names,
        )
    return models[0]


def _make_refusal(status: int, path: str) -> BackendRequestError:
    return BackendRequestError(
        f"the inference server refused {path} with HTTP status {status}", status=status
    )


def _make_stream_error(error: object) -> BackendError:
    """Name an error that came within the stream: vLLM checks some things only after it began."""
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 500:
        return _make_refusal(status, "/v1/completions")
    return BackendError("the inference server reports an error in the middle of the task")


def _decode(data: str | bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackendProtocolError("the inference server answers no JSON") from error
    if not isinstance(answer, dict):
        raise BackendProtocolError("the inference server answers no JSON object")
    return answer


async def _read_events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a server-sent event stream into the data of its events.

    The first event repeats the whole prompt, so lines are longer than aiohttp's own limit.
    """
    buffer = bytearray()
    async for data in content.iter_any():
        buffer += data
        if len(buffer) > MAX_EVENT_BYTES:
            raise BackendProtocolError("an event of the inference server is too large")
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end]).strip()
            del buffer[: end + 1]
            if line.startswith(b"data:"):
                yield line[5:].strip()
