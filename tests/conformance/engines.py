"""What a conformance check asks of an engine, and the engines that answer.

A rig starts an engine whose replicas run `RecordingApplication`s, and stands for what lies outside
of it: clients, time, processes that die. Another engine needs a rig and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from iemas.consensus.messages import VoteNotice
from iemas.core.envelope import Signed
from iemas.core.errors import InternalError, QuorumUnavailableError
from iemas.core.params import MarketParams
from iemas.core.types import NodeId
from iemas.core.vote import Vote
from iemas.ledger.application import LedgerApplication
from iemas.ledger.header import Block
from iemas.ledger.transaction import (
    DoubleVoteEvidence,
    Evidence,
    FundEscrow,
    Transaction,
    TransactionResult,
)
from iemas.testing.chain import LedgerChain, make_genesis
from iemas.testing.disk import SimulatedDisk
from iemas.testing.engine import CrashError, InProcessEngine
from tests.cluster import FOUR, Cluster, Replica
from tests.conformance.recording import Log, RecordingApplication

PARAMS = MarketParams(min_stake_micros=100, max_validators=8)
SNAPSHOT_INTERVAL = 2
TOLERANCE_MS = PARAMS.clock_tolerance_ms
AppType = type[RecordingApplication]


class Rig(ABC):
    """An engine with `n` validators, each at a replica of its own, and the log of all verbs.

    Times are simulated; `settle` lets enough of it pass that what was begun is finished.
    """

    keeps_state = False
    """Whether a replica may be started with an application that is at some height already."""

    def __init__(self, n: int, *, app_types: dict[str, AppType] | None = None) -> None:
        self.names: Sequence[str] = FOUR[:n]
        self.chain = LedgerChain(make_genesis(validators=self.names, params=PARAMS))
        """Keys and genesis; its own ledger stays at genesis."""
        self.log: Log = []
        self.apps: dict[str, RecordingApplication] = {}
        self._app_types = app_types or {}
        self._lives = 0

    def make_app(self, name: str) -> RecordingApplication:
        """Make the application of a replica's next life, at genesis."""
        self._lives += 1
        app_type = self._app_types.get(name, RecordingApplication)
        self.apps[name] = app_type(self.chain, name, self._lives, self.log)
        return self.apps[name]

    def settle(self) -> None:
        self.advance(1_000)

    @property
    @abstractmethod
    def now_ms(self) -> int:
        """The time by the replicas' clocks."""

    @abstractmethod
    def submit(self, name: str, transaction: Signed[Transaction]) -> None:
        """Hand a transaction in at a replica."""

    @abstractmethod
    def advance(self, duration_ms: int) -> None:
        """Let time pass."""

    @abstractmethod
    def kill(self, name: str) -> None:
        """Let a replica's process die between two verbs."""

    @abstractmethod
    def restart(self, name: str, app: RecordingApplication | None = None) -> None:
        """Start a replica's process from its store, by default with an application at genesis."""

    @abstractmethod
    def get_blocks(self, name: str) -> Sequence[Block]:
        """Give the decided blocks that a replica has stored, from the first on."""

    @abstractmethod
    def get_results(self, name: str, height: int) -> tuple[TransactionResult, ...]:
        """Give the results that a replica has of a block that it applied."""

    @abstractmethod
    def show_double_vote(self, first: Signed[Vote], second: Signed[Vote]) -> None:
        """Let the engine see two votes of one validator for the height to come."""

    @abstractmethod
    def start_from_snapshot(self, name: str) -> None:
        """Start a replica that has lost everything, from a snapshot of the others."""


