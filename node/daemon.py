"""The node daemon: from settings to a running node, and back to nothing.

`run_node` opens what a node needs, in the order in which failures are cheapest to explain: key,
genesis, disk, backend, listeners; then joins and runs until it is told to stop or must.
Source: docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
from prometheus_client import start_http_server

from auctioneer.predictors.linear import LinearPredictor
from iemas import wire
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import SignRecord, ValidRecord
from iemas.core.auction import Bid, QosModel, RoundClose, ShareRelease, Transcript
from iemas.core.envelope import Signed
from iemas.core.errors import ConfigurationError, IemasError
from iemas.core.execution import UnsettledChannel
from iemas.core.params import Genesis
from iemas.core.ready import RecordKind
from iemas.core.tokenizer_bundle import compute_bundle_hash, encode_bundle
from iemas.core.types import HashAlgorithm, HubId
from iemas.files import naming_os_errors, write_atomically
from iemas.genesis import load_genesis
from iemas.keystore import load_key
from iemas.ledger.application import LedgerApplication
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import RevealAsk
from iemas.tls import parse_address, split_host_port
from iemas.v1.auction_service_pb2_grpc import add_AuctionServiceServicer_to_server
from iemas.v1.execution_service_pb2_grpc import add_ExecutionServiceServicer_to_server
from iemas.v1.market_service_pb2_grpc import add_MarketServiceServicer_to_server
from node.backends.base import Backend, BackendInfo
from node.backends.open import load_tokenizer_files, open_backend
from node.bootstrap import fetch_genesis, keep_joined
from node.cache_watch import CacheWatch
from node.clock import get_now_ms
from node.config import NodeSettings
from node.core import BackendHealth, NodeCore, ReceivePeerMessage, ReceiveSpoilt, TimePassed
from node.driver import Driver
from node.logs import configure_logs
from node.reporting import NodeProfile
from node.servicers.auction import AuctionServicer
from node.servicers.execution import ExecutionServicer
from node.servicers.market import MarketFacts, MarketServicer
from node.storage import Storage
from node.transport import NodeCertificates, PeerTransport, PublicListener, advertise

_log = structlog.get_logger(__name__)
HEALTH_INTERVAL_S = 2.0
CALLS_END_S = 2.0
READY_FILE = "ready.json"
SOFTWARE = f"iemas {version('iemas')}"


@dataclass(frozen=True, slots=True)
class _Selling:
    """What a provider node sells; all empty for a node without a backend."""

    backend: Backend | None = None
    info: BackendInfo | None = None
    tokenizer_files: dict[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a node is made of before it listens."""

    settings: NodeSettings
    certificates: NodeCertificates
    genesis: Genesis
    genesis_bytes: bytes
    chain_id: str
    storage: Storage
    selling: _Selling


async def run_node(settings: NodeSettings) -> None:
    """Run a node until SIGINT or SIGTERM.

    Raises: ConfigurationError naming what to change, BackendError, InternalError if an invariant
        of this node broke.
    """
    configure_logs(level=settings.log_level, as_json=settings.log_format == "json")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_let_calls_end)
        parts = await _open_parts(settings, stack)
        core = _make_core(parts)
        _restore(core, parts.storage)
        driver = Driver(core, parts.storage)
        driver.fatal.add_done_callback(_note_seen)
        stack.callback(driver.stop)
        backend = parts.selling.backend
        watch = CacheWatch(driver, backend) if backend is not None else None
        await _listen(parts, driver, watch, stack)
        await _run(parts, driver, watch, stack)


def _note_seen(fatal: asyncio.Future[None]) -> None:
    """Keep asyncio from printing why the node stops, where another error ends it first."""
    if not fatal.cancelled():
        fatal.exception()


async def _let_calls_end() -> None:
    """Let what is left of calls see that they were cut off.

    gRPC says that a server stopped before the tasks of its last calls know; ended with the event
    loop instead, each of them prints a traceback.
    """
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=CALLS_END_S)


async def _open_parts(settings: NodeSettings, stack: AsyncExitStack) -> _Parts:
    """Open key, genesis, database and backend; the stack closes them."""
    certificates = NodeCertificates(load_key(settings.key_file))
    with naming_os_errors("choose another folder with --data-dir"):
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        genesis, chain_id, genesis_bytes = await _find_genesis(settings)
        node_id = certificates.identity.node_id
        storage = Storage(settings.data_dir / "node.db", chain_id=chain_id, node_id=node_id)
    stack.callback(storage.close)
    selling = await _open_backend(settings, genesis)
    if selling.backend is not None:
        stack.push_async_callback(selling.backend.close)
    return _Parts(settings, certificates, genesis, genesis_bytes, chain_id, storage, selling)


