"""The one driver loop: receive → step → persist → send → wait.

`Driver` owns the node's clock, disk and sockets; `NodeCore` decides. Everything runs on one event
loop, so a step is never interrupted by another. Source: docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import structlog

from iemas.core.errors import (
    InternalError,
    InvalidInputError,
    MalformedMessageError,
    RemoteProtocolError,
)
from iemas.core.ready import Answer, Ready, Send
from iemas.core.types import NodeId, short_id
from node.clock import get_now_ms
from node.core import NodeCore, NodeInput, TimePassed
from node.metrics import CUT_OFF, EVENTS, HEIGHT, PEERS, REFUSED
from node.storage import Storage
from node.transport import Member

_log = structlog.get_logger(__name__)
MAX_ANSWERS_WAITING = 10_000
FLUSH_TIMEOUT_S = 0.05
QUIET_EVENTS = frozenset({"round_verified", "input_ignored"})


class Transport(Protocol):
    """What carries messages to peers."""

    def send(self, to: NodeId, message: Any) -> bool:
        """Queue a message; never waits."""
        ...

    async def flush(self, timeout_s: float) -> None:
        """Wait until what was sent is on its way, at most so long."""
        ...

    def set_members(
        self, members: Mapping[NodeId, Member], cut_off: frozenset[NodeId] = frozenset()
    ) -> None:
        """Make these the nodes to listen to and to send to, but for those that are cut off."""
        ...


class Driver:
    """Carries out what the core decides."""

    def __init__(self, core: NodeCore, storage: Storage) -> None:
        self.core = core
        self.fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._storage = storage
        self._transport: Transport | None = None
        self._streams: dict[int, asyncio.Queue[Answer]] = {}
        self._stream_ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._committed = asyncio.Event()
        self._seen_height = core.engine.height
        HEIGHT.set(self._seen_height)
        self._seen_peers = (-1, -1)

    def connect(self, transport: Transport) -> None:
        """Send through this transport from now on."""
        self._transport = transport

    def step(self, inp: NodeInput) -> None:
        """Feed one input to the core and carry out what it gives back."""
        if self.fatal.done():
            return
        try:
            ready = self.core.step(inp, now_ms=get_now_ms())
        except Exception as error:  # noqa: BLE001 - the core may be half changed
            self.fail(error)
            return
        self.carry_out(ready)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Stop the node on whatever a call of the core raises that is no refusal.

        What the core did until then reaches neither disk nor peers, so it must not go on.
        """
        try:
            yield
        except (InvalidInputError, RemoteProtocolError):
            raise
        except Exception as error:
            self.fail(error)
            raise

    def carry_out(self, ready: Ready) -> None:
        """Persist, then send and answer, then arm the timer; nothing once the node failed."""
        if self.fatal.done() and not self.fatal.cancelled():
            return
        try:
            self._carry_out(ready)
        except Exception as error:  # noqa: BLE001 - what is left of it would be lost
            self.fail(error)

    def _carry_out(self, ready: Ready) -> None:
        journal = self.core.engine.take_journal()
        if ready.persist or journal:
            try:
                self._storage.write(ready.persist, journal)
            except (sqlite3.Error, OSError) as error:
                text = f"the node's database cannot be written: {error}"
                raise InternalError(text) from error
        if self._transport is not None:
            self._follow_membership(self._transport)
            for send in ready.send:
                self._send(self._transport, send)
        for answer in ready.answers:
            queue = self._streams.get(answer.stream)
            if queue is not None and queue.qsize() < MAX_ANSWERS_WAITING:
                queue.put_nowait(answer)
        self._report(ready)
        if self.core.engine.height != self._seen_height:
            self._seen_height = self.core.engine.height
            HEIGHT.set(self._seen_height)
            self._committed.set()
            self._committed = asyncio.Event()
        if ready.wake_at_ms is not None:
            self._arm(ready.wake_at_ms)

    @staticmethod
    def _report(ready: Ready) -> None:
        """Count what was refused and what happened, and log it."""
        for fault in ready.faults:
            REFUSED.labels(fault.name).inc()
        for event in ready.events:
            EVENTS.labels(event.name).inc()
            log = _log.debug if event.name in QUIET_EVENTS else _log.info
            log(event.name, **event.fields)

    @staticmethod
    def _send(transport: Transport, send: Send) -> None:
        """Send a message; one that cannot travel must not hold up the others."""
        try:
            transport.send(send.to, send.message)
        except MalformedMessageError as error:
            EVENTS.labels("message_not_sent").inc()
            kind = type(send.message).__name__
            _log.error("message_not_sent", to=short_id(send.to), message=kind, reason=str(error))

    def _follow_membership(self, transport: Transport) -> None:
        membership, peers = self.core.membership, self.core.peers
        if (membership.version, peers.version) == self._seen_peers:
            return
        self._seen_peers = (membership.version, peers.version)
        members = {
            node_id: Member(capability.peer_address, capability.ca_certificate)
            for node_id, record in membership.get_nodes()
            if (capability := record.capability.message).peer_address
        }
        PEERS.set(len(membership.get_peers()))
        CUT_OFF.set(len(peers.cut_off))
        transport.set_members(members, peers.cut_off)

    def fail(self, error: Exception) -> None:
        """Stop the node: an invariant broke, or its disk did; only the first error counts."""
        if self.fatal.done():
            return
        _log.error("node_failed", exc_info=error)
        if not isinstance(error, InternalError):
            cause, kind = error, type(error).__name__
            error = InternalError(
                f"the node stopped on an unexpected {kind}: {cause}. Its log has the traceback"
            )
            error.__cause__ = cause
        self.fatal.set_exception(error)

    def _arm(self, wake_at_ms: int) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0, wake_at_ms - get_now_ms()) / 1000
        if self._timer is not None:
            if self._timer.when() <= at:
                return  # it fires soon even if it is overdue, as other events came before it
            self._timer.cancel()
        self._timer = loop.call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.step(TimePassed())

    async def flush_sends(self) -> None:
        """Wait until what was sent to peers is on its way, but not for a slow one."""
        if self._transport is not None:
            await self._transport.flush(FLUSH_TIMEOUT_S)

    def stop(self) -> None:
        """Arm no more timers."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.fatal.done():
            self.fatal.cancel()

    # --- bid streams -------------------------------------------------------------------------

    def open_stream(self) -> tuple[int, asyncio.Queue[Answer]]:
        """Register a bidder's stream; its answers come through the queue."""
        stream = next(self._stream_ids)
        queue: asyncio.Queue[Answer] = asyncio.Queue()
        self._streams[stream] = queue
        return stream, queue

    def close_stream(self, stream: int) -> None:
        """Forget a bidder's stream."""
        self._streams.pop(stream, None)

    async def wait_committed(self, timeout_s: float) -> bool:
        """Wait for the next committed block; tell whether one came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._committed.wait()
        except TimeoutError:
            return False
        return True
