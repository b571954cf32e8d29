"""Messages of the auction: ask, bid, close, allocation, transcript.

The order in which they travel is the life of one task (docs/ARCHITECTURE.md). All money fields
are integer micro-credits. Source: design §4 to §6.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import astuple, dataclass, fields, replace
from itertools import pairwise
from operator import attrgetter

from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.envelope import Signed
from iemas.core.merkle import InclusionProof
from iemas.core.report import BLOCK_KEY_BYTES, CapabilityReport, LoadReport
from iemas.core.types import (
    ID_BYTES,
    AccountId,
    ChannelId,
    Hash,
    HubId,
    Lateness,
    NodeId,
    Prices,
    UnmatchedReason,
    require,
    require_id,
)

MAX_TOKENS = 10_000_000
MAX_MICROS = 2**53
N_SCENARIOS = 16
"""How many scenarios a round weighs: a divisor of 10^6, so that means are whole in ppm."""

MAX_ROUNDS = 20_000
"""How many rounds a term has at most: their hashes must fit into one provable leaf."""

MAX_MODEL_ROWS = 4096
"""How many providers a QoS model knows one by one, at most."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A provider's price vector, standing from its ledger entry on until it is replaced."""

    hub: HubId
    prices: Prices


@dataclass(frozen=True, slots=True)
class Bid:
    """A requester's valuation of one task: opened only after its round is closed.

    `prices` is the most that it pays a token of each kind, `lateness` how that falls with time,
    `reservation_micros` the most that this task may hold of its allowance.
    """

    model: str
    prompt_tokens: int
    max_tokens: int
    prices: Prices
    lateness: Lateness
    reservation_micros: int

    def __post_init__(self) -> None:
        require(0 < self.prompt_tokens <= MAX_TOKENS, "prompt_tokens must be in 1..10^7")
        require(0 < self.max_tokens <= MAX_TOKENS, "max_tokens must be in 1..10^7")
        require(0 < self.reservation_micros <= MAX_MICROS, "reservation must be in 1..2^53")


@dataclass(frozen=True, slots=True)
class SealedBid:
    """What commits a requester: the encrypted bid and the two sealed shares of its key.

    `nonce` counts the account's bids on this channel in this term, from 1: the highest one tells
    how many bid fees the channel owes. `chain_hash` commits to the encrypted block-hash chain,
    which travels beside this message to the auctioneer alone.
    """

    hub: HubId
    term: int
    account: AccountId
    channel: ChannelId
    nonce: int
    ciphertext: bytes
    chain_hash: bytes
    auctioneer_seal: bytes
    witness_seal: bytes
    auctioneer_share_hash: bytes
    witness_share_hash: bytes

    def __post_init__(self) -> None:
        for name in ("account", "chain_hash", "auctioneer_share_hash", "witness_share_hash"):
            require_id(name, getattr(self, name))
        require(self.term >= 0 and self.nonce >= 1, "term and nonce must count up from 0 and 1")
        require(len(self.ciphertext) <= 4096, "an encrypted bid is at most 4096 bytes")
        require(len(self.auctioneer_seal) <= 256 and len(self.witness_seal) <= 256, "seal too long")


@dataclass(frozen=True, slots=True)
class BidSubmission:
    """A sealed bid with the encrypted chain of its prompt's block keys."""

    sealed_bid: Signed[SealedBid]
    chain_ciphertext: bytes

    def __post_init__(self) -> None:
        require(
            len(self.chain_ciphertext) <= 400_000 * BLOCK_KEY_BYTES + 16, "block chain too long"
        )


@dataclass(frozen=True, slots=True)
class BidAcknowledgement:
    """That a bid is in: signed by the witness first, then by the auctioneer."""

    hub: HubId
    term: int
    bid_hash: bytes

    def __post_init__(self) -> None:
        require_id("bid_hash", self.bid_hash)


