from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from iemas.consensus.sequencer import CommittedBlock, SequencerEngine
from iemas.core.envelope import Signed
from iemas.core.ready import Event, Ready, Send
from iemas.core.types import NodeId
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import Block
from iemas.testing.chain import LedgerChain, accept_transcript, make_identity

NAMES = ("sequencer", "node-1", "node-2", "node-3")


@dataclass
class Replica:
    """An engine with its disk."""

    engine: SequencerEngine
    disk: dict[bytes, Any] = field(default_factory=dict)
    committed: list[CommittedBlock] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wake_at_ms: int | None = None

    def take(self, ready: Ready) -> tuple[Send, ...]:
        self.disk |= {record.key: record.value for record in ready.persist}
        self.committed += self.engine.take_committed()
        self.events += ready.events
        self.wake_at_ms = ready.wake_at_ms
        return ready.send

    @property
    def blocks(self) -> list[Signed[Block]]:
        return [self.disk[key] for key in sorted(self.disk)]


class Cluster:
    """Four replicas on a network that `should_lose` decides on; one millisecond a hop."""

    def __init__(self, seed: int = 0) -> None:
        self.chain = LedgerChain()
        self.now_ms = self.chain.now_ms
        self.random = Random(seed)
        self.replicas = {name: Replica(self.make_engine(name)) for name in NAMES}
        self.in_flight: list[tuple[NodeId, NodeId, object]] = []
        self.down: set[str] = set()
        self.loss = 0.0
        self.duplication = 0.0
        self.shuffle = False
        self.sent: list[object] = []

    def make_engine(self, name: str, **options: Any) -> SequencerEngine:
        app = LedgerApplication(
            self.chain.genesis, self.chain.chain_id, verify_transcript=accept_transcript
        )
        return SequencerEngine(
            app,
            genesis=self.chain.genesis,
            chain_id=self.chain.chain_id,
            signer=self.chain.get_signer(name),
            **options,
        )

    def restart(self, name: str, **options: Any) -> SequencerEngine:
        """Start the node anew from its disk."""
        engine = self.make_engine(name, **options)
        engine.restore(self.replicas[name].blocks)
        self.replicas[name].engine = engine
        return engine

    def do(self, name: str, act: Callable[[SequencerEngine], Ready]) -> None:
        replica = self.replicas[name]
        own = make_identity(name).node_id
        for send in replica.take(act(replica.engine)):
            self.sent.append(send.message)
            self.in_flight.append((own, send.to, send.message))

    def submit(self, name: str, message: Any) -> None:
        self.do(name, lambda engine: engine.step(message, now_ms=self.now_ms))

    def run(self, duration_ms: int, *, step_ms: int = 25) -> None:
        end_ms = self.now_ms + duration_ms
        while self.now_ms < end_ms:
            self.now_ms += step_ms
            for name in NAMES:
                if name not in self.down:
                    self.do(name, lambda engine: engine.tick(now_ms=self.now_ms))
            self.deliver()

    def deliver(self) -> None:
        batch, self.in_flight = self.in_flight, []
        if self.shuffle:
            self.random.shuffle(batch)
        for sender, receiver, message in batch:
            name = self.chain.get_name(receiver)
            if name in self.down or self.random.random() < self.loss:
                continue
            times = 2 if self.random.random() < self.duplication else 1
            for _ in range(times):
                self.do(
                    name,
                    lambda e, m=message, s=sender: e.step(m, sender=s, now_ms=self.now_ms),
                )

    def get_roots(self) -> set[tuple[int, bytes]]:
        return {(r.engine.height, r.engine.state_root) for r in self.replicas.values()}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def make_cluster() -> Callable[[int], Cluster]:
    return Cluster
