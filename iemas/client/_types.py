"""What the SDK answers: the shapes of the `openai` package, and what only a market has.

A completion carries its `receipt` (what was used and paid, signed by the provider), its
`allocation` (the auctioneer's terms) and `market`: who cleared it, who won, at what price.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.auction import Allocation
from iemas.core.execution import Receipt
from iemas.core.types import MICROS_PER_CREDIT
from iemas.ledger.transaction import TransactionBody


@dataclass(frozen=True, slots=True)
class PromptTokensDetails:
    """How many of the prompt's tokens the provider's backend had cached."""

    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, as on the receipt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


@dataclass(frozen=True, slots=True)
class MarketDetails:
    """How the market served a request. Ids are hex digits; times are this client's own.

    `price_micros` is what was paid, `expected_price_micros` the clearing price that was expected.
    `matching_ms` is from the request to the allocation, `ttft_ms` to the first token. `attempts`
    counts the bids that it took.
    """

    auctioneer: str
    winner: str
    term: int
    round: int
    predicted_cached_tokens: int
    cached_tokens: int
    expected_price_micros: int
    price_micros: int
    matching_ms: int
    ttft_ms: int
    attempts: int
    transcript_hash: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The one answer. `finish_reason`: "stop", "length" or "cancelled"."""

    index: int
    message: ChatMessage
    finish_reason: str


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """An answer, with its proof of usage and price."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    receipt: Receipt
    allocation: Allocation
    market: MarketDetails
    object: str = "chat.completion"


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What a chunk adds to the message."""

    content: str | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkChoice:
    """A chunk's part of the one answer; `finish_reason` is set on the last."""

    index: int
    delta: ChoiceDelta
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ChatCompletionChunk:
    """A piece of a streamed answer. The last one carries usage, receipt and market details."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    allocation: Allocation
    usage: Usage | None = None
    receipt: Receipt | None = None
    market: MarketDetails | None = None
    object: str = "chat.completion.chunk"


@dataclass(frozen=True, slots=True)
class CompletionChoice:
    """The one continuation of a prompt, or a chunk's part of it."""

    index: int
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A continuation of a plain prompt, or a chunk of one (the last carries usage and receipt)."""

    id: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    allocation: Allocation
    usage: Usage | None = None
    receipt: Receipt | None = None
    market: MarketDetails | None = None
    object: str = "text_completion"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is for sale, and by how many nodes."""

    id: str
    context_tokens: int
    providers: int
    slots: int
    tokenizer_hash: str
    object: str = "model"
    owned_by: str = "iemas"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as its own signed reports describe it. `address` is ``nodeid@host:port``."""

    id: str
    address: str
    model: str
    slots: int
    active_tasks: int
    digest_blocks: int
    context_tokens: int
    hardware: str
    software: str
    kv_events: bool
    suspected: bool


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's money in micro-credits, after the block of `height`.

    `allowance_micros` is what this term's allocations may draw on: a share of the escrow.
    `staked_micros` votes on blocks; `unbonding_micros` has left the stake and can still be
    slashed; `pending_micros` is held for others; `deposit_micros` bonds committed asks. It is
    what one node says, unless it is `verified`: proven by those who hold the stake.
    """

    account: str
    exists: bool
    available_micros: int
    escrow_micros: int
    allowance_micros: int
    staked_micros: int
    unbonding_micros: int
    pending_micros: int
    deposit_micros: int
    height: int
    verified: bool = False

    @property
    def total_credits(self) -> float:
        """Available and escrowed money in credits, for showing."""
        return (self.available_micros + self.escrow_micros) / MICROS_PER_CREDIT


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a provider has settled of a channel's tasks in a term; proven after block `height`.

    `settled_micros` is the running total under `sequence` that was paid out of the escrow.
    `signed_micros` is the total that this client has signed by now, None for another client's
    channel. A closed term (not `is_open`) can be settled no more and its totals are forgotten:
    then `settled_by` is the id of the transaction that proves the rest, and `settled_micros` is at
    least what was paid, as no node need show a later one. None of them shown: nothing is proven.
    """

    provider: str
    term: int
    is_open: bool
    sequence: int
    settled_micros: int
    signed_micros: int | None
    height: int
    settled_by: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether all that this client has signed so far is paid: then no more can be."""
        return self.settled_micros == self.signed_micros


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """A transaction that the ledger recorded: its id (hex) and the height of its block."""

    id: str
    height: int


@dataclass(frozen=True, slots=True)
class RecordedTransaction:
    """A transaction and what became of it, proven: in block `height`, at the ledger's `time_ms`.

    `code` is "ok", or why its body was refused; `detail` says more. A refused one has used up its
    nonce and changed nothing else.
    """

    id: str
    height: int
    time_ms: int
    account: str
    nonce: int
    body: TransactionBody
    code: str
    detail: str

    @property
    def is_applied(self) -> bool:
        """Whether it did what it says; of a `Settle`, at least for one of its entries."""
        return self.code == "ok"


@dataclass(frozen=True, slots=True)
class Validator:
    """A validator of the market's hub, proven: with what stake it votes on blocks.

    `power_micros` is 0 while it is jailed, and for the first two blocks after it came in. `duty`:
    "live", "absent" (left out of the election of auctioneers until it returns) or "returning".
    `jailed_until_ms` is set if it may return after a time, `is_tombstoned` if it must stake anew.
    """

    id: str
    power_micros: int
    duty: str
    is_jailed: bool
    jailed_until_ms: int | None
    height: int

    @property
    def is_tombstoned(self) -> bool:
        """Whether it is jailed for good, until it stakes anew."""
        return self.is_jailed and self.jailed_until_ms is None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the market, proven: its value, and what validators would make of it.

    `next_value` is decided and counts from the next term on. `votes` are (validator, value) of
    those that voted for something else than what holds or is decided.
    """

    name: str
    value: int | str | bool
    is_changeable: bool
    next_value: int | None
    votes: tuple[tuple[str, int], ...]
    height: int