@dataclass(frozen=True, slots=True)
class RoundClose:
    """The auctioneer fixes the set of bids: a Merkle root over their hashes, in order.

    `sealed` is false where the hub has no second live validator to witness.
    """

    hub: HubId
    term: int
    round: int
    bids_root: bytes
    bid_count: int
    closed_at_ms: int
    sealed: bool

    def __post_init__(self) -> None:
        require_id("bids_root", self.bids_root)
        require(self.bid_count > 0, "a round closes over at least one bid")


@dataclass(frozen=True, slots=True)
class ShareRelease:
    """The witness opens a closed round: one key share a bid, in the close's order."""

    hub: HubId
    term: int
    round: int
    close_hash: bytes
    shares: tuple[bytes, ...]

    def __post_init__(self) -> None:
        require_id("close_hash", self.close_hash)
        for share in self.shares:
            require_id("share", share)


@dataclass(frozen=True, slots=True)
class ProviderQos:
    """Quantised coefficients of the QoS model for one provider, all integers.

    Time to first token in µs is ``base + per_uncached_token·uncached + per_active_task·active +
    per_pending_token·pending``, an output token takes ``token_us``; both in the mean, with
    `*_sd_us` as standard deviations, and `Scenario` says how they spread together. `samples`
    counts the receipts behind it. Source: design §9.
    """

    provider: NodeId
    samples: int
    ttft_base_us: int
    ttft_per_uncached_token_us: int
    ttft_per_active_task_us: int
    ttft_per_pending_token_us: int
    ttft_sd_us: int
    token_us: int
    token_sd_us: int

    def __post_init__(self) -> None:
        require_id("provider", self.provider)
        for name in (
            "ttft_base_us",
            "ttft_per_uncached_token_us",
            "ttft_per_active_task_us",
            "ttft_per_pending_token_us",
            "ttft_sd_us",
            "token_us",
            "token_sd_us",
        ):
            require(0 <= getattr(self, name) <= 10**10, f"{name} must be in 0..10^10 µs")


_GET_NUMBERS = attrgetter(*[field.name for field in fields(ProviderQos)])
"""A row as a plain tuple, its fields in order."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of `N_SCENARIOS` equally likely ways in which any task of a hub may go.

    The answer would be `output_tokens` long if nothing cut it off. The first token comes
    `ttft_deviation_ppm` millionths of the provider's standard deviation after the mean, and a
    token takes `token_deviation_ppm` longer. Together they are the joint distribution of lengths
    and times that a round clears under. Source: docs/spec/auction.md §6.
    """

    output_tokens: int
    ttft_deviation_ppm: int
    token_deviation_ppm: int

    def __post_init__(self) -> None:
        require(0 < self.output_tokens <= MAX_TOKENS, "output_tokens must be in 1..10^7")
        for name in ("ttft_deviation_ppm", "token_deviation_ppm"):
            require(abs(getattr(self, name)) <= 10**8, f"{name} must be in -10^8..10^8")


@dataclass(frozen=True, slots=True)
class QosModel:
    """What a hub's rounds are predicted from: the validators voted for its hash.

    `rows` are those of known providers, in the order of their ids. `prior` predicts everyone else;
    its own `provider` is zeros and its `samples` count the hub's receipts. Source: design §5.
    """

    scenarios: tuple[Scenario, ...]
    prior: ProviderQos
    rows: tuple[ProviderQos, ...]

    def __post_init__(self) -> None:
        require(len(self.scenarios) == N_SCENARIOS, f"there must be {N_SCENARIOS} scenarios")
        require(self.prior.provider == bytes(ID_BYTES), "the prior is no provider's")
        require(len(self.rows) <= MAX_MODEL_ROWS, f"a model has at most {MAX_MODEL_ROWS} rows")
        require(all(row.samples > 0 for row in self.rows), "a row comes from receipts")
        ids = [row.provider for row in self.rows]
        require(
            all(one < other for one, other in pairwise(ids)),
            "rows must be in the order of their providers, one each",
        )

    @property
    def hash(self) -> Hash:
        """Name the model: the hash of its canonical CBOR."""
        scenarios = tuple([astuple(scenario) for scenario in self.scenarios])
        rows = tuple([_GET_NUMBERS(row) for row in self.rows])
        plain = ("iemas.v1.QosModel", scenarios, _GET_NUMBERS(self.prior), rows)
        return compute_hash(encode_canonical(plain))

    def get_row(self, provider: NodeId) -> ProviderQos:
        """Give the row of a provider; the prior's numbers, of no samples, if it has none."""
        place = bisect_left(self.rows, provider, key=attrgetter("provider"))
        if place < len(self.rows) and self.rows[place].provider == provider:
            return self.rows[place]
        return replace(self.prior, provider=provider, samples=0)


