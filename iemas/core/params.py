"""Genesis: the chain's first facts, and the market's parameters.

The genesis file is JSON, the same on every node; the chain id contains its hash, so nodes of
different geneses refuse each other's signatures.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.encoding import compute_hash
from iemas.core.report import MAX_TEXT_BYTES
from iemas.core.types import (
    MICROS_PER_CREDIT,
    PPM,
    AccountId,
    HubId,
    NodeId,
    require,
    require_id,
)

MAX_SUPPLY_MICROS = 2**50
"""The most that a market may issue: a round's welfare stays exact below it."""

DAY_MS = 86_400_000

CLEARING_MODES = ("provider", "client", "threshold")
"""How a round can split the surplus of a match, see docs/spec/auction.md §5."""


MAX_REPORTER_PPM = 50_000

_MAY_BE_ZERO = frozenset(
    {
        "bid_fee_micros",
        "double_vote_slash_ppm",
        "transcript_slash_ppm",
        "reporter_ppm",
        "unpaid_ppm",
        "reservation_fee_ppm",
    }
)
# A slash below the whole leaves every validator something, so its weight is never 0.
_MOST = {
    "double_vote_slash_ppm": PPM - 1,
    "transcript_slash_ppm": PPM - 1,
    "reporter_ppm": MAX_REPORTER_PPM,
    "unpaid_ppm": PPM - MAX_REPORTER_PPM,
    "reservation_fee_ppm": PPM,
}


@dataclass(frozen=True, slots=True)
class MarketParams:
    """What all nodes of a market must agree on. Units are in the names."""

    mode: str = "provider"
    """Clearing mode, one of `CLEARING_MODES`."""
    cache_affinity: bool = True
    """Whether the valuation counts cached tokens (off only to measure what it brings)."""
    term_ms: int = 10_000
    """Length of an auctioneer's term in ledger time."""
    round_window_ms: int = 25
    """The longest a busy auctioneer batches bids before it closes a round."""
    round_max_bids: int = 256
    allocation_ttl_ms: int = 10_000
    report_max_age_ms: int = 15_000
    """How old a load report or digest may be when a round uses it."""
    clock_tolerance_ms: int = 2_000
    settle_terms: int = 6
    """A term can be settled until this many terms after it; then its allowances are free."""
    allowance_divisor: int = 4
    """A term's allowance is the account's free escrow divided by this."""
    bid_fee_micros: int = 1
    receipt_interval_tokens: int = 16
    window_tokens: int = 48
    """A provider stops when so many output tokens are unacknowledged."""
    probe_interval_ms: int = 250
    """How often who is on duty is probed; others half as often."""
    probe_misses: int = 4
    """Silence of so many intervals and one more makes a peer suspected."""
    block_interval_ms: int = 50
    """The least time between two blocks."""
    idle_block_interval_ms: int = 5_000
    """A block is made at least so often."""
    min_stake_micros: int = MICROS_PER_CREDIT
    """The least that a validator may enter or remain with; genesis' validators may have less."""
    min_total_stake_micros: int = 1
    """Nobody may unstake if the consensus validators would hold less than this."""
    max_validators: int = 100
    max_consecutive_terms: int = 3
    """Nobody is auctioneer of a hub more often in a row, as long as another validator is live."""
    evidence_window_ms: int = 7 * DAY_MS
    """How old, in ledger time, the block may be that a double vote was about."""
    unbonding_ms: int = 14 * DAY_MS
    """How long unstaked money stays slashable: longer than the evidence window."""
    double_vote_slash_ppm: int = 50_000
    """What of its stake and unbonding money a validator loses for a double vote."""
    transcript_slash_ppm: int = 10_000
    """What of its stake and unbonding money an auctioneer loses for a wrong transcript."""
    reporter_ppm: int = MAX_REPORTER_PPM
    """The most of a slash that goes to whoever brought the evidence."""
    unpaid_ppm: int = 500_000
    """The most of a slash that goes to providers that the auctioneer's allocations left unpaid."""
    absence_limit: int = 5
    """So many absences within `absence_window_terms` jail a validator for `jail_ms`."""
    absence_window_terms: int = 60
    jail_ms: int = 600_000
    max_pending_transfers: int = 100
    """How many holds and remembered idempotency keys an account may have."""
    idempotency_window_ms: int = 3_600_000
    """How long an idempotency key is known, at least."""
    reservation_fee_ppm: int = 100
    """What of a term's reserved but unused money its account pays when the term closes."""
    sealed_asks: bool = True
    """Whether all asks but a provider's first are committed in one epoch, revealed in the next."""
    ask_epoch_ms: int = 600_000
    """Length of an ask epoch in ledger time."""
    ask_reveal_ms: int = 120_000
    """The least time at the start of an epoch in which asks can be revealed."""
    ask_bond_micros: int = MICROS_PER_CREDIT
    """What a commitment bonds of its node's deposit, and loses if it is not revealed."""
    ask_ratio_max: int = 1_000
    """How many times another component a component of an ask may be, at most."""

    def __post_init__(self) -> None:
        require(
            self.mode in CLEARING_MODES,
            f"mode must be one of {', '.join(CLEARING_MODES)}, got {self.mode!r}",
        )
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                least = 0 if name in _MAY_BE_ZERO else 1
                require(value >= least, f"{name} must be at least {least}, got {value}")
                most = _MOST.get(name, 2**53)
                require(value <= most, f"{name} must be at most {most}, got {value}")
        require(
            self.unbonding_ms > self.evidence_window_ms,
            f"unbonding_ms must be above evidence_window_ms, got {self.unbonding_ms}: who left "
            "must still be slashable for all that can be proven",
        )
        require(
            self.ask_reveal_ms < self.ask_epoch_ms,
            f"ask_reveal_ms must be below ask_epoch_ms, got {self.ask_reveal_ms}",
        )


