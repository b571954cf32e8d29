"""Consensus engines on a simulated clock, network and disks, and two checkers that always watch.

*Agreement*: no two replicas ever apply different blocks at one height. *No double signing*: no
validator's votes or proposals that left it contradict each other, whatever crashed when.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from iemas.consensus.chain import AppliedBlock
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import (
    CommittedBlock,
    ProposalNotice,
    SignRecord,
    SubmitTransaction,
    ValidRecord,
    VoteNotice,
)
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidInputError, RemoteProtocolError
from iemas.core.params import Genesis
from iemas.core.ready import Event, Fault, Ready, RecordKind
from iemas.core.types import NodeId
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import FundEscrow, Transaction
from iemas.testing.chain import LedgerChain, make_genesis, make_identity
from iemas.testing.clock import SimulatedClock
from iemas.testing.disk import SimulatedDisk
from iemas.testing.network import NetworkFaults, SimulatedNetwork

FOUR = ("node-1", "node-2", "node-3", "node-4")
OBSERVER = "observer"


class Replica:
    """One engine with its disk: a process that can crash and come back."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.node_id: NodeId = make_identity(name).node_id
        self.disk = SimulatedDisk()
        self.engine: TendermintEngine
        self.applied: list[AppliedBlock] = []
        self.events: list[Event] = []
        self.faults: list[Fault] = []
        self.refused: list[Exception] = []
        self.alive = False
        self.lose_next_sends = False
        self.skew_ms = 0
        self._cluster = cluster
        self._process = 0
        self._wake_at_ms = 0

    @property
    def now_ms(self) -> int:
        return self._cluster.clock.now_ms + self.skew_ms

    def start(self) -> None:
        """Start the process from what is on its disk."""
        cluster = self._cluster
        self.alive = True
        self._process += 1
        self._wake_at_ms = 0
        self.engine = cluster.make_engine(self.name)
        self.engine.set_peers([replica.node_id for replica in cluster.replicas.values()])
        self.engine.restore(
            self.disk.scan(RecordKind.BLOCK, CommittedBlock),
            self.disk.scan(RecordKind.SIGNED, SignRecord),
            self.disk.scan(RecordKind.VALID, ValidRecord),
            self.disk.load_snapshot(),
        )
        cluster.network.attach(self.node_id, self._receive)
        self.carry_out(self.engine.tick(now_ms=self.now_ms))

    def crash(self) -> None:
        """Kill the process: all but the disk is lost."""
        self.alive = False
        self._process += 1
        self._cluster.network.detach(self.node_id)

    def crash_before_sending(self) -> None:
        """Crash after the next write, before anything of that step leaves."""
        self.lose_next_sends = True

    def step(self, message: Any, sender: NodeId | None = None) -> None:
        if not self.alive:
            return
        try:
            ready = self.engine.step(message, sender=sender, now_ms=self.now_ms)
        except (InvalidInputError, RemoteProtocolError) as error:
            self.refused.append(error)
            ready = self.engine.tick(now_ms=self.now_ms)
        self.carry_out(ready)

    def carry_out(self, ready: Ready) -> None:
        self.disk.write(ready.persist)
        self._keep(self.engine.take_applied())
        self.events += ready.events
        self.faults += ready.faults
        if self.lose_next_sends and ready.persist:
            self.lose_next_sends = False
            self.crash()
            return
        for send in ready.send:
            self._cluster.send(self.node_id, send.to, send.message)
        if ready.wake_at_ms is not None:
            self._arm(ready.wake_at_ms)

    def _keep(self, applied: Sequence[AppliedBlock]) -> None:
        self.applied += applied
        for block in applied:
            self._cluster.check_agreement(self.name, block)

    def _arm(self, wake_at_ms: int) -> None:
        process, now_ms = self._process, self.now_ms
        if now_ms < self._wake_at_ms <= wake_at_ms:
            return
        self._wake_at_ms = max(wake_at_ms, now_ms)

        def wake() -> None:
            if self._process == process:
                self.wake()

        self._cluster.clock.call_later(max(wake_at_ms - now_ms, 1), wake)

    def wake(self) -> None:
        self.carry_out(self.engine.tick(now_ms=self.now_ms))

    def _receive(self, sender: NodeId, message: Any) -> None:
        self.step(message, sender)

    # --- what tests look at ----------------------------------------------------------------------

    @property
    def height(self) -> int:
        return self.engine.height

    @property
    def blocks(self) -> list[CommittedBlock]:
        blocks: list[CommittedBlock] = self.disk.scan(RecordKind.BLOCK, CommittedBlock)
        return blocks


