"""A simulated vLLM server, a process of its own, for tests only.

``python -m node.backends.simulated --port 8101 --kv-events ipc:///tmp/kv --kv-replay ipc:///tmp/rp``
speaks the part of vLLM's HTTP API that a node uses and publishes KV events like vLLM, over the
prefix cache and the timing model of `iemas.testing.backend`. Its text is made up. When it is ready
it prints one line of JSON with its label, URL and endpoints; SIGTERM or SIGINT ends it cleanly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq
from aiohttp import web

from iemas.core.errors import InvalidInputError, MalformedMessageError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason
from iemas.testing.backend import (
    EngineConfig,
    SimulatedEngine,
    SimulatedRun,
    SimulatedToken,
    SimulatedUsage,
)
from iemas.testing.tokenizer import build_byte_tokenizer, encode_text, render_chat
from node.backends.kv_publisher import KvEventPublisher

LABEL = "simulated backend, for tests only"
MAX_REQUEST_BYTES = 64 * 1024 * 1024

_FINISH_NAMES = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server listens, what it calls its model, and the engine behind it.

    Port 0 takes a free one. `tokenizer_dir` is filled with the byte tokenizer's files and named
    as the model's root, as a vLLM that serves a local folder does.
    """

    host: str
    port: int
    model: str
    engine: EngineConfig
    kv_events: str | None = None
    kv_replay: str | None = None
    tokenizer_dir: Path | None = None


class EngineDriver:
    """Runs a `SimulatedEngine` in real time and publishes its cache events."""

    def __init__(self, config: EngineConfig, publisher: KvEventPublisher | None) -> None:
        self.engine = SimulatedEngine(config, record_events=publisher is not None)
        self._publisher = publisher
        self._woken = asyncio.Event()
        self._news: dict[SimulatedRun, asyncio.Event] = {}

    async def run(self) -> None:
        """Advance the engine whenever something is due, until cancelled."""
        while True:
            self._woken.clear()
            now_ms = _now_ms()
            self.engine.advance(now_ms)
            if self._publisher is not None:
                await self._publisher.publish(self.engine.take_events())
            for run, news in self._news.items():
                if run.done or run.has_new:
                    news.set()
            due = self.engine.next_at_ms
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0, due - now_ms) / 1000):
                    await self._woken.wait()

    async def stream(self, run: SimulatedRun) -> AsyncGenerator[list[SimulatedToken]]:
        """Give a run's tokens as they come. Leaving early aborts the run."""
        news = self._news[run]
        try:
            while True:
                await news.wait()
                news.clear()
                done = run.done
                yield run.take_new()
                if done:
                    return
        finally:
            del self._news[run]
            self.engine.cancel(run, _now_ms())
            self._woken.set()

    def submit(self, payload: TaskPayload) -> SimulatedRun:
        """Take a task in; it must then be streamed.

        Raises: RequestTooLargeError if it can never run.
        """
        run = self.engine.submit(payload, _now_ms())
        self._news[run] = asyncio.Event()
        self._woken.set()
        return run

    def reset_cache(self) -> bool:
        """Forget the cache; False while tasks run."""
        done = self.engine.reset_cache()
        self._woken.set()
        return done


