"""Transactions that wait for a block: bounded, each once, checked again after every block.

Where a transaction came in (its *origin*: the node that its sender gave it to) it is sent to all
validators, again about every second until it is in a block, and given up after a minute. So
whichever validator proposes next has it. Nobody fills the mempool alone, and all others together
leave a part of it to the validators' accounts: absence votes, evidence and settlements get in
whatever strangers send. Pure: the engine sends.

Source: docs/spec/engine.md E10 to E13.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from iemas.core.envelope import Signed
from iemas.core.types import AccountId, NodeId
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import ResultCode, Transaction

MAX_TRANSACTIONS = 10_000
MAX_BYTES = 64 * 1024 * 1024
MAX_OF_UNKNOWN_ACCOUNTS = 1_000
"""Anyone can sign for an account that was never credited, so few of those may wait."""

MAX_BYTES_OF_UNKNOWN_ACCOUNTS = 1024 * 1024

ACCOUNT_PART = 4
"""One account may take this part of the number, and of the bytes: a quarter."""

RESERVED_PART = 4
"""This part of the number, and of the bytes, is kept for the validators' accounts: a quarter."""

RESEND_MS = 1_000
MAX_RESENT = 250
"""How many transactions are sent again at once: an outbound queue must have room for votes too."""

MAX_RESENT_BYTES = 2 * 1024 * 1024
"""The same in bytes, but one transaction at least."""

TIMEOUT_MS = 60_000

FULL = "MEMPOOL_FULL"
TIMED_OUT = "TIMED_OUT"


