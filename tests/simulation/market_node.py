"""One machine of a simulated market: its process is a whole node with a simulated backend.

The node is `node.core.NodeCore`, the class that runs in production; what carries out its effects
is simulated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from auctioneer.predictors.linear import LinearPredictor
from iemas import wire
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import CommittedBlock, SignRecord, ValidRecord
from iemas.core.auction import Bid, QosModel, RoundClose, ShareRelease, Transcript
from iemas.core.encoding import compute_hash
from iemas.core.errors import IemasError, InvalidInputError, ProviderBusyError
from iemas.core.execution import ReceiptCountersigned, TaskStart, UnsettledChannel
from iemas.core.gossip import ReportPush
from iemas.core.identity import Identity
from iemas.core.ready import Answer, Ready, RecordKind, Send
from iemas.core.types import HashAlgorithm, HubId, NodeId, Prices
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import RevealAsk
from iemas.testing.backend import EngineConfig, SimulatedEngine, SimulatedRun, SimulatedToken
from node.core import (
    CacheChanged,
    NodeCore,
    NodeInput,
    ReceivePeerMessage,
    ReceiveSpoilt,
    TimePassed,
)
from node.execution import Execution, ExecutionFrame
from node.reporting import NodeProfile
from tests.simulation.host import Host

if TYPE_CHECKING:
    from tests.simulation.market import SimulatedMarket
    from tests.simulation.requester import SimulatedTask

HUB = HubId("simulated")
BLOCK_SIZE = 32
ASK = Prices(200_000, 50_000, 600_000)
JOIN_MS = 1_000
"""How often a node looks whether it has to introduce itself again."""


def make_identity(seed: int, name: str) -> Identity:
    """Make the identity that somebody has in the market of this seed."""
    return Identity(compute_hash(b"simulated", seed.to_bytes(8, "big"), name.encode()))


class SimulatedNode(Host):
    """A machine whose process is a whole node."""

    def __init__(self, market: SimulatedMarket, name: str, *, sells: bool) -> None:
        super().__init__(market, name, make_identity(market.seed, name))
        self.sells = sells
        self.prices = ASK
        """What its operator configured; a process reads it as it starts."""
        self.core: NodeCore
        self.backend: SimulatedEngine | None = None
        self.answer_to: dict[int, Callable[[Answer], None]] = {}
        self._market = market
        self.servings: list[SimulatedServing] = []
        self._cache_version = -1
        self.is_public_cut = False
        """Whether bids of requesters do not reach it."""

    @property
    def height(self) -> int:
        return self.core.engine.height

    @property
    def state_root(self) -> bytes:
        return self.core.engine.state_root

    # --- life ---------------------------------------------------------------------------------

    def boot(self) -> None:
        """Restore from disk, join through another node."""
        self.core = self._make_core()
        self._restore()
        self.step(TimePassed())
        self._keep_joined(self.process, 0)

    def _keep_joined(self, process: int, attempt: int) -> None:
        """Introduce this node, and again whenever no peer answers, as `node.bootstrap` does."""
        if self.process != process:
            return
        membership = self.core.membership
        others = [other for other in self._market.nodes.values() if other is not self]
        if all(membership.is_suspected(peer) for peer in membership.get_peers()):
            alive = [other for other in others if other.alive]
            if alive:
                self._join(alive[attempt % len(alive)])
                attempt += 1
        self._market.clock.call_later(JOIN_MS, lambda: self._keep_joined(process, attempt))

    def _make_core(self) -> NodeCore:
        market, genesis = self._market, self._market.genesis
        signer = wire.WireSigner(self.identity, market.chain_id)
        hpke_key = self.identity.derive_hpke_key()
        if self.sells:
            self.backend = SimulatedEngine(EngineConfig(block_size=BLOCK_SIZE))
            self._cache_version = -1
        profile = NodeProfile(
            public_address=f"{self.name}:1",
            peer_address=f"{self.name}:2",
            ca_certificate=b"",
            hpke_public_key=hpke_key.public_key().public_bytes_raw(),
            software="simulation",
            hub=HUB,
            model=HUB if self.sells else "",
            tokenizer_hash=bytes(32) if self.sells else b"",
            block_size=BLOCK_SIZE if self.sells else 0,
            hash_algorithm=HashAlgorithm.SHA256_CBOR,
            context_tokens=8192 if self.sells else 0,
            slots=4 if self.sells else 0,
            kv_events=True,
        )
        core: NodeCore
        app = LedgerApplication(
            genesis,
            market.chain_id,
            verify_transcript=lambda *evidence: core.rounds.check_evidence(*evidence),  # noqa: PLW0108
        )
        engine = TendermintEngine(
            app,
            genesis=genesis,
            chain_id=market.chain_id,
            signer=signer,
            read_blocks=self.disk.read_blocks,
        )
        core = NodeCore(
            genesis=genesis,
            chain_id=market.chain_id,
            signer=signer,
            hpke_key=hpke_key,
            profile=profile,
            ask=self.prices if self.sells else None,
            ask_secret=self.identity.derive_secret("asks"),
            engine=engine,
            predictor=LinearPredictor(),
            decode_bid=lambda data: wire.decode(Bid, data),
            incarnation=self.now_ms,
        )
        if self.villain is not None:
            self.villain.corrupt_ask(core.ask)
        return core

    def _restore(self) -> None:
        disk = self.disk
        self.core.restore(
            blocks=disk.scan(RecordKind.BLOCK, CommittedBlock),
            signed=disk.scan(RecordKind.SIGNED, SignRecord),
            valid=disk.scan(RecordKind.VALID, ValidRecord),
            snapshot=disk.load_snapshot(),
            transcripts=disk.scan_signed(RecordKind.TRANSCRIPT, Transcript),
            closes=disk.scan_signed(RecordKind.CLOSED_ROUND, RoundClose),
            releases=disk.scan_signed(RecordKind.RELEASED_CLOSE, ShareRelease),
            unsettled=disk.scan(RecordKind.UNSETTLED, UnsettledChannel),
            sealed_asks=disk.scan(RecordKind.SEALED_ASK, RevealAsk),
            models=disk.scan(RecordKind.MODEL, QosModel),
        )

    def _join(self, other: SimulatedNode) -> None:
        record = self.core.membership.get_node(self.node_id)
        assert record is not None
        capability = record.capability

        def introduce() -> Ready:
            try:
                return other.core.introduce(capability, now_ms=other.now_ms)
            except InvalidInputError:
                self._market.watcher.count("joins refused")
                return Ready()

        other.run(introduce)
        if not (other.alive and self.alive):
            return
        push = ReportPush(other.core.membership.get_reports())
        self.step(ReceivePeerMessage(other.node_id, push))

    def crash(self, *, kept_bytes: int = 0) -> None:
        super().crash(kept_bytes=kept_bytes)
        self.answer_to.clear()
        for serving in self.servings:
            serving.break_off()
        self.servings.clear()

    # --- driving ------------------------------------------------------------------------------

    def step(self, inp: NodeInput) -> None:
        """Let the process take an input."""
        self.run(lambda: self.core.step(inp, now_ms=self.now_ms))

    def take(self, sender: NodeId, message: Any) -> Ready:
        if self.villain is not None:
            self.villain.hear(message)
        return self.core.step(ReceivePeerMessage(sender, message), now_ms=self.now_ms)

    def take_spoilt(self, sender: NodeId, error: IemasError) -> Ready:
        return self.core.step(ReceiveSpoilt(sender, error), now_ms=self.now_ms)

    def is_cut_off(self, peer: NodeId) -> bool:
        """Whether the process neither listens nor speaks to a peer, as its transport would not."""
        if self.alive and peer in self.core.peers.cut_off:
            self._market.watcher.count("messages of peers cut off")
            return True
        return False

    def receive(self, sender: NodeId, message: Any) -> None:
        if not self.is_cut_off(sender):
            super().receive(sender, message)

    def receive_spoilt(self, sender: NodeId, error: IemasError) -> None:
        if not self.is_cut_off(sender):
            super().receive_spoilt(sender, error)

    def transmit(self, send: Send) -> None:
        if not self.is_cut_off(send.to):
            super().transmit(send)

    def tick(self) -> Ready:
        return self.core.step(TimePassed(), now_ms=self.now_ms)

    def finish(self, ready: Ready) -> None:
        """Answer bidders, too."""
        super().finish(ready)
        for answer in ready.answers:
            deliver = self.answer_to.get(answer.stream)
            if deliver is not None:
                self._market.later(lambda d=deliver, a=answer: d(a))
        now_ms = self._market.clock.now_ms
        self._market.log += [(now_ms, self.name, e.name, dict(e.fields)) for e in ready.events]

    # --- execution ----------------------------------------------------------------------------

    def execute(self, start: TaskStart, task: SimulatedTask) -> None:
        """Serve a task: the servicer's and the backend's part."""
        now_ms = self._market.clock.now_ms
        try:
            execution, ready = self.core.begin_task(start, now_ms=self.now_ms)
        except ProviderBusyError as error:
            busy = error.operands["busy"]
            self._market.later(lambda: task.receive_busy(busy))
            return
        except InvalidInputError as error:
            failure = error
            self._market.later(lambda: task.fail(failure))
            return
        self.carry_out(ready)
        if not self.alive:
            return
        assert self.backend is not None
        run = self.backend.submit(start.payload, now_ms=now_ms)
        self.servings.append(SimulatedServing(self._market, self, execution, run, task))
        self._schedule_backend()

    def _schedule_backend(self) -> None:
        process, backend = self.process, self.backend
        assert backend is not None
        at_ms = backend.next_at_ms
        if at_ms is None:
            return

        def advance() -> None:
            if self.process != process:
                return
            backend.advance(self._market.clock.now_ms)
            for serving in list(self.servings):
                serving.pump()
            if backend.resident.version != self._cache_version:
                self._cache_version = backend.resident.version
                self.step(CacheChanged(backend.resident.snapshot(), estimated=False))
            self._schedule_backend()

        self._market.clock.call_at(at_ms, advance)


class SimulatedServing:
    """One running task on a simulated provider: the servicer's part."""

    def __init__(
        self,
        market: SimulatedMarket,
        node: SimulatedNode,
        execution: Execution,
        run: SimulatedRun,
        task: SimulatedTask,
    ) -> None:
        self._market = market
        self._node = node
        self._process = node.process
        self._execution = execution
        self._run = run
        self._task = task
        assert task.meter is not None
        self._meter = task.meter
        self._waiting: deque[SimulatedToken] = deque()
        self._finished = False

    def break_off(self) -> None:
        """Let the requester learn that the connection broke."""
        self._market.in_order(self, lambda: self._task.lose_provider(self._meter))

    def pump(self) -> None:
        """Pass on what the backend has made, as far as the window allows."""
        self._waiting.extend(self._run.take_new())
        now_ms = self._node.now_ms
        while self._waiting and not self._execution.blocked:
            token = self._waiting.popleft()
            self._send(self._execution.deliver(token.text, (token.token_id,), now_ms=now_ms))
        usage = self._run.usage
        if usage is not None and not self._waiting and not self._finished:
            self._finished = True
            self._node.carry_out(self._node.core.release_task(self._execution, now_ms=now_ms))
            if self._node.process != self._process:
                return
            self._send(self._execution.finish(usage.finish, cached_tokens=usage.cached_tokens))

    def _send(self, frames: tuple[ExecutionFrame, ...]) -> None:
        for frame in frames:
            self._market.in_order(self, lambda f=frame: self._task.receive(f, self))

    def acknowledge(self, countersigned: ReceiptCountersigned) -> None:
        """The requester's countersignature arrived."""
        if self._node.process != self._process:
            return
        now_ms = self._node.now_ms
        core = self._node.core
        self._node.carry_out(
            core.acknowledge_receipt(self._execution, countersigned, now_ms=now_ms)
        )
        if self._node.process != self._process:
            return
        if self._execution.done:
            self._node.servings.remove(self)
            self._node.carry_out(core.end_task(self._execution, now_ms=now_ms))
        else:
            self.pump()
