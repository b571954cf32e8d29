"""Requester and provider of parallel tasks on one channel agree, whatever overtakes what.

Each task is a stream of its own, ordered in both directions; the streams interleave at will.
Source: docs/spec/execution.md R1 to R17; design §4 steps 6 to 8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iemas.client._metering import TaskMeter
from iemas.core.envelope import Signed
from iemas.core.errors import ProviderBusyError
from iemas.core.execution import (
    Busy,
    OutputChunk,
    Receipt,
    ReceiptCountersigned,
    TaskStart,
    compute_first_window_micros,
)
from iemas.core.params import MarketParams
from iemas.core.types import FinishReason, Lateness, Prices
from iemas.ledger.transaction import ResultCode
from iemas.testing.builders import ONE
from node.execution import Execution
from tests.unit.node.selling import SELLER, Desk

MAX_ADVANCE_MS = 20
"""So small that a whole run stays within the clock tolerance: then late factors must agree."""

PARAMS = MarketParams(receipt_interval_tokens=3, window_tokens=6)
"""Short windows, so that totals soon count more than receipt 0."""

Frame = OutputChunk | Signed[Receipt] | Signed[Busy]


@dataclass
class Stream:
    """One task, with what is under way in either direction."""

    meter: TaskMeter
    reserved_micros: int
    first_micros: int
    to_provider: deque[TaskStart | ReceiptCountersigned] = field(default_factory=deque)
    to_requester: deque[Frame] = field(default_factory=deque)
    execution: Execution | None = None
    delivered: int = 0
    finished: bool = False
    ended: bool = False
    final_micros: int = 0
    refused_micros: int = 0


def can_finish(stream: Stream) -> bool:
    return stream.execution is not None and not stream.finished


def can_generate(stream: Stream) -> bool:
    return can_finish(stream) and stream.execution is not None and not stream.execution.blocked


def is_over(stream: Stream) -> bool:
    return stream.meter.ended and (stream.ended or stream.execution is None)


class Metering(RuleBasedStateMachine):
    """A requester and a provider with two slots, connected by one stream a task."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(slots=2, params=PARAMS)
        self.streams: list[Stream] = []

    # --- rules -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.streams) < 5)
    @rule(
        prompt_tokens=st.integers(1, 200),
        max_tokens=st.integers(1, 150),
        cached=st.integers(0, 200),
        rates=st.builds(Prices, *[st.integers(1, 5 * ONE)] * 3),
        lateness=st.builds(Lateness, st.integers(0, 300), st.integers(0, 300)),
    )
    def begin(
        self, prompt_tokens: int, max_tokens: int, cached: int, rates: Prices, lateness: Lateness
    ) -> None:
        meter = self.desk.get_buyer().make_meter(
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            cached_tokens=min(cached, prompt_tokens),
            rates=rates,
            lateness=lateness,
        )
        terms = meter.allocation.message
        first_micros = compute_first_window_micros(terms, self.desk.params.window_tokens)
        stream = Stream(meter, terms.reserved_micros, first_micros)
        stream.to_provider.append(meter.start(now_ms=self.desk.now_ms))
        self.streams.append(stream)

    @rule(elapsed_ms=st.integers(1, MAX_ADVANCE_MS))
    def advance(self, elapsed_ms: int) -> None:
        self.desk.now_ms += elapsed_ms

    @precondition(lambda self: any(map(can_generate, self.streams)))
    @rule(which=st.integers(0, 4), count=st.integers(1, 20))
    def generate(self, which: int, count: int) -> None:
        self.generate_on(self.choose(can_generate, which), count)

    @precondition(lambda self: any(map(can_generate, self.streams)))
    @rule(which=st.integers(0, 4), answers=st.integers(0, 3))
    def fill_window(self, which: int, answers: int) -> None:
        """Generate until the window is full; let some of the requester's answers arrive."""
        stream = self.choose(can_generate, which)
        while can_generate(stream):
            self.generate_on(stream, 3)
        while stream.to_requester:
            self.step_requester(stream)
        for _ in range(min(answers, len(stream.to_provider))):
            self.step_provider(stream)

    @precondition(lambda self: any(map(can_finish, self.streams)))
    @rule(which=st.integers(0, 4), cached=st.none() | st.integers(0, 300))
    def finish(self, which: int, cached: int | None) -> None:
        self.finish_on(self.choose(can_finish, which), cached)

    @precondition(lambda self: any(stream.to_provider for stream in self.streams))
    @rule(which=st.integers(0, 4))
    def arrive_at_provider(self, which: int) -> None:
        self.step_provider(self.choose(lambda stream: bool(stream.to_provider), which))

    @precondition(lambda self: any(stream.to_requester for stream in self.streams))
    @rule(which=st.integers(0, 4))
    def arrive_at_requester(self, which: int) -> None:
        self.step_requester(self.choose(lambda stream: bool(stream.to_requester), which))

    # --- what must always hold -------------------------------------------------------------------

    @invariant()
    def totals_stay_within_what_is_reserved(self) -> None:
        assert self.desk.get_total() <= sum(stream.reserved_micros for stream in self.streams)

    @invariant()
    def totals_cover_what_is_countersigned(self) -> None:
        owed = sum(s.execution.cosigned_micros for s in self.streams if s.execution is not None)
        for book in self.desk.provider._books.values():
            assert book.newest.message.total_micros >= owed

    @invariant()
    def a_window_bounds_what_is_unacknowledged(self) -> None:
        for stream in self.streams:
            if stream.execution is not None:
                execution = stream.execution
                unsigned = execution._delivery.output_tokens - execution._acknowledged_tokens
                assert unsigned < self.desk.params.window_tokens + 20

    @invariant()
    def amounts_only_grow_while_a_task_runs(self) -> None:
        for stream in self.streams:
            if stream.execution is not None and not stream.finished:
                receipts = stream.execution._issued.values()
                amounts = [receipt.message.amount_micros for receipt in receipts]
                assert amounts == sorted(amounts)

    def teardown(self) -> None:
        """Let everything arrive and every task go on to its end: nothing is stuck, all agrees."""
        while any(not is_over(stream) for stream in self.streams):
            progressed = False
            for stream in self.streams:
                progressed |= self.advance_stream(stream)
            assert progressed, "a deadlock"
        assert self.desk.get_total() == sum(stream.final_micros for stream in self.streams)
        self.settle()

    # --- steps -----------------------------------------------------------------------------------

    def choose(self, able: Callable[[Stream], bool], which: int) -> Stream:
        candidates = [stream for stream in self.streams if able(stream)]
        return candidates[which % len(candidates)]

    def advance_stream(self, stream: Stream) -> bool:
        if stream.to_requester:
            self.step_requester(stream)
        elif stream.to_provider:
            self.step_provider(stream)
        elif can_generate(stream):
            self.generate_on(stream, 7)
        else:
            return False
        return True

    def generate_on(self, stream: Stream, count: int) -> None:
        execution = stream.execution
        assert execution is not None
        count = min(count, execution.allocation.max_tokens - stream.delivered)
        if count == 0:
            self.finish_on(stream, None)
            return
        token_ids = tuple(range(stream.delivered, stream.delivered + count))
        stream.delivered += count
        stream.to_requester += execution.deliver("", token_ids, now_ms=self.desk.now_ms)

    def finish_on(self, stream: Stream, cached: int | None) -> None:
        assert stream.execution is not None
        stream.finished = True
        stream.to_requester += stream.execution.finish(FinishReason.STOP, cached_tokens=cached)

    def step_provider(self, stream: Stream) -> None:
        message, provider = stream.to_provider.popleft(), self.desk.provider
        if isinstance(message, TaskStart):
            try:
                stream.execution, _ = provider.begin(message, now_ms=self.desk.now_ms)
            except ProviderBusyError as error:
                stream.refused_micros = stream.first_micros
                stream.to_requester.append(error.operands["busy"])
            return
        assert stream.execution is not None
        provider.acknowledge(stream.execution, message, now_ms=self.desk.now_ms)
        if stream.execution.done:
            provider.end(stream.execution)
            stream.ended = True

    def step_requester(self, stream: Stream) -> None:
        frame = stream.to_requester.popleft()
        if isinstance(frame, OutputChunk):
            stream.meter.take_chunk(frame, now_ms=self.desk.now_ms)
        elif isinstance(frame.message, Busy):
            stream.meter.take_busy(frame)
        else:
            stream.to_provider.append(stream.meter.take_receipt(frame))
            stream.final_micros = frame.message.amount_micros

    def settle(self) -> None:
        """Check that the ledger pays what both sides agreed on.

        The last total may still count receipt 0 of tasks that were refused as busy, if the refusal
        came after it was signed (execution.md §6).
        """
        desk = self.desk
        total = desk.get_total()
        desk.chain.end_term()
        body = desk.provider.collect_settlement()
        paid = 0
        if body is not None:
            assert desk.chain.submit(SELLER, body).code is ResultCode.OK
            paid = desk.chain.state.get_balance(desk.chain.get_id(SELLER))[0]
        assert total <= paid <= total + sum(stream.refused_micros for stream in self.streams)


TestMetering = Metering.TestCase
TestMetering.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
