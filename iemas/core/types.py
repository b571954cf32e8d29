"""Identifiers, units and small value types that every package shares.

Money is integer micro-credits (`_micros`), prices are integer micro-credits per million tokens
(`_micros_per_mtok`), time on the wire is integer milliseconds (`_ms`), shares of one are integer
parts per million (`_ppm`). Nothing here is a float.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from iemas.core.errors import MalformedMessageError

NodeId = NewType("NodeId", bytes)
"""SHA-256 of a node's Ed25519 public key, 32 bytes."""

AccountId = NewType("AccountId", bytes)
"""SHA-256 of an account's Ed25519 public key, 32 bytes. A node's account has the node's id."""

Hash = NewType("Hash", bytes)
"""A SHA-256 digest, 32 bytes."""

HubId = NewType("HubId", str)
"""Name of a hub: the served model's name in this version."""

ChannelId = NewType("ChannelId", int)
"""A client process's random 64-bit number: its running totals and nonces are its own."""

PPM = 1_000_000
MICROS_PER_CREDIT = 1_000_000
TOKENS_PER_MTOK = 1_000_000
ID_BYTES = 32


def short_id(identifier: bytes) -> str:
    """Give the first 10 hex digits of an id or hash, as logs and tables show it."""
    return identifier.hex()[:10]


def require(condition: bool, message: str, **operands: object) -> None:  # noqa: FBT001
    """Raise `MalformedMessageError` unless the condition holds.

    Raises: MalformedMessageError with the given operands.
    """
    if not condition:
        raise MalformedMessageError(message, **operands)


def require_id(name: str, value: bytes) -> None:
    """Refuse an id or hash that is not exactly 32 bytes."""
    require(len(value) == ID_BYTES, f"{name} must be 32 bytes, got {len(value)}", field=name)


@dataclass(frozen=True, slots=True)
class Prices:
    """A price vector in micro-credits per million tokens, one component a kind of token.

    `prompt_micros_per_mtok` is for prompt tokens that must be computed,
    `cached_micros_per_mtok` for prompt tokens whose KV blocks are resident,
    `output_micros_per_mtok` for generated tokens. Every component is at least 1 and at most
    10^12 (a credit a token). Source: design §5 (a_i, b_j).
    """

    prompt_micros_per_mtok: int
    cached_micros_per_mtok: int
    output_micros_per_mtok: int

    def __post_init__(self) -> None:
        for price in (
            self.prompt_micros_per_mtok,
            self.cached_micros_per_mtok,
            self.output_micros_per_mtok,
        ):
            require(1 <= price <= 10**12, f"a price must be in 1..10^12, got {price}", price=price)

    def covers(self, other: Prices) -> bool:
        """Tell whether every component is at least the other's."""
        return (
            self.prompt_micros_per_mtok >= other.prompt_micros_per_mtok
            and self.cached_micros_per_mtok >= other.cached_micros_per_mtok
            and self.output_micros_per_mtok >= other.output_micros_per_mtok
        )


@dataclass(frozen=True, slots=True)
class Lateness:
    """What a token is still worth when it arrives late, by the requester's own declaration.

    Worth 1 up to `deadline_ms` after the task started, then falling linearly to 0 over
    `decay_ms`. A deadline of 0 means that time does not matter: always worth 1.
    Source: design §5 (late_j).
    """

    deadline_ms: int = 0
    decay_ms: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.deadline_ms <= 86_400_000 and 0 <= self.decay_ms <= 86_400_000,
            "deadline and decay must be within a day",
            deadline_ms=self.deadline_ms,
            decay_ms=self.decay_ms,
        )

    def compute_ppm(self, elapsed_ms: int) -> int:
        """Give the worth, in parts per million, of a token delivered after `elapsed_ms`."""
        if self.deadline_ms == 0 or elapsed_ms <= self.deadline_ms:
            return PPM
        late_ms = elapsed_ms - self.deadline_ms
        if late_ms >= self.decay_ms:
            return 0
        return PPM - late_ms * PPM // self.decay_ms


class HashAlgorithm(IntEnum):
    """How a node's backend hashes prefix blocks."""

    UNSPECIFIED = 0
    SHA256_CBOR = 1


class FinishReason(IntEnum):
    """Why a task's output ended; `UNSPECIFIED` while it runs."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    FAILED = 4


class UnmatchedReason(IntEnum):
    """Why a bid of a closed round got no provider."""

    UNSPECIFIED = 0
    OUTBID = 1
    INFEASIBLE = 2
    UNFUNDED = 3
    UNDECRYPTABLE = 4
    NO_PROVIDER = 5
