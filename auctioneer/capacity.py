"""Free slots: what a provider's load report says, less what was allocated since.

A load report names the allocations that run and the last ones that ended. Allocations that no
report has mentioned yet count as taken until they expire. Source: design §5 (k_i free slots).
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.core.auction import Allocation
from iemas.core.envelope import Signed
from iemas.core.report import CapabilityReport, LoadReport
from iemas.core.types import NodeId


@dataclass(slots=True)
class _Outstanding:
    provider: NodeId
    expires_at_ms: int


class Capacity:
    """Which of one auctioneer's allocations are not yet seen in a load report."""

    def __init__(self) -> None:
        self._outstanding: dict[bytes, _Outstanding] = {}

    def record_allocation(self, allocation: Signed[Allocation]) -> None:
        """Count an allocation as a taken slot from now on."""
        message = allocation.message
        self._outstanding[allocation.hash] = _Outstanding(message.provider, message.expires_at_ms)

    def observe_load(self, load: LoadReport) -> None:
        """Forget allocations that the provider now reports itself, running or ended."""
        for allocation_hash in (*load.active, *load.finished):
            self._outstanding.pop(allocation_hash, None)

    def compute_free_slots(
        self, capability: CapabilityReport, load: LoadReport, *, now_ms: int
    ) -> int:
        """Compute how many more tasks the provider can take."""
        for allocation_hash, entry in sorted(self._outstanding.items()):
            if entry.expires_at_ms <= now_ms:
                del self._outstanding[allocation_hash]
        provider = capability.stamp.node_id
        pending = sum(entry.provider == provider for entry in self._outstanding.values())
        return max(0, min(capability.slots, load.slots) - len(load.active) - pending)