async def _find_genesis(settings: NodeSettings) -> tuple[Genesis, str, bytes]:
    """Load genesis from its file, from an earlier run, or from a bootstrap node."""
    kept = settings.data_dir / "genesis.json"
    if settings.genesis is not None:
        genesis, chain_id, data = load_genesis(settings.genesis)
    elif kept.exists():
        genesis, chain_id, data = load_genesis(kept)
    elif settings.bootstrap:
        genesis, chain_id, data = load_genesis(await fetch_genesis(settings.bootstrap))
    else:
        raise ConfigurationError(
            "a node needs the market's genesis file (--genesis FILE) or a node of the market to "
            "fetch it from (--bootstrap nodeid@host:port)"
        )
    if not kept.exists():
        write_atomically(kept, data)
    return genesis, chain_id, data


async def _open_backend(settings: NodeSettings, genesis: Genesis) -> _Selling:
    if settings.hub_id not in {None, genesis.hub}:
        raise ConfigurationError(
            f"--hub is {settings.hub!r}, but genesis has the hub {genesis.hub!r} alone; drop --hub"
        )
    backend = open_backend(settings, genesis.model)
    if backend is None:
        return _Selling()
    try:
        info = await backend.start()
        files = load_tokenizer_files(settings, info)
    except BaseException:
        await backend.close()
        raise
    _log.info(
        "backend_ready", kind=info.kind, model=info.model, slots=info.slots, kv=info.kv_events
    )
    return _Selling(backend, info, files)


def _make_core(parts: _Parts) -> NodeCore:
    genesis, chain_id, selling = parts.genesis, parts.chain_id, parts.selling
    identity = parts.certificates.identity
    signer = wire.WireSigner(identity, chain_id)
    core: NodeCore

    def verify_evidence(transcript: Signed[Transcript], state: LedgerState) -> None:
        core.rounds.check_evidence(transcript, state)

    app = LedgerApplication(genesis, chain_id, verify_transcript=verify_evidence)
    core = NodeCore(
        genesis=genesis,
        chain_id=chain_id,
        signer=signer,
        hpke_key=identity.derive_hpke_key(),
        profile=_make_profile(genesis, parts.certificates, selling),
        ask=parts.settings.ask if selling.backend is not None else None,
        ask_secret=identity.derive_secret("asks"),
        engine=TendermintEngine(
            app,
            genesis=genesis,
            chain_id=chain_id,
            signer=signer,
            read_blocks=parts.storage.read_blocks,
            full_history=parts.settings.full_history,
        ),
        predictor=LinearPredictor(),
        decode_bid=partial(wire.decode, Bid),
        incarnation=get_now_ms(),
    )
    return core


def _make_profile(
    genesis: Genesis, certificates: NodeCertificates, selling: _Selling
) -> NodeProfile:
    """Say what the node is; the addresses follow once it listens."""
    hpke_key = certificates.identity.derive_hpke_key()
    profile = NodeProfile(
        public_address="",
        peer_address="",
        ca_certificate=certificates.ca_certificate,
        hpke_public_key=hpke_key.public_key().public_bytes_raw(),
        software=SOFTWARE,
        hub=HubId(genesis.hub),
        hash_algorithm=HashAlgorithm.UNSPECIFIED,
    )
    if selling.info is None or selling.tokenizer_files is None:
        return profile
    info = selling.info
    return replace(
        profile,
        model=info.model,
        model_revision=info.revision,
        tokenizer_hash=compute_bundle_hash(selling.tokenizer_files),
        block_size=info.block_size,
        hash_algorithm=info.hash_algorithm,
        context_tokens=info.context_tokens,
        slots=info.slots,
        kv_events=info.kv_events,
        hardware=info.hardware,
    )


def _make_facts(genesis_bytes: bytes, selling: _Selling) -> MarketFacts:
    files = selling.tokenizer_files
    return MarketFacts(
        genesis_json=genesis_bytes,
        software=SOFTWARE,
        tokenizer_hash=compute_bundle_hash(files) if files else b"",
        tokenizer_bundle=encode_bundle(files) if files else b"",
    )