class SimulatedServer:
    """The HTTP side: vLLM's routes and shapes."""

    def __init__(self, config: ServerConfig, driver: EngineDriver) -> None:
        self._config = config
        self._driver = driver
        self._started_s = int(time.time())
        self._request_count = 0

    def build_app(self) -> web.Application:
        """Build the application with its routes."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_refuse_by_name])
        app.add_routes(
            [
                web.get("/health", self._get_health),
                web.get("/version", self._get_version),
                web.get("/v1/models", self._get_models),
                web.get("/metrics", self._get_metrics),
                web.post("/v1/completions", self._post_completions),
                web.post("/tokenize", self._post_tokenize),
                web.post("/reset_prefix_cache", self._post_reset),
            ]
        )
        return app

    async def _get_health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _get_version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": LABEL})

    async def _get_models(self, _request: web.Request) -> web.Response:
        folder = self._config.tokenizer_dir
        model = {
            "id": self._config.model,
            "object": "model",
            "created": self._started_s,
            "owned_by": "simulated",
            "root": str(folder) if folder else self._config.model,
            "parent": None,
            "max_model_len": self._config.engine.context_tokens,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        engine, config = self._driver.engine, self._config.engine
        labels = f'engine="0",model_name="{self._config.model}"'
        cache = (
            f'block_size="{config.block_size}",enable_prefix_caching="True",engine="0",'
            f'num_gpu_blocks="{config.blocks}",prefix_caching_hash_algo="sha256_cbor"'
        )
        lines = (
            f"# {LABEL}",
            f"vllm:cache_config_info{{{cache}}} 1.0",
            f"vllm:num_requests_running{{{labels}}} {engine.running_count}",
            f"vllm:num_requests_waiting{{{labels}}} {engine.waiting_count}",
            f"vllm:kv_cache_usage_perc{{{labels}}} {engine.used_share:.6f}",
            f"vllm:prefix_cache_queries_total{{{labels}}} {engine.queried_tokens}",
            f"vllm:prefix_cache_hits_total{{{labels}}} {engine.hit_tokens}",
        )
        return web.Response(text="\n".join(lines) + "\n")

    async def _post_reset(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self._driver.reset_cache() else 409)

    async def _post_tokenize(self, request: web.Request) -> web.Response:
        body = await _read_body(request)
        messages = body.get("messages")
        text = render_chat(messages) if isinstance(messages, list) else str(body.get("prompt", ""))
        tokens = encode_text(text)
        return web.json_response(
            {
                "count": len(tokens),
                "max_model_len": self._config.engine.context_tokens,
                "tokens": tokens,
            }
        )

    async def _post_completions(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request)
        if body.get("model", self._config.model) != self._config.model:
            return _refuse(404, "NotFoundError", "the model does not exist")
        run = self._driver.submit(_parse_payload(body))
        self._request_count += 1
        head = {
            "id": f"cmpl-simulated-{self._request_count}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._config.model,
        }
        async with aclosing(self._driver.stream(run)) as steps:
            if body.get("stream"):
                return await _stream_completion(request, body, head, run, steps)
            tokens = [token async for step in steps for token in step]
        choice = _make_choice(body, run, tokens, first=True)
        usage = _make_usage(run.usage)
        return web.json_response({**head, "choices": [choice], "usage": usage})


async def _stream_completion(
    request: web.Request,
    body: Mapping[str, Any],
    head: Mapping[str, Any],
    run: SimulatedRun,
    steps: AsyncIterator[list[SimulatedToken]],
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)

    async def send(event: object) -> None:
        text = event if isinstance(event, str) else json.dumps(event)
        await response.write(f"data: {text}\n\n".encode())

    first = True
    async for tokens in steps:
        if tokens:
            await send({**head, "choices": [_make_choice(body, run, tokens, first=first)]})
            first = False
    if (body.get("stream_options") or {}).get("include_usage"):
        await send({**head, "choices": [], "usage": _make_usage(run.usage)})
    await send("[DONE]")
    await response.write_eof()
    return response


def _make_choice(
    body: Mapping[str, Any], run: SimulatedRun, tokens: Sequence[SimulatedToken], *, first: bool
) -> dict[str, Any]:
    """Describe new tokens; the finish reason comes with the last of the run's."""
    ended = run.usage is not None and not run.has_new
    choice: dict[str, Any] = {
        "index": 0,
        "text": "".join(token.text for token in tokens),
        "logprobs": None,
        "finish_reason": _FINISH_NAMES.get(run.usage.finish) if ended and run.usage else None,
        "stop_reason": None,
    }
    if body.get("return_token_ids"):
        choice["prompt_token_ids"] = run.payload.token_ids if first else None
        choice["token_ids"] = [token.token_id for token in tokens]
    return choice


