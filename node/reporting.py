"""A node's own reports: what it says of itself, when, and in which sequence.

Pure. Capability and digest are said again well before they run out, load at every change and often
enough that auctioneers may use it. Source: design §8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iemas.core.envelope import Signed, Signer
from iemas.core.params import MarketParams
from iemas.core.report import (
    CacheDigest,
    CapabilityReport,
    LoadReport,
    Report,
    ReportStamp,
)
from iemas.core.types import HashAlgorithm, HubId

CAPABILITY_TTL_MS = 60_000
DIGEST_TTL_MS = 60_000


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """What a node's capability report says, but for its stamp; see `CapabilityReport`."""

    public_address: str
    peer_address: str
    ca_certificate: bytes
    hpke_public_key: bytes
    software: str
    hub: HubId
    model: str = ""
    model_revision: str = ""
    tokenizer_hash: bytes = b""
    block_size: int = 0
    hash_algorithm: HashAlgorithm = HashAlgorithm.UNSPECIFIED
    context_tokens: int = 0
    slots: int = 0
    kv_events: bool = False
    hardware: str = ""

    @property
    def sells(self) -> bool:
        """Whether the node is a provider."""
        return bool(self.model) and self.slots > 0


@dataclass(frozen=True, slots=True)
class CurrentLoad:
    """What a load report says, but for its stamp."""

    slots: int
    active: tuple[bytes, ...] = ()
    finished: tuple[bytes, ...] = ()
    pending_prompt_tokens: int = 0


class Reporter:
    """Makes this node's signed reports when they are due."""

    def __init__(
        self,
        *,
        profile: NodeProfile,
        incarnation: int,
        params: MarketParams,
        signer: Signer,
        get_load: Callable[[], CurrentLoad],
    ) -> None:
        self.profile = profile
        self._incarnation = incarnation
        self._params = params
        self._signer = signer
        self._get_load = get_load
        self._sequence = 0
        self._blocks: tuple[bytes, bool] | None = None
        self._capability_due_ms = 0
        self._load_due_ms = 0
        self._digest_due_ms = 0
        self._last_load: CurrentLoad | None = None

    def set_cache(self, blocks: bytes, *, estimated: bool) -> None:
        """Take a new snapshot of the backend's prefix blocks: a digest is due at once."""
        if self._blocks != (blocks, estimated):
            self._blocks = (blocks, estimated)
            self._digest_due_ms = 0

    def make_due_reports(self, *, now_ms: int) -> list[Signed[Report]]:
        """Make the reports whose time has come or whose subject has changed."""
        reports: list[Signed[Report]] = []
        if now_ms >= self._capability_due_ms:
            self._capability_due_ms = now_ms + CAPABILITY_TTL_MS // 3
            reports.append(self._signer.sign(self._make_capability(now_ms)))
        if not self.profile.sells:
            return reports
        load = self._get_load()
        if now_ms >= self._load_due_ms or load != self._last_load:
            self._load_due_ms = now_ms + self._params.report_max_age_ms // 3
            self._last_load = load
            reports.append(self._signer.sign(self._make_load(load, now_ms)))
        if self._blocks is not None and now_ms >= self._digest_due_ms:
            self._digest_due_ms = now_ms + DIGEST_TTL_MS // 3
            blocks, estimated = self._blocks
            stamp = self._make_stamp(now_ms, DIGEST_TTL_MS)
            digest = CacheDigest(stamp, self.profile.block_size, estimated, blocks)
            reports.append(self._signer.sign(digest))
        return reports

    def _make_stamp(self, now_ms: int, ttl_ms: int) -> ReportStamp:
        self._sequence += 1
        return ReportStamp(self._signer.node_id, self._incarnation, self._sequence, now_ms, ttl_ms)

    def _make_capability(self, now_ms: int) -> CapabilityReport:
        profile = self.profile
        return CapabilityReport(
            stamp=self._make_stamp(now_ms, CAPABILITY_TTL_MS),
            public_address=profile.public_address,
            peer_address=profile.peer_address,
            ca_certificate=profile.ca_certificate,
            hpke_public_key=profile.hpke_public_key,
            software=profile.software,
            hub=profile.hub,
            model=profile.model,
            model_revision=profile.model_revision,
            tokenizer_hash=profile.tokenizer_hash,
            block_size=profile.block_size,
            hash_algorithm=profile.hash_algorithm,
            context_tokens=profile.context_tokens,
            slots=profile.slots,
            kv_events=profile.kv_events,
            hardware=profile.hardware,
        )

    def _make_load(self, load: CurrentLoad, now_ms: int) -> LoadReport:
        return LoadReport(
            stamp=self._make_stamp(now_ms, self._params.report_max_age_ms),
            slots=load.slots,
            active=load.active,
            finished=load.finished,
            pending_prompt_tokens=load.pending_prompt_tokens,
        )
