"""The supervisor of a local market: backends and nodes; up, watched, and down again.

Everything is a guarded child process (`node.guard`), so nothing outlives this process however it
ends. The first node is the bootstrap of the others; each node says by its ready file that it
serves, and where.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from iemas.core.errors import ConfigurationError, IemasError
from iemas.core.params import Genesis
from iemas.core.types import NodeId
from iemas.files import naming_os_errors
from iemas.tls import parse_address
from node.backends.base import BackendUnreachableError
from node.config import ENV_PREFIX, BackendKind
from node.guard import LOG_PREFIX, GuardedProcess
from node.local_market.backends import Progress, StartedBackend, find_model, make_backends
from node.local_market.home import ANOTHER_HOME, LOCK_FILE, MarketHome, MarketState, make_record
from node.local_market.plan import CUSTOMER, SIMULATED, MarketPlan, save_plan
from node.local_market.probe import get_account_nonce, get_status

NODE_READY_S: Final = 60.0
MARKET_OPEN_S: Final = 60.0
READY_FILE: Final = "ready.json"
_POLL_S: Final = 0.05


@dataclass(slots=True)
class RunningNode:
    """A node process of this market."""

    name: str
    node_id: NodeId
    process: GuardedProcess
    log: Path
    backend: StartedBackend | None
    log_from: int
    """Where in the log this process begins; those before it wrote there too."""
    address: str = ""
    pid: int = 0

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.process.running

    def explain_end(self) -> str:
        """Say how the process ended and what it said last."""
        how = self.process.ending or "ended"
        return f"{self.name} {how}: {_read_last_error(self.log, self.log_from)} (see {self.log})"


class LocalMarket:
    """A market on this machine, from one folder.

    Example:
        >>> async def run(folder):
        ...     async with LocalMarket(folder) as market:
        ...         await market.start(MarketPlan(nodes=3), print)
        ...         print(market.bootstrap)

    """

    def __init__(self, home: Path | MarketHome) -> None:
        self.home = home if isinstance(home, MarketHome) else MarketHome(home)
        self.nodes: dict[str, RunningNode] = {}
        self.backends: Sequence[StartedBackend] = ()
        self.genesis: Genesis | None = None
        self._plan = MarketPlan()
        self._servers = make_backends(self._plan, self.home.path)
        self._held = False
        self._started_at_ms = 0

    # --- what callers need ---------------------------------------------------------------------

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """Addresses at which the market can be reached, those of nodes that sell first."""
        nodes = [self.nodes[name] for name in self._plan.names if name in self.nodes]
        return tuple(node.address for node in nodes if node.running)

    @property
    def customer_key(self) -> Path:
        """The key file of the account that is funded from the start."""
        return self.home.get_account_key(CUSTOMER)

    def require_genesis(self) -> Genesis:
        """Give the market's genesis. Raises: ConfigurationError before `start`."""
        if self.genesis is None:
            raise ConfigurationError("the market was not started")
        return self.genesis

    # --- up and down ---------------------------------------------------------------------------

    async def start(self, plan: MarketPlan, progress: Progress) -> None:
        """Bring the whole market up and wait until it can sell.

        `progress` is called with a line of text for whatever happens, from any thread.
        Raises: ConfigurationError, BackendUnreachableError, each naming what to do; then nothing
            runs any more.
        """
        plan.validate()
        with naming_os_errors(ANOTHER_HOME):
            self.home.acquire()
            self._held = True
            self._plan = plan
            self._servers = make_backends(plan, self.home.path)
            try:
                await self._start(plan, progress)
            except BaseException:
                await self.stop()
                raise

    async def _start(self, plan: MarketPlan, progress: Progress) -> None:
        _check_ports(plan)
        if self.home.exists:  # before the servers, which may take a minute
            self.home.check_plan(plan)
        self._started_at_ms = time.time_ns() // 1_000_000
        self.backends = await self._servers.start(progress)
        model = await find_model(self.backends, plan.model)
        self.genesis = self.home.create(plan, model)
        save_plan(self.home.plan_file, plan)
        first, *others = plan.names
        progress(f"starting {len(plan.names)} nodes")
        await self.start_node(first)
        await asyncio.gather(*(self.start_node(name) for name in others))
        progress("waiting until every node knows the others and its ask is on the ledger")
        await self._wait_open()
        self._publish()

    async def stop(self) -> None:
        """End every process and free the folder. Can be called twice."""
        nodes, self.nodes = list(self.nodes.values()), {}
        await asyncio.gather(*(asyncio.to_thread(node.process.stop) for node in nodes))
        await self._servers.stop()
        if self._held:
            self._held = False
            self.home.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(self.stop())

    # --- nodes -----------------------------------------------------------------------------------

    async def start_node(self, name: str) -> RunningNode:
        """Start one node, also one that ended, and wait until it serves.

        Raises: ConfigurationError with what the node said if it does not start.
        """
        data_dir = self.home.get_data_dir(name)
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        ready_file = data_dir / READY_FILE
        ready_file.unlink(missing_ok=True)
        log = data_dir / "node.log"
        log_from = log.stat().st_size if log.exists() else 0
        backend = self._get_backend(name)
        # What is set around this process is for a node of its user's, not for these.
        env = {k: v for k, v in os.environ.items() if not k.upper().startswith(ENV_PREFIX)}
        process = GuardedProcess(self._make_command(name, backend), log_path=log, env=env)
        node = RunningNode(name, self._get_node_id(name), process, log, backend, log_from)
        replaced, self.nodes[name] = self.nodes.get(name), node
        if replaced is not None:
            await asyncio.to_thread(replaced.process.stop)
        await self._wait_ready(node, ready_file)
        return node

    async def restart_node(self, name: str) -> None:
        """Start a node that ended, and say in the folder where it is now.

        Raises: as `start_node`.
        """
        await self.start_node(name)
        self._publish()

    async def kill_node(self, name: str) -> None:
        """End a node as kill -9 does: no goodbye, no flush. For tests of what follows."""
        node = self.nodes[name]
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, 9)
        await asyncio.to_thread(node.process.stop)

    def find_node(self, node_id: bytes) -> RunningNode:
        """Find a node by its id. Raises: KeyError."""
        return next(node for node in self.nodes.values() if node.node_id == node_id)

    def _get_backend(self, name: str) -> StartedBackend | None:
        sellers = self._plan.seller_names
        return self.backends[sellers.index(name)] if name in sellers else None

    def _get_node_id(self, name: str) -> NodeId:
        return self.require_genesis().validators[self._plan.names.index(name)].node_id

    def _make_command(self, name: str, backend: StartedBackend | None) -> list[str]:
        """Give the command line of a node: all its settings are flags, none comes from around."""
        home, port = self.home, 0
        if self._plan.ports:
            port = self._plan.ports[2 * self._plan.names.index(name)]
        # fmt: off
        command = [
            sys.executable, "-m", "node.cli.daemon", "run",
            "--key-file", str(home.get_node_key(name)),
            "--data-dir", str(home.get_data_dir(name)),
            "--genesis", str(home.genesis_file),
            "--public-listen", f"127.0.0.1:{port}",
            "--peer-listen", f"127.0.0.1:{port + 1 if port else 0}",
            "--log-format", "json",
        ]
        # fmt: on
        for other in self.nodes.values():
            if other.name != name and other.address and other.running:
                command += ["--bootstrap", other.address]
        return command if backend is None else command + self._make_backend_flags(backend)

    def _make_backend_flags(self, backend: StartedBackend) -> list[str]:
        address = backend.address
        if self._plan.backend == SIMULATED:
            kind = BackendKind.SIMULATED
        else:
            kind = BackendKind.VLLM if address.kv_events else BackendKind.OPENAI_COMPATIBLE
        flags = ["--backend", address.url, "--backend-kind", kind.value]
        flags += ["--model", self.require_genesis().model]
        if address.kv_events is not None:
            flags += ["--kv-events-endpoint", address.kv_events]
        if address.kv_replay is not None:
            flags += ["--kv-replay-endpoint", address.kv_replay]
        return flags

    # --- waiting ---------------------------------------------------------------------------------

    async def _wait_ready(self, node: RunningNode, ready_file: Path) -> None:
        give_up_s = time.monotonic() + NODE_READY_S
        while (ready := _read_ready_file(ready_file)) is None:
            if not node.running:
                raise ConfigurationError(node.explain_end(), node=node.name)
            if time.monotonic() > give_up_s:
                said = _read_last_error(node.log, node.log_from)
                raise ConfigurationError(
                    f"{node.name} does not get ready: {said} (see {node.log})", node=node.name
                )
            await asyncio.sleep(_POLL_S)
        node.address, node.pid = ready["address"], ready["pid"]

    async def _wait_open(self) -> None:
        """Wait until every node is connected to all others and every ask is on its ledger."""
        give_up_s = time.monotonic() + MARKET_OPEN_S
        missing = ""
        while time.monotonic() < give_up_s:
            for node in self.nodes.values():
                if not node.running:
                    raise BackendUnreachableError(node.explain_end())
            missing = await self._find_missing()
            if not missing:
                return
            await asyncio.sleep(2 * _POLL_S)
        raise ConfigurationError(f"the market did not open within {MARKET_OPEN_S:.0f} s: {missing}")

    async def _find_missing(self) -> str:
        """Say what the market still waits for; empty once it is open."""
        sellers = [node for node in self.nodes.values() if node.backend is not None]
        for node in self.nodes.values():
            address = parse_address(node.address)
            try:
                status = await get_status(address)
                nonces = [await get_account_nonce(address, seller.node_id) for seller in sellers]
            except IemasError as error:
                return f"{node.name} does not answer ({error})"
            if status.peers_alive < len(self.nodes) - 1:
                return f"{node.name} knows {status.peers_alive} of {len(self.nodes) - 1} peers"
            for seller, nonce in zip(sellers, nonces, strict=True):
                if nonce == 0:
                    return f"{seller.name}'s ask is not on {node.name}'s ledger"
        return ""

    def _publish(self) -> None:
        """Say in the folder that the market runs, and how to reach it."""
        supervisor = make_record("supervisor", "supervisor", os.getpid())
        nodes = [
            make_record(
                node.name,
                "node" if node.backend is not None else "validator",
                node.pid,
                address=node.address,
                url=node.backend.address.url if node.backend is not None else "",
            )
            for node in self.nodes.values()
        ]
        servers = [
            make_record(backend.name, "backend", backend.pid, url=backend.address.url)
            for backend in self.backends
        ]
        self.home.write_state(
            MarketState(
                name=self.require_genesis().name,
                label=self._plan.label,
                model=self.require_genesis().model,
                backend=self._plan.backend,
                started_at_ms=self._started_at_ms,
                supervisor=supervisor,
                processes=(*nodes, *servers),
                bootstrap=self.bootstrap,
            )
        )


