"""The inference servers behind a local market: simulated ones, real vLLM, or given URLs."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from iemas.core.errors import ConfigurationError
from node.backends.base import BackendUnreachableError, ModelMismatchError
from node.guard import GuardedProcess
from node.local_market.plan import SIMULATED, VLLM_CPU, BackendAddress, MarketPlan
from node.vllm_cpu import (
    VllmServer,
    VllmServerConfig,
    ensure_model,
    ensure_vllm,
    get_default_cache_dir,
)

Progress = Callable[[str], None]
SIMULATED_READY_S: Final = 30.0
PROBE_S: Final = 5.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class StartedBackend:
    """A server that answers; `pid` is 0 for one that was not started here."""

    name: str
    address: BackendAddress
    pid: int
    log: Path | None = None


class Backends(Protocol):
    """The servers of one market, one a node."""

    async def start(self, progress: Progress) -> Sequence[StartedBackend]:
        """Start them, or find them; give them in the nodes' order.

        Raises: ConfigurationError, BackendUnreachableError, each naming the fix.
        """
        ...

    async def stop(self) -> None:
        """End what was started. Can be called twice."""
        ...


def make_backends(plan: MarketPlan, folder: Path) -> Backends:
    """Choose by the plan; logs go to `folder`."""
    if plan.backend == SIMULATED:
        return SimulatedBackends(plan, folder)
    if plan.backend == VLLM_CPU:
        return VllmBackends(plan, folder)
    return GivenBackends(plan.addresses)


class SimulatedBackends:
    """Simulated servers as processes of their own, for tests only."""

    def __init__(self, plan: MarketPlan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._processes: list[GuardedProcess] = []

    async def start(self, progress: Progress) -> Sequence[StartedBackend]:
        """Start one a node and wait until all listen."""
        progress(f"starting {self._plan.nodes} simulated backends (for tests only)")
        logs = []
        for number in range(1, self._plan.nodes + 1):
            log = self._folder / f"backend-{number}.log"
            log.unlink(missing_ok=True)
            self._processes.append(self._launch(log))
            logs.append(log)
        return [await self._wait_ready(number, log) for number, log in enumerate(logs, start=1)]

    def _launch(self, log: Path) -> GuardedProcess:
        # A folder a server: its guard removes the folder with the server, however it ends.
        sockets = tempfile.mkdtemp(prefix="iemas-")
        # fmt: off
        command = [
            sys.executable, "-m", "node.backends.simulated",
            "--model", self._plan.model or "simulated",
            "--tokenizer-dir", str(self._folder / "tokenizer"),
            "--kv-events", f"ipc://{sockets}/kv",
            "--kv-replay", f"ipc://{sockets}/replay",
            *self._plan.simulated_arguments,
        ]
        # fmt: on
        return GuardedProcess(command, log_path=log, remove=(Path(sockets),))

    async def _wait_ready(self, number: int, log: Path) -> StartedBackend:
        process = self._processes[number - 1]
        give_up_s = time.monotonic() + SIMULATED_READY_S
        while (ready := _find_ready_line(log)) is None:
            if not process.running or time.monotonic() > give_up_s:
                how = process.ending or "did not start"
                raise BackendUnreachableError(
                    f"the simulated backend {number} {how}; see {log}\n{_read_text(log)}"
                )
            await asyncio.sleep(_POLL_S)
        address = BackendAddress(ready["url"], ready["kv_events"], ready["kv_replay"])
        return StartedBackend(f"backend-{number}", address, process.pid, log)

    async def stop(self) -> None:
        """End the servers, together; their guards remove their sockets."""
        processes, self._processes = self._processes, []
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in processes))


class VllmBackends:
    """Real vLLM servers on this machine's CPU, with the small model."""

    def __init__(self, plan: MarketPlan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._servers: list[VllmServer] = []

    async def start(self, progress: Progress) -> Sequence[StartedBackend]:
        """Set vLLM and the model up if need be, start one server a node, wait for all."""
        plan = self._plan
        cache_dir = Path(plan.cache_dir) if plan.cache_dir else get_default_cache_dir()
        python = await asyncio.to_thread(
            ensure_vllm, cache_dir, torch_index=plan.torch_index, progress=progress
        )
        model = await asyncio.to_thread(ensure_model, cache_dir, python=python, progress=progress)
        for number in range(1, plan.nodes + 1):
            log = self._folder / f"vllm-{number}.log"
            log.unlink(missing_ok=True)
            server = VllmServer(VllmServerConfig(python=python, model=model, log_path=log))
            self._servers.append(server)
            server.start()
        await asyncio.gather(
            *(asyncio.to_thread(server.wait_ready, progress) for server in self._servers)
        )
        return [self._describe(number) for number in range(1, plan.nodes + 1)]

    def _describe(self, number: int) -> StartedBackend:
        server = self._servers[number - 1]
        address = BackendAddress(server.url, server.kv_events_endpoint, server.kv_replay_endpoint)
        log = self._folder / f"vllm-{number}.log"
        return StartedBackend(f"vllm-{number}", address, server.pid or 0, log)

    async def stop(self) -> None:
        """End the servers, together."""
        servers, self._servers = self._servers, []
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in servers))


class GivenBackends:
    """Servers that somebody else runs."""

    def __init__(self, addresses: Sequence[BackendAddress]) -> None:
        self._addresses = addresses

    async def start(self, progress: Progress) -> Sequence[StartedBackend]:
        """Take them as they are; `find_model` shows whether they answer."""
        progress(f"using {len(self._addresses)} given backends")
        return [
            StartedBackend(f"backend-{number}", address, 0)
            for number, address in enumerate(self._addresses, start=1)
        ]

    async def stop(self) -> None:
        """Leave them running."""


async def find_model(backends: Sequence[StartedBackend], wanted: str | None) -> str:
    """Find the one model that all servers serve.

    Raises: BackendUnreachableError; ModelMismatchError naming who serves what.
    """
    served = await asyncio.gather(
        *(asyncio.to_thread(list_models, backend.address.url) for backend in backends)
    )
    model = wanted or served[0][0]
    for backend, names in zip(backends, served, strict=True):
        if model not in names:
            raise ModelMismatchError(
                f"{backend.address.url} serves {', '.join(names)}, not {model!r}: all nodes of a "
                "market sell one model; correct the backend or name the model with --model"
            )
    return model


def list_models(url: str) -> list[str]:
    """Ask an OpenAI-compatible server for its models' names.

    Raises: BackendUnreachableError; ConfigurationError if `url` is none.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{url!r} is no URL of a backend: use http://HOST:PORT, vllm-cpu or simulated"
        )
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=PROBE_S) as answer:  # noqa: S310 - http(s) only, see above
            names = [str(entry["id"]) for entry in json.load(answer)["data"]]
    except (OSError, urllib.error.URLError) as error:
        raise BackendUnreachableError(
            f"nothing answers at {url} ({getattr(error, 'reason', error)}): start the inference "
            "server first, or correct --backend"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BackendUnreachableError(f"{url} is no OpenAI-compatible server") from error
    if not names:
        raise BackendUnreachableError(f"{url} serves no model")
    return names


def _find_ready_line(log: Path) -> dict[str, str] | None:
    """Find the line of JSON by which a simulated server says that it listens."""
    for line in _read_text(log).splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            ready: dict[str, str] = json.loads(line)
            return ready
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-4000:]
    except OSError:
        return ""
