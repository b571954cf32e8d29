"""Keys and records of the ledger's tables: plain values, frozen.

A table is a dict from a key to a record; `iemas.ledger.state.LedgerState` holds them all. Keys are
named tuples, so they sort by their fields. Source: docs/spec/ledger.md §2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any, NamedTuple

from iemas.core.encoding import encode_canonical
from iemas.core.types import AccountId, ChannelId, Hash, HubId, NodeId, Prices
from iemas.ledger.transfer import AccountKind

MAX_PAST_ASKS = 16
"""How many replaced asks a provider's record keeps for the terms in which they stood."""


class Duty(IntEnum):
    """Whether a validator takes part in the election; a returning one does from the next term."""

    LIVE = 1
    ABSENT = 2
    RETURNING = 3


class AskKey(NamedTuple):
    """A provider in a hub."""

    hub: HubId
    node: NodeId


class ValidatorKey(NamedTuple):
    """A validator in a hub."""

    hub: HubId
    node: NodeId


class TermKey(NamedTuple):
    """A term of a hub."""

    hub: HubId
    number: int


class HoldKey(NamedTuple):
    """An account's share in a term of a hub."""

    hub: HubId
    term: int
    account: AccountId


class TotalKey(NamedTuple):
    """A client process's running total with a provider, in a term."""

    hub: HubId
    term: int
    account: AccountId
    channel: ChannelId
    provider: NodeId


class VoteKey(NamedTuple):
    """One validator's vote on another, in the current term."""

    hub: HubId
    accused: NodeId
    voter: NodeId


class CommitmentKey(NamedTuple):
    """A provider's sealed ask for an ask epoch of a hub."""

    hub: HubId
    epoch: int
    node: NodeId


class ModelKey(NamedTuple):
    """The QoS model of an ask epoch of a hub."""

    hub: HubId
    epoch: int


class ModelVoteKey(NamedTuple):
    """A validator's vote for the QoS model of an ask epoch."""

    hub: HubId
    epoch: int
    voter: NodeId


class ParameterVoteKey(NamedTuple):
    """A validator's vote for the value of a market parameter."""

    name: str
    voter: NodeId


class UnbondingKey(NamedTuple):
    """Stake of an account that is released at a time; sorts by time."""

    release_at_ms: int
    account: AccountId


class OffenceKey(NamedTuple):
    """A validator that was punished for what it signed at a height."""

    node: NodeId
    height: int


class ValidatorPower(NamedTuple):
    """A consensus validator and the weight of its votes: its stake in micro-credits."""

    node_id: NodeId
    power: int


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What is true of the chain as a whole. `results_root` covers the last block's results."""

    chain_id: str
    height: int
    time_ms: int
    supply_micros: int
    results_root: Hash


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account holds in one of its ledger accounts; never zero."""

    kind: AccountKind
    hub: HubId
    micros: int


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account's last nonce, and its balances sorted by kind and hub."""

    nonce: int = 0
    balances: tuple[Balance, ...] = ()


@dataclass(frozen=True, slots=True)
class PastAsk:
    """An ask that was replaced, and the terms from and up to which it stood."""

    prices: Prices
    from_term: int
    to_term: int


@dataclass(frozen=True, slots=True)
class AskRecord:
    """A standing ask, the term in which it was posted, and those that it replaced."""

    prices: Prices
    from_term: int
    past: tuple[PastAsk, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitmentRecord:
    """A sealed ask that is not revealed yet, and what its node loses if it never is.

    `ratio_max` bounded asks when it was committed to: a vote that lowers it since burns no bond.
    """

    commitment: Hash
    bond_micros: int
    ratio_max: int


@dataclass(frozen=True, slots=True)
class AskEpochRecord:
    """A hub's current ask epoch, since the block at `first_height`.

    Its reveal window is open until `closes_at_ms` at least, `closed` tells that it is over.
    `proposers` had a later block in it while the window was open, in id order.
    """

    number: int
    first_height: int
    closes_at_ms: int
    proposers: tuple[NodeId, ...] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The QoS model of an ask epoch: its hash, and the time of the block that decided it."""

    model_hash: Hash
    decided_at_ms: int


@dataclass(frozen=True, slots=True)
class ValidatorRecord:
    """A validator's place in a hub's election; an absent one has no priority."""

    priority: int
    duty: Duty


@dataclass(frozen=True, slots=True)
class TermRecord:
    """An open term. `roots` are its transcripts' hashes once its books are closed.

    `consecutive` counts the auctioneer's terms in a row up to this one. `convicted` tells that a
    wrong transcript of this term was proven to its auctioneer. `model` is the QoS model that stood
    when it started; None if none had been decided.
    """

    auctioneer: NodeId
    witness: NodeId | None
    started_at_ms: int
    consecutive: int = 1
    books_closed: bool = False
    roots: tuple[bytes, ...] = ()
    convicted: bool = False
    model: Hash | None = None


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """An account's money in a term: frozen at its start, still held for it, settled of it."""

    allowance_micros: int
    held_micros: int
    settled_micros: int = 0

    @property
    def open_micros(self) -> int:
        """What may still be settled."""
        return self.held_micros - self.settled_micros


class PendingStatus(IntEnum):
    """What became of a pending transfer."""

    PENDING = 1
    POSTED = 2
    VOIDED = 3
    EXPIRED = 4


@dataclass(frozen=True, slots=True)
class PendingTransfer:
    """Money that an account holds for another; its key is known until `forget_at_ms`."""

    key: bytes
    to: AccountId
    amount_micros: int
    expires_at_ms: int
    forget_at_ms: int
    status: PendingStatus


@dataclass(frozen=True, slots=True)
class JailRecord:
    """A jailed validator: it neither votes nor clears until it returns to duty.

    `until_ms` is when it may, None where it must stake anew instead.
    """

    until_ms: int | None


@dataclass(frozen=True, slots=True)
class ShortfallRecord:
    """A running total that an auctioneer's allocation promised and the allowance did not cover."""

    claimed_micros: int


@dataclass(frozen=True, slots=True)
class TotalRecord:
    """The last settled running total of a channel with a provider, and what slashes paid of it."""

    sequence: int
    total_micros: int


def encode_leaf(table: str, key: Any, value: Any) -> bytes:
    """Encode one record as the canonical CBOR of (table, key, value)."""
    return encode_canonical((table, to_plain(key), to_plain(value)))


def to_plain(value: Any) -> Any:
    """Reduce a record to None, bool, int, bytes, str and tuples, fields in order."""
    cls = value.__class__
    reduce = _REDUCERS.get(cls)
    if reduce is None:
        reduce = _REDUCERS[cls] = _find_reducer(cls)
    return reduce(value)


def _find_reducer(cls: type) -> Callable[[Any], Any]:
    """Choose once a type how its values are reduced."""
    if is_dataclass(cls):
        names = [f.name for f in fields(cls)]
        if len(names) == 1:
            return lambda value: (to_plain(getattr(value, names[0])),)
        get_values = attrgetter(*names)
        return lambda value: tuple([to_plain(item) for item in get_values(value)])
    if issubclass(cls, tuple):
        return lambda value: tuple([to_plain(item) for item in value])
    return int if issubclass(cls, IntEnum) else _keep


def _keep(value: Any) -> Any:
    return value


_REDUCERS: dict[type, Callable[[Any], Any]] = {}