def _check_ports(plan: MarketPlan) -> None:
    """Refuse a base port that leads to a taken one: a node would name its own flag instead."""
    for port in plan.ports:
        with socket.socket() as probe:
            # As the nodes' listeners do: a connection of the last run that lingers is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ConfigurationError(
                    f"cannot listen on 127.0.0.1:{port}: {error.strerror}; the market takes the "
                    f"ports {plan.ports[0]} to {plan.ports[-1]}: choose another --base-port",
                    port=port,
                ) from error


def delete_home(home: MarketHome) -> list[Path]:
    """Delete a market's keys, ledger and logs; give what stays in its folder, as it is not its own.

    Raises: ConfigurationError if it runs, or if the folder is no market's.
    """
    if home.is_held():
        raise ConfigurationError("stop the market first: `iemas market down`")
    if not home.path.exists():
        return []
    if not (home.path / LOCK_FILE).exists():
        raise ConfigurationError(f"{home.path} is no market's folder; it was left as it is")
    return home.delete()


def _read_ready_file(path: Path) -> dict[str, Any] | None:
    try:
        ready: dict[str, Any] = json.loads(path.read_text())
    except OSError:
        return None
    return ready


def _read_last_error(log: Path, start: int) -> str:
    """Give the last line that a process wrote since `start`: there it says what went wrong."""
    try:
        text = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return "it left no log"
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith((LOG_PREFIX, "  File "))]
    errors = [line for line in lines if "rror" in line] or lines
    return errors[-1].strip()[:500] if errors else "it said nothing"
