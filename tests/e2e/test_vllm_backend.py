"""The vLLM backend against a real vLLM server on the CPU, with a real model.

The first run installs vLLM and the model into the user's cache folder (minutes, 3.4 GB).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest
from tokenizers import Tokenizer

from iemas.core.digest import BlockChain, DigestIndex, count_matched_blocks
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason
from node.backends.base import BackendChunk, BackendRequestError, BackendUsage
from node.backends.vllm import VllmBackend
from node.vllm_cpu import (
    VllmServer,
    VllmServerConfig,
    ensure_model,
    ensure_vllm,
    get_default_cache_dir,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

QUESTION = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
STORY = "The sea is wide and blue and deep, and the ship was small. " * 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    cache = get_default_cache_dir()
    python = ensure_vllm(cache, torch_index=os.environ.get("IEMAS_TORCH_INDEX"), progress=print)
    model = ensure_model(cache, python=python, progress=print)
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    # The smallest cache that holds one full context, so that eviction comes soon.
    config = VllmServerConfig(python=python, model=model, log_path=log, kv_blocks=260)
    with VllmServer(config) as started:
        started.wait_ready(print)
        yield started


@pytest.fixture(scope="module")
def tokenizer(server: VllmServer) -> Tokenizer:
    return Tokenizer.from_file(str(server.config.model / "tokenizer.json"))


def make_backend(server: VllmServer) -> VllmBackend:
    return VllmBackend(
        server.url,
        kv_events_endpoint=server.kv_events_endpoint,
        kv_replay_endpoint=server.kv_replay_endpoint,
        require_kv_events=True,
    )


@pytest.fixture
async def backend(server: VllmServer) -> AsyncIterator[VllmBackend]:
    made = make_backend(server)
    await made.start()
    yield made
    await made.close()


def make_payload(token_ids: tuple[int, ...], salt: str, **changes: object) -> TaskPayload:
    fields: dict[str, object] = {
        "token_ids": token_ids,
        "max_tokens": 40,
        "cache_salt": salt,
        "temperature_ppm": 0,
        "top_p_ppm": 1_000_000,
        "seed": -1,
        "stop": (),
        "ignore_eos": False,
    }
    return TaskPayload(**(fields | changes))  # type: ignore[arg-type]


async def run(
    backend: VllmBackend, payload: TaskPayload
) -> tuple[str, tuple[int, ...], BackendUsage]:
    text, token_ids, usage = "", (), None
    async for item in backend.stream(payload):
        assert usage is None
        if isinstance(item, BackendUsage):
            usage = item
        else:
            text += item.text
            token_ids += item.token_ids
    assert usage is not None
    return text, token_ids, usage


async def wait_resident(backend: VllmBackend, chain: bytes) -> None:
    """Wait until all blocks of a chain are in the backend's digest."""
    async with asyncio.timeout(10):
        version = backend.cache_version
        while count_resident(backend, chain) < len(chain) // 8:
            version = await backend.wait_cache_change(version)


def count_resident(backend: VllmBackend, chain: bytes) -> int:
    return count_matched_blocks(chain, DigestIndex(backend.cache_snapshot()))


def compute_chain(token_ids: tuple[int, ...], salt: str) -> bytes:
    chain = BlockChain(32, cache_salt=salt)
    chain.extend(token_ids)
    return chain.keys


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


async def test_start_finds_out_what_vllm_is(server: VllmServer) -> None:
    backend = make_backend(server)
    info = await backend.start()
    assert (info.kind, info.model) == ("vllm", "smollm2")
    assert (info.block_size, info.context_tokens) == (32, 8192)
    assert info.kv_events
    assert info.tokenizer_path == server.config.model
    assert len(info.revision) == 16
    await backend.close()


async def test_every_token_is_streamed_with_its_exact_id(
    backend: VllmBackend, tokenizer: Tokenizer
) -> None:
    prompt = encode(tokenizer, QUESTION.format("Name three colours."))
    text, token_ids, usage = await run(backend, make_payload(prompt, "ids"))
    assert tokenizer.decode(list(token_ids), skip_special_tokens=True) == text
    assert usage.prompt_tokens == len(prompt)
    assert usage.output_tokens == len(token_ids) > 0
    # Greedy decoding again gives the same ids, the end marker among them if there is one.
    again = await run(backend, make_payload(prompt, "ids"))
    assert again[:2] == (text, token_ids)


async def test_the_end_marker_is_metered_and_stop_strings_end_the_text(
    backend: VllmBackend, tokenizer: Tokenizer
) -> None:
    prompt = encode(tokenizer, QUESTION.format("Say only the word yes."))
    _, token_ids, usage = await run(backend, make_payload(prompt, "eos", max_tokens=400))
    assert usage.finish is FinishReason.STOP
    assert token_ids[-1] == tokenizer.token_to_id("<|im_end|>")
    text, _, usage = await run(
        backend, make_payload(prompt, "eos", max_tokens=60, stop=("e",), ignore_eos=True)
    )
    assert "e" not in text
    assert usage.finish is FinishReason.STOP
    _, token_ids, usage = await run(
        backend, make_payload(prompt, "eos", max_tokens=60, ignore_eos=True)
    )
    assert (len(token_ids), usage.finish) == (60, FinishReason.LENGTH)