@dataclass(frozen=True, slots=True)
class GenesisValidator:
    """A node that votes on blocks and may be auctioneer or witness, with its stake."""

    node_id: NodeId
    stake_micros: int

    def __post_init__(self) -> None:
        require_id("node_id", self.node_id)
        require(0 < self.stake_micros <= 2**53, "stake_micros must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class GenesisAccount:
    """Money that an account starts with; `escrow_micros` of it already in the hub's escrow."""

    account: AccountId
    available_micros: int
    escrow_micros: int = 0

    def __post_init__(self) -> None:
        require_id("account", self.account)
        require(self.available_micros >= 0 and self.escrow_micros >= 0, "money is never negative")


@dataclass(frozen=True, slots=True)
class Genesis:
    """The chain's first facts."""

    name: str
    time_ms: int
    hub: HubId
    model: str
    validators: tuple[GenesisValidator, ...]
    accounts: tuple[GenesisAccount, ...]
    params: MarketParams

    def __post_init__(self) -> None:
        require(bool(self.name and self.hub and self.model), "name, hub and model must be set")
        for what in ("hub", "model"):  # every node's report repeats them
            size = len(getattr(self, what).encode())
            require(size <= MAX_TEXT_BYTES, f"{what} is over {MAX_TEXT_BYTES} bytes")
        require(len(self.validators) > 0, "a market needs at least one validator")
        ids = [validator.node_id for validator in self.validators]
        require(len(set(ids)) == len(ids), "a validator is named twice")
        issued = sum(v.stake_micros for v in self.validators) + sum(
            a.available_micros + a.escrow_micros for a in self.accounts
        )
        require(issued <= MAX_SUPPLY_MICROS, "genesis issues more than 2^50 micro-credits")
        names = [account.account for account in self.accounts]
        require(len(set(names)) == len(names), "an account is named twice")

    def compute_chain_id(self, genesis_bytes: bytes) -> str:
        """Give the chain id: the market's name and the hash of its genesis file's bytes."""
        return f"{self.name}-{compute_hash(genesis_bytes).hex()[:16]}"
