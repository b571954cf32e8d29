"""A whole market in one thread: simulated clock, network, disks and backends, one seed.

The nodes are `node.core.NodeCore`, the requesters `iemas.client._base`: the same classes that run
in production. Only what carries out their effects is simulated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from auctioneer.predictors.linear import LinearPredictor
from auctioneer.verify import verify_transcript
from iemas import wire
from iemas.client._base import Channel, PendingBid, TaskMeter, TermInfo, make_bid_submission
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import CommittedBlock, SignRecord, ValidRecord
from iemas.core.auction import (
    Allocation,
    Bid,
    BidAccepted,
    Refusal,
    RoundClose,
    RoundOutcome,
    ShareRelease,
    Transcript,
    Unmatched,
)
from iemas.core.digest import compute_block_keys
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed
from iemas.core.errors import IemasError, InvalidInputError, ProviderBusyError
from iemas.core.execution import (
    Busy,
    OutputChunk,
    Receipt,
    ReceiptCountersigned,
    TaskPayload,
    TaskStart,
    UnsettledChannel,
)
from iemas.core.gossip import ReportPush
from iemas.core.identity import Identity
from iemas.core.params import Genesis, GenesisAccount, GenesisValidator, MarketParams
from iemas.core.ready import Answer, Ready, RecordKind
from iemas.core.types import (
    AccountId,
    ChannelId,
    FinishReason,
    HashAlgorithm,
    HubId,
    Lateness,
    NodeId,
    Prices,
)
from iemas.ledger.application import LedgerApplication
from iemas.ledger.records import TotalKey
from iemas.ledger.state import LedgerState
from iemas.testing.backend import EngineConfig, SimulatedEngine, SimulatedRun, SimulatedToken
from iemas.testing.clock import SimulatedClock
from iemas.testing.network import NetworkFaults, SimulatedNetwork
from iemas.testing.sealing import seal_share_with
from node.core import CacheChanged, NodeCore, NodeInput, ReceiveBid, ReceivePeerMessage, TimePassed
from node.execution import Execution, ExecutionFrame
from node.reporting import NodeProfile
from tests.simulation.history import History
from tests.simulation.host import Host
from tests.simulation.watcher import Watcher

START_MS = 1_800_000_000_000
HUB = HubId("simulated")
OBSERVER = "observer"
"""A node that neither sells nor votes: it follows the blocks and checks every round."""
BLOCK_SIZE = 32
ASK = Prices(200_000, 50_000, 600_000)
BID_PRICES = Prices(1_000_000, 1_000_000, 3_000_000)
ESCROW_MICROS = 10_000_000
STAKE_MICROS = 1_000_000
JOIN_MS = 1_000
"""How often a node looks whether it has to introduce itself again."""


def make_identity(seed: int, name: str) -> Identity:
    return Identity(compute_hash(b"simulated", seed.to_bytes(8, "big"), name.encode()))


class SimulatedNode(Host):
    """A machine whose process is a whole node."""

    def __init__(self, market: SimulatedMarket, name: str, *, sells: bool) -> None:
        super().__init__(market, name, make_identity(market.seed, name))
        self.sells = sells
        self.core: NodeCore
        self.backend: SimulatedEngine | None = None
        self.answer_to: dict[int, Callable[[Answer], None]] = {}
        self._market = market
        self.servings: list[_SimulatedServing] = []
        self._cache_version = -1

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
        engine = TendermintEngine(app, genesis=genesis, chain_id=market.chain_id, signer=signer)
        core = NodeCore(
            genesis=genesis,
            chain_id=market.chain_id,
            signer=signer,
            hpke_key=hpke_key,
            profile=profile,
            ask=ASK if self.sells else None,
            engine=engine,
            predictor=LinearPredictor(),
            decode_bid=lambda data: wire.decode(Bid, data),
            incarnation=self.now_ms,
        )
        return core

    def _restore(self) -> None:
        disk = self.disk
        self.core.restore(
            blocks=disk.scan(RecordKind.BLOCK, CommittedBlock),
            signed=disk.scan(RecordKind.SIGNED, SignRecord),
            valid=disk.scan(RecordKind.VALID, ValidRecord),
            transcripts=disk.scan_signed(RecordKind.TRANSCRIPT, Transcript),
            closes=disk.scan_signed(RecordKind.CLOSED_ROUND, RoundClose),
            releases=disk.scan_signed(RecordKind.RELEASED_CLOSE, ShareRelease),
            unsettled=disk.scan(RecordKind.UNSETTLED, UnsettledChannel),
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
        self.servings.clear()

    # --- driving ------------------------------------------------------------------------------

    def step(self, inp: NodeInput) -> None:
        """Let the process take an input."""
        self.run(lambda: self.core.step(inp, now_ms=self.now_ms))

    def take(self, sender: NodeId, message: Any) -> Ready:
        if self.villain is not None:
            self.villain.hear(message)
        return self.core.step(ReceivePeerMessage(sender, message), now_ms=self.now_ms)

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
        self.servings.append(_SimulatedServing(self._market, self, execution, run, task))
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


class _SimulatedServing:
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
        self._waiting: deque[SimulatedToken] = deque()
        self._finished = False

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


@dataclass
class TurnResult:
    """What one turn came to."""

    requester: str
    turn: int
    term: int
    auctioneer: str
    winner: str
    prompt_tokens: int
    previous_prompt_tokens: int
    predicted_cached_tokens: int
    cached_tokens: int
    output_tokens: int
    price_micros: int
    amount_micros: int
    ttft_ms: int


@dataclass(eq=False)
class SimulatedTask:
    """One turn of a requester, from bid to final receipt."""

    requester: SimulatedRequester
    payload: TaskPayload
    pending: PendingBid | None = None
    meter: TaskMeter | None = None
    auctioneer: str = ""
    settled: bool = False
    attempts: int = 0

    @property
    def _market(self) -> SimulatedMarket:
        return self.requester.market

    def bid(self) -> None:
        """Seal a bid to the current auctioneer and send it there."""
        market = self._market
        self.attempts += 1
        if not any(node.alive for node in market.nodes.values()):
            market.clock.call_later(200, lambda a=self.attempts: self._retry(a))
            return
        view = market.get_view()
        term = view.core.state.get_term(HUB)
        auctioneer = market.by_id[term.auctioneer]
        witness = market.by_id[term.witness] if term.witness is not None else None
        chain = compute_block_keys(
            self.payload.token_ids, BLOCK_SIZE, cache_salt=self.payload.cache_salt
        )
        self.pending = make_bid_submission(
            self.requester.make_bid(self.payload),
            chain,
            term=TermInfo(
                HUB,
                term.number,
                term.auctioneer,
                auctioneer.identity.derive_hpke_key().public_key().public_bytes_raw(),
                term.witness,
                witness.identity.derive_hpke_key().public_key().public_bytes_raw()
                if witness is not None
                else b"",
            ),
            channel=self.requester.channel,
            chain_id=market.chain_id,
            block_size=BLOCK_SIZE,
            entropy=market.random.randbytes(64),
            seal=market.seal,
        )
        self.auctioneer = auctioneer.name
        attempt = self.attempts
        market.later(lambda: self._submit(auctioneer))
        # A bid without an outcome in time is sealed anew to whoever is auctioneer then.
        market.clock.call_later(3_000, lambda: self._retry(attempt))

    def _retry(self, attempt: int) -> None:
        if attempt == self.attempts and self.meter is None and not self.settled:
            self.bid()

    def _submit(self, auctioneer: SimulatedNode) -> None:
        if not auctioneer.alive or self.pending is None:
            return
        stream = self._market.random.getrandbits(32)
        auctioneer.answer_to[stream] = self.receive_answer
        auctioneer.step(ReceiveBid(stream, self.pending.submission))

    def receive_answer(self, answer: Answer) -> None:
        """Check what the auctioneer says; go to the winner if there is one."""
        pending, market = self.pending, self._market
        if pending is None or answer.bid_hash != pending.bid_hash or self.meter is not None:
            return
        match answer.message:
            case BidAccepted() as accepted:
                pending.check_acceptance(accepted)
            case Refusal(error, message):
                market.refusals.append((error, message))
                market.clock.call_later(200, lambda a=self.attempts: self._retry(a))
            case RoundOutcome() as outcome:
                decision = pending.check_outcome(
                    outcome, now_ms=market.clock.now_ms, tolerance_ms=2_000
                )
                if isinstance(decision.message, Unmatched):
                    market.refusals.append(("Unmatched", decision.message.reason.name))
                    market.clock.call_later(200, lambda a=self.attempts: self._retry(a))
                    return
                self._start(decision)

    def _start(self, allocation: Signed[Allocation]) -> None:
        market = self._market
        self.meter = TaskMeter(
            allocation,
            self.payload,
            channel=self.requester.channel,
            chain_id=market.chain_id,
            window_tokens=market.genesis.params.window_tokens,
            tolerance_ms=500,
        )
        start = self.meter.start(now_ms=market.clock.now_ms)
        winner = market.by_id[allocation.message.provider]
        market.later(lambda: winner.execute(start, self) if winner.alive else None)
        market.clock.call_later(60_000, lambda m=self.meter: self._give_up(m))

    def _give_up(self, meter: TaskMeter) -> None:
        if self.meter is meter and not self.settled:
            meter.abandon()
            self.fail(IemasError("the provider fell silent"))

    def receive_busy(self, busy: Signed[Busy]) -> None:
        """The winner is over capacity: bid again."""
        assert self.meter is not None
        self.meter.take_busy(busy)
        self._market.refusals.append(("Busy", ""))
        self.meter = None
        self.bid()

    def fail(self, error: IemasError) -> None:
        """The task failed: count it and bid again."""
        self._market.refusals.append((type(error).__name__, str(error)))
        if self.meter is not None:
            self.meter.abandon()
        self.meter = None
        self.bid()

    def receive(self, frame: ExecutionFrame, serving: _SimulatedServing) -> None:
        """Take a chunk or a receipt."""
        market, meter = self._market, self.meter
        if meter is None or self.settled:
            return
        if isinstance(frame, OutputChunk):
            meter.take_chunk(frame, now_ms=market.clock.now_ms)
            return
        countersigned = meter.take_receipt(frame)
        market.in_order(self, lambda: serving.acknowledge(countersigned))
        receipt: Receipt = frame.message
        if receipt.finish is not FinishReason.UNSPECIFIED:
            self.settled = True
            self.requester.complete(self, receipt)


@dataclass
class SimulatedRequester:
    """A conversation of several turns, each bid for anew, without any session id."""

    market: SimulatedMarket
    name: str
    turns: int
    first_tokens: int = 700
    results: list[TurnResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity = make_identity(self.market.seed, self.name)
        self.account = AccountId(self.identity.node_id)
        signer = wire.WireSigner(self.identity, self.market.chain_id)
        self.channel = Channel(signer, ChannelId(self.market.random.getrandbits(63)))
        self._watch_totals()
        self._tokens = self._draw_tokens(self.first_tokens)
        self._previous_prompt_tokens = 0

    @property
    def done(self) -> bool:
        return len(self.results) == self.turns

    def _draw_tokens(self, count: int) -> list[int]:
        return [self.market.random.randrange(1_000) for _ in range(count)]

    def _watch_totals(self) -> None:
        """Show the global observer what this account signs to owe."""
        sign, cosigned = self.channel._sign_total, self.market.history.cosigned

        def sign_total(*arguments: Any) -> Any:
            signed = sign(*arguments)
            total = signed.message
            key = TotalKey(total.hub, total.term, total.account, total.channel, total.provider)
            cosigned[key] = max(cosigned[key], total.total_micros)
            return signed

        self.channel._sign_total = sign_total  # type: ignore[method-assign]

    def make_bid(self, payload: TaskPayload) -> Bid:
        tokens = len(payload.token_ids)
        return Bid(
            model=HUB,
            prompt_tokens=tokens,
            max_tokens=payload.max_tokens,
            prices=BID_PRICES,
            lateness=Lateness(),
            reservation_micros=tokens + 3 * payload.max_tokens + 1,
        )

    def begin_turn(self) -> None:
        payload = TaskPayload(
            token_ids=tuple(self._tokens),
            max_tokens=40,
            cache_salt=self.identity.derive_secret("cache salt").hex(),
            temperature_ppm=0,
            top_p_ppm=1_000_000,
            seed=-1,
            stop=(),
            ignore_eos=True,
        )
        SimulatedTask(self, payload).bid()

    def complete(self, task: SimulatedTask, receipt: Receipt) -> None:
        assert task.meter is not None
        terms = task.meter.allocation.message
        self.results.append(
            TurnResult(
                requester=self.name,
                turn=len(self.results) + 1,
                term=terms.term,
                auctioneer=task.auctioneer,
                winner=self.market.by_id[NodeId(receipt.provider)].name,
                prompt_tokens=receipt.prompt_tokens,
                previous_prompt_tokens=self._previous_prompt_tokens,
                predicted_cached_tokens=terms.cached_tokens,
                cached_tokens=receipt.cached_tokens,
                output_tokens=receipt.output_tokens,
                price_micros=terms.price_micros,
                amount_micros=receipt.amount_micros,
                ttft_ms=receipt.ttft_ms,
            )
        )
        self._previous_prompt_tokens = receipt.prompt_tokens
        self._tokens += task.meter.output_token_ids + self._draw_tokens(30)
        if not self.done:
            delay_ms = self.market.random.randint(5, 3_000)
            self.market.clock.call_later(delay_ms, self.begin_turn)


class SimulatedMarket:
    """Nodes, requesters, and the clock and network between them."""

    def __init__(
        self,
        seed: int,
        *,
        providers: int = 4,
        requesters: int = 4,
        turns: int = 4,
        params: MarketParams | None = None,
        faults: NetworkFaults | None = None,
        stakes: tuple[int, ...] | None = None,
        keep_account: bool = False,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = SimulatedClock(start_ms=START_MS)
        self.network = SimulatedNetwork(self.clock, self.random, faults)
        self.log: list[tuple[int, str, str, dict[str, object]]] = []
        self.refusals: list[tuple[str, str]] = []
        self._last_arrivals: dict[object, int] = {}
        names = [f"node{n}" for n in range(providers)]
        people = [f"requester{n}" for n in range(requesters)]
        self.genesis = Genesis(
            name="simulation",
            time_ms=START_MS,
            hub=HUB,
            model=HUB,
            validators=tuple(
                GenesisValidator(make_identity(seed, name).node_id, stake)
                for name, stake in zip(names, stakes or (STAKE_MICROS,) * providers, strict=True)
            ),
            accounts=tuple(
                GenesisAccount(
                    AccountId(make_identity(seed, name).node_id), 1_000_000, ESCROW_MICROS
                )
                for name in people
            ),
            params=params if params is not None else MarketParams(),
        )
        self.chain_id = self.genesis.compute_chain_id(b"simulation")
        self.history = History(self.genesis, self.chain_id, self._verify_transcript)
        self.watcher = Watcher(self.history, keep_account=keep_account)
        self.watcher.now_ms = lambda: self.clock.now_ms - START_MS
        self.chance = Random(f"market {seed} chance")
        self.nodes = {name: SimulatedNode(self, name, sells=True) for name in names}
        self.nodes[OBSERVER] = SimulatedNode(self, OBSERVER, sells=False)
        self.by_id = {node.node_id: node for node in self.nodes.values()}
        self.requesters = [SimulatedRequester(self, name, turns) for name in people]

    def _verify_transcript(self, transcript: Signed[Transcript], state: LedgerState) -> None:
        verify_transcript(
            transcript,
            ledger=state,
            chain_id=self.chain_id,
            params=self.genesis.params,
            decode_bid=lambda data: wire.decode(Bid, data),
        )

    def attach(self, host: Host) -> None:
        """Connect a machine whose process started."""
        self.network.attach(host.node_id, host.receive)

    def detach(self, host: Host) -> None:
        """Disconnect a machine whose process died."""
        self.network.detach(host.node_id)

    def seal(self, share: bytes, hpke_public_key: bytes, context: bytes) -> bytes:
        """Seal like HPKE, with an ephemeral key from the seed."""
        ephemeral = X25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        return seal_share_with(ephemeral, share, hpke_public_key, context)

    def later(self, callback: Callable[[], None]) -> None:
        """Run something after a network delay."""
        faults = self.network.faults
        delay_ms = self.random.randint(faults.least_delay_ms, faults.most_delay_ms)
        self.clock.call_later(delay_ms, callback)

    def in_order(self, stream: object, callback: Callable[[], None]) -> None:
        """Run something after a network delay, never before what the same stream sent earlier."""
        faults = self.network.faults
        delay_ms = self.random.randint(faults.least_delay_ms, faults.most_delay_ms)
        at_ms = max(self.clock.now_ms + delay_ms, self._last_arrivals.get(stream, 0))
        self._last_arrivals[stream] = at_ms
        self.clock.call_at(at_ms, callback)

    def get_view(self) -> SimulatedNode:
        """Give a live node that requesters ask for the term."""
        return next(node for node in self.nodes.values() if node.alive)

    def start(self) -> None:
        """Start every node."""
        for node in reversed(self.nodes.values()):
            node.start()

    def run_conversations(self, *, limit_ms: int = 120_000) -> None:
        """Let every requester hold its conversation, then let everything settle."""
        for requester in self.requesters:
            self.clock.call_later(self.random.randint(0, 500), requester.begin_turn)
        end_ms = self.clock.now_ms + limit_ms
        self.clock.run_until(end_ms, until=lambda: all(r.done for r in self.requesters))

    def settle(self, *, limit_ms: int = 60_000) -> None:
        """Run until all is settled, all books are closed, and all have the same ledger."""

        def is_settled() -> bool:
            alive = [node for node in self.nodes.values() if node.alive]
            heights = {node.core.state.height for node in alive}
            unsettled = sum(node.core.provider.unsettled_channels for node in alive)
            open_books = sum(node.core.rounds.open_books for node in alive)
            return unsettled == 0 and open_books == 0 and len(heights) == 1

        self.clock.run_until(self.clock.now_ms + limit_ms, until=is_settled)

    def get_transcripts(self) -> list[Transcript]:
        """Give the rounds that the observer verified, in order."""
        disk = self.nodes[OBSERVER].disk
        return [t.message for t in disk.scan_signed(RecordKind.TRANSCRIPT, Transcript)]

    @property
    def events(self) -> list[str]:
        return [name for _, _, name, _ in self.log]
