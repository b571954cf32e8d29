"""A requester of a simulated market: a conversation, each turn of which is bid for anew.

It bids and pays through the SDK's pure parts, `iemas.client._base`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iemas import wire
from iemas.client._base import (
    OUTCOME_STUCK_SECONDS,
    STUCK_SECONDS,
    Channel,
    PendingBid,
    TaskMeter,
    TermInfo,
    choose_helpers,
    make_bid_submission,
)
from iemas.core.auction import Allocation, Bid, BidAccepted, Refusal, RoundOutcome, Unmatched
from iemas.core.digest import compute_block_keys
from iemas.core.envelope import Signed
from iemas.core.errors import (
    IemasError,
    InvalidInputError,
    LeaseExpiredError,
    NotAuctioneerError,
    RemoteProtocolError,
)
from iemas.core.execution import Busy, ChannelTotal, OutputChunk, Receipt, TaskPayload
from iemas.core.ready import Answer
from iemas.core.types import AccountId, ChannelId, FinishReason, Lateness, NodeId, Prices
from iemas.ledger.records import TotalKey
from node.core import ReceiveBid
from node.execution import ExecutionFrame
from tests.simulation.market_node import BLOCK_SIZE, HUB, make_identity
from tests.totals import watch_totals

if TYPE_CHECKING:
    from tests.simulation.market import SimulatedMarket
    from tests.simulation.market_node import SimulatedNode, SimulatedServing

LOSSES = (NotAuctioneerError.__name__, LeaseExpiredError.__name__)
LOST_MS = 50
REFUSED_MS = 200
"""How soon a requester bids again that has lost its auctioneer, or was refused."""

BID_PRICES = Prices(1_000_000, 1_000_000, 3_000_000)


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
    accepted: bool = False
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
        view = market.get_view(self.attempts)
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
                view.core.state.get_live_validators(HUB),
            ),
            channel=self.requester.channel,
            chain_id=market.chain_id,
            block_size=BLOCK_SIZE,
            entropy=market.random.randbytes(64),
            seal=market.seal,
        )
        self.auctioneer = auctioneer.name
        self.accepted = False
        attempt = self.attempts
        market.later(lambda: self._submit(auctioneer))
        self._watch_for_stuck(attempt, STUCK_SECONDS)
        # A bid without an outcome in time is sealed anew to whoever is auctioneer then.
        market.clock.call_later(3_000, lambda: self._retry(attempt))

    def _watch_for_stuck(self, attempt: int, seconds: float) -> None:
        accepted, delay_ms = self.accepted, int(seconds * 1_000)
        self._market.clock.call_later(
            delay_ms, lambda: self._ask_others(attempt, accepted=accepted)
        )

    def _retry(self, attempt: int) -> None:
        if attempt == self.attempts and self.meter is None and not self.settled:
            self.bid()

    def _ask_others(self, attempt: int, *, accepted: bool) -> None:
        """Give the bid to other validators if nothing came of it but what is known."""
        is_stuck = attempt == self.attempts and self.accepted == accepted and not self.settled
        if not is_stuck or self.meter is not None or self.pending is None:
            return
        self._market.watcher.count("stuck bids")
        for helper in choose_helpers(self.pending.term, attempt):
            node = self._market.by_id[helper]
            self._market.later(lambda n=node: self._submit(n))

    def _submit(self, node: SimulatedNode) -> None:
        if not node.alive or node.is_public_cut or self.pending is None:
            return
        stream = self._market.random.getrandbits(32)
        node.answer_to[stream] = self.receive_answer
        node.step(ReceiveBid(stream, self.pending.submission))

    def receive_answer(self, answer: Answer) -> None:
        """Take an answer, from the auctioneer or one that passed the bid on, if it holds."""
        pending = self.pending
        if pending is None or answer.bid_hash != pending.bid_hash or self.meter is not None:
            return
        try:
            self._follow(pending, answer)
        except (InvalidInputError, RemoteProtocolError) as error:
            self._market.refusals.append((type(error).__name__, str(error)))

    def _follow(self, pending: PendingBid, answer: Answer) -> None:
        """Check what is said of the bid; go to the winner if there is one."""
        market = self._market
        match answer.message:
            case BidAccepted() as accepted:
                pending.check_acceptance(accepted)
                if not self.accepted:
                    self.accepted = True
                    self._watch_for_stuck(self.attempts, OUTCOME_STUCK_SECONDS)
            case Refusal(error, message):
                market.refusals.append((error, message))
                delay_ms = LOST_MS if error in LOSSES else REFUSED_MS
                market.clock.call_later(delay_ms, lambda a=self.attempts: self._retry(a))
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
        meter = self.meter
        market.later(
            lambda: winner.execute(start, self) if winner.alive else self.lose_provider(meter)
        )
        market.clock.call_later(60_000, lambda: self.lose_provider(meter))

    def lose_provider(self, meter: TaskMeter) -> None:
        """The connection to the winner broke, or nothing came over it for long."""
        if self.meter is meter and not self.settled:
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

    def receive(self, frame: ExecutionFrame, serving: SimulatedServing) -> None:
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
        cosigned = self.market.history.cosigned

        def note_total(total: ChannelTotal) -> None:
            key = TotalKey(total.hub, total.term, total.account, total.channel, total.provider)
            cosigned[key] = max(cosigned[key], total.total_micros)

        watch_totals(self.channel, note_total)

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
