"""From an order to a running task: bid, win, hand over, and try again where that can help.

A bid is sealed anew for each attempt. What can change by itself is tried again: another auctioneer
took over, a slot was not free, the winner failed before its first token. Once a token arrived there
is no silent retry: the user would pay twice and read another answer. Source: design §4, §13.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iemas.client._bid_stream import BidStream
from iemas.client._bidding import (
    ENTROPY_BYTES,
    PendingBid,
    TermInfo,
    choose_helpers,
    make_bid_submission,
)
from iemas.client._channel import Channel
from iemas.client._funds import Funds
from iemas.client._metering import TaskMeter
from iemas.client._network import Network
from iemas.client._placing import place_bid
from iemas.client._retry import Retry
from iemas.client._task_stream import TaskEvent, TaskStream
from iemas.core.auction import Allocation, Bid, Unmatched
from iemas.core.envelope import Signed
from iemas.core.errors import (
    APIConnectionError,
    APITimeoutError,
    InvalidAllocationError,
    InvalidBidError,
    InvalidSignatureError,
    NotAuctioneerError,
    ProviderBusyError,
    ProviderFailedError,
    RemoteProtocolError,
    UnfundedBidError,
    UnmatchedError,
)
from iemas.core.execution import TaskPayload
from iemas.core.types import NodeId, UnmatchedReason, short_id

ACCEPT_SECONDS = 2.0
OUTCOME_SECONDS = 5.0
CALL_GRACE_SECONDS = 5.0
MAX_STREAMS = 8

Outcome = Signed[Allocation] | Signed[Unmatched]

_LOSSES = (
    APIConnectionError,
    InvalidAllocationError,
    InvalidSignatureError,
    RemoteProtocolError,
)
"""The auctioneer is gone, silent, or says what no correct one says: ask who is the next."""

_ADVICE = {
    UnmatchedReason.OUTBID: "others bid more for the free slots; raise the bid or try again",
    UnmatchedReason.INFEASIBLE: (
        "no provider serves it within the bid's prices, deadline and size; raise the bid"
    ),
    UnmatchedReason.NO_PROVIDER: "no provider is ready; try again shortly",
    UnmatchedReason.UNDECRYPTABLE: "the bid did not open; try again",
}


def get_now_ms() -> int:
    """Give Unix milliseconds of this machine's clock."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Order:
    """What to buy: the bid, the prompt's block chain, and the prompt for the winner alone."""

    bid: Bid
    chain: bytes
    block_size: int
    payload: TaskPayload


@dataclass(frozen=True, slots=True)
class Purchase:
    """A task that runs at its winner, with the first thing that came from it."""

    allocation: Signed[Allocation]
    auctioneer: NodeId
    stream: TaskStream
    first: TaskEvent
    matched_at: float
    first_at: float
    attempts: int


