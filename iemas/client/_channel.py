"""A payment channel: the running totals that one client process signs for each provider.

Tasks do not pay one by one. Whatever a client co-signs towards a provider in a term adds up in one
number that it signs anew each time, so a provider settles any number of tasks with the last one.
While a task runs it counts what receipt 0 promised or what its latest receipt says, whichever is
more; once it ended, exactly what its last receipt says. Source: design §4 steps 6 and 7, §7.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iemas.core.auction import Allocation
from iemas.core.envelope import Signed, Signer
from iemas.core.errors import LocalProtocolError
from iemas.core.execution import ChannelTotal
from iemas.core.types import AccountId, ChannelId, HubId, NodeId, short_id

KEEP_TERMS = 64


@dataclass(slots=True)
class _Book:
    """What this channel owes one provider in one term."""

    sequence: int = 0
    ended_micros: int = 0
    running: dict[bytes, int] = field(default_factory=dict)

    @property
    def total_micros(self) -> int:
        return self.ended_micros + sum(self.running.values())


class Channel:
    """Counts an account's bids in each term, and what it owes each provider.

    Args:
        signer: signs for the account that pays.
        channel_id: a random 64-bit number, this client process's own.

    """

    def __init__(self, signer: Signer, channel_id: ChannelId) -> None:
        self.signer = signer
        self.channel_id = channel_id
        self.account = AccountId(signer.node_id)
        self._nonces: dict[tuple[HubId, int], int] = {}
        self._books: dict[tuple[HubId, int, NodeId], _Book] = {}

    def take_nonce(self, hub: HubId, term: int) -> int:
        """Give the next bid's nonce in a term; nonces count from 1 and are used once."""
        nonce = self._nonces.get((hub, term), 0) + 1
        self._nonces[hub, term] = nonce
        if nonce == 1:
            self._forget_before(hub, term - KEEP_TERMS)
        return nonce

    def get_total_micros(self, hub: HubId, term: int, provider: NodeId) -> int:
        """Give what the channel owes a provider in a term so far."""
        book = self._books.get((hub, term, provider))
        return book.total_micros if book is not None else 0

    def open_task(self, allocation: Signed[Allocation], amount_micros: int) -> Signed[ChannelTotal]:
        """Owe receipt 0 of a new task and sign the new total.

        Raises: LocalProtocolError if the task is open already.
        """
        book = self._get_book(allocation.message)
        if allocation.hash in book.running:
            raise LocalProtocolError(f"task {short_id(allocation.hash)} is open already")
        book.running[allocation.hash] = amount_micros
        return self._sign_total(allocation.message, book)

    def acknowledge(
        self, allocation: Signed[Allocation], amount_micros: int, *, final: bool
    ) -> Signed[ChannelTotal]:
        """Owe what a receipt says and sign the new total.

        `final` ends the task: then its amount is exactly the receipt's, which is less than
        receipt 0 promised if the answer was shorter than the first window.
        Raises: LocalProtocolError if the task is not open.
        """
        book = self._get_book(allocation.message)
        promised = self._get_running(book, allocation)
        if final:
            del book.running[allocation.hash]
            book.ended_micros += amount_micros
        else:
            book.running[allocation.hash] = max(promised, amount_micros)
        return self._sign_total(allocation.message, book)

    def void_task(self, allocation: Signed[Allocation]) -> None:
        """Owe nothing for a task that the provider refused as busy."""
        self._get_book(allocation.message).running.pop(allocation.hash, None)

    def abandon_task(self, allocation: Signed[Allocation], amount_micros: int) -> None:
        """End a task without a last receipt: owe what arrived, and never above what was signed."""
        book = self._get_book(allocation.message)
        book.ended_micros += min(book.running.pop(allocation.hash, 0), amount_micros)

    def _get_book(self, allocation: Allocation) -> _Book:
        key = (allocation.hub, allocation.term, allocation.provider)
        return self._books.setdefault(key, _Book())

    @staticmethod
    def _get_running(book: _Book, allocation: Signed[Allocation]) -> int:
        if allocation.hash not in book.running:
            raise LocalProtocolError(f"task {short_id(allocation.hash)} is not open")
        return book.running[allocation.hash]

    def _sign_total(self, allocation: Allocation, book: _Book) -> Signed[ChannelTotal]:
        book.sequence += 1
        return self.signer.sign(
            ChannelTotal(
                hub=allocation.hub,
                term=allocation.term,
                account=self.account,
                channel=self.channel_id,
                provider=allocation.provider,
                sequence=book.sequence,
                total_micros=book.total_micros,
            )
        )

    def _forget_before(self, hub: HubId, term: int) -> None:
        """Drop books that can no longer be settled, so that memory stays bounded."""
        for nonce_key in [key for key in self._nonces if key[0] == hub and key[1] < term]:
            del self._nonces[nonce_key]
        for key, book in list(self._books.items()):
            if key[0] == hub and key[1] < term and not book.running:
                del self._books[key]