async def test_the_digest_equals_the_recomputed_chain_and_the_next_turn_is_cached(
    backend: VllmBackend, tokenizer: Tokenizer
) -> None:
    salt = "turns"
    prompt = encode(tokenizer, QUESTION.format(STORY + "How is the sea?"))
    before = len(backend.cache_snapshot()) // 8
    _, output, usage = await run(backend, make_payload(prompt, salt))
    assert usage.cached_tokens == 0
    # All but the last token of the output were computed: these blocks, and no others, are new.
    chain = compute_chain((prompt + output)[:-1], salt)
    await wait_resident(backend, chain)
    assert len(backend.cache_snapshot()) // 8 == before + len(chain) // 8
    following = prompt + output + encode(tokenizer, "\n" + QUESTION.format("And the ship?"))
    expected = count_resident(backend, compute_chain(following, salt))
    _, _, usage = await run(backend, make_payload(following, salt))
    assert usage.cached_tokens == expected * 32
    assert usage.cached_tokens >= 0.8 * len(prompt)


async def test_salts_keep_tenants_apart(backend: VllmBackend, tokenizer: Tokenizer) -> None:
    prompt = encode(tokenizer, QUESTION.format(STORY))
    await run(backend, make_payload(prompt, "one", max_tokens=2))
    await wait_resident(backend, compute_chain(prompt, "one"))
    assert count_resident(backend, compute_chain(prompt, "two")) == 0
    _, _, usage = await run(backend, make_payload(prompt, "two", max_tokens=2))
    assert usage.cached_tokens == 0
    _, _, usage = await run(backend, make_payload(prompt, "one", max_tokens=2))
    assert usage.cached_tokens >= len(prompt) - 32


async def test_a_late_node_knows_the_whole_cache(server: VllmServer, backend: VllmBackend) -> None:
    late = make_backend(server)
    await late.start()
    assert late.cache_snapshot() == backend.cache_snapshot() != b""
    await late.close()


async def test_eviction_keeps_the_digest_within_the_cache(
    server: VllmServer, backend: VllmBackend
) -> None:
    blocks = server.config.kv_blocks
    for i in range(3):
        prompt = tuple(1000 + (i * 7919 + j * 104_729) % 40_000 for j in range(3500))
        await run(backend, make_payload(prompt, "evict", max_tokens=1))
        await wait_resident(backend, compute_chain(prompt, "evict"))
        assert len(backend.cache_snapshot()) // 8 <= blocks


async def test_leaving_a_stream_aborts_the_task(
    server: VllmServer, backend: VllmBackend, tokenizer: Tokenizer
) -> None:
    prompt = encode(tokenizer, QUESTION.format("Count to a thousand."))
    payload = make_payload(prompt, "abort", max_tokens=4000, ignore_eos=True)
    async with aclosing(backend.stream(payload)) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            assert isinstance(chunk, BackendChunk)
            break
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            async with session.get(f"{server.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            running = [line for line in lines if line.startswith("vllm:num_requests_running{")]
            if running and running[0].endswith(" 0.0"):
                break
            await asyncio.sleep(0.1)


async def test_what_vllm_refuses_is_named_without_the_prompt(backend: VllmBackend) -> None:
    with pytest.raises(BackendRequestError, match="8192"):
        await run(backend, make_payload((1, 2, 3), "", max_tokens=9000))
    with pytest.raises(BackendRequestError, match="HTTP status 400") as caught:
        await run(backend, make_payload((123_456_789,), ""))
    assert "123456789" not in str(caught.value)


async def test_a_restart_clears_the_digest(
    server: VllmServer, backend: VllmBackend, tokenizer: Tokenizer
) -> None:
    prompt = encode(tokenizer, QUESTION.format(STORY))
    await run(backend, make_payload(prompt, "restart", max_tokens=2))
    await wait_resident(backend, compute_chain(prompt, "restart"))
    sockets = Path(server.kv_events_endpoint.removeprefix("ipc://")).parent
    await asyncio.to_thread(server.stop)
    assert not sockets.exists()
    assert backend.cache_snapshot() == b""
    assert not await backend.healthy()
    server.start()
    await asyncio.to_thread(server.wait_ready, print)
    _, _, usage = await run(backend, make_payload(prompt, "restart", max_tokens=2))
    assert usage.cached_tokens == 0
    chain = compute_chain(prompt, "restart")
    await wait_resident(backend, chain)
    assert backend.cache_snapshot() == sort_keys(chain)


def sort_keys(chain: bytes) -> bytes:
    return b"".join(sorted(chain[i : i + 8] for i in range(0, len(chain), 8)))
