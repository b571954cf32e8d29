"""Real vLLM servers for end-to-end tests: one set, shared by the tests of a module."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from node.local_market import BackendAddress
from node.vllm_cpu import (
    VllmServer,
    VllmServerConfig,
    ensure_model,
    ensure_vllm,
    get_default_cache_dir,
)

SERVERS = 3


@pytest.fixture(scope="module")
def vllm_servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sequence[VllmServer]]:
    """Three vLLM servers with their own KV caches (10 GB together, up in about a minute).

    A module that says `SERVERS` gets so many.
    """
    cache = get_default_cache_dir()
    torch_index = os.environ.get("IEMAS_TORCH_INDEX")
    python = ensure_vllm(cache, torch_index=torch_index, progress=print)
    model = ensure_model(cache, python=python, progress=print)
    logs = tmp_path_factory.mktemp("vllm")
    with ExitStack() as stack:
        servers = []
        for number in range(getattr(request.module, "SERVERS", SERVERS)):
            config = VllmServerConfig(python=python, model=model, log_path=logs / f"{number}.log")
            servers.append(stack.enter_context(VllmServer(config)))
        for server in servers:
            server.wait_ready(print)
        yield servers


@pytest.fixture(scope="module")
def vllm_addresses(vllm_servers: Sequence[VllmServer]) -> tuple[BackendAddress, ...]:
    return tuple(
        BackendAddress(server.url, server.kv_events_endpoint, server.kv_replay_endpoint)
        for server in vllm_servers
    )