class InProcessRig(Rig):
    """`iemas.testing.engine`."""

    keeps_state = True
    engine_type = InProcessEngine

    def __init__(self, n: int, *, app_types: dict[str, AppType] | None = None) -> None:
        super().__init__(n, app_types=app_types)
        self._by_id = {self.chain.get_node(name): name for name in self.names}
        self.engine = self.engine_type(
            lambda node_id: self.make_app(self._by_id[node_id]),
            list(self._by_id),
            get_signer=lambda node_id: self.chain.get_signer(self.chain.get_name(node_id)),
            now_ms=self.chain.now_ms,
        )

    @property
    def now_ms(self) -> int:
        return self.engine.now_ms

    def submit(self, name: str, transaction: Signed[Transaction]) -> None:
        self.engine.submit(transaction)

    def advance(self, duration_ms: int) -> None:
        with suppress(CrashError, QuorumUnavailableError):  # then nobody is left to go on
            self.engine.advance(duration_ms)

    def kill(self, name: str) -> None:
        self.engine.kill(self.chain.get_node(name))

    def restart(self, name: str, app: RecordingApplication | None = None) -> None:
        self.engine.restart(self.chain.get_node(name), app)
        if app is not None:
            self.apps[name] = app

    def get_blocks(self, name: str) -> Sequence[Block]:
        return self.engine.blocks

    def get_results(self, name: str, height: int) -> tuple[TransactionResult, ...]:
        return self.engine.replicas[self.chain.get_node(name)].finalized[height].results

    def show_double_vote(self, first: Signed[Vote], second: Signed[Vote]) -> None:
        self.settle()
        self.engine.submit(make_evidence(self.chain, self.names[0], first, second))

    def start_from_snapshot(self, name: str) -> None:
        self.engine.start_from_snapshot(self.chain.get_node(name))


class EmbeddedRig(Rig):
    """`iemas.consensus.engine`, on a simulated network and disks."""

    def __init__(self, n: int, *, app_types: dict[str, AppType] | None = None) -> None:
        super().__init__(n, app_types=app_types)
        self.cluster = _RecordedCluster(self)
        self.cluster.start()

    @property
    def now_ms(self) -> int:
        return self.cluster.clock.now_ms

    def submit(self, name: str, transaction: Signed[Transaction]) -> None:
        self.cluster.submit(name, transaction)

    def advance(self, duration_ms: int) -> None:
        self.cluster.run(duration_ms)

    def kill(self, name: str) -> None:
        self.cluster[name].crash()

    def restart(self, name: str, app: RecordingApplication | None = None) -> None:
        self.cluster.given_app = app
        self.cluster[name].start()

    def get_blocks(self, name: str) -> Sequence[Block]:
        return [committed.block for committed in self.cluster[name].blocks]

    def get_results(self, name: str, height: int) -> tuple[TransactionResult, ...]:
        applied = [a for a in self.cluster[name].applied if a.block.height == height]
        return applied[-1].results

    def show_double_vote(self, first: Signed[Vote], second: Signed[Vote]) -> None:
        for name in self.names:
            if self.chain.get_node(name) != first.signer_id:
                self.cluster[name].step(VoteNotice((first, second)), first.signer_id)
        self.settle()
        reporter = self.cluster[self.names[0]]
        for double in reporter.engine.take_evidence():  # as nodes do
            evidence = make_evidence(self.chain, self.names[0], double.first, double.second)
            self.submit(self.names[0], evidence)

    def start_from_snapshot(self, name: str) -> None:
        """Start it with an empty disk, far behind: one block an answer, many snapshots."""
        others = [other for other in self.names if other != name]
        for amount in range(3 * SNAPSHOT_INTERVAL):
            body = FundEscrow(self.chain.hub, 1 + amount)
            self.submit(others[0], self.chain.make_transaction("alice", body))
            self.settle()
        self.cluster[name].disk = SimulatedDisk()
        with patch("iemas.consensus.chain.BATCH_BLOCKS", 1):
            self.cluster[name].start()
            self.settle()


class _Process(Replica):
    """A replica whose process ends when its application dies, or when it must stop."""

    failure: Exception | None = None

    def start(self) -> None:
        self._run(super().start)

    def step(self, message: Any, sender: NodeId | None = None) -> None:
        parent = super()
        self._run(lambda: parent.step(message, sender))

    def wake(self) -> None:
        self._run(super().wake)

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except (CrashError, InternalError) as error:
            self.failure = error
            self.crash()


class _RecordedCluster(Cluster):
    replica_type = _Process

    def __init__(self, rig: Rig) -> None:
        options = {"snapshot_interval": SNAPSHOT_INTERVAL}
        super().__init__(rig.names, genesis=rig.chain.genesis, engine_options=options)
        self.given_app: RecordingApplication | None = None
        self._rig = rig

    def make_app(self, name: str) -> LedgerApplication:
        app, self.given_app = self.given_app, None
        if app is None:
            return self._rig.make_app(name)
        self._rig.apps[name] = app
        return app


def make_evidence(
    chain: LedgerChain, reporter: str, first: Signed[Vote], second: Signed[Vote]
) -> Signed[Transaction]:
    return chain.make_transaction(reporter, Evidence(DoubleVoteEvidence(first, second)))
