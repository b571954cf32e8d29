"""A provider and its requesters in one object: what a test delivers is metered by both sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iemas.client._metering import TaskMeter
from iemas.core.envelope import Signed
from iemas.core.execution import OutputChunk, Receipt, ReceiptCountersigned, TaskStart
from iemas.core.params import MarketParams
from iemas.core.ready import Record
from iemas.core.types import FinishReason
from iemas.testing.builders import Buyer
from iemas.testing.chain import LedgerChain, make_genesis
from node.execution import Execution, ExecutionFrame
from node.provider import Provider

SELLER = "node-1"


@dataclass
class Task:
    """One running task: the provider's machine, the requester's meter, what is under way."""

    desk: Desk
    start: TaskStart
    meter: TaskMeter
    execution: Execution
    receipts: list[Signed[Receipt]] = field(default_factory=list)
    answers: list[ReceiptCountersigned] = field(default_factory=list)

    def deliver(self, count: int = 1) -> Signed[Receipt] | None:
        """Send one chunk of tokens; give the receipt that went with it, if any."""
        token_ids = tuple(range(count))
        frames = self.execution.deliver("x" * count, token_ids, now_ms=self.desk.now_ms)
        return self._arrive(frames)

    def finish(
        self, reason: FinishReason = FinishReason.STOP, *, cached_tokens: int | None = None
    ) -> Signed[Receipt]:
        """End the task; give its final receipt."""
        receipt = self._arrive(self.execution.finish(reason, cached_tokens=cached_tokens))
        assert receipt is not None
        return receipt

    def _arrive(self, frames: tuple[ExecutionFrame, ...]) -> Signed[Receipt] | None:
        """Let frames arrive at the requester at once; it countersigns what it can."""
        last = None
        for frame in frames:
            if isinstance(frame, OutputChunk):
                self.meter.take_chunk(frame, now_ms=self.desk.now_ms)
            else:
                last = frame
                self.receipts.append(frame)
                self.answers.append(self.meter.take_receipt(frame))
        return last

    def acknowledge(self, index: int = 0) -> Record:
        """Let one of the requester's answers arrive at the provider."""
        answer = self.answers.pop(index)
        return self.desk.provider.acknowledge(self.execution, answer, now_ms=self.desk.now_ms)

    def acknowledge_all(self) -> None:
        while self.answers:
            self.acknowledge()

    def end(self) -> None:
        """Close the stream: the provider frees the slot, the requester gives up what is open."""
        self.desk.provider.end(self.execution)
        self.meter.abandon()

    def complete(self, tokens: int = 20) -> None:
        """Deliver tokens and settle up."""
        while tokens > 0:
            self.deliver(min(tokens, 16))
            tokens -= 16
            self.acknowledge_all()
        self.finish()
        self.acknowledge_all()
        self.end()


class Desk:
    """One provider of a ledger, with a clock of its own."""

    def __init__(self, *, slots: int = 4, params: MarketParams | None = None) -> None:
        self.params = params if params is not None else MarketParams()
        self.chain = LedgerChain(make_genesis(params=self.params))
        self.slots = slots
        self.now_ms = self.chain.now_ms
        self.provider = self.make_provider()
        self._buyers: dict[tuple[str, int], Buyer] = {}

    def make_provider(self) -> Provider:
        return Provider(
            node_id=self.chain.get_node(SELLER),
            hub=self.chain.hub,
            slots=self.slots,
            chain_id=self.chain.chain_id,
            params=self.params,
            signer=self.chain.get_signer(SELLER),
            get_state=lambda: self.chain.state,
        )

    def get_buyer(self, account: str = "alice", channel: int = 7) -> Buyer:
        key = (account, channel)
        return self._buyers.setdefault(key, Buyer(self.chain, account, SELLER, channel))

    def make_start(self, account: str = "alice", *, channel: int = 7, **changes: Any) -> TaskStart:
        """Make a task's first message, not yet sent."""
        return self.get_buyer(account, channel).make_meter(**changes).start(now_ms=self.now_ms)

    def begin(self, account: str = "alice", *, channel: int = 7, **changes: Any) -> Task:
        """Begin a task on one of an account's channels."""
        meter = self.get_buyer(account, channel).make_meter(**changes)
        start = meter.start(now_ms=self.now_ms)
        return self.accept(start, meter)

    def accept(self, start: TaskStart, meter: TaskMeter) -> Task:
        """Let a start message arrive at the provider."""
        execution, _ = self.provider.begin(start, now_ms=self.now_ms)
        return Task(self, start, meter, execution)

    def get_total(self, account: str = "alice", channel: int = 7) -> int:
        """Give what the requester says it owes the provider in the current term."""
        term = self.chain.state.get_term(self.chain.hub).number
        buyer = self.get_buyer(account, channel)
        return buyer.channel.get_total_micros(self.chain.hub, term, self.chain.get_node(SELLER))
