"""A ledger market: consensus, ledger and mempool of 4 to 10 validators, and their clients.

The replicas are `iemas.consensus.engine.TendermintEngine` around `LedgerApplication`, as in a node;
rounds and tasks are left out, so that many seeds run. What rounds would hand in, settlements above
all, the clients sign themselves: they have everybody's keys.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random
from typing import Any

from iemas.consensus.engine import EngineMessage, TendermintEngine
from iemas.consensus.messages import CommittedBlock, SignRecord, SubmitTransaction, ValidRecord
from iemas.consensus.voting import DoubleVote
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidInputError, LocalProtocolError, RemoteProtocolError
from iemas.core.params import Genesis, GenesisAccount, GenesisValidator
from iemas.core.ready import Fault, Ready, RecordKind
from iemas.core.types import AccountId, NodeId
from iemas.ledger.application import LedgerApplication
from iemas.ledger.records import OffenceKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import DoubleVoteEvidence, Evidence, Transaction
from iemas.testing.chain import HUB, START_MS, LedgerChain, accept_transcript, make_identity
from iemas.testing.clock import SimulatedClock
from iemas.testing.network import SimulatedNetwork
from tests.simulation.checkers import NoProgressError
from tests.simulation.clients import (
    AVAILABLE_MICROS,
    ESCROW_MICROS,
    Clients,
    list_accounts,
)
from tests.simulation.history import History
from tests.simulation.host import Host
from tests.simulation.nemesis import Nemesis
from tests.simulation.plan import Plan
from tests.simulation.villains import PLOT, Plot, Villain
from tests.simulation.watcher import Watcher

RECOVERY_MS = 30_000
SERVICE_BACK_MS = 2_000
EVIDENCE_RETRY_MS = 2_000
MAX_EVIDENCE_AT_ONCE = 1
MOST_SKEW_IN_DRILL_MS = 900


class LedgerNode(Host):
    """A machine whose process is a consensus engine with its ledger."""

    def __init__(self, market: LedgerMarket, name: str) -> None:
        super().__init__(market, name, make_identity(name))
        self.market = market
        self.engine: TendermintEngine
        self.evidence: dict[OffenceKey, DoubleVote] = {}
        self._evidence_sent: dict[OffenceKey, tuple[bytes, int]] = {}

    @property
    def height(self) -> int:
        return self.engine.height

    @property
    def state(self) -> LedgerState:
        return self.engine.state

    @property
    def state_root(self) -> bytes:
        return self.engine.state_root

    def boot(self) -> None:
        market = self.market
        app = LedgerApplication(
            market.genesis, market.chain_id, verify_transcript=accept_transcript
        )
        self.engine = TendermintEngine(
            app,
            genesis=market.genesis,
            chain_id=market.chain_id,
            signer=market.tools.get_signer(self.name.partition("'")[0]),
            read_blocks=self.disk.read_blocks,
            snapshot_interval=market.plan.snapshot_interval,
        )
        self.engine.set_peers(market.ids)
        self.evidence, self._evidence_sent = {}, {}
        self.engine.restore(
            self.disk.scan(RecordKind.BLOCK, CommittedBlock),
            self.disk.scan(RecordKind.SIGNED, SignRecord),
            self.disk.scan(RecordKind.VALID, ValidRecord),
            self.disk.load_snapshot(),
        )
        self.run(self.tick)

    def take(self, sender: NodeId, message: Any) -> Ready:
        if self.villain is not None:
            self.villain.hear(message)
        if not isinstance(message, EngineMessage):  # as `NodeCore` sorts messages
            error = RemoteProtocolError("no message of consensus")
            return Ready(faults=(Fault(sender, error, type(message).__name__),))
        return self._step(message, sender)

    def submit(self, transaction: Signed[Transaction]) -> None:
        """Hand in a transaction here."""
        self.run(lambda: self._step(SubmitTransaction(transaction), None))

    def tick(self) -> Ready:
        return self.engine.tick(now_ms=self.now_ms) + self._follow()

    def _step(self, message: Any, sender: NodeId | None) -> Ready:
        try:
            ready = self.engine.step(message, sender=sender, now_ms=self.now_ms)
        except (InvalidInputError, RemoteProtocolError) as error:
            ready = Ready()
            if sender is not None:
                ready += Ready(faults=(Fault(sender, error, type(message).__name__),))
            ready += self.engine.tick(now_ms=self.now_ms)
        return ready + self._follow()

    def _follow(self) -> Ready:
        self.engine.take_applied()
        self.engine.take_journal()
        for double in self.engine.take_evidence():
            place = OffenceKey(double.first.signer_id, double.first.message.height)
            if place not in self.evidence:
                self.world.watcher.count("evidence found")
            self.evidence.setdefault(place, double)
        return self._hand_in_evidence() if self.evidence else Ready()

    def _hand_in_evidence(self) -> Ready:
        """Have double votes punished once their height is decided, until they are."""
        ready, state = Ready(), self.state
        for place, double in sorted(self.evidence.items())[:MAX_EVIDENCE_AT_ONCE]:
            if place in state.offences or self._is_out_of_date(double):
                del self.evidence[place]
                continue
            sent_hash, sent_at_ms = self._evidence_sent.get(place, (b"", 0))
            is_due = place.height <= state.height and self.now_ms >= sent_at_ms + EVIDENCE_RETRY_MS
            if not is_due or self.engine.is_waiting(sent_hash):
                continue
            body = Evidence(DoubleVoteEvidence(double.first, double.second))
            account = AccountId(self.node_id)
            nonce = self.engine.get_next_nonce(account)
            signed = self.market.tools.make_transaction(self.name, body, nonce=nonce)
            self._evidence_sent[place] = (signed.hash, self.now_ms)
            ready += self.engine.step(SubmitTransaction(signed), now_ms=self.now_ms)
        return ready

    def _is_out_of_date(self, double: DoubleVote) -> bool:
        window_ms = self.state.params.evidence_window_ms
        voted_at_ms = self.state.get_voting_time(double.first.message.height)
        return voted_at_ms is None or self.state.time_ms > voted_at_ms + window_ms


class LedgerMarket:
    """A market without rounds: machines, clients, villains and what befalls them."""

    def __init__(self, plan: Plan, *, keep_account: bool = False) -> None:
        self.plan = plan
        self.clock = SimulatedClock(start_ms=START_MS)
        self.chance = self._make_random("chance")
        self.network = SimulatedNetwork(self.clock, self._make_random("network"), plan.network)
        self.validator_names = [f"node-{n + 1}" for n in range(plan.validators)]
        observers = [f"observer-{n + 1}" for n in range(plan.observers)]
        self.names = [*self.validator_names, *observers]
        self.genesis = self._make_genesis()
        self.tools = LedgerChain(self.genesis)
        for name in self.names:
            self.tools.get_id(name)
        self.chain_id = self.tools.chain_id
        self.history = History(self.genesis, self.chain_id, accept_transcript)
        self.watcher = Watcher(self.history, keep_account=keep_account)
        self.watcher.now_ms = lambda: self.clock.now_ms - START_MS
        self._receivers: dict[NodeId, list[Host]] = {}
        self.nodes = [LedgerNode(self, name) for name in self.names]
        self.ids = [node.node_id for node in self.nodes]
        self._twins: list[LedgerNode] = []
        for number, villain in plan.villains.items():
            self._corrupt(self.nodes[number], villain.tricks, villain.eagerness)
            if villain.has_twin:
                self._add_twin(self.nodes[number])
        self.clients = Clients(self, self.tools, self._make_random("clients"))
        self.nemesis = Nemesis(
            self,
            [*self.nodes, *self._twins],
            plan,
            self._make_random("nemesis"),
            doom_kinds=(None, RecordKind.SIGNED, RecordKind.SIGNED, RecordKind.BLOCK),
        )

        self.nemesis.plot = self._plot
        self.nemesis.mistake = _mistake

    def _plot(self, plot: Plot | None) -> bool:
        """Let all villains that plot do so together; tell whether there are any."""
        villains = [node for node in self.nodes if node.villain and PLOT in node.villain.tricks]
        for node in villains:
            if node.alive and node.villain is not None:
                node.villain.plot(plot, node.engine)
        return bool(villains)

    def _make_random(self, purpose: str) -> Random:
        return Random(f"{self.plan.kind} {self.plan.seed} {purpose}")

    def _make_genesis(self) -> Genesis:
        accounts = list_accounts(tuple(self.names))
        stakes = zip(self.validator_names, self.plan.stakes, strict=True)
        return Genesis(
            name="chain",
            time_ms=START_MS,
            hub=HUB,
            model="model",
            validators=tuple(
                GenesisValidator(make_identity(name).node_id, stake) for name, stake in stakes
            ),
            accounts=tuple(
                GenesisAccount(account, AVAILABLE_MICROS, ESCROW_MICROS) for _, account in accounts
            ),
            params=self.plan.params,
        )

    # --- villains --------------------------------------------------------------------------------

    def _corrupt(self, node: LedgerNode, tricks: tuple[str, ...], eagerness: float) -> None:
        self.history.villains.add(node.node_id)
        node.villain = Villain(
            self.tools.get_signer(node.name),
            self._make_random(f"villain {node.name}"),
            tricks=tricks,
            eagerness=eagerness,
            count=self.watcher.count,
        )

    def _add_twin(self, node: LedgerNode) -> None:
        """Let two processes have one key; each hears and tells a part of the others."""
        twin = LedgerNode(self, f"{node.name}'s twin")
        twin.identity, twin.node_id, twin.villain = node.identity, node.node_id, node.villain
        self._twins.append(twin)
        random = self._make_random(f"sides {node.name}")
        sides = {other: random.choice(("one", "other", "both")) for other in self.ids}
        node.hears = lambda sender: sides.get(sender) != "other"
        twin.hears = lambda sender: sides.get(sender) != "one"

        def turn() -> None:
            sides[random.choice(self.ids)] = random.choice(("one", "other", "both"))
            self.clock.call_later(random.randint(100, 1_500), turn)

        turn()
        self.watcher.count("twins")

    def is_villain(self, node: NodeId) -> bool:
        """Tell whether a node lies."""
        return node in self.history.villains

    @property
    def honest(self) -> list[LedgerNode]:
        """The machines that keep to the protocol."""
        return [node for node in self.nodes if node.is_honest]

    # --- the world of its machines ----------------------------------------------------------------

    def attach(self, host: Host) -> None:
        self._receivers.setdefault(host.node_id, []).append(host)
        self.network.attach(host.node_id, lambda *message: self._receive(host.node_id, *message))

    def detach(self, host: Host) -> None:
        hosts = self._receivers.get(host.node_id, [])
        if host in hosts:
            hosts.remove(host)
        if not hosts:
            self.network.detach(host.node_id)

    def _receive(self, node_id: NodeId, sender: NodeId, message: Any) -> None:
        for host in list(self._receivers.get(node_id, ())):
            if host.hears(sender):
                host.receive(sender, message)

    # --- running ---------------------------------------------------------------------------------

    def choose_view(self) -> LedgerNode | None:
        """Choose a live honest node whose ledger clients go by."""
        alive = [node for node in self.honest if node.alive]
        return self.chance.choice(alive) if alive else None

    def submit_anywhere(self, transaction: Signed[Transaction]) -> None:
        """Hand a transaction in at a live honest node."""
        view = self.choose_view()
        if view is not None:
            view.submit(transaction)

    def run(self) -> None:
        """Run the time of faults, then let the market recover, then kill one more.

        Raises: BrokenPromiseError.
        """
        self.nemesis.set_clocks()
        late = self.nodes[self.plan.validators :] if self.plan.observers_late_ms else []
        for host in [*self.nodes, *self._twins]:
            if host not in late:
                host.start()
        self.clock.call_later(self.plan.observers_late_ms, lambda: _start(late))
        self.nemesis.begin()
        times = self._make_random("times")
        for _ in range(self.plan.transactions):
            self.clock.call_later(times.randint(50, self.plan.faults_ms), self.clients.act)
        self.clock.run_until(self.clock.now_ms + self.plan.faults_ms)
        self.watcher.tell("-", "the faults are over")
        self.nemesis.end()
        self._recover()
        if not self.plan.villains:
            self._kill_one()
        self.watcher.tell("-", f"state root {self.history.roots[self.history.height].hex()}")

    # --- liveness --------------------------------------------------------------------------------

    def _recover(self) -> None:
        """A height is committed and a settlement settled within bounded time, at all honest nodes.

        And they have one ledger, and every double vote that one of them saw is punished.
        """
        began_at_ms = self.clock.now_ms
        probe = self.clients.make_probe()
        self.submit_anywhere(probe)
        settlements: list[Any] = []

        def try_to_settle() -> None:
            view = self.choose_view()
            is_settled = any(key in self.history.settled for key in settlements)
            if view is not None and not is_settled:
                key, transaction = self.clients.make_probe_settlement(view)
                settlements.append(key)
                view.submit(transaction)
                self.clock.call_later(1_000, try_to_settle)

        def is_recovered() -> bool:
            honest = self.honest
            return (
                any(key in self.history.settled for key in settlements)
                and all(node.state.is_applied(probe.hash) for node in honest)
                and len({node.state_root for node in honest}) == 1
                and not any(node.evidence for node in honest)
            )

        try_to_settle()
        self._await(is_recovered, RECOVERY_MS, "recovery")
        self.watcher.note_duration("recovery", self.clock.now_ms - began_at_ms)

    def _kill_one(self) -> None:
        """With one node dead, whichever, the others commit again within two seconds."""
        for node in self.nodes:
            node.drift_ppm = 0
            node.skew_ms = max(min(node.skew_ms, MOST_SKEW_IN_DRILL_MS), -MOST_SKEW_IN_DRILL_MS)
        able = [node for node in self.nodes if self.history.is_spare(node.node_id)]
        auctioneer = self.history.state.get_term(HUB).auctioneer
        favourites = [node for node in able if node.node_id == auctioneer]
        dead = self.chance.choice(favourites if self.chance.random() < 0.5 and favourites else able)
        self.watcher.tell("-", f"{dead.name} is killed for good")
        self.watcher.count("kills for good of the auctioneer", dead.node_id == auctioneer)
        dead.crash()
        began_at_ms = self.clock.now_ms
        probe = self.clients.make_probe()
        self.submit_anywhere(probe)

        def is_back() -> bool:
            return all(node.state.is_applied(probe.hash) for node in self.nodes if node.alive)

        self._await(is_back, SERVICE_BACK_MS, "service back")
        self.watcher.note_duration("service back", self.clock.now_ms - began_at_ms)

    def _await(self, condition: Any, limit_ms: int, promise: str) -> None:
        try:
            self.clock.run_until(self.clock.now_ms + limit_ms, until=condition)
        except LocalProtocolError as error:
            where = {node.name: node.height if node.alive else "dead" for node in self.nodes}
            raise NoProgressError(promise, f"not within {limit_ms} ms: {where}") from error


def _mistake(host: Host, silent: Collection[NodeId]) -> None:
    if host.alive and isinstance(host, LedgerNode):
        host.engine.set_silent(silent)


def _start(hosts: Sequence[Host]) -> None:
    for host in hosts:
        if not host.alive:
            host.start()
