"""Messages of membership: pushed reports, pull anti-entropy, probes.

Source: design §8 (membership): push for speed, pull so that a late joiner is complete within one
exchange.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.envelope import Signed
from iemas.core.report import CacheDigest, CapabilityReport, LoadReport, Report
from iemas.core.types import NodeId, require_id


@dataclass(frozen=True, slots=True)
class SignedReport:
    """One signed report of any kind: exactly one field is set."""

    capability: Signed[CapabilityReport] | None = None
    load: Signed[LoadReport] | None = None
    digest: Signed[CacheDigest] | None = None

    @staticmethod
    def wrap(signed: Signed[Report]) -> SignedReport:
        """Put a signed report into the field of its kind."""
        match signed.message:
            case CapabilityReport():
                return SignedReport(capability=signed)  # type: ignore[arg-type]
            case LoadReport():
                return SignedReport(load=signed)  # type: ignore[arg-type]
            case CacheDigest():
                return SignedReport(digest=signed)  # type: ignore[arg-type]

    def unwrap(self) -> Signed[Report] | None:
        """Give the report that is set."""
        return self.capability or self.load or self.digest


@dataclass(frozen=True, slots=True)
class ReportPush:
    """New reports, sent without being asked."""

    reports: tuple[SignedReport, ...]


@dataclass(frozen=True, slots=True)
class ReportVersion:
    """Which version of one node's reports the sender holds; (0, 0) for none of a kind.

    Each pair is (incarnation, sequence).
    """

    node_id: NodeId
    capability_incarnation: int
    capability_sequence: int
    load_incarnation: int
    load_sequence: int
    digest_incarnation: int
    digest_sequence: int

    def __post_init__(self) -> None:
        require_id("node_id", self.node_id)


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """Pull anti-entropy: all that the sender holds, by version; the answer is what it lacks."""

    versions: tuple[ReportVersion, ...]


@dataclass(frozen=True, slots=True)
class ExchangeResponse:
    """The reports that the asker lacks, and the versions here, so that it can push back."""

    reports: tuple[SignedReport, ...]
    versions: tuple[ReportVersion, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Are you there? Answered by `ProbeAcknowledgement` with the same sequence."""

    sequence: int


@dataclass(frozen=True, slots=True)
class ProbeAcknowledgement:
    """I am."""

    sequence: int
