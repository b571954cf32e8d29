"""The selling side of a node: takes tasks in, keeps what it is owed, settles it.

A pure state machine around `node.execution`. What it is owed by a channel in a term is one
co-signed total and the allocation that bounds it; both are durable before more is delivered, so
a crash costs at most one window. Source: design §4 steps 6 to 8, §7 (settlement).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    compute_prompt_hash,
)
from iemas.core.params import MarketParams
from iemas.core.ready import Record, RecordKind
from iemas.core.types import AccountId, ChannelId, HubId, NodeId
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import Settle, SettlementEntry
from node.execution import Execution, compute_first_window_micros

MAX_FINISHED = 64
MAX_ENTRIES = 500

ChannelKey = tuple[int, AccountId, ChannelId]  # (term, account, channel)


@dataclass(slots=True)
class ChannelBook:
    """What one channel owes here in one term."""

    allocation: Signed[Allocation]
    total: Signed[ChannelTotal]
    running: int = 0


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
        """Hashes of the allocations that run."""
        return tuple(sorted(self._active))

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
        return sum(1 for book in self._books.values() if book.total.message.total_micros > 0)

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
            active_tasks=len(self._active),
            now_ms=now_ms,
        )
        self._check_total(start.total, start.allocation, compute_first_window_micros(
            start, self._params
        ))
        allocation_hash = start.allocation.hash
        if len(self._active) >= self.slots:
            reason = f"all {self.slots} slots are taken" if self.slots else "the backend is down"
            busy = self._signer.sign(Busy(allocation_hash, self._node_id, reason))
            raise ProviderBusyError(reason, busy=busy)
        self._seen[allocation_hash] = start.allocation.message.expires_at_ms
        self._active[allocation_hash] = execution
        return execution, self._record_total(start.allocation, start.total, starts=True)

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

    def _check_total(
        self, total: Signed[ChannelTotal], allocation: Signed[Allocation], first_micros: int
    ) -> None:
        """Check that a running total is the channel's own and counts what is owed here."""
        message, terms = total.message, allocation.message
        verify_signed(total, self._chain_id, expected_signer=terms.account)
        expected = (terms.hub, terms.term, terms.account, terms.channel, self._node_id)
        given = (message.hub, message.term, message.account, message.channel, message.provider)
        if given != expected:
            raise InvalidReceiptError("the running total is another channel's")
        key = (terms.term, terms.account, terms.channel)
        owed = first_micros + sum(
            execution.least_owed_micros
            for execution in self._active.values()
            if _get_key(execution) == key
        )
        if message.total_micros < owed:
            raise InvalidReceiptError(
                f"the running total is {message.total_micros}, owed are at least {owed}",
                total_micros=message.total_micros,
                owed_micros=owed,
            )

    def acknowledge(
        self, execution: Execution, countersigned: ReceiptCountersigned, *, now_ms: int
    ) -> Record:
        """Take a countersigned receipt and its running total; give what to make durable.

        Raises: InvalidReceiptError, InvalidSignatureError.
        """
        execution.acknowledge(countersigned, now_ms=now_ms)
        self._check_total(countersigned.total, execution.start.allocation, 0)
        return self._record_total(
            execution.start.allocation, countersigned.total, starts=False
        )

    def end(self, execution: Execution) -> None:
        """Free the slot of a task that ended, however it ended."""
        allocation_hash = execution.start.allocation.hash
        if self._active.pop(allocation_hash, None) is None:
            raise LocalProtocolError("the task is not active")
        self._finished.append(allocation_hash)
        self._books[_get_key(execution)].running -= 1

    # --- settlement --------------------------------------------------------------------------

    def _record_total(
        self, allocation: Signed[Allocation], total: Signed[ChannelTotal], *, starts: bool
    ) -> Record:
        """Keep the highest total and the allocation that bounds most."""
        key = (
            total.message.term, AccountId(total.message.account), ChannelId(total.message.channel)
        )
        book = self._books.get(key)
        if book is None:
            book = self._books[key] = ChannelBook(allocation, total)
        if total.message.sequence > book.total.message.sequence:
            book.total = total
        bound = book.allocation.message.channel_reserved_micros
        if allocation.message.channel_reserved_micros > bound:
            book.allocation = allocation
        book.running += starts
        return Record(
            RecordKind.UNSETTLED, _encode_key(key), SettlementEntry(book.allocation, book.total)
        )

    def restore(self, entries: Iterable[SettlementEntry]) -> None:
        """Take up what an earlier process of this node had not settled."""
        for entry in entries:
            total = entry.total.message
            key = (total.term, AccountId(total.account), ChannelId(total.channel))
            self._books[key] = ChannelBook(entry.allocation, entry.total)

    def collect_settlement(self) -> Settle | None:
        """Give the totals of past terms that no task adds to any more."""
        current = self._get_state().get_term(self._hub).number
        entries = [
            SettlementEntry(book.allocation, book.total)
            for key, book in sorted(self._books.items(), key=lambda item: item[0])
            if key[0] < current and book.running == 0 and book.total.message.total_micros > 0
        ]
        return Settle(tuple(entries[:MAX_ENTRIES])) if entries else None

    def forget_settled(self) -> tuple[Record, ...]:
        """Drop the books that the ledger has settled, or that can never be settled any more."""
        records = []
        for key, book in sorted(self._books.items(), key=lambda item: item[0]):
            term, account, channel = key
            settled = self._get_state().get_settled_sequence(
                self._hub, term, account, channel, self._node_id
            )
            closed = self._get_state().get_term_by_number(self._hub, term) is None
            owes_nothing = term < self._get_state().get_term(self._hub).number and (
                book.total.message.total_micros == 0
            )
            done = settled >= book.total.message.sequence or closed or owes_nothing
            if done and book.running == 0:
                del self._books[key]
                records.append(Record(RecordKind.UNSETTLED, _encode_key(key), None))
        return tuple(records)


def _require(condition: bool, message: str) -> None:  # noqa: FBT001
    if not condition:
        raise InvalidAllocationError(message)


def _get_key(execution: Execution) -> ChannelKey:
    allocation = execution.allocation
    return (allocation.term, allocation.account, allocation.channel)


def _encode_key(key: ChannelKey) -> bytes:
    term, account, channel = key
    return term.to_bytes(8, "big") + account + channel.to_bytes(8, "big")

