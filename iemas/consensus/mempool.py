"""Transactions that wait for a block: bounded, each once, checked again after every block.

Where a transaction came in (its *origin*: the node that its sender gave it to) it is sent to all
validators, again every second until it is in a block, and given up after a minute. So whichever
validator proposes next has it. Pure: the engine sends.

Source: docs/spec/engine.md E10 to E13.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iemas.core.envelope import Signed
from iemas.core.types import AccountId
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import ResultCode, Transaction

MAX_TRANSACTIONS = 10_000
MAX_BYTES = 64 * 1024 * 1024
MAX_OF_UNKNOWN_ACCOUNTS = 1_000
"""Anyone can sign for an account that was never credited, so few of those may wait."""

RESEND_MS = 1_000
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
        self._of_unknown_accounts: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, transaction_id: object) -> bool:
        return transaction_id in self._waiting

    @property
    def has_proposable(self) -> bool:
        """Whether a block could be made of what waits."""
        return len(self._waiting) > len(self._of_unknown_accounts)

    def get_proposable(self) -> tuple[Signed[Transaction], ...]:
        """Give what a block could be made of, in order of arrival."""
        return tuple(
            waiting.transaction
            for key, waiting in self._waiting.items()
            if key not in self._of_unknown_accounts
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
        self, transaction: Signed[Transaction], *, now_ms: int, is_origin: bool
    ) -> Dropped | None:
        """Let a transaction wait, unless it cannot be applied; give the refusal, if it is one.

        A transaction of an account that is unknown here waits too, as long as there is room: this
        replica may lag behind the block that credits it.
        """
        key = transaction.hash
        if key in self._waiting:
            return None
        code = self._app.check_tx(transaction).code
        is_unknown = code is ResultCode.UNKNOWN_ACCOUNT
        if code is not ResultCode.OK and not is_unknown:
            return Dropped(transaction, code.name)
        if is_unknown and len(self._of_unknown_accounts) >= MAX_OF_UNKNOWN_ACCOUNTS:
            return Dropped(transaction, code.name)
        size = len(transaction.envelope.payload)
        if len(self._waiting) >= MAX_TRANSACTIONS or self._bytes + size > MAX_BYTES:
            return Dropped(transaction, FULL)
        self._waiting[key] = _Waiting(transaction, now_ms, now_ms, is_origin)
        self._bytes += size
        if is_unknown:
            self._of_unknown_accounts.add(key)
        return None

    def forget(self, transaction_ids: Iterable[bytes]) -> None:
        """Let transactions wait no more: they are in a block."""
        for key in transaction_ids:
            waiting = self._waiting.pop(key, None)
            if waiting is not None:
                self._bytes -= len(waiting.transaction.envelope.payload)
                self._of_unknown_accounts.discard(key)

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
                self._of_unknown_accounts.discard(key)
        return tuple(dropped)

    def take_due(
        self, *, now_ms: int
    ) -> tuple[tuple[Signed[Transaction], ...], tuple[Dropped, ...]]:
        """Give what to send again at this time, and what to give up."""
        again, dropped = [], []
        for key, waiting in list(self._waiting.items()):
            if now_ms >= waiting.since_ms + TIMEOUT_MS:
                self.forget((key,))
                dropped.append(Dropped(waiting.transaction, TIMED_OUT))
            elif waiting.is_origin and now_ms >= waiting.sent_at_ms + RESEND_MS:
                waiting.sent_at_ms = now_ms
                again.append(waiting.transaction)
        return tuple(again), tuple(dropped)