class Buyer:
    """Buys tasks for one account over one channel."""

    def __init__(
        self, network: Network, channel: Channel, funds: Funds, *, max_refusals: int
    ) -> None:
        self._network = network
        self._channel = channel
        self._funds = funds
        self._max_refusals = max_refusals
        self._streams: dict[NodeId, BidStream] = {}
        self._stream_lock = asyncio.Lock()
        self._tasks: set[TaskStream] = set()

    async def buy(self, order: Order, *, deadline: float) -> Purchase:
        """Win a provider for an order and start the task there.

        `deadline` is in the event loop's time.
        Raises: UnmatchedError, InsufficientFundsError, ProviderBusyError, ProviderFailedError,
            APIConnectionError, APITimeoutError.
        """
        retry = Retry(deadline=deadline, max_refusals=self._max_refusals)
        while True:
            allocation, term = await self._win(order, retry)
            try:
                return await self._hand_over(order, allocation, term, retry)
            except (ProviderBusyError, ProviderFailedError, APIConnectionError) as error:
                if retry.remaining_seconds == 0:
                    raise
                await retry.pause_after_refusal(error)

    # --- winning -----------------------------------------------------------------------------

    async def _win(self, order: Order, retry: Retry) -> tuple[Signed[Allocation], TermInfo]:
        """Bid until an allocation is won."""
        while True:
            try:
                term = await self._get_term()
            except APIConnectionError as error:
                await retry.pause_after_loss(error)
                continue
            retry.attempts += 1
            try:
                answer = await self._bid(order, term, retry)
            except (NotAuctioneerError, *_LOSSES) as error:
                changed = await self._refresh_after_loss(term)
                await retry.pause_after_loss(error, at_once=changed)
            except UnfundedBidError:
                retry.answered()
                await self._funds.wait_for_allowance(order.bid.reservation_micros, retry)
            except InvalidBidError as error:
                retry.answered()
                await retry.pause_after_refusal(error)
            else:
                retry.answered()
                if isinstance(answer.message, Allocation):
                    return Signed(answer.message, answer.envelope), term
                await self._weigh_refusal(order, answer.message, retry)

    async def _get_term(self) -> TermInfo:
        """Give the known term; one that is over for sure is asked for anew."""
        term = self._network.term
        term_seconds = self._network.market.genesis.params.term_ms / 1000
        if term is None or time.monotonic() - self._network.term_at > term_seconds:
            term = await self._network.refresh_term(term)
        return term

    async def _refresh_after_loss(self, term: TermInfo) -> bool:
        """Ask another node who the auctioneer is; tell whether it is another one."""
        try:
            return await self._network.refresh_term(term) != term
        except APIConnectionError:
            return False

    async def _bid(self, order: Order, term: TermInfo, retry: Retry) -> Outcome:
        market = self._network.market
        pending = make_bid_submission(
            order.bid,
            order.chain,
            term=term,
            channel=self._channel,
            chain_id=market.chain_id,
            block_size=order.block_size,
            entropy=secrets.token_bytes(ENTROPY_BYTES),
        )

        async def send(node: NodeId, on_accepted: Callable[[], None]) -> Outcome:
            return await self._send_bid(node, pending, retry, on_accepted)

        return await place_bid(term.auctioneer, choose_helpers(term, retry.attempts), send)

    async def _send_bid(
        self, node: NodeId, pending: PendingBid, retry: Retry, on_accepted: Callable[[], None]
    ) -> Outcome:
        """Send a bid over one node's stream; one that failed or lied is not used again."""
        tolerance_ms = self._network.market.genesis.params.clock_tolerance_ms
        stream = await self._get_stream(node)
        try:
            outcome = await stream.bid(
                pending,
                accept_seconds=min(ACCEPT_SECONDS, retry.remaining_seconds),
                outcome_seconds=min(OUTCOME_SECONDS, retry.remaining_seconds),
                on_accepted=on_accepted,
            )
            return pending.check_outcome(outcome, now_ms=get_now_ms(), tolerance_ms=tolerance_ms)
        except _LOSSES:
            await self._discard(stream)
            raise

    async def _weigh_refusal(self, order: Order, unmatched: Unmatched, retry: Retry) -> None:
        """Pause and go on where another round may end otherwise. Raises: UnmatchedError."""
        reason = unmatched.reason
        if reason is UnmatchedReason.UNFUNDED:
            await self._funds.wait_for_allowance(order.bid.reservation_micros, retry)
            return
        error = UnmatchedError(
            f"no provider was matched: {_ADVICE.get(reason, reason.name.lower())}",
            code="unmatched",
            reason=reason.name.lower(),
            price_to_beat_micros=unmatched.price_to_beat_micros,
            term=unmatched.term,
            round=unmatched.round,
        )
        if reason is UnmatchedReason.INFEASIBLE:
            raise error
        await retry.pause_after_refusal(error)

    async def _get_stream(self, auctioneer: NodeId) -> BidStream:
        stream = self._streams.get(auctioneer)
        if stream is not None and stream.alive:
            return stream
        async with self._stream_lock:
            stream = self._streams.get(auctioneer)
            if stream is None or not stream.alive:
                stream = BidStream(await self._network.get_channel(auctioneer))
                self._streams.pop(auctioneer, None)
                self._streams[auctioneer] = stream
                if len(self._streams) > MAX_STREAMS:
                    await self._discard(next(iter(self._streams.values())))
            return stream

    async def _discard(self, stream: BidStream) -> None:
        """Close a stream, and forget it unless it was replaced already."""
        for auctioneer, current in list(self._streams.items()):
            if current is stream:
                del self._streams[auctioneer]
        await stream.close()

    # --- handing over ------------------------------------------------------------------------

    async def _hand_over(
        self, order: Order, allocation: Signed[Allocation], term: TermInfo, retry: Retry
    ) -> Purchase:
        """Start the task at its winner and wait for its first sign of life."""
        matched_at = asyncio.get_running_loop().time()
        stream = await self._open_task(order, allocation, retry)
        try:
            async with asyncio.timeout_at(retry.deadline):
                first = await stream.next_event()
        except TimeoutError as error:
            await stream.close()
            raise APITimeoutError("no token came within the request's time") from error
        except BaseException:
            await asyncio.shield(stream.close())
            raise
        return Purchase(
            allocation=allocation,
            auctioneer=term.auctioneer,
            stream=stream,
            first=first,
            matched_at=matched_at,
            first_at=asyncio.get_running_loop().time(),
            attempts=retry.attempts,
        )

    async def _open_task(
        self, order: Order, allocation: Signed[Allocation], retry: Retry
    ) -> TaskStream:
        provider = allocation.message.provider
        if provider not in self._network.nodes:
            await self._network.refresh_reports()
        if provider not in self._network.nodes:
            raise APIConnectionError(f"nobody knows the address of {short_id(provider)}")
        channel = await self._network.get_channel(provider)
        market = self._network.market
        meter = TaskMeter(
            allocation,
            order.payload,
            channel=self._channel,
            chain_id=market.chain_id,
            window_tokens=market.genesis.params.window_tokens,
            tolerance_ms=market.genesis.params.clock_tolerance_ms,
        )
        task = TaskStream(
            channel,
            meter,
            clock=get_now_ms,
            timeout_seconds=retry.remaining_seconds + CALL_GRACE_SECONDS,
            on_done=self._tasks.discard,
        )
        self._tasks.add(task)
        return task

    async def close(self) -> None:
        """Stop running tasks, let finished ones get their last signature, close the bid streams."""
        await asyncio.gather(*(task.close() for task in list(self._tasks)))
        streams: Sequence[BidStream] = list(self._streams.values())
        self._streams.clear()
        await asyncio.gather(*(stream.close() for stream in streams))
