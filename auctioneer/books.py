"""A term's books: what its rounds reserved, and how many bids each channel sent.

The auctioneer keeps them to never reserve beyond an allowance; every verifier keeps the same ones
from the transcripts, so it can re-derive each allocation. Source: design §7 (allowances).
"""

from __future__ import annotations

from collections.abc import Iterable

from iemas.core.auction import Allocation, SealedBid
from iemas.core.envelope import Signed
from iemas.core.errors import DuplicateBidError
from iemas.core.types import AccountId, ChannelId, NodeId
from iemas.ledger.transaction import AccountHold


class TermBooks:
    """Running sums of one term of one hub."""

    def __init__(self) -> None:
        self._reserved: dict[AccountId, int] = {}
        self._channel_reserved: dict[tuple[AccountId, ChannelId, NodeId], int] = {}
        self._last_bids: dict[tuple[AccountId, ChannelId], Signed[SealedBid]] = {}

    def copy(self) -> TermBooks:
        """Give books that go on from here on their own."""
        books = TermBooks()
        books._reserved.update(self._reserved)
        books._channel_reserved.update(self._channel_reserved)
        books._last_bids.update(self._last_bids)
        return books

    def get_reserved(self, account: AccountId) -> int:
        """Give what the account's allocations of this term reserve in all."""
        return self._reserved.get(account, 0)

    def get_channel_reserved(self, account: AccountId, channel: ChannelId, provider: NodeId) -> int:
        """Give what one channel's allocations at one provider reserve in all."""
        return self._channel_reserved.get((account, channel, provider), 0)

    def get_holds(self) -> tuple[AccountHold, ...]:
        """Give every account's reserved sum, in order of the accounts."""
        return tuple(
            AccountHold(account, reserved) for account, reserved in sorted(self._reserved.items())
        )

    def get_last_bids(self) -> tuple[Signed[SealedBid], ...]:
        """Give each channel's last sealed bid, whose nonce counts its bid fees."""
        return tuple(bid for _, bid in sorted(self._last_bids.items(), key=lambda item: item[0]))

    def record_bid(self, bid: Signed[SealedBid]) -> None:
        """Take note of a sealed bid. Raises: DuplicateBidError unless its nonce is new."""
        key = (bid.message.account, bid.message.channel)
        last = self._last_bids.get(key)
        if last is not None and bid.message.nonce <= last.message.nonce:
            raise DuplicateBidError(
                f"the channel's bids of this term have reached nonce {last.message.nonce}; "
                f"{bid.message.nonce} is not above it",
                nonce=bid.message.nonce,
                last_nonce=last.message.nonce,
            )
        self._last_bids[key] = bid

    def record_allocations(self, allocations: Iterable[Allocation]) -> None:
        """Add a round's allocations to the sums."""
        for allocation in allocations:
            account = allocation.account
            key = (account, allocation.channel, allocation.provider)
            self._reserved[account] = self.get_reserved(account) + allocation.reserved_micros
            self._channel_reserved[key] = allocation.channel_reserved_micros
