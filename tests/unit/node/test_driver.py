"""The driver: effects are carried out in their order, and one that fails spoils no other."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from iemas.core.errors import (
    InternalError,
    InvalidReceiptError,
    MalformedMessageError,
    StaleReportError,
)
from iemas.core.gossip import Probe
from iemas.core.ready import Answer, Ready, Record, RecordKind, Send
from iemas.core.types import NodeId
from node.clock import get_now_ms
from node.core import NodeCore, NodeInput, TimePassed
from node.driver import Driver
from node.storage import Storage

PEERS = [NodeId(bytes([number]) * 32) for number in range(3)]


class PickyTransport:
    """Carries nothing to the first peer."""

    def __init__(self) -> None:
        self.sent: list[NodeId] = []

    def send(self, to: NodeId, message: Any) -> bool:
        if to == PEERS[0]:
            raise MalformedMessageError("too large")
        self.sent.append(to)
        return True

    def set_members(
        self, members: Mapping[NodeId, Any], cut_off: frozenset[NodeId] = frozenset()
    ) -> None: ...


def test_a_message_that_cannot_travel_holds_up_no_other() -> None:
    async def run() -> tuple[list[NodeId], Answer]:
        engine = SimpleNamespace(height=0, take_journal=tuple)
        membership = SimpleNamespace(version=-1)
        peers = SimpleNamespace(version=-1)
        core = SimpleNamespace(engine=engine, membership=membership, peers=peers)
        driver = Driver(cast("NodeCore", core), cast("Storage", None))
        transport = PickyTransport()
        driver.connect(transport)
        stream, answers = driver.open_stream()
        answer = Answer(stream, bytes(32), None)
        sends = tuple(Send(peer, Probe(1)) for peer in PEERS)
        driver.carry_out(Ready(send=sends, answers=(answer,)))
        driver.stop()
        return transport.sent, answers.get_nowait()

    sent, answer = asyncio.run(run())
    assert sent == PEERS[1:]
    assert answer.stream == 1


def test_an_overdue_wake_is_not_put_off_by_a_later_one() -> None:
    """Under load a timer fires late; what comes in meanwhile must not move it further away."""

    async def run() -> list[NodeInput]:
        inputs: list[NodeInput] = []

        def step(inp: NodeInput, *, now_ms: int) -> Ready:
            inputs.append(inp)
            return Ready()

        engine = SimpleNamespace(height=0, take_journal=tuple)
        core = SimpleNamespace(engine=engine, step=step)
        driver = Driver(cast("NodeCore", core), cast("Storage", None))
        driver.carry_out(Ready(wake_at_ms=get_now_ms() + 5))
        time.sleep(0.02)  # noqa: ASYNC251 - the loop is busy beyond the time
        driver.carry_out(Ready(wake_at_ms=get_now_ms() + 60_000))
        await asyncio.sleep(0.01)
        driver.stop()
        return inputs

    assert asyncio.run(run()) == [TimePassed()]


def test_metrics_show_the_height_and_the_peers() -> None:
    async def run() -> None:
        engine = SimpleNamespace(height=3, take_journal=tuple)
        membership = SimpleNamespace(version=1, get_peers=lambda: PEERS, get_nodes=tuple)
        peers = SimpleNamespace(version=1, cut_off=frozenset(PEERS[:1]))
        core = SimpleNamespace(engine=engine, membership=membership, peers=peers)
        driver = Driver(cast("NodeCore", core), cast("Storage", None))
        driver.connect(PickyTransport())
        assert REGISTRY.get_sample_value("iemas_ledger_height") == 3
        engine.height = 4
        driver.carry_out(Ready())
        driver.stop()

    asyncio.run(run())
    names = ("iemas_ledger_height", "iemas_peers", "iemas_peers_cut_off")
    assert [REGISTRY.get_sample_value(name) for name in names] == [4, 3, 1]


# --- what stops the node -------------------------------------------------------------------------


def run_driver(
    work: Callable[[Driver], None],
    *,
    step: Callable[..., Ready] = lambda inp, **_: Ready(),
    write: Callable[..., None] = lambda *_: None,
) -> tuple[BaseException | None, list[NodeId]]:
    """Do something with a driver; give why it stopped, and who was sent anything."""

    async def run() -> tuple[BaseException | None, list[NodeId]]:
        version = SimpleNamespace(version=-1)
        engine = SimpleNamespace(height=0, take_journal=tuple)
        core = SimpleNamespace(engine=engine, membership=version, peers=version, step=step)
        driver = Driver(cast("NodeCore", core), cast("Storage", SimpleNamespace(write=write)))
        transport = PickyTransport()
        driver.connect(transport)
        work(driver)
        await asyncio.sleep(0.02)
        return driver.fatal.exception() if driver.fatal.done() else None, transport.sent

    return asyncio.run(run())


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [KeyError("oops"), StaleReportError("oops")])
def test_an_unexpected_error_of_a_step_stops_the_node(error: Exception) -> None:
    """The core has changed, and what it wanted to have written is lost."""

    def work(driver: Driver) -> None:
        driver.step(TimePassed())
        driver.carry_out(Ready(send=(Send(PEERS[1], Probe(1)),)))

    stopped, sent = run_driver(work, step=fail_with(error))
    assert isinstance(stopped, InternalError)
    assert type(error).__name__ in str(stopped)
    assert stopped.__cause__ is error
    assert sent == []


def test_a_timer_that_meets_an_unexpected_error_stops_the_node() -> None:
    stopped, _ = run_driver(
        lambda driver: driver.carry_out(Ready(wake_at_ms=get_now_ms())),
        step=fail_with(KeyError("oops")),
    )
    assert isinstance(stopped, InternalError)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("full"), OSError("gone"), KeyError()])
def test_what_cannot_be_written_is_not_sent_and_stops_the_node(error: Exception) -> None:
    record = Record(RecordKind.BLOCK, b"", None)
    ready = Ready(persist=(record,), send=(Send(PEERS[1], Probe(1)),))
    stopped, sent = run_driver(lambda driver: driver.carry_out(ready), write=fail_with(error))
    assert isinstance(stopped, InternalError)
    assert sent == []


@pytest.mark.parametrize(
    ("error", "is_fatal"), [(InvalidReceiptError(), False), (ZeroDivisionError(), True)]
)
def test_a_refusal_of_a_call_stops_nothing(error: Exception, is_fatal: bool) -> None:
    def work(driver: Driver) -> None:
        with pytest.raises(type(error)), driver.guard():
            raise error

    stopped, _ = run_driver(work)
    assert (stopped is not None) == is_fatal
