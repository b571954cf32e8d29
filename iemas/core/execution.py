"""Messages of execution: task request, receipts, acknowledgements, running totals.

Source: design §4 steps 6 and 7, §5 (settlement on outcome).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iemas.core.auction import Allocation
from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.envelope import Signed
from iemas.core.settlement import Delivery, compute_amount_micros
from iemas.core.types import (
    PPM,
    AccountId,
    ChannelId,
    FinishReason,
    Hash,
    HubId,
    NodeId,
    require,
    require_id,
)


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Receipt 0: the requester hands the task over and owes the prompt and the first window.

    `prompt_hash` commits to the `TaskPayload` that travels beside it to the winner alone.
    """

    allocation_hash: bytes
    account: AccountId
    provider: NodeId
    prompt_hash: bytes
    prompt_tokens: int
    max_tokens: int
    requested_at_ms: int

    def __post_init__(self) -> None:
        for name in ("allocation_hash", "account", "provider", "prompt_hash"):
            require_id(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class TaskPayload:
    """The private part of a task, seen by requester and winner only. Never logged or stored.

    `token_ids` is the rendered and tokenized prompt, `cache_salt` the account's own salt (empty:
    share the prefix). `temperature_ppm`, `top_p_ppm` in millionths; `seed` −1 for none.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    cache_salt: str
    temperature_ppm: int
    top_p_ppm: int
    seed: int
    stop: tuple[str, ...]
    ignore_eos: bool

    def __post_init__(self) -> None:
        require(len(self.token_ids) > 0, "the prompt is empty")
        require(self.max_tokens > 0, "max_tokens must be positive")
        require(0 <= self.temperature_ppm <= 10_000_000, "temperature must be in 0..10")
        require(0 < self.top_p_ppm <= 1_000_000, "top_p must be in (0, 1]")


def compute_prompt_hash(payload: TaskPayload) -> Hash:
    """Commit to a task's private part: `TaskRequest.prompt_hash`.

    The account's own `cache_salt` blinds it, so that it does not confirm a guessed prompt.
    """
    fields = (
        b"".join(token_id.to_bytes(4, "big") for token_id in payload.token_ids),
        payload.max_tokens,
        payload.cache_salt,
        payload.temperature_ppm,
        payload.top_p_ppm,
        payload.seed,
        payload.stop,
        payload.ignore_eos,
    )
    return compute_hash(b"iemas prompt", encode_canonical(fields))


def compute_first_window_micros(allocation: Allocation, window_tokens: int) -> int:
    """Compute what receipt 0 owes: the prompt and the first window of output, all on time."""
    first = Delivery().add(min(window_tokens, allocation.max_tokens), PPM)
    usage = first.bill(allocation.prompt_tokens, shown_cached_tokens=allocation.cached_tokens)
    return compute_amount_micros(allocation.rates, usage)


def extend_output_hash(previous: bytes, token_ids: Iterable[int]) -> Hash:
    """Chain delivered token ids onto `Receipt.output_hash`, one link a token.

    The first link's `previous` is the task request's hash; a link is ``compute_hash(previous, token
    id as 4 bytes big-endian)``. So the hash names the tokens in order, however they were cut into
    chunks and receipts.
    """
    output_hash = Hash(previous)
    for token_id in token_ids:
        output_hash = compute_hash(output_hash, token_id.to_bytes(4, "big"))
    return output_hash


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """Streamed output: text and the token ids behind it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Cumulative usage of one task, signed by the provider. Source: design §5.

    `cached_tokens` is what the backend reported (until it does, what the allocation showed);
    `billed_cached_tokens` is at least what the allocation showed. `prompt_late_ppm` is late_j at
    the first token, `output_late_ppm_tokens` the sum of late_j over the output tokens, so that
    ``amount = floor((uncached·prompt + billed_cached·cached)·prompt_late_ppm +
    output_rate·output_late_ppm_tokens, 10^12)``. `elapsed_ms` runs from acceptance of the task
    to the last token, less the time spent waiting with a full unacknowledged window.
    `output_hash` chains the delivered token ids. `active_tasks` counts the provider's other tasks
    when this one was accepted: what its time to first token depends on.
    """

    allocation_hash: bytes
    account: AccountId
    provider: NodeId
    hub: HubId
    term: int
    channel: ChannelId
    sequence: int
    prompt_tokens: int
    cached_tokens: int
    billed_cached_tokens: int
    output_tokens: int
    prompt_late_ppm: int
    output_late_ppm_tokens: int
    ttft_ms: int
    elapsed_ms: int
    amount_micros: int
    output_hash: bytes
    active_tasks: int
    max_tokens: int
    finish: FinishReason

    def __post_init__(self) -> None:
        for name in ("allocation_hash", "account", "provider", "output_hash"):
            require_id(name, getattr(self, name))
        require(self.sequence >= 1, "receipts count from 1; 0 is the task request")
        require(self.amount_micros >= 0, "an amount is never negative")
        require(
            0 <= self.cached_tokens <= self.prompt_tokens
            and 0 <= self.billed_cached_tokens <= self.prompt_tokens,
            "more tokens cached than in the prompt",
        )


@dataclass(frozen=True, slots=True)
class ReceiptAcknowledgement:
    """The requester countersigns a receipt by its hash."""

    receipt_hash: bytes
    allocation_hash: bytes
    sequence: int

    def __post_init__(self) -> None:
        require_id("receipt_hash", self.receipt_hash)
        require_id("allocation_hash", self.allocation_hash)


@dataclass(frozen=True, slots=True)
class ChannelTotal:
    """All that a channel owes a provider in a term so far, signed by the account.

    It rides with the task request and with every acknowledgement, counts every receipt
    acknowledged until then, and a higher `sequence` supersedes a lower one: one entry settles any
    number of tasks.
    """

    hub: HubId
    term: int
    account: AccountId
    channel: ChannelId
    provider: NodeId
    sequence: int
    total_micros: int

    def __post_init__(self) -> None:
        require_id("account", self.account)
        require_id("provider", self.provider)
        require(self.sequence >= 1, "totals count from 1")
        require(0 <= self.total_micros <= 2**53, "total_micros must be in 0..2^53")


@dataclass(frozen=True, slots=True)
class Busy:
    """The provider is over capacity: signed, it voids the allocation's hold."""

    allocation_hash: bytes
    provider: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class TaskStart:
    """What the requester sends the winner first: allocation, receipt 0, its total, the prompt."""

    allocation: Signed[Allocation]
    task_request: Signed[TaskRequest]
    total: Signed[ChannelTotal]
    payload: TaskPayload


@dataclass(frozen=True, slots=True)
class ReceiptCountersigned:
    """The requester's acknowledgement of a receipt, with its new running total."""

    acknowledgement: Signed[ReceiptAcknowledgement]
    total: Signed[ChannelTotal]


@dataclass(frozen=True, slots=True)
class ReceiptNotice:
    """A finished task's last receipt with both signatures: what the QoS predictors learn from."""

    receipt: Signed[Receipt]
    acknowledgement: Signed[ReceiptAcknowledgement]


@dataclass(frozen=True, slots=True)
class UnsettledChannel:
    """What a provider keeps on disk of a channel until the ledger has settled it.

    `total` is what would be settled now, within the bound of `allocation`; `counted_micros` what
    every later total must count, whatever process of the provider it arrives at.
    """

    allocation: Signed[Allocation]
    total: Signed[ChannelTotal]
    counted_micros: int