@dataclass(frozen=True, slots=True)
class ProviderInput:
    """What the round used of one provider: its signed reports, ask and free slots.

    `digest_hash` names the cache digest that `matched_blocks` was counted in (zeros: none).
    """

    capability: Signed[CapabilityReport]
    load: Signed[LoadReport]
    digest_hash: bytes
    ask: Prices
    free_slots: int

    def __post_init__(self) -> None:
        require_id("digest_hash", self.digest_hash)
        require(0 <= self.free_slots <= 65_536, "free_slots must be in 0..65536")


@dataclass(frozen=True, slots=True)
class TaskInput:
    """What the round used of one bid: the sealed bid, both shares, and its matched blocks.

    `matched_blocks` counts, per provider of the transcript, the leading blocks of the prompt
    found in that provider's digest. `dropped` tells why a bid took no part in the matching.
    """

    sealed_bid: Signed[SealedBid]
    auctioneer_share: bytes
    witness_share: bytes
    matched_blocks: tuple[int, ...]
    dropped: UnmatchedReason


@dataclass(frozen=True, slots=True)
class ClearingResult:
    """The clearing as it travels: `auctioneer.mechanism.Clearing` in plain integers.

    Indices count the transcript's tasks that were not dropped, and its providers.
    `predecessor_tasks[i]` is the task that proves slot price i least, −1 where the price is 0.
    `vcg_bonuses_micros[i]` is what provider i adds to the market, `surcharges_micros[j]` what task
    j pays above its provider's expected cost, by the mode's rule.
    """

    mode: str
    assignment: tuple[int, ...]
    welfare_micros: int
    slot_prices_micros: tuple[int, ...]
    predecessor_tasks: tuple[int, ...]
    vcg_bonuses_micros: tuple[int, ...]
    surcharges_micros: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that is needed to check a round. Source: design §4 step 5, §5, §8.

    It holds no prompt, no answer and no block hashes. `model` is the one that the ledger names for
    the term. `previous_hash` chains the transcripts of a term (zeros for its first).
    `ledger_height` is the auctioneer's when it cleared: a verifier that is behind waits for it.
    """

    hub: HubId
    term: int
    round: int
    auctioneer: NodeId
    witness: NodeId
    previous_hash: bytes
    cleared_at_ms: int
    ledger_height: int
    close: Signed[RoundClose]
    release: Signed[ShareRelease]
    model: QosModel
    providers: tuple[ProviderInput, ...]
    tasks: tuple[TaskInput, ...]
    clearing: ClearingResult

    def __post_init__(self) -> None:
        require_id("previous_hash", self.previous_hash)
        for task in self.tasks:
            require(
                len(task.matched_blocks) == len(self.providers),
                "matched_blocks must have one entry a provider",
            )


@dataclass(frozen=True, slots=True)
class Allocation:
    """The auctioneer's signed decision that a provider serves a task, and on which terms.

    `rates` are min(ρ·ask, bid) per kind of token, `price_micros` the expected payment P_j,
    `reserved_micros` the largest possible payment of this task, `channel_reserved_micros` the
    sum of such reservations for this (account, channel, provider) in the term so far: the bound
    on what the provider can settle. `cached_tokens` is what the provider's own digest showed.
    """

    hub: HubId
    term: int
    round: int
    bid_hash: bytes
    account: AccountId
    channel: ChannelId
    provider: NodeId
    prompt_tokens: int
    cached_tokens: int
    max_tokens: int
    rates: Prices
    lateness: Lateness
    price_micros: int
    reserved_micros: int
    channel_reserved_micros: int
    expected_ttft_ms: int
    expires_at_ms: int
    transcript_hash: bytes

    def __post_init__(self) -> None:
        for name in ("bid_hash", "account", "provider", "transcript_hash"):
            require_id(name, getattr(self, name))
        require(
            0 <= self.cached_tokens <= self.prompt_tokens, "more tokens cached than in the prompt"
        )


@dataclass(frozen=True, slots=True)
class Unmatched:
    """The auctioneer's signed decision that a task got no provider, and what it would have taken.

    `price_to_beat_micros` is by how much the bid's welfare fell short at its best provider
    (0 if unknown or infeasible everywhere).
    """

    hub: HubId
    term: int
    round: int
    bid_hash: bytes
    account: AccountId
    reason: UnmatchedReason
    price_to_beat_micros: int
    transcript_hash: bytes


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What one bidder gets back: its signed allocation or "unmatched", and the inclusion proof."""

    close: Signed[RoundClose]
    inclusion_proof: InclusionProof
    allocation: Signed[Allocation] | None
    unmatched: Signed[Unmatched] | None


