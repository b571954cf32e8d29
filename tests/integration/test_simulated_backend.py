"""The node's backends against the simulated server: a process, real HTTP, real KV events."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from iemas.core.digest import BlockChain, DigestIndex, count_matched_blocks
from iemas.core.errors import BackendError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason
from iemas.testing.prefix_cache import BlocksRemoved, BlocksStored
from iemas.testing.tokenizer import decode_tokens, encode_text
from node.backends.base import (
    Backend,
    BackendChunk,
    BackendRequestError,
    BackendUnreachableError,
    BackendUsage,
    KvEventsError,
    ModelMismatchError,
)
from node.backends.kv_events import FollowerState, KvEventFollower
from node.backends.kv_publisher import KvEventPublisher
from node.backends.openai_compatible import OpenAICompatibleBackend
from node.backends.vllm import VllmBackend

PROMPT = tuple(encode_text("The sea is wide and blue and deep. " * 4))


class Server:
    """A simulated server process."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.events, self.replay = f"ipc://{folder}/kv", f"ipc://{folder}/replay"
        command = [sys.executable, "-m", "node.backends.simulated", "--port", str(port)]
        command += ["--kv-events", self.events, "--kv-replay", self.replay, "--model", "sim"]
        command += ["--prefill-us-per-token", "20", "--decode-ms", "1", "--block-size", "16"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self.url = self.ready["url"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)

    def make_backend(self, **options: object) -> VllmBackend:
        return VllmBackend(
            self.url,
            kv_events_endpoint=self.events,
            kv_replay_endpoint=self.replay,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str, port: int = 0) -> Server:
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        servers.append(Server(folder, *options, port=port))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
async def backend(server: Server) -> AsyncIterator[VllmBackend]:
    made = server.make_backend(require_kv_events=True)
    await made.start()
    yield made
    await made.close()


def make_payload(
    token_ids: tuple[int, ...] = PROMPT, max_tokens: int = 20, salt: str = ""
) -> TaskPayload:
    return TaskPayload(token_ids, max_tokens, salt, 0, 1_000_000, -1, (), ignore_eos=True)


async def run(backend: Backend, payload: TaskPayload) -> tuple[str, tuple[int, ...], BackendUsage]:
    text, token_ids, usage = "", (), None
    async for item in backend.stream(payload):
        assert usage is None, "nothing comes after the usage"
        if isinstance(item, BackendUsage):
            usage = item
        else:
            text += item.text
            token_ids += item.token_ids
    assert usage is not None
    return text, token_ids, usage


async def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  what is waited for is in another process
            await asyncio.sleep(0.01)


def compute_chain(token_ids: tuple[int, ...], salt: str = "") -> bytes:
    chain = BlockChain(16, cache_salt=salt)
    chain.extend(token_ids)
    return chain.keys


def count_resident(backend: Backend, chain: bytes) -> int:
    return count_matched_blocks(chain, DigestIndex(backend.cache_snapshot()))


async def test_start_finds_out_what_the_server_is(server: Server) -> None:
    backend = server.make_backend(slots=3)
    info = await backend.start()
    assert (info.kind, info.model, info.slots) == ("simulated", "sim", 3)
    assert (info.block_size, info.context_tokens) == (16, 8192)
    assert info.kv_events
    assert not backend.estimated
    assert await backend.healthy()
    await backend.close()


async def test_every_token_is_streamed_with_its_id(backend: VllmBackend) -> None:
    text, token_ids, usage = await run(backend, make_payload())
    assert text == decode_tokens(token_ids)
    assert usage == BackendUsage(len(PROMPT), 0, 20, FinishReason.LENGTH)
    assert len(token_ids) == 20


async def test_the_second_turn_is_cached_and_the_digest_says_so_before(
    backend: VllmBackend,
) -> None:
    version = backend.cache_version
    _, output, _ = await run(backend, make_payload())
    full = PROMPT + output
    chain = compute_chain(full[:-1])
    while count_resident(backend, chain) < len(chain) // 8:
        version = await asyncio.wait_for(backend.wait_cache_change(version), 5)
    _, _, usage = await run(backend, make_payload((*full, *encode_text("And the sky?"))))
    assert usage.cached_tokens == len(chain) // 8 * 16


async def test_salts_keep_tenants_apart(backend: VllmBackend) -> None:
    await run(backend, make_payload(salt="a"))
    chain = compute_chain(PROMPT, "a")
    await wait_until(lambda: count_resident(backend, chain) == len(chain) // 8)
    _, _, usage = await run(backend, make_payload(salt="b"))
    assert usage.cached_tokens == 0
    assert count_resident(backend, compute_chain(PROMPT)) == 0


async def test_a_late_node_knows_the_whole_cache(server: Server, backend: VllmBackend) -> None:
    await run(backend, make_payload())
    await run(backend, make_payload(tuple(range(200))))
    await wait_until(lambda: len(backend.cache_snapshot()) > 20 * 8)
    late = server.make_backend()
    await late.start()
    assert late.cache_snapshot() == backend.cache_snapshot()
    await late.close()


async def test_eviction_reaches_the_digest(start_server: Callable[..., Server]) -> None:
    backend = start_server("--blocks", "16").make_backend()
    await backend.start()
    for i in range(6):
        await run(backend, make_payload(tuple(range(i, i + 160)), 4))
    last = compute_chain(tuple(range(5, 165)))
    await wait_until(lambda: count_resident(backend, last) == 10)
    assert len(backend.cache_snapshot()) <= 16 * 8
    await backend.close()


async def test_a_restarted_server_has_an_empty_cache(start_server: Callable[..., Server]) -> None:
    server = start_server()
    backend = server.make_backend()
    await backend.start()
    await run(backend, make_payload())
    await wait_until(lambda: bool(backend.cache_snapshot()))
    version = backend.cache_version
    server.stop(signal.SIGKILL)
    await asyncio.wait_for(backend.wait_cache_change(version), 5)
    assert backend.cache_snapshot() == b""
    assert not await backend.healthy()
    with pytest.raises(BackendUnreachableError, match="start it"):
        await run(backend, make_payload())

    again = Server(
        Path(server.events.removeprefix("ipc://")).parent, port=int(server.url.rpartition(":")[2])
    )
    other = tuple(range(64))
    await run(backend, make_payload(other))
    chain = compute_chain(other)
    await wait_until(lambda: count_resident(backend, chain) == 4)
    assert count_resident(backend, compute_chain(PROMPT)) == 0
    await backend.close()
    again.stop()


async def test_leaving_a_stream_aborts_the_task(
    start_server: Callable[..., Server],
) -> None:
    server = start_server("--decode-ms", "20")
    backend = server.make_backend()
    await backend.start()
    async with aclosing(backend.stream(make_payload(max_tokens=5000))) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            assert isinstance(chunk, BackendChunk)
            break
    async with aiohttp.ClientSession() as session, asyncio.timeout(5):
        while True:
            async with session.get(f"{server.url}/metrics") as answer:
                if 'running{engine="0",model_name="sim"} 0' in await answer.text():
                    break
    await backend.close()


async def test_a_server_that_dies_mid_stream_is_a_named_error(
    start_server: Callable[..., Server],
) -> None:
    server = start_server("--decode-ms", "20")
    backend = server.make_backend()
    await backend.start()
    got: list[BackendChunk] = []

    async def read() -> None:
        async for item in backend.stream(make_payload(max_tokens=5000)):
            assert isinstance(item, BackendChunk)
            got.append(item)
            if len(got) == 3:
                server.stop(signal.SIGKILL)

    with pytest.raises(BackendError):
        await read()
    assert len(got) >= 3
    await backend.close()


async def test_bad_requests_and_settings_are_named(server: Server, backend: VllmBackend) -> None:
    with pytest.raises(BackendRequestError, match="8192"):
        await run(backend, make_payload(max_tokens=9000))
    with pytest.raises(ModelMismatchError, match="serves sim"):
        await server.make_backend(model="llama").start()
    with pytest.raises(BackendUnreachableError, match="start it"):
        await VllmBackend("http://127.0.0.1:1").start()
    with pytest.raises(KvEventsError, match="no KV events endpoint"):
        await VllmBackend(server.url, require_kv_events=True).start()


async def test_without_kv_events_the_digest_is_estimated(server: Server) -> None:
    backend = VllmBackend(server.url)
    info = await backend.start()
    assert backend.estimated
    assert not info.kv_events
    _, output, _ = await run(backend, make_payload())
    chain = compute_chain((PROMPT + output)[:-1])
    assert count_resident(backend, chain) == len(chain) // 8
    await backend.close()


async def test_a_silent_kv_endpoint_is_told_from_a_working_one(
    server: Server, tmp_path: Path
) -> None:
    backend = VllmBackend(
        server.url,
        kv_events_endpoint=f"ipc://{tmp_path}/nobody",
        kv_replay_endpoint=f"ipc://{tmp_path}/nobody-replay",
        require_kv_events=True,
        kv_timeout_s=0.3,
    )
    with pytest.raises(KvEventsError, match=r"tcp://\*:PORT"):
        await backend.start()


async def test_an_openai_compatible_server_takes_text(server: Server) -> None:
    backend = OpenAICompatibleBackend(
        server.url + "/v1",
        detokenize=lambda ids: decode_tokens(list(ids)),
        tokenize=encode_text,
        context_tokens=4096,
        block_size=16,
    )
    info = await backend.start()
    assert (info.kind, info.model, info.kv_events) == ("openai_compatible", "sim", False)
    version = backend.cache_version
    text, token_ids, usage = await run(backend, make_payload())
    assert encode_text(text) == token_ids
    assert usage == BackendUsage(len(PROMPT), 0, 20, FinishReason.LENGTH)
    assert await asyncio.wait_for(backend.wait_cache_change(version), 1) > version
    assert count_resident(backend, compute_chain(PROMPT)) == len(PROMPT) // 16
    assert await backend.healthy()
    await backend.close()
    with pytest.raises(KvEventsError):
        await OpenAICompatibleBackend(
            server.url,
            detokenize=str,
            tokenize=encode_text,
            context_tokens=1,
            require_kv_events=True,
        ).start()


def test_the_server_says_what_it_is_and_leaves_nothing_behind(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    assert server.ready["label"] == "simulated backend, for tests only"
    assert server.stop() == 0
    folder = Path(server.events.removeprefix("ipc://")).parent
    assert list(folder.iterdir()) == []


def test_a_taken_port_is_named(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "node.backends.simulated", "--port", port],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "choose another port" in done.stderr


# --- the follower alone, against a publisher that misbehaves --------------------------------------


def make_stored(token_ids: tuple[int, ...]) -> BlocksStored:
    chain = compute_chain(token_ids)
    keys = tuple(int.from_bytes(chain[i : i + 8], "big") for i in range(0, len(chain), 8))
    return BlocksStored(keys, None, token_ids, "")


@pytest.fixture
async def publisher(tmp_path: Path) -> AsyncIterator[KvEventPublisher]:
    made = KvEventPublisher(16, kept_batches=3)
    made.bind(f"ipc://{tmp_path}/kv", f"ipc://{tmp_path}/replay")
    yield made
    await made.close()


@pytest.fixture
async def follower(publisher: KvEventPublisher, tmp_path: Path) -> AsyncIterator[KvEventFollower]:
    made = KvEventFollower(f"ipc://{tmp_path}/kv", f"ipc://{tmp_path}/replay", block_size=16)
    assert await made.start()
    yield made
    await made.close()


def skip_publishing(publisher: KvEventPublisher, event: BlocksStored | BlocksRemoved) -> None:
    """Keep a batch for replay without sending it, as when a queue overflowed."""
    payload = publisher.encode_batch([event])
    publisher._kept.append((publisher._sequence, payload))
    publisher._sequence += 1


async def test_a_gap_is_filled_by_replay(
    publisher: KvEventPublisher, follower: KvEventFollower
) -> None:
    await publisher.publish([make_stored(tuple(range(16)))])
    await wait_until(lambda: len(follower.resident) == 1)
    skip_publishing(publisher, make_stored(tuple(range(100, 132))))
    await publisher.publish([make_stored(tuple(range(200, 216)))])
    await wait_until(lambda: len(follower.resident) == 4)


async def test_a_missed_last_batch_is_asked_for(
    publisher: KvEventPublisher, follower: KvEventFollower
) -> None:
    skip_publishing(publisher, make_stored(tuple(range(32))))
    await wait_until(lambda: len(follower.resident) == 2)


async def test_a_gap_that_cannot_be_filled_drops_the_picture(
    publisher: KvEventPublisher, follower: KvEventFollower
) -> None:
    first = make_stored(tuple(range(16)))
    await publisher.publish([first])
    await wait_until(lambda: len(follower.resident) == 1)
    # Among the lost ones is the removal of the first block; only the last three are kept.
    skip_publishing(publisher, BlocksRemoved(first.keys))
    for i in (1, 2, 3):
        skip_publishing(publisher, make_stored(tuple(range(100 * i, 100 * i + 16))))
    await publisher.publish([make_stored(tuple(range(500, 516)))])
    await wait_until(lambda: len(follower.resident) == 3)
    assert first.keys[0].to_bytes(8, "big") not in follower.resident


async def test_other_hashes_make_the_events_unusable(
    publisher: KvEventPublisher, follower: KvEventFollower
) -> None:
    await publisher.publish([make_stored(tuple(range(16)))])
    await wait_until(lambda: len(follower.resident) == 1)
    follower._book.forget(1)
    await publisher.publish([BlocksStored((1,), None, tuple(range(16)), "")])
    await wait_until(lambda: follower.state is FollowerState.UNUSABLE)
    assert "PYTHONHASHSEED" in follower.problem
    assert len(follower.resident) == 0
