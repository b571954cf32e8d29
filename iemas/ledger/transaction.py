"""Transactions of the ledger, and the codes of their results.

A transaction is signed by the account that it acts for; its id is the hash of its envelope, which
makes submitting it again idempotent. A refusal is a recorded result with a reason code, the same
on every replica. Source: design §7.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from iemas.core.auction import MAX_ROUNDS, Allocation, Ask, SealedBid, Transcript
from iemas.core.envelope import Signed
from iemas.core.execution import ChannelTotal
from iemas.core.params import DAY_MS
from iemas.core.types import AccountId, Hash, HubId, NodeId, Prices, require, require_id
from iemas.core.vote import Vote

MAX_HOLD_MS = 30 * DAY_MS
"""The longest that money may be held."""

KEY_BYTES = (16, 32)
"""How long an idempotency key may be: a UUID or a hash."""


def require_key(key: bytes) -> None:
    """Refuse an idempotency key of another length. Raises: MalformedMessageError."""
    require(len(key) in KEY_BYTES, f"an idempotency key has 16 or 32 bytes, got {len(key)}")


@dataclass(frozen=True, slots=True)
class TransferFunds:
    """Move available money to another account."""

    to: AccountId
    amount_micros: int

    def __post_init__(self) -> None:
        require_id("to", self.to)
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class FundEscrow:
    """Move available money into the account's escrow in a hub."""

    hub: HubId
    amount_micros: int

    def __post_init__(self) -> None:
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class WithdrawEscrow:
    """Move escrow that no open term may still settle back to available."""

    hub: HubId
    amount_micros: int

    def __post_init__(self) -> None:
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class PostAsk:
    """Make this the sender's standing ask."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class PlaceDeposit:
    """Move available money into the deposit that bonds the sender's commitments."""

    amount_micros: int

    def __post_init__(self) -> None:
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class WithdrawDeposit:
    """Take deposit back, while no commitment is outstanding."""

    amount_micros: int

    def __post_init__(self) -> None:
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class CommitAsk:
    """Fix an ask for the next ask epoch without showing it (`compute_ask_commitment`)."""

    hub: HubId
    epoch: int
    commitment: Hash

    def __post_init__(self) -> None:
        require_id("commitment", self.commitment)


@dataclass(frozen=True, slots=True)
class RevealAsk:
    """Open what was committed to for the current ask epoch: the ask stands from now on."""

    hub: HubId
    epoch: int
    prices: Prices
    salt: bytes

    def __post_init__(self) -> None:
        require_id("salt", self.salt)


@dataclass(frozen=True, slots=True)
class VoteModel:
    """A validator's vote for the QoS model of the next ask epoch, named by its hash."""

    hub: HubId
    epoch: int
    model_hash: Hash

    def __post_init__(self) -> None:
        require_id("model_hash", self.model_hash)


@dataclass(frozen=True, slots=True)
class VoteParameter:
    """A validator's vote for the value of a market parameter, from the next term on."""

    name: str
    value: int


@dataclass(frozen=True, slots=True)
class AccountHold:
    """How much of an account's allowance a term's rounds reserved in all."""

    account: AccountId
    reserved_micros: int


@dataclass(frozen=True, slots=True)
class RoundRoots:
    """The auctioneer closes its books on a term.

    `transcript_hashes` are its rounds' transcripts in order. `holds` frees what the term's
    allowances did not reserve. `bids` carries each channel's last sealed bid, whose nonce counts
    the bid fees that the channel owes.
    """

    hub: HubId
    term: int
    transcript_hashes: tuple[bytes, ...]
    holds: tuple[AccountHold, ...]
    bids: tuple[Signed[SealedBid], ...]

    def __post_init__(self) -> None:
        require(
            len(self.transcript_hashes) <= MAX_ROUNDS, f"a term has at most {MAX_ROUNDS} rounds"
        )
        for transcript_hash in self.transcript_hashes:
            require_id("transcript_hash", transcript_hash)


@dataclass(frozen=True, slots=True)
class SettlementEntry:
    """One co-signed total with the latest allocation that bounds it."""

    allocation: Signed[Allocation]
    total: Signed[ChannelTotal]


@dataclass(frozen=True, slots=True)
class Settle:
    """A provider settles many tasks at once: one entry a (account, channel, term)."""

    entries: tuple[SettlementEntry, ...]

    def __post_init__(self) -> None:
        require(0 < len(self.entries) <= 1000, "a settlement has 1 to 1000 entries")


