"""Signed reports: what a node can do, how busy it is, and which prefix blocks it holds.

A report carries its node's incarnation (start time of the process), a sequence number within it,
and a time to live. Which reports are accepted is decided in `iemas.core.membership`.
Source: design §8.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.types import ID_BYTES, HashAlgorithm, HubId, NodeId, require, require_id

MAX_TTL_MS = 3_600_000
BLOCK_KEY_BYTES = 8
MAX_DIGEST_BLOCKS = 4_000_000
MAX_TEXT_BYTES = 256
"""UTF-8 bytes of one text of a capability report, which every round's transcript repeats."""


@dataclass(frozen=True, slots=True)
class ReportStamp:
    """Whose report this is, and where it stands in that node's sequence.

    `incarnation` is when the node's process started, `issued_at_ms` when the report was signed
    (both Unix milliseconds of the node's clock); it expires `ttl_ms` after `issued_at_ms`.
    """

    node_id: NodeId
    incarnation: int
    sequence: int
    issued_at_ms: int
    ttl_ms: int

    def __post_init__(self) -> None:
        require_id("node_id", self.node_id)
        require(self.incarnation > 0, "incarnation must be positive")
        require(self.sequence >= 0, "sequence must not be negative")
        require(0 < self.ttl_ms <= MAX_TTL_MS, f"ttl_ms must be in 1..{MAX_TTL_MS}")

    @property
    def order(self) -> tuple[int, int]:
        """Later reports of a node compare greater."""
        return (self.incarnation, self.sequence)

    @property
    def expires_at_ms(self) -> int:
        """When the report is no longer to be used."""
        return self.issued_at_ms + self.ttl_ms


@dataclass(frozen=True, slots=True)
class CapabilityReport:
    """What a node is and serves.

    A node that sells nothing (a validator, an observer) has an empty `model` and 0 `slots`.
    `ca_certificate` is the node's self-signed Ed25519 certificate (DER), which members add to
    their trust; `hpke_public_key` is what key shares for this node are sealed to.
    `tokenizer_hash` names the tokenizer bundle (see `iemas.core.tokenizer_bundle`).
    `kv_events` tells whether the cache digest is exact or estimated.
    """

    stamp: ReportStamp
    public_address: str
    peer_address: str
    ca_certificate: bytes
    hpke_public_key: bytes
    software: str
    hub: HubId
    model: str
    model_revision: str
    tokenizer_hash: bytes
    block_size: int
    hash_algorithm: HashAlgorithm
    context_tokens: int
    slots: int
    kv_events: bool
    hardware: str

    def __post_init__(self) -> None:
        require_id("hpke_public_key", self.hpke_public_key)
        require(0 <= self.slots <= 65_536, "slots must be in 0..65536", slots=self.slots)
        require(len(self.ca_certificate) <= 4096, "ca_certificate is over 4096 bytes")
        for name in (
            "public_address",
            "peer_address",
            "software",
            "hub",
            "model",
            "model_revision",
            "hardware",
        ):
            size = len(getattr(self, name).encode())
            require(size <= MAX_TEXT_BYTES, f"{name} is over {MAX_TEXT_BYTES} bytes")
        require(len(self.tokenizer_hash) <= ID_BYTES, "tokenizer_hash is over 32 bytes")
        if self.model:
            require_id("tokenizer_hash", self.tokenizer_hash)
            require(0 < self.block_size <= 4096, "block_size must be in 1..4096")
            require(self.context_tokens > 0, "context_tokens must be positive")

    @property
    def sells(self) -> bool:
        """Whether the node is a provider."""
        return bool(self.model) and self.slots > 0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How busy a provider is: which allocations run, which lately ended, tokens still waiting.

    `active` and `finished` hold allocation hashes (32 bytes each); `finished` the last few that
    ended, so that an auctioneer can free the slots that it counts as taken.
    `pending_prompt_tokens` are prompt tokens accepted and not yet computed.
    """

    stamp: ReportStamp
    slots: int
    active: tuple[bytes, ...]
    finished: tuple[bytes, ...]
    pending_prompt_tokens: int

    def __post_init__(self) -> None:
        require(0 <= self.slots <= 65_536, "slots must be in 0..65536")
        require(len(self.active) <= 65_536 and len(self.finished) <= 256, "too many allocations")
        for allocation_hash in (*self.active, *self.finished):
            require_id("allocation_hash", allocation_hash)
        require(self.pending_prompt_tokens >= 0, "pending_prompt_tokens must not be negative")


@dataclass(frozen=True, slots=True)
class CacheDigest:
    """Which prefix blocks are resident: a snapshot of block keys, 8 bytes each, sorted.

    A block key is the low 64 bits of vLLM's block hash, big-endian (see `iemas.core.digest`).
    `estimated` marks a digest that was inferred from served prompts, without KV events.
    """

    stamp: ReportStamp
    block_size: int
    estimated: bool
    blocks: bytes

    def __post_init__(self) -> None:
        require(0 < self.block_size <= 4096, "block_size must be in 1..4096")
        require(
            len(self.blocks) % BLOCK_KEY_BYTES == 0
            and len(self.blocks) <= MAX_DIGEST_BLOCKS * BLOCK_KEY_BYTES,
            "blocks must be whole 8-byte keys, at most 4 million",
        )


Report = CapabilityReport | LoadReport | CacheDigest
REPORT_KINDS: tuple[type[Report], ...] = (CapabilityReport, LoadReport, CacheDigest)