@dataclass(slots=True)
class _Waiting:
    """A transaction that is not in a block yet."""

    transaction: Signed[Transaction]
    since_ms: int
    sent_at_ms: int
    is_origin: bool
    is_given: bool

    @property
    def size(self) -> int:
        return len(self.transaction.envelope.payload)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A transaction that will not be ordered from here, and why: a result code or another name."""

    transaction: Signed[Transaction]
    reason: str


class Mempool:
    """The transactions that wait at this node."""

    def __init__(self, app: LedgerApplication) -> None:
        self._app = app
        self._waiting: dict[bytes, _Waiting] = {}  # in order of arrival
        self._bytes = 0
        self._counts: Counter[AccountId] = Counter()
        self._sizes: Counter[AccountId] = Counter()
        self._of_unknown_accounts: set[bytes] = set()
        self._unknown_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, transaction_id: object) -> bool:
        return transaction_id in self._waiting

    @property
    def has_proposable(self) -> bool:
        """Whether a block could be made of what waits."""
        return len(self._waiting) > len(self._of_unknown_accounts)

    def get_proposable(self) -> tuple[Signed[Transaction], ...]:
        """Give what a block could be made of: of validators first, else in order of arrival."""
        state = self._app.state
        known = (
            waiting.transaction
            for key, waiting in self._waiting.items()
            if key not in self._of_unknown_accounts
        )
        return tuple(
            sorted(known, key=lambda one: not state.is_validator(NodeId(one.message.account)))
        )

    def get_last_nonce(self, account: AccountId) -> int:
        """Give the highest nonce of an account that waits here; 0 if none does."""
        nonces = (
            waiting.transaction.message.nonce
            for waiting in self._waiting.values()
            if waiting.transaction.message.account == account
        )
        return max(nonces, default=0)

    def add(
        self,
        transaction: Signed[Transaction],
        *,
        now_ms: int,
        is_origin: bool,
        is_given: bool = False,
    ) -> Dropped | None:
        """Let a transaction wait, unless it cannot be applied; give the refusal, if it is one.

        A transaction of an account that is unknown here waits too, as long as there is room: this
        replica may lag behind the block that credits it. One that a peer gave (`is_given`) is not
        sent again before its account is known.
        """
        key = transaction.hash
        if key in self._waiting:
            return None
        code = self._app.check_tx(transaction).code
        is_unknown = code is ResultCode.UNKNOWN_ACCOUNT
        if code is not ResultCode.OK and not is_unknown:
            return Dropped(transaction, code.name)
        waiting = _Waiting(transaction, now_ms, now_ms, is_origin, is_given)
        if is_unknown and not self._has_room_for_unknown(waiting.size):
            return Dropped(transaction, code.name)
        account = transaction.message.account
        if not self._has_room(account, waiting.size):
            return Dropped(transaction, FULL)
        self._waiting[key] = waiting
        self._bytes += waiting.size
        self._counts[account] += 1
        self._sizes[account] += waiting.size
        if is_unknown:
            self._of_unknown_accounts.add(key)
            self._unknown_bytes += waiting.size
        return None

    def _has_room_for_unknown(self, size: int) -> bool:
        """Tell whether one more of an account that is unknown here may wait."""
        return (
            len(self._of_unknown_accounts) < MAX_OF_UNKNOWN_ACCOUNTS
            and self._unknown_bytes + size <= MAX_BYTES_OF_UNKNOWN_ACCOUNTS
        )

    def _has_room(self, account: AccountId, size: int) -> bool:
        """Tell whether one more of an account may wait: within its share, and within all."""
        count, size_of_account = self._counts[account] + 1, self._sizes[account] + size
        if count > MAX_TRANSACTIONS // ACCOUNT_PART or size_of_account > MAX_BYTES // ACCOUNT_PART:
            return False
        most, most_bytes = MAX_TRANSACTIONS, MAX_BYTES
        if not self._app.state.is_validator(NodeId(account)):
            most -= most // RESERVED_PART
            most_bytes -= most_bytes // RESERVED_PART
        return len(self._waiting) < most and self._bytes + size <= most_bytes

    def forget(self, transaction_ids: Iterable[bytes]) -> None:
        """Let transactions wait no more: they are in a block."""
        for key in transaction_ids:
            waiting = self._waiting.pop(key, None)
            if waiting is None:
                continue
            account = waiting.transaction.message.account
            self._bytes -= waiting.size
            self._counts[account] -= 1
            self._sizes[account] -= waiting.size
            if not self._counts[account]:
                del self._counts[account], self._sizes[account]
            self._note_known(key, waiting)

    def _note_known(self, key: bytes, waiting: _Waiting) -> None:
        """Count a transaction no more among those of unknown accounts."""
        if key in self._of_unknown_accounts:
            self._of_unknown_accounts.discard(key)
            self._unknown_bytes -= waiting.size

    def recheck(self) -> tuple[Dropped, ...]:
        """After a block: drop what no block can take any more, as a later nonce overtook it."""
        state = self._app.state
        dropped = []
        for key, waiting in list(self._waiting.items()):
            message = waiting.transaction.message
            if state.is_applied(key):
                self.forget((key,))
            elif message.nonce <= state.get_nonce(message.account):
                self.forget((key,))
                dropped.append(Dropped(waiting.transaction, ResultCode.NONCE_TOO_LOW.name))
            elif key in self._of_unknown_accounts and state.has_account(message.account):
                self._note_known(key, waiting)
        return tuple(dropped)

    def take_due(
        self, *, now_ms: int
    ) -> tuple[tuple[Signed[Transaction], ...], tuple[Dropped, ...]]:
        """Give what to send again at this time, and what to give up.

        Of what is due, what was not sent for longest goes first, so that all have their turn.
        """
        due, dropped = [], []
        for key, waiting in list(self._waiting.items()):
            # A clock that went back prolongs no wait.
            waiting.since_ms = min(waiting.since_ms, now_ms)
            waiting.sent_at_ms = min(waiting.sent_at_ms, now_ms)
            if now_ms >= waiting.since_ms + TIMEOUT_MS:
                self.forget((key,))
                dropped.append(Dropped(waiting.transaction, TIMED_OUT))
            elif now_ms >= waiting.sent_at_ms + RESEND_MS and self._is_resent(key, waiting):
                due.append(waiting)
        again: list[Signed[Transaction]] = []
        total_bytes = 0
        for waiting in heapq.nsmallest(MAX_RESENT, due, key=lambda waiting: waiting.sent_at_ms):
            total_bytes += waiting.size
            if again and total_bytes > MAX_RESENT_BYTES:
                break
            waiting.sent_at_ms = now_ms
            again.append(waiting.transaction)
        return tuple(again), tuple(dropped)

    def _is_resent(self, key: bytes, waiting: _Waiting) -> bool:
        """Tell whether a transaction is this node's to send again.

        What strangers give it for accounts that nobody may ever credit must not be multiplied.
        """
        is_doubtful = waiting.is_given and key in self._of_unknown_accounts
        return waiting.is_origin and not is_doubtful