class Cluster:
    """Validators (and observers) on one simulated network."""

    replica_type: type[Replica] = Replica

    def __init__(
        self,
        names: Sequence[str] = FOUR,
        *,
        observers: Sequence[str] = (),
        seed: int = 0,
        faults: NetworkFaults | None = None,
        genesis: Genesis | None = None,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        self.chain = LedgerChain(genesis or make_genesis(validators=names))
        self.random = Random(seed)
        self.clock = SimulatedClock(start_ms=self.chain.now_ms)
        self.network = SimulatedNetwork(self.clock, self.random, faults)
        self.engine_options = engine_options or {}
        self.sent: list[tuple[NodeId, NodeId, Any]] = []
        self.should_lose: Callable[[str, str, Any], bool] = lambda *_: False
        self.tamper: Callable[[str, str, Any], Any] = lambda _sender, _to, message: message
        self._decided: dict[int, tuple[str, bytes, bytes]] = {}
        self._signed: dict[tuple[object, ...], set[object]] = defaultdict(set)
        self.broken: list[str] = []
        self.replicas = {name: self.replica_type(self, name) for name in (*names, *observers)}
        self._names = {replica.node_id: name for name, replica in self.replicas.items()}

    def make_app(self, name: str) -> LedgerApplication:
        return self.chain.make_app()

    def make_engine(self, name: str) -> TendermintEngine:
        return TendermintEngine(
            self.make_app(name),
            genesis=self.chain.genesis,
            chain_id=self.chain.chain_id,
            signer=self.chain.get_signer(name),
            **{"read_blocks": self[name].disk.read_blocks, **self.engine_options},
        )

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[name]

    def start(self) -> Cluster:
        for replica in self.replicas.values():
            replica.start()
        return self

    def run(self, duration_ms: int, *, until: Callable[[], bool] | None = None) -> None:
        self.clock.run_until(self.clock.now_ms + duration_ms, until=until)
        assert self.broken == []

    def send(self, sender: NodeId, to: NodeId, message: Any) -> None:
        self._watch_signatures(sender, message)
        self.sent.append((sender, to, message))
        names = self._names.get(sender, ""), self._names.get(to, "")
        if not self.should_lose(*names, message):
            self.network.send(sender, to, self.tamper(*names, message))

    # --- transactions ----------------------------------------------------------------------------

    def make_funding(self, amount: int = 1, *, nonce: int | None = None) -> Signed[Transaction]:
        return self.chain.make_transaction("alice", FundEscrow(self.chain.hub, amount), nonce=nonce)

    def make_funding_by(self, sender: str, amount: int) -> Signed[Transaction]:
        return self.chain.make_transaction(sender, FundEscrow(self.chain.hub, amount))

    def submit(self, name: str, transaction: Signed[Transaction] | None = None) -> bytes:
        signed = transaction if transaction is not None else self.make_funding()
        self[name].step(SubmitTransaction(signed))
        return signed.hash

    # --- checkers --------------------------------------------------------------------------------

    def check_agreement(self, name: str, applied: AppliedBlock) -> None:
        height = applied.block.height
        found = (applied.block.hash, applied.state_root)
        first = self._decided.setdefault(height, (name, *found))
        if first[1:] != found:
            self.broken.append(f"{name} and {first[0]} have different blocks at height {height}")

    def _watch_signatures(self, sender: NodeId, message: Any) -> None:
        match message:
            case ProposalNotice(proposal):
                p = proposal.message
                self._watch(("proposal", proposal.signer_id, p.height, p.round), proposal.hash)
            case VoteNotice(votes):
                for vote in votes:
                    v = vote.message
                    place = (v.kind, vote.signer_id, v.height, v.round)
                    self._watch(place, v.block_hash)

    def _watch(self, place: tuple[object, ...], value: object) -> None:
        self._signed[place].add(value)
        if len(self._signed[place]) > 1:
            self.broken.append(f"signed twice: {place}")

    # --- what tests look at ----------------------------------------------------------------------

    def get_roots(self) -> set[tuple[int, bytes]]:
        alive = [replica for replica in self.replicas.values() if replica.alive]
        return {(replica.height, replica.engine.state_root) for replica in alive}

    def is_applied(self, transaction_id: bytes) -> bool:
        """Whether every live replica has applied a transaction."""
        alive = [replica for replica in self.replicas.values() if replica.alive]
        return all(replica.engine.state.is_applied(transaction_id) for replica in alive)

    def list_sent(self, kind: type) -> list[tuple[NodeId, NodeId, Any]]:
        return [sent for sent in self.sent if isinstance(sent[2], kind)]