@dataclass(frozen=True, slots=True)
class AbsenceVote:
    """A validator's vote that another one does not answer in this term."""

    hub: HubId
    term: int
    validator: NodeId

    def __post_init__(self) -> None:
        require_id("validator", self.validator)


@dataclass(frozen=True, slots=True)
class ReturnToDuty:
    """A validator that was voted absent says that it is back."""

    hub: HubId


@dataclass(frozen=True, slots=True)
class Stake:
    """Bond available money: the sender becomes a validator, or a weightier one."""

    amount_micros: int

    def __post_init__(self) -> None:
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class Unstake:
    """Take stake back: it unbonds, still slashable, and is available `unbonding_ms` later."""

    amount_micros: int

    def __post_init__(self) -> None:
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class HoldFunds:
    """Hold available money for another account (TigerBeetle: a pending transfer).

    Whoever of the two posts it within `timeout_ms` pays it; else it returns to the sender. `key` is
    the client's own idempotency key, 16 or 32 bytes: within its window it holds money once.
    """

    key: bytes
    to: AccountId
    amount_micros: int
    timeout_ms: int

    def __post_init__(self) -> None:
        require_key(self.key)
        require_id("to", self.to)
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")
        require(0 < self.timeout_ms <= MAX_HOLD_MS, f"timeout_ms must be in 1..{MAX_HOLD_MS}")


@dataclass(frozen=True, slots=True)
class PostHold:
    """Post a pending transfer: pay at most what is held; the rest returns to the payer."""

    payer: AccountId
    key: bytes
    amount_micros: int

    def __post_init__(self) -> None:
        require_key(self.key)
        require_id("payer", self.payer)
        require(0 < self.amount_micros <= 2**53, "amount_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class VoidHold:
    """Void a pending transfer: the payee gives it back."""

    payer: AccountId
    key: bytes

    def __post_init__(self) -> None:
        require_key(self.key)
        require_id("payer", self.payer)


@dataclass(frozen=True, slots=True)
class TranscriptEvidence:
    """A transcript that does not re-check, signed by its auctioneer: every replica re-checks it."""

    transcript: Signed[Transcript]


@dataclass(frozen=True, slots=True)
class DoubleVoteEvidence:
    """Two signed votes of one validator for different values in one height, round and kind."""

    first: Signed[Vote]
    second: Signed[Vote]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A proof of misbehaviour that every replica can check; its sender is the reporter."""

    evidence: TranscriptEvidence | DoubleVoteEvidence


TransactionBody = (
    TransferFunds
    | FundEscrow
    | WithdrawEscrow
    | PostAsk
    | RoundRoots
    | Settle
    | AbsenceVote
    | ReturnToDuty
    | Evidence
    | Stake
    | Unstake
    | HoldFunds
    | PostHold
    | VoidHold
    | PlaceDeposit
    | WithdrawDeposit
    | CommitAsk
    | RevealAsk
    | VoteModel
    | VoteParameter
)


@dataclass(frozen=True, slots=True)
class Transaction:
    """One change to the ledger, asked for by `account` under a nonce above its last one."""

    account: AccountId
    nonce: int
    body: TransactionBody

    def __post_init__(self) -> None:
        require_id("account", self.account)
        require(1 <= self.nonce < 2**63, "nonce must be positive")


class ResultCode(IntEnum):
    """What became of an ordered transaction."""

    UNSPECIFIED = 0
    OK = 1
    WRONG_SIGNER = 14
    NONCE_TOO_LOW = 2
    INSUFFICIENT_BALANCE = 3
    UNKNOWN_ACCOUNT = 4
    UNKNOWN_HUB = 5
    UNKNOWN_TERM = 6
    NOT_AUCTIONEER = 7
    NOT_VALIDATOR = 8
    ALREADY_DONE = 9
    STALE_TOTAL = 10
    OVER_RESERVATION = 11
    OVER_ALLOWANCE = 12
    INVALID_ENTRY = 13
    BELOW_MINIMUM = 15
    LIMIT_REACHED = 16
    JAILED = 17
    EXPIRED = 18
    UNKNOWN_HOLD = 19
    NOT_PARTY = 20
    UNKNOWN_EPOCH = 21
    UNKNOWN_COMMITMENT = 22
    COMMITTED = 23
    ASKS_SEALED = 24


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """The recorded result of one transaction; `detail` says for a Settle which entries failed."""

    code: ResultCode
    detail: str = ""