def _make_usage(usage: SimulatedUsage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "completion_tokens": usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _parse_payload(body: Mapping[str, Any]) -> TaskPayload:
    """Read the task from a completion request.

    Raises: MalformedMessageError for a prompt or number that vLLM would refuse too.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        prompt = encode_text(prompt)
    if not isinstance(prompt, list | tuple) or not all(
        isinstance(token_id, int) and 0 <= token_id < 1 << 32 for token_id in prompt
    ):
        raise MalformedMessageError("prompt must be a text or a list of token ids")
    stop = body.get("stop") or ()
    try:
        return TaskPayload(
            token_ids=tuple(prompt),
            max_tokens=int(body.get("max_tokens") or 16),
            cache_salt=str(body.get("cache_salt") or ""),
            temperature_ppm=round(float(body.get("temperature") or 0) * 1_000_000),
            top_p_ppm=round(float(body.get("top_p") or 1) * 1_000_000),
            seed=-1 if body.get("seed") is None else int(body["seed"]),
            stop=(stop,) if isinstance(stop, str) else tuple(str(item) for item in stop),
            ignore_eos=bool(body.get("ignore_eos")),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedMessageError("a number in the request is none") from error


async def _read_body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise MalformedMessageError("the request is no JSON") from error
    if not isinstance(body, dict):
        raise MalformedMessageError("the request is no JSON object")
    return body


def _refuse(status: int, kind: str, message: str) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


@web.middleware
async def _refuse_by_name(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except InvalidInputError as error:
        return _refuse(400, "BadRequestError", str(error))
    return response


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


async def serve(config: ServerConfig, *, stop: asyncio.Event) -> None:
    """Run the server until `stop` is set; print the ready line once it listens.

    Raises: OSError or zmq.ZMQError if an address is taken.
    """
    publisher = KvEventPublisher(config.engine.block_size) if config.kv_events else None
    driver = EngineDriver(config.engine, publisher)
    # A client that hangs up cancels its handler, which aborts its task, as in vLLM.
    runner = web.AppRunner(
        SimulatedServer(config, driver).build_app(), handler_cancellation=True, access_log=None
    )
    running: asyncio.Task[None] | None = None
    try:
        kv_events = kv_replay = None
        if publisher is not None and config.kv_events is not None:
            kv_events, kv_replay = publisher.bind(config.kv_events, config.kv_replay)
        await runner.setup()
        await web.TCPSite(runner, config.host, config.port, shutdown_timeout=0.5).start()
        running = asyncio.create_task(driver.run())
        host, port = runner.addresses[0][:2]
        ready = {
            "label": LABEL,
            "url": f"http://{host}:{port}",
            "model": config.model,
            "kv_events": kv_events,
            "kv_replay": kv_replay,
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, running}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if running.done():
            await running
    finally:
        await runner.cleanup()
        if running is not None:
            running.cancel()
        if publisher is not None:
            await publisher.close()


def parse_arguments(arguments: Sequence[str] | None = None) -> ServerConfig:
    """Read the command line; bad values end the process with a message."""
    default = EngineConfig()
    parser = argparse.ArgumentParser(
        prog="python -m node.backends.simulated",
        description=f"A {LABEL}: speaks vLLM's HTTP API and KV events; its text is made up.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--kv-events", metavar="ENDPOINT", help="ZMQ endpoint to publish on")
    parser.add_argument("--kv-replay", metavar="ENDPOINT", help="ZMQ endpoint for replays")
    parser.add_argument("--tokenizer-dir", type=Path, help="write the byte tokenizer's files here")
    parser.add_argument("--slots", type=int, default=default.slots)
    parser.add_argument("--blocks", type=int, default=default.blocks)
    parser.add_argument("--block-size", type=int, default=default.block_size)
    parser.add_argument("--context-tokens", type=int, default=default.context_tokens)
    parser.add_argument("--prefill-us-per-token", type=int, default=default.prefill_us_per_token)
    parser.add_argument("--decode-ms", type=float, default=default.decode_us_per_token / 1000)
    chosen = parser.parse_args(arguments)
    try:
        engine = replace(
            default,
            slots=chosen.slots,
            blocks=chosen.blocks,
            block_size=chosen.block_size,
            context_tokens=chosen.context_tokens,
            prefill_us_per_token=chosen.prefill_us_per_token,
            decode_us_per_token=round(chosen.decode_ms * 1000),
        )
    except InvalidInputError as error:
        parser.error(str(error))
    return ServerConfig(
        host=chosen.host,
        port=chosen.port,
        model=chosen.model,
        engine=engine,
        kv_events=chosen.kv_events,
        kv_replay=chosen.kv_replay,
        tokenizer_dir=chosen.tokenizer_dir,
    )


def main() -> None:
    """Run the server until a signal ends it."""
    config = parse_arguments()
    if config.tokenizer_dir is not None:
        config.tokenizer_dir.mkdir(parents=True, exist_ok=True)
        for name, content in build_byte_tokenizer().items():
            (config.tokenizer_dir / name).write_bytes(content)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(config, stop=stop)

    try:
        asyncio.run(run())
    except (OSError, zmq.ZMQError) as error:
        sys.exit(f"simulated backend: cannot listen ({error}); choose another port or endpoint")


if __name__ == "__main__":
    main()
