"""The selling side of a node: takes tasks in, keeps what it is owed, settles it.

A pure state machine around `node.execution`. What it is owed by a channel in a term is one
co-signed total and the allocation that bounds it; both are durable before more is delivered, so
a crash costs at most one window. Source: design §4 steps 6 to 8, §7 (settlement).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from iemas.core.auction import Allocation
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import (
    InvalidAllocationError,
    InvalidReceiptError,
    LocalProtocolError,
    ProviderBusyError,
)
from iemas.core.execution import (
    Busy,
    ChannelTotal,
    ReceiptCountersigned,
    TaskStart,
    UnsettledChannel,
    compute_prompt_hash,
)
from iemas.core.params import MarketParams
from iemas.core.ready import Record, RecordKind
from iemas.core.types import AccountId, ChannelId, HubId, NodeId
from iemas.ledger.records import TotalKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import Settle, SettlementEntry
from node.execution import Execution

MAX_FINISHED = 64
MAX_ENTRIES = 500

ChannelKey = tuple[int, AccountId, ChannelId]  # (term, account, channel)


@dataclass(slots=True)
class ChannelBook:
    """What one channel owes here in one term.

    `total` is what is settled: the newest total within the bound of `allocation`, the one that
    bounds most. `newest` may be beyond it, as totals count tasks that are still on their way here.
    Of the tasks that ended, `ended_micros` is what a new task's total must count, and
    `ended_cosigned_micros` what any total must.
    """

    allocation: Signed[Allocation]
    total: Signed[ChannelTotal]
    newest: Signed[ChannelTotal]
    running: int = 0
    ended_micros: int = 0
    ended_cosigned_micros: int = 0

    @property
    def bound_micros(self) -> int:
        """The most that the ledger lets this channel settle."""
        return self.allocation.message.channel_reserved_micros

    @property
    def covered_micros(self) -> int:
        """What is sure to be paid: nothing if not even the settled total is within the bound."""
        total_micros = self.total.message.total_micros
        return total_micros if total_micros <= self.bound_micros else 0

    @property
    def owes_nothing(self) -> bool:
        """Whether there is nothing to settle."""
        return self.total.message.total_micros == 0

    def add(self, allocation: Signed[Allocation], total: Signed[ChannelTotal]) -> ChannelBook:
        """Give this book with one more allocation and total, whatever order they arrive in."""
        more = allocation.message.channel_reserved_micros > self.bound_micros
        newest = _choose_newer(self.newest, total)
        book = replace(self, allocation=allocation if more else self.allocation, newest=newest)
        for candidate in (total, newest):
            if candidate.message.total_micros <= book.bound_micros:
                supersedes = book.covered_micros == 0 and not book.owes_nothing
                book.total = candidate if supersedes else _choose_newer(book.total, candidate)
        return book


class Provider:
    """Admission, running tasks and settlement of one provider.

    `get_state` gives the ledger replica's current state; it is read afresh at every use.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        hub: HubId,
        slots: int,
        chain_id: str,
        params: MarketParams,
        signer: Signer,
        get_state: Callable[[], LedgerState],
    ) -> None:
        self._node_id = node_id
        self._hub = hub
        self._slots = slots
        self.backend_healthy = True
        self._chain_id = chain_id
        self._params = params
        self._signer = signer
        self._get_state = get_state
        self._active: dict[bytes, Execution] = {}
        self._released: set[bytes] = set()  # of those active: only their last receipt is open
        self._finished: deque[bytes] = deque(maxlen=MAX_FINISHED)
        self._seen: dict[bytes, int] = {}  # allocation hash -> its expiry
        self._books: dict[ChannelKey, ChannelBook] = {}

    # --- reads -------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many tasks may run at once now: none while the backend does not answer."""
        return self._slots if self.backend_healthy else 0

    @property
    def active(self) -> tuple[bytes, ...]:
        """Hashes of the allocations that take a slot."""
        return tuple(sorted(self._active.keys() - self._released))

    @property
    def finished(self) -> tuple[bytes, ...]:
        """Hashes of the last allocations that ended."""
        return tuple(self._finished)

    @property
    def pending_prompt_tokens(self) -> int:
        """Prompt tokens accepted whose first output token has not come yet."""
        return sum(
            execution.allocation.prompt_tokens - execution.allocation.cached_tokens
            for execution in self._active.values()
            if execution.waits_for_prompt
        )

    @property
    def unsettled_channels(self) -> int:
        """How many (term, account, channel) totals are still to be settled."""
        return sum(not self._is_settled(key, book) for key, book in self._books.items())

    # --- a task ------------------------------------------------------------------------------

    def begin(self, start: TaskStart, *, now_ms: int) -> tuple[Execution, Record]:
        """Check a task's allocation and request, and take it in.

        Raises: InvalidSignatureError, InvalidAllocationError, InvalidReceiptError; at last
            ProviderBusyError, whose `busy` is a signed `Busy`.
        """
        self._check_allocation(start, now_ms)
        self._check_request(start)
        execution = Execution(
            start,
            chain_id=self._chain_id,
            params=self._params,
            signer=self._signer,
            active_tasks=len(self.active),
            now_ms=now_ms,
        )
        book = self._add_total(start.allocation, start.total)
        others = sum(other.least_owed_micros for other in self._get_active(_get_key(execution)))
        _require_covered(
            book.newest.message.total_micros,
            book.ended_micros + others + execution.first_window_micros,
        )
        allocation_hash = start.allocation.hash
        if len(self.active) >= self.slots:
            self._keep_bound(start.allocation)
            reason = f"all {self.slots} slots are taken" if self.slots else "the backend is down"
            busy = self._signer.sign(Busy(allocation_hash, self._node_id, reason))
            raise ProviderBusyError(reason, busy=busy)
        self._seen[allocation_hash] = start.allocation.message.expires_at_ms
        self._active[allocation_hash] = execution
        book.running += 1
        return execution, self._keep_book(_get_key(execution), book)

    def _check_allocation(self, start: TaskStart, now_ms: int) -> None:
        allocation = start.allocation.message
        current = self._get_state().get_term(self._hub)
        term = self._get_state().get_term_by_number(allocation.hub, allocation.term)
        _require(allocation.hub == self._hub, "the allocation is of another hub")
        _require(
            term is not None and current.number - 1 <= allocation.term,
            f"the allocation is of term {allocation.term}, this is term {current.number}",
        )
        if term is not None:
            verify_signed(start.allocation, self._chain_id, expected_signer=term.auctioneer)
        _require(allocation.provider == self._node_id, "the allocation names another provider")
        _require(
            now_ms <= allocation.expires_at_ms + self._params.clock_tolerance_ms,
            "the allocation has expired",
        )
        for allocation_hash in [h for h, at in self._seen.items() if at + 60_000 < now_ms]:
            del self._seen[allocation_hash]
        _require(start.allocation.hash not in self._seen, "the allocation was used before")

    def _check_request(self, start: TaskStart) -> None:
        allocation, request = start.allocation.message, start.task_request.message
        verify_signed(start.task_request, self._chain_id, expected_signer=allocation.account)
        _require(
            request.allocation_hash == start.allocation.hash
            and request.provider == self._node_id
            and request.account == allocation.account,
            "the task request is for another allocation",
        )
        _require(
            request.prompt_hash == compute_prompt_hash(start.payload),
            "the prompt is not the one that the task request commits to",
        )
        tokens = len(start.payload.token_ids)
        _require(
            tokens == allocation.prompt_tokens == request.prompt_tokens
            and start.payload.max_tokens == allocation.max_tokens == request.max_tokens,
            "prompt and max_tokens are not those of the allocation",
        )

    def _add_total(
        self, allocation: Signed[Allocation], total: Signed[ChannelTotal]
    ) -> ChannelBook:
        """Check that a running total is the channel's own; give its book with it, not yet kept."""
        message, terms = total.message, allocation.message
        verify_signed(total, self._chain_id, expected_signer=terms.account)
        expected = (terms.hub, terms.term, terms.account, terms.channel, self._node_id)
        given = (message.hub, message.term, message.account, message.channel, message.provider)
        if given != expected:
            raise InvalidReceiptError("the running total is another channel's")
        book = self._books.get((terms.term, terms.account, terms.channel))
        return (book or ChannelBook(allocation, total, total)).add(allocation, total)

    def _get_active(self, key: ChannelKey) -> list[Execution]:
        return [execution for execution in self._active.values() if _get_key(execution) == key]

    def _keep_bound(self, allocation: Signed[Allocation]) -> None:
        """Keep a refused task's allocation: totals of the channel may count it for a while."""
        terms = allocation.message
        book = self._books.get((terms.term, terms.account, terms.channel))
        if book is not None:
            key = (terms.term, terms.account, terms.channel)
            self._books[key] = book.add(allocation, book.newest)

    def acknowledge(
        self, execution: Execution, countersigned: ReceiptCountersigned, *, now_ms: int
    ) -> Record:
        """Take a countersigned receipt and its running total; give what to make durable.

        Acknowledgements of parallel tasks may overtake each other, so it is the channel's newest
        total that must count what is owed, and a total beyond the bound is taken on trust for no
        more than each task's first window, or chunk where that is larger.
        Raises: InvalidReceiptError, InvalidSignatureError; then nothing is changed.
        """
        receipt = execution.check_acknowledgement(countersigned)
        book = self._add_total(execution.start.allocation, countersigned.total)
        active = self._get_active(_get_key(execution))
        owed = book.ended_cosigned_micros + execution.compute_cosigned_with(receipt)
        owed += sum(other.cosigned_micros for other in active if other is not execution)
        _require_covered(book.newest.message.total_micros, owed)
        trusted = sum(other.trusted_micros for other in active)
        _require_covered(book.covered_micros, owed - trusted)
        execution.acknowledge(countersigned, now_ms=now_ms)
        return self._keep_book(_get_key(execution), book)

    def release(self, execution: Execution) -> None:
        """Free the slot of a task that the backend is done with; its last receipt may be open.

        So a requester that goes on at once finds the slot of its last turn free.
        """
        allocation_hash = execution.start.allocation.hash
        if allocation_hash in self._active and allocation_hash not in self._released:
            self._released.add(allocation_hash)
            self._finished.append(allocation_hash)

    def end(self, execution: Execution) -> None:
        """Close the book of a task that ended, however it ended, and free its slot."""
        self.release(execution)
        allocation_hash = execution.start.allocation.hash
        if self._active.pop(allocation_hash, None) is None:
            raise LocalProtocolError("the task is not active")
        self._released.discard(allocation_hash)
        book = self._books[_get_key(execution)]
        book.running -= 1
        book.ended_micros += min(execution.least_owed_micros, execution.metered_micros)
        book.ended_cosigned_micros += execution.cosigned_micros

    # --- settlement --------------------------------------------------------------------------

    def _keep_book(self, key: ChannelKey, book: ChannelBook) -> Record:
        self._books[key] = book
        running_micros = sum(execution.cosigned_micros for execution in self._get_active(key))
        counted_micros = book.ended_cosigned_micros + running_micros
        channel = UnsettledChannel(book.allocation, book.total, counted_micros)
        return Record(RecordKind.UNSETTLED, _encode_key(key), channel)

    def _is_settled(self, key: ChannelKey, book: ChannelBook) -> bool:
        """Tell whether there is nothing (more) of a book that the ledger would pay."""
        term, account, channel = key
        total_key = TotalKey(self._hub, term, account, channel, self._node_id)
        settled = self._get_state().get_settled_total(total_key)
        total = book.total.message
        return (
            book.covered_micros == 0
            or settled.sequence >= total.sequence
            or settled.total_micros > total.total_micros
        )

    def restore(self, channels: Iterable[UnsettledChannel]) -> None:
        """Take up what an earlier process of this node had not settled."""
        for channel in channels:
            total, counted_micros = channel.total.message, channel.counted_micros
            key = (total.term, AccountId(total.account), ChannelId(total.channel))
            self._books[key] = ChannelBook(
                channel.allocation,
                channel.total,
                channel.total,
                ended_micros=counted_micros,
                ended_cosigned_micros=counted_micros,
            )
            self._seen[channel.allocation.hash] = channel.allocation.message.expires_at_ms

    def collect_settlement(self) -> Settle | None:
        """Give the totals of past terms that no task adds to any more, or that are settled late.

        A task may run for longer than its term can be settled: what it owes by then must not wait.
        """
        current = self._get_state().get_term(self._hub).number
        entries = [
            SettlementEntry(book.allocation, book.total)
            for key, book in sorted(self._books.items(), key=lambda item: item[0])
            if key[0] < current
            and (book.running == 0 or current - key[0] > self._params.settle_terms // 2)
            and not self._is_settled(key, book)
        ]
        return Settle(tuple(entries[:MAX_ENTRIES])) if entries else None

    def forget_settled(self) -> tuple[Record, ...]:
        """Drop the books that the ledger has settled, or that can never be settled any more.

        A book stays while its term's allocations are taken in: it tells what a total must count.
        """
        state, records = self._get_state(), []
        oldest_taken = state.get_term(self._hub).number - 1
        for key, book in sorted(self._books.items(), key=lambda item: item[0]):
            closed = state.get_term_by_number(self._hub, key[0]) is None
            done = closed or (key[0] < oldest_taken and self._is_settled(key, book))
            if done and book.running == 0:
                del self._books[key]
                records.append(Record(RecordKind.UNSETTLED, _encode_key(key), None))
        return tuple(records)


def _choose_newer(
    first: Signed[ChannelTotal], second: Signed[ChannelTotal]
) -> Signed[ChannelTotal]:
    return second if second.message.sequence > first.message.sequence else first


def _require_covered(total_micros: int, owed_micros: int) -> None:
    if total_micros < owed_micros:
        raise InvalidReceiptError(
            f"the running total is {total_micros}, owed are at least {owed_micros}",
            total_micros=total_micros,
            owed_micros=owed_micros,
        )


def _require(condition: bool, message: str) -> None:  # noqa: FBT001
    if not condition:
        raise InvalidAllocationError(message)


def _get_key(execution: Execution) -> ChannelKey:
    allocation = execution.allocation
    return (allocation.term, allocation.account, allocation.channel)


def _encode_key(key: ChannelKey) -> bytes:
    term, account, channel = key
    return term.to_bytes(8, "big") + account + channel.to_bytes(8, "big")