@dataclass(frozen=True, slots=True)
class CountersignRequest:
    """The auctioneer passes sealed bids on to the witness."""

    bids: tuple[Signed[SealedBid], ...]


@dataclass(frozen=True, slots=True)
class CountersignResponse:
    """The witness's signed acknowledgements, and the hashes of bids that it refuses and why."""

    acknowledgements: tuple[Signed[BidAcknowledgement], ...]
    refused: tuple[bytes, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseNotice:
    """A signed close with the bid hashes under its root, in order."""

    close: Signed[RoundClose]
    bid_hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReleaseNotice:
    """The witness's release of a closed round's key shares."""

    release: Signed[ShareRelease]


@dataclass(frozen=True, slots=True)
class TranscriptNotice:
    """A round's signed transcript, to every node of the hub."""

    transcript: Signed[Transcript]


@dataclass(frozen=True, slots=True)
class ModelProposal:
    """A term's auctioneer proposes a QoS model for an ask epoch of the hub."""

    hub: HubId
    epoch: int
    term: int
    model: QosModel


@dataclass(frozen=True, slots=True)
class ModelNotice:
    """A signed proposal of a model, to every validator."""

    proposal: Signed[ModelProposal]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A validator asks for a model that the ledger names and that it lacks."""

    model_hash: Hash

    def __post_init__(self) -> None:
        require_id("model_hash", self.model_hash)


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """The model asked for: its hash proves it."""

    model: QosModel


@dataclass(frozen=True, slots=True)
class BidAccepted:
    """The bid is in: the witness's and the auctioneer's signature on the same acknowledgement."""

    witness_acknowledgement: Signed[BidAcknowledgement]
    auctioneer_acknowledgement: Signed[BidAcknowledgement]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A named refusal: the error's class name, and what to do."""

    error: str
    message: str


BidAnswer = BidAccepted | RoundOutcome | Refusal


@dataclass(frozen=True, slots=True)
class ForwardedBid:
    """A validator passes a bid on that got no answer elsewhere."""

    submission: BidSubmission


@dataclass(frozen=True, slots=True)
class BidWaiting:
    """The auctioneer has the bid, and waits for its witness."""


@dataclass(frozen=True, slots=True)
class ForwardedAnswer:
    """What the auctioneer says to a bid, to the validator that passed it on."""

    bid_hash: bytes
    answer: BidAccepted | RoundOutcome | Refusal | BidWaiting

    def __post_init__(self) -> None:
        require_id("bid_hash", self.bid_hash)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """The auctioneer asks a validator to vouch that nobody else signs in its term.

    `asked_at_ms` is on the auctioneer's own clock: nobody else reads it.
    """

    hub: HubId
    term: int
    asked_at_ms: int


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """A validator grants the lease, from when it was asked for."""

    hub: HubId
    term: int
    asked_at_ms: int


@dataclass(frozen=True, slots=True)
class LeaseRelease:
    """The auctioneer knows that its term is over and takes no more bids."""

    hub: HubId
    term: int