def _restore(core: NodeCore, storage: Storage) -> None:
    snapshot = storage.load_snapshot()
    core.restore(
        blocks=storage.iterate_blocks(snapshot.snapshot.height + 1 if snapshot else 1),
        signed=storage.scan(RecordKind.SIGNED, SignRecord),
        valid=storage.scan(RecordKind.VALID, ValidRecord),
        snapshot=snapshot,
        transcripts=storage.scan_signed(RecordKind.TRANSCRIPT, Transcript),
        closes=storage.scan_signed(RecordKind.CLOSED_ROUND, RoundClose),
        releases=storage.scan_signed(RecordKind.RELEASED_CLOSE, ShareRelease),
        unsettled=storage.scan(RecordKind.UNSETTLED, UnsettledChannel),
        sealed_asks=storage.scan(RecordKind.SEALED_ASK, RevealAsk),
        models=storage.scan(RecordKind.MODEL, QosModel),
    )


async def _listen(
    parts: _Parts, driver: Driver, watch: CacheWatch | None, stack: AsyncExitStack
) -> None:
    """Open both listeners, then tell the core where it can be reached."""
    settings, certificates, selling = parts.settings, parts.certificates, parts.selling
    core = driver.core
    transport = PeerTransport(
        certificates,
        lambda sender, message: driver.step(ReceivePeerMessage(sender, message)),
        on_spoilt=lambda sender, error: driver.step(ReceiveSpoilt(sender, error)),
        on_internal_error=driver.fail,
    )
    stack.push_async_callback(transport.stop)
    peer_port = await transport.start(settings.peer_listen)
    facts = _make_facts(parts.genesis_bytes, selling)
    market = MarketServicer(driver, parts.storage, facts)
    auction = AuctionServicer(driver)
    servicers = [
        lambda server: add_MarketServiceServicer_to_server(market, server),
        lambda server: add_AuctionServiceServicer_to_server(auction, server),
    ]
    if selling.backend is not None and watch is not None:
        execution = ExecutionServicer(driver, selling.backend, watch)
        servicers.append(lambda server: add_ExecutionServiceServicer_to_server(execution, server))
    public = PublicListener(
        certificates, servicers, refused=core.refused, on_internal_error=driver.fail
    )
    stack.push_async_callback(public.stop)
    public_port = await public.start(settings.public_listen)
    core.reporter.profile = replace(
        core.reporter.profile,
        public_address=advertise(settings.public_listen, public_port, settings.public_address),
        peer_address=advertise(settings.peer_listen, peer_port, settings.peer_address),
    )
    driver.connect(transport)
    driver.step(TimePassed())
    await public.set_serving(True)


async def _run(
    parts: _Parts, driver: Driver, watch: CacheWatch | None, stack: AsyncExitStack
) -> None:
    """Run the node's background tasks until a signal or a fatal error."""
    settings, backend = parts.settings, parts.selling.backend
    core = driver.core
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if settings.metrics_listen:
        _serve_metrics(settings.metrics_listen, stack)
    address = f"{core.node_id.hex()}@{core.reporter.profile.public_address}"
    ready_file = settings.data_dir / READY_FILE
    with naming_os_errors("choose another folder with --data-dir"):
        _write_ready_file(ready_file, address)
    stack.callback(ready_file.unlink, missing_ok=True)
    _log.info("node_ready", address=address, chain=core.chain_id)
    bootstrap = [parse_address(text) for text in settings.bootstrap]
    tasks = [asyncio.create_task(keep_joined(driver, bootstrap))]
    if watch is not None:
        tasks.append(asyncio.create_task(watch.run()))
    if backend is not None:
        tasks.append(asyncio.create_task(_watch_health(driver, backend)))
    waiter = asyncio.create_task(_wait(stop))
    ends: list[asyncio.Future[None]] = [waiter, driver.fatal, *tasks]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            if end.done():
                end.result()  # raises why the node cannot go on
    finally:
        for task in [waiter, *tasks]:
            task.cancel()
        await asyncio.gather(waiter, *tasks, return_exceptions=True)
        _log.info("node_stopping")


def _serve_metrics(listen: str, stack: AsyncExitStack) -> None:
    """Serve metrics until the stack ends it. Raises: ConfigurationError that names the flag."""
    host, port = split_host_port(listen)
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}: {error.strerror}; choose another address with "
            "--metrics-listen",
            listen=listen,
        ) from error
    stack.callback(thread.join)
    stack.callback(server.shutdown)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


def _write_ready_file(path: Path, address: str) -> None:
    """Tell whoever started this process that it serves, and where."""
    write_atomically(path, json.dumps({"address": address, "pid": os.getpid()}).encode())


async def _watch_health(driver: Driver, backend: Backend) -> None:
    """Withdraw the node's slots while its backend does not answer."""
    healthy = True
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        try:
            now_healthy = await backend.healthy()
        except IemasError:
            now_healthy = False
        if now_healthy != healthy:
            healthy = now_healthy
            driver.step(BackendHealth(healthy))
