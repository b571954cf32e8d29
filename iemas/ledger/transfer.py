"""Double entry: every movement of money takes an amount from one ledger account to another.

A ledger account is (kind, owner, hub). What all of them hold together, `ISSUANCE` included, is
zero: genesis moves the whole supply out of `ISSUANCE`, which alone may be negative, and nothing
moves there ever again. Source: design §7; docs/spec/ledger.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

from iemas.core.errors import InternalError
from iemas.core.types import ID_BYTES, AccountId, HubId

NO_HUB = HubId("")
TREASURY_ID = AccountId(bytes(ID_BYTES))
"""Who owns the treasury and the issuance: no key hashes to it."""


class AccountKind(IntEnum):
    """What the money of a ledger account is for."""

    ISSUANCE = 0
    AVAILABLE = 1
    ESCROW = 2
    STAKE = 3
    TREASURY = 4
    UNBONDING = 5
    PENDING = 6
    DEPOSIT = 7


class LedgerAccount(NamedTuple):
    """One account of the double entry; only escrow belongs to a hub."""

    kind: AccountKind
    owner: AccountId
    hub: HubId = NO_HUB

    @property
    def name(self) -> str:
        """Readable and unique, as the store's tables show it."""
        parts = [self.kind.name.lower()]
        if self.owner != TREASURY_ID:
            parts.append(self.owner.hex())
        if self.hub:
            parts.append(self.hub)
        return "/".join(parts)


ISSUANCE = LedgerAccount(AccountKind.ISSUANCE, TREASURY_ID)
TREASURY = LedgerAccount(AccountKind.TREASURY, TREASURY_ID)


def get_available(owner: AccountId) -> LedgerAccount:
    """Name the money that its owner may use as it likes."""
    return LedgerAccount(AccountKind.AVAILABLE, owner)


def get_escrow(owner: AccountId, hub: HubId) -> LedgerAccount:
    """Name the money that backs its owner's bids in a hub."""
    return LedgerAccount(AccountKind.ESCROW, owner, hub)


def get_stake(owner: AccountId) -> LedgerAccount:
    """Name the money that a validator has at stake."""
    return LedgerAccount(AccountKind.STAKE, owner)


def get_unbonding(owner: AccountId) -> LedgerAccount:
    """Name the money that leaves its owner's stake and can still be slashed."""
    return LedgerAccount(AccountKind.UNBONDING, owner)


def get_pending(owner: AccountId) -> LedgerAccount:
    """Name the money that its owner holds for others."""
    return LedgerAccount(AccountKind.PENDING, owner)


def get_deposit(owner: AccountId) -> LedgerAccount:
    """Name the money that bonds its owner's committed asks."""
    return LedgerAccount(AccountKind.DEPOSIT, owner)


class TransferReason(StrEnum):
    """Why money moved."""

    GENESIS = "genesis"
    TRANSFER = "transfer"
    ESCROW_FUNDED = "escrow_funded"
    ESCROW_WITHDRAWN = "escrow_withdrawn"
    BID_FEES = "bid_fees"
    SETTLEMENT = "settlement"
    STAKED = "staked"
    UNSTAKED = "unstaked"
    UNBONDED = "unbonded"
    HELD = "held"
    HOLD_POSTED = "hold_posted"
    HOLD_VOIDED = "hold_voided"
    HOLD_EXPIRED = "hold_expired"
    RESERVATION_FEES = "reservation_fees"
    DEPOSIT_PLACED = "deposit_placed"
    DEPOSIT_WITHDRAWN = "deposit_withdrawn"
    BOND_BURNED = "bond_burned"
    SLASHED = "slashed"
    UNPAID_SETTLEMENT = "unpaid_settlement"
    REPORTER_REWARD = "reporter_reward"
    SNAPSHOT = "snapshot"
    """What happened in blocks that this replica never had, in one sum an account."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A positive amount that leaves `debit` and arrives at `credit`.

    Raises: InternalError if the amount is not positive; transitions never ask for such.
    """

    debit: LedgerAccount
    credit: LedgerAccount
    amount_micros: int
    reason: TransferReason

    def __post_init__(self) -> None:
        if self.amount_micros <= 0:
            raise InternalError(f"a transfer of {self.amount_micros} micro-credits")
